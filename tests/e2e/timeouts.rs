//! Time-outs: each strikes when it should, not before, and leaves alone what it does not mean.
//!
//! The upper bounds are generous: a deadline is swept for once a second, and machines are slow.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use crate::support::{
    ALL, Client, End, OK, Proxy, Setup, Upstream, all_served, get, let_pass, pattern, skip, with,
};

const SET: Duration = Duration::from_millis(400);

/// Neither before the time that was set nor long after it.
fn in_time(since: Instant) {
    let took = since.elapsed();
    assert!(took >= SET.mul_f64(0.95), "too early: {took:?}");
    assert!(took < SET + Duration::from_secs(8), "too late: {took:?}");
}

fn server(setting: &str) -> (Proxy, Upstream) {
    let upstream = Upstream::fixed(OK);
    (
        Proxy::before(&upstream, &format!("{ALL}server: {{{setting}}}\n")),
        upstream,
    )
}

// ---- the client is slow ----

#[test]
fn a_head_that_does_not_come_to_its_end_is_a_408() {
    let (proxy, upstream) = server("header_timeout: 0.4");
    for head in [
        "G",
        "GET / HTTP/1.1\r\nHost: a\r\nX-",
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "\r\n",
    ] {
        let since = Instant::now();
        let mut client = proxy.client();
        client.send(head);
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 408, "{head:?}"),
            Err(broken) => assert!(
                head == "\r\n" && broken.cause.kind() != ErrorKind::TimedOut,
                "{head:?}: {broken:?}"
            ),
        }
        in_time(since);
        client.until_end();
    }
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn a_head_that_drips_is_not_given_more_time() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 30");
    let since = Instant::now();
    let mut client = proxy.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Drip: ");
    let mut answer = Vec::new();
    while since.elapsed() < Duration::from_secs(10)
        && client.try_send("a").is_ok()
        && answer.is_empty()
    {
        answer = client.within(Duration::from_millis(50));
    }
    in_time(since);
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "),
        "{}",
        answer.escape_ascii()
    );
}

#[test]
fn a_second_head_is_given_its_own_time() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 30");
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    assert!(
        client.is_silent(Duration::from_secs(2)),
        "an idle connection has no head to wait for"
    );
    let since = Instant::now();
    client.send("GET / HT");
    assert_eq!(client.receive().status, 408);
    in_time(since);
}

#[test]
fn a_client_that_says_nothing_at_all_is_let_go() {
    let (proxy, _upstream) = server("header_timeout: 0.4, idle_timeout: 0.4");
    let since = Instant::now();
    let mut client = proxy.client();
    let (bytes, _) = client.until_end();
    in_time(since);
    assert!(
        bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408 "),
        "{}",
        bytes.escape_ascii()
    );
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let (proxy, _upstream) = server("idle_timeout: 0.4");
    let mut client = proxy.client();
    for _ in 0..3 {
        let since = Instant::now();
        assert_eq!(client.get("/").status, 200);
        assert!(since.elapsed() < Duration::from_secs(8));
    }
    let since = Instant::now();
    assert_eq!(client.end(), End::Clean);
    in_time(since);
}

#[test]
fn an_upload_that_stops_is_a_408_or_breaks_off() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.await_close()?;
        peer.note("closed");
        Ok(())
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{read_timeout: 0.4}}\n"));
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut client = proxy.client();
        let since = Instant::now();
        client.send(with("POST /", &[framing]) + "2\r\nab\r\n");
        match client.try_receive() {
            Ok(response) => assert_eq!(response.status, 408, "{framing}"),
            Err(broken) => assert!(
                broken.cause.kind() != ErrorKind::TimedOut,
                "{framing}: {broken:?}"
            ),
        }
        in_time(since);
        client.until_end();
    }
    crate::support::eventually("both uploads broke off", || {
        upstream.notes().iter().filter(|n| *n == "closed").count() == 2
    });
}

#[test]
fn an_upload_that_drips_is_waited_for() {
    let upstream = Upstream::answering(|request, peer| {
        assert_eq!(request.body.len(), 8);
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{read_timeout: 1.5}}\n"));
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 8"]));
    for _ in 0..8 {
        assert!(client.is_silent(Duration::from_millis(400)));
        client.send("x");
    }
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_answer_that_takes_its_time_does_not_count_as_a_slow_upload() {
    let upstream = Upstream::answering(|_, peer| {
        let_pass(Duration::from_secs(2));
        peer.write(OK)
    });
    let yaml = format!(
        "{ALL}server: {{read_timeout: 0.4, header_timeout: 0.4, idle_timeout: 0.4, write_timeout: 0.4}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(
        proxy
            .ask(with("POST /", &["Content-Length: 3"]) + "abc")
            .status,
        200
    );
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    const SIZE: usize = 256 << 20;
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        let all = (0..SIZE)
            .step_by(65_536)
            .try_for_each(|from| peer.write(pattern(from, 65_536)));
        peer.note(if all.is_err() { "cut" } else { "swallowed" });
        Ok(())
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{write_timeout: 0.4}}\n"));
    let mut client = proxy.client();
    client.send(get("/"));
    crate::support::eventually("the upstream is rid of it", || !upstream.notes().is_empty());
    assert_eq!(upstream.notes()[0], "cut");
    assert!(client.try_receive().is_err(), "taken for whole");
}

#[test]
fn a_slow_reader_that_goes_on_reading_is_served() {
    const SIZE: usize = 24 << 20;
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"))?;
        (0..SIZE)
            .step_by(65_536)
            .try_for_each(|from| peer.write(pattern(from, 65_536)))
    });
    let proxy = Proxy::before(&upstream, &format!("{ALL}server: {{write_timeout: 1.5}}\n"));
    let mut client = proxy.client();
    client.send(get("/"));
    client.head();
    for from in (0..SIZE).step_by(SIZE / 8) {
        let_pass(Duration::from_millis(300));
        assert!(
            client.reader().exact(SIZE / 8).unwrap() == pattern(from, SIZE / 8),
            "at {from}"
        );
    }
}

// ---- the upstream is slow ----

fn silent() -> Upstream {
    Upstream::start(|peer| {
        peer.request()?;
        peer.await_close()?;
        peer.note("closed");
        Ok(())
    })
}

#[test]
fn an_answer_that_does_not_come_is_a_504() {
    let upstream = silent();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let mut client = proxy.client();
    for request in [get("/"), with("POST /", &["Content-Length: 3"]) + "abc"] {
        let since = Instant::now();
        let response = client.ask(request);
        in_time(since);
        assert_eq!(response.status, 504);
        assert!(!response.text().contains("127.0.0.1"));
    }
    upstream.await_note("closed");
    assert_eq!(
        upstream.requests(),
        2,
        "nothing is sent again after a time-out"
    );
}

#[test]
fn a_head_that_comes_in_part_is_a_504_too() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.1 200 OK\r\nContent-")?;
        peer.await_close()
    });
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    in_time(since);
}

#[test]
fn a_route_may_have_its_own_patience() {
    let upstream = Upstream::answering(|_, peer| {
        let_pass(Duration::from_secs(2));
        peer.write(OK)
    });
    let yaml = "routes:\n- {path: /short/, target: 'http://UP', response_header_timeout: 0.4}\n- {path: /long/, target: 'http://UP', response_header_timeout: 15}\n\
        - {path: /none/, target: 'http://UP', response_header_timeout: 0}\n- {path: /, target: 'http://UP'}\ntransport: {response_header_timeout: 0.3}\n";
    let proxy = Proxy::before(&upstream, yaml);
    for (target, status) in [
        ("/long/", 200),
        ("/none/", 200),
        ("/", 504),
        ("/short/", 504),
    ] {
        assert_eq!(proxy.get(target).status, status, "{target}");
    }
}

#[test]
fn the_time_for_the_head_does_not_limit_the_body() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for _ in 0..2 {
            peer.chunk("x")?;
            let_pass(Duration::from_millis(1500));
        }
        peer.write("0\r\n\r\n")
    });
    let proxy = Proxy::before(
        &upstream,
        &format!(
            "{ALL}transport: {{response_header_timeout: 0.4}}\nserver: {{read_timeout: 0.4, idle_timeout: 0.4, header_timeout: 0.4, write_timeout: 0.4}}\n"
        ),
    );
    assert_eq!(proxy.get("/").text(), "xx");
}

#[test]
fn the_time_for_the_head_starts_when_the_request_is_sent_to_its_end() {
    let upstream = Upstream::answering(|_, peer| peer.write(OK));
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{response_header_timeout: 0.4}}\n"),
    );
    let mut client = proxy.client();
    client.send(with("POST /", &["Content-Length: 3"]));
    for byte in ["a", "b", "c"] {
        assert!(client.is_silent(Duration::from_millis(800)));
        client.send(byte);
    }
    assert_eq!(client.receive().status, 200);
}

#[test]
fn an_upstream_that_does_not_accept_is_a_504() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let Some(_backlog) = fill(address) else {
        return skip("the backlog of a listener cannot be filled here");
    };
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://{address}'}}]\ntransport: {{dial_timeout: 0.4}}\n"
    ))
    .start();
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    in_time(since);
}

/// Connects until nobody answers any more.
fn fill(address: SocketAddr) -> Option<Vec<TcpStream>> {
    let mut backlog = Vec::new();
    while backlog.len() < 900 {
        match TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            Ok(stream) => backlog.push(stream),
            Err(e) if e.kind() == ErrorKind::TimedOut => return Some(backlog),
            Err(_) => return None,
        }
    }
    None
}

#[test]
fn an_idle_upstream_connection_is_closed_in_time() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{idle_conn_timeout: 0.4}}\n"),
    );
    let since = Instant::now();
    assert_eq!(proxy.get("/").status, 200);
    upstream.await_note("left 0");
    in_time(since);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(upstream.connections(), 2);
}

#[test]
fn zero_means_no_time_out() {
    let (upstream, go_on) = Upstream::held();
    let yaml = format!(
        "{ALL}transport: {{response_header_timeout: 0, dial_timeout: 0, idle_conn_timeout: 0}}\nserver: {{header_timeout: 0, read_timeout: 0, write_timeout: 0, idle_timeout: 0}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    let mut slow: [Client; 4] = std::array::from_fn(|_| proxy.client());
    slow[0].send("GET / HT");
    slow[1].send(with("POST /", &["Content-Length: 3"]) + "a");
    slow[2].send(get("/"));
    let_pass(Duration::from_millis(2500));
    go_on.raise_many(4);
    slow[0].send("TP/1.1\r\nHost: a\r\n\r\n");
    slow[1].send("bc");
    slow[3].send(get("/"));
    all_served(&mut slow);
}
