//! Attacks by HTTP/2 clients on proxies in cgroups of 10 and 64 MiB: the process lives, answers health, and still
//! serves others.
//!
//! Needs the right to make a memory cgroup (version 1) and a release build; otherwise it says so and is skipped.

use std::{
    io,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    attacks::{Cage, stays_well},
    h2::{DATA, GOAWAY, HEADERS, PING, RST_STREAM, Raw, SETTINGS, ask, field, frame, get, head},
    support::{Client, Peer, Setup, Upstream, eventually, pattern},
};

const YAML: &str = "listen: {address: '127.0.0.1:0', http2: true}\nroutes:\n  - {path: /, target: 'http://UP'}\n  - {path: /fixed, respond: {body: hi}}\n";

/// Connections of each attack: more than are admitted at a time.
const CROWD: usize = 20;

/// Streams that a client opens at once: more than it is allowed.
const STREAMS: usize = 120;

/// Answers some paths, and others never.
fn upstream() -> Upstream {
    fn script(peer: &mut Peer) -> io::Result<()> {
        while let Ok(request) = peer.head() {
            match request.target.as_str() {
                "/ok" => peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?,
                "/large" => {
                    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")?;
                    peer.write(pattern(0, 100_000))?;
                }
                "/204" | "/304" | "/head" => {
                    let code = request.target.get(1..).filter(|it| *it != "head");
                    let fields = format!("X-A: {}\r\n", "x".repeat(75)).repeat(200);
                    peer.write(format!(
                        "HTTP/1.1 {} A\r\n{fields}\r\n",
                        code.unwrap_or("200")
                    ))?;
                }
                _ => {
                    peer.stand_still();
                    return Ok(());
                }
            }
        }
        Ok(())
    }
    Upstream::start(script)
}

/// A field with a long value (RFC 7541 §6.2.2).
pub fn long_field(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
    bytes.extend(name.as_bytes());
    let mut left = len - 127;
    bytes.push(127);
    while left >= 128 {
        bytes.push(u8::try_from(left % 128).unwrap() | 128);
        left /= 128;
    }
    bytes.push(u8::try_from(left).unwrap());
    bytes.resize(bytes.len() + len, b'x');
    bytes
}

/// The head of a request whose path goes into the HPACK table.
fn indexed(path: &str, len: usize) -> Vec<u8> {
    let mut path_field = field(":path", path);
    path_field[0] = 0x40;
    [
        field(":method", "GET"),
        field(":scheme", "http"),
        path_field,
        field(":authority", "a.example"),
        long_field("x-a", len),
    ]
    .concat()
}

pub fn tiny_fields(count: usize) -> Vec<u8> {
    let name = |number: usize| char::from(b'a' + u8::try_from(number % 26).unwrap()).to_string();
    (0..count)
        .flat_map(|number| field(&name(number), ""))
        .collect()
}

/// What one client sends, as long as the proxy takes it.
type Attack = fn(&mut Raw);

fn flood(raw: &mut Raw, bytes: &[u8]) {
    let batch = bytes.repeat(100);
    for _ in 0..200 {
        if !raw.write(&batch) {
            return;
        }
    }
}

fn uploads(raw: &mut Raw, count: usize) -> Vec<u32> {
    (0..count)
        .map(|_| raw.open(&head("POST", "/never"), false))
        .collect()
}

fn attacks() -> Vec<(&'static str, Attack)> {
    vec![
        ("rapid resets, in batches", |raw| {
            for _ in 0..30 {
                let streams: Vec<u32> = (0..STREAMS)
                    .map(|_| raw.open(&head("GET", "/never"), true))
                    .collect();
                for stream in streams {
                    raw.write(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
                }
            }
        }),
        ("rapid resets, one by one", |raw| {
            for _ in 0..3_000 {
                let stream = raw.open(&head("GET", "/never"), true);
                if !raw.write(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())) {
                    return;
                }
            }
        }),
        ("CONTINUATION without end", |raw| {
            raw.write(&frame(HEADERS, 0, 1, &head("GET", "/never")));
            let more = frame(9, 0, 1, &long_field("x-a", 16_000));
            for _ in 0..50 {
                raw.write(&more);
            }
        }),
        ("empty CONTINUATION without end", |raw| {
            raw.write(&frame(HEADERS, 0, 1, &head("GET", "/never")));
            flood(raw, &frame(9, 0, 1, b""));
        }),
        ("SETTINGS", |raw| {
            flood(raw, &frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]));
        }),
        ("PING", |raw| flood(raw, &frame(PING, 0, 0, &[0; 8]))),
        ("PRIORITY", |raw| {
            flood(raw, &frame(2, 0, 1, &[0, 0, 0, 0, 1]));
        }),
        ("WINDOW_UPDATE", |raw| {
            flood(raw, &frame(8, 0, 0, &1_u32.to_be_bytes()));
        }),
        ("unknown frames", |raw| {
            flood(raw, &frame(0x20, 0, 0, &[0; 100]));
        }),
        ("empty DATA", |raw| {
            let stream = raw.open(&head("POST", "/never"), false);
            flood(raw, &frame(DATA, 0, stream, b""));
        }),
        ("pieces of a body far apart", |raw| {
            for stream in uploads(raw, 8) {
                for _ in 0..30 {
                    raw.write(&frame(DATA, 0, stream, &[b'x'; 256]));
                    raw.write(&frame(0x20, 0, 0, &[0; 7_800]));
                }
            }
        }),
        ("pieces of a body between large heads", |raw| {
            let stream = raw.open(&head("POST", "/never"), false);
            for _ in 0..60 {
                raw.write(&frame(DATA, 0, stream, &[b'x'; 256]));
                raw.open(&indexed("/fixed", 7_600), true);
            }
        }),
        ("an HPACK table out of many buffers", |raw| {
            for number in 0..107 {
                raw.open(&indexed(&format!("/fixed/{number:03}"), 7_600), true);
            }
        }),
        ("heads of many fields", |raw| {
            for _ in 0..STREAMS {
                raw.open(&[head("GET", "/never"), tiny_fields(240)].concat(), true);
            }
        }),
        ("heads of too many fields", |raw| {
            for _ in 0..STREAMS {
                raw.open(&[head("GET", "/never"), tiny_fields(450)].concat(), true);
            }
        }),
        ("trailers of many fields", |raw| {
            for stream in uploads(raw, 30) {
                raw.write(&frame(DATA, 0, stream, &[b'x'; 300]));
                raw.write(&frame(HEADERS, 5, stream, &tiny_fields(240)));
            }
        }),
        ("half a frame with a head", |raw| {
            let whole = frame(HEADERS, 5, 1, &indexed("/never", 16_000));
            raw.write(&whole[..whole.len() - 1]);
        }),
        ("half a frame with a body", |raw| {
            let stream = raw.open(&head("POST", "/never"), false);
            let whole = frame(DATA, 0, stream, &[b'x'; 16_000]);
            raw.write(&whole[..whole.len() - 1]);
        }),
        ("half-open streams", |raw| {
            uploads(raw, STREAMS);
        }),
        ("answers that no window lets through", |raw| {
            raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
            for _ in 0..STREAMS {
                raw.open(&head("GET", "/large"), true);
            }
        }),
        ("large heads without a body that no client reads", |raw| {
            for _ in 0..10 {
                for (method, path) in [("GET", "/204"), ("GET", "/304"), ("HEAD", "/head")] {
                    for _ in 0..10 {
                        raw.open(&head(method, path), true);
                    }
                }
            }
        }),
        ("answers that no client reads", |raw| {
            for _ in 0..STREAMS {
                raw.open(&head("GET", "/large"), true);
            }
        }),
    ]
}

/// One walk at a time: the upstreams that stand still keep thousands of descriptors of the tests' process.
static WALK: Mutex<()> = Mutex::new(());

fn walk(limit: usize) {
    let _turn = WALK.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(cage) = Cage::of(limit) else { return };
    let upstream = upstream();
    let mut proxy = Setup::new(YAML)
        .upstream("UP", &upstream)
        .shell(&cage.script(), Stdio::null())
        .start();
    let address = proxy.address();
    let mut left = Vec::new();
    for (what, attack) in attacks() {
        let mut crowd: Vec<Raw> = Vec::new();
        for _ in 0..CROWD {
            let mut raw = Raw::connect(address, b"");
            raw.set_write_timeout(Duration::from_millis(300));
            attack(&mut raw);
            crowd.push(raw);
        }
        stays_well(what, &mut proxy, &cage, &|proxy| {
            Client::narrow(proxy.address())
        });
        eventually(what, || {
            Client::narrow(address).get("/ok").status == 200 && !cage.has_killed()
        });
        // some connections stay during the next attacks
        crowd.truncate(2);
        left.append(&mut crowd);
    }
    drop(left);
    eventually("HTTP/2 is served as before", || {
        let mut raw = Raw::connect(address, b"");
        raw.open(&head("GET", "/fixed"), true);
        raw.until("an answer or a GOAWAY", |it| {
            matches!(it.0, HEADERS | GOAWAY)
        })
        .0 == HEADERS
    });
    assert_eq!(ask(address, get("/ok", &[])).text(), "ok");
    assert!(!cage.has_killed() && proxy.is_running());
    upstream.forgive();
}

#[test]
fn no_attack_by_http_2_kills_ten_megabytes() {
    walk(10 << 20);
}

#[test]
fn no_attack_by_http_2_kills_sixty_four_megabytes() {
    walk(64 << 20);
}

#[test]
fn answers_that_no_client_took_are_freed_with_their_connection() {
    let upstream = upstream();
    let proxy = Setup::new(YAML)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "64MiB")
        .start();
    let window = [0, 4, 0, 0, 0, 0];
    let leave = || {
        let mut raw = Raw::connect(proxy.address(), &window);
        let streams: Vec<u32> = (0..30)
            .map(|_| raw.open(&head("GET", "/large"), true))
            .collect();
        for _ in streams {
            raw.until("a head", |it| it.0 == HEADERS);
        }
    };
    for _ in 0..20 {
        leave();
    }
    let before = proxy.own_kb();
    for _ in 0..100 {
        leave();
    }
    // 3,000 answers, of which 4 kB each had been read
    eventually("it holds no more than before", || {
        proxy.own_kb() < before + 3_000
    });
    upstream.forgive();
}
