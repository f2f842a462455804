//! Time-outs: each occurs in time and not before, and does not affect anything else.
//!
//! The upper bounds are generous, because machines are slow.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    metrics::metric,
    support::{
        ALL, Client, End, OK, Proxy, Setup, Upstream, all_served, eventually, get, let_pass,
        pattern, skip, with,
    },
};

const SET: Duration = Duration::from_millis(400);

/// Checks that the time-out occurred neither before its time nor long after it.
fn in_time(since: Instant) {
    let took = since.elapsed();
    assert!(took >= SET.mul_f64(0.95), "too early: {took:?}");
    assert!(took < SET + Duration::from_secs(8), "too late: {took:?}");
}

fn server(setting: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::fixed(OK);
    (
        Proxy::before(&upstream, &format!("{ALL}server: {{{setting}}}\n")),
        upstream,
    )
}

// ---- the client is slow ----

#[test]
fn an_unfinished_head_is_a_408() {
    let (proxy, upstream) = server("header_timeout: 0.4");
    for head in [
        "G",
        "GET / HTTP/1.1\r\nHost: a\r\nX-",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\n",
    ] {
        let since = Instant::now();
        let mut client = proxy.client();
        client.send(head);
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 408, "{head:?}"),
            Err(broken) => assert!(
                head == "\r\n" && broken.cause.kind() != ErrorKind::TimedOut,
                "{head:?}: {broken:?}"
            ),
        }
        in_time(since);
        client.until_end();
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_slow_head_does_not_extend_its_time() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 30");
    let since = Instant::now();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Drip: ");
    let mut answer = Vec::new();
    while since.elapsed() < Duration::from_secs(10)
        && client.try_send("a").is_ok()
        && answer.is_empty()
    {
        answer = client.within(Duration::from_millis(50));
    }
    in_time(since);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "),
        "{}",
        answer.escape_ascii()
    );
}

#[test]
fn a_second_head_is_given_its_own_time() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 30");
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    assert!(
        client.is_silent(Duration::from_secs(2)),
        "an idle connection has no head to wait for"
    );
    let since = Instant::now();
    client.send("GET / HT");
    assert_eq!(client.receive().status, 408);
    in_time(since);
}

#[test]
fn a_client_that_sends_nothing_is_closed() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 0.4");
    let since = Instant::now();
    let mut client = proxy.client();
    let (bytes, _) = client.until_end();
    in_time(since);
    assert!(
        bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408 "),
        "{}",
        bytes.escape_ascii()
    );
}

#[test]
fn an_idle_connection_is_closed_without_an_answer() {
    let (proxy, _upstream) = server("idle_timeout: 0.4");
    let mut client = proxy.client();
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(client.get("/").status, 200);
        assert!(since.elapsed() < Duration::from_secs(8));
    }
    let since = Instant::now();
    assert_eq!(client.end(), End::Clean);
    in_time(since);
}

#[test]
fn an_upload_that_stops_is_a_408_or_is_cut_off() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.await_close()?;
        peer.note("closed");
        Ok(())
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{read_timeout: 0.4}}\n"));
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut client = proxy.client();
        let since = Instant::now();
        client.send(with("POST /", &[framing]) + "2\r\nab\r\n");
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 408, "{framing}"),
            Err(broken) => assert!(
                broken.cause.kind() != ErrorKind::TimedOut,
                "{framing}: {broken:?}"
            ),
        }
        in_time(since);
        client.until_end();
    }
    eventually("both uploads broke off", || {
        upstream.notes().iter().filter(|n| *n == "closed").count() == 2
    });
}

#[test]
fn a_slow_upload_is_waited_for() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body.len(), 8);
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{read_timeout: 1.5}}\n"));
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 8"]));
    for _ in 0..8 {
        assert!(client.is_silent(Duration::from_millis(400)));
        client.send("x");
    }
    assert_eq!(client.receive().status, 200);
}

#[test]
fn waiting_for_an_answer_does_not_count_as_a_slow_upload() {
    let upstream = Upstream::answering(|_, peer| {
        let_pass(Duration::from_secs(2));
        peer.write(OK)
    });
    let yaml = format!(
        "{ALL}server: {{read_timeout: 0.4, header_timeout: 0.4, idle_timeout: 0.4, write_timeout: 0.4}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(
        proxy
            .ask(with("POST /", &["Content-Length: 3"]) + "abc")
            .status,
        200
    );
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    const SIZE: usize = 256 << 20;
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        let all = (0..SIZE)
            .step_by(65_536)
            .try_for_each(|from| peer.write(pattern(from, 65_536)));
        peer.note(if all.is_err() { "cut" } else { "swallowed" });
        Ok(())
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{write_timeout: 0.4}}\n"));
    let mut client = proxy.client();
    client.send(get("/"));
    eventually("the upstream is rid of it", || !upstream.notes().is_empty());
    assert_eq!(upstream.notes()[0], "cut");
    assert!(client.try_receive().is_err(), "it is complete");
}

#[test]
fn a_slow_reader_that_goes_on_reading_is_served() {
    const SIZE: usize = 24 << 20;
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        (0..SIZE)
            .step_by(65_536)
            .try_for_each(|from| peer.write(pattern(from, 65_536)))
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{write_timeout: 1.5}}\n"));
    let mut client = proxy.client();
    client.send(get("/"));
    client.head();
    for from in (0..SIZE).step_by(SIZE / 8) {
        let_pass(Duration::from_millis(300));
        assert!(
            client.reader().exact(SIZE / 8).unwrap() == pattern(from, SIZE / 8),
            "at {from}"
        );
    }
}

// ---- the upstream is slow ----

fn silent() -> Upstream {
    Upstream::start(|peer| {
        peer.request()?;
        peer.await_close()?;
        peer.note("closed");
        Ok(())
    })
}

#[test]
fn an_answer_that_does_not_come_is_a_504() {
    let upstream = silent();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let mut client = proxy.client();
    for request in [get("/"), with("POST /", &["Content-Length: 3"]) + "abc"] {
        let since = Instant::now();
        let response = client.ask(request);
        in_time(since);
        assert_eq!(response.status, 504);
        assert!(!response.text().contains("127.0.0.1"));
    }
    upstream.await_note("closed");
    assert_eq!(
        upstream.requests(),
        2,
        "nothing is sent again after a time-out"
    );
}

#[test]
fn an_unfinished_response_head_is_a_504_too() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.1 200 OK\r\nContent-")?;
        peer.await_close()
    });
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    in_time(since);
}

#[test]
fn a_route_may_have_its_own_time_out() {
    let upstream = Upstream::answering(|_, peer| {
        let_pass(Duration::from_secs(2));
        peer.write(OK)
    });
    let yaml = "routes:\n- {path: /short/, target: 'http://UP', response_header_timeout: 0.4}\n- {path: /long/, target: 'http://UP', response_header_timeout: 15}\n\
        - {path: /none/, target: 'http://UP', response_header_timeout: 0}\n- {path: /, target: 'http://UP'}\ntransport: {response_header_timeout: 0.3}\n";
    let proxy = Proxy::before(&upstream, yaml);
    for (target, status) in [
        ("/long/", 200),
        ("/none/", 200),
        ("/", 504),
        ("/short/", 504),
    ] {
        assert_eq!(proxy.get(target).status, status, "{target}");
    }
}

#[test]
fn the_time_for_the_head_does_not_limit_the_body() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..2 {
            peer.chunk("x")?;
            let_pass(Duration::from_millis(1500));
        }
        peer.write("0\r\n\r\n")
    });
    let proxy = Proxy::before(
        &upstream,
        &format!(
            "{ALL}transport: {{response_header_timeout: 0.4}}\nserver: {{read_timeout: 0.4, idle_timeout: 0.4, header_timeout: 0.4, write_timeout: 0.4}}\n"
        ),
    );
    assert_eq!(proxy.get("/").text(), "xx");
}

#[test]
fn the_time_for_the_head_starts_when_the_request_is_sent_to_its_end() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 3"]));
    for byte in ["a", "b", "c"] {
        assert!(client.is_silent(Duration::from_millis(800)));
        client.send(byte);
    }
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_upstream_that_does_not_accept_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let Some(_backlog) = fill(address) else {
        return skip("the backlog of a listener cannot be filled here");
    };
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://{address}'}}]\ntransport: {{dial_timeout: 0.4}}\n"
    ))
    .start();
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    in_time(since);
}

/// Connects until the backlog is full.
fn fill(address: SocketAddr) -> Option<Vec<TcpStream>> {
    let mut backlog = Vec::new();
    while backlog.len() < 900 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(stream) => backlog.push(stream),
            Err(e) if e.kind() == ErrorKind::TimedOut => return Some(backlog),
            Err(_) => return None,
        }
    }
    None
}

#[test]
fn an_idle_upstream_connection_is_closed_in_time() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{idle_conn_timeout: 0.4}}\n"),
    );
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 200);
    upstream.await_note("left 0");
    in_time(since);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn zero_means_no_time_out() {
    let (upstream, go_on) = Upstream::held();
    let yaml = format!(
        "{ALL}transport: {{response_header_timeout: 0, dial_timeout: 0, idle_conn_timeout: 0}}\nserver: {{header_timeout: 0, read_timeout: 0, write_timeout: 0, idle_timeout: 0}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    let mut slow: [Client; 4] = std::array::from_fn(|_| proxy.client());
    slow[0].send("GET / HT");
    slow[1].send(with("POST /", &["Content-Length: 3"]) + "a");
    slow[2].send(get("/"));
    let_pass(Duration::from_millis(2500));
    go_on.raise_many(4);
    slow[0].send("TP/1.1\r\nHost: a\r\n\r\n");
    slow[1].send("bc");
    slow[3].send(get("/"));
    all_served(&mut slow);
}

// ---- progress ----

/// A direction in which bytes flow slowly but steadily, or stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The client sends its body.
    Sends,
    /// The same in chunks.
    SendsChunks,
    /// The client sends one chunk whose end never comes.
    SendsOneChunk,
    /// The upstream takes the body.
    Takes,
    /// The upstream takes the body of a request that it has answered.
    TakesAfterTheHead,
    /// The client takes the answer.
    Reads,
    /// The same in chunks.
    ReadsChunks,
    /// The client takes what comes through a tunnel.
    ReadsTunnel,
    /// The upstream takes what comes through a tunnel.
    TakesTunnel,
}

const PHASES: [Phase; 9] = [
    Phase::Sends,
    Phase::SendsChunks,
    Phase::SendsOneChunk,
    Phase::Takes,
    Phase::TakesAfterTheHead,
    Phase::Reads,
    Phase::ReadsChunks,
    Phase::ReadsTunnel,
    Phase::TakesTunnel,
];

/// Bytes of a body that is larger than all kernel buffers.
const LONG: usize = 40_000_000;

/// Time between the steps of a slow side; the time-out is many times as long, and the test lasts three times that.
const STEP: Duration = Duration::from_millis(200);
const STRIKES: &str = "read_timeout: 1.5, write_timeout: 1.5";
const WATCHED: Duration = Duration::from_millis(4_500);

/// Reads a little at each step, or nothing, until it is over.
fn sip(mut socket: impl Read, is_steady: bool, is_over: &AtomicBool) {
    let mut buffer = [0; 8 * 1024];
    while !is_over.load(Ordering::Relaxed) {
        let_pass(STEP);
        if is_steady && matches!(socket.read(&mut buffer), Ok(0) | Err(_)) {
            return;
        }
    }
}

/// Writes a little at each step, or nothing, until it is over.
fn drip(mut socket: impl Write, piece: &[u8], is_steady: bool, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let_pass(STEP);
        if is_steady && socket.write_all(piece).is_err() {
            return;
        }
    }
}

/// What an upstream does in a phase.
fn answer(mut stream: TcpStream, phase: Phase, is_steady: bool, is_over: &AtomicBool) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0) {
        head.push(byte[0]);
    }
    let begun = match phase {
        Phase::Reads => "HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n",
        Phase::ReadsChunks => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2625a00\r\n",
        Phase::ReadsTunnel | Phase::TakesTunnel => {
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        }
        Phase::TakesAfterTheHead => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        _ => "",
    };
    let _ = stream.write_all(begun.as_bytes());
    match phase {
        Phase::Reads | Phase::ReadsChunks | Phase::ReadsTunnel => {
            let _ = stream.write_all(&pattern(0, LONG));
        }
        Phase::Takes | Phase::TakesAfterTheHead | Phase::TakesTunnel => {
            sip(&stream, is_steady, is_over);
        }
        _ => drop(stream.read_to_end(&mut head)),
    }
}

/// A listener whose connections have small receive buffers.
fn narrow_listener() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).unwrap();
    socket.listen(8).unwrap();
    socket.into()
}

/// What a client does in a phase.
fn call(mut client: Client, phase: Phase, is_steady: bool, is_over: &AtomicBool) {
    let request = match phase {
        Phase::Sends => with("POST /", &["Content-Length: 1000"]),
        Phase::SendsChunks => with("POST /", &["Transfer-Encoding: chunked"]),
        Phase::SendsOneChunk => with("POST /", &["Transfer-Encoding: chunked"]) + "1000\r\n",
        Phase::Takes | Phase::TakesAfterTheHead => with("POST /", &["Content-Length: 40000000"]),
        Phase::Reads | Phase::ReadsChunks => get("/"),
        Phase::ReadsTunnel | Phase::TakesTunnel => {
            with("GET /", &["Connection: Upgrade", "Upgrade: websocket"])
        }
    };
    client.send(request);
    let mut socket = client.writer();
    match phase {
        Phase::Sends | Phase::SendsOneChunk => drip(socket, b"a", is_steady, is_over),
        Phase::SendsChunks => drip(socket, b"1\r\na\r\n", is_steady, is_over),
        Phase::Takes | Phase::TakesAfterTheHead | Phase::TakesTunnel => {
            let _ = socket.write_all(&pattern(0, LONG));
        }
        Phase::Reads | Phase::ReadsChunks | Phase::ReadsTunnel => sip(socket, is_steady, is_over),
    }
}

/// Runs both sides of a phase until `watch` returns.
fn lives(phase: Phase, is_steady: bool, memory: &str, watch: impl FnOnce(&Proxy)) {
    let is_over = AtomicBool::new(false);
    let listener = narrow_listener();
    let target = listener.local_addr().unwrap();
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://{target}'}}]\nserver: {{{STRIKES}}}\n\
        metrics: {{listen: '127.0.0.1:0'}}\nlimits: {{memory: {memory}}}\n"
    ))
    .start();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (stream, _) = listener.accept().unwrap();
            answer(stream, phase, is_steady, &is_over);
        });
        let client = Client::narrow(proxy.address());
        let ends = client.writer();
        scope.spawn(|| call(client, phase, is_steady, &is_over));
        eventually("the client is there", || open(&proxy) == 1);
        watch(&proxy);
        is_over.store(true, Ordering::Relaxed);
        ends.end();
        drop(proxy);
    });
}

fn open(proxy: &Proxy) -> u64 {
    metric(proxy, "lean_proxy_connections_open")
}

fn each_phase(is_steady: bool, watch: fn(Phase, &Proxy)) {
    thread::scope(|scope| {
        for memory in ["off", "10485760"] {
            for phase in PHASES {
                scope.spawn(move || {
                    lives(phase, is_steady, memory, |proxy| watch(phase, proxy));
                });
            }
        }
    });
}

#[test]
fn a_slow_side_that_makes_progress_is_never_cut_off() {
    each_phase(true, |phase, proxy| {
        let_pass(WATCHED);
        assert_eq!(open(proxy), 1, "{phase:?}: cut off");
    });
}

#[test]
fn a_side_that_stops_is_cut_off_in_every_phase() {
    each_phase(false, |phase, proxy| {
        eventually(&format!("{phase:?}: it is cut off"), || open(proxy) == 0);
    });
}
