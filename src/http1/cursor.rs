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

    /// Takes a token, or nothing where there is none.
    pub fn take_token(&mut self) -> &'a [u8] {
        self.take(token_len(self.rest()))
    }

    /// Takes the bytes that are allowed in a target.
    pub fn take_target(&mut self) -> &'a [u8] {
        self.take(target_len(self.rest()))
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

    /// Takes these bytes; where not all of them come, it takes those that do.
    pub fn eat_all(&mut self, bytes: &[u8]) -> bool {
        self.eat_whole(bytes) || bytes.iter().all(|&byte| self.eat(byte))
    }

    /// Takes these bytes if all of them come.
    pub fn eat_whole(&mut self, bytes: &[u8]) -> bool {
        let fits = self.rest().starts_with(bytes);
        self.at += if fits { bytes.len() } else { 0 };
        fits
    }

    /// Takes the end of a line; says whether there was one, `None` where the bytes end before that is known.
    pub fn eat_line_end(&mut self, end: LineEnd) -> Option<bool> {
        let len = line_end_len(self.rest(), end)?;
        self.at += len;
        Some(len > 0)
    }

    /// Takes one field line; `None` at the empty line that closes a section.
    pub fn field(&mut self, end: LineEnd) -> Result<Option<Place>, Fault> {
        let (start, line) = (self.at, self.rest());
        let name = token_len(line);
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
        let (value, rest) = behind.split_at_checked(len).unwrap_or_default();
        let is_blank = |byte: u8| byte == b' ' || byte == b'\t';
        let first = value.iter().position(|&byte| !is_blank(byte));
        let last = value.iter().rposition(|&byte| !is_blank(byte));
        let (first, last) = (first.unwrap_or(0), last.map_or(0, |last| last + 1));
        let value = start + name + 1;
        let end = match line_end_len(rest, end) {
            Some(0) => return Err(Fault::Value),
            Some(end) => end,
            None => return Err(Fault::Partial),
        };
        self.at = value + len + end;
        Ok(Some(Place::new(
            start..start + name,
            value + first..value + last,
        )))
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

/// How long the end of a line is that these bytes begin with: 0 = they begin with something else, `None` = too few bytes.
fn line_end_len(bytes: &[u8], end: LineEnd) -> Option<usize> {
    match bytes {
        [b'\r', b'\n', ..] => Some(2),
        [b'\n', ..] if end == LineEnd::Lf => Some(1),
        [] | [b'\r'] => None,
        _ => Some(0),
    }
}

/// How many of the first bytes are allowed in a token. Almost all tokens consist of letters and `-`: these are found eight
/// at a time.
fn token_len(bytes: &[u8]) -> usize {
    let mut usual = 0;
    let mut rest = bytes;
    while let Some((word, behind)) = rest.split_first_chunk() {
        let others = !letters_and_dashes(u64::from_le_bytes(*word)) & HIGH;
        if others != 0 {
            let count = others.trailing_zeros() as usize / 8;
            usual += count;
            rest = rest.get(count..).unwrap_or_default();
            break;
        }
        usual += 8;
        rest = behind;
    }
    usual + rest.iter().take_while(|&&byte| is_token(byte)).count()
}

/// The highest bit of each byte that is a letter or `-` is set, and no other bit.
fn letters_and_dashes(word: u64) -> u64 {
    let ascii = word & !HIGH;
    let lower = ascii | (ONES * 0x20);
    // adding carries into the highest bit where a byte is at least that large, and never beyond it
    let least_a = lower + ONES * u64::from(0x80 - b'a');
    let above_z = lower + ONES * u64::from(0x7f - b'z');
    let no_dash = (ascii ^ (ONES * u64::from(b'-'))) + ONES * 0x7f;
    ((least_a & !above_z) | !no_dash) & !word & HIGH
}

/// How many of the first bytes are allowed in a target.
pub fn target_len(bytes: &[u8]) -> usize {
    // at most the space, DEL, and the three bytes between others that is_target refuses
    let marks = |word: u64| {
        let is = |byte: u8| zeros(word ^ (ONES * u64::from(byte)));
        (word.wrapping_sub(ONES * 0x21) & !word) | is(0x7f) | is(b'#') | is(b'<') | is(b'>')
    };
    first_marked(bytes, marks, |byte| !is_target(byte))
}

/// Whether a byte is allowed in a target: all that browsers leave unescaped (WHATWG URL), and more than RFC 3986
/// allows; not `<` and `>`, which end up in pages, nor the fragment's `#`.
fn is_target(byte: u8) -> bool {
    matches!(byte, b'!' | b'"' | b'$'..=b';' | b'=' | b'?'..=b'~' | 0x80..)
}

/// How many of the first bytes are allowed in a field value.
fn value_len(bytes: &[u8]) -> usize {
    // below the space, or DEL; the tab is among them, and is checked separately
    let marks = |word: u64| (word.wrapping_sub(ONES * 0x20) & !word) | zeros(word ^ (ONES * 0x7f));
    let odd = first_marked(bytes, marks, |byte| byte < b' ' || byte == 0x7f);
    if bytes.get(odd) != Some(&b'\t') {
        return odd;
    }
    let rest = bytes.get(odd..).unwrap_or_default();
    odd + rest.iter().take_while(|&&byte| is_value(byte)).count()
}

/// The position of the first byte that is this one.
pub fn find(bytes: &[u8], byte: u8) -> Option<usize> {
    let marks = |word: u64| zeros(word ^ (ONES * u64::from(byte)));
    let at = first_marked(bytes, marks, |other| other == byte);
    (at < bytes.len()).then_some(at)
}

/// The position of the first byte that is one of these.
pub fn find_either(bytes: &[u8], one: u8, other: u8) -> Option<usize> {
    let marks =
        |word: u64| zeros(word ^ (ONES * u64::from(one))) | zeros(word ^ (ONES * u64::from(other)));
    let at = first_marked(bytes, marks, |byte| byte == one || byte == other);
    (at < bytes.len()).then_some(at)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The highest bit of each byte.
const HIGH: u64 = ONES * 0x80;

/// The highest bit of the first zero byte is set, and none before it.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word
}

/// The position of the first byte that `is_marked` accepts, or the length where there is none: eight bytes at a time.
/// `marks` sets the highest bit of the first such byte in a word that begins with its lowest byte, and none before it.
fn first_marked(bytes: &[u8], marks: impl Fn(u64) -> u64, is_marked: impl Fn(u8) -> bool) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let marks = marks(u64::from_le_bytes(*word)) & HIGH;
        if marks != 0 {
            return 8 * index + marks.trailing_zeros() as usize / 8;
        }
    }
    let at = match bytes.last_chunk::<8>() {
        // the last bytes are read together with some before them, which are shifted out; zeros come behind them
        Some(word) if !rest.is_empty() => {
            let word = u64::from_le_bytes(*word) >> (64 - 8 * rest.len());
            (marks(word) & HIGH).trailing_zeros() as usize / 8
        }
        _ => rest.iter().take_while(|&&byte| !is_marked(byte)).count(),
    };
    8 * words.len() + at.min(rest.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_by_words_is_found_by_bytes() {
        // the byte stands at each place of texts whose lengths have each rest of eight
        let places = (1..=24).flat_map(|len| (0..len).map(move |at| (len, at)));
        for (len, at) in places {
            for byte in 0..=255 {
                for around in [b' ', b'~', b'a', b'Z', b'-', 0x80, 0xff] {
                    let mut bytes = vec![around; len];
                    bytes[at] = byte;
                    let slow = bytes.iter().take_while(|&&byte| is_value(byte)).count();
                    assert_eq!(value_len(&bytes), slow, "{byte:#x} at {at}");
                    let slow = bytes.iter().position(|&byte| byte == b'\n');
                    assert_eq!(find(&bytes, b'\n'), slow, "{byte:#x} at {at}");
                    let slow = bytes.iter().position(|&byte| byte == b'\r' || byte == b'-');
                    assert_eq!(find_either(&bytes, b'\r', b'-'), slow, "{byte:#x} at {at}");
                    let slow = bytes.iter().take_while(|&&byte| is_token(byte)).count();
                    assert_eq!(token_len(&bytes), slow, "{byte:#x} at {at}");
                    let slow = bytes.iter().take_while(|&&byte| is_target(byte)).count();
                    assert_eq!(target_len(&bytes), slow, "{byte:#x} at {at}");
                }
            }
        }
    }
}
