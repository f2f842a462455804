//! The page for Prometheus, on its own listener.

use std::time::{Duration, Instant};

use crate::support::{ALL, Client, OK, Proxy, Setup, Upstream, eventually, get, with};

/// A proxy with a metrics listener.
fn with_metrics(upstream: &Upstream) -> Setup {
    Setup::new(&format!("{ALL}metrics: {{listen: '127.0.0.1:0'}}\n")).upstream("UP", upstream)
}

/// Connects to the metrics listener.
fn caller(proxy: &Proxy) -> Client {
    let line = proxy.await_log("where the metrics are", |line| {
        line.contains("msg=\"metrics\"")
    });
    let address = line.split("address=").nth(1).unwrap();
    Client::connect(address.trim().parse().unwrap())
}

/// The page.
pub fn page(proxy: &Proxy) -> String {
    caller(proxy).get("/metrics").text()
}

/// The value of a line of the page.
pub fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = page(proxy);
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {name} in {page}"))
        .parse()
        .unwrap()
}

#[test]
fn the_page_counts_what_happens() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream).start();
    for _ in 0..3 {
        assert_eq!(proxy.get("/").status, 200);
    }
    let page = caller(&proxy).get("/metrics");
    assert_eq!(
        page.one("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert_eq!(page.one("connection"), Some("close"));
    assert_eq!(metric(&proxy, "lean_proxy_connections_accepted_total"), 3);
    assert_eq!(
        metric(&proxy, "lean_proxy_responses_total{class=\"2xx\"}"),
        3
    );
    assert_eq!(metric(&proxy, "lean_proxy_upstream_open"), 1);
}

#[test]
fn durations_routes_and_the_build_are_shown() {
    let upstream = Upstream::fixed(OK);
    let yaml = "routes: [{path: /a/, target: 'http://UP'}, {path: /, host: '*.b.example', target: 'unix:DIR/none'}]\nmetrics: {listen: '127.0.0.1:0'}\n";
    let proxy = Setup::new(yaml).upstream("UP", &upstream).start();
    assert_eq!(proxy.get("/a/x").status, 200);
    assert_eq!(proxy.get("/a").status, 307);
    assert_eq!(proxy.get("/nowhere").status, 404);
    let dead = "GET / HTTP/1.1\r\nHost: x.b.example\r\n\r\n";
    assert_eq!(proxy.ask(dead).status, 502);
    for (name, value) in [
        ("requests_total", 4),
        ("exchange_duration_seconds_count", 4),
        ("exchange_duration_seconds_bucket{le=\"+Inf\"}", 4),
        (
            "route_responses_total{path=\"/a/\",host=\"\",class=\"2xx\"}",
            1,
        ),
        (
            "route_responses_total{path=\"/a/\",host=\"\",class=\"3xx\"}",
            1,
        ),
        (
            "route_responses_total{path=\"/\",host=\"*.b.example\",class=\"5xx\"}",
            1,
        ),
        ("route_failures_total{path=\"/a/\",host=\"\"}", 0),
        ("route_failures_total{path=\"/\",host=\"*.b.example\"}", 1),
        ("failures_total{outcome=\"no-route\"}", 1),
    ] {
        assert_eq!(
            metric(&proxy, &format!("lean_proxy_{name}")),
            value,
            "{name}"
        );
    }
    assert_eq!(metric(&proxy, "lean_proxy_dials_total"), 2);
    assert_eq!(metric(&proxy, "lean_proxy_dial_failures_total"), 1);
    let version = format!(
        "lean_proxy_build_info{{version=\"{}\",commit=",
        env!("CARGO_PKG_VERSION")
    );
    assert!(caller(&proxy).get("/metrics").text().contains(&version));
    // a route that stays keeps its counters
    proxy.rewrite("routes: [{path: /a/, target: 'http://UP'}]\nmetrics: {listen: '127.0.0.1:0'}\n");
    proxy.signal("HUP");
    proxy.await_log("the reload", |line| line.contains("msg=\"reloaded\""));
    assert_eq!(proxy.get("/a/x").status, 200);
    let counted = "lean_proxy_route_responses_total{path=\"/a/\",host=\"\",class=\"2xx\"}";
    assert_eq!(metric(&proxy, counted), 2);
    assert!(!caller(&proxy).get("/metrics").text().contains("b.example"));
}

#[test]
fn the_metrics_listener_parses_as_strictly_as_any_other() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream).start();
    let (head, _) = caller(&proxy).send(with("HEAD /metrics", &[])).until_end();
    assert!(head.starts_with(b"HTTP/1.1 200 ") && head.ends_with(b"\r\nconnection: close\r\n\r\n"));
    for (request, status) in [
        (get("/other"), 404),
        (with("POST /metrics", &["Content-Length: 0"]), 405),
        ("garbage\r\n\r\n".to_owned(), 400),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), 400),
        (get(&format!("/{}", "x".repeat(9000))), 414),
    ] {
        let mut client = caller(&proxy);
        let answer = client.ask(&request);
        assert_eq!(answer.status, status, "{request}");
        assert_eq!(answer.one("connection"), Some("close"), "{request}");
        assert_eq!(answer.one("allow").is_some(), status == 405, "{request}");
    }
    let mut old = caller(&proxy);
    let (page, _) = old.send("GET /metrics HTTP/1.0\r\n\r\n").until_end();
    assert!(page.ends_with(b"\n") && !page.ends_with(b"\r\n"));
}

#[test]
fn silent_clients_do_not_keep_others_from_the_page() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream).start();
    let start = Instant::now();
    // more than are answered at a time; a silent one is closed after five seconds
    let mut silent: Vec<Client> = (0..12).map(|_| caller(&proxy)).collect();
    assert_eq!(metric(&proxy, "lean_proxy_connections_open"), 0);
    let longest = silent.first_mut().unwrap().until_end();
    assert_eq!(longest.0, b"", "it gave way");
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    let last = silent.last_mut().unwrap().until_end();
    assert_eq!(last.0, b"", "its time is over");
}

#[test]
fn gauges_of_connections_and_memory_rise_and_fall() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let fresh = proxy.client();
    let mut idle = proxy.client();
    assert_eq!(idle.get("/").status, 200);
    eventually("both are parked", || {
        metric(&proxy, "lean_proxy_connections_parked") == 2
    });
    assert_eq!(metric(&proxy, "lean_proxy_connections_open"), 2);
    assert_eq!(metric(&proxy, "lean_proxy_memory_limit_bytes"), 10 << 20);
    drop((fresh, idle));
    eventually("none is open", || {
        metric(&proxy, "lean_proxy_connections_open") == 0
            && metric(&proxy, "lean_proxy_connections_parked") == 0
    });
}

#[test]
fn requests_for_the_page_are_in_the_budget() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let _silent: Vec<Client> = (0..3).map(|_| caller(&proxy)).collect();
    // 28 kB each, and 4 kB for a connection, which lets the gauges be updated
    eventually("they are counted", || {
        let _idle = proxy.client();
        metric(&proxy, "lean_proxy_memory_used_bytes") >= 3 * 28_000
    });
}
