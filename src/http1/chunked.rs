//! Parses the chunked transfer coding (RFC 9112 §7.1) strictly, without buffering content.
//!
//! The codecs of both sides use it. Extensions and trailers are bounded, so endless ones are an error.

use std::ops::Range;

use crate::http1::cursor::is_token;

/// The state of a parser of a chunked body. Starts before the first chunk.
#[derive(Debug, Clone)]
pub struct Chunked {
    state: State,
    /// Bytes of data that are left of the current chunk.
    left: u64,
    /// Bytes of extensions and of trailers so far: both are bounded over the whole body.
    extras: usize,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This many bytes of framing, to be skipped.
    Framing(usize),
    /// This many bytes of content.
    Data(usize),
    /// This many bytes of the trailer section, its closing empty line included.
    Trailer(usize),
}

/// The chunk framing is malformed; the text says how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Most bytes of extensions and trailers of one body together; hyper, for one, refuses above 16 KiB of either.
const MAX_EXTRAS: usize = 8 * 1024;

/// Most bytes of the trailer section of one body. It is kept until it is complete, in the place of a read buffer that
/// the price of an exchange includes for each message.
pub const MAX_TRAILERS: usize = 4 * 1024;

/// The least number of bytes by which the buffer of a trailer section grows.
const STEP: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    Size,
    /// After this many digits of it.
    Digits(u8),
    /// In an extension.
    Extension(Extension),
    /// After the CR of a size line.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    TrailerStart,
    /// In a trailer's name; false before its first byte.
    TrailerName,
    TrailerValue,
    TrailerLf,
    /// After the CR of the empty line.
    EndLf,
    End,
}

/// The position in `; name = value` (RFC 9112 §7.1.1), with white space around `;` and `=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// Before the first byte of a name.
    Start,
    Name,
    /// In the white space after a name.
    NameEnd,
    /// Before the first byte of a value.
    Equals,
    Value,
    /// Between quotation marks.
    Quoted,
    /// After a backslash in a quoted string.
    Escaped,
    /// After the closing quotation mark.
    QuotedEnd,
    /// In the white space after a value.
    ValueEnd,
}

impl Extension {
    /// Whether a size line may end here.
    fn is_whole(self) -> bool {
        use Extension::{Name, QuotedEnd, Value};
        matches!(self, Name | Value | QuotedEnd)
    }

    /// The state after this byte; `None` = it is not allowed here.
    fn step(self, byte: u8) -> Option<Extension> {
        use Extension::{
            Equals, Escaped, Name, NameEnd, Quoted, QuotedEnd, Start, Value, ValueEnd,
        };
        let is_space = matches!(byte, b' ' | b'\t');
        Some(match (self, byte) {
            (Start | Equals, _) if is_space => self,
            (Start | Name, _) if is_token(byte) => Name,
            (Name | NameEnd, _) if is_space => NameEnd,
            (Name | NameEnd, b'=') => Equals,
            (Equals, b'"') => Quoted,
            (Equals | Value, _) if is_token(byte) => Value,
            (Value | QuotedEnd | ValueEnd, _) if is_space => ValueEnd,
            (Name | NameEnd | Value | QuotedEnd | ValueEnd, b';') => Start,
            (Quoted, b'"') => QuotedEnd,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, b'\t' | b' '..=b'~' | 0x80..) => Quoted,
            _ => return None,
        })
    }
}

impl Chunked {
    /// A parser before the first chunk.
    pub fn new() -> Chunked {
        Chunked {
            state: State::Size,
            left: 0,
            extras: 0,
        }
    }

    /// Whether the closing empty line was parsed.
    pub fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// Says what the first bytes of `bytes` are and moves past them; `Framing(0)` where `bytes` is empty or the body
    /// has ended.
    ///
    /// # Errors
    /// [`Broken`] for anything that is not valid chunked framing.
    pub fn next(&mut self, bytes: &[u8]) -> Result<Event, Broken> {
        if self.state == State::Data {
            let n = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.left -= n as u64;
            if self.left == 0 {
                self.state = State::DataCr;
            }
            return Ok(Event::Data(n));
        }
        let in_trailer = self.is_trailer();
        let mut n = 0;
        for &byte in bytes {
            if self.state == State::End
                || self.state == State::Data
                || self.is_trailer() != in_trailer
            {
                break;
            }
            self.step(byte)?;
            n += 1;
        }
        Ok(if in_trailer {
            Event::Trailer(n)
        } else {
            Event::Framing(n)
        })
    }

    fn is_trailer(&self) -> bool {
        matches!(
            self.state,
            State::TrailerStart
                | State::TrailerName
                | State::TrailerValue
                | State::TrailerLf
                | State::EndLf
        )
    }

    fn step(&mut self, byte: u8) -> Result<(), Broken> {
        self.state = match (self.state, byte) {
            (State::Size, _) => self.digit(byte, 0)?,
            (State::Digits(_), b'\r') => State::SizeLf,
            (State::Extension(extension), b'\r') if extension.is_whole() => State::SizeLf,
            (State::Digits(_), b';') => self.extra(State::Extension(Extension::Start))?,
            (State::Extension(extension), _) => {
                let next = extension.step(byte);
                let next = next.ok_or(Broken("a malformed chunk extension"))?;
                self.extra(State::Extension(next))?
            }
            (State::Digits(n), _) => self.digit(byte, n)?,
            (State::SizeLf, b'\n') if self.left == 0 => State::TrailerStart,
            (State::SizeLf, b'\n') => State::Data,
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::TrailerStart, b'\r') => State::EndLf,
            (State::TrailerStart | State::TrailerName, _) if is_token(byte) => {
                self.extra(State::TrailerName)?
            }
            (State::TrailerName, b':') => self.extra(State::TrailerValue)?,
            (State::TrailerValue, b'\r') => State::TrailerLf,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extra(State::TrailerValue)?
            }
            (State::TrailerLf, b'\n') => State::TrailerStart,
            (State::EndLf, b'\n') => State::End,
            (State::DataCr | State::DataLf, _) => {
                return Err(Broken("a chunk is longer than its size"));
            }
            (State::SizeLf, _) => return Err(Broken("a chunk size line without its line feed")),
            _ => return Err(Broken("a malformed trailer section")),
        };
        Ok(())
    }

    fn digit(&mut self, byte: u8, digits: u8) -> Result<State, Broken> {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return Err(Broken("a chunk size that is not a hexadecimal number")),
        };
        // 15 digits cannot overflow, and no body is that long
        if digits == 15 {
            return Err(Broken("a chunk size with too many digits"));
        }
        self.left = self.left << 4 | u64::from(value);
        Ok(State::Digits(digits + 1))
    }

    fn extra(&mut self, state: State) -> Result<State, Broken> {
        self.extras += 1;
        if self.extras > MAX_EXTRAS {
            return Err(Broken("too many bytes of chunk extensions or trailers"));
        }
        Ok(state)
    }
}

/// A chunked body that is taken out of the buffers that it arrives in.
#[derive(Debug)]
pub struct Body {
    walk: Chunked,
    trailers: Vec<u8>,
}

/// The content of a buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The range of the data of all its chunks, moved together.
    pub data: Range<usize>,
    /// How many bytes of the buffer belong to the body.
    pub used: usize,
}

impl Body {
    /// A body of which nothing was read.
    pub fn new() -> Body {
        Body {
            walk: Chunked::new(),
            trailers: Vec::new(),
        }
    }

    /// Whether the closing empty line was read.
    pub fn is_end(&self) -> bool {
        self.walk.is_end()
    }

    /// Moves the data of all chunks in `bytes` together, over their framing.
    ///
    /// # Errors
    /// [`Broken`] where the framing is malformed.
    pub fn take(&mut self, bytes: &mut [u8]) -> Result<Taken, Broken> {
        let (mut data, mut at) = (0..0, 0);
        while at < bytes.len() && !self.walk.is_end() {
            let rest = bytes.get(at..).unwrap_or_default();
            match self.walk.next(rest)? {
                Event::Framing(count) => at += count,
                Event::Data(count) => {
                    if data.is_empty() {
                        // the first data of a buffer is not moved
                        data = at..at;
                    } else if count > 0 {
                        bytes.copy_within(at..at + count, data.end);
                    }
                    data.end += count;
                    at += count;
                }
                Event::Trailer(count) => {
                    self.keep(rest.get(..count).unwrap_or_default())?;
                    at += count;
                }
            }
        }
        Ok(Taken { data, used: at })
    }

    /// Keeps a part of the trailer section, in at most [`MAX_TRAILERS`] and a step of memory.
    fn keep(&mut self, part: &[u8]) -> Result<(), Broken> {
        if self.trailers.len() + part.len() > MAX_TRAILERS {
            return Err(Broken("too many bytes of trailers"));
        }
        if self.trailers.capacity() - self.trailers.len() < part.len() {
            self.trailers.reserve_exact(part.len().max(STEP));
        }
        self.trailers.extend_from_slice(part);
        Ok(())
    }

    /// Whether there are trailers; known at the end of the body.
    pub fn has_trailers(&self) -> bool {
        self.trailers.len() > 2
    }

    /// Takes the trailer section, its closing empty line included, at the end of the body.
    pub fn trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.trailers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Walked = (Vec<u8>, Vec<u8>, Option<usize>);

    /// Parses `bytes` in pieces of `step`; gives the data, the trailers and how many bytes belong to the body.
    fn walk(bytes: &[u8], step: usize) -> Result<Walked, Broken> {
        let (mut data, mut trailers, mut at) = (Vec::new(), Vec::new(), 0);
        let mut chunked = Chunked::new();
        while at < bytes.len() && !chunked.is_end() {
            let part = &bytes[at..bytes.len().min(at + step)];
            at += match chunked.next(part)? {
                Event::Framing(n) => n,
                Event::Data(n) => {
                    data.extend_from_slice(&part[..n]);
                    n
                }
                Event::Trailer(n) => {
                    trailers.extend_from_slice(&part[..n]);
                    n
                }
            };
        }
        Ok((data, trailers, chunked.is_end().then_some(at)))
    }

    #[test]
    fn a_body_reads_the_same_however_it_is_split() {
        let whole = b"5\r\nhello\r\n6;a=b; c=\"d\"\r\n world\r\n0\r\nA: b\r\nC:\r\n\r\nGET";
        for step in 1..=whole.len() {
            let (data, trailers, end) = walk(whole, step).unwrap();
            assert_eq!(data, b"hello world", "step {step}");
            assert_eq!(trailers, b"A: b\r\nC:\r\n\r\n", "step {step}");
            assert_eq!(end, Some(whole.len() - 3), "step {step}");
        }
    }

    #[test]
    fn extensions_are_skipped_whatever_their_quotes_hold() {
        for extension in [
            ";a",
            ";a;b",
            ";a=b",
            "; a = b ; c",
            ";\ta\t=\tb",
            ";a=\"\"",
            ";a=\"b;c=d\"",
            ";a=\"b\\\"c\\\\\" ; d=e",
            ";a=\"ü\t\"",
        ] {
            let whole = format!("5{extension}\r\nhello\r\n0{extension}\r\n\r\n");
            for step in [1, 3, 64] {
                let (data, _, end) = walk(whole.as_bytes(), step).unwrap();
                assert_eq!(data, b"hello", "{extension}");
                assert_eq!(end, Some(whole.len()), "{extension}");
            }
        }
    }

    #[test]
    fn an_unfinished_body_is_no_end() {
        let whole = b"5\r\nhello\r\n0\r\nA: b\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(walk(&whole[..cut], 3).unwrap().2, None, "cut at {cut}");
        }
    }

    #[test]
    fn framing_that_is_not_to_the_letter_is_broken() {
        let cases: &[&[u8]] = &[
            b"\r\n",
            b" 5\r\nhello\r\n",
            b"5 \r\nhello\r\n",
            b"+5\r\nhello\r\n",
            b"0x5\r\nhello\r\n",
            b"g\r\n",
            b";a\r\n",
            b"5\nhello\r\n",
            b"5\r\rhello",
            b"5\r\nhello\n",
            b"5\r\nhello!\r\n",
            b"5\r\nhell\r\n0\r\n\r\n",
            b"5;a\nb\r\nhello\r\n",
            b"5;\x00\r\n",
            b"5;\r\nhello\r\n",
            b"5; \r\nhello\r\n",
            b"5;;a\r\nhello\r\n",
            b"5;a;\r\nhello\r\n",
            b"5;=b\r\nhello\r\n",
            b"5;a=\r\nhello\r\n",
            b"5;a=b=c\r\nhello\r\n",
            b"5;a b\r\nhello\r\n",
            b"5;a \r\nhello\r\n",
            b"5;a=b c\r\nhello\r\n",
            b"5;a=\"b\r\nhello\r\n",
            b"5;a=\"b\\\"\r\nhello\r\n",
            b"5;a=\"b\\\r\n\"\r\nhello\r\n",
            b"5;a=\"b\"c\r\nhello\r\n",
            b"5;a=b\"c\"\r\nhello\r\n",
            b"5;\"a\"\r\nhello\r\n",
            b"5;a=\"\x01\"\r\nhello\r\n",
            b"0;\r\n\r\n",
            b"0\r\nnot a field\r\n",
            b"0\r\n: empty\r\n",
            b"0\r\n folded: x\r\n",
            b"0\r\nA: b\n\r\n",
            b"0\r\n\n",
            b"0\r\n\rX",
            b"0000000000000000\r\n\r\n",
            b"fffffffffffffffff\r\n",
            b"-1\r\n",
            b"5,5\r\n",
            b"5\t\r\n",
        ];
        for case in cases {
            assert!(
                walk(case, 64).is_err() && walk(case, 1).is_err(),
                "{}",
                case.escape_ascii()
            );
        }
    }

    #[test]
    fn a_trailer_section_is_kept_in_four_kilobytes() {
        let section = |len: usize| {
            let line = format!("A: {}\r\n\r\n", "x".repeat(len - 7));
            [b"0\r\n", line.as_bytes()].concat()
        };
        for step in [1, 100, MAX_EXTRAS] {
            let take = |len: usize| {
                let mut body = Body::new();
                let mut whole = section(len);
                for part in whole.chunks_mut(step) {
                    body.take(part)?;
                    assert!(body.trailers.capacity() <= MAX_TRAILERS + STEP);
                }
                Ok(body.trailers().len())
            };
            assert_eq!(take(MAX_TRAILERS), Ok(MAX_TRAILERS), "step {step}");
            let broken = Broken("too many bytes of trailers");
            assert_eq!(take(MAX_TRAILERS + 1), Err(broken), "step {step}");
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded() {
        let mut long = b"1;".to_vec();
        long.extend(std::iter::repeat_n(b'x', MAX_EXTRAS + 1));
        assert!(walk(&long, 1000).is_err());
        let mut many = Vec::new();
        for _ in 0..MAX_EXTRAS {
            many.extend_from_slice(b"1;x\r\na\r\n");
        }
        assert!(walk(&many, 1000).is_err());
        let mut trailers = b"0\r\n".to_vec();
        for _ in 0..MAX_EXTRAS {
            trailers.extend_from_slice(b"A: b\r\n");
        }
        assert!(walk(&trailers, 1000).is_err());
    }

    #[test]
    fn extensions_are_as_long_as_they_may_be() {
        for (len, passes) in [(MAX_EXTRAS, true), (MAX_EXTRAS + 1, false)] {
            // the semicolon counts as well
            let whole = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(len - 1));
            assert_eq!(walk(whole.as_bytes(), 64).is_ok(), passes, "{len}");
        }
    }

    #[test]
    fn a_body_has_trailers_where_a_field_stands_behind_it() {
        for (end, has_some) in [("\r\n", false), ("A: b\r\n\r\n", true)] {
            let mut body = Body::new();
            body.take(format!("0\r\n{end}").into_bytes().as_mut_slice())
                .unwrap();
            assert_eq!((body.is_end(), body.has_trailers()), (true, has_some));
        }
    }
}
