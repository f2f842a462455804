//! Parses strings that name a place: an address to listen on, a target, a host, a network, a path.
//!
//! Pure: each function returns what the string means, or a message that is read after the field's path. No name is resolved.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use http::HeaderValue;
use rustls::pki_types::ServerName;

use crate::{
    config::wording::quote,
    direct::{Destination, DestinationHost},
    http1::authority::{ipv6_literal, split_port},
    route::{Address, HostPattern, Origin, Target, Tls, holds_dot_segment},
};

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `":80"`: every address of the machine, IPv6 and IPv4; only IPv4 where IPv6 is off.
    Everywhere(u16),
    /// One address and port; port 0 lets the kernel choose.
    Address(SocketAddr),
    /// `unix:/run/lean.sock`.
    Unix(PathBuf),
    /// `fd:NAME` or `fd:NUMBER`: inherited from systemd (`LISTEN_FDS`).
    Inherited(String),
}

/// An IPv4 or IPv6 network in CIDR form; a single address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address with its host bits cleared.
    pub address: IpAddr,
    /// Leading bits that count: 0 to 32, or to 128.
    pub prefix: u8,
}

impl Listen {
    /// Whether the kernel chooses the port, so that the same address may be listed twice.
    pub fn is_any_port(&self) -> bool {
        match self {
            Listen::Everywhere(port) => *port == 0,
            Listen::Address(address) => address.port() == 0,
            Listen::Unix(_) | Listen::Inherited(_) => false,
        }
    }
}

/// Parses an address of `listen` or `metrics.listen`; resolves no names.
pub fn parse_listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(Listen::Unix);
    }
    if let Some(name) = text.strip_prefix("fd:") {
        return if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
            Err("fd: needs the socket's name or number, as in fd:http".to_owned())
        } else if digits(name).is_some_and(|number| number < 3) {
            Err(format!(
                "fd:{name} is the standard input or output: the sockets that systemd passes begin at fd:3"
            ))
        } else {
            Ok(Listen::Inherited(name.to_owned()))
        };
    }
    if let Some(better) = listen_meant(text) {
        return Err(format!(
            "must be an address and a port: write {}, not {}",
            quote(&better),
            quote(text)
        ));
    }
    let port = |port: &str| digits(port).ok_or_else(|| format!("has the bad port {}", quote(port)));
    if let Some(number) = text.strip_prefix(':') {
        return port(number).map(Listen::Everywhere);
    }
    if digits(text).is_some() {
        return Err(format!(
            "must be an address and a port: write \":{text}\" for all addresses"
        ));
    }
    let shape = || {
        format!(
            "must be like \":80\", \"127.0.0.1:80\", \"[::1]:80\", \"unix:/run/lean.sock\" or \"fd:http\", got {}",
            quote(text)
        )
    };
    let (host, number) = split_port(text);
    let number = number.strip_prefix(':').ok_or_else(shape)?;
    let address = match ipv6_literal(host) {
        Some(inner) => inner
            .parse::<Ipv6Addr>()
            .map(IpAddr::V6)
            .map_err(|_| shape())?,
        None if host.eq_ignore_ascii_case("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        None => host
            .parse::<Ipv4Addr>()
            .map(IpAddr::V4)
            .map_err(|_| shape())?,
    };
    Ok(Listen::Address(SocketAddr::new(address, port(number)?)))
}

/// What to write instead of a form that other programs accept: a URL, `*:80`, IPv6 without brackets.
fn listen_meant(text: &str) -> Option<String> {
    if let Some((_, rest)) = text.split_once("://") {
        let authority = rest.trim_end_matches('/');
        return parse_listen(authority)
            .is_ok()
            .then(|| authority.to_owned());
    }
    let (host, number) = text.rsplit_once(':')?;
    digits(number)?;
    match host {
        "*" => Some(format!(":{number}")),
        _ => host
            .parse::<Ipv6Addr>()
            .ok()
            .map(|host| format!("[{host}]:{number}")),
    }
}

/// A port number; `+80`, `080` and names are not accepted.
fn digits(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    (plain && !leading_zero)
        .then(|| text.parse().ok())
        .flatten()
}

/// The path of a unix socket: `sockaddr_un` holds 107 bytes and a NUL.
fn unix_path(path: &str) -> Result<PathBuf, String> {
    if path.is_empty() || path == "/" || path.ends_with('/') {
        return Err("unix: needs the path of a socket, as in unix:/run/app.sock".to_owned());
    }
    if path.contains('\0') {
        return Err("a socket's path cannot hold a NUL".to_owned());
    }
    if path.len() > 107 {
        return Err("a socket's path has 107 bytes at most".to_owned());
    }
    Ok(PathBuf::from(path))
}

/// Parses `http://host:8080/base`, `h2c://…`, `https://…`, `unix:/path.sock` or, as in nginx, `unix:/path.sock:/base`. Messages repeat
/// no more than scheme, host and port, because the rest may hold a password.
pub fn parse_target(text: &str) -> Result<Target, String> {
    let (scheme, rest) = text.split_once(':').ok_or_else(|| {
        format!(
            "must begin with http://, h2c://, https:// or unix:, got {}",
            quote(text)
        )
    })?;
    let scheme = scheme.to_ascii_lowercase();
    let known = matches!(scheme.as_str(), "http" | "h2c" | "https" | "unix");
    if !known {
        return Err(if rest.starts_with("//") {
            format!(
                "scheme must be http, h2c, https or unix, got {}",
                quote(&scheme)
            )
        } else {
            "must begin with http://, h2c://, https:// or unix:".to_owned()
        });
    }
    check_bare(rest)?;
    match scheme.as_str() {
        "unix" => unix_target(rest),
        _ => tcp_target(&scheme, rest),
    }
}

/// Parses what follows `unix:`.
fn unix_target(rest: &str) -> Result<Target, String> {
    let (path, base) = match rest.find(":/").and_then(|at| rest.split_at_checked(at)) {
        Some((path, base)) => (path, base.trim_start_matches(':')),
        None => (rest, ""),
    };
    let path = path
        .strip_prefix("//")
        .filter(|path| path.starts_with('/'))
        .unwrap_or(path);
    Ok(Target {
        origin: Origin {
            address: Address::Unix(unix_path(path)?),
            tls: None,
            http2: false,
        },
        base: base_path(base)?,
        host_header: HeaderValue::from_static("localhost"),
    })
}

/// Parses what follows `http:`, `h2c:` or `https:`.
fn tcp_target(scheme: &str, rest: &str) -> Result<Target, String> {
    let rest = rest
        .strip_prefix("//")
        .ok_or_else(|| format!("must have two slashes and a host after {scheme}:"))?;
    if rest.starts_with("unix:") && !rest.contains('@') {
        return Err(format!(
            "the path of a socket is written without {scheme}://: write {}",
            quote(rest)
        ));
    }
    let (authority, base) = match rest.find('/').and_then(|at| rest.split_at_checked(at)) {
        Some(parts) => parts,
        None => (rest, ""),
    };
    let (host, written, port) = parse_authority(authority)?;
    let https = scheme == "https";
    let default = if https { 443 } else { 80 };
    let host_header = match port {
        Some(port) if port != default => format!("{written}:{port}"),
        _ => written,
    };
    let tls = https.then(|| Tls {
        server_name: host.trim_end_matches('.').to_owned(),
        ..Tls::default()
    });
    Ok(Target {
        origin: Origin {
            address: Address::Tcp(host, port.unwrap_or(default)),
            tls,
            http2: scheme == "h2c",
        },
        base: base_path(base)?,
        host_header: HeaderValue::from_str(&host_header)
            .map_err(|_| "has a bad host".to_owned())?,
    })
}

/// Parses `redirect.to`: `https://{host}`, `https://www.example.com/base` or `/base`.
pub fn parse_destination(text: &str) -> Result<Destination, String> {
    check_bare(text)?;
    let (scheme, rest) = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => ("https://", rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => ("http://", rest),
        _ if text.starts_with('/') && !text.starts_with("//") => ("", text),
        _ => {
            return Err(format!(
                "must begin with https://, http:// or one slash, got {}",
                quote(text)
            ));
        }
    };
    let (authority, base) = match rest.find('/').and_then(|at| rest.split_at_checked(at)) {
        Some(parts) => parts,
        None => (rest, ""),
    };
    let host = match authority.strip_prefix("{host}") {
        Some("") => DestinationHost::Asked(None),
        Some(rest) if rest.starts_with(['{', '$']) => return Err(ONE_PLACEHOLDER.to_owned()),
        Some(port) => match port.strip_prefix(':').and_then(digits) {
            None | Some(0) => {
                return Err(format!("has a bad port behind {{host}}: {}", quote(port)));
            }
            port => DestinationHost::Asked(port),
        },
        None if scheme.is_empty() => DestinationHost::Fixed(String::new()),
        None if authority.contains(['{', '$']) => return Err(ONE_PLACEHOLDER.to_owned()),
        None => {
            let (_, host, port) = parse_authority(authority)?;
            let port = port.map_or_else(String::new, |port| format!(":{port}"));
            DestinationHost::Fixed(format!("{host}{port}"))
        }
    };
    if base.contains(['{', '$']) {
        return Err(ONE_PLACEHOLDER.to_owned());
    }
    let base = base_path(base)?;
    Ok(Destination { scheme, host, base })
}

const ONE_PLACEHOLDER: &str = "may hold {host} and no other placeholder: the rest of the request's path and its query are appended anyway, as in https://{host}";

/// Splits an authority into the host without brackets, the host as in a Host field, and the port. Lower case.
fn parse_authority(authority: &str) -> Result<(String, String, Option<u16>), String> {
    if authority.contains('@') {
        return Err("must not have a user name or password".to_owned());
    }
    let (host, port) = split_port(authority);
    let port = match port.strip_prefix(':') {
        None => None,
        Some(port) => match digits(port) {
            None | Some(0) => return Err(format!("has the bad port {}", quote(port))),
            Some(port) => Some(port),
        },
    };
    if host.is_empty() {
        return Err("must have a host".to_owned());
    }
    if let Some(inner) = ipv6_literal(host) {
        let address: Ipv6Addr = inner
            .parse()
            .map_err(|_| format!("has the bad IPv6 address {}", quote(inner)))?;
        return Ok((address.to_string(), format!("[{address}]"), port));
    }
    let host = host_name(host)?;
    Ok((host.clone(), host, port))
}

/// A name or IPv4 literal, in lower case. Underscores are not valid in host names, but names of containers have them.
fn host_name(text: &str) -> Result<String, String> {
    let bad = || format!("has the bad host {}", quote(text));
    let label = |label: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(plain)
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(bad());
    }
    // a name that ends in digits is an IPv4 address or a mistake (RFC 3986 §3.2.2, WHATWG URL §3.5)
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && name.parse::<Ipv4Addr>().is_err() {
        return Err(bad());
    }
    Ok(text.to_ascii_lowercase())
}

/// A base path with its final slashes reduced to one, or to none for `/` alone. The slash of `/b/` matters where nothing is
/// joined to it: the target is then asked for `/b/` and not for `/b`.
fn base_path(base: &str) -> Result<String, String> {
    check_path(base)?;
    let plain = base.trim_end_matches('/');
    let slash = if plain.len() < base.len() && !plain.is_empty() {
        "/"
    } else {
        ""
    };
    Ok(format!("{plain}{slash}"))
}

/// Parses the path of a route or of the health report.
pub fn parse_path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("must begin with /, got {}", quote(text)));
    }
    if let Some(plain) = before_pattern(text) {
        return Err(format!(
            "there are no patterns, because a path matches everything below it: write {}, not {}",
            quote(plain),
            quote(text)
        ));
    }
    check_path(text).map(|()| text.to_owned())
}

/// The part before a `*`, a `{` or a segment like `:id`, which are patterns in other programs.
fn before_pattern(path: &str) -> Option<&str> {
    let sign = path.find(['*', '{']);
    let parameter = path
        .find("/:")
        .map(|slash| slash + 1)
        .filter(|colon| path.len() > colon + 1);
    let end = [sign, parameter].into_iter().flatten().min()?;
    path.get(..end)
}

/// Checks that a path may be sent in a request line, and that every server reads it alike.
fn check_path(path: &str) -> Result<(), String> {
    check_bare(path)?;
    if holds_dot_segment(path) {
        return Err("must not have a \".\" or \"..\" segment".to_owned());
    }
    if let Some(bad) = path
        .chars()
        .find(|c| !c.is_ascii_graphic() || "\"<>\\^`{|}".contains(*c))
    {
        return Err(format!("holds {bad:?}, which must be percent-encoded"));
    }
    Ok(())
}

/// Checks that there is neither a query nor a fragment.
fn check_bare(text: &str) -> Result<(), String> {
    for (sign, part) in [('?', "query"), ('#', "fragment")] {
        if text.contains(sign) {
            return Err(format!("must not have a {part}"));
        }
    }
    Ok(())
}

/// Parses `app.example.com`, `*.example.com`, `192.0.2.1` or `[::1]`; empty = `None`.
pub fn parse_host_pattern(text: &str) -> Result<Option<HostPattern>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if text == "*" {
        return Err("leave host out to match every host".to_owned());
    }
    if let Some(parent) = text.strip_prefix("*.") {
        let parent = host_name(parent)?;
        return Ok(Some(HostPattern::Below(format!(
            ".{}",
            parent.trim_end_matches('.')
        ))));
    }
    if text.contains('/') {
        return Err(match host_in_url(text) {
            Some(host) => format!(
                "must be a host and nothing else: write {}, not {}",
                quote(&host),
                quote(text)
            ),
            None => format!("must be a host and nothing else, got {}", quote(text)),
        });
    }
    let (_, written, port) = parse_authority(text)?;
    match port {
        Some(_) => Err(format!(
            "must not have a port, because every port matches: write {}",
            quote(&written)
        )),
        None => Ok(Some(HostPattern::Exact(
            written.trim_end_matches('.').to_owned(),
        ))),
    }
}

/// The host in `https://app.example.com:443/path`, with or without the scheme.
fn host_in_url(text: &str) -> Option<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split('/').next()?;
    parse_authority(authority).ok().map(|(_, host, _)| host)
}

/// Parses a name or IP literal; an empty string stays empty.
pub fn parse_server_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    host_name(text).map(|name| name.trim_end_matches('.').to_owned())
}

/// A name for TLS, which is stricter than a resolver about names.
pub fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned())
        .map_err(|_| format!("{name:?} is neither a host name nor an IP address"))
}

/// Parses `10.0.0.0/8`, `fd00::/8`, or a single address. IPv4-mapped IPv6 (`::ffff:10.0.0.0/104`, RFC 4291 §2.5.5.2)
/// becomes IPv4, as addresses do before they are compared with it.
pub fn parse_network(text: &str) -> Result<Network, String> {
    let bad = || {
        format!(
            "must be a network like 10.0.0.0/8 or fd00::/8, got {}",
            quote(text)
        )
    };
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix.map(digits) {
        None => most,
        Some(Some(prefix)) if prefix <= most => prefix,
        Some(_) => return Err(bad()),
    };
    let prefix = u8::try_from(prefix).map_err(|_| bad())?;
    let (address, prefix) = match address {
        IpAddr::V6(v6) => match (v6.to_ipv4_mapped(), prefix.checked_sub(96)) {
            (None, _) => (address, prefix),
            (Some(v4), Some(prefix)) => (IpAddr::V4(v4), prefix),
            (Some(v4), None) => {
                return Err(format!(
                    "is wider than the IPv4 addresses: write {v4} with a prefix of its own"
                ));
            }
        },
        IpAddr::V4(_) => (address, prefix),
    };
    Ok(Network {
        address: masked(address, prefix),
        prefix,
    })
}

impl Network {
    /// Whether an address is in the network; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(prefix))
                .unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(prefix))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        let address = |text: &str| Listen::Address(text.parse().unwrap());
        let cases = [
            (":80", Some(Listen::Everywhere(80))),
            (":0", Some(Listen::Everywhere(0))),
            ("127.0.0.1:80", Some(address("127.0.0.1:80"))),
            ("0.0.0.0:80", Some(address("0.0.0.0:80"))),
            ("localhost:80", Some(address("127.0.0.1:80"))),
            ("[::1]:80", Some(address("[::1]:80"))),
            ("[::]:8080", Some(address("[::]:8080"))),
            ("unix:/x", Some(Listen::Unix("/x".into()))),
            ("unix:run/x.sock", Some(Listen::Unix("run/x.sock".into()))),
            ("fd:3", Some(Listen::Inherited("3".to_owned()))),
            ("fd:http", Some(Listen::Inherited("http".to_owned()))),
            ("", None),
            (":", None),
            ("80", None),
            (":65536", None),
            (":-1", None),
            (":+80", None),
            (":http", None),
            ("127.0.0.1", None),
            ("127.0.0.1:", None),
            ("127.0.0.256:80", None),
            ("::1:80", None),
            ("[::1]", None),
            ("[::1:80", None),
            ("[127.0.0.1]:80", None),
            ("example.com:80", None),
            ("*:80", None),
            ("http://127.0.0.1:80", None),
            ("127.0.0.1:80/", None),
            (" :80", None),
            ("unix:", None),
            ("unix:/", None),
            ("fd:", None),
            ("fd:0", None),
            ("fd:2", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_listen(text).ok(), expected, "{text}");
        }
        assert!(parse_listen(&format!("unix:/{}", "x".repeat(107))).is_err());
        assert!(
            parse_listen("8080")
                .unwrap_err()
                .contains("write \":8080\"")
        );
    }

    #[test]
    fn an_address_in_another_form_gets_a_suggestion() {
        for (text, better) in [
            ("::1:80", "[::1]:80"),
            (":::80", "[::]:80"),
            ("fe80::1:8080", "[fe80::1]:8080"),
            ("*:80", ":80"),
            ("http://127.0.0.1:80", "127.0.0.1:80"),
            ("http://:8080/", ":8080"),
        ] {
            let sentence = parse_listen(text).expect_err(text);
            let expected = format!("write {better:?}, not {text:?}");
            assert!(sentence.contains(&expected), "{text}: {sentence}");
        }
        let standard = parse_listen("fd:2").unwrap_err();
        assert!(standard.contains("begin at fd:3"), "{standard}");
    }

    #[test]
    fn patterns_in_paths_are_refused_with_a_suggestion() {
        for (text, better) in [
            ("/api/*", "/api/"),
            ("/api*", "/api"),
            ("/api/**/x", "/api/"),
            ("/*", "/"),
            ("/users/{id}", "/users/"),
            ("/users/{id}/*", "/users/"),
            ("/users/:id", "/users/"),
            ("/:id/x", "/"),
        ] {
            let sentence = parse_path(text).expect_err(text);
            let expected = format!("write {better:?}, not {text:?}");
            assert!(sentence.contains(&expected), "{text}: {sentence}");
        }
        for text in ["/a:b", "/a/:", "/v1:batch", "/a/b:c/"] {
            assert_eq!(parse_path(text), Ok(text.to_owned()));
        }
    }

    /// Host, port, base, Host header, server name.
    type Parts<'a> = (&'a str, u16, &'a str, &'a str, Option<&'a str>);

    #[test]
    fn targets() {
        let cases: [(&str, Parts<'_>); 14] = [
            ("http://h", ("h", 80, "", "h", None)),
            ("http://h/", ("h", 80, "", "h", None)),
            ("http://h:8080/", ("h", 8080, "", "h:8080", None)),
            ("http://h:80", ("h", 80, "", "h", None)),
            ("http://h:443", ("h", 443, "", "h:443", None)),
            ("https://h", ("h", 443, "", "h", Some("h"))),
            ("https://h:443/a/b/", ("h", 443, "/a/b/", "h", Some("h"))),
            (
                "HTTPS://H.Example:80//a//",
                ("h.example", 80, "//a/", "h.example:80", Some("h.example")),
            ),
            (
                "http://my_service:1/%2F..a",
                ("my_service", 1, "/%2F..a", "my_service:1", None),
            ),
            (
                "http://10.0.0.1:65535",
                ("10.0.0.1", 65535, "", "10.0.0.1:65535", None),
            ),
            ("http://[::1]", ("::1", 80, "", "[::1]", None)),
            (
                "https://[2001:DB8::1]:8443/x",
                (
                    "2001:db8::1",
                    8443,
                    "/x",
                    "[2001:db8::1]:8443",
                    Some("2001:db8::1"),
                ),
            ),
            (
                "https://h.example.:443",
                ("h.example.", 443, "", "h.example.", Some("h.example")),
            ),
            (
                "https://eu.i.posthog.com",
                (
                    "eu.i.posthog.com",
                    443,
                    "",
                    "eu.i.posthog.com",
                    Some("eu.i.posthog.com"),
                ),
            ),
        ];
        for (text, (host, port, base, host_header, server_name)) in cases {
            let target = parse_target(text).expect(text);
            assert_eq!(
                target.origin.address,
                Address::Tcp(host.to_owned(), port),
                "{text}"
            );
            assert_eq!(target.base, base, "{text}");
            assert_eq!(target.host_header, host_header, "{text}");
            let tls = target.origin.tls.map(|tls| tls.server_name);
            assert_eq!(tls.as_deref(), server_name, "{text}");
        }
    }

    #[test]
    fn unix_targets() {
        let cases = [
            ("unix:/run/app.sock", "/run/app.sock", ""),
            ("unix:///run/app.sock", "/run/app.sock", ""),
            ("unix:/run/app.sock:/base/", "/run/app.sock", "/base/"),
            ("unix:app.sock", "app.sock", ""),
        ];
        for (text, path, base) in cases {
            let target = parse_target(text).expect(text);
            assert_eq!(target.origin.address, Address::Unix(path.into()), "{text}");
            assert_eq!(target.base, base, "{text}");
            assert_eq!(target.host_header, "localhost", "{text}");
        }
    }

    #[test]
    fn bad_targets() {
        let cases = [
            ("", "must begin with"),
            ("h", "must begin with"),
            ("h:80", "must begin with"),
            ("//h", "must begin with"),
            (
                "ftp://h",
                "scheme must be http, h2c, https or unix, got \"ftp\"",
            ),
            ("http:/h", "two slashes"),
            ("http:h", "two slashes"),
            ("http://", "host"),
            ("http:///path", "host"),
            ("http://:80", "host"),
            ("http://h:0", "port"),
            ("http://h:", "port"),
            ("http://h:65536", "port"),
            ("http://h:http", "port"),
            ("http://h:80:80", "bad port"),
            ("http://user:secret@h/", "user name"),
            ("http://h/?q=secret", "query"),
            ("http://h?q", "query"),
            ("http://h/#f", "fragment"),
            ("http://h h/", "host"),
            ("http://h%20/", "host"),
            ("http://hé/", "host"),
            ("http://a..b/", "host"),
            ("http://.a/", "host"),
            ("http://10.0.0.999/", "host"),
            ("http://[::g]/", "IPv6"),
            ("http://h/a b", "percent-encoded"),
            ("http://h/é", "percent-encoded"),
            ("http://h/a\r\nb", "percent-encoded"),
            ("http://h/a/../b", "segment"),
            ("http://unix:/run/x.sock", "write \"unix:/run/x.sock\""),
            ("http://unix:/run/x:/b", "write \"unix:/run/x:/b\""),
            ("unix:", "socket"),
            ("unix:/", "socket"),
            ("unix:/a?b", "query"),
        ];
        for (text, part) in cases {
            let sentence = parse_target(text).expect_err(text);
            assert!(sentence.contains(part), "{text}: {sentence}");
            assert!(!sentence.contains("secret"), "{text}: {sentence}");
        }
    }

    #[test]
    fn destinations() {
        let fixed = |host: &str| DestinationHost::Fixed(host.to_owned());
        for (text, scheme, host, base) in [
            (
                "https://{host}",
                "https://",
                DestinationHost::Asked(None),
                "",
            ),
            (
                "HTTP://{host}:8080/a/",
                "http://",
                DestinationHost::Asked(Some(8080)),
                "/a/",
            ),
            (
                "https://New.example/b",
                "https://",
                fixed("new.example"),
                "/b",
            ),
            (
                "https://new.example:8443",
                "https://",
                fixed("new.example:8443"),
                "",
            ),
            ("http://[::1]:81/", "http://", fixed("[::1]:81"), ""),
            ("/new", "", fixed(""), "/new"),
            ("/", "", fixed(""), ""),
        ] {
            let base = base.to_owned();
            let expected = Destination { scheme, host, base };
            assert_eq!(parse_destination(text), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("", "must begin with"),
            ("new.example", "must begin with"),
            ("//new.example", "must begin with"),
            ("ftp://new.example", "must begin with"),
            ("{host}/x", "must begin with"),
            ("https://", "must have a host"),
            ("https://{host}x", "bad port"),
            ("https://{host}:0", "bad port"),
            ("https://{host}:", "bad port"),
            ("https://{host}{uri}", "{host} and no other placeholder"),
            ("https://{hostname}", "{host} and no other placeholder"),
            (
                "https://$host$request_uri",
                "{host} and no other placeholder",
            ),
            ("https://{host}/{path}", "{host} and no other placeholder"),
            ("https://www.{host}", "{host} and no other placeholder"),
            ("https://{host}/a?b", "must not have a query"),
            ("https://a b/", "host"),
            ("https://u:p@h/", "user name"),
            ("/a/../b", "segment"),
            ("/a b", "percent-encoded"),
            ("/a\r\nb", "percent-encoded"),
        ] {
            let sentence = parse_destination(text).expect_err(text);
            assert!(sentence.contains(part), "{text}: {sentence}");
        }
    }

    #[test]
    fn host_patterns() {
        let exact = |host: &str| Some(Some(HostPattern::Exact(host.to_owned())));
        let cases = [
            ("", Some(None)),
            ("App.Example.com", exact("app.example.com")),
            ("app.example.com.", exact("app.example.com")),
            ("192.0.2.1", exact("192.0.2.1")),
            ("[::1]", exact("[::1]")),
            (
                "*.Example.com",
                Some(Some(HostPattern::Below(".example.com".to_owned()))),
            ),
            ("*", None),
            ("*.", None),
            ("*example.com", None),
            ("a.*.com", None),
            ("app.example.com:80", None),
            ("http://app.example.com", None),
            ("app/", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_host_pattern(text).ok(), expected, "{text}");
        }
        for (text, better) in [
            ("https://App.example.com", "app.example.com"),
            ("https://app.example.com:8443/x", "app.example.com"),
            ("app.example.com/", "app.example.com"),
            ("app.example.com:80", "app.example.com"),
        ] {
            let sentence = parse_host_pattern(text).expect_err(text);
            let expected = format!("write {better:?}");
            assert!(sentence.contains(&expected), "{text}: {sentence}");
        }
    }

    #[test]
    fn networks() {
        let cases = [
            ("10.0.0.0/8", Some(("10.1.2.3", "11.0.0.0"))),
            ("10.9.9.9/8", Some(("10.1.2.3", "11.0.0.0"))),
            ("10.0.0.1", Some(("10.0.0.1", "10.0.0.2"))),
            ("10.0.0.1", Some(("::ffff:10.0.0.1", "::1"))),
            ("0.0.0.0/0", Some(("255.255.255.255", "::1"))),
            ("::1", Some(("::1", "::2"))),
            ("fd00::/8", Some(("fdff::1", "fe00::1"))),
            ("::/0", Some(("ffff::", "10.0.0.1"))),
            ("::ffff:127.0.0.0/104", Some(("127.1.2.3", "128.0.0.1"))),
            ("::ffff:127.0.0.0/104", Some(("::ffff:127.1.2.3", "::1"))),
            ("::ffff:10.0.0.1", Some(("10.0.0.1", "10.0.0.2"))),
            ("::ffff:0:0/96", Some(("255.255.255.255", "::1"))),
            ("::ffff:127.0.0.0/95", None),
            ("::ffff:127.0.0.0/8", None),
            ("10.0.0.0/33", None),
            ("::/129", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/-1", None),
            ("10.0.0/8", None),
            ("example.com", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let network = parse_network(text).ok();
            assert_eq!(network.is_some(), expected.is_some(), "{text}");
            if let (Some(network), Some((inside, outside))) = (network, expected) {
                assert!(network.contains(inside.parse().unwrap()), "{text} {inside}");
                assert!(
                    !network.contains(outside.parse().unwrap()),
                    "{text} {outside}"
                );
            }
        }
    }

    #[test]
    fn names_are_checked_as_a_certificate_requires() {
        for name in ["a.example", "127.0.0.1", "::1", "under_score"] {
            assert_eq!(server_name(name).map(drop), Ok(()), "{name}");
        }
        for name in ["a b", "", "-a.example"] {
            let reason = server_name(name).unwrap_err();
            assert!(reason.contains("is neither"), "{reason}");
        }
    }
}
