//! Limits of places, connections and sizes: what waits, what is refused, and when a place is free again.

use std::{io::ErrorKind, time::Duration, time::Instant};

use crate::{
    metrics::metric,
    strict::Framing,
    support::{
        ALL, Client, OK, PATIENCE, Proxy, Setup, Signal, Upstream, all_served, eventually, get,
        pattern, with,
    },
};

fn asking(proxy: &Proxy, target: &str) -> Client {
    let mut client = proxy.client();
    client.send(get(target));
    client
}

fn places(count: usize, queue: f64) -> String {
    format!("{ALL}proxy: {{max_concurrent_requests: {count}, queue_timeout: {queue}}}\n")
}

// ---- places ----

#[test]
fn a_request_that_gets_no_place_in_time_is_told_to_retry() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(&upstream, &places(2, 0.4));
    let mut holders = [asking(&proxy, "/1"), asking(&proxy, "/2")];
    upstream.await_requests(2);
    let start = Instant::now();
    let response = proxy.get("/3");
    let waited = start.elapsed();
    assert_eq!(response.status, 503);
    assert!(
        response
            .one("retry-after")
            .is_some_and(|s| s.parse::<u32>().is_ok()),
        "{response:?}"
    );
    assert!(
        waited >= Duration::from_millis(380) && waited < Duration::from_secs(8),
        "{waited:?}"
    );
    assert_eq!(upstream.requests(), 2);
    hold.raise();
    hold.raise();
    all_served(&mut holders);
}

#[test]
fn without_a_queue_the_answer_comes_at_once() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(&upstream, &places(1, 0.0));
    let mut holder = asking(&proxy, "/1");
    upstream.await_requests(1);
    assert_eq!(proxy.get("/2").status, 503);
    hold.raise();
    assert_eq!(holder.receive().status, 200);
}

#[test]
fn a_waiting_request_is_served_when_a_place_is_free() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(&upstream, &places(1, 20.0));
    let mut clients: Vec<Client> = (0..5).map(|i| asking(&proxy, &format!("/{i}"))).collect();
    for served in 1..=5 {
        upstream.await_requests(served);
        assert_eq!(upstream.requests(), served);
        hold.raise();
    }
    all_served(&mut clients);
}

#[test]
fn a_place_is_held_until_the_last_byte() {
    let rest = Signal::default();
    let release = rest.clone();
    let upstream = Upstream::start(move |peer| {
        while peer.request()?.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")?;
            release.wait()?;
            peer.write("cd")?;
        }
        Ok(())
    });
    let proxy = Proxy::before(&upstream, &places(1, 0.3));
    let mut holder = asking(&proxy, "/1");
    assert_eq!(holder.head().framing, Framing::Length(4));
    assert_eq!(holder.reader().exact(2).unwrap(), b"ab");
    assert_eq!(proxy.get("/2").status, 503);
    rest.raise();
    assert_eq!(holder.reader().exact(2).unwrap(), b"cd");
    rest.raise();
    assert_eq!(proxy.get("/3").status, 200);
}

#[test]
fn a_place_is_given_back_however_the_exchange_ends() {
    let upstream = Upstream::start(|peer| {
        while let Ok(head) = peer.head() {
            match head.target.as_str() {
                "/cut" => return peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
                "/garbage" => return peer.write("garbage\r\n\r\n"),
                "/close" => return Ok(()),
                "/silent" | "/upload" => return peer.await_close(),
                "/stream" => {
                    peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")?;
                    return peer.await_close();
                }
                "/ws" => {
                    peer.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")?;
                    return peer.await_close();
                }
                _ => peer.write(OK)?,
            }
        }
        Ok(())
    });
    let yaml = "routes: [{path: /down/, target: 'unix:DIR/none'}, {path: /slow/, target: 'http://UP', response_header_timeout: 0.2}, {path: /, target: 'http://UP'}]\n\
        proxy: {max_concurrent_requests: 1, queue_timeout: 20}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let well = || assert_eq!(proxy.get("/ok").status, 200);
    for target in ["/cut", "/garbage", "/close", "/down/", "/slow/silent"] {
        let _ = asking(&proxy, target).try_receive();
        well();
    }
    for (target, requests) in [("/silent", 1), ("/stream", 1)] {
        let before = upstream.requests();
        let client = asking(&proxy, target);
        upstream.await_requests(before + requests);
        drop(client);
        well();
    }
    let mut upload = proxy.client();
    let before = upstream.requests();
    upload.send(with("POST /upload", &["Content-Length: 100"]) + "abc");
    upstream.await_requests(before + 1);
    drop(upload);
    well();
    let mut socket = proxy.client();
    socket.send(with(
        "GET /ws",
        &["Connection: Upgrade", "Upgrade: websocket"],
    ));
    assert_eq!(socket.head().status, 101);
    drop(socket);
    well();
}

#[test]
fn a_client_that_leaves_the_queue_takes_no_place() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(&upstream, &places(1, 20.0));
    let mut holder = asking(&proxy, "/1");
    upstream.await_requests(1);
    let leaver = asking(&proxy, "/2");
    assert_eq!(proxy.get("/health").status, 200);
    drop(leaver);
    let mut stayer = asking(&proxy, "/3");
    assert_eq!(proxy.get("/health").status, 200);
    hold.raise();
    hold.raise();
    assert_eq!(holder.receive().status, 200);
    assert_eq!(stayer.receive().status, 200);
    hold.raise();
}

#[test]
fn twenty_stalled_readers_do_not_keep_others_out() {
    let upstream = Upstream::endless();
    let proxy = Proxy::before(&upstream, ALL);
    let readers: Vec<Client> = (0..20).map(|_| asking(&proxy, "/endless")).collect();
    upstream.await_requests(20);
    let start = Instant::now();
    assert_eq!(proxy.get("/health").status, 200);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(proxy.get("/ok").status, 200, "after {:?}", start.elapsed());
    drop(readers);
}

// ---- connections to upstreams ----

#[test]
fn never_more_connections_to_a_host_than_allowed() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 2}}\nproxy: {{queue_timeout: 20}}\n"),
    );
    let mut clients: Vec<Client> = (0..6).map(|i| asking(&proxy, &format!("/{i}"))).collect();
    upstream.await_requests(2);
    hold.raise_many(6);
    all_served(&mut clients);
    assert!(upstream.peak() <= 2, "{} at a time", upstream.peak());
}

#[test]
fn a_request_that_gets_no_connection_in_time_is_told_to_retry() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 1}}\nproxy: {{queue_timeout: 0.3}}\n"),
    );
    let mut holder = asking(&proxy, "/1");
    upstream.await_requests(1);
    let response = proxy.get("/2");
    assert_eq!(response.status, 503);
    assert!(response.fields.has("retry-after"));
    hold.raise();
    assert_eq!(holder.receive().status, 200);
    hold.raise();
    assert_eq!(proxy.get("/3").status, 200);
    assert_eq!(upstream.peak(), 1);
}

#[test]
fn the_waits_of_a_request_share_one_time_out() {
    let (upstream, _hold) = Upstream::held();
    let proxy = Proxy::before(
        &upstream,
        &format!(
            "{ALL}transport: {{max_conns_per_host: 1}}\nproxy: {{max_concurrent_requests: 2, queue_timeout: 2}}\nlog: {{access: true}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
        ),
    );
    let _holder = asking(&proxy, "/holds");
    upstream.await_requests(1);
    // this one waits for a connection, and the next for its place; then that waits for a connection, too
    let mut second = asking(&proxy, "/second");
    eventually("it waits", || metric(&proxy, "lean_proxy_waiting") == 1);
    let mut third = asking(&proxy, "/third");
    for waiting in [&mut second, &mut third] {
        assert_eq!(waiting.receive().status, 503);
    }
    let line = proxy.await_log("the third", |line| line.contains("/third"));
    let waited = line.split("waited_ms=").nth(1).unwrap();
    let waited: u32 = waited.split_whitespace().next().unwrap().parse().unwrap();
    assert!((1_900..3_900).contains(&waited), "{line}");
}

#[test]
fn one_full_host_does_not_delay_another() {
    let (slow, hold) = Upstream::held();
    let quick = Upstream::fixed(OK);
    let yaml = "routes: [{path: /slow/, target: 'http://SLOW'}, {path: /quick/, target: 'http://QUICK'}]\ntransport: {max_conns_per_host: 1}\n";
    let proxy = Setup::new(yaml)
        .upstream("SLOW", &slow)
        .upstream("QUICK", &quick)
        .start();
    let mut clients = [asking(&proxy, "/slow/1"), asking(&proxy, "/slow/2")];
    slow.await_requests(1);
    assert_eq!(proxy.get("/quick/").status, 200);
    hold.raise();
    hold.raise();
    all_served(&mut clients);
}

#[test]
fn a_closed_connection_frees_its_place_at_the_host() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        if head.target == "/ok" {
            peer.write(OK)
        } else {
            Ok(())
        }
    });
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 1}}\n"),
    );
    for _ in 0..5 {
        assert_eq!(proxy.get("/dies").status, 502);
        assert_eq!(proxy.get("/ok").status, 200);
    }
}

#[test]
fn no_more_idle_connections_to_a_host_than_allowed() {
    for (setting, kept) in [
        ("max_idle_conns_per_host: 3", 3),
        ("max_idle_conns: 1", 1),
        ("max_idle_conns_per_host: 0", 2),
        ("dial_timeout: 5", 6),
        ("max_idle_conns_per_host: auto", 6),
    ] {
        let (upstream, hold) = Upstream::held();
        let proxy = Proxy::before(&upstream, &format!("{ALL}transport: {{{setting}}}\n"));
        let mut clients: Vec<Client> = (0..6).map(|i| asking(&proxy, &format!("/{i}"))).collect();
        upstream.await_requests(6);
        hold.raise_many(6);
        all_served(&mut clients);
        upstream.await_open(kept);
        hold.raise();
        assert_eq!(clients[0].get("/again").status, 200);
        assert_eq!(
            (upstream.open(), upstream.connections()),
            (kept, 6),
            "{setting}"
        );
    }
}

#[test]
fn no_more_idle_connections_over_all_hosts_than_allowed() {
    let (one, two) = (Upstream::fixed(OK), Upstream::fixed(OK));
    let yaml = "routes: [{path: /1/, target: 'http://ONE'}, {path: /2/, target: 'http://TWO'}]\ntransport: {max_idle_conns: 1}\n";
    let proxy = Setup::new(yaml)
        .upstream("ONE", &one)
        .upstream("TWO", &two)
        .start();
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(
            (client.get("/1/").status, client.get("/2/").status),
            (200, 200)
        );
        eventually("one idle connection is left", || {
            one.open() + two.open() == 1
        });
    }
}

// ---- sizes ----

#[test]
fn a_head_that_is_too_large_is_refused() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{max_header_bytes: 2000}}\n"),
    );
    assert_eq!(
        proxy
            .ask(with("GET /", &[&format!("X-A: {}", "a".repeat(1900))]))
            .status,
        200
    );
    for fields in [
        vec![format!("X-A: {}", "a".repeat(2100))],
        (0..300).map(|i| format!("X-{i}: aaaaaaa")).collect(),
    ] {
        let mut client = proxy.client();
        let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
        client.send(with("GET /", &fields));
        assert_eq!(client.receive().status, 431);
        let (rest, _) = client.until_end();
        assert!(rest.is_empty());
    }
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn an_over_long_target_is_refused() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let _ = client.try_send(get(&format!("/{}", "a".repeat(70_000))));
    let response = client.receive();
    assert!(matches!(response.status, 414 | 431), "{response:?}");
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_body_that_is_too_large_is_refused_before_it_is_sent() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP', max_body_size: 10}]\n",
    );
    assert_eq!(
        proxy
            .ask(with("POST /", &["Content-Length: 10"]) + "0123456789")
            .status,
        200
    );
    assert_eq!(
        proxy
            .ask(with("POST /", &["Content-Length: 11"]) + "0123456789a")
            .status,
        413
    );
    let waiting = proxy.ask(with(
        "POST /",
        &["Content-Length: 11", "Expect: 100-continue"],
    ));
    assert_eq!((waiting.status, waiting.interim.len()), (413, 0));
    assert_eq!(
        proxy
            .ask(with("POST /", &["Content-Length: 99999999999999999"]))
            .status,
        413
    );
    assert_eq!(upstream.requests(), 1);
}

#[test]
fn a_chunked_body_that_grows_too_large_is_refused() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP', max_body_size: 10}]\n",
    );
    let chunked = with("POST /", &["Transfer-Encoding: chunked"]);
    assert_eq!(
        proxy
            .ask(chunked.clone() + "a\r\n0123456789\r\n0\r\n\r\n")
            .status,
        200
    );
    for body in [
        "b\r\n0123456789a\r\n0\r\n\r\n",
        "6\r\n012345\r\n5\r\n6789a\r\n0\r\n\r\n",
    ] {
        assert_eq!(proxy.ask(chunked.clone() + body).status, 413, "{body}");
    }
    let mut client = proxy.client();
    client.send(&chunked).chunk("012345").chunk("6789a");
    assert_eq!(client.receive().status, 413, "without waiting for the end");
    assert_eq!(
        upstream.requests(),
        1,
        "no whole request but the one that fits"
    );
}

#[test]
fn without_a_limit_any_body_passes() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        "routes: [{path: /, target: 'http://UP', max_body_size: 0}]\n",
    );
    let mut client = proxy.client();
    client
        .send(with("POST /", &["Content-Length: 3000000"]))
        .send(pattern(0, 3_000_000));
    assert_eq!(client.receive().status, 200);
}

// ---- connections of clients ----

#[test]
fn clients_beyond_the_limit_wait_in_the_backlog() {
    let (upstream, hold) = Upstream::held();
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{max_connections: 2}}\n"));
    let mut holders = [asking(&proxy, "/1"), asking(&proxy, "/2")];
    upstream.await_requests(2);
    let mut third = asking(&proxy, "/3");
    assert!(third.within(Duration::from_millis(300)).is_empty() || upstream.requests() == 2);
    hold.raise();
    hold.raise();
    hold.raise();
    for client in &mut holders {
        assert_eq!(client.receive().status, 200);
    }
    drop(holders);
    let broken_or_served = asking(&proxy, "/4");
    drop(broken_or_served);
    eventually("there is room again", || proxy.get("/health").status == 200);
}

#[test]
fn idle_clients_do_not_keep_a_new_one_out() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{max_connections: 4, idle_timeout: 0.5}}\n"),
    );
    let mut idle: Vec<Client> = (0..4).map(|_| proxy.client()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let start = Instant::now();
    let mut fresh = proxy.client();
    fresh.send(get("/"));
    match fresh.try_receive() {
        Ok(response) => assert_eq!(response.status, 200),
        Err(broken) => panic!("no answer: {broken:?} after {:?}", start.elapsed()),
    }
    assert!(start.elapsed() < PATIENCE / 2);
}

#[test]
fn out_of_descriptors_the_proxy_waits_and_goes_on() {
    let upstream = Upstream::fixed(OK);
    let setup = Setup::new(&format!(
        "{ALL}transport: {{max_idle_conns: 1}}\nserver: {{idle_timeout: 30}}\n"
    ))
    .upstream("UP", &upstream);
    let proxy = setup
        .shell(
            "ulimit -n 40; exec \"$0\" \"$@\"",
            std::process::Stdio::null(),
        )
        .start();
    let mut crowd: Vec<Client> = (0..100).map(|_| proxy.client()).collect();
    for client in &mut crowd {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    }
    let busy = proxy.cpu_seconds();
    crate::support::let_pass(Duration::from_secs(2));
    let spent = proxy.cpu_seconds() - busy;
    assert!(spent < 0.8, "it spins: {spent} s of processor time in 2 s");
    drop(crowd);
    eventually("it serves again", || {
        let mut client = proxy.client();
        client.send(get("/"));
        match client.try_receive() {
            Ok(response) => response.status == 200,
            Err(broken) => {
                assert!(broken.cause.kind() != ErrorKind::InvalidData, "{broken:?}");
                false
            }
        }
    });
}

#[test]
fn few_descriptors_bound_connections_and_are_never_a_502() {
    let upstream = Upstream::fixed(OK);
    let setup = Setup::new(ALL).upstream("UP", &upstream);
    let proxy = setup
        .shell(
            "ulimit -n 40; exec \"$0\" \"$@\"",
            std::process::Stdio::null(),
        )
        .start();
    // more clients than descriptors: silent ones give way to those that send requests
    let silent: Vec<Client> = (0..60).map(|_| proxy.client()).collect();
    for round in 0..40 {
        assert_eq!(proxy.get("/").status, 200, "round {round}");
    }
    drop(silent);
    let mut crowd: Vec<Client> = (0..6).map(|_| asking(&proxy, "/")).collect();
    all_served(&mut crowd);
}
