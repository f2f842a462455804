//! lean-proxy: an HTTP/1.1 reverse proxy that stays inside a few megabytes whatever its clients do.
//!
//! A request's life, and the room of each step: `door` accepts it and finds it a seat, `attend` is the client's
//! connection from then on, at rest a bare socket; `gate` collects a whole head, which `screen` reads strictly; then
//! `proxy` judges (`cors`), probes (`health`), routes (`route`), admits (`budget`, `pool`), connects (`dial`, `tls`) and
//! lets `forward` send it by `wire`, where `answer` reads the head of what comes back; `respond` writes it on, or
//! `tunnel` joins the two sides. `body` is what moves meanwhile. `park` keeps every deadline (`deadline` lists what is
//! waited for), requests wait in a `queue`, `keeper` looks after memory and those that wait too long, and `eviction`
//! says who gives way to them; `client_group` tells whom a client counts as.
//!
//! Before it: `cli` says what to do, `config` what is meant (`yaml` and `document` read, `units` and `address` take
//! scalars apart, `entry`, `policy` and `roots` know routes, CORS and certificates), and `serve` opens the doors. Beside
//! it: `log` tells (by `line` and `date`), `metrics` counts, `exposition` shows the counts.

mod cli;

// values and decisions: no tokio, no sockets, no clock
mod address;
mod answer;
mod chunked;
mod client_group;
mod config;
mod cors;
mod date;
mod document;
mod entry;
mod eviction;
mod failure;
mod headers;
mod line;
mod policy;
mod roots;
mod route;
mod screen;
mod units;
mod yaml;

// the world
mod body;
mod budget;
mod deadline;
mod dial;
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
mod proxy;
mod respond;
mod serve;
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
        Ok(Command::Serve(place)) => serve(place),
        Ok(Command::Check(place)) => check(place),
        Ok(Command::Health(asked)) => health(asked),
        Ok(Command::Version) => cli::say(concat!("lean-proxy ", env!("CARGO_PKG_VERSION"))),
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

    fn load(&self) -> Result<Arc<Config>, Vec<String>> {
        let source = match self {
            Origin::File(path) => Source::File(path),
            Origin::Inline(text) => Source::Text("LEAN_PROXY_CONFIG", text),
        };
        config::load(source, &|name| env::var(name).ok())
    }
}

fn serve(place: Place) -> u8 {
    let Some(origin) = Origin::of(place) else {
        return cli::complain(USAGE, [cli::USAGE]);
    };
    let config = match origin.load() {
        Ok(config) => config,
        Err(errors) => return cli::complain(BAD, errors.iter().map(String::as_str)),
    };
    match serve::serve(config, Box::new(move || origin.load())) {
        Ok(()) => DONE,
        Err(error) => cli::complain(FAILED, [format!("{error:#}").as_str()]),
    }
}

fn check(place: Place) -> u8 {
    let Some(origin) = Origin::of(place) else {
        return cli::complain(USAGE, [cli::USAGE]);
    };
    match origin.load() {
        Ok(config) => {
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

fn health(asked: Asked) -> u8 {
    let result = match asked {
        Asked::Url(url) => health::ask_url(&url),
        Asked::Config(place) => match Origin::of(running(place)).map(|origin| origin.load()) {
            None => return cli::complain(USAGE, [cli::USAGE]),
            Some(Err(errors)) => return cli::complain(BAD, errors.iter().map(String::as_str)),
            Some(Ok(config)) => health::ask(&config),
        },
    };
    match result {
        Ok(line) => cli::say(&line),
        Err(error) => cli::complain(BAD, [format!("{error:#}").as_str()]),
    }
}
