//! Strings that name a place: what to listen on, a target, a host, a network, a path.
//!
//! Pure: each function takes a string apart and says in half a sentence what is wrong with it. Nobody is asked for a name.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use hyper::http::HeaderValue;

use crate::{
    document::quote,
    route::{Address, HostPattern, Origin, Target, Tls, holds_dot_segment},
};

/// One place to listen on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// `":80"`: every address of the machine, IPv6 and IPv4; IPv4 alone where IPv6 is off.
    Everywhere(u16),
    /// One address and port; port 0 lets the kernel choose.
    Address(SocketAddr),
    /// `unix:/run/lean.sock`.
    Unix(PathBuf),
    /// `fd:NAME-or-number`, handed over by systemd (`LISTEN_FDS`).
    Inherited(String),
}

/// An IPv4 or IPv6 network in CIDR form; a lone address is a network of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// The address with its host bits cleared.
    pub address: IpAddr,
    /// Leading bits that count: 0 to 32, or to 128.
    pub prefix: u8,
}

impl Listen {
    /// True where the kernel chooses the port, so that two of a kind are two places.
    pub fn is_any_port(&self) -> bool {
        match self {
            Listen::Everywhere(port) => *port == 0,
            Listen::Address(address) => address.port() == 0,
            Listen::Unix(_) | Listen::Inherited(_) => false,
        }
    }
}

/// One address as `listen` and `metrics.listen` take it; never asks a resolver.
pub fn parse_listen(text: &str) -> Result<Listen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix_path(path).map(Listen::Unix);
    }
    if let Some(name) = text.strip_prefix("fd:") {
        return if name.is_empty() || name.contains(|c: char| c == ':' || c.is_control()) {
            Err("fd: needs the socket's name or number, as in fd:http".to_owned())
        } else {
            Ok(Listen::Inherited(name.to_owned()))
        };
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
    let (host, number) = text.rsplit_once(':').ok_or_else(shape)?;
    let address = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
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

/// A port; `+80`, `080` and names are none.
fn digits(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = text.len() > 1 && text.starts_with('0');
    (plain && !leading_zero)
        .then(|| text.parse().ok())
        .flatten()
}

/// `sockaddr_un` has room for 107 bytes and a NUL.
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

/// `http://host:8080/base`, `https://…`, `unix:/path.sock` or, as nginx writes it, `unix:/path.sock:/base`.
/// No message repeats more than scheme, host or port: the rest may hold a password.
pub fn parse_target(text: &str) -> Result<Target, String> {
    let (scheme, rest) = text.split_once(':').ok_or_else(|| {
        format!(
            "must begin with http://, https:// or unix:, got {}",
            quote(text)
        )
    })?;
    let scheme = scheme.to_ascii_lowercase();
    let known = matches!(scheme.as_str(), "http" | "https" | "unix");
    if !known && rest.starts_with("//") {
        return Err(format!(
            "scheme must be http, https or unix, got {}",
            quote(&scheme)
        ));
    }
    if !known {
        return Err("must begin with http://, https:// or unix:".to_owned());
    }
    for (sign, part) in [('?', "query"), ('#', "fragment")] {
        if rest.contains(sign) {
            return Err(format!("must not have a {part}"));
        }
    }
    if scheme == "unix" {
        let (path, base) = match rest.find(":/").and_then(|at| rest.split_at_checked(at)) {
            Some((path, base)) => (path, base.trim_start_matches(':')),
            None => (rest, ""),
        };
        let path = path
            .strip_prefix("//")
            .filter(|path| path.starts_with('/'))
            .unwrap_or(path);
        return Ok(Target {
            origin: Origin {
                address: Address::Unix(unix_path(path)?),
                tls: None,
            },
            base: base_path(base)?,
            host_header: HeaderValue::from_static("localhost"),
        });
    }
    let rest = rest
        .strip_prefix("//")
        .ok_or_else(|| format!("must have two slashes and a host after {scheme}:"))?;
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
        ca_file: None,
        insecure_skip_verify: false,
    });
    Ok(Target {
        origin: Origin {
            address: Address::Tcp(host, port.unwrap_or(default)),
            tls,
        },
        base: base_path(base)?,
        host_header: HeaderValue::from_str(&host_header)
            .map_err(|_| "has a bad host".to_owned())?,
    })
}

/// Host without brackets, host as Host writes it, port. Lower case.
fn parse_authority(authority: &str) -> Result<(String, String, Option<u16>), String> {
    if authority.contains('@') {
        return Err("must not have a user name or password".to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => None,
        Some(port) => match digits(port) {
            None | Some(0) => return Err(format!("has the bad port {}", quote(port))),
            Some(port) => Some(port),
        },
    };
    if host.is_empty() {
        return Err("must have a host".to_owned());
    }
    if let Some(inner) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        let address: Ipv6Addr = inner
            .parse()
            .map_err(|_| format!("has the bad IPv6 address {}", quote(inner)))?;
        return Ok((address.to_string(), format!("[{address}]"), port));
    }
    let host = host_name(host)?;
    Ok((host.clone(), host, port))
}

/// A name or IPv4 literal, in lower case. Underscores are no DNS, but containers are named with them.
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
    // What ends in digits is an address or a slip of the pen (RFC 3986 §3.2.2, WHATWG URL §3.5).
    let last = name.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && name.parse::<Ipv4Addr>().is_err() {
        return Err(bad());
    }
    Ok(text.to_ascii_lowercase())
}

fn base_path(base: &str) -> Result<String, String> {
    check_path(base)?;
    Ok(base.trim_end_matches('/').to_owned())
}

/// What may stand in a request line and means the same to everybody.
pub fn check_path(path: &str) -> Result<(), String> {
    if path.contains('?') {
        return Err("must not have a query".to_owned());
    }
    if path.contains('#') {
        return Err("must not have a fragment".to_owned());
    }
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

/// `app.example.com`, `*.example.com`, `192.0.2.1` or `[::1]`.
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
    let (_, written, port) = parse_authority(text)?;
    match port {
        Some(_) => Err("must not have a port: every port matches".to_owned()),
        None => Ok(Some(HostPattern::Exact(
            written.trim_end_matches('.').to_owned(),
        ))),
    }
}

/// A name or IP literal; empty = none.
pub fn parse_server_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.parse::<IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    host_name(text).map(|name| name.trim_end_matches('.').to_owned())
}

/// `10.0.0.0/8`, `fd00::/8`, or a lone address.
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
    Ok(Network {
        address: masked(address, prefix),
        prefix,
    })
}

impl Network {
    /// Whether an address lies within; an IPv4 address that a socket of both kinds shows as IPv6 counts as IPv4.
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
