//! The program's own life: workers, signals, reload and drain.
//!
//! One worker is one thread with one runtime, its own listeners (`SO_REUSEPORT`) and its share of every bound; nothing
//! is shared but the configuration and the counters. The first worker runs on the main thread and hears the signals.

use std::{
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    runtime::LocalRuntime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    budget::{Budget, CONNECTION, Plan},
    config::{Config, Listen, Memory},
    dial::Io,
    door::{Door, Frame, Listener, Porter},
    keeper::Keeper,
    log,
    metrics::{self, Metrics},
    sys,
    worker::Worker,
};

/// Reads the configuration again; `Err` = every mistake, one line each.
pub type Reread = Box<dyn Fn() -> Result<Arc<Config>, Vec<String>>>;

/// How long whoever asks for the metrics may take.
const EXPOSURE: Duration = Duration::from_secs(5);

/// How many may ask at a time.
const ASKERS: usize = 4;

/// Bytes of each beside its connection: a head of 8 kB at most, and the page twice.
const ASKER: u64 = 24_000;

/// What every worker is born with.
#[derive(Clone)]
struct Birth {
    config: Arc<Config>,
    plan: Plan,
    /// The process's memory limit, and whether a cgroup sets it.
    limit: Option<(u64, bool)>,
    metrics: Arc<Metrics>,
    start: SystemTime,
}

/// What a worker is told.
enum Word {
    /// Serve this from now on: open these doors, keep those, close the others.
    Reload {
        config: Arc<Config>,
        opened: Vec<(Listen, std::os::fd::OwnedFd)>,
        kept: Vec<Listen>,
    },
    /// Health says 503, clients are told to leave.
    Drain,
    /// Close the doors; be gone by then.
    Close(Instant),
}

/// Serves until told to stop.
///
/// # Errors
/// What cannot be bound or started.
pub fn serve(config: Arc<Config>, reread: Reread) -> Result<()> {
    log::init(config.log);
    sys::raise_descriptor_limit();
    let inherited = sys::inherited_sockets();
    let limit = memory_limit(config.memory);
    let plan = Plan::new(
        limit.map(|limit| limit.0),
        config.threads,
        config.server.max_connections,
    );
    let frame = Frame {
        plan: &plan,
        inherited: &inherited,
        unix_socket_mode: config.server.unix_socket_mode,
    };
    let doors = config
        .listen
        .iter()
        .map(|listen| Door::open(listen, config.threads, &frame))
        .collect::<Result<Vec<_>>>()?;
    let exposed = config
        .metrics
        .as_ref()
        .map(|listen| Door::open(listen, 1, &frame))
        .transpose()?;
    let start = SystemTime::now();
    let birth = Birth {
        config: Arc::clone(&config),
        plan,
        limit,
        metrics: Arc::new(Metrics::new(start)),
        start,
    };

    let mut words = Vec::new();
    let mut threads = Vec::new();
    for index in 1..config.threads {
        let (sender, receiver) = mpsc::unbounded_channel();
        words.push(sender);
        let (birth, sockets) = (birth.clone(), sockets(&doors, index)?);
        let work = move || runtime()?.block_on(labour(birth, sockets, None, receiver));
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .stack_size(512 * 1024);
        threads.push(thread.spawn(work).context("starting a worker")?);
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    words.push(sender);
    let own = sockets(&doors, 0)?;
    let asked = exposed.as_ref().map(|door| door.socket(0)).transpose()?;
    let result = runtime()?.block_on(async {
        let signals = Signals::hear()?;
        greet(&birth, &doors, exposed.as_ref());
        // most of what the start needed is not needed again
        sys::forget_code();
        sys::notify("READY=1");
        tokio::task::spawn_local(watchdog());
        let captain = Captain {
            words,
            doors,
            exposed,
            config,
            plan,
            inherited,
            reread,
        };
        tokio::task::spawn_local(captain.command(signals));
        labour(birth, own, asked, receiver).await
    });
    for thread in threads {
        if thread.join().is_err() {
            log::error("a worker has died", &[]);
        }
    }
    result
}

fn sockets(doors: &[Door], worker: usize) -> Result<Vec<(Listen, std::os::fd::OwnedFd)>> {
    doors
        .iter()
        .map(|door| Ok((door.listen.clone(), door.socket(worker)?)))
        .collect()
}

/// The limit that binds, and whether it is a cgroup's.
fn memory_limit(memory: Memory) -> Option<(u64, bool)> {
    let cgroup = sys::cgroup_limit().map(|limit| (limit.bytes, true));
    match memory {
        Memory::Off => None,
        Memory::Auto => cgroup,
        Memory::Bytes(bytes) => Some(
            cgroup
                .filter(|limit| limit.0 <= bytes)
                .unwrap_or((bytes, false)),
        ),
    }
}

/// The first lines of the log: where we listen, what the budget is, what the environment changed.
fn greet(birth: &Birth, doors: &[Door], exposed: Option<&Door>) {
    let (config, plan) = (&birth.config, &birth.plan);
    for door in doors {
        log::info(
            "listening",
            &[
                ("address", &door.name),
                ("version", &env!("CARGO_PKG_VERSION")),
            ],
        );
    }
    if let Some(door) = exposed {
        log::info("metrics", &[("address", &door.name)]);
    }
    let budget = match (birth.limit, plan.pool, plan.exchanges()) {
        (Some((limit, _)), Some(pool), Some(exchanges)) => {
            let workers = config.threads as u64;
            #[expect(
                clippy::cast_precision_loss,
                reason = "a figure for people, with one decimal"
            )]
            let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
            let base = limit.saturating_sub(pool * workers);
            let connections = plan.connections.saturating_mul(config.threads);
            format!(
                "limit {}, base {}, up to {connections} connections, {} exchanges",
                mebibytes(limit),
                mebibytes(base),
                exchanges * workers
            )
        }
        _ => "no limit".to_owned(),
    };
    log::info("memory", &[("budget", &budget)]);
    if !config.environment.is_empty() {
        log::info("environment", &[("changed", &config.environment)]);
    }
    for warning in &config.warnings {
        log::warn("config", &[("warning", warning)]);
    }
}

fn runtime() -> Result<LocalRuntime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // look-ups are the only blocking work: few threads, small, gone when there is nothing to ask
        .max_blocking_threads(4)
        .thread_stack_size(128 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build_local(tokio::runtime::LocalOptions::default())
        .context("starting the runtime")
}

/// A worker's life: accept, sweep, and do as told. One of them has the metrics' socket, too.
async fn labour(
    birth: Birth,
    sockets: Vec<(Listen, std::os::fd::OwnedFd)>,
    exposed: Option<std::os::fd::OwnedFd>,
    mut words: mpsc::UnboundedReceiver<Word>,
) -> Result<()> {
    let worker = Worker::new(
        birth.config,
        Budget::new(birth.plan),
        birth.metrics,
        birth.start,
    );
    let mut porters: Vec<(Listen, Porter)> = Vec::new();
    for (listen, socket) in sockets {
        porters.push((listen, Porter::new(&worker, socket)?));
    }
    let keeper = Rc::new(Keeper::new(Rc::clone(&worker), birth.limit));
    let looks = Rc::clone(&keeper);
    tokio::task::spawn_local(Rc::clone(&worker.park).sweep(move || looks.look()));
    if let Some(socket) = exposed {
        let listener = Listener::new(socket)?;
        tokio::task::spawn_local(expose(Rc::clone(&worker), listener));
    }
    while let Some(word) = words.recv().await {
        match word {
            Word::Reload {
                config,
                opened,
                kept,
            } => {
                worker.reload(config);
                keeper.tidy_again();
                for (_, porter) in porters.extract_if(.., |(listen, _)| !kept.contains(listen)) {
                    porter.end();
                }
                for (listen, socket) in opened {
                    porters.push((listen, Porter::new(&worker, socket)?));
                }
            }
            Word::Drain => worker.draining.set(true),
            Word::Close(end) => {
                for (_, porter) in porters.drain(..) {
                    porter.end();
                }
                while worker.park.open() > 0 && Instant::now() < end {
                    worker.park.finish();
                    sleep(Duration::from_millis(10)).await;
                }
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The one who hears the signals and tells the workers.
struct Captain {
    words: Vec<mpsc::UnboundedSender<Word>>,
    doors: Vec<Door>,
    /// That of the metrics.
    exposed: Option<Door>,
    config: Arc<Config>,
    plan: Plan,
    inherited: Vec<(String, std::os::fd::OwnedFd)>,
    reread: Reread,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
enum Call {
    Stop,
    Reload,
}

impl Signals {
    fn hear() -> Result<Signals> {
        let hear = |kind| signal(kind).context("listening for signals");
        Ok(Signals {
            terminate: hear(SignalKind::terminate())?,
            interrupt: hear(SignalKind::interrupt())?,
            hangup: hear(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Call {
        std::future::poll_fn(|context| {
            if self.terminate.poll_recv(context).is_ready()
                || self.interrupt.poll_recv(context).is_ready()
            {
                Poll::Ready(Call::Stop)
            } else if self.hangup.poll_recv(context).is_ready() {
                Poll::Ready(Call::Reload)
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

impl Captain {
    async fn command(mut self, mut signals: Signals) {
        while let Call::Reload = signals.next().await {
            self.reload();
        }
        sys::notify("STOPPING=1");
        log::info("stopping", &[]);
        self.tell(|| Word::Drain);
        let (delay, grace) = (
            self.config.server.shutdown_delay,
            self.config.server.shutdown_timeout,
        );
        let hurried = timeout(delay, signals.next_stop()).await.is_ok();
        if !hurried {
            let end = Instant::now() + grace;
            self.tell(|| Word::Close(end));
            // the doors' files go with them
            self.doors.clear();
            signals.next_stop().await;
        }
        self.doors.clear();
        self.exposed = None;
        log::info("stopped at the second signal", &[]);
        std::process::exit(0);
    }

    fn tell(&self, word: impl Fn() -> Word) {
        for worker in &self.words {
            drop(worker.send(word()));
        }
    }

    /// Takes over the configuration as it is now; a bad one changes nothing.
    fn reload(&mut self) {
        sys::notify(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            sys::monotonic_usec()
        ));
        match (self.reread)() {
            Ok(config) => {
                if let Err(error) = self.take_over(config) {
                    log::error(
                        "not reloaded, the old configuration stays",
                        &[("error", &format!("{error:#}"))],
                    );
                }
            }
            Err(errors) => {
                for error in errors {
                    log::error(
                        "not reloaded, the old configuration stays",
                        &[("error", &error)],
                    );
                }
            }
        }
        sys::notify("READY=1");
    }

    fn take_over(&mut self, config: Arc<Config>) -> Result<()> {
        let workers = self.words.len();
        let frame = Frame {
            plan: &self.plan,
            inherited: &self.inherited,
            unix_socket_mode: config.server.unix_socket_mode,
        };
        let mut fresh = Vec::new();
        for listen in &config.listen {
            if !self.doors.iter().any(|door| door.listen == *listen) {
                fresh.push(Door::open(listen, workers, &frame)?);
            }
        }
        let mut opened = Vec::new();
        for index in 0..workers {
            opened.push(sockets(&fresh, index)?);
        }
        for door in &fresh {
            log::info("listening", &[("address", &door.name)]);
        }
        self.doors
            .retain(|door| config.listen.contains(&door.listen));
        if self.config.server.unix_socket_mode != config.server.unix_socket_mode {
            for door in self.doors.iter().chain(&self.exposed) {
                if let Err(error) = door.set_mode(config.server.unix_socket_mode) {
                    log::warn("reload", &[("error", &format!("{error:#}"))]);
                }
            }
        }
        self.doors.append(&mut fresh);
        let kept: Vec<Listen> = self.doors.iter().map(|door| door.listen.clone()).collect();
        log::init(config.log);
        for (worker, opened) in self.words.iter().zip(opened) {
            drop(worker.send(Word::Reload {
                config: Arc::clone(&config),
                opened,
                kept: kept.clone(),
            }));
        }
        let before = &self.config;
        let fixed = [
            ("metrics.listen", before.metrics != config.metrics),
            ("the number of threads", before.threads != config.threads),
            ("limits.memory", before.memory != config.memory),
            (
                "server.max_connections",
                before.server.max_connections != config.server.max_connections,
            ),
        ];
        for (what, _) in fixed.iter().filter(|(_, has_changed)| *has_changed) {
            log::warn("takes effect at the next start only", &[("key", what)]);
        }
        log::info("reloaded", &[("routes", &config.routes.len())]);
        self.config = config;
        Ok(())
    }
}

impl Signals {
    async fn next_stop(&mut self) {
        while let Call::Reload = self.next().await {}
    }
}

/// Tells systemd that we are alive, where it asked for that.
async fn watchdog() {
    let Some(interval) = sys::watchdog_interval() else {
        return;
    };
    loop {
        sys::notify("WATCHDOG=1");
        sleep(interval).await;
    }
}

/// Answers Prometheus: whatever is asked, the counters are the answer. A few are answered at a time, paid for whether
/// there is memory or not; when one more comes, whoever is at it longest gives way, so that nobody who is silent keeps
/// the others from being heard.
async fn expose(worker: Rc<Worker>, listener: Listener) {
    let mut askers: VecDeque<JoinHandle<()>> = VecDeque::with_capacity(ASKERS);
    loop {
        let Ok((io, _)) = listener.accept(false).await else {
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        askers.retain(|asker| !asker.is_finished());
        if askers.len() == ASKERS
            && let Some(longest) = askers.pop_front()
        {
            longest.abort();
        }
        let worker = Rc::clone(&worker);
        askers.push_back(tokio::task::spawn_local(async move {
            let _permit = worker.budget.force(CONNECTION + ASKER);
            drop(timeout(EXPOSURE, tell(io, &worker.metrics)).await);
        }));
    }
}

async fn tell(mut io: Io, metrics: &Metrics) -> std::io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < 8192 {
        let mut space = [0; 1024];
        let mut buffer = ReadBuf::new(&mut space);
        std::future::poll_fn(|context| Pin::new(&mut io).poll_read(context, &mut buffer)).await?;
        if buffer.filled().is_empty() {
            return Ok(());
        }
        head.extend_from_slice(buffer.filled());
    }
    let mut text = String::new();
    metrics.render(&mut text);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        metrics::CONTENT_TYPE,
        text.len()
    );
    let mut bytes = answer.as_bytes();
    while !bytes.is_empty() {
        let count =
            std::future::poll_fn(|context| Pin::new(&mut io).poll_write(context, bytes)).await?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    std::future::poll_fn(|context| Pin::new(&mut io).poll_shutdown(context)).await
}
