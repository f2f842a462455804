//! A small JSON reader for logs and the health report; what RFC 8259 does not allow is an error.

use std::collections::BTreeMap;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    /// Reads exactly one value.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut rest = text.trim_ascii();
        let value = value(&mut rest, 0)?;
        if rest.is_empty() {
            Ok(value)
        } else {
            Err(format!("bytes behind the value: {rest:?}"))
        }
    }

    /// A member of an object.
    pub fn at(&self, key: &str) -> &Json {
        match self {
            Json::Object(members) => members.get(key).unwrap_or(&Json::Null),
            _ => &Json::Null,
        }
    }

    /// A text's content.
    pub fn text(&self) -> Option<&str> {
        if let Json::Text(text) = self {
            Some(text)
        } else {
            None
        }
    }
}

fn value(rest: &mut &str, depth: usize) -> Result<Json, String> {
    if depth > 64 {
        return Err("too deep".to_owned());
    }
    blank(rest);
    match rest.chars().next() {
        Some('"') => string(rest).map(Json::Text),
        Some('{') => {
            let mut members = BTreeMap::new();
            sequence(rest, '}', |rest| {
                blank(rest);
                let key = string(rest)?;
                blank(rest);
                eat(rest, ":")?;
                match members.insert(key.clone(), value(rest, depth + 1)?) {
                    None => Ok(()),
                    Some(_) => Err(format!("{key} twice")),
                }
            })?;
            Ok(Json::Object(members))
        }
        Some('[') => {
            let mut items = Vec::new();
            sequence(rest, ']', |rest| {
                items.push(value(rest, depth + 1)?);
                Ok(())
            })?;
            Ok(Json::List(items))
        }
        Some('t') => eat(rest, "true").map(|()| Json::Bool(true)),
        Some('f') => eat(rest, "false").map(|()| Json::Bool(false)),
        Some('n') => eat(rest, "null").map(|()| Json::Null),
        _ => number(rest),
    }
}

fn sequence(
    rest: &mut &str,
    end: char,
    mut item: impl FnMut(&mut &str) -> Result<(), String>,
) -> Result<(), String> {
    *rest = &rest[1..];
    blank(rest);
    if rest.starts_with(end) {
        *rest = &rest[1..];
        return Ok(());
    }
    loop {
        item(rest)?;
        blank(rest);
        let next = rest.chars().next().ok_or("no end")?;
        *rest = &rest[next.len_utf8()..];
        match next {
            ',' => {}
            c if c == end => return Ok(()),
            c => return Err(format!("{c:?} in a sequence")),
        }
    }
}

fn string(rest: &mut &str) -> Result<String, String> {
    eat(rest, "\"")?;
    let mut units = Vec::new();
    let mut chars = rest.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &rest[at + 1..];
                return String::from_utf16(&units).map_err(|e| e.to_string());
            }
            '\\' => units.push(match chars.next().map(|(_, c)| c) {
                Some('u') => {
                    let hex: String = chars.by_ref().take(4).map(|(_, c)| c).collect();
                    u16::from_str_radix(&hex, 16).map_err(|_| format!("\\u{hex}"))?
                }
                Some('n') => 10,
                Some('r') => 13,
                Some('t') => 9,
                Some('b') => 8,
                Some('f') => 12,
                Some(c @ ('"' | '\\' | '/')) => u16::try_from(u32::from(c)).unwrap_or_default(),
                other => return Err(format!("\\{other:?}")),
            }),
            c if c < ' ' => return Err(format!("{c:?} in a string")),
            c => units.extend_from_slice(c.encode_utf16(&mut [0; 2])),
        }
    }
    Err("a string without end".to_owned())
}

fn number(rest: &mut &str) -> Result<Json, String> {
    let length = rest
        .find(|c: char| !"+-.eE0123456789".contains(c))
        .unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(length);
    *rest = behind;
    let plain = !digits.starts_with(['+', '.']) && !digits.ends_with('.');
    let parsed = digits.parse().ok().filter(|_| plain);
    parsed
        .map(Json::Number)
        .ok_or_else(|| format!("{digits:?} for a value"))
}

fn eat(rest: &mut &str, what: &str) -> Result<(), String> {
    *rest = rest
        .strip_prefix(what)
        .ok_or_else(|| format!("no {what:?} before {rest:?}"))?;
    Ok(())
}

fn blank(rest: &mut &str) {
    *rest = rest.trim_start_matches([' ', '\t', '\n', '\r']);
}

#[test]
fn the_json_reader_reads_json_and_nothing_else() {
    let json =
        Json::parse(r#" {"a": [1, -2.5e3, true, null, {}], "b": "x\"\\\u00e9\n"} "#).unwrap();
    assert_eq!(json.at("b").text(), Some("x\"\\é\n"));
    assert!(
        matches!(json.at("a"), Json::List(items) if items.len() == 5 && items[1] == Json::Number(-2500.0))
    );
    for bad in [
        "",
        "{",
        "{\"a\":1,}",
        "[1 2]",
        "\"\u{1}\"",
        "\"\\x\"",
        "01x",
        "{\"a\":1}{",
        "{a:1}",
        "{\"a\":1,\"a\":2}",
    ] {
        assert!(Json::parse(bad).is_err(), "{bad}");
    }
}
