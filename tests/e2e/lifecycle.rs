//! Listening, stopping and reloading.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixDatagram, UnixListener},
        },
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    metrics::metric,
    support::{
        ALL, Client, End, OK, PATIENCE, Proxy, Setup, Signal, Upstream, eventually, get, seen,
        signal, skip, with,
    },
};

// ---- listeners ----

#[test]
fn several_listeners_serve_at_once() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}listen: ['127.0.0.1:0', '127.0.0.2:0', 'unix:DIR/lean.sock']\n");
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .listeners(3)
        .start();
    for address in &proxy.addresses()[..2] {
        assert_eq!(
            Client::connect(address.parse().unwrap()).get("/").text(),
            "ok",
            "{address}"
        );
    }
    assert_eq!(
        Client::unix(&proxy.dir().join("lean.sock")).get("/").text(),
        "ok"
    );
}

#[test]
fn every_address_of_the_machine_is_listened_on() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, &format!("{ALL}listen: ':0'\n"));
    let port = proxy.address().port();
    assert_eq!(
        Client::connect(([127, 0, 0, 1], port).into())
            .get("/")
            .text(),
        "ok"
    );
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("this machine has no IPv6");
    }
    assert_eq!(
        Client::connect(format!("[::1]:{port}").parse().unwrap())
            .get("/")
            .text(),
        "ok"
    );
}

#[test]
fn a_socket_left_behind_is_taken_over() {
    let upstream = Upstream::fixed(OK);
    let setup =
        Setup::new(&format!("{ALL}listen: 'unix:DIR/lean.sock'\n")).upstream("UP", &upstream);
    let path = setup.dir().join("lean.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let _proxy = setup.start();
    assert_eq!(Client::unix(&path).get("/").text(), "ok");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_mode_of_a_socket_is_what_the_configuration_says() {
    let upstream = Upstream::fixed(OK);
    let both = "listen: 'unix:DIR/lean.sock'\nmetrics: {listen: 'unix:DIR/metrics.sock'}\n";
    let usual = Proxy::before(&upstream, &format!("{ALL}{both}"));
    assert_eq!(mode(&usual.dir().join("lean.sock")), 0o666);
    let with_mode = |mode: &str| format!("{ALL}{both}server: {{unix_socket_mode: '{mode}'}}\n");
    // whatever the umask is
    let mut proxy = Setup::new(&with_mode("0660"))
        .upstream("UP", &upstream)
        .shell("umask 0777; exec \"$0\" \"$@\"", Stdio::null())
        .start();
    let paths = ["lean.sock", "metrics.sock"].map(|name| proxy.dir().join(name));
    assert_eq!(paths.each_ref().map(|path| mode(path)), [0o660; 2]);
    assert_eq!(Client::unix(&paths[0]).get("/").text(), "ok");
    proxy.rewrite(&with_mode("0600"));
    proxy.signal("HUP");
    proxy.await_log("the reload", |line| line.contains("msg=\"reloaded\""));
    assert_eq!(paths.each_ref().map(|path| mode(path)), [0o600; 2]);
    assert_eq!(Client::unix(&paths[0]).get("/").text(), "ok");
    assert_eq!(proxy.terminate().code(), Some(0));
    assert!(paths.iter().all(|path| !path.exists()), "they are removed");
}

#[test]
fn a_unix_target_is_asked_over_its_socket() {
    let setup = Setup::new("routes: [{path: /api/, target: 'unix:DIR/up.sock'}]\n");
    let upstream = Upstream::unix(&setup.dir().join("up.sock"), |peer| {
        while let Some(request) = peer.request()? {
            peer.write(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                request.raw.len()
            ))?;
            peer.write(&request.raw)?;
        }
        Ok(())
    });
    let proxy = setup.start();
    let mut client = proxy.client();
    for _ in 0..3 {
        let request = seen(&client.get("/api/x"));
        assert_eq!(
            (request.target.as_str(), request.fields.one("host")),
            ("/x", Some("localhost"))
        );
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn sockets_of_systemd_are_taken_over_by_name_or_number() {
    let upstream = Upstream::fixed(OK);
    for name in ["fd:web", "fd:3"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";
        let setup = Setup::new(&format!("{ALL}listen: '{name}'\n"))
            .upstream("UP", &upstream)
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "web");
        let _proxy = setup.shell(script, OwnedFd::from(listener)).start();
        assert_eq!(Client::connect(address).get("/").text(), "ok", "{name}");
    }
}

#[test]
fn a_socket_that_systemd_did_not_pass_is_an_error() {
    let run = Setup::new("routes: [{path: /, target: 'http://h'}]\nlisten: 'fd:web'\n").run();
    assert!(
        matches!(run.code, Some(1 | 3)),
        "{:?}: {}",
        run.code,
        run.err
    );
    assert!(run.err.contains("web"), "{}", run.err);
}

#[test]
fn systemd_gets_readiness_reload_and_stop_notices() {
    let setup = Setup::new(&format!("{ALL}server: {{shutdown_timeout: 1}}\n"));
    let upstream = Upstream::fixed(OK);
    let socket = UnixDatagram::bind(setup.dir().join("notify")).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = |what: &str| {
        let since = Instant::now();
        loop {
            let mut buffer = [0; 2048];
            let n = socket
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("{what} was not told: {e}"));
            let message = String::from_utf8_lossy(&buffer[..n]).into_owned();
            if message.lines().any(|line| line == what) {
                return message;
            }
            assert!(since.elapsed() < PATIENCE, "{what} was not told");
        }
    };
    let mut proxy = setup
        .upstream("UP", &upstream)
        .env("NOTIFY_SOCKET", "DIR/notify")
        .env("WATCHDOG_USEC", "1000000")
        .start();
    told("READY=1");
    told("WATCHDOG=1");
    told("WATCHDOG=1");
    proxy.signal("HUP");
    assert!(told("RELOADING=1").contains("MONOTONIC_USEC="));
    told("READY=1");
    proxy.signal("TERM");
    told("STOPPING=1");
    assert_eq!(proxy.exit().code(), Some(0));
}

// ---- stop ----

/// An upstream that sends half its answer, and the other half when the signal is raised.
pub fn halves() -> (Upstream, Signal) {
    let rest = Signal::default();
    let release = rest.clone();
    let upstream = Upstream::answering(move |request, peer| {
        if request.target != "/halves" {
            return peer.write(OK);
        }
        peer.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")?;
        release.wait()?;
        peer.write("cd")
    });
    (upstream, rest)
}

pub fn half_read(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(get("/halves")).head();
    assert_eq!(client.reader().exact(2).unwrap(), b"ab");
    client
}

fn is_closed(proxy: &Proxy) -> bool {
    TcpStream::connect_timeout(&proxy.address(), PATIENCE).is_err()
}

#[test]
fn exchanges_in_flight_are_finished_before_the_end() {
    for signal in ["TERM", "INT"] {
        let (upstream, rest) = halves();
        let mut proxy = Proxy::before(
            &upstream,
            &format!("{ALL}server: {{shutdown_timeout: 20}}\n"),
        );
        let mut idle = proxy.client();
        assert_eq!(idle.get("/").status, 200);
        let mut busy = half_read(&proxy);
        proxy.signal(signal);
        eventually("the listener closes", || is_closed(&proxy));
        assert!(proxy.is_running());
        assert_eq!(idle.end(), End::Clean, "an idle connection is let go");
        rest.raise();
        assert_eq!(busy.reader().exact(2).unwrap(), b"cd");
        assert_eq!(busy.end(), End::Clean);
        assert_eq!(proxy.exit().code(), Some(0), "{signal}");
    }
}

#[test]
fn a_connection_that_was_just_accepted_or_just_asked_is_answered_before_the_end() {
    let (upstream, rest) = halves();
    let yaml = format!("{ALL}server: {{shutdown_timeout: 20}}\n");
    // a second and half a second, less a tick of the clock; repeated where the machine was too busy for that
    for (asked_before, promise) in [(false, 750), (true, 250)] {
        let start = Instant::now();
        loop {
            if start.elapsed() > PATIENCE {
                return skip("this machine is too busy");
            }
            let mut proxy = Proxy::before(&upstream, &yaml);
            let mut busy = half_read(&proxy);
            let mut client = proxy.client();
            if !asked_before {
                // it has been accepted once a later connection is answered
                assert_eq!(proxy.get("/").status, 200);
            }
            let since = Instant::now();
            if asked_before {
                assert_eq!(client.get("/").status, 200);
            }
            proxy.signal("TERM");
            eventually("the listener closes", || is_closed(&proxy));
            let sent = client.try_send(get("/"));
            let was_in_time = since.elapsed() < Duration::from_millis(promise);
            let answer = sent.map(|()| client.try_receive());
            rest.raise();
            assert_eq!(busy.reader().exact(2).unwrap(), b"cd");
            assert_eq!(proxy.exit().code(), Some(0));
            if was_in_time {
                let answer = answer.unwrap().unwrap();
                assert_eq!(
                    (answer.status, answer.one("connection")),
                    (200, Some("close"))
                );
                break;
            }
        }
    }
}

#[test]
fn a_head_that_is_arriving_is_completed_and_answered_before_the_end() {
    let upstream = Upstream::fixed(OK);
    let yaml =
        format!("{ALL}server: {{shutdown_timeout: 20}}\nmetrics: {{listen: '127.0.0.1:0'}}\n");
    let mut proxy = Proxy::before(&upstream, &yaml);
    let request = get("/");
    let (half, rest) = request.split_at(20);
    let mut client = proxy.client();
    client.send(half);
    eventually("half of the head is read", || {
        metric(&proxy, "lean_proxy_connections_open") == 1
            && metric(&proxy, "lean_proxy_connections_parked") == 0
    });
    proxy.signal("TERM");
    eventually("the listener closes", || is_closed(&proxy));
    assert!(client.is_silent(Duration::from_millis(100)));
    let answer = client.ask(rest);
    let close = answer.one("connection");
    assert_eq!((answer.status, close), (200, Some("close")));
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn a_connection_that_waits_for_a_slot_is_answered_before_the_end() {
    let (upstream, rest) = halves();
    let mut proxy = Proxy::before(
        &upstream,
        &format!(
            "{ALL}server: {{shutdown_timeout: 20, max_connections: 1}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
        ),
    );
    let mut busy = half_read(&proxy);
    let mut waiting = proxy.client();
    waiting.send(get("/"));
    eventually("it is accepted", || {
        metric(&proxy, "lean_proxy_connections_accepted_total") == 2
    });
    proxy.signal("TERM");
    eventually("the listener closes", || is_closed(&proxy));
    rest.raise();
    assert_eq!(busy.reader().exact(2).unwrap(), b"cd");
    assert_eq!(waiting.receive().status, 200);
    assert_eq!(proxy.exit().code(), Some(0));
}

/// The results of one client's requests in [`twenty_restarts_under_load_lose_no_request`].
#[derive(Debug, Default)]
struct Tally {
    answered: AtomicUsize,
    repeated: AtomicUsize,
    lost: Mutex<Vec<String>>,
}

impl Tally {
    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }
}

/// Sets the flag on drop.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Sends requests until told to stop, on one connection as long as it is kept, or on a new one for each.
///
/// A request on a connection that has served others and closes without a byte of answer is sent again: a GET is idempotent,
/// and RFC 9112 §9.3.1 allows a client to repeat it then. Nothing else is repeated, and a connection whose answer says
/// `connection: close` is not reused.
fn keep_asking(address: SocketAddr, keep: bool, stop: &AtomicBool, tally: &Tally) {
    let plain = get("/");
    let last = with("GET /", &["Connection: close"]);
    let request = if keep { &plain } else { &last };
    let mut kept: Option<Client> = None;
    while !stop.load(Ordering::SeqCst) {
        let mut is_fresh = kept.is_none();
        let mut client = kept.take().unwrap_or_else(|| Client::connect(address));
        loop {
            let sent = client.try_send(request);
            let head = sent.and_then(|()| client.reader().response_head(""));
            let had_no_byte = client.reader().pending() == 0;
            match head {
                Ok(Some(head)) => match client.body(head.framing) {
                    Ok(_) if head.status == 200 => {
                        tally.answered.fetch_add(1, Ordering::SeqCst);
                        let is_over = head.fields.list("connection").contains(&"close".to_owned());
                        kept = (keep && !is_over).then_some(client);
                    }
                    outcome => tally
                        .lost
                        .lock()
                        .unwrap()
                        .push(format!("{head:?}: {outcome:?}")),
                },
                Ok(None) | Err(_) if !is_fresh && had_no_byte => {
                    tally.repeated.fetch_add(1, Ordering::SeqCst);
                    is_fresh = true;
                    client = Client::connect(address);
                    continue;
                }
                other => tally
                    .lost
                    .lock()
                    .unwrap()
                    .push(format!("fresh: {is_fresh}, {other:?}")),
            }
            break;
        }
    }
}

#[test]
fn twenty_restarts_under_load_lose_no_request() {
    let upstream = Upstream::fixed(OK);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let start = || {
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$0\" \"$@\"";
        let socket = OwnedFd::from(listener.try_clone().unwrap());
        Setup::new(&format!("{ALL}listen: 'fd:3'\n"))
            .upstream("UP", &upstream)
            .env("LISTEN_FDS", "1")
            .shell(script, socket)
            .start()
    };
    let stop = AtomicBool::new(false);
    let tallies: [Tally; 4] = Default::default();
    let _last = thread::scope(|scope| {
        for (index, tally) in tallies.iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || keep_asking(address, index % 2 == 0, stop, tally));
        }
        // the clients end even if this fails, and the last proxy serves until they have
        let _end = EndOf(&stop);
        let mut proxy = start();
        for _ in 0..20 {
            let before = tallies.each_ref().map(Tally::answered);
            eventually("every client is served on", || {
                let mut pairs = tallies.iter().zip(before);
                pairs.all(|(tally, before)| tally.answered() >= before + 5)
            });
            assert_eq!(proxy.terminate().code(), Some(0));
            proxy = start();
        }
        proxy
    });
    for tally in &tallies {
        assert_eq!(*tally.lost.lock().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn an_idle_proxy_stops_at_once() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 600}}\n"),
    );
    let mut idle: Vec<Client> = (0..5).map(|_| proxy.client()).collect();
    for client in idle.iter_mut().take(3) {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(proxy.terminate().code(), Some(0));
}

#[test]
fn requests_that_do_not_end_in_time_are_cut_off() {
    let (upstream, _rest) = halves();
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 1}}\n"),
    );
    let mut busy = half_read(&proxy);
    let since = Instant::now();
    assert_eq!(proxy.terminate().code(), Some(0));
    assert!(
        since.elapsed() >= Duration::from_millis(950),
        "it got only {:?}",
        since.elapsed()
    );
    assert!(busy.reader().exact(2).is_err());
}

#[test]
fn a_second_signal_ends_at_once() {
    let (upstream, _rest) = halves();
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 600}}\n"),
    );
    let _busy = half_read(&proxy);
    proxy.signal("TERM");
    eventually("the listener closes", || is_closed(&proxy));
    assert!(proxy.is_running());
    proxy.signal("TERM");
    proxy.exit();
}

#[test]
fn health_says_draining_while_the_listeners_are_still_open() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_delay: 3, shutdown_timeout: 1}}\n"),
    );
    let since = Instant::now();
    proxy.signal("TERM");
    let mut last = None;
    eventually("health says it is draining", || {
        let response = proxy.get("/health");
        let draining = response.status == 503;
        last = Some(response);
        draining
    });
    assert_eq!(last.unwrap().text(), "draining\n");
    assert_eq!(proxy.get("/").status, 200, "requests are still served");
    assert_eq!(proxy.exit().code(), Some(0));
    assert!(
        since.elapsed() >= Duration::from_millis(2900),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn health_says_draining_on_a_connection_that_is_kept() {
    let (upstream, rest) = halves();
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 20, shutdown_delay: 2}}\n"),
    );
    let mut busy = half_read(&proxy);
    let mut check = proxy.client();
    assert_eq!(check.get("/health").status, 200);
    proxy.signal("TERM");
    eventually("draining", || proxy.get("/health").status == 503);
    rest.raise();
    busy.reader().exact(2).unwrap();
    assert_eq!(proxy.exit().code(), Some(0));
}

#[test]
fn a_tunnel_does_not_outlive_the_shutdown_timeout() {
    let upstream = Upstream::start(|peer| {
        peer.head()?;
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        peer.await_close()
    });
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}server: {{shutdown_timeout: 0.5}}\n"),
    );
    let mut client = proxy.client();
    client.send(with(
        "GET /",
        &["Connection: Upgrade", "Upgrade: websocket"],
    ));
    assert_eq!(client.head().status, 101);
    assert_eq!(proxy.terminate().code(), Some(0));
    client.end();
    upstream.await_note("left 0");
}

/// The process that the proxy's wrapper program started, where the kernel shows it.
pub fn first_child(proxy: &Proxy) -> Option<String> {
    let path = format!("/proc/{0}/task/{0}/children", proxy.pid());
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().next().map(str::to_owned)
}

#[test]
fn as_the_first_process_of_a_container_it_stops_at_sigterm() {
    let unshare = Command::new("unshare")
        .args(["--user", "--pid", "--fork", "--kill-child", "true"])
        .stderr(Stdio::null())
        .status();
    if !unshare.is_ok_and(|status| status.success()) {
        return skip("no process namespaces here");
    }
    let upstream = Upstream::fixed(OK);
    let script = "exec unshare --user --pid --fork --kill-child \"$0\" \"$@\"";
    let setup = Setup::new(ALL)
        .upstream("UP", &upstream)
        .env("PATH", "/usr/bin:/bin")
        .shell(script, Stdio::null());
    let mut proxy = setup.start();
    assert_eq!(proxy.get("/").status, 200);
    let Some(inner) = first_child(&proxy) else {
        return skip("the children of a process are not shown here");
    };
    signal("TERM", &inner);
    assert_eq!(proxy.exit().code(), Some(0));
}

// ---- reload ----

#[test]
fn a_reload_changes_routes_and_keeps_connections() {
    let (one, two) = (
        Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"),
        Upstream::fixed("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo"),
    );
    let (half, rest) = halves();
    let route = |token: &str| {
        format!(
            "routes: [{{path: /, target: 'http://{token}'}}, {{path: /half/, target: 'http://HALF'}}]\n"
        )
    };
    let proxy = Setup::new(&route("ONE"))
        .upstream("ONE", &one)
        .upstream("TWO", &two)
        .upstream("HALF", &half)
        .start();
    let mut kept = proxy.client();
    assert_eq!(kept.get("/").text(), "one");
    let mut busy = proxy.client();
    busy.send(get("/half/halves")).head();
    proxy.rewrite(&route("TWO"));
    proxy.signal("HUP");
    eventually("the new route is served", || proxy.get("/").text() == "two");
    assert_eq!(
        kept.get("/").text(),
        "two",
        "a kept connection is served by the new routes"
    );
    rest.raise();
    assert_eq!(
        busy.reader().exact(4).unwrap(),
        b"abcd",
        "an exchange lives on"
    );
}

#[test]
fn a_bad_config_is_reported_and_the_old_one_stays() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(&upstream, ALL);
    for bad in [
        "routes: [{path: /, target: 'ftp://x'}]\n",
        "routes: [\n",
        "routes: []\n",
    ] {
        let before = proxy.logs().len();
        proxy.rewrite(bad);
        proxy.signal("HUP");
        eventually("the bad config is reported", || {
            proxy.logs()[before..]
                .iter()
                .any(|line| line.contains("config.yaml"))
        });
        assert_eq!(proxy.get("/").text(), "ok");
        assert!(proxy.is_running());
    }
    fs::remove_file(proxy.dir().join("config.yaml")).unwrap();
    proxy.signal("HUP");
    assert_eq!(proxy.get("/").text(), "ok");
    assert_eq!(proxy.terminate().code(), Some(0));
}

#[test]
fn a_reload_warns_of_each_change_that_needs_a_restart() {
    let upstream = Upstream::fixed(OK);
    let setup = Setup::new(ALL).upstream("UP", &upstream);
    let proxy = setup.env("LEAN_PROXY_THREADS", "2").start();
    for (key, more) in [
        ("metrics.listen", "metrics: {listen: '127.0.0.1:0'}"),
        ("limits.memory", "limits: {memory: 64MiB}"),
        ("server.max_connections", "server: {max_connections: 100}"),
        (
            "the number of threads",
            "proxy: {max_concurrent_requests: 1}",
        ),
    ] {
        proxy.rewrite(&format!("{ALL}{more}\n"));
        proxy.signal("HUP");
        proxy.await_log(key, |line| {
            line.contains("level=warn msg=\"takes effect at the next start only\"")
                && line.contains(key)
        });
    }
}

#[test]
fn a_tunnel_survives_a_reload() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        if !head.fields.has("upgrade") {
            return peer.write(OK);
        }
        peer.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )?;
        loop {
            let bytes = peer.reader().some()?;
            if bytes.is_empty() {
                return Ok(());
            }
            peer.write(bytes)?;
        }
    });
    let proxy = Proxy::before(&upstream, ALL);
    let mut client = proxy.client();
    client.send(with(
        "GET /",
        &["Connection: Upgrade", "Upgrade: websocket"],
    ));
    assert_eq!(client.head().status, 101);
    proxy.rewrite("routes: [{path: /new/, target: 'http://UP'}]\n");
    proxy.signal("HUP");
    eventually("the new routes count", || proxy.get("/").status == 404);
    client.send("still there?");
    assert_eq!(client.reader().exact(12).unwrap(), b"still there?");
}

#[test]
fn a_reload_may_change_where_it_listens() {
    let (upstream, rest) = halves();
    let proxy = Proxy::before(&upstream, &format!("{ALL}listen: '127.0.0.1:0'\n"));
    let mut busy = half_read(&proxy);
    proxy.rewrite(&format!("{ALL}listen: 'unix:DIR/new.sock'\n"));
    proxy.signal("HUP");
    let path = proxy.dir().join("new.sock");
    eventually("the new socket is there", || path.exists());
    assert_eq!(Client::unix(&path).get("/").text(), "ok");
    eventually("the old listener closes", || is_closed(&proxy));
    rest.raise();
    assert_eq!(busy.reader().exact(2).unwrap(), b"cd");
}

#[test]
fn a_reload_that_cannot_listen_keeps_the_old_listener() {
    let upstream = Upstream::fixed(OK);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::before(&upstream, &format!("{ALL}listen: '127.0.0.1:0'\n"));
    let before = proxy.logs().len();
    let address = taken.local_addr().unwrap();
    proxy.rewrite(&format!("{ALL}listen: '{address}'\n"));
    proxy.signal("HUP");
    eventually("the failure is reported", || {
        proxy.logs()[before..]
            .iter()
            .any(|line| line.contains(&address.to_string()))
    });
    assert_eq!(proxy.get("/").text(), "ok");
}

#[test]
fn no_request_is_lost_during_many_reloads() {
    let upstream = Upstream::fixed(OK);
    let proxy = Proxy::before(&upstream, ALL);
    let mut kept = proxy.client();
    for _ in 0..20 {
        proxy.signal("HUP");
        for _ in 0..5 {
            assert_eq!((kept.get("/").status, proxy.get("/").status), (200, 200));
        }
    }
}

#[test]
fn what_a_reload_adds_to_the_configuration_is_taken_from_what_requests_may_have() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}metrics: {{listen: '127.0.0.1:0'}}\n");
    let proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LEAN_PROXY_MEMORY", "10MiB")
        .start();
    let used = |proxy: &Proxy| metric(proxy, "lean_proxy_memory_used_bytes");
    let small = used(&proxy);
    let more: Vec<String> = (0..1_000)
        .map(|number| format!("- {{path: /r{number}/, target: 'http://127.0.0.1:1'}}"))
        .collect();
    let more = more.join("\n");
    proxy.rewrite(&format!(
        "routes:\n- {{path: /, target: 'http://UP'}}\n{more}\nmetrics: {{listen: '127.0.0.1:0'}}\n"
    ));
    proxy.signal("HUP");
    eventually("it is paid for", || used(&proxy) >= small + 1_600_000);
    assert_eq!(proxy.get("/page").status, 200);
    proxy.rewrite(&yaml);
    proxy.signal("HUP");
    eventually("it is given back", || used(&proxy) < small + 100_000);
}
