//! Reading a chunked body gives the same result however its bytes are divided, and follows the grammar of RFC 9112 §7.1.
//!
//! The input's first eight bytes choose how the others are cut.

#![no_main]

use lean_proxy::fuzzing::chunked::{Body as Taker, Chunked, Event};
use lean_proxy_fuzz::tools::Dice;
use libfuzzer_sys::fuzz_target;

/// Data, trailer section, and where the body ended; `None` = it has not ended.
type Body = (Vec<u8>, Vec<u8>, Option<usize>);

fuzz_target!(|input: &[u8]| {
    let (dice, bytes) = Dice::new(input, 8);
    let at_once = walk(&[bytes]);
    let in_pieces = walk(&dice.cut(bytes));
    assert_eq!(at_once, in_pieces);
    assert_eq!(taken(&[bytes]), at_once);
    assert_eq!(taken(&dice.cut(bytes)), at_once);
    let by_grammar = body(bytes);
    match at_once {
        Some((data, trailers, Some(end))) => {
            assert_eq!(by_grammar, Some((data, trailers, end)));
        }
        // the only bound that is not in the grammar
        _ if by_grammar.is_some() => assert!(bytes.len() > 8 * 1024, "a valid body is refused"),
        _ => {}
    }
});

/// The body by [`Chunked`]; `None` where it is refused.
fn walk(pieces: &[&[u8]]) -> Option<Body> {
    let (mut data, mut trailers, mut end) = (Vec::new(), Vec::new(), 0);
    let mut chunked = Chunked::new();
    for piece in pieces {
        let mut rest = *piece;
        while !rest.is_empty() && !chunked.is_end() {
            let (kind, count) = match chunked.next(rest).ok()? {
                Event::Framing(count) => (None, count),
                Event::Data(count) => (Some(&mut data), count),
                Event::Trailer(count) => (Some(&mut trailers), count),
            };
            assert!(count <= rest.len());
            let (these, others) = rest.split_at(count);
            if let Some(kind) = kind {
                kind.extend_from_slice(these);
            }
            end += count;
            rest = others;
        }
    }
    let is_end = chunked.is_end();
    if is_end {
        assert_eq!(
            chunked.next(b"more"),
            Ok(Event::Framing(0)),
            "nothing is read after the end"
        );
    }
    Some((data, trailers, is_end.then_some(end)))
}

/// The body by [`Taker`], which takes the data out of each piece.
fn taken(pieces: &[&[u8]]) -> Option<Body> {
    let (mut data, mut end) = (Vec::new(), 0);
    let mut body = Taker::new();
    for piece in pieces.iter().take_while(|piece| !piece.is_empty()) {
        if body.is_end() {
            break;
        }
        let mut buffer = piece.to_vec();
        let taken = body.take(&mut buffer).ok()?;
        assert!(taken.used == piece.len() || body.is_end());
        data.extend_from_slice(&buffer[taken.data]);
        end += taken.used;
    }
    let is_end = body.is_end();
    Some((data, body.trailers(), is_end.then_some(end)))
}

/// The body by the grammar, line by line; `None` where it is incomplete or invalid.
fn body(bytes: &[u8]) -> Option<(Vec<u8>, Vec<u8>, usize)> {
    let mut rest = bytes;
    let mut data = Vec::new();
    loop {
        let size_line = line(&mut rest)?;
        let digits = size_line
            .iter()
            .position(|byte| !byte.is_ascii_hexdigit())
            .unwrap_or(size_line.len());
        let (size, extension) = size_line.split_at(digits);
        let printable = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
        if !(1..=15).contains(&digits)
            || !(extension.is_empty() || extension[0] == b';')
            || !extension.iter().all(printable)
        {
            return None;
        }
        let size = u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            break;
        }
        let (chunk, behind) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        data.extend_from_slice(chunk);
        rest = behind.strip_prefix(b"\r\n")?;
    }
    let trailers = rest;
    loop {
        let trailer = line(&mut rest)?;
        if trailer.is_empty() {
            break;
        }
        let colon = trailer.iter().position(|byte| *byte == b':')?;
        let (name, value) = trailer.split_at(colon);
        let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
        let visible = |b: &u8| *b == b'\t' || (*b >= b' ' && *b != 0x7f);
        if name.is_empty() || !name.iter().all(token) || !value.iter().all(visible) {
            return None;
        }
    }
    let trailers = trailers[..trailers.len() - rest.len()].to_vec();
    Some((data, trailers, bytes.len() - rest.len()))
}

/// The bytes before the next CRLF; `None` where a bare CR or LF comes first.
fn line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
    let (line, behind) = rest.split_at(end);
    *rest = behind.strip_prefix(b"\r\n")?;
    Some(line)
}
