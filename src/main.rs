//! lean-proxy: an HTTP/1.1 reverse proxy that stays inside a few megabytes whatever its clients do.
//!
//! A request's life, and the room of each step: `door` accepts it and finds it a seat, `attend` is the client's
//! connection from then on, at rest a bare socket; `gate` collects a whole head, which `screen` reads strictly; then
//! `proxy` judges (`cors`), probes (`health`), routes (`route`; some routes answer by themselves, `direct`), admits
//! (`budget`, `pool`), connects (`dial`, `tls`) and lets `forward` send it by `wire`, where `answer` reads the head of
//! what comes back, whose redirects `location` leads to the client; `respond` writes it on, or `tunnel` joins the two
//! sides. `body` is what moves meanwhile. `park` keeps every deadline (`deadline` lists what is waited
//! for), requests wait in a `queue`, `keeper` looks after memory and those that wait too long, and `eviction` says who
//! gives way to them; `client_group` tells whom a client counts as.
//!
//! Before it: `cli` says what to do, `config` what is meant (`yaml` and `document` read, `units` and `address` take
//! scalars apart, `entry`, `policy` and `roots` know routes, CORS and certificates, `keys` says which key belongs
//! where), and `serve` opens the doors. `process` keeps the pid file. Beside it: `log` tells (by `line` and `date`),
//! `metrics` counts, `exposition` shows the counts; `context` counts and tells how each exchange ended, in the words of
//! `outcome`; `supervisor` hears of the end of what must not end.

mod cli;

// values and decisions: no tokio, no sockets, no clock
mod address;
mod answer;
mod chunked;
mod client_address;
mod client_group;
mod config;
mod cors;
mod date;
mod direct;
mod document;
mod entry;
mod eviction;
mod failure;
mod headers;
mod keys;
mod line;
mod location;
mod outcome;
mod policy;
mod repeats;
mod request;
mod roots;
mod route;
mod screen;
mod units;
mod yaml;

// the world
mod body;
mod budget;
mod context;
mod deadline;
mod dial;
mod footprint;
mod gate;
mod log;
mod metrics;
mod park;
mod pool;
mod queue;
mod sys;
mod tls;
mod tunnel;
mod wire;

// the life of a request
mod attend;
mod door;
mod exposition;
mod forward;
mod health;
mod keeper;
mod process;
mod proxy;
mod respond;
mod serve;
mod supervisor;
mod worker;

// for the tests and for fuzzing alone
#[cfg(test)]
mod stage;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use cli::{Asked, Command, Place};
use config::{Config, Source};

/// Stopped as asked.
const DONE: u8 = 0;
/// The configuration is wrong, or a health check failed.
const BAD: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// Cannot bind, or a failure while running.
const FAILED: u8 = 3;

fn main() -> ExitCode {
    let code = match cli::parse(env::args_os().skip(1)) {
        Ok(Command::Serve(place, pid_file)) => serve(place, pid_file.as_deref()),
        Ok(Command::Check(place)) => check(place),
        Ok(Command::Health(asked)) => health(asked),
        Ok(Command::Reload(pid_file)) => reload(pid_file.as_deref()),
        Ok(Command::Version) => cli::say(&version()),
        Ok(Command::Help) => cli::say(cli::HELP),
        Err(usage) => cli::complain(USAGE, [usage.0.as_str(), cli::USAGE]),
    };
    ExitCode::from(code)
}

/// Where a configuration comes from, once the environment was asked.
enum Origin {
    File(PathBuf),
    Inline(String),
}

impl Origin {
    /// `None`: nothing was named, and there is nothing where one would look.
    fn of(place: Place) -> Option<Origin> {
        match place {
            Place::File(path) => Some(Origin::File(path)),
            Place::Default => match env::var("LEAN_PROXY_CONFIG") {
                Ok(text) if !text.is_empty() => Some(Origin::Inline(text)),
                _ => Path::new(cli::DEFAULT_CONFIG)
                    .exists()
                    .then(|| Origin::File(cli::DEFAULT_CONFIG.into())),
            },
        }
    }

    /// What the log calls it.
    fn name(&self) -> String {
        match self {
            Origin::File(path) => path.display().to_string(),
            Origin::Inline(_) => "LEAN_PROXY_CONFIG".to_owned(),
        }
    }

    fn load(&self) -> Result<Arc<Config>, Vec<String>> {
        let source = match self {
            Origin::File(path) => Source::File(path),
            Origin::Inline(text) => Source::Text("LEAN_PROXY_CONFIG", text),
        };
        config::load(source, &|name| env::var(name).ok())
    }

    /// The same for a process that serves: only what can be read inside its memory limit.
    fn load_to_serve(&self) -> Result<Arc<Config>, Vec<String>> {
        let (name, len) = match self {
            Origin::File(path) => (
                path.display().to_string(),
                path.metadata().map_or(0, |file| file.len()),
            ),
            Origin::Inline(text) => ("LEAN_PROXY_CONFIG".to_owned(), text.len() as u64),
        };
        footprint::check(len).map_err(|error| vec![format!("{name}: {error}")])?;
        self.load()
    }
}

/// The version, and the commit that the program was built from where the build knew it.
fn version() -> String {
    let version = concat!("lean-proxy ", env!("CARGO_PKG_VERSION"));
    match option_env!("LEAN_PROXY_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{version} ({commit})"),
        _ => version.to_owned(),
    }
}

fn serve(place: Place, pid_file: Option<&Path>) -> u8 {
    let Some(origin) = Origin::of(place) else {
        return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]);
    };
    let config = match origin.load_to_serve() {
        Ok(config) => config,
        Err(errors) => return cli::complain(BAD, errors.iter().map(String::as_str)),
    };
    supervisor::report_panics_in_one_line();
    let source = origin.name();
    let called = serve::Invocation {
        source: &source,
        pid_file,
    };
    let reread = Box::new(move || origin.load_to_serve());
    match supervisor::caught(|| serve::serve(called, config, reread)) {
        Ok(()) => DONE,
        Err(error) => cli::complain(FAILED, [format!("{error:#}").as_str()]),
    }
}

fn check(place: Place) -> u8 {
    let Some(origin) = Origin::of(place) else {
        return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]);
    };
    match origin.load() {
        Ok(config) => {
            cli::warn(config.warnings.iter().map(String::as_str));
            let routes = config.routes.len();
            cli::say(&format!(
                "ok: {routes} {}",
                if routes == 1 { "route" } else { "routes" }
            ))
        }
        Err(errors) => cli::complain(BAD, errors.iter().map(String::as_str)),
    }
}

/// Where nothing is named and process 1 is a lean-proxy, that one is meant: a container's health check is the same
/// command whatever the container was started with.
fn running(place: Place) -> Place {
    let (Place::Default, Some(own)) = (&place, env::args_os().next()) else {
        return place;
    };
    let first = std::fs::read("/proc/1/cmdline").unwrap_or_default();
    cli::served(&first, &own).unwrap_or(place)
}

fn reload(pid_file: Option<&Path>) -> u8 {
    let own = env::args_os().next().unwrap_or_default();
    match process::reload(pid_file, &own) {
        Ok(pid) => cli::say(&format!(
            "process {pid} was told to read its configuration again; its log says what came of it"
        )),
        Err(error) => cli::complain(BAD, [format!("{error:#}").as_str()]),
    }
}

fn health(asked: Asked) -> u8 {
    let result = match asked {
        Asked::Url(url) => health::ask_url(&url),
        Asked::Config(place) => match Origin::of(running(place)).map(|origin| origin.load()) {
            None => return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]),
            Some(Err(errors)) => return cli::complain(BAD, errors.iter().map(String::as_str)),
            Some(Ok(config)) => health::ask(&config),
        },
    };
    match result {
        Ok(line) => cli::say(&line),
        Err(error) => cli::complain(BAD, [format!("{error:#}").as_str()]),
    }
}
