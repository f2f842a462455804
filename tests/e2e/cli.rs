//! The command line and its exit codes: --check, the environment, --health, --reload.

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    lifecycle::first_child,
    support::{
        ALL, Finished, OK, Peer, Proxy, Setup, Upstream, binary, eventually, seen, signal, skip,
    },
};

/// A valid configuration.
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
    for args in [&[][..], &["--check"], &["--health"]] {
        let run = Setup::new(GOOD).args(args).run();
        assert_eq!(run.code, Some(2), "{}", run.err);
        for looked_for in ["CONFIG", "LEAN_PROXY_CONFIG", "/config.yaml", "usage"] {
            assert!(run.err.contains(looked_for), "{args:?}: {}", run.err);
        }
    }
}

#[test]
fn the_version_names_the_commit_where_the_build_knew_it() {
    let run = Setup::new(GOOD).args(&["--version"]).run();
    let plain = concat!("lean-proxy ", env!("CARGO_PKG_VERSION"));
    let rest = run.out.trim_end().strip_prefix(plain).expect("a version");
    let commit = rest
        .strip_prefix(" (")
        .and_then(|rest| rest.strip_suffix(')'));
    assert!(rest.is_empty() || commit.is_some(), "{}", run.out);
    // a build given by LEAN_PROXY_BIN may be of another commit
    if std::env::var_os("LEAN_PROXY_BIN").is_none() {
        assert_eq!(
            commit.unwrap_or_default(),
            option_env!("LEAN_PROXY_COMMIT").unwrap_or_default()
        );
    }
}

#[test]
fn check_prints_the_warnings_of_a_start() {
    let yaml =
        "routes: [{path: /, target: 'https://h.invalid', tls: {insecure_skip_verify: true}}]\n";
    let run = check(yaml);
    assert_eq!((run.code, run.out.lines().count()), (Some(0), 1));
    let warning = run.err.trim_end();
    assert!(
        warning.starts_with("warning: ") && warning.lines().count() == 1,
        "{warning}"
    );
    assert!(
        warning.contains("config.yaml:1: routes[0].tls: insecure_skip_verify"),
        "{warning}"
    );
    let (_, sentence) = warning.split_once("routes[0].tls: ").unwrap();
    let proxy = Setup::new(yaml).start();
    proxy.await_log("the same warning", |line| line.contains(sentence));
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
        (
            "routes: [{path: '/api*', target: 'http://h'}]\n".to_owned(),
            &["routes[0].path", "\"/api\""],
        ),
        (
            "routes: [{path: '/users/:id', target: 'http://h'}]\n".to_owned(),
            &["routes[0].path", "\"/users/\""],
        ),
        (
            "routes: [{path: '/users/{id}', target: 'http://h'}]\n".to_owned(),
            &["routes[0].path", "\"/users/\""],
        ),
        (
            "routes: [{path: /, target: 'http://unix:/run/x'}]\n".to_owned(),
            &["routes[0].target", "\"unix:/run/x\""],
        ),
        (
            "routes:\n\t- path: /\n".to_owned(),
            &["config.yaml:2", "a tab"],
        ),
        (
            format!("{GOOD}cors: true\n"),
            &["config.yaml:2: cors", "allowed_origins"],
        ),
        (
            format!("{GOOD}cors: {{allowed_origins: [*]}}\n"),
            &["config.yaml:2", "quotes", "\"*\""],
        ),
        (
            format!("{GOOD}transport: {{dial_timeout: ${{X:-3}}}}\n"),
            &["config.yaml:2", "quotes", "\"${X:-3}\""],
        ),
        (
            format!("{GOOD}cors: {{allowed_methods: [put]}}\n"),
            &["cors.allowed_methods", "PUT"],
        ),
        (
            format!("{GOOD}max_body_size: 1\n"),
            &["max_body_size", "belongs to routes[]"],
        ),
        (
            format!("{GOOD}listen: '::1:80'\n"),
            &["listen", "\"[::1]:80\""],
        ),
        (format!("{GOOD}listen: 'fd:2'\n"), &["listen", "fd:3"]),
        (
            format!("{GOOD}server: {{unix_socket_mode: 660}}\n"),
            &["server.unix_socket_mode", "\"0660\""],
        ),
        (
            format!("{GOOD}transport: {{max_idle_conns: 010}}\n"),
            &["transport.max_idle_conns", "write 10"],
        ),
        (
            route("host: 'https://app.example.com'"),
            &["routes[0].host", "\"app.example.com\""],
        ),
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
            route("max_body_size: 64KX"),
            &["routes[0].max_body_size", "64KiB"],
        ),
        (route("host: 'a b'"), &["routes[0].host"]),
        (route("strip_prefix: maybe"), &["routes[0].strip_prefix"]),
        (
            format!("{GOOD}transport: {{dial_timeout: 30x}}\n"),
            &["transport.dial_timeout", "30s"],
        ),
        (
            format!("{GOOD}transport: {{idle_conn_timeout: 5M}}\n"),
            &["transport.idle_conn_timeout", "1m30s"],
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
            format!("{GOOD}server: {{max_header_bytes: 2MiB}}\n"),
            &["server.max_header_bytes", "1048576"],
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
fn common_notations_are_accepted() {
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
        format!("{GOOD}limits: {{memory: 10M}}\ntransport: {{dial_timeout: 500ms, idle_conn_timeout: 1m30s, read_buffer_size: 64KiB}}\n"),
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
fn a_configuration_of_the_first_version_runs_unchanged() {
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
fn the_configuration_may_be_in_the_environment() {
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
fn what_the_environment_changed_is_logged_at_start() {
    let upstream = Upstream::fixed(OK);
    let yaml = format!("{ALL}listen: '127.0.0.1:0'\n");
    let proxy = Setup::new("unused: true")
        .upstream("UP", &upstream)
        .args(&[])
        .env("LEAN_PROXY_CONFIG", yaml)
        .start();
    proxy.await_log("where the configuration is from", |line| {
        line.contains("LEAN_PROXY_CONFIG -> the configuration")
    });
    let key = rcgen::generate_simple_self_signed(["h.invalid".to_owned()]).unwrap();
    let setup = Setup::new("routes: [{path: /, target: 'https://h.invalid'}]\n")
        .env("SSL_CERT_FILE", "DIR/roots.pem");
    fs::write(setup.dir().join("roots.pem"), key.cert.pem()).unwrap();
    setup.start().await_log("which roots are used", |line| {
        line.contains("SSL_CERT_FILE=") && line.contains("roots.pem")
    });
}

#[test]
fn the_memory_budget_is_logged_at_start() {
    let upstream = Upstream::fixed(OK);
    for (name, value, told) in [
        ("LEAN_PROXY_MEMORY", "10MiB", "10.0 MiB"),
        ("GOMEMLIMIT", "8388608", "8.0 MiB"),
        ("GOMEMLIMIT", "9MiB", "9.0 MiB"),
        ("LEAN_PROXY_MEMORY", "10M", "10.0 MiB"),
        ("GOMEMLIMIT", "20MB", "19.1 MiB"),
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
fn health_of_a_socket_with_a_full_backlog_is_a_1() {
    let setup = Setup::new(&format!("{GOOD}listen: 'unix:DIR/full.sock'\n"));
    let path = setup.dir().join("full.sock");
    let address = SockAddr::unix(&path).unwrap();
    let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    listener.bind(&address).unwrap();
    listener.listen(0).unwrap();
    let mut waiting = Vec::new();
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        if socket.connect(&address).is_err() {
            break;
        }
        waiting.push(socket);
    }
    let run = setup.args(&["--health", "CONFIG"]).run();
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(
        run.err.contains("full.sock") && run.err.contains("backlog"),
        "{}",
        run.err
    );
}

#[test]
fn health_of_a_name_that_is_never_resolved_is_a_1() {
    // a resolver that never answers; on an address of this process only, because its port cannot be chosen
    let pid = std::process::id();
    let name = format!("127.77.{}.{}", pid >> 8 & 255, pid & 255);
    let Ok(_silent) = UdpSocket::bind((name.as_str(), 53)) else {
        return skip("port 53 cannot be had here");
    };
    let setup = Setup::new(GOOD);
    let file = setup.dir().join("resolv.conf");
    fs::write(&file, format!("nameserver {name}\noptions timeout:30\n")).unwrap();
    let bind = format!("mount --bind {} /etc/resolv.conf", file.display());
    let can = Command::new("unshare")
        .args(["--mount", "/bin/sh", "-c", &bind])
        .stderr(Stdio::null())
        .status();
    if !can.is_ok_and(|status| status.success()) {
        return skip("nothing can be mounted here");
    }
    let script =
        format!("exec unshare --mount /bin/sh -c '{bind} && exec \"$0\" \"$@\"' \"$0\" \"$@\"");
    let run = setup
        .args(&["--health", "http://slow.example:80/health"])
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .shell(&script, Stdio::null())
        .run();
    assert_eq!(run.code, Some(1), "{}", run.err);
    assert!(
        run.err.contains("looking up slow.example") && run.err.contains("in time"),
        "{}",
        run.err
    );
}

#[test]
fn health_without_arguments_asks_the_first_process_of_its_container() {
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
    let inside = |arguments: &[&str]| {
        let container = [
            "--preserve-credentials",
            "--target",
            &inner,
            "--user",
            "--mount",
            "--pid",
        ];
        let run = Command::new("nsenter")
            .args(container)
            .arg(binary())
            .args(arguments)
            .env_remove("LEAN_PROXY_CONFIG")
            .output()
            .unwrap();
        (run.status.code(), String::from_utf8(run.stdout).unwrap())
    };
    let health = || inside(&["--health"]);
    assert_eq!(health(), (Some(0), "ok\n".to_owned()));
    let told = inside(&["--reload"]);
    assert_eq!(told.0, Some(0), "{}", told.1);
    proxy.await_log("a reload", |line| line.contains("reloaded"));
    fs::remove_file(proxy.dir().join("lean.sock")).unwrap();
    assert_eq!(health(), (Some(1), String::new()), "nothing listens");
    signal("TERM", &inner);
    assert_eq!(proxy.exit().code(), Some(0));
}

// ---- reload ----

#[test]
fn reload_tells_the_process_of_the_pid_file() {
    let upstream = Upstream::fixed(OK);
    let mut proxy = Setup::new(ALL)
        .upstream("UP", &upstream)
        .args(&["--pid-file", "DIR/pid", "CONFIG"])
        .start();
    let file = proxy.dir().join("pid");
    eventually("the pid file is there", || file.exists());
    let pid = fs::read_to_string(&file).unwrap();
    assert_eq!(pid, format!("{}\n", proxy.pid()));
    let reload = |file: &Path| {
        Setup::new(GOOD)
            .args(&["--reload", "--pid-file", &file.display().to_string()])
            .run()
    };
    let told = reload(&file);
    assert_eq!((told.code, told.err.as_str()), (Some(0), ""));
    assert!(told.out.contains(pid.trim_end()), "{}", told.out);
    proxy.await_log("a reload", |line| line.contains("reloaded"));
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(proxy.terminate().code(), Some(0));
    assert!(!file.exists(), "it is removed with its process");
    let gone = reload(&file);
    assert_eq!((gone.code, gone.out.as_str()), (Some(1), ""));
    assert!(gone.err.contains("--pid-file"), "{}", gone.err);
}

#[test]
fn a_second_signal_leaves_no_pid_file() {
    let (upstream, _hold) = Upstream::held();
    let mut proxy = Setup::new(&format!("{ALL}server: {{shutdown_timeout: 60}}\n"))
        .upstream("UP", &upstream)
        .args(&["--pid-file", "DIR/pid", "CONFIG"])
        .start();
    let file = proxy.dir().join("pid");
    eventually("the pid file is there", || file.exists());
    let mut client = proxy.client();
    client.send(crate::support::get("/"));
    upstream.await_requests(1);
    proxy.signal("TERM");
    proxy.await_log("that it stops", |line| line.contains("stopping"));
    assert!(file.exists());
    proxy.signal("TERM");
    assert_eq!(proxy.exit().code(), Some(0));
    assert!(!file.exists());
}

#[test]
fn reload_signals_only_a_serving_proxy() {
    // the shell reads from a pipe that stays open, and SIGHUP would end it
    let mut other = Command::new("/bin/sh")
        .args(["-c", "read line; exit 7"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let setup = Setup::new(GOOD);
    fs::write(setup.dir().join("pid"), other.id().to_string()).unwrap();
    let run = setup.args(&["--reload", "--pid-file", "DIR/pid"]).run();
    assert_eq!(run.code, Some(1), "{}", run.out);
    assert!(
        run.err.contains(&other.id().to_string()) && run.err.contains("no signal was sent"),
        "{}",
        run.err
    );
    drop(other.stdin.take());
    assert_eq!(other.wait().unwrap().code(), Some(7));
    let first = Setup::new(GOOD).args(&["--reload"]).run();
    assert_eq!(first.code, Some(1), "{}", first.out);
    assert!(first.err.contains("--pid-file"), "{}", first.err);
}

#[test]
fn a_pid_file_that_cannot_be_written_is_a_3() {
    let run = Setup::new(GOOD)
        .args(&["--pid-file", "DIR/none/pid", "CONFIG"])
        .run();
    assert_eq!(run.code, Some(3), "{}", run.err);
    assert!(run.err.contains("none/pid"), "{}", run.err);
}
