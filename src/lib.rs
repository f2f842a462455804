//! lean-proxy: a reverse proxy that stays inside a few megabytes whatever its clients do.
//!
//! A request's life, and the room of each step:
//!
//! | step | room | what happens |
//! | --- | --- | --- |
//! | accept | [`server::listener`] | a connection has a permit before it is accepted |
//! | wait | [`server::connection`], [`connection_table`] | an idle connection is a bare socket; one timer serves every deadline |
//! | shake hands | [`server::tls`], [`net::session`] | where the listener has certificates |
//! | read | [`http1::server`], [`http1::request_head`] | a whole head is collected, and read strictly |
//! | or HTTP/2 | [`http2::server`], [`http2::frames`] | by hyper; each stream goes through the same steps |
//! | judge | [`cors`] | a preflight is answered, every other response is stamped |
//! | probe | [`observe::health`] | the health path is answered from memory |
//! | route | [`route`] | by host, then by the longest prefix; some routes answer by themselves ([`direct`]) |
//! | admit | [`memory::budget`], [`memory::concurrency`] | a permit worth the bytes, and a place; a bounded wait for both ([`memory::queue`]) |
//! | connect | [`upstream::pool`], [`upstream::dial`], [`upstream::tls`] | an idle upstream connection, or a new one |
//! | forward | [`exchange::round_trip`] | request out, response head in ([`http1::response_head`]) |
//! | or in HTTP/2 | [`exchange::stream_trip`], [`http2::client`] | the same on a stream that hyper drives |
//! | stream | [`exchange::upload`], [`exchange::download`], [`exchange::http1::respond`] | bodies pass through, trailers included |
//! | or tunnel | [`exchange::tunnel`] | after a 101: bytes both ways |
//! | fail | [`failure`], [`outcome`] | what went wrong, whose fault it was, which status answers it |
//! | log | [`exchange::ending`], [`observe::log`], [`observe::metrics`] | one line, and the counters, when the last byte is gone |
//!
//! [`exchange`] calls these steps in order. Before it: [`cli`] says what to do, [`config`] reads the file, and [`server`]
//! starts, reloads and drains. Beside it: [`server::pressure`] measures memory and helps requests that wait too long,
//! [`connection_table::eviction`] chooses the connections that give way to them, and [`client_group`] groups clients.
//! [`clock`] is what waits for a time. [`sys`] has all unsafe code. A module imports from its own floor or from below (`tests/structure.rs`).

mod cli;

// values and decisions: no tokio, no socket, no clock
mod any_certificate;
mod client_address;
mod client_group;
mod config;
mod cors;
mod direct;
mod failure;
mod fields;
mod location;
mod outcome;
mod route;
mod sys;

// memory, connections and observation
mod clock;
mod connection_table;
mod memory;
mod net;
mod observe;
mod yield_budget;

// the engines
mod http1;
mod http2;
mod upstream;

// the life of a request
mod exchange;
mod process;
mod server;

#[cfg(any(test, fuzzing))]
mod test_support;

/// The modules that fuzz targets use; private otherwise.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub use crate::{
        config::address,
        http1::{chunked, framing, refusal, request, request_head, response_head},
    };
    pub mod config {
        pub use crate::config::*;
    }
    pub mod test_support {
        pub use crate::test_support::*;
    }
    pub mod fields {
        pub use crate::fields::*;
    }
    pub mod cors {
        pub use crate::cors::*;
    }
    pub mod route {
        pub use crate::route::*;
    }
    pub mod http2 {
        pub use crate::http2::{frames, head};
    }
}

use crate::memory::footprint;
use crate::server::supervisor;
use crate::sys::code_pages;
use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use crate::cli::{Asked, Command, ConfigArgument};
use config::{Config, Source};

/// Success, or a stop by a signal.
const DONE: u8 = 0;
/// The configuration is wrong, or a health check failed.
const BAD: u8 = 1;
/// The command line is wrong.
const USAGE: u8 = 2;
/// Cannot bind, or a failure while running.
const FAILED: u8 = 3;

/// Runs the program with these arguments, without its own name; returns the exit code.
///
/// 0: success, or a stop by a signal. 1: a wrong configuration, or not healthy. 2: wrong usage. 3: cannot bind, or a
/// failure while running.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    match cli::parse(arguments) {
        Ok(Command::Serve(argument, pid_file)) => serve(argument, pid_file.as_deref()),
        Ok(Command::Check(argument)) => check(argument),
        Ok(Command::Health(asked)) => health(asked),
        Ok(Command::Reload(pid_file)) => reload(pid_file.as_deref()),
        Ok(Command::Version) => cli::say(&version()),
        Ok(Command::Help) => cli::say(cli::HELP),
        Err(usage) => cli::complain(USAGE, [usage.0.as_str(), cli::USAGE]),
    }
}

/// Where the configuration is, after looking at the environment.
enum ConfigSource {
    File(PathBuf),
    Inline(String),
}

impl ConfigSource {
    /// `None`: no configuration is given, and there is none in the default places.
    fn of(argument: ConfigArgument) -> Option<ConfigSource> {
        match argument {
            ConfigArgument::File(path) => Some(ConfigSource::File(path)),
            ConfigArgument::Default => match env::var("LEAN_PROXY_CONFIG") {
                Ok(text) if !text.is_empty() => Some(ConfigSource::Inline(text)),
                _ => Path::new(cli::DEFAULT_CONFIG)
                    .exists()
                    .then(|| ConfigSource::File(cli::DEFAULT_CONFIG.into())),
            },
        }
    }

    /// Its name in the log.
    fn name(&self) -> String {
        match self {
            ConfigSource::File(path) => path.display().to_string(),
            ConfigSource::Inline(_) => "LEAN_PROXY_CONFIG".to_owned(),
        }
    }

    fn load(&self) -> Result<Arc<Config>, Vec<String>> {
        let source = match self {
            ConfigSource::File(path) => Source::File(path),
            ConfigSource::Inline(text) => Source::Text("LEAN_PROXY_CONFIG", text),
        };
        config::load(source, &|name| env::var(name).ok())
    }

    /// Like `load`, for a process that serves: refuses a file that cannot be read inside the memory limit.
    fn load_to_serve(&self) -> Result<Arc<Config>, Vec<String>> {
        let (name, len) = match self {
            ConfigSource::File(path) => (
                path.display().to_string(),
                path.metadata().map_or(0, |file| file.len()),
            ),
            ConfigSource::Inline(text) => ("LEAN_PROXY_CONFIG".to_owned(), text.len() as u64),
        };
        footprint::check(len).map_err(|error| vec![format!("{name}: {error}")])?;
        // the code that reads the limit, which is as much as what reads the file, is not in memory beside it
        code_pages::forget_code();
        self.load()
    }
}

/// The version, and the commit that the program was built from, if the build knew it.
fn version() -> String {
    let version = concat!("lean-proxy ", env!("CARGO_PKG_VERSION"));
    match option_env!("LEAN_PROXY_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{version} ({commit})"),
        _ => version.to_owned(),
    }
}

fn serve(argument: ConfigArgument, pid_file: Option<&Path>) -> u8 {
    let Some(origin) = ConfigSource::of(argument) else {
        return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]);
    };
    // the start runs much code once: given back between its steps, so that it is not all in memory at the same time
    code_pages::forget_code();
    let config = match origin.load_to_serve() {
        Ok(config) => config,
        Err(errors) => return cli::complain(BAD, errors.iter().map(String::as_str)),
    };
    supervisor::report_panics_in_one_line();
    code_pages::forget_code();
    let source = origin.name();
    let called = server::Invocation {
        source: &source,
        pid_file,
    };
    let reread = Box::new(move || origin.load_to_serve());
    match supervisor::caught(|| server::serve(called, config, reread)) {
        Ok(()) => DONE,
        Err(error) => cli::complain(FAILED, [format!("{error:#}").as_str()]),
    }
}

fn check(argument: ConfigArgument) -> u8 {
    let Some(origin) = ConfigSource::of(argument) else {
        return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]);
    };
    match origin.load() {
        Ok(config) => {
            let invalid = config.invalid_certificates(SystemTime::now());
            cli::warn(config.warnings.iter().chain(&invalid).map(String::as_str));
            let routes = config.routes.len();
            cli::say(&format!(
                "ok: {routes} {}",
                if routes == 1 { "route" } else { "routes" }
            ))
        }
        Err(errors) => cli::complain(BAD, errors.iter().map(String::as_str)),
    }
}

/// Without an argument, and if process 1 is a lean-proxy, the configuration of process 1, so that a container's health check
/// is the same command however the container was started.
fn running(argument: ConfigArgument) -> ConfigArgument {
    let (ConfigArgument::Default, Some(own)) = (&argument, env::args_os().next()) else {
        return argument;
    };
    let first = std::fs::read("/proc/1/cmdline").unwrap_or_default();
    cli::served(&first, &own).unwrap_or(argument)
}

fn reload(pid_file: Option<&Path>) -> u8 {
    let own = env::args_os().next().unwrap_or_default();
    match process::reload(pid_file, &own) {
        Ok(pid) => cli::say(&format!(
            "process {pid} was told to read its configuration again; its log has the result"
        )),
        Err(error) => cli::complain(BAD, [format!("{error:#}").as_str()]),
    }
}

fn health(asked: Asked) -> u8 {
    let result = match asked {
        Asked::Url(url) => observe::health::ask_url(&url),
        Asked::Config(argument) => {
            match ConfigSource::of(running(argument)).map(|origin| origin.load()) {
                None => return cli::complain(USAGE, [cli::NO_CONFIG, cli::USAGE]),
                Some(Err(errors)) => return cli::complain(BAD, errors.iter().map(String::as_str)),
                Some(Ok(config)) => observe::health::ask(&config),
            }
        }
    };
    match result {
        Ok(line) => cli::say(&line),
        Err(error) => cli::complain(BAD, [format!("{error:#}").as_str()]),
    }
}
