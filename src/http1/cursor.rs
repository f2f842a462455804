//! A cursor over the bytes of a head, which takes tokens, values and field lines.
//!
//! It is pure, and the only parser of field lines: those of requests, of responses and of trailer sections (RFC 9112
//! §5). A folded line, or white space before a colon, is an error.

use crate::fields::Place;

/// A position in the bytes of a head.
#[derive(Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What ends a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// CR and LF.
    CrLf,
    /// CR and LF, or LF alone (RFC 9112 §2.2).
    Lf,
}

/// Why no field line can be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The bytes end before the line is complete.
    Partial,
    /// It does not begin with a field name.
    Name,
    /// No colon follows the name.
    Colon,
    /// The value contains a byte that is not allowed.
    Value,
}

impl<'a> Cursor<'a> {
    /// A cursor at the first of these bytes.
    pub fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// How many bytes were taken.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether no byte is left.
    pub fn is_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// Takes bytes as long as they fit.
    pub fn take_while(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let len = rest.iter().position(|&byte| !fits(byte));
        self.take(len.unwrap_or(rest.len()))
    }

    /// Takes this many bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let taken = self.bytes.get(self.at..self.at + len).unwrap_or_default();
        self.at += taken.len();
        taken
    }

    /// Takes one byte if it is this one.
    pub fn eat(&mut self, byte: u8) -> bool {
        let fits = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(fits);
        fits
    }

    /// Takes the end of a line; says whether there was one, `None` where the bytes end before that is known.
    pub fn eat_line_end(&mut self, end: LineEnd) -> Option<bool> {
        let len = match self.rest() {
            [b'\r', b'\n', ..] => 2,
            [b'\n', ..] if end == LineEnd::Lf => 1,
            [] | [b'\r'] => return None,
            _ => return Some(false),
        };
        self.at += len;
        Some(true)
    }

    /// Takes one field line; `None` at the empty line that closes a section.
    pub fn field(&mut self, end: LineEnd) -> Result<Option<Place>, Fault> {
        let (start, line) = (self.at, self.rest());
        let name = line.iter().position(|&byte| !is_token(byte));
        let name = name.unwrap_or(line.len());
        let behind = match line.split_at_checked(name) {
            Some((_, [])) => return Err(Fault::Partial),
            Some(([], _)) => {
                return match self.eat_line_end(end) {
                    Some(true) => Ok(None),
                    Some(false) => Err(Fault::Name),
                    None => Err(Fault::Partial),
                };
            }
            Some((_, [b':', behind @ ..])) => behind,
            _ => return Err(Fault::Colon),
        };
        let len = value_len(behind);
        let (value, _) = behind.split_at_checked(len).unwrap_or_default();
        let is_blank = |byte: u8| byte == b' ' || byte == b'\t';
        let first = value.iter().position(|&byte| !is_blank(byte));
        let last = value.iter().rposition(|&byte| !is_blank(byte));
        let (first, last) = (first.unwrap_or(0), last.map_or(0, |last| last + 1));
        let value = start + name + 1;
        self.at = value + len;
        match self.eat_line_end(end) {
            Some(true) => Ok(Some(Place::new(
                start..start + name,
                value + first..value + last,
            ))),
            Some(false) => Err(Fault::Value),
            None => Err(Fault::Partial),
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

/// A set of bytes, as a table of 256 entries.
pub struct ByteSet([bool; 256]);

impl ByteSet {
    /// These bytes, letters and digits.
    #[expect(
        clippy::indexing_slicing,
        reason = "in a constant, where it would not compile"
    )]
    pub const fn alphanumeric_and(mut others: &[u8]) -> ByteSet {
        let mut set = [false; 256];
        let mut byte = 0_u8;
        while byte < 128 {
            set[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        while let [byte, rest @ ..] = others {
            set[*byte as usize] = true;
            others = rest;
        }
        ByteSet(set)
    }

    /// Whether the set contains this byte.
    pub fn has(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte)).is_some_and(|has| *has)
    }
}

/// Whether a byte is allowed in a token: a method or a field name (RFC 9110 §5.6.2).
pub fn is_token(byte: u8) -> bool {
    const TOKEN: ByteSet = ByteSet::alphanumeric_and(b"!#$%&'*+-.^_`|~");
    TOKEN.has(byte)
}

/// Whether a byte is allowed in a field value: no control byte except the tab.
pub fn is_value(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// How many of the first bytes are allowed in a field value.
fn value_len(bytes: &[u8]) -> usize {
    // below the space, or DEL; the tab is among them, and is checked separately
    let marks = |word: u64| (word.wrapping_sub(ONES * 0x20) & !word) | zeros(word ^ (ONES * 0x7f));
    let odd = first_marked(bytes, marks, |byte| byte < b' ' || byte == 0x7f);
    let rest = bytes.get(odd..).unwrap_or_default();
    odd + rest.iter().take_while(|&&byte| is_value(byte)).count()
}

/// The position of the first line feed.
pub fn find_lf(bytes: &[u8]) -> Option<usize> {
    let marks = |word: u64| zeros(word ^ (ONES * u64::from(b'\n')));
    let at = first_marked(bytes, marks, |byte| byte == b'\n');
    (at < bytes.len()).then_some(at)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The highest bit of the first zero byte is set, and none before it.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word
}

/// The position of the first byte that `is_marked` accepts, or the length where there is none: eight bytes at a time.
/// `marks` sets the highest bit of the first such byte in a word that begins with its lowest byte, and none before it.
fn first_marked(bytes: &[u8], marks: impl Fn(u64) -> u64, is_marked: impl Fn(u8) -> bool) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let marks = marks(u64::from_le_bytes(*word)) & (ONES * 0x80);
        if marks != 0 {
            return 8 * index + marks.trailing_zeros() as usize / 8;
        }
    }
    let at = rest.iter().position(|&byte| is_marked(byte));
    8 * words.len() + at.unwrap_or(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
