//! The controller: receives signals and sends commands to the workers, for reload, drain and stop.

use std::{
    convert::Infallible,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio::sync::mpsc;

use crate::{
    clock::{sleep, timeout},
    config::{Config, Listen},
    memory::plan::Plan,
    observe::log,
    process::PidFile,
    server::{
        listener::{Frame, Listener},
        signals::{Call, Signals},
        tls::{
            contexts::{self, TicketKeys},
            renewal::Renewal,
        },
        worker::{Command, sockets},
    },
    sys::systemd,
};

/// Reads the configuration again; `Err` = every mistake, one line each.
pub type Reread = Box<dyn Fn() -> Result<Arc<Config>, Vec<String>>>;

/// How often the files of certificates are checked for changes.
const RENEWAL: Duration = Duration::from_mins(1);

/// How long workers may take to end after a stop, beyond the time that their exchanges have.
pub const PARTING: Duration = Duration::from_secs(1);

/// The addresses that a configuration listens on.
pub fn addresses(config: &Config) -> impl Iterator<Item = &Listen> {
    config.listen.iter().map(|entry| &entry.address)
}

/// Binds these addresses for this many workers.
///
/// # Errors
/// An address that cannot be bound.
pub fn open<'a>(
    places: impl IntoIterator<Item = &'a Listen>,
    workers: usize,
    frame: &Frame<'_>,
) -> Result<Vec<Listener>> {
    places
        .into_iter()
        .map(|listen| Listener::open(listen, workers, frame))
        .collect()
}

/// Receives the signals and commands the workers.
pub struct Controller {
    /// The channel to each worker, by its number.
    pub words: Vec<mpsc::UnboundedSender<Command>>,
    /// The bound addresses for clients.
    pub listeners: Vec<Listener>,
    /// The bound address of the metrics.
    pub exposed: Option<Listener>,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The memory that each worker may use.
    pub plan: Plan,
    /// The sockets that systemd handed over, by name.
    pub inherited: Vec<(String, OwnedFd)>,
    /// Reads the configuration again.
    pub reread: Reread,
    /// The keys of the TLS session tickets.
    pub tickets: TicketKeys,
    /// The files of certificates, checked once a minute.
    pub renewal: Renewal,
    /// The PID file, removed when the program stops.
    pub pid_file: Option<PidFile>,
}

impl Controller {
    /// Handles signals until the program ends.
    pub async fn command(mut self, mut signals: Signals) -> Infallible {
        loop {
            match self.next_call(&mut signals).await {
                Some(Call::Reload) => self.reload(),
                Some(Call::Stop) => break,
                None => self.renew(),
            }
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
            // the files of unix sockets are removed with them
            self.listeners.clear();
            signals.next_stop().await;
        }
        self.listeners.clear();
        self.exposed = None;
        self.pid_file = None;
        log::info("stopping at once, at the second signal", &[]);
        let now = Instant::now();
        self.tell(|| Command::Close(now));
        // a worker that hangs does not handle it
        sleep(PARTING).await;
        std::process::exit(0);
    }

    /// The next signal; `None` = it is time to check the files of certificates.
    async fn next_call(&self, signals: &mut Signals) -> Option<Call> {
        if self.renewal.is_empty() {
            return Some(signals.next().await);
        }
        timeout(RENEWAL, signals.next()).await.ok()
    }

    /// Takes over the certificates whose files have changed.
    fn renew(&mut self) {
        match self.renewal.look(&mut self.tickets) {
            Ok(Some(contexts)) => self.tell(|| Command::Renew(contexts.clone())),
            Ok(None) => {}
            Err(error) => log::warn("not renewed", &[("error", &format!("{error:#}"))]),
        }
    }

    fn tell(&self, word: impl Fn() -> Command) {
        for worker in &self.words {
            drop(worker.send(word()));
        }
    }

    /// Loads the configuration again; one with mistakes changes nothing.
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
        let tls = contexts::build(&config.listen, &mut self.tickets)?;
        let mut fresh = self.open(&config)?;
        let sockets: Vec<_> = (0..self.words.len())
            .map(|worker| sockets(&fresh, worker))
            .collect::<Result<_>>()?;
        for listener in &fresh {
            log::info("listening", &[("address", &listener.name)]);
        }
        self.listeners
            .retain(|listener| config.listen.iter().any(|entry| *entry == listener.listen));
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
                tls: tls.clone(),
                opened,
                kept: kept.clone(),
            }));
        }
        warn_of_fixed(&self.config, &config);
        log::info("reloaded", &[("routes", &config.routes.len())]);
        self.renewal = Renewal::of(&config);
        self.config = config;
        Ok(())
    }

    /// Binds the addresses that are new in a configuration.
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
        open(addresses(config).filter(is_new), self.words.len(), &frame)
    }

    /// Changes the mode of the unix sockets that stay, where it differs.
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

/// Warns of changes that a reload cannot take over.
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
