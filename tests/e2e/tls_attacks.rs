//! Attacks by TLS clients on proxies in cgroups of 10 and 64 MiB, in the handshake and in records: the process lives,
//! answers health on a plain listener and on the one that is attacked, and serves others.
//!
//! Has the requirements of `attacks.rs`.

use std::{
    io::{self, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, Type};

use rustls::{ClientConfig, ClientConnection, ContentType, pki_types::ServerName};

use crate::{
    attacks::{Cage, nasty},
    support::{ALL, Client, Proxy, Setup, Upstream, eventually, get, let_pass},
    tls_listener::{Authority, LISTEN, Secure, authority, trust, write_files},
    tls_records::{self, HELLO, Records},
};

/// Clients of each attack: more than are admitted at a time.
const CROWD: usize = 200;

/// A plain listener, and one with TLS.
const LISTENERS: &str = "listen:\n  - '127.0.0.1:0'\n  - {address: '127.0.0.2:0', tls: {certificates: [{cert_file: DIR/cert.pem, key_file: DIR/key.pem}]}}\n";

/// Keeps the clients of an attack connected.
type Crowd = Vec<Box<dyn std::any::Any>>;

struct Target<'a> {
    address: SocketAddr,
    config: &'a Arc<ClientConfig>,
    /// For clients that write records by hand.
    by_hand: Arc<ClientConfig>,
}

impl Target<'_> {
    /// A client that has done its handshake.
    fn secure(&self) -> Option<Secure> {
        let mut client = Secure::connect(self.address, self.config, "a.test");
        client.try_ask(get("/health")).ok()?;
        Some(client)
    }

    /// The first bytes of a handshake.
    fn hello(&self) -> Vec<u8> {
        let name = ServerName::try_from("a.test").unwrap();
        let mut client = ClientConnection::new(Arc::clone(self.config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }

    /// Clients that send these bytes and nothing more.
    fn senders(&self, bytes: &[u8]) -> Crowd {
        (0..CROWD)
            .filter_map(|_| {
                let mut stream = TcpStream::connect(self.address).ok()?;
                stream
                    .set_write_timeout(Some(Duration::from_millis(50)))
                    .ok()?;
                let _ = stream.write_all(bytes);
                Some(Box::new(stream) as Box<dyn std::any::Any>)
            })
            .collect()
    }

    /// Clients that have done their handshakes and then do `act`.
    fn secured(&self, act: impl Fn(&mut Secure)) -> Crowd {
        (0..CROWD)
            .filter_map(|_| {
                let mut client = self.secure()?;
                act(&mut client);
                Some(Box::new(client) as Box<dyn std::any::Any>)
            })
            .collect()
    }

    /// The same, whose clients write these records by hand, again and again, as far as the proxy takes them.
    fn recorded(&self, kind: ContentType, content: &[u8]) -> Crowd {
        (0..CROWD)
            .filter_map(|_| {
                let mut client = Records::connect(self.address, &self.by_hand)?;
                client.set_write_timeout(Duration::from_millis(50));
                let _ = (0..20).all(|_| {
                    let records: Vec<u8> = (0..100)
                        .flat_map(|_| client.encrypt(kind, content))
                        .collect();
                    client.write(&records)
                });
                Some(Box::new(client) as Box<dyn std::any::Any>)
            })
            .collect()
    }
}

/// The start of a record of application data with `length` bytes, and most of it.
fn most_of_a_record(length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    let mut record = vec![23, 3, 3, high, low];
    record.resize(usize::from(length) - 100, 7);
    record
}

/// A handshake message of 60,000 bytes in records of `size`, without its end.
fn unfinished_hello(size: usize, total: usize) -> Vec<u8> {
    let mut message = vec![1, 0, 0xea, 0x60];
    message.resize(total, 0);
    message
        .chunks(size)
        .flat_map(|piece| {
            let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&[22, 3, 1, high, low], piece].concat()
        })
        .collect()
}

/// Starts the clients of an attack.
type Attack = fn(&Target<'_>) -> Crowd;

const ATTACKS: [(&str, Attack); 13] = [
    ("half a hello", |target| {
        let hello = target.hello();
        target.senders(&hello[..hello.len() / 2])
    }),
    ("a hello and no more", |target| {
        target.senders(&target.hello())
    }),
    ("a hello in records of one byte", |target| {
        target.senders(&unfinished_hello(1, 5_000))
    }),
    ("a hello of 60 kB that stops", |target| {
        target.senders(&unfinished_hello(16_000, 59_000))
    }),
    ("garbage", |target| {
        target.senders(&[22, 3, 1, 0, 5, 9, 9, 9, 9, 9])
    }),
    ("renegotiation", |target| {
        target.recorded(ContentType::Handshake, HELLO)
    }),
    ("a message of the handshake that stops", |target| {
        let most = [&[1, 0, 0xea, 0x60][..], &[0; 16_000]].concat();
        target.recorded(ContentType::Handshake, &most)
    }),
    ("warnings", |target| {
        target.recorded(ContentType::Alert, &[1, 100])
    }),
    ("records without data", |target| {
        target.recorded(ContentType::ApplicationData, b"")
    }),
    ("records that stop between two requests", |target| {
        target.secured(|client| client.send_raw(&most_of_a_record(16_000)))
    }),
    ("records that stop in a body", |target| {
        target.secured(|client| {
            let _ = client.send(UPLOAD);
            client.send_raw(&most_of_a_record(16_000));
        })
    }),
    ("long answers that are not read", |target| {
        target.secured(|client| drop(client.send(get("/long"))))
    }),
    ("heads that stop", |target| {
        target.secured(|client| drop(client.send("GET /never HTTP/1.1\r\nX-A: ")))
    }),
];

const UPLOAD: &str = "POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n";

/// Asks for health during an attack, over connections of its own.
fn stays_well(what: &str, proxy: &mut Proxy, cage: &Cage, config: &Arc<ClientConfig>) {
    let [plain, secured] = addresses(proxy);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(800) {
        assert!(proxy.is_running() && !cage.has_killed(), "{what}: killed");
        assert_eq!(Client::connect(plain).get("/health").status, 200, "{what}");
        answers(what, secured, config, "/health");
        let_pass(Duration::from_millis(100));
    }
}

/// Asks over TLS until a 200 comes: a client that is slower than the attackers may have to try again.
fn answers(what: &str, secured: SocketAddr, config: &Arc<ClientConfig>, target: &str) {
    eventually(what, || {
        let mut client = Secure::connect(secured, config, "a.test");
        let answer = client.try_ask(get(target));
        answer.is_ok_and(|answer| answer.status == 200)
    });
}

fn addresses(proxy: &Proxy) -> [SocketAddr; 2] {
    [0, 1].map(|at: usize| proxy.addresses()[at].parse().unwrap())
}

/// A proxy in a cage, with the default configuration.
fn start(cage: &Cage, upstream: &Upstream, by: &Authority) -> Proxy {
    let setup = Setup::new(&format!("{LISTENERS}{ALL}"))
        .upstream("UP", upstream)
        .listeners(2)
        .shell(&cage.script(), Stdio::null());
    write_files(&setup.dir(), by);
    setup.start()
}

fn walk(limit: usize) {
    let Some(cage) = Cage::of(limit) else { return };
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let config = trust(&by, rustls::ALL_VERSIONS, None);
    let mut proxy = start(&cage, &upstream, &by);
    let [plain, address] = addresses(&proxy);
    let target = Target {
        address,
        config: &config,
        by_hand: tls_records::config(&by),
    };
    let mut left: Crowd = Vec::new();
    for (what, attack) in ATTACKS {
        let mut crowd = attack(&target);
        stays_well(what, &mut proxy, &cage, &config);
        eventually(what, || Client::connect(plain).get("/short").status == 200);
        answers(what, address, &config, "/short");
        crowd.truncate(20);
        left.append(&mut crowd);
    }
    drop(left);
    stays_well("afterwards", &mut proxy, &cage, &config);
    upstream.forgive();
}

#[test]
fn no_attack_on_tls_kills_ten_megabytes() {
    walk(10 << 20);
}

#[test]
fn no_attack_on_tls_kills_sixty_four_megabytes() {
    walk(64 << 20);
}

#[test]
fn a_client_that_asks_for_renegotiation_again_loses_its_connection() {
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let setup = Setup::new(&format!("{LISTEN}{ALL}")).upstream("UP", &upstream);
    write_files(&setup.dir(), &by);
    let proxy = setup.start();
    let config = tls_records::config(&by);
    let mut client = Records::connect(proxy.address(), &config).unwrap();
    let first = client.encrypt(ContentType::Handshake, HELLO);
    client.write(&first);
    // the first is refused by a warning, and the connection goes on
    let request = client.encrypt(ContentType::ApplicationData, get("/health").as_bytes());
    client.write(&request);
    let alert = client.record().unwrap();
    assert_eq!(alert[0], 21, "an alert");
    let answer = client.record().unwrap();
    assert_eq!(answer[0], 23, "application data");
    let second = client.encrypt(ContentType::Handshake, HELLO);
    client.write(&second);
    let last = client.until_end();
    assert!(last.is_empty() || last[0] == 21, "{last:?}");
    let answer = Secure::connect(
        proxy.address(),
        &trust(&by, rustls::ALL_VERSIONS, None),
        "a.test",
    )
    .get("/health");
    assert_eq!(answer.status, 200);
}

#[test]
fn records_without_data_do_not_keep_an_idle_connection_open() {
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let yaml = format!("{LISTEN}{ALL}server: {{idle_timeout: 1s, header_timeout: 1s}}\n");
    let setup = Setup::new(&yaml).upstream("UP", &upstream);
    write_files(&setup.dir(), &by);
    let proxy = setup.start();
    let config = tls_records::config(&by);
    let mut client = Records::connect(proxy.address(), &config).unwrap();
    let request = client.encrypt(ContentType::ApplicationData, get("/health").as_bytes());
    client.write(&request);
    client.record().unwrap();
    eventually("the connection ends", || {
        let empty = client.encrypt(ContentType::ApplicationData, b"");
        !client.write(&empty)
    });
}

/// Connects from this address, which counts as another client.
fn connect_from(source: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&address.into(), Duration::from_millis(500))?;
    Ok(socket.into())
}

/// One thread of a flood: connects from these addresses in turn, sends a hello, and leaves the connections open for a
/// while; every twentieth client does its handshake, if it is served soon. Returns how many it has begun.
fn connects(target: &Target<'_>, sources: &[[u8; 4]], most: usize, is_over: &AtomicBool) -> usize {
    let hello = target.hello();
    let (mut begun, mut open) = (0, Vec::new());
    while begun < most && !is_over.load(Ordering::Relaxed) {
        let source = sources[begun % sources.len()];
        if let Ok(mut stream) = connect_from(source, target.address) {
            begun += 1;
            let _ = stream.set_read_timeout(Some(Duration::from_millis(100)));
            if begun % 20 == 0 {
                open.extend(whole(target, stream));
            } else if stream.write_all(&hello).is_ok() {
                open.push(stream);
            }
        }
        if open.len() > 300 {
            open.clear();
        }
    }
    begun
}

/// Does a handshake, within the stream's read time-out.
fn whole(target: &Target<'_>, mut stream: TcpStream) -> Option<TcpStream> {
    let name = ServerName::try_from("a.test").unwrap();
    let mut client = ClientConnection::new(Arc::clone(target.config), name).unwrap();
    while client.is_handshaking() {
        client.complete_io(&mut stream).ok()?;
    }
    Some(stream)
}

/// Floods a proxy with handshakes from these addresses, at most so many for each of two threads.
fn handshakes(limit: usize, sources: &[[u8; 4]], most: usize) {
    let Some(cage) = Cage::of(limit) else { return };
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let config = trust(&by, rustls::ALL_VERSIONS, None);
    let mut proxy = start(&cage, &upstream, &by);
    let [plain, address] = addresses(&proxy);
    let target = Target {
        address,
        config: &config,
        by_hand: tls_records::config(&by),
    };
    let is_over = AtomicBool::new(false);
    let what = "a flood of handshakes";
    thread::scope(|scope| {
        let flood: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| connects(&target, sources, most, &is_over)))
            .collect();
        loop {
            stays_well(what, &mut proxy, &cage, &config);
            eventually(what, || Client::connect(plain).get("/short").status == 200);
            answers(what, address, &config, "/short");
            if most == usize::MAX || flood.iter().all(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
        for one in flood {
            one.join().unwrap();
        }
    });
    stays_well("afterwards", &mut proxy, &cage, &config);
    assert!(!cage.has_killed());
    upstream.forgive();
}

#[test]
fn a_flood_of_handshakes_leaves_room_for_health() {
    handshakes(10 << 20, &[[127, 0, 0, 3]], usize::MAX);
}

/// 4,000 connects, from many addresses.
#[test]
fn thousands_of_handshakes_of_many_clients_leave_room_for_others() {
    let sources: Vec<[u8; 4]> = (1..=200).map(|last| [127, 0, 7, last]).collect();
    for limit in [10 << 20, 64 << 20] {
        handshakes(limit, &sources, 2_000);
    }
}
