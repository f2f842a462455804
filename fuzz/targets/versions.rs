//! A head means the same in HTTP/1.1 and HTTP/2, in each direction.
//!
//! The input's first bytes choose method, status and size. The first line is the target; the others are fields, `name:value`.

#![no_main]

use http::{Method, Request, Response, StatusCode};
use lean_proxy::fuzzing::{
    fields::Fields, framing::Framing, http2::head, request_head, response_head,
};
use lean_proxy_fuzz::strict;
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

/// What belongs to a connection of HTTP/1.1 (RFC 9113 §8.2.2) or to its framing.
const NOT_ACROSS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

const HOP_BY_HOP: [&[u8]; 6] = [
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
];

type Lines<'a> = Vec<(&'a [u8], &'a [u8])>;

fuzz_target!(|input: &[u8]| {
    let (mut dice, bytes) = Dice::new(input, 3);
    let method = match dice.next() % 5 {
        0 => Method::GET,
        1 => Method::POST,
        2 => Method::OPTIONS,
        3 => Method::HEAD,
        _ => Method::CONNECT,
    };
    let status = StatusCode::from_u16(200 + dice.next() as u16).expect("a final status");
    let max = match dice.next() {
        0 => 65_536,
        small => 16 * small,
    };
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let fields: Lines = lines
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..at], &line[at + 1..]))
        })
        .collect();
    from_a_client(&method, target, &fields, max);
    to_an_upstream(&method, target, &fields);
    from_an_upstream(status, &fields);
});

/// A request of HTTP/2 that passes is one and the same request in HTTP/1.1, by our reader and by the tests' strict one.
fn from_a_client(method: &Method, target: &[u8], fields: &Lines, max: usize) {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let Ok(request) = request.body(()) else {
        return;
    };
    let (parts, ()) = request.into_parts();
    let Ok(head) = head::request(parts, max) else {
        return;
    };
    for name in ["connection", "transfer-encoding", "upgrade"] {
        assert!(!head.headers.contains(name), "{name}");
    }
    let text = request_text(method, head.uri.path(), head.uri.query(), &head.headers);
    let ours = request_head::head(&text, &mut 0, usize::MAX);
    let ours = ours.expect("it is accepted").expect("it is whole");
    assert_eq!(ours.len, text.len());
    assert_eq!(ours.fields.len(), head.headers.iter().count());
    if head.uri.path() == "*" {
        // the exchange answers it, and the strict reader knows what reaches an upstream
        return;
    }
    // the exchange removes these, as from HTTP/1.1
    let mut fields = head.headers;
    fields.retain(|name, _| !HOP_BY_HOP.contains(&name) && !reads_as_forwarding(name));
    let text = request_text(method, head.uri.path(), head.uri.query(), &fields);
    let theirs = strict::Reader::new(text.as_slice())
        .request_head()
        .expect("the strict reader accepts it")
        .expect("it is whole");
    assert_eq!(theirs.raw.len(), text.len());
    assert_eq!(theirs.fields.0.len(), fields.iter().count());
    let host = fields.only("host").expect("one Host");
    assert_eq!(theirs.fields.all("host").concat().as_bytes(), host);
    assert!(theirs.fields.all("content-length").len() <= 1);
}

/// Whether some servers take it for `X-Forwarded-…`: `x_forwarded_for`.
fn reads_as_forwarding(name: &[u8]) -> bool {
    let plain = name
        .iter()
        .map(|byte| if *byte == b'_' { b'-' } else { *byte });
    name.contains(&b'_') && plain.take(12).eq(*b"x-forwarded-")
}

/// The request for an upstream is the same in both versions, and comes back from HTTP/2 as it was.
fn to_an_upstream(method: &Method, target: &[u8], fields: &Lines) {
    let mut text = [method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"].concat();
    for (name, value) in fields {
        text.extend_from_slice(&[name, b": ".as_slice(), value, b"\r\n"].concat());
    }
    text.extend_from_slice(b"\r\n");
    let Ok(request) = head::upstream_request(&text, false) else {
        return;
    };
    let before = request_head::head(&text, &mut 0, usize::MAX);
    let before = before.expect("it was accepted").expect("it was whole");
    let before = request_head::parts(text, before).expect("it was accepted");
    for name in NOT_ACROSS.iter().filter(|name| **name != "te") {
        assert!(!request.headers().contains_key(*name), "{name}");
    }
    assert!(!request.headers().contains_key("host"));
    for (name, value) in request.headers() {
        let mut all = before.headers.get_all(name);
        assert!(all.any(|it| it == value.as_bytes()), "{name}");
    }
    assert_eq!(request.method(), before.method);
    let (parts, ()) = request.into_parts();
    let Ok(after) = head::request(parts, usize::MAX) else {
        return;
    };
    assert_eq!(after.uri.query(), before.uri.query());
    assert_eq!(after.authority(), before.authority());
    let path = before.uri.path();
    assert_eq!(after.uri.path(), if path.is_empty() { "/" } else { path });
}

/// A response that passes has one reading in HTTP/1.1, and the same fields behind HTTP/2 once more.
fn from_an_upstream(status: StatusCode, fields: &Lines) {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    let Ok(response) = response.body(()) else {
        return;
    };
    let Ok(ours) = head::response_fields(status, response.headers()) else {
        return;
    };
    for name in NOT_ACROSS {
        assert!(!ours.contains(name), "{name}");
    }
    let mut text = format!("HTTP/1.1 {} x\r\n", status.as_u16()).into_bytes();
    ours.write(&mut text);
    text.extend_from_slice(b"\r\n");
    let read = response_head::read_head(&text, &Method::GET);
    let read = read.expect("it is accepted").expect("it is whole");
    let told = ours.only("content-length");
    if let (Some(told), Framing::Length(length)) = (told, read.framing) {
        let has_body = !matches!(status.as_u16(), 204 | 205 | 304);
        assert!(!has_body || told == length.to_string().as_bytes());
    }
    let again = head::response(status, &ours);
    let again = head::response_fields(status, again.headers()).expect("it passed before");
    assert_eq!(lines(&again), lines(&ours));
}

fn request_text(method: &Method, path: &str, query: Option<&str>, fields: &Fields) -> Vec<u8> {
    let query = query.map_or_else(String::new, |query| format!("?{query}"));
    let mut text = format!("{method} {path}{query} HTTP/1.1\r\n").into_bytes();
    fields.write(&mut text);
    text.extend_from_slice(b"\r\n");
    text
}

fn lines(fields: &Fields) -> Vec<(Vec<u8>, Vec<u8>)> {
    let pairs = fields
        .iter()
        .map(|(name, value)| (name.to_vec(), value.to_vec()));
    let mut lines: Vec<_> = pairs.collect();
    lines.sort();
    lines
}
