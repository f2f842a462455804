//! What the configuration means: every value parsed, every default filled in.
//!
//! `document.rs` reads the YAML and collects what is wrong with it, `address.rs` knows targets and addresses; this room
//! turns it into a [`Config`], after which nothing re-reads a string. It never asks the network or the clock; of the
//! disk it reads the configuration and what `ca_file` names. No message repeats a header's value.

use std::{
    collections::HashMap,
    fmt::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper::http::{HeaderName, HeaderValue};

pub use crate::address::{Listen, Network};
use crate::{
    address::{
        check_path, parse_host_pattern, parse_listen, parse_network, parse_server_name,
        parse_target,
    },
    cors::{Cors, Credentials, Settings},
    document::{self, Document, Environment, Field, Section, Unit, boolean, quote},
    route::{Edits, HostPattern, Route, Routes, Target, Tls},
};

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
    /// Never more than 64, nor than any limit that the workers share out among themselves.
    pub threads: usize,
    /// One line that says what the environment changed, for the start of the log; empty where nothing.
    pub environment: String,
    /// Things worth a warning at each start (several documents, `insecure_skip_verify`, …).
    pub warnings: Vec<String>,
}

/// `transport:`; `None` means no limit or no time-out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// From the start of the look-up to the end of the (TLS) handshake. Default 10 s.
    pub dial_timeout: Option<Duration>,
    /// TCP keep-alive probes: idle time and interval, 1 s to 32767 s as the kernel takes them.
    /// Default 30 s; 0 in the file = 15 s; negative = `None` = off.
    pub dial_keep_alive: Option<Duration>,
    /// Idle connections over all hosts. Default 10; 0 in the file = `None`.
    pub max_idle_conns: Option<usize>,
    /// Idle connections to one host. Default 2 (0 in the file = 2 as Go means it).
    pub max_idle_conns_per_host: usize,
    /// Connections to one host: idle, dialling and busy together. Default 20; 0 = `None`.
    pub max_conns_per_host: Option<usize>,
    /// How long an idle connection is kept. Default 30 s; 0 = `None` = for ever.
    pub idle_conn_timeout: Option<Duration>,
    /// Bytes read from the upstream at a time. Default 4096 (0 in the file = 4096); less than 512 counts as 512.
    pub read_buffer_size: usize,
    /// Bytes on their way to the upstream at a time. Default 4096 (0 in the file = 4096); less than 512 counts as 512.
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

/// Where a configuration is read from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// A file of at most 1 MiB.
    File(&'a Path),
    /// The YAML itself, and what messages call it (`LEAN_PROXY_CONFIG`).
    Text(&'a str, &'a str),
}

/// Loads, validates and fills in. `Err`: every mistake, one line each, as `config.yaml:12: routes[1].target: sentence`.
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
    apply_environment(&document, &mut config);
    config.warnings = document.finish()?;
    Ok(config)
}

fn config(root: &Section<'_>) -> Config {
    let version = root.text("version");
    let listen = root
        .get("listen")
        .map_or_else(Vec::new, |field| listen_list(&field));
    let (transport, response_header_timeout) = root.section("transport", transport);
    let server = root.section("server", server);
    let health_path = root.section("health", |s| {
        url_path(s, "path").unwrap_or_else(|| "/health".to_owned())
    });
    let metrics = root.section("metrics", |s| metrics(s, &listen));
    let off = Policy {
        settings: default_cors(),
        cors: None,
        sound: true,
    };
    let cors = own_policy(root, &off).unwrap_or(off);
    let common = Common {
        response_header_timeout,
        cors: &cors,
        health_path: &health_path,
    };
    let routes = routes(root, &common);
    Config {
        version,
        listen,
        routes,
        transport,
        server,
        health_path,
        metrics,
        cors: cors.cors,
        proxy: root.section("proxy", |s| Places {
            max_concurrent_requests: at_most(s, "max_concurrent_requests", 100),
            queue_timeout: time(s, "queue_timeout", 10.0).unwrap_or_default(),
        }),
        memory: root.section("limits", memory),
        log: root.section("log", log),
        threads: 1,
        environment: String::new(),
        warnings: Vec::new(),
    }
}

/// The time-out for the response's head is each route's own in the end.
fn transport(s: &Section<'_>) -> (Transport, Option<Duration>) {
    let buffer = |key| match s.whole(key, Unit::Bytes, 0, &(0..=MAX_BUFFER)) {
        0 => 4096,
        bytes => usize::try_from(bytes).unwrap_or(4096).max(512),
    };
    let response_header_timeout = time(s, "response_header_timeout", 30.0);
    let transport = Transport {
        dial_timeout: time(s, "dial_timeout", 10.0),
        dial_keep_alive: dial_keep_alive(s),
        max_idle_conns: at_most(s, "max_idle_conns", 10),
        max_idle_conns_per_host: at_most(s, "max_idle_conns_per_host", 2).unwrap_or(2),
        max_conns_per_host: at_most(s, "max_conns_per_host", 20),
        idle_conn_timeout: time(s, "idle_conn_timeout", 30.0),
        read_buffer_size: buffer("read_buffer_size"),
        write_buffer_size: buffer("write_buffer_size"),
    };
    (transport, response_header_timeout)
}

/// As Go's `net.Dialer.KeepAlive`; the kernel counts in whole seconds, 32767 at most.
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
        header_timeout: time(s, "header_timeout", 30.0),
        read_timeout: time(s, "read_timeout", 30.0),
        write_timeout: time(s, "write_timeout", 120.0),
        idle_timeout: time(s, "idle_timeout", 30.0),
        max_header_bytes: usize::try_from(head).unwrap_or(65536),
        max_connections: at_most(s, "max_connections", 0),
        shutdown_timeout: time(s, "shutdown_timeout", 5.0).unwrap_or_default(),
        shutdown_delay: time(s, "shutdown_delay", 0.0).unwrap_or_default(),
        trusted_proxies: parsed_list(s, "trusted_proxies", parse_network),
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

/// Below a mebibyte the program does not start, so somebody meant another unit.
fn memory_of(bytes: u64) -> Result<Memory, String> {
    match bytes {
        0 => Ok(Memory::Off),
        1..MIN_MEMORY => Err(format!(
            "counts bytes: must be 0 (off) or at least {MIN_MEMORY}, got {bytes}"
        )),
        _ => Ok(Memory::Bytes(bytes)),
    }
}

fn log(s: &Section<'_>) -> Log {
    Log {
        json: one_of(s, "format", &[("text", false), ("json", true)]).unwrap_or(false),
        level: one_of(s, "level", &LEVELS).unwrap_or(Level::Info),
        access: s.flag("access", false),
    }
}

fn metrics(s: &Section<'_>, listen: &[Listen]) -> Option<Listen> {
    let field = s.get("listen")?;
    let text = field.text().filter(|text| !text.is_empty())?;
    match parse_listen(&text) {
        Ok(address) if listen.contains(&address) && !address.is_any_port() => {
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

/// What every route may fall back on.
struct Common<'a> {
    response_header_timeout: Option<Duration>,
    cors: &'a Policy,
    health_path: &'a str,
}

fn routes(root: &Section<'_>, common: &Common<'_>) -> Routes {
    let items = root
        .get("routes")
        .map_or_else(Vec::new, |field| field.items());
    if items.is_empty() {
        root.place("routes")
            .complain("at least one route is needed");
    }
    let mut seen: HashMap<(String, String), String> = HashMap::new();
    let mut routes = Vec::with_capacity(items.len());
    for item in items {
        let Some(route) = item.section(|s| route(s, common)) else {
            continue;
        };
        if let Some(earlier) = seen.insert((host_key(&route), route.path.clone()), item.shown()) {
            item.complain(format!("has the same host and path as {earlier}"));
        }
        routes.push(route);
    }
    Routes::new(routes)
}

fn host_key(route: &Route) -> String {
    match &route.host {
        None => String::new(),
        Some(HostPattern::Exact(host)) => host.clone(),
        Some(HostPattern::Below(suffix)) => format!("*{suffix}"),
    }
}

/// `None` where something without a default is amiss; all keys are read in any case.
fn route(s: &Section<'_>, common: &Common<'_>) -> Option<Route> {
    let path = url_path(s, "path");
    if let Some(path) = &path {
        if path == common.health_path {
            s.place("path")
                .complain("is the health path, which is answered before any route");
        }
    } else if s.get("path").is_none() {
        s.place("path").complain("is missing");
    }
    let target = target(s);
    let host = parsed(s, "host", parse_host_pattern).flatten();
    let response_header_timeout =
        own_time(s, "response_header_timeout").unwrap_or(common.response_header_timeout);
    let max_body_size = s.whole("max_body_size", Unit::Bytes, 0, &(0..=i64::MAX));
    let strip_prefix = s.flag("strip_prefix", true);
    let preserve_host = s.flag("preserve_host", false);
    let request_headers = s.section("request_headers", |s| edits(s, true));
    let response_headers = s.section("response_headers", |s| edits(s, false));
    let cors = match own_policy(s, common.cors) {
        Some(own) => own.cors,
        None => common.cors.cors.clone(),
    };
    Some(Route {
        path: path?,
        host,
        target: target?,
        strip_prefix,
        preserve_host,
        response_header_timeout,
        max_body_size: u64::try_from(max_body_size).ok().filter(|bytes| *bytes > 0),
        request_headers,
        response_headers,
        cors,
    })
}

fn target(s: &Section<'_>) -> Option<Target> {
    let field = s.get("target");
    let target = match &field {
        None => {
            s.place("target").complain("is missing");
            None
        }
        Some(field) => field.text().and_then(|text| {
            parse_target(&text)
                .map_err(|sentence| field.complain(sentence))
                .ok()
        }),
    };
    let tls = s.section("tls", |s| Tls {
        server_name: parsed(s, "server_name", parse_server_name).unwrap_or_default(),
        ca_file: ca_file(s),
        insecure_skip_verify: s.flag("insecure_skip_verify", false),
    });
    let mut target = target?;
    let plain = tls
        == Tls {
            server_name: String::new(),
            ca_file: None,
            insecure_skip_verify: false,
        };
    match &mut target.origin.tls {
        None if !plain => s
            .place("tls")
            .complain("is for https targets, and this one is not"),
        None => {}
        Some(own) => {
            if tls.insecure_skip_verify {
                let sentence = "any certificate is taken: whoever is in between can read and change everything";
                s.place("tls")
                    .warn(format!("insecure_skip_verify: {sentence}"));
            }
            let server_name = std::mem::take(&mut own.server_name);
            *own = tls;
            if own.server_name.is_empty() {
                own.server_name = server_name;
            }
        }
    }
    Some(target)
}

fn ca_file(s: &Section<'_>) -> Option<PathBuf> {
    let field = s.get("ca_file")?;
    let path = field
        .text()
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)?;
    match document::read(&path) {
        // The message begins with the path.
        Err(error) => field.complain(error),
        Ok(pem) if !holds_certificate(&pem) => {
            field.complain(format!(
                "{}: holds no certificate in PEM form",
                path.display()
            ));
        }
        Ok(_) => {}
    }
    Some(path)
}

/// Shape only: whoever dials parses it for real.
fn holds_certificate(pem: &str) -> bool {
    let Some((_, after)) = pem.split_once("-----BEGIN CERTIFICATE-----") else {
        return false;
    };
    let Some((body, _)) = after.split_once("-----END CERTIFICATE-----") else {
        return false;
    };
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
    let body: Vec<u8> = body
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    !body.is_empty() && body.len() % 4 == 0 && body.iter().all(|byte| base64(*byte))
}

fn edits(s: &Section<'_>, request: bool) -> Edits {
    let mut edits = Edits::default();
    for (key, field) in s.get("set").map_or_else(Vec::new, |field| field.entries()) {
        let name = header_name(key, request, true).map_err(|sentence| field.complain(sentence));
        let value = field.text().and_then(|text| {
            let value = HeaderValue::from_bytes(text.trim_matches([' ', '\t']).as_bytes());
            // Never the value: it may be a secret.
            value
                .map_err(|_| field.complain("holds a byte that no header value may hold"))
                .ok()
        });
        let (Ok(name), Some(value)) = (name, value) else {
            continue;
        };
        if edits.set.iter().any(|(other, _)| *other == name) {
            field.complain("is set twice");
        }
        edits.set.push((name, value));
    }
    edits.remove = parsed_list(s, "remove", |text| header_name(text, request, false));
    edits
}

fn header_name(text: &str, request: bool, set: bool) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{} is no valid header name", quote(text)))?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!("{name} frames the message and is the proxy's own"));
    }
    if request && !set && name == "host" {
        return Err("Host cannot be removed: HTTP/1.1 needs it".to_owned());
    }
    Ok(name)
}

/// `cors:` where nothing is said.
fn default_cors() -> Settings {
    let words = |words: &[&str]| words.iter().map(|word| String::from(*word)).collect();
    Settings {
        allowed_origins: Vec::new(),
        allowed_methods: words(&["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
        allowed_headers: words(&["Content-Type", "Authorization", "X-Requested-With"]),
        exposed_headers: Vec::new(),
        allow_credentials: Credentials::Auto,
        max_age: 86400,
    }
}

/// A `cors:` with every key filled in, and what it became.
struct Policy {
    settings: Settings,
    cors: Option<Cors>,
    /// False where it was complained of already.
    sound: bool,
}

/// Lays the `cors:` of a section over `base`; `None` where there is none to lay.
fn own_policy(s: &Section<'_>, base: &Policy) -> Option<Policy> {
    let field = s.get("cors")?;
    let inherited = &base.settings;
    match field.is_flag() {
        Some(true) => return None,
        Some(false) => {
            let settings = Settings {
                allowed_origins: Vec::new(),
                ..inherited.clone()
            };
            return Some(Policy {
                settings,
                cors: None,
                sound: true,
            });
        }
        None => {}
    }
    field.section(|s| {
        if s.is_empty() {
            return None;
        }
        let so_far = s.field().error_count();
        let settings = Settings {
            allowed_origins: words(s, "allowed_origins", &inherited.allowed_origins),
            allowed_methods: words(s, "allowed_methods", &inherited.allowed_methods),
            allowed_headers: words(s, "allowed_headers", &inherited.allowed_headers),
            exposed_headers: words(s, "exposed_headers", &inherited.exposed_headers),
            allow_credentials: credentials(s).unwrap_or(inherited.allow_credentials),
            max_age: s.whole("max_age", Unit::Seconds, inherited.max_age, &(-1..=MAX_AGE)),
        };
        if s.field().error_count() > so_far {
            return Some(Policy {
                settings,
                cors: None,
                sound: false,
            });
        }
        let (cors, complaints) = match Cors::new(&settings) {
            Ok(cors) => (cors, Vec::new()),
            Err(complaints) => (None, complaints),
        };
        let sound = complaints.is_empty();
        for complaint in complaints {
            // What is inherited was complained of where it is written.
            if base.sound || s.get(complaint.key).is_some() {
                s.complain_at(complaint.key, complaint.index, complaint.sentence);
            }
        }
        Some(Policy {
            settings,
            cors,
            sound,
        })
    })
}

fn credentials(s: &Section<'_>) -> Option<Credentials> {
    let field = s.get("allow_credentials")?;
    let text = field.text()?;
    match (text.as_str(), boolean(&text)) {
        ("auto", _) => Some(Credentials::Auto),
        (_, Some(true)) => Some(Credentials::Yes),
        (_, Some(false)) => Some(Credentials::No),
        _ => {
            field.complain(format!("must be auto, true or false, got {}", quote(&text)));
            None
        }
    }
}

/// What the environment says wins over the file.
fn apply_environment(document: &Document<'_>, config: &mut Config) {
    let mut effects = Effects {
        document,
        line: String::new(),
    };
    let unset = config.listen.is_empty();
    if unset && document.error_count() == 0 {
        let port = effects.read("PORT", "listen", |text| match text.parse() {
            Ok(port) => Ok((port, format!(":{port}"))),
            Err(_) => Err("must be a port from 0 to 65535".to_owned()),
        });
        config.listen = vec![Listen::Everywhere(port.unwrap_or(80))];
    }
    let memory = |text: &str| parse_memory(text).map(|memory| (memory, memory.to_string()));
    if let Some(memory) = effects
        .read("LEAN_PROXY_MEMORY", "limits.memory", memory)
        .or_else(|| effects.read("GOMEMLIMIT", "limits.memory", memory))
    {
        config.memory = memory;
    }
    let most = [
        Some(64),
        config.proxy.max_concurrent_requests,
        config.transport.max_conns_per_host,
        config.server.max_connections,
    ];
    let most = most.into_iter().flatten().min().unwrap_or(1);
    let threads = |text: &str| match text.parse::<usize>() {
        Ok(threads) if threads > 0 => Ok((threads.min(most), threads.min(most).to_string())),
        _ => Err(format!(
            "must be a whole number from 1 on, got {}",
            quote(text)
        )),
    };
    config.threads = effects
        .read("LEAN_PROXY_THREADS", "threads", threads)
        .or_else(|| effects.read("GOMAXPROCS", "threads", threads))
        .unwrap_or(1);
    let json = |text: &str| match text.to_ascii_lowercase().as_str() {
        "json" => Ok((true, "json".to_owned())),
        "text" => Ok((false, "text".to_owned())),
        _ => Err(format!("must be text or json, got {}", quote(text))),
    };
    if let Some(json) = effects.read("LOG_FORMAT", "log.format", json) {
        config.log.json = json;
    }
    // DEBUG belongs to many programs: what is not meant for this one must not stop it.
    match document
        .variable("DEBUG")
        .map(|text| (boolean_or_digit(&text), text))
    {
        Some((Some(true), text)) => {
            config.log.level = Level::Debug;
            effects.note("DEBUG", &text, "log.level", "debug");
        }
        Some((None, text)) => {
            document.warn(format!(
                "DEBUG={} is neither true nor false and does nothing",
                quote(&text)
            ));
        }
        _ => {}
    }
    config.environment = effects.line;
}

fn boolean_or_digit(text: &str) -> Option<bool> {
    match text {
        "1" => Some(true),
        "0" => Some(false),
        _ => boolean(text),
    }
}

/// Reads variables and notes what they change.
struct Effects<'a> {
    document: &'a Document<'a>,
    line: String,
}

impl Effects<'_> {
    /// `parse` gives the value and how it is shown.
    fn read<T>(
        &mut self,
        name: &str,
        field: &str,
        parse: impl Fn(&str) -> Result<(T, String), String>,
    ) -> Option<T> {
        let text = self.document.variable(name)?;
        match parse(text.trim()) {
            Ok((value, shown)) => {
                self.note(name, &text, field, &shown);
                Some(value)
            }
            Err(sentence) => {
                self.document.complain_of(name, &sentence);
                None
            }
        }
    }

    fn note(&mut self, name: &str, text: &str, field: &str, shown: &str) {
        let separator = if self.line.is_empty() { "" } else { ", " };
        let _ = write!(
            self.line,
            "{separator}{name}={} -> {field} {shown}",
            text.trim()
        );
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

/// Go's notation: digits, then nothing, `B`, `KiB`, `MiB`, `GiB` or `TiB`; or `off`.
fn parse_memory(text: &str) -> Result<Memory, String> {
    match text {
        "off" => return Ok(Memory::Off),
        "auto" => return Ok(Memory::Auto),
        _ => {}
    }
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(end).unwrap_or((text, ""));
    let factor = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        "TiB" => Some(1_u64 << 40),
        _ => None,
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .zip(factor)
        .and_then(|(n, factor)| n.checked_mul(factor));
    match bytes {
        Some(bytes) => memory_of(bytes),
        None => Err(format!(
            "must be bytes, or B, KiB, MiB, GiB as in 10MiB, or off; got {}",
            quote(text)
        )),
    }
}

fn listen_list(field: &Field<'_>) -> Vec<Listen> {
    let items = field.items();
    if items.is_empty() {
        field.complain("must name at least one address");
    }
    let mut list: Vec<Listen> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = item.text() else { continue };
        match parse_listen(&text) {
            Ok(address) if list.contains(&address) && !address.is_any_port() => {
                item.complain(format!("{} is listed twice", quote(&text)));
            }
            Ok(address) => list.push(address),
            Err(sentence) => item.complain(sentence),
        }
    }
    list
}

fn url_path(s: &Section<'_>, key: &'static str) -> Option<String> {
    parsed(s, key, |text| {
        if !text.starts_with('/') {
            return Err(format!("must begin with /, got {}", quote(text)));
        }
        check_path(text).map(|()| text.to_owned())
    })
}

/// A number of things; 0 = `None`.
fn at_most(s: &Section<'_>, key: &'static str, default: i64) -> Option<usize> {
    let number = s.whole(key, Unit::Plain, default, &(0..=MAX_COUNT));
    usize::try_from(number).ok().filter(|number| *number > 0)
}

/// A time; 0 = `None`. The clock that watches over it is coarse, so the least is a millisecond.
fn time(s: &Section<'_>, key: &'static str, default: f64) -> Option<Duration> {
    own_time(s, key).unwrap_or_else(|| duration(default))
}

/// A time that is written; the outer `None` where it is not.
fn own_time(s: &Section<'_>, key: &'static str) -> Option<Option<Duration>> {
    s.get(key)?.seconds(&(0.0..=MAX_SECONDS)).map(duration)
}

fn duration(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.max(0.001)))
}

/// A string that `parse` understands or complains of.
fn parsed<T>(
    s: &Section<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<T> {
    let field = s.get(key)?;
    let text = field.text()?;
    parse(&text)
        .map_err(|sentence| field.complain(sentence))
        .ok()
}

fn parsed_list<T>(
    s: &Section<'_>,
    key: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Vec<T> {
    let items = s.get(key).map_or_else(Vec::new, |field| field.items());
    items
        .iter()
        .filter_map(|item| {
            parse(&item.text()?)
                .map_err(|sentence| item.complain(sentence))
                .ok()
        })
        .collect()
}

fn words(s: &Section<'_>, key: &'static str, default: &[String]) -> Vec<String> {
    match s.get(key) {
        Some(field) => field.items().iter().filter_map(Field::text).collect(),
        None => default.to_vec(),
    }
}

/// One of a few words, in any case.
fn one_of<T: Copy>(s: &Section<'_>, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
    parsed(s, key, |text| {
        let chosen = choices
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text));
        chosen.map(|(_, value)| *value).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            format!("must be one of {}, got {}", words.join(", "), quote(text))
        })
    })
}

const LEVELS: [(&str, Level); 4] = [
    ("debug", Level::Debug),
    ("info", Level::Info),
    ("warn", Level::Warn),
    ("error", Level::Error),
];
/// Ten years; whoever wants more wants 0.
const MAX_SECONDS: f64 = 315_360_000.0;
const MAX_COUNT: i64 = 1_000_000_000;
/// Buffers are held for each exchange: larger ones win nothing.
const MAX_BUFFER: i64 = 16 * 1024 * 1024;
const MAX_AGE: i64 = 315_360_000;
const MIN_MEMORY: u64 = 1024 * 1024;
/// Fields that say where a message ends or what its connection is: edits of these would break it.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
