//! Connections to upstreams: which are reused, when a request is sent again, and what a failure gives.

use std::{fs, net::TcpListener};

use crate::{
    forward::{echo, plain_sentence},
    support::{ALL, End, OK, Proxy, Setup, Signal, Upstream, eventually, get, seen, with},
};

#[test]
fn connections_are_kept_on_both_sides() {
    let (proxy, upstream) = echo(ALL);
    let mut client = proxy.client();
    for i in 0..20 {
        assert_eq!(seen(&client.get(&format!("/{i}"))).target, format!("/{i}"));
    }
    for i in 0..20 {
        assert_eq!(seen(&proxy.get(&format!("/{i}"))).target, format!("/{i}"));
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_client_that_says_close_is_closed_after_its_answer() {
    let (proxy, upstream) = echo(ALL);
    let mut client = proxy.client();
    let response = client.ask(with("GET /", &["Connection: close"]));
    assert_eq!(response.status, 200);
    assert_eq!(client.end(), End::Clean);
    assert!(
        response
            .fields
            .list("connection")
            .contains(&"close".to_owned())
    );
    proxy.get("/");
    assert_eq!(
        upstream.connections(),
        1,
        "the client's close is not the upstream's"
    );
}

#[test]
fn the_last_used_upstream_connection_is_used_first() {
    let (a, b) = (Signal::default(), Signal::default());
    let (go_a, go_b) = (a.clone(), b.clone());
    let upstream = Upstream::answering(move |request, peer| {
        match request.target.as_str() {
            "/a" => go_a.wait()?,
            "/b" => go_b.wait()?,
            _ => {}
        }
        peer.write(format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{}",
            peer.number()
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    for (first, second) in [(&a, &b), (&b, &a)] {
        let (mut one, mut two) = (proxy.client(), proxy.client());
        let (ask_one, ask_two) = if std::ptr::eq(first, &raw const a) {
            ("/a", "/b")
        } else {
            ("/b", "/a")
        };
        let before = upstream.requests();
        one.send(get(ask_one));
        two.send(get(ask_two));
        upstream.await_requests(before + 2);
        first.raise();
        one.receive();
        second.raise();
        let last_used = two.receive().text();
        for _ in 0..5 {
            assert_eq!(two.get("/x").text(), last_used);
        }
    }
    assert_eq!(upstream.connections(), 2);
}

/// Answers the first request of each connection, then closes at the second, after reading it.
fn closes_at_the_second() -> Upstream {
    Upstream::start(|peer| {
        peer.request()?;
        peer.write(OK)?;
        peer.request()?;
        Ok(())
    })
}

#[test]
fn an_idempotent_request_is_sent_again_where_a_kept_connection_had_been_closed() {
    let upstream = closes_at_the_second();
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    for method in ["GET", "DELETE", "OPTIONS", "PUT"] {
        let before = upstream.connections();
        assert_eq!(
            client.ask(with(&format!("{method} /"), &[])).status,
            200,
            "{method}"
        );
        assert_eq!(upstream.connections(), before + 1, "{method}");
    }
}

#[test]
fn a_request_that_is_not_idempotent_is_never_sent_twice() {
    for method in ["POST", "PATCH", "SPECIAL"] {
        let upstream = closes_at_the_second();
        let proxy = Proxy::before(&upstream, ALL);
        let mut client = proxy.client();
        client.get("/");
        let response = client.ask(with(&format!("{method} /"), &["Content-Length: 3"]) + "abc");
        assert_eq!(response.status, 502, "{method}");
        assert_eq!(
            (upstream.requests(), upstream.connections()),
            (2, 1),
            "{method}"
        );
    }
}

#[test]
fn a_request_is_never_sent_again_once_a_byte_of_its_answer_came() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(OK)?;
        peer.request()?;
        peer.write("HTTP/1.1 2")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.get("/").status, 502);
    assert_eq!(upstream.requests(), 2);
}

#[test]
fn a_request_is_never_sent_again_once_an_interim_answer_came() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(OK)?;
        peer.request()?;
        peer.write("HTTP/1.1 103 Early Hints\r\n\r\n")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.send(get("/")).interim().status, 103);
    assert_eq!(client.receive().status, 502);
    assert_eq!(upstream.requests(), 2);
}

#[test]
fn the_rest_of_a_request_that_is_answered_holds_no_place_and_has_its_time_out() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write(OK)?;
        peer.await_close()
    });
    let bounds = "proxy: {max_concurrent_requests: 1, queue_timeout: 0}\n";
    let yaml = format!("{ALL}{bounds}server: {{read_timeout: 1}}\n");
    let proxy = Proxy::before(&upstream, &yaml);
    let mut sender = proxy.client();
    let answer = sender.ask(with("POST /", &["Content-Length: 1000"]) + "abc");
    assert_eq!((answer.status, answer.one("connection")), (200, None));
    assert_eq!(proxy.get("/").status, 200, "the place is free");
    assert_eq!(sender.end(), End::Clean);
}

#[test]
fn a_request_that_failed_on_a_fresh_connection_is_not_sent_again() {
    let upstream = Upstream::start(|peer| peer.request().map(|_| ()));
    let proxy = Proxy::before(&upstream, ALL);
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn an_idle_connection_that_the_upstream_closed_is_not_used() {
    let upstream = Upstream::start(|peer| {
        peer.request()?;
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for i in 0..10 {
        let response = client.ask(with("POST /", &["Content-Length: 3"]) + "abc");
        assert_eq!(response.status, 200, "{i}");
        upstream.await_note(&format!("left {i}"));
        // on a busy machine the next request can be faster than the close
        eventually("the close has come to the proxy", || {
            !is_joined_to(&upstream)
        });
    }
}

/// Whether the kernel has an open connection to this upstream.
fn is_joined_to(upstream: &Upstream) -> bool {
    let port: u16 = upstream
        .authority()
        .rsplit(':')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let (to, established) = (format!(":{port:04X}"), "01");
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[2].ends_with(&to) && words[3] == established
    })
}

#[test]
fn a_connection_whose_answer_says_close_is_not_reused() {
    let upstream = Upstream::answering(|_, peer| {
        peer.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..3 {
        let response = client.get("/");
        assert!(
            !response.fields.has("connection"),
            "the upstream's close is not the client's"
        );
    }
    assert_eq!(upstream.connections(), 3);
}

#[test]
fn bytes_after_an_answer_close_its_connection() {
    let upstream = Upstream::answering(|_, peer| {
        peer.write(format!(
            "{OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
        ))
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").text(), "ok");
    }
    assert_eq!(upstream.connections(), 5);
}

// ---- upstreams that cannot be reached ----

/// A port on which nothing listens: no other test binds to this address.
fn refused() -> String {
    TcpListener::bind("127.0.0.2:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

#[test]
fn a_refused_connection_is_a_bad_gateway() {
    let target = refused();
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://{target}'}}]\n"
    ))
    .start();
    let mut client = proxy.client();
    for _ in 0..3 {
        let response = client.get("/secret-path");
        assert_eq!(response.status, 502);
        plain_sentence(
            &response.text(),
            &[&target, "127.0.0", "secret-path", "refused", "os error"],
        );
    }
    assert_eq!(
        client
            .ask(with("POST /", &["Content-Length: 3"]) + "abc")
            .status,
        502
    );
}

#[test]
fn a_missing_unix_socket_is_a_bad_gateway() {
    let proxy = Setup::new("routes: [{path: /, target: 'unix:DIR/none.sock'}]\n").start();
    let response = proxy.get("/");
    assert_eq!(response.status, 502);
    plain_sentence(&response.text(), &["none.sock"]);
}

#[test]
fn an_unknown_name_is_a_bad_gateway() {
    let proxy = Setup::new("routes: [{path: /, target: 'http://no-such-name.invalid'}]\ntransport: {dial_timeout: 5}\n").start();
    let response = proxy.get("/");
    assert!(matches!(response.status, 502 | 504), "{response:?}");
    plain_sentence(&response.text(), &["invalid"]);
}

#[test]
fn every_address_of_a_name_is_tried() {
    let upstream = Upstream::echo_head();
    let port = upstream.authority().rsplit(':').next().unwrap().to_owned();
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://localhost:{port}'}}]\n"
    ))
    .start();
    let request = seen(&proxy.get("/"));
    assert_eq!(
        request.fields.one("host"),
        Some(format!("localhost:{port}").as_str())
    );
}

#[test]
fn an_upstream_that_is_up_again_is_used_again() {
    let first = Upstream::on("127.0.0.3:0", |peer| {
        peer.request()?;
        peer.write(OK)?;
        peer.await_close()
    });
    let authority = first.authority();
    let proxy = Proxy::before(&first, ALL);
    assert_eq!(proxy.get("/").status, 200);
    drop(first);
    let mut client = proxy.client();
    eventually("the port is free again", || {
        TcpListener::bind(&authority).is_ok()
    });
    assert_eq!(client.get("/").status, 502);
    let _second = Upstream::on(&authority, |peer| {
        peer.request()?;
        peer.write(OK)
    });
    assert_eq!(client.get("/").status, 200);
}
