//! The configuration: every value parsed, every default filled in, every mistake reported at once.
//!
//! `document.rs` reads the YAML and collects the mistakes, `environment.rs` reads variables, `routes.rs` and `cors.rs` read
//! routes and CORS, and this file makes a [`Config`] of them, after which no string is parsed again. It never uses the network or the
//! clock. It reads only the configuration and the files named by `ca_file`, `SSL_CERT_FILE` and `SSL_CERT_DIR`.

pub mod address;
pub mod certificates;
pub mod cors;
pub mod document;
pub mod environment;
pub mod keys;
pub mod listeners;
pub mod routes;
pub mod scalars;
pub mod wording;
pub mod x509;
pub mod yaml;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use crate::config::{
    address::{Listen, Network},
    listeners::ListenEntry,
};
use crate::{
    config::{
        address::{parse_listen, parse_network, parse_path},
        certificates::Roots,
        cors::Policy,
        document::{Document, Environment, MAX_SECONDS, Section},
        environment::{Effects, format_is_json, port, threads},
        routes::Common,
        scalars::{Unit, octal_mode},
        wording::quote,
    },
    cors::Cors,
    route::{Route, Routes, Tls},
};

/// The whole configuration. Plain data: all workers share one `Arc<Config>`.
#[derive(Debug)]
pub struct Config {
    /// A label of the operator's choice, shown by the health report; `""` = none.
    pub version: String,
    /// Where clients are awaited; never empty.
    pub listen: Vec<ListenEntry>,
    /// The routes, each with its effective CORS policy.
    pub routes: Routes,
    /// The global CORS policy, for answers outside of any route (404, health); `None` = off.
    pub cors: Option<Cors>,
    /// Limits and time-outs towards upstreams.
    pub transport: Transport,
    /// Limits of requests in progress.
    pub proxy: Proxy,
    /// Limits and time-outs towards clients.
    pub server: Server,
    /// The memory limit.
    pub memory: Memory,
    /// What is logged, and how.
    pub log: Log,
    /// The exact path of the health report. Default `/health`.
    pub health_path: String,
    /// The address of the metrics page; `None` = off.
    pub metrics: Option<Listen>,
    /// Worker threads, at least 1. Default 1; `GOMAXPROCS` and `LEAN_PROXY_THREADS` set it (the latter wins).
    /// At most 64, and at most each of the limits that workers share (see [`most_threads`]).
    pub threads: usize,
    /// What the environment changed, as one line for the log at start; empty = nothing.
    pub environment: String,
    /// Warnings to log at each start (several documents, `insecure_skip_verify`, …).
    pub warnings: Vec<String>,
}

impl Config {
    /// The certificates of listeners that are not valid at this time: one sentence each.
    pub fn invalid_certificates(&self, now: SystemTime) -> Vec<String> {
        let listeners = self.listen.iter().filter_map(|entry| entry.tls.as_ref());
        listeners
            .flat_map(|tls| &tls.certificates)
            .filter_map(|certificate| certificate.complaint(now))
            .collect()
    }
}

impl Config {
    /// Whether clients at this address may speak HTTP/2.
    pub fn offers_http2(&self, address: &Listen) -> bool {
        let mut entries = self.listen.iter();
        entries.any(|entry| entry.address == *address && entry.http2)
    }
}

/// `transport:`; `None` means no limit or no time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// From the start of the look-up to the end of the (TLS) handshake. Default 10 s.
    pub dial_timeout: Option<Duration>,
    /// TCP keep-alive probes: idle time and interval, 1 s to 32767 s, which is the kernel's range.
    /// Default 30 s; 0 in the file = 15 s; negative = `None` = off.
    pub dial_keep_alive: Option<Duration>,
    /// Idle connections over all hosts. Default, and 0 in the file: `None` = what memory allows.
    pub max_idle_conns: Option<usize>,
    /// Idle connections to one host. Default `auto`: `None` = what memory allows (0 in the file = 2, as in Go).
    pub max_idle_conns_per_host: Option<usize>,
    /// Connections to one host: idle, dialling and busy together; tunnels are not counted. Default, and 0 in the file:
    /// `None` = what memory allows.
    pub max_conns_per_host: Option<usize>,
    /// How long an idle connection is kept. Default 30 s; 0 = `None` = for ever.
    pub idle_conn_timeout: Option<Duration>,
    /// Bytes read from the upstream at a time. Default 4096 (0 in the file = 4096); less than 512 counts as 512.
    pub read_buffer_size: usize,
    /// Bytes written to the upstream at a time. Default 4096 (0 in the file = 4096); less than 512 counts as 512.
    pub write_buffer_size: usize,
}

/// `proxy:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Concurrent exchanges, counted until the last byte of the body is sent. Default, and 0 in the file: `None` = what memory
    /// allows.
    pub max_concurrent_requests: Option<usize>,
    /// Concurrent upgraded connections. Default, and 0 in the file: `None` = what memory allows.
    pub max_tunnels: Option<usize>,
    /// How long a request waits for memory, a place and a connection of `max_conns_per_host`, in all. Default 10 s; 0 = it does
    /// not wait.
    pub queue_timeout: Duration,
}

/// `server:`; `None` means no limit or no time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Time for a request head to be complete. Default 30 s; 0 = `None`.
    pub header_timeout: Option<Duration>,
    /// Time without a byte of body from the client. Default 30 s; 0 = `None`.
    pub read_timeout: Option<Duration>,
    /// Time without a byte taken by the client. Default 120 s; 0 = `None`.
    pub write_timeout: Option<Duration>,
    /// Time between requests on a kept-alive connection. Default 30 s; 0 = `None`.
    pub idle_timeout: Option<Duration>,
    /// Bytes of a request head; 431 above. Default 65536, 1024 to 1048576.
    pub max_header_bytes: usize,
    /// Concurrent client connections. Default, and 0 in the file: `None` = what memory allows.
    pub max_connections: Option<usize>,
    /// Time for requests in progress to end after SIGTERM. Default 5 s.
    pub shutdown_timeout: Duration,
    /// How long the health path answers 503 before the listeners close. Default 0.
    pub shutdown_delay: Duration,
    /// Networks whose `X-Forwarded-*`, `Forwarded` and `X-Real-IP` are trusted. Empty: every client's fields are kept and
    /// appended to.
    pub trusted_proxies: Vec<Network>,
    /// Permissions of the files of `unix:` listeners. Default 0666: every user who can reach the folder may connect.
    pub unix_socket_mode: u32,
}

/// `limits.memory`, `GOMEMLIMIT` and `LEAN_PROXY_MEMORY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// The cgroup's limit, if there is one.
    Auto,
    /// Never more than this many bytes, nor than the cgroup's limit.
    Bytes(u64),
    /// No limit: nothing is budgeted.
    Off,
}

/// `log:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line instead of `key=value`. `LOG_FORMAT=json` wins.
    pub json: bool,
    /// The lowest level that is written. `DEBUG=true` wins.
    pub level: Level,
    /// One line for each exchange when its last byte is sent. Default false.
    pub access: bool,
}

/// The severity of an event; ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Details of single exchanges, such as retries.
    Debug,
    /// Start, reload and stop of the program.
    Info,
    /// Something is wrong, and the program goes on.
    Warn,
    /// The program failed at something that a client or an operator will notice.
    Error,
}

/// Where a configuration is read from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A file of at most 1 MiB.
    File(&'a Path),
    /// The name of a text in messages (`LEAN_PROXY_CONFIG`), and the text.
    Text(&'a str, &'a str),
}

/// Reads and validates a configuration. `Err`: every mistake, one line each, such as
/// `config.yaml:12: routes[1].target: sentence`.
pub fn load(source: Source<'_>, environment: Environment<'_>) -> Result<Arc<Config>, Vec<String>> {
    match source {
        Source::File(path) => {
            let text = document::read(path).map_err(|error| vec![error])?;
            from_yaml(&path.display().to_string(), &text, environment)
        }
        Source::Text(name, text) => from_yaml(name, text, environment),
    }
    .map(Arc::new)
}

fn from_yaml(name: &str, text: &str, environment: Environment<'_>) -> Result<Config, Vec<String>> {
    let document = Document::parse(name, text, environment).map_err(|error| vec![error])?;
    let mut config = document.read(|root| config(root));
    let mut effects = Effects::new(&document);
    // a text comes from a variable and bears its name
    if document.variable(name).is_some() {
        effects.tell(format_args!("{name} -> the configuration"));
    }
    apply_environment(&mut effects, &mut config);
    check_roots(&document, &mut effects, &config);
    config.environment = effects.line;
    config.warnings = document.finish()?;
    Ok(config)
}

fn config(root: &Section<'_>) -> Config {
    let version = root.text("version");
    let listen = root
        .get("listen")
        .map_or_else(Vec::new, |field| listeners::entries(&field));
    let (transport, response_header_timeout) = root.section("transport", transport);
    let server = root.section("server", server);
    let health_path = root.section("health", |s| {
        s.parsed("path", parse_path)
            .unwrap_or_else(|| "/health".to_owned())
    });
    let metrics = root.section("metrics", |s| metrics(s, &listen));
    let cors = Policy::off();
    let cors = cors.laid_under(root).unwrap_or(cors);
    let common = Common {
        response_header_timeout,
        cors: &cors,
        health_path: &health_path,
    };
    let routes = routes::routes(root, &common);
    Config {
        version,
        listen,
        routes,
        transport,
        server,
        health_path,
        metrics,
        cors: cors.cors,
        proxy: root.section("proxy", |s| Proxy {
            max_concurrent_requests: at_most(s, "max_concurrent_requests", 0),
            max_tunnels: at_most(s, "max_tunnels", 0),
            queue_timeout: s.time("queue_timeout", 10.0).unwrap_or_default(),
        }),
        memory: root.section("limits", memory),
        log: root.section("log", log),
        threads: 1,
        environment: String::new(),
        warnings: Vec::new(),
    }
}

/// Reads `transport:`; its `response_header_timeout` is returned apart, because it is the default of each route's.
fn transport(s: &Section<'_>) -> (Transport, Option<Duration>) {
    let buffer = |key| match s.whole(key, Unit::Bytes, 0, &(0..=MAX_BUFFER)) {
        0 => 4096,
        bytes => usize::try_from(bytes).unwrap_or(4096).max(512),
    };
    let response_header_timeout = s.time("response_header_timeout", 30.0);
    let transport = Transport {
        dial_timeout: s.time("dial_timeout", 10.0),
        dial_keep_alive: dial_keep_alive(s),
        max_idle_conns: at_most(s, "max_idle_conns", 0),
        max_idle_conns_per_host: idle_per_host(s),
        max_conns_per_host: at_most(s, "max_conns_per_host", 0),
        idle_conn_timeout: s.time("idle_conn_timeout", 30.0),
        read_buffer_size: buffer("read_buffer_size"),
        write_buffer_size: buffer("write_buffer_size"),
    };
    (transport, response_header_timeout)
}

/// Reads `max_idle_conns_per_host`: 0 means 2, as in Go's `net/http`; `auto` leaves it to memory.
fn idle_per_host(s: &Section<'_>) -> Option<usize> {
    let field = s.get("max_idle_conns_per_host")?;
    if field.text().as_deref() == Some("auto") {
        return None;
    }
    match field.whole(Unit::Plain, &(0..=MAX_COUNT))? {
        0 => Some(2),
        number => usize::try_from(number).ok(),
    }
}

/// Reads `dial_keep_alive`, like Go's `net.Dialer.KeepAlive`; the kernel takes whole seconds, 32767 at most.
fn dial_keep_alive(s: &Section<'_>) -> Option<Duration> {
    let written = s
        .get("dial_keep_alive")
        .and_then(|field| field.seconds(&(-MAX_SECONDS..=MAX_SECONDS)))
        .unwrap_or(30.0);
    match written {
        0.0 => Some(Duration::from_secs(15)),
        seconds if seconds < 0.0 => None,
        seconds => Some(Duration::from_secs_f64(seconds.ceil().min(32767.0))),
    }
}

fn server(s: &Section<'_>) -> Server {
    let head = s.whole("max_header_bytes", Unit::Bytes, 65536, &(1024..=1_048_576));
    Server {
        header_timeout: s.time("header_timeout", 30.0),
        read_timeout: s.time("read_timeout", 30.0),
        write_timeout: s.time("write_timeout", 120.0),
        idle_timeout: s.time("idle_timeout", 30.0),
        max_header_bytes: usize::try_from(head).unwrap_or(65536),
        max_connections: at_most(s, "max_connections", 0),
        shutdown_timeout: s.time("shutdown_timeout", 5.0).unwrap_or_default(),
        shutdown_delay: s.time("shutdown_delay", 0.0).unwrap_or_default(),
        trusted_proxies: s.parsed_list("trusted_proxies", parse_network),
        unix_socket_mode: s.parsed("unix_socket_mode", socket_mode).unwrap_or(0o666),
    }
}

/// An octal mode as for `chmod`: "0660", or `0o660` without quotes.
fn socket_mode(text: &str) -> Result<u32, String> {
    let shown = quote(text);
    match octal_mode(text) {
        // `660` may be meant in octal, or be a decimal number that another program wrote
        None if octal_mode(&format!("0{text}")).is_some() => Err(format!(
            "must be an octal mode with its zero: write \"0{text}\", not {shown}"
        )),
        None => Err(format!(
            "must be an octal mode such as \"0660\", got {shown}"
        )),
        // connecting takes write permission (unix(7))
        Some(mode) if mode & 0o222 == 0 => Err(format!(
            "allows no connections, because connecting takes write permission: got {shown}"
        )),
        Some(mode) => Ok(mode),
    }
}

fn memory(s: &Section<'_>) -> Memory {
    let Some(field) = s.get("memory") else {
        return Memory::Auto;
    };
    match field.text().as_deref() {
        None | Some("auto") => Memory::Auto,
        Some("off" | "false") => Memory::Off,
        Some(_) => match field.whole(Unit::Bytes, &(0..=i64::MAX)) {
            None => Memory::Auto,
            Some(bytes) => {
                memory_of(u64::try_from(bytes).unwrap_or(0)).unwrap_or_else(|sentence| {
                    field.complain(sentence);
                    Memory::Auto
                })
            }
        },
    }
}

/// Below a mebibyte the program could not start: the number was meant in another unit.
fn memory_of(bytes: u64) -> Result<Memory, String> {
    match bytes {
        0 => Ok(Memory::Off),
        1..MIN_MEMORY => Err(format!(
            "counts bytes: must be 0 (off) or at least 1MiB, got {bytes}: write {bytes}MiB for mebibytes"
        )),
        _ => Ok(Memory::Bytes(bytes)),
    }
}

fn log(s: &Section<'_>) -> Log {
    Log {
        json: s
            .one_of("format", &[("text", false), ("json", true)])
            .unwrap_or(false),
        level: s.one_of("level", &LEVELS).unwrap_or(Level::Info),
        access: s.flag("access", false),
    }
}

fn metrics(s: &Section<'_>, listen: &[ListenEntry]) -> Option<Listen> {
    let field = s.get("listen")?;
    let text = field.text().filter(|text| !text.is_empty())?;
    match parse_listen(&text) {
        Ok(address) if listen.iter().any(|entry| *entry == address) && !address.is_any_port() => {
            field.complain("must be another address than `listen`");
            None
        }
        Ok(address) => Some(address),
        Err(sentence) => {
            field.complain(sentence);
            None
        }
    }
}

/// Applies the environment's variables, which win over the file.
fn apply_environment(effects: &mut Effects<'_>, config: &mut Config) {
    if config.listen.is_empty() {
        let port = effects.read(&["PORT"], "listen", port);
        config.listen = vec![Listen::Everywhere(port.unwrap_or(80)).into()];
    }
    let variables = ["LEAN_PROXY_MEMORY", "GOMEMLIMIT"];
    if let Some(memory) = effects.read(&variables, "limits.memory", |text| {
        parse_memory(text).map(|memory| (memory, memory.to_string()))
    }) {
        config.memory = memory;
    }
    let most = most_threads(config);
    let variables = ["LEAN_PROXY_THREADS", "GOMAXPROCS"];
    config.threads = effects
        .read(&variables, "threads", |text| threads(text, most))
        .unwrap_or(1);
    if let Some(json) = effects.read(&["LOG_FORMAT"], "log.format", format_is_json) {
        config.log.json = json;
    }
    if effects.debug() {
        config.log.level = Level::Debug;
    }
}

/// The maximum of threads. Each worker's share of a limit is at least one, so more workers than the limit would exceed it.
fn most_threads(config: &Config) -> usize {
    let limits = [
        Some(64),
        config.proxy.max_concurrent_requests,
        config.proxy.max_tunnels,
        config.transport.max_conns_per_host,
        config.server.max_connections,
    ];
    limits.into_iter().flatten().min().unwrap_or(1)
}

/// Checks the environment's roots, only where some target is verified against them.
fn check_roots(document: &Document<'_>, effects: &mut Effects<'_>, config: &Config) {
    let targets = config.routes.iter().filter_map(Route::target);
    let asks = |tls: &Tls| tls.ca_file.is_none() && !tls.insecure_skip_verify;
    if !targets
        .filter_map(|target| target.origin.tls.as_ref())
        .any(asks)
    {
        return;
    }
    let roots = Roots::of(&|name| document.variable(name).map(Into::into));
    if let Err((variable, sentence)) = roots.check() {
        document.complain_of(variable, &sentence);
    }
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        if let Some(path) = document.variable(name) {
            effects.tell(format_args!("{name}={path} -> the roots of https targets"));
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memory::Auto => f.write_str("auto"),
            Memory::Bytes(bytes) => write!(f, "{bytes}"),
            Memory::Off => f.write_str("off"),
        }
    }
}

/// A size, `off` or `auto`.
fn parse_memory(text: &str) -> Result<Memory, String> {
    let bytes = match text {
        "off" => return Ok(Memory::Off),
        "auto" => return Ok(Memory::Auto),
        _ => scalars::bytes(text).filter(|bytes| (0.0..MAX_MEMORY).contains(bytes)),
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range was checked"
    )]
    match bytes {
        Some(bytes) if bytes.fract() == 0.0 => memory_of(bytes as u64),
        _ => Err(format!(
            "must be bytes, a size such as 10MiB or 10M, or off; got {}",
            quote(text)
        )),
    }
}

/// A number of things; 0 = `None`.
fn at_most(s: &Section<'_>, key: &'static str, default: i64) -> Option<usize> {
    let number = s.whole(key, Unit::Plain, default, &(0..=MAX_COUNT));
    usize::try_from(number).ok().filter(|number| *number > 0)
}

const LEVELS: [(&str, Level); 4] = [
    ("debug", Level::Debug),
    ("info", Level::Info),
    ("warn", Level::Warn),
    ("error", Level::Error),
];
const MAX_COUNT: i64 = 1_000_000_000;
/// Bounds a buffer, of which each exchange has its own: larger ones would not be faster.
const MAX_BUFFER: i64 = 16 * 1024 * 1024;
const MIN_MEMORY: u64 = 1024 * 1024;
/// Bounds a memory limit: an exbibyte, more than any machine has.
const MAX_MEMORY: f64 = 1_152_921_504_606_846_976.0;

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::route::{Address, Target};

    const NOTHING: Environment<'static> = &|_| None;

    fn with<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| {
            let pair = pairs.iter().find(|(key, _)| *key == name);
            pair.map(|(_, value)| (*value).to_owned())
        }
    }

    fn read(text: &str) -> Result<Arc<Config>, Vec<String>> {
        load(Source::Text("c.yaml", text), NOTHING)
    }

    pub fn good(text: &str) -> Arc<Config> {
        read(text).unwrap_or_else(|errors| panic!("{text}: {errors:#?}"))
    }

    pub fn errors(text: &str) -> Vec<String> {
        read(text)
            .err()
            .unwrap_or_else(|| panic!("accepted: {text}"))
    }

    pub fn first(config: &Config) -> &Route {
        config.routes.iter().next().unwrap()
    }

    pub fn target(config: &Config) -> &Target {
        first(config).target().unwrap()
    }

    /// A valid configuration with these lines before it.
    fn plus(lines: &str) -> String {
        format!("{lines}\nroutes: [{{path: /, target: \"http://h\"}}]\n")
    }

    const SEED: &str = "\
listen: :80

routes:
  - path: /api/
    target: http://backend-service:8080/

cors:
  allowed_origins:
    - \"https://example.com\"
    - \"https://app.example.com\"

transport:
  dial_timeout: 10
  dial_keep_alive: 30
  max_idle_conns: 10
  max_idle_conns_per_host: 2
  max_conns_per_host: 20
  idle_conn_timeout: 30
  response_header_timeout: 30
  read_buffer_size: 4096
  write_buffer_size: 4096

proxy:
  max_concurrent_requests: 100
";

    #[test]
    fn a_configuration_of_the_first_version_is_accepted_unchanged() {
        let config = good(SEED);
        assert_eq!(config.listen, [Listen::Everywhere(80)]);
        let route = first(&config);
        assert_eq!(route.path, "/api/");
        let address = Address::Tcp("backend-service".to_owned(), 8080);
        assert_eq!(target(&config).origin.address, address);
        assert_eq!(target(&config).host_header, "backend-service:8080");
        assert!(config.cors.is_some() && route.cors.is_some());
        assert_eq!(read(&SEED.replace('\n', "\r\n")).map(|_| ()), Ok(()));
        assert_eq!(read(&format!("\u{feff}{SEED}")).map(|_| ()), Ok(()));
    }

    #[test]
    fn a_mode_is_octal_however_it_is_written() {
        for (written, mode) in [
            ("\"0660\"", 0o660),
            ("0660", 0o660),
            ("0o600", 0o600),
            ("'0777'", 0o777),
            ("${MODE:-0620}", 0o620),
            ("null", 0o666),
        ] {
            let config = good(&plus(&format!("server:\n  unix_socket_mode: {written}")));
            assert_eq!(config.server.unix_socket_mode, mode, "{written}");
        }
    }

    #[test]
    fn every_default() {
        let config = good(&plus(""));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(config.version, "");
        assert_eq!(config.listen, [Listen::Everywhere(80)]);
        assert_eq!(
            config.transport,
            Transport {
                dial_timeout: seconds(10),
                dial_keep_alive: seconds(30),
                max_idle_conns: None,
                max_idle_conns_per_host: None,
                max_conns_per_host: None,
                idle_conn_timeout: seconds(30),
                read_buffer_size: 4096,
                write_buffer_size: 4096,
            }
        );
        let places = Proxy {
            max_concurrent_requests: None,
            max_tunnels: None,
            queue_timeout: Duration::from_secs(10),
        };
        assert_eq!(config.proxy, places);
        assert_eq!(
            config.server,
            Server {
                header_timeout: seconds(30),
                read_timeout: seconds(30),
                write_timeout: seconds(120),
                idle_timeout: seconds(30),
                max_header_bytes: 65536,
                max_connections: None,
                shutdown_timeout: Duration::from_secs(5),
                shutdown_delay: Duration::ZERO,
                trusted_proxies: Vec::new(),
                unix_socket_mode: 0o666,
            }
        );
        assert_eq!(config.memory, Memory::Auto);
        let log = Log {
            json: false,
            level: Level::Info,
            access: false,
        };
        assert_eq!(config.log, log);
        assert_eq!(config.health_path, "/health");
        assert_eq!(config.metrics, None);
        assert_eq!(config.threads, 1);
        assert!(config.environment.is_empty() && config.warnings.is_empty());
        let route = first(&config);
        assert!(
            route.rewrite_location
                && route.strip_prefix
                && !route.preserve_host
                && route.cors.is_none()
        );
        assert_eq!(route.response_header_timeout, seconds(30));
        assert!(route.max_body_size.is_none() && route.hosts.is_empty());
        assert!(route.request_headers.set.is_empty() && route.response_headers.set.is_empty());
        assert!(config.cors.is_none());
    }

    #[test]
    fn the_sample_at_the_top_holds_the_defaults() {
        let sample = good(include_str!("../../config.yaml"));
        let plain = good(&plus(""));
        assert_eq!(sample.listen, [Listen::Everywhere(8080)]);
        assert_eq!(
            target(&sample).origin.address,
            Address::Tcp("127.0.0.1".to_owned(), 9000)
        );
        let fields = |config: &Config| {
            format!(
                "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                config.transport,
                config.proxy,
                config.server,
                config.memory,
                config.log,
                config.health_path,
                config.metrics,
                config.version,
                config.warnings
            )
        };
        assert_eq!(fields(&sample), fields(&plain));
        let sample = include_str!("../../config.yaml");
        for key in [
            "allowed_methods",
            "allowed_headers",
            "exposed_headers",
            "max_age: 86400",
        ] {
            assert!(sample.contains(key), "{key}");
        }
    }

    #[test]
    fn zero_means_what_it_means_in_go() {
        let config = good(&plus(
            "transport: {dial_timeout: 0, dial_keep_alive: 0, max_idle_conns: 0, max_idle_conns_per_host: 0, \
             max_conns_per_host: 0, idle_conn_timeout: 0, response_header_timeout: 0, read_buffer_size: 0, \
             write_buffer_size: 1}\n\
             proxy: {max_concurrent_requests: 0, queue_timeout: 0}\n\
             limits: {memory: 0}",
        ));
        let transport = Transport {
            dial_timeout: None,
            dial_keep_alive: Some(Duration::from_secs(15)),
            max_idle_conns: None,
            max_idle_conns_per_host: Some(2),
            max_conns_per_host: None,
            idle_conn_timeout: None,
            read_buffer_size: 4096,
            write_buffer_size: 512,
        };
        assert_eq!(config.transport, transport);
        assert_eq!(config.proxy.max_concurrent_requests, None);
        assert_eq!(config.proxy.queue_timeout, Duration::ZERO);
        assert_eq!(config.memory, Memory::Off);
        assert_eq!(first(&config).response_header_timeout, None);
        let negative = good(&plus("transport: {dial_keep_alive: -1}"));
        assert_eq!(negative.transport.dial_keep_alive, None);
    }

    #[test]
    fn other_notations_with_a_clear_meaning_are_accepted() {
        let cases = [
            "transport: {max_idle_conns: 10.0, dial_timeout: 0.5}",
            "transport: {max_idle_conns: \"10\", dial_timeout: '2.5'}",
            "transport:\nproxy: ~\nserver: {}\nlisten: null\ncors:",
            "x-anchor: &a {dial_timeout: 3, x-y: 1}\ntransport: {<<: *a, x-more: [1]}",
            "listen: [\":80\", \"127.0.0.1:81\"]\nserver: {trusted_proxies: 10.0.0.0/8}",
            "cors: {allowed_origins: \"*\"}",
            "cors: false",
            "log: {access: yes, level: INFO}",
            "version: 1.10",
            "limits: {memory: auto}",
            "limits: {memory: off}",
            "listen: [\":0\", \":0\"]",
        ];
        for case in cases {
            good(&plus(case));
        }
        assert_eq!(good(&plus("version: 1.10")).version, "1.10");
        assert_eq!(good(&plus("version: 7")).version, "7");
        let one = good("routes: {path: /, target: http://h}");
        assert_eq!(one.routes.len(), 1);
        let two = good(&format!("{}---\nnonsense: 1\n", plus("")));
        assert_eq!(two.warnings.len(), 1, "{:?}", two.warnings);
    }

    #[test]
    fn times_and_sizes_have_units_everywhere() {
        let text = "transport: {dial_timeout: 500ms, dial_keep_alive: -1s, idle_conn_timeout: \"1m30s\", \
             response_header_timeout: 2m, read_buffer_size: 64KiB, write_buffer_size: 8K}\n\
             proxy: {queue_timeout: 1.5s}\n\
             server: {header_timeout: 1m, read_timeout: 45s, write_timeout: 2m, idle_timeout: 75s, \
             shutdown_timeout: 10s, shutdown_delay: 250ms, max_header_bytes: 32KB}\n\
             cors: {allowed_origins: \"*\", max_age: 1h}\n\
             limits: {memory: 10M}\n\
             routes: [{path: /, target: \"http://h\", max_body_size: 1MB, response_header_timeout: 3s}]\n";
        let config = good(text);
        let millis = |millis| Some(Duration::from_millis(millis));
        let transport = Transport {
            dial_timeout: millis(500),
            dial_keep_alive: None,
            idle_conn_timeout: millis(90_000),
            read_buffer_size: 65536,
            write_buffer_size: 8192,
            ..good(&plus("")).transport.clone()
        };
        assert_eq!(config.transport, transport);
        assert_eq!(config.proxy.queue_timeout, Duration::from_millis(1500));
        let server = Server {
            header_timeout: millis(60_000),
            read_timeout: millis(45_000),
            write_timeout: millis(120_000),
            idle_timeout: millis(75_000),
            shutdown_timeout: Duration::from_secs(10),
            shutdown_delay: Duration::from_millis(250),
            max_header_bytes: 32_000,
            ..good(&plus("")).server.clone()
        };
        assert_eq!(config.server, server);
        assert_eq!(config.memory, Memory::Bytes(10 << 20));
        assert_eq!(first(&config).max_body_size, Some(1_000_000));
        assert_eq!(first(&config).response_header_timeout, millis(3000));
        let own = good(&plus("transport: {response_header_timeout: 90s}"));
        assert_eq!(first(&own).response_header_timeout, millis(90_000));
        for (value, bytes) in [
            ("10M", 10 << 20),
            ("10MB", 10_000_000),
            ("12000000", 12_000_000),
        ] {
            for name in ["LEAN_PROXY_MEMORY", "GOMEMLIMIT"] {
                let pairs = [(name, value)];
                let config = load(Source::Text("c", &plus("")), &with(&pairs)).unwrap();
                assert_eq!(config.memory, Memory::Bytes(bytes), "{name}={value}");
            }
        }
    }

    /// What is written, then the beginning of the error it must get.
    const IN_A_SECTION: &[(&str, &str)] = &[
        (
            "listn: \":80\"",
            "c.yaml:1: listn: unknown key, did you mean `listen`?",
        ),
        (
            "transport:\n  dial_timout: 1",
            "c.yaml:2: transport.dial_timout: unknown key, did you mean `dial_timeout`?",
        ),
        (
            "transport:\n  zzz: 1",
            "c.yaml:2: transport.zzz: unknown key; known here: ",
        ),
        (
            "log: {levle: info}",
            "c.yaml:1: log.levle: unknown key, did you mean `level`?",
        ),
        (
            "transport: 7",
            "c.yaml:1: transport: must be a mapping of keys, got 7",
        ),
        (
            "transport: [a]",
            "c.yaml:1: transport: must be a mapping of keys, got a list",
        ),
        (
            "transport:\n\n  dial_timeout: 30x",
            "c.yaml:3: transport.dial_timeout: must be seconds, or a time such as 500ms, 30s or 1m30s, got \"30x\"",
        ),
        (
            "transport: {read_buffer_size: 64KX}",
            "c.yaml:1: transport.read_buffer_size: must be bytes, or a size such as 64KiB or 10MB, got \"64KX\"",
        ),
        (
            "transport: {read_buffer_size: 17MiB}",
            "c.yaml:1: transport.read_buffer_size: must be at most 16777216, got 17825792",
        ),
        (
            "limits: {memory: 8XiB}",
            "c.yaml:1: limits.memory: must be bytes, or a size",
        ),
        (
            "limits: {memory: 10K}",
            "c.yaml:1: limits.memory: counts bytes",
        ),
        (
            "transport: {max_idle_conns: 010}",
            "c.yaml:1: transport.max_idle_conns: begins with a zero: write 10, not \"010\"",
        ),
        (
            "limits: {memory: 10}",
            "c.yaml:1: limits.memory: counts bytes",
        ),
        (
            "limits: {memory: -1}",
            "c.yaml:1: limits.memory: must be at least 0, got -1",
        ),
        (
            "transport: {max_idle_conns: 10k}",
            "c.yaml:1: transport.max_idle_conns: must be a number, got \"10k\"",
        ),
        (
            "transport: {max_idle_conns: 1.5}",
            "c.yaml:1: transport.max_idle_conns: must be a whole number, got 1.5",
        ),
        (
            "transport: {max_idle_conns: -1}",
            "c.yaml:1: transport.max_idle_conns: must be at least 0, got -1",
        ),
        (
            "transport: {max_idle_conns: 99999999999}",
            "c.yaml:1: transport.max_idle_conns: must be at most ",
        ),
        (
            "transport: {max_idle_conns: 99999999999999999999999999999999999999999999}",
            "c.yaml:1: transport.max_idle_conns: must be at most ",
        ),
        (
            "transport: {max_idle_conns: [1]}",
            "c.yaml:1: transport.max_idle_conns: must be a number, got a list",
        ),
        (
            "transport: {max_idle_conns: true}",
            "c.yaml:1: transport.max_idle_conns: must be a number, got true",
        ),
        (
            "transport: {dial_timeout: .inf}",
            "c.yaml:1: transport.dial_timeout: must be a number",
        ),
        (
            "transport: {dial_timeout: .nan}",
            "c.yaml:1: transport.dial_timeout: must be a number",
        ),
        (
            "transport: {dial_timeout: -1}",
            "c.yaml:1: transport.dial_timeout: must be at least 0, got -1",
        ),
        (
            "transport: {dial_timeout: 1e300}",
            "c.yaml:1: transport.dial_timeout: must be at most ",
        ),
        (
            "transport: {dial_timeout: \"\"}",
            "c.yaml:1: transport.dial_timeout: must be seconds, or",
        ),
        (
            "transport: {dial_timeout: \"010\"}",
            "c.yaml:1: transport.dial_timeout: begins with a zero: write 10, not \"010\"",
        ),
        (
            "server: {max_header_bytes: 10}",
            "c.yaml:1: server.max_header_bytes: must be at least 1024, got 10",
        ),
        (
            "server: {max_header_bytes: 10000000}",
            "c.yaml:1: server.max_header_bytes: must be at most 1048576",
        ),
        (
            "server: {unix_socket_mode: \"0888\"}",
            "c.yaml:1: server.unix_socket_mode: must be an octal mode such as \"0660\", got \"0888\"",
        ),
        (
            "server: {unix_socket_mode: 660}",
            "c.yaml:1: server.unix_socket_mode: must be an octal mode with its zero: write \"0660\", not \"660\"",
        ),
        (
            "server: {unix_socket_mode: 438}",
            "c.yaml:1: server.unix_socket_mode: must be an octal mode such as \"0660\", got \"438\"",
        ),
        (
            "server: {unix_socket_mode: \"0o1660\"}",
            "c.yaml:1: server.unix_socket_mode: must be an octal mode",
        ),
        (
            "server: {unix_socket_mode: \"0555\"}",
            "c.yaml:1: server.unix_socket_mode: allows no connections",
        ),
        (
            "server:\n  trusted_proxies:\n  - 10.0.0.0/8\n  - 10.0.0.0/99",
            "c.yaml:4: server.trusted_proxies[1]: must be a network",
        ),
        (
            "listen: 80",
            "c.yaml:1: listen: must be an address and a port: write \":80\"",
        ),
        (
            "listen: []",
            "c.yaml:1: listen: must name at least one address",
        ),
        (
            "listen: [\":80\", \":80\"]",
            "c.yaml:1: listen[1]: \":80\" is listed twice",
        ),
        (
            "listen:\n- :80\n- nonsense",
            "c.yaml:3: listen[1]: must be like",
        ),
        (
            "listen: {http2: false}",
            "c.yaml:1: listen: needs an `address`, as in {address: \":443\"}",
        ),
        (
            "log: {level: loud}",
            "c.yaml:1: log.level: must be one of debug, info, warn, error, got \"loud\"",
        ),
        (
            "log: {format: xml}",
            "c.yaml:1: log.format: must be one of text, json, got \"xml\"",
        ),
        (
            "log: {access: maybe}",
            "c.yaml:1: log.access: must be true or false, got \"maybe\"",
        ),
        (
            "log: {access: 1}",
            "c.yaml:1: log.access: must be true or false, got 1",
        ),
        (
            "health: {path: health}",
            "c.yaml:1: health.path: must begin with /",
        ),
        (
            "health: {path: /a?b}",
            "c.yaml:1: health.path: must not have a query",
        ),
        (
            "health: {path: /}",
            "c.yaml:2: routes[0].path: is the health path",
        ),
        (
            "metrics: {listen: nonsense}",
            "c.yaml:1: metrics.listen: must be like",
        ),
        (
            "listen: \":80\"\nmetrics: {listen: \":80\"}",
            "c.yaml:2: metrics.listen: must be another address",
        ),
        (
            "cors: {allowed_origins: [\"https://a.example\", \"https://b.example/\"]}",
            "c.yaml:1: cors.allowed_origins[1]: ",
        ),
        (
            "cors: {allowed_origins: [a.example]}",
            "c.yaml:1: cors.allowed_origins[0]: ",
        ),
        (
            "cors:\n  allowed_origins: \"*\"\n  allow_credentials: true",
            "c.yaml:3: cors.allow_credentials: ",
        ),
        (
            "cors: {allow_credentials: perhaps}",
            "c.yaml:1: cors.allow_credentials: must be auto, true or false",
        ),
        (
            "cors: {max_age: -2}",
            "c.yaml:1: cors.max_age: must be at least -1, got -2",
        ),
        (
            "cors: true",
            "c.yaml:1: cors: true enables nothing: list the origins",
        ),
        (
            "cors: {allowed_methods: [GET, put]}",
            "c.yaml:1: cors.allowed_methods[1]: methods are written in capitals: \"PUT\", not \"put\"",
        ),
        (
            "listen: fd:2",
            "c.yaml:1: listen: fd:2 is the standard input or output",
        ),
        (
            "health: {path: /health/*}",
            "c.yaml:1: health.path: there are no patterns",
        ),
        (
            "cors: {max_age: 1y}",
            "c.yaml:1: cors.max_age: must be seconds, or",
        ),
        (
            "cors: {allowed_origins: [{a: 1}]}",
            "c.yaml:1: cors.allowed_origins[0]: must be a string, got a mapping",
        ),
        (
            "cors: {allowed_origins: [~]}",
            "c.yaml:1: cors.allowed_origins[0]: must be a string, got nothing",
        ),
        (
            "version: [1]",
            "c.yaml:1: version: must be a string, got a list",
        ),
        (
            "version: ${NONE}",
            "c.yaml:1: version: the environment variable NONE is not set and has no default",
        ),
        (
            "transport: {dial_timeout: \"${NONE}\"}",
            "c.yaml:1: transport.dial_timeout: the environment variable NONE",
        ),
        (
            "version: ${A",
            "c.yaml:1: version: holds a ${ without its }",
        ),
        (
            "version: ${A B}",
            "c.yaml:1: version: holds ${A B}, which is not a variable's name",
        ),
        ("a: 1\na: 2", "c.yaml:2: duplicate key \"a\""),
    ];

    #[test]
    fn mistakes_in_a_section() {
        for (text, expected) in IN_A_SECTION {
            let errors = errors(&plus(text));
            assert!(
                errors.len() == 1 && errors[0].starts_with(expected),
                "{text}: {errors:#?}"
            );
        }
    }

    /// What is written, then the beginning of the error it must get.
    #[test]
    fn the_environments_roots_are_read_only_where_a_target_needs_them() {
        let pairs = [("SSL_CERT_FILE", "/nonexistent.pem")];
        let environment = with(&pairs);
        let load = |route: &str| {
            let text = format!("routes: [{{path: /, target: {route}}}]");
            load(Source::Text("c", &text), &environment).map(drop)
        };
        let complaint = "c: SSL_CERT_FILE: /nonexistent.pem: No such file or directory";
        assert_eq!(load("\"https://h\""), Err(vec![complaint.to_owned()]));
        assert_eq!(load("\"http://h\""), Ok(()));
        let roots = std::env::temp_dir().join(format!("lean-proxy-roots-{}", std::process::id()));
        let key = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        std::fs::write(&roots, key.cert.pem()).unwrap();
        let path = roots.display().to_string();
        let pairs = [("SSL_CERT_FILE", path.as_str())];
        let text = |target| format!("routes: [{{path: /, target: \"{target}\"}}]");
        let told = |target| super::load(Source::Text("c", &text(target)), &with(&pairs)).unwrap();
        let (used, unused) = (told("https://h"), told("http://h"));
        std::fs::remove_file(&roots).unwrap();
        let expected = format!("SSL_CERT_FILE={path} -> the roots of https targets");
        assert_eq!(used.environment, expected);
        assert_eq!(unused.environment, "");
        assert_eq!(
            load("\"https://h\", tls: {insecure_skip_verify: true}"),
            Ok(())
        );
    }

    #[test]
    fn all_mistakes_at_once_in_the_order_of_their_lines() {
        let found = errors(
            "log: {level: x}\nroutes:\n- path: x\n  target: ftp://h\n- {path: /, target: \"http://h\", zzz: 1}\n\
             cors: {allowed_origins: [nonsense]}\nlisten: x\n",
        );
        let starts: Vec<&str> = found
            .iter()
            .map(|error| error.split(':').nth(1).unwrap())
            .collect();
        assert_eq!(starts, ["1", "3", "4", "5", "6", "7"], "{found:#?}");
        // a mistake that routes inherit is reported once, where it is written; and the number of errors is bounded
        let inherited = "cors: {allowed_origins: [x]}\nroutes: [{path: /, target: \"http://h\", cors: {max_age: 1}}]";
        assert_eq!(errors(inherited).len(), 1);
        let many = errors(&plus(&format!("{}: 1", "k\u{7f}".repeat(900))));
        assert!(
            many.iter()
                .all(|line| line.len() < 2000 && !line.contains('\n'))
        );
        let keys: Vec<String> = (0..1000).map(|n| format!("k{n}: 1")).collect();
        assert_eq!(errors(&plus(&keys.join("\n"))).len(), 101);
    }

    #[test]
    fn variables_are_replaced_in_values() {
        let pairs = [
            ("A", "1"),
            ("EMPTY", ""),
            ("HOST", "h.example"),
            ("FLAG", "true"),
            ("COST", "$A ${A}"),
        ];
        let text = "version: \"$$ ${A} $x ${NONE:-d:-e} ${EMPTY} ${EMPTY:-f} ${COST}\"\n\
                    transport: {dial_timeout: \"${A}\", max_idle_conns: \"${NONE:-7}\"}\n\
                    log: {access: \"${FLAG}\"}\n\
                    x-free: ${NONE}\n\
                    routes: [{path: /, target: \"http://${HOST}:${PORT:-81}/\"}]\n";
        let config = load(Source::Text("c", text), &with(&pairs)).unwrap();
        assert_eq!(config.version, "$ 1 $x d:-e  f $A ${A}");
        assert_eq!(config.transport.dial_timeout, Some(Duration::from_secs(1)));
        assert_eq!(config.transport.max_idle_conns, Some(7));
        assert!(config.log.access);
        assert_eq!(target(&config).host_header, "h.example:81");
    }

    #[test]
    fn the_environment_wins() {
        let pairs = [
            ("GOMEMLIMIT", "8MiB"),
            ("GOMAXPROCS", "4"),
            ("GOGC", "nonsense"),
            ("LOG_FORMAT", "json"),
            ("DEBUG", "true"),
            ("PORT", "8081"),
        ];
        let config = load(
            Source::Text("c", &plus("limits: {memory: 0}")),
            &with(&pairs),
        )
        .unwrap();
        assert_eq!(config.memory, Memory::Bytes(8 << 20));
        assert_eq!(config.threads, 4);
        assert_eq!(
            config.log,
            Log {
                json: true,
                level: Level::Debug,
                access: false
            }
        );
        assert_eq!(config.listen, [Listen::Everywhere(8081)]);
        assert_eq!(
            config.environment,
            "PORT=8081 -> listen :8081, GOMEMLIMIT=8MiB -> limits.memory 8388608, GOMAXPROCS=4 -> threads 4, \
             LOG_FORMAT=json -> log.format json, DEBUG=true -> log.level debug"
        );
        let pairs = [
            ("GOMEMLIMIT", "x"),
            ("LEAN_PROXY_MEMORY", "off"),
            ("GOMAXPROCS", "2"),
            ("LEAN_PROXY_THREADS", "99"),
        ];
        let listen = plus("listen: \":1\"\ntransport: {max_conns_per_host: 7}");
        let config = load(Source::Text("c", &listen), &with(&pairs)).unwrap();
        assert_eq!((config.memory, config.threads), (Memory::Off, 7));
        let odd = load(
            Source::Text("c", &plus("")),
            &with(&[("DEBUG", "express:*"), ("PORT", "")]),
        )
        .unwrap();
        assert_eq!(odd.log.level, Level::Info);
        assert_eq!(
            (odd.warnings.len(), &odd.listen[0].address),
            (1, &Listen::Everywhere(80))
        );
    }

    #[test]
    fn a_configuration_from_a_variable_is_logged() {
        let text = plus("");
        let pairs = [("LEAN_PROXY_CONFIG", text.as_str()), ("PORT", "81")];
        let config = load(Source::Text("LEAN_PROXY_CONFIG", &text), &with(&pairs)).unwrap();
        assert_eq!(
            config.environment,
            "LEAN_PROXY_CONFIG -> the configuration, PORT=81 -> listen :81"
        );
    }

    #[test]
    fn bad_variables_are_errors() {
        let cases = [
            ("GOMEMLIMIT", "8XB"),
            ("GOMEMLIMIT", "1048576.5"),
            ("GOMEMLIMIT", "-10M"),
            ("GOMEMLIMIT", "99999999999GiB"),
            ("GOMEMLIMIT", "1000"),
            ("LEAN_PROXY_MEMORY", "lots"),
            ("GOMAXPROCS", "0"),
            ("LEAN_PROXY_THREADS", "-1"),
            ("LOG_FORMAT", "xml"),
            ("PORT", "http"),
            ("PORT", "65536"),
        ];
        for (name, value) in cases {
            let errors = load(Source::Text("c", &plus("")), &with(&[(name, value)])).unwrap_err();
            assert!(
                errors.len() == 1 && errors[0].contains(name),
                "{name}={value}: {errors:?}"
            );
        }
        let both = load(Source::Text("c", "routes: []"), &with(&[("PORT", "x")])).unwrap_err();
        assert_eq!(both.len(), 2, "{both:?}");
    }

    #[test]
    fn files_that_cannot_be_read() {
        let missing = load(Source::File(Path::new("/nonexistent/c.yaml")), NOTHING).unwrap_err();
        assert_eq!(missing, ["/nonexistent/c.yaml: No such file or directory"]);
        let folder = load(Source::File(Path::new("src")), NOTHING).unwrap_err();
        assert_eq!(folder, ["src: Is a directory"]);
        let endless = load(Source::File(Path::new("/dev/zero")), NOTHING).unwrap_err();
        assert_eq!(endless, ["/dev/zero: is larger than 1 MiB"]);
        let large = errors(&plus(&format!("# {}\n", "x".repeat(1 << 20))));
        assert_eq!(large, ["c.yaml: is larger than 1 MiB"]);
        let latin = std::env::temp_dir().join(format!("lean-proxy-latin-{}", std::process::id()));
        std::fs::write(&latin, b"a: 1\nb: \xe9\n").unwrap();
        let errors = load(Source::File(&latin), NOTHING).unwrap_err();
        std::fs::remove_file(&latin).unwrap();
        assert_eq!(errors, [format!("{}:2: must be UTF-8", latin.display())]);
    }

    #[test]
    fn the_sample_listens_on_a_port_that_needs_no_privileges() {
        let sample = Source::File(Path::new("config.yaml"));
        let on_a_desk = load(sample, NOTHING).unwrap();
        assert_eq!(on_a_desk.listen, [Listen::Everywhere(8080)]);
        // as the image sets it
        let in_a_container = load(sample, &with(&[("PORT", "80")])).unwrap();
        assert_eq!(in_a_container.listen, [Listen::Everywhere(80)]);
        assert!(in_a_container.warnings.is_empty());
    }

    /// Xorshift: the same bytes on every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % sides as u64).unwrap()
        }
    }

    #[test]
    fn any_bytes_give_a_config_or_messages() {
        let target = "    target: http://backend-service:8080/\n";
        let direct = "  - {path: /r/, host: [a, \"*.b\"], redirect: {to: \"https://{host}:81/x\"}}\n  \
             - {path: /s, respond: {status: 404, body: \"${X:-y}\", content_type: a/b}}\n";
        let routes = SEED.replace(target, &format!("{target}{direct}"));
        let routes = routes.replace("dial_timeout: 10", "dial_timeout: 1m30s");
        good(&routes);
        let valid = format!("{routes}x-a: &a {{k: 1}}\nlog: {{<<: [*a], access: [1, *a]}}\n");
        let mut dice = Dice(0x2545_F491_4F6C_DD1D);
        let alphabet: Vec<char> = "aé:-[]{},#&*!|>'\"%@`?~$<. \t\n\r0129/\\\u{feff}\u{0}"
            .chars()
            .collect();
        for round in 0..1500 {
            let text: String = match round % 3 {
                0 => (0..dice.roll(80))
                    .map(|_| alphabet[dice.roll(alphabet.len())])
                    .collect(),
                1 => {
                    let bytes: Vec<u8> = (0..dice.roll(80))
                        .map(|_| u8::try_from(dice.roll(256)).unwrap())
                        .collect();
                    String::from_utf8_lossy(&bytes).into_owned()
                }
                _ => {
                    let mut text: Vec<char> = valid.chars().collect();
                    for _ in 0..=dice.roll(4) {
                        let at = dice.roll(text.len());
                        match dice.roll(3) {
                            0 => text[at] = alphabet[dice.roll(alphabet.len())],
                            1 => text.insert(at, alphabet[dice.roll(alphabet.len())]),
                            _ => drop(text.remove(at)),
                        }
                    }
                    text.into_iter().collect()
                }
            };
            if let Err(errors) = read(&text) {
                assert!(!errors.is_empty(), "{text:?}");
                for line in errors {
                    assert!(
                        line.starts_with("c.yaml") && !line.contains('\n'),
                        "{text:?}: {line}"
                    );
                }
            }
        }
    }
}
