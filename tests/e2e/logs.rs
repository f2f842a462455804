//! What is logged of an exchange, when, and what never is.

use std::{
    io::{BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use crate::{
    json::Json,
    lifecycle::{half_read, halves},
    support::{ALL, Client, OK, PATIENCE, Proxy, Setup, Upstream, eventually, get, with},
};

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
fn an_access_line_is_written_however_an_exchange_ends() {
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
fn an_access_line_is_written_when_the_last_byte_is_sent() {
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
    let started = proxy.await_log("the last line of the start", |line| {
        line.contains("msg=\"started\"")
    });
    let config = proxy.dir().join("config.yaml").display().to_string();
    assert!(started.contains(&config) && started.ends_with("routes=1 listeners=1 threads=1"));
    let before = proxy.logs().len();
    for _ in 0..5 {
        proxy.get("/x");
    }
    assert_eq!(proxy.logs().len(), before, "{:#?}", proxy.logs());
    assert_eq!(proxy.terminate().code(), Some(0));
    assert_eq!(proxy.errors(), "");
}

#[test]
fn lines_that_stdout_does_not_take_are_counted_and_their_number_is_logged() {
    let upstream = Upstream::fixed(OK);
    let (ours, stdout) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let yaml = format!("{ALL}log: {{access: true}}\nmetrics: {{listen: '127.0.0.1:0'}}\n");
    let _proxy = Setup::new(&yaml)
        .upstream("UP", &upstream)
        .shell("exec \"$0\" \"$@\" >&0 </dev/null", OwnedFd::from(stdout))
        .listeners(0)
        .start();
    let mut lines = BufReader::new(ours).lines().map(Result::unwrap);
    let mut value = |message: &str, name: &str| {
        let line = lines.find(|line| line.contains(message)).unwrap();
        let value = line.split(&format!(" {name}=")).nth(1).unwrap();
        value.split(' ').next().unwrap().to_owned()
    };
    let clients = value("msg=\"listening\"", "address").parse().unwrap();
    let metrics = value("msg=\"metrics\"", "address").parse().unwrap();
    let dropped = || {
        let page = Client::connect(metrics).get("/metrics").text();
        let mut counts = page
            .lines()
            .filter_map(|line| line.strip_prefix("lean_proxy_log_lines_dropped_total "));
        counts.next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(dropped(), 0);
    let mut client = Client::connect(clients);
    eventually("stdout is full", || {
        client.get("/");
        dropped() > 0
    });
    // an access line is read, and then there is room for others
    for _ in 0..100 {
        value("msg=\"access\"", "status");
    }
    client.get("/");
    let logged: u64 = value("msg=\"log lines dropped\"", "lines").parse().unwrap();
    eventually("all are counted", || dropped() == logged);
}
