//! Reading a response gives the same result however its bytes are divided, and the same as the strict reader.
//!
//! The input's first eight bytes choose the method, the size of the buffer and how the others are cut.

#![no_main]

use std::io::ErrorKind;

use http::Method;
use lean_proxy::fuzzing::{
    framing,
    response_head::read_head,
    test_support::{Reading, Stage},
};
use lean_proxy_fuzz::strict::{Fields, Framing, Reader};
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static STAGE: Stage = Stage::new();
}

fuzz_target!(|input: &[u8]| {
    let (mut dice, bytes) = Dice::new(input, 8);
    let first = dice.next();
    let method = if first & 1 == 0 {
        Method::GET
    } else {
        Method::HEAD
    };
    let size = if first & 2 == 0 { 16 } else { 4096 };
    heads_have_one_reading(&dice, bytes, &method);
    STAGE.with(|stage| {
        let (at_once, kept) = stage.read(&[bytes], 1 << 16, &method);
        let (in_pieces, _) = stage.read(&dice.cut(bytes), size, &method);
        match (&at_once, &in_pieces) {
            (None, None) => {}
            (Some(at_once), Some(in_pieces)) if at_once.whole => assert_eq!(at_once, in_pieces),
            // where a body is cut off, the bytes before may have been passed on or not
            (Some(at_once), Some(in_pieces)) => {
                assert!(!in_pieces.whole, "{at_once:?} {in_pieces:?}");
                assert_eq!(at_once.fields, in_pieces.fields);
                assert!(
                    at_once.body.starts_with(&in_pieces.body)
                        || in_pieces.body.starts_with(&at_once.body)
                );
            }
            _ => panic!("{at_once:?} {in_pieces:?}"),
        }
        agrees_with_strict_reader(bytes, &method, at_once, kept);
    });
});

/// A beginning of a head is refused or accepted as complete only if the whole input is.
fn heads_have_one_reading(dice: &Dice<'_>, bytes: &[u8], method: &Method) {
    let whole = read_head(bytes, method);
    let mut here = 0;
    for piece in dice.cut(bytes) {
        here += piece.len();
        match (read_head(&bytes[..here], method), &whole) {
            (Ok(None), _) => {}
            (Err(_), Err(_)) => return,
            (Ok(Some(part)), Ok(Some(all))) => {
                assert_eq!((part.len, part.status), (all.len, all.status));
                assert_eq!(part.headers, all.headers);
                assert_eq!(part.framing, all.framing);
                assert_eq!(part.persistent, all.persistent);
                return;
            }
            (part, whole) => panic!("{here} bytes: {part:?}; all: {whole:?}"),
        }
    }
}

/// What the strict reader accepts is read in the same way, and whatever else is accepted keeps the rules of framing.
fn agrees_with_strict_reader(bytes: &[u8], method: &Method, ours: Option<Reading>, kept: bool) {
    let mut reader = Reader::new(bytes);
    let head = match reader.response_head(method.as_str()) {
        Ok(Some(head)) if head.status >= 200 => head,
        // a head that is not strict may be accepted, but its end must not be ambiguous
        _ => return naive_framing(bytes, method),
    };
    let lengths = head.fields.all("content-length");
    let is_ours = head.fields.0.len() <= 256
        && lengths.iter().all(|length| length.len() <= 18)
        && !(head.version == "HTTP/1.0" && head.fields.has("transfer-encoding"))
        && head
            .fields
            .all("connection")
            .iter()
            .all(|options| options.is_ascii())
        && head.reason.is_ascii();
    if !is_ours {
        return;
    }
    let mut body = Vec::new();
    let read = reader.body_into(head.framing, &mut body);
    let (framing, taken) = (head.framing, reader.taken());
    let Some(ours) = ours else {
        panic!("refused: {head:?}");
    };
    assert_eq!(ours.status, head.status);
    match read {
        Ok(trailers) => {
            assert!(ours.whole, "{ours:?} is not whole: {head:?}");
            assert_eq!(ours.body, body);
            assert!(
                ours.trailers
                    .iter()
                    .all(|(name, value)| has(&trailers, name, value)),
                "{trailers:?} {ours:?}"
            );
        }
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
            assert!(!ours.whole, "{ours:?} is cut off: {head:?}");
            assert!(body.starts_with(&ours.body));
        }
        // the strict reader refuses chunk extensions and many zeros, which are accepted here
        Err(_) => return,
    }
    assert!(
        !kept || (framing != Framing::Close && taken == bytes.len() && ours.whole),
        "a connection with unread bytes is kept: {taken} of {} were read",
        bytes.len()
    );
}

fn has(fields: &Fields, name: &str, value: &[u8]) -> bool {
    fields.all(name).iter().any(|other| {
        let latin: Vec<u8> = other.chars().map(|c| c as u8).collect();
        latin == value
    })
}

/// Checks the end of a head and of its body by splitting the head at line feeds.
fn naive_framing(bytes: &[u8], method: &Method) {
    let Ok(Some(head)) = read_head(bytes, method) else {
        return;
    };
    let text = &bytes[..head.len];
    let mut lengths = Vec::new();
    let mut codings = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        assert!(
            !name.iter().any(u8::is_ascii_whitespace) || name.starts_with(b"HTTP/1."),
            "{:?}",
            name.escape_ascii().to_string()
        );
        if name.eq_ignore_ascii_case(b"content-length") {
            lengths.push(value.to_vec());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            codings.push(value.to_ascii_lowercase());
        }
    }
    let number = |value: &Vec<u8>| {
        let digits = value.iter().all(u8::is_ascii_digit) && !value.is_empty();
        assert!(digits, "{:?}", value.escape_ascii().to_string());
        let text = String::from_utf8_lossy(value);
        text.parse::<u64>().expect("no more than 18 digits")
    };
    let numbers: Vec<u64> = lengths.iter().map(number).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]));
    let code = head.status.as_u16();
    let bodiless = *method == Method::HEAD || matches!(code, 100..200 | 204 | 304);
    match (codings.as_slice(), numbers.first()) {
        ([coding], _) => {
            assert_eq!(coding, b"chunked");
            assert!(bodiless || head.framing == framing::Framing::Chunked);
            assert!(!head.headers.contains("content-length") || bodiless);
        }
        ([], Some(length)) if !bodiless => {
            assert!(head.framing == framing::Framing::Length(*length));
        }
        ([], None) if !bodiless => assert!(head.framing == framing::Framing::Close),
        ([], _) => assert!(head.framing == framing::Framing::Nothing),
        _ => panic!("several codings: {codings:?}"),
    }
    for name in [
        "connection",
        "transfer-encoding",
        "keep-alive",
        "upgrade",
        "te",
    ] {
        assert!(!head.headers.contains(name), "{name} is passed on");
    }
}
