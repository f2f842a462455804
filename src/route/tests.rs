use super::*;

fn pattern(host: &str) -> HostPattern {
    match host.strip_prefix('*') {
        Some(suffix) => HostPattern::Below(suffix.to_owned()),
        None => HostPattern::Exact(host.to_owned()),
    }
}

fn route(host: &str, path: &str, base: &str) -> Route {
    Route {
        index: 0,
        path: path.to_owned(),
        hosts: host.split_whitespace().map(pattern).collect(),
        scheme: None,
        action: Action::Forward(Target {
            origin: Origin {
                address: Address::Tcp("h".to_owned(), 80),
                tls: None,
                http2: false,
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
        assert_eq!(
            shown(&all.find(host, path, || Scheme::Http)),
            expected,
            "{host} {path}"
        );
    }
    assert_eq!(
        shown(&table(&[("", "/api/")]).find("x", "/apix", || Scheme::Http)),
        "-"
    );
    assert_eq!(
        shown(&table(&[("", "/api")]).find("x", "/apix", || Scheme::Http)),
        "-"
    );
    assert_eq!(shown(&table(&[]).find("x", "/", || Scheme::Http)), "-");
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
    assert_eq!(shown(&both.find("x", "/api", || Scheme::Http)), "/api");
    assert_eq!(shown(&both.find("x", "/api/x", || Scheme::Http)), "/api/");
    assert_eq!(shown(&both.find("a", "/api", || Scheme::Http)), "+a/api/");
    assert_eq!(shown(&both.find("b", "/api", || Scheme::Http)), "b/api");
}

#[test]
fn a_route_for_one_scheme_is_tried_before_all_others_and_for_that_scheme_alone() {
    let only = |scheme, host, path| Route {
        scheme: Some(scheme),
        ..route(host, path, "")
    };
    let all = Routes::new(vec![
        route("", "/api/", ""),
        route("a", "/api/", ""),
        only(Scheme::Http, "", "/"),
        only(Scheme::Http, "", "/well-known/"),
        only(Scheme::Https, "b", "/"),
    ]);
    for (scheme, host, path, expected) in [
        (Scheme::Http, "a", "/api/x", "http:/"),
        (Scheme::Http, "a", "/well-known/x", "http:/well-known/"),
        (Scheme::Http, "b", "/x", "http:/"),
        (Scheme::Https, "a", "/api/x", "a/api/"),
        (Scheme::Https, "c", "/api", "+/api/"),
        (Scheme::Https, "b", "/api/x", "https:b/"),
        (Scheme::Https, "c", "/x", "-"),
    ] {
        let found = match all.find(host, path, || scheme) {
            Found::Route(route) => route.name(),
            Found::AddSlash(route) => format!("+{}", route.name()),
            Found::Nothing => "-".to_owned(),
        };
        assert_eq!(found, expected, "{scheme:?} {host} {path}");
    }
    let without = table(&[("", "/")]);
    let asked = || panic!("the scheme matters to no route");
    assert_eq!(shown(&without.find("a", "/", asked)), "/");
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
        assert_eq!(
            shown(&all.find(host, path, || Scheme::Http)),
            expected,
            "{host} {path}"
        );
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
fn dot_segments_are_found_in_every_encoding() {
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
    let mut headers = Fields::from_iter([
        ("x-a", "1"),
        ("x-a", "2"),
        ("x-b", "3"),
        ("x-b", "4"),
        ("x-c", "5"),
        ("x-c", "6"),
    ]);
    edits.apply(&mut headers);
    let edited = Fields::from_iter([("x-c", "5"), ("x-c", "6"), ("x-a", "ours")]);
    assert_eq!(headers, edited);
    assert!(edits.remove.iter().all(|name| edits.touches(name)));
}

/// Marsaglia's xorshift: the same cases in every run.
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

    /// A path of up to `most` small words, with extra slashes.
    fn path(&mut self, most: usize) -> String {
        let mut path = "/".to_owned();
        for _ in 0..self.below(most + 1) {
            path.push_str(self.pick(&["a", "b", "/", "ab", "%2F", "/"]));
        }
        path
    }
}

#[test]
fn a_join_keeps_the_rest_and_has_one_slash_in_between() {
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
fn find_agrees_with_a_naive_implementation() {
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
            shown(&routes.find(host, &path, || Scheme::Http)),
            naive(&written, host, &path),
            "{written:?} {host} {path}"
        );
    }
}

/// [`Routes::find`] in its simplest form.
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
