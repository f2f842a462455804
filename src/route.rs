//! Which route a request belongs to, and what path its target is asked for.
//!
//! Pure: a table built once from the configuration, then only looked at. The bytes that were matched are the bytes
//! that are sent; nothing is decoded or encoded here.

use std::{cmp::Reverse, fmt, path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{
    cors::Cors,
    direct::{Redirect, Response},
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
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
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
    holds_segment(path, |dots| dots == 2)
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
mod tests {
    use super::*;

    fn pattern(host: &str) -> HostPattern {
        match host.strip_prefix('*') {
            Some(suffix) => HostPattern::Below(suffix.to_owned()),
            None => HostPattern::Exact(host.to_owned()),
        }
    }

    fn route(host: &str, path: &str, base: &str) -> Route {
        Route {
            path: path.to_owned(),
            hosts: host.split_whitespace().map(pattern).collect(),
            action: Action::Forward(Target {
                origin: Origin {
                    address: Address::Tcp("h".to_owned(), 80),
                    tls: None,
                },
                base: base.to_owned(),
                host_header: HeaderValue::from_static("h"),
            }),
            strip_prefix: true,
            rewrite_location: true,
            preserve_host: false,
            response_header_timeout: None,
            max_body_size: None,
            request_headers: Edits::default(),
            response_headers: Edits::default(),
            cors: None,
        }
    }

    fn table(routes: &[(&str, &str)]) -> Routes {
        Routes::new(
            routes
                .iter()
                .map(|(host, path)| route(host, path, ""))
                .collect(),
        )
    }

    /// `host path`, with `+` in front for a redirect, `-` for nothing.
    fn shown(found: &Found<'_>) -> String {
        let name = |route: &Route| {
            let shown = |host: &HostPattern| match host {
                HostPattern::Exact(name) => name.clone(),
                HostPattern::Below(suffix) => format!("*{suffix}"),
            };
            let hosts: Vec<String> = route.hosts.iter().map(shown).collect();
            format!("{}{}", hosts.join(" "), route.path)
        };
        match found {
            Found::Route(route) => name(route),
            Found::AddSlash(route) => format!("+{}", name(route)),
            Found::Nothing => "-".to_owned(),
        }
    }

    fn joined(route: &Route, path: &str, query: Option<&str>) -> String {
        let mut out = Vec::new();
        let base = &route.target().unwrap().base;
        route.push_joined(base, path, query, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_host_is_bare_without_port_and_last_dot() {
        for (authority, bare) in [
            ("a.example", "a.example"),
            ("a.example:80", "a.example"),
            ("a.example.", "a.example"),
            ("a.example.:80", "a.example"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("[fe80::]", "[fe80::]"),
            ("[fe80::]:80", "[fe80::]"),
        ] {
            assert_eq!(bare_host(authority), bare, "{authority}");
        }
    }

    #[test]
    fn the_longest_prefix_of_the_closest_host_wins() {
        let all = table(&[
            ("", "/"),
            ("", "/api/"),
            ("", "/api/v1"),
            ("*.example.com", "/"),
            ("*.eu.example.com", "/api/"),
            ("app.example.com", "/api/"),
            ("app.example.com", "/api/v2/"),
            ("[::1]", "/six/"),
        ]);
        for (host, path, expected) in [
            ("x", "/", "/"),
            ("x", "/a", "/"),
            ("x", "/api", "+/api/"),
            ("x", "/api/", "/api/"),
            ("x", "/api/v", "/api/"),
            ("x", "/api/v1", "/api/v1"),
            ("x", "/api/v1/", "/api/v1"),
            ("x", "/api/v1/y", "/api/v1"),
            ("x", "/api/v1y", "/api/"),
            ("x", "/API/", "/"),
            ("x", "/%61pi/", "/"),
            ("x", "/api%2Fv1", "/"),
            ("x", "//api/", "/"),
            ("x", "*", "-"),
            ("x", "", "-"),
            ("", "/api/", "/api/"),
            ("app.example.com", "/api/x", "app.example.com/api/"),
            ("app.example.com", "/api", "+app.example.com/api/"),
            ("app.example.com", "/api/v2", "+app.example.com/api/v2/"),
            ("app.example.com", "/api/v2/", "app.example.com/api/v2/"),
            ("APP.Example.COM:8443", "/api/x", "app.example.com/api/"),
            ("app.example.com.", "/api/x", "app.example.com/api/"),
            ("app.example.com.:80", "/api/x", "app.example.com/api/"),
            ("app.example.com", "/other", "*.example.com/"),
            ("a.b.example.com", "/other", "*.example.com/"),
            ("a.eu.example.com", "/api/x", "*.eu.example.com/api/"),
            ("a.EU.example.com", "/x", "*.example.com/"),
            ("eu.example.com", "/api/x", "*.example.com/"),
            ("example.com", "/x", "/"),
            ("notexample.com", "/x", "/"),
            (".example.com", "/x", "/"),
            ("..example.com", "/x", "/"),
            ("a..example.com", "/x", "/"),
            (".a.example.com", "/x", "/"),
            ("example.com.evil", "/x", "/"),
            ("ü.example.com", "/x", "*.example.com/"),
            ("üüüüüüüü", "/x", "/"),
            ("[::1]", "/six/", "[::1]/six/"),
            ("[::1]:80", "/six/", "[::1]/six/"),
            ("[::2]:80", "/six/", "/"),
        ] {
            assert_eq!(shown(&all.find(host, path)), expected, "{host} {path}");
        }
        assert_eq!(shown(&table(&[("", "/api/")]).find("x", "/apix")), "-");
        assert_eq!(shown(&table(&[("", "/api")]).find("x", "/apix")), "-");
        assert_eq!(shown(&table(&[]).find("x", "/")), "-");
    }

    #[test]
    fn a_route_without_the_slash_is_served_where_one_with_it_would_redirect() {
        let both = table(&[
            ("", "/api/"),
            ("", "/api"),
            ("a", "/api/"),
            ("b", "/api/"),
            ("b", "/api"),
        ]);
        assert_eq!(shown(&both.find("x", "/api")), "/api");
        assert_eq!(shown(&both.find("x", "/api/x")), "/api/");
        assert_eq!(shown(&both.find("a", "/api")), "+a/api/");
        assert_eq!(shown(&both.find("b", "/api")), "b/api");
    }

    #[test]
    fn each_host_of_a_list_stands_for_itself() {
        let all = table(&[
            ("a *.b c.b", "/"),
            ("a", "/only/"),
            ("x.b", "/"),
            ("", "/any/"),
        ]);
        for (host, path, expected) in [
            ("a", "/x", "a *.b c.b/"),
            ("a", "/only/x", "a/only/"),
            ("c.b", "/only/x", "a *.b c.b/"),
            ("d.b", "/any/", "a *.b c.b/"),
            ("x.b", "/", "x.b/"),
            ("b", "/any/x", "/any/"),
            ("b", "/", "-"),
        ] {
            assert_eq!(shown(&all.find(host, path)), expected, "{host} {path}");
        }
        assert_eq!(all.len(), 4);
    }

    #[test]
    fn paths_are_joined_with_one_slash() {
        for (prefix, base, path, expected) in [
            ("/api/", "/base", "/api/x", "/base/x"),
            ("/api/", "/base", "/api/", "/base/"),
            ("/api/", "", "/api/x", "/x"),
            ("/api/", "", "/api/", "/"),
            ("/api/", "/base/", "/api/x", "/base/x"),
            ("/api/", "/base/", "/api/", "/base/"),
            ("/api/", "/base", "/api//x", "/base//x"),
            ("/api/", "/base", "/api/x//y%2Fz/", "/base/x//y%2Fz/"),
            ("/api", "/base", "/api", "/base"),
            ("/api", "/base", "/api/", "/base/"),
            ("/api", "/base", "/api/x", "/base/x"),
            ("/api", "/base", "/api//x", "/base//x"),
            ("/api", "/base/", "/api", "/base/"),
            ("/api", "/base/", "/api/x", "/base/x"),
            ("/api", "/", "/api", "/"),
            ("/api", "", "/api", "/"),
            ("/api", "", "/api/", "/"),
            ("/api", "", "/api/x", "/x"),
            ("/", "", "/", "/"),
            ("/", "", "/x", "/x"),
            ("/", "", "//x", "//x"),
            ("/", "/", "/x", "/x"),
            ("/", "/base", "/", "/base/"),
            ("/", "/base/", "/x", "/base/x"),
        ] {
            let route = route("", prefix, base);
            assert_eq!(
                joined(&route, path, None),
                expected,
                "{prefix} -> {base}: {path}"
            );
        }
    }

    #[test]
    fn the_whole_path_is_joined_where_the_prefix_stays() {
        for (prefix, base, path, expected) in [
            ("/api/", "/base", "/api/x", "/base/api/x"),
            ("/api/", "/base/", "/api/x", "/base/api/x"),
            ("/api/", "", "/api/", "/api/"),
            ("/api", "", "/api", "/api"),
            ("/", "/base", "/", "/base/"),
        ] {
            let route = Route {
                strip_prefix: false,
                ..route("", prefix, base)
            };
            assert_eq!(
                joined(&route, path, None),
                expected,
                "{prefix} -> {base}: {path}"
            );
        }
    }

    #[test]
    fn the_query_is_never_touched() {
        let route = route("", "/api", "/base");
        for (query, expected) in [
            (None, "/base"),
            (Some(""), "/base?"),
            (Some("q=/../?&%"), "/base?q=/../?&%"),
            (Some("?"), "/base??"),
        ] {
            assert_eq!(joined(&route, "/api", query), expected);
        }
    }

    #[test]
    fn dot_segments_are_seen_through_every_disguise() {
        for bad in [
            "/.",
            "/..",
            "/./",
            "/../",
            "/a/./b",
            "/a/../b",
            "/a/..",
            "..",
            ".",
            "../a",
            "/%2e",
            "/%2E/",
            "/%2e%2e/",
            "/.%2e",
            "/%2E./a",
            "/a/%2e%2E",
            "/a%2f..%2fb",
            "/a%2F.%2Fb",
            "/..%2f",
            "/a%5c..",
            "/a%5C%2e%2e%5cb",
            "/a\\..\\b",
            "\\..",
            "/..\\a",
            "/..;/",
            "/..;x=y/a",
            "/.;",
            "/a/..;a;b",
            "/%2e.;v=1/x",
            "/..%3b/",
            "/..%3B",
        ] {
            assert!(holds_dot_segment(bad), "{bad}");
            let climbs = ![
                "/.",
                "/./",
                "/a/./b",
                ".",
                "/%2e",
                "/%2E/",
                "/a%2F.%2Fb",
                "/.;",
            ]
            .contains(&bad);
            assert_eq!(holds_parent_segment(bad), climbs, "{bad}");
        }
        for good in [
            "",
            "*",
            "/",
            "//",
            "/a",
            "/a.b",
            "/.a",
            "/a.",
            "/..a",
            "/a..",
            "/...",
            "/.../",
            "/.well-known/x",
            "/a;..",
            "/;/a",
            "/a/..b/c",
            "/%2ea",
            "/%2e%2e%2e",
            "/%252e%252e/",
            "/%2",
            "/%",
            "/%2g",
            "/%2x%2e",
            "/..%",
            "/..%2",
            "/. ",
            "/a?b",
            "/a;b=..%2",
        ] {
            assert!(
                !holds_dot_segment(good) && !holds_parent_segment(good),
                "{good}"
            );
        }
    }

    #[test]
    fn edits_remove_then_set() {
        let edits = Edits {
            set: vec![(
                HeaderName::from_static("x-a"),
                HeaderValue::from_static("ours"),
            )],
            remove: vec![
                HeaderName::from_static("x-b"),
                HeaderName::from_static("x-a"),
                HeaderName::from_static("x-none"),
            ],
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-b", "3"),
            ("x-b", "4"),
            ("x-c", "5"),
            ("x-c", "6"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        edits.apply(&mut headers);
        assert_eq!(headers.get_all("x-a").iter().collect::<Vec<_>>(), ["ours"]);
        assert!(!headers.contains_key("x-b"));
        assert_eq!(
            headers.get_all("x-c").iter().collect::<Vec<_>>(),
            ["5", "6"]
        );
        assert!(edits.remove.iter().all(|name| edits.touches(name)));
    }

    /// Marsaglia's xorshift: the same cases at every run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % u64::try_from(bound).unwrap()).unwrap()
        }

        fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
            words[self.below(words.len())]
        }

        /// `/`-led, of up to `most` small words, with slashes of its own.
        fn path(&mut self, most: usize) -> String {
            let mut path = "/".to_owned();
            for _ in 0..self.below(most + 1) {
                path.push_str(self.pick(&["a", "b", "/", "ab", "%2F", "/"]));
            }
            path
        }
    }

    #[test]
    fn a_join_keeps_the_rest_and_has_one_slash_at_the_joint() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        for _ in 0..20_000 {
            let base = dice.pick(&["", "/", "/base", "/base/", "/a/b", "/a//b/"]);
            let strip_prefix = dice.below(2) == 0;
            let route = Route {
                strip_prefix,
                ..route("", &dice.path(4), base)
            };
            let path = route.path.clone()
                + if route.path.ends_with('/') { "" } else { "/" }
                + dice.path(5).get(1..).unwrap();
            let case = format!("{} -> {base} ({strip_prefix}): {path}", route.path);
            assert!(route.covers(&path), "{case}");

            let out = joined(&route, &path, None);
            let rest = if strip_prefix {
                path.get(route.path.len()..).unwrap()
            } else {
                &path
            };
            let rest = if strip_prefix && route.path.ends_with('/') {
                rest
            } else {
                rest.strip_prefix('/').unwrap()
            };
            assert_eq!(
                out,
                format!("{}/{rest}", base.trim_end_matches('/')),
                "{case}"
            );
            assert!(out.starts_with('/'), "{case}");
        }
    }

    #[test]
    fn find_agrees_with_a_naive_reading() {
        const PATTERNS: &[&str] = &["", "", "a.b", "*.b", "*.a.b", "b"];
        const HOSTS: &[&str] = &[
            "", "b", "a.b", "A.B:80", "c.a.b", "x.a.b.", "bb", "c", ".b", "a.b:",
        ];
        let mut dice = Dice(0x0123_4567_89ab_cdef);
        for _ in 0..20_000 {
            let mut written: Vec<(&str, String)> = Vec::new();
            for _ in 0..dice.below(7) {
                let next = (dice.pick(PATTERNS), dice.path(3));
                if !written.contains(&next) {
                    written.push(next);
                }
            }
            let (host, path) = (dice.pick(HOSTS), dice.path(4));
            let routes = Routes::new(
                written
                    .iter()
                    .map(|(host, path)| route(host, path, ""))
                    .collect(),
            );
            assert_eq!(
                shown(&routes.find(host, &path)),
                naive(&written, host, &path),
                "{written:?} {host} {path}"
            );
        }
    }

    /// What [`Routes::find`] promises, written the long way round.
    fn naive(routes: &[(&str, String)], host: &str, path: &str) -> String {
        let lower = host.to_lowercase();
        let name = lower.split(':').next().unwrap().trim_end_matches('.');
        let mut best: Option<((usize, usize), String)> = None;
        for (pattern, prefix) in routes {
            let closeness = match pattern.strip_prefix('*') {
                _ if pattern.is_empty() => 0,
                Some(suffix) if name.ends_with(suffix) && name != suffix => suffix.len(),
                None if name == *pattern => 1000,
                _ => continue,
            };
            let below = if prefix.ends_with('/') {
                prefix.clone()
            } else {
                format!("{prefix}/")
            };
            let answer = if path == prefix || path.starts_with(&below) {
                format!("{pattern}{prefix}")
            } else if format!("{path}/") == *prefix
                && !routes
                    .iter()
                    .any(|other| other.0 == *pattern && other.1 == path)
            {
                format!("+{pattern}{prefix}")
            } else {
                continue;
            };
            if best
                .as_ref()
                .is_none_or(|(score, _)| (closeness, prefix.len()) > *score)
            {
                best = Some(((closeness, prefix.len()), answer));
            }
        }
        best.map_or("-".to_owned(), |(_, answer)| answer)
    }
}
