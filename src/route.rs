//! Which route a request belongs to, and what path its target is asked for.
//!
//! Pure: a table built once from the configuration, then only looked at. The bytes that were matched are the bytes
//! that are sent; nothing is decoded or encoded here.

use std::{cmp::Reverse, fmt, path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};

use crate::{
    cors::Cors,
    direct::{Redirect, Response},
    fields::Fields,
    http1::authority::bare_host,
};

/// The table of routes.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
    /// One for each host of each route, in the order in which they are tried.
    order: Vec<Candidate>,
}

/// A route, by its number, under one of its hosts.
#[derive(Debug)]
struct Candidate {
    host: Option<HostPattern>,
    route: usize,
}

/// A path prefix (of some hosts, or of any) and what is done with its requests.
#[derive(Debug)]
pub struct Route {
    /// Starts with `/`.
    pub path: String,
    /// Only for these Hosts; empty = for any.
    pub hosts: Vec<HostPattern>,
    /// What is done with a request.
    pub action: Action,
    /// Whether the matched prefix is taken off. Default true.
    pub strip_prefix: bool,
    /// Whether the target's own address in Location and Content-Location becomes the client's. Default true.
    pub rewrite_location: bool,
    /// Whether the client's Host goes to the target. Default false.
    pub preserve_host: bool,
    /// From the end of the request to the end of the response head; `None` = no limit.
    pub response_header_timeout: Option<Duration>,
    /// Bytes of request body; `None` = no limit. 413 above.
    pub max_body_size: Option<u64>,
    /// Laid over the request's fields on their way to the target.
    pub request_headers: Edits,
    /// Laid over the response's fields on their way to the client.
    pub response_headers: Edits,
    /// The effective CORS policy: the route's own laid over the global one; `None` = off.
    pub cors: Option<Cors>,
}

/// What is done with a request of a route.
#[derive(Debug)]
pub enum Action {
    /// It goes to a target.
    Forward(Target),
    /// It is sent elsewhere by the proxy itself.
    Redirect(Redirect),
    /// It is answered by the proxy itself.
    Respond(Response),
}

/// `{set: {…}, remove: […]}`.
#[derive(Debug, Default, Clone)]
pub struct Edits {
    /// Each replaces every field of its name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that are taken away (before `set`).
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
    /// The connection it needs; connections are shared by equal origins.
    pub origin: Origin,
    /// Path in front of what is left of the request's path: `""`, `/base`, or `/base/` where the slash was written.
    /// That slash shows only where nothing is left to join: `/api` then asks for `/base/` and not for `/base`.
    pub base: String,
    /// What the target wants to read as Host: with its port unless that is the scheme's default; `localhost` for `unix:`.
    pub host_header: HeaderValue,
}

/// All that decides whether two requests may share an upstream connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Who is dialled.
    pub address: Address,
    /// `Some` for `https://`.
    pub tls: Option<Tls>,
}

/// Who is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// A name or IP literal (IPv6 without brackets) and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl fmt::Display for Origin {
    /// As the log shows it: `http://host:port`, `https://host:port` or `unix:/path`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match &self.address {
            Address::Tcp(host, port) => write!(f, "{scheme}://{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for HostPattern {
    /// As it is configured.
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
    /// The name that the certificate must carry and that SNI says; the target's host unless set. IP literals send no SNI.
    pub server_name: String,
    /// Roots for this route instead of the built-in ones (PEM); checked to be readable at load.
    pub ca_file: Option<PathBuf>,
    /// Take any certificate.
    pub insecure_skip_verify: bool,
}

/// What the table says of a path.
#[derive(Debug)]
pub enum Found<'a> {
    /// This route serves it.
    Route(&'a Route),
    /// The path is a route's without its final slash: 307 to the path with one.
    AddSlash(&'a Route),
    /// 404.
    Nothing,
}

impl Routes {
    /// Orders the routes as they are tried: exact hosts, then wildcards (the longer suffix first), then any host;
    /// among equals the longer path first.
    pub fn new(routes: Vec<Route>) -> Routes {
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
            let path = routes.get(candidate.route).map(|route| route.path.len());
            (rank, Reverse(suffix), Reverse(path))
        });
        Routes { routes, order }
    }

    /// How many there are.
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
    /// A linear scan: a table has a handful of routes, and most differ in their first bytes.
    pub fn find(&self, host: &str, path: &str) -> Found<'_> {
        let host = bare_host(host);
        let mut candidates = self
            .order
            .iter()
            .filter(|candidate| candidate.host.as_ref().is_none_or(|it| it.matches(host)))
            .filter_map(|candidate| Some((&candidate.host, self.routes.get(candidate.route)?)));
        match candidates.find(|(_, route)| route.covers(path) || route.lacks_slash(path)) {
            Some((_, route)) if route.covers(path) => Found::Route(route),
            Some((host, slashed)) => candidates
                .find(|(other, route)| *other == host && route.path == path)
                .map_or(Found::AddSlash(slashed), |(_, route)| Found::Route(route)),
            None => Found::Nothing,
        }
    }
}

impl HostPattern {
    /// Whether a host (without its port, in any case) is meant.
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
    /// What log lines call it: its host, where it has one, and its path.
    pub fn name(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(HostPattern::to_string).collect();
        hosts.join(",") + &self.path
    }

    /// Whom its requests go to, if anywhere.
    pub fn target(&self) -> Option<&Target> {
        match &self.action {
            Action::Forward(target) => Some(target),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// Appends a request's path and query as they are joined to `base`: prefix stripped (or not), base in front, exactly
    /// one slash at the joint, every other byte as it came.
    ///
    /// `path` is one that [`Routes::find`] gave to this route.
    pub fn push_joined(&self, base: &str, path: &str, query: Option<&str>, out: &mut Vec<u8>) {
        let stripped = path
            .strip_prefix(self.path.as_str())
            .filter(|_| self.strip_prefix);
        let rest = stripped.unwrap_or(path);
        // A stripped `/api/` took the slash of the joint with it. Any other rest brings its own, or is empty.
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

    /// Whether a path is this route's: `/api/` has all that begins with it, `/api` itself and what is below `/api/`.
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

/// Whether a path holds a `..` segment, plain or percent-encoded in any mix (`%2e%2e`, `.%2E`, also where the slash
/// beside it is encoded as `%2f` or `%5c`, or is a backslash): such a request is refused, so that nothing leaves the base
/// path. A `.` segment leads nowhere and passes as it is: apt asks for `/apt/./Packages`.
///
/// Some servers cut `;parameters` off a segment before they resolve it, so `/..;/` counts too. Decoding is done once:
/// `%252e` is the text `%2e` and stays allowed.
pub fn holds_parent_segment(path: &str) -> bool {
    // most paths hold neither
    path.bytes().any(|byte| matches!(byte, b'.' | b'%')) && holds_segment(path, |dots| dots == 2)
}

/// The same, and `.` segments too: what no path of the configuration may hold, for hardly a client would ask for it.
pub fn holds_dot_segment(path: &str) -> bool {
    holds_segment(path, |dots| dots == 1 || dots == 2)
}

/// Whether a path holds a segment of so many dots.
fn holds_segment(path: &str, is_meant: impl Fn(u32) -> bool) -> bool {
    let mut bytes = path.bytes();
    // How many dots the segment holds so far; `None` once it holds anything else.
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

/// The byte that the two digits after a `%` stand for; `%` itself, with nothing taken, where they are no digits.
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
