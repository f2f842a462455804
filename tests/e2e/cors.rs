//! CORS end to end: preflights, grants, refusals, and the proxy's own answers.

use crate::{
    metrics::metric,
    strict::Response,
    support::{ALL, OK, Proxy, Setup, Upstream, get, with},
};

const APP: &str = "https://app.example";

/// Everything to `UP` under this policy.
fn under(policy: &str) -> String {
    format!("{ALL}cors: {policy}\n")
}

fn preflight(
    proxy: &Proxy,
    target: &str,
    origin: &str,
    method: &str,
    headers: Option<&str>,
) -> Response {
    let mut fields = vec![
        format!("Origin: {origin}"),
        format!("Access-Control-Request-Method: {method}"),
    ];
    fields.extend(headers.map(|names| format!("Access-Control-Request-Headers: {names}")));
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    proxy.ask(with(&format!("OPTIONS {target}"), &fields))
}

fn from(proxy: &Proxy, target: &str, origin: &str) -> Response {
    proxy.ask(with(
        &format!("GET {target}"),
        &[&format!("Origin: {origin}")],
    ))
}

/// The Access-Control fields, in the order of their names.
fn granted(response: &Response) -> Vec<(String, String)> {
    let fields = response
        .fields
        .0
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let mut granted: Vec<_> = fields
        .filter_map(|(n, v)| {
            n.strip_prefix("access-control-")
                .map(|n| (n.to_owned(), v.clone()))
        })
        .collect();
    granted.sort();
    granted
}

fn grants(response: &Response, expected: &[(&str, &str)]) -> bool {
    granted(response)
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .eq(expected.iter().copied())
}

fn varies_by(response: &Response) -> Vec<String> {
    let mut names = response.fields.list("vary");
    names.sort();
    names
}

// ---- off ----

#[test]
fn without_origins_everything_passes_untouched() {
    let answer = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://theirs\r\nAccess-Control-Allow-Credentials: true\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::fixed(answer);
    for yaml in [
        ALL.to_owned(),
        under("{allowed_origins: []}"),
        under("{max_age: 5}"),
    ] {
        let proxy = Proxy::before(&upstream, &yaml);
        let expected = [
            ("allow-credentials", "true"),
            ("allow-origin", "https://theirs"),
        ];
        let before = upstream.requests();
        for response in [
            from(&proxy, "/", APP),
            preflight(&proxy, "/", APP, "PUT", None),
        ] {
            assert!(
                response.status == 200 && grants(&response, &expected),
                "{response:?}"
            );
            assert_eq!(response.fields.list("vary"), ["accept"]);
        }
        assert_eq!(upstream.requests(), before + 2);
        assert!(granted(&from(&proxy, "/health", APP)).is_empty());
    }
}

// ---- preflights ----

#[test]
fn a_preflight_from_an_allowed_origin_is_answered_here() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    let response = preflight(
        &proxy,
        "/x",
        APP,
        "PUT",
        Some("Content-Type, X-Requested-With"),
    );
    assert_eq!((response.status, response.body.len()), (204, 0));
    assert_eq!(response.one("access-control-allow-origin"), Some(APP));
    assert_eq!(
        response.fields.list("access-control-allow-methods"),
        ["get", "post", "put", "delete", "options", "patch"]
    );
    assert_eq!(
        response.fields.list("access-control-allow-headers"),
        ["content-type", "authorization", "x-requested-with"]
    );
    assert_eq!(response.one("access-control-max-age"), Some("86400"));
    assert!(
        !response.fields.has("access-control-allow-credentials")
            && !response.fields.has("access-control-expose-headers")
    );
    for name in ["allow-methods", "allow-headers"] {
        assert_eq!(
            response.fields.all(&format!("access-control-{name}")).len(),
            1
        );
    }
    assert_eq!(
        varies_by(&response),
        [
            "access-control-request-headers",
            "access-control-request-method",
            "origin"
        ]
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_preflight_keeps_its_connection() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    let mut client = proxy.client();
    let request = with(
        "OPTIONS /",
        &[
            "Origin: https://app.example",
            "Access-Control-Request-Method: PUT",
        ],
    );
    for _ in 0..3 {
        assert_eq!(client.ask(&request).status, 204);
    }
    assert_eq!(client.get("/").text(), "ok");
}

#[test]
fn a_preflight_from_another_origin_is_refused_without_a_grant() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    let response = preflight(&proxy, "/", "https://evil.example", "PUT", None);
    assert_eq!((response.status, granted(&response)), (403, Vec::new()));
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_refused_preflight_is_logged_and_counted() {
    let upstream = Upstream::fixed(OK);
    let allowed = "'https://app.example', 'http://localhost:*', 'https://*.b.example'";
    let yaml = under(&format!("{{allowed_origins: [{allowed}]}}"))
        + "log: {level: debug, access: true}\nmetrics: {listen: '127.0.0.1:0'}\n";
    let proxy = Proxy::before(&upstream, &yaml);
    let mut client = proxy.client();
    let fields = [
        "Origin: https://evil.example",
        "Access-Control-Request-Method: PUT",
    ];
    let response = client.ask(with("OPTIONS /x", &fields));
    assert_eq!(
        (response.status, response.text().as_str()),
        (403, "This origin is not allowed.\n")
    );
    assert!(
        response
            .one("vary")
            .is_some_and(|vary| vary.contains("Origin"))
    );
    let line = proxy.await_log("why", |line| line.contains("reason=\"preflight-refused"));
    for part in [
        "level=debug",
        "path=/x",
        "https://evil.example",
        "https://app.example",
        "http://localhost:*",
        "https://*.b.example",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
    proxy.await_log("the outcome", |line| {
        line.contains("status=403") && line.contains("outcome=preflight-refused")
    });
    let name = "lean_proxy_failures_total{outcome=\"preflight-refused\"}";
    assert_eq!(metric(&proxy, name), 1);
    assert_eq!(client.get("/").text(), "ok", "the connection stays");
}

#[test]
fn a_preflight_needs_neither_upstream_nor_place() {
    let (upstream, hold) = Upstream::held();
    let yaml = "routes: [{path: /full/, target: 'http://UP'}, {path: /down/, target: 'unix:DIR/none'}]\n\
        cors: {allowed_origins: ['https://app.example']}\nproxy: {max_concurrent_requests: 1, queue_timeout: 20}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let mut holder = proxy.client();
    holder.send(get("/full/"));
    upstream.await_requests(1);
    assert_eq!(preflight(&proxy, "/down/", APP, "PUT", None).status, 204);
    assert_eq!(preflight(&proxy, "/full/", APP, "PUT", None).status, 204);
    hold.raise();
    assert_eq!(holder.receive().status, 200);
}

#[test]
fn any_other_options_from_an_allowed_origin_is_answered_here_too() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    let response = proxy.ask(with("OPTIONS /", &["Origin: https://app.example"]));
    assert_eq!(
        (response.status, response.one("access-control-allow-origin")),
        (204, Some(APP))
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn options_without_origin_is_forwarded() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    for fields in [&[][..], &["Access-Control-Request-Method: PUT"]] {
        let response = proxy.ask(with("OPTIONS /", fields));
        assert_eq!(
            (response.status, response.one("access-control-allow-origin")),
            (200, None)
        );
    }
    assert_eq!(upstream.requests(), 2);
}

#[test]
fn methods_and_headers_may_be_whatever_is_asked_for() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under(
            "{allowed_origins: ['https://app.example'], allowed_methods: ['*'], allowed_headers: ['*']}",
        ),
    );
    let response = preflight(&proxy, "/", APP, "PROPFIND", Some("x-one, X-Two"));
    assert_eq!(
        response.fields.list("access-control-allow-methods"),
        ["propfind"]
    );
    assert_eq!(
        response.fields.list("access-control-allow-headers"),
        ["x-one", "x-two"]
    );
    let bare = preflight(&proxy, "/", APP, "PUT", None);
    assert!(
        bare.status == 204 && bare.fields.list("access-control-allow-headers").is_empty(),
        "{bare:?}"
    );
}

#[test]
fn names_asked_for_are_echoed_only_if_they_are_valid() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under(
            "{allowed_origins: ['https://app.example'], allowed_headers: ['*'], allowed_methods: ['*']}",
        ),
    );
    let many: Vec<String> = (0..65).map(|i| format!("x-{i}")).collect();
    for names in [
        "a b",
        "a, b c",
        "a;b",
        "\"a\"",
        "a\tb",
        "<script>",
        &many.join(", "),
        &"x".repeat(2100),
    ] {
        let response = preflight(&proxy, "/", APP, "PUT", Some(names));
        let echoed = response.fields.list("access-control-allow-headers");
        let sound = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        assert!(
            echoed.iter().all(sound) && echoed.len() <= 64,
            "{names}: {echoed:?}"
        );
        assert!(
            echoed.iter().map(String::len).sum::<usize>() <= 2048,
            "{names}"
        );
    }
    let most: Vec<String> = (0..64).map(|i| format!("x-{i}")).collect();
    let response = preflight(&proxy, "/", APP, "PUT", Some(&most.join(", ")));
    assert_eq!(
        response.fields.list("access-control-allow-headers").len(),
        64
    );
    for method in ["PUT, DELETE", "P T", "\"PUT\""] {
        let response = preflight(&proxy, "/", APP, method, None);
        let echoed = response
            .one("access-control-allow-methods")
            .unwrap_or_default();
        assert!(
            echoed.bytes().all(|b| b.is_ascii_alphanumeric()),
            "{method}: {echoed}"
        );
    }
}

#[test]
fn max_age_of_minus_one_sends_no_header() {
    let upstream = Upstream::fixed(OK);
    for (age, expected) in [(-1, None), (0, Some("0")), (600, Some("600"))] {
        let proxy = Proxy::before(
            &upstream,
            &under(&format!("{{allowed_origins: ['*'], max_age: {age}}}")),
        );
        let response = preflight(&proxy, "/", APP, "PUT", None);
        assert_eq!(response.one("access-control-max-age"), expected);
    }
}

// ---- grants ----

#[test]
fn the_upstreams_grants_are_replaced() {
    let answer = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\naccess-control-allow-origin: https://theirs\r\nAccess-Control-Allow-Methods: EVIL\r\n\
        Access-Control-Allow-Headers: evil\r\nAccess-Control-Max-Age: 1\r\nAccess-Control-Expose-Headers: X-Theirs\r\nAccess-Control-Allow-Private-Network: true\r\n\
        Access-Control-Allow-Credentials: true\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::fixed(answer);
    let origins = "allowed_origins: ['https://app.example']";
    for (more, expected) in [
        (
            "",
            &[
                ("allow-credentials", "true"),
                ("allow-origin", APP),
                ("expose-headers", "X-Theirs"),
            ][..],
        ),
        (
            ", allow_credentials: false",
            &[("allow-origin", APP), ("expose-headers", "X-Theirs")],
        ),
        (
            ", allow_credentials: true, exposed_headers: [X-Ours, ETag]",
            &[
                ("allow-credentials", "true"),
                ("allow-origin", APP),
                ("expose-headers", "X-Ours, ETag"),
            ],
        ),
    ] {
        let proxy = Proxy::before(&upstream, &under(&format!("{{{origins}{more}}}")));
        let response = from(&proxy, "/", APP);
        assert!(
            grants(&response, expected),
            "{more}: {:?}",
            granted(&response)
        );
        let stranger = from(&proxy, "/", "https://evil.example");
        assert!(
            stranger.status == 200 && !stranger.fields.has("access-control-allow-origin"),
            "{more}"
        );
        assert!(
            !stranger.fields.has("access-control-allow-credentials"),
            "{more}"
        );
    }
}

#[test]
fn credentials_are_granted_as_configured() {
    let with_true =
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Credentials: true\r\nContent-Length: 2\r\n\r\nok";
    for (answer, policy, plain, preflighted) in [
        (OK, "auto", None, None),
        (with_true, "auto", Some("true"), None),
        (OK, "true", Some("true"), Some("true")),
        (with_true, "false", None, None),
    ] {
        let upstream = Upstream::fixed(answer);
        let proxy = Proxy::before(
            &upstream,
            &under(&format!(
                "{{allowed_origins: ['https://app.example'], allow_credentials: {policy}}}"
            )),
        );
        assert_eq!(
            from(&proxy, "/", APP).one("access-control-allow-credentials"),
            plain,
            "{policy}"
        );
        let response = preflight(&proxy, "/", APP, "PUT", None);
        let credentials = response.one("access-control-allow-credentials");
        assert!(
            credentials == preflighted || policy == "auto",
            "{policy}: {credentials:?}"
        );
    }
}

#[test]
fn a_star_is_granted_on_every_answer_without_vary() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://theirs\r\nAccess-Control-Allow-Credentials: true\r\nContent-Length: 2\r\n\r\nok",
    );
    let proxy = Proxy::before(&upstream, &under("{allowed_origins: ['*']}"));
    for response in [
        proxy.get("/"),
        from(&proxy, "/", APP),
        from(&proxy, "/", "null"),
        from(&proxy, "/health", APP),
    ] {
        assert!(grants(&response, &[("allow-origin", "*")]), "{response:?}");
        assert!(!response.fields.has("vary"), "{response:?}");
    }
    let response = preflight(&proxy, "/", APP, "PUT", None);
    assert_eq!(
        (response.status, response.one("access-control-allow-origin")),
        (204, Some("*"))
    );
}

#[test]
fn a_list_makes_every_answer_vary_by_origin() {
    let upstream = Upstream::per_path(&[
        ("/none", OK),
        (
            "/accept",
            "HTTP/1.1 200 OK\r\nVary: Accept-Encoding\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "/origin",
            "HTTP/1.1 200 OK\r\nVary: Accept, ORIGIN\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "/two",
            "HTTP/1.1 200 OK\r\nVary: Accept\r\nVary: Cookie\r\nContent-Length: 2\r\n\r\nok",
        ),
        (
            "/star",
            "HTTP/1.1 200 OK\r\nVary: *\r\nContent-Length: 2\r\n\r\nok",
        ),
    ]);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    for (target, expected) in [
        ("/none", &["origin"][..]),
        ("/accept", &["accept-encoding", "origin"]),
        ("/origin", &["accept", "origin"]),
        ("/two", &["accept", "cookie", "origin"]),
    ] {
        for response in [
            proxy.get(target),
            from(&proxy, target, APP),
            from(&proxy, target, "https://evil.example"),
        ] {
            assert_eq!(varies_by(&response), expected, "{target}");
        }
    }
    assert!(varies_by(&from(&proxy, "/star", APP)).contains(&"*".to_owned()));
    assert!(granted(&proxy.get("/none")).is_empty());
}

// ---- the proxy's own answers ----

#[test]
fn the_proxys_own_answers_carry_the_grant_too() {
    let silent = Upstream::start(|peer| {
        peer.head()?;
        peer.await_close()
    });
    let unchanged = Upstream::fixed("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n");
    let yaml = "routes:\n\
        - {path: /down/, target: 'unix:DIR/none'}\n\
        - {path: /silent/, target: 'http://SILENT', response_header_timeout: 0.3}\n\
        - {path: /304/, target: 'http://UNCHANGED'}\n\
        - {path: /small/, target: 'http://UNCHANGED', max_body_size: 3}\n\
        cors: {allowed_origins: ['https://app.example']}\n";
    let proxy = Setup::new(yaml)
        .upstream("SILENT", &silent)
        .upstream("UNCHANGED", &unchanged)
        .start();
    for (line, status) in [
        ("GET /down/", 502),
        ("GET /silent/", 504),
        ("GET /304/", 304),
        ("GET /none", 404),
        ("GET /health", 200),
        ("HEAD /health", 200),
        ("GET /down", 307),
        ("POST /small/", 413),
        ("GET /304/../x", 400),
        ("GET /304/%2e%2e/x", 400),
        ("TRACE /304/", 405),
    ] {
        let length = if line.starts_with("POST") {
            "Content-Length: 4"
        } else {
            "X-None: 0"
        };
        let mut client = proxy.client();
        client.send(
            with(line, &["Origin: https://app.example", length])
                + if line.starts_with("POST") { "four" } else { "" },
        );
        let response = client.receive_for(line.split(' ').next().unwrap());
        assert_eq!(response.status, status, "{line}");
        assert_eq!(
            response.one("access-control-allow-origin"),
            Some(APP),
            "{line}"
        );
        assert_eq!(varies_by(&response), ["origin"], "{line}");
    }
}

#[test]
fn a_head_that_is_refused_carries_the_grant_too() {
    let upstream = Upstream::fixed(OK);
    let origin = "Origin: https://app.example";
    let long = "x".repeat(3000);
    for (policy, allowed, vary) in [
        ("['https://app.example']", Some(APP), vec!["origin"]),
        ("['*']", Some("*"), vec![]),
        ("['https://else.example']", None, vec!["origin"]),
        ("[]", None, vec![]),
    ] {
        let yaml =
            under(&format!("{{allowed_origins: {policy}}}")) + "server: {max_header_bytes: 2000}\n";
        let proxy = Proxy::before(&upstream, &yaml);
        for (request, status) in [
            (with("GET /a<b", &[origin]), 400),
            (with("GET /", &[origin, "Content-Length: x"]), 400),
            (with("GET /", &[origin, &format!("Cookie: {long}")]), 431),
            (with("GET /", &[origin]).replace("1.1", "1.2"), 505),
        ] {
            let response = proxy.ask(&request);
            assert_eq!(response.status, status, "{request}");
            assert_eq!(response.one("access-control-allow-origin"), allowed);
            assert_eq!(varies_by(&response), vary);
        }
    }
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example']}"),
    );
    for request in [
        with("GET /a<b", &[origin, origin]),
        with("GET /a<b", &["Origin: https://evil.example", origin]),
        with("GET /a<b", &["X-Origin: https://app.example"]),
        with("GET /a<b", &[]) + "Origin: https://app.example\r\n\r\n",
    ] {
        let response = proxy.ask(&request);
        assert_eq!(response.status, 400);
        assert_eq!(
            response.one("access-control-allow-origin"),
            None,
            "{request}"
        );
    }
}

#[test]
fn a_503_for_want_of_a_place_carries_the_grant_too() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(
        &upstream,
        &(under("{allowed_origins: ['https://app.example']}")
            + "proxy: {max_concurrent_requests: 1, queue_timeout: 0.2}\n"),
    );
    let mut holder = proxy.client();
    holder.send(get("/"));
    upstream.await_requests(1);
    let response = from(&proxy, "/", APP);
    assert_eq!(
        (response.status, response.one("access-control-allow-origin")),
        (503, Some(APP))
    );
    hold.raise();
    holder.receive();
}

// ---- allowed origins ----

#[test]
fn only_listed_origins_are_allowed() {
    let upstream = Upstream::fixed(OK);
    let policy = "{allowed_origins: ['https://app.example', 'https://*.wild.example', 'http://localhost:*', 'HTTPS://Loud.Example:443', 'http://port.example:8080']}";
    let proxy = Proxy::before(&upstream, &under(policy));
    for (origin, allowed) in [
        ("https://app.example", true),
        ("http://app.example", false),
        ("https://app.example:443", false),
        ("https://app.example:444", false),
        ("https://app.example/", false),
        ("https://APP.example", false),
        ("HTTPS://app.example", false),
        ("https://app.example.evil", false),
        ("https://evilapp.example", false),
        ("https://x.app.example", false),
        ("https://app.exampl", false),
        ("https://app.example https://evil.example", false),
        ("https://app.example, https://evil.example", false),
        ("null", false),
        ("*", false),
        ("https://a.wild.example", true),
        ("https://a.b-c.wild.example", true),
        ("https://wild.example", false),
        ("https://.wild.example", false),
        ("https://evilwild.example", false),
        ("https://a.wild.example.evil", false),
        ("https://a.wild.example:8443", false),
        ("http://a.wild.example", false),
        ("https://evil.test/.wild.example", false),
        ("https://evil.test?.wild.example", false),
        ("https://evil.test#.wild.example", false),
        ("https://evil.test:1.wild.example", false),
        ("https://user@a.wild.example", false),
        ("https://evil.test\\.wild.example", false),
        ("https://a b.wild.example", false),
        ("http://localhost:3000", true),
        ("http://localhost:65535", true),
        ("https://localhost:3000", false),
        ("http://localhost:", false),
        ("http://localhost:evil", false),
        ("http://localhost:3000.evil.test", false),
        ("http://localhost:3000/", false),
        ("http://localhost:99999", false),
        ("http://localhost.evil.test:3000", false),
        ("http://evil.test:3000", false),
        ("https://loud.example", true),
        ("http://port.example:8080", true),
        ("http://port.example", false),
    ] {
        let response = from(&proxy, "/", origin);
        assert_eq!(
            response.one("access-control-allow-origin"),
            allowed.then_some(origin),
            "{origin}"
        );
        assert_eq!(
            preflight(&proxy, "/", origin, "PUT", None).status,
            if allowed { 204 } else { 403 },
            "{origin}"
        );
    }
}

#[test]
fn null_is_allowed_only_where_it_is_listed() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example', 'null']}"),
    );
    assert_eq!(
        from(&proxy, "/", "null").one("access-control-allow-origin"),
        Some("null")
    );
    assert_eq!(
        from(&proxy, "/", "NULL").one("access-control-allow-origin"),
        None
    );
}

#[test]
fn two_origins_an_empty_and_an_over_long_one_are_not_allowed() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &under("{allowed_origins: ['https://app.example', 'https://*.wild.example']}"),
    );
    let long = format!("Origin: https://{}.wild.example", "a".repeat(5000));
    for origins in [
        &["Origin: https://app.example", "Origin: https://app.example"][..],
        &["Origin:"],
        &[long.as_str()],
    ] {
        let response = proxy.ask(with("GET /", origins));
        assert!(
            response.status == 200 && granted(&response).is_empty(),
            "{response:?}"
        );
        let mut fields = origins.to_vec();
        fields.push("Access-Control-Request-Method: PUT");
        let response = proxy.ask(with("OPTIONS /", &fields));
        assert!(granted(&response).is_empty(), "{response:?}");
    }
}

// ---- a route's policy ----

#[test]
fn a_routes_policy_is_laid_over_the_global_one() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: https://theirs\r\nContent-Length: 2\r\n\r\nok",
    );
    let yaml = "routes:\n\
        - {path: /global/, target: 'http://UP'}\n\
        - {path: /own/, target: 'http://UP', cors: {allowed_origins: ['https://own.example']}}\n\
        - {path: /age/, target: 'http://UP', cors: {max_age: 5, allowed_methods: [GET]}}\n\
        - {path: /off/, target: 'http://UP', cors: false}\n\
        cors: {allowed_origins: ['https://app.example'], max_age: 7}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let origin_for = |target: &str, origin: &str| {
        from(&proxy, target, origin)
            .one("access-control-allow-origin")
            .map(str::to_owned)
    };
    assert_eq!(origin_for("/global/", APP).as_deref(), Some(APP));
    assert_eq!(origin_for("/own/", APP), None);
    assert_eq!(
        origin_for("/own/", "https://own.example").as_deref(),
        Some("https://own.example")
    );
    assert_eq!(origin_for("/off/", APP).as_deref(), Some("https://theirs"));
    let age = preflight(&proxy, "/age/", APP, "GET", None);
    assert_eq!(
        (
            age.one("access-control-max-age"),
            age.fields.list("access-control-allow-methods")
        ),
        (Some("5"), vec!["get".to_owned()])
    );
    assert_eq!(
        preflight(&proxy, "/own/", "https://own.example", "GET", None)
            .one("access-control-max-age"),
        Some("7")
    );
    assert_eq!(
        preflight(&proxy, "/off/", APP, "GET", None).status,
        200,
        "forwarded where it is off"
    );
}

#[test]
fn one_route_alone_may_enable_cors() {
    let upstream = Upstream::fixed(OK);
    let yaml = "routes:\n- {path: /on/, target: 'http://UP', cors: {allowed_origins: ['https://app.example']}}\n- {path: /, target: 'http://UP'}\n";
    let proxy = Proxy::before(&upstream, yaml);
    assert_eq!(
        from(&proxy, "/on/", APP).one("access-control-allow-origin"),
        Some(APP)
    );
    assert!(granted(&from(&proxy, "/", APP)).is_empty());
    assert!(granted(&from(&proxy, "/health", APP)).is_empty());
    assert_eq!(
        from(&proxy, "/on", APP).one("access-control-allow-origin"),
        Some(APP),
        "the redirect belongs to its route"
    );
}
