//! Published techniques of request smuggling, each of which has worked against some proxy.
//!
//! Each client sends [`HIDDEN`] where only a wrong parser would find a request. It must reach no upstream and get no answer;
//! the upstreams also read strictly (`strict.rs`).

use std::{io::ErrorKind, thread};

use crate::{
    strict::{Framing, Reader, parse_requests, show},
    support::{ALL, Client, OK, Proxy, Upstream, get, seen, with},
};

/// A request that must not be found.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: proxy.test\r\n\r\n";

/// The last request on a connection that is still usable: its answer closes it.
const LAST: &str = "GET /health HTTP/1.1\r\nHost: proxy.test\r\nConnection: close\r\n\r\n";

/// Sends these bytes and then [`LAST`]; returns the status of every answer until the connection ends.
fn statuses(client: &mut Client, bytes: impl AsRef<[u8]>) -> Vec<u16> {
    let _ = client.try_send([bytes.as_ref(), LAST.as_bytes()].concat());
    let (bytes, _) = client.until_end();
    let mut reader = Reader::new(bytes.as_slice());
    let mut statuses = Vec::new();
    loop {
        match reader.response_head("") {
            Ok(None) => return statuses,
            Ok(Some(mut head)) => {
                if reader.body_into(head.framing, &mut head.body).is_err() {
                    return statuses;
                }
                statuses.push(head.status);
            }
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return statuses,
            Err(e) => panic!("{e}: {}", show(&bytes)),
        }
    }
}

/// The targets of all complete requests that arrived.
fn targets(upstream: &Upstream) -> Vec<String> {
    let read = |bytes: Vec<u8>| parse_requests(&bytes).unwrap_or_else(|e| panic!("{e}")).0;
    let all = upstream.received_all().into_iter().flat_map(read);
    all.map(|request| request.target).collect()
}

fn is_hidden(upstream: &Upstream) -> bool {
    !targets(upstream).iter().any(|target| target == "/hidden")
}

/// CL.0 and TE.0: the body of a request that is answered without reading it must not be parsed afterwards.
#[test]
fn the_body_of_a_request_that_the_proxy_answers_is_never_a_request() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /api/, target: 'http://UP'}, {path: /small/, target: 'http://UP', max_body_size: 4}]\n\
        cors: {allowed_origins: ['https://a.test']}\n",
    );
    let length = format!("Content-Length: {}", HIDDEN.len());
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let preflight = [
        "Origin: https://a.test",
        "Access-Control-Request-Method: PUT",
    ];
    let foreign = [
        "Origin: https://b.test",
        "Access-Control-Request-Method: PUT",
    ];
    for (line, fields) in [
        ("OPTIONS *", [].as_slice()),
        ("OPTIONS /api/x", &preflight),
        ("OPTIONS /api/x", &foreign),
        ("OPTIONS /none", &preflight),
        ("GET /health", &[]),
        ("POST /health", &[]),
        ("DELETE /none", &[]),
        ("GET /none", &[]),
        ("POST /none", &["Expect: 100-continue"]),
        ("POST /api", &[]),
        ("PUT /api/../x", &[]),
        ("TRACE /api/x", &[]),
        ("CONNECT /api/x", &[]),
        ("POST /small/x", &[]),
    ] {
        for (framing, body) in [
            (length.as_str(), HIDDEN),
            ("Transfer-Encoding: chunked", chunk.as_str()),
        ] {
            let head = with(line, &[fields, &[framing]].concat());
            let all = statuses(&mut proxy.client(), head + body);
            // one answer, and another one to the last request if the body was read to its end
            let rest = match all.split_first() {
                Some((first, rest)) => {
                    let own = [200, 204, 307, 400, 403, 404, 405, 413].contains(first);
                    assert!(own, "{line} {framing}: {all:?}");
                    rest
                }
                None => panic!("{line} {framing}: no answer"),
            };
            assert!(matches!(rest, [] | [200]), "{line} {framing}: {all:?}");
        }
    }
    assert!(is_hidden(&upstream), "{:?}", targets(&upstream));
}

/// 0.CL: a length that only one of two parsers sees.
#[test]
fn a_disguised_length_is_refused_or_is_another_field() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let length = HIDDEN.len();
    for lines in [
        format!("Content-Length : {length}"),
        format!("Content-Length\t: {length}"),
        format!(" Content-Length: {length}"),
        format!("\tContent-Length: {length}"),
        format!("Content-Length:\r\n {length}"),
        format!("Content-Length\r\n: {length}"),
        format!("X: y\r\n Content-Length: {length}"),
        format!("X: y\rContent-Length: {length}"),
        format!("X: y\nContent-Length: {length}\n"),
        format!("X: y\r\n\rContent-Length: {length}"),
        format!("\0Content-Length: {length}"),
        format!("Content-Length\0: {length}"),
        format!("Content-Length: {length}\0"),
        format!("Content-Length: \x0b{length}"),
        format!("Content-Length: 0, {length}"),
        format!("Content-Length: {length}, 0"),
        format!("Content-Length: 0\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nContent-Length: 0"),
        format!("Content-Length: 0\r\n content-length: {length}"),
        format!("Content-Length: 0x{length:x}"),
        format!("Content-Length: +{length}"),
        format!("Content-Length: {length}e0"),
        format!("Content-Length: \"{length}\""),
        format!("Content-Length: {length} 0"),
        "Content-Length: ".to_owned(),
    ] {
        let all = statuses(&mut proxy.client(), with("POST /", &[&lines]) + HIDDEN);
        assert_eq!(all, [400], "{lines:?}");
    }
    assert_eq!(upstream.connections(), 0, "{:?}", targets(&upstream));
    // names that only look like it: they are other fields, and there is no body after the head
    for name in [
        "Content_Length",
        "Content-Length-",
        "Contentlength",
        "X-Content-Length",
    ] {
        let lines = format!("{name}: {length}");
        let all = statuses(
            &mut proxy.client(),
            with("POST /", &[&lines]) + &get("/next"),
        );
        assert_eq!(all, [200, 200, 200], "{lines:?}");
    }
    assert!(is_hidden(&upstream));
}

/// CL.TE, TE.CL and TE.TE: a coding that only one of two parsers sees.
#[test]
fn a_disguised_coding_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for lines in [
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Content-Length: 4\r\nTransfer-Encoding:\tchunked",
        "Content-Length: 4\r\nTransfer-Encoding: xchunked",
        "Content-Length: 4\r\nTransfer-Encoding : chunked",
        "Content-Length: 4\r\n Transfer-Encoding: chunked",
        "Content-Length: 4\r\nX: y\nTransfer-Encoding: chunked",
        "Content-Length: 4\r\nX: y\rTransfer-Encoding: chunked",
        "Content-Length: 4\r\nTransfer-Encoding\r\n: chunked",
        "Content-Length: 4\r\nTransfer-Encoding:\r\n chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding: \x00chunked",
        "Transfer-Encoding: chunked\x00",
        "Transfer-Encoding: chunked;",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked, cow",
        "Transfer-Encoding: cow, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-encoding: chunked",
        "Transfer-Encoding: chunK\u{212a}ed",
        "Transfer-Encoding: \u{ff43}hunked",
        "transfer-encoding: 'chunked'",
    ] {
        let body = format!("0\r\n\r\n{HIDDEN}");
        let all = statuses(&mut proxy.client(), with("POST /", &[lines]) + &body);
        assert_eq!(all, [400], "{lines:?}");
    }
    assert_eq!(upstream.connections(), 0, "{:?}", targets(&upstream));
}

/// TERM.EXT and EXT.TERM, spilled chunks, terminators of one byte and of two.
#[test]
fn a_chunk_with_an_ambiguous_end_is_refused() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for start in [
        "2;\nxx\r\n",
        "2;a\nxx\r\n",
        "2;\rxx\r\n",
        "2;a=\"\n\"\r\nxx\r\n",
        "2\n;\r\nxx\r\n",
        "2\r;\nxx\r\n",
        "2\r\r\nxx\r\n",
        "2\n\r\nxx\r\n",
        "2 \r\nxx\r\n",
        "2\t\r\nxx\r\n",
        " 2\r\nxx\r\n",
        "2;a\0\r\nxx\r\n",
        "2\r\nxxxx",
        "2\r\nxx\n\n",
        "2\r\nxx\r\r",
        "2\r\nxx\n",
        "2\r\nxx\r",
        "2\r\nxx;\r\n",
        "2\r\nxxXX",
        "0x2\r\nxx\r\n",
        "2_0\r\nxx\r\n",
        "2.0\r\nxx\r\n",
        "\u{ff12}\r\nxx\r\n",
        "0;\n",
        "0\n",
        "0\r",
        "0\r\n\n",
        "0\r\n\r\r\n",
        "0\r\nX: y\n",
        "0\r\nX: y\r\r\n",
        "0\r\nX\r\n",
        "0\r\n X: y\r\n",
        "0\r\nX : y\r\n",
    ] {
        let head = with("POST /", &["Transfer-Encoding: chunked"]);
        let rest = format!("0\r\n\r\n{HIDDEN}");
        let all = statuses(&mut proxy.client(), head + start + &rest);
        assert!(matches!(all.as_slice(), [] | [400]), "{start:?}: {all:?}");
    }
    assert!(targets(&upstream).is_empty(), "{:?}", targets(&upstream));
}

/// An Expect that only one of two parsers understands does not change the framing.
#[test]
fn a_disguised_expectation_does_not_change_the_framing() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(
            (request.framing, request.body.as_slice()),
            (Framing::Length(5), b"12345".as_slice())
        );
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let values = [
        "100-continue",
        "100-Continue",
        "100-continue, 100-continue",
        "100-continue;x=y",
        "100-continue\r\nExpect: 100-continue",
        "x\r\nExpect: 100-continue",
        "y 100-continue",
        "\t100-continue",
        "100",
        "200-ok",
        "",
    ];
    let ask = |line: &str, value: &str| {
        let expect = format!("Expect: {value}");
        let request = with(line, &[&expect, "Content-Length: 5"]) + "12345";
        let status = proxy.ask(&request).status;
        assert!([200, 417].contains(&status), "{request:?}: {status}");
    };
    // each waits for an upstream that never sends 100
    thread::scope(|scope| {
        for value in values {
            scope.spawn(move || ["POST /", "GET /"].map(|line| ask(line, value)));
        }
    });
    assert!(targets(&upstream).iter().all(|target| target == "/"));
}

/// After a refusal before the body a client may send the body or not: it is never read as a request.
#[test]
fn a_body_after_a_refusal_is_not_a_request() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        assert_eq!(head.fields.one("expect"), Some("100-continue"));
        peer.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n")?;
        peer.await_close()
    });
    let proxy = Proxy::before(&upstream, ALL);
    let length = format!("Content-Length: {}", HIDDEN.len());
    for framing in [length.as_str(), "Transfer-Encoding: chunked"] {
        let mut client = proxy.client();
        client.send(with("POST /", &["Expect: 100-continue", framing]));
        assert_eq!(client.receive().status, 417);
        let all = statuses(&mut client, HIDDEN);
        assert!(
            all.iter().all(|status| *status == 400),
            "{framing}: {all:?}"
        );
    }
    assert_eq!(upstream.requests(), 2);
}

/// There is no tunnel before the upstream's 101.
#[test]
fn after_a_refused_upgrade_there_is_no_tunnel() {
    let upstream = Upstream::answering(|request, peer| match request.target.as_str() {
        "/refused" => peer.write("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n"),
        "/served" => peer.write(OK),
        other => panic!("{other} came through"),
    });
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /refused, target: 'http://UP/refused'}, {path: /served, target: 'http://UP/served'}]\n",
    );
    for line in ["GET /refused", "GET /served"] {
        for fields in [
            &["Connection: Upgrade", "Upgrade: websocket"][..],
            &[
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 1",
            ],
            &[
                "Connection: Upgrade, HTTP2-Settings",
                "Upgrade: h2c",
                "HTTP2-Settings: AAA",
            ],
        ] {
            let all = statuses(&mut proxy.client(), with(line, fields) + HIDDEN);
            // at most it is parsed as a request, for which there is no route
            assert!(
                matches!(all.as_slice(), [200 | 426] | [200 | 426, 404, 200]),
                "{all:?}"
            );
        }
    }
    assert!(is_hidden(&upstream));
}

#[test]
fn after_connection_close_nothing_is_read() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for request in [
        with("GET /", &["Connection: close"]),
        with("GET /", &["Connection: x, CLOSE"]),
        with("GET /", &["Connection: keep-alive", "Connection: close"]),
        with("GET /none/../", &["Connection: close"]),
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n".to_owned(),
        with("POST /", &["Connection: close", "Content-Length: 5"]) + "12345",
    ] {
        let all = statuses(&mut proxy.client(), request.clone() + HIDDEN);
        assert!(
            matches!(all.as_slice(), [200 | 400]),
            "{request:?}: {all:?}"
        );
    }
    assert!(is_hidden(&upstream), "{:?}", targets(&upstream));
}

/// Methods whose bodies some servers ignore: the framing is passed on unchanged.
#[test]
fn a_body_where_none_is_expected_keeps_its_framing() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body, HIDDEN.as_bytes(), "{request:?}");
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let length = format!("Content-Length: {}", HIDDEN.len());
    let chunk = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    for method in ["GET", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "get", "X"] {
        let line = format!("{method} /");
        assert_eq!(proxy.ask(with(&line, &[&length]) + HIDDEN).status, 200);
        let chunked = with(&line, &["Transfer-Encoding: chunked"]);
        assert_eq!(proxy.ask(chunked + &chunk).status, 200);
    }
    assert_eq!(upstream.requests(), 14);
}

/// On the upstream's side: bytes after an answer without a body are not an answer to another request.
#[test]
fn a_body_after_an_answer_to_head_is_not_another_answer() {
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let upstream = Upstream::answering(|request, peer| {
        if request.method == "HEAD" {
            let length = EVIL.len();
            return peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{EVIL}"
            ));
        }
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    for _ in 0..20 {
        let mut client = proxy.client();
        assert_eq!(client.ask(with("HEAD /", &[])).status, 200);
        assert_eq!(client.get("/").text(), "ok");
        assert_eq!(proxy.get("/").text(), "ok");
    }
}

/// Fields that a client lists in Connection are not passed on, except for those that the upstream relies on; and no field
/// can replace another one.
#[test]
fn connection_cannot_remove_fields_that_the_upstream_relies_on() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    for name in [
        "Host",
        "Content-Length",
        "Content-Type",
        "Transfer-Encoding",
        "Authorization",
        "Cookie",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
    ] {
        let connection = format!("Connection: close, {name}, keep-alive");
        let request = with(
            "POST /",
            &[
                &connection,
                "Content-Length: 3",
                "Content-Type: a/b",
                "Authorization: c",
                "Cookie: d=e",
            ],
        ) + "abc";
        let request = seen(&proxy.ask(request));
        assert_eq!(
            (request.framing, request.body.len()),
            (Framing::Length(3), 0)
        );
        for kept in [
            "content-type",
            "authorization",
            "cookie",
            "x-forwarded-for",
            "x-forwarded-proto",
        ] {
            assert!(
                request.fields.has(kept),
                "{name} took {kept} away: {request:?}"
            );
        }
    }
}
