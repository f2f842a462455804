//! HTTP/2 towards upstreams: `h2c://`, and `https://` with `http2: true`.

use std::{
    convert::Infallible,
    error::Error,
    future::{Future, pending},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming, client::conn::http2::SendRequest, server::conn::http2::Builder,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    runtime,
    sync::Barrier,
    task::{LocalSet, spawn_local},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    h2::{
        Answer, DATA, Frames, GOAWAY, HEADERS, Local, PING, PREFACE, RST_STREAM, RawFrame,
        SETTINGS, ask, connect, field, frame, get, run, send,
    },
    metrics::metric,
    support::{Client, Proxy, Setup, eventually, pattern},
    tls_listener::{authority, write_files},
};

const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;
pub const CANCEL: u32 = 8;

/// Flags of HEADERS and DATA.
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Lines of the metrics page.
const RETRIES: &str = "lean_proxy_retries_total";
const DIALS: &str = "lean_proxy_dials_total";
const IN_FLIGHT: &str = "lean_proxy_exchanges";

pub type Reply = Response<Pin<Box<dyn Body<Data = Bytes, Error = hyper::Error>>>>;

fn never(it: Infallible) -> hyper::Error {
    match it {}
}

pub fn reply(
    status: u16,
    fields: &[(&str, &str)],
    pieces: &[&[u8]],
    trailers: &[(&'static str, &str)],
) -> Reply {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    let body = Frames::new(pieces, trailers).map_err(never);
    response.body(Box::pin(body) as _).unwrap()
}

pub fn echo(request: Request<Incoming>) -> Reply {
    Response::new(Box::pin(request.into_body()) as _)
}

/// A server of HTTP/2, by hyper.
pub struct Server {
    pub address: SocketAddr,
    /// Connections that it has accepted, and those that are open.
    accepted: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
}

impl Server {
    pub fn start<F: Future<Output = Reply> + 'static>(
        answer: impl Fn(Request<Incoming>) -> F + Send + Clone + 'static,
    ) -> Server {
        Server::behind(None, answer)
    }

    /// Behind TLS where there is an acceptor; what does not choose `h2` gets one answer of HTTP/1.1.
    fn behind<F: Future<Output = Reply> + 'static>(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(Request<Incoming>) -> F + Send + Clone + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let server = Server {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            open: Arc::default(),
        };
        let (accepted, open) = (Arc::clone(&server.accepted), Arc::clone(&server.open));
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            LocalSet::new().block_on(&runtime.unwrap(), async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (socket, _) = listener.accept().await.unwrap();
                    accepted.fetch_add(1, Ordering::SeqCst);
                    open.fetch_add(1, Ordering::SeqCst);
                    let (tls, answer, open) = (tls.clone(), answer.clone(), Arc::clone(&open));
                    spawn_local(async move {
                        match tls {
                            None => serve(socket, answer).await,
                            Some(tls) => {
                                let socket = tls.accept(socket).await.unwrap();
                                if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                                    serve(socket, answer).await;
                                } else {
                                    serve_http1(socket).await;
                                }
                            }
                        }
                        open.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        });
        server
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

/// Answers each request, which has no body.
async fn serve_http1(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        match io.read(&mut buffer).await {
            Ok(count) if count > 0 => text.extend(&buffer[..count]),
            _ => return,
        }
        if text.ends_with(b"\r\n\r\n") {
            text.clear();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nin 1.1";
            io.write_all(answer).await.unwrap();
        }
    }
}

async fn serve<F: Future<Output = Reply> + 'static>(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    answer: impl Fn(Request<Incoming>) -> F + 'static,
) {
    let service = service_fn(move |request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let _ = Builder::new(Local)
        .max_concurrent_streams(200)
        .serve_connection(TokioIo::new(io), service)
        .await;
}

/// A proxy that speaks both versions, before this upstream.
pub fn proxy(upstream: SocketAddr, more: &str) -> Proxy {
    Setup::new(&format!(
        "listen: {{address: '127.0.0.1:0', http2: true}}\nroutes: [{{path: /, target: 'h2c://{upstream}'}}]\nlog: {{access: true, level: debug}}\nmetrics: {{listen: '127.0.0.1:0'}}\n{more}"
    ))
    .start()
}

/// One connection of an upstream that writes frames by hand.
pub struct Script {
    socket: TcpStream,
}

impl Script {
    /// The next frame; `None` at the end.
    pub fn read(&mut self) -> Option<RawFrame> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).ok()?;
        let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; len];
        self.socket.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until a frame of this kind comes.
    pub fn until(&mut self, kind: u8) -> Option<RawFrame> {
        loop {
            let found = self.read()?;
            if found.0 == kind {
                return Some(found);
            }
        }
    }

    pub fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send(&frame(kind, flags, stream, payload));
    }

    /// Sends as far as the proxy takes it; says whether it took all.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).is_ok()
    }

    /// How long the proxy may take nothing.
    pub fn set_write_timeout(&mut self, time: Duration) {
        self.socket.set_write_timeout(Some(time)).unwrap();
    }

    pub fn answer(&mut self, stream: u32) {
        let head = field(":status", "200");
        self.write(HEADERS, END_HEADERS, stream, &head);
        self.write(DATA, END_STREAM, stream, b"ok");
    }

    pub fn reset(&mut self, stream: u32, reason: u32) {
        self.write(RST_STREAM, 0, stream, &reason.to_be_bytes());
    }

    pub fn go_away(&mut self, last: u32) {
        let payload = [last.to_be_bytes(), 0_u32.to_be_bytes()].concat();
        self.write(GOAWAY, 0, 0, &payload);
    }
}

/// An upstream that calls this for each connection, with its number.
pub fn scripted(script: impl Fn(usize, Script) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    thread::spawn(move || {
        for (number, socket) in listener.incoming().enumerate() {
            let (mut socket, script) = (socket.unwrap(), Arc::clone(&script));
            thread::spawn(move || {
                let mut preface = [0; PREFACE.len()];
                if socket.read_exact(&mut preface).is_ok() {
                    assert_eq!(preface, PREFACE);
                    socket.write_all(&frame(SETTINGS, 0, 0, &[])).unwrap();
                    script(number, Script { socket });
                }
            });
        }
    });
    address
}

#[test]
fn a_request_and_its_answer_pass_with_bodies_and_trailers_both_ways() {
    let server = Server::start(|request: Request<Incoming>| async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap();
        let sum = body.trailers().and_then(|it| it.get("x-sum")).cloned();
        let sum = sum.map_or_else(String::new, |it| it.to_str().unwrap().to_owned());
        let text = format!(
            "{} {} {:?} te={:?} xff={:?} a={:?} hop={} body={:?} sum={sum}",
            parts.method,
            parts.uri,
            parts.version,
            parts.headers.get("te"),
            parts.headers.get("x-forwarded-for"),
            parts.headers.get("x-a"),
            parts.headers.contains_key("connection") || parts.headers.contains_key("x-hop"),
            body.to_bytes(),
        );
        let fields = [("x-b", "c"), ("trailer", "grpc-status")];
        reply(200, &fields, &[text.as_bytes()], &[("grpc-status", "0")])
    });
    let address = server.address;
    let proxy = proxy(address, "");
    let expected = format!(
        "POST http://{address}/x?y HTTP/2.0 te=Some(\"trailers\") xff=Some(\"127.0.0.1\") a=Some(\"b\") hop=false body=b\"onetwo\" sum=6"
    );

    let body = Frames::new(&[b"one", b"two"], &[("x-sum", "6")]);
    let request = send("POST", "/x?y", &[("te", "trailers"), ("x-a", "b")], body);
    let answer = ask(proxy.address(), request);
    assert_eq!((answer.status, answer.text()), (200, expected.as_str()));
    assert_eq!(answer.fields["x-b"], "c");
    assert_eq!(answer.trailers["grpc-status"], "0");

    let answer = proxy.ask(
        "POST /x?y HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: te, x-hop\r\nX-Hop: 1\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n",
    );
    assert_eq!((answer.status, answer.text()), (200, expected));
    assert_eq!(answer.trailers.one("grpc-status"), Some("0"));
    let line = proxy.await_log("access line", |line| line.contains("msg=\"access\""));
    assert!(
        line.contains(&format!("upstream=h2c://{address}")),
        "{line}"
    );
    assert_eq!(server.accepted(), 1, "one connection for both");
}

#[test]
fn an_answer_of_trailers_alone_stays_one() {
    let server = Server::start(|_| async {
        let fields = [("content-type", "application/grpc"), ("grpc-status", "12")];
        reply(200, &fields, &[], &[])
    });
    let proxy = proxy(server.address, "");
    let answer = ask(
        proxy.address(),
        send(
            "POST",
            "/a.B/C",
            &[("te", "trailers")],
            Frames::new(&[b"x"], &[]),
        ),
    );
    assert_eq!((answer.status, answer.text()), (200, ""));
    assert_eq!(answer.fields["grpc-status"], "12");
    let answer = proxy.get("/");
    assert_eq!(answer.one("content-length"), Some("0"));
}

#[test]
fn both_bodies_stream_at_the_same_time() {
    let server = Server::start(|request| async { echo(request) });
    let proxy = proxy(server.address, "");
    let mut client = Client::connect(proxy.address());
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.chunk("one");
    let head = client.head();
    assert_eq!(head.status, 200);
    assert_eq!(
        client.reader().chunk().unwrap().unwrap(),
        b"one",
        "before the request has ended"
    );
    client.chunk("two");
    assert_eq!(client.reader().chunk().unwrap().unwrap(), b"two");
    client.send("0\r\n\r\n");
    assert_eq!(client.reader().chunk().unwrap(), None);
}

#[test]
fn a_large_body_comes_back_as_it_was_sent() {
    let server = Server::start(|request| async { echo(request) });
    let proxy = proxy(server.address, "limits: {memory: 10MiB}\n");
    let body = pattern(0, 3 << 20);
    let pieces: Vec<&[u8]> = body.chunks(10_000).collect();
    let answer = ask(
        proxy.address(),
        send("POST", "/", &[], Frames::new(&pieces, &[])),
    );
    assert!(answer.body == body, "{} bytes", answer.body.len());
}

#[test]
fn a_hundred_requests_at_a_time_share_a_few_connections() {
    let barrier = Arc::new(Barrier::new(100));
    let server = Server::start(move |_| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            reply(200, &[], &[b"ok"], &[])
        }
    });
    let proxy = proxy(server.address, "");
    run(async {
        let mut sender = connect(proxy.address()).await;
        let asked: Vec<_> = (0..100)
            .map(|_| sender.send_request(get("/", &[])))
            .map(|asked| spawn_local(async { Answer::read(asked.await.unwrap()).await.unwrap() }))
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap().text(), "ok");
        }
    });
    assert_eq!(server.accepted(), 10, "ten requests on each");
}

#[test]
fn connections_without_requests_give_way_to_those_of_another_upstream() {
    // two connections of each: in ten megabytes there is no room for all four
    const CALLS: usize = 20;
    let servers = [(), ()].map(|()| {
        let barrier = Arc::new(Barrier::new(CALLS));
        Server::start(move |_| {
            let barrier = Arc::clone(&barrier);
            async move {
                barrier.wait().await;
                reply(200, &[], &[b"ok"], &[])
            }
        })
    });
    let [first, second] = servers.each_ref().map(|it| it.address);
    let proxy = Setup::new(&format!(
        "listen: {{address: '127.0.0.1:0', http2: true}}\nroutes: [{{path: /a, target: 'h2c://{first}'}}, {{path: /b, target: 'h2c://{second}'}}]\nlimits: {{memory: 10MiB}}\n"
    ))
    .start();
    run(async {
        let mut sender = connect(proxy.address()).await;
        for path in ["/a", "/b", "/a"] {
            let asked: Vec<_> = (0..CALLS)
                .map(|_| sender.send_request(get(path, &[])))
                .map(|asked| {
                    spawn_local(async { Answer::read(asked.await.unwrap()).await.unwrap() })
                })
                .collect();
            for answer in asked {
                assert_eq!(answer.await.unwrap().text(), "ok", "{path}");
            }
        }
    });
}

/// A body without an end, which counts what was taken of it.
struct Endless(Arc<AtomicUsize>, &'static [u8]);

impl Body for Endless {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        self.0.fetch_add(self.1.len(), Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(self.1)))))
    }
}

/// So many clients read nothing of an endless answer in such pieces; others are answered on the same connection.
fn beside_stalled(count: usize, piece: &'static [u8]) {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&sent);
    let server = Server::start(move |request: Request<Incoming>| {
        let counter = Arc::clone(&counter);
        async move {
            if request.uri().path() == "/endless" {
                Response::new(Box::pin(Endless(counter, piece)) as _)
            } else {
                reply(200, &[], &[b"ok"], &[])
            }
        }
    });
    let proxy = proxy(server.address, "limits: {memory: 10MiB}\n");
    let mut clients: Vec<Client> = (0..count)
        .map(|_| Client::narrow(proxy.address()))
        .collect();
    for client in &mut clients {
        client.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head().status, 200);
    }
    eventually("their windows are full", || {
        sent.load(Ordering::SeqCst) > count * 16 * 1024
    });
    for _ in 0..20 {
        assert_eq!(proxy.get("/ok").text(), "ok");
    }
    assert_eq!(server.accepted(), 1);
}

#[test]
fn clients_that_read_nothing_do_not_stop_the_others() {
    // nine of the ten streams of the connection
    beside_stalled(9, &[b'x'; 1024]);
}

#[test]
fn small_frames_that_are_not_read_do_not_end_the_connection() {
    beside_stalled(2, &[b'x'; 30]);
}

/// Sends a request, again where the proxy says that it has not processed it, as gRPC does.
async fn insist(
    mut sender: SendRequest<Frames>,
    request: impl Fn() -> Request<Frames>,
) -> Response<Incoming> {
    loop {
        match sender.send_request(request()).await {
            Ok(response) => return response,
            Err(error) => {
                let cause = error.source().and_then(<dyn Error>::downcast_ref);
                let reason = cause.and_then(h2::Error::reason);
                assert_eq!(reason, Some(h2::Reason::REFUSED_STREAM), "{error:?}");
            }
        }
    }
}

/// A hundred calls at the same time, each of many small messages both ways at once, as in gRPC.
fn bursts(memory: &str, count: usize) {
    let server = Server::start(|request| async { echo(request) });
    let proxy = proxy(server.address, &format!("limits: {{memory: {memory}}}\n"));
    let messages: Vec<Vec<u8>> = (0..count).map(|at| pattern(at, 15)).collect();
    run(async {
        let mut sender = connect(proxy.address()).await;
        // it learns how many streams it may open
        sender.send_request(get("/", &[])).await.unwrap();
        let call = || {
            let (sender, messages) = (sender.clone(), messages.clone());
            spawn_local(async move {
                let pieces: Vec<&[u8]> = messages.iter().map(Vec::as_slice).collect();
                let request = || send("POST", "/", &[], Frames::new(&pieces, &[]));
                Answer::read(insist(sender, request).await).await.unwrap()
            })
        };
        let asked: Vec<_> = (0..100).map(|_| call()).collect();
        for answer in asked {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, answer.body), (200, messages.concat()));
        }
    });
}

#[test]
fn bursts_of_small_messages_pass_in_ten_megabytes() {
    // where no upstream takes them, those of all calls of the connection (32 at a time, or 100) may wait
    bursts("10MiB", 6);
}

#[test]
fn bursts_of_small_messages_pass_in_sixty_four_megabytes() {
    bursts("64MiB", 10);
}

#[test]
fn an_upstream_whose_heads_fill_many_buffers_is_asked_on_another_connection() {
    let server = Server::start(|_| async { reply(200, &[], &[&[b'x'; 8 * 1024]], &[]) });
    let proxy = proxy(server.address, "limits: {memory: 10MiB}\n");
    for _ in 0..100 {
        assert_eq!(proxy.get("/").body.len(), 8 * 1024);
    }
    let accepted = server.accepted();
    assert!((2..=5).contains(&accepted), "{accepted}");
    assert_eq!(metric(&proxy, RETRIES), 0);
}

#[test]
fn an_upstream_that_floods_loses_its_connection() {
    let upstream = scripted(|number, mut script| {
        let (_, _, stream, _) = script.until(HEADERS).unwrap();
        if number == 0 {
            script.set_write_timeout(Duration::from_secs(1));
            for _ in 0..100 {
                script.send(&frame(PING, 0, 0, &[0; 8]).repeat(100));
            }
            assert_eq!(script.until(DATA), None, "closed");
        } else {
            script.answer(stream);
            while script.read().is_some() {}
        }
    });
    let proxy = proxy(upstream, "");
    assert_eq!(proxy.get("/").status, 502);
    proxy.await_log("the bound", |line| line.contains("too many frames"));
    assert_eq!(proxy.get("/").text(), "ok");
}

#[test]
fn a_refused_stream_is_asked_once_more_on_a_fresh_connection() {
    let upstream = scripted(|number, mut script| {
        let (_, _, stream, _) = script.until(HEADERS).unwrap();
        if number == 0 {
            script.reset(stream, REFUSED_STREAM);
        } else {
            script.answer(stream);
        }
        while script.read().is_some() {}
    });
    let proxy = proxy(upstream, "");
    let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()));
    assert_eq!(metric(&proxy, RETRIES), 1);
}

#[test]
fn a_stream_that_a_goaway_leaves_out_is_asked_once_more() {
    let upstream = scripted(|number, mut script| {
        let (_, _, stream, _) = script.until(HEADERS).unwrap();
        if number == 0 {
            script.answer(stream);
            let (_, _, next, _) = script.until(HEADERS).unwrap();
            assert!(next > stream);
            script.go_away(stream);
        } else {
            script.answer(stream);
        }
        while script.read().is_some() {}
    });
    let proxy = proxy(upstream, "");
    for _ in 0..2 {
        let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()));
    }
    assert_eq!(metric(&proxy, RETRIES), 1);
}

#[test]
fn a_request_whose_body_was_begun_or_that_was_refused_twice_is_not_repeated() {
    let upstream = scripted(|_, mut script| {
        let (_, flags, stream, _) = script.until(HEADERS).unwrap();
        if flags & END_STREAM == 0 {
            script.until(DATA);
        }
        script.reset(stream, REFUSED_STREAM);
        while script.read().is_some() {}
    });
    let proxy = proxy(upstream, "");
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(metric(&proxy, RETRIES), 1);
    let answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
    assert_eq!(answer.status, 502);
    assert_eq!(metric(&proxy, RETRIES), 1);
    proxy.await_log("the reason", |line| {
        line.contains("upstream-closed") && line.contains("refused stream")
    });
}

#[test]
fn a_reset_stream_is_a_failure_of_its_own_request_alone() {
    let upstream = scripted(|_, mut script| {
        let mut count = 0;
        while let Some((_, _, stream, _)) = script.until(HEADERS) {
            count += 1;
            match count {
                1 => script.reset(stream, INTERNAL_ERROR),
                2 => {
                    script.write(HEADERS, END_HEADERS, stream, &field(":status", "200"));
                    script.write(DATA, 0, stream, b"half");
                    script.reset(stream, INTERNAL_ERROR);
                }
                _ => script.answer(stream),
            }
        }
    });
    let proxy = proxy(upstream, "");
    assert_eq!(proxy.get("/").status, 502);
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(client.try_receive().is_err(), "cut, and not ended");
    proxy.await_log("the cut", |line| line.contains("outcome=upstream-cut"));
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(metric(&proxy, DIALS), 1);
}

#[test]
fn an_answer_that_breaks_off_is_never_whole_whatever_the_reason_says() {
    let half: [fn(&mut Script, u32); 3] = [
        |script, stream| script.reset(stream, NO_ERROR),
        |script, stream| script.reset(stream, CANCEL),
        |script, _| script.go_away(0),
    ];
    for end in half {
        for length in [Vec::new(), field("content-length", "1000")] {
            let upstream = scripted(move |_, mut script| {
                while let Some((_, _, stream, _)) = script.until(HEADERS) {
                    let head = [field(":status", "200"), length.clone()].concat();
                    script.write(HEADERS, END_HEADERS, stream, &head);
                    script.write(DATA, 0, stream, b"half");
                    end(&mut script, stream);
                }
            });
            let proxy = proxy(upstream, "");
            let mut client = proxy.client();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(client.try_receive().is_err(), "cut, and not ended");
            run(async {
                let mut sender = connect(proxy.address()).await;
                let response = sender.send_request(get("/", &[])).await.unwrap();
                assert!(Answer::read(response).await.is_err(), "in HTTP/2, too");
            });
            proxy.await_log("the cut", |line| line.contains("outcome=upstream-cut"));
        }
    }
}

#[test]
fn an_idle_connection_that_has_died_costs_no_request() {
    let upstream = scripted(|number, mut script| {
        let (_, _, stream, _) = script.until(HEADERS).unwrap();
        script.answer(stream);
        if number == 0 {
            // it dies when it is asked again
            script.until(HEADERS);
        } else {
            while script.read().is_some() {}
        }
    });
    let proxy = proxy(upstream, "");
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(metric(&proxy, RETRIES), 1);
}

/// What an upstream sees that answers nothing: the reason of each reset.
pub fn silent() -> (SocketAddr, Receiver<(bool, u32)>) {
    let (sender, receiver) = channel();
    let upstream = scripted(move |_, mut script| {
        let mut has_data = false;
        while let Some((kind, _, _, payload)) = script.read() {
            has_data |= kind == DATA;
            if kind == HEADERS {
                sender.send((false, 0)).unwrap();
            }
            if kind == RST_STREAM {
                let reason = u32::from_be_bytes(payload.try_into().unwrap());
                sender.send((has_data, reason)).unwrap();
            }
        }
    });
    (upstream, receiver)
}

#[test]
fn a_client_that_leaves_cancels_its_stream() {
    let (upstream, seen) = silent();
    let proxy = proxy(upstream, "");
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx",
    ] {
        let mut client = proxy.client();
        client.send(request);
        assert_eq!(seen.recv().unwrap(), (false, 0), "it was asked");
        drop(client);
        assert_eq!(seen.recv().unwrap().1, CANCEL, "{request}");
    }
}

#[test]
fn an_answer_that_does_not_come_in_time_is_a_504() {
    let (upstream, seen) = silent();
    let proxy = proxy(upstream, "transport: {response_header_timeout: 200ms}\n");
    assert_eq!(proxy.get("/").status, 504);
    assert_eq!(seen.recv().unwrap().1, 0);
    assert_eq!(seen.recv().unwrap().1, CANCEL);
    proxy.await_log("its outcome", |line| line.contains("response-timed-out"));
}

#[test]
fn a_request_that_the_upstream_does_not_take_is_a_504() {
    let (upstream, _seen) = silent();
    let proxy = proxy(upstream, "server: {write_timeout: 200ms}\n");
    let mut client = proxy.client();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
    client.write_until_stalled(0, 100_000_000);
    assert_eq!(client.receive().status, 504);
    proxy.await_log("its outcome", |line| line.contains("request-stalled"));
}

#[test]
fn connections_are_limited_and_an_idle_one_is_closed() {
    let server = Server::start(|request: Request<Incoming>| async move {
        if request.uri().path() == "/held" {
            pending::<()>().await;
        }
        reply(200, &[], &[b"ok"], &[])
    });
    let proxy = proxy(
        server.address,
        "transport: {max_conns_per_host: 1, idle_conn_timeout: 300ms}\nproxy: {queue_timeout: 200ms}\n",
    );
    let mut held: Vec<Client> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut held {
        client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    eventually("all are in work", || metric(&proxy, IN_FLIGHT) >= 10);
    assert_eq!(proxy.get("/").status, 503, "no stream is left");
    drop(held);
    eventually("streams are free again", || proxy.get("/").status == 200);
    assert_eq!(server.accepted(), 1);
    eventually("the idle connection is closed", || {
        server.open() == 0 && metric(&proxy, "lean_proxy_upstream_open") == 0
    });
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(server.accepted(), 2);
}

/// The settings of a server with the certificate of this folder that offers a protocol by ALPN.
pub fn offering(protocol: &str, dir: &Path) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_file_iter(dir.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.map(Result::unwrap).collect(), key)
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

#[test]
fn alpn_decides_between_the_versions() {
    for (offered, expected) in [("h2", "in 2"), ("http/1.1", "in 1.1")] {
        let by = authority();
        let setup = Setup::new(
            "listen: {address: '127.0.0.1:0', http2: true}\nroutes: [{path: /, target: 'https://UP', http2: true, tls: {server_name: a.test, ca_file: DIR/ca.pem}}]\nlog: {level: debug}\n",
        );
        let dir = setup.dir();
        write_files(&dir, &by);
        let acceptor = TlsAcceptor::from(offering(offered, &dir));
        let server = Server::behind(Some(acceptor), |request: Request<Incoming>| async move {
            assert_eq!(request.uri().scheme_str(), Some("https"));
            reply(200, &[], &[b"in 2"], &[])
        });
        let proxy = setup.token("UP", server.address.to_string()).start();
        assert_eq!(proxy.get("/").text(), expected);
        assert_eq!(ask(proxy.address(), get("/", &[])).text(), expected);
    }
}

#[test]
fn a_websocket_is_refused_where_the_target_speaks_http_2() {
    let server = Server::start(|_| async { reply(200, &[], &[], &[]) });
    let proxy = proxy(server.address, "");
    let answer = proxy.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n");
    assert_eq!(answer.status, 501);
    proxy.await_log("its outcome", |line| line.contains("no-upgrade"));
}

#[test]
fn a_head_answer_and_an_empty_one_have_no_body() {
    let server = Server::start(|request: Request<Incoming>| async move {
        match request.uri().path() {
            "/204" => reply(204, &[], &[], &[]),
            _ if request.method() == "HEAD" => reply(200, &[("content-length", "5")], &[], &[]),
            _ => reply(200, &[], &[b"hello"], &[]),
        }
    });
    let proxy = proxy(server.address, "");
    let mut client = proxy.client();
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.receive_for("HEAD");
    assert_eq!(answer.one("content-length"), Some("5"));
    assert_eq!(client.get("/204").status, 204);
    assert_eq!(client.get("/").text(), "hello");
    let mut fields = HeaderMap::new();
    fields.insert("content-length", "5".parse().unwrap());
    let answer = ask(proxy.address(), send("HEAD", "/", &[], Frames::default()));
    assert_eq!(
        (answer.fields.get("content-length"), answer.body.len()),
        (fields.get("content-length"), 0)
    );
}
