//! TLS of clients attacked in ten megabytes, handshake by handshake and record by record: the process lives, and answers
//! for its health on a plain listener and on the one that is attacked.
//!
//! Needs what `attacks.rs` needs.

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

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

use crate::{
    attacks::{Cage, nasty},
    support::{ALL, Client, Proxy, Setup, Upstream, eventually, get, let_pass},
    tls_listener::{Authority, Secure, authority, trust, write_files},
};

/// Clients of each attack: more than what is admitted at a time.
const CROWD: usize = 200;

/// A plain listener, and one with TLS.
const LISTEN: &str = "listen:\n  - '127.0.0.1:0'\n  - {address: '127.0.0.2:0', tls: {certificates: [{cert_file: DIR/cert.pem, key_file: DIR/key.pem}]}}\n";

/// What keeps the clients of an attack connected.
type Crowd = Vec<Box<dyn std::any::Any>>;

struct Target<'a> {
    address: SocketAddr,
    config: &'a Arc<ClientConfig>,
}

impl Target<'_> {
    /// A client that has shaken hands.
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

    /// Clients that have shaken hands, then do as `act` says.
    fn secured(&self, act: impl Fn(&mut Secure)) -> Crowd {
        (0..CROWD)
            .filter_map(|_| {
                let mut client = self.secure()?;
                act(&mut client);
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

/// What the clients of an attack do.
type Attack = fn(&Target<'_>) -> Crowd;

const ATTACKS: [(&str, Attack); 9] = [
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

/// Asks for health while an attack lasts, over connections of its own.
fn stays_well(what: &str, proxy: &mut Proxy, cage: &Cage, config: &Arc<ClientConfig>) {
    let [plain, secured] = addresses(proxy);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(800) {
        assert!(proxy.is_running() && !cage.has_killed(), "{what}: killed");
        assert_eq!(Client::connect(plain).get("/health").status, 200, "{what}");
        // a client that is slower than the crowd may have to try again
        eventually(what, || {
            let mut client = Secure::connect(secured, config, "a.test");
            let answer = client.try_ask(get("/health"));
            answer.is_ok_and(|answer| answer.status == 200)
        });
        let_pass(Duration::from_millis(100));
    }
}

fn addresses(proxy: &Proxy) -> [SocketAddr; 2] {
    [0, 1].map(|at: usize| proxy.addresses()[at].parse().unwrap())
}

/// In a cage of ten megabytes, with the shipped defaults.
fn start(cage: &Cage, upstream: &Upstream, by: &Authority) -> Proxy {
    let setup = Setup::new(&format!("{LISTEN}{ALL}"))
        .upstream("UP", upstream)
        .listeners(2)
        .shell(&cage.script(), Stdio::null());
    write_files(&setup.dir(), by);
    setup.start()
}

#[test]
fn no_attack_on_tls_kills_ten_megabytes() {
    let Some(cage) = Cage::new() else { return };
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let config = trust(&by, rustls::ALL_VERSIONS, None);
    let mut proxy = start(&cage, &upstream, &by);
    let [_, address] = addresses(&proxy);
    let target = Target {
        address,
        config: &config,
    };
    let mut left: Crowd = Vec::new();
    for (what, attack) in ATTACKS {
        let mut crowd = attack(&target);
        stays_well(what, &mut proxy, &cage, &config);
        crowd.truncate(20);
        left.append(&mut crowd);
    }
    drop(left);
    stays_well("afterwards", &mut proxy, &cage, &config);
    upstream.forgive();
}

/// Connects from this address, which counts as another client.
fn connect_from(source: [u8; 4], address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&address.into(), Duration::from_millis(500))?;
    Ok(socket.into())
}

#[test]
fn a_flood_of_handshakes_leaves_room_for_health() {
    let Some(cage) = Cage::new() else { return };
    let (by, upstream) = (authority(), Upstream::start(nasty));
    let config = trust(&by, rustls::ALL_VERSIONS, None);
    let mut proxy = start(&cage, &upstream, &by);
    let [_, address] = addresses(&proxy);
    let is_over = Arc::new(AtomicBool::new(false));
    let hello = Target {
        address,
        config: &config,
    }
    .hello();
    let flood = {
        let is_over = Arc::clone(&is_over);
        thread::spawn(move || {
            let mut open = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                if let Ok(mut stream) = connect_from([127, 0, 0, 3], address) {
                    let _ = stream.write_all(&hello);
                    open.push(stream);
                }
                if open.len() > 300 {
                    open.clear();
                }
            }
        })
    };
    stays_well("a flood of handshakes", &mut proxy, &cage, &config);
    is_over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    stays_well("afterwards", &mut proxy, &cage, &config);
    upstream.forgive();
}
