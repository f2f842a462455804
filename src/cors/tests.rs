use super::*;

type List<'a> = &'a [(&'a str, &'a str)];

fn settings(origins: &[&str]) -> Settings {
    let owned = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    Settings {
        allowed_origins: owned(origins),
        allowed_methods: owned(&["GET", "POST"]),
        allowed_headers: owned(&["Content-Type", "X-A"]),
        exposed_headers: vec![],
        allow_credentials: Credentials::Auto,
        max_age: 86400,
    }
}

fn cors(settings: &Settings) -> Cors {
    Cors::new(settings).unwrap().unwrap()
}

fn map(fields: List<'_>) -> Fields {
    fields.iter().copied().collect()
}

/// The fields sorted by name, as `name: value`.
fn shown(headers: &Fields) -> Vec<String> {
    let line = |(name, value): (&[u8], &[u8])| {
        format!("{}: {}", name.escape_ascii(), value.escape_ascii())
    };
    let mut lines: Vec<_> = headers.iter().map(line).collect();
    lines.sort_by_key(|line| line.split(':').next().unwrap().to_owned());
    lines
}

fn answer(cors: &Cors, method: &Method, fields: List<'_>) -> Option<(u16, Vec<String>)> {
    match cors.judge(method, &map(fields)) {
        Verdict::Answer(status, headers) => Some((status.as_u16(), shown(&headers))),
        Verdict::Refused(headers) => Some((403, shown(&headers))),
        Verdict::Grant(_) => None,
    }
}

fn allows(cors: &Cors, origin: &str) -> bool {
    cors.grant(&map(&[("origin", origin)])).is_some()
}

/// The response's fields for a GET with these request fields, where the upstream sent those.
fn stamped(cors: &Cors, request: List<'_>, upstream: List<'_>) -> Vec<String> {
    let Verdict::Grant(grant) = cors.judge(&Method::GET, &map(request)) else {
        panic!("a GET is never answered by the policy")
    };
    let mut headers = map(upstream);
    cors.stamp(&grant, &mut headers);
    shown(&headers)
}

const A: (&str, &str) = ("origin", "https://a.example");
const EVIL: (&str, &str) = ("origin", "https://evil.example");
const ASKS_PUT: (&str, &str) = ("access-control-request-method", "PUT");
const ASKS_NAMES: (&str, &str) = ("access-control-request-headers", "x-a,x-b");
const VARY_ALL: &str =
    "vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers";

#[test]
fn without_a_listed_origin_there_is_no_policy() {
    assert!(Cors::new(&settings(&[])).unwrap().is_none());
}

/// Each row: the entry, the origins that it allows, and those that it does not, separated by white space.
fn check_origins(table: &[(&str, &str, &str)]) {
    for (written, good, bad) in table {
        let policy = cors(&settings(&[written]));
        for origin in good.split_whitespace() {
            assert!(allows(&policy, origin), "{written} allows {origin}");
        }
        for origin in bad.split_whitespace() {
            assert!(
                !allows(&policy, origin),
                "{written} does not allow {origin}"
            );
        }
    }
}

#[test]
fn origins_match_byte_by_byte() {
    check_origins(&[
        (
            "https://a.example",
            "https://a.example",
            "http://a.example https://a.example:443 https://A.example HTTPS://a.example https://a.example. https://a.example/
             https://a.examplee https://a.exampl https://b.a.example null * a.example",
        ),
        ("HTTPS://A.Example:443", "https://a.example", "HTTPS://A.Example:443 https://a.example:443"),
        ("http://a.example:80", "http://a.example", "http://a.example:80"),
        ("http://a.example:443", "http://a.example:443", "http://a.example"),
        ("https://a.example:8443", "https://a.example:8443", "https://a.example https://a.example:84433"),
        ("http://[0:0:0:0:0:0:0:1]:3000", "http://[::1]:3000", "http://[::1]"),
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "http://127.0.0.1"),
        ("null", "null", "NULL https://null"),
        ("capacitor://localhost", "capacitor://localhost", "http://localhost"),
        ("*", "https://a.example null anything", ""),
    ]);
}

#[test]
fn a_wildcard_takes_labels_or_ports_and_nothing_else() {
    check_origins(&[
        (
            "https://*.example.com",
            "https://a.example.com https://a.b.example.com https://x-1_y.example.com",
            "https://example.com https://.example.com https://a..example.com http://a.example.com https://a.example.com:8443
             https://notexample.com https://evil.com/.example.com https://a.example.com.evil.com https://%61.example.com
             https://evil.com@a.example.com https://evil.com:1.example.com https://evil.com?.example.com
             https://evil.com#.example.com https://evil.com\\.example.com https://a.example.com/ https://A.example.com
             https://a.EXAMPLE.com https://[::1].example.com https://*.example.com https://https://a.example.com",
        ),
        ("https://*.a.example:8443", "https://b.a.example:8443", "https://b.a.example https://b.a.example:443"),
        ("https://*.a.example:*", "https://b.a.example:8443 https://b.a.example", "https://a.example:1"),
        (
            "http://localhost:*",
            "http://localhost http://localhost:1 http://localhost:3000 http://localhost:65535",
            "https://localhost http://localhost: http://localhost:0 http://localhost:65536 http://localhost:+80
             http://localhost:03000 http://localhost:3000.evil.com http://localhost:3000:1 http://localhost.evil.com
             http://localhost@evil.com:80 http://a.localhost:80 http://localhost:*",
        ),
        ("http://[::1]:*", "http://[::1] http://[::1]:80", "http://[::2] http://[::1]1"),
    ]);
    assert!(!allows(
        &cors(&settings(&["https://*.example.com"])),
        "https://a b.example.com"
    ));
}

#[test]
fn two_origins_or_a_very_long_one_are_never_allowed() {
    let long = format!("https://{}.example.com", ["a"; 300].join("."));
    for policy in [
        cors(&settings(&["*"])),
        cors(&settings(&["https://a.example", "https://*.example.com"])),
    ] {
        assert!(policy.grant(&map(&[A, A])).is_none());
        assert!(!allows(&policy, &long));
        assert!(!allows(&policy, ""));
        assert_eq!(
            answer(&policy, &Method::OPTIONS, &[A, A, ASKS_PUT]),
            Some((403, vec![VARY_ALL.to_owned()]))
        );
    }
    let bytes = Fields::from_iter([(ORIGIN, b"https://\xff.example.com")]);
    assert!(
        cors(&settings(&["https://*.example.com"]))
            .grant(&bytes)
            .is_none()
    );
}

#[test]
fn mistakes_in_the_settings_are_reported() {
    for (origin, part) in [
        ("", "scheme"),
        ("a.example", "scheme"),
        ("*.a.example", "scheme"),
        ("://a.example", "bad scheme"),
        ("1https://a.example", "bad scheme"),
        ("https//a.example", "scheme"),
        (" https://a.example", "bad scheme"),
        (
            "https://a.example/",
            "must not end in a slash, write \"https://a.example\"",
        ),
        ("https://a.example/x", "no path"),
        ("https://a.example//", "no path"),
        ("https://a.example?q", "query"),
        ("https://a.example#f", "fragment"),
        ("https://a.example\\", "path"),
        ("https://u:p@a.example", "user info"),
        ("https://", "host"),
        ("https://:80", "host"),
        ("https://*", "every origin"),
        ("https://*:*", "every origin"),
        ("https://*.", "every origin"),
        ("https://a.*.example", "wildcard"),
        ("https://a*.example", "wildcard"),
        ("https://*a.example", "wildcard"),
        ("https://*.*.example", "wildcard"),
        ("https://a..example", "bad host"),
        ("https://a.example.", "bad host"),
        ("https://a b", "bad host"),
        ("https://a,https://b", "no path"),
        ("https://bücher.example", "xn--"),
        ("https://[::1", "bad"),
        ("https://[::g]", "IPv6"),
        ("https://a.example:", "bad port"),
        ("https://a.example:0", "bad port"),
        ("https://a.example:65536", "bad port"),
        ("https://a.example:x", "bad port"),
        ("NULL", "scheme"),
    ] {
        let complaints = Cors::new(&settings(&["*", origin])).unwrap_err();
        let [complaint] = complaints.as_slice() else {
            panic!("{origin}: {complaints:?}")
        };
        assert_eq!(
            (complaint.key, complaint.index),
            ("allowed_origins", Some(1)),
            "{origin}"
        );
        assert!(
            complaint.sentence.contains(part),
            "{origin}: {}",
            complaint.sentence
        );
    }

    let wrong = Settings {
        allowed_methods: vec!["GET".to_owned(), "PU T".to_owned()],
        allowed_headers: vec!["X-A, X-B".to_owned(), String::new()],
        exposed_headers: vec!["X:".to_owned()],
        allow_credentials: Credentials::Yes,
        max_age: -2,
        ..settings(&["*", "a"])
    };
    let seen: Vec<_> = Cors::new(&wrong)
        .unwrap_err()
        .into_iter()
        .map(|it| (it.key, it.index))
        .collect();
    assert_eq!(
        seen,
        [
            ("allowed_origins", Some(1)),
            ("allowed_methods", Some(1)),
            ("allowed_headers", Some(0)),
            ("allowed_headers", Some(1)),
            ("exposed_headers", Some(0)),
            ("allow_credentials", None),
            ("max_age", None),
        ]
    );
    assert!(
        Cors::new(&Settings {
            max_age: -2,
            ..settings(&[])
        })
        .is_err(),
        "checked even where the policy is off"
    );
}

#[test]
fn a_preflight_has_exactly_one_of_each_field() {
    let listed = settings(&["https://a.example"]);
    let full = [
        "access-control-allow-headers: Content-Type, X-A",
        "access-control-allow-methods: GET, POST",
        "access-control-allow-origin: https://a.example",
        "access-control-max-age: 86400",
        VARY_ALL,
    ];
    for request in [
        &[A, ASKS_PUT][..],
        &[A, ASKS_PUT, ASKS_NAMES],
        &[ASKS_NAMES, A],
        &[A],
    ] {
        let (status, fields) = answer(&cors(&listed), &Method::OPTIONS, request).unwrap();
        assert_eq!(
            (status, fields.as_slice()),
            (204, &full.map(str::to_owned)[..]),
            "{request:?}"
        );
    }

    let yes = Settings {
        allow_credentials: Credentials::Yes,
        max_age: -1,
        ..listed.clone()
    };
    let fields = answer(&cors(&yes), &Method::OPTIONS, &[A, ASKS_PUT])
        .unwrap()
        .1;
    assert!(
        fields.contains(&"access-control-allow-credentials: true".to_owned()),
        "{fields:?}"
    );
    assert!(
        !fields
            .iter()
            .any(|line| line.starts_with("access-control-max-age")),
        "{fields:?}"
    );

    let fields = answer(
        &cors(&Settings {
            max_age: 0,
            ..settings(&["*"])
        }),
        &Method::OPTIONS,
        &[A, ASKS_PUT],
    )
    .unwrap()
    .1;
    assert!(
        fields.contains(&"access-control-allow-origin: *".to_owned()),
        "{fields:?}"
    );
    assert!(
        fields.contains(&"access-control-max-age: 0".to_owned()),
        "{fields:?}"
    );

    let bare = Settings {
        allowed_methods: vec![],
        allowed_headers: vec![],
        max_age: -1,
        ..listed
    };
    let fields = answer(&cors(&bare), &Method::OPTIONS, &[A, ASKS_PUT])
        .unwrap()
        .1;
    assert_eq!(
        fields,
        ["access-control-allow-origin: https://a.example", VARY_ALL]
    );
}

#[test]
fn options_requests_are_answered_refused_or_forwarded() {
    let policy = cors(&settings(&["https://a.example"]));
    let refused = Some((403, vec![VARY_ALL.to_owned()]));
    assert_eq!(
        answer(&policy, &Method::OPTIONS, &[EVIL, ASKS_PUT]),
        refused
    );
    assert_eq!(
        answer(&policy, &Method::OPTIONS, &[("origin", ""), ASKS_PUT]),
        refused
    );
    assert_eq!(
        answer(&policy, &Method::OPTIONS, &[EVIL]),
        None,
        "no preflight: goes on without a grant"
    );
    assert_eq!(answer(&policy, &Method::OPTIONS, &[]), None);
    assert_eq!(answer(&policy, &Method::OPTIONS, &[ASKS_PUT]), None);
    for method in [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
    ] {
        assert_eq!(answer(&policy, &method, &[A, ASKS_PUT]), None, "{method}");
    }
}

#[test]
fn a_wildcard_echoes_valid_names_of_the_request() {
    let any = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let policy = cors(&Settings {
        allowed_methods: any(&["*"]),
        allowed_headers: any(&["Authorization", "*"]),
        ..settings(&["https://a.example"])
    });
    let method = "access-control-request-method";
    let names = "access-control-request-headers";
    let (most, many) = (["x"; 64].join(","), ["x"; 65].join(","));
    let (most_shown, long, short) = (["x"; 64].join(", "), "y".repeat(2047), "y".repeat(2046));
    for (request, methods, headers) in [
        (
            &[(method, "PUT"), (names, "x-a,x-b")][..],
            "PUT",
            "x-a, x-b",
        ),
        (
            &[(method, "patch"), (names, " X-A ,, x-b ")],
            "patch",
            "X-A, x-b",
        ),
        (
            &[(method, "PUT"), (names, "x-a"), (names, "x-b, x-c")],
            "PUT",
            "x-a, x-b, x-c",
        ),
        (&[(method, "PUT"), (names, "")], "PUT", ""),
        (&[(method, "PUT")], "PUT", ""),
        (&[(names, "x-a")], "", "x-a"),
        (&[(method, "PU T"), (names, "x a")], "", ""),
        (&[(method, ""), (names, "x-a, x:b")], "", ""),
        (
            &[(method, "PUT"), (method, "GET"), (names, "x-a\u{e9}")],
            "",
            "",
        ),
        (&[(names, &most)], "", &most_shown),
        (&[(names, &many)], "", ""),
        (&[(names, &short)], "", &short),
        (&[(names, &long)], "", ""),
    ] {
        let fields = answer(&policy, &Method::OPTIONS, &[&[A], request].concat())
            .unwrap()
            .1;
        let value = |name: &str| {
            fields
                .iter()
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_default()
        };
        assert_eq!(
            value("access-control-allow-methods: "),
            methods,
            "{request:?}"
        );
        assert_eq!(
            value("access-control-allow-headers: "),
            headers,
            "{request:?}"
        );
    }
}

#[test]
fn responses_have_the_policys_fields_and_not_the_upstreams() {
    let listed = settings(&["https://a.example", "https://*.b.example"]);
    let with = |credentials, exposed: &[&str], base: &Settings| {
        let exposed_headers = exposed.iter().map(|name| (*name).to_owned()).collect();
        cors(&Settings {
            allow_credentials: credentials,
            exposed_headers,
            ..base.clone()
        })
    };
    let auto = with(Credentials::Auto, &[], &listed);
    let yes = with(Credentials::Yes, &["X-Total", "X-Page"], &listed);
    let no = with(Credentials::No, &[], &listed);
    let star = with(Credentials::Auto, &[], &settings(&["*"]));
    let star_exposed = with(Credentials::No, &["X-Total"], &settings(&["*"]));

    let origin = "access-control-allow-origin: https://a.example";
    let any = "access-control-allow-origin: *";
    let expose = "access-control-expose-headers: X-Up";
    let ours = "access-control-expose-headers: X-Total, X-Page";
    let credentials = "access-control-allow-credentials: true";
    let vary = "vary: Origin";
    let upstream: List<'_> = &[
        ("access-control-allow-origin", "https://up.example"),
        ("access-control-allow-origin", "*"),
        ("access-control-allow-methods", "UP"),
        ("access-control-allow-headers", "up"),
        ("access-control-max-age", "1"),
        ("access-control-allow-private-network", "true"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "X-Up"),
        ("content-type", "a/b"),
    ];
    let kind = "content-type: a/b";
    let b = ("origin", "https://x.b.example");
    for (name, policy, request, expected) in [
        (
            "auto",
            &auto,
            &[A][..],
            &[credentials, origin, expose, kind, vary][..],
        ),
        (
            "auto, wild",
            &auto,
            &[b],
            &[
                credentials,
                "access-control-allow-origin: https://x.b.example",
                expose,
                kind,
                vary,
            ],
        ),
        ("auto, not allowed", &auto, &[EVIL], &[expose, kind, vary]),
        ("auto, no origin", &auto, &[], &[expose, kind, vary]),
        ("auto, two origins", &auto, &[A, A], &[expose, kind, vary]),
        ("yes", &yes, &[A], &[credentials, origin, ours, kind, vary]),
        ("yes, not allowed", &yes, &[EVIL], &[kind, vary]),
        ("no", &no, &[A], &[origin, expose, kind, vary]),
        ("star", &star, &[A], &[any, expose, kind]),
        ("star, no origin", &star, &[], &[any, expose, kind]),
        ("star, two origins", &star, &[A, A], &[any, expose, kind]),
        (
            "star, exposed",
            &star_exposed,
            &[],
            &[any, "access-control-expose-headers: X-Total", kind],
        ),
    ] {
        assert_eq!(stamped(policy, request, upstream), expected, "{name}");
    }

    for (name, policy, request, expected) in [
        ("auto", &auto, &[A][..], &[origin, vary][..]),
        ("auto, no origin", &auto, &[], &[vary]),
        ("yes", &yes, &[A], &[credentials, origin, ours, vary]),
        ("star", &star, &[], &[any]),
    ] {
        assert_eq!(
            stamped(policy, request, &[]),
            expected,
            "{name}, nothing of the upstream's"
        );
    }
}

#[test]
fn only_an_exact_true_lets_credentials_pass() {
    let policy = cors(&settings(&["https://a.example"]));
    let name = "access-control-allow-credentials";
    for (upstream, passes) in [
        (&[(name, "true")][..], true),
        (&[(name, "True")], false),
        (&[(name, "false")], false),
        (&[(name, "true,true")], false),
        (&[(name, "true"), (name, "true")], false),
        (&[], false),
    ] {
        let fields = stamped(&policy, &[A], upstream);
        assert_eq!(
            fields.iter().filter(|line| line.starts_with(name)).count(),
            usize::from(passes),
            "{upstream:?}"
        );
    }
}

#[test]
fn vary_is_merged_and_never_doubled() {
    let policy = cors(&settings(&["https://a.example"]));
    for (upstream, expected) in [
        (&[][..], &["vary: Origin"][..]),
        (&[("vary", "")], &["vary: Origin"]),
        (
            &[("vary", "Accept-Encoding")],
            &["vary: Accept-Encoding, Origin"],
        ),
        (
            &[("vary", "Accept"), ("vary", "Cookie")],
            &["vary: Accept, Origin", "vary: Cookie"],
        ),
        (&[("vary", "Origin")], &["vary: Origin"]),
        (&[("vary", "accept , ORIGIN")], &["vary: accept , ORIGIN"]),
        (
            &[("vary", "Accept"), ("vary", "origin")],
            &["vary: Accept", "vary: origin"],
        ),
        (&[("vary", "*")], &["vary: *"]),
        (&[("vary", "X-Origin")], &["vary: X-Origin, Origin"]),
    ] {
        assert_eq!(
            stamped(&policy, &[EVIL], upstream),
            expected,
            "{upstream:?}"
        );
    }
    assert_eq!(
        stamped(&cors(&settings(&["*"])), &[A], &[("vary", "Accept")])[1..],
        ["vary: Accept"]
    );
}

#[test]
fn replaced_fields_keep_their_position() {
    let upstream: List<'_> = &[
        ("x-1", "a"),
        ("access-control-allow-origin", "*"),
        ("x-2", "b"),
        ("x-3", "c"),
    ];
    let mut headers = map(upstream);
    cors(&settings(&["*"])).stamp(&Grant::default(), &mut headers);
    assert_eq!(headers, map(upstream));
}

#[test]
fn a_grant_stays_small() {
    assert!(size_of::<Grant>() <= 40, "{}", size_of::<Grant>());
}

#[test]
fn an_origin_is_as_long_as_it_may_be() {
    let settings = Settings {
        allowed_origins: vec!["*".to_owned()],
        allowed_methods: Vec::new(),
        allowed_headers: Vec::new(),
        exposed_headers: Vec::new(),
        allow_credentials: Credentials::No,
        max_age: 0,
    };
    let cors = Cors::new(&settings).unwrap().unwrap();
    for (len, is_granted) in [
        (0, false),
        (1, true),
        (MAX_ORIGIN, true),
        (MAX_ORIGIN + 1, false),
    ] {
        let headers = Fields::from_iter([("origin", "x".repeat(len).as_str())]);
        assert_eq!(cors.grant(&headers).is_some(), is_granted, "{len}");
    }
}
