//! Reading a request head gives the same result however its bytes are divided. Other parsers read an accepted head in the
//! same way, and an ordinary head is accepted.
//!
//! The input's first eight bytes choose how large a head may be and how the others are cut.

#![no_main]

use http::Uri;
use lean_proxy::fuzzing::{
    fields::Fields,
    framing::Framing,
    refusal,
    request_head::{self, Head},
};
use lean_proxy_fuzz::strict::{self, Reader};
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (mut dice, bytes) = Dice::new(input, 8);
    let max = match dice.next() {
        0 => 65_536,
        small => 16 * small,
    };
    let at_once = request_head::head(bytes, &mut 0, max);
    if let Err(failure) = &at_once {
        let answer = refusal::response(failure, &Fields::new());
        let mut reader = Reader::new(answer.as_slice());
        let mut head = reader
            .response_head("")
            .expect("ours is strict")
            .expect("ours is whole");
        reader
            .body_into(head.framing, &mut head.body)
            .expect("ours is whole");
        assert_eq!(reader.taken(), answer.len());
    }
    let (mut scanned, mut here) = (0, 0);
    for piece in dice.cut(bytes) {
        here += piece.len();
        match (
            request_head::head(&bytes[..here], &mut scanned, max),
            &at_once,
        ) {
            (Ok(None), _) => {}
            (Err(_), Err(_)) => break,
            (Ok(Some(part)), Ok(Some(all))) => {
                assert_eq!(part, *all);
                break;
            }
            (part, all) => panic!("{here} bytes: {part:?}; all: {all:?}"),
        }
    }
    if let Ok(Some(head)) = &at_once {
        assert!(head.len <= max);
        parsers_agree(&bytes[head.skip..][..head.len], head);
    }
    if max == 65_536 {
        ordinary_heads_are_accepted(bytes, at_once.ok().flatten());
    }
});

fn parsers_agree(text: &[u8], head: &Head) {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(text).expect("a second parser reads it too");
    assert_eq!(parsed, httparse::Status::Complete(head.len));
    assert!(text.ends_with(b"\r\n\r\n"));
    assert_eq!(
        text.windows(4).position(|four| four == b"\r\n\r\n"),
        Some(head.len - 4),
        "it ends at its first empty line"
    );
    assert!(!text.contains(&0));
    let feeds = text.iter().filter(|byte| **byte == b'\n').count();
    let returns = text.iter().filter(|byte| **byte == b'\r').count();
    assert_eq!(
        (feeds, returns),
        (head.fields.len() + 2, head.fields.len() + 2),
        "a bare CR or LF"
    );
    let (start, end) = head.target;
    assert_eq!(request.path.map(str::as_bytes), Some(&text[start..end]));
    assert_eq!(request.headers.len(), head.fields.len());
    let parts = request_head::parts(text.to_vec(), head.clone());
    let parts = parts.expect("an accepted head can be taken apart");
    assert_eq!(Some(parts.method.as_str()), request.method);
    // a third parser accepts fewer targets: those that it accepts, it reads in the same way
    if let Ok(uri) = Uri::try_from(&text[start..end]) {
        assert_eq!(parts.uri.path(), uri.path());
        assert_eq!(parts.uri.query(), uri.query());
        let authority = uri.authority().map(http::uri::Authority::as_str);
        assert_eq!(parts.uri.authority(), authority);
    }
    let ours = parts.headers.iter();
    assert!(
        ours.map(|(name, _)| name).eq(request
            .headers
            .iter()
            .map(|field| field.name.to_ascii_lowercase().into_bytes()))
    );
    for field in request
        .headers
        .iter()
        .filter(|field| !field.name.eq_ignore_ascii_case("content-length"))
    {
        let mut same = parts.headers.get_all(field.name.to_ascii_lowercase());
        assert!(same.any(|value| value == field.value));
    }
    let all = |name: &str| -> Vec<&[u8]> {
        let same = request
            .headers
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case(name));
        same.map(|field| field.value).collect()
    };
    let framing = match (
        all("transfer-encoding").as_slice(),
        all("content-length").as_slice(),
    ) {
        ([], []) => Framing::Length(0),
        ([], [length]) => {
            assert!(length.iter().all(u8::is_ascii_digit));
            let digits = std::str::from_utf8(length).expect("digits");
            Framing::Length(digits.parse().expect("a number of at most 18 digits"))
        }
        ([coding], []) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"));
            assert_eq!(request.version, Some(1));
            Framing::Chunked
        }
        both => panic!("two framings passed: {both:?}"),
    };
    assert_eq!(framing, head.framing);
    let hosts = all("host").len();
    assert!(
        hosts == 1 || (hosts == 0 && request.version == Some(0)),
        "{hosts} Hosts"
    );
}

/// The strict reader accepts only unambiguous heads: if one consists of ordinary characters, it must be accepted.
fn ordinary_heads_are_accepted(bytes: &[u8], ours: Option<Head>) {
    let mut reader = Reader::new(bytes);
    let Ok(Some(request)) = reader.request_head() else {
        return;
    };
    let everyday = |text: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"/?=&-._%".contains(&b);
        text.bytes().all(fits)
    };
    let host = request.fields.one("host").unwrap_or_default();
    let plain = everyday(&request.target)
        && everyday(host)
        && !host.contains(['/', '?', '=', '&'])
        && request.fields.0.len() <= 256
        && !["CONNECT", "PRI"].contains(&request.method.as_str())
        && request
            .fields
            .one("content-length")
            .is_none_or(|length| length.len() <= 18);
    if !plain {
        return;
    }
    let head = ours.expect("an ordinary head is accepted");
    assert_eq!(head.len, request.raw.len());
    assert_eq!(head.fields.len(), request.fields.0.len());
    match (head.framing, request.framing) {
        (Framing::Length(0), strict::Framing::None)
        | (Framing::Chunked, strict::Framing::Chunked) => {}
        (Framing::Length(ours), strict::Framing::Length(theirs)) => assert_eq!(ours, theirs),
        (ours, theirs) => panic!("{ours:?} {theirs:?}"),
    }
}
