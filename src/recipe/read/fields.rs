//! Keys and plain values of a mapping, with errors that name the key.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::super::keys::{KEYS, Place, keys_of, nearest};
use super::super::node::{Key, Node, Value};
use super::super::origin::{At, Origin};
use crate::budget::parse_bytes;
use crate::device::Choice;
use crate::error::{Error, Result};

/// A mapping whose keys are all known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    pub(super) origin: Origin<'a>,
    at: At,
    place: Place,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// The keys of `node`, which must be a mapping with no keys but those of `place`.
    pub(super) fn of(origin: Origin<'a>, node: &'a Node, place: Place) -> Result<Self> {
        let Value::Map(entries) = &node.value else {
            let cause = format!("{} must be a mapping, found {}", described(place), node.kind());
            return Err(origin.error(node.at, cause));
        };
        let unknown = entries.iter().find(|(key, _)| keys_of(place).all(|info| info.key != key.text));
        match unknown {
            Some((key, _)) => Err(unknown_key(origin, key, place)),
            None => Ok(Self { origin, at: node.at, place, entries }),
        }
    }

    /// The value of `key`; none when it is absent or empty.
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let (key, node) = self.entries.iter().find(|(known, _)| known.text == key)?;
        let field = Field { origin: self.origin, key: &key.text, key_at: key.at, node };
        Some(field).filter(|field| !matches!(field.node.value, Value::Null))
    }

    /// The value of a key that must be there.
    pub(super) fn need(&self, key: &str) -> Result<Field<'a>> {
        self.get(key).ok_or_else(|| self.error(format!("{} needs the key `{key}`", described(self.place))))
    }

    /// An error about the mapping as a whole.
    pub(super) fn error(&self, cause: impl Display) -> Error {
        self.origin.error(self.at, cause)
    }
}

fn described(place: Place) -> &'static str {
    match place {
        Place::Document => "a recipe",
        Place::Model => "an entry of `models`",
        Place::Slice => "an entry of `slices`",
        Place::Source => "an entry of `sources`",
        Place::Module => "a module",
        Place::Reference | Place::ReferencePath => "a model written as a mapping",
        Place::Tokenizer => "`tokenizer`",
        Place::Condition => "a condition of a parameter",
        Place::Align => "`align`",
        Place::Rename => "a rule of `rename`",
    }
}

fn unknown_key(origin: Origin<'_>, key: &Key, place: Place) -> Error {
    let known = || keys_of(place).map(|info| info.key);
    let word = &key.text;
    if let Some(near) = nearest(word, known()) {
        let cause = format!("unknown key `{word}` in {}, did you mean `{near}`?", described(place));
        return origin.error(key.at, cause);
    }
    let elsewhere = KEYS.iter().find(|info| info.key == word);
    let is_parameter = super::super::methods::METHODS.iter().any(|info| info.parameter(word).is_some());
    let help = match elsewhere {
        Some(info) => format!("`{word}` belongs in {}", described(info.place)),
        None if is_parameter => format!("`{word}` is a parameter: put it under `parameters`"),
        None => format!("known keys are {}", known().collect::<Vec<_>>().join(", ")),
    };
    origin.error_with(key.at, format!("unknown key `{word}` in {}", described(place)), &help)
}

/// A key and its value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) key: &'a str,
    pub(super) key_at: At,
    pub(super) node: &'a Node,
}

impl<'a> Field<'a> {
    /// An error about the value; what spans lines is shown by its key.
    pub(super) fn error(&self, cause: impl Display) -> Error {
        let at = match self.node.value {
            Value::List(_) | Value::Map(_) => self.key_at,
            _ => self.node.at,
        };
        self.origin.error(at, format!("`{}` {cause}", self.key))
    }

    /// The value as text; a number is not text, as YAML readers disagree about how it is spelt.
    pub(super) fn text(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                Err(self.error(format!("must be text, found {}; put it in quotes", self.node.kind())))
            }
            _ => Err(self.error(format!("must be text, found {}", self.node.kind()))),
        }
    }

    pub(super) fn list(&self) -> Result<&'a [Node]> {
        match &self.node.value {
            Value::List(items) => Ok(items),
            _ => Err(self.error(format!("must be a list, found {}", self.node.kind()))),
        }
    }

    /// The value as a whole number from `least` to `most`.
    pub(super) fn whole(&self, least: u64, most: u64) -> Result<u64> {
        let must = || self.error(format!("must be a whole number from {least} to {most}, found {}", self.found()));
        let number = match &self.node.value {
            Value::Integer(number) => *number,
            Value::Text(text) => text.trim().parse().map_err(|_| must())?,
            _ => return Err(must()),
        };
        u64::try_from(number).ok().filter(|number| (least..=most).contains(number)).ok_or_else(must)
    }

    /// The value as a whole number in `range`.
    pub(super) fn whole_in(&self, range: RangeInclusive<u64>) -> Result<u64> {
        self.whole(*range.start(), *range.end())
    }

    /// The value as a count of bytes: a number, or text such as `5GB`.
    pub(super) fn bytes(&self) -> Result<u64> {
        match &self.node.value {
            Value::Text(text) => parse_bytes(text).map_err(|sentence| self.error(format!("is wrong: {sentence}"))),
            _ => self.whole(1, i64::MAX.unsigned_abs()),
        }
    }

    /// The value as one of `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Result<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let near = nearest(text, names()).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
        let all: Vec<_> = names().collect();
        Err(self.error(format!("must be one of {}, found `{text}`{near}", all.join(", "))))
    }

    /// The value as the name of a device.
    pub(super) fn device(&self) -> Result<Choice> {
        let text = self.text()?;
        Choice::parse(text)
            .ok_or_else(|| self.error(format!("must be one of cpu, cuda, cuda:N, auto, found {}", self.found())))
    }

    /// The value as an error message shows it.
    pub(super) fn found(&self) -> String {
        match &self.node.value {
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(text) if text.chars().count() <= 60 => format!("`{text}`"),
            _ => self.node.kind().to_owned(),
        }
    }
}
