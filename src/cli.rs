//! Parses the command line, and prints what the commands report.
//!
//! Parsing is pure: arguments in, a [`Command`] out. `lib.rs` reads the environment and looks for files.

use std::{
    ffi::{OsStr, OsString},
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What `--help` prints.
pub const HELP: &str = "\
lean-proxy: an HTTP/1.1 and HTTP/2 reverse proxy that stays inside a few megabytes

usage:
  lean-proxy [CONFIG]              serve
  lean-proxy --check [CONFIG]      read and validate the configuration, print one line, exit 0 or 1
  lean-proxy --health [CONFIG|URL] ask the running proxy for its health, exit 0 or 1 within 2 s
  lean-proxy --reload              tell the running proxy to read its configuration again
  lean-proxy --help, -h            this text
  lean-proxy --version, -V         the version

  --pid-file FILE                  serving: write the process id to FILE; --reload: read it from there

CONFIG is a YAML file. Without it: the YAML in $LEAN_PROXY_CONFIG, else the file /config.yaml.
Where process 1 is a lean-proxy, as in its container, --health and --reload without arguments mean that one.

environment:
  LEAN_PROXY_CONFIG                the configuration itself
  LEAN_PROXY_MEMORY, GOMEMLIMIT    the memory limit: bytes, 10MiB, off
  LEAN_PROXY_THREADS, GOMAXPROCS   worker threads
  PORT                             where to listen if the configuration does not say
  LOG_FORMAT=json, DEBUG=true      how and how much is logged
  SSL_CERT_FILE, SSL_CERT_DIR      roots for https targets instead of those compiled in

exit codes: 0 stopped as asked, 1 bad configuration, 2 bad usage, 3 cannot bind or a runtime failure
";

/// Printed after a usage error.
pub const USAGE: &str =
    "usage: lean-proxy [--check] CONFIG | --health [CONFIG|URL] | --reload | --help | --version";

/// The error where no configuration is given or found.
pub const NO_CONFIG: &str = "no configuration: no CONFIG argument, LEAN_PROXY_CONFIG is not set, and there is no /config.yaml";

/// Where the image has its configuration; used where neither an argument nor `LEAN_PROXY_CONFIG` is given.
pub const DEFAULT_CONFIG: &str = "/config.yaml";

/// What the program is to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve this configuration, and write the process id to this file.
    Serve(ConfigArgument, Option<PathBuf>),
    /// Read and validate it, and print the result.
    Check(ConfigArgument),
    /// Ask a running proxy for its health.
    Health(Asked),
    /// Tell a running proxy to read its configuration again: the one whose process id is in this file, else process 1.
    Reload(Option<PathBuf>),
    /// Print the version.
    Version,
    /// Print [`HELP`].
    Help,
}

/// Where the configuration is.
#[derive(Debug, PartialEq, Eq)]
pub enum ConfigArgument {
    /// In this file.
    File(PathBuf),
    /// No argument: `LEAN_PROXY_CONFIG`, else [`DEFAULT_CONFIG`] if it exists, else a usage error (exit 2).
    Default,
}

/// What `--health` asks.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// The proxy that serves this configuration.
    Config(ConfigArgument),
    /// The server at this `http://` URL.
    Url(String),
}

/// What is wrong with the command line, in one line; exit 2.
#[derive(Debug, PartialEq, Eq)]
pub struct Usage(pub String);

/// Parses the arguments, without the program's own name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, Usage> {
    let mut mode = Mode::Serve;
    let mut operand: Option<OsString> = None;
    let mut pid_file: Option<OsString> = None;
    let mut options_over = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        if options_over || text == "-" || !argument.as_encoded_bytes().starts_with(b"-") {
            set_once(&mut operand, argument)?;
            continue;
        }
        // `--check=FILE` is accepted for `--check FILE`
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match (name, value) {
            ("-h" | "--help", None) => return Ok(Command::Help),
            ("-V" | "--version", None) => return Ok(Command::Version),
            ("--", None) => options_over = true,
            ("--check", _) => mode = mode.switch(Mode::Check)?,
            ("--health", _) => mode = mode.switch(Mode::Health)?,
            ("--reload", None) => mode = mode.switch(Mode::Reload)?,
            ("--pid-file", value) => {
                let file = value.map(OsString::from).or_else(|| arguments.next());
                if file.is_none() || pid_file.is_some() {
                    return Err(Usage("--pid-file takes one FILE, once".to_owned()));
                }
                pid_file = file;
                continue;
            }
            _ => {
                return Err(Usage(format!(
                    "unknown option {:?}",
                    argument.to_string_lossy()
                )));
            }
        }
        if let Some(value) = value {
            set_once(&mut operand, value.into())?;
        }
    }
    if operand.as_ref().is_some_and(|operand| operand.is_empty()) {
        return Err(Usage("CONFIG is empty".to_owned()));
    }
    if pid_file.as_ref().is_some_and(|file| file.is_empty()) {
        return Err(Usage("--pid-file is empty".to_owned()));
    }
    mode.command(operand, pid_file.map(PathBuf::from))
}

fn set_once(operand: &mut Option<OsString>, argument: OsString) -> Result<(), Usage> {
    if operand.is_some() {
        let second = argument.to_string_lossy();
        return Err(Usage(format!(
            "one argument at most, got a second: {second:?}"
        )));
    }
    *operand = Some(argument);
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Serve,
    Check,
    Health,
    Reload,
}

impl Mode {
    fn switch(self, to: Mode) -> Result<Mode, Usage> {
        if self == Mode::Serve || self == to {
            Ok(to)
        } else {
            Err(Usage(
                "--check, --health and --reload exclude each other".to_owned(),
            ))
        }
    }

    fn command(
        self,
        operand: Option<OsString>,
        pid_file: Option<PathBuf>,
    ) -> Result<Command, Usage> {
        if pid_file.is_some() && matches!(self, Mode::Check | Mode::Health) {
            return Err(Usage(
                "--pid-file is for serving and for --reload".to_owned(),
            ));
        }
        if self == Mode::Reload {
            return match operand {
                None => Ok(Command::Reload(pid_file)),
                Some(_) => Err(Usage(
                    "--reload takes no CONFIG: the running proxy reads its own again".to_owned(),
                )),
            };
        }
        if self == Mode::Health {
            let url = operand.as_ref().and_then(|operand| operand.to_str());
            if let Some(url) = url.filter(|text| text.starts_with("http://")) {
                return Ok(Command::Health(Asked::Url(url.to_owned())));
            }
            if url.is_some_and(|text| text.contains("://")) {
                return Err(Usage("--health takes http:// URLs only".to_owned()));
            }
        }
        let place = match operand {
            Some(path) => ConfigArgument::File(path.into()),
            None => ConfigArgument::Default,
        };
        Ok(match self {
            Mode::Check => Command::Check(place),
            Mode::Health => Command::Health(Asked::Config(place)),
            Mode::Serve | Mode::Reload => Command::Serve(place, pid_file),
        })
    }
}

/// The configuration that a process serves, from its command line in /proc, where each argument ends with a zero byte.
/// `None` if its program has another name than `own`, or does not serve. A container's health check uses it to find the
/// configuration that the container was started with.
pub fn served(command_line: &[u8], own: &OsStr) -> Option<ConfigArgument> {
    let mut words = command_line.strip_suffix(b"\0")?.split(|byte| *byte == 0);
    let name = |program: &OsStr| Path::new(program).file_name().map(OsStr::to_owned);
    if name(OsStr::from_bytes(words.next()?))? != name(own)? {
        return None;
    }
    match parse(words.map(|word| OsStr::from_bytes(word).to_owned())) {
        Ok(Command::Serve(place, _)) => Some(place),
        _ => None,
    }
}

/// Prints warnings on stderr, one line each.
pub fn warn<'a>(warnings: impl IntoIterator<Item = &'a str>) {
    for warning in warnings {
        drop(writeln!(io::stderr(), "warning: {}", warning.trim_end()));
    }
}

/// Prints a text on stdout; returns exit code 0, or 3 where it cannot be written.
pub fn say(text: &str) -> u8 {
    if writeln!(io::stdout(), "{}", text.trim_end()).is_ok() {
        0
    } else {
        3
    }
}

/// Prints errors on stderr, one line each; returns `code`.
pub fn complain<'a>(code: u8, lines: impl IntoIterator<Item = &'a str>) -> u8 {
    for line in lines {
        drop(writeln!(io::stderr(), "{}", line.trim_end()));
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Command, Usage> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments_are_parsed_into_commands() {
        let file = |path: &str| ConfigArgument::File(path.into());
        let pids = || Some(PathBuf::from("/run/p"));
        let cases: Vec<(&[&str], Command)> = vec![
            (&[], Command::Serve(ConfigArgument::Default, None)),
            (&["c.yaml"], Command::Serve(file("c.yaml"), None)),
            (&["--", "-c.yaml"], Command::Serve(file("-c.yaml"), None)),
            (
                &["--pid-file", "/run/p", "c.yaml"],
                Command::Serve(file("c.yaml"), pids()),
            ),
            (
                &["c.yaml", "--pid-file=/run/p"],
                Command::Serve(file("c.yaml"), pids()),
            ),
            (&["--reload"], Command::Reload(None)),
            (
                &["--reload", "--pid-file", "/run/p"],
                Command::Reload(pids()),
            ),
            (&["--check", "c.yaml"], Command::Check(file("c.yaml"))),
            (&["c.yaml", "--check"], Command::Check(file("c.yaml"))),
            (&["--check=c.yaml"], Command::Check(file("c.yaml"))),
            (&["--check"], Command::Check(ConfigArgument::Default)),
            (
                &["--health"],
                Command::Health(Asked::Config(ConfigArgument::Default)),
            ),
            (
                &["--health", "c.yaml"],
                Command::Health(Asked::Config(file("c.yaml"))),
            ),
            (
                &["--health", "http://127.0.0.1:8080/health"],
                Command::Health(Asked::Url("http://127.0.0.1:8080/health".to_owned())),
            ),
            (&["-h"], Command::Help),
            (&["--help", "--nonsense"], Command::Help),
            (&["--check", "--help"], Command::Help),
            (&["-V"], Command::Version),
            (&["--version"], Command::Version),
        ];
        for (arguments, expected) in cases {
            assert_eq!(parsed(arguments), Ok(expected), "{arguments:?}");
        }
    }

    #[test]
    fn wrong_arguments_are_usage_errors() {
        let cases: &[&[&str]] = &[
            &["--chek", "c.yaml"],
            &["-x"],
            &["--help=yes"],
            &["a.yaml", "b.yaml"],
            &["a.yaml", "--check=b.yaml"],
            &["--check", "--health"],
            &["--reload", "--health"],
            &["--reload", "c.yaml"],
            &["--reload=c.yaml"],
            &["--pid-file"],
            &["--pid-file="],
            &["--pid-file", "a", "--pid-file", "b"],
            &["--check", "--pid-file", "a", "c.yaml"],
            &["--health", "https://example.com/health"],
            &[""],
            &["--check="],
        ];
        for arguments in cases {
            let Usage(sentence) = parsed(arguments).expect_err(&format!("{arguments:?}"));
            assert!(
                !sentence.is_empty() && !sentence.contains('\n'),
                "{sentence}"
            );
        }
    }

    #[test]
    fn the_configuration_of_another_process_is_read_from_its_command_line() {
        let file = |path: &str| Some(ConfigArgument::File(path.into()));
        for (line, expected) in [
            ("/lean-proxy\0/other.yaml\0", file("/other.yaml")),
            ("lean-proxy\0--\0-x.yaml\0", file("-x.yaml")),
            ("/usr/bin/lean-proxy\0/a b\n.yaml\0", file("/a b\n.yaml")),
            ("/lean-proxy\0", Some(ConfigArgument::Default)),
            ("/lean-proxy\0--pid-file\0/run/p\0/a\0", file("/a")),
            ("/lean-proxy\0--reload\0", None),
            // does not serve, is not a lean-proxy, is empty
            ("/lean-proxy\0--health\0", None),
            ("/lean-proxy\0--nonsense\0", None),
            ("/lean-proxy\0a\0b\0", None),
            ("/lean-proxy\0\0", None),
            ("/sbin/init\0", None),
            ("/tini\0--\0/lean-proxy\0/other.yaml\0", None),
            ("/\0", None),
            ("\0", None),
            ("", None),
        ] {
            let found = served(line.as_bytes(), OsStr::new("/opt/lean-proxy"));
            assert_eq!(found, expected, "{line:?}");
        }
        assert_eq!(served(b"/lean-proxy\0", OsStr::new("")), None);
    }

    #[test]
    fn a_path_need_not_be_unicode() {
        use std::os::unix::ffi::OsStringExt;
        let path = OsString::from_vec(b"c\xff.yaml".to_vec());
        assert_eq!(
            parse([path.clone()]),
            Ok(Command::Serve(ConfigArgument::File(path.into()), None))
        );
        assert!(parse([OsString::from_vec(b"--\xff".to_vec())]).is_err());
    }
}
