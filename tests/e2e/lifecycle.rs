//! From the command line to the last signal: checks, listeners, reload, drain, logs.

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
    json::Json,
    metrics::metric,
    support::{
        ALL, Client, End, Finished, OK, PATIENCE, Peer, Proxy, Setup, Signal, Upstream, binary,
        eventually, get, seen, signal, skip, with,
    },
};

/// A configuration that is in order.
const GOOD: &str = "routes: [{path: /, target: 'http://upstream.invalid:8080/base'}]\n";

fn check(yaml: &str) -> Finished {
    Setup::new(yaml).args(&["--check", "CONFIG"]).run()
}

// ---- the command line ----

#[test]
fn help_and_version_are_on_stdout() {
    let help = Setup::new(GOOD).args(&["--help"]).run();
    assert_eq!((help.code, help.err.as_str()), (Some(0), ""));
    assert!(
        help.out.contains("lean-proxy")
            && help.out.contains("--check")
            && help.out.contains("--health"),
        "{}",
        help.out
    );
    let version = Setup::new(GOOD).args(&["--version"]).run();
    assert_eq!((version.code, version.out.lines().count()), (Some(0), 1));
    assert!(
        version.out.contains(env!("CARGO_PKG_VERSION")),
        "{}",
        version.out
    );
}

#[test]
fn bad_usage_is_a_2_with_the_usage_on_stderr() {
    for args in [
        &["--nonsense"][..],
        &["CONFIG", "more"],
        &["--check"],
        &["--health"],
        &["--check", "CONFIG", "more"],
        &["-x", "CONFIG"],
    ] {
        let run = Setup::new(GOOD).args(args).run();
        assert_eq!(
            (run.code, run.out.as_str()),
            (Some(2), ""),
            "{args:?}: {}",
            run.err
        );
        assert!(
            run.err.to_lowercase().contains("usage"),
            "{args:?}: {}",
            run.err
        );
    }
    if Path::new("/config.yaml").exists() {
        return skip("this machine has a /config.yaml");
    }
    let run = Setup::new(GOOD).args(&[]).run();
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert!(run.err.to_lowercase().contains("usage"), "{}", run.err);
}

#[test]
fn a_good_config_is_checked_in_one_line_without_the_network() {
    let run = check(GOOD);
    assert_eq!(
        (run.code, run.out.lines().count(), run.err.as_str()),
        (Some(0), 1, ""),
        "{}",
        run.out
    );
}

#[test]
fn a_missing_file_is_a_1() {
    for args in [&["--check", "DIR/none.yaml"][..], &["DIR/none.yaml"]] {
        let run = Setup::new(GOOD).args(args).run();
        assert_eq!(run.code, Some(1), "{args:?}");
        assert!(
            run.err.contains("none.yaml")
                && run.err.lines().count() == 1
                && !run.err.contains("backtrace"),
            "{}",
            run.err
        );
    }
}

#[test]
fn an_address_in_use_is_a_3() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run = Setup::new(&format!("{GOOD}listen: '{address}'\n")).run();
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(
        run.err.contains(&address) && run.err.lines().count() == 1,
        "{}",
        run.err
    );
}

#[test]
fn serving_reports_what_check_reports() {
    let bad = "routes: [{path: x, target: 'ftp://y'}]\nservr: {}\n";
    let (checked, served) = (check(bad), Setup::new(bad).run());
    assert_eq!((checked.code, served.code), (Some(1), Some(1)));
    let tail = |text: &str| {
        text.lines()
            .map(|line| {
                line.split_once("config.yaml")
                    .unwrap_or_default()
                    .1
                    .to_owned()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(tail(&checked.err), tail(&served.err));
    assert!(!tail(&checked.err).is_empty());
}

#[test]
fn all_errors_are_reported_at_once_with_file_line_and_field() {
    let bad = "routes:\n- path: api\n  target: ftp://x\n- path: /ok\n  target: 'http://h'\n  max_body_sise: 3\nserver:\n  idle_timeout: -4\ncors:\n  allowed_origins: ['https://a.example/path']\n";
    let run = check(bad);
    assert_eq!(run.code, Some(1));
    for (line, field) in [
        (2, "routes[0].path"),
        (3, "routes[0].target"),
        (6, "max_body_size"),
        (8, "server.idle_timeout"),
        (10, "cors.allowed_origins"),
    ] {
        let found = run
            .err
            .lines()
            .any(|l| l.contains(&format!("config.yaml:{line}")) && l.contains(field));
        assert!(found, "line {line}, {field}, in:\n{}", run.err);
    }
    assert_eq!(run.err.lines().count(), 5, "{}", run.err);
}

#[test]
fn every_error_names_its_field() {
    let to = "target: 'http://h'";
    let mut wrong = Vec::new();
    let route = |more: &str| format!("routes: [{{path: /, {to}, {more}}}]\n");
    for (yaml, words) in [
        ("version: none\n".to_owned(), &["routes"][..]),
        ("routes: []\n".to_owned(), &["routes"]),
        (
            format!("routes: [{{path: /health, {to}}}]\n"),
            &["routes[0].path"],
        ),
        (
            format!("routes: [{{path: /-/up, {to}}}]\nhealth: {{path: /-/up}}\n"),
            &["routes[0].path"],
        ),
        (
            format!("routes: [{{path: api/, {to}}}]\n"),
            &["routes[0].path"],
        ),
        (
            format!("routes: [{{path: '', {to}}}]\n"),
            &["routes[0].path"],
        ),
        (format!("routes: [{{{to}}}]\n"), &["routes[0]", "path"]),
        ("routes: [{path: /}]\n".to_owned(), &["routes[0]", "target"]),
        (
            format!("routes: [{{path: /a, {to}}}, {{path: /a, {to}}}]\n"),
            &["routes[1]"],
        ),
        (
            format!("routes: [{{path: /a, host: A.b, {to}}}, {{path: /a, host: a.B, {to}}}]\n"),
            &["routes[1]"],
        ),
        (
            "routes: [{path: /, target: 'h:80'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (
            "routes: [{path: /, target: 'ftp://h'}]\n".to_owned(),
            &["routes[0].target", "ftp"],
        ),
        (
            "routes: [{path: /, target: 'http://'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (
            "routes: [{path: /, target: 'http://h:99999'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (
            "routes: [{path: /, target: 'http://h/?q'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (
            "routes: [{path: /, target: 'http://h/#f'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (
            "routes: [{path: /, target: 'http://u:p@h/'}]\n".to_owned(),
            &["routes[0].target"],
        ),
        (format!("{GOOD}listen: nonsense\n"), &["listen"]),
        (format!("{GOOD}listen: ':99999'\n"), &["listen"]),
        (format!("{GOOD}listen: 'host.example:80'\n"), &["listen"]),
        (format!("{GOOD}listen: [':80', 'x']\n"), &["listen[1]"]),
        (
            format!("{GOOD}cors: {{allowed_origins: ['https://a.example/']}}\n"),
            &["cors.allowed_origins"],
        ),
        (
            format!("{GOOD}cors: {{allowed_origins: ['a.example']}}\n"),
            &["cors.allowed_origins"],
        ),
        (
            format!("{GOOD}cors: {{allowed_origins: ['*'], allow_credentials: true}}\n"),
            &["cors.allow_credentials"],
        ),
        (format!("{GOOD}cors: {{max_age: -2}}\n"), &["cors.max_age"]),
        (
            format!("{GOOD}cors: {{allowed_methods: ['G T']}}\n"),
            &["cors.allowed_methods"],
        ),
        (
            route("cors: {allowed_origins: [x]}"),
            &["routes[0].cors.allowed_origins"],
        ),
        (
            route("request_headers: {set: {'bad name': x}}"),
            &["routes[0].request_headers", "bad name"],
        ),
        (
            route("request_headers: {set: {X-A: \"a\\nb\"}}"),
            &["routes[0].request_headers", "X-A"],
        ),
        (
            route("response_headers: {remove: ['bad name']}"),
            &["routes[0].response_headers", "bad name"],
        ),
        (route("max_body_size: -1"), &["routes[0].max_body_size"]),
        (
            route("max_body_size: 64KB"),
            &["routes[0].max_body_size", "64"],
        ),
        (route("host: 'a b'"), &["routes[0].host"]),
        (route("strip_prefix: maybe"), &["routes[0].strip_prefix"]),
        (
            format!("{GOOD}transport: {{dial_timeout: 30s}}\n"),
            &["transport.dial_timeout", "30"],
        ),
        (
            format!("{GOOD}transport: {{idle_conn_timeout: 5m}}\n"),
            &["transport.idle_conn_timeout", "300"],
        ),
        (
            format!("{GOOD}transport: {{max_idle_conns: -1}}\n"),
            &["transport.max_idle_conns"],
        ),
        (
            format!("{GOOD}transport: {{max_idle_conns: 1.5}}\n"),
            &["transport.max_idle_conns"],
        ),
        (
            format!("{GOOD}server: {{max_header_bytes: 64KB}}\n"),
            &["server.max_header_bytes", "64"],
        ),
        (
            format!("{GOOD}server: {{max_header_bytes: 10}}\n"),
            &["server.max_header_bytes"],
        ),
        (
            format!("{GOOD}server: {{trusted_proxies: ['10.0.0.0/33']}}\n"),
            &["server.trusted_proxies"],
        ),
        (
            format!("{GOOD}server: {{idle_timout: 3}}\n"),
            &["idle_timout", "idle_timeout"],
        ),
        (format!("{GOOD}rotes: []\n"), &["rotes", "routes"]),
        (
            format!("{GOOD}cors: {{allow_origins: []}}\n"),
            &["allow_origins", "allowed_origins"],
        ),
        (format!("{GOOD}proxy: 5\n"), &["proxy"]),
        (
            format!("{GOOD}log: {{level: loud}}\n"),
            &["log.level", "loud"],
        ),
        (format!("{GOOD}health: {{path: up}}\n"), &["health.path"]),
        (
            format!("{GOOD}limits: {{memory: much}}\n"),
            &["limits.memory"],
        ),
        (
            "routes: [{path: /, target: '${NOWHERE_SET}'}]\n".to_owned(),
            &["routes[0].target", "NOWHERE_SET"],
        ),
        ("routes: [\n".to_owned(), &["config.yaml"]),
        ("- a\n- b\n".to_owned(), &["config.yaml"]),
        (format!("{GOOD}routes: []\n"), &["routes"]),
    ] {
        let run = check(&yaml);
        let named = words.iter().all(|word| run.err.contains(word));
        let placed = run.err.lines().all(|line| line.contains("config.yaml"));
        if run.code != Some(1) || !named || !placed {
            wrong.push(format!("{yaml}{words:?} -> {:?} {}", run.code, run.err));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_people_write_is_accepted() {
    for yaml in [
        format!("\u{feff}{GOOD}"),
        GOOD.replace('\n', "\r\n") + "cors:\r\n  max_age: 5\r\n",
        format!("{GOOD}cors: null\ntransport:\nserver: ~\nproxy: {{max_concurrent_requests: null}}\n"),
        format!("{GOOD}transport: {{dial_timeout: 10.0, max_idle_conns: 10.0}}\n"),
        format!("{GOOD}transport: {{dial_timeout: 0.25}}\n"),
        format!("{GOOD}cors: {{allowed_origins: 'https://a.example', allowed_methods: GET}}\n"),
        format!("{GOOD}x-note: {{a: [b]}}\nserver: {{x-why: because}}\n"),
        "x-base: &base {target: 'http://h', strip_prefix: false}\nroutes:\n- {<<: *base, path: /a/}\n- {<<: *base, path: /b/, strip_prefix: true, x-c: 1}\n".to_owned(),
        format!("{GOOD}version: \"1.0.0\"\nlisten: ['127.0.0.1:0', '[::1]:0']\n"),
        format!("{GOOD}limits: {{memory: 10000000}}\n"),
        format!("{GOOD}limits: {{memory: auto}}\nlog: {{format: json, level: debug, access: true}}\nmetrics: {{listen: '127.0.0.1:0'}}\n"),
        format!("---\n{GOOD}"),
    ] {
        let run = check(&yaml);
        assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{yaml}");
    }
}

#[test]
fn of_several_documents_the_first_is_used_with_a_warning() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}listen: '127.0.0.1:0'\n---\nroutes: nonsense\n");
    let proxy = Proxy::before(&upstream, &yaml);
    assert_eq!(proxy.get("/").status, 200);
    proxy.await_log("a warning of the documents", |line| {
        line.to_lowercase().contains("document")
    });
}

#[test]
fn the_seeds_own_config_runs_unchanged() {
    let seeds = "listen: :80\n\nroutes:\n  - path: /api/\n    target: http://backend-service:8080/\n\ncors:\n  allowed_origins:\n    - \"https://example.com\"\n    \
        - \"https://app.example.com\"\n\ntransport:\n  dial_timeout: 10\n  dial_keep_alive: 30\n  max_idle_conns: 10\n  max_idle_conns_per_host: 2\n  max_conns_per_host: 20\n  \
        idle_conn_timeout: 30\n  response_header_timeout: 30\n  read_buffer_size: 4096\n  write_buffer_size: 4096\n\nproxy:\n  max_concurrent_requests: 100\n";
    let run = check(seeds);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
}

#[test]
fn a_file_beyond_a_megabyte_is_refused() {
    let run = check(&format!("{GOOD}# {}\n", "x".repeat(1 << 20)));
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("config.yaml"), "{}", run.err);
}

// ---- the environment ----

#[test]
fn variables_are_filled_in_after_parsing() {
    let upstream = Upstream::echo_head();
    let yaml = "routes: [{path: /, target: '${TARGET}', request_headers: {set: {X-A: '${A}', X-B: 'b ${B:-by default} b', X-C: 'a$$b ${A}${A}'}}}]\n";
    let setup = Setup::new(yaml)
        .upstream("UP", &upstream)
        .env("TARGET", "http://UP/base")
        .env("A", "it's: [not] {yaml} # \"");
    let request = seen(&setup.start().get("/x"));
    assert_eq!(request.target, "/base/x");
    assert_eq!(request.fields.one("x-a"), Some("it's: [not] {yaml} # \""));
    assert_eq!(request.fields.one("x-b"), Some("b by default b"));
    assert_eq!(
        request.fields.one("x-c"),
        Some("a$b it's: [not] {yaml} # \"it's: [not] {yaml} # \"")
    );
}

#[test]
fn port_is_used_where_listen_is_absent() {
    let upstream = Upstream::fixed(OK);
    let proxy = Setup::new(ALL)
        .upstream("UP", &upstream)
        .env("PORT", "0")
        .start();
    assert_eq!(proxy.get("/").status, 200, "{:?}", proxy.addresses());
    let named = Setup::new(&format!("{ALL}listen: '127.0.0.1:0'\n"))
        .upstream("UP", &upstream)
        .env("PORT", "1")
        .start();
    assert_eq!(named.get("/").status, 200);
}

#[test]
fn the_config_may_stand_in_the_environment() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}listen: '127.0.0.1:0'\n");
    let proxy = Setup::new("unused: true")
        .upstream("UP", &upstream)
        .args(&[])
        .env("LEAN_PROXY_CONFIG", yaml)
        .start();
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn the_memory_budget_is_told_at_start() {
    let upstream = Upstream::fixed(OK);
    for (name, value, told) in [
        ("LEAN_PROXY_MEMORY", "10MiB", "10.0 MiB"),
        ("GOMEMLIMIT", "8388608", "8.0 MiB"),
        ("GOMEMLIMIT", "9MiB", "9.0 MiB"),
    ] {
        let proxy = Setup::new(ALL)
            .upstream("UP", &upstream)
            .env(name, value)
            .env("GOGC", "20")
            .start();
        proxy.await_log("the budget", |line| {
            line.contains("memory") && line.contains(told)
        });
        assert_eq!(proxy.get("/").status, 200);
    }
}

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
    // whatever the umask says
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
fn a_socket_that_systemd_did_not_hand_over_is_an_error() {
    let run = Setup::new(&format!("{GOOD}listen: 'fd:web'\n")).run();
    assert!(
        matches!(run.code, Some(1 | 3)),
        "{:?}: {}",
        run.code,
        run.err
    );
    assert!(run.err.contains("web"), "{}", run.err);
}

#[test]
fn systemd_is_told_what_happens() {
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

// ---- the health client ----

#[test]
fn the_health_of_a_running_proxy_is_a_0() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(
        &upstream,
        &format!("{ALL}listen: 'unix:DIR/lean.sock'\nhealth: {{path: /-/up}}\n"),
    );
    let config = proxy.dir().join("config.yaml").display().to_string();
    let by_config = || Setup::new(GOOD).args(&["--health", &config]).run();
    let well = by_config();
    assert_eq!((well.code, well.err.as_str()), (Some(0), ""));
    assert_eq!(proxy.terminate().code(), Some(0));
    let gone = by_config();
    assert_eq!(
        (gone.code, gone.err.lines().count()),
        (Some(1), 1),
        "{}",
        gone.err
    );
    assert_eq!(upstream.connections(), 0);
}

#[test]
fn the_health_of_a_url_is_asked_for() {
    let upstream = Upstream::per_path(&[
        ("/up", OK),
        (
            "/down",
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        ),
    ]);
    let proxy = Proxy::before(&upstream, ALL);
    let at = |path: &str| {
        Setup::new(GOOD)
            .args(&["--health", &format!("http://{}{path}", proxy.address())])
            .run()
            .code
    };
    assert_eq!(
        (at("/health"), at("/up"), at("/down"), at("/none")),
        (Some(0), Some(0), Some(1), Some(1))
    );
}

#[test]
fn health_that_does_not_answer_is_a_1_in_two_seconds() {
    let silent = Upstream::start(Peer::await_close);
    let since = Instant::now();
    let run = Setup::new(GOOD)
        .args(&["--health", &format!("http://{}/health", silent.authority())])
        .run();
    assert_eq!(run.code, Some(1));
    assert!(
        since.elapsed() < Duration::from_secs(6),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn health_alone_asks_the_first_process_of_its_container() {
    let container = "unshare --user --map-root-user --pid --fork --kill-child --mount-proc";
    let can = Command::new("/bin/sh")
        .args(["-c", &format!("{container} true && nsenter --version")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return skip("no process namespaces here");
    }
    let upstream = Upstream::fixed(OK);
    let mut proxy = Setup::new(&format!("{ALL}listen: 'unix:DIR/lean.sock'\n"))
        .upstream("UP", &upstream)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .shell(&format!("exec {container} \"$0\" \"$@\""), Stdio::null())
        .start();
    let Some(inner) = first_child(&proxy) else {
        return skip("the children of a process are not shown here");
    };
    let health = || {
        let inside = [
            "--preserve-credentials",
            "--target",
            &inner,
            "--user",
            "--mount",
            "--pid",
        ];
        let run = Command::new("nsenter")
            .args(inside)
            .arg(binary())
            .arg("--health")
            .env_remove("LEAN_PROXY_CONFIG")
            .output()
            .unwrap();
        (run.status.code(), String::from_utf8(run.stdout).unwrap())
    };
    assert_eq!(health(), (Some(0), "ok\n".to_owned()));
    fs::remove_file(proxy.dir().join("lean.sock")).unwrap();
    assert_eq!(health(), (Some(1), String::new()), "nobody is there");
    signal("TERM", &inner);
    assert_eq!(proxy.exit().code(), Some(0));
}

// ---- the end ----

/// An upstream that sends half its answer, and the other half when the signal is raised.
fn halves() -> (Upstream, Signal) {
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

fn half_read(proxy: &Proxy) -> Client {
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
fn who_has_just_come_or_just_asked_is_answered_before_the_end() {
    let (upstream, rest) = halves();
    let yaml = format!("{ALL}server: {{shutdown_timeout: 20}}\n");
    // a second and half a second, less a tick of the clock; where the machine was too busy for that it is asked again
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
                // it is accepted when one that came after it is
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
fn who_was_accepted_and_waits_for_a_seat_is_answered_before_the_end() {
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

/// What became of the requests of one client of [`twenty_restarts_under_load_lose_no_request`].
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

/// Raises the flag when it is dropped.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Asks again and again until told to stop, on one connection as long as that is kept, or on one for each request.
///
/// A request on a connection that served others before, and that closes without a byte of answer, is sent once more:
/// a GET is idempotent, and RFC 9112 §9.3.1 lets a client repeat it then by itself. Nothing else is repeated, and a
/// connection whose answer says `connection: close` is not used again.
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
        // whatever happens here, the clients end; and the last proxy serves until they have
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
fn what_does_not_end_in_time_is_cut_off() {
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
fn health_says_draining_while_the_doors_are_still_open() {
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

/// The process that a program which stands before the proxy started, where the kernel tells.
fn first_child(proxy: &Proxy) -> Option<String> {
    let path = format!("/proc/{0}/task/{0}/children", proxy.pid());
    let children = fs::read_to_string(path).unwrap_or_default();
    children.split_whitespace().next().map(str::to_owned)
}

#[test]
fn as_the_first_process_of_a_container_it_stops_when_asked() {
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
fn nothing_is_lost_while_it_reloads_again_and_again() {
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

// ---- logs ----

#[test]
fn the_access_line_is_complete() {
    let upstream = Upstream::fixed(format!(
        "HTTP/1.1 201 Created\r\nContent-Length: 12345\r\n\r\n{}",
        "x".repeat(12345)
    ));
    let yaml = format!("{ALL}log: {{access: true}}\n");
    let request = with("POST /some/path", &["Content-Length: 678"]) + &"y".repeat(678);
    let text = Proxy::before(&upstream, &yaml);
    text.ask(&request);
    let line = text.await_log("the access line", |line| line.contains("/some/path"));
    for word in [
        "127.0.0.1",
        "POST",
        "/some/path",
        "201",
        "12345",
        "678",
        &upstream.authority(),
    ] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    let json = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .env("LOG_FORMAT", "json")
        .start();
    json.ask(&request);
    let line = json.await_log("the access line", |line| line.contains("/some/path"));
    let Ok(Json::Object(members)) = Json::parse(&line) else {
        panic!("no JSON object: {line}")
    };
    let number = |n: f64| members.values().any(|v| *v == Json::Number(n));
    let word = |w: &str| {
        members
            .values()
            .any(|v| v.text().is_some_and(|t| t.contains(w)))
    };
    assert!(number(201.0) && number(12345.0) && number(678.0), "{line}");
    assert!(
        word("127.0.0.1") && word("POST") && word("/some/path") && word(&upstream.authority()),
        "{line}"
    );
}

#[test]
fn an_access_line_is_written_for_whatever_happens() {
    let upstream = Upstream::start(|peer| {
        let head = peer.head()?;
        match head.target.as_str() {
            "/cut" => peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
            "/leaves" => {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
                peer.await_close()
            }
            "/close" => Ok(()),
            "/silent" => peer.await_close(),
            _ => peer.write(OK),
        }
    });
    let yaml = "routes: [{path: /down/, target: 'unix:DIR/none'}, {path: /up/, target: 'http://UP'}]\nlog: {access: true}\n";
    let proxy = Proxy::before(&upstream, yaml);
    let is_access = |line: &str| line.contains("msg=\"access\"");
    for (target, status, outcome) in [
        ("/up/fine", 200, "ok"),
        ("/up/cut", 200, "upstream-cut"),
        ("/up/close", 502, "upstream-closed"),
        ("/down/x", 502, "dial-failed"),
        ("/nowhere", 404, "no-route"),
    ] {
        let mut client = proxy.client();
        client.send(get(target));
        let _ = client.try_receive();
        let line = proxy.await_log(target, |line| line.contains(target) && is_access(line));
        assert!(line.contains(&format!("status={status} ")), "{line}");
        assert!(line.ends_with(&format!("outcome={outcome}")), "{line}");
    }
    let mut client = proxy.client();
    client.send(get("/up/leaves")).head();
    drop(client);
    let line = proxy.await_log("a client that left", |line| line.contains("/up/leaves"));
    assert!(line.contains("status=200 ") && line.ends_with("outcome=client-gone"));
    let mut client = proxy.client();
    client.send(get("/up/silent"));
    upstream.await_requests(5);
    drop(client);
    let line = proxy.await_log("one that left early", |line| line.contains("/up/silent"));
    assert!(line.contains("status=0 ") && line.ends_with("outcome=client-gone"));
}

#[test]
fn an_access_line_comes_when_the_last_byte_is_gone() {
    let (upstream, rest) = halves();
    let proxy = Proxy::before(&upstream, &format!("{ALL}log: {{access: true}}\n"));
    let mut busy = half_read(&proxy);
    proxy.get("/other");
    proxy.await_log("the other line", |line| line.contains("/other"));
    assert!(!proxy.logs().iter().any(|line| line.contains("/halves")));
    rest.raise();
    busy.reader().exact(2).unwrap();
    proxy.await_log("the line at the end", |line| line.contains("/halves"));
}

#[test]
fn json_logs_stay_json_whatever_is_sent() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}log: {{access: true, level: debug}}\n");
    for format in ["json", "text"] {
        let proxy = Setup::new(&yaml)
            .upstream("UP", &upstream)
            .env("LOG_FORMAT", format)
            .start();
        let targets: [&[u8]; 8] = [
            b"/a\"b\\c",
            b"/\xff\xfe\x80",
            b"/\xc3\xa9\xf0\x9f\x98\x80",
            b"/%00%0a%1b[31m",
            b"/x\",\"status\":500,\"y\":\"",
            b"/a=b msg=evil",
            b"/\x1b[2J",
            b"/\xe2\x80\xa8{}[]'",
        ];
        for target in targets {
            let mut client = proxy.client();
            client.send(
                [
                    b"GET ",
                    target,
                    b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: \"x\\\r\n\r\n",
                ]
                .concat(),
            );
            client.until_end();
        }
        proxy.get("/last");
        proxy.await_log("the last line", |line| line.contains("/last"));
        for line in proxy.logs() {
            assert!(
                !line.bytes().any(|b| b < b' ' || b == 0x7f),
                "a control byte in {line:?}"
            );
            assert!(
                format == "text" || matches!(Json::parse(&line), Ok(Json::Object(_))),
                "no JSON: {line}"
            );
        }
    }
}

#[test]
fn debug_shows_the_upstreams_url_and_never_a_secret() {
    let upstream = Upstream::fixed(
        "HTTP/1.1 200 OK\r\nSet-Cookie: s3cret-a\r\nX-Reply: s3cret-b\r\nContent-Length: 8\r\n\r\ns3cret-c",
    );
    let yaml = "routes: [{path: /api/, target: 'http://UP/base', request_headers: {set: {X-Key: s3cret-k}}}]\nlog: {access: true}\n";
    let proxy = Setup::new(yaml)
        .upstream("UP", &upstream)
        .env("DEBUG", "true")
        .start();
    let fields = [
        "Authorization: Bearer s3cret-d",
        "Cookie: s3cret-e",
        "X-Whatever: s3cret-f",
        "Content-Length: 8",
    ];
    proxy.ask(with("POST /api/x", &fields) + "s3cret-g");
    let url = format!("http://{}/base/x", upstream.authority());
    proxy.await_log("the upstream's URL", |line| line.contains(&url));
    proxy.await_log("the access line", |line| line.contains("/api/x"));
    for line in proxy.logs() {
        assert!(!line.contains("s3cret"), "{line}");
    }
}

#[test]
fn without_access_logs_an_exchange_is_silent() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Proxy::before(&upstream, ALL);
    proxy.await_log("the last line of the start", |line| line.contains("memory"));
    let before = proxy.logs().len();
    for _ in 0..5 {
        proxy.get("/x");
    }
    assert_eq!(proxy.logs().len(), before, "{:#?}", proxy.logs());
    assert_eq!(proxy.terminate().code(), Some(0));
    assert_eq!(proxy.errors(), "");
}
