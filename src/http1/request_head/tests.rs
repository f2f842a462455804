use super::*;

fn read(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    head(bytes, &mut 0, 65_536)
}

#[test]
fn a_plain_request_passes_with_its_end_and_framing() {
    let bytes = b"POST /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    let head = read(bytes).unwrap().unwrap();
    assert_eq!(
        head,
        Head {
            skip: 0,
            len: bytes.len() - 5,
            fields: vec![Place::new(20..24, 26..27), Place::new(29..43, 45..46)],
            framing: Framing::Length(5),
            target: (5, 9),
            is_http10: false,
            expects: false,
        }
    );
}

#[test]
fn a_head_is_complete_at_its_last_byte_and_not_before() {
    let bytes = b"\r\nGET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n";
    let mut scanned = 0;
    for cut in 0..bytes.len() {
        assert_eq!(
            head(&bytes[..cut], &mut scanned, 1000),
            Ok(None),
            "cut at {cut}"
        );
    }
    let done = head(bytes, &mut scanned, 1000).unwrap().unwrap();
    assert_eq!((done.skip, done.len), (2, bytes.len() - 2));
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let cases: &[&str] = &[
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: \r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:70000\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [:::::]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: []\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1%25lo]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [1::2::3]:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: .\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: .a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: ..a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a..b:80\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a..\r\n\r\n",
        "GET http://a..b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://[:::::]/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked;a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA: b\rc\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA: b\0c\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://u@h/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://h/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a%41/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
        "GET / HTTPS/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    for case in cases {
        assert!(
            matches!(
                read(case.as_bytes()),
                Err(Failure::Malformed(_) | Failure::Preface)
            ),
            "{}: {:?}",
            case.escape_debug(),
            read(case.as_bytes())
        );
    }
}

#[test]
fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
    for host in [
        "a",
        "a.",
        "a.b.",
        "a:",
        "a:80",
        "a_b",
        "xn--a.b",
        "1.2.3.4:5",
        "[::]",
        "[::1]:",
        "[::1]:80",
        "[1:2:3:4:5:6:7:8]",
        "[::ffff:1.2.3.4]",
        "[2001:DB8::1]",
        "%41",
        "-",
        "a-.b",
    ] {
        assert!(is_host(host.as_bytes()), "{host}");
    }
}

#[test]
fn a_length_is_handed_on_without_leading_zeros() {
    for (given, passed) in [
        ("5", "5"),
        ("0", "0"),
        ("000", "0"),
        ("0005", "5"),
        ("0500", "500"),
        ("000000000000000005", "5"),
    ] {
        let text =
            format!("POST / HTTP/1.1\r\nHost: a\r\nA: 05\r\nContent-Length: {given}\r\n\r\n");
        let head = read(text.as_bytes()).unwrap().unwrap();
        let parts = parts(text.into_bytes(), head).unwrap();
        let value = |name| str::from_utf8(parts.headers.only(name).unwrap()).unwrap();
        assert_eq!((value("content-length"), value("a")), (passed, "05"));
    }
}

#[test]
fn the_path_of_a_target_is_the_same_in_every_form() {
    for (target, path) in [
        ("/health", "/health"),
        ("/health?a", "/health"),
        ("http://a/health", "/health"),
        ("HTTPS://a:80/health?a=http://b/c", "/health"),
        ("http://a", "/"),
        ("http://a?b/c", "/"),
        ("/http://a/b", "/http://a/b"),
        ("/?a/b", "/"),
        ("*", "*"),
    ] {
        let found = super::path(target.as_bytes());
        assert_eq!(found.escape_ascii().to_string(), path, "{target}");
        if target != "*" {
            assert_eq!(
                target.parse::<http::Uri>().unwrap().path(),
                path,
                "{target}"
            );
        }
    }
}

#[test]
fn other_refusals_have_their_own_status() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(2000));
    let wide = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(300)
    );
    let cases: &[(&str, usize, Failure)] = &[
        (
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            1000,
            Failure::VersionNotSupported,
        ),
        (
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            1000,
            Failure::VersionNotSupported,
        ),
        (
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            1000,
            Failure::MethodNotAllowed,
        ),
        (&long, 1000, Failure::TargetTooLong),
        (long.get(..1500).unwrap(), 1000, Failure::TargetTooLong),
        (&wide, 65_536, Failure::HeadTooLarge),
        (&wide, 500, Failure::HeadTooLarge),
    ];
    for (case, max, failure) in cases {
        assert_eq!(
            head(case.as_bytes(), &mut 0, *max),
            Err(failure.clone()),
            "{case:.40}"
        );
    }
}

#[test]
fn the_limit_counts_to_the_byte() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    assert!(head(bytes, &mut 0, bytes.len()).is_ok());
    assert_eq!(
        head(bytes, &mut 0, bytes.len() - 1),
        Err(Failure::HeadTooLarge)
    );
}

#[test]
fn what_passes_here_passes_the_other_readers_too() {
    for byte in 0..=255_u8 {
        let mut bytes = b"GET /a".to_vec();
        bytes.push(byte);
        bytes.extend_from_slice(b" HTTP/1.1\r\nHost: a\r\n\r\n");
        if byte < 0x80 && read(&bytes).is_ok() {
            let mut fields = [httparse::EMPTY_HEADER; 4];
            assert!(
                httparse::Request::new(&mut fields)
                    .parse(&bytes)
                    .is_ok_and(|status| status.is_complete()),
                "byte {byte:#x}"
            );
        }
    }
}

#[test]
fn the_origin_of_a_refused_head_is_its_only_one() {
    for (head, origin) in [
        (
            "GET / HTTP/1.1\r\nA: b\r\nORIGIN:  https://a \r\n\r\n",
            Some("https://a"),
        ),
        (
            "GET / HTTP/1.1\r\nOrigin: https://a\r\nA: unfinished",
            Some("https://a"),
        ),
        ("GET / HTTP/1.1\r\nOrigin:\r\n", Some("")),
        ("GET / HTTP/1.1\r\nOrigin: https://unfinished", None),
        (
            "GET / HTTP/1.1\r\nOrigin: https://a\r\norigin: https://a\r\n",
            None,
        ),
        ("GET / HTTP/1.1\r\nOrigin\r\n", None),
        ("GET / HTTP/1.1\r\n\r\nOrigin: https://body\r\n", None),
        ("Origin: https://a\r\n\r\n", None),
        ("", None),
    ] {
        let expected = origin.map(HeaderValue::from_static);
        assert_eq!(super::origin(head.as_bytes()), expected, "{head:?}");
    }
}

const EVERYDAY: &[u8] = b"POST /a/b?c=d HTTP/1.1\r\nHost: example.com:80\r\nContent-Length: 5\r\nAccept: */*\r\nX-Y: \"z\"\r\n\r\n";

/// Asserts that httparse, a second parser, reads an accepted head in the same way.
fn is_read_as_by_httparse(bytes: &[u8]) {
    let Ok(Some(head)) = read(bytes) else {
        return;
    };
    let shown = bytes.escape_ascii();
    let text = &bytes[head.skip..][..head.len];
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut fields);
    let status = request.parse(text);
    assert_eq!(status, Ok(httparse::Status::Complete(head.len)), "{shown}");
    let (start, end) = head.target;
    let target = str::from_utf8(&text[start..end]).unwrap();
    assert_eq!(request.path, Some(target), "{shown}");
    assert_eq!(request.version, Some(u8::from(!head.is_http10)), "{shown}");
    let parts = parts(text.to_vec(), head).unwrap();
    assert_eq!(request.method, Some(parts.method.as_str()), "{shown}");
    let theirs = request.headers.iter().map(|field| {
        let value = match field.name.len() {
            14 => without_zeros(field.value).unwrap_or_else(|| field.value.to_vec()),
            _ => field.value.to_vec(),
        };
        (field.name.to_ascii_lowercase().into_bytes(), value)
    });
    let ours = parts.headers.iter();
    let ours = ours.map(|(name, value)| (name.to_vec(), value.to_vec()));
    assert!(ours.eq(theirs), "{shown}");
}

#[test]
fn a_head_with_any_byte_changed_is_read_as_httparse_reads_it_or_refused() {
    for at in 0..EVERYDAY.len() {
        for byte in 0..=255 {
            let mut bytes = EVERYDAY.to_vec();
            bytes[at] = byte;
            is_read_as_by_httparse(&bytes);
            bytes.insert(at, EVERYDAY[at]);
            is_read_as_by_httparse(&bytes);
        }
    }
}

#[test]
fn no_bytes_make_it_panic_and_what_passes_is_what_httparse_reads() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % n as u64).unwrap()
    };
    for _ in 0..20_000 {
        let mut bytes = EVERYDAY.to_vec();
        for _ in 0..=random(3) {
            if bytes.is_empty() {
                break;
            }
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                1 => bytes.insert(at, b"\r\n :\0\t,;"[random(8)]),
                2 => drop(bytes.remove(at)),
                _ => bytes.truncate(at.max(1)),
            }
        }
        is_read_as_by_httparse(&bytes);
    }
}

#[test]
fn bounds_are_as_large_as_they_say() {
    let line = |method: usize, target: usize| {
        let (method, target) = ("M".repeat(method), "x".repeat(target - 1));
        format!("{method} /{target} HTTP/1.1\r\nHost: x\r\n\r\n")
    };
    let read = |text: &str| head(text.as_bytes(), &mut 0, 100_000);
    assert!(read(&line(MAX_METHOD, MAX_TARGET)).is_ok());
    assert!(read(&line(MAX_METHOD + 1, 1)).is_err());
    let long = read(&line(1, MAX_TARGET + 1));
    assert_eq!(long, Err(Failure::TargetTooLong));
    // a head that fills its bound without an end cannot get one
    let unfinished = b"GET / HTTP/1.1\r\nHost: x";
    let len = unfinished.len();
    assert_eq!(head(unfinished, &mut 0, len + 1), Ok(None));
    assert_eq!(head(unfinished, &mut 0, len), Err(Failure::HeadTooLarge));
}

#[test]
fn http_1_0_does_not_wait_for_a_100() {
    for (version, expects) in [("1.1", true), ("1.0", false)] {
        let text = format!(
            "POST / HTTP/{version}\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"
        );
        assert_eq!(read(text.as_bytes()).unwrap().unwrap().expects, expects);
    }
}
