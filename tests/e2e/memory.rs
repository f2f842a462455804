//! The headline as a test: what the process holds idle, under load and after it. Only a release build is measured.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::support::{
    ALL, Client, OK, Proxy, Setup, Upstream, eventually, get, is_release, pattern, skip,
};

/// kB of an idle proxy, text included: half of what a hyper server and client take as they come.
const IDLE_CEILING: u64 = 2048;

fn measured() -> bool {
    if !is_release() {
        skip("memory is measured on a release build: --release, or LEAN_PROXY_BIN");
    }
    is_release()
}

/// As many connections as this process may open beside what other tests need.
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
    stream
        .set_read_timeout(Some(crate::support::PATIENCE))
        .unwrap();
    stream
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
    eventually("an idle proxy is below its ceiling", || {
        proxy.pss_kb() < IDLE_CEILING
    });
    assert_eq!(proxy.memory("AnonHugePages"), 0);
}

#[test]
fn idle_connections_cost_less_than_a_kilobyte() {
    if !measured() {
        return;
    }
    let upstream = Upstream::fixed(OK);
    let raise = "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"";
    for spoken in [false, true] {
        let yaml = format!(
            "{ALL}server: {{idle_timeout: 600, header_timeout: 600, max_connections: 5000}}\n"
        );
        let proxy = Setup::new(&yaml)
            .upstream("UP", &upstream)
            .shell(raise, std::process::Stdio::null())
            .start();
        proxy.get("/");
        let before = proxy.pss_kb();
        let count = crowd_size();
        let mut crowd: Vec<TcpStream> = (0..count).map(|_| connect(proxy.address())).collect();
        if spoken {
            for stream in &mut crowd {
                stream.write_all(get("/").as_bytes()).unwrap();
                let mut answer = [0; OK.len()];
                stream.read_exact(&mut answer).unwrap();
                assert!(answer.starts_with(b"HTTP/1.1 200"));
            }
        }
        assert_eq!(proxy.get("/health").status, 200);
        let allowed = count as u64 * 8 / 10 + 64;
        eventually("they are parked", || {
            proxy.pss_kb().saturating_sub(before) < allowed
        });
        assert_eq!(proxy.memory("AnonHugePages"), 0);
        for stream in &mut crowd {
            stream.write_all(get("/health").as_bytes()).unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        }
    }
}

#[test]
fn slow_readers_are_bounded_and_what_they_held_comes_back() {
    if !measured() {
        return;
    }
    let upstream = Upstream::start(|peer| {
        while let Some(request) = peer.request()? {
            if request.target == "/" {
                peer.write(OK)?;
                continue;
            }
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")?;
            let block = pattern(0, 65_536);
            while peer.write(&block).is_ok() {}
        }
        Ok(())
    });
    let proxy = Proxy::before(
        &upstream,
        &format!("{ALL}transport: {{max_conns_per_host: 0}}\n"),
    );
    proxy.get("/");
    let before = proxy.pss_kb();
    let readers: Vec<Client> = (0..80)
        .map(|i| {
            let mut client = proxy.client();
            client.send(get(&format!("/{}", i + 1)));
            client
        })
        .collect();
    upstream.await_requests(81);
    let more = proxy.pss_kb().saturating_sub(before);
    assert!(more < 80 * 32, "80 slow readers cost {more} kB");
    assert_eq!(proxy.get("/health").status, 200);
    drop(readers);
    eventually("the upstream is rid of them", || upstream.open() <= 1);
    eventually("memory comes back", || proxy.pss_kb() < before + 700);
    assert_eq!(proxy.memory("AnonHugePages"), 0);
}

#[test]
fn ten_megabytes_hold_the_promise() {
    if !measured() {
        return;
    }
    let upstream = Upstream::fixed(OK);
    let yaml = format!(
        "{ALL}server: {{idle_timeout: 600, header_timeout: 600}}\ntransport: {{max_conns_per_host: 0}}\nproxy: {{max_concurrent_requests: 0}}\n"
    );
    let raise = "ulimit -n $(ulimit -Hn); exec \"$0\" \"$@\"";
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .shell(raise, std::process::Stdio::null())
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
