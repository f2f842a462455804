//! Names of targets: how they are resolved, how often, and what an unknown one gives.

use std::{
    env, fs,
    net::UdpSocket,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    https::port,
    support::{Client, OK, PATIENCE, Setup, Signal, Upstream, all_served, eventually, get, skip},
};

#[test]
fn an_unknown_name_is_a_bad_gateway_and_is_logged() {
    for scheme in ["http", "https"] {
        let yaml = format!("routes: [{{path: /, target: '{scheme}://nobody.invalid'}}]\n");
        let proxy = Setup::new(&yaml).start();
        let response = proxy.get("/");
        if response.status == 504 {
            return skip("the resolver of this machine does not answer");
        }
        assert_eq!(response.status, 502);
        assert_eq!(response.text(), "The upstream's name is not known.\n");
        proxy.await_log("the name", |line| {
            line.contains("name-unresolved: nobody.invalid: ")
        });
    }
}

/// A shell line that runs `"$0" "$@"` with `file` mounted at `at`; `None` where this is not permitted.
fn disguise(file: &Path, at: &str, more: &str) -> Option<String> {
    let line = format!(
        "exec unshare -rm{} sh -c '{more} mount --bind \"{}\" {at} && exec \"$0\" \"$@\"' \"$0\" \"$@\"",
        if more.is_empty() { "" } else { "n" },
        file.display()
    );
    let probe = Command::new("/bin/sh")
        .args(["-c", &line, "true"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success()).then_some(line)
}

#[test]
fn a_changed_address_in_the_hosts_file_is_used() {
    let first =
        Upstream::fixed("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\n1");
    let port = port(&first);
    let setup = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://moving.test:{port}'}}]\n"
    ));
    let hosts = setup.dir().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.1 moving.test\n").unwrap();
    let Some(line) = disguise(&hosts, "/etc/hosts", "") else {
        return skip("no private /etc/hosts: unshare -rm does not work here");
    };
    let proxy = setup.shell(&line, Stdio::null()).start();
    assert_eq!(proxy.get("/").text(), "1");
    fs::write(&hosts, "127.0.0.1 localhost\n127.0.0.2 moving.test\n").unwrap();
    let second = Upstream::on(&format!("127.0.0.2:{port}"), |peer| {
        while peer.request()?.is_some() {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2")?;
        }
        Ok(())
    });
    drop(first);
    eventually("the first is gone", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err()
    });
    assert_eq!(proxy.get("/").text(), "2", "the very next request");
    assert_eq!(second.connections(), 1);
}

/// Answers every query with 127.0.0.1, the first one when `release` is raised; counts those for IPv4 addresses.
fn name_server(release: Signal) -> Arc<AtomicUsize> {
    let questions = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&questions);
    let socket = UdpSocket::bind("127.0.0.1:53").unwrap();
    thread::spawn(move || {
        let mut packet = [0; 512];
        let mut asked = 0;
        while let Ok((count, from)) = socket.recv_from(&mut packet) {
            // RFC 1035 §4.1: the question begins at byte 12 and ends 4 bytes after the root label
            let name_end = 12 + packet[12..count].iter().position(|b| *b == 0).unwrap() + 1;
            let question = packet[12..name_end + 4].to_vec();
            let is_v4 = packet[name_end..name_end + 2] == [0, 1];
            counter.fetch_add(usize::from(is_v4), Ordering::SeqCst);
            if asked == 0 && release.wait().is_err() {
                return;
            }
            asked += 1;
            let answer: &[u8] = if is_v4 {
                &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]
            } else {
                &[]
            };
            let head = [
                packet[0],
                packet[1],
                0x81,
                0x80,
                0,
                1,
                0,
                u8::from(is_v4),
                0,
                0,
                0,
                0,
            ];
            let reply = [&head[..], &question, answer].concat();
            let _ = socket.send_to(&reply, from);
        }
    });
    questions
}

/// Runs itself again in its own network namespace, where it can be the name server.
#[test]
fn concurrent_requests_resolve_a_name_once() {
    if env::var_os("LEAN_PRIVATE_NETWORK").is_some() {
        return ten_requests_ask_once();
    }
    let setup = Setup::new("");
    let resolver = setup.dir().join("resolv.conf");
    fs::write(&resolver, "nameserver 127.0.0.1\noptions timeout:10\n").unwrap();
    let Some(line) = disguise(&resolver, "/etc/resolv.conf", "ip link set lo up &&") else {
        return skip("no private network: unshare -rmn and ip do not work here");
    };
    let me = thread::current().name().unwrap().to_owned();
    let inner = Command::new("/bin/sh")
        .args(["-c", &line])
        .arg(env::current_exe().unwrap())
        .args(["--exact", &me, "--nocapture"])
        .env("LEAN_PRIVATE_NETWORK", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inner.stdout) + String::from_utf8_lossy(&inner.stderr);
    assert!(inner.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    if said.contains("SKIPPED") {
        skip("no private network: names are not asked for by DNS here");
    }
}

fn ten_requests_ask_once() {
    let release = Signal::default();
    let questions = name_server(release.clone());
    let upstream = Upstream::fixed(OK);
    let port = port(&upstream);
    let proxy = Setup::new(&format!(
        "routes: [{{path: /, target: 'http://many.test:{port}'}}]\n"
    ))
    .start();
    let mut clients: Vec<Client> = (0..10).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/"));
    }
    let since = Instant::now();
    while questions.load(Ordering::SeqCst) == 0 {
        if since.elapsed() > PATIENCE / 4 {
            return skip("no query reaches the name server");
        }
        thread::yield_now();
    }
    // answered after the ten, on the same thread
    assert_eq!(proxy.get("/health").status, 200);
    release.raise();
    all_served(&mut clients);
    assert_eq!(questions.load(Ordering::SeqCst), 1);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(questions.load(Ordering::SeqCst), 1, "known for a while");
}
