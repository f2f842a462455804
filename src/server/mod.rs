//! The program's own life: workers, signals, reload and drain.
//!
//! One worker is one thread with one runtime, its own listeners (`SO_REUSEPORT`) and its share of every bound; nothing
//! is shared but the configuration and the counters. The first worker runs on the main thread and hears the signals.

pub mod admission;
pub mod closing;
pub mod connection;
pub mod listener;
pub mod metrics_endpoint;
pub mod pressure;
pub mod refusal;
pub mod signals;
pub mod supervisor;
pub mod worker;

use std::{
    convert::Infallible,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, anyhow};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    config::{Config, Listen, Memory},
    memory::{budget::Plan, footprint},
    observe::{
        log,
        metrics::{self, Metrics},
    },
    outcome::Outcome,
    process::PidFile,
    server::{
        listener::{Frame, Listener},
        signals::{Call, Signals},
        supervisor::{Pulse, Supervisor, first},
        worker::{Command, WorkerInit, run_worker, runtime, sockets, spawn_worker},
    },
    sys::{self, cgroup, code_pages, systemd},
};

/// Reads the configuration again; `Err` = every mistake, one line each.
pub type Reread = Box<dyn Fn() -> Result<Arc<Config>, Vec<String>>>;

/// How long workers may take to be gone when they were told to, beyond the time that their exchanges have.
const PARTING: Duration = Duration::from_secs(1);

/// What the command line named.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// What the configuration was read from, for the log.
    pub source: &'a str,
    /// The file that holds the process's number as long as it serves.
    pub pid_file: Option<&'a Path>,
}

/// Serves until told to stop.
///
/// # Errors
/// What cannot be bound or started, and the loss of what must not end.
pub fn serve(called: Invocation<'_>, config: Arc<Config>, reread: Reread) -> Result<()> {
    log::init(config.log);
    sys::ignore_signals();
    let descriptors = sys::raise_descriptor_limit();
    let inherited = systemd::inherited_sockets();
    let limit = memory_limit(config.memory);
    let plan = plan(&config, limit.map(|limit| limit.0))?;
    let (plan, upstreams) = plan.within_descriptors(descriptors, config.threads);
    log::bound(plan.log_queue());
    let frame = Frame {
        plan: &plan,
        inherited: &inherited,
        unix_socket_mode: config.server.unix_socket_mode,
    };
    let listeners = open(&config.listen, config.threads, &frame)?;
    let exposed = config
        .metrics
        .as_ref()
        .map(|listen| Listener::open(listen, 1, &frame))
        .transpose()?;
    let start = SystemTime::now();
    let mut supervisor = Supervisor::new();
    let pulse = systemd::watchdog_interval().map(|interval| Pulse::new(config.threads, interval));
    let metrics = Arc::new(Metrics::new(start).exposed(config.metrics.is_some()));
    let init = WorkerInit {
        reporter: supervisor.reporter(0),
        pulse: pulse.map(Arc::new),
        config: Arc::clone(&config),
        plan,
        upstreams,
        limit,
        metrics: Arc::clone(&metrics),
        start,
    };

    // the first worker's, before there are others: what tokio makes once for all of them is then made by one thread
    let runtime = runtime()?;
    let (mut words, mut threads) = (Vec::new(), Vec::new());
    for index in 1..config.threads {
        let reporter = supervisor.reporter(index);
        let (sender, thread) = spawn_worker(
            index,
            WorkerInit {
                reporter,
                ..init.clone()
            },
            &listeners,
        )?;
        words.push(sender);
        threads.push(thread);
    }
    let (sender, receiver) = mpsc::unbounded_channel();
    words.push(sender);
    let own = sockets(&listeners, 0)?;
    let asked = exposed
        .as_ref()
        .map(|listener| listener.socket(0))
        .transpose()?;
    let controller = Controller {
        words,
        listeners,
        exposed,
        config,
        plan,
        inherited,
        reread,
        pid_file: None,
    };
    let work = lead(
        called,
        controller,
        init,
        own,
        asked,
        receiver,
        &mut supervisor,
    );
    runtime.block_on(work)?;
    await_end(&threads);
    log::info(
        "stopped",
        &[
            ("uptime_s", &start.elapsed().unwrap_or_default().as_secs()),
            ("requests", &metrics::value(&metrics.requests)),
            ("cut", &metrics.ended(Outcome::Shutdown)),
        ],
    );
    Ok(())
}

/// Waits for the other workers, who have been told to be gone as well. One that hangs does not keep the program.
fn await_end(threads: &[JoinHandle<()>]) {
    let since = Instant::now();
    while threads.iter().any(|thread| !thread.is_finished()) {
        if since.elapsed() > PARTING {
            log::warn("a worker does not end", &[]);
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Divides the memory that the configuration leaves.
fn plan(config: &Config, limit: Option<u64>) -> Result<Plan> {
    let held = limit.map_or(0, |_| footprint::held(config.routes.len(), config.threads));
    let most = config.server.max_connections;
    let plan = Plan::beside(held, limit, config.threads, most);
    plan.ok_or_else(|| {
        anyhow!(
            "the configuration holds {} of the memory limit of {}, and leaves nothing to serve with",
            footprint::mebibytes(held),
            footprint::mebibytes(limit.unwrap_or(0)),
        )
    })
}

fn open<'a>(
    places: impl IntoIterator<Item = &'a Listen>,
    workers: usize,
    frame: &Frame<'_>,
) -> Result<Vec<Listener>> {
    places
        .into_iter()
        .map(|listen| Listener::open(listen, workers, frame))
        .collect()
}

/// The limit that binds, and whether it is a cgroup's.
fn memory_limit(memory: Memory) -> Option<(u64, bool)> {
    let cgroup = cgroup::cgroup_limit().map(|limit| (limit.bytes, true));
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

/// The first lines of the log: where we listen, what the budget is, what the environment changed, and last what was
/// read from where.
fn log_start(
    source: &str,
    config: &Config,
    memory: &str,
    listeners: &[Listener],
    exposed: Option<&Listener>,
) {
    for listener in listeners {
        log::info(
            "listening",
            &[
                ("address", &listener.name),
                ("version", &env!("CARGO_PKG_VERSION")),
            ],
        );
    }
    if let Some(listener) = exposed {
        log::info("metrics", &[("address", &listener.name)]);
    }
    let (proxy, transport) = (&config.proxy, &config.transport);
    log::info(
        "memory",
        &[
            ("budget", &memory),
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
    log::info(
        "started",
        &[
            ("config", &source),
            ("routes", &config.routes.len()),
            ("listeners", &listeners.len()),
            ("threads", &config.threads),
        ],
    );
}

/// What follows from the memory limit, in words.
fn memory_plan(init: &WorkerInit) -> String {
    let (config, plan) = (&init.config, &init.plan);
    match (init.limit, plan.pool, plan.exchanges()) {
        (Some((limit, _)), Some(pool), Some(exchanges)) => {
            let workers = config.threads as u64;
            let base = limit.saturating_sub(pool * workers);
            let connections = plan.connections.saturating_mul(config.threads);
            format!(
                "limit {}, base {}, up to {connections} connections, {} exchanges",
                footprint::mebibytes(limit),
                footprint::mebibytes(base),
                exchanges * workers
            )
        }
        _ => "no limit".to_owned(),
    }
}

/// A bound as the log shows it.
fn bound(limit: Option<usize>) -> String {
    limit.map_or_else(|| "auto".to_owned(), |limit| limit.to_string())
}

/// The first worker's life: when all workers accept it says that we are there, and it hears the signals, besides. It
/// ends when it was told to, or when a worker has lost what must not end.
async fn lead(
    called: Invocation<'_>,
    mut controller: Controller,
    init: WorkerInit,
    sockets: Vec<(Listen, OwnedFd)>,
    exposed: Option<OwnedFd>,
    words: mpsc::UnboundedReceiver<Command>,
    supervisor: &mut Supervisor,
) -> Result<()> {
    let signals = Signals::hear()?;
    // from now on a SIGHUP is heard: before, it would end the process
    controller.pid_file = called.pid_file.map(PidFile::write).transpose()?;
    let memory = memory_plan(&init);
    let (reporter, config) = (init.reporter.clone(), Arc::clone(&init.config));
    let work = run_worker(init, sockets, exposed, words);
    let heard = async {
        supervisor.all_accept(config.threads).await?;
        log_start(
            called.source,
            &config,
            &memory,
            &controller.listeners,
            controller.exposed.as_ref(),
        );
        // most of what the start needed is not needed again
        code_pages::forget_code();
        systemd::notify("READY=1");
        reporter.spawn("signal task", async move {
            match controller.command(signals).await {}
        });
        Err(supervisor.loss().await)
    };
    first(work, heard).await
}

/// The one who hears the signals and tells the workers.
struct Controller {
    words: Vec<mpsc::UnboundedSender<Command>>,
    listeners: Vec<Listener>,
    /// That of the metrics.
    exposed: Option<Listener>,
    config: Arc<Config>,
    plan: Plan,
    inherited: Vec<(String, OwnedFd)>,
    reread: Reread,
    pid_file: Option<PidFile>,
}

impl Controller {
    async fn command(mut self, mut signals: Signals) -> Infallible {
        while let Call::Reload = signals.next().await {
            self.reload();
        }
        systemd::notify("STOPPING=1");
        log::info("stopping", &[]);
        self.tell(|| Command::Drain);
        let (delay, grace) = (
            self.config.server.shutdown_delay,
            self.config.server.shutdown_timeout,
        );
        let hurried = timeout(delay, signals.next_stop()).await.is_ok();
        if !hurried {
            let end = Instant::now() + grace;
            self.tell(|| Command::Close(end));
            // the doors' files go with them
            self.listeners.clear();
            signals.next_stop().await;
        }
        self.listeners.clear();
        self.exposed = None;
        self.pid_file = None;
        log::info("stopping at once, at the second signal", &[]);
        let now = Instant::now();
        self.tell(|| Command::Close(now));
        // a worker that hangs does not hear it
        sleep(PARTING).await;
        std::process::exit(0);
    }

    fn tell(&self, word: impl Fn() -> Command) {
        for worker in &self.words {
            drop(worker.send(word()));
        }
    }

    /// Takes over the configuration as it is now; a bad one changes nothing.
    fn reload(&mut self) {
        systemd::notify(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}",
            systemd::monotonic_usec()
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
        systemd::notify("READY=1");
    }

    fn take_over(&mut self, config: Arc<Config>) -> Result<()> {
        let mut fresh = self.open(&config)?;
        let sockets: Vec<_> = (0..self.words.len())
            .map(|worker| sockets(&fresh, worker))
            .collect::<Result<_>>()?;
        for listener in &fresh {
            log::info("listening", &[("address", &listener.name)]);
        }
        self.listeners
            .retain(|listener| config.listen.contains(&listener.listen));
        self.set_mode(config.server.unix_socket_mode);
        self.listeners.append(&mut fresh);
        let kept: Vec<Listen> = self
            .listeners
            .iter()
            .map(|listener| listener.listen.clone())
            .collect();
        log::init(config.log);
        for (worker, opened) in self.words.iter().zip(sockets) {
            drop(worker.send(Command::Reload {
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
    fn open(&self, config: &Config) -> Result<Vec<Listener>> {
        let frame = Frame {
            plan: &self.plan,
            inherited: &self.inherited,
            unix_socket_mode: config.server.unix_socket_mode,
        };
        let is_new = |listen: &&Listen| {
            !self
                .listeners
                .iter()
                .any(|listener| listener.listen == **listen)
        };
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
        for listener in self.listeners.iter().chain(&self.exposed) {
            if let Err(error) = listener.set_mode(mode) {
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
