//! Malformed messages: refused, or passed on in a form that cannot be read in two ways.
//!
//! The upstreams read strictly (`strict.rs`): an ambiguous message that reaches one fails the test, even if the test does
//! not check it.

use std::{
    env,
    io::ErrorKind,
    thread,
    time::{Duration, Instant},
};

use crate::{
    strict::{Framing, Reader, parse_requests, show},
    support::{
        ALL, Client, End, OK, PATIENCE, Proxy, Setup, Upstream, eventually, get, is_release,
        let_pass, pattern, with,
    },
};

/// Appended to what should be refused: it must never be answered, and never reach an upstream.
const SMUGGLED: &[u8] = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// The complete requests that arrived, on all connections.
fn arrived(upstream: &Upstream) -> Vec<String> {
    let all = upstream.received_all();
    let requests = all
        .iter()
        .flat_map(|bytes| parse_requests(bytes).unwrap_or_else(|e| panic!("{e}")).0);
    requests
        .map(|r| format!("{} {}", r.method, r.target))
        .collect()
}

/// Every answer on a closed connection.
fn answers(bytes: &[u8]) -> Vec<u16> {
    let mut reader = Reader::new(bytes);
    let mut statuses = Vec::new();
    while let Ok(Some(mut head)) = reader.response_head("") {
        statuses.push(head.status);
        if reader.body_into(head.framing, &mut head.body).is_err() {
            break;
        }
    }
    statuses
}

// ---- requests that are refused ----

#[test]
fn a_bad_head_is_refused_and_nothing_after_it_is_read() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let lines: [&[u8]; 29] = [
        b"GET http://a%41/ HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET / HTTP/1.1x",
        b"GET / HTTP/11",
        b"GET / HTTP/1",
        b"GET / HTTP/1.",
        b"GET / http/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/0.9",
        b"GET / XTTP/1.1",
        b"GET / HTTP /1.1",
        b"GET /",
        b"GET / ",
        b"GET",
        b"G@T / HTTP/1.1",
        b"G\0T / HTTP/1.1",
        b"G\xc3\x89T / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\x01 HTTP/1.1",
        b"GET /\x7f HTTP/1.1",
        b"GET /\0 HTTP/1.1",
        b"GET x HTTP/1.1",
        b"GET ?x HTTP/1.1",
        b"GET * HTTP/1.1",
    ];
    for line in lines {
        refused(
            &proxy,
            &[line, b"\r\nHost: a\r\n\r\n"].concat(),
            &[400, 505, 501],
        );
    }
    refused(&proxy, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, 505]);
    assert_eq!(upstream.connections(), 0, "{:?}", arrived(&upstream));
}

#[test]
fn a_bad_host_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for host in [
        "",
        "Host: a\r\nHost: a\r\n",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nhost: b\r\n",
        "Host: a b\r\n",
        "Host: a, b\r\n",
        "Host: a/b\r\n",
        "Host: http://a\r\n",
        "Host: u@a\r\n",
        "Host: a?b\r\n",
        "Host: a#b\r\n",
        "Host: a\\b\r\n",
        "Host: \"a\"\r\n",
        "Host: <a>\r\n",
        "Host: a:b\r\n",
        "Host: a:99999\r\n",
        "Host: a:80:80\r\n",
        "Host: [::1\r\n",
        "Host: ::1]\r\n",
        "Host: a\tb\r\n",
    ] {
        refused(
            &proxy,
            format!("GET / HTTP/1.1\r\n{host}\r\n").as_bytes(),
            &[400],
        );
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_bad_framing_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for framing in [
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\ntransfer-encoding: x",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunkedx",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: 'chunked'",
        "Transfer-Encoding: chun ked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding: chunked\u{a0}",
        "Transfer-Encoding:",
        "Transfer-Encoding: ,",
        "Transfer-Encoding : chunked",
        "Content-Length: abc",
        "Content-Length: +3",
        "Content-Length: -3",
        "Content-Length: 3 3",
        "Content-Length: 0x3",
        "Content-Length: 3.0",
        "Content-Length: 3;",
        "Content-Length: 3,",
        "Content-Length:",
        "Content-Length: 3, 4",
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3\r\ncontent-length: 03x",
        "Content-Length: 3\x0b",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 18446744073709551619",
        "Content-Length : 3",
    ] {
        refused(
            &proxy,
            format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\nabc").as_bytes(),
            &[400, 413, 501],
        );
    }
    refused(&proxy, b"POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]);
    assert_eq!(upstream.connections(), 0, "{:?}", arrived(&upstream));
}

#[test]
fn a_bad_field_line_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let lines: [&[u8]; 13] = [
        b"X-A : b",
        b"X-A\t: b",
        b"X A: b",
        b": b",
        b"NoColon",
        b"X\0A: b",
        b"X\x7fA: b",
        b"(x): b",
        b"X,Y: b",
        b"X\xc3\xa9: b",
        b"\"x\": b",
        b"X-A\x0b: b",
        b"X/Y: b",
    ];
    for line in lines {
        refused(
            &proxy,
            &[
                b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice(),
                line,
                b"\r\nX-B: c\r\n\r\n",
            ]
            .concat(),
            &[400],
        );
    }
    refused(
        &proxy,
        b"GET / HTTP/1.1\r\n X-First: folded\r\nHost: a\r\n\r\n",
        &[400],
    );
    refused(&proxy, b"GET / HTTP/1.1\r\nHost\r\n: a\r\n\r\n", &[400]);
    assert_eq!(upstream.connections(), 0, "{:?}", arrived(&upstream));
}

/// Expects one answer with one of these statuses, and then the end of the connection.
fn refused(proxy: &Proxy, request: &[u8], statuses: &[u16]) {
    let mut client = proxy.client();
    let _ = client.try_send([request, SMUGGLED].concat());
    let (bytes, _) = client.until_end();
    let answers = answers(&bytes);
    assert!(
        matches!(answers.as_slice(), [status] if statuses.contains(status)),
        "{} -> {}",
        show(request),
        show(&bytes)
    );
}

#[test]
fn a_bad_chunk_is_refused_and_never_completes_a_request_to_the_upstream() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let long = format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(20_000));
    for body in [
        "xyz\r\nabc\r\n0\r\n\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3,\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3;a=\n\r\nabc\r\n0\r\n\r\n",
        "3;\rabc\r\n0\r\n\r\n",
        "3;a=\0\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\nX\r\n\r\n",
        "3\r\nabc\r\n0\r\nX : y\r\n\r\n",
        "3\r\nabc\r\n0\r\nX: a\0b\r\n\r\n",
        "3\r\nabc\r\n0\r\n X: folded\r\n\r\n",
        long.as_str(),
    ] {
        let mut client = proxy.client();
        let head = with("POST /chunks", &["Transfer-Encoding: chunked"]);
        let _ = client.try_send([head.as_bytes(), body.as_bytes(), SMUGGLED].concat());
        let (bytes, _) = client.until_end();
        let answers = answers(&bytes);
        assert!(
            matches!(answers.as_slice(), [] | [400 | 413 | 431]),
            "{} -> {}",
            show(body.as_bytes()),
            show(&bytes)
        );
        assert!(
            arrived(&upstream).is_empty(),
            "{}: {:?}",
            show(body.as_bytes()),
            arrived(&upstream)
        );
    }
}

// ---- what may be normalised ----

#[test]
fn what_may_be_normalised_is_refused_or_has_one_reading() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let requests: [&[u8]; 22] = [
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\tb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n \r\nX: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\n\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x01b\x7fc\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 003\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\t3 \r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 3\r\nTransfer_Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    ];
    for request in requests {
        let before = arrived(&upstream).len();
        let mut client = proxy.client();
        client.send(request);
        let status = client.receive().status;
        let new = arrived(&upstream).len() - before;
        match status {
            200 => assert_eq!(new, 1, "{}", show(request)),
            400 | 501 | 505 => assert_eq!(new, 0, "{}", show(request)),
            other => panic!("{other} for {}", show(request)),
        }
    }
}

#[test]
fn of_two_framings_chunked_counts_and_the_connection_closes() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(
            (request.framing, request.body.as_slice()),
            (Framing::Chunked, b"abc".as_slice())
        );
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    for framing in [
        ["Content-Length: 6", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 300"],
        ["Content-Length: 0", "Transfer-Encoding: chunked"],
    ] {
        let mut client = proxy.client();
        client.send(with("POST /", &framing) + "3\r\nabc\r\n0\r\n\r\n");
        let _ = client.try_send(SMUGGLED);
        let (bytes, _) = client.until_end();
        assert!(
            matches!(answers(&bytes).as_slice(), [200 | 400]),
            "{framing:?}: {}",
            show(&bytes)
        );
    }
    assert!(!arrived(&upstream).iter().any(|r| r.contains("smuggled")));
}

#[test]
fn valid_chunks_pass_without_their_extensions() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body, b"abc0123456789");
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let head = with("POST /", &["Transfer-Encoding: chunked"]);
    for body in [
        "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
        "003\r\nabc\r\na\r\n0123456789\r\n000\r\n\r\n",
        "3;x=y\r\nabc\r\na;z\r\n0123456789\r\n0;end\r\n\r\n",
    ] {
        assert_eq!(proxy.ask(head.clone() + body).status, 200, "{body:?}");
    }
}

// ---- answers of the upstream ----

#[test]
fn a_bad_answer_is_a_bad_gateway() {
    let answers: [&[u8]; 38] = [
        b"",
        b"\r\n\r\n",
        b"garbage\r\n\r\n",
        b"<html>no HTTP at all</html>\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 \r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 099 Low\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/0.9 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        b"HTTP/1.1 200 OK\r\nNoColon\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX A: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX\0: b\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 1000 Continue\r\n\r\n",
    ];
    for answer in answers {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(answer)
        });
        let proxy = Proxy::before(&upstream, ALL);
        let response = proxy.get("/");
        assert_eq!(response.status, 502, "{} -> {response:?}", show(answer));
        assert_eq!(upstream.requests(), 1, "{}", show(answer));
    }
}

#[test]
fn an_odd_answer_is_a_bad_gateway_or_passes_in_one_reading() {
    let answers: [&[u8]; 14] = [
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nX: a\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: evil=1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 200 O\0K\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 O\rK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\nok\r\n0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ];
    for answer in answers {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(answer)
        });
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        client.send(get("/"));
        let response = client
            .try_receive()
            .unwrap_or_else(|broken| panic!("{} -> {broken:?}", show(answer)));
        assert!(
            response.status == 502 || response.text() == "ok",
            "{} -> {response:?}",
            show(answer)
        );
        assert!(!response.fields.has("set-cookie"), "{}", show(answer));
    }
}

#[test]
fn a_length_beside_chunks_is_removed_from_an_answer() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    );
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.get("/");
    assert_eq!(
        (response.framing, response.text().as_str()),
        (Framing::Chunked, "ok")
    );
}

#[test]
fn a_length_where_no_body_may_be_is_removed_from_an_answer() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 50\r\nLink: <a>\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\n",
    );
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.get("/");
    assert_eq!((response.status, response.interim.len()), (204, 1));
    assert_eq!(response.interim[0].one("link"), Some("<a>"));
    for answer in [&response, &response.interim[0]] {
        assert!(!answer.fields.has("content-length"), "{answer:?}");
    }
}

#[test]
fn bytes_after_an_answer_without_a_body_reach_no_client() {
    for head in ["204 No Content", "304 Not Modified"] {
        let upstream = Upstream::answering(move |_, peer| {
            peer.write(format!(
                "HTTP/1.1 {head}\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
            ))
        });
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        for _ in 0..3 {
            assert_eq!(client.get("/").body.len(), 0, "{head}");
        }
        let response = client.ask(with("HEAD /", &[]));
        assert!(response.status < 400, "{head}");
    }
}

// ---- injection through values ----

#[test]
fn no_line_is_split_by_what_a_client_sends() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /api/, target: 'http://UP/base'}]\n",
    );
    let target = "?a=%0d%0aSet-Cookie:%20evil=1%0d%0a%0d%0a(b)";
    let redirect = proxy.get(&format!("/api{target}"));
    assert_eq!(
        (redirect.status, redirect.one("location")),
        (307, Some(format!("/api/{target}").as_str()))
    );
    assert!(!redirect.fields.has("set-cookie"));
    for value in ["a\rX-Evil: 1", "a\nX-Evil: 1", "a\u{85}X-Evil: 1"] {
        let mut client = proxy.client();
        client.send(with(
            "GET /api/",
            &[
                &format!("X-Forwarded-Host: {value}"),
                &format!("X-Forwarded-For: {value}"),
            ],
        ));
        let response = client.receive();
        assert!(!response.fields.has("x-evil"));
        if response.status == 200 {
            assert!(
                !crate::support::seen(&response).fields.has("x-evil"),
                "{value:?}"
            );
        }
    }
}

// ---- one after the other, piece by piece ----

#[test]
fn a_pipeline_is_answered_in_order() {
    let upstream = Upstream::answering(|request, peer| {
        let text = format!(
            "{} {} {}",
            request.method,
            request.target,
            request.body.len()
        );
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let mut all = String::new();
    for i in 0..20 {
        all += &get(&format!("/{i}"));
        all += &(with(&format!("POST /{i}"), &["Content-Length: 5"]) + "12345");
        all += &(with(&format!("PUT /{i}"), &["Transfer-Encoding: chunked"])
            + "3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n");
    }
    client.send(all);
    for i in 0..20 {
        assert_eq!(client.receive().text(), format!("GET /{i} 0"));
        assert_eq!(client.receive().text(), format!("POST /{i} 5"));
        assert_eq!(client.receive().text(), format!("PUT /{i} 7"));
    }
}

#[test]
fn an_endless_pipeline_without_a_reader_costs_little() {
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{}",
        "x".repeat(1000)
    ));
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/");
    let before = proxy.own_kb();
    let mut client = proxy.client();
    let requests = get("/").repeat(200);
    let mut hand = client.writer();
    let sender = thread::spawn(move || {
        (0..2000)
            .take_while(|_| std::io::Write::write_all(&mut hand, requests.as_bytes()).is_ok())
            .count()
    });
    let_pass(Duration::from_secs(2));
    costs_little(&proxy, before);
    let read = thread::spawn(move || client.until_end());
    drop(proxy);
    let _ = (sender.join(), read.join());
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let upstream = Upstream::answering(|request, peer| {
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            request.body.len()
        ))
        .and_then(|()| peer.write(&request.body))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for request in [
        with("POST /", &["Content-Length: 5"]) + "12345",
        with("POST /", &["Transfer-Encoding: chunked", "X-A: b"])
            + "3;x=y\r\n123\r\n2\r\n45\r\n0\r\nX: t\r\n\r\n",
    ] {
        for byte in request.as_bytes() {
            client.send([*byte]);
        }
        assert_eq!(client.receive().text(), "12345");
    }
}

#[test]
fn an_answer_may_come_byte_by_byte() {
    let answers = [
        "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\n12345",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\n123\r\n2\r\n45\r\n0\r\nX: t\r\n\r\n",
    ];
    for answer in answers {
        let upstream = Upstream::answering(move |_, peer| {
            answer.bytes().try_for_each(|byte| peer.write([byte]))
        });
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), "12345");
        }
        assert_eq!(upstream.connections(), 1);
    }
}

#[test]
fn one_crlf_before_a_request_is_ignored() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send(with("POST /", &["Content-Length: 3"]) + "abc\r\n");
        assert_eq!(client.receive().status, 200);
    }
}

#[test]
fn a_first_byte_that_begins_no_method_is_refused_at_once() {
    let upstream = Upstream::fixed(OK);
    let yaml =
        format!("{ALL}server: {{header_timeout: 600, idle_timeout: 600}}\nlog: {{level: debug}}\n");
    let proxy = Proxy::before(&upstream, &yaml);
    for (bytes, reason) in [
        (
            &b"\x16\x03\x01\x02\0\x01\0"[..],
            "TLS hello on a plain listener",
        ),
        (b"\x16", "TLS hello on a plain listener"),
        (b"\r\n\x16\x03", "TLS hello on a plain listener"),
        (b"\0", "begins no method"),
        (b"\x80", "begins no method"),
        (b" GET", "begins no method"),
        (b"{\"jsonrpc\"", "begins no method"),
        (b"\r\n@", "begins no method"),
    ] {
        let mut client = proxy.client();
        client.send(bytes);
        let (answer, _) = client.until_end();
        assert_eq!(answers(&answer), [400], "{}", bytes.escape_ascii());
        let lines = || {
            proxy
                .logs()
                .into_iter()
                .filter(|line| line.contains(reason))
                .count()
        };
        eventually(reason, || lines() > 0);
    }
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    client.send(b"\x16\x03\x01");
    assert_eq!(
        answers(&client.until_end().0),
        [400],
        "behind a request too"
    );
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn a_tls_hello_on_a_plain_listener_is_one_warning() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for _ in 0..3 {
        let mut client = proxy.client();
        client.send(b"\x16\x03\x01");
        assert_eq!(answers(&client.until_end().0), [400]);
    }
    proxy.await_log("the hello", |line| {
        line.contains("level=warn") && line.contains("TLS hello") && line.contains("127.0.0.1")
    });
    assert_eq!(proxy.get("/").status, 200);
    let told = proxy
        .logs()
        .iter()
        .filter(|line| line.contains("TLS hello"))
        .count();
    assert_eq!(told, 1);
}

// ---- without end ----

/// More bytes than any buffer holds.
const ENDLESS: usize = 24 << 20;

/// Sends `block` repeatedly until it is refused; returns whether it was, in time.
fn flood(client: &mut Client, block: &[u8]) -> bool {
    let many = block.repeat(65_536 / block.len());
    let since = Instant::now();
    while since.elapsed() < PATIENCE / 2 {
        if client.try_send(&many).is_err() {
            return true;
        }
    }
    false
}

fn costs_little(proxy: &Proxy, before: u64) {
    let more = proxy.own_kb().saturating_sub(before);
    assert!(
        more < if is_release() { 768 } else { 3072 },
        "it costs {more} kB"
    );
    assert_eq!(proxy.get("/health").status, 200);
}

#[test]
fn a_head_without_end_is_refused_and_costs_little() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/");
    let before = proxy.own_kb();
    for (start, block) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nX: ", "a"),
        ("GET / HTTP/1.1\r\nHost: a\r\n", "X: aaaa\r\n"),
        ("GET / HTTP/1.1\r\nHost: a\r\n", ":\r\n"),
        ("GET /", "a"),
        ("G", "G"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n", " b\r\n"),
    ] {
        let mut client = proxy.client();
        client.send(start);
        assert!(
            flood(&mut client, block.as_bytes()),
            "{start:?} {block:?} is read without end"
        );
        costs_little(&proxy, before);
    }
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn line_ends_without_end_cost_little() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{header_timeout: 3, idle_timeout: 3}}\n"),
    );
    proxy.get("/");
    let before = proxy.own_kb();
    for block in ["\r\n", "\n"] {
        let mut client = proxy.client();
        let refused = flood(&mut client, block.as_bytes());
        costs_little(&proxy, before);
        assert!(
            refused || client.until_end().0.starts_with(b"HTTP/1.1 4"),
            "{block:?} is read for ever"
        );
    }
}

#[test]
fn a_chunk_extension_or_trailer_without_end_is_refused_and_costs_little() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/");
    let before = proxy.own_kb();
    let head = with(
        "POST /",
        &["Transfer-Encoding: chunked", "Trailer: X", "TE: trailers"],
    );
    for (start, block) in [
        ("3;", "a"),
        ("3;", "a=b;"),
        ("0\r\n", "X: aaaaaa\r\n"),
        ("0\r\nX: ", "a"),
        ("", "0"),
        ("3\r\nabc\r\n000", "0"),
    ] {
        let mut client = proxy.client();
        client.send(head.clone() + start);
        assert!(
            flood(&mut client, block.as_bytes()),
            "{start:?} {block:?} is read without end"
        );
        costs_little(&proxy, before);
    }
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn tiny_chunks_with_long_extensions_are_stopped() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("POST /", &["Transfer-Encoding: chunked"]));
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(8000));
    assert!(
        flood(&mut client, chunk.as_bytes()),
        "it is read without end"
    );
}

#[test]
fn an_answer_whose_head_has_no_end_is_a_bad_gateway_and_costs_little() {
    for (start, block) in [
        ("HTTP/1.1 200 OK\r\nX: ", "a"),
        ("HTTP/1.1 200 OK\r\n", "X: aaaa\r\n"),
        ("", "\r\n"),
        ("HTTP/1.1 200 ", "a"),
        ("", "x"),
    ] {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(start)?;
            let many = block.repeat(65_536 / block.len());
            (0..ENDLESS / many.len()).try_for_each(|_| peer.write(&many))?;
            peer.await_close()
        });
        let proxy = Proxy::before(&upstream, ALL);
        proxy.get("/health");
        let before = proxy.own_kb();
        assert_eq!(proxy.get("/").status, 502, "{start:?} {block:?}");
        costs_little(&proxy, before);
    }
}

#[test]
fn a_chunk_extension_or_trailer_of_an_answer_has_an_end() {
    for (start, block) in [
        ("3;", "a"),
        ("0\r\nX: ", "a"),
        ("0\r\n", "X: aaaaaa\r\n"),
        ("", "0"),
    ] {
        let upstream = Upstream::start(move |peer| {
            peer.request()?;
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n{start}"
            ))?;
            let many = block.repeat(65_536 / block.len());
            (0..ENDLESS / many.len()).try_for_each(|_| peer.write(&many))?;
            peer.await_close()
        });
        let proxy = Proxy::before(&upstream, ALL);
        proxy.get("/health");
        let before = proxy.own_kb();
        let mut client = proxy.client();
        client.send(with("GET /", &["TE: trailers", "Connection: TE"]));
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 502, "{start:?} {block:?}"),
            Err(broken) => assert!(
                broken.cause.kind() != ErrorKind::TimedOut,
                "{start:?} {block:?}: {broken:?}"
            ),
        }
        costs_little(&proxy, before);
    }
}

// ---- at random ----

/// Runs a case with many seeds, on many threads because a case mostly waits: the same 800 in every run, and further ones
/// for `LEAN_PROXY_FUZZ_SECONDS`.
fn at_random(case: impl Fn(u64) + Send + Copy) {
    let seconds = env::var("LEAN_PROXY_FUZZ_SECONDS").map_or(0, |text| text.parse().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        for worker in 0..32 {
            scope.spawn(move || {
                let mut seed = worker << 32;
                let fixed = seed + 25;
                while seed < fixed || Instant::now() < end {
                    case(seed);
                    seed += 1;
                }
            });
        }
    });
}

/// xorshift, so that every run is the same.
struct Dice(u64);

impl Dice {
    /// Mixes the seed, so that neighbouring seeds give unrelated numbers.
    fn of(seed: u64) -> Dice {
        let mixed = (seed ^ seed >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Dice((mixed ^ mixed >> 32) | 1)
    }
}

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn pick<'a>(&mut self, of: &[&'a [u8]]) -> &'a [u8] {
        of[self.roll(of.len())]
    }
}

const SOUND: [&[u8]; 6] = [
    b"GET /a?b=c HTTP/1.1\r\nHost: proxy.test\r\nAccept: */*\r\nX-Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: proxy.test\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world",
    b"POST /c HTTP/1.1\r\nHost: proxy.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n",
    b"PUT /t HTTP/1.1\r\nHost: proxy.test\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n",
    b"GET http://proxy.test/abs HTTP/1.1\r\nHost: proxy.test\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n",
    b"POST /1 HTTP/1.1\r\nHost: proxy.test\r\nContent-Length: 4\r\n\r\nbodyGET /2 HTTP/1.1\r\nHost: proxy.test\r\n\r\n",
];

const NASTY: [&[u8]; 40] = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"\xa0",
    b"#",
    b"/../",
    b"%2e",
    b"0",
    b"-",
    b"+",
    b"_",
    b"chunked",
    b"identity",
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"content-length:50\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Transfer-Encoding: x\r\n",
    b"\nTransfer-Encoding: chunked",
    b" Transfer-Encoding: chunked\r\n",
    b"Host: evil\r\n",
    b"Connection: close, Content-Length\r\n",
    b"Connection: Transfer-Encoding\r\n",
    b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n",
];

fn mutated(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = dice.pick(&SOUND).to_vec();
    for _ in 0..=dice.roll(3) {
        let at = dice.roll(bytes.len() + 1);
        let end = (at + dice.roll(12)).min(bytes.len());
        let feeds = (0..bytes.len()).filter(|&i| bytes[i] == b'\n');
        let lines: Vec<usize> = feeds.map(|feed| feed + 1).collect();
        let line = lines.get(dice.roll(lines.len().max(1))).copied();
        match dice.roll(8) {
            0 => drop(bytes.splice(at..end, [])),
            1 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            2 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            3 => drop(bytes.splice(at..end, dice.pick(&NASTY).iter().copied())),
            4 => drop(bytes.splice(at..at, dice.pick(&NASTY).iter().copied())),
            // most interesting changes are of whole lines: an additional one, a repeated one, another line end
            5 => {
                let start = line.unwrap_or(0);
                bytes.splice(start..start, dice.pick(&NASTY).iter().copied());
            }
            6 => {
                let start = line.unwrap_or(0);
                let after = lines.iter().copied().find(|&next| next > start);
                let copy = bytes[start..after.unwrap_or(bytes.len())].to_vec();
                bytes.splice(start..start, copy);
            }
            _ => {
                let end = line.unwrap_or(0);
                let other = dice.pick(&[b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"\r\n "]);
                bytes.splice(end.saturating_sub(2)..end, other.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn whatever_a_client_sends_the_upstream_sees_one_reading() {
    let upstream = Upstream::fixed(OK);
    let proxy = Setup::new(ALL).upstream("UP", &upstream).start();
    let address = proxy.address();
    let case = move |seed: u64| {
        let mut dice = Dice::of(seed);
        let request = mutated(&mut dice);
        let (first, rest) = request.split_at(dice.roll(request.len() + 1));
        let mut client = Client::connect(address);
        let _ = client.try_send(first);
        let _ = client.try_send(rest);
        let bytes = if dice.roll(8) == 0 {
            client.half_close();
            client.until_end().0
        } else {
            client.within(Duration::from_millis(60))
        };
        let mut reader = Reader::new(bytes.as_slice());
        loop {
            match reader.response_head("") {
                Ok(None) => break,
                Ok(Some(mut head)) => {
                    if reader
                        .body_into(head.framing, &mut head.body)
                        .is_err_and(|e| e.kind() == ErrorKind::UnexpectedEof)
                    {
                        break;
                    }
                }
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => break,
                Err(e) => panic!("seed {seed}: {} -> {}: {e}", show(&request), show(&bytes)),
            }
        }
    };
    at_random(case);
    for bytes in upstream.received_all() {
        parse_requests(&bytes).unwrap_or_else(|e| panic!("{e}"));
    }
    assert_eq!(proxy.get("/").text(), "ok");
}

#[test]
fn whatever_an_upstream_sends_the_client_sees_one_reading() {
    const ANSWERS: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 304 Not Modified\r\nETag: a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nVary: a\r\n\r\nuntil the end",
    ];
    let upstream = Upstream::start(|peer| {
        let Some(request) = peer.request()? else {
            return Ok(());
        };
        let seed: u64 = request.target[1..].parse().unwrap_or(1);
        let mut dice = Dice::of(seed);
        let mut bytes = dice.pick(&ANSWERS).to_vec();
        for _ in 0..=dice.roll(2) {
            let at = dice.roll(bytes.len() + 1);
            let end = (at + dice.roll(10)).min(bytes.len());
            match dice.roll(4) {
                0 => drop(bytes.splice(at..end, [])),
                1 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
                2 => drop(bytes.splice(at..end, dice.pick(&NASTY).iter().copied())),
                _ => drop(bytes.splice(at..at, dice.pick(&NASTY).iter().copied())),
            }
        }
        peer.write(bytes)
    });
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 0}}\n"),
    );
    let address = proxy.address();
    let case = move |seed: u64| {
        let mut client = Client::connect(address);
        client.send(with(
            &format!("GET /{seed}"),
            &["TE: trailers", "Connection: TE"],
        ));
        match client.try_receive() {
            Ok(response) => assert!(response.status != 101, "seed {seed}"),
            Err(broken) => assert!(
                !matches!(
                    broken.cause.kind(),
                    ErrorKind::InvalidData | ErrorKind::TimedOut
                ),
                "seed {seed}: {broken:?}"
            ),
        }
    };
    at_random(case);
    assert!(pattern(0, 1).len() == 1 && proxy.get("/health").status == 200);
}

// ---- found by attack ----

#[test]
fn a_health_check_is_accepted_beside_many_new_connections() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{max_connections: 20}}\n"),
    );
    let_pass(Duration::from_secs(1));
    let silent: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    let asked = Instant::now();
    assert_eq!(proxy.get("/health").status, 200);
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    drop(silent);
}

#[test]
fn a_client_that_leaves_with_pipelined_bytes_or_an_unfinished_upload_frees_its_upstream() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        peer.await_close()
    });
    let proxy = Proxy::before(&upstream, ALL);
    for request in [
        get("/") + "G",
        with("POST /", &["Content-Length: 10"]),
        with("POST /", &["Transfer-Encoding: chunked"]) + "3\r\nab",
    ] {
        let mut client = proxy.client();
        client.send(request);
        client.head();
        drop(client);
        eventually("the upstream is let go", || upstream.open() == 0);
    }
    upstream.forgive();
}

#[test]
fn an_http_1_0_stream_that_is_cut_off_by_a_stop_is_reset() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")?;
        peer.await_close()
    });
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 0.2}}\n"),
    );
    let mut client = proxy.client();
    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    client.head();
    client.reader().exact(5).unwrap();
    assert_eq!(proxy.terminate().code(), Some(0));
    assert_eq!(client.end(), End::Reset);
}
