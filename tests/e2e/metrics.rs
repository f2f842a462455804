//! The page for Prometheus, on a door of its own.

use std::time::{Duration, Instant};

use crate::support::{ALL, Client, OK, Proxy, Setup, Upstream, eventually};

/// A proxy with a metrics listener.
fn with_metrics(upstream: &Upstream) -> Setup {
    Setup::new(&format!("{ALL}metrics: {{listen: '127.0.0.1:0'}}\n")).upstream("UP", upstream)
}

/// Calls the metrics listener.
fn caller(proxy: &Proxy) -> Client {
    let line = proxy.await_log("where the metrics are", |line| {
        line.contains("msg=\"metrics\"")
    });
    let address = line.split("address=").nth(1).unwrap();
    Client::connect(address.trim().parse().unwrap())
}

/// What a line of the page says.
pub fn metric(proxy: &Proxy, name: &str) -> u64 {
    let page = caller(proxy).get("/metrics").text();
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
    let page = caller(&proxy).get("/whatever");
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
fn the_silent_do_not_keep_the_page_from_others() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream).start();
    let start = Instant::now();
    // more than are answered at a time; whoever is silent is let go after five seconds only
    let silent: Vec<Client> = (0..12).map(|_| caller(&proxy)).collect();
    assert_eq!(metric(&proxy, "lean_proxy_connections_open"), 0);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    drop(silent);
}

#[test]
fn whoever_asks_for_the_page_is_paid_for() {
    let upstream = Upstream::fixed(OK);
    let proxy = with_metrics(&upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let _silent: Vec<Client> = (0..3).map(|_| caller(&proxy)).collect();
    // 28 kB each; a request and its connections are no more than 51 kB
    eventually("they are counted", || {
        assert_eq!(proxy.get("/").status, 200);
        metric(&proxy, "lean_proxy_memory_used_bytes") >= 3 * 28_000
    });
}
