//! Formatting for messages: quoted and shortened values, the key that was probably meant, one line without control
//! characters. Pure.

use std::fmt::{self, Write as _};

/// The text of an error without the number that Rust appends to the system's message.
pub fn plain(error: &dyn fmt::Display) -> String {
    let mut text = error.to_string();
    if let Some(number) = text.find(" (os error") {
        text.truncate(number);
    }
    text
}

/// A text in quotes, shortened, with control characters escaped.
pub fn quote(text: &str) -> String {
    format!("{:?}", shorten(text))
}

/// The known word that is closest to `word`, if it is close enough to be a suggestion.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    if word.len() > 64 {
        return None;
    }
    let word = word.to_ascii_lowercase().replace('-', "_");
    let allowed = (word.len() / 2).clamp(1, 3);
    known
        .iter()
        .map(|candidate| (distance(word.as_bytes(), candidate.as_bytes()), *candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance: insertions, deletions and replacements from `a` to `b`.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (cell, y) in row.iter_mut().skip(1).zip(b) {
            let replaced = corner + usize::from(x != y);
            corner = *cell;
            left = replaced.min(corner + 1).min(left + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

pub fn shorten(text: &str) -> String {
    if text.chars().count() <= MAX_SHOWN {
        return text.to_owned();
    }
    text.chars().take(MAX_SHOWN).chain(['…']).collect()
}

/// A text for a terminal or a log: one line without control characters, of at most [`MAX_LINE`] characters.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(MAX_LINE) {
        if c.is_control() {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Bounds the characters of a value that a message repeats.
const MAX_SHOWN: usize = 80;
/// Bounds the characters of a message.
const MAX_LINE: usize = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_is_suggested() {
        let known = ["listen", "routes", "cors", "dial_timeout"];
        let cases = [
            ("listn", Some("listen")),
            ("Listen", Some("listen")),
            ("route", Some("routes")),
            ("dial-timeout", Some("dial_timeout")),
            ("dialtimeout", Some("dial_timeout")),
            ("zzzz", None),
            ("", None),
        ];
        for (word, meant) in cases {
            assert_eq!(nearest(word, &known), meant, "{word}");
        }
        assert_eq!(nearest(&"l".repeat(100_000), &known), None);
    }

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("", "ab", 2),
            ("ab", "", 2),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        }
    }

    #[test]
    fn messages_are_one_short_line() {
        assert_eq!(one_line("a\nb\u{1b}[1m\u{7f}é"), "a\\nb\\u{1b}[1m\\u{7f}é");
        assert!(one_line(&"é".repeat(10_000)).chars().count() <= MAX_LINE);
        assert!(quote(&"\u{0}".repeat(10_000)).len() < 1000);
    }
}
