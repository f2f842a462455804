use http::HeaderValue;

use super::*;

fn map(fields: &[(&str, &str)]) -> Fields {
    fields.iter().copied().collect()
}

fn written(fields: &[(&str, &str)], trusted: bool) -> String {
    let mut out = Vec::new();
    let sender = Sender {
        client: Some("192.0.2.7".parse().unwrap()),
        trusted,
        is_secured: false,
        subject: None,
    };
    let headers = map(fields);
    write_request(
        &mut out,
        &headers,
        &Present::of(&headers),
        &Edits::default(),
        b"target:81",
        b"asked.example",
        sender,
    );
    String::from_utf8(out).unwrap()
}

#[test]
fn fields_travel_in_their_order_and_hops_stay_behind() {
    let fields = [
        ("a", "1"),
        ("host", "asked.example"),
        ("connection", "keep-alive, X-Private"),
        ("b", "2"),
        ("x-private", "p"),
        ("te", "trailers, gzip"),
        ("upgrade", "h2c"),
        ("proxy-authorization", "secret"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("trailer", "x"),
        ("proxy-connection", "close"),
        ("c", "3"),
        ("content-length", "5"),
    ];
    let expected = "host: target:81\r\na: 1\r\nb: 2\r\nc: 3\r\ncontent-length: 5\r\nx-forwarded-for: 192.0.2.7\r\nx-forwarded-host: asked.example\r\nx-forwarded-proto: http\r\n";
    assert_eq!(written(&fields, true), expected);
}

#[test]
fn connection_cannot_steal_what_later_hops_need() {
    for name in [
        "content-type",
        "authorization",
        "cookie",
        "x-forwarded-proto",
        "content-length",
        "cache-control",
        "expect",
        "date",
        "set-cookie",
        "location",
        "vary",
    ] {
        let text = written(&[("connection", name), (name, "v")], true);
        assert!(text.contains(&format!("{name}: v\r\n")), "{name}: {text}");
    }
}

#[test]
fn fields_are_looked_up_in_connection_only_where_it_names_others() {
    for (value, nominates) in [
        ("close", false),
        ("Keep-Alive, TE", false),
        ("Upgrade,close", false),
        ("x-a", true),
        ("keep-alive, X-A", true),
    ] {
        let headers = map(&[("connection", value)]);
        assert_eq!(Hops::of(&headers).nominates, nominates, "{value}");
    }
    assert!(!Hops::of(&map(&[])).nominates);
}

#[test]
fn who_forwarded_is_appended_to_or_replaced() {
    let fields = [
        ("x-forwarded-for", "198.51.100.1"),
        ("x-forwarded-for", "203.0.113.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "edge"),
        ("x-forwarded-port", "443"),
        ("forwarded", "for=x"),
        ("x-real-ip", "x"),
        ("x_forwarded_for", "twin"),
        ("content_length", "7"),
    ];
    let trusted = written(&fields, true);
    assert_eq!(
        trusted,
        "host: target:81\r\nx-forwarded-proto: https\r\nx-forwarded-host: edge\r\nx-forwarded-port: 443\r\nforwarded: for=x\r\nx-real-ip: x\r\nx-forwarded-for: 198.51.100.1, 203.0.113.9, 192.0.2.7\r\n"
    );
    let stranger = written(&fields, false);
    assert_eq!(
        stranger,
        "host: target:81\r\nx-forwarded-for: 192.0.2.7\r\nx-forwarded-host: asked.example\r\nx-forwarded-proto: http\r\n"
    );
}

#[test]
fn what_the_operator_sets_is_out_of_the_clients_reach() {
    let edits = Edits {
        set: [
            ("x-api-key", "k"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "r"),
        ]
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .to_vec(),
        remove: vec![HeaderName::from_static("cookie"), FORWARDED_HOST],
    };
    let headers = map(&[
        ("connection", "x-api-key, x-real-ip"),
        ("x-api-key", "mine"),
        ("cookie", "c"),
        ("a", "1"),
    ]);
    for trusted in [true, false] {
        let mut out = Vec::new();
        let sender = Sender {
            client: None,
            trusted,
            is_secured: false,
            subject: None,
        };
        write_request(
            &mut out,
            &headers,
            &Present::of(&headers),
            &edits,
            b"t",
            b"asked",
            sender,
        );
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "host: t\r\na: 1\r\nx-api-key: k\r\nx-forwarded-proto: https\r\nx-real-ip: r\r\n"
        );
    }
}

#[test]
fn the_first_hop_says_whether_the_client_came_by_https() {
    for (value, expected) in [
        ("https", true),
        ("HTTPS", true),
        ("https, http", true),
        ("http, https", false),
        ("http", false),
        ("httpss", false),
        ("", false),
    ] {
        let headers = map(&[("x-forwarded-proto", value)]);
        assert_eq!(says_https(&headers), expected, "{value}");
    }
    assert!(!says_https(&map(&[])));
}

#[test]
fn only_a_whole_websocket_handshake_upgrades() {
    let cases: &[(&[(&str, &str)], bool)] = &[
        (&[("upgrade", "websocket"), ("connection", "Upgrade")], true),
        (
            &[
                ("upgrade", "WebSocket"),
                ("connection", "keep-alive, upgrade"),
            ],
            true,
        ),
        (&[("upgrade", "websocket")], false),
        (
            &[
                ("upgrade", "h2c"),
                ("connection", "upgrade, http2-settings"),
            ],
            false,
        ),
        (
            &[("upgrade", "h2c, websocket"), ("connection", "upgrade")],
            false,
        ),
        (
            &[
                ("upgrade", "websocket"),
                ("upgrade", "h2c"),
                ("connection", "upgrade"),
            ],
            false,
        ),
        (&[("connection", "upgrade")], false),
    ];
    for (fields, expected) in cases {
        assert_eq!(is_websocket(&map(fields)), *expected, "{fields:?}");
    }
}

/// All bytes that are allowed in a field name except letters and digits (RFC 9110 §5.6.2).
const OTHERS: &[u8] = b"!#$%&'*+-.^_`|~";

#[test]
fn twins_are_found_as_by_a_reading_of_every_name() {
    let others = [
        "host",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-",
        "x-forwarded-a-b",
        "x-forward-for",
        "x-user",
        "a",
    ];
    let names = TWINNED.iter().chain(&HOP_BY_HOP).copied();
    let names = names.chain(others.map(str::as_bytes));
    for name in names {
        for at in 0..name.len() {
            for &other in OTHERS.iter().chain(b"a") {
                let mut changed = name.to_vec();
                changed[at] = other;
                let read = plain(&changed);
                let naive = read != changed
                    && (is_hop_by_hop(&read)
                        || read == b"content-length"
                        || read == b"x-real-ip"
                        || read.starts_with(b"x-forwarded-"));
                assert_eq!(is_twin(&changed), naive, "{}", changed.escape_ascii());
            }
        }
        assert!(!is_twin(name), "{} is its own twin", name.escape_ascii());
    }
}

#[test]
fn two_names_are_one_where_only_their_separators_differ() {
    for (name, other, same) in [
        ("x-user", "x-user", true),
        ("x_user", "x-user", true),
        ("x.user", "x_user", true),
        ("x`user", "x-user", true),
        ("xuser", "x-user", false),
        ("x-user", "x-users", false),
        ("x--user", "x-user", false),
        ("xauser", "x-user", false),
    ] {
        assert_eq!(
            reads_as(name.as_bytes(), other.as_bytes()),
            same,
            "{name} {other}"
        );
    }
}

#[test]
fn a_trailer_section_is_read_without_what_is_withheld() {
    let withheld = [HeaderName::from_static("x-hop")];
    let read = |section: &[u8]| {
        let trailers = read_trailers(section, &withheld)?;
        Some(trailers.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    let section = b"X-Sum: 1\r\nX_Hop: 2\r\nX-HOP: 3\r\nSet_Cookie: 4\r\nX-Sum: 5\r\nz:\r\n\r\n";
    assert_eq!(read(section), Some(vec!["x-sum".into(), "z".into()]));
    assert_eq!(read(b"\r\n"), Some(Vec::new()));
    assert_eq!(read(b"X-Sum : 1\r\n\r\n"), None);
    assert_eq!(read(b"X-Sum: 1\n\r\n"), None);
    for (count, is_read) in [(MAX_TRAILERS, true), (MAX_TRAILERS + 1, false)] {
        let section = "a: b\r\n".repeat(count) + "\r\n";
        assert_eq!(read(section.as_bytes()).is_some(), is_read, "{count}");
    }
}

#[test]
fn trailers_that_frame_or_route_do_not_trail() {
    let joined = |announced: &[&'static str]| {
        let values = announced.iter().map(|value| value.as_bytes());
        joined_trailers(values, &[]).map(|names| String::from_utf8(names).unwrap())
    };
    let announced = [
        "X-Sum, Content-Length, host, a b",
        "grpc-status, X_Forwarded_For, Content_Length, X-Client-Cert-Subject",
    ];
    assert_eq!(joined(&announced).as_deref(), Some("X-Sum, grpc-status"));
    assert_eq!(joined(&["host"]), None);
}

#[test]
fn addresses_read_as_the_formatter_writes_them() {
    for address in [
        "0.0.0.0",
        "1.20.255.100",
        "9.10.99.101",
        "::1",
        "2001:db8::7",
    ] {
        let mut out = Vec::new();
        push_address(&mut out, address.parse().unwrap());
        assert_eq!(out, address.as_bytes());
    }
}

#[test]
fn no_stripped_field_ever_survives() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % n as u64).unwrap()
    };
    let names = [
        "a",
        "b",
        "cookie",
        "te",
        "upgrade",
        "keep-alive",
        "x-one",
        "x-two",
        "trailer",
        "transfer-encoding",
        "proxy-connection",
    ];
    for _ in 0..2_000 {
        let mut fields: Vec<(&str, String)> = (0..random(12))
            .map(|_| (names[random(names.len())], "v".to_owned()))
            .collect();
        let listed = names[random(names.len())];
        fields.push(("connection", format!("close,  {}", listed.to_uppercase())));
        let borrowed: Vec<(&str, &str)> = fields
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let text = written(&borrowed, true);
        for line in text.lines() {
            let name = line.split(':').next().unwrap();
            assert!(!is_hop_by_hop(name.as_bytes()), "{line} of {fields:?}");
            assert!(
                name != listed || !is_nominable(name.as_bytes()),
                "{line} of {fields:?}"
            );
        }
    }
}

#[test]
fn a_websocket_is_asked_for_by_get_and_http_1_1_alone() {
    let asks = |line: &str| {
        let text =
            format!("{line}\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n");
        let head = crate::http1::request_head::head(text.as_bytes(), &mut 0, 1_000);
        let head = head.unwrap().unwrap();
        let parts = crate::http1::request_head::parts(text.into_bytes(), head);
        wants_websocket(&parts.unwrap())
    };
    assert!(asks("GET / HTTP/1.1"));
    assert!(!asks("POST / HTTP/1.1") && !asks("GET / HTTP/1.0"));
}

#[test]
fn no_client_sets_the_subject_of_a_certificate() {
    let names = ["x-client-cert-subject", "x_client_cert_subject"];
    for name in names {
        let text = written(&[(name, "me"), ("x-a", "b")], true);
        assert!(!text.contains("me") && text.contains("x-a: b"), "{text}");
    }
}

#[test]
fn an_ipv4_client_of_an_ipv6_listener_is_forwarded_as_ipv4() {
    let sender = Sender {
        client: Some("::ffff:192.0.2.7".parse().unwrap()),
        trusted: false,
        is_secured: false,
        subject: None,
    };
    let (headers, mut out) = (Fields::new(), Vec::new());
    forwarded_for(&mut out, &headers, &Present::of(&headers), sender);
    assert_eq!(out, b"x-forwarded-for: 192.0.2.7\r\n");
}
