//! Formats a line of the log, as text (`key=value`) or JSON.
//!
//! Pure. A value is cut at 2 kB and a line at 4096 bytes, which a pipe takes whole. Whatever bytes a client puts into a
//! value, the line stays one line and its fields stay apart.

use std::{
    borrow::Cow,
    fmt::{self, Display, Write},
    time::Duration,
};

use crate::observe::date::Date;

/// A line that is being written: never longer than [`LINE`], always well-formed.
#[derive(Debug)]
pub struct Line {
    text: String,
    json: bool,
}

impl Line {
    /// Begins a line in `buffer`, which is cleared; `now` counts from 1970.
    pub fn begin(buffer: String, json: bool, now: Duration, level: &str, message: &str) -> Line {
        let mut line = Line { text: buffer, json };
        line.text.clear();
        line.text.reserve(256);
        line.short("time", &format_args!("{:.3}", Date(now)));
        line.short("level", &level);
        line.value("msg", LONG, true, &message);
        line
    }

    /// The line with its newline.
    pub fn end(mut self) -> String {
        self.text.push_str(if self.json { "}\n" } else { "\n" });
        self.text
    }

    /// Adds a value that may be long, up to [`LONG`] bytes.
    pub fn field(&mut self, name: &str, value: &dyn Display) {
        self.value(name, LONG, false, value);
    }

    /// Adds a number, without quotes in JSON too.
    pub fn number(&mut self, name: &str, value: u64) {
        // a u64 has twenty digits at most
        if self.room(name) >= 20 {
            self.key(name);
            let _ = write!(self.text, "{value}");
        }
    }

    /// Adds a value that is short in ordinary use, cut at [`SHORT`] bytes: a client must not fill the line with it.
    pub fn short(&mut self, name: &str, value: &dyn Display) {
        self.value(name, SHORT, false, value);
    }

    /// Adds a value in quotes; in text a plain value has none unless `quoted` asks for them.
    fn value(&mut self, name: &str, most: usize, quoted: bool, value: &dyn Display) {
        let room = self.room(name).min(most);
        if room < LONGEST {
            return;
        }
        self.key(name);
        let start = self.text.len();
        self.text.push('"');
        let mut value_writer = Value {
            text: &mut self.text,
            json: self.json,
            room,
            plain: true,
        };
        // an error means that the value was cut, or that its formatting failed: what was written stays
        let _cut = write!(value_writer, "{value}");
        let plain = value_writer.plain && self.text.len() > start + 1;
        if plain && !quoted && !self.json {
            self.text.remove(start);
        } else {
            self.text.push('"');
        }
    }

    fn key(&mut self, name: &str) {
        let (first, next, end) = if self.json {
            ("{\"", ",\"", "\":")
        } else {
            ("", " ", "=")
        };
        let before = if self.text.is_empty() { first } else { next };
        self.text.extend([before, name, end]);
    }

    /// Bytes left for a value, apart from its key, quotes, the mark of a cut, and the end of the line.
    fn room(&self, name: &str) -> usize {
        LINE.saturating_sub(self.text.len() + name.len() + 16)
    }
}

/// Escapes what is written to it, and fails when `room` is used up.
struct Value<'a> {
    text: &'a mut String,
    json: bool,
    room: usize,
    plain: bool,
}

impl Write for Value<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|char| self.write_char(char))
    }

    fn write_char(&mut self, char: char) -> fmt::Result {
        if self.room < LONGEST {
            if self.room > 0 {
                self.room = 0;
                self.plain = false;
                self.text.push(MARK);
            }
            return Err(fmt::Error);
        }
        let before = self.text.len();
        self.plain &= char.is_ascii_graphic() && !matches!(char, '"' | '\\' | '=');
        match char {
            '"' => self.text.push_str("\\\""),
            '\\' => self.text.push_str("\\\\"),
            '\n' => self.text.push_str("\\n"),
            '\r' => self.text.push_str("\\r"),
            '\t' => self.text.push_str("\\t"),
            char if !misleads(char) => self.text.push(char),
            char if self.json => {
                // characters above U+FFFF take two escapes (RFC 8259 §7)
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(self.text, "\\u{unit:04x}")?;
                }
            }
            char if char.is_ascii() => write!(self.text, "\\x{:02x}", u32::from(char))?,
            char => write!(self.text, "\\u{{{:x}}}", u32::from(char))?,
        }
        self.room -= self.text.len() - before;
        Ok(())
    }
}

/// Appends a JSON string with its quotes (RFC 8259 §7).
pub fn push_json(out: &mut String, text: &str) {
    out.push('"');
    let mut value = Value {
        text: out,
        json: true,
        room: usize::MAX,
        plain: true,
    };
    let _never_cut = value.write_str(text);
    out.push('"');
}

/// Whether a terminal or a viewer would show another line than was written: controls of both sets (Cc), line and paragraph
/// separators (Zl, Zp), format characters (Cf, Unicode 15), among them all that turn the direction of writing, and what is no
/// character.
fn misleads(char: char) -> bool {
    // most characters of most lines
    if (' '..='~').contains(&char) {
        return false;
    }
    let code = u32::from(char);
    let is_no_character = code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code);
    char.is_control() || is_no_character || is_format(char)
}

/// Format characters, and the two separators.
fn is_format(char: char) -> bool {
    matches!(char,
        '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// The beginning of a text that is kept for the log: at most [`KEPT`] bytes, with a mark where it was cut.
pub fn beginning(text: &str) -> Cow<'_, str> {
    if text.len() <= KEPT {
        return Cow::Borrowed(text);
    }
    let cut = text.floor_char_boundary(KEPT);
    let mut kept = String::with_capacity(cut + MARK.len_utf8());
    kept.push_str(text.get(..cut).unwrap_or_default());
    kept.push(MARK);
    Cow::Owned(kept)
}

/// Bounds the bytes of a method, a host or a path that are kept for the log while an exchange lasts: a request head may
/// have tens of kilobytes, and must not be held longer than it is needed.
pub const KEPT: usize = 256;
/// Marks where a text was cut.
const MARK: char = '…';

/// Bytes that should be text; what is not UTF-8 is shown as U+FFFD.
pub struct Lossy<'a>(pub &'a [u8]);

impl Display for Lossy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            f.write_str(chunk.valid())?;
            if !chunk.invalid().is_empty() {
                f.write_char(char::REPLACEMENT_CHARACTER)?;
            }
        }
        Ok(())
    }
}

/// Bounds the bytes of a line with its newline: `PIPE_BUF`, which a pipe takes whole or not at all.
pub const LINE: usize = 4096;
/// Bytes of the longest escape: `\udb40\udc01` in JSON.
const LONGEST: usize = 12;
/// Bounds the bytes of a value after escaping: half a line, so that one path leaves room for the other fields.
const LONG: usize = 2048;
/// Bounds the bytes of a value that is short in ordinary use, such as a method or a host.
const SHORT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// A field's name and value.
    type Field<'a> = (&'a str, &'a dyn Display);

    const NOW: Duration = Duration::from_millis(1_795_410_720_123);

    fn line(json: bool, fields: &[Field<'_>]) -> String {
        let mut line = Line::begin(String::new(), json, NOW, "info", "listening");
        for (name, value) in fields {
            line.field(name, value);
        }
        line.end()
    }

    #[test]
    fn an_event_is_one_line_of_text() {
        assert_eq!(
            line(false, &[("address", &"127.0.0.1:80"), ("routes", &3)]),
            "time=2026-11-23T05:12:00.123Z level=info msg=\"listening\" address=127.0.0.1:80 routes=3\n"
        );
    }

    #[test]
    fn an_event_is_one_object_of_json() {
        assert_eq!(
            line(true, &[("address", &"127.0.0.1:80"), ("routes", &3)]),
            "{\"time\":\"2026-11-23T05:12:00.123Z\",\"level\":\"info\",\"msg\":\"listening\",\
             \"address\":\"127.0.0.1:80\",\"routes\":\"3\"}\n"
        );
    }

    #[test]
    fn values_cannot_leave_their_field() {
        for (value, text, json) in [
            ("plain/1.2:3?&%[]", "plain/1.2:3?&%[]", "plain/1.2:3?&%[]"),
            ("", r#""""#, ""),
            ("two words", r#""two words""#, "two words"),
            ("a=b", r#""a=b""#, "a=b"),
            ("a\"b\\c", r#""a\"b\\c""#, r#"a\"b\\c"#),
            ("x\nlevel=error", r#""x\nlevel=error""#, r"x\nlevel=error"),
            (
                "\r\t\0\x1b[31m\x7f",
                r#""\r\t\x00\x1b[31m\x7f""#,
                r"\r\t\u0000\u001b[31m\u007f",
            ),
            (
                "\u{85}\u{2028}\u{202e}",
                r#""\u{85}\u{2028}\u{202e}""#,
                r"\u0085\u2028\u202e",
            ),
            (
                "\u{61c}\u{180e}\u{200f}\u{2066}\u{e0001}",
                r#""\u{61c}\u{180e}\u{200f}\u{2066}\u{e0001}""#,
                r"\u061c\u180e\u200f\u2066\udb40\udc01",
            ),
            ("grün", "\"grün\"", "grün"),
            ("😀", "\"😀\"", "😀"),
        ] {
            let head = line(false, &[]).trim_end().to_owned();
            assert_eq!(
                line(false, &[("v", &value)]),
                format!("{head} v={text}\n"),
                "{value:?}"
            );
            let head = line(true, &[]).trim_end_matches("}\n").to_owned();
            assert_eq!(
                line(true, &[("v", &value)]),
                format!("{head},\"v\":\"{json}\"}}\n"),
                "{value:?}"
            );
        }
        assert_eq!(
            Lossy(b"a\xff\xfeb\xc3").to_string(),
            "a\u{fffd}\u{fffd}b\u{fffd}"
        );
    }

    /// By Python's unicodedata (14.0.0): every character of the categories Cc, Cf, Zl and Zp, as ranges.
    #[test]
    fn control_and_format_characters_are_escaped() {
        let ranges = [
            (0x0, 0x1f),
            (0x7f, 0x9f),
            (0xad, 0xad),
            (0x600, 0x605),
            (0x61c, 0x61c),
            (0x6dd, 0x6dd),
            (0x70f, 0x70f),
            (0x890, 0x891),
            (0x8e2, 0x8e2),
            (0x180e, 0x180e),
            (0x200b, 0x200f),
            (0x2028, 0x202e),
            (0x2060, 0x2064),
            (0x2066, 0x206f),
            (0xfeff, 0xfeff),
            (0xfff9, 0xfffb),
            (0x110bd, 0x110bd),
            (0x110cd, 0x110cd),
            (0x13430, 0x13438),
            (0x1bca0, 0x1bca3),
            (0x1d173, 0x1d17a),
            (0xe0001, 0xe0001),
            (0xe0020, 0xe007f),
        ];
        for (first, last) in ranges {
            for char in (first..=last).filter_map(char::from_u32) {
                assert!(misleads(char), "U+{:04X}", u32::from(char));
            }
        }
        for char in [
            'a', 'é', 'ß', 'ب', '日', '😀', '\u{a0}', '\u{301}', '\u{e000}',
        ] {
            assert!(!misleads(char), "U+{:04X}", u32::from(char));
        }
    }

    #[test]
    fn any_bytes_give_one_bounded_line_of_valid_json() {
        let mut seed = 11_u64;
        for round in (0..3000).step_by(7) {
            let mut bytes = Vec::new();
            for _ in 0..round {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bytes.push(seed.to_be_bytes()[2]);
            }
            let (lossy, host) = (Lossy(&bytes), Lossy(&bytes[bytes.len() / 2..]));
            let fields: [Field<'_>; 3] = [("a", &lossy), ("b", &host), ("c", &lossy)];
            for json in [false, true] {
                let text = line(json, &fields);
                assert!(text.len() <= LINE, "{} bytes", text.len());
                assert_eq!(text.find('\n'), Some(text.len() - 1));
                assert!(!text.trim_end().contains(misleads));
            }
            // YAML is a superset of JSON, and its parser is a dependency already.
            let text = line(true, &fields);
            let value: serde_yaml::Value = serde_yaml::from_str(&text).expect(&text);
            assert_eq!(value["msg"], "listening", "{text}");
        }
    }

    #[test]
    fn the_beginning_of_a_text_is_bounded_and_marked() {
        for length in [0, 1, KEPT] {
            let text = "x".repeat(length);
            assert_eq!(beginning(&text), text);
        }
        for text in ["x".repeat(60_000), "ü".repeat(60_000), "€".repeat(300)] {
            let kept = beginning(&text).into_owned();
            let start = kept.strip_suffix(MARK).expect("it is marked");
            assert!(text.starts_with(start) && start.len() > KEPT - 4);
            assert!(kept.capacity() <= KEPT + 3, "{}", kept.capacity());
        }
    }

    #[test]
    fn long_values_and_long_lines_are_cut() {
        let long = "x".repeat(10_000);
        let fields: [Field<'_>; 4] = [("a", &long), ("b", &long), ("c", &long), ("d", &"short")];
        for json in [false, true] {
            let text = line(json, &fields);
            assert!(
                text.len() <= LINE && text.len() > LINE - 64,
                "{}",
                text.len()
            );
            assert_eq!(
                text.matches('…').count(),
                2,
                "a and b; there is no room for c"
            );
            assert!(text.ends_with(if json { "…\"}\n" } else { "…\"\n" }));
        }
    }
}
