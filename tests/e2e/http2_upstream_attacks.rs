//! Attacks by HTTP/2 upstreams on proxies in cgroups of 10 and 64 MiB: the process lives, answers health, serves other
//! targets, and what it holds is paid for.
//!
//! Needs a release build, and for most the right to make a memory cgroup (version 1); otherwise it says so and is skipped.

use std::{fmt::Write as _, net::SocketAddr, process::Stdio, time::Duration};

use crate::{
    attacks::{Cage, is_paid_for, stays_well},
    h2::{DATA, HEADERS, PING, RST_STREAM, SETTINGS, field, frame},
    http2_attacks::{long_field, tiny_fields},
    http2_upstream::{END_HEADERS, END_STREAM, Script, scripted},
    metrics::metric,
    support::{Client, Setup, Upstream, eventually, is_release, skip},
};

/// Clients of each attack: more than its connections can serve.
const CROWD: usize = 60;

const CONTINUATION: u8 = 9;
const PUSH_PROMISE: u8 = 5;
const UNKNOWN: u8 = 0x20;

/// What an upstream sends for each request but the first of a connection, which it answers: DATA on that stream is read by
/// the proxy and thrown away.
type Attack = fn(&mut Script, u32);

const ANSWERED: u32 = 1;

fn status(code: &str) -> Vec<u8> {
    field(":status", code)
}

fn flood(script: &mut Script, bytes: &[u8]) {
    let batch = bytes.repeat(100);
    for _ in 0..200 {
        if !script.send(&batch) {
            return;
        }
    }
}

/// A head that puts a field into the HPACK table whose value keeps the buffer that it was read into.
fn indexed(number: usize, len: usize) -> Vec<u8> {
    let mut path = field(":path", &format!("/{number:03}"));
    path[0] = 0x40;
    [status("200"), path, long_field("x-a", len)].concat()
}

fn attacks() -> Vec<(&'static str, Attack)> {
    vec![
        ("silence", |_, _| {}),
        ("pieces of a body far apart", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            for _ in 0..60 {
                script.write(DATA, 0, stream, &[b'x'; 256]);
                script.write(DATA, 0, ANSWERED, &[b'x'; 7_900]);
            }
        }),
        ("small pieces of a body", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            script.send(&frame(DATA, 0, stream, b"x").repeat(4_000));
        }),
        ("whole windows", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            for _ in 0..16 {
                script.write(DATA, 0, stream, &[b'x'; 4_096]);
            }
        }),
        ("an HPACK table out of many buffers", |script, stream| {
            for number in 0..20 {
                script.write(HEADERS, END_HEADERS, stream, &indexed(number, 7_800));
            }
        }),
        ("heads of many fields", |script, stream| {
            let head = [status("200"), tiny_fields(450)].concat();
            script.write(HEADERS, END_HEADERS, stream, &head);
        }),
        ("heads of too many fields", |script, stream| {
            let head = [status("200"), tiny_fields(1_500)].concat();
            script.write(HEADERS, END_HEADERS, stream, &head);
        }),
        ("interim heads of many fields", |script, stream| {
            let head = [status("103"), tiny_fields(450)].concat();
            for _ in 0..200 {
                script.write(HEADERS, END_HEADERS, stream, &head);
            }
        }),
        ("trailers of many fields", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            for _ in 0..4 {
                script.write(DATA, 0, stream, &[b'x'; 4_000]);
            }
            let trailers = tiny_fields(450);
            script.write(HEADERS, END_HEADERS | END_STREAM, stream, &trailers);
        }),
        ("CONTINUATION without end", |script, stream| {
            script.write(HEADERS, 0, stream, &status("200"));
            for _ in 0..50 {
                script.write(CONTINUATION, 0, stream, &long_field("x-a", 16_000));
            }
        }),
        ("empty CONTINUATION without end", |script, stream| {
            script.write(HEADERS, 0, stream, &status("200"));
            flood(script, &frame(CONTINUATION, 0, stream, b""));
        }),
        ("half a head", |script, stream| {
            let head = [status("200"), long_field("x-a", 15_000)].concat();
            let whole = frame(HEADERS, END_HEADERS, stream, &head);
            script.send(&whole[..whole.len() - 1]);
        }),
        ("half a piece of a body", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            let whole = frame(DATA, 0, stream, &[b'x'; 16_000]);
            script.send(&whole[..whole.len() - 1]);
        }),
        ("empty DATA", |script, stream| {
            script.write(HEADERS, END_HEADERS, stream, &status("200"));
            flood(script, &frame(DATA, 0, stream, b""));
        }),
        ("pushed streams", |script, stream| {
            let promise = [&2_u32.to_be_bytes()[..], &indexed(0, 100)].concat();
            flood(script, &frame(PUSH_PROMISE, END_HEADERS, stream, &promise));
        }),
        ("SETTINGS", |script, _| {
            flood(script, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]));
        }),
        ("PING", |script, _| {
            flood(script, &frame(PING, 0, 0, &[0; 8]));
        }),
        ("PRIORITY", |script, stream| {
            flood(script, &frame(2, 0, stream, &[0, 0, 0, 0, 1]));
        }),
        ("WINDOW_UPDATE", |script, _| {
            flood(script, &frame(8, 0, 0, &1_u32.to_be_bytes()));
        }),
        ("RST_STREAM", |script, _| {
            let reset = frame(RST_STREAM, 0, ANSWERED, &8_u32.to_be_bytes());
            flood(script, &reset);
        }),
        ("unknown frames", |script, _| {
            flood(script, &frame(UNKNOWN, 0, 0, &[0; 100]));
        }),
    ]
}

/// An upstream that answers the first request of each connection, and attacks at the others.
fn hostile(attack: Attack) -> SocketAddr {
    scripted(move |_, mut script| {
        script.set_write_timeout(Duration::from_millis(300));
        while let Some((_, _, stream, _)) = script.until(HEADERS) {
            if stream == ANSWERED {
                script.answer(stream);
            } else {
                attack(&mut script, stream);
            }
        }
    })
}

/// A route to each attacker, and one to a good upstream.
fn yaml(upstreams: &[SocketAddr]) -> String {
    let mut routes = String::new();
    for (number, address) in upstreams.iter().enumerate() {
        writeln!(
            routes,
            "  - {{path: /{number}/, target: 'h2c://{address}'}}"
        )
        .unwrap();
    }
    format!(
        "listen: '127.0.0.1:0'\nmetrics: {{listen: '127.0.0.1:0'}}\nroutes:\n{routes}  - {{path: /good, target: 'http://UP'}}\n"
    )
}

/// Clients that ask the attacker with this number, and read nothing.
fn crowd(address: SocketAddr, number: usize, count: usize) -> Vec<Client> {
    // its first connection has answered once
    Client::connect(address).get(&format!("/{number}/first"));
    let ask = |_| {
        let mut client = Client::narrow(address);
        let _ = client.try_send(format!("GET /{number}/ HTTP/1.1\r\nHost: a\r\n\r\n"));
        client
    };
    (0..count).map(ask).collect()
}

fn walk(limit: usize) {
    let Some(cage) = Cage::of(limit) else { return };
    let good = Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let attacks = attacks();
    let upstreams: Vec<SocketAddr> = attacks.iter().map(|(_, attack)| hostile(*attack)).collect();
    let mut proxy = Setup::new(&yaml(&upstreams))
        .upstream("UP", &good)
        .shell(&cage.script(), Stdio::null())
        .start();
    let address = proxy.address();
    let mut left = Vec::new();
    for (number, (what, _)) in attacks.iter().enumerate() {
        let mut crowd = crowd(address, number, CROWD);
        stays_well(what, &mut proxy, &cage, &|proxy| {
            Client::narrow(proxy.address())
        });
        eventually(what, || {
            Client::narrow(address).get("/good").status == 200 && !cage.has_killed()
        });
        // some stay during the next attacks
        crowd.truncate(4);
        left.append(&mut crowd);
    }
    drop(left);
    eventually("all requests are over", || {
        metric(&proxy, "lean_proxy_exchanges") == 0
    });
    assert_eq!(Client::connect(address).get("/good").status, 200);
    assert!(!cage.has_killed() && proxy.is_running());
    good.forgive();
}

#[test]
fn no_attack_by_an_http_2_upstream_kills_ten_megabytes() {
    walk(10 << 20);
}

#[test]
fn no_attack_by_an_http_2_upstream_kills_sixty_four_megabytes() {
    walk(64 << 20);
}

#[test]
fn memory_that_an_http_2_upstream_causes_is_in_the_budget() {
    if !is_release() {
        return skip("memory is measured on a release build: --release, or LEAN_PROXY_BIN");
    }
    for limit in ["10MiB", "64MiB"] {
        for (what, attack) in attacks() {
            let good = Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            let proxy = Setup::new(&yaml(&[hostile(attack)]))
                .upstream("UP", &good)
                .env("LEAN_PROXY_MEMORY", limit)
                .start();
            assert_eq!(proxy.get("/good").status, 200);
            let before = proxy.own_kb() * 1024;
            // the streams of one connection
            let crowd = crowd(proxy.address(), 0, 10);
            is_paid_for(what, &proxy, before);
            drop(crowd);
        }
    }
}
