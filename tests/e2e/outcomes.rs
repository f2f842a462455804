//! However an exchange ends, it is reported: in its access line, in a counter, and if something was cut off in a log line
//! with client, host, route and upstream.

use crate::{
    lifecycle::{half_read, halves},
    metrics::metric,
    support::{ALL, Client, OK, Proxy, Setup, Upstream, eventually, get, pattern, with},
};

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// All logs and metrics on.
const TELL: &str = "log: {access: true, level: debug}\nmetrics: {listen: '127.0.0.1:0'}\n";

fn telling(upstream: &Upstream, more: &str) -> Proxy {
    Proxy::before(upstream, &format!("{ALL}{TELL}{more}"))
}

/// An upstream with ends of every kind.
fn unreliable() -> Upstream {
    Upstream::start(|peer| {
        let head = peer.head()?;
        match head.target.as_str() {
            "/cut" => peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
            "/chunks" => {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
                peer.reset()
            }
            "/stream" | "/early" => {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
                peer.await_close()
            }
            "/endless" => {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")?;
                let block = pattern(0, 65_536);
                while peer.write(&block).is_ok() {}
                Ok(())
            }
            "/ws" => {
                peer.write(SWITCHED)?;
                assert_eq!(peer.reader().exact(4)?, b"ping");
                peer.write("pong!")?;
                peer.await_close()
            }
            "/ws-cut" => {
                peer.write(SWITCHED)?;
                assert_eq!(peer.reader().exact(4)?, b"ping");
                peer.cut()
            }
            "/deaf" => {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
                peer.stand_still();
                Ok(())
            }
            "/silent" => peer.await_close(),
            _ => peer.write(OK),
        }
    })
}

fn access_line(proxy: &Proxy, target: &str) -> String {
    let path = format!(" path={target} ");
    proxy.await_log(target, |line| {
        line.contains("msg=\"access\"") && line.contains(&path)
    })
}

/// The number of a field.
fn number(line: &str, name: &str) -> u64 {
    let value = line.split(&format!(" {name}=")).nth(1);
    let value = value.unwrap_or_else(|| panic!("no {name} in {line}"));
    value.split(' ').next().unwrap().parse().unwrap()
}

/// Checks the reports of an exchange: the access line, the counter, and the log line, which is returned.
fn told(proxy: &Proxy, upstream: &Upstream, target: &str, outcome: &str, line: &str) -> String {
    let access = access_line(proxy, target);
    assert!(access.ends_with(&format!(" outcome={outcome}")), "{access}");
    let path = format!(" path={target} ");
    let told = proxy.await_log(line, |log| log.contains(line) && log.contains(&path));
    for part in [
        "client=127.0.0.1",
        "method=",
        "host=proxy.test",
        "route=/",
        &format!("upstream=http://{}", upstream.authority()),
        &format!("outcome={outcome}"),
    ] {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    counted(proxy, outcome);
    access
}

fn counted(proxy: &Proxy, outcome: &str) {
    let name = format!("lean_proxy_failures_total{{outcome=\"{outcome}\"}}");
    assert_eq!(metric(proxy, &name), 1, "{outcome}");
}

fn upgraded(proxy: &Proxy, target: &str) -> Client {
    let mut client = proxy.client();
    let fields = ["Connection: Upgrade", "Upgrade: websocket"];
    client.send(with(&format!("GET {target}"), &fields));
    assert_eq!(client.head().status, 101);
    client
}

const WARN: &str = "level=warn msg=\"cut short\"";
const DEBUG: &str = "level=debug msg=\"cut short\"";

#[test]
fn an_answer_that_the_upstream_cuts_off_is_a_warning_and_a_failure() {
    for target in ["/cut", "/chunks"] {
        let upstream = unreliable();
        let proxy = telling(&upstream, "");
        let mut client = proxy.client();
        client.send(get(target));
        assert!(client.try_receive().is_err());
        let line = told(&proxy, &upstream, target, "upstream-cut", WARN);
        assert_eq!((number(&line, "status"), number(&line, "sent")), (200, 3));
    }
}

#[test]
fn answers_that_are_cut_short_alike_are_one_line_a_second() {
    let upstream = unreliable();
    let proxy = telling(&upstream, "");
    for _ in 0..20 {
        let mut client = proxy.client();
        client.send(get("/cut"));
        assert!(client.try_receive().is_err());
    }
    eventually("all are told", || {
        let lines = proxy.logs();
        let first = lines.iter().filter(|line| line.contains(WARN)).count() as u64;
        let more = "msg=\"cut short, as before\" outcome=upstream-cut times=";
        let times = lines.iter().filter_map(|line| line.split_once(more));
        let others: u64 = times.map(|(_, times)| times.parse::<u64>().unwrap()).sum();
        others > 0 && first + others == 20
    });
}

#[test]
fn a_client_that_leaves_is_distinguished_from_one_that_is_cut_off() {
    let upstream = unreliable();
    let proxy = telling(
        &upstream,
        "server: {write_timeout: 0.4, read_timeout: 0.4}\n",
    );
    let mut client = proxy.client();
    client.send(get("/stream")).head();
    drop(client);
    told(&proxy, &upstream, "/stream", "client-gone", DEBUG);

    let mut reader = Client::narrow(proxy.address());
    reader.send(get("/endless")).head();
    let line = told(&proxy, &upstream, "/endless", "write-timed-out", DEBUG);
    assert!(number(&line, "sent") > 0, "{line}");

    let mut sender = proxy.client();
    sender
        .send(with("POST /early", &["Content-Length: 10"]) + "abc")
        .head();
    let line = told(&proxy, &upstream, "/early", "body-timed-out", DEBUG);
    assert_eq!(number(&line, "received"), 3);
}

#[test]
fn an_upstream_that_stops_reading_after_an_early_answer_is_to_blame() {
    let upstream = unreliable();
    let proxy = telling(&upstream, "server: {write_timeout: 0.4}\n");
    let mut sender = proxy.client();
    sender
        .send(with("POST /deaf", &["Content-Length: 999999999"]))
        .head();
    // until its connection is closed
    while sender.try_send(pattern(0, 65_536)).is_ok() {}
    told(&proxy, &upstream, "/deaf", "request-stalled", WARN);
}

#[test]
fn a_request_body_that_breaks_while_the_answer_streams_is_reported() {
    let upstream = unreliable();
    let proxy = telling(&upstream, "");
    let mut sender = proxy.client();
    sender
        .send(with("POST /early", &["Transfer-Encoding: chunked"]) + "3\r\nabc\r\n")
        .head();
    sender.send("nonsense\r\n");
    told(&proxy, &upstream, "/early", "body-broken", DEBUG);
}

#[test]
fn a_request_body_that_grows_too_large_while_the_answer_streams_is_reported() {
    let upstream = unreliable();
    let yaml = "routes: [{path: /, target: 'http://UP', max_body_size: 5}]\n";
    let proxy = Proxy::before(&upstream, &format!("{yaml}{TELL}"));
    let mut sender = proxy.client();
    sender
        .send(with("POST /early", &["Transfer-Encoding: chunked"]) + "3\r\nabc\r\n")
        .head();
    sender.send("3\r\ndef\r\n");
    told(&proxy, &upstream, "/early", "body-too-large", DEBUG);
}

#[test]
fn a_stream_that_is_ended_for_others_is_reported_as_evicted() {
    let upstream = unreliable();
    let bounds = "proxy: {max_concurrent_requests: 1, queue_timeout: 19}\n";
    let proxy = telling(&upstream, bounds);
    let mut reader = Client::narrow(proxy.address());
    reader.send(get("/endless")).head();
    // its client does not read, so after five seconds it may be ended for another request
    let mut other = proxy.client();
    other.send(get("/other"));
    let waiting = || metric(&proxy, "lean_proxy_waiting");
    eventually("it waits", || waiting() == 1);
    assert_eq!(other.receive().status, 200);
    assert_eq!(waiting(), 0);
    assert_eq!(metric(&proxy, "lean_proxy_connections_evicted_total"), 1);
    told(&proxy, &upstream, "/endless", "evicted", WARN);
    let line = access_line(&proxy, "/other");
    let (all, waited) = (number(&line, "ms"), number(&line, "waited_ms"));
    assert!(waited >= 1_000 && all >= waited, "{line}");
    assert!(number(&line, "first_byte_ms") >= waited, "{line}");
}

#[test]
fn exchanges_cut_off_by_a_stop_are_reported_as_shutdown_with_their_bytes() {
    let (upstream, _rest) = halves();
    let mut proxy = telling(&upstream, "server: {shutdown_timeout: 0.3}\n");
    let _busy = half_read(&proxy);
    assert_eq!(proxy.terminate().code(), Some(0));
    let line = access_line(&proxy, "/halves");
    assert!(line.ends_with("outcome=shutdown"), "{line}");
    assert_eq!((number(&line, "status"), number(&line, "sent")), (200, 2));
    let warning = proxy.await_log("the warning", |line| line.contains(WARN));
    assert!(warning.contains("outcome=shutdown"), "{warning}");
    let stopped = proxy.await_log("the last line", |line| line.contains("msg=\"stopped\""));
    assert_eq!(
        (number(&stopped, "requests"), number(&stopped, "cut")),
        (1, 1)
    );
}

#[test]
fn exchanges_cut_off_by_a_second_signal_are_reported() {
    let (upstream, _rest) = halves();
    let mut proxy = telling(&upstream, "server: {shutdown_timeout: 600}\n");
    let _busy = half_read(&proxy);
    proxy.signal("TERM");
    proxy.await_log("it stops", |line| line.contains("msg=\"stopping\""));
    proxy.signal("TERM");
    assert_eq!(proxy.exit().code(), Some(0));
    assert!(access_line(&proxy, "/halves").ends_with("outcome=shutdown"));
}

#[test]
fn the_end_of_a_tunnel_is_reported_with_its_bytes() {
    let upstream = unreliable();
    let mut proxy = telling(&upstream, "server: {shutdown_timeout: 0.3}\n");
    let mut kept = upgraded(&proxy, "/ws");
    kept.send("ping");
    assert_eq!(kept.reader().exact(5).unwrap(), b"pong!");
    assert_eq!(metric(&proxy, "lean_proxy_tunnels"), 1);
    assert_eq!(metric(&proxy, "lean_proxy_exchanges"), 0);
    assert_eq!(metric(&proxy, "lean_proxy_client_bytes_in_total"), 4);
    assert_eq!(metric(&proxy, "lean_proxy_client_bytes_out_total"), 5);

    let tunnel = "level=warn msg=\"tunnel ended\"";
    let mut cut = upgraded(&proxy, "/ws-cut");
    cut.send("ping");
    cut.end();
    let line = told(&proxy, &upstream, "/ws-cut", "upstream-cut", tunnel);
    assert_eq!(
        (number(&line, "status"), number(&line, "received")),
        (101, 4)
    );
    eventually("it is not counted as open", || {
        metric(&proxy, "lean_proxy_tunnels") == 1
    });
    // both were counted and timed until their 101, and not again at their end
    for name in [
        "requests_total",
        "exchange_duration_seconds_count",
        "route_responses_total{path=\"/\",host=\"\",class=\"1xx\"}",
    ] {
        assert_eq!(metric(&proxy, &format!("lean_proxy_{name}")), 2, "{name}");
    }

    assert_eq!(proxy.terminate().code(), Some(0));
    let line = access_line(&proxy, "/ws");
    assert!(line.ends_with("outcome=shutdown"), "{line}");
    let numbers = ["status", "received", "sent"].map(|name| number(&line, name));
    assert_eq!(numbers, [101, 4, 5]);
}

#[test]
fn a_tunnel_that_both_sides_close_is_not_a_failure() {
    let upstream = unreliable();
    let proxy = telling(&upstream, "");
    let mut client = upgraded(&proxy, "/ws");
    client.send("ping");
    assert_eq!(client.reader().exact(5).unwrap(), b"pong!");
    client.half_close();
    client.end();
    let line = access_line(&proxy, "/ws");
    assert!(line.ends_with("outcome=ok"), "{line}");
    assert!(
        !proxy
            .logs()
            .iter()
            .any(|line| line.contains("tunnel ended"))
    );
}

#[test]
fn requests_refused_before_they_are_parsed_have_their_own_outcomes() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!(
        "{ALL}{TELL}server: {{header_timeout: 0.4, max_header_bytes: 1024}}\ncors: {{allowed_origins: ['https://app.example']}}\n"
    );
    let proxy = Setup::new(&yaml).upstream("UP", &upstream).start();
    let long = "x".repeat(2_000);
    for (request, status, outcome) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400, "malformed"),
        (
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n".to_owned(),
            505,
            "version-not-supported",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(),
            405,
            "method-not-allowed",
        ),
        (
            with("GET /", &[&format!("X: {long}")]),
            431,
            "head-too-large",
        ),
        (get(&format!("/{long}")), 414, "target-too-long"),
        ("GET / HTTP/1.1\r\n".to_owned(), 408, "head-timed-out"),
        (
            with(
                "OPTIONS /",
                &[
                    "Origin: https://evil.example",
                    "Access-Control-Request-Method: PUT",
                ],
            ),
            403,
            "preflight-refused",
        ),
    ] {
        assert_eq!(proxy.ask(&request).status, status, "{outcome}");
        let line = proxy.await_log(outcome, |line| {
            line.contains("msg=\"access\"") && line.ends_with(&format!("outcome={outcome}"))
        });
        assert_eq!(number(&line, "status"), status.into(), "{line}");
        counted(&proxy, outcome);
    }
    proxy.await_log("the preflight", |line| {
        line.contains("level=debug msg=\"no answer\"")
            && line.contains("route=/")
            && line.contains("origin https://evil.example is not among https://app.example")
    });
}

#[test]
fn a_503_is_logged_with_the_full_limit_and_the_time_waited() {
    for (bounds, reason, bound) in [
        (
            "proxy: {max_concurrent_requests: 1, queue_timeout: 0.3}\n",
            "reason=no-place",
            "bound=proxy.max_concurrent_requests value=1 ",
        ),
        (
            "transport: {max_conns_per_host: 1}\nproxy: {queue_timeout: 0.3}\n",
            "reason=no-connection",
            "bound=transport.max_conns_per_host value=1 ",
        ),
    ] {
        let upstream = unreliable();
        let proxy = telling(&upstream, bounds);
        let mut holder = proxy.client();
        holder.send(get("/silent"));
        upstream.await_requests(1);
        assert_eq!(proxy.get("/other").status, 503);
        let line = proxy.await_log(reason, |line| {
            line.contains("level=warn msg=\"no answer\"") && line.contains(reason)
        });
        for part in [
            bound,
            "client=127.0.0.1",
            "host=proxy.test",
            "path=/other",
            "route=/",
            &format!("upstream=http://{}", upstream.authority()),
        ] {
            assert!(line.contains(part), "{part} is not in {line}");
        }
        assert!(number(&line, "waited_ms") >= 300, "{line}");
        let line = access_line(&proxy, "/other");
        assert!(number(&line, "waited_ms") >= 300, "{line}");
    }
}

#[test]
fn a_request_without_memory_is_logged_with_the_limit() {
    let upstream = unreliable();
    let proxy = Setup::new(&format!("{ALL}{TELL}proxy: {{queue_timeout: 0.3}}\n"))
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "6MiB")
        .start();
    // each is an exchange that waits for its answer, and such an exchange is never ended for others
    let waiting: Vec<Client> = (0..200)
        .map(|_| {
            let mut client = proxy.client();
            client.send(get("/silent"));
            client
        })
        .collect();
    let line = proxy.await_log("a 503", |line| {
        line.contains("msg=\"no answer\"") && line.contains("reason=no-memory")
    });
    assert!(
        line.contains("bound=limits.memory value=6291456 "),
        "{line}"
    );
    // once there is memory again requests are served
    drop(waiting);
    eventually("it is served", || proxy.get("/other").status == 200);
}

#[test]
fn requests_that_wait_for_memory_at_a_stop_are_reported() {
    const MANY: usize = 150;
    let upstream = unreliable();
    let bounds = "proxy: {queue_timeout: 600, max_concurrent_requests: 0}\ntransport: {max_conns_per_host: 0}\nserver: {shutdown_timeout: 0.3}\n";
    let mut proxy = Setup::new(&format!("{ALL}{TELL}{bounds}"))
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "6MiB")
        .start();
    let _clients: Vec<Client> = (0..MANY)
        .map(|_| {
            let mut client = proxy.client();
            client.send(get("/silent"));
            client
        })
        .collect();
    eventually("all are in work, waiting or answered", || {
        let known = ["exchanges", "waiting", "responses_total{class=\"5xx\"}"]
            .map(|name| metric(&proxy, &format!("lean_proxy_{name}")));
        known[1] > 0 && known.iter().sum::<u64>() == MANY as u64
    });
    assert_eq!(proxy.terminate().code(), Some(0));
    proxy.await_log("the last line", |line| line.contains("msg=\"stopped\""));
    let logs = proxy.logs();
    let ends = logs.iter().filter(|line| line.contains("msg=\"access\""));
    let known = ["outcome=shutdown", "outcome=no-memory"];
    let untold = |line: &&String| !known.iter().any(|outcome| line.ends_with(outcome));
    assert_eq!(ends.clone().filter(untold).count(), 0, "{logs:#?}");
    assert_eq!(ends.count(), MANY);
}

#[test]
fn the_logged_client_is_the_one_behind_trusted_proxies_and_ipv4_is_written_as_such() {
    let upstream = Upstream::fixed(OK);
    let listen = "listen: ':0'\n";
    for (trusted, client) in [
        ("", "127.0.0.1"),
        (
            "server: {trusted_proxies: ['127.0.0.0/8', '10.0.0.0/8']}\n",
            "198.51.100.7",
        ),
    ] {
        let proxy = telling(&upstream, &format!("{listen}{trusted}"));
        let forwarded = "X-Forwarded-For: 203.0.113.9, 198.51.100.7, 10.1.1.1";
        proxy.ask(with("GET /x", &[forwarded]));
        let line = access_line(&proxy, "/x");
        assert!(line.contains(&format!(" client={client} ")), "{line}");
        proxy.ask(with("TRACE /y", &[forwarded]));
        let line = proxy.await_log("the failure", |line| line.contains("msg=\"no answer\""));
        assert!(line.contains(&format!(" client={client} ")), "{line}");
    }
}

#[test]
fn bytes_are_counted_while_they_flow() {
    let (upstream, rest) = halves();
    let proxy = telling(&upstream, "");
    let mut busy = half_read(&proxy);
    eventually("the first half is counted", || {
        metric(&proxy, "lean_proxy_client_bytes_out_total") == 2
    });
    rest.raise();
    assert_eq!(busy.reader().exact(2).unwrap(), b"cd");
    assert_eq!(metric(&proxy, "lean_proxy_client_bytes_out_total"), 4);
    let mut sender = proxy.client();
    sender.send(with("POST /slow", &["Content-Length: 8"]) + "abc");
    eventually("what has come is counted", || {
        metric(&proxy, "lean_proxy_client_bytes_in_total") == 3
    });
    sender.send("defgh");
    assert_eq!(sender.receive().status, 200);
    assert_eq!(metric(&proxy, "lean_proxy_client_bytes_in_total"), 8);
}
