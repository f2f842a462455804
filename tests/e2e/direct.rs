//! Routes that the proxy answers itself, and the hosts of routes.

use crate::{
    metrics::metric,
    support::{OK, Proxy, Setup, Upstream, eventually, get, seen, with},
};

/// Redirects and responses in all forms; there is no upstream.
const ROUTES: &str = "\
routes:
- {path: /secure/, redirect: {to: 'https://{host}'}, strip_prefix: false}
- {path: /old/, redirect: {to: 'https://new.example/base', status: 301}, response_headers: {set: {Cache-Control: no-store}}}
- {path: /moved, redirect: {to: /to, status: 303}}
- {path: /slashes/, redirect: {to: /}}
- {path: /robots.txt, respond: {body: \"User-agent: *\\n\"}}
- {path: /gone/, respond: {status: 410, body: '{\"gone\":true}', content_type: application/json}, response_headers: {set: {X-Why: moved}}}
- {path: /nothing, respond: {status: 204}}
log: {access: true, level: debug}
metrics: {listen: '127.0.0.1:0'}
";

fn asked(line: &str, host: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

#[test]
fn a_redirect_appends_the_rest_of_path_and_query() {
    let proxy = Setup::new(ROUTES).start();
    for (path, status, location) in [
        (
            "/secure/x//y%2F?q=a&b",
            308,
            "https://app.example/secure/x//y%2F?q=a&b",
        ),
        ("/old/a/b?c", 301, "https://new.example/base/a/b?c"),
        ("/old/", 301, "https://new.example/base/"),
        ("/moved", 303, "/to"),
        ("/moved/x?", 303, "/to/x?"),
        ("/slashes//evil.example/x", 308, "/evil.example/x"),
    ] {
        let response = proxy.ask(asked(&format!("GET {path}"), "app.example:8080"));
        assert_eq!(
            (response.status, response.one("location")),
            (status, Some(location)),
            "{path}"
        );
        assert!(response.body.is_empty());
        let cached = path.starts_with("/old").then_some("no-store");
        assert_eq!(response.one("cache-control"), cached);
    }
    proxy.await_log("an access line", |line| {
        line.contains("path=/old/a/b status=301")
            && line.contains("outcome=ok")
            && !line.contains("upstream=")
    });
    assert_eq!(
        metric(&proxy, "lean_proxy_responses_total{class=\"3xx\"}"),
        6
    );
    assert_eq!(metric(&proxy, "lean_proxy_dials_total"), 0);
}

#[test]
fn a_redirect_echoes_no_host_but_a_plain_one() {
    let proxy = Setup::new(ROUTES).start();
    for host in ["a!b", "a'b.example", "a%2Fb", "a;b"] {
        let response = proxy.ask(asked("GET /secure/", host));
        assert_eq!(
            (response.status, response.one("location")),
            (400, None),
            "{host}"
        );
    }
    let old = proxy.ask("GET /secure/ HTTP/1.0\r\n\r\n");
    assert_eq!((old.status, old.one("location")), (400, None));
    for (host, location) in [
        ("[::1]:8080", "https://[::1]/secure/"),
        ("my_app", "https://my_app/secure/"),
    ] {
        let response = proxy.ask(asked("GET /secure/", host));
        assert_eq!(response.one("location"), Some(location));
    }
    let name = "lean_proxy_failures_total{outcome=\"host-unusable\"}";
    assert_eq!(metric(&proxy, name), 5);
}

#[test]
fn a_response_is_sent_as_configured() {
    let proxy = Setup::new(ROUTES).start();
    let mut client = proxy.client();
    let robots = client.get("/robots.txt");
    assert_eq!(
        (
            robots.status,
            robots.text().as_str(),
            robots.one("content-type")
        ),
        (200, "User-agent: *\n", Some("text/plain; charset=utf-8"))
    );
    let gone = client.get("/gone/x?y");
    assert_eq!(
        (
            gone.status,
            gone.text().as_str(),
            gone.one("content-type"),
            gone.one("x-why")
        ),
        (
            410,
            "{\"gone\":true}",
            Some("application/json"),
            Some("moved")
        )
    );
    client.send(with("HEAD /gone/", &[]));
    let head = client.receive_for("HEAD");
    assert_eq!((head.status, head.one("content-length")), (410, Some("13")));
    for method in ["POST", "OPTIONS", "DELETE"] {
        assert_eq!(
            client.ask(with(&format!("{method} /gone/"), &[])).status,
            410
        );
    }
    let nothing = client.get("/nothing");
    assert_eq!(
        (
            nothing.status,
            nothing.one("content-length"),
            nothing.one("content-type")
        ),
        (204, None, None)
    );
    assert_eq!(client.ask(with("TRACE /gone/", &[])).status, 405);
    assert_eq!(client.get("/health").text(), "ok\n");
    assert_eq!(metric(&proxy, "lean_proxy_connections_accepted_total"), 1);
}

#[test]
fn a_request_body_is_read_or_the_connection_ends() {
    let proxy = Setup::new(ROUTES).start();
    let mut client = proxy.client();
    let first = client.ask(with("POST /gone/", &["Content-Length: 5"]) + "hello");
    assert_eq!((first.status, first.one("connection")), (410, None));
    let chunked = with("POST /gone/", &["Transfer-Encoding: chunked"]) + "5\r\nhello\r\n0\r\n\r\n";
    assert_eq!(client.ask(chunked).status, 410);
    let last = client.ask(with("POST /gone/", &["Content-Length: 50000000"]));
    assert_eq!((last.status, last.one("connection")), (410, Some("close")));
    let waits = with(
        "POST /gone/",
        &["Content-Length: 5", "Expect: 100-continue"],
    );
    let waits = proxy.ask(waits);
    assert_eq!((waits.status, waits.interim.len()), (410, 0));
}

#[test]
fn cors_applies_to_answers_of_the_proxy_itself() {
    let yaml = format!("{ROUTES}cors: {{allowed_origins: ['https://a.example']}}\n");
    let proxy = Setup::new(&yaml).start();
    let origin = "Origin: https://a.example";
    for (path, status) in [("/gone/", 410), ("/moved", 303)] {
        let response = proxy.ask(with(&format!("GET {path}"), &[origin]));
        assert_eq!(response.status, status);
        let granted = response.one("access-control-allow-origin");
        assert_eq!(granted, Some("https://a.example"));
        assert_eq!(response.one("vary"), Some("Origin"));
    }
    let asks = ["Access-Control-Request-Method: PUT", origin];
    assert_eq!(proxy.ask(with("OPTIONS /gone/", &asks)).status, 204);
}

#[test]
fn no_place_is_needed() {
    let (upstream, hold) = Upstream::held();
    let yaml = "routes: [{path: /, target: 'http://UP'}, {path: /fixed, respond: {body: here}}, {path: /away/, redirect: {to: /x}}]\n\
                proxy: {max_concurrent_requests: 1, queue_timeout: 60}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let mut holder = proxy.client();
    holder.send(get("/"));
    upstream.await_requests(1);
    assert_eq!(proxy.get("/fixed").text(), "here");
    assert_eq!(proxy.get("/away/").status, 308);
    hold.raise();
    assert_eq!(holder.receive().status, 200);
}

#[test]
fn a_route_may_have_several_hosts() {
    let upstream = Upstream::echo_head();
    let yaml = "routes:\n\
                - {path: /, host: [app.example, '*.app.example'], target: 'http://UP/app'}\n\
                - {path: /, host: www.app.example, target: 'http://UP/www'}\n\
                - {path: /only/, target: 'http://UP/any'}\n";
    let proxy = Proxy::before(&upstream, yaml);
    for (host, path, expected) in [
        ("app.example", "/x", Some("/app/x")),
        ("APP.example:8080", "/x", Some("/app/x")),
        ("a.b.app.example", "/only/x", Some("/app/only/x")),
        ("www.app.example", "/x", Some("/www/x")),
        ("other.example", "/only/x", Some("/any/x")),
        ("other.example", "/x", None),
    ] {
        let response = proxy.ask(asked(&format!("GET {path}"), host));
        match expected {
            Some(target) => assert_eq!(seen(&response).target, target, "{host}{path}"),
            None => assert_eq!(response.status, 404, "{host}{path}"),
        }
    }
}

#[test]
fn a_reload_turns_a_target_into_an_answer_and_back() {
    let upstream = Upstream::fixed(OK);
    let forwarding = "routes: [{path: /, target: 'http://UP'}]\nlisten: '127.0.0.1:0'\n";
    let proxy = Proxy::before(&upstream, forwarding);
    let mut client = proxy.client();
    assert_eq!(client.get("/").text(), "ok");
    for (yaml, expected) in [
        (
            "routes: [{path: /, respond: {status: 503, body: closed}}]\nlisten: '127.0.0.1:0'\n",
            "closed",
        ),
        (forwarding, "ok"),
    ] {
        proxy.rewrite(yaml);
        proxy.signal("HUP");
        eventually("the reload is in force", || {
            client.get("/").text() == expected
        });
    }
}
