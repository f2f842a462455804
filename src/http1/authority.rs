//! Host and port, as Host fields and `:authority` write them (RFC 3986 §3.2).

/// An authority without its port and the trailing dot of its name; an IPv6 literal keeps its brackets.
pub fn bare_host(authority: &str) -> &str {
    let port = authority.rfind(']').map_or(0, |end| end + 1);
    let end = authority
        .bytes()
        .skip(port)
        .position(|byte| byte == b':')
        .map_or(authority.len(), |colon| port + colon);
    let host = authority.get(..end).unwrap_or(authority);
    host.strip_suffix('.').unwrap_or(host)
}
