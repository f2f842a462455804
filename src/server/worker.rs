//! One thread of the program: its runtime, its listeners and its exchanges.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream},
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use rustls::ServerConfig;
use tokio::{runtime::LocalRuntime, sync::mpsc};

use crate::{
    clock::{self, sleep},
    config::{Config, Listen},
    exchange::worker::Worker,
    memory::{budget::Budget, plan::Plan},
    observe::metrics::Metrics,
    server::{
        listener::{Acceptor, Listener, ListeningSocket},
        metrics_endpoint,
        pressure::Pressure,
        supervisor::{Pulse, Reporter},
        tls::contexts::Contexts,
    },
    sys::{code_pages, systemd},
};

/// What every worker starts with.
#[derive(Clone)]
pub struct WorkerInit {
    pub reporter: Reporter,
    /// The heartbeat for systemd's watchdog; `None` = there is no watchdog.
    pub pulse: Option<Arc<Pulse>>,
    pub config: Arc<Config>,
    /// The rustls configuration of each listener with TLS.
    pub tls: Contexts,
    pub plan: Plan,
    /// Connections to upstreams that this worker has file descriptors for.
    pub upstreams: usize,
    /// The process's memory limit, and whether a cgroup sets it.
    pub limit: Option<(u64, bool)>,
    pub metrics: Arc<Metrics>,
    pub start: SystemTime,
}

/// A command to a worker.
pub enum Command {
    /// Take over this configuration: open the new listeners, keep those that stay, close the others.
    Reload {
        config: Arc<Config>,
        tls: Contexts,
        opened: Vec<(Listen, OwnedFd)>,
        kept: Vec<Listen>,
    },
    /// Use these TLS configurations for new connections: files have changed.
    Renew(Contexts),
    /// Answer health with 503, and tell clients `connection: close`.
    Drain,
    /// Close the listeners, and end by this time. A second such command can only bring the end nearer.
    Close(Instant),
}

/// Starts a worker on a thread of its own.
pub fn spawn_worker(
    index: usize,
    init: WorkerInit,
    listeners: &[Listener],
) -> Result<(mpsc::UnboundedSender<Command>, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let sockets = sockets(listeners, index)?;
    let reporter = init.reporter.clone();
    let work = move || runtime()?.block_on(run_worker(init, sockets, None, receiver));
    let thread = thread::Builder::new()
        .name(format!("worker-{index}"))
        .stack_size(512 * 1024)
        .spawn(move || reporter.run(work))
        .context("starting a worker")?;
    Ok((sender, thread))
}

pub fn runtime() -> Result<LocalRuntime> {
    // tokio panics where it cannot get its six descriptors; this check returns an error instead
    let probe = [(); 3].map(|()| UnixStream::pair());
    for pair in probe {
        pair.context("starting the runtime")?;
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build_local(tokio::runtime::LocalOptions::default())
        .context("starting the runtime")
}

/// A worker's life: accept, tick, and carry out commands. One worker has the metrics' listener, too.
pub async fn run_worker(
    init: WorkerInit,
    sockets: Vec<(Listen, OwnedFd)>,
    exposed: Option<OwnedFd>,
    mut words: mpsc::UnboundedReceiver<Command>,
) -> Result<()> {
    clock::start().context("starting the timer")?;
    // what started the runtime is not in memory beside what starts the listeners
    code_pages::forget_code();
    let reporter = init.reporter;
    let worker = Worker::new(
        init.config,
        Budget::new(init.plan),
        init.upstreams,
        init.metrics,
        init.start,
    );
    let accept = |(listen, socket): (Listen, OwnedFd), contexts: &Contexts| {
        let tls = context(contexts, &listen);
        Acceptor::new(&worker, &listen, socket, tls, &reporter).map(|acceptor| (listen, acceptor))
    };
    let mut acceptors: Vec<(Listen, Acceptor)> = Vec::new();
    for socket in sockets {
        acceptors.push(accept(socket, &init.tls)?);
    }
    let pressure = Rc::new(Pressure::new(Rc::clone(&worker), init.limit));
    reporter.spawn(
        "timer",
        sweep(&worker, &pressure, init.pulse, reporter.worker()),
    );
    if let Some(listener) = exposed.map(ListeningSocket::new).transpose()? {
        let answer = metrics_endpoint::answer(Rc::clone(&worker), listener);
        reporter.spawn("metrics listener", answer);
    }
    reporter.accepts();
    while let Some(word) = words.recv().await {
        match word {
            Command::Reload {
                config,
                tls,
                opened,
                kept,
            } => {
                worker.reload(config);
                pressure.trim_again();
                end_others(&mut acceptors, &kept);
                renew(&acceptors, &tls);
                for socket in opened {
                    acceptors.push(accept(socket, &tls)?);
                }
            }
            Command::Renew(tls) => renew(&acceptors, &tls),
            Command::Drain => worker.draining.set(true),
            Command::Close(end) => {
                end_others(&mut acceptors, &[]);
                close(&worker, end, &mut words).await;
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The rustls configuration of this address; `None` = plain HTTP.
fn context(contexts: &Contexts, listen: &Listen) -> Option<Arc<ServerConfig>> {
    let mut contexts = contexts.iter();
    let (_, context) = contexts.find(|(address, _)| address == listen)?;
    Some(Arc::clone(context))
}

/// Closes the listeners at all other addresses.
fn end_others(acceptors: &mut Vec<(Listen, Acceptor)>, kept: &[Listen]) {
    for (_, acceptor) in acceptors.extract_if(.., |(listen, _)| !kept.contains(listen)) {
        acceptor.end();
    }
}

fn renew(acceptors: &[(Listen, Acceptor)], contexts: &Contexts) {
    for (listen, acceptor) in acceptors {
        acceptor.set_tls(context(contexts, listen));
    }
}

/// The timer: runs every deadline, the tick of [`Pressure`], and systemd's watchdog, which so notices a loop that
/// hangs.
pub fn sweep(
    worker: &Rc<Worker>,
    pressure: &Rc<Pressure>,
    pulse: Option<Arc<Pulse>>,
    index: usize,
) -> impl Future<Output = Result<()>> + use<> {
    let (table, pressure) = (Rc::clone(&worker.table), Rc::clone(pressure));
    let longest = pulse.as_ref().map(|pulse| pulse.longest_sleep());
    async move {
        let look = move || {
            if pulse
                .as_ref()
                .is_some_and(|pulse| pulse.beat(index, Instant::now()))
            {
                systemd::notify("WATCHDOG=1");
            }
            pressure.look()
        };
        match table.sweep(longest, look).await {}
    }
}

/// Waits until the exchanges in flight are done, but not beyond `end`; then tells the rest to leave.
pub async fn close(
    worker: &Worker,
    mut end: Instant,
    words: &mut mpsc::UnboundedReceiver<Command>,
) {
    while worker.table.open() > 0 && Instant::now() < end {
        worker.table.finish();
        sleep(Duration::from_millis(10)).await;
        if let Ok(Command::Close(sooner)) = words.try_recv() {
            end = end.min(sooner);
        }
    }
    let last = Instant::now() + LAST_WORDS;
    while worker.table.open() > 0 && Instant::now() < last {
        worker.table.close();
        sleep(Duration::from_millis(5)).await;
    }
}

pub fn sockets(listeners: &[Listener], worker: usize) -> Result<Vec<(Listen, OwnedFd)>> {
    listeners
        .iter()
        .map(|listener| Ok((listener.listen.clone(), listener.socket(worker)?)))
        .collect()
}

/// How long connections have to leave after the stop's time is over, before their sockets are closed.
const LAST_WORDS: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
