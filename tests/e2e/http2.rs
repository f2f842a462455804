//! HTTP/2 towards clients: each stream is an exchange like any other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, SupportedProtocolVersion, version::TLS13};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    h2::{
        Answer, DATA, Frames, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, ask, begin,
        connect, connect_tls, field, frame, get, head, run, send,
    },
    http2_attacks::long_field,
    metrics::metric,
    support::{Client, OK, Proxy, Setup, Signal, Upstream, eventually, pattern},
    tls_listener::{Authority, LISTEN, authority, trust, write_files},
};

/// Everything to the upstream `UP`, and HTTP/2 on the listener.
const ALL: &str = "listen: {address: '127.0.0.1:0', http2: true}\nroutes: [{path: /, target: 'http://UP'}]\nlog: {access: true, level: debug}\n";

/// Error codes (RFC 9113 §7).
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn proxy(upstream: &Upstream, more: &str) -> Proxy {
    Proxy::before(upstream, &format!("{ALL}{more}"))
}

#[test]
fn a_request_reaches_the_upstream_as_http_1_would_have_brought_it() {
    let upstream = Upstream::echo_head();
    let proxy = proxy(&upstream, "");
    let fields = [
        ("cookie", "a=1"),
        ("x-a", "b"),
        ("cookie", "b=2"),
        ("te", "trailers"),
        ("x_forwarded_for", "1.2.3.4"),
    ];
    let answer = ask(proxy.address(), get("/x/y?z=%2F", &fields));
    let text = answer.text().to_ascii_lowercase();
    assert_eq!(answer.status, 200);
    assert!(text.starts_with("get /x/y?z=%2f http/1.1\r\n"), "{text}");
    for line in [
        format!("host: {}", upstream.authority()),
        "cookie: a=1; b=2".to_owned(),
        "x-a: b".to_owned(),
        "x-forwarded-for: 127.0.0.1".to_owned(),
        "x-forwarded-host: a.example".to_owned(),
        "x-forwarded-proto: http".to_owned(),
        "te: trailers".to_owned(),
        "connection: te".to_owned(),
    ] {
        assert!(
            text.contains(&format!("\r\n{line}\r\n")),
            "{line} in {text}"
        );
    }
    assert!(
        !text.contains("1.2.3.4") && !text.contains("content-length"),
        "{text}"
    );
    let line = proxy.await_log("access line", |line| line.contains("msg=\"access\""));
    for part in [
        "method=GET",
        "host=a.example",
        "path=/x/y",
        "status=200",
        "outcome=ok",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn bodies_and_trailers_pass_both_ways() {
    let upstream = Upstream::answering(|request, peer| {
        peer.note(format!("{:?} {:?}", request.body, request.trailers.0));
        let fields =
            "Transfer-Encoding: chunked\r\nTrailer: grpc-status\r\nConnection: x-hop\r\nX-Hop: 1";
        peer.write(format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n"))?;
        peer.chunk("hel")?;
        peer.chunk("lo")?;
        peer.write("0\r\ngrpc-status: 0\r\nContent-Length: 7\r\n\r\n")
    });
    let proxy = proxy(&upstream, "");
    let body = Frames::new(&[b"one", b"two"], &[("x-sum", "6")]);
    let request = send("POST", "/", &[("te", "trailers")], body);
    let answer = ask(proxy.address(), request);
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    let names: Vec<&str> = answer
        .trailers
        .keys()
        .map(http::HeaderName::as_str)
        .collect();
    assert_eq!(names, ["grpc-status"], "no field that frames");
    for hop in ["transfer-encoding", "connection", "x-hop"] {
        assert!(!answer.fields.contains_key(hop), "{hop}");
    }
    let seen = &upstream.notes()[0];
    assert!(
        seen.contains(&format!("{:?}", b"onetwo")) && seen.contains("x-sum"),
        "{seen}"
    );
}

#[test]
fn a_body_of_a_told_length_keeps_it() {
    let upstream = Upstream::answering(|request, peer| {
        peer.note(String::from_utf8_lossy(&request.raw).to_ascii_lowercase());
        peer.write(OK)
    });
    let proxy = proxy(&upstream, "");
    let request = send(
        "PUT",
        "/",
        &[("content-length", "5")],
        Frames::new(&[b"hello"], &[]),
    );
    assert_eq!(ask(proxy.address(), request).text(), "ok");
    let seen = &upstream.notes()[0];
    assert!(seen.contains("\r\ncontent-length: 5\r\n"), "{seen}");
    assert!(!seen.contains("transfer-encoding"), "{seen}");
}

#[test]
fn answers_without_a_body_and_answers_of_our_own_are_what_they_are_in_http_1() {
    let upstream = Upstream::per_path(&[
        ("/204", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("/304", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        ("/ok", OK),
    ]);
    let yaml = "listen: {address: '127.0.0.1:0', http2: true}\ncors: {allowed_origins: ['http://a.example']}\nroutes:\n  - {path: /up/, target: 'http://UP'}\n  - {path: /old, redirect: {to: 'http://b.example/new'}}\n  - {path: /fixed, respond: {body: hi}}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let origin = ("origin", "http://a.example");
    let preflight = ("access-control-request-method", "PUT");
    for (method, path, fields, status, body) in [
        ("GET", "/up/204", &[][..], 204, ""),
        ("GET", "/up/304", &[], 304, ""),
        ("HEAD", "/up/ok", &[], 200, ""),
        ("GET", "/up/ok", &[origin], 200, "ok"),
        ("GET", "/up", &[], 307, ""),
        ("GET", "/old", &[], 308, ""),
        ("GET", "/fixed", &[], 200, "hi"),
        ("HEAD", "/fixed", &[], 200, ""),
        ("GET", "/health", &[], 200, "ok\n"),
        ("GET", "/no", &[], 404, "Nothing is served at this path.\n"),
        (
            "GET",
            "/up/../x",
            &[],
            400,
            "The path may not hold \"..\" segments.\n",
        ),
        ("OPTIONS", "/up/ok", &[origin, preflight], 204, ""),
        ("TRACE", "/up/ok", &[], 405, "This method is not allowed.\n"),
    ] {
        let request = send(method, path, fields, Frames::default());
        let answer = ask(proxy.address(), request);
        assert_eq!(
            (answer.status, answer.text()),
            (status, body),
            "{method} {path}"
        );
        let allowed = answer.fields.get("access-control-allow-origin");
        assert_eq!(
            allowed.is_some(),
            fields.contains(&origin),
            "{method} {path}"
        );
        if method == "HEAD" {
            assert_eq!(answer.fields["content-length"], "2", "{path}");
        }
    }
}

#[test]
fn a_hundred_streams_of_one_connection_are_in_work_at_the_same_time() {
    let (upstream, release) = Upstream::held();
    let proxy = proxy(&upstream, "transport: {max_conns_per_host: 0}\n");
    run(async {
        let sender = connect(proxy.address()).await;
        let asked: Vec<_> = (0..100)
            .map(|number| {
                let mut sender = sender.clone();
                let request = get(&format!("/{number}"), &[]);
                tokio::task::spawn_local(async move {
                    Answer::read(sender.send_request(request).await?).await
                })
            })
            .collect();
        // the upstream answers none before all have arrived
        while upstream.requests() < 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        release.raise_many(100);
        for answer in asked {
            assert_eq!(answer.await.unwrap().unwrap().status, 200);
        }
    });
}

#[test]
fn a_listener_that_does_not_offer_it_says_so_in_http_1() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP'}]\nlog: {level: debug}\n",
    );
    let mut client = proxy.client();
    client.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    let answer = client.receive();
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.body,
        b"This port does not speak version 2 of HTTP.\n"
    );
    proxy.await_log("refusal", |line| line.contains("preface"));
    // a listener with HTTP/2 speaks HTTP/1.1 as well
    let proxy = Proxy::before(&upstream, ALL);
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn what_http_1_refuses_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = proxy(&upstream, "");
    for (host, status, text) in [
        ("b.example", 400, "The request is malformed.\n"),
        ("A.example", 200, "ok"),
    ] {
        let answer = ask(proxy.address(), get("/", &[("host", host)]));
        assert_eq!((answer.status, answer.text()), (status, text), "{host}");
    }
    let mut raw = Raw::connect(proxy.address(), b"");
    let twice = [
        head("GET", "/"),
        field("content-length", "0"),
        field("content-length", "1"),
    ];
    for block in [
        [head("GET", "/"), field("connection", "close")].concat(),
        [head("GET", "/"), field("transfer-encoding", "chunked")].concat(),
        [
            field(":method", "GET"),
            field(":scheme", "http"),
            field(":authority", "a"),
        ]
        .concat(),
    ] {
        let stream = raw.open(&block, true);
        let reset = raw.until("reset", |it| it.0 == RST_STREAM);
        assert_eq!(reset.2, stream);
        assert_eq!(reset.3, PROTOCOL_ERROR.to_be_bytes());
    }
    let stream = raw.open(&twice.concat(), true);
    raw.until("an answer", |it| it.2 == stream);
    assert_eq!(upstream.requests(), 1, "only the valid one");
}

#[test]
fn a_client_that_resets_its_stream_lets_the_upstream_go() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.await_close()
    });
    let proxy = proxy(&upstream, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let stream = raw.open(&head("GET", "/"), true);
    upstream.await_requests(1);
    raw.write(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    upstream.await_open(0);
    proxy.await_log("access line", |line| line.contains("outcome=client-gone"));
    // the connection stays
    raw.write(&frame(PING, 0, 0, &[7; 8]));
    raw.until("pong", |it| it.0 == PING && it.3 == [7; 8]);
}

#[test]
fn a_client_that_resets_a_stream_whose_answer_waits_for_it_keeps_its_connection() {
    let upstream = Upstream::fixed(OK);
    let proxy = proxy(&upstream, "");
    // the first window of each stream is 0
    let window = [[0, 4].as_slice(), &0_u32.to_be_bytes()].concat();
    let mut raw = Raw::connect(proxy.address(), &window);
    let stream = raw.open(&head("GET", "/"), true);
    raw.until("its head", |it| it.0 == HEADERS && it.2 == stream);
    // enough for one byte: the rest waits in hyper
    raw.write(&frame(8, 0, stream, &1_u32.to_be_bytes()));
    raw.until("a byte", |it| it.0 == DATA && it.3 == b"o");
    raw.write(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
    proxy.await_log("access line", |line| line.contains("outcome=client-gone"));
    raw.write(&frame(PING, 0, 0, &[7; 8]));
    raw.until("pong", |it| it.0 == PING && it.3 == [7; 8]);
}

#[test]
fn an_upload_that_breaks_off_is_never_whole_whatever_the_reason_says() {
    for reason in [NO_ERROR, CANCEL] {
        for length in [Vec::new(), field("content-length", "1000")] {
            let upstream = Upstream::start(|peer| peer.request().map(drop));
            let proxy = proxy(&upstream, "");
            let mut raw = Raw::connect(proxy.address(), b"");
            let stream = raw.open(&[head("POST", "/"), length].concat(), false);
            raw.write(&frame(DATA, 0, stream, b"half"));
            eventually("half of it has arrived", || {
                upstream.connections() > 0
                    && upstream.received(0).trim_ascii_end().ends_with(b"half")
            });
            raw.write(&frame(RST_STREAM, 0, stream, &reason.to_be_bytes()));
            upstream.await_open(0);
            assert_eq!(upstream.requests(), 0, "cut, and not ended");
        }
    }
}

#[test]
fn an_answer_that_breaks_off_is_reset_behind_what_came_of_it() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
    });
    let proxy = proxy(&upstream, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let stream = raw.open(&head("GET", "/"), true);
    raw.until("what came", |it| it.0 == DATA && it.3 == b"hello");
    let reset = raw.until("a reset", |it| it.0 == RST_STREAM && it.2 == stream);
    // in gRPC CANCEL would mean that the call was given up by the client
    assert_eq!(reset.3, INTERNAL_ERROR.to_be_bytes());
    proxy.await_log("warning", |line| line.contains("outcome=upstream-cut"));
}

#[test]
fn a_stream_that_is_not_read_holds_up_neither_the_others_nor_its_own_upload() {
    let upstream = Upstream::answering(|request, peer| {
        if request.target == "/small" {
            return peer.write(OK);
        }
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")?;
        peer.write(pattern(0, 10_000_000))
    });
    let proxy = proxy(&upstream, "");
    run(async {
        let mut sender = connect(proxy.address()).await;
        let stuck = sender.send_request(get("/large", &[])).await.unwrap();
        for _ in 0..20 {
            let response = sender.send_request(get("/small", &[])).await.unwrap();
            assert_eq!(Answer::read(response).await.unwrap().text(), "ok");
        }
        let answer = Answer::read(stuck).await.unwrap();
        assert!(
            answer.body == pattern(0, 10_000_000),
            "the whole body, in order"
        );
    });
}

#[test]
fn an_upload_waits_for_an_upstream_that_does_not_read() {
    let go = Signal::default();
    let signal = go.clone();
    let upstream = Upstream::start(move |peer| {
        peer.head()?;
        signal.wait()?;
        let body = "x".repeat(10);
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{body}"
        ))?;
        peer.await_close()
    });
    let proxy = proxy(&upstream, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let stream = raw.open(&head("POST", "/"), false);
    let mut window = 65_535_usize;
    while window >= 1_000 {
        assert!(raw.write(&frame(DATA, 0, stream, &[b'x'; 1_000])));
        window -= 1_000;
    }
    go.raise();
    raw.until("the early answer", |it| it.0 == HEADERS && it.2 == stream);
}

#[test]
fn the_time_outs_of_http_1_hold() {
    let upstream = Upstream::start(|peer| {
        let request = peer.head()?;
        if request.target == "/long" {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")?;
            return peer.write(pattern(0, 10_000_000));
        }
        peer.await_close()
    });
    let more = "server: {header_timeout: 0.3, idle_timeout: 0.4, read_timeout: 0.3, write_timeout: 0.5}\ntransport: {response_header_timeout: 0.3}\n";
    let proxy = proxy(&upstream, more);
    let address = proxy.address();
    assert_eq!(ask(address, get("/never", &[])).status, 504);
    let mut raw = Raw::connect(address, b"");
    raw.open(&head("POST", "/body"), false);
    proxy.await_log("408", |line| line.contains("outcome=body-timed-out"));
    // no window: the client takes nothing
    let window = [[0, 4].as_slice(), &0_u32.to_be_bytes()].concat();
    let mut raw = Raw::connect(address, &window);
    let stream = raw.open(&head("GET", "/long"), true);
    raw.until("its head", |it| it.0 == HEADERS && it.2 == stream);
    let reset = raw.until("reset", |it| it.0 == RST_STREAM);
    assert_eq!(reset.2, stream);
    proxy.await_log("a stuck client", |line| {
        line.contains("outcome=write-timed-out")
    });
    // between two requests, and before the first
    assert_eq!(raw.reason_to_go(), Some(NO_ERROR));
    assert_eq!(Raw::connect(address, b"").reason_to_go(), Some(NO_ERROR));
}

#[test]
fn what_is_in_work_at_the_end_is_answered_and_the_client_told_to_go() {
    let (upstream, release) = Upstream::held();
    let mut proxy = proxy(&upstream, "");
    run(async {
        let mut sender = connect(proxy.address()).await;
        let asked = tokio::task::spawn_local(sender.send_request(get("/", &[])));
        while upstream.requests() < 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        proxy.signal("TERM");
        proxy.await_log("stop", |line| line.contains("stopping"));
        release.raise();
        let answer = Answer::read(asked.await.unwrap().unwrap()).await.unwrap();
        assert_eq!(answer.status, 200);
        while !sender.is_closed() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(proxy.exit().success());
}

#[test]
fn a_request_that_has_reached_the_upstream_is_never_refused_as_unprocessed() {
    let (upstream, release) = Upstream::held();
    let proxy = proxy(&upstream, "proxy: {max_concurrent_requests: 2}\n");
    let mut raw = Raw::connect(proxy.address(), b"");
    for _ in 0..2 {
        raw.open(&head("GET", "/"), true);
    }
    upstream.await_requests(2);
    // another address has a right to one of the two places
    let mut other = Client::calling_from("127.0.0.2".parse().unwrap(), proxy.address());
    other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let (.., code) = raw.until("that gives way", |it| it.0 == RST_STREAM);
    assert_ne!(code, REFUSED_STREAM.to_be_bytes());
    proxy.await_log("its outcome", |line| line.contains("outcome=evicted"));
    release.raise_many(3);
    assert_eq!(other.receive().status, 200);
}

#[test]
fn bytes_are_counted_both_ways() {
    let upstream = Upstream::fixed(OK);
    let proxy = proxy(&upstream, "metrics: {listen: '127.0.0.1:0'}\n");
    let request = send("POST", "/", &[], Frames::new(&[b"hello"], &[]));
    assert_eq!(ask(proxy.address(), request).text(), "ok");
    proxy.await_log("its bytes", |line| {
        line.contains("msg=\"access\"") && line.contains(" received=5 sent=2 ")
    });
    for (name, bytes) in [("in", 5), ("out", 2)] {
        let name = format!("lean_proxy_client_bytes_{name}_total");
        assert_eq!(metric(&proxy, &name), bytes);
    }
}

#[test]
fn a_flood_of_frames_that_carry_nothing_is_ended() {
    let upstream = Upstream::fixed(OK);
    let proxy = proxy(&upstream, "metrics: {listen: '127.0.0.1:0'}\n");
    let settings = frame(SETTINGS, 0, 0, b"");
    let ping = frame(PING, 0, 0, &[0; 8]);
    let priority = frame(2, 0, 1, &[0, 0, 0, 0, 1]);
    let unknown = frame(0x20, 0, 0, &[0; 1_000]);
    let window = frame(8, 0, 0, &1_u32.to_be_bytes());
    for (what, flood) in [
        ("SETTINGS", settings),
        ("PING", ping),
        ("PRIORITY", priority),
        ("unknown", unknown),
        ("WINDOW_UPDATE", window),
    ] {
        let mut raw = Raw::connect(proxy.address(), b"");
        let batch = flood.repeat(100);
        let begun = Instant::now();
        while raw.write(&batch) && begun.elapsed() < Duration::from_secs(10) {}
        let failed = metric(&proxy, "lean_proxy_failures_total{outcome=\"flooded\"}");
        assert!(failed > 0, "{what}");
        drop(raw);
        assert_eq!(ask(proxy.address(), get("/", &[])).status, 200, "{what}");
    }
    // a client that reads gets the reason
    let mut raw = Raw::connect(proxy.address(), b"");
    raw.write(&frame(PING, 0, 0, &[0; 8]).repeat(1_001));
    assert_eq!(raw.reason_to_go(), Some(ENHANCE_YOUR_CALM));
}

#[test]
fn rapid_resets_are_ended() {
    let (upstream, _release) = Upstream::held();
    let proxy = proxy(&upstream, "");
    let mut raw = Raw::connect(proxy.address(), b"");
    let mut opened = 0;
    for _ in 0..3_000 {
        let stream = raw.open(&head("GET", "/"), true);
        if !raw.write(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())) {
            break;
        }
        opened += 1;
    }
    assert_eq!(
        raw.reason_to_go().unwrap_or(ENHANCE_YOUR_CALM),
        ENHANCE_YOUR_CALM,
        "{opened}"
    );
    assert!(upstream.requests() < 1_500, "{}", upstream.requests());
}

#[test]
fn a_request_that_waits_with_too_many_small_frames_is_refused_and_may_be_sent_again() {
    let (upstream, release) = Upstream::held();
    let more =
        "transport: {max_conns_per_host: 1}\nproxy: {queue_timeout: 30}\nlimits: {memory: 10MiB}\n";
    let proxy = proxy(&upstream, more);
    let mut raw = Raw::connect(proxy.address(), b"");
    let first = raw.open(&head("GET", "/first"), true);
    upstream.await_requests(1);
    let waits = raw.open(&head("POST", "/waits"), false);
    raw.write(&frame(DATA, 0, waits, b"x").repeat(242));
    let reset = raw.until("reset", |it| it.0 == RST_STREAM);
    assert_eq!(
        (reset.2, reset.3),
        (waits, REFUSED_STREAM.to_be_bytes().to_vec())
    );
    // the others go on
    release.raise_many(2);
    raw.until("an answer", |it| it.0 == HEADERS && it.2 == first);
    let again = raw.open(&head("POST", "/waits"), false);
    raw.write(&frame(DATA, 1, again, b"x"));
    raw.until("an answer", |it| it.0 == HEADERS && it.2 == again);
    assert_eq!(upstream.requests(), 2);
}

#[test]
fn a_connection_that_does_not_fit_is_told_to_go_and_http_1_goes_on() {
    let upstream = Upstream::fixed(OK);
    let proxy = Setup::new(ALL)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let mut kept = Vec::new();
    let refused = loop {
        let mut raw = Raw::connect(proxy.address(), b"");
        raw.open(&head("GET", "/health"), true);
        let found = raw.until("an answer or a GOAWAY", |it| {
            matches!(it.0, HEADERS | GOAWAY)
        });
        if found.0 == GOAWAY {
            break found.3;
        }
        kept.push(raw);
        assert!(kept.len() < 50, "memory was enough for all");
    };
    assert!(!kept.is_empty(), "memory was not enough for one");
    assert_eq!(
        refused[..8],
        [0; 8],
        "no stream was processed, and no error"
    );
    proxy.await_log("the reason", |line| {
        line.contains("no memory for an HTTP/2 connection") && line.contains("limits.memory")
    });
    assert_eq!(Client::connect(proxy.address()).get("/").status, 200);
    drop(kept);
    eventually("HTTP/2 is served again", || {
        let mut raw = Raw::connect(proxy.address(), b"");
        raw.open(&head("GET", "/health"), true);
        raw.until("an answer or a GOAWAY", |it| {
            matches!(it.0, HEADERS | GOAWAY)
        })
        .0 == HEADERS
    });
}

#[test]
fn a_client_is_told_to_connect_anew_before_its_table_of_fields_holds_much() {
    let upstream = Upstream::fixed(OK);
    let proxy = Setup::new(ALL)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    run(async {
        let mut sender = connect(proxy.address()).await;
        let large = "x".repeat(8_000);
        let mut answered = 0;
        while !sender.is_closed() && answered < 200 {
            let Ok(response) = sender.send_request(get("/", &[("x-large", &large)])).await else {
                break;
            };
            assert_eq!(Answer::read(response).await.unwrap().status, 200);
            answered += 1;
        }
        assert!((20..200).contains(&answered), "{answered}");
    });
}

#[test]
fn a_client_whose_heads_fill_many_buffers_is_told_to_go_without_an_error() {
    let upstream = Upstream::fixed(OK);
    let proxy = Setup::new(ALL)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let mut raw = Raw::connect(proxy.address(), b"");
    let large = [head("GET", "/health"), long_field("x-large", 8_000)].concat();
    let gone = loop {
        raw.open(&large, true);
        let found = raw.until("an answer or a GOAWAY", |it| {
            matches!(it.0, HEADERS | GOAWAY)
        });
        if found.0 == GOAWAY {
            break found.3;
        }
    };
    assert_eq!(gone[4..8], NO_ERROR.to_be_bytes());
}

#[test]
fn in_ten_megabytes_a_client_is_told_how_little_it_may_send() {
    let proxy = Setup::new(
        "listen: {address: '127.0.0.1:0', http2: true}\nroutes: [{path: /, respond: {}}]\n",
    )
    .env("LEAN_PROXY_MEMORY", "10MiB")
    .start();
    let mut raw = Raw::connect(proxy.address(), b"");
    let settings = raw.until("SETTINGS", |it| it.0 == SETTINGS).3;
    let value = |id: u16| {
        let mut all = settings.chunks_exact(6);
        let found = all.find(|it| it[..2] == id.to_be_bytes())?;
        Some(u32::from_be_bytes(found[2..].try_into().unwrap()))
    };
    // streams, the window of each, a frame, and a head (RFC 9113 §6.5.2)
    let told = [3, 4, 5, 6].map(value);
    assert_eq!(told[..2], [Some(32), Some(16 * 1024)]);
    assert_eq!(told[2].unwrap_or(16 * 1024), 16 * 1024);
    assert_eq!(told[3], Some(16 * 1024));
    let window = raw.until("WINDOW_UPDATE", |it| it.0 == 8 && it.2 == 0).3;
    let more = u32::from_be_bytes(window.try_into().unwrap());
    assert_eq!(65_535 + more, 128 * 1024);
}

#[test]
fn a_stream_of_many_small_frames_that_nothing_reads_ends_and_its_connection_stays() {
    let (upstream, release) = Upstream::held();
    let proxy = Setup::new(&format!(
        "{ALL}proxy: {{max_concurrent_requests: 1, queue_timeout: 60}}\n"
    ))
    .upstream("UP", &upstream)
    .env("LEAN_PROXY_MEMORY", "10MiB")
    .start();
    let mut first = Client::connect(proxy.address());
    first.send("GET /held HTTP/1.1\r\nHost: a.example\r\n\r\n");
    upstream.await_requests(1);
    let mut raw = Raw::connect(proxy.address(), b"");
    let stream = raw.open(&head("POST", "/waits"), false);
    for _ in 0..245 {
        raw.write(&frame(DATA, 0, stream, b"x"));
    }
    raw.until("its end", |it| {
        it.2 == stream && matches!(it.0, HEADERS | RST_STREAM)
    });
    let other = raw.open(&head("GET", "/health"), true);
    raw.until("an answer", |it| it.0 == HEADERS && it.2 == other);
    release.raise();
    assert_eq!(first.receive().status, 200);
}

/// A client's TLS configuration that prefers HTTP/2.
pub fn offering_both(by: &Authority) -> Arc<ClientConfig> {
    static NEWEST: [&SupportedProtocolVersion; 1] = [&TLS13];
    let mut config = ClientConfig::clone(&trust(by, &NEWEST, None));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

pub fn tls_proxy(upstream: &Upstream, by: &Authority, memory: &str) -> Proxy {
    let yaml = format!("{LISTEN}routes: [{{path: /, target: 'http://UP'}}]\n");
    let setup = Setup::new(&yaml)
        .upstream("UP", upstream)
        .env("LEAN_PROXY_MEMORY", memory);
    write_files(&setup.dir(), by);
    setup.start()
}

#[test]
fn with_tls_it_is_what_alpn_chooses() {
    let upstream = Upstream::echo_head();
    let by = authority();
    let proxy = tls_proxy(&upstream, &by, "0");
    run(async {
        let (protocol, stream) = connect_tls(proxy.address(), offering_both(&by)).await;
        assert_eq!(protocol, b"h2");
        let mut sender = begin(stream).await;
        let response = sender.send_request(get("/x", &[])).await.unwrap();
        let answer = Answer::read(response).await.unwrap();
        let text = answer.text().to_ascii_lowercase();
        assert!(text.contains("\r\nx-forwarded-proto: https\r\n"), "{text}");
        let large = Frames::new(&[&pattern(0, 300_000)], &[]);
        let response = sender.send_request(send("POST", "/", &[], large)).await;
        assert_eq!(Answer::read(response.unwrap()).await.unwrap().status, 200);
    });
}

#[test]
fn alpn_answers_http_1_where_no_http_2_connection_fits() {
    let upstream = Upstream::fixed(OK);
    let by = authority();
    let proxy = tls_proxy(&upstream, &by, "10MiB");
    run(async {
        let mut kept = Vec::new();
        let (protocol, stream) = loop {
            let (protocol, stream) = connect_tls(proxy.address(), offering_both(&by)).await;
            if protocol != b"h2" {
                break (protocol, stream);
            }
            let mut sender = begin(stream).await;
            let response = sender.send_request(get("/", &[])).await.unwrap();
            assert_eq!(Answer::read(response).await.unwrap().text(), "ok");
            kept.push(sender);
            assert!(kept.len() < 50, "memory was enough for all");
        };
        assert_eq!(protocol, b"http/1.1");
        assert!(!kept.is_empty(), "memory was not enough for one");
        let (mut reader, mut writer) = tokio::io::split(stream);
        let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
        writer.write_all(request).await.unwrap();
        let mut status = [0; 12];
        reader.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 200");
    });
}

#[test]
fn a_stream_that_is_not_read_gives_way_and_its_connection_stays() {
    let upstream = Upstream::answering(|request, peer| {
        if request.target == "/large" {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n")?;
            return peer.write(pattern(0, 10_000_000));
        }
        peer.write(OK)
    });
    let proxy = proxy(&upstream, "proxy: {max_concurrent_requests: 1}\n");
    let window = [[0, 4].as_slice(), &0_u32.to_be_bytes()].concat();
    let mut raw = Raw::connect(proxy.address(), &window);
    let stream = raw.open(&head("GET", "/large"), true);
    raw.until("its head", |it| it.0 == HEADERS && it.2 == stream);
    assert_eq!(proxy.get("/ok").status, 200, "HTTP/1.1 in its place");
    raw.until("reset", |it| it.0 == RST_STREAM && it.2 == stream);
    proxy.await_log("outcome", |line| line.contains("outcome=evicted"));
    let stream = raw.open(&head("GET", "/ok"), true);
    raw.until("an answer", |it| it.0 == HEADERS && it.2 == stream);
}

/// Answers without a body, whose heads have so many kilobytes.
fn heads_alone(kilobytes: usize) -> Upstream {
    Upstream::answering(move |request, peer| {
        let fields = format!("X-A: {}\r\n", "x".repeat(1_017)).repeat(kilobytes);
        let code = request.target.trim_start_matches('/');
        let length = if code == "204" {
            ""
        } else {
            "Content-Length: 5\r\n"
        };
        peer.write(format!("HTTP/1.1 {code} A\r\n{length}{fields}\r\n"))
    })
}

#[test]
fn a_large_head_without_a_body_is_an_answer_like_a_small_one() {
    for kilobytes in [0, 8] {
        let upstream = heads_alone(kilobytes);
        let proxy = proxy(&upstream, "");
        for (method, path) in [("GET", "/204"), ("GET", "/304"), ("HEAD", "/200")] {
            let answer = ask(proxy.address(), send(method, path, &[], Frames::default()));
            assert_eq!(answer.status.to_string(), path[1..]);
            assert_eq!(answer.fields.get_all("x-a").iter().count(), kilobytes);
            assert!(answer.body.is_empty());
            let length = answer.fields.get("content-length");
            let has_length = method == "HEAD" || (path == "/304" && kilobytes == 0);
            assert_eq!(length.is_some(), has_length, "{method} {path}");
        }
    }
}

#[test]
fn a_large_head_that_its_client_does_not_read_is_paid_for_and_gives_way() {
    let upstream = heads_alone(50);
    let proxy = proxy(&upstream, "limits: {memory: 10MiB}\n");
    let mut raw = Raw::connect(proxy.address(), b"");
    for _ in 0..32 {
        raw.open(&head("GET", "/204"), true);
    }
    eventually("its exchanges end where memory is short", || {
        let is_told = |line: &String| line.contains("outcome=evicted");
        proxy.get("/204").status == 204 && proxy.logs().iter().any(is_told)
    });
}
