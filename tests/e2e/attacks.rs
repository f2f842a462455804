//! An attack for each row of the table in `docs/memory.md`, in a cgroup of 10 MiB with the default configuration: the process
//! is not killed, and answers health checks.
//!
//! Needs the right to make a memory cgroup (version 1) and a release build; otherwise it is skipped with a message.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Stdio, id},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use crate::{
    metrics::metric,
    support::{
        ALL, Client, Peer, Proxy, Setup, Upstream, eventually, get, is_release, let_pass, skip,
    },
};

const LIMIT: usize = 10 << 20;

/// Clients of each attack: more than are admitted at the same time.
const CROWD: usize = 150;

/// A memory cgroup; removed when dropped.
pub struct Cage(PathBuf);

impl Cage {
    pub fn new() -> Option<Cage> {
        Cage::of(LIMIT)
    }

    /// One of so many bytes.
    pub fn of(limit: usize) -> Option<Cage> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("lean-proxy-test-{}-{number}", id());
        let path = Path::new("/sys/fs/cgroup/memory").join(name);
        if !is_release() || fs::create_dir(&path).is_err() {
            skip("attacks need a release build and the right to make a memory cgroup (version 1)");
            return None;
        }
        let cage = Cage(path);
        fs::write(cage.0.join("memory.limit_in_bytes"), limit.to_string()).unwrap();
        Some(cage)
    }

    /// A shell script that puts the proxy in.
    pub fn script(&self) -> String {
        format!(
            "ulimit -n $(ulimit -Hn); echo 0 > {}/cgroup.procs; exec \"$0\" \"$@\"",
            self.0.display()
        )
    }

    /// Whether the kernel killed something in it.
    pub fn has_killed(&self) -> bool {
        let control = fs::read_to_string(self.0.join("memory.oom_control")).unwrap();
        let line = control.lines().find(|line| line.starts_with("oom_kill "));
        line.is_some_and(|line| line != "oom_kill 0")
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            let_pass(Duration::from_millis(20));
        }
    }
}

/// An upstream that misbehaves as the target says.
pub fn nasty(peer: &mut Peer) -> std::io::Result<()> {
    while let Ok(request) = peer.head() {
        let target = request.target.as_str();
        let fields = format!("Set-Cookie: a={}\r\n", "x".repeat(440)).repeat(200);
        if target.starts_with("/head") {
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok"
            ))?;
        } else if target.starts_with("/stop") {
            peer.write(format!("HTTP/1.1 200 OK\r\n{fields}"))?;
            return peer.await_close();
        } else if target.starts_with("/interim") {
            let hint = format!(
                "HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n",
                "x".repeat(60_000)
            );
            peer.write(hint.repeat(9))?;
            return peer.await_close();
        } else if target.starts_with("/trailer") {
            let trailer = format!("X-A: {}\r\n", "x".repeat(4_000));
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            peer.write(format!("{head}1\r\na\r\n0\r\n{trailer}"))?;
            return peer.await_close();
        } else if target.starts_with("/long") {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")?;
            while peer.write([b'x'; 16_384]).is_ok() {}
            return Ok(());
        } else if target.starts_with("/short") {
            let body = "x".repeat(3_900);
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 3900\r\n\r\n{body}"
            ))?;
        } else {
            // never answers, and reads no body
            peer.stand_still();
            return Ok(());
        }
    }
    Ok(())
}

/// What each client of an attack sends.
fn requests() -> Vec<(&'static str, String)> {
    let long = "a".repeat(60_000);
    let tiny = "a:\r\n".repeat(250);
    vec![
        ("response heads of 90 kB that no client reads", get("/head")),
        ("response heads that stop", get("/stop")),
        ("103s of 60 kB", get("/interim")),
        ("trailers of an answer that stop", get("/trailer")),
        ("long answers that no client reads", get("/long")),
        ("short answers that no client reads", get("/short")),
        (
            "paths of 60 kB",
            format!("GET /never/{long} HTTP/1.1\r\nHost: a\r\n\r\nG"),
        ),
        (
            "hosts of 60 kB",
            format!("GET /never HTTP/1.1\r\nHost: {long}\r\n\r\nG"),
        ),
        (
            "250 fields each",
            format!("GET /never HTTP/1.1\r\nHost: a\r\n{tiny}\r\n"),
        ),
        ("request heads that stop", format!("GET /never/{long}")),
        (
            "trailers of a request that stop",
            format!(
                "POST /never HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-A: {}\r\n",
                "x".repeat(4_000)
            ),
        ),
        (
            "uploads to an upstream that does not read",
            format!("POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n{long}"),
        ),
    ]
}

/// Asks for health while the attack lasts, over a connection of its own each time.
pub fn stays_well(what: &str, proxy: &mut Proxy, cage: &Cage, connect: &dyn Fn(&Proxy) -> Client) {
    let begun = Instant::now();
    let mut answered = 0;
    while begun.elapsed() < Duration::from_millis(800) {
        assert!(proxy.is_running() && !cage.has_killed(), "{what}: killed");
        assert_eq!(connect(proxy).get("/health").status, 200, "{what}");
        answered += 1;
        let_pass(Duration::from_millis(100));
    }
    assert!(answered > 0 && !cage.has_killed(), "{what}");
}

/// Runs every attack, one after the other, with the clients that `connect` makes; some of each stay connected during the next.
/// Those that `other` makes are served meanwhile.
fn walk(
    yaml: &str,
    upstream: &Upstream,
    connect: &dyn Fn(&Proxy) -> Client,
    other: &dyn Fn(&Proxy) -> Client,
) {
    let Some(cage) = Cage::new() else { return };
    let mut proxy = Setup::new(yaml)
        .upstream("UP", upstream)
        .shell(&cage.script(), Stdio::null())
        .start();
    let mut left = Vec::new();
    for (what, request) in requests() {
        let mut crowd: Vec<Client> = Vec::new();
        for _ in 0..CROWD {
            let mut client = connect(&proxy);
            // a proxy that refuses the request reads only a part of it
            let _ = client.try_send(&request);
            crowd.push(client);
        }
        stays_well(what, &mut proxy, &cage, other);
        crowd.truncate(20);
        left.append(&mut crowd);
    }
    drop(left);
    stays_well("afterwards", &mut proxy, &cage, other);
    upstream.forgive();
}

/// Bytes that a process may use beyond its permits: the reserve of a twelfth, the head that is being parsed, and what the
/// allocator has not returned yet.
const UNPAID: u64 = 1_400_000;

/// Checks for a while that the process holds no more beyond `before` bytes than its permits say.
pub fn is_paid_for(what: &str, proxy: &Proxy, before: u64) {
    for _ in 0..4 {
        // gauges are updated at ticks
        let_pass(Duration::from_millis(200));
        let paid = metric(proxy, "lean_proxy_memory_used_bytes");
        let own = (proxy.own_kb() * 1024).saturating_sub(before);
        assert!(own < paid + UNPAID, "{what}: {own} bytes, {paid} paid");
    }
}

#[test]
fn memory_that_clients_and_upstreams_cause_is_in_the_budget() {
    if !is_release() {
        return skip("memory is measured on a release build: --release, or LEAN_PROXY_BIN");
    }
    for (what, request) in requests() {
        let upstream = Upstream::start(nasty);
        let yaml =
            format!("{ALL}{WIDE}metrics: {{listen: '127.0.0.1:0'}}\nlog: {{access: true}}\n");
        let proxy = Setup::new(&yaml)
            .upstream("UP", &upstream)
            .env("LEAN_PROXY_MEMORY", "10MiB")
            .start();
        assert_eq!(proxy.get("/health").status, 200);
        let before = proxy.own_kb() * 1024;
        let mut crowd = Vec::new();
        for _ in 0..CROWD {
            let mut client = tcp(&proxy);
            let _ = client.try_send(&request);
            crowd.push(client);
        }
        is_paid_for(what, &proxy, before);
        drop(crowd);
        upstream.forgive();
    }
}

#[test]
fn large_heads_reach_the_clients_that_read_them_in_ten_megabytes() {
    let upstream = Upstream::start(nasty);
    let yaml = format!("{ALL}transport: {{max_conns_per_host: 0}}\n");
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let mut stuck: Vec<Client> = (0..40).map(|_| tcp(&proxy)).collect();
    for client in &mut stuck {
        client.send(get("/head"));
    }
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/head"));
    }
    // clients that do not read give way to those that do
    let answers: Vec<_> = clients.iter_mut().map(Client::receive).collect();
    let whole = answers.iter().filter(|answer| {
        answer.status == 200 && answer.body == b"ok" && answer.fields.0.len() >= 200
    });
    assert!(
        whole.count() >= 10,
        "{:?}",
        answers
            .iter()
            .map(|answer| answer.status)
            .collect::<Vec<_>>()
    );
    drop(stuck);
    eventually("it is as before", || proxy.get("/head").status == 200);
}

fn tcp(proxy: &Proxy) -> Client {
    Client::narrow(proxy.address())
}

const WIDE: &str =
    "transport: {max_conns_per_host: 0}\nproxy: {max_concurrent_requests: 0, queue_timeout: 2}\n";

#[test]
fn no_attack_kills_ten_megabytes_with_the_shipped_defaults() {
    walk(ALL, &Upstream::start(nasty), &tcp, &tcp);
}

#[test]
fn no_attack_kills_ten_megabytes_without_other_bounds_and_with_the_access_log() {
    let yaml = format!("{ALL}{WIDE}log: {{access: true}}\n");
    walk(&yaml, &Upstream::start(nasty), &tcp, &tcp);
}

#[test]
fn no_attack_kills_ten_megabytes_behind_unix_sockets() {
    let folder = std::env::temp_dir().join(format!("lean-proxy-attacks-{}", id()));
    fs::create_dir_all(&folder).unwrap();
    let (ours, theirs) = (folder.join("l.sock"), folder.join("u.sock"));
    let _ = fs::remove_file(&theirs);
    let upstream = Upstream::unix(&theirs, nasty);
    let yaml = format!(
        "listen: ['127.0.0.1:0', 'unix:{}']\nroutes: [{{path: /, target: 'unix:UP'}}]\n{WIDE}",
        ours.display()
    );
    // a process that leaves much unread on unix sockets gets no further ones, but others are served
    walk(&yaml, &upstream, &|_| Client::unix(&ours), &Proxy::client);
    drop(upstream);
    let _ = fs::remove_dir_all(&folder);
}
