//! The program's own life: workers, signals, reload and drain.
//!
//! One worker is one thread with one runtime, its own listeners (`SO_REUSEPORT`) and its share of every bound; nothing
//! is shared but the configuration and the counters. The first worker runs on the main thread and hears the signals.

use std::{
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    task::Poll,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use tokio::{
    runtime::LocalRuntime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    budget::{Budget, Plan},
    config::{Config, Listen, Memory},
    door::{Door, Frame, Listener, Porter},
    exposition,
    keeper::Keeper,
    log,
    metrics::Metrics,
    sys,
    worker::Worker,
};

/// Reads the configuration again; `Err` = every mistake, one line each.
pub type Reread = Box<dyn Fn() -> Result<Arc<Config>, Vec<String>>>;

/// What every worker is born with.
#[derive(Clone)]
struct Birth {
    config: Arc<Config>,
    plan: Plan,
    /// Connections to upstreams that this worker has descriptors for.
    upstreams: usize,
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
        opened: Vec<(Listen, OwnedFd)>,
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
    let descriptors = sys::raise_descriptor_limit();
    let inherited = sys::inherited_sockets();
    let limit = memory_limit(config.memory);
    let plan = Plan::new(
        limit.map(|limit| limit.0),
        config.threads,
        config.server.max_connections,
    );
    let (plan, upstreams) = plan.within_descriptors(descriptors, config.threads);
    let frame = Frame {
        plan: &plan,
        inherited: &inherited,
        unix_socket_mode: config.server.unix_socket_mode,
    };
    let doors = open(&config.listen, config.threads, &frame)?;
    let exposed = config
        .metrics
        .as_ref()
        .map(|listen| Door::open(listen, 1, &frame))
        .transpose()?;
    let start = SystemTime::now();
    let birth = Birth {
        config: Arc::clone(&config),
        plan,
        upstreams,
        limit,
        metrics: Arc::new(Metrics::new(start)),
        start,
    };

    let (mut words, mut threads) = (Vec::new(), Vec::new());
    for index in 1..config.threads {
        let (sender, thread) = hire(index, &birth, &doors)?;
        words.push(sender);
        threads.push(thread);
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    words.push(sender);
    let own = sockets(&doors, 0)?;
    let asked = exposed.as_ref().map(|door| door.socket(0)).transpose()?;
    let captain = Captain {
        words,
        doors,
        exposed,
        config,
        plan,
        inherited,
        reread,
    };
    let result = runtime()?.block_on(lead(captain, birth, own, asked, receiver));
    for thread in threads {
        if thread.join().is_err() {
            log::error("a worker has died", &[]);
        }
    }
    result
}

fn open<'a>(
    places: impl IntoIterator<Item = &'a Listen>,
    workers: usize,
    frame: &Frame<'_>,
) -> Result<Vec<Door>> {
    places
        .into_iter()
        .map(|listen| Door::open(listen, workers, frame))
        .collect()
}

/// Starts a worker on a thread of its own.
fn hire(
    index: usize,
    birth: &Birth,
    doors: &[Door],
) -> Result<(mpsc::UnboundedSender<Word>, JoinHandle<Result<()>>)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (birth, sockets) = (birth.clone(), sockets(doors, index)?);
    let work = move || runtime()?.block_on(labour(birth, sockets, None, receiver));
    let thread = thread::Builder::new()
        .name(format!("worker-{index}"))
        .stack_size(512 * 1024)
        .spawn(work)
        .context("starting a worker")?;
    Ok((sender, thread))
}

fn sockets(doors: &[Door], worker: usize) -> Result<Vec<(Listen, OwnedFd)>> {
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
    let (proxy, transport) = (&config.proxy, &config.transport);
    log::info(
        "memory",
        &[
            ("budget", &budget),
            ("requests", &bound(proxy.max_concurrent_requests)),
            ("tunnels", &bound(proxy.max_tunnels)),
            ("per_host", &bound(transport.max_conns_per_host)),
            ("idle", &bound(transport.max_idle_conns)),
            ("idle_per_host", &bound(transport.max_idle_conns_per_host)),
        ],
    );
    if !config.environment.is_empty() {
        log::info("environment", &[("changed", &config.environment)]);
    }
    for warning in &config.warnings {
        log::warn("config", &[("warning", warning)]);
    }
}

/// A bound as the log shows it.
fn bound(limit: Option<usize>) -> String {
    limit.map_or_else(|| "auto".to_owned(), |limit| limit.to_string())
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

/// The first worker's life: it hears the signals and says that we are there, besides.
async fn lead(
    captain: Captain,
    birth: Birth,
    sockets: Vec<(Listen, OwnedFd)>,
    exposed: Option<OwnedFd>,
    words: mpsc::UnboundedReceiver<Word>,
) -> Result<()> {
    let signals = Signals::hear()?;
    greet(&birth, &captain.doors, captain.exposed.as_ref());
    // most of what the start needed is not needed again
    sys::forget_code();
    sys::notify("READY=1");
    tokio::task::spawn_local(watchdog());
    tokio::task::spawn_local(captain.command(signals));
    labour(birth, sockets, exposed, words).await
}

/// A worker's life: accept, sweep, and do as told. One of them has the metrics' socket, too.
async fn labour(
    birth: Birth,
    sockets: Vec<(Listen, OwnedFd)>,
    exposed: Option<OwnedFd>,
    mut words: mpsc::UnboundedReceiver<Word>,
) -> Result<()> {
    let worker = Worker::new(
        birth.config,
        Budget::new(birth.plan),
        birth.upstreams,
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
        tokio::task::spawn_local(exposition::answer(Rc::clone(&worker), listener));
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
    inherited: Vec<(String, OwnedFd)>,
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

    async fn next_stop(&mut self) {
        while let Call::Reload = self.next().await {}
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
        let mut fresh = self.open(&config)?;
        let sockets: Vec<_> = (0..self.words.len())
            .map(|worker| sockets(&fresh, worker))
            .collect::<Result<_>>()?;
        for door in &fresh {
            log::info("listening", &[("address", &door.name)]);
        }
        self.doors
            .retain(|door| config.listen.contains(&door.listen));
        self.set_mode(config.server.unix_socket_mode);
        self.doors.append(&mut fresh);
        let kept: Vec<Listen> = self.doors.iter().map(|door| door.listen.clone()).collect();
        log::init(config.log);
        for (worker, opened) in self.words.iter().zip(sockets) {
            drop(worker.send(Word::Reload {
                config: Arc::clone(&config),
                opened,
                kept: kept.clone(),
            }));
        }
        warn_of_fixed(&self.config, &config);
        log::info("reloaded", &[("routes", &config.routes.len())]);
        self.config = config;
        Ok(())
    }

    /// The doors that a configuration has and we have not.
    fn open(&self, config: &Config) -> Result<Vec<Door>> {
        let frame = Frame {
            plan: &self.plan,
            inherited: &self.inherited,
            unix_socket_mode: config.server.unix_socket_mode,
        };
        let is_new = |listen: &&Listen| !self.doors.iter().any(|door| door.listen == **listen);
        open(
            config.listen.iter().filter(is_new),
            self.words.len(),
            &frame,
        )
    }

    /// Gives the files of the doors that stay another mode, if it is another.
    fn set_mode(&self, mode: u32) {
        if mode == self.config.server.unix_socket_mode {
            return;
        }
        for door in self.doors.iter().chain(&self.exposed) {
            if let Err(error) = door.set_mode(mode) {
                log::warn("reload", &[("error", &format!("{error:#}"))]);
            }
        }
    }
}

/// Says which changes a reload cannot take over.
fn warn_of_fixed(before: &Config, now: &Config) {
    let fixed = [
        ("metrics.listen", before.metrics != now.metrics),
        ("the number of threads", before.threads != now.threads),
        ("limits.memory", before.memory != now.memory),
        (
            "server.max_connections",
            before.server.max_connections != now.server.max_connections,
        ),
    ];
    for (what, _) in fixed.iter().filter(|(_, has_changed)| *has_changed) {
        log::warn("takes effect at the next start only", &[("key", what)]);
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
