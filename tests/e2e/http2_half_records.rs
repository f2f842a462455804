//! HTTP/2 over TLS where one side says GOAWAY while half a record is under way.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    thread,
};

use rustls::{ClientConnection, Connection, ServerConnection, pki_types::ServerName};

use crate::{
    h2::{DATA, GOAWAY, HEADERS, PATIENCE, PING, PREFACE, RawFrame, SETTINGS, field, frame, head},
    http2::{offering_both, tls_proxy},
    http2_upstream::{END_HEADERS, END_STREAM, offering},
    metrics::metric,
    support::{Proxy, Setup, Upstream, eventually, pattern},
    tls_listener::{Authority, LISTEN, authority, write_files},
};

const NO_ERROR: u32 = 0;

/// One side of a connection, whose records are written in parts.
struct Side {
    tls: Connection,
    socket: TcpStream,
}

impl Side {
    fn new(tls: Connection, socket: TcpStream) -> io::Result<Side> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let mut side = Side { tls, socket };
        while side.tls.is_handshaking() {
            side.tls.complete_io(&mut side.socket)?;
        }
        Ok(side)
    }

    /// The records that carry these bytes.
    fn records(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.tls.writer().write_all(bytes).unwrap();
        let mut records = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut records).unwrap();
        }
        records
    }

    /// Sends bytes as they are.
    fn send(&mut self, records: &[u8]) {
        // the proxy may have gone
        let _ = self.socket.write_all(records);
    }

    fn write(&mut self, bytes: &[u8]) {
        let records = self.records(bytes);
        self.send(&records);
    }

    fn exact(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < buffer.len() {
            match self.tls.reader().read(&mut buffer[at..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.tls.read_tls(&mut self.socket)? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    self.tls.process_new_packets().map_err(io::Error::other)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The next frame.
    fn frame(&mut self) -> io::Result<RawFrame> {
        let mut head = [0; 9];
        self.exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.exact(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Ok((head[3], head[4], stream, payload))
    }

    /// Reads until a frame of this kind comes.
    fn until(&mut self, kind: u8) -> io::Result<RawFrame> {
        loop {
            let found = self.frame()?;
            if found.0 == kind {
                return Ok(found);
            }
        }
    }
}

fn go_away(last: u32) -> Vec<u8> {
    let payload = [last.to_be_bytes(), NO_ERROR.to_be_bytes()].concat();
    frame(GOAWAY, 0, 0, &payload)
}

fn answer(stream: u32, text: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &field(":status", "200"));
    [head, frame(DATA, END_STREAM, stream, text)].concat()
}

// ---- the upstream says it ----

/// An upstream with TLS that calls this for each connection, with its number.
fn scripted(
    dir: &Path,
    script: impl Fn(usize, Side) -> io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let (config, script) = (offering("h2", dir), Arc::new(script));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, socket) in listener.incoming().enumerate() {
            let (config, script) = (Arc::clone(&config), Arc::clone(&script));
            thread::spawn(move || -> io::Result<()> {
                let tls = ServerConnection::new(config).unwrap();
                let mut side = Side::new(tls.into(), socket?)?;
                side.exact(&mut [0; PREFACE.len()])?;
                side.write(&frame(SETTINGS, 0, 0, b""));
                script(number, side)
            });
        }
    });
    address
}

/// A proxy before such an upstream.
fn before(script: impl Fn(usize, Side) -> io::Result<()> + Send + Sync + 'static) -> Proxy {
    let setup = Setup::new(
        "listen: '127.0.0.1:0'\nroutes: [{path: /, target: 'https://UP', http2: true, tls: {server_name: a.test, ca_file: DIR/ca.pem}}]\nmetrics: {listen: '127.0.0.1:0'}\n",
    );
    let dir = setup.dir();
    write_files(&dir, &authority());
    let address = scripted(&dir, script);
    setup.token("UP", address.to_string()).start()
}

/// Answers the first request, and sends half of a GOAWAY behind it; gives the other half.
fn half_a_goodbye(side: &mut Side) -> io::Result<Vec<u8>> {
    let (_, _, stream, _) = side.until(HEADERS)?;
    let first = side.records(&answer(stream, b"first"));
    let goodbye = side.records(&go_away(stream));
    let (half, rest) = goodbye.split_at(goodbye.len() / 2);
    side.send(&[&first, half].concat());
    Ok(rest.to_vec())
}

fn serve(side: &mut Side) -> io::Result<()> {
    loop {
        let (_, _, stream, _) = side.until(HEADERS)?;
        side.write(&answer(stream, b"afresh"));
    }
}

#[test]
fn a_request_that_crosses_the_goaway_of_an_upstream_is_sent_again() {
    let proxy = before(|number, mut side| {
        if number > 0 {
            return serve(&mut side);
        }
        let rest = half_a_goodbye(&mut side)?;
        side.until(HEADERS)?;
        side.send(&rest);
        side.frame().map(drop)
    });
    assert_eq!(proxy.get("/").text(), "first");
    assert_eq!(proxy.get("/").text(), "afresh");
    assert_eq!(metric(&proxy, "lean_proxy_retries_total"), 1);
}

#[test]
fn an_upstream_that_ends_in_half_a_goaway_costs_no_request_that_may_be_repeated() {
    let proxy = before(|number, mut side| {
        if number % 2 > 0 {
            return serve(&mut side);
        }
        half_a_goodbye(&mut side)?;
        side.until(HEADERS).map(drop)
    });
    assert_eq!(proxy.get("/").text(), "first");
    assert_eq!(proxy.get("/").text(), "afresh");
    let proxy = before(|_, mut side| {
        half_a_goodbye(&mut side)?;
        side.until(HEADERS).map(drop)
    });
    assert_eq!(proxy.get("/").text(), "first");
    let upload = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(proxy.ask(upload).status, 502);
}

#[test]
fn an_answer_goes_on_behind_the_goaway_of_an_upstream() {
    let size = 60_000;
    let proxy = before(move |_, mut side| {
        let (_, _, stream, _) = side.until(HEADERS)?;
        let head = frame(HEADERS, END_HEADERS, stream, &field(":status", "200"));
        let goodbye = side.records(&[head, go_away(stream)].concat());
        let (half, rest) = goodbye.split_at(goodbye.len() - 3);
        side.send(half);
        let mut records = rest.to_vec();
        for (number, piece) in pattern(0, size).chunks(10_000).enumerate() {
            let ends = if number == 5 { END_STREAM } else { 0 };
            records.extend(side.records(&frame(DATA, ends, stream, piece)));
            side.send(&records);
            records.clear();
        }
        while side.frame().is_ok() {}
        Ok(())
    });
    assert_eq!(proxy.get("/").body, pattern(0, size));
}

// ---- the client says it ----

fn connect(address: SocketAddr, by: &Authority) -> Side {
    let name = ServerName::try_from("a.test").unwrap();
    let tls = ClientConnection::new(offering_both(by), name).unwrap();
    let mut side = Side::new(tls.into(), TcpStream::connect(address).unwrap()).unwrap();
    side.write(&[PREFACE, &frame(SETTINGS, 0, 0, b"")].concat());
    side
}

fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &head("GET", path),
    )
}

#[test]
fn a_client_that_says_goaway_in_two_halves_gets_its_answer_and_then_the_end() {
    let by = authority();
    let (upstream, release) = Upstream::held();
    let proxy = tls_proxy(&upstream, &by, "0");
    let mut side = connect(proxy.address(), &by);
    let asked = side.records(&request(1, "/"));
    let goodbye = side.records(&go_away(0));
    let (half, rest) = goodbye.split_at(goodbye.len() / 2);
    side.send(&[&asked, half].concat());
    upstream.await_requests(1);
    release.raise();
    assert_eq!(side.until(HEADERS).unwrap().2, 1);
    side.until(DATA).unwrap();
    side.send(rest);
    while side.frame().is_ok() {}
}

#[test]
fn a_client_that_leaves_in_half_a_goaway_lets_the_upstream_go() {
    let by = authority();
    let upstream = Upstream::answering(|_, peer| peer.await_close());
    let proxy = tls_proxy(&upstream, &by, "0");
    let mut side = connect(proxy.address(), &by);
    let asked = side.records(&request(1, "/"));
    let goodbye = side.records(&go_away(0));
    side.send(&[&asked, &goodbye[..goodbye.len() / 2]].concat());
    upstream.await_requests(1);
    drop(side);
    upstream.await_open(0);
    let mut side = connect(proxy.address(), &by);
    side.write(&request(1, "/health"));
    side.until(HEADERS).unwrap();
}

#[test]
fn half_a_record_does_not_hold_up_the_end_of_the_program() {
    let by = authority();
    let upstream = Upstream::echo_head();
    let mut proxy = tls_proxy(&upstream, &by, "0");
    let mut side = connect(proxy.address(), &by);
    side.write(&request(1, "/"));
    side.until(DATA).unwrap();
    let goodbye = side.records(&go_away(0));
    side.send(&goodbye[..goodbye.len() / 2]);
    proxy.signal("TERM");
    side.until(GOAWAY).unwrap();
    assert!(proxy.exit().success());
}

#[test]
fn a_client_that_floods_and_reads_nothing_ends_in_half_a_record() {
    let by = authority();
    let yaml = format!(
        "{LISTEN}routes: [{{path: /, target: 'http://UP'}}]\nserver: {{write_timeout: 1s, idle_timeout: 1s}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
    );
    for memory in ["10MiB", "64MiB", "0"] {
        let upstream = Upstream::start(|peer| {
            peer.head()?;
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
            while peer.write([b'x'; 16_384]).is_ok() {}
            Ok(())
        });
        let setup = Setup::new(&yaml)
            .upstream("UP", &upstream)
            .env("LEAN_PROXY_MEMORY", memory);
        write_files(&setup.dir(), &by);
        let proxy = setup.start();
        let mut side = connect(proxy.address(), &by);
        let window = 0x7fff_0000_u32.to_be_bytes();
        let settings = frame(SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat());
        side.write(&[settings, frame(8, 0, 0, &window), request(1, "/")].concat());
        upstream.await_requests(1);
        // hyper reads a PING only when the answer to the one before is on its way
        side.write(&frame(PING, 0, 0, &[0; 8]).repeat(500));
        upstream.await_open(0);
        eventually("the connection is over", || {
            metric(&proxy, "lean_proxy_connections_open") == 0
        });
        // what comes of it are whole frames, and perhaps a part of one
        let mut kinds = Vec::new();
        while let Ok(found) = side.frame() {
            kinds.push(found.0);
        }
        assert!(kinds.iter().all(|kind| *kind <= 8), "{memory}: {kinds:?}");
    }
}
