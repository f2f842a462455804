//! Rewrites an upstream's Location and Content-Location for the client.
//!
//! Pure. An upstream that does not know about the proxy names its own address. A URL that begins with the target's address
//! is mapped back to the route's, as with nginx's `proxy_redirect default`. Relative URLs and other hosts are not changed.

use http::{
    HeaderName, HeaderValue,
    header::{CONTENT_LOCATION, HOST, LOCATION},
};

use crate::{
    fields::Fields,
    route::{Address, Route, Target},
};

/// The proxy's address as the client sees it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The host and port of the request; empty where an HTTP/1.0 request has none, or where it is longer than a name may be.
    pub authority: &'a str,
    /// The request came by https: on its own connection, or according to a trusted proxy.
    pub is_https: bool,
}

/// Rewrites the Location and Content-Location of a response on `route` that name its target, unless the route's
/// `rewrite_location` is off.
pub fn rewrite(headers: &mut Fields, route: &Route, asked: Asked<'_>) {
    for name in [LOCATION, CONTENT_LOCATION] {
        if headers.contains(&name) && route.rewrite_location {
            rewrite_field(headers, name, route, asked);
        }
    }
}

#[cold]
fn rewrite_field(headers: &mut Fields, name: HeaderName, route: &Route, asked: Asked<'_>) {
    // some servers do not percent-encode non-ASCII characters
    let bytes = headers.get(&name);
    let found = bytes.and_then(|bytes| str::from_utf8(bytes).ok());
    let mapped = found.and_then(|url| map(url, route, asked));
    if let Some(value) = mapped.and_then(|url| HeaderValue::try_from(url).ok()) {
        headers.set(name, value);
    }
}

/// The URL for the client; `None` where it is not to be changed.
fn map(url: &str, route: &Route, asked: Asked<'_>) -> Option<String> {
    let target = route.target()?;
    if asked.authority.is_empty() {
        return None;
    }
    let rest = behind_origin(url, route, target)?;
    let rest = rest.strip_prefix(target.base.trim_end_matches('/'))?;
    if !(rest.is_empty() || rest.starts_with(['/', '?', '#'])) {
        return None;
    }
    let prefix = match route.path.as_str() {
        _ if !route.strip_prefix && rest.starts_with('/') => "",
        _ if !route.strip_prefix => "/",
        path if rest.starts_with('/') => path.trim_end_matches('/'),
        path => path,
    };
    let scheme = if asked.is_https { "https" } else { "http" };
    Some(format!("{scheme}://{}{prefix}{rest}", asked.authority))
}

/// The part of a URL after scheme and authority, if these are the target's: the address that is dialled, or the Host that
/// `request_headers` sets.
fn behind_origin<'u>(url: &'u str, route: &Route, target: &Target) -> Option<&'u str> {
    let (scheme, port) = if target.origin.tls.is_some() {
        ("https://", ":443")
    } else {
        ("http://", ":80")
    };
    let (start, rest) = url.split_at_checked(scheme.len())?;
    if !start.eq_ignore_ascii_case(scheme) {
        return None;
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at_checked(end)?;
    let bare = |authority: &'u str| authority.strip_suffix(port).unwrap_or(authority);
    let set = route
        .request_headers
        .set
        .iter()
        .find(|(name, _)| name == HOST);
    let own = set.map_or(&target.host_header, |(_, value)| value);
    let dialled = match &target.origin.address {
        Address::Tcp(..) => Some(&target.host_header),
        Address::Unix(_) => None,
    };
    [Some(own), dialled]
        .into_iter()
        .flatten()
        .filter_map(|own| own.to_str().ok())
        .any(|own| {
            let own = own.strip_suffix(port).unwrap_or(own);
            own.eq_ignore_ascii_case(bare(authority))
        })
        .then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{first, good};

    fn from(authority: &str) -> Asked<'_> {
        Asked {
            authority,
            is_https: false,
        }
    }

    fn mapped(route: &str, url: &str, is_https: bool) -> Option<String> {
        let config = good(&format!("routes: [{{{route}}}]"));
        let route = first(&config);
        let asked = Asked {
            authority: "app.example:8443",
            is_https,
        };
        map(url, route, asked)
    }

    #[test]
    fn urls_of_the_target_are_mapped_back() {
        let api = "path: /api/, target: \"http://127.0.0.1:9000/base\"";
        let bare = "path: /api, target: \"http://127.0.0.1:9000\"";
        let whole = "path: /, target: \"https://App.internal\"";
        let kept = "path: /api/, target: \"http://h:81/base\", strip_prefix: false";
        let unix = "path: /u/, target: \"unix:/run/x.sock:/b\"";
        let named =
            "path: /n/, target: \"http://h\", request_headers: {set: {Host: \"n.example:8080\"}}";
        for (route, url, expected) in [
            (api, "http://127.0.0.1:9000/base/x?q#f", Some("/api/x?q#f")),
            (api, "HTTP://127.0.0.1:9000/base/", Some("/api/")),
            (api, "http://127.0.0.1:9000/base", Some("/api/")),
            (api, "http://127.0.0.1:9000/base?q", Some("/api/?q")),
            (api, "http://127.0.0.1:9000/base//x", Some("/api//x")),
            (api, "http://127.0.0.1:9000/basement", None),
            (api, "http://127.0.0.1:9000/other", None),
            (api, "http://127.0.0.1:9000", None),
            (api, "http://127.0.0.1:9001/base/x", None),
            (api, "http://127.0.0.1/base/x", None),
            (api, "https://127.0.0.1:9000/base/x", None),
            (api, "http://127.0.0.1:9000@evil.example/base/x", None),
            (api, "http://127.0.0.1:90001/base/x", None),
            (api, "/base/x", None),
            (api, "//127.0.0.1:9000/base/x", None),
            (api, "x", None),
            (api, "", None),
            (api, "http://", None),
            (bare, "http://127.0.0.1:9000", Some("/api")),
            (bare, "http://127.0.0.1:9000/", Some("/api/")),
            (bare, "http://127.0.0.1:9000/x", Some("/api/x")),
            (bare, "http://127.0.0.1:9000?q", Some("/api?q")),
            (whole, "https://app.internal/login", Some("/login")),
            (whole, "https://APP.internal:443/login", Some("/login")),
            (whole, "https://app.internal", Some("/")),
            (whole, "https://app.internal#f", Some("/#f")),
            (whole, "http://app.internal/login", None),
            (whole, "https://app.internal.evil/login", None),
            (kept, "http://h:81/base/api/x", Some("/api/x")),
            (kept, "http://h:81/base", Some("/")),
            (unix, "http://localhost/b/x", Some("/u/x")),
            (unix, "http://localhost:80/b", Some("/u/")),
            (named, "http://n.example:8080/x", Some("/n/x")),
            (named, "http://h/x", Some("/n/x")),
            (named, "http://n.example/x", None),
        ] {
            for (is_https, scheme) in [(false, "http"), (true, "https")] {
                let expected = expected.map(|path| format!("{scheme}://app.example:8443{path}"));
                assert_eq!(mapped(route, url, is_https), expected, "{route} {url}");
            }
        }
    }

    #[test]
    fn both_fields_are_mapped_and_no_others() {
        let config = good("routes: [{path: /a/, target: \"http://h\"}]");
        let route = first(&config);
        let mut headers = Fields::from_iter([(LOCATION, "http://h/é?ü")]);
        rewrite(&mut headers, route, from("c"));
        let mapped = Fields::from_iter([(LOCATION, "http://c/a/é?ü")]);
        assert_eq!(headers, mapped);
        let names = ["location", "content-location", "link", "referer"];
        let headers: Fields = names.map(|name| (name, "http://h/x")).into_iter().collect();
        let shown = |authority| {
            let mut headers = headers.clone();
            rewrite(&mut headers, route, from(authority));
            names.map(|name| String::from_utf8(headers.get(name).unwrap().to_vec()).unwrap())
        };
        let there = "http://c/a/x";
        assert_eq!(shown("c"), [there, there, "http://h/x", "http://h/x"]);
        assert_eq!(
            shown(""),
            ["http://h/x"; 4],
            "without a Host the proxy's address is unknown"
        );
    }
}
