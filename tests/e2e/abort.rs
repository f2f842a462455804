//! Exchanges that either side cuts off, at every moment: none of them may leak anything.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::support::{
    ALL, Client, OK, PATIENCE, Peer, Proxy, Setup, Upstream, eventually, get, is_release, with,
};

/// How many exchanges are cut off.
const MANY: usize = 10_000;

/// Concurrent clients.
const CROWD: usize = 16;

/// What a scripted upstream does with a target; every other request gets [`OK`].
fn misbehave(peer: &mut Peer) -> io::Result<()> {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    while let Ok(request) = peer.head() {
        let answer = match request.target.as_str() {
            "/silent" => "",
            "/hint" => "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
            "/stream" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "/tunnel" => {
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi"
            }
            // from here on the upstream cuts off
            "/gone" => return Ok(()),
            "/reset" => return peer.cut(),
            "/head" => return peer.write("HTTP/1.1 200 OK\r\nContent-Le"),
            "/garbage" => return peer.write("\0garbage\r\n\r\n"),
            "/length" => return peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhel"),
            "/size" => return peer.write(format!("{CHUNKED}5\r\nhello\r\n1")),
            "/chunk" => return peer.write(format!("{CHUNKED}5\r\nhel")),
            "/chunk-reset" => {
                peer.write(format!("{CHUNKED}5\r\nhello\r\n"))?;
                return peer.cut();
            }
            "/framing" => return peer.write(format!("{CHUNKED}5\r\nhello!\r\n")),
            "/trailer" => return peer.write(format!("{CHUNKED}5\r\nhello\r\n0\r\nX: ")),
            "/half" => {
                peer.write(CHUNKED)?;
                peer.half_close();
                return peer.await_close();
            }
            _ => {
                peer.reader().body(request.framing)?;
                peer.write(OK)?;
                continue;
            }
        };
        peer.write(answer)?;
        return peer.await_close();
    }
    Ok(())
}

/// A moment to close at: what is sent, and how much of an answer is read before.
struct Moment {
    sent: String,
    awaited: usize,
}

/// Every moment, the client's and the upstream's.
fn moments() -> Vec<Moment> {
    let upload = with("POST /", &["Content-Length: 9"]);
    let chunks = with("POST /", &["Transfer-Encoding: chunked"]);
    let stalled = with("POST /hint", &["Content-Length: 9"]);
    let tunnel = with(
        "GET /tunnel",
        &["Connection: Upgrade", "Upgrade: websocket"],
    );
    let mut moments = Vec::new();
    for (sent, awaited) in [
        (String::new(), 0),
        ("G".into(), 0),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: ".into(), 0),
        ("\r\n".into(), 0),
        ("bad\r\n\r\n".into(), 0),
        ("bad\r\n\r\n".into(), 20),
        (get("/"), 0),
        (get("/"), 40),
        (get("/health"), 0),
        (get("/silent"), 0),
        (get("/hint"), 0),
        (get("/hint"), 30),
        (get("/stream"), 0),
        (get("/stream"), 30),
        (get("/stream") + &get("/stream"), 30),
        (get("/stream") + "GET /next", 30),
        (get("/") + &get("/silent"), 40),
        (get("/") + &upload + "part", 40),
        (upload.clone(), 0),
        (upload.clone() + "part", 0),
        (stalled.clone() + "part", 30),
        (stalled + "all of it", 30),
        (chunks.clone(), 0),
        (chunks.clone() + "5", 0),
        (chunks.clone() + "5\r\nhel", 0),
        (chunks.clone() + "5\r\nhello\r\n0\r\nX: ", 0),
        (chunks.clone() + "5\r\nhello!", 0),
        (chunks + "nonsense\r\n", 20),
        (
            with("PUT /", &["Content-Length: 9", "Expect: 100-continue"]),
            0,
        ),
        (
            with("PUT /hint", &["Content-Length: 9", "Expect: 100-continue"]),
            30,
        ),
        (tunnel.clone(), 0),
        (tunnel.clone() + "hello", 0),
        (tunnel + "hello", 60),
    ] {
        moments.push(Moment { sent, awaited });
    }
    // a 502 keeps the connection, an answer that is cut off closes it
    let (refused, cut) = (100, usize::MAX);
    for (target, all) in [
        ("/gone", refused),
        ("/reset", refused),
        ("/head", refused),
        ("/garbage", refused),
        ("/length", cut),
        ("/size", cut),
        ("/chunk", cut),
        ("/chunk-reset", cut),
        ("/framing", cut),
        ("/trailer", cut),
        ("/half", cut),
    ] {
        for awaited in [0, 20, all] {
            moments.push(Moment {
                sent: get(target),
                awaited,
            });
        }
        moments.push(Moment {
            sent: with(&format!("POST {target}"), &["Content-Length: 9"]) + "part",
            awaited: 20,
        });
    }
    moments
}

/// How a client closes.
#[derive(Debug, Clone, Copy)]
enum Leave {
    Close,
    Reset,
    /// Closes its sending side, and reads until the proxy closes.
    HalfClose,
}

fn break_off(address: SocketAddr, moment: &Moment, leave: Leave) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(moment.sent.as_bytes())?;
    let mut buffer = [0; 512];
    let mut seen = 0;
    while seen < moment.awaited {
        match stream.read(&mut buffer)? {
            0 => break,
            count => seen += count,
        }
    }
    match leave {
        Leave::Close => {}
        Leave::Reset => SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        Leave::HalfClose => {
            stream.shutdown(Shutdown::Write)?;
            while stream.read(&mut buffer)? > 0 {}
        }
    }
    Ok(())
}

/// Whether the exchange of a half-closed client ends: a silent upstream keeps it waiting.
fn ends_by_itself(moment: &Moment) -> bool {
    !["/silent", "/hint", "/stream", "/tunnel", "/half"]
        .iter()
        .any(|target| moment.sent.contains(target))
}

/// The gauges and counters, by their names without the prefix.
fn metrics(proxy: &Proxy) -> BTreeMap<String, u64> {
    let page = Client::unix(&proxy.dir().join("metrics"))
        .get("/metrics")
        .text();
    let samples = page.lines().filter_map(|line| {
        let (name, value) = line.strip_prefix("lean_proxy_")?.rsplit_once(' ')?;
        // the sum of a histogram is not a whole number
        Some((name.to_owned(), value.parse().ok()?))
    });
    samples.collect()
}

fn descriptors(proxy: &Proxy) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
    open.count()
}

// ---- what the other side sees ----

/// The upstream's end, at every byte of an answer.
#[test]
fn an_answer_that_ends_at_any_byte_is_a_502_or_is_cut_off() {
    const ANSWERS: [&str; 2] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
    ];
    let upstream = Upstream::start(|peer| {
        let target = peer.head()?.target;
        let numbers: Vec<usize> = target[1..].split('/').map(|n| n.parse().unwrap()).collect();
        peer.write(&ANSWERS[numbers[0]][..numbers[1]])?;
        if numbers[2] == 1 { peer.cut() } else { Ok(()) }
    });
    let proxy = Proxy::before(&upstream, ALL);
    for (which, answer) in ANSWERS.iter().enumerate() {
        let head = answer.find("\r\n\r\n").unwrap() + 4;
        for (cut, how) in (0..answer.len()).flat_map(|cut| [(cut, 0), (cut, 1)]) {
            let case = format!("{which}, cut at {cut}, {how}");
            let mut client = proxy.client();
            client.send(get(&format!("/{which}/{cut}/{how}")));
            match client.try_receive() {
                // a reset may overtake a complete head
                Ok(response) => assert!(
                    response.status == 502 && (cut < head || how == 1),
                    "{case}: {response:?}"
                ),
                Err(broken) => {
                    let kind = broken.cause.kind();
                    assert!(
                        cut >= head
                            && [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset]
                                .contains(&kind),
                        "{case}: {broken:?}"
                    );
                }
            }
        }
    }
}

/// The client's end, at every byte of a request.
#[test]
fn a_request_that_ends_at_any_byte_is_never_passed_on_as_whole() {
    for request in [
        get("/"),
        with("POST /", &["Content-Length: 5"]) + "hello",
        with("POST /", &["Transfer-Encoding: chunked"])
            + "2;x\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
    ] {
        let upstream = Upstream::fixed(OK);
        let proxy = Proxy::before(&upstream, ALL);
        for cut in 0..request.len() {
            let moment = Moment {
                sent: request[..cut].to_owned(),
                awaited: 0,
            };
            for leave in [Leave::Close, Leave::Reset, Leave::HalfClose] {
                // the proxy may reset a client that has half-closed
                let _ = break_off(proxy.address(), &moment, leave);
            }
        }
        eventually("its upstream is let go", || upstream.open() == 0);
        assert_eq!(upstream.requests(), 0, "{request:?}");
        assert_eq!(proxy.get("/").text(), "ok");
    }
}

/// A failure in the middle of a pipeline gives one answer in its place, and the connection ends where the next request
/// cannot be found.
#[test]
fn a_pipeline_goes_on_after_a_failure_or_ends_with_it() {
    let upstream = Upstream::start(|peer| {
        while let Some(request) = peer.request()? {
            match request.target.as_str() {
                "/gone" => return Ok(()),
                "/garbage" => return peer.write("garbage\r\n\r\n"),
                "/cut" => return peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"),
                "/late" => panic!("it was read behind the end"),
                _ => peer.write(OK)?,
            }
        }
        Ok(())
    });
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP'}, {path: /down/, target: 'unix:DIR/none'}]\n",
    );
    for (failure, status) in [
        ("/gone", 502),
        ("/garbage", 502),
        ("/down/", 502),
        ("/down", 307),
        ("/a/../b", 400),
        ("/health", 200),
    ] {
        let mut client = proxy.client();
        client.send(get("/") + &get(failure) + &get("/") + &get(failure) + &get("/"));
        for expected in [200, status, 200, status, 200] {
            assert_eq!(client.receive().status, expected, "{failure}");
        }
    }
    let chunks = with("POST /", &["Transfer-Encoding: chunked"]);
    for ending in [
        get("/cut"),
        "GET /late\r\n\r\n".to_owned(),
        "GET /late HTTP/1.1\r\n\r\n".to_owned(),
        chunks.clone() + "3\r\nabcd\r\n",
        chunks + "nonsense\r\n",
        with("GET /", &["Connection: close"]),
    ] {
        let mut client = proxy.client();
        let _ = client.try_send(get("/") + &ending + &get("/late"));
        assert_eq!(client.receive().text(), "ok", "{ending:?}");
        let second = client.try_receive();
        let (rest, _) = client.until_end();
        assert!(rest.is_empty(), "{ending:?}: {second:?}, then {rest:?}");
    }
}

/// Both sides at once, a byte each time.
#[test]
fn an_echo_may_drip_both_ways_at_once() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        while let Some(data) = peer.reader().chunk()? {
            peer.chunk(data)?;
        }
        peer.reader().trailers()?;
        peer.write("0\r\n\r\n")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Transfer-Encoding: chunked"]));
    assert_eq!(client.head().status, 200);
    for byte in b'a'..=b'z' {
        for part in [b"1".as_slice(), b"\r", b"\n", &[byte], b"\r", b"\n"] {
            client.send(part);
        }
        assert_eq!(client.reader().chunk().unwrap(), Some(vec![byte]));
    }
    for part in ["0", "\r", "\n", "\r", "\n"] {
        client.send(part);
    }
    assert_eq!(client.reader().chunk().unwrap(), None);
}

/// An upstream that stops in the middle of its answer is waited for, until another request waits for its place.
#[test]
fn an_upstream_that_stops_in_its_body_gives_way_to_a_waiting_request() {
    for start in [
        "Content-Length: 9\r\n\r\nhel",
        "Transfer-Encoding: chunked\r\n\r\n9\r\nhel",
    ] {
        let upstream = Upstream::start(move |peer| {
            let head = peer.head()?;
            if head.target == "/stops" {
                peer.write(format!("HTTP/1.1 200 OK\r\n{start}"))?;
                return peer.await_close();
            }
            peer.write(OK)
        });
        let proxy = Proxy::before(
            &upstream,
            &format!("{ALL}proxy: {{max_concurrent_requests: 1, queue_timeout: 20}}\n"),
        );
        let mut stopped = proxy.client();
        stopped.send(get("/stops"));
        assert_eq!(stopped.head().status, 200);
        assert_eq!(proxy.get("/").text(), "ok");
        // and its client sees that the answer is incomplete
        let (rest, _) = stopped.until_end();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{start:?}");
        eventually("its upstream is let go", || upstream.open() == 0);
    }
}

#[test]
fn ten_thousand_broken_exchanges_leak_nothing() {
    let upstream = Upstream::start(misbehave);
    // with low limits a leak of places, connections or memory shows soon
    let yaml = format!(
        "{ALL}metrics: {{listen: 'unix:DIR/metrics'}}\n\
        proxy: {{max_concurrent_requests: 40}}\n\
        transport: {{max_conns_per_host: 40, max_idle_conns: 0, idle_conn_timeout: 1}}\n\
        server: {{max_connections: 100}}\n"
    );
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "32MiB")
        .start();
    // warm-up, for what is allocated once and kept: buffers, the threads' stacks
    breaks(&proxy, 200);
    holds_nothing(&proxy);
    let (files, kb) = (descriptors(&proxy), proxy.own_kb());

    breaks(&proxy, MANY);
    holds_nothing(&proxy);
    eventually("its descriptors are closed", || {
        descriptors(&proxy) <= files
    });
    eventually("the upstream is rid of it", || upstream.open() == 0);
    let spare = if is_release() { 400 } else { 1500 };
    let since = Instant::now();
    while proxy.own_kb() > kb + spare {
        assert!(
            since.elapsed() < PATIENCE,
            "{kb} kB became {}",
            proxy.own_kb()
        );
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(proxy.get("/").text(), "ok");
    let accepted = metrics(&proxy)["connections_accepted_total"];
    assert!(accepted >= (MANY + 200) as u64, "{accepted} were accepted");
}

/// `many` exchanges, each cut off at another moment or in another way.
fn breaks(proxy: &Proxy, many: usize) {
    let (address, moments) = (proxy.address(), moments());
    thread::scope(|scope| {
        for worker in 0..CROWD {
            let moments = &moments;
            scope.spawn(move || {
                for i in (worker..many).step_by(CROWD) {
                    let moment = &moments[i % moments.len()];
                    let leave = match i / moments.len() % 3 {
                        0 => Leave::Close,
                        1 if ends_by_itself(moment) => Leave::HalfClose,
                        _ => Leave::Reset,
                    };
                    if let Err(e) = break_off(address, moment, leave) {
                        let gone = [
                            ErrorKind::ConnectionReset,
                            ErrorKind::BrokenPipe,
                            ErrorKind::NotConnected,
                        ];
                        assert!(gone.contains(&e.kind()), "{:?} {leave:?}: {e}", moment.sent);
                    }
                }
            });
        }
    });
}

/// Waits until all gauges are zero: connections, exchanges, queues, bytes of the budget.
fn holds_nothing(proxy: &Proxy) {
    const GAUGES: [&str; 7] = [
        "connections_open",
        "connections_parked",
        "exchanges",
        "waiting",
        "upstream_open",
        "upstream_idle",
        "memory_used_bytes",
    ];
    let since = Instant::now();
    loop {
        let all = metrics(proxy);
        let held: Vec<_> = GAUGES.iter().filter(|name| all[**name] > 0).collect();
        if held.is_empty() {
            return;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "it still holds {held:?}: {all:#?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}
