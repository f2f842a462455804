//! The environment's variables that win over the file: how they are read, and what is logged about them.
//!
//! A variable that is set has an effect on the line that is logged at start, or is a mistake that names the variable.

use std::fmt::{self, Write as _};

use crate::config::{document::Document, scalars::boolean_or_digit, wording::quote};

/// Reads variables and records what they change.
pub struct Effects<'a> {
    document: &'a Document<'a>,
    /// What they change, as one line; empty = nothing.
    pub line: String,
}

impl<'a> Effects<'a> {
    /// Those of a document's environment, of which nothing was read.
    pub fn new(document: &'a Document<'a>) -> Effects<'a> {
        Effects {
            document,
            line: String::new(),
        }
    }

    /// The value of the first of these variables that is set and valid; `parse` returns the value and how it is shown.
    pub fn read<T>(
        &mut self,
        names: &[&str],
        field: &str,
        parse: impl Fn(&str) -> Result<(T, String), String>,
    ) -> Option<T> {
        names.iter().find_map(|name| {
            let text = self.document.variable(name)?;
            match parse(text.trim()) {
                Ok((value, shown)) => {
                    self.note(name, &text, field, &shown);
                    Some(value)
                }
                Err(sentence) => {
                    self.document.complain_of(name, &sentence);
                    None
                }
            }
        })
    }

    /// Whether DEBUG is true. Many programs use this variable, so another value is a warning and not an error.
    pub fn debug(&mut self) -> bool {
        let Some(text) = self.document.variable("DEBUG") else {
            return false;
        };
        let debug = boolean_or_digit(&text);
        match debug {
            Some(true) => self.note("DEBUG", &text, "log.level", "debug"),
            Some(false) => {}
            None => self.document.warn(format!(
                "DEBUG={} is neither true nor false and is ignored",
                quote(&text)
            )),
        }
        debug == Some(true)
    }

    fn note(&mut self, name: &str, text: &str, field: &str, shown: &str) {
        self.tell(format_args!("{name}={} -> {field} {shown}", text.trim()));
    }

    /// Adds an effect to the line.
    pub fn tell(&mut self, effect: fmt::Arguments<'_>) {
        let separator = if self.line.is_empty() { "" } else { ", " };
        let _ = write!(self.line, "{separator}{effect}");
    }
}

/// A port, and how it is shown.
pub fn port(text: &str) -> Result<(u16, String), String> {
    match text.parse() {
        Ok(port) => Ok((port, format!(":{port}"))),
        Err(_) => Err("must be a port from 0 to 65535".to_owned()),
    }
}

/// A number of threads, `most` where it is larger.
pub fn threads(text: &str, most: usize) -> Result<(usize, String), String> {
    match text.parse::<usize>() {
        Ok(threads) if threads > 0 => Ok((threads.min(most), threads.min(most).to_string())),
        _ => Err(format!(
            "must be a whole number from 1 on, got {}",
            quote(text)
        )),
    }
}

/// Whether a log format is JSON.
pub fn format_is_json(text: &str) -> Result<(bool, String), String> {
    match text.to_ascii_lowercase().as_str() {
        "json" => Ok((true, "json".to_owned())),
        "text" => Ok((false, "text".to_owned())),
        _ => Err(format!("must be text or json, got {}", quote(text))),
    }
}
