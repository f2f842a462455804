//! A path for the upstream stays below the base path, and holds nothing that would end the request line or a word of it.
//!
//! The input's lines: the Host and the target of a request, then `[host ]path base` of up to four routes.

#![no_main]

use http::HeaderValue;
use lean_proxy::fuzzing::{
    address::{parse_host_pattern, parse_path, parse_target},
    request::RequestUri,
    request_head,
    route::{Action, Edits, Found, Route, Routes, Scheme, Target, holds_parent_segment},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut lines = input.split(|byte| *byte == b'\n');
    let (Some(host), Some(target)) = (lines.next(), lines.next()) else {
        return;
    };
    let routes: Vec<Route> = lines.take(4).filter_map(route).collect();
    let request = [
        b"GET ".as_slice(),
        target,
        b" HTTP/1.1\r\nHost: ",
        host,
        b"\r\n\r\n",
    ]
    .concat();
    let Ok(Some(head)) = request_head::head(&request, &mut 0, 65_536) else {
        return;
    };
    assert_eq!(&request[head.target.0..head.target.1], target);
    let uri = RequestUri::new(target).expect("an accepted target is text");
    let path = uri.path();
    if holds_parent_segment(path) {
        return;
    }
    assert!(!resolves_upwards(path), "{path:?}");
    let authority = uri
        .authority()
        .map(str::as_bytes)
        .unwrap_or(host.trim_ascii());
    let host = std::str::from_utf8(authority).expect("an accepted Host is text");
    let routes = Routes::new(routes);
    let route = match routes.find(host, path, || Scheme::Http) {
        Found::Route(route) => route,
        Found::AddSlash(route) => {
            assert_eq!(route.path, format!("{path}/"));
            return;
        }
        Found::Nothing => {
            let own = |route: &&Route| route.hosts.is_empty() && covers(&route.path, path);
            assert!(routes.iter().find(own).is_none(), "{path:?} has a route");
            return;
        }
    };
    assert!(
        covers(&route.path, path),
        "{path:?} is not {}'s",
        route.path
    );
    let longer = |other: &&Route| {
        other.hosts == route.hosts
            && covers(&other.path, path)
            && other.path.len() > route.path.len()
    };
    assert!(routes.iter().find(longer).is_none(), "a longer one fits");

    let mut out = Vec::new();
    let target = route.target().expect("all routes here have one");
    route.push_joined(&target.base, path, uri.query(), &mut out);
    let out = String::from_utf8(out).expect("the path was text");
    assert!(
        !out.bytes()
            .any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#'),
        "{out:?}"
    );
    assert_eq!(out.split_once('?').map(|(_, query)| query), uri.query());
    let sent = out.split('?').next().expect("there is a first part");
    let base = target.base.trim_end_matches('/');
    let below = sent.strip_prefix(base);
    assert!(
        below.is_some_and(|below| below.is_empty() || below.starts_with('/')),
        "{sent:?} is outside of {base:?}"
    );
    assert!(sent.starts_with('/'), "{sent:?}");
    assert!(!resolves_upwards(sent), "{sent:?}");
    assert!(!holds_parent_segment(sent), "{sent:?}");
    let rest = if route.strip_prefix {
        path[route.path.len()..].trim_start_matches('/')
    } else {
        path.trim_start_matches('/')
    };
    assert!(sent.ends_with(rest), "{sent:?} lost some of {rest:?}");
});

fn route(line: &[u8]) -> Option<Route> {
    let line = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = line.split(' ').collect();
    let (host, path, base) = match words.as_slice() {
        [path, base] => ("", *path, *base),
        [host, path, base] => (*host, *path, *base),
        _ => return None,
    };
    parse_path(path).ok()?;
    let keeps = base.starts_with('+');
    let base = base.trim_start_matches('+');
    let Target { base, origin, .. } = parse_target(&format!("http://h{base}")).ok()?;
    Some(Route {
        index: 0,
        path: path.to_owned(),
        hosts: parse_host_pattern(host).ok()?.into_iter().collect(),
        scheme: None,
        action: Action::Forward(Target {
            origin,
            base,
            host_header: HeaderValue::from_static("h"),
        }),
        strip_prefix: !keeps,
        rewrite_location: true,
        preserve_host: false,
        response_header_timeout: None,
        max_body_size: None,
        request_headers: Edits::default(),
        response_headers: Edits::default(),
        cors: None,
    })
}

/// Whether a prefix covers a path, in the simplest form.
fn covers(prefix: &str, path: &str) -> bool {
    path == prefix
        || path.starts_with(prefix)
            && (prefix.ends_with('/') || path[prefix.len()..].starts_with('/'))
}

/// Whether a server would find a `..` segment that decodes once, treats `\` as a slash and removes parameters.
fn resolves_upwards(path: &str) -> bool {
    let bytes = path.as_bytes();
    let mut plain = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let code = path
            .get(at + 1..at + 3)
            .filter(|digits| bytes[at] == b'%' && digits.bytes().all(|b| b.is_ascii_hexdigit()));
        match code {
            Some(digits) => {
                plain.push(u8::from_str_radix(digits, 16).expect("two digits"));
                at += 3;
            }
            None => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    plain
        .split(|byte| matches!(byte, b'/' | b'\\'))
        .map(|segment| {
            segment
                .split(|byte| *byte == b';')
                .next()
                .unwrap_or_default()
        })
        .any(|name| name == b"..")
}
