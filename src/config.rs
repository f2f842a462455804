//! What the configuration means: every value parsed, every default filled in.
//!
//! `document.rs` reads the YAML and reports what is wrong with it; this room turns it into a [`Config`],
//! after which nothing re-reads a string. It never asks the network or the clock.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use crate::{cors::Cors, route::Routes};

/// The whole configuration as it is meant. Plain data: one `Arc<Config>` serves every worker.
#[derive(Debug)]
pub struct Config {
    /// Free label, shown by the health report; `""` where none is given.
    pub version: String,
    /// Where clients are awaited; never empty.
    pub listen: Vec<Listen>,
    /// The routes, each with its effective CORS policy.
    pub routes: Routes,
    /// The global CORS policy, for answers that belong to no route (404, health); `None` = off.
    pub cors: Option<Cors>,
    /// Limits and time-outs towards upstreams.
    pub transport: Transport,
    /// Places for exchanges.
    pub proxy: Places,
    /// Limits and time-outs towards clients.
    pub server: Server,
    /// What the configuration and the environment say of memory.
    pub memory: Memory,
    /// What is logged, and how.
    pub log: Log,
    /// The exact path of the health report. Default `/health`.
    pub health_path: String,
    /// Where Prometheus may ask; `None` = off.
    pub metrics: Option<Listen>,
    /// Worker threads, at least 1. Default 1; `GOMAXPROCS` and `LEAN_PROXY_THREADS` set it (the latter wins).
    pub threads: usize,
    /// One line that says what the environment changed, for the start of the log; empty where nothing.
    pub environment: String,
    /// Things worth a warning at each start (several documents, `insecure_skip_verify`, …).
    pub warnings: Vec<String>,
}

/// One place to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `":80"`: every address of the machine, IPv6 and IPv4; IPv4 alone where IPv6 is off.
    Everywhere(u16),
    /// One address and port; port 0 lets the kernel choose.
    Address(SocketAddr),
    /// `unix:/run/lean.sock`.
    Unix(PathBuf),
    /// `fd:NAME-or-number`, handed over by systemd (`LISTEN_FDS`).
    Inherited(String),
}

/// `transport:`; `None` means no limit or no time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// From the start of the look-up to the end of the (TLS) handshake. Default 10 s.
    pub dial_timeout: Option<Duration>,
    /// TCP keep-alive probes: idle time and interval. Default 30 s; 0 in the file = 15 s; negative = `None` = off.
    pub dial_keep_alive: Option<Duration>,
    /// Idle connections over all hosts. Default 10; 0 in the file = `None`.
    pub max_idle_conns: Option<usize>,
    /// Idle connections to one host. Default 2 (0 in the file = 2 as Go means it).
    pub max_idle_conns_per_host: usize,
    /// Connections to one host: idle, dialling and busy together. Default 20; 0 = `None`.
    pub max_conns_per_host: Option<usize>,
    /// How long an idle connection is kept. Default 30 s; 0 = `None` = for ever.
    pub idle_conn_timeout: Option<Duration>,
    /// Bytes read from the upstream at a time. Default 4096.
    pub read_buffer_size: usize,
    /// Bytes on their way to the upstream at a time. Default 4096.
    pub write_buffer_size: usize,
}

/// `proxy:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Exchanges at the same time, held until the last byte of the body is gone. Default 100; 0 = `None`.
    pub max_concurrent_requests: Option<usize>,
    /// How long a request waits for a place or for a connection of `max_conns_per_host`. Default 10 s; 0 = not at all.
    pub queue_timeout: Duration,
}

/// `server:`; `None` means no limit or no time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// A request head must be complete in this time. Default 30 s; 0 = `None`.
    pub header_timeout: Option<Duration>,
    /// Without a byte of body from the client. Default 30 s; 0 = `None`.
    pub read_timeout: Option<Duration>,
    /// Without a byte taken by the client. Default 120 s; 0 = `None`.
    pub write_timeout: Option<Duration>,
    /// Between requests on a kept-alive connection. Default 30 s; 0 = `None`.
    pub idle_timeout: Option<Duration>,
    /// Bytes of a request head; 431 above. Default 65536, 1024 to 1048576.
    pub max_header_bytes: usize,
    /// Client connections at the same time. 0 = `None` = what the memory budget allows.
    pub max_connections: Option<usize>,
    /// What exchanges in flight get after SIGTERM. Default 5 s.
    pub shutdown_timeout: Duration,
    /// Health says 503 this long before the listeners close. Default 0.
    pub shutdown_delay: Duration,
    /// Networks whose `X-Forwarded-*` is believed; empty: everybody's is kept and appended to.
    pub trusted_proxies: Vec<Network>,
}

/// An IPv4 or IPv6 network in CIDR form; a lone address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address with its host bits cleared.
    pub address: std::net::IpAddr,
    /// Leading bits that count: 0 to 32, or to 128.
    pub prefix: u8,
}

/// `limits.memory`, `GOMEMLIMIT` and `LEAN_PROXY_MEMORY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The cgroup's limit, if there is one.
    Auto,
    /// Never more than this many bytes, nor than the cgroup's limit.
    Bytes(u64),
    /// No budget at all.
    Off,
}

/// `log:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line instead of `key=value`. `LOG_FORMAT=json` wins.
    pub json: bool,
    /// The least level that is written. `DEBUG=true` wins.
    pub level: Level,
    /// One line for each exchange when its last byte is gone. Default false.
    pub access: bool,
}

/// How much an event matters; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The upstream's URL, retries.
    Debug,
    /// The life of the program.
    Info,
    /// Something is not as it should be, and the program copes.
    Warn,
    /// Somebody did not get an answer.
    Error,
}

/// Loads, validates and fills in; see `document.rs` for what is said about a bad file.
pub fn load(_path: &std::path::Path) -> Result<Arc<Config>, Vec<String>> {
    Err(vec!["not written".to_owned()])
}
