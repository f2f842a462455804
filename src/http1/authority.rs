//! Host and port, as Host, Origin and `:authority` contain them (RFC 3986 §3.2).

use crate::http1::cursor::find;

/// Splits an authority into host and port. The port keeps its colon and is empty where there is none; an IPv6 literal
/// keeps its brackets.
pub fn split_port(authority: &str) -> (&str, &str) {
    authority
        .split_at_checked(port_at(authority.as_bytes()))
        .unwrap_or((authority, ""))
}

/// The position of the colon before an authority's port, or the authority's length.
pub fn port_at(authority: &[u8]) -> usize {
    let literal = match authority {
        [b'[', ..] => authority.iter().rposition(|&byte| byte == b']'),
        _ => None,
    };
    let behind = literal.map_or(0, |end| end + 1);
    let rest = authority.get(behind..).unwrap_or_default();
    behind + find(rest, b':').unwrap_or(rest.len())
}

/// What an IPv6 literal has between its brackets; `None` for any other host.
pub fn ipv6_literal(host: &str) -> Option<&str> {
    host.strip_prefix('[')?.strip_suffix(']')
}

/// An authority without its port and the trailing dot of its name; an IPv6 literal keeps its brackets.
pub fn bare_host(authority: &str) -> &str {
    let (host, _) = split_port(authority);
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_colon_behind_the_host_begins_the_port() {
        for (authority, host, port) in [
            ("", "", ""),
            ("a.example", "a.example", ""),
            ("a.example:80", "a.example", ":80"),
            ("a.example:", "a.example", ":"),
            ("a:80:81", "a", ":80:81"),
            (":80", "", ":80"),
            ("[::1]", "[::1]", ""),
            ("[::1]:80", "[::1]", ":80"),
            ("[::1", "[", "::1"),
            ("[::1]x:80", "[::1]x", ":80"),
        ] {
            assert_eq!(split_port(authority), (host, port), "{authority}");
        }
        assert_eq!(bare_host("a.example.:80"), "a.example");
        assert_eq!(bare_host("[::1]:80"), "[::1]");
    }
}
