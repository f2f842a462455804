//! The health report: answered at once, never by an upstream.

use crate::{
    json::Json,
    support::{ALL, OK, Proxy, Setup, Upstream, all_served, get, with},
};

#[test]
fn health_is_ok_in_plain_text() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for target in ["/health", "/health?x=y"] {
        let response = proxy.get(target);
        assert_eq!((response.status, response.text().as_str()), (200, "ok\n"));
        assert!(
            response
                .one("content-type")
                .is_some_and(|t| t.starts_with("text/plain"))
        );
        assert_eq!(response.one("cache-control"), Some("no-store"));
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn health_is_json_where_asked_for() {
    let upstream = Upstream::fixed(OK);
    let yaml = "version: 'my \"label\" 1.2'\nroutes: [{path: /a/, target: 'http://UP'}, {path: /b/, target: 'http://UP'}]\n";
    let proxy = Proxy::before(&upstream, yaml);
    let by_accept = proxy.ask(with(
        "GET /health",
        &["Accept: text/html;q=0.5, application/json"],
    ));
    let by_query = proxy.get("/health?format=json");
    for response in [by_accept, by_query] {
        assert_eq!(response.status, 200);
        assert!(
            response
                .one("content-type")
                .is_some_and(|t| t.starts_with("application/json"))
        );
        assert_eq!(response.one("cache-control"), Some("no-store"));
        let report = Json::parse(&response.text()).unwrap();
        assert_eq!(report.at("status").text(), Some("UP"));
        assert_ne!(report.at("startTime"), &Json::Null);
        assert!(report.at("version").text().is_some_and(|v| !v.is_empty()));
        assert_eq!(
            report.at("config").at("version").text(),
            Some("my \"label\" 1.2")
        );
        assert_eq!(report.at("config").at("routes"), &Json::Number(2.0));
    }
}

#[test]
fn head_is_answered_without_a_body() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..2 {
        let response = client.ask(with("HEAD /health", &[]));
        assert_eq!(
            (response.status, response.one("cache-control")),
            (200, Some("no-store"))
        );
        assert!(matches!(response.one("content-length"), None | Some("3")));
    }
    assert_eq!(client.get("/health").text(), "ok\n");
}

#[test]
fn other_methods_never_reach_an_upstream() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for method in ["POST", "DELETE", "PUT"] {
        let response = proxy.ask(with(&format!("{method} /health"), &["Content-Length: 0"]));
        assert!(response.status < 500, "{method}: {response:?}");
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn the_health_path_is_exact_and_wins_over_routes() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    for target in [
        "/health/",
        "/healthz",
        "/Health",
        "/health/x",
        "/%68ealth",
        "//health",
        "/health%2F",
    ] {
        assert_eq!(crate::support::seen(&proxy.get(target)).target, target);
    }
    assert_eq!(proxy.get("/health").text(), "ok\n");
}

#[test]
fn the_health_path_may_be_another_one() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, &format!("{ALL}health: {{path: /-/alive}}\n"));
    assert_eq!(proxy.get("/-/alive").text(), "ok\n");
    assert_eq!(
        crate::support::seen(&proxy.get("/health")).target,
        "/health"
    );
}

#[test]
fn health_answers_where_every_place_is_taken() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}proxy: {{max_concurrent_requests: 2, queue_timeout: 20}}\n"),
    );
    let mut clients: Vec<_> = (0..6).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    upstream.await_requests(2);
    for _ in 0..10 {
        assert_eq!(proxy.get("/health").text(), "ok\n");
    }
    hold.raise_many(clients.len());
    all_served(&mut clients);
}

#[test]
fn health_does_not_ask_the_upstream() {
    let proxy = Setup::new("routes: [{path: /, target: 'http://no-such-name.invalid'}]\n").start();
    assert_eq!(proxy.get("/health").text(), "ok\n");
}

#[test]
fn health_is_answered_in_order_in_a_pipeline() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(get("/health") + &get("/") + &get("/health"));
    assert_eq!(
        [
            client.receive().text(),
            client.receive().text(),
            client.receive().text()
        ],
        ["ok\n", "ok", "ok\n"]
    );
}

#[test]
fn an_http_1_0_check_is_answered() {
    let proxy = Setup::new("routes: [{path: /, target: 'unix:DIR/none'}]\n").start();
    let response = proxy.ask("GET /health HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((response.status, response.text().as_str()), (200, "ok\n"));
}
