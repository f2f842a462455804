//! Routing, rewriting and forwarding: what the upstream receives for a request, and the client for an answer.

use std::time::Duration;

use crate::{
    strict::{Fields, Framing},
    support::{ALL, Client, End, OK, Proxy, Setup, Upstream, get, pattern, seen, with},
};

pub fn echo(yaml: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::echo_head();
    (Proxy::before(&upstream, yaml), upstream)
}

/// An upstream that answers every request with its own name.
fn named(name: &str) -> Upstream {
    Upstream::fixed(format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}",
        name.len()
    ))
}

// ---- routing ----

#[test]
fn the_longest_prefix_wins_whatever_the_order() {
    let (root, api, v2) = (named("root"), named("api"), named("v2"));
    let orders = [
        "routes:\n- {path: /, target: 'http://ROOT'}\n- {path: /api/, target: 'http://API'}\n- {path: /api/v2/, target: 'http://V2'}\n",
        "routes:\n- {path: /api/v2/, target: 'http://V2'}\n- {path: /, target: 'http://ROOT'}\n- {path: /api/, target: 'http://API'}\n",
    ];
    for yaml in orders {
        let proxy = Setup::new(yaml)
            .upstream("ROOT", &root)
            .upstream("API", &api)
            .upstream("V2", &v2)
            .start();
        for (path, name) in [
            ("/", "root"),
            ("/x", "root"),
            ("/apis/x", "root"),
            ("/API/x", "root"),
            ("/api/", "api"),
            ("/api/v1/", "api"),
            ("/api/v2x", "api"),
            ("/api/v2/", "v2"),
            ("/api/v2/x/y", "v2"),
        ] {
            assert_eq!(proxy.get(path).text(), name, "{path}");
        }
    }
}

#[test]
fn the_prefix_is_stripped_and_the_rest_joined_with_one_slash() {
    let upstream = Upstream::echo_head();
    for (path, base, asked, expected) in [
        ("/api/", "", "/api/x", "/x"),
        ("/api/", "", "/api/", "/"),
        ("/api/", "/", "/api/x", "/x"),
        ("/api/", "/base", "/api/x?q", "/base/x?q"),
        ("/api/", "/base/", "/api/x?q", "/base/x?q"),
        ("/api/", "/base", "/api/", "/base/"),
        ("/api/", "/base", "/api/?q", "/base/?q"),
        ("/api", "/base", "/api/x", "/base/x"),
        ("/api", "/base", "/api/", "/base/"),
        ("/api", "/base/", "/api/x/", "/base/x/"),
        ("/api", "", "/api?q", "/?q"),
        ("/", "", "/", "/"),
        ("/", "", "/?", "/?"),
        ("/", "", "/x/y", "/x/y"),
        ("/", "/base", "/x", "/base/x"),
        ("/", "/a/b/", "/x", "/a/b/x"),
        ("/api/", "", "/api/api/", "/api/"),
    ] {
        let yaml = format!("routes: [{{path: {path}, target: 'http://UP{base}'}}]\n");
        let proxy = Proxy::before(&upstream, &yaml);
        assert_eq!(
            seen(&proxy.get(asked)).target,
            expected,
            "{path} -> {base}: {asked}"
        );
    }
}

#[test]
fn without_strip_prefix_the_whole_path_is_joined() {
    let upstream = Upstream::echo_head();
    for (path, base, asked, expected) in [
        ("/api/", "", "/api/x?q", "/api/x?q"),
        ("/api/", "/base", "/api/x", "/base/api/x"),
        ("/api", "/base/", "/api", "/base/api"),
        ("/", "/base", "/", "/base/"),
    ] {
        let yaml =
            format!("routes: [{{path: {path}, target: 'http://UP{base}', strip_prefix: false}}]\n");
        let proxy = Proxy::before(&upstream, &yaml);
        assert_eq!(
            seen(&proxy.get(asked)).target,
            expected,
            "{path} -> {base}: {asked}"
        );
    }
}

#[test]
fn the_bytes_that_were_matched_are_the_bytes_that_are_sent() {
    let (proxy, _upstream) = echo("routes: [{path: /api/, target: 'http://UP/base'}]\n");
    for rest in [
        "a%2Fb",
        "a%2fb%20c",
        "a//b",
        "/a",
        "//",
        "a//",
        "%",
        "%zz",
        "%00",
        "%0d%0aX:%20y",
        "a;b=c,d!e'f(g)*h",
        "a+b@c:d&e=f$g",
        "~a-b_c.d",
        "...",
        ".well-known/x",
        "a..b/c.",
        "?a=%2F&b=//&&c=[x]{y}|^~'(),;:@!$*+&d=/../x/./",
        "?",
        "??a?b",
        "x?a=%0d%0a",
    ] {
        let response = proxy.get(&format!("/api/{rest}"));
        assert_eq!(response.status, 200, "{rest}");
        assert_eq!(seen(&response).target, format!("/base/{rest}"));
    }
}

#[test]
fn bytes_that_browsers_leave_in_a_target_pass_as_they_are() {
    let (proxy, upstream) = echo("routes: [{path: /, target: 'http://UP'}]\n");
    for part in [
        "\\", "^", "{", "|", "}", "[", "]", "\u{e9}", "\u{ff}", "'", "`", "\"",
    ] {
        for target in [format!("/a{part}b"), format!("/a?b{part}c")] {
            let latin: String = target.bytes().map(char::from).collect();
            assert_eq!(seen(&proxy.get(&target)).target, latin);
        }
    }
    let before = upstream.requests();
    for target in ["/a<b", "/a?b<c", "/a>b", "/a?b>c", "/a#b", "/a?b#c"] {
        let response = proxy.get(target);
        assert_eq!(
            (response.status, response.text()),
            (400, "The request is malformed.\n".to_owned()),
            "{target}"
        );
    }
    assert_eq!(upstream.requests(), before);
}

#[test]
fn a_parent_segment_is_refused_and_nothing_leaves_the_base_path() {
    let (proxy, upstream) =
        echo("routes: [{path: /api/, target: 'http://UP/base'}, {path: /, target: 'http://UP'}]\n");
    for path in [
        "/api/../x",
        "/api/..",
        "/..",
        "/../../x",
        "/api/x/../../y",
        "/api/%2e%2e/x",
        "/api/.%2E/x",
        "/api/%2E./x",
        "/api/..%2fx",
        "/api/..%2Fx",
        "/api/x%2f..%2fy",
        "/api/x%2f%2e%2e",
        "/api/..%5cx",
        "/api/..\\x",
        "/api/../?q",
        "/api/..?q",
    ] {
        let response = proxy.get(path);
        assert_eq!(response.status, 400, "{path}");
    }
    assert_eq!(upstream.requests(), 0);
    for rest in ["./Packages", ".", "x/./y", "%2e/x", "%2E", ".%2Fx", ".;a/x"] {
        let request = seen(&proxy.get(&format!("/api/{rest}")));
        assert_eq!(request.target, format!("/base/{rest}"));
    }
}

#[test]
fn an_absolute_form_is_read_as_an_origin_form_is() {
    let (proxy, _upstream) = echo("routes: [{path: /, target: 'http://UP/base'}]\n");
    for (target, seen_as) in [
        ("http://other.test/a`b?c`d", "/base/a`b?c`d"),
        ("http://other.test?q`=1", "/base/?q`=1"),
        ("HTTP://other.test:81/./a", "/base/./a"),
    ] {
        let request = seen(&proxy.get(target));
        assert_eq!(request.target, seen_as);
        let authority = target.get(7..).unwrap().split(['/', '?']).next();
        assert_eq!(request.fields.one("x-forwarded-host"), authority);
    }
    assert_eq!(proxy.get("http://other.test/../x").status, 400);
}

#[test]
fn the_slash_of_a_base_path_is_kept_where_nothing_is_left_to_join() {
    let yaml = "routes:\n\
        - {path: /app, target: 'http://UP/b2/'}\n\
        - {path: /bare, target: 'http://UP/b2'}\n\
        - {path: /root, target: 'http://UP/'}\n";
    let (proxy, _upstream) = echo(yaml);
    for (asked, target) in [
        ("/app", "/b2/"),
        ("/app?q", "/b2/?q"),
        ("/app/", "/b2/"),
        ("/app/x", "/b2/x"),
        ("/bare", "/b2"),
        ("/bare/x", "/b2/x"),
        ("/root", "/"),
        ("/root/x", "/x"),
    ] {
        assert_eq!(seen(&proxy.get(asked)).target, target, "{asked}");
    }
}

#[test]
fn the_prefix_without_its_slash_is_redirected_with_its_query() {
    let (proxy, upstream) = echo("routes: [{path: /api/, target: 'http://UP'}]\n");
    for (asked, location) in [
        ("/api", "/api/"),
        ("/api?a=b&c=%2F", "/api/?a=b&c=%2F"),
        ("/api?", "/api/?"),
    ] {
        for method in ["GET", "POST", "DELETE"] {
            let response = proxy.ask(with(&format!("{method} {asked}"), &["Content-Length: 0"]));
            assert_eq!(
                (response.status, response.one("location")),
                (307, Some(location)),
                "{method} {asked}"
            );
        }
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_prefix_matches_whole_segments_only() {
    let (proxy, _upstream) = echo("routes: [{path: /api, target: 'http://UP'}]\n");
    assert_eq!(seen(&proxy.get("/api")).target, "/");
    assert_eq!(seen(&proxy.get("/api/x")).target, "/x");
    for path in [
        "/apix",
        "/api-x",
        "/api.json",
        "/ap",
        "/",
        "/x/api",
        "//api",
        "/api%2Fx",
    ] {
        assert_eq!(proxy.get(path).status, 404, "{path}");
    }
}

#[test]
fn no_route_is_a_404_without_details() {
    let (proxy, upstream) = echo("routes: [{path: /only/, target: 'http://UP'}]\n");
    let response = proxy.get("/secret-path?x");
    assert_eq!(response.status, 404);
    plain_sentence(
        &response.text(),
        &[&upstream.authority(), "secret-path", "127.0.0.1"],
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_route_with_a_host_is_tried_before_routes_without() {
    let (any, app, wild) = (named("any"), named("app"), named("wild"));
    let yaml = "routes:\n\
        - {path: /long/, target: 'http://ANY'}\n\
        - {path: /, target: 'http://ANY'}\n\
        - {path: /, host: App.example.com, target: 'http://APP'}\n\
        - {path: /wild/, host: '*.example.com', target: 'http://WILD'}\n";
    let proxy = Setup::new(yaml)
        .upstream("ANY", &any)
        .upstream("APP", &app)
        .upstream("WILD", &wild)
        .start();
    for (host, path, name) in [
        ("app.example.com", "/", "app"),
        ("app.example.com", "/long/x", "app"),
        ("APP.Example.COM", "/", "app"),
        ("app.example.com:8080", "/", "app"),
        ("other.example.com", "/", "any"),
        ("other.example.com", "/wild/x", "wild"),
        ("a.b.example.com:1", "/wild/x", "wild"),
        ("example.com", "/wild/x", "any"),
        ("notexample.com", "/wild/x", "any"),
        ("app.example.com.evil.test", "/", "any"),
        ("xapp.example.com", "/", "any"),
        ("127.0.0.1", "/", "any"),
        ("[::1]:80", "/", "any"),
    ] {
        let response = proxy.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(response.text(), name, "{host} {path}");
    }
}

#[test]
fn an_absolute_form_target_is_accepted_and_its_authority_is_the_host() {
    let (upstream, app) = (Upstream::echo_head(), named("app"));
    let yaml = "routes:\n- {path: /api/, target: 'http://UP/base'}\n- {path: /, target: 'http://UP'}\n- {path: /, host: app.test, target: 'http://APP'}\n";
    let proxy = Setup::new(yaml)
        .upstream("UP", &upstream)
        .upstream("APP", &app)
        .start();
    let response =
        proxy.ask("GET http://outside.test:81/api/x?q HTTP/1.1\r\nHost: outside.test:81\r\n\r\n");
    let request = seen(&response);
    assert_eq!(request.target, "/base/x?q");
    assert_eq!(
        request.fields.one("host"),
        Some(upstream.authority().as_str())
    );
    assert_eq!(
        request.fields.one("x-forwarded-host"),
        Some("outside.test:81")
    );
    let rootless = proxy.ask("GET http://outside.test HTTP/1.1\r\nHost: outside.test\r\n\r\n");
    assert_eq!(seen(&rootless).target, "/");
    let routed = proxy.ask("GET http://app.test/ HTTP/1.1\r\nHost: app.test\r\n\r\n");
    assert_eq!(routed.text(), "app");
    let mut client = proxy.client();
    client.send("GET http://app.test/ HTTP/1.1\r\nHost: liar.test\r\n\r\n");
    let two_minds = client.receive();
    assert!(
        two_minds.status == 400 || two_minds.text() == "app",
        "{two_minds:?}"
    );
}

#[test]
fn connect_and_trace_are_not_allowed() {
    let (proxy, upstream) = echo(ALL);
    let requests = [
        "CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n",
        "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for request in requests {
        assert_eq!(proxy.ask(request).status, 405, "{request}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn options_on_the_server_itself_is_answered_by_the_proxy() {
    let (proxy, upstream) = echo(ALL);
    let mut client = proxy.client();
    assert_eq!(
        client.ask("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").status,
        204
    );
    assert_eq!(upstream.connections(), 0);
    assert_eq!(client.get("/").status, 200);
}

#[test]
fn unknown_methods_pass() {
    let (proxy, _upstream) = echo(ALL);
    for method in ["PROPFIND", "PATCH", "QUERY", "M-SEARCH", "x"] {
        assert_eq!(
            seen(&proxy.ask(with(&format!("{method} /x"), &[]))).method,
            method
        );
    }
}

// ---- fields of requests ----

#[test]
fn host_becomes_the_targets_with_its_port() {
    let (proxy, upstream) = echo(ALL);
    let request = seen(&proxy.get("/"));
    assert_eq!(
        request.fields.one("host"),
        Some(upstream.authority().as_str())
    );
}

#[test]
fn host_stays_with_preserve_host() {
    let (proxy, _upstream) =
        echo("routes: [{path: /, target: 'http://UP', preserve_host: true}]\n");
    for host in ["client.test", "client.test:8080", "[::1]:81"] {
        let request = seen(&proxy.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")));
        assert_eq!(request.fields.one("host"), Some(host));
    }
}

#[test]
fn no_field_is_invented_in_a_request() {
    let (proxy, _upstream) = echo(ALL);
    for method in ["GET", "POST", "DELETE", "PUT", "HEADS"] {
        let request = seen(&proxy.ask(with(&format!("{method} /"), &[])));
        let mut names = request.fields.names();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "host",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto"
            ],
            "{method}"
        );
    }
    let request = seen(&proxy.ask(with("POST /", &["Content-Length: 0"])));
    assert_eq!(request.fields.one("content-length"), Some("0"));
}

#[test]
fn hop_by_hop_fields_of_a_request_are_removed() {
    let (proxy, _upstream) = echo(ALL);
    let fields = [
        "Connection: keep-alive, X-Private, x-other",
        "X-Private: 1",
        "X-Private: 2",
        "X-OTHER: 3",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authenticate: Basic",
        "Proxy-Authorization: Basic eDp5",
        "TE: gzip",
        "Upgrade: h2c, foo",
        "X-Stays: 4",
        "Authorization: Bearer x",
    ];
    let request = seen(&proxy.ask(with("GET /", &fields)));
    for gone in [
        "x-private",
        "x-other",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "upgrade",
    ] {
        assert!(!request.fields.has(gone), "{gone} in {:?}", request.fields);
    }
    assert_eq!(request.fields.one("x-stays"), Some("4"));
    assert_eq!(request.fields.one("authorization"), Some("Bearer x"));
}

#[test]
fn connection_cannot_take_away_what_the_upstream_relies_on() {
    let (proxy, upstream) = echo(ALL);
    let fields = [
        "Connection: Host, Content-Type, Content-Length, Authorization, Cookie, X-Forwarded-For, X-Forwarded-Proto, X-Custom",
        "Content-Type: text/plain",
        "Content-Length: 3",
        "Authorization: Bearer x",
        "Cookie: a=b",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Proto: https",
        "X-Custom: 1",
    ];
    let request = seen(&proxy.ask(with("POST /", &fields) + "abc")).fields;
    assert_eq!(request.one("host"), Some(upstream.authority().as_str()));
    assert_eq!(request.one("content-type"), Some("text/plain"));
    assert_eq!(request.one("content-length"), Some("3"));
    assert_eq!(request.one("authorization"), Some("Bearer x"));
    assert_eq!(request.one("cookie"), Some("a=b"));
    assert_eq!(request.one("x-forwarded-for"), Some("192.0.2.1, 127.0.0.1"));
    assert_eq!(request.one("x-forwarded-proto"), Some("https"));
    assert!(!request.has("x-custom"));
}

#[test]
fn te_trailers_is_kept_where_asked_for() {
    let (proxy, _upstream) = echo(ALL);
    for (te, expected) in [
        ("trailers", Some("trailers")),
        ("gzip, Trailers;q=0.5", None),
        ("gzip, trailers", Some("trailers")),
        ("deflate;q=0.5", None),
        ("", None),
    ] {
        let request =
            seen(&proxy.ask(with("GET /", &["Connection: TE", &format!("TE: {te}")]))).fields;
        let te_seen = request.one("te");
        assert!(
            te_seen == expected || te.contains(';') && te_seen == Some("trailers"),
            "{te}: {te_seen:?}"
        );
    }
}

#[test]
fn the_clients_address_is_appended_to_x_forwarded_for() {
    let (proxy, _upstream) = echo(ALL);
    for (sent, expected) in [
        (vec![], "127.0.0.1"),
        (vec!["X-Forwarded-For: 192.0.2.1"], "192.0.2.1, 127.0.0.1"),
        (
            vec!["X-Forwarded-For: 192.0.2.1, 2001:db8::1"],
            "192.0.2.1, 2001:db8::1, 127.0.0.1",
        ),
        (
            vec!["X-Forwarded-For: 192.0.2.1", "x-forwarded-for: 192.0.2.2"],
            "192.0.2.1, 192.0.2.2, 127.0.0.1",
        ),
    ] {
        let request = seen(&proxy.ask(with("GET /", &sent))).fields;
        assert_eq!(request.list("x-forwarded-for").join(", "), expected);
    }
}

#[test]
fn x_forwarded_host_and_proto_are_set_where_absent() {
    let (proxy, _upstream) = echo(ALL);
    let request = seen(&proxy.get("/")).fields;
    assert_eq!(request.one("x-forwarded-host"), Some("proxy.test"));
    assert_eq!(request.one("x-forwarded-proto"), Some("http"));
    let sent = ["X-Forwarded-Host: outside.test", "X-Forwarded-Proto: https"];
    let request = seen(&proxy.ask(with("GET /", &sent))).fields;
    assert_eq!(request.one("x-forwarded-host"), Some("outside.test"));
    assert_eq!(request.one("x-forwarded-proto"), Some("https"));
}

#[test]
fn only_trusted_proxies_are_believed_where_some_are_configured() {
    let upstream = Upstream::echo_head();
    let sent = [
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-Host: outside.test",
        "X-Forwarded-Proto: https",
    ];
    for (networks, trusted) in [
        ("['10.0.0.0/8', '2001:db8::/32']", false),
        ("['127.0.0.2']", false),
        ("['10.0.0.0/8', '127.0.0.0/8']", true),
        ("'127.0.0.1'", true),
        ("['0.0.0.0/0']", true),
    ] {
        let proxy = Proxy::before(
            &upstream,
            &format!("{ALL}server: {{trusted_proxies: {networks}}}\n"),
        );
        let request = seen(&proxy.ask(with("GET /", &sent))).fields;
        let expected = if trusted {
            ["192.0.2.1, 127.0.0.1", "outside.test", "https"]
        } else {
            ["127.0.0.1", "proxy.test", "http"]
        };
        assert_eq!(
            request.list("x-forwarded-for").join(", "),
            expected[0],
            "{networks}"
        );
        assert_eq!(
            request.one("x-forwarded-host"),
            Some(expected[1]),
            "{networks}"
        );
        assert_eq!(
            request.one("x-forwarded-proto"),
            Some(expected[2]),
            "{networks}"
        );
    }
}

#[test]
fn underscore_twins_of_forwarded_fields_are_dropped() {
    let (proxy, _upstream) = echo(ALL);
    let twins = [
        "X_Forwarded_For: 6.6.6.6",
        "x_forwarded-host: evil",
        "X-Forwarded_Proto: https",
        "my_field: 1",
    ];
    let request = seen(&proxy.ask(with("GET /", &twins))).fields;
    let twins: Vec<String> = request
        .names()
        .into_iter()
        .filter(|n| n.contains('_'))
        .collect();
    assert_eq!(twins, ["my_field"]);
    assert_eq!(request.one("x-forwarded-for"), Some("127.0.0.1"));
}

#[test]
fn fields_of_a_request_keep_their_order_and_their_repetitions() {
    let (proxy, _upstream) = echo(ALL);
    let fields = [
        "Zeta: 1",
        "Accept: a",
        "Accept: b;q=0.1",
        "Beta: x, y",
        "Alpha: 2",
        "Cookie: a=b",
        "Cookie: c=d",
        "Omega:",
        "accept-language:de",
    ];
    let request = seen(&proxy.ask(with("GET /", &fields))).fields;
    let ours = [
        "zeta",
        "accept",
        "beta",
        "alpha",
        "cookie",
        "omega",
        "accept-language",
    ];
    assert_eq!(first_names(&request, &ours), ours);
    assert_eq!(request.all("accept"), ["a", "b;q=0.1"]);
    assert_eq!(request.all("beta"), ["x, y"]);
    assert!(
        request.list("cookie") == ["a=b", "c=d"] || request.all("cookie") == ["a=b; c=d"],
        "{request:?}"
    );
    assert_eq!(request.all("omega"), [""]);
    assert_eq!(request.all("accept-language"), ["de"]);
}

#[test]
fn request_fields_are_set_and_removed_as_configured() {
    let yaml = "routes:\n\
        - {path: /, target: 'http://UP', request_headers: {set: {X-Set: new, X-New: 'a b'}, remove: [X-Gone, cookie]}}\n\
        - {path: /plain/, target: 'http://UP'}\n";
    let (proxy, _upstream) = echo(yaml);
    let sent = [
        "X-Set: old",
        "X-Set: older",
        "X-Gone: 1",
        "x-gone: 2",
        "Cookie: a=b",
        "X-Kept: 3",
    ];
    let request = seen(&proxy.ask(with("GET /", &sent))).fields;
    assert_eq!(request.all("x-set"), ["new"]);
    assert_eq!(request.all("x-new"), ["a b"]);
    assert_eq!(request.all("x-kept"), ["3"]);
    assert!(!request.has("x-gone") && !request.has("cookie"));
    let plain = seen(&proxy.ask(with("GET /plain/", &sent))).fields;
    assert_eq!(plain.all("x-set"), ["old", "older"]);
    assert_eq!(plain.all("x-gone"), ["1", "2"]);
}

// ---- fields of answers ----

#[test]
fn an_answer_passes_as_it_is() {
    let answer = "HTTP/1.1 299 Rather Special\r\nServer: upstream/1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nZeta: 1\r\nSet-Cookie: a=1; Path=/\r\n\
        Alpha: 2\r\nSet-Cookie: b=2, c\r\nX-Latin: \u{e9}\r\nSet-Cookie: c=3\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::fixed(answer);
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.get("/");
    assert_eq!(
        (
            response.status,
            response.reason.as_str(),
            response.text().as_str()
        ),
        (299, "Rather Special", "ok")
    );
    let ours = [
        "server",
        "date",
        "zeta",
        "set-cookie",
        "alpha",
        "x-latin",
        "content-length",
    ];
    assert_eq!(first_names(&response.fields, &ours), ours);
    assert_eq!(response.fields.0.len(), 9, "{:?}", response.fields);
    assert_eq!(
        response.fields.all("set-cookie"),
        ["a=1; Path=/", "b=2, c", "c=3"]
    );
    assert_eq!(response.one("server"), Some("upstream/1"));
    assert_eq!(response.one("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    assert_eq!(
        response.one("x-latin"),
        Some("\u{c3}\u{a9}"),
        "its two bytes of UTF-8"
    );
}

#[test]
fn no_field_is_invented_in_an_answer() {
    let upstream = Upstream::fixed(OK);
    let response = Proxy::before(&upstream, ALL).get("/");
    assert_eq!(response.fields.names(), ["content-length"]);
}

#[test]
fn hop_by_hop_fields_of_an_answer_are_removed() {
    let answer = "HTTP/1.1 200 OK\r\nConnection: X-Private, Content-Type, keep-alive\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
        Proxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: trailers\r\nContent-Type: text/x\r\nContent-Length: 2\r\n\r\nok";
    let upstream = Upstream::fixed(answer);
    let response = Proxy::before(&upstream, ALL).get("/");
    assert_eq!(response.fields.names(), ["content-type", "content-length"]);
}

#[test]
fn response_fields_are_set_and_removed_as_configured() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nServer: x\r\nX-Old: 1\r\nX-Old: 2\r\nX-Kept: 3\r\nContent-Length: 2\r\n\r\nok",
    );
    let yaml = "routes: [{path: /, target: 'http://UP', response_headers: {set: {X-Old: new, Strict-Transport-Security: max-age=1}, remove: [server]}}]\n";
    let response = Proxy::before(&upstream, yaml).get("/");
    assert_eq!(response.fields.all("x-old"), ["new"]);
    assert_eq!(response.one("strict-transport-security"), Some("max-age=1"));
    assert_eq!(response.one("x-kept"), Some("3"));
    assert!(!response.fields.has("server"));
}

#[test]
fn every_status_passes() {
    let upstream = Upstream::answering(|request, peer| {
        let code = request.target.trim_start_matches('/');
        peer.write(format!(
            "HTTP/1.1 {code} Whatever It Is\r\nContent-Length: 0\r\n\r\n"
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for status in [
        200, 201, 206, 226, 300, 301, 302, 303, 307, 308, 400, 401, 404, 407, 418, 421, 429, 451,
        500, 502, 503, 511, 599,
    ] {
        let response = client.get(&format!("/{status}"));
        assert_eq!(
            (response.status, response.reason.as_str()),
            (status, "Whatever It Is")
        );
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_answer_without_a_reason_passes() {
    for line in ["HTTP/1.1 200 ", "HTTP/1.1 200"] {
        let upstream = Upstream::fixed(format!("{line}\r\nContent-Length: 2\r\n\r\nok"));
        let response = Proxy::before(&upstream, ALL).get("/");
        assert_eq!(
            (response.status, response.text().as_str()),
            (200, "ok"),
            "{line:?}"
        );
    }
}

// ---- answers without a body ----

#[test]
fn head_keeps_the_length_and_has_no_body() {
    let upstream = Upstream::per_path(&[
        (
            "/length",
            "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nETag: \"a\"\r\n\r\n",
        ),
        (
            "/chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("/none", "HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n"),
    ]);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let length = client.ask(with("HEAD /length", &[]));
    assert_eq!(
        (length.status, length.one("content-length")),
        (200, Some("12345"))
    );
    assert_eq!(client.ask(with("HEAD /chunked", &[])).status, 200);
    let none = client.ask(with("HEAD /none", &[]));
    assert_eq!((none.status, none.one("content-length")), (200, None));
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_answer_that_never_has_a_body_keeps_both_connections() {
    let upstream = Upstream::per_path(&[
        (
            "/304",
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\nETag: \"a\"\r\n\r\n",
        ),
        (
            "/304c",
            "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("/204", "HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"),
        ("/0", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ]);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..2 {
        let unchanged = client.get("/304");
        assert_eq!(
            (unchanged.status, unchanged.one("etag")),
            (304, Some("\"a\""))
        );
        assert!(matches!(
            unchanged.one("content-length"),
            None | Some("12345")
        ));
        assert_eq!(client.get("/304c").status, 304);
        assert_eq!(
            (client.get("/204").status, client.get("/0").status),
            (204, 200)
        );
    }
    assert_eq!(upstream.connections(), 1);
}

// ---- HTTP/1.0 ----

#[test]
fn an_http_1_0_client_is_answered_and_closed() {
    let (proxy, _upstream) = echo(ALL);
    let mut client = proxy.client();
    let response = client.ask("GET /x HTTP/1.0\r\nHost: old.test\r\n\r\n");
    assert_eq!(seen(&response).target, "/x");
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn an_http_1_0_client_may_ask_to_stay() {
    let (proxy, _upstream) = echo(ALL);
    let mut client = proxy.client();
    for _ in 0..3 {
        let response =
            client.ask("GET /x HTTP/1.0\r\nHost: old.test\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(response.fields.list("connection"), ["keep-alive"]);
    }
    client.ask("GET /x HTTP/1.0\r\nHost: old.test\r\n\r\n");
    assert_eq!(client.end(), End::Clean);
}

#[test]
fn an_http_1_0_client_gets_a_chunked_answer_in_plain() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    let proxy = Proxy::before(&upstream, ALL);
    for connection in ["", "Connection: keep-alive\r\n"] {
        let mut client = proxy.client();
        let response = client.ask(format!(
            "GET / HTTP/1.0\r\nHost: old.test\r\n{connection}\r\n"
        ));
        assert_eq!(
            (response.framing, response.text().as_str()),
            (Framing::Close, "abcde")
        );
        assert!(
            !response
                .fields
                .list("connection")
                .contains(&"keep-alive".to_owned())
        );
    }
}

#[test]
fn an_http_1_0_answer_is_passed_on_and_its_connection_not_reused() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.0 200 OK\r\nContent-Type: text/x\r\n\r\nuntil the end")
    });
    let proxy = Proxy::before(&upstream, ALL);
    for _ in 0..2 {
        let response = proxy.get("/");
        assert_eq!(
            (response.text().as_str(), response.version.as_str()),
            ("until the end", "HTTP/1.1")
        );
    }
    assert_eq!(upstream.connections(), 2);
}

// ---- large heads ----

#[test]
fn heads_of_sixty_kilobytes_and_two_hundred_fields_pass_both_ways() {
    let value = "v".repeat(280);
    let fields: Vec<String> = (0..200).map(|i| format!("X-Field-{i}: {value}")).collect();
    let answer = format!(
        "HTTP/1.1 200 OK\r\n{}\r\nContent-Length: 2\r\n\r\nok",
        fields.join("\r\n")
    );
    assert!(answer.len() > 58_000);
    let (echo, fixed) = (Upstream::echo_head(), Upstream::fixed(answer));
    let yaml = "routes: [{path: /echo/, target: 'http://ECHO'}, {path: /fixed/, target: 'http://FIXED'}]\n";
    let proxy = Setup::new(yaml)
        .upstream("ECHO", &echo)
        .upstream("FIXED", &fixed)
        .start();
    let mut client = proxy.client();
    let refs: Vec<&str> = fields.iter().map(String::as_str).collect();
    for _ in 0..3 {
        let request = seen(&client.ask(with("GET /echo/", &refs))).fields;
        let response = client.get("/fixed/").fields;
        for i in 0..200 {
            let name = format!("x-field-{i}");
            assert_eq!(
                (request.one(&name), response.one(&name)),
                (Some(value.as_str()), Some(value.as_str())),
                "{name}"
            );
        }
    }
}

#[test]
fn one_field_of_sixty_kilobytes_passes_both_ways() {
    let value: String = pattern(0, 60_000)
        .iter()
        .map(|b| char::from(b'a' + b % 26))
        .collect();
    let upstream = Upstream::answering(|request, peer| {
        let value = request.fields.one("x-large").unwrap_or_default();
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Large: {value}\r\n\r\n"
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.ask(with("GET /", &[&format!("X-Large: {value}")]));
    assert_eq!(response.one("x-large"), Some(value.as_str()));
}

#[test]
fn a_target_of_eight_kilobytes_passes() {
    let (proxy, _upstream) = echo(ALL);
    let target = format!("/{}?{}", "p".repeat(4000), "q".repeat(4000));
    assert_eq!(seen(&proxy.get(&target)).target, target);
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    let (proxy, upstream) = echo(&format!(
        "{ALL}transport: {{max_conns_per_host: 8, max_idle_conns_per_host: 8}}\n"
    ));
    let mut clients: Vec<Client> = (0..40).map(|_| proxy.client()).collect();
    for round in 0..5 {
        for (i, client) in clients.iter_mut().enumerate() {
            client.send(get(&format!("/{round}/{i}")));
        }
        for (i, client) in clients.iter_mut().enumerate() {
            assert_eq!(seen(&client.receive()).target, format!("/{round}/{i}"));
        }
    }
    assert!(upstream.peak() <= 8, "{}", upstream.peak());
    assert!(clients[0].is_silent(Duration::from_millis(1)));
}

/// Checks that a body is one short plain sentence without any of the secrets.
pub fn plain_sentence(body: &str, secrets: &[&str]) {
    assert!(
        body.ends_with('\n') && body.lines().count() == 1 && body.len() < 120,
        "{body:?}"
    );
    let lower = body.to_lowercase();
    for secret in secrets {
        assert!(
            !lower.contains(&secret.to_lowercase()),
            "{body:?} shows {secret}"
        );
    }
}

/// The first occurrences of these names, in their order.
fn first_names(fields: &Fields, wanted: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = fields
        .names()
        .into_iter()
        .filter(|n| wanted.contains(&n.as_str()))
        .collect();
    let mut before = Vec::new();
    names.retain(|name| {
        !before.contains(name) && {
            before.push(name.clone());
            true
        }
    });
    names
}
