//! A mapping of known keys: each is read by name and type, and a key that was not asked for is an unknown key. Every method
//! returns a value or its default, and records mistakes in the document.

use std::{cell::RefCell, ops::RangeInclusive, time::Duration};

use super::Field;
use crate::config::{
    keys,
    scalars::Unit,
    wording::{nearest, quote},
    yaml::{Step, Value},
};

/// A mapping whose keys are read by name.
pub struct Section<'a> {
    pub(super) field: Field<'a>,
    pub(super) entries: &'a [(String, Value)],
    pub(super) asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    /// The mapping itself.
    pub fn field(&self) -> &Field<'a> {
        &self.field
    }

    /// The value of a key; `None` where it is absent or `null`.
    pub fn get(&self, key: &'static str) -> Option<Field<'a>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        let (_, value) = self.entries.iter().find(|(name, _)| name == key)?;
        let field = self.field.below(Step::Key(key.to_owned()), value);
        (!field.is_null()).then_some(field)
    }

    /// The field of a key, present or not: for messages about a missing key.
    pub fn place(&self, key: &'static str) -> Field<'a> {
        self.field.below(Step::Key(key.to_owned()), &Value::Null)
    }

    /// Whether the mapping has no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records an error at a key, or at one element of its list.
    pub fn complain_at(&self, key: &'static str, index: Option<usize>, sentence: String) {
        let field = self.place(key);
        match index {
            Some(index) => field
                .below(Step::Index(index), &Value::Null)
                .complain(sentence),
            None => field.complain(sentence),
        }
    }

    /// Reads a mapping below this one; an absent one is read as empty, so that defaults are written in one place.
    pub fn section<T>(&self, key: &'static str, read: impl FnOnce(&Section<'a>) -> T) -> T {
        self.get(key)
            .unwrap_or_else(|| self.place(key))
            .section(read)
    }

    /// A string, `""` where there is none.
    pub fn text(&self, key: &'static str) -> String {
        self.get(key)
            .and_then(|field| field.text())
            .unwrap_or_default()
    }

    /// A boolean.
    pub fn flag(&self, key: &'static str, default: bool) -> bool {
        self.get(key)
            .and_then(|field| field.flag())
            .unwrap_or(default)
    }

    /// A whole number.
    pub fn whole(
        &self,
        key: &'static str,
        unit: Unit,
        default: i64,
        range: &RangeInclusive<i64>,
    ) -> i64 {
        self.get(key)
            .and_then(|field| field.whole(unit, range))
            .unwrap_or(default)
    }

    /// A number of seconds; 0 = `None`. Less than a millisecond counts as one, because deadlines are kept in milliseconds.
    pub fn time(&self, key: &'static str, default: f64) -> Option<Duration> {
        self.time_or(key, duration(default))
    }

    /// Like [`Section::time`], with a default that may be `None`.
    pub fn time_or(&self, key: &'static str, default: Option<Duration>) -> Option<Duration> {
        let written = self
            .get(key)
            .and_then(|field| field.seconds(&(0.0..=MAX_SECONDS)));
        written.map_or(default, duration)
    }

    /// A string read by `parse`, whose error is recorded.
    pub fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.get(key)?.parsed(parse)
    }

    /// A list of strings, each read by `parse`.
    pub fn parsed_list<T>(
        &self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        let items = self.get(key).map_or_else(Vec::new, |field| field.items());
        items
            .iter()
            .filter_map(|item| item.parsed(&parse))
            .collect()
    }

    /// A list of strings.
    pub fn words(&self, key: &'static str, default: &[String]) -> Vec<String> {
        match self.get(key) {
            Some(field) => field.items().iter().filter_map(Field::text).collect(),
            None => default.to_vec(),
        }
    }

    /// One of a few words, in any case.
    pub fn one_of<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        self.parsed(key, |text| {
            let chosen = choices
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(text));
            chosen.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
                format!("must be one of {}, got {}", words.join(", "), quote(text))
            })
        })
    }

    pub(super) fn complain_of_unknown_keys(&self) {
        let asked = self.asked.borrow();
        for (key, value) in self.entries {
            if key.starts_with("x-") || asked.contains(&key.as_str()) {
                continue;
            }
            let sentence = match (keys::home(key), nearest(key, &asked)) {
                (Some(home), _) => format!("unknown key here; `{key}` belongs to {home}"),
                (None, Some(meant)) => format!("unknown key, did you mean `{meant}`?"),
                (None, None) => format!("unknown key; known here: {}", asked.join(", ")),
            };
            self.field
                .below(Step::Key(key.clone()), value)
                .complain(sentence);
        }
    }
}

fn duration(seconds: f64) -> Option<Duration> {
    (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.max(0.001)))
}

/// Bounds a time: ten years in seconds, so that no sum with a clock overflows; 0 means no limit.
pub const MAX_SECONDS: f64 = 315_360_000.0;
