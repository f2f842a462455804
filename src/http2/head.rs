//! Translates heads between hyper's types and those of an exchange.
//!
//! Pure. A head that would be refused in HTTP/1.1 is refused here by the same rules, so that the upstream never gets a
//! request that the client could not have sent in HTTP/1.1 (RFC 9113 §8.2, §8.3, §10.3).

use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{self, HeaderName, InvalidHeaderValue},
    request::Parts,
    uri::Scheme,
};

use crate::{
    failure::Failure,
    fields::Fields,
    http1::{
        headers,
        request::{Present, RequestHead, RequestUri},
        request_head::{self, MAX_FIELDS},
    },
};

/// Bytes that a field takes besides its text while a head waits.
const FIELD: usize = 16;

const LENGTHS: &str = "more than one Content-Length";

/// What one pass over the fields of a request finds: a look-up for each would hash its name.
#[derive(Debug, Default)]
struct Found<'a> {
    /// Bytes of them as lines of HTTP/1.1.
    text: usize,
    host: Option<&'a [u8]>,
    length: Option<u64>,
    has_cookies: bool,
}

/// The head of a request for an exchange; it may have at most `max` bytes.
///
/// # Errors
/// The failures for which an HTTP/1.1 head is refused.
pub fn request(parts: Parts, max: usize) -> Result<Box<RequestHead>, Failure> {
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str(),
        None => "/",
    };
    request_head::check_target(parts.method.as_str().as_bytes(), target.as_bytes())?;
    let uri = RequestUri::new(target.as_bytes()).ok_or(Failure::Malformed("a malformed :path"))?;
    let map = &parts.headers;
    let found = survey(map)?;
    // a Host that `:authority` stands for is one of them in HTTP/1.1
    let count = map.len() + usize::from(found.host.is_none());
    if count > MAX_FIELDS || found.text + target.len() > max {
        return Err(Failure::HeadTooLarge);
    }
    let authority = parts.uri.authority().map(|it| it.as_str().as_bytes());
    let host = host(authority, found.host)?;
    let mut headers = Fields::with_capacity(map.len() + 1, found.text + host.len() + 4);
    headers.append(header::HOST, host);
    if let Some(length) = found.length {
        headers.append(header::CONTENT_LENGTH, length.to_string());
    }
    for (name, value) in map {
        if !matches!(
            *name,
            header::HOST | header::CONTENT_LENGTH | header::COOKIE
        ) {
            headers.append(name, trimmed(value));
        }
    }
    // the parts of a Cookie become one field again (RFC 9113 §8.2.3)
    if found.has_cookies {
        let cookies = map.get_all(header::COOKIE).iter().map(trimmed);
        let cookies: Vec<&[u8]> = cookies.filter(|it| !it.is_empty()).collect();
        if !cookies.is_empty() {
            headers.append(header::COOKIE, cookies.join(&b"; "[..]));
        }
    }
    Ok(Box::new(RequestHead {
        method: parts.method,
        uri,
        version: parts.version,
        present: Present::of(&headers),
        headers,
    }))
}

/// Bytes of a head while it waits, as the budget counts heads.
pub fn size(head: &RequestHead) -> usize {
    let field = |(name, value): (&[u8], &[u8])| name.len() + value.len() + FIELD;
    head.headers.iter().map(field).sum()
}

/// The head of a response for hyper, without the fields of an HTTP/1.1 connection.
pub fn response(status: StatusCode, fields: &Fields) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    let map = response.headers_mut();
    map.reserve(fields.count());
    for (name, value) in fields.iter() {
        // copied: h2 keeps fields in its table, where a part of a shared text would keep the whole head
        if name == b"trailer" || !headers::is_hop_by_hop(name) {
            append(map, name, HeaderValue::from_bytes(value));
        }
    }
    response
}

/// Makes the request that an upstream gets in HTTP/2 of the text that it would get in HTTP/1.1, so that both are told the
/// same; what belongs to an HTTP/1.1 connection stays behind.
///
/// # Errors
/// A target or a Host that HTTP/2 cannot carry.
pub fn upstream_request(text: &[u8], is_https: bool) -> Result<Request<()>, Failure> {
    let head = request_head::head(text, &mut 0, usize::MAX)?;
    let head = head.ok_or(Failure::Malformed("an unfinished head"))?;
    let head = request_head::parts(text.to_vec(), head)?;
    let scheme = if is_https {
        Scheme::HTTPS
    } else {
        Scheme::HTTP
    };
    let target = match head.uri.query() {
        Some(query) => format!("{}?{query}", head.uri.path()),
        None => head.uri.path().to_owned(),
    };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(head.authority())
        .path_and_query(target)
        .build()
        .map_err(|_| Failure::Malformed("a target that HTTP/2 cannot carry"))?;
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    for (name, value) in head.headers.iter() {
        let passes = match name {
            b"host" => false,
            b"te" | b"trailer" => true,
            _ => !headers::is_hop_by_hop(name),
        };
        if passes {
            append(request.headers_mut(), name, HeaderValue::from_bytes(value));
        }
    }
    Ok(request)
}

/// The fields of an upstream's response, without what belongs to an HTTP/1.1 connection.
///
/// # Errors
/// A word for the log where they cannot be passed on.
pub fn response_fields(status: StatusCode, map: &HeaderMap) -> Result<Fields, &'static str> {
    if map.len() > MAX_FIELDS {
        return Err("head too large");
    }
    let length = length(map).map_err(|_| "malformed Content-Length")?;
    let mut fields = Fields::new();
    for (name, value) in map {
        let name = name.as_str().as_bytes();
        if name != b"content-length" && (name == b"trailer" || !headers::is_hop_by_hop(name)) {
            fields.append(name, trimmed(value));
        }
    }
    // no such answer may have a length (RFC 9110 §8.6)
    if let Some(length) = length.filter(|_| status != StatusCode::NO_CONTENT) {
        fields.append(header::CONTENT_LENGTH, length.to_string());
    }
    Ok(fields)
}

fn append(map: &mut HeaderMap, name: &[u8], value: Result<HeaderValue, InvalidHeaderValue>) {
    // both were read strictly before
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
        map.append(name, value);
    }
}

/// A value as HTTP/1.1 would have brought it. White space around it must not be forwarded (RFC 9113 §8.2.1), and gRPC allows
/// that it is removed.
fn trimmed(value: &HeaderValue) -> &[u8] {
    value.as_bytes().trim_ascii()
}

/// Examines every field of a request once.
fn survey(map: &HeaderMap) -> Result<Found<'_>, Failure> {
    let mut found = Found::default();
    for (name, value) in map {
        found.text += name.as_str().len() + value.len() + 4;
        match *name {
            header::HOST => once(&mut found.host, value.as_bytes(), "more than one Host")?,
            header::CONTENT_LENGTH => once(&mut found.length, decimal(value)?, LENGTHS)?,
            header::COOKIE => found.has_cookies = true,
            // fields of an HTTP/1.1 connection make an HTTP/2 head malformed (RFC 9113 §8.2.2)
            header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => {
                return Err(Failure::Malformed("a field of an HTTP/1.1 connection"));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn once<T>(place: &mut Option<T>, value: T, reason: &'static str) -> Result<(), Failure> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Failure::Malformed(reason)),
    }
}

/// The Host: `:authority`, or the Host field; where there are both, they must be the same (RFC 9113 §8.3.1).
fn host<'a>(authority: Option<&'a [u8]>, host: Option<&'a [u8]>) -> Result<&'a [u8], Failure> {
    let value = match (authority, host) {
        (None, None) => return Err(Failure::Malformed("no Host")),
        (Some(authority), Some(host)) if !host.eq_ignore_ascii_case(authority) => {
            return Err(Failure::Malformed(":authority and Host differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
    };
    if !request_head::is_host(value) {
        return Err(Failure::Malformed("a malformed Host"));
    }
    Ok(value)
}

/// The Content-Length; a second or malformed one is refused.
fn length(map: &HeaderMap) -> Result<Option<u64>, Failure> {
    let mut lengths = map.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().map(decimal).transpose()?;
    if lengths.next().is_some() {
        return Err(Failure::Malformed(LENGTHS));
    }
    Ok(length)
}

fn decimal(length: &HeaderValue) -> Result<u64, Failure> {
    request_head::decimal(length.as_bytes()).ok_or(Failure::Malformed("a malformed Content-Length"))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, StatusCode};

    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .version(Version::HTTP_2);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn read(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<Box<RequestHead>, Failure> {
        request(parts(method, uri, fields), 4096)
    }

    #[test]
    fn a_head_becomes_what_http_1_would_have_brought() {
        let fields = [
            ("cookie", "a=1"),
            ("x", "\t y "),
            ("cookie", "b=2 "),
            ("cookie", ""),
            ("content-length", "007"),
        ];
        let head = read("POST", "https://a.example:81/x/y?z", &fields).unwrap();
        assert_eq!(
            (&head.method, head.uri.path(), head.uri.query()),
            (&Method::POST, "/x/y", Some("z"))
        );
        assert_eq!(head.authority(), "a.example:81");
        for (name, value) in [("cookie", "a=1; b=2"), ("content-length", "7"), ("x", "y")] {
            assert_eq!(head.headers.only(name), Some(value.as_bytes()), "{name}");
        }
        assert_eq!(
            read("OPTIONS", "*", &[("host", "a")]).unwrap().uri.path(),
            "*"
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let long = "x".repeat(5_000);
        for (method, uri, fields, reason) in [
            ("GET", "/", &[][..], "no Host"),
            (
                "GET",
                "http://a/",
                &[("host", "b")],
                ":authority and Host differ",
            ),
            (
                "GET",
                "/",
                &[("host", "a"), ("host", "a")],
                "more than one Host",
            ),
            ("GET", "/", &[("host", "a b")], "a malformed Host"),
            (
                "GET",
                "http://a/",
                &[("content-length", "1"), ("content-length", "2")],
                "more than one Content-Length",
            ),
            (
                "GET",
                "http://a/",
                &[("content-length", "+1")],
                "a malformed Content-Length",
            ),
            (
                "GET",
                "http://a/",
                &[("transfer-encoding", "chunked")],
                "a field of an HTTP/1.1 connection",
            ),
            (
                "GET",
                "http://a/",
                &[("connection", "x")],
                "a field of an HTTP/1.1 connection",
            ),
            ("CONNECT", "a:80", &[], "method-not-allowed"),
            ("GET", "http://a/", &[("x", &long)], "head-too-large"),
        ] {
            let refusal = read(method, uri, fields).unwrap_err();
            assert!(
                refusal.to_string().ends_with(reason),
                "{method} {uri} {fields:?}"
            );
        }
        assert!(read("GET", "http://A.example/", &[("host", "a.EXAMPLE")]).is_ok());
    }

    #[test]
    fn there_may_be_as_many_fields_as_in_http_1_with_host() {
        for (own, uri) in [(0, "http://a/"), (1, "/")] {
            let mut fields = vec![("x", "y"); MAX_FIELDS];
            fields[..own].fill(("host", "a"));
            assert!(matches!(
                read("GET", uri, &fields[own ^ 1..]),
                Ok(head) if head.headers.count() == MAX_FIELDS
            ));
            fields.push(("x", "y"));
            let refusal = read("GET", uri, &fields[own ^ 1..]);
            assert!(matches!(refusal, Err(Failure::HeadTooLarge)));
        }
    }

    /// A head that is accepted reads as one and the same message in HTTP/1.1.
    #[test]
    fn what_passes_is_read_by_http_1_as_it_was_meant() {
        let mut random = 1_u32;
        let mut pick = |of: usize| {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random as usize % of
        };
        let names = [
            "host",
            "content-length",
            "cookie",
            "x-a",
            "te",
            "expect",
            "transfer-encoding",
            "connection",
            "upgrade",
            "keep-alive",
            "content_length",
        ];
        let values: [&[u8]; 9] = [
            b"a",
            b"5",
            b"",
            b"chunked",
            b"trailers",
            b"a.example",
            b"0x5",
            b"\xff\t",
            b"100-continue",
        ];
        let targets = [
            "/",
            "/a?b",
            "/%2f",
            "//a",
            "/{a}",
            "/\u{e9}",
            "*",
            "http://b.example/x",
            "http://u@b/",
        ];
        let mut passed = 0;
        for _ in 0..20_000 {
            let mut request = Request::builder()
                .method(["GET", "POST", "OPTIONS"][pick(3)])
                .uri(targets[pick(targets.len())]);
            for _ in 0..pick(5) {
                request = request.header(names[pick(names.len())], values[pick(values.len())]);
            }
            let Ok(request) = request.body(()) else {
                continue;
            };
            let (parts, ()) = request.into_parts();
            let Ok(head) = super::request(parts, 4096) else {
                continue;
            };
            passed += 1;
            let query = head
                .uri
                .query()
                .map_or_else(String::new, |query| format!("?{query}"));
            let line = format!("{} {}{query} HTTP/1.1\r\n", head.method, head.uri.path());
            let mut text = line.into_bytes();
            head.headers.write(&mut text);
            text.extend_from_slice(b"\r\n");
            let read = request_head::head(&text, &mut 0, 4096);
            let read = read.unwrap_or_else(|failure| panic!("{failure}: {}", text.escape_ascii()));
            let read = read.unwrap_or_else(|| panic!("not whole: {}", text.escape_ascii()));
            assert_eq!(
                (read.len, read.fields.len()),
                (text.len(), head.headers.iter().count())
            );
        }
        assert!(passed > 1_000, "{passed}");
    }

    #[test]
    fn an_upstream_is_told_in_http_2_what_it_would_be_told_in_http_1() {
        let text = b"POST /x/y?z HTTP/1.1\r\nhost: a.example:81\r\ncontent-length: 5\r\nx-a: b\r\nx-a: c\r\nte: trailers\r\nconnection: te\r\n\r\n";
        let request = upstream_request(text, true).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "https://a.example:81/x/y?z");
        let fields: Vec<(&str, &[u8])> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        let expected: [(&str, &[u8]); 4] = [
            ("content-length", b"5"),
            ("x-a", b"b"),
            ("x-a", b"c"),
            ("te", b"trailers"),
        ];
        assert_eq!(fields, expected);
        let chunked = b"PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        assert!(
            upstream_request(chunked, false)
                .unwrap()
                .headers()
                .is_empty()
        );
    }

    #[test]
    fn an_answer_has_one_length_at_most_and_no_field_of_a_connection() {
        let read = |status: u16, fields: &[(&str, &str)]| {
            let mut response = Response::builder();
            for (name, value) in fields {
                response = response.header(*name, *value);
            }
            let map = response.body(()).unwrap().into_parts().0.headers;
            response_fields(StatusCode::from_u16(status).unwrap(), &map)
        };
        let fields = [
            ("content-length", "05"),
            ("keep-alive", "x"),
            ("trailer", "t"),
            ("x", " y "),
        ];
        let mut text = Vec::new();
        read(200, &fields).unwrap().write(&mut text);
        assert_eq!(text, b"trailer: t\r\nx: y\r\ncontent-length: 5\r\n");
        assert!(!read(204, &fields).unwrap().contains("content-length"));
        for bad in [
            &[("content-length", "1"), ("content-length", "1")][..],
            &[("content-length", "x")],
        ] {
            assert!(read(200, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_belongs_to_a_connection_does_not_cross() {
        let mut fields = Fields::new();
        for name in [
            "connection",
            "keep-alive",
            "transfer-encoding",
            "upgrade",
            "trailer",
            "x",
        ] {
            fields.append(name, "y");
        }
        let response = response(StatusCode::OK, &fields);
        let mut left: Vec<&str> = response.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["trailer", "x"]);
    }
}
