//! Places and queues: slow clients, and many clients of one address, never keep others out.
//!
//! The bounds are those of the documentation, with a margin for slow machines.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    metrics::metric,
    strict::Framing,
    support::{
        ALL, Client, OK, PATIENCE, Proxy, Setup, Signal, Upstream, all_served, eventually, get,
        let_pass, pattern, with,
    },
};

/// A request from another address is answered within two seconds.
const FOR_OTHERS: Duration = Duration::from_millis(3_500);

/// A request from the same address is answered within `queue_timeout`, which is ten seconds.
const FOR_THE_SAME: Duration = Duration::from_secs(13);

const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// What each client of a crowd does all the time.
#[derive(Debug, Clone, Copy)]
enum Habit {
    /// Sends and reads nothing.
    Nothing,
    /// Sends a byte each four seconds.
    Drips,
    /// Reads four kilobytes a second.
    Sips,
}

/// Many clients of one address, until it is dropped.
struct Crowd {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    fn new(address: SocketAddr, count: usize, request: &str, habit: Habit) -> Crowd {
        let members: Vec<TcpStream> = (0..count)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_recv_buffer_size(2048).unwrap();
                socket.connect_timeout(&address.into(), PATIENCE).unwrap();
                let mut stream = TcpStream::from(socket);
                // the proxy may close at once
                let _ = stream.write_all(request.as_bytes());
                stream.set_nonblocking(true).unwrap();
                stream
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = thread::spawn(move || live(members, habit, &stops));
        Crowd {
            stop,
            thread: Some(thread),
        }
    }
}

fn live(mut members: Vec<TcpStream>, habit: Habit, stops: &AtomicBool) {
    let mut buffer = [0; 1024];
    for step in 1_u32.. {
        if stops.load(Ordering::Relaxed) {
            return;
        }
        let_pass(Duration::from_millis(250));
        for member in &mut members {
            match habit {
                Habit::Nothing => {}
                Habit::Drips if step % 16 != 0 => {}
                Habit::Drips => drop(member.write(b"a")),
                Habit::Sips => drop(member.read(&mut buffer)),
            }
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Answers at once, streams without an end, reads bodies to their end, or joins a tunnel.
fn upstream() -> Upstream {
    Upstream::start(|peer| {
        while let Ok(head) = peer.head() {
            match head.target.as_str() {
                "/ws" => {
                    peer.write(SWITCHING)?;
                    return peer.await_close();
                }
                "/endless" => {
                    peer.write("HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n")?;
                    let block = pattern(0, 65_536);
                    while peer.write(&block).is_ok() {}
                    return Ok(());
                }
                "/silent" => return peer.await_close(),
                _ => {
                    if peer.reader().body(head.framing).is_err() {
                        return Ok(());
                    }
                    peer.write(OK)?;
                }
            }
        }
        Ok(())
    })
}

fn ten_megabytes(upstream: &Upstream, more: &str) -> Proxy {
    Setup::new(&format!("{ALL}{more}metrics: {{listen: '127.0.0.1:0'}}\n"))
        .upstream("UP", upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start()
}

fn other(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Asks once from an address, and checks how long that took.
fn asks_from(proxy: &Proxy, source: IpAddr, bound: Duration, what: &str) {
    let start = Instant::now();
    let mut client = Client::calling_from(source, proxy.address());
    client.send(with("GET /page", &["Connection: close"]));
    let response = client.receive();
    let took = start.elapsed();
    assert_eq!(response.status, 200, "{what}, from {source} after {took:?}");
    assert!(took < bound, "{what}, from {source}: {took:?}");
}

/// What crowds ask for, and what they do after it.
fn crowds() -> [(&'static str, usize, String, Habit); 7] {
    let upload = with("POST /f", &["Content-Length: 1000000"]) + "a";
    let small = with("POST /f", &["Content-Length: 8192"]) + "a=b";
    let chunks = with("POST /f", &["Transfer-Encoding: chunked"]) + "fffff\r\na";
    let socket = with("GET /ws", &["Connection: Upgrade", "Upgrade: websocket"]);
    [
        ("downloads", 20, get("/endless"), Habit::Nothing),
        ("readers", 20, get("/endless"), Habit::Sips),
        ("uploads", 20, upload, Habit::Drips),
        ("chunked uploads", 20, chunks, Habit::Drips),
        ("tunnels", 20, socket, Habit::Nothing),
        ("many downloads", 100, get("/endless"), Habit::Nothing),
        ("slow bodies", 400, small, Habit::Drips),
    ]
}

fn fresh_requests_are_answered(bounds: &str) {
    for (what, count, request, habit) in crowds() {
        let upstream = upstream();
        let proxy = ten_megabytes(&upstream, bounds);
        let crowd = Crowd::new(proxy.address(), count, &request, habit);
        eventually("they have come", || {
            metric(&proxy, "lean_proxy_connections_accepted_total") >= count as u64
        });
        for last in 2..6 {
            asks_from(&proxy, other(last), FOR_OTHERS, what);
        }
        for _ in 0..2 {
            asks_from(&proxy, other(1), FOR_THE_SAME, what);
        }
        drop(crowd);
        drop(upstream.forgive());
    }
}

#[test]
fn slow_crowds_do_not_keep_others_out_of_ten_megabytes() {
    fresh_requests_are_answered("");
}

#[test]
fn slow_crowds_do_not_keep_others_out_of_configured_places() {
    fresh_requests_are_answered(
        "transport: {max_conns_per_host: 20}\nproxy: {max_concurrent_requests: 100}\n",
    );
}

#[test]
fn each_host_for_which_requests_wait_is_helped() {
    let (one, two) = (upstream(), upstream());
    let yaml = "routes: [{path: /a/, target: 'http://ONE'}, {path: /b/, target: 'http://TWO'}]\n\
        transport: {max_conns_per_host: 4}\n";
    let proxy = Setup::new(yaml)
        .upstream("ONE", &one)
        .upstream("TWO", &two)
        .start();
    let request = |host: &str| get(&format!("/{host}/silent"));
    // the first host never answers: nothing can be done for the requests that wait there
    let crowd = Crowd::new(proxy.address(), 8, &request("a"), Habit::Nothing);
    one.await_requests(4);
    let readers = Crowd::new(proxy.address(), 4, &get("/b/endless"), Habit::Nothing);
    two.await_requests(4);
    let start = Instant::now();
    let mut client = proxy.client();
    assert_eq!(client.get("/b/page").status, 200);
    assert!(start.elapsed() < FOR_THE_SAME);
    drop((crowd, readers, one.forgive(), two.forgive()));
}

#[test]
fn tunnels_leave_the_places_at_their_101() {
    let upstream = upstream();
    let yaml = format!(
        "{ALL}transport: {{max_conns_per_host: 2}}\nproxy: {{max_concurrent_requests: 2, queue_timeout: 0.3}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    let socket = with("GET /ws", &["Connection: Upgrade", "Upgrade: websocket"]);
    let mut tunnels: Vec<Client> = (0..6).map(|_| proxy.client()).collect();
    for tunnel in &mut tunnels {
        tunnel.send(&socket);
        assert_eq!(tunnel.head().status, 101);
    }
    assert_eq!(proxy.get("/page").status, 200);
    drop(tunnels);
    upstream.await_open(1);
    assert_eq!(proxy.get("/page").status, 200);
}

#[test]
fn no_more_tunnels_than_allowed() {
    let upstream = upstream();
    let proxy = Proxy::before(&upstream, &format!("{ALL}proxy: {{max_tunnels: 2}}\n"));
    let socket = with("GET /ws", &["Connection: Upgrade", "Upgrade: websocket"]);
    let opens = || {
        let mut tunnel = proxy.client();
        tunnel.send(&socket);
        (tunnel.head(), tunnel)
    };
    let held = [opens(), opens()];
    assert!(held.iter().all(|(head, _)| head.status == 101));
    let (refused, _) = opens();
    assert_eq!(refused.status, 503);
    assert!(refused.fields.has("retry-after"));
    proxy.await_log("which bound was full", |line| {
        line.contains("reason=no-tunnel bound=proxy.max_tunnels value=2 waited_ms=0")
    });
    assert_eq!(proxy.get("/page").status, 200, "they bound nothing else");
    drop(held);
    eventually("there is room again", || opens().0.status == 101);
    // an upgrade that is not accepted counts only as long as its exchange lasts
    let page = with("GET /page", &["Connection: Upgrade", "Upgrade: websocket"]);
    for _ in 0..5 {
        eventually("it is answered", || proxy.ask(&page).status == 200);
    }
}

#[test]
fn a_reload_changes_how_many_tunnels_there_may_be() {
    let upstream = upstream();
    let with_bound = |most: usize| format!("{ALL}proxy: {{max_tunnels: {most}}}\n");
    let proxy = Proxy::before(&upstream, &with_bound(1));
    let opens = || {
        let mut tunnel = proxy.client();
        tunnel.send(with(
            "GET /ws",
            &["Connection: Upgrade", "Upgrade: websocket"],
        ));
        (tunnel.head(), tunnel)
    };
    let (first, _held) = opens();
    assert_eq!((first.status, opens().0.status), (101, 503));
    proxy.rewrite(&with_bound(2));
    proxy.signal("HUP");
    proxy.await_log("it reloads", |line| line.contains("msg=\"reloaded\""));
    eventually("a second one is opened", || opens().0.status == 101);
}

#[test]
fn memory_of_silent_tunnels_is_freed_for_others() {
    let upstream = upstream();
    let proxy = ten_megabytes(&upstream, "");
    let socket = with("GET /ws", &["Connection: Upgrade", "Upgrade: websocket"]);
    let tunnels = Crowd::new(proxy.address(), 150, &socket, Habit::Nothing);
    let mute = Crowd::new(proxy.address(), 45, "", Habit::Nothing);
    eventually("all have come", || {
        metric(&proxy, "lean_proxy_connections_accepted_total") >= 195
    });
    for _ in 0..3 {
        asks_from(&proxy, other(1), FOR_THE_SAME, "tunnels and mute ones");
    }
    drop((tunnels, mute));
}

#[test]
fn behind_a_trusted_proxy_each_client_counts_by_itself() {
    let upstream = upstream();
    let yaml = format!(
        "{ALL}transport: {{max_conns_per_host: 4}}\nserver: {{trusted_proxies: [127.0.0.0/8]}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    // in the middle of their answers, and fast enough for every rule but the share's
    let fields = ["X-Forwarded-For: 203.0.113.1"];
    let crowd = Crowd::new(
        proxy.address(),
        4,
        &with("GET /silent", &fields),
        Habit::Nothing,
    );
    upstream.await_requests(4);
    let start = Instant::now();
    let fields = ["X-Forwarded-For: 203.0.113.2"];
    assert_eq!(proxy.ask(with("GET /page", &fields)).status, 200);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    drop((crowd, upstream.forgive()));
}

#[test]
fn two_addresses_that_hold_nearly_all_make_room_for_a_third() {
    let upstream = upstream();
    let yaml = format!(
        "{ALL}transport: {{max_conns_per_host: 9}}\nserver: {{trusted_proxies: [127.0.0.0/8]}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    let asks = |last: u8, target: &str| {
        let field = format!("X-Forwarded-For: 203.0.113.{last}");
        with(&format!("GET {target}"), &[&field])
    };
    let crowds = [(1, 4), (2, 4), (3, 1)].map(|(last, count)| {
        let request = asks(last, "/silent");
        Crowd::new(proxy.address(), count, &request, Habit::Nothing)
    });
    upstream.await_requests(9);
    let start = Instant::now();
    assert_eq!(proxy.ask(asks(4, "/page")).status, 200);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    drop((crowds, upstream.forgive()));
}

#[test]
fn a_local_process_that_leaves_answers_unread_locks_out_itself_alone() {
    let upstream = Upstream::start(|peer| {
        while let Ok(head) = peer.head() {
            if head.target == "/long" {
                let body = "x".repeat(100_000);
                peer.write(format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{body}"
                ))?;
            } else {
                peer.write(OK)?;
            }
        }
        Ok(())
    });
    let yaml = format!(
        "{ALL}listen: ['unix:DIR/l.sock', '127.0.0.1:0']\nserver: {{write_timeout: 0.2}}\n"
    );
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .listeners(2)
        .start();
    let path = proxy.dir().join("l.sock");
    let address: SocketAddr = proxy.addresses().last().unwrap().parse().unwrap();
    let mut crowd = Vec::new();
    eventually("it is refused", || {
        // enough of them, even where each is only answered that there is no memory
        for _ in 0..if crowd.len() < 900 { 10 } else { 0 } {
            let mut client = Client::unix(&path);
            let _ = client.try_send(get("/long"));
            crowd.push(client);
        }
        let line = "msg=\"connection refused\" client=unix";
        proxy.logs().iter().any(|log| log.contains(line))
    });
    // another process, by the same socket
    let config = proxy.dir().join("config.yaml").display().to_string();
    let well = Setup::new(ALL).args(&["--health", &config]).run();
    assert_eq!((well.code, well.err.as_str()), (Some(0), ""));
    assert_eq!(Client::connect(address).get("/page").status, 200, "by TCP");
    drop(crowd);
    eventually("it is served again", || {
        let mut client = Client::unix(&path);
        let is_sent = client.try_send(get("/page")).is_ok();
        is_sent
            && client
                .try_receive()
                .is_ok_and(|answer| answer.status == 200)
    });
}

/// A client that takes its leave in the middle of an upload which the upstream has stopped to read.
#[test]
fn a_client_that_leaves_during_an_upload_frees_its_upstream() {
    let rest = Signal::default();
    let waits = rest.clone();
    let upstream = Upstream::start(move |peer| {
        peer.head()?;
        waits.wait()
    });
    let yaml =
        format!("{ALL}metrics: {{listen: '127.0.0.1:0'}}\ntransport: {{max_conns_per_host: 1}}\n");
    let proxy = Proxy::before(&upstream, &yaml);
    for (how, framing, reset) in [
        ("closed", "Content-Length: 90000000", false),
        ("reset", "Content-Length: 90000000", true),
        ("reset, chunked", "Transfer-Encoding: chunked", true),
    ] {
        let before = upstream.requests();
        let mut client = proxy.client();
        client.send(with("POST /", &[framing]));
        if framing.starts_with('T') {
            client.send("5000000\r\n");
        }
        upstream.await_requests(before + 1);
        assert!(client.write_until_stalled(0, 80_000_000) < 80_000_000);
        if reset {
            let writer = client.writer();
            writer.reset_on_close();
            drop(writer);
        }
        drop(client);
        eventually(how, || metric(&proxy, "lean_proxy_upstream_open") == 0);
    }
    rest.raise_many(3);
    drop(upstream.forgive());
}

#[test]
fn a_request_whose_client_left_is_removed_from_the_queue() {
    let (upstream, hold) = Upstream::held();
    let yaml = format!(
        "{ALL}metrics: {{listen: '127.0.0.1:0'}}\nproxy: {{max_concurrent_requests: 1, queue_timeout: 60}}\n"
    );
    let proxy = Proxy::before(&upstream, &yaml);
    let mut holder = proxy.client();
    holder.send(get("/"));
    upstream.await_requests(1);
    let mut upload = proxy.client();
    upload.send(with("POST /", &["Content-Length: 100000"]) + "abc");
    eventually("it waits", || metric(&proxy, "lean_proxy_waiting") == 1);
    drop(upload);
    eventually("it has left", || metric(&proxy, "lean_proxy_waiting") == 0);
    hold.raise_many(2);
    all_served(std::slice::from_mut(&mut holder));
}

#[test]
fn a_reset_tunnel_with_many_unread_bytes_frees_its_upstream() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write(SWITCHING)?;
        let block = pattern(0, 65_536);
        while peer.write(&block).is_ok() {}
        Ok(())
    });
    let proxy = ten_megabytes(&upstream, "");
    for _ in 0..4 {
        let mut tunnel = Client::narrow(proxy.address());
        tunnel.send(with(
            "GET /",
            &["Connection: Upgrade", "Upgrade: websocket"],
        ));
        assert_eq!(tunnel.head().framing, Framing::None);
        let writer = tunnel.writer();
        writer.reset_on_close();
        drop((writer, tunnel));
    }
    eventually("nothing is held", || {
        metric(&proxy, "lean_proxy_memory_used_bytes") < 42_000
    });
    drop(upstream.forgive());
}

#[test]
fn health_is_answered_beside_a_crowd_that_never_finishes() {
    let upstream = upstream();
    let proxy = ten_megabytes(&upstream, "");
    let unfinished = with("POST /silent", &["Transfer-Encoding: chunked"]) + "1\r\na\r\n";
    let crowd = Crowd::new(proxy.address(), 400, &unfinished, Habit::Nothing);
    for _ in 0..10 {
        let start = Instant::now();
        let mut client = Client::calling_from(other(9), proxy.address());
        assert_eq!(client.get("/health").status, 200);
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
    }
    drop((crowd, upstream.forgive()));
}
