//! The life of the program: workers, signals, reload and drain.
//!
//! One worker is one thread with one runtime, its own listeners (`SO_REUSEPORT`) and its share of every bound. Workers
//! share the configuration, the counters and the keys of TLS tickets. The first worker runs on the main thread, as does
//! the task that receives signals.

pub mod admission;
pub mod closing;
pub mod connection;
pub mod controller;
pub mod listener;
pub mod metrics_endpoint;
pub mod pressure;
pub mod refusal;
pub mod signals;
pub mod supervisor;
pub mod tls;
pub mod worker;

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, anyhow};
use tokio::{sync::mpsc, task::yield_now};

use crate::{
    config::{Config, Listen, Memory},
    memory::{footprint, plan::Plan},
    observe::{
        log,
        metrics::{self, Metrics},
    },
    outcome::Outcome,
    process::PidFile,
    server::{
        controller::{Controller, PARTING, Reread, addresses, open},
        listener::{Frame, Listener},
        signals::{SignalQueue, Signals},
        supervisor::{Pulse, Supervisor, first},
        tls::{
            contexts::{self, TicketKeys},
            renewal::Renewal,
        },
        worker::{Command, WorkerInit, run_worker, runtime, sockets, spawn_worker},
    },
    sys::{self, cgroup, code_pages, stack, systemd},
};

/// The arguments of the command line that serving needs.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// The name of the configuration's source, for the log.
    pub source: &'a str,
    /// The file that holds the process ID while the program serves.
    pub pid_file: Option<&'a Path>,
}

/// Serves until a signal stops the program.
///
/// # Errors
/// What cannot be bound or started; later the end of a vital task.
pub fn serve(called: Invocation<'_>, config: Arc<Config>, reread: Reread) -> Result<()> {
    log::init(config.log);
    sys::ignore_signals();
    let inherited = systemd::inherited_sockets();
    let limit = memory_limit(config.memory);
    let (plan, upstreams) = plan(&config, limit, sys::raise_descriptor_limit())?;
    log::bound(plan.log_queue());
    code_pages::forget_code();
    let (listeners, exposed) = bind(&config, &inherited, &plan)?;
    let mut tickets = TicketKeys::default();
    let renewal = Renewal::of(&config);
    let tls = contexts::build(&config.listen, &mut tickets)?;
    let start = SystemTime::now();
    let mut supervisor = Supervisor::new();
    let pulse = systemd::watchdog_interval().map(|it| Arc::new(Pulse::new(config.threads, it)));
    let metrics = Arc::new(Metrics::new(start).exposed(config.metrics.is_some()));
    let init = WorkerInit {
        reporter: supervisor.reporter(0),
        pulse,
        config: Arc::clone(&config),
        tls,
        plan,
        upstreams,
        limit,
        metrics: Arc::clone(&metrics),
        start,
    };
    code_pages::forget_code();
    let signals = SignalQueue::new()?;
    // the first worker's, before the other threads start: tokio's process-wide state is then created by one thread
    let runtime = runtime()?;
    let (mut words, threads) = spawn_others(&supervisor, &init, &listeners)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    words.push(sender);
    let asked = exposed.as_ref().map(|listener| listener.socket(0));
    let own = (sockets(&listeners, 0)?, asked.transpose()?);
    let controller = Controller {
        words,
        listeners,
        exposed,
        config,
        plan,
        inherited,
        reread,
        tickets,
        renewal,
        pid_file: None,
    };
    let called = (called, signals);
    runtime.block_on(lead(
        called,
        controller,
        init,
        own,
        receiver,
        &mut supervisor,
    ))?;
    await_end(&threads);
    log_end(start, &metrics);
    Ok(())
}

/// Logs the last line.
fn log_end(start: SystemTime, metrics: &Metrics) {
    log::info(
        "stopped",
        &[
            ("uptime_s", &start.elapsed().unwrap_or_default().as_secs()),
            ("requests", &metrics::value(&metrics.requests)),
            ("cut", &metrics.ended(Outcome::Shutdown)),
        ],
    );
}

/// The listeners for clients, and the listener for metrics.
fn bind(
    config: &Config,
    inherited: &[(String, OwnedFd)],
    plan: &Plan,
) -> Result<(Vec<Listener>, Option<Listener>)> {
    let frame = Frame {
        plan,
        inherited,
        unix_socket_mode: config.server.unix_socket_mode,
    };
    let listeners = open(addresses(config), config.threads, &frame)?;
    let exposed = config.metrics.as_ref();
    let exposed = exposed.map(|listen| Listener::open(listen, 1, &frame));
    Ok((listeners, exposed.transpose()?))
}

/// The channel to each worker, and its thread.
type Workers = (Vec<mpsc::UnboundedSender<Command>>, Vec<JoinHandle<()>>);

/// Starts every worker except the first.
fn spawn_others(
    supervisor: &Supervisor,
    init: &WorkerInit,
    listeners: &[Listener],
) -> Result<Workers> {
    let (mut words, mut threads) = (Vec::new(), Vec::new());
    for index in 1..init.config.threads {
        let reporter = supervisor.reporter(index);
        let (sender, thread) = spawn_worker(
            index,
            WorkerInit {
                reporter,
                ..init.clone()
            },
            listeners,
        )?;
        words.push(sender);
        threads.push(thread);
    }
    Ok((words, threads))
}

/// Waits for the other workers, which have been told to end. A worker that hangs does not delay the program's end.
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

/// Divides the memory that is left beside the configuration, and the descriptors; gives the maximum of a worker's upstream
/// connections, too.
fn plan(config: &Config, limit: Option<(u64, bool)>, descriptors: u64) -> Result<(Plan, usize)> {
    let limit = limit.map(|limit| limit.0);
    let held = limit.map_or(0, |_| footprint::held(config.routes.len(), config.threads));
    let most = config.server.max_connections;
    let plan = Plan::beside(held, limit, config.threads, most);
    let plan = plan.ok_or_else(|| {
        anyhow!(
            "the configuration holds {} of the memory limit of {}, and leaves nothing to serve with",
            footprint::mebibytes(held),
            footprint::mebibytes(limit.unwrap_or(0)),
        )
    })?;
    let listeners = config.listen.len();
    let divided = plan.within_descriptors(descriptors, config.threads, listeners);
    divided.map_err(|needed| {
        anyhow!(
            "the limit of open files is {descriptors}, and at least {needed} are needed (ulimit -n)"
        )
    })
}

/// The effective memory limit, and whether a cgroup sets it.
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

/// Logs the first lines: the listeners, the budget, the settings that came from the environment, and last the source of
/// the configuration.
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
    let invalid = config.invalid_certificates(SystemTime::now());
    for warning in config.warnings.iter().chain(&invalid) {
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

/// The memory plan as the log shows it.
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

/// Runs the first worker and the controller, and reports READY when all workers accept. Ends when a stop is complete,
/// or with an error when a vital task has ended.
async fn lead(
    (called, queue): (Invocation<'_>, SignalQueue),
    mut controller: Controller,
    init: WorkerInit,
    (sockets, exposed): (Vec<(Listen, OwnedFd)>, Option<OwnedFd>),
    words: mpsc::UnboundedReceiver<Command>,
    supervisor: &mut Supervisor,
) -> Result<()> {
    let signals = Signals::hear(queue)?;
    // from here on SIGHUP is handled
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
        reporter.spawn("signal task", async move {
            match controller.command(signals).await {}
        });
        // let the signal task run until it waits
        yield_now().await;
        // most of the code that the start used is not needed again
        code_pages::forget_code();
        stack::forget_unused();
        systemd::notify("READY=1");
        Err(supervisor.loss().await)
    };
    first(work, heard).await
}
