//! Which route a request belongs to, and what path its target is asked for.
//!
//! Pure: a table built once from the configuration, then only looked at. The bytes that were matched are the bytes
//! that are sent; nothing is decoded or encoded here.

use std::{path::PathBuf, time::Duration};

use hyper::http::{HeaderMap, HeaderName, HeaderValue};

use crate::cors::Cors;

/// The table of routes, in the order in which they are tried.
#[derive(Debug, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

/// A path prefix (of one host, or of any) with its target.
#[derive(Debug)]
pub struct Route {
    /// Starts with `/`.
    pub path: String,
    /// Only for this Host; `None` = for any.
    pub host: Option<HostPattern>,
    /// Whom to ask.
    pub target: Target,
    /// Whether the matched prefix is taken off. Default true.
    pub strip_prefix: bool,
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
    pub fn apply(&self, _headers: &mut HeaderMap) {}

    /// True where there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
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
    /// Path in front of what is left of the request's path; `""` or `/base` without a slash at its end.
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

/// `tls:` of an https target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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
    /// Orders the routes: those with a host before those without, longer paths before shorter.
    pub fn new(routes: Vec<Route>) -> Routes {
        Routes { routes }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Every route, in the order in which they are tried.
    pub fn iter(&self) -> std::slice::Iter<'_, Route> {
        self.routes.iter()
    }

    /// The route of a path; `host` is the request's authority (case and port are ignored), `path` has no query.
    pub fn find(&self, _host: &str, _path: &str) -> Found<'_> {
        Found::Nothing
    }
}

impl Route {
    /// Appends the path and query that the target is asked for: prefix stripped (or not), base in front, exactly one
    /// slash at the joint, every other byte as it came.
    pub fn push_upstream_path(&self, _path: &str, _query: Option<&str>, _out: &mut Vec<u8>) {}
}

/// Whether a path holds a `.` or `..` segment, plain or percent-encoded in any mix (`%2e`, `.%2E`, also where the
/// slash beside it is encoded as `%2f` or `%5c`, or is a backslash): such a request is refused, so that nothing leaves the base path.
pub fn holds_dot_segment(path: &str) -> bool {
    // STUB: the real one is written elsewhere.
    path.replace("%2e", ".")
        .replace("%2E", ".")
        .split('/')
        .any(|segment| segment == "." || segment == "..")
}
