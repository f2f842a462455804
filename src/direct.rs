//! Routes that the proxy answers itself: a redirect, or a fixed response.
//!
//! Pure. They need no upstream, no place and no queue. A redirect depends only on the request's path, its query and its
//! Host, which is checked here.

use bytes::Bytes;
use http::{HeaderValue, StatusCode};

use crate::http1::authority::{bare_host, ipv6_literal};

/// `redirect:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308. Default 308.
    pub status: StatusCode,
    /// Where the client is sent.
    pub to: Destination,
}

/// The parts of `redirect.to`, to which the rest of the request's path and its query are appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// `https://` or `http://`; empty = the Location is a path on the same host.
    pub scheme: &'static str,
    /// The host.
    pub host: DestinationHost,
    /// The path before what is appended: `""` or `/base`.
    pub base: String,
}

/// The host of a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DestinationHost {
    /// `{host}`: the request's host, with this port if there is one.
    Asked(Option<u16>),
    /// This host, with its port; empty = the same host.
    Fixed(String),
}

/// `respond:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// 200 to 599. Default 200.
    pub status: StatusCode,
    /// Its body; empty for 204, 205 and 304.
    pub body: Bytes,
    /// Its Content-Type. Default `text/plain; charset=utf-8` where there is a body, else none.
    pub content_type: Option<HeaderValue>,
}

impl Destination {
    /// The Location for a request to `authority`; `join` appends the request's path and query to the base. `None` where the
    /// request's host is needed and is missing, or is not a plain name or address: RFC 3986 allows more than is safe here.
    pub fn location(
        &self,
        authority: &str,
        join: impl FnOnce(&str, &mut Vec<u8>),
    ) -> Option<HeaderValue> {
        let mut out = Vec::with_capacity(64);
        out.extend_from_slice(self.scheme.as_bytes());
        match &self.host {
            DestinationHost::Fixed(host) => out.extend_from_slice(host.as_bytes()),
            DestinationHost::Asked(port) => {
                let host = bare_host(authority);
                if !is_plain(host) {
                    return None;
                }
                out.extend_from_slice(host.as_bytes());
                if let Some(port) = port {
                    out.extend_from_slice(format!(":{port}").as_bytes());
                }
            }
        }
        let start = out.len();
        join(&self.base, &mut out);
        if self.scheme.is_empty() {
            // a path that begins with two slashes would name another host
            let slashes = out.iter().skip(start);
            let many = slashes
                .take_while(|byte| matches!(byte, b'/' | b'\\'))
                .count();
            out.drain(start..start + many.saturating_sub(1));
            if let Some(first) = out.get_mut(start) {
                *first = b'/';
            }
        }
        HeaderValue::from_maybe_shared(Bytes::from(out)).ok()
    }
}

/// Whether a host is a name, an IPv4 address, or an IPv6 address in brackets.
fn is_plain(host: &str) -> bool {
    if let Some(inner) = ipv6_literal(host) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=253).contains(&host.len()) && host.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use crate::{
        config::tests::{first, good},
        route::Action,
    };

    fn location(route: &str, authority: &str, path: &str, query: Option<&str>) -> Option<String> {
        let config = good(&format!("routes: [{{{route}}}]"));
        let route = first(&config);
        let Action::Redirect(redirect) = &route.action else {
            panic!("{route:?} is no redirect")
        };
        let value = redirect.to.location(authority, |base, out| {
            route.push_joined(base, path, query, out);
        })?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn the_rest_of_the_path_and_the_query_are_appended() {
        for (route, path, query, expected) in [
            (
                "path: /, redirect: {to: \"https://{host}\"}",
                "/",
                None,
                "https://a.example/",
            ),
            (
                "path: /, redirect: {to: \"https://{host}/\"}",
                "/x//y%2F",
                Some("q=?"),
                "https://a.example/x//y%2F?q=?",
            ),
            (
                "path: /, redirect: {to: \"https://{host}:8443\"}",
                "/x",
                None,
                "https://a.example:8443/x",
            ),
            (
                "path: /old/, redirect: {to: \"https://new.example/base\"}",
                "/old/x",
                Some(""),
                "https://new.example/base/x?",
            ),
            (
                "path: /old, redirect: {to: \"http://new.example:81/base\"}",
                "/old",
                None,
                "http://new.example:81/base",
            ),
            (
                "path: /old/, redirect: {to: \"https://NEW.example\"}, strip_prefix: false",
                "/old/x",
                None,
                "https://new.example/old/x",
            ),
            (
                "path: /old/, redirect: {to: /new}",
                "/old/x",
                Some("q"),
                "/new/x?q",
            ),
            ("path: /old/, redirect: {to: /}", "/old/x", None, "/x"),
            (
                "path: /old/, redirect: {to: /}",
                "/old//evil.example/x",
                None,
                "/evil.example/x",
            ),
            (
                "path: /old/, redirect: {to: /}",
                "/old/\\evil.example",
                None,
                "/evil.example",
            ),
            (
                "path: /, redirect: {to: /}, strip_prefix: false",
                "//evil.example",
                None,
                "/evil.example",
            ),
        ] {
            let found = location(route, "a.example:8080", path, query);
            assert_eq!(found.as_deref(), Some(expected), "{route} {path}");
        }
    }

    #[test]
    fn a_host_that_is_not_a_plain_name_is_not_echoed() {
        let route = "path: /, redirect: {to: \"https://{host}\"}";
        for (authority, expected) in [
            ("a.example", Some("https://a.example/")),
            ("A.Example.:80", Some("https://A.Example/")),
            ("my_app:80", Some("https://my_app/")),
            ("192.0.2.1:8080", Some("https://192.0.2.1/")),
            ("[2001:db8::1]:80", Some("https://[2001:db8::1]/")),
            ("", None),
            (":80", None),
            ("a,b", None),
            ("a%2eb", None),
            ("a'b", None),
            ("a@b", None),
            ("a/b", None),
            ("[v1.x]", None),
            ("[]", None),
        ] {
            let found = location(route, authority, "/", None);
            assert_eq!(found.as_deref(), expected, "{authority}");
        }
        let fixed = "path: /, redirect: {to: \"https://b.example\"}";
        let found = location(fixed, "a,b", "/", None);
        assert_eq!(found.as_deref(), Some("https://b.example/"));
    }
}
