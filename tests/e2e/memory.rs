//! The memory of the process idle, under load and after it. Only a release build is measured.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixDatagram,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::{
    strict::Reader,
    support::{
        ALL, Client, OK, PATIENCE, Proxy, Setup, Upstream, eventually, get, is_release, let_pass,
        skip,
    },
};

/// kB of an idle proxy, with its code, linked to the shared C library; the static binary takes half of it.
const IDLE_CEILING: u64 = 1536;

/// Starts the proxy with as many descriptors as the machine allows.
const MANY_FILES: &str = "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"";

fn measured() -> bool {
    if !is_release() {
        skip("memory is measured on a release build: --release, or LEAN_PROXY_BIN");
    }
    is_release()
}

/// As many connections as this process may open besides what other tests need.
fn crowd_size() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    let soft: usize = line
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap_or(usize::MAX);
    (soft / 2).saturating_sub(100).clamp(100, 1000)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Waits until a measure is below its ceiling.
fn settles(what: &str, ceiling: u64, measure: impl Fn() -> u64) {
    let since = Instant::now();
    loop {
        let kb = measure();
        if kb < ceiling {
            return;
        }
        assert!(
            since.elapsed() < PATIENCE,
            "{what}: {kb} kB, not below {ceiling}"
        );
        let_pass(Duration::from_millis(100));
    }
}

#[test]
fn an_idle_proxy_is_small() {
    if !measured() {
        return;
    }
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status, 200);
    }
    settles("idle", IDLE_CEILING, || proxy.pss_kb());
    assert_eq!(proxy.memory("AnonHugePages"), 0);
}

#[test]
fn a_connection_without_a_request_costs_less_than_a_kilobyte() {
    if measured() {
        crowd_is_cheap(false);
    }
}

#[test]
fn a_connection_between_two_requests_costs_less_than_a_kilobyte() {
    if measured() {
        crowd_is_cheap(true);
    }
}

/// Opens many connections, after one request each if `served`, and measures their memory.
fn crowd_is_cheap(served: bool) {
    let upstream = Upstream::fixed(OK);
    let yaml =
        format!("{ALL}server: {{idle_timeout: 600, header_timeout: 600, max_connections: 5000}}\n");
    let setup = Setup::new(&yaml).upstream("UP", &upstream);
    let proxy = setup.shell(MANY_FILES, Stdio::null()).start();
    proxy.get("/");
    let before = proxy.own_kb();
    let count = crowd_size();
    let mut crowd: Vec<TcpStream> = (0..count).map(|_| connect(proxy.address())).collect();
    if served {
        for stream in &mut crowd {
            asks(stream, "/");
        }
    }
    assert_eq!(proxy.get("/health").status, 200);
    // 590 bytes for each were measured
    let allowed = count as u64 * 2 / 3 + 64;
    let more = || proxy.own_kb().saturating_sub(before);
    settles(&format!("{count} connections"), allowed, more);
    assert_eq!(proxy.memory("AnonHugePages"), 0);
    for stream in &mut crowd {
        asks(stream, "/health");
    }
}

fn asks(stream: &mut TcpStream, target: &str) {
    stream.write_all(get(target).as_bytes()).unwrap();
    let mut reader = Reader::new(stream);
    let answer = reader.response_head("").unwrap().unwrap();
    reader.body(answer.framing).unwrap();
    assert_eq!(answer.status, 200);
}

/// Every descriptor of a process, as the link in /proc shows it; sockets without their numbers.
fn descriptors(proxy: &Proxy) -> Vec<String> {
    let folder = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).unwrap();
    let links = folder.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let mut links: Vec<String> = links
        .map(|link| {
            let link = link.display().to_string();
            link.split(":[").next().unwrap_or_default().to_owned()
        })
        .collect();
    links.sort();
    links
}

#[test]
fn reloads_leak_nothing() {
    let route = |index: usize, token: &str| {
        let edits = "request_headers: {set: {X-A: 'some value'}, remove: [X-B]}";
        format!("- {{path: /{index}/, target: '{token}', {edits}, cors: {{max_age: {index}}}}}\n")
    };
    let routes = |token: &str| (0..8).map(|index| route(index, token)).collect::<String>();
    let rest = "cors: {allowed_origins: ['https://a.example']}\nmetrics: {listen: '127.0.0.1:0'}\n\
        server: {idle_timeout: 600}\ntransport: {idle_conn_timeout: 600}\n";
    let one = format!(
        "listen: '127.0.0.1:0'\n{rest}routes:\n{}",
        routes("http://UP")
    );
    // another listener, other targets, roots to read, and a mistake
    let two = format!(
        "listen: ['127.0.0.1:0', 'unix:DIR/more.sock']\n{rest}routes:\n{}{}",
        routes("https://UP"),
        route(8, "http://UP")
    );
    let bad = format!("{two}nonsense: true\n");
    let upstream = Upstream::fixed(OK);
    let setup = Setup::new(&one);
    let told = UnixDatagram::bind(setup.dir().join("notify")).unwrap();
    told.set_read_timeout(Some(PATIENCE)).unwrap();
    let is_ready = || {
        let mut buffer = [0; 256];
        let length = told.recv(&mut buffer).unwrap();
        buffer[..length].starts_with(b"READY=1")
    };
    let proxy = setup
        .upstream("UP", &upstream)
        .env("NOTIFY_SOCKET", "DIR/notify")
        .start();
    eventually("it has started", is_ready);
    let reload = |count: usize| {
        for index in 0..count {
            proxy.rewrite([&two, &bad, &one, &one][index % 4]);
            proxy.signal("HUP");
            eventually("it has reloaded", is_ready);
        }
    };
    // one client and one upstream connection, so that the descriptors are the same each time
    let mut kept = proxy.client();
    let mut serves = || assert_eq!(kept.get("/1/").status, 200);
    reload(40);
    serves();
    let (files, anonymous) = (descriptors(&proxy), proxy.own_kb());
    reload(if is_release() { 1000 } else { 100 });
    serves();
    assert_eq!(descriptors(&proxy), files);
    settles("own memory", anonymous + 100, || proxy.own_kb());
    if !is_release() {
        return;
    }
    // when the proxy is idle the code for a reload is dropped from memory: more than a megabyte
    settles("at rest", IDLE_CEILING, || proxy.pss_kb());
    let rest = proxy.memory("Rss");
    reload(1);
    settles("after a reload in the quiet", rest + 500, || {
        proxy.memory("Rss")
    });
}

#[test]
fn memory_of_slow_readers_is_bounded_and_freed() {
    if !measured() {
        return;
    }
    let upstream = Upstream::endless();
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 0}}\n"),
    );
    proxy.get("/");
    let before = proxy.own_kb();
    let readers: Vec<Client> = (0..80)
        .map(|i| {
            let mut client = proxy.client();
            client.send(get(&format!("/endless/{i}")));
            client
        })
        .collect();
    upstream.await_requests(81);
    let more = proxy.own_kb().saturating_sub(before);
    assert!(more < 80 * 40, "80 slow readers cost {more} kB");
    assert_eq!(proxy.get("/health").status, 200);
    drop(readers);
    eventually("the upstream is rid of them", || upstream.open() <= 1);
    settles("after 80 slow readers", 500, || {
        proxy.own_kb().saturating_sub(before)
    });
    assert_eq!(proxy.memory("AnonHugePages"), 0);
}

#[test]
fn ten_megabytes_are_enough_for_the_promised_load() {
    if !measured() {
        return;
    }
    let upstream = Upstream::fixed(OK);
    let yaml = format!(
        "{ALL}server: {{idle_timeout: 600, header_timeout: 600}}\ntransport: {{max_conns_per_host: 0}}\nproxy: {{max_concurrent_requests: 0}}\n"
    );
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .shell(MANY_FILES, Stdio::null())
        .start();
    let mut crowd: Vec<TcpStream> = (0..crowd_size())
        .map(|_| connect(proxy.address()))
        .collect();
    for stream in &mut crowd {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Unfinished: ");
    }
    assert_eq!(proxy.get("/health").status, 200);
    assert!(proxy.pss_kb() < 10 * 1024, "{} kB", proxy.pss_kb());
    drop(crowd);
    eventually("it serves as before", || proxy.get("/").status == 200);
}
