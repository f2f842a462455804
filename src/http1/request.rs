//! The head of a request, independent of the protocol that it arrived in.
//!
//! Pure values: the head was checked before, and nothing here refuses a request.

use std::ops::Range;

use http::{Method, Version, header};

use crate::{fields::Fields, http1::cursor::find, sys::text::text};

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Its method.
    pub method: Method,
    /// What it asks for.
    pub uri: RequestUri,
    /// HTTP/1.1 or HTTP/1.0.
    pub version: Version,
    /// Its fields.
    pub headers: Fields,
    /// Which of them it has.
    pub present: Present,
}

impl RequestHead {
    /// The host that was asked for: that of the target, or Host (RFC 9112 §3.2.2); empty where an HTTP/1.0 request has
    /// none.
    pub fn authority(&self) -> &str {
        let host = || self.headers.get(header::HOST).and_then(text);
        self.uri.authority().or_else(host).unwrap_or_default()
    }
}

/// Which of the fields that matter to a proxy a request has: one pass over the names instead of a look-up for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is the presence of one field"
)]
pub struct Present {
    /// Connection.
    pub connection: bool,
    /// Content-Length.
    pub content_length: bool,
    /// Expect.
    pub expect: bool,
    /// TE.
    pub te: bool,
    /// Trailer.
    pub trailer: bool,
    /// Transfer-Encoding.
    pub transfer_encoding: bool,
    /// Upgrade.
    pub upgrade: bool,
    /// X-Forwarded-For.
    pub forwarded_for: bool,
    /// X-Forwarded-Host.
    pub forwarded_host: bool,
    /// X-Forwarded-Proto.
    pub forwarded_proto: bool,
}

impl Present {
    /// Examines every name once.
    pub fn of(headers: &Fields) -> Present {
        let mut present = Present::default();
        for (name, _) in headers.iter() {
            let flag = match name {
                b"connection" => &mut present.connection,
                b"content-length" => &mut present.content_length,
                b"expect" => &mut present.expect,
                b"te" => &mut present.te,
                b"trailer" => &mut present.trailer,
                b"transfer-encoding" => &mut present.transfer_encoding,
                b"upgrade" => &mut present.upgrade,
                b"x-forwarded-for" => &mut present.forwarded_for,
                b"x-forwarded-host" => &mut present.forwarded_host,
                b"x-forwarded-proto" => &mut present.forwarded_proto,
                _ => continue,
            };
            *flag = true;
        }
        present
    }
}

/// A request target (RFC 9112 §3.2), byte by byte as it arrived: origin-form, absolute-form or `*`.
///
/// Not an [`http::Uri`], which accepts only what RFC 3986 allows: browsers leave more bytes in a query unescaped, such
/// as the back-tick (WHATWG URL, query percent-encode set).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestUri {
    /// The whole target in an allocation of its own, checked for UTF-8 once.
    text: Box<str>,
    /// The start of its authority; 0 where it has none.
    authority: usize,
    /// The range of its path.
    path: Range<usize>,
}

impl RequestUri {
    /// Finds the parts of a target; `None` where it is not UTF-8, or has none of the three forms.
    pub fn new(target: &[u8]) -> Option<RequestUri> {
        let text: Box<str> = text(target)?.into();
        let authority = match target.first() {
            Some(b'/' | b'*') => 0,
            _ => target.windows(3).position(|three| three == b"://")? + 3,
        };
        let rest = target.get(authority..).unwrap_or_default();
        let end = find(rest, b'?').unwrap_or(rest.len());
        let start = if authority == 0 {
            0
        } else {
            find(rest.get(..end).unwrap_or_default(), b'/').unwrap_or(end)
        };
        let path = authority + start..authority + end;
        Some(RequestUri {
            text,
            authority,
            path,
        })
    }

    /// The path, without the query: `/` where an absolute-form has none, `*` for the asterisk-form.
    pub fn path(&self) -> &str {
        let path = self.text.get(self.path.clone()).unwrap_or_default();
        if path.is_empty() { "/" } else { path }
    }

    /// The query, after the first `?`; `None` where there is none.
    pub fn query(&self) -> Option<&str> {
        self.text.get(self.path.end + 1..)
    }

    /// Host and port of an absolute-form; `None` in the other forms.
    pub fn authority(&self) -> Option<&str> {
        if self.authority == 0 {
            return None;
        }
        self.text.get(self.authority..self.path.start)
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;

    fn read(target: &str) -> RequestUri {
        RequestUri::new(target.as_bytes()).unwrap()
    }

    #[test]
    fn the_parts_are_those_that_another_reader_sees() {
        for target in [
            "/",
            "*",
            "//",
            "//a",
            "/a/b",
            "/a?",
            "/a?b",
            "/a?b?c",
            "/?",
            "/a?http://h/x",
            "/http://h/x?y",
            "/é?ü",
            "http://h",
            "http://h/",
            "http://h?q",
            "http://h:80/a/b?c",
            "HTTPS://[::1]:8443/a://b?c://d",
        ] {
            let (ours, theirs) = (read(target), target.parse::<Uri>().unwrap());
            assert_eq!(ours.path(), theirs.path(), "{target}");
            assert_eq!(ours.query(), theirs.query(), "{target}");
            let authority = theirs.authority().map(http::uri::Authority::as_str);
            assert_eq!(ours.authority(), authority, "{target}");
        }
    }

    #[test]
    fn what_browsers_leave_as_it_is_stays_as_it_is() {
        let uri = read("/a`b?`^{}|[]\\'\"");
        assert_eq!((uri.path(), uri.query()), ("/a`b", Some("`^{}|[]\\'\"")));
        for bad in [&b"/\xff"[..], b"", b"h", b"h:80", b"http:/h"] {
            assert_eq!(RequestUri::new(bad), None, "{bad:?}");
        }
    }
}
