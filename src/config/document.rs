//! Reads the YAML of a configuration and reports every mistake in it with line and path.
//!
//! A [`Document`] is the tree as written; [`Section`] and [`Field`] are typed views of it that never fail: a mistake is
//! recorded and a default is used instead, so that one run finds every mistake. No input makes it panic.

mod section;

use std::{
    cell::RefCell, fmt, fs::File, io::Read as _, ops::RangeInclusive, path::Path as FilePath,
};

pub use self::section::{MAX_SECONDS, Section};
use crate::config::{
    scalars::{self, Unit, boolean, decimal},
    wording::{one_line, plain, quote, shorten},
    yaml::{self, Path, Step, SyntaxError, Tree, Value},
};

/// Looks up environment variables, for `${NAME}` and for the program's own; a parameter, so that tests are pure.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A YAML document, and the errors and warnings about it so far.
pub struct Document<'a> {
    name: String,
    text: &'a str,
    root: Value,
    environment: Environment<'a>,
    errors: RefCell<Vec<Remark>>,
    warnings: RefCell<Vec<Remark>>,
}

struct Remark {
    path: Path,
    sentence: String,
}

/// One value and its path.
#[derive(Clone)]
pub struct Field<'a> {
    document: &'a Document<'a>,
    path: Path,
    value: &'a Value,
}

/// Reads a file of at most 1 MiB. Errors are one line that begins with the file's name.
pub fn read(path: &FilePath) -> Result<String, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("{name}: {}", plain(&error)))?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name}: {}", plain(&error)))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("{name}: {TOO_LARGE}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error
            .as_bytes()
            .iter()
            .take(good)
            .filter(|byte| **byte == b'\n')
            .count();
        format!("{name}:{line}: must be UTF-8")
    })
}

impl<'a> Document<'a> {
    /// Parses the first document of `text`; `name` is its name in messages. An error is one line with the line's number.
    pub fn parse(
        name: &str,
        text: &'a str,
        environment: Environment<'a>,
    ) -> Result<Document<'a>, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.len() as u64 > MAX_BYTES {
            return Err(format!("{name}: {TOO_LARGE}"));
        }
        let Tree { root, more } = yaml::parse(text).map_err(|error| {
            let SyntaxError { line, sentence } = error;
            one_line(&match line {
                Some(line) => format!("{name}:{line}: {sentence}"),
                None => format!("{name}: {sentence}"),
            })
        })?;
        let document = Document {
            name: name.to_owned(),
            text,
            root,
            environment,
            errors: RefCell::default(),
            warnings: RefCell::default(),
        };
        if more {
            document.warn("only the first of several documents is used".to_owned());
        }
        Ok(document)
    }

    /// Reads the whole document by `read`, then reports every key that was not asked for.
    pub fn read<T>(&'a self, read: impl FnOnce(&Section<'a>) -> T) -> T {
        let root = Field {
            document: self,
            path: Vec::new(),
            value: &self.root,
        };
        root.section(read)
    }

    /// The value of an environment variable; unset and empty are the same.
    pub fn variable(&self, name: &str) -> Option<String> {
        (self.environment)(name).filter(|value| !value.is_empty())
    }

    /// Records an error in something outside of the document, such as an environment variable.
    pub fn complain_of(&self, name: &str, sentence: &str) {
        self.errors.borrow_mut().push(Remark {
            path: Vec::new(),
            sentence: format!("{name}: {sentence}"),
        });
    }

    /// Records a warning about no particular field.
    pub fn warn(&self, sentence: String) {
        let path = Vec::new();
        self.warnings.borrow_mut().push(Remark { path, sentence });
    }

    /// How many errors were found so far.
    pub fn error_count(&self) -> usize {
        self.errors.borrow().len()
    }

    /// The warnings, or all errors in the order of their lines.
    pub fn finish(self) -> Result<Vec<String>, Vec<String>> {
        let errors = self.errors.take();
        if errors.is_empty() {
            return Ok(self.render(&self.warnings.take()));
        }
        let unsaid = errors.len().saturating_sub(MAX_ERRORS);
        let mut lines = self.render(&errors);
        if unsaid > 0 {
            lines.push(format!("{}: and {unsaid} more errors", self.name));
        }
        Err(lines)
    }

    /// Messages such as `config.yaml:12: routes[1].target: sentence`; finding a line costs a parse, so their number is bounded.
    fn render(&self, remarks: &[Remark]) -> Vec<String> {
        let mut lines: Vec<(usize, String)> = remarks
            .iter()
            .take(MAX_ERRORS)
            .map(|Remark { path, sentence }| {
                if path.is_empty() {
                    return (0, one_line(&format!("{}: {sentence}", self.name)));
                }
                let line = yaml::line(self.text, path);
                let text = format!("{}:{line}: {}: {sentence}", self.name, Shown(path));
                (line, one_line(&text))
            })
            .collect();
        lines.sort_by_key(|(line, _)| *line);
        lines.into_iter().map(|(_, text)| text).collect()
    }
}

impl<'a> Field<'a> {
    /// Records an error at this field.
    pub fn complain(&self, sentence: impl Into<String>) {
        self.document.errors.borrow_mut().push(Remark {
            path: self.path.clone(),
            sentence: sentence.into(),
        });
    }

    /// Records a warning at this field.
    pub fn warn(&self, sentence: impl Into<String>) {
        self.document.warnings.borrow_mut().push(Remark {
            path: self.path.clone(),
            sentence: sentence.into(),
        });
    }

    /// The path as messages show it: `routes[1]`.
    pub fn shown(&self) -> String {
        Shown(&self.path).to_string()
    }

    /// How many errors were found in the whole document so far.
    pub fn error_count(&self) -> usize {
        self.document.error_count()
    }

    /// The boolean, where one is written.
    pub fn is_flag(&self) -> Option<bool> {
        match self.value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }

    /// True for `null`, `~` and nothing at all.
    pub fn is_null(&self) -> bool {
        *self.value == Value::Null
    }

    /// True for a mapping of keys.
    pub fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Map(_))
    }

    /// Reads a mapping; where there is none that is said, and `read` sees an empty one whose lacks are not held against it.
    pub fn section<T>(&self, read: impl FnOnce(&Section<'a>) -> T) -> T {
        let (entries, mapping): (&[_], _) = match self.value {
            Value::Map(entries) => (entries, true),
            Value::Null => (&[], true),
            _ => (&[], false),
        };
        if !mapping {
            self.complain(format!("must be a mapping of keys, got {}", self.kind()));
        }
        let so_far = self.document.error_count();
        let section = Section {
            field: self.clone(),
            entries,
            asked: RefCell::default(),
        };
        let value = read(&section);
        section.complain_of_unknown_keys();
        if !mapping {
            self.document.errors.borrow_mut().truncate(so_far);
        }
        value
    }

    /// The elements of a list; a single value is a list of one, and `null` an empty list.
    pub fn items(&self) -> Vec<Field<'a>> {
        match self.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, value)| self.below(Step::Index(index), value))
                .collect(),
            Value::Null => Vec::new(),
            _ => vec![self.clone()],
        }
    }

    /// The entries of a mapping with arbitrary keys.
    pub fn entries(&self) -> Vec<(&'a str, Field<'a>)> {
        match self.value {
            Value::Map(entries) => entries
                .iter()
                .map(|(key, value)| (key.as_str(), self.below(Step::Key(key.clone()), value)))
                .collect(),
            Value::Null => Vec::new(),
            _ => {
                self.complain(format!("must be a mapping of keys, got {}", self.kind()));
                Vec::new()
            }
        }
    }

    /// A string, with its variables replaced; a number or boolean as it is written.
    pub fn text(&self) -> Option<String> {
        match self.value {
            Value::Text(text) => self.replace(text),
            Value::Flag(_) | Value::Whole(_) | Value::Decimal(_) => {
                yaml::raw(self.document.text, &self.path)
            }
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.complain(format!("must be a string, got {}", self.kind()));
                None
            }
        }
    }

    /// `true` or `false`, or one of YAML 1.1's words for them.
    pub fn flag(&self) -> Option<bool> {
        if let Value::Flag(flag) = self.value {
            return Some(*flag);
        }
        let flag = match self.value {
            Value::Text(text) => boolean(&self.replace(text)?),
            _ => None,
        };
        if flag.is_none() {
            self.complain(format!("must be true or false, got {}", self.kind()));
        }
        flag
    }

    /// A whole number; `10.0` and `"10"` are accepted too.
    pub fn whole(&self, unit: Unit, range: &RangeInclusive<i64>) -> Option<i64> {
        let number = self.number(unit)?;
        if number.fract() != 0.0 {
            self.complain(format!("must be a whole number, got {number}"));
            return None;
        }
        // a whole number is taken exactly: above 2^53 a float is not exact
        let exact = match self.value {
            Value::Whole(whole) => *whole,
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the cast saturates, the range decides"
            )]
            _ => number as i128,
        };
        match i64::try_from(exact) {
            Ok(whole) if range.contains(&whole) => Some(whole),
            _ if exact < i128::from(*range.start()) => {
                self.complain(format!("must be at least {}, got {number}", range.start()));
                None
            }
            _ => {
                self.complain(format!("must be at most {}, got {number}", range.end()));
                None
            }
        }
    }

    /// A time in seconds.
    pub fn seconds(&self, range: &RangeInclusive<f64>) -> Option<f64> {
        let number = self.number(Unit::Seconds)?;
        if range.contains(&number) {
            return Some(number);
        }
        if number < *range.start() {
            self.complain(format!("must be at least {}, got {number}", range.start()));
        } else {
            self.complain(format!(
                "must be at most {} seconds, got {number}",
                range.end()
            ));
        }
        None
    }

    /// A string read by `parse`, whose error is recorded.
    pub fn parsed<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        parse(&self.text()?)
            .map_err(|sentence| self.complain(sentence))
            .ok()
    }

    fn number(&self, unit: Unit) -> Option<f64> {
        let text = match self.value {
            #[expect(
                clippy::cast_precision_loss,
                reason = "used for range checks only; `whole` takes the exact number"
            )]
            Value::Whole(whole) => return Some(*whole as f64),
            Value::Decimal(decimal) if decimal.is_finite() => return Some(*decimal),
            Value::Text(text) => self.replace(text)?,
            _ => {
                self.complain(format!("must be a number, got {}", self.kind()));
                return None;
            }
        };
        let number = match unit {
            Unit::Seconds => scalars::seconds(&text),
            Unit::Bytes => scalars::bytes(&text),
            Unit::Plain => decimal(&text),
        };
        if number.is_none() {
            self.complain(no_number(&text, unit));
        }
        number
    }

    /// Replaces `${NAME}`, `${NAME:-default}` and `$$`; any other `$` stays.
    fn replace(&self, text: &str) -> Option<String> {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(after) = after.strip_prefix('{') {
                let Some((inside, after)) = after.split_once('}') else {
                    self.complain("holds a ${ without its }; write $$ for a plain $");
                    return None;
                };
                out.push_str(&self.look_up(inside)?);
                rest = after;
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        Some(out)
    }

    fn look_up(&self, inside: &str) -> Option<String> {
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let named = name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !named || name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
            self.complain(format!(
                "holds ${{{}}}, which is not a variable's name; write $$ for a plain $",
                shorten(name)
            ));
            return None;
        }
        if default.is_some_and(|default| default.contains("${")) {
            self.complain(format!(
                "the default of ${{{name}}} cannot hold a variable itself"
            ));
            return None;
        }
        let set = (self.document.environment)(name);
        // as in a shell, `:-` also replaces an empty variable
        let value = match default {
            Some(default) => set
                .filter(|value| !value.is_empty())
                .or_else(|| Some(default.to_owned())),
            None => set,
        };
        if value.is_none() {
            self.complain(format!(
                "the environment variable {} is not set and has no default",
                shorten(name)
            ));
        }
        value
    }

    fn below(&self, step: Step, value: &'a Value) -> Field<'a> {
        let mut path = self.path.clone();
        path.push(step);
        Field {
            document: self.document,
            path,
            value,
        }
    }

    fn kind(&self) -> String {
        match self.value {
            Value::Null => "nothing".to_owned(),
            Value::Flag(flag) => flag.to_string(),
            Value::Whole(number) => number.to_string(),
            Value::Decimal(number) => number.to_string(),
            Value::Text(text) => quote(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }
}

/// The message for a text that is not a number of this unit.
fn no_number(text: &str, unit: Unit) -> String {
    let shown = quote(text);
    let plain = text.trim_start_matches('0');
    if text.starts_with('0') && decimal(plain).is_some() {
        return format!("begins with a zero: write {plain}, not {shown}");
    }
    match unit {
        Unit::Seconds => {
            format!("must be seconds, or a time such as 500ms, 30s or 1m30s, got {shown}")
        }
        Unit::Bytes => format!("must be bytes, or a size such as 64KiB or 10MB, got {shown}"),
        Unit::Plain => format!("must be a number, got {shown}"),
    }
}

/// A path as messages show it: `routes[1].target`.
struct Shown<'p>(&'p [Step]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if at == 0 => f.write_str(&shorten(key))?,
                Step::Key(key) => write!(f, ".{}", shorten(key))?,
            }
        }
        Ok(())
    }
}

/// Bounds the bytes of a configuration; the largest known ones have a hundredth of it.
const MAX_BYTES: u64 = 1024 * 1024;
const TOO_LARGE: &str = "is larger than 1 MiB";
/// Bounds the errors that are shown; each costs a parse or two.
const MAX_ERRORS: usize = 100;
