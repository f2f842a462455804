//! Finds the route of a request, and builds the path to ask its target for.
//!
//! Pure: the table is built once from the configuration and never changed. A path is sent with the bytes that were matched;
//! nothing is decoded or encoded.

use std::{cell::LazyCell, cmp::Reverse, fmt, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};

use crate::{
    cors::Cors,
    direct::{Redirect, Response},
    fields::Fields,
    http1::{authority::bare_host, cursor::find_either},
};

/// The table of routes.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    /// One candidate for each host of each route, in the order in which they are tried.
    order: Vec<Candidate>,
}

/// How a client reached the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// By TLS, to a listener of the proxy or to a trusted sender in front of it.
    Https,
}

/// A route, by its index, with one of its hosts; `None` = any host.
#[derive(Debug)]
struct Candidate {
    host: Option<HostPattern>,
    route: usize,
}

/// A path prefix, for some hosts or for any, and what is done with its requests.
#[derive(Debug)]
pub struct Route {
    /// Its position in the file, from 0; [`Routes::new`] sets it.
    pub index: u32,
    /// Starts with `/`.
    pub path: String,
    /// The hosts that it is for; empty = any.
    pub hosts: Vec<HostPattern>,
    /// The scheme that it is for; `None` = both.
    pub scheme: Option<Scheme>,
    /// What is done with a request.
    pub action: Action,
    /// Whether the matched prefix is removed. Default true.
    pub strip_prefix: bool,
    /// Whether Location and Content-Location that name the target are rewritten to the client's address. Default true.
    pub rewrite_location: bool,
    /// Whether the client's Host is sent to the target. Default false.
    pub preserve_host: bool,
    /// From the end of the request to the end of the response head; `None` = no limit.
    pub response_header_timeout: Option<Duration>,
    /// Maximum bytes of a request body; `None` = no limit. 413 above.
    pub max_body_size: Option<u64>,
    /// Edits of the request's fields before they are sent to the target.
    pub request_headers: Edits,
    /// Edits of the response's fields before they are sent to the client.
    pub response_headers: Edits,
    /// The effective CORS policy: the route's own keys over the global ones; `None` = off.
    pub cors: Option<Cors>,
}

/// What is done with a request of a route.
#[derive(Debug)]
pub enum Action {
    /// It is forwarded to a target.
    Forward(Target),
    /// The proxy answers with a redirect.
    Redirect(Redirect),
    /// The proxy answers with a fixed response.
    Respond(Response),
}

/// Edits of header fields: `{set: {…}, remove: […]}`.
#[derive(Debug, Default, Clone)]
pub struct Edits {
    /// Fields to set; each replaces every field of its name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields to remove, before `set` is applied.
    pub remove: Vec<HeaderName>,
}

impl Edits {
    /// Applies the edits: first `remove`, then `set`.
    pub fn apply(&self, headers: &mut Fields) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.set(name, value);
        }
    }

    /// The names of all fields that are set or removed.
    pub fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove
            .iter()
            .chain(self.set.iter().map(|(name, _)| name))
    }

    /// Whether nothing is edited.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Whether a field of this name is set or removed.
    pub fn touches(&self, name: &HeaderName) -> bool {
        self.names().any(|other| other == name)
    }
}

/// `app.example.com` or `*.example.com`, lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// Exactly this host.
    Exact(String),
    /// One label or more before this suffix (kept with its leading dot); never the apex.
    Below(String),
}

/// Where a route sends its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// What to connect to; equal origins share connections.
    pub origin: Origin,
    /// The path in front of the rest of the request's path: `""`, `/base`, or `/base/` where the slash was written. The slash
    /// matters only where nothing is joined: `/api` then asks for `/base/` and not for `/base`.
    pub base: String,
    /// The Host to send: with its port unless that is the scheme's default; `localhost` for `unix:`.
    pub host_header: HeaderValue,
}

/// What two requests must have in common to share an upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The address to dial.
    pub address: Address,
    /// `Some` for `https://`.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is spoken: with prior knowledge for `h2c://`; for `https://` where ALPN agrees on it.
    pub http2: bool,
}

/// The address of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name or IP literal (IPv6 without brackets) and a port.
    Tcp(String, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Origin {
    /// As the log shows it: `http://host:port`, `h2c://host:port`, `https://host:port` or `unix:/path`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (&self.tls, self.http2) {
            (Some(_), _) => "https",
            (None, true) => "h2c",
            (None, false) => "http",
        };
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for HostPattern {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// `tls:` of an https target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    /// The name that the certificate must contain and that SNI sends; the target's host unless set. IP literals send no SNI.
    pub server_name: String,
    /// A PEM file of roots for this route instead of the default ones; checked at load.
    pub ca_file: Option<PathBuf>,
    /// Accept any certificate. Default false.
    pub insecure_skip_verify: bool,
}

/// The result of [`Routes::find`].
#[derive(Debug)]
pub enum Found<'a> {
    /// The request belongs to this route.
    Route(&'a Route),
    /// The path is a route's without its final slash: 307 to the path with one.
    AddSlash(&'a Route),
    /// No route: 404.
    Nothing,
}

impl Routes {
    /// Sorts the routes into the order in which they are tried: exact hosts, then wildcards (the longer suffix first), then any
    /// host; among equal hosts the longer path first.
    pub fn new(mut routes: Vec<Route>) -> Routes {
        for (index, route) in (0..).zip(&mut routes) {
            route.index = index;
        }
        let mut order = Vec::with_capacity(routes.len());
        for (route, Route { hosts, .. }) in routes.iter().enumerate() {
            let named = hosts.iter().cloned().map(Some);
            let any = hosts.is_empty().then_some(None);
            order.extend(named.chain(any).map(|host| Candidate { host, route }));
        }
        order.sort_by_key(|candidate| {
            let (rank, suffix) = match &candidate.host {
                Some(HostPattern::Exact(_)) => (0, 0),
                Some(HostPattern::Below(suffix)) => (1, suffix.len()),
                None => (2, 0),
            };
            let route = routes.get(candidate.route);
            let is_for_any = route.is_none_or(|route| route.scheme.is_none());
            let path = route.map(|route| route.path.len());
            (is_for_any, rank, Reverse(suffix), Reverse(path))
        });
        Routes { routes, order }
    }

    /// The number of routes.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Every route, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// The route of a path; `host` is the request's authority (its case, port and trailing dot are ignored), `path` has
    /// no query. Where both `/api/` and `/api` are routes of a host, `/api` is served and not sent to `/api/`.
    ///
    /// `scheme` is asked only where some route is for one scheme.
    ///
    /// A linear scan: most tables have a handful of routes, which differ in their first bytes.
    pub fn find(&self, host: &str, path: &str, scheme: impl FnOnce() -> Scheme) -> Found<'_> {
        // needed only where some route is for certain hosts
        let host = LazyCell::new(|| bare_host(host));
        // those for one scheme are in front
        let first = self.order.first().and_then(|it| self.routes.get(it.route));
        let scheme = first.and_then(|route| route.scheme).map(|_| scheme());
        let mut candidates = self
            .order
            .iter()
            .filter(|candidate| candidate.host.as_ref().is_none_or(|it| it.matches(*host)))
            .filter_map(|candidate| Some((&candidate.host, self.routes.get(candidate.route)?)))
            .filter(|(_, route)| route.scheme.is_none() || route.scheme == scheme);
        let first = candidates.find_map(|(host, route)| {
            let covers = route.covers(path);
            (covers || route.lacks_slash(path)).then_some((host, route, covers))
        });
        match first {
            Some((_, route, true)) => Found::Route(route),
            Some((host, slashed, false)) => candidates
                .find(|(other, route)| *other == host && route.path == path)
                .map_or(Found::AddSlash(slashed), |(_, route)| Found::Route(route)),
            None => Found::Nothing,
        }
    }
}

impl HostPattern {
    /// Whether a host, without its port and in any case, matches.
    fn matches(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(name) => host.eq_ignore_ascii_case(name),
            HostPattern::Below(suffix) => host
                .len()
                .checked_sub(suffix.len())
                .and_then(|start| host.split_at_checked(start))
                .is_some_and(|(labels, end)| {
                    !labels.is_empty()
                        && labels.split('.').all(|label| !label.is_empty())
                        && end.eq_ignore_ascii_case(suffix)
                }),
        }
    }
}

impl Route {
    /// Its name in log lines: its scheme and hosts, if any, and its path.
    pub fn name(&self) -> String {
        self.condition() + &self.path
    }

    /// What it asks of a request besides the path, as metrics show it: `http:` or `https:`, and its hosts; `""` = nothing.
    pub fn condition(&self) -> String {
        let scheme = match self.scheme {
            Some(Scheme::Http) => "http:",
            Some(Scheme::Https) => "https:",
            None => "",
        };
        let hosts: Vec<String> = self.hosts.iter().map(HostPattern::to_string).collect();
        scheme.to_owned() + &hosts.join(",")
    }

    /// The target of its requests, if they are forwarded.
    pub fn target(&self) -> Option<&Target> {
        match &self.action {
            Action::Forward(target) => Some(target),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// Appends `base` and a request's path and query: prefix stripped (or not), exactly one slash where they join, every other
    /// byte unchanged.
    ///
    /// `path` must be one for which [`Routes::find`] returned this route.
    pub fn push_joined(&self, base: &str, path: &str, query: Option<&str>, out: &mut Vec<u8>) {
        let stripped = path
            .strip_prefix(self.path.as_str())
            .filter(|_| self.strip_prefix);
        let rest = stripped.unwrap_or(path);
        // stripping `/api/` removes the slash between base and rest; any other rest begins with a slash or is empty
        let slash_stripped = stripped.is_some() && self.path.ends_with('/');
        let nothing_joined = rest.is_empty() && (base.is_empty() || base.ends_with('/'));

        out.extend_from_slice(base.trim_end_matches('/').as_bytes());
        if slash_stripped || nothing_joined {
            out.push(b'/');
        }
        out.extend_from_slice(rest.as_bytes());
        if let Some(query) = query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
    }

    /// Whether a path belongs to this route: `/api/` covers what begins with it, `/api` covers itself and what is below `/api/`.
    fn covers(&self, path: &str) -> bool {
        path.strip_prefix(self.path.as_str()).is_some_and(|rest| {
            rest.is_empty() || rest.starts_with('/') || self.path.ends_with('/')
        })
    }

    /// Whether a path is this route's without its final slash.
    fn lacks_slash(&self, path: &str) -> bool {
        !path.is_empty() && self.path.strip_suffix('/') == Some(path)
    }
}

/// Whether a path holds a `..` segment, plain or percent-encoded in any mix (`%2e%2e`, `.%2E`, also next to a slash that is
/// encoded as `%2f` or `%5c`, or to a backslash). Such a request is refused, so that none leaves the base path. A `.`
/// segment is harmless and passes unchanged: apt asks for `/apt/./Packages`.
///
/// Some servers remove `;parameters` from a segment before they resolve it, so `/..;/` counts too. The path is decoded
/// once: `%252e` is the text `%2e` and is allowed.
pub fn holds_parent_segment(path: &str) -> bool {
    // most paths hold neither
    find_either(path.as_bytes(), b'.', b'%').is_some() && holds_segment(path, |dots| dots == 2)
}

/// Whether a path holds a `..` or `.` segment. Paths in the configuration may not, because hardly any client would send
/// such a path.
pub fn holds_dot_segment(path: &str) -> bool {
    holds_segment(path, |dots| dots == 1 || dots == 2)
}

/// Whether a path holds a segment that consists of a number of dots for which `is_meant` is true.
fn holds_segment(path: &str, is_meant: impl Fn(u32) -> bool) -> bool {
    let mut bytes = path.bytes();
    // the dots of the segment so far; `None` after any other byte
    let mut dots = Some(0);
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' {
            decoded(&mut bytes)
        } else {
            byte
        };
        dots = match (byte, dots) {
            (b'/' | b'\\' | b';', Some(count)) if is_meant(count) => return true,
            (b'/' | b'\\', _) => Some(0),
            (b'.', Some(count)) => Some(count + 1),
            _ => None,
        };
    }
    dots.is_some_and(is_meant)
}

/// The byte encoded by the two digits after a `%`; `%` itself where no two digits follow.
fn decoded(bytes: &mut std::str::Bytes<'_>) -> u8 {
    let mut ahead = bytes.clone();
    let mut digit = || {
        char::from(ahead.next()?)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    match (digit(), digit()) {
        (Some(high), Some(low)) => {
            *bytes = ahead;
            high << 4 | low
        }
        _ => b'%',
    }
}

#[cfg(test)]
mod tests;
