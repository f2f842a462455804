//! Bodies are streamed in both directions, never collected, and never passed on as complete if they were cut short.

use std::{
    io::{ErrorKind, Write},
    thread,
};

use crate::{
    strict::{Framing, Response},
    support::{
        ALL, Broken, Client, OK, Proxy, Signal, Upstream, get, is_release, pattern, read_pattern,
        with,
    },
};

const MEGABYTE: usize = 1 << 20;

// ---- piece by piece ----

#[test]
fn server_sent_events_arrive_one_by_one() {
    for head in [
        "Transfer-Encoding: chunked\r\n",
        "Content-Length: 45\r\n",
        "",
    ] {
        let next = Signal::default();
        let release = next.clone();
        let chunked = head.starts_with("Transfer");
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{head}\r\n"
            ))?;
            for i in 0..5 {
                release.wait()?;
                let event = format!("data: {i}\n\n");
                if chunked {
                    peer.chunk(event)?;
                } else {
                    peer.write(event)?;
                }
            }
            if chunked {
                peer.write("0\r\n\r\n")
            } else {
                Ok(())
            }
        });
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        client.send(get("/"));
        let response = client.head();
        assert_eq!(response.one("content-type"), Some("text/event-stream"));
        let mut body = Vec::new();
        for i in 0..5 {
            next.raise();
            let whole = format!("data: {i}\n\n");
            body.extend(piece(&mut client, response.framing, whole.len()));
            assert!(
                body.ends_with(whole.as_bytes()),
                "{head:?}, event {i}: {}",
                body.escape_ascii()
            );
        }
    }
}

/// The next `n` bytes of a body, whatever its framing.
fn piece(client: &mut Client, framing: Framing, n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < n {
        match framing {
            Framing::Chunked => bytes.extend(client.reader().chunk().unwrap().expect("a chunk")),
            _ => bytes.extend(client.reader().exact(n - bytes.len()).unwrap()),
        }
    }
    bytes
}

#[test]
fn a_chunked_upload_arrives_piece_by_piece_and_stays_chunked() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        assert_eq!(head.framing, Framing::Chunked);
        while let Some(chunk) = peer.reader().chunk()? {
            peer.note(String::from_utf8_lossy(&chunk));
        }
        peer.reader().trailers()?;
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Transfer-Encoding: chunked"]));
    for i in 0..5 {
        client.chunk(format!("piece {i}"));
        upstream.await_note(&format!("piece {i}"));
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_upload_of_known_length_arrives_piece_by_piece_and_keeps_its_length() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        assert_eq!(head.framing, Framing::Length(20));
        for _ in 0..4 {
            let piece = peer.reader().exact(5)?;
            peer.note(String::from_utf8_lossy(&piece));
        }
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 20"]));
    for i in 0..4 {
        client.send(format!("<{i:03}>"));
        upstream.await_note(&format!("<{i:03}>"));
    }
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_upload_that_is_echoed_runs_both_ways_at_once() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        while let Some(chunk) = peer.reader().chunk()? {
            peer.chunk(chunk)?;
        }
        peer.reader().trailers()?;
        peer.write("0\r\n\r\n")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Transfer-Encoding: chunked"]));
    client.chunk("first");
    assert_eq!(client.head().framing, Framing::Chunked);
    assert_eq!(piece(&mut client, Framing::Chunked, 5), b"first");
    for i in 0..20 {
        client.chunk(format!("piece {i:02}"));
        assert_eq!(
            piece(&mut client, Framing::Chunked, 8),
            format!("piece {i:02}").as_bytes()
        );
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.reader().chunk().unwrap(), None);
}

#[test]
fn bodies_of_every_size_pass_in_every_framing() {
    let upstream = Upstream::answering(|request, peer| {
        let (framing, size) = request.target[1..].split_once('/').unwrap_or_default();
        let body = pattern(0, size.parse().unwrap_or(0));
        assert!(
            request.body == body,
            "{}: {} bytes",
            request.target,
            request.body.len()
        );
        match framing {
            "length" => peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                body.len()
            ))?,
            _ => peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?,
        }
        if framing == "length" {
            return peer.write(body);
        }
        body.chunks(1000).try_for_each(|chunk| peer.chunk(chunk))?;
        peer.write("0\r\n\r\n")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for size in [
        0, 1, 2, 1023, 4095, 4096, 4097, 8191, 8192, 8193, 16_384, 65_535, 65_536, 100_000, 300_001,
    ] {
        let body = pattern(0, size);
        client
            .send(with(
                &format!("POST /length/{size}"),
                &[&format!("Content-Length: {size}")],
            ))
            .send(&body);
        let response = client.receive();
        assert!(
            response.framing == Framing::Length(size as u64) && response.body == body,
            "length {size}"
        );
        client.send(with(
            &format!("POST /chunked/{size}"),
            &["Transfer-Encoding: chunked"],
        ));
        body.chunks(777).for_each(|chunk| {
            client.chunk(chunk);
        });
        client.send("0\r\n\r\n");
        let response = client.receive();
        assert!(
            response.framing == Framing::Chunked && response.body == body,
            "chunked {size}"
        );
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_answer_that_ends_with_its_connection_passes_completely() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        peer.write(pattern(0, 200_000))
    });
    let proxy = Proxy::before(&upstream, ALL);
    for version in ["1.1", "1.0"] {
        let response = proxy.ask(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
        assert!(
            response.body == pattern(0, 200_000),
            "HTTP/{version}: {} bytes",
            response.body.len()
        );
        assert!(version == "1.1" || response.framing == Framing::Close);
    }
}

#[test]
fn sixty_four_megabytes_pass_both_ways() {
    const SIZE: usize = 64 * MEGABYTE;
    for chunked in [false, true] {
        let upstream = Upstream::start(move |peer| {
            let head = peer.head()?;
            let mut at = 0;
            while at < SIZE {
                let bytes = if chunked {
                    peer.reader().chunk()?.unwrap_or_default()
                } else {
                    peer.reader().some()?
                };
                assert!(
                    !bytes.is_empty() && bytes == pattern(at, bytes.len()),
                    "{} at {at}",
                    head.target
                );
                at += bytes.len();
            }
            if chunked {
                assert_eq!(peer.reader().chunk()?, None);
                peer.reader().trailers()?;
            }
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
            (0..SIZE)
                .step_by(MEGABYTE)
                .try_for_each(|from| peer.write(pattern(from, MEGABYTE)))
        });
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        let framing = if chunked {
            "Transfer-Encoding: chunked".to_owned()
        } else {
            format!("Content-Length: {SIZE}")
        };
        client.send(with("POST /", &[&framing]));
        for from in (0..SIZE).step_by(MEGABYTE) {
            let block = pattern(from, MEGABYTE);
            if chunked {
                client.chunk(block)
            } else {
                client.send(block)
            };
        }
        if chunked {
            client.send("0\r\n\r\n");
        }
        let response = client.head();
        assert_eq!(response.framing, Framing::Length(SIZE as u64));
        read_pattern(client.reader(), SIZE).unwrap();
    }
}

// ---- back-pressure ----

/// kB that a stalled stream may cost: far less than the kernel's buffers hold.
fn stall_ceiling() -> u64 {
    if is_release() { 512 } else { 2048 }
}

#[test]
fn a_client_that_does_not_read_stops_its_upstream_and_costs_little() {
    const SIZE: usize = 256 * MEGABYTE;
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = Upstream::start(move |peer| {
        peer.request()?;
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        let sent = peer.write_until_stalled(0, SIZE)?;
        peer.note(if sent < SIZE { "stalled" } else { "swallowed" });
        release.wait()?;
        (sent..SIZE)
            .step_by(MEGABYTE)
            .try_for_each(|from| peer.write(pattern(from, MEGABYTE.min(SIZE - from))))
    });
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/health");
    let before = proxy.own_kb();
    let mut client = proxy.client();
    client.send(get("/"));
    crate::support::eventually("the upstream is done writing", || {
        upstream.notes().len() == 1
    });
    assert_eq!(upstream.notes(), ["stalled"]);
    let more = proxy.own_kb().saturating_sub(before);
    assert!(more < stall_ceiling(), "a stalled download costs {more} kB");
    go_on.raise();
    client.head();
    read_pattern(client.reader(), SIZE).unwrap();
}

#[test]
fn an_upstream_that_does_not_read_stops_its_client_and_costs_little() {
    const SIZE: usize = 256 * MEGABYTE;
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = Upstream::start(move |peer| {
        peer.head()?;
        release.wait()?;
        read_pattern(peer.reader(), SIZE)?;
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/health");
    let before = proxy.own_kb();
    let mut client = proxy.client();
    client.send(with("POST /", &[&format!("Content-Length: {SIZE}")]));
    let sent = client.write_until_stalled(0, SIZE);
    assert!(sent < SIZE, "the whole upload was swallowed");
    let more = proxy.own_kb().saturating_sub(before);
    assert!(more < stall_ceiling(), "a stalled upload costs {more} kB");
    go_on.raise();
    for from in (sent..SIZE).step_by(MEGABYTE) {
        client.send(pattern(from, MEGABYTE.min(SIZE - from)));
    }
    assert_eq!(client.receive().status, 200);
}

// ---- trailers ----

#[test]
fn trailers_of_an_answer_reach_a_client_that_takes_them() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-More\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 42\r\nX-More: a\r\n\r\n",
    );
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let response = client.ask(with("GET /", &["TE: trailers", "Connection: TE"]));
    assert_eq!(
        (
            response.text().as_str(),
            response.trailers.one("x-sum"),
            response.trailers.one("x-more")
        ),
        ("abc", Some("42"), Some("a"))
    );
    assert_eq!(response.fields.list("trailer"), ["x-sum", "x-more"]);
    let without = client.get("/");
    assert_eq!(
        without.text(),
        "abc",
        "a client that asks for none gets the body all the same"
    );
}

#[test]
fn trailers_of_an_upload_reach_the_upstream() {
    let upstream = Upstream::answering(|request, peer| {
        let sum = request.trailers.one("x-sum").unwrap_or("none");
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{sum}",
            sum.len()
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let request = with(
        "POST /",
        &[
            "Transfer-Encoding: chunked",
            "Trailer: X-Sum",
            "TE: trailers",
            "Connection: TE",
        ],
    );
    let response = proxy.ask(request + "3\r\nabc\r\n0\r\nX-Sum: 42\r\n\r\n");
    assert_eq!(response.text(), "42");
}

#[test]
fn trailers_that_would_change_the_message_do_not_pass() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(&upstream, ALL);
    for trailer in [
        "Content-Length: 5",
        "Transfer-Encoding: chunked",
        "Host: evil",
        "Connection: close",
        "Expect: 100-continue",
        "X-Forwarded-For: 6.6.6.6",
    ] {
        let mut client = proxy.client();
        client.send(
            with("POST /", &["Transfer-Encoding: chunked", "Trailer: X"])
                + &format!("3\r\nabc\r\n0\r\n{trailer}\r\n\r\n"),
        );
        let answer = client.try_receive();
        assert!(
            answer.is_err() || matches!(answer.unwrap().status, 200 | 400),
            "{trailer}"
        );
    }
    for bytes in upstream.received_all() {
        assert!(
            !String::from_utf8_lossy(&bytes).contains("6.6.6.6"),
            "a forged address in a trailer"
        );
    }
}

// ---- 1xx ----

#[test]
fn expect_100_continue_waits_for_the_upstreams_100() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        assert_eq!(head.fields.one("expect"), Some("100-continue"));
        peer.note("asked");
        peer.write("HTTP/1.1 100 Continue\r\n\r\n")?;
        assert_eq!(peer.reader().exact(3)?, b"abc");
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with(
        "POST /",
        &["Expect: 100-continue", "Content-Length: 3"],
    ));
    assert_eq!(client.interim().status, 100);
    assert_eq!(upstream.notes(), ["asked"]);
    let response = client.send("abc").receive();
    assert_eq!((response.status, response.interim.len()), (200, 0));
}

#[test]
fn an_upstreams_refusal_arrives_instead_of_100_continue() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nwho")?;
        peer.await_close()
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with(
        "POST /",
        &["Expect: 100-continue", "Content-Length: 30000000"],
    ));
    let response = client.receive();
    assert_eq!(
        (
            response.status,
            response.text().as_str(),
            response.interim.len()
        ),
        (401, "who", 0)
    );
    upstream.await_note("left 0");
}

#[test]
fn a_client_that_does_not_wait_for_100_continue_is_served() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body, b"abc");
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..2 {
        assert_eq!(
            client
                .ask(with("POST /", &["Expect: 100-continue", "Content-Length: 3"]) + "abc")
                .status,
            200
        );
    }
}

#[test]
fn early_hints_pass_to_http_1_1_clients_and_never_to_http_1_0() {
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n{OK}"
    ));
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..2 {
        let response = client.get("/");
        let hints: Vec<_> = response
            .interim
            .iter()
            .map(|r| (r.status, r.one("link")))
            .collect();
        assert_eq!(hints, [(103, Some("</a.css>; rel=preload"))]);
        assert_eq!(response.text(), "ok");
    }
    let old = proxy.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!(
        (old.status, old.interim.len(), old.text().as_str()),
        (200, 0, "ok")
    );
}

#[test]
fn large_early_hints_pass_where_memory_allows() {
    let link = "x".repeat(60_000);
    let hint = format!("HTTP/1.1 103 Early Hints\r\nLink: {link}\r\n\r\n");
    for limit in ["off", "10MiB"] {
        let upstream = Upstream::fixed(format!("{hint}{OK}"));
        let proxy = crate::support::Setup::new(ALL)
            .upstream("UP", &upstream)
            .env("LEAN_PROXY_MEMORY", limit)
            .start();
        let mut client = proxy.client();
        for _ in 0..3 {
            let response = client.get("/");
            let links: Vec<_> = response.interim.iter().map(|r| r.one("link")).collect();
            assert_eq!(links, [Some(link.as_str())], "{limit}");
            assert_eq!(response.text(), "ok");
        }
    }
}

#[test]
fn an_early_hint_arrives_before_the_answer() {
    let seen = Signal::default();
    let release = seen.clone();
    let upstream = Upstream::start(move |peer| {
        peer.request()?;
        peer.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        release.wait()?;
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(get("/"));
    assert_eq!(client.interim().status, 103);
    seen.raise();
    assert_eq!(client.receive().status, 200);
}

#[test]
fn at_most_ten_interim_answers_pass() {
    for (count, statuses) in [(10, &[200][..]), (1000, &[200, 502][..])] {
        let upstream =
            Upstream::fixed("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(count) + OK);
        let response = Proxy::before(&upstream, ALL).get("/");
        assert!(
            statuses.contains(&response.status) && response.interim.len() <= 10,
            "{count}: {response:?}"
        );
    }
}

// ---- what is cut short ----

#[test]
fn an_answer_cut_short_is_never_passed_on_as_complete() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\nde",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Trailer: a\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcde\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n-1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10000000000000000\r\na",
    ];
    for answer in answers {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(answer)
        });
        let proxy = Proxy::before(&upstream, ALL);
        let broken = broken(&mut proxy.client(), &get("/"));
        assert!(
            broken.cause.kind() != ErrorKind::TimedOut,
            "{answer:?}: {broken:?}"
        );
        assert!(
            broken
                .partial
                .is_none_or(|r| r.status == 200 && b"abcde".starts_with(&r.body)),
            "{answer:?}"
        );
        // an HTTP/1.0 client gets no chunks: only a reset or missing bytes show the truncation
        let mut old = proxy.client();
        old.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
        match old.try_receive() {
            Ok(response) => panic!("HTTP/1.0 takes it for whole: {answer:?}: {response:?}"),
            Err(broken) => assert!(
                broken.cause.kind() != ErrorKind::TimedOut,
                "HTTP/1.0: {answer:?}: {broken:?}"
            ),
        }
    }
}

#[test]
fn an_answer_without_a_length_that_ends_in_a_reset_is_incomplete() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")?;
        peer.reset()
    });
    let proxy = Proxy::before(&upstream, ALL);
    for version in ["1.1", "1.0"] {
        let mut client = proxy.client();
        client.send(format!(
            "POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 6\r\n\r\n"
        ));
        client.head();
        client.send("unread");
        let framing = if version == "1.0" {
            Framing::Close
        } else {
            Framing::Chunked
        };
        let body = client.body(framing);
        assert!(body.is_err(), "HTTP/{version} takes it for whole: {body:?}");
    }
}

#[test]
fn an_upload_cut_short_is_never_passed_on_as_complete() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(&upstream, ALL);
    let cut = [
        with("POST /", &["Content-Length: 10"]) + "abc",
        with("POST /", &["Transfer-Encoding: chunked"]) + "3\r\nabc\r\n",
        with("POST /", &["Transfer-Encoding: chunked"]) + "3\r\nabc\r\n0\r\n",
        with("POST /", &["Transfer-Encoding: chunked"]) + "5\r\nabc",
    ];
    for (i, request) in cut.iter().enumerate() {
        let mut client = proxy.client();
        client.send(request);
        crate::support::eventually("the upload reaches the upstream", || {
            upstream.connections() > i
        });
        drop(client);
        upstream.await_note(&format!("left {i}"));
    }
    assert_eq!(upstream.requests(), 0, "none of them was complete");
}

// ---- clients that leave, and early answers ----

#[test]
fn a_client_that_leaves_frees_its_upstream() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        if head.target == "/stream" {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            peer.chunk("data")?;
        }
        peer.await_close()?;
        peer.note(format!("closed {}", head.target));
        Ok(())
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut waits = proxy.client();
    waits.send(get("/waits"));
    let mut reads = proxy.client();
    reads.send(get("/stream"));
    reads.head();
    let mut sends = proxy.client();
    sends
        .send(with("POST /upload", &["Content-Length: 1000"]))
        .send("some");
    upstream.await_requests(3);
    drop((waits, reads, sends));
    for target in ["/waits", "/stream", "/upload"] {
        upstream.await_note(&format!("closed {target}"));
    }
}

#[test]
fn an_early_answer_to_an_upload_reaches_the_client() {
    for stays in [false, true] {
        let upstream = Upstream::start(move |peer| {
            peer.head()?;
            peer.write("HTTP/1.1 413 Too Much\r\nContent-Length: 9\r\n\r\ntoo much!")?;
            if stays { peer.await_close() } else { Ok(()) }
        });
        let proxy = Proxy::before(&upstream, ALL);
        for _ in 0..5 {
            let mut client = proxy.client();
            client.send(with("POST /", &["Content-Length: 30000000"]));
            let mut hand = client.writer();
            let sender = thread::spawn(move || {
                let block = pattern(0, 65_536);
                (0..400)
                    .take_while(|_| hand.write_all(&block).is_ok())
                    .count()
            });
            sender.join().unwrap();
            let response = client.receive();
            assert_eq!(
                (response.status, response.text().as_str()),
                (413, "too much!")
            );
        }
    }
}

#[test]
fn the_proxys_own_answer_to_an_upload_reaches_the_client() {
    let proxy =
        crate::support::Setup::new("routes: [{path: /only/, target: 'http://127.0.0.1:1'}]\n")
            .start();
    for _ in 0..5 {
        let mut client = proxy.client();
        client.send(with("POST /elsewhere", &["Content-Length: 3000000"]));
        let block = pattern(0, 65_536);
        let _ = (0..20)
            .take_while(|_| client.try_send(&block).is_ok())
            .count();
        assert_eq!(client.receive().status, 404);
    }
}

/// An upstream that answers as soon as it has a head, and reads no body.
fn hasty() -> Upstream {
    Upstream::start(|peer| {
        peer.head()?;
        peer.write(OK)?;
        peer.await_close()
    })
}

#[test]
fn after_an_early_answer_a_short_rest_is_read_and_the_connection_stays() {
    let upstream = hasty();
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let hidden = get("/smuggled");
    let length = format!("Content-Length: {}", hidden.len());
    for _ in 0..3 {
        client.send(with("POST /", &[&length]));
        let response = client.receive();
        assert_eq!((response.status, response.one("connection")), (200, None));
        // what is sent now is body, and never a request
        client.send(&hidden);
    }
    assert_eq!(client.get("/last").status, 200);
    for bytes in upstream.received_all() {
        let bytes = String::from_utf8_lossy(&bytes);
        assert!(!bytes.starts_with("GET /smuggled"), "{bytes}");
    }
}

#[test]
fn an_early_answer_that_ends_the_connection_says_close() {
    let upstream = hasty();
    let proxy = Proxy::before(&upstream, ALL);
    for fields in [
        &["Content-Length: 1000000"][..],
        &["Transfer-Encoding: chunked"],
        // the client may never send a body without a 100
        &["Content-Length: 5", "Expect: 100-continue"],
    ] {
        let mut client = proxy.client();
        client.send(with("POST /", fields));
        let response = client.receive();
        assert_eq!(
            (response.status, response.one("connection")),
            (200, Some("close")),
            "{fields:?}"
        );
        // what is sent now is body, or the connection is closed: it must never be taken for a request
        let _ = client.try_send(get("/smuggled"));
        let (rest, _) = client.until_end();
        assert!(rest.is_empty(), "{}", rest.escape_ascii());
    }
    for bytes in upstream.received_all() {
        assert!(!String::from_utf8_lossy(&bytes).starts_with("GET /smuggled"));
    }
}

#[test]
fn a_missing_rest_is_waited_for_until_its_time_out() {
    let upstream = hasty();
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{read_timeout: 0.3}}\n"));
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 50"]) + "some");
    assert_eq!(client.receive().status, 200);
    client.end();
}

#[test]
fn an_announced_keep_alive_is_kept_where_memory_is_short() {
    const LENGTH: usize = 30_000;
    // it answers each request before it reads the body
    let upstream = Upstream::start(|peer| {
        loop {
            peer.head()?;
            peer.write(OK)?;
            peer.reader().exact(LENGTH)?;
        }
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}limits: {{memory: 10485760}}\n"));
    let body = pattern(0, LENGTH);
    let mut client = proxy.client();
    for _ in 0..20 {
        client.send(with("POST /", &["Content-Length: 30000"]));
        let mut hand = client.writer();
        let body = body.clone();
        let sender = thread::spawn(move || hand.write_all(&body));
        let response = client.receive();
        assert_eq!(response.status, 200);
        if response.one("connection") == Some("close") {
            client.until_end();
            let _ = sender.join().unwrap();
            client = proxy.client();
        } else {
            sender.join().unwrap().unwrap();
        }
    }
}

#[test]
fn after_the_answer_to_an_unread_upload_the_client_does_not_wait() {
    let proxy =
        crate::support::Setup::new("routes: [{path: /only/, target: 'http://127.0.0.1:1'}]\n")
            .start();
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 5"]) + "12345");
    assert_eq!(client.receive().status, 404);
    if client.try_send(get("/")).is_ok() {
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 404),
            Err(broken) => assert!(
                broken.partial.is_none() && broken.cause.kind() != ErrorKind::TimedOut,
                "{broken:?}"
            ),
        }
    }
}

fn broken(client: &mut Client, request: &str) -> Box<Broken> {
    client.send(request);
    let whole = |response: Response| panic!("taken for whole: {response:?}");
    client.try_receive().map_or_else(|broken| broken, whole)
}

#[test]
fn a_client_that_pauses_in_its_body_is_waited_for() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body.len(), 6);
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 6"]) + "abc");
    upstream.await_open(1);
    assert!(client.is_silent(std::time::Duration::from_millis(300)));
    assert_eq!(client.send("def").receive().status, 200);
}
