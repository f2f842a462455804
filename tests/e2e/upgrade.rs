//! `Upgrade: websocket`: a tunnel after the upstream's 101. No other upgrade is forwarded.

use std::{io::Write, thread, time::Duration};

use crate::support::{
    ALL, Client, End, OK, Peer, Proxy, Signal, Upstream, get, is_release, pattern, read_pattern,
    with,
};

const HANDSHAKE: [&str; 4] = [
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Accepts the handshake, then runs the script.
fn tunnel(script: impl Fn(&mut Peer) -> std::io::Result<()> + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |peer| {
        let head = peer.head()?;
        assert_eq!(head.fields.list("upgrade"), ["websocket"]);
        assert_eq!(
            head.fields.one("sec-websocket-key"),
            Some("dGhlIHNhbXBsZSBub25jZQ==")
        );
        peer.write(SWITCHED)?;
        script(peer)
    })
}

/// Echoes everything until the end.
fn echo(peer: &mut Peer) -> std::io::Result<()> {
    loop {
        let bytes = peer.reader().some()?;
        if bytes.is_empty() {
            return Ok(());
        }
        peer.write(bytes)?;
    }
}

fn upgraded(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(with("GET /ws", &HANDSHAKE));
    let response = client.head();
    assert_eq!(response.status, 101);
    assert_eq!(response.fields.list("upgrade"), ["websocket"]);
    assert_eq!(response.fields.list("connection"), ["upgrade"]);
    assert_eq!(
        response.one("sec-websocket-accept"),
        Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    );
    client
}

#[test]
fn a_websocket_runs_both_ways() {
    let upstream = tunnel(echo);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    for i in 0..50 {
        let message = format!("message {i:03}\0\r\n");
        client.send(&message);
        assert_eq!(
            client.reader().exact(message.len()).unwrap(),
            message.as_bytes()
        );
    }
    client.half_close();
    assert_eq!(client.end(), End::Clean);
    upstream.await_note("left 0");
}

#[test]
fn the_token_is_taken_in_any_case() {
    let upstream = tunnel(echo);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let request = with(
        "GET /ws",
        &[
            "connection: upgrade",
            "upgrade: WebSocket",
            HANDSHAKE[2],
            HANDSHAKE[3],
        ],
    );
    client.send(request);
    assert_eq!(client.head().status, 101);
}

#[test]
fn bytes_right_after_the_handshake_are_not_lost() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write(format!("{SWITCHED}welcome"))?;
        echo(peer)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with("GET /ws", &HANDSHAKE) + "early");
    assert_eq!(client.head().status, 101);
    assert_eq!(client.reader().exact(12).unwrap(), b"welcomeearly");
}

#[test]
fn a_client_that_half_closes_still_gets_the_rest() {
    let go_on = Signal::default();
    let release = go_on.clone();
    let upstream = tunnel(move |peer| {
        assert_eq!(peer.reader().rest()?, b"bye");
        peer.note("heard the end");
        release.wait()?;
        peer.write("still here")
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    client.send("bye").half_close();
    upstream.await_note("heard the end");
    go_on.raise();
    assert_eq!(client.reader().rest().unwrap(), b"still here");
}

#[test]
fn an_upstream_that_half_closes_still_gets_the_rest() {
    let upstream = tunnel(|peer| {
        peer.write("bye")?;
        peer.half_close();
        assert_eq!(peer.reader().rest()?, b"still here");
        peer.note("heard the rest");
        Ok(())
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    assert_eq!(client.reader().rest().unwrap(), b"bye");
    client.send("still here").half_close();
    upstream.await_note("heard the rest");
}

#[test]
fn a_tunnel_ends_with_either_side() {
    let upstream = tunnel(|peer| {
        let word = peer.reader().exact(4)?;
        if word == b"stay" {
            peer.await_close()?;
            peer.note("the client left");
        }
        Ok(())
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    client.send("quit");
    assert_eq!(client.end(), End::Clean);
    drop(client);
    let mut client = upgraded(&proxy);
    client.send("stay");
    drop(client);
    upstream.await_note("the client left");
}

#[test]
fn eight_megabytes_run_both_ways_at_once() {
    const SIZE: usize = 8 << 20;
    let upstream = tunnel(echo);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    let mut hand = client.writer();
    let sender = thread::spawn(move || {
        (0..SIZE)
            .step_by(65_536)
            .for_each(|from| hand.write_all(&pattern(from, 65_536)).unwrap());
    });
    read_pattern(client.reader(), SIZE).unwrap();
    sender.join().unwrap();
}

#[test]
fn a_stalled_tunnel_costs_little() {
    const SIZE: usize = 128 << 20;
    let upstream = tunnel(|peer| {
        let sent = peer.write_until_stalled(0, SIZE)?;
        peer.note(if sent < SIZE { "stalled" } else { "swallowed" });
        peer.await_close()
    });
    let proxy = Proxy::before(&upstream, ALL);
    proxy.get("/health");
    let before = proxy.own_kb();
    let _client = upgraded(&proxy);
    crate::support::eventually("the upstream is done writing", || {
        upstream.notes().len() == 1
    });
    assert_eq!(upstream.notes(), ["stalled"]);
    let more = proxy.own_kb().saturating_sub(before);
    assert!(
        more < if is_release() { 512 } else { 2048 },
        "a stalled tunnel costs {more} kB"
    );
}

#[test]
fn an_upgrade_that_is_refused_is_a_plain_answer() {
    let upstream = Upstream::answering(|request, peer| {
        if request.fields.has("upgrade") {
            return peer.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        }
        peer.write(OK)
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    let refused = client.ask(with("GET /ws", &HANDSHAKE));
    assert_eq!((refused.status, refused.text().as_str()), (403, "no"));
    if client.try_send(get("/")).is_ok()
        && let Ok(next) = client.try_receive()
    {
        assert_eq!(next.text(), "ok");
    }
    assert_eq!(proxy.get("/").text(), "ok");
}

#[test]
fn other_upgrades_are_dropped_and_the_request_goes_on() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    for token in ["h2c", "TLS/1.0", "foo", "h2c, foo", "websocket2"] {
        let fields = [
            "Connection: Upgrade, HTTP2-Settings",
            &format!("Upgrade: {token}"),
            "HTTP2-Settings: AAMAAABkAAQAAP__",
        ];
        let request = crate::support::seen(&client.ask(with("GET /", &fields))).fields;
        assert!(
            !request.has("upgrade") && !request.has("http2-settings"),
            "{token}: {request:?}"
        );
    }
}

#[test]
fn of_several_upgrade_tokens_only_websocket_is_forwarded() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.ask(with(
        "GET /",
        &["Connection: Upgrade", "Upgrade: h2c, websocket"],
    ));
    let request = crate::support::seen(&response).fields;
    assert!(!request.list("upgrade").contains(&"h2c".to_owned()));
}

#[test]
fn an_upgrade_that_connection_does_not_list_is_ignored() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let response = proxy.ask(with("GET /", &["Upgrade: websocket"]));
    assert!(!crate::support::seen(&response).fields.has("upgrade"));
}

#[test]
fn an_http_1_0_client_cannot_upgrade() {
    let upstream = Upstream::echo_head();
    let proxy = Proxy::before(&upstream, ALL);
    let response =
        proxy.ask("GET / HTTP/1.0\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert!(!crate::support::seen(&response).fields.has("upgrade"));
}

#[test]
fn a_101_without_an_upgrade_is_a_bad_gateway() {
    let upstream = Upstream::fixed(SWITCHED);
    let proxy = Proxy::before(&upstream, ALL);
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(
        proxy
            .ask(with("GET /", &["Connection: Upgrade", "Upgrade: h2c"]))
            .status,
        502
    );
    let other = Upstream::fixed(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    );
    let proxy = Proxy::before(&other, ALL);
    assert_eq!(proxy.ask(with("GET /", &HANDSHAKE)).status, 502);
}

#[test]
fn after_a_101_nothing_is_read_as_a_request() {
    let upstream = tunnel(echo);
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = upgraded(&proxy);
    let bytes = get("/health");
    client.send(&bytes);
    assert_eq!(
        client.reader().exact(bytes.len()).unwrap(),
        bytes.as_bytes()
    );
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn neither_time_outs_of_answers_nor_of_bodies_end_a_tunnel() {
    let upstream = tunnel(echo);
    let proxy = Proxy::before(
        &upstream,
        &format!(
            "{ALL}transport: {{response_header_timeout: 0.3, idle_conn_timeout: 0.3}}\nserver: {{header_timeout: 0.3, idle_timeout: 0.3, read_timeout: 0.3}}\n"
        ),
    );
    let mut client = upgraded(&proxy);
    assert!(
        client.is_silent(Duration::from_millis(2500)),
        "a silent tunnel is left alone"
    );
    client.send("x");
    assert_eq!(client.reader().exact(1).unwrap(), b"x");
}
