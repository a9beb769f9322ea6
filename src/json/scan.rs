//! Parses text to values, and skips values that need not be parsed.

use std::ops::Range;

use serde_json::{Map, Number, Value};

use super::marked;

/// The most levels of nested arrays and objects, as in most readers.
const MOST_NESTED: usize = 128;
/// The words that Python writes for numbers that are not finite.
const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// A position in a text.
pub(super) struct Scanner<'a> {
    text: &'a str,
    pub at: usize,
    nested: usize,
}

/// Parses the text of a number; `None` when it is not one.
pub(super) fn number(text: &str) -> Option<Value> {
    if WORDS.contains(&text) {
        return Some(marked(text));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = digits
        .bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.starts_with(|first: char| first.is_ascii_digit());
    match serde_json::from_str::<Number>(text) {
        // A whole number that was read as a float has lost digits.
        Ok(number) if is_number && !(plain && number.is_f64()) => Some(Value::Number(number)),
        Ok(_) if is_number => Some(marked(text)),
        // Valid, but too large.
        Err(error) if is_number && error.to_string().starts_with("number out of range") => {
            Some(marked(text))
        }
        _ => None,
    }
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            nested: 0,
        }
    }

    /// Parses the text, which must hold one value.
    pub fn whole(mut self) -> Result<Value, String> {
        self.space();
        let value = self.value()?;
        self.space();
        if self.at == self.text.len() {
            Ok(value)
        } else {
            Err(self.wrong("wanted the end", self.at))
        }
    }

    /// Returns the text that is still to be read.
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    pub fn space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skips `byte` and returns true if it comes next.
    pub fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn value(&mut self) -> Result<Value, String> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Value::String),
            _ => self.word(),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value, String>) -> Result<Value, String> {
        if self.nested == MOST_NESTED {
            return Err(self.wrong("nested too deep", self.at));
        }
        self.nested += 1;
        let value = read(self);
        self.nested -= 1;
        value
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut fields = Map::new();
        self.at += 1;
        self.space();
        if self.take(b'}') {
            return Ok(Value::Object(fields));
        }
        loop {
            self.space();
            let key = self.key()?;
            self.space();
            if !self.take(b':') {
                return Err(self.wrong("wanted a colon", self.at));
            }
            self.space();
            let value = self.value()?;
            fields.insert(key, value);
            if self.ends(b'}')? {
                return Ok(Value::Object(fields));
            }
        }
    }

    fn array(&mut self) -> Result<Value, String> {
        let mut items = Vec::new();
        self.at += 1;
        self.space();
        if self.take(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            self.space();
            items.push(self.value()?);
            if self.ends(b']')? {
                return Ok(Value::Array(items));
            }
        }
    }

    /// Skips a comma, or `end`; returns true if the list ends.
    fn ends(&mut self, end: u8) -> Result<bool, String> {
        self.space();
        match self.take(end) {
            true => Ok(true),
            false if self.take(b',') => Ok(false),
            false => Err(self.wrong(&format!("wanted a comma or {}", char::from(end)), self.at)),
        }
    }

    pub fn key(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(b'"') => self.string(),
            _ => Err(self.wrong("wanted a key in quotes", self.at)),
        }
    }

    fn string(&mut self) -> Result<String, String> {
        let span = self.string_span();
        let quoted = self.text.get(span.clone()).unwrap_or_default();
        serde_json::from_str(quoted).map_err(|_| self.wrong("no text in quotes", span.start))
    }

    fn string_span(&mut self) -> Range<usize> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(byte) = bytes.get(self.at) {
            self.at += match byte {
                b'\\' => 2,
                _ => 1,
            };
            if *byte == b'"' {
                break;
            }
        }
        // An escaped character may be longer than a byte, or missing.
        while !self.text.is_char_boundary(self.at.min(self.text.len())) {
            self.at += 1;
        }
        self.at = self.at.min(self.text.len());
        start..self.at
    }

    fn word(&mut self) -> Result<Value, String> {
        let start = self.at;
        let rest = self.rest();
        let word = rest.split(|part| !is_of_word(part)).next();
        let word = word.unwrap_or_default();
        self.at += word.len();
        match word {
            "null" => Ok(Value::Null),
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            "" => Err(self.wrong("wanted a value", start)),
            _ => number(word).ok_or_else(|| self.wrong("no value", start)),
        }
    }

    /// Skips a value of a text that was parsed before; returns its range.
    pub fn over(&mut self) -> Range<usize> {
        let (start, mut open) = (self.at, 0);
        loop {
            match self.peek() {
                Some(b'"') => drop(self.string_span()),
                Some(b'{' | b'[') => {
                    open += 1;
                    self.at += 1;
                }
                Some(b'}' | b']') => {
                    open -= 1;
                    self.at += 1;
                }
                Some(b',' | b':' | b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(_) => drop(self.word()),
                None => return start..self.at,
            }
            if open == 0 {
                return start..self.at;
            }
        }
    }

    fn wrong(&self, what: &str, at: usize) -> String {
        let before = self.text.get(..at).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let own = before.rsplit('\n').next().unwrap_or_default();
        format!("{what} at line {line} column {}", own.chars().count() + 1)
    }
}

/// True if a character may stand in a number or in `true`, `false` and `null`.
fn is_of_word(part: char) -> bool {
    part.is_ascii_alphanumeric() || matches!(part, '+' | '-' | '.' | '_')
}
