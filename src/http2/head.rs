//! Heads as hyper has them, and as an exchange does.
//!
//! Pure. What HTTP/1.1 would refuse is refused here too, by the same rules: the upstream never sees what the client could
//! not have sent it in HTTP/1.1 (RFC 9113 §8.2, §8.3, §10.3).

use http::{
    HeaderMap, HeaderValue, Response,
    header::{self, HeaderName},
    request::Parts,
};

use crate::http1::{
    headers,
    request::{RequestHead, RequestUri},
    request_head::{self, MAX_FIELDS, Refusal},
};

/// What a field costs beside its bytes in hyper's table.
const FIELD: usize = 70;

/// Fields that belong to an HTTP/1.1 connection, and make a head of HTTP/2 malformed (RFC 9113 §8.2.2).
const OF_THE_CONNECTION: [HeaderName; 3] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Makes the head of a request that an exchange reads. `max` is how many bytes it may have.
///
/// # Errors
/// What HTTP/1.1 would be refused for.
pub fn request(parts: Parts, max: usize) -> Result<Box<RequestHead>, Refusal> {
    let target = match parts.uri.path_and_query() {
        Some(target) => target.as_str(),
        None => "/",
    };
    request_head::check_target(parts.method.as_str().as_bytes(), target.as_bytes())?;
    let uri = RequestUri::new(target.as_bytes()).ok_or(Refusal::Malformed("a malformed :path"))?;
    let authority = parts.uri.authority().map(|it| it.as_str().as_bytes());
    let mut fields = parts.headers;
    if fields.len() > MAX_FIELDS || text_len(&fields) + target.len() > max {
        return Err(Refusal::HeadTooLarge);
    }
    if OF_THE_CONNECTION
        .iter()
        .any(|name| fields.contains_key(name))
    {
        return Err(Refusal::Malformed("a field of an HTTP/1.1 connection"));
    }
    set_host(&mut fields, authority)?;
    set_length(&mut fields)?;
    join_cookies(&mut fields)?;
    Ok(Box::new(RequestHead {
        method: parts.method,
        uri,
        version: parts.version,
        headers: fields,
    }))
}

/// What a head costs while it waits, as a budget counts heads.
pub fn size(head: &RequestHead) -> usize {
    text_len(&head.headers) + head.headers.len() * FIELD
}

/// Makes the head of a response; what belongs to an HTTP/1.1 connection stays behind.
pub fn response(status: http::StatusCode, mut fields: HeaderMap) -> Response<()> {
    let is_hop =
        |name: &HeaderName| name != header::TRAILER && headers::is_hop_by_hop(name.as_str());
    let hops: Vec<HeaderName> = fields.keys().filter(|name| is_hop(name)).cloned().collect();
    for name in hops {
        fields.remove(name);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

fn text_len(fields: &HeaderMap) -> usize {
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    fields.iter().map(line).sum()
}

/// `:authority` is the Host; where there are both, they must say the same (RFC 9113 §8.3.1).
fn set_host(fields: &mut HeaderMap, authority: Option<&[u8]>) -> Result<(), Refusal> {
    let mut hosts = fields.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::Malformed("more than one Host"));
    }
    let value = match (authority, host) {
        (None, None) => return Err(Refusal::Malformed("no Host")),
        (Some(authority), Some(host)) if !host.as_bytes().eq_ignore_ascii_case(authority) => {
            return Err(Refusal::Malformed(":authority and Host differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host.as_bytes(),
    };
    if !request_head::is_host(value) {
        return Err(Refusal::Malformed("a malformed Host"));
    }
    let value =
        HeaderValue::from_bytes(value).map_err(|_| Refusal::Malformed("a malformed Host"))?;
    fields.insert(header::HOST, value);
    Ok(())
}

/// One Content-Length at most, as everybody writes it.
fn set_length(fields: &mut HeaderMap) -> Result<(), Refusal> {
    const MALFORMED: Refusal = Refusal::Malformed("a malformed Content-Length");
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(());
    };
    if lengths.next().is_some() {
        return Err(Refusal::Malformed("more than one Content-Length"));
    }
    let length = request_head::decimal(length.as_bytes()).ok_or(MALFORMED)?;
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(())
}

/// The crumbs of a Cookie are one field again (RFC 9113 §8.2.3).
fn join_cookies(fields: &mut HeaderMap) -> Result<(), Refusal> {
    let crumbs: Vec<&[u8]> = fields
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() < 2 {
        return Ok(());
    }
    let whole = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]));
    let whole = whole.map_err(|_| Refusal::Malformed("a malformed Cookie"))?;
    fields.insert(header::COOKIE, whole);
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, StatusCode};

    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .version(http::Version::HTTP_2);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn read(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<Box<RequestHead>, Refusal> {
        request(parts(method, uri, fields), 4096)
    }

    #[test]
    fn a_head_becomes_what_http_1_would_have_brought() {
        let fields = [
            ("cookie", "a=1"),
            ("x", "y"),
            ("cookie", "b=2"),
            ("content-length", "007"),
        ];
        let head = read("POST", "https://a.example:81/x/y?z", &fields).unwrap();
        assert_eq!(
            (&head.method, head.uri.path(), head.uri.query()),
            (&Method::POST, "/x/y", Some("z"))
        );
        assert_eq!(head.authority(), "a.example:81");
        let get = |name| head.headers.get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(get("cookie"), ["a=1; b=2"]);
        assert_eq!(get("content-length"), ["7"]);
        assert_eq!(get("x"), ["y"]);
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
            ("CONNECT", "a:80", &[], "CONNECT"),
            ("GET", "http://a/", &[("x", &long)], "head too large"),
        ] {
            let refusal = read(method, uri, fields).unwrap_err();
            assert_eq!(refusal.reason(), reason, "{method} {uri} {fields:?}");
        }
        assert!(read("GET", "http://A.example/", &[("host", "a.EXAMPLE")]).is_ok());
    }

    #[test]
    fn what_belongs_to_a_connection_does_not_cross() {
        let mut fields = HeaderMap::new();
        for name in [
            "connection",
            "keep-alive",
            "transfer-encoding",
            "upgrade",
            "trailer",
            "x",
        ] {
            fields.insert(name, HeaderValue::from_static("y"));
        }
        let response = response(StatusCode::OK, fields);
        let mut left: Vec<&str> = response.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["trailer", "x"]);
    }
}
