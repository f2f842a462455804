//! Reads the entries of `routes:`, each with what it inherits from the rest of the configuration.
//!
//! Every key is read, even after a mistake in another, so that one run finds every mistake. No message repeats the value of
//! a header, because it may be a secret.

use std::{collections::HashMap, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header::HOST};

use crate::{
    config::{
        address::{
            parse_destination, parse_host_pattern, parse_path, parse_server_name, parse_target,
            server_name,
        },
        certificates,
        cors::Policy,
        document::Section,
        scalars::Unit,
        wording::quote,
    },
    direct::{Redirect, Response},
    route::{Action, Address, Edits, HostPattern, Route, Routes, Scheme, Target, Tls},
};

/// What all routes have in common.
pub struct Common<'a> {
    /// `transport.response_header_timeout`, the default of each route's.
    pub response_header_timeout: Option<Duration>,
    /// The global policy, which each route inherits.
    pub cors: &'a Policy,
    /// The health path, which no route may have.
    pub health_path: &'a str,
}

/// Reads `routes:`: at least one, and no two with the same host and path.
pub fn routes(root: &Section<'_>, common: &Common<'_>) -> Routes {
    let items = root
        .get("routes")
        .map_or_else(Vec::new, |field| field.items());
    if items.is_empty() {
        root.place("routes")
            .complain("at least one route is needed");
    }
    let mut seen: HashMap<(Option<Scheme>, String, String), String> = HashMap::new();
    let mut routes = Vec::with_capacity(items.len());
    for item in items {
        let Some(route) = item.section(|s| route(s, common)) else {
            continue;
        };
        let earlier: Vec<String> = host_keys(&route)
            .filter_map(|host| {
                let key = (route.scheme, host, route.path.clone());
                seen.insert(key, item.shown())
            })
            .collect();
        if let Some(earlier) = earlier.first() {
            item.complain(format!("has the same host and path as {earlier}"));
        }
        routes.push(route);
    }
    Routes::new(routes)
}

fn host_keys(route: &Route) -> impl Iterator<Item = String> {
    let any = route.hosts.is_empty().then(String::new);
    let named = route.hosts.iter().map(|host| match host {
        HostPattern::Exact(host) => host.clone(),
        HostPattern::Below(suffix) => format!("*{suffix}"),
    });
    named.chain(any)
}

/// Reads a route; `None` where a key without a default is missing or wrong. All keys are read in any case.
fn route(s: &Section<'_>, common: &Common<'_>) -> Option<Route> {
    let path = s.parsed("path", parse_path);
    if let Some(path) = &path {
        if path == common.health_path {
            s.place("path")
                .complain("is the health path, which is answered before any route");
        }
    } else if s.get("path").is_none() {
        s.place("path").complain("is missing");
    }
    let action = action(s);
    let hosts = hosts(s);
    let scheme = s.one_of(
        "scheme",
        &[("http", Scheme::Http), ("https", Scheme::Https)],
    );
    let response_header_timeout =
        s.time_or("response_header_timeout", common.response_header_timeout);
    let max_body_size = s.whole("max_body_size", Unit::Bytes, 0, &(0..=i64::MAX));
    let strip_prefix = s.flag("strip_prefix", true);
    let preserve_host = s.flag("preserve_host", false);
    let rewrite_location = s.flag("rewrite_location", true);
    let request_headers = s.section("request_headers", |s| edits(s, true));
    let response_headers = s.section("response_headers", |s| edits(s, false));
    if let Some(action) = &action {
        check_keys(s, action, &request_headers);
    }
    let cors = match common.cors.laid_under(s) {
        Some(own) => own.cors,
        None => common.cors.cors.clone(),
    };
    Some(Route {
        index: 0,
        path: path?,
        hosts,
        scheme,
        action: action?,
        strip_prefix,
        preserve_host,
        rewrite_location,
        response_header_timeout,
        max_body_size: u64::try_from(max_body_size).ok().filter(|bytes| *bytes > 0),
        request_headers,
        response_headers,
        cors,
    })
}

/// Reads `host:`, one or a list; an empty string means every host.
fn hosts(s: &Section<'_>) -> Vec<HostPattern> {
    let Some(field) = s.get("host") else {
        return Vec::new();
    };
    let items = field.items();
    if items.is_empty() {
        field.complain("lists no host: leave it out to match every host");
    }
    let is_list = items.len() > 1;
    let mut hosts = Vec::with_capacity(items.len());
    for item in items {
        match item.parsed(parse_host_pattern) {
            Some(Some(host)) if hosts.contains(&host) => item.complain("is listed twice"),
            Some(Some(host)) => hosts.push(host),
            Some(None) if is_list => item.complain("is empty: leave host out to match every host"),
            Some(None) | None => {}
        }
    }
    hosts
}

/// Reads `target`, `redirect` and `respond`, of which a route has exactly one. All are read, even after a mistake in one.
fn action(s: &Section<'_>) -> Option<Action> {
    let written: Vec<&str> = ["target", "redirect", "respond"]
        .into_iter()
        .filter(|key| s.get(key).is_some())
        .collect();
    let settings = s.section("tls", tls);
    let http2 = s.flag("http2", false);
    let target = s.get("target").and_then(|field| field.parsed(parse_target));
    let redirect = s.get("redirect").map(|field| field.section(redirect));
    let respond = s.get("respond").map(|field| field.section(respond));
    match written.as_slice() {
        [] => s
            .place("target")
            .complain("is missing (a route has a target, a redirect or a respond)"),
        [_] => {}
        [first, second, ..] => s.place("path").complain(format!(
            "this route has {first} and {second}: it can have one of target, redirect and respond"
        )),
    }
    if written.first() == Some(&"target") {
        return Some(Action::Forward(with_tls(s, target?, settings, http2)));
    }
    if http2 {
        s.place("http2")
            .complain("is for https targets, and this route has no target");
    }
    if settings != Tls::default() {
        s.place("tls")
            .complain("is for https targets, and this route has no target");
    }
    let redirect = redirect.flatten().map(Action::Redirect);
    redirect.or_else(|| respond.flatten().map(Action::Respond))
}

/// Reports keys that have no effect beside a `redirect` or `respond`.
fn check_keys(s: &Section<'_>, action: &Action, request_headers: &Edits) {
    let (name, idle): (_, &[_]) = match action {
        Action::Forward(_) => return,
        Action::Redirect(_) => ("redirect", &FORWARDING),
        Action::Respond(_) => ("respond", &[&FORWARDING[..], &["strip_prefix"]].concat()),
    };
    for key in idle.iter().filter(|key| s.get(key).is_some()) {
        // an empty section is not a mistake: a program may have written it
        if *key != "request_headers" || !request_headers.is_empty() {
            s.place(key)
                .complain(format!("has no effect beside {name}, which asks no target"));
        }
    }
}

/// Keys that only affect requests to a target, apart from `tls`, which [`action`] checks.
const FORWARDING: [&str; 5] = [
    "preserve_host",
    "rewrite_location",
    "response_header_timeout",
    "max_body_size",
    "request_headers",
];

fn redirect(s: &Section<'_>) -> Option<Redirect> {
    let to = s.parsed("to", parse_destination);
    if s.get("to").is_none() {
        s.place("to").complain("is missing");
    }
    let status = s.whole("status", Unit::Plain, 308, &(100..=999));
    if ![301, 302, 303, 307, 308].contains(&status) {
        s.place("status")
            .complain(format!("must be 301, 302, 303, 307 or 308, got {status}"));
    }
    Some(Redirect {
        status: status_code(status)?,
        to: to?,
    })
}

fn respond(s: &Section<'_>) -> Option<Response> {
    let body = Bytes::from(s.text("body"));
    let usual = if body.is_empty() { 404 } else { 200 };
    let status = status_code(s.whole("status", Unit::Plain, usual, &(200..=599)))?;
    let written = s.parsed("content_type", |text| {
        HeaderValue::from_str(text)
            .ok()
            .filter(|_| text.split('/').count() == 2)
            .ok_or_else(|| format!("must be like text/plain, got {}", quote(text)))
    });
    if !body.is_empty() && matches!(status.as_u16(), 204 | 205 | 304) {
        s.place("body")
            .complain(format!("must be empty: a {} has no body", status.as_u16()));
    }
    let usual = HeaderValue::from_static("text/plain; charset=utf-8");
    Some(Response {
        status,
        content_type: written.or_else(|| (!body.is_empty()).then_some(usual)),
        body,
    })
}

fn status_code(number: i64) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(number).ok()?).ok()
}

/// Adds the route's `tls` and `http2` to its target.
fn with_tls(s: &Section<'_>, mut target: Target, settings: Tls, http2: bool) -> Target {
    match (&target.origin.tls, &target.origin.address) {
        (Some(_), _) => target.origin.http2 = http2,
        // HTTP/2 is what h2c:// says already
        (None, _) if !http2 || target.origin.http2 => {}
        (None, Address::Tcp(..)) => s.place("http2").complain(
            "is for https targets: HTTP/2 without TLS is a target that begins with h2c://",
        ),
        (None, Address::Unix(_)) => s
            .place("http2")
            .complain("is for https targets, and this one is not"),
    }
    match &mut target.origin.tls {
        Some(own) => {
            let host = std::mem::replace(own, settings).server_name;
            check_tls(s, own, host);
        }
        None if settings != Tls::default() => s
            .place("tls")
            .complain("is for https targets, and this one is not"),
        None => {}
    }
    target
}

fn tls(s: &Section<'_>) -> Tls {
    Tls {
        server_name: s
            .parsed("server_name", parse_server_name)
            .unwrap_or_default(),
        ca_file: ca_file(s),
        insecure_skip_verify: s.flag("insecure_skip_verify", false),
    }
}

/// The certificate must carry the target's host unless another name is given.
fn check_tls(s: &Section<'_>, tls: &mut Tls, host: String) {
    if tls.insecure_skip_verify {
        s.place("tls").warn(
            "insecure_skip_verify: any certificate is accepted: an attacker on the way can read and change everything",
        );
    }
    let key = if tls.server_name.is_empty() {
        tls.server_name = host;
        "target"
    } else {
        "tls"
    };
    if let Err(sentence) = server_name(&tls.server_name) {
        s.place(key).complain(sentence);
    }
}

fn ca_file(s: &Section<'_>) -> Option<PathBuf> {
    let field = s.get("ca_file")?;
    let path = field
        .text()
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)?;
    if let Err(sentence) = certificates::check_file(&path) {
        field.complain(sentence);
    }
    Some(path)
}

fn edits(s: &Section<'_>, is_request: bool) -> Edits {
    let mut edits = Edits::default();
    for (key, field) in s.get("set").map_or_else(Vec::new, |field| field.entries()) {
        let name = header_name(key).map_err(|sentence| field.complain(sentence));
        let value = field.text().and_then(|text| {
            let value = HeaderValue::from_bytes(text.trim_matches([' ', '\t']).as_bytes());
            // the message does not repeat the value, which may be a secret
            value
                .map_err(|_| field.complain("holds a byte that no header value may hold"))
                .ok()
        });
        let (Ok(name), Some(value)) = (name, value) else {
            continue;
        };
        if edits.set.iter().any(|(other, _)| *other == name) {
            field.complain("is set twice");
        }
        edits.set.push((name, value));
    }
    edits.remove = s.parsed_list("remove", |text| match header_name(text)? {
        name if is_request && name == HOST => {
            Err("Host cannot be removed: HTTP/1.1 needs it".to_owned())
        }
        name => Ok(name),
    });
    edits
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| format!("{} is not a valid header name", quote(text)))?;
    if FRAMING.contains(&name.as_str()) {
        return Err(format!(
            "{name} frames the message, and only the proxy sets it"
        ));
    }
    Ok(name)
}

/// Fields that decide where a message ends, or that concern one connection only: editing them would break the message.
const FRAMING: [&str; 8] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{errors, good};

    /// A valid configuration whose only route also has these lines.
    fn route_plus(lines: &str) -> String {
        format!(
            "routes:\n- path: /\n  target: http://h\n  {}\n",
            lines.replace('\n', "\n  ")
        )
    }

    #[test]
    fn routes_with_everything() {
        let config = good(
            "cors: {allowed_origins: [\"https://a.example\"]}\n\
             routes:\n\
             - path: /a\n  target: https://h/b\n  host: \"*.Example.com\"\n  strip_prefix: false\n  preserve_host: true\n  rewrite_location: false\n  \
               response_header_timeout: 1.5\n  max_body_size: 1000\n  \
               request_headers: {set: {X-A: 1.10, x-b: true, Host: other}, remove: x-c}\n  \
               response_headers: {remove: [Server, x-d]}\n  \
               tls: {server_name: other.example, insecure_skip_verify: true}\n  cors: false\n\
             - {path: /a, target: \"http://h\", cors: {}}\n\
             - {path: /b, target: \"unix:/x.sock\", cors: {max_age: 5}, tls: {server_name: \"\", ca_file: \"\", insecure_skip_verify: false}}\n",
        );
        let routes: Vec<&Route> = config.routes.iter().collect();
        let route = routes.iter().find(|route| !route.hosts.is_empty()).unwrap();
        assert_eq!(route.hosts, [HostPattern::Below(".example.com".to_owned())]);
        assert!(!route.rewrite_location);
        assert!(!route.strip_prefix && route.preserve_host && route.cors.is_none());
        assert_eq!(
            route.response_header_timeout,
            Some(Duration::from_millis(1500))
        );
        assert_eq!(route.max_body_size, Some(1000));
        let set: Vec<String> = route
            .request_headers
            .set
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(set, ["x-a: 1.10", "x-b: true", "host: other"]);
        assert_eq!(route.request_headers.remove, ["x-c"]);
        assert_eq!(route.response_headers.remove, ["server", "x-d"]);
        let tls = route.target().unwrap().origin.tls.as_ref().unwrap();
        assert_eq!(tls.server_name, "other.example");
        assert!(tls.insecure_skip_verify);
        assert_eq!(config.warnings.len(), 1);
        assert!(
            config.warnings[0].starts_with("c.yaml:13: routes[0].tls: "),
            "{:?}",
            config.warnings
        );
        assert_eq!(
            routes.iter().filter(|route| route.cors.is_some()).count(),
            2
        );
    }

    #[test]
    fn http2_is_spoken_where_it_is_asked_for() {
        let config = good(
            "routes:\n\
             - {path: /a, target: \"h2c://H:81/b\"}\n\
             - {path: /b, target: \"h2c://h\", http2: true}\n\
             - {path: /c, target: \"https://h\", http2: true}\n\
             - {path: /d, target: \"https://h\"}\n\
             - {path: /e, target: \"http://h\", http2: false}\n",
        );
        let shown: Vec<(String, bool)> = config
            .routes
            .iter()
            .map(|route| &route.target().unwrap().origin)
            .map(|origin| (origin.to_string(), origin.http2))
            .collect();
        let expected = [
            ("h2c://h:81", true),
            ("h2c://h:80", true),
            ("https://h:443", true),
            ("https://h:443", false),
            ("http://h:80", false),
        ];
        assert_eq!(
            shown,
            expected.map(|(text, http2)| (text.to_owned(), http2))
        );
    }

    /// What is written, then the beginning of the error it must get.
    const IN_A_ROUTE: &[(&str, &str)] = &[
        (
            "targt: x",
            "c.yaml:4: routes[0].targt: unknown key, did you mean `target`?",
        ),
        (
            "host: a:80",
            "c.yaml:4: routes[0].host: must not have a port",
        ),
        (
            "tls: {server_name: a}",
            "c.yaml:4: routes[0].tls: is for https targets",
        ),
        (
            "tls: {insecure_skip_verify: true}",
            "c.yaml:4: routes[0].tls: is for https targets",
        ),
        (
            "http2: true",
            "c.yaml:4: routes[0].http2: is for https targets: HTTP/2 without TLS is a target that begins with h2c://",
        ),
        (
            "http2: 1",
            "c.yaml:4: routes[0].http2: must be true or false",
        ),
        (
            "max_body_size: 1XB",
            "c.yaml:4: routes[0].max_body_size: must be bytes, or",
        ),
        (
            "response_header_timeout: 2x",
            "c.yaml:4: routes[0].response_header_timeout: must be seconds, or",
        ),
        (
            "request_headers:\n  set:\n    bad name: x",
            "c.yaml:6: routes[0].request_headers.set.bad name: \"bad name\" is not a valid header name",
        ),
        (
            "request_headers: {set: {\"X-A\": \"a\\r\\nX-B: secret\"}}",
            "c.yaml:4: routes[0].request_headers.set.X-A: holds a byte",
        ),
        (
            "request_headers: {set: {X-A: 1, x-a: 2}}",
            "c.yaml:4: routes[0].request_headers.set.x-a: is set twice",
        ),
        (
            "request_headers: {set: {X-A: }}",
            "c.yaml:4: routes[0].request_headers.set.X-A: must be a string, got nothing",
        ),
        (
            "request_headers: {set: [a]}",
            "c.yaml:4: routes[0].request_headers.set: must be a mapping",
        ),
        (
            "request_headers: {remove: [a, \"b:\"]}",
            "c.yaml:4: routes[0].request_headers.remove[1]: \"b:\" is not a valid",
        ),
        (
            "request_headers: {remove: Host}",
            "c.yaml:4: routes[0].request_headers.remove: Host cannot be removed",
        ),
        (
            "response_headers: {set: {Content-Length: 1}}",
            "c.yaml:4: routes[0].response_headers.set.Content-Length: content-length frames",
        ),
        (
            "cors: {allowed_origins: [\"https://a.example/\"]}",
            "c.yaml:4: routes[0].cors.allowed_origins[0]: ",
        ),
        ("cors: yes", "c.yaml:4: routes[0].cors: must be a mapping"),
        (
            "cors: true",
            "c.yaml:4: routes[0].cors: true enables nothing",
        ),
        (
            "queue_timeout: 1",
            "c.yaml:4: routes[0].queue_timeout: unknown key here; `queue_timeout` belongs to proxy",
        ),
        (
            "host: https://app.example.com",
            "c.yaml:4: routes[0].host: must be a host and nothing else: write \"app.example.com\"",
        ),
    ];

    #[test]
    fn mistakes_in_a_route() {
        for (text, expected) in IN_A_ROUTE {
            let errors = errors(&route_plus(text));
            assert!(
                errors.len() == 1 && errors[0].starts_with(expected),
                "{text}: {errors:#?}"
            );
            assert!(!errors[0].contains("secret"), "{errors:?}");
        }
    }

    /// What is written, then the beginning of the error it must get.
    const NO_ROUTES: &[(&str, &str)] = &[
        ("", "c.yaml:1: routes: at least one route is needed"),
        (
            "routes: []",
            "c.yaml:1: routes: at least one route is needed",
        ),
        ("a: &a 1\n\nroutes: ~\nx-a: *a", "c.yaml:1: a: unknown key"),
        (
            "routes:\n- {target: \"http://h\"}",
            "c.yaml:2: routes[0].path: is missing",
        ),
        (
            "routes: [{path: /a, scheme: ftp, target: \"http://h\"}]",
            "c.yaml:1: routes[0].scheme: must be one of http, https, got \"ftp\"",
        ),
        (
            "routes: [{path: /a, scheme: http, target: \"http://h\"}, {path: /a, scheme: HTTP, target: \"http://i\"}]",
            "c.yaml:1: routes[1]: has the same host and path as routes[0]",
        ),
        (
            "routes: [{path: /a, host: [a, b], target: \"http://h\"}, {path: /a, host: [c, b], target: \"http://i\"}]",
            "c.yaml:1: routes[1]: has the same host and path as routes[0]",
        ),
        (
            "routes: [{path: /a, host: [a, A], target: \"http://h\"}]",
            "c.yaml:1: routes[0].host[1]: is listed twice",
        ),
        (
            "routes: [{path: /a, host: [], target: \"http://h\"}]",
            "c.yaml:1: routes[0].host: lists no host",
        ),
        (
            "routes: [{path: /a, host: [a, \"\"], target: \"http://h\"}]",
            "c.yaml:1: routes[0].host[1]: is empty",
        ),
        (
            "routes:\n- path: /a\n  target: http://h\n  respond: {}",
            "c.yaml:2: routes[0].path: this route has target and respond",
        ),
        (
            "routes:\n- path: /a\n  redirect: {to: /b}\n  respond: {}",
            "c.yaml:2: routes[0].path: this route has redirect and respond",
        ),
        (
            "routes: [{path: /, redirect: {}}]",
            "c.yaml:1: routes[0].redirect.to: is missing",
        ),
        (
            "routes: [{path: /, redirect: /x}]",
            "c.yaml:1: routes[0].redirect: must be a mapping",
        ),
        (
            "routes: [{path: /, redirect: {to: /x, status: 200}}]",
            "c.yaml:1: routes[0].redirect.status: must be 301, 302, 303, 307 or 308, got 200",
        ),
        (
            "routes: [{path: /, redirect: {to: /x}, max_body_size: 1}]",
            "c.yaml:1: routes[0].max_body_size: has no effect beside redirect",
        ),
        (
            "routes: [{path: /, redirect: {to: /x}, tls: {server_name: a}}]",
            "c.yaml:1: routes[0].tls: is for https targets, and this route has no target",
        ),
        (
            "routes: [{path: /, redirect: {to: /x}, http2: true}]",
            "c.yaml:1: routes[0].http2: is for https targets, and this route has no target",
        ),
        (
            "routes: [{path: /, target: \"unix:/x.sock\", http2: true}]",
            "c.yaml:1: routes[0].http2: is for https targets, and this one is not",
        ),
        (
            "routes: [{path: /, target: \"h2c://h\", tls: {server_name: a}}]",
            "c.yaml:1: routes[0].tls: is for https targets, and this one is not",
        ),
        (
            "routes: [{path: /, respond: {status: 101}}]",
            "c.yaml:1: routes[0].respond.status: must be at least 200, got 101",
        ),
        (
            "routes: [{path: /, respond: {status: 600}}]",
            "c.yaml:1: routes[0].respond.status: must be at most 599, got 600",
        ),
        (
            "routes: [{path: /, respond: {status: 204, body: x}}]",
            "c.yaml:1: routes[0].respond.body: must be empty: a 204 has no body",
        ),
        (
            "routes: [{path: /, respond: {content_type: text}}]",
            "c.yaml:1: routes[0].respond.content_type: must be like text/plain, got \"text\"",
        ),
        (
            "routes: [{path: /, respond: {}, strip_prefix: false}]",
            "c.yaml:1: routes[0].strip_prefix: has no effect beside respond",
        ),
        (
            "routes: [{path: /, respond: {}, request_headers: {remove: a}}]",
            "c.yaml:1: routes[0].request_headers: has no effect beside respond",
        ),
        (
            "routes:\n- {path: /}",
            "c.yaml:2: routes[0].target: is missing",
        ),
        (
            "routes: [x]",
            "c.yaml:1: routes[0]: must be a mapping of keys, got \"x\"",
        ),
        (
            "routes: [{path: /a, target: \"http://h\"}, {path: /a, target: \"http://i\"}]",
            "c.yaml:1: routes[1]: has the same host and path as routes[0]",
        ),
        (
            "routes: [{path: /a, host: A, target: \"http://h\"}, {path: /a, host: a., target: \"http://i\"}]",
            "c.yaml:1: routes[1]: has the same host",
        ),
        (
            "routes: [{path: /health, target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: is the health path",
        ),
        (
            "routes: [{path: api, target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: must begin with /, got \"api\"",
        ),
        (
            "routes: [{path: /a/../b, target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: must not have a \".\"",
        ),
        (
            "routes: [{path: /a/%2e, target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: must not have a \".\"",
        ),
        (
            "routes: [{path: \"/a?b\", target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: must not have a query",
        ),
        (
            "routes: [{path: \"/a#b\", target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: must not have a fragment",
        ),
        (
            "routes: [{path: /a b, target: \"http://h\"}]",
            "c.yaml:1: routes[0].path: holds ' '",
        ),
        (
            "routes:\n- path: /\n  target: ftp://h",
            "c.yaml:3: routes[0].target: scheme must be http, h2c, https or unix, got \"ftp\"",
        ),
        (
            "routes: [{path: /, target: \"https://h\", tls: {ca_file: /nonexistent.pem}}]",
            "c.yaml:1: routes[0].tls.ca_file: /nonexistent.pem: No such file",
        ),
        (
            "routes: [{path: /, target: \"https://h\", tls: {ca_file: Cargo.toml}}]",
            "c.yaml:1: routes[0].tls.ca_file: Cargo.toml: holds no certificate",
        ),
        (
            "routes: [{path: /, target: \"https://h\", tls: {ca_file: /}}]",
            "c.yaml:1: routes[0].tls.ca_file: /: Is a directory",
        ),
        (
            "routes: [{path: /, target: \"https://-h\"}]",
            "c.yaml:1: routes[0].target: \"-h\" is neither a host name nor an IP address",
        ),
        (
            "routes: [{path: /, target: \"https://h\", tls: {server_name: h-}}]",
            "c.yaml:1: routes[0].tls: \"h-\" is neither a host name nor an IP address",
        ),
        ("[1]", "c.yaml: must be a mapping of keys, got a list"),
        (
            "nonsense",
            "c.yaml: must be a mapping of keys, got \"nonsense\"",
        ),
    ];

    #[test]
    fn routes_that_answer_by_themselves() {
        let config = good(
            "routes:\n\
             - {path: /a, host: [a.example, \"*.b.example\"], redirect: {to: \"https://{host}\", status: 301}, request_headers: {set: {}, remove: []}, tls: {}}\n\
             - {path: /b, respond: {status: 404, body: \"g\u{f6}ne\"}}\n\
             - {path: /c, respond: {status: 204}}\n\
             - {path: /d, respond: {body: \"{}\", content_type: application/json}}\n\
             - {path: /e, respond: {}}\n",
        );
        let mut routes = config.routes.iter();
        let route = routes.next().unwrap();
        assert_eq!(route.hosts.len(), 2);
        let Action::Redirect(redirect) = &route.action else {
            panic!("{route:?}")
        };
        assert_eq!(redirect.status.as_u16(), 301);
        let shown: Vec<_> = routes
            .map(|route| match &route.action {
                Action::Respond(response) => (
                    response.status.as_u16(),
                    std::str::from_utf8(&response.body).unwrap(),
                    response
                        .content_type
                        .as_ref()
                        .map(|kind| kind.to_str().unwrap()),
                ),
                _ => panic!("{route:?}"),
            })
            .collect();
        let expected = [
            (404, "g\u{f6}ne", Some("text/plain; charset=utf-8")),
            (204, "", None),
            (200, "{}", Some("application/json")),
            (404, "", None),
        ];
        assert_eq!(shown, expected);
        let usual = good("routes: [{path: /, redirect: {to: /x}}]");
        assert!(matches!(
            &usual.routes.iter().next().unwrap().action,
            Action::Redirect(redirect) if redirect.status.as_u16() == 308
        ));
    }

    #[test]
    fn mistakes_in_the_list_of_routes() {
        for (text, expected) in NO_ROUTES {
            let errors = errors(text);
            assert!(errors[0].starts_with(expected), "{text}: {errors:#?}");
        }
    }
}
