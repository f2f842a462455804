//! A cursor over the bytes of a head: it looks at each byte once, and takes tokens, values and field lines.
//!
//! Pure, and the only reader of field lines: of requests, of responses and of trailer sections (RFC 9112 §5). A line is
//! never folded, and no white space stands before its colon.

use crate::{fields::Place, http1::chunked::is_token};

/// A place in the bytes of a head.
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
    /// It may be one when more has come.
    Partial,
    /// It does not begin with a field name.
    Name,
    /// No colon stands behind the name.
    Colon,
    /// A byte stands in the value that may not.
    Value,
}

impl<'a> Cursor<'a> {
    /// At the first of these bytes.
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

    /// Takes the bytes that fit.
    pub fn take_while(&mut self, fits: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let len = rest.iter().position(|&byte| !fits(byte));
        self.take(len.unwrap_or(rest.len()))
    }

    /// Takes so many bytes.
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

    /// Takes the end of a line; `None` where the bytes end before it is known whether one stands here.
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
        let name = self.at;
        self.take_while(is_token);
        let name = name..self.at;
        if name.is_empty() {
            return match self.eat_line_end(end) {
                Some(true) => Ok(None),
                Some(false) => Err(Fault::Name),
                None => Err(Fault::Partial),
            };
        }
        if !self.eat(b':') {
            return Err(if self.is_end() {
                Fault::Partial
            } else {
                Fault::Colon
            });
        }
        let start = self.at;
        let value = self.take(value_len(self.rest()));
        let start = start + value.len() - value.trim_ascii_start().len();
        let place = Place::new(name, start..start + value.trim_ascii().len());
        match self.eat_line_end(end) {
            Some(true) => Ok(Some(place)),
            Some(false) => Err(Fault::Value),
            None => Err(Fault::Partial),
        }
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

/// What may stand in a field value: no control byte but the tab.
pub fn is_value(byte: u8) -> bool {
    (byte >= b' ' && byte != 0x7f) || byte == b'\t'
}

/// How many of the first bytes may stand in a field value.
fn value_len(bytes: &[u8]) -> usize {
    // under the space, or DEL
    let odd = |word: u64| (word.wrapping_sub(ONES * 0x20) & !word) | zeros(word ^ (ONES * 0x7f));
    let plain = skip_words(bytes, odd);
    let rest = bytes.get(plain..).unwrap_or_default();
    plain + rest.iter().take_while(|&&byte| is_value(byte)).count()
}

/// Where the first line feed stands.
pub fn find_lf(bytes: &[u8]) -> Option<usize> {
    let plain = skip_words(bytes, |word| zeros(word ^ (ONES * u64::from(b'\n'))));
    let rest = bytes.get(plain..).unwrap_or_default();
    Some(plain + rest.iter().position(|&byte| byte == b'\n')?)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The highest bit of some byte is set where one is zero.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word
}

/// Eight bytes at a time: how many come before those in which `odd` sets the highest bit of one.
fn skip_words(bytes: &[u8], odd: impl Fn(u64) -> u64) -> usize {
    let (words, _) = bytes.as_chunks::<8>();
    let is_plain = |word: &&[u8; 8]| odd(u64::from_ne_bytes(**word)) & (ONES * 0x80) == 0;
    8 * words.iter().take_while(is_plain).count()
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
