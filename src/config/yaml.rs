//! YAML as a tree, and the line of each part of it.
//!
//! `serde_yaml` gives no spans, but its errors have a line: to find the line of a field, the text is parsed again by a
//! visitor that fails there. No input makes it panic, and the memory of the tree, with aliases expanded, is bounded.

use std::{cell::Cell, collections::HashSet, fmt};

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess,
    SeqAccess, Visitor,
};

/// A node of the tree. Mappings keep their order; merge keys are already applied.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~`, or an empty value.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A whole number; one that is too large becomes the largest.
    Whole(i128),
    /// A number with a fraction or exponent; may be infinite or NaN.
    Decimal(f64),
    /// Any other scalar, and every scalar in quotes.
    Text(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping; its keys are unique.
    Map(Vec<(String, Value)>),
}

/// From the root down to a value.
pub type Path = Vec<Step>;

/// One step down.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

/// The result of parsing a text.
pub struct Tree {
    /// The first document.
    pub root: Value,
    /// Whether other documents follow.
    pub more: bool,
}

/// A syntax error.
pub struct SyntaxError {
    /// Counted from 1.
    pub line: Option<usize>,
    /// The message, which may contain a path and parts of the text.
    pub sentence: String,
}

/// Parses the first document of a text; an empty text is a `Null`.
pub fn parse(text: &str) -> Result<Tree, SyntaxError> {
    check_depth(text)?;
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let budget = Cell::new(MAX_TREE);
    let root = match documents.next() {
        Some(first) => Build { budget: &budget }
            .deserialize(first)
            .map_err(|error| syntax_error(text, &error))?,
        None => Value::Null,
    };
    let more = match documents.next() {
        // A following document is not used, but it must be valid: it may be the rest of a damaged one.
        Some(second) => IgnoredAny::deserialize(second)
            .map(|_| true)
            .map_err(|error| syntax_error(text, &error))?,
        None => false,
    };
    Ok(Tree { root, more })
}

/// The line of a field's key (or list element); for an absent field that of the closest parent in the text.
pub fn line(text: &str, mut path: &[Step]) -> usize {
    while let Some((_, around)) = path.split_last() {
        for merged in [false, true] {
            if let Some(line) = walk(text, path, merged, None) {
                return line;
            }
        }
        path = around;
    }
    1
}

/// A scalar as it is written, so that `1.10` stays `1.10`.
pub fn raw(text: &str, path: &[Step]) -> Option<String> {
    let found = Cell::new(None);
    for merged in [false, true] {
        walk(text, path, merged, Some(&found));
        if let Some(text) = found.take() {
            return Some(text);
        }
    }
    None
}

fn walk(
    text: &str,
    path: &[Step],
    merged: bool,
    raw: Option<&Cell<Option<String>>>,
) -> Option<usize> {
    let first = serde_yaml::Deserializer::from_str(text).next()?;
    let error = Walk { path, merged, raw }.deserialize(first).err()?;
    error.location().map(|location| location.line())
}

/// Refuses deep nesting. `serde_yaml` refuses more than 128 levels, but only after libyaml has spent quadratic time on them
/// (20 s for a mebibyte of `[`). Brackets in strings and comments are counted too: no real text leaves so many open.
fn check_depth(text: &str) -> Result<(), SyntaxError> {
    let mut depth = 0_usize;
    let mut line = 1;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'\n' => line += 1,
            _ => {}
        }
        if depth > MAX_OPEN {
            let sentence = "is nested too deeply".to_owned();
            return Err(SyntaxError {
                line: Some(line),
                sentence,
            });
        }
    }
    Ok(())
}

/// Moves the line of an error from the end of `serde_yaml`'s message to the front, where people and editors expect it.
fn syntax_error(text: &str, error: &serde_yaml::Error) -> SyntaxError {
    let mut sentence = error.to_string();
    let mut line = error.location().map(|location| {
        let place = format!(" at line {} column {}", location.line(), location.column());
        sentence = sentence.replacen(&place, "", 1);
        location.line()
    });
    // an error about a byte that YAML forbids has a position instead of a line
    if let Some((words, position)) = sentence.rsplit_once(" at position ") {
        let position = position.parse().unwrap_or(0);
        let newlines = text.bytes().take(position).filter(|byte| *byte == b'\n');
        line = Some(1 + newlines.count());
        sentence = words.to_owned();
    }
    if let Some(hint) = hint(text, line, &sentence) {
        sentence = hint;
    }
    SyntaxError { line, sentence }
}

/// What probably has to be changed in a line, where libyaml's message does not say it.
fn hint(text: &str, line: Option<usize>, sentence: &str) -> Option<String> {
    let written = text.lines().nth(line?.checked_sub(1)?)?;
    let indent = written.len() - written.trim_start_matches([' ', '\t']).len();
    if written.get(..indent)?.contains('\t') {
        return Some("begins with a tab: YAML is indented with spaces".to_owned());
    }
    if sentence.contains("while scanning an alias") {
        let (_, column) = sentence.rsplit_once(" column ")?;
        let start = column.parse::<usize>().ok()?.checked_sub(1)?;
        let word: String = written
            .chars()
            .skip(start)
            .take_while(|c| !c.is_whitespace() && !matches!(c, ',' | ']' | '}'))
            .collect();
        return Some(format!("{word} must be in quotes: write \"{word}\""));
    }
    if sentence.contains("while parsing a flow")
        && let Some(value) = value_with_braces(written)
    {
        return Some(format!(
            "{value} must be in quotes between braces or brackets: write \"{value}\""
        ));
    }
    if sentence.starts_with("found character that cannot start any token") {
        return Some("a value that begins with @, ` or % must be in quotes".to_owned());
    }
    if sentence.starts_with("mapping values are not allowed") {
        return Some(format!(
            "{sentence}: put a value that holds a colon in quotes, or correct the indentation"
        ));
    }
    None
}

/// The value in a line that holds `${…}` or `{host}`.
fn value_with_braces(line: &str) -> Option<&str> {
    let brace = line.find("${").or_else(|| line.find("{host}"))?;
    let is_edge = |c: char| c.is_whitespace() || c == ',';
    let before = line.get(..brace)?;
    let start = before
        .rfind(|c| is_edge(c) || c == '[')
        .map_or(0, |edge| edge + 1);
    let closed = brace + line.get(brace..)?.find('}')? + 1;
    let rest = line.get(closed..)?;
    let end = rest.find(|c| is_edge(c) || matches!(c, ']' | '}'));
    line.get(start..closed + end.unwrap_or(rest.len()))
}

/// Builds the tree. The size of a node is subtracted from the budget each time it is reached, also through an alias:
/// `serde_yaml` bounds how often aliases are followed, not how large the result is.
#[derive(Clone, Copy)]
struct Build<'b> {
    budget: &'b Cell<usize>,
}

impl Build<'_> {
    fn spend<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.budget.get().checked_sub(bytes + size_of::<Value>());
        self.budget.set(left.unwrap_or(0));
        left.map(|_| ())
            .ok_or_else(|| E::custom("is too large with its aliases expanded"))
    }
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: serde::de::Error>(self, flag: bool) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Flag(flag))
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Whole(number.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Whole(number.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, number: i128) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Whole(number))
    }

    fn visit_u128<E: serde::de::Error>(self, number: u128) -> Result<Value, E> {
        self.spend(0)?;
        Ok(Value::Whole(i128::try_from(number).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Decimal(number))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Value, E> {
        self.spend(text.len())
            .map(|()| Value::Text(text.to_owned()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.spend(0).map(|()| Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(A::Error::custom(
            "tags (words that begin with `!`) are not supported",
        ))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.spend(0)?;
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key_seed(FreshKey { seen: &mut seen })? {
            self.spend(2 * key.len())?;
            let value = map.next_value_seed(self)?;
            if key != MERGE {
                entries.push((key, value));
                continue;
            }
            let sources = match value {
                Value::List(sources) => sources,
                source => vec![source],
            };
            for source in sources {
                let Value::Map(source) = source else {
                    return Err(A::Error::custom(
                        "`<<` merges a mapping or a list of mappings",
                    ));
                };
                merged.extend(source);
            }
        }
        // a key of the mapping itself wins over a merged one, and an earlier source over a later one
        for (key, value) in merged {
            if seen.insert(key.clone()) {
                entries.push((key, value));
            }
        }
        Ok(Value::Map(entries))
    }
}

/// Reads a key as text and refuses a duplicate.
struct FreshKey<'s> {
    seen: &'s mut HashSet<String>,
}

impl<'de> DeserializeSeed<'de> for FreshKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FreshKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is a plain word")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        if self.seen.insert(key.to_owned()) {
            Ok(key.to_owned())
        } else {
            Err(E::custom(format_args!("duplicate key {key:?}")))
        }
    }
}

/// Follows a path through the text and fails at its end, because the error has the line. `Ok` means not found.
#[derive(Clone, Copy)]
struct Walk<'p> {
    path: &'p [Step],
    /// Whether merge keys are followed.
    merged: bool,
    /// Where to store the scalar at the end of the path; `None` = only its line is wanted.
    raw: Option<&'p Cell<Option<String>>>,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match (self.path, self.raw) {
            ([], None) => deserializer.deserialize_any(Stop),
            ([], Some(raw)) => deserializer.deserialize_str(Keep(raw)),
            _ => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i128<E>(self, _: i128) -> Result<(), E> {
        Ok(())
    }

    fn visit_u128<E>(self, _: u128) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut at = 0;
        loop {
            let more = match self.path.split_first() {
                Some((Step::Index(index), path)) if *index == at => {
                    items.next_element_seed(Walk { path, ..self })?.is_some()
                }
                // a list of mappings below a merge key
                Some((Step::Key(_), _)) => items.next_element_seed(self)?.is_some(),
                _ => items.next_element::<IgnoredAny>()?.is_some(),
            };
            if !more {
                return Ok(());
            }
            at += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(WalkKey(self))? {
            match self.path.split_first() {
                Some((Step::Key(wanted), path)) if *wanted == key => {
                    map.next_value_seed(Walk { path, ..self })?;
                }
                Some(_) if self.merged && key == MERGE => map.next_value_seed(self)?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A key on the path; fails if the path ends at it.
struct WalkKey<'p>(Walk<'p>);

impl<'de> DeserializeSeed<'de> for WalkKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for WalkKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        match self.0.path {
            [Step::Key(wanted)] if wanted == key && self.0.raw.is_none() => Err(E::custom("here")),
            _ => Ok(key.to_owned()),
        }
    }
}

/// Accepts no value, so that any value is an error with its line.
struct Stop;

impl Visitor<'_> for Stop {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing")
    }
}

/// Stores a scalar as it is written.
struct Keep<'c>(&'c Cell<Option<String>>);

impl Visitor<'_> for Keep<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a scalar")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.set(Some(text.to_owned()));
        Ok(())
    }
}

/// Bounds the bytes of the tree, aliases expanded: sixteen times the largest text.
const MAX_TREE: usize = 16 * 1024 * 1024;
/// Bounds the brackets that are open at the same time: twice the nesting that `serde_yaml` accepts.
const MAX_OPEN: usize = 256;
const MERGE: &str = "<<";

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Step {
        Step::Key(name.to_owned())
    }

    fn root(text: &str) -> Value {
        match parse(text) {
            Ok(tree) => tree.root,
            Err(error) => panic!("{text}: {}", error.sentence),
        }
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn scalars_are_what_yaml_says() {
        let cases = [
            ("~", Value::Null),
            ("", Value::Null),
            ("true", Value::Flag(true)),
            ("yes", text("yes")),
            ("-7", Value::Whole(-7)),
            ("0x10", Value::Whole(16)),
            ("007", text("007")),
            ("10.0", Value::Decimal(10.0)),
            ("'10'", text("10")),
            (":80", text(":80")),
            ("http://a:80/b", text("http://a:80/b")),
            (
                "340282366920938463463374607431768211455",
                Value::Whole(i128::MAX),
            ),
        ];
        for (written, expected) in cases {
            assert_eq!(root(written), expected, "{written}");
        }
    }

    #[test]
    fn keys_of_a_mapping_win_over_merged_ones() {
        let one = Value::Map(vec![
            ("a".to_owned(), Value::Whole(1)),
            ("b".to_owned(), Value::Whole(2)),
        ]);
        for merge in [
            "{<<: {a: 9, b: 2}, a: 1}",
            "{a: 1, <<: [{b: 2}, {a: 9, b: 9}]}",
        ] {
            assert_eq!(root(merge), one, "{merge}");
        }
        assert!(parse("{<<: 3}").is_err());
        assert!(parse("{<<: [[]]}").is_err());
    }

    #[test]
    fn errors_know_their_line() {
        let cases = [
            ("a: 1\nb: 2\na: 3\n", 3, "duplicate key \"a\""),
            (
                "a:\n  - {b: 1,\n     b: 2}\n",
                3,
                "a[0]: duplicate key \"b\"",
            ),
            ("a: 1\n b: 2\n", 2, "mapping values"),
            ("a: [1, 2\n", 2, "did not find expected"),
            ("a: 1\r\nb: \"x\r\n", 3, "unexpected end of stream"),
            ("a: *none\n", 1, "unknown anchor"),
            ("a: 1\nb: !secret x\n", 2, "tags"),
            ("a: 1\n? [b]\n: 2\n", 2, "a key that is a plain word"),
            ("a: 1\nb: \u{1}\n", 2, "control characters"),
            ("a: 1\n---\n{\n", 4, "did not find expected"),
            ("a: 1\n]\n", 2, "did not find expected"),
            ("a: &a [*a]\n", 1, "recursion limit"),
        ];
        for (text, line, sentence) in cases {
            let Err(error) = parse(text) else {
                panic!("{text:?} was accepted");
            };
            assert_eq!(error.line, Some(line), "{text:?}: {}", error.sentence);
            assert!(
                error.sentence.contains(sentence),
                "{text:?}: {}",
                error.sentence
            );
        }
    }

    #[test]
    fn common_mistakes_get_a_suggestion() {
        for (text, line, sentence) in [
            ("a:\n\tb: 1\n", 2, "begins with a tab"),
            ("a:\n- b: 1\n\tc: 2\n", 3, "begins with a tab"),
            ("a:\n  \t- b\n  - c\n", 2, "begins with a tab"),
            ("a: [*]", 1, "* must be in quotes: write \"*\""),
            ("a:\n  - *\n", 2, "write \"*\""),
            ("a: [x, *.e.example, y]", 1, "write \"*.e.example\""),
            ("a: {b: ${X:-3}}", 1, "write \"${X:-3}\""),
            ("a: {b: ${X}, c: 1}", 1, "write \"${X}\""),
            ("a: [${X}]", 1, "write \"${X}\""),
            ("a: {b: x/${X}/y, c: 1}", 1, "write \"x/${X}/y\""),
            (
                "a: {b: https://{host}, c: 1}",
                1,
                "write \"https://{host}\"",
            ),
            (
                "a: {b: https://{host}:80/c}",
                1,
                "write \"https://{host}:80/c\"",
            ),
            ("a: @b", 1, "begins with @"),
            ("a: `b`", 1, "must be in quotes"),
            ("a: b: c", 1, "holds a colon in quotes"),
        ] {
            let error = parse(text).err().expect(text);
            assert_eq!(error.line, Some(line), "{text:?}: {}", error.sentence);
            assert!(
                error.sentence.contains(sentence),
                "{text:?}: {}",
                error.sentence
            );
        }
    }

    #[test]
    fn lines_are_found_in_every_style() {
        let text = "\
x-base: &base
  timeout: 1
list:
- a: 1
  b: 2
-
  a: 3
  'b' : |
    list: 9
    b: 9
  c: {d: 1,
      e: [1,
          2]}
# a: 1
merged:
  <<: *base
  own: 1
several:
  <<: [{q: 1}, *base]
alias: *base
scalar: 7
";
        let cases: Vec<(Vec<Step>, usize)> = vec![
            (vec![key("list")], 3),
            (vec![key("list"), Step::Index(0)], 4),
            (vec![key("list"), Step::Index(0), key("b")], 5),
            (vec![key("list"), Step::Index(1)], 7),
            (vec![key("list"), Step::Index(1), key("a")], 7),
            (vec![key("list"), Step::Index(1), key("b")], 8),
            (vec![key("list"), Step::Index(1), key("c")], 11),
            (vec![key("list"), Step::Index(1), key("c"), key("e")], 12),
            (
                vec![
                    key("list"),
                    Step::Index(1),
                    key("c"),
                    key("e"),
                    Step::Index(1),
                ],
                13,
            ),
            (vec![key("merged"), key("own")], 17),
            (vec![key("merged"), key("timeout")], 2),
            (vec![key("several"), key("q")], 19),
            (vec![key("several"), key("timeout")], 2),
            (vec![key("alias"), key("timeout")], 2),
            // an absent field has the line of its parent
            (vec![key("list"), Step::Index(1), key("none")], 7),
            (vec![key("list"), Step::Index(7)], 3),
            (vec![key("scalar"), key("none")], 21),
            (vec![key("none"), key("none")], 1),
            (vec![], 1),
        ];
        for (path, expected) in cases {
            assert_eq!(line(text, &path), expected, "{path:?}");
            assert_eq!(
                line(&text.replace('\n', "\r\n"), &path),
                expected,
                "{path:?} with CRLF"
            );
        }
    }

    #[test]
    fn scalars_are_given_as_written() {
        let text = "x: &x {v: 1.10}\na: 007\nb: [True, 0x1F]\nc: {<<: *x}\nd: {}\n";
        let cases: Vec<(Vec<Step>, Option<&str>)> = vec![
            (vec![key("x"), key("v")], Some("1.10")),
            (vec![key("a")], Some("007")),
            (vec![key("b"), Step::Index(0)], Some("True")),
            (vec![key("b"), Step::Index(1)], Some("0x1F")),
            (vec![key("c"), key("v")], Some("1.10")),
            (vec![key("d")], None),
            (vec![key("e")], None),
        ];
        for (path, expected) in cases {
            assert_eq!(raw(text, &path).as_deref(), expected, "{path:?}");
        }
    }

    #[test]
    fn alias_bombs_and_deep_nesting_are_refused() {
        let laughs: Vec<String> = (1..12)
            .map(|n| {
                format!(
                    "a{n}: &a{n} [{}]",
                    vec![format!("*a{}", n - 1); 9].join(", ")
                )
            })
            .collect();
        let laughs = format!("a0: &a0 [lol, lol, lol]\n{}", laughs.join("\n"));
        let wide = format!(
            "a: &a {}\nb: [{}]\n",
            "x".repeat(100_000),
            "*a, ".repeat(10_000)
        );
        let merges = format!(
            "a: &a {{k: {}}}\nb: [{}]\n",
            "x".repeat(100_000),
            "{<<: *a}, ".repeat(10_000)
        );
        for bomb in [laughs, wide, merges] {
            let error = parse(&bomb).err().map(|error| error.sentence);
            let error = error.unwrap_or_default();
            assert!(
                error.contains("aliases") || error.contains("repetition"),
                "{error}"
            );
        }
        for nest in ["[", "{a: ", "- ", "? "] {
            assert!(parse(&nest.repeat(5_000)).is_err(), "{nest}");
        }
    }
}
