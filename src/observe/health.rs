//! The health report, and the client behind `--health` that asks a running proxy for it.
//!
//! The report is formatted once, when the configuration is loaded, in four forms (up or draining, text or JSON). Answering
//! a health check then only reads its Accept and query, and never waits. The client gives up after two seconds.

use std::{
    fmt::Write as _,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::Bytes;
use http::StatusCode;
use rustls::{ClientConfig, ClientConnection, StreamOwned, crypto::ring, pki_types::ServerName};
use socket2::{Domain, SockAddr, Type};

use crate::{
    any_certificate::AnyCertificate,
    config::{Config, Listen},
    http1::authority::split_port,
    observe::{date::Date, log_line::push_json},
};

/// The answers of the health path.
#[derive(Debug)]
pub struct Report {
    up: Bytes,
    draining: Bytes,
}

impl Report {
    /// `version` is the configuration's label, `start` the time at which the program began, `routes` the number of routes.
    pub fn new(version: &str, start: SystemTime, routes: usize) -> Report {
        let start = Date(start.duration_since(UNIX_EPOCH).unwrap_or_default());
        let json = |status: &str| {
            let mut body = format!(r#"{{"status":"{status}","startTime":"{start}","version":"#);
            push_json(&mut body, env!("CARGO_PKG_VERSION"));
            body.push_str(r#","config":{"version":"#);
            push_json(&mut body, version);
            let _ = writeln!(body, r#","routes":{routes}}}}}"#);
            Bytes::from(body)
        };
        Report {
            up: json("UP"),
            draining: json("DRAINING"),
        }
    }

    /// Status, Content-Type and body for a GET; a HEAD has the same fields and no body. `accept` is the request's Accept.
    /// The answer is sent with `Cache-Control:` [`CACHE_CONTROL`].
    pub fn answer(
        &self,
        accept: Option<&[u8]>,
        query: Option<&str>,
        draining: bool,
    ) -> (StatusCode, &'static str, Bytes) {
        let json = accept.is_some_and(accepts_json)
            || query.is_some_and(|query| query.split('&').any(|pair| pair == "format=json"));
        let status = if draining {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::OK
        };
        match (json, draining) {
            (true, false) => (status, JSON, self.up.clone()),
            (true, true) => (status, JSON, self.draining.clone()),
            (false, false) => (status, TEXT, Bytes::from_static(b"ok\n")),
            (false, true) => (status, TEXT, Bytes::from_static(b"draining\n")),
        }
    }
}

/// Asks the proxy that serves `config` for its health, within two seconds; returns the text of its answer.
///
/// # Errors
/// The proxy cannot be reached, is not healthy, or is too slow.
pub fn ask(config: &Config) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    let reachable = config
        .listen
        .iter()
        .filter(|entry| !matches!(entry.address, Listen::Inherited(_)))
        .min_by_key(|entry| match &entry.tls {
            None => 0,
            Some(tls) if tls.client_ca.is_none() => 1,
            // it asks for a certificate, and a health check has none
            Some(_) => 2,
        });
    let entry = reachable
        .ok_or_else(|| anyhow!("the configuration lists inherited sockets only: give a URL"))?;
    let (path, is_secured) = (&config.health_path, entry.tls.is_some());
    let call = |address: SocketAddr| {
        let socket = connect(address, end)?;
        converse(socket, is_secured, &address.to_string(), path, end)
    };
    match &entry.address {
        Listen::Unix(file) => {
            let stream = connect_unix(file, end)
                .with_context(|| format!("connecting to unix:{}", file.display()))?;
            converse(Socket::Unix(stream), is_secured, "localhost", path, end)
        }
        Listen::Everywhere(port) => call((Ipv4Addr::LOCALHOST, *port).into())
            .or_else(|error| call((Ipv6Addr::LOCALHOST, *port).into()).map_err(|_| error)),
        Listen::Address(address) => {
            let ip = match address.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                ip => ip,
            };
            call(SocketAddr::new(ip, address.port()))
        }
        Listen::Inherited(_) => bail!("give a URL"),
    }
}

/// Like [`ask`], for the server at an `http://` URL; the path is `/health` where the URL has none.
///
/// # Errors
/// The server cannot be reached, is not healthy or is too slow, or the URL is not an `http://` URL.
pub fn ask_url(url: &str) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| anyhow!("not an http:// URL: {url}"))?;
    let (authority, path) = rest
        .find('/')
        .map_or((rest, "/health"), |slash| rest.split_at(slash));
    let place = match split_port(authority) {
        (host, "") => format!("{host}:80"),
        _ => authority.to_owned(),
    };
    let addresses = look_up(place, end).with_context(|| format!("looking up {authority}"))?;
    let mut last = anyhow!("{authority} has no address");
    for address in addresses {
        let answer =
            connect(address, end).and_then(|socket| converse(socket, false, authority, path, end));
        match answer {
            Ok(word) => return Ok(word),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Bounds the whole check: `--help` promises an answer within 2 s, and 100 ms of it are left for starting the program.
const PATIENCE: Duration = Duration::from_millis(1_900);

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection, without or with TLS.
enum Stream {
    Plain(Socket),
    Secured(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Socket {
    /// No read or write lasts longer than until `end`.
    fn bound(&self, end: Instant) -> Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no answer in time");
        match self {
            Socket::Tcp(stream) => stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.set_write_timeout(Some(left))),
            Socket::Unix(stream) => stream
                .set_read_timeout(Some(left))
                .and_then(|()| stream.set_write_timeout(Some(left))),
        }
        .context("setting a time-out")
    }
}

impl Read for Socket {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(space),
            Socket::Unix(stream) => stream.read(space),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// With TLS the certificate is not verified: it is the one that the configuration names, and asked for by an address
    /// that it is not for.
    fn new(socket: Socket, is_secured: bool) -> Result<Stream> {
        if !is_secured {
            return Ok(Stream::Plain(socket));
        }
        let provider = Arc::new(ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost")?;
        let session = ClientConnection::new(Arc::new(config), name)?;
        Ok(Stream::Secured(Box::new(StreamOwned::new(session, socket))))
    }

    fn bound(&self, end: Instant) -> Result<()> {
        match self {
            Stream::Plain(socket) => socket.bound(end),
            Stream::Secured(stream) => stream.sock.bound(end),
        }
    }

    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => socket.read(space),
            Stream::Secured(stream) => stream.read(space),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Plain(socket) => socket.write_all(bytes),
            Stream::Secured(stream) => stream.write_all(bytes),
        }
    }
}

/// Connects without waiting in the kernel: a blocking `connect` to a unix socket whose backlog is full has no time-out. A
/// nonblocking one fails at once and is tried again (connect(2), EAGAIN).
fn connect_unix(file: &Path, end: Instant) -> Result<UnixStream> {
    let address = SockAddr::unix(file)?;
    loop {
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address) {
            Ok(()) => {
                socket.set_nonblocking(false)?;
                return Ok(OwnedFd::from(socket).into());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ensure!(Instant::now() < end, "its backlog is full");
                thread::sleep(AGAIN);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The addresses of `host:port`. The system's resolver has no time-out that could be set, so it runs in a thread, which is
/// abandoned if it takes too long.
fn look_up(place: String, end: Instant) -> Result<Vec<SocketAddr>> {
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new()
        .spawn(move || {
            let found = place.to_socket_addrs().map(Vec::from_iter);
            drop(sender.send(found));
        })
        .context("starting a thread")?;
    let left = end.saturating_duration_since(Instant::now());
    let found = receiver
        .recv_timeout(left)
        .map_err(|_| anyhow!("no answer in time"))?;
    Ok(found?)
}

/// How long to wait before a full backlog is tried again; some ninety tries fit into [`PATIENCE`].
const AGAIN: Duration = Duration::from_millis(20);

fn connect(address: SocketAddr, end: Instant) -> Result<Socket> {
    let left = end
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1));
    let stream = TcpStream::connect_timeout(&address, left)
        .with_context(|| format!("connecting to {address}"))?;
    Ok(Socket::Tcp(stream))
}

fn converse(
    socket: Socket,
    is_secured: bool,
    host: &str,
    path: &str,
    end: Instant,
) -> Result<String> {
    let mut stream = Stream::new(socket, is_secured)?;
    stream.bound(end)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).context("asking")?;
    let mut answer = Vec::new();
    let mut space = [0; 1024];
    while answer.len() < 4096 {
        stream.bound(end)?;
        let count = stream.read(&mut space).context("waiting for the answer")?;
        answer.extend_from_slice(space.get(..count).unwrap_or_default());
        if count == 0 {
            break;
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| text.strip_prefix("HTTP/1.0 "))
        .and_then(|rest| rest.get(..3));
    let word = text
        .split_once("\r\n\r\n")
        .map_or("", |(_, body)| body)
        .trim();
    match status {
        Some("200") => Ok(word.to_owned()),
        Some(status) => bail!("not well: {status} {word}"),
        None => bail!("the answer is not HTTP"),
    }
}

/// Whether an Accept names JSON with a weight above zero (RFC 9110 §12.4.2). `*/*` gets text.
fn accepts_json(accept: &[u8]) -> bool {
    let is_zero = |parameter: &[u8]| matches!(parameter, [b'q' | b'Q', b'=', weight @ ..] if weight.iter().all(|byte| matches!(byte, b'0' | b'.')));
    accept.split(|byte| *byte == b',').any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        parts
            .next()
            .is_some_and(|kind| kind.eq_ignore_ascii_case(JSON.as_bytes()))
            && !parts.any(is_zero)
    })
}

/// No cache may answer for us.
pub const CACHE_CONTROL: &str = "no-store";
const TEXT: &str = "text/plain";
const JSON: &str = "application/json";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_full_backlog_does_not_hold_the_check() {
        let path = std::env::temp_dir().join(format!("lean-proxy-full-{}", std::process::id()));
        drop(std::fs::remove_file(&path));
        let address = SockAddr::unix(&path).unwrap();
        let listener = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            match socket.connect(&address) {
                Ok(()) => waiting.push(socket),
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        let error = connect_unix(&path, Instant::now()).unwrap_err();
        assert_eq!(error.to_string(), "its backlog is full");
        // accepting one connection makes room for the next
        let taken = listener.accept().unwrap();
        connect_unix(&path, Instant::now() + Duration::from_mins(1)).unwrap();
        drop((taken, waiting));
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_look_up_ends_in_time() {
        let end = Instant::now() + Duration::from_mins(1);
        let found = look_up("127.0.0.1:80".to_owned(), end).unwrap();
        assert_eq!(found, ["127.0.0.1:80".parse().unwrap()]);
        assert!(look_up("a.invalid:x".to_owned(), end).is_err());
    }

    #[test]
    fn text_unless_json_is_asked_for() {
        let report = Report::new("1", at(0), 1);
        for (accept, query, expected) in [
            (None, None, TEXT),
            (Some("*/*"), None, TEXT),
            (Some(""), None, TEXT),
            (Some("text/plain"), None, TEXT),
            (Some("application/jsonp"), None, TEXT),
            (Some("application/json"), None, JSON),
            (Some("Application/JSON; q=0.5"), None, JSON),
            (Some("text/html, application/json;q=0.001"), None, JSON),
            (Some("application/json, text/plain, */*"), None, JSON),
            (Some("application/json;q=0"), None, TEXT),
            (Some("application/json; q=0.000"), None, TEXT),
            (None, Some("format=json"), JSON),
            (Some("text/plain"), Some("a=b&format=json&c"), JSON),
            (None, Some("format=jsonx"), TEXT),
            (None, Some("xformat=json"), TEXT),
            (None, Some(""), TEXT),
        ] {
            let (status, kind, body) = report.answer(accept.map(str::as_bytes), query, false);
            assert_eq!(
                (status, kind),
                (StatusCode::OK, expected),
                "{accept:?} {query:?}"
            );
            assert_eq!(body.starts_with(b"{"), kind == JSON, "{accept:?} {query:?}");
        }
    }

    #[test]
    fn the_report_says_what_runs_since_when() {
        let report = Report::new("a\"b\\\n\u{1}é", at(1_709_251_199), 3);
        let rest = format!(
            r#""startTime":"2024-02-29T23:59:59Z","version":"{}","config":{{"version":"a\"b\\\n\u0001é","routes":3}}}}"#,
            env!("CARGO_PKG_VERSION")
        );
        let json = |draining| report.answer(None, Some("format=json"), draining);
        let text = |draining| report.answer(None, None, draining);
        assert_eq!(
            json(false),
            (
                StatusCode::OK,
                JSON,
                format!("{{\"status\":\"UP\",{rest}\n").into()
            )
        );
        let draining = format!("{{\"status\":\"DRAINING\",{rest}\n");
        assert_eq!(
            json(true),
            (StatusCode::SERVICE_UNAVAILABLE, JSON, draining.into())
        );
        assert_eq!(text(false), (StatusCode::OK, TEXT, "ok\n".into()));
        assert_eq!(
            text(true),
            (StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n".into())
        );
    }
}
