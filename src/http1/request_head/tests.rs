use super::*;

fn read(bytes: &[u8]) -> Result<Option<Head>, Refusal> {
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
            fields: 2,
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
            matches!(read(case.as_bytes()), Err(Refusal::Malformed(_))),
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
        let parts = parts(&Bytes::from(text.clone()), &head).unwrap();
        assert_eq!(parts.headers["content-length"], passed, "{given}");
        assert_eq!(parts.headers["a"], "05");
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
    let cases: &[(&str, usize, Refusal)] = &[
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 1000, Refusal::Version),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 1000, Refusal::Version),
        (
            "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
            1000,
            Refusal::Connect,
        ),
        (&long, 1000, Refusal::TargetTooLong),
        (long.get(..1500).unwrap(), 1000, Refusal::TargetTooLong),
        (&wide, 65_536, Refusal::HeadTooLarge),
        (&wide, 500, Refusal::HeadTooLarge),
    ];
    for (case, max, refusal) in cases {
        assert_eq!(
            head(case.as_bytes(), &mut 0, *max),
            Err(*refusal),
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
        Err(Refusal::HeadTooLarge)
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

#[test]
fn what_is_found_by_words_is_found_by_bytes() {
    for at in 0..24 {
        for byte in 0..=255 {
            for around in [b' ', b'~', 0x80, 0xff] {
                let mut bytes = [around; 24];
                bytes[at] = byte;
                let slow = bytes.iter().take_while(|&&byte| is_value(byte)).count();
                assert_eq!(value_len(&bytes), slow, "{byte:#x} at {at}");
                let slow = bytes.iter().position(|&byte| byte == b'\n');
                assert_eq!(find_lf(&bytes), slow, "{byte:#x} at {at}");
            }
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
    let good = b"POST /a/b?c=d HTTP/1.1\r\nHost: example.com:80\r\nContent-Length: 5\r\nAccept: */*\r\nX-Y: \"z\"\r\n\r\n";
    for _ in 0..20_000 {
        let mut bytes = good.to_vec();
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
        if let Ok(Some(head)) = read(&bytes) {
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut request = httparse::Request::new(&mut fields);
            let status = request.parse(&bytes[head.skip..]);
            assert_eq!(
                status,
                Ok(httparse::Status::Complete(head.len)),
                "{}",
                bytes.escape_ascii()
            );
            assert_eq!(
                request.headers.len(),
                head.fields,
                "{}",
                bytes.escape_ascii()
            );
        }
    }
}
