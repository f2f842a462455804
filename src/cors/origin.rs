//! The entries of `allowed_origins`: parsed once, then compared with the Origin of each request.
//!
//! Pure. Origins are compared as browsers write them (RFC 6454 §6.2): lower case, without the scheme's own port.

use std::net::Ipv6Addr;

use http::HeaderValue;

use crate::http1::authority::{ipv6_literal, split_port};

#[derive(Debug, Clone)]
pub enum Pattern {
    /// A complete origin, ready to be sent.
    Exact(HeaderValue),
    Wild(Wild),
}

/// An origin with a wildcard for its labels, its port or both.
#[derive(Debug, Clone)]
pub struct Wild {
    /// With its `://`.
    scheme: String,
    host: WildHost,
    /// With its colon; empty = the default port; `None` = any port.
    port: Option<String>,
}

#[derive(Debug, Clone)]
pub enum WildHost {
    Exact(String),
    /// One or more labels before this suffix, which begins with a dot.
    Below(String),
}

impl Pattern {
    /// The value of Allow-Origin for an origin that matches. Origins are compared byte by byte, because browsers send them
    /// normalised (RFC 6454 §6.2).
    pub fn echo(&self, origin: &[u8]) -> Option<HeaderValue> {
        match self {
            Pattern::Exact(value) => (value == origin).then(|| value.clone()),
            Pattern::Wild(wild) => wild
                .matches(str::from_utf8(origin).ok()?)
                .then(|| HeaderValue::from_bytes(origin).ok())?,
        }
    }
}

impl Pattern {
    /// As it is written in `allowed_origins`.
    pub fn shown(&self) -> String {
        match self {
            Pattern::Exact(origin) => String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            Pattern::Wild(wild) => {
                let (star, host) = match &wild.host {
                    WildHost::Exact(host) => ("", host),
                    WildHost::Below(suffix) => ("*", suffix),
                };
                let port = wild.port.as_deref().unwrap_or(":*");
                format!("{}{star}{host}{port}", wild.scheme)
            }
        }
    }
}

impl Wild {
    fn matches(&self, origin: &str) -> bool {
        let Some(authority) = origin.strip_prefix(self.scheme.as_str()) else {
            return false;
        };
        let (host, port) = split_port(authority);
        let host_matches = match &self.host {
            WildHost::Exact(name) => host == name,
            WildHost::Below(suffix) => host.strip_suffix(suffix.as_str()).is_some_and(is_host),
        };
        host_matches
            && match &self.port {
                Some(exact) => port == exact,
                None => {
                    port.is_empty()
                        || port
                            .strip_prefix(':')
                            .is_some_and(|digits| parse_port(digits).is_some())
                }
            }
    }
}

/// Parses an entry of `allowed_origins` other than `*`, and normalises it as browsers do.
pub fn parse_origin(written: &str) -> Result<Pattern, String> {
    if written == "null" {
        return Ok(Pattern::Exact(HeaderValue::from_static("null")));
    }
    let Some((scheme, rest)) = written.split_once("://") else {
        return Err(format!(
            "must begin with a scheme such as https://, got {written:?}"
        ));
    };
    let scheme = scheme.to_ascii_lowercase();
    if !is_scheme(&scheme) {
        return Err(format!("has a bad scheme, got {written:?}"));
    }
    let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
    let (authority, beyond) = rest.split_at_checked(end).unwrap_or((rest, ""));
    if authority.contains('@') {
        // the message does not repeat it: it may be a password
        return Err("must have no user info".to_owned());
    }
    if !beyond.is_empty() {
        let fault = match beyond {
            "/" => "not end in a slash",
            _ => "have no path, query or fragment",
        };
        return Err(format!("must {fault}, write \"{scheme}://{authority}\""));
    }
    let (host, port) = split_port(authority);
    let read = normal_port(&scheme, port).and_then(|port| Ok((parse_host(host)?, port)));
    let (host, port) = read.map_err(|sentence| format!("{sentence}, got {written:?}"))?;
    Ok(match (host, port) {
        (WildHost::Exact(host), Some(port)) => Pattern::Exact(
            HeaderValue::try_from(format!("{scheme}://{host}{port}"))
                .expect("every part was checked to be ASCII"),
        ),
        (host, port) => Pattern::Wild(Wild {
            scheme: scheme + "://",
            host,
            port,
        }),
    })
}

/// The port as in an Origin, with its colon: empty for the scheme's default; `None` = any.
fn normal_port(scheme: &str, written: &str) -> Result<Option<String>, &'static str> {
    let Some(digits) = written.strip_prefix(':') else {
        return Ok(Some(String::new()));
    };
    if digits == "*" {
        return Ok(None);
    }
    match (parse_port(digits), scheme) {
        (Some(80), "http") | (Some(443), "https") => Ok(Some(String::new())),
        (Some(number), _) => Ok(Some(format!(":{number}"))),
        (None, _) => Err("has a bad port (1 to 65535, or *)"),
    }
}

fn parse_host(written: &str) -> Result<WildHost, &'static str> {
    let lower = written.to_ascii_lowercase();
    if let Some(literal) = ipv6_literal(&lower) {
        let address: Ipv6Addr = literal.parse().map_err(|_| "has a bad IPv6 address")?;
        return Ok(WildHost::Exact(format!("[{address}]")));
    }
    match lower.strip_prefix('*') {
        Some("" | ".") => Err("must name a host after *. (or be \"*\" alone for every origin)"),
        Some(suffix) if suffix.strip_prefix('.').is_some_and(is_host) => {
            Ok(WildHost::Below(suffix.to_owned()))
        }
        None if is_host(&lower) => Ok(WildHost::Exact(lower)),
        None if lower.is_empty() => Err("must name a host"),
        None if !lower.is_ascii() => {
            Err("must have its host in ASCII (xn--…), as browsers send it")
        }
        _ if lower.contains('*') => {
            Err("may have a wildcard only as its first label, as in https://*.example.com")
        }
        _ => Err("has a bad host"),
    }
}

/// A port as a browser writes it: 1 to 65535, no sign, no zero in front.
fn parse_port(digits: &str) -> Option<u16> {
    digits
        .parse()
        .ok()
        .filter(|_| matches!(digits.as_bytes(), [b'1'..=b'9', ..]))
}

/// Whether a name consists of non-empty labels of lower-case letters, digits, `-` and `_`, separated by dots.
fn is_host(name: &str) -> bool {
    name.len() <= MAX_HOST
        && name.split('.').all(|label| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
        })
}

/// Whether a name is a scheme in lower case (RFC 3986 §3.1).
fn is_scheme(name: &str) -> bool {
    name.len() <= MAX_HOST
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'-' | b'.'))
}

/// Bounds the bytes of a host name: the limit of DNS.
const MAX_HOST: usize = 253;
