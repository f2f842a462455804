//! Where memory is tight, bytes in the kernel's queues are in the budget.

use std::{io::ErrorKind, time::Duration};

use crate::{
    metrics::metric,
    support::{ALL, Client, Proxy, Setup, Upstream, eventually, get, let_pass, pattern},
};

/// The prices of an exchange, of an idle connection, and of a wide buffer for each of the two sockets.
const EXCHANGE: u64 = 42_000;
const CONNECTION: u64 = 4_400;
const WIDE: u64 = 2 * 16 * 1024;

/// Sizes of answers: every kernel takes some of them completely while the client does not read, and has sent only a small
/// part.
const SIZES: std::ops::Range<usize> = 10..34;

fn tight(upstream: &Upstream, more: &str) -> Proxy {
    // few idle connections, because they are in the budget as well
    let yaml = format!(
        "{ALL}{more}metrics: {{listen: '127.0.0.1:0'}}\ntransport: {{max_idle_conns_per_host: 2}}\n"
    );
    Setup::new(&yaml)
        .upstream("UP", upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start()
}

/// Answers with the number of 500-byte blocks in the target.
fn sized() -> Upstream {
    Upstream::answering(|request, peer| {
        let size = 500 * request.target[1..].parse::<usize>().unwrap();
        // no idle connection is left whose receive buffer is as wide as its answer
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n")
                .into_bytes();
        answer.extend(pattern(0, size));
        peer.write(answer)
    })
}

fn used(proxy: &Proxy) -> u64 {
    metric(proxy, "lean_proxy_memory_used_bytes")
}

/// Bytes held by exchanges whose answers are in the kernel completely.
fn held_behind(proxy: &Proxy) -> u64 {
    let others = EXCHANGE * metric(proxy, "lean_proxy_exchanges")
        + CONNECTION * metric(proxy, "lean_proxy_connections_open");
    used(proxy).saturating_sub(others)
}

/// Clients that ask for answers of all sizes and read none.
fn crowd(proxy: &Proxy) -> Vec<Client> {
    let ask = |size| {
        let mut client = Client::narrow(proxy.address());
        client.send(get(&format!("/{size}")));
        client
    };
    let clients = SIZES.map(ask).collect();
    eventually("all are answered", || {
        metric(proxy, "lean_proxy_responses_total{class=\"2xx\"}") == SIZES.len() as u64
    });
    clients
}

#[test]
fn an_unread_answer_keeps_its_permit_until_it_is_read() {
    let upstream = sized();
    let proxy = tight(&upstream, "");
    let clients = crowd(&proxy);
    // gauges are updated at ticks
    let_pass(Duration::from_millis(600));
    let held = held_behind(&proxy);
    assert!(held >= EXCHANGE, "{held}");
    for (mut client, size) in clients.into_iter().zip(SIZES) {
        assert_eq!(client.receive().body, pattern(0, 500 * size));
        let next = client.get("/1");
        assert_eq!(next.status, 200, "the connection goes on");
    }
    eventually("it is given back", || held_behind(&proxy) < EXCHANGE);
}

#[test]
fn a_client_that_never_reads_its_answer_is_reset_in_time() {
    let upstream = sized();
    let proxy = tight(&upstream, "server: {write_timeout: 0.3}\n");
    let clients = crowd(&proxy);
    let name = "lean_proxy_failures_total{outcome=\"write-timed-out\"}";
    eventually("it is counted", || metric(&proxy, name) > 0);
    eventually("no client is waited for", || {
        metric(&proxy, "lean_proxy_exchanges") == 0 && held_behind(&proxy) < EXCHANGE
    });
    let broken = clients
        .into_iter()
        .filter_map(|mut client| client.try_receive().err());
    let resets = broken.filter(|broken| broken.cause.kind() == ErrorKind::ConnectionReset);
    assert!(
        resets.count() > 0,
        "unread answers are not left in the kernel"
    );
}

#[test]
fn wide_buffers_of_a_long_body_are_charged_and_given_back() {
    let upstream = Upstream::endless();
    let proxy = tight(&upstream, "");
    let mut client = proxy.client();
    client.send(get("/endless"));
    client.head();
    eventually("both sockets are wide", || {
        used(&proxy) >= EXCHANGE + 2 * WIDE
    });
    drop(client);
    eventually("nothing is held", || used(&proxy) < EXCHANGE);
}

#[test]
fn long_bodies_follow_each_other_on_kept_connections() {
    let upstream = Upstream::answering(|request, peer| {
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            request.body.len()
        ))?;
        peer.write(&request.body)
    });
    let proxy = tight(&upstream, "");
    let mut client = proxy.client();
    for size in [10_240, 30_000, 10_240, 9_000, 100_000] {
        let body = pattern(0, size);
        let mut request =
            format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        request.extend(&body);
        assert_eq!(client.ask(request).body, body, "{size}");
    }
}

#[test]
fn a_client_that_leaves_while_its_request_waits_for_memory_waits_no_more() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.await_close()
    });
    let yaml = format!("{ALL}proxy: {{queue_timeout: 600}}\nmetrics: {{listen: '127.0.0.1:0'}}\n");
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "4MiB")
        .start();
    let state = || {
        let [waiting, exchanges] =
            ["waiting", "exchanges"].map(|name| metric(&proxy, &format!("lean_proxy_{name}")));
        (waiting, exchanges)
    };
    let mut clients = Vec::new();
    while state().0 < 3 {
        let mut client = proxy.client();
        client.send(get("/"));
        clients.push(client);
        eventually("it is let in, or waits", || {
            let (waiting, exchanges) = state();
            waiting + exchanges == clients.len() as u64
        });
    }
    let (_, let_in) = state();
    clients.truncate(clients.len() - 3);
    eventually("none of them waits", || state().0 == 0);
    assert_eq!(state().1, let_in, "they were not let in");
    for (outcome, count) in [("client-gone", 3), ("no-memory", 0)] {
        let name = format!("lean_proxy_failures_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metric(&proxy, &name), count, "{outcome}");
    }
}
