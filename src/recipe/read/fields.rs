//! Keys and plain values of a mapping, with errors that name the key.

use std::fmt::Display;
use std::ops::RangeInclusive;

use super::super::foreign::is_mergekit_key;
use super::super::keys::{KEYS, KeyInfo, Place, distance, keys_of, nearest};
use super::super::methods::METHODS;
use super::super::node::{Key, Node, Value, key_without_space};
use super::super::origin::{At, Origin};
use crate::budget::parse_bytes;
use crate::device::Choice;
use crate::door::flag_of;
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
    /// Reads the keys of `node`, which must be a mapping with no keys but those of `place`.
    pub(super) fn of(origin: Origin<'a>, node: &'a Node, place: Place) -> Result<Self> {
        let Value::Map(entries) = &node.value else {
            let cause = format!(
                "{} must be a mapping, found {}",
                described(place),
                node.kind()
            );
            return Err(match &node.value {
                Value::Text(text) if key_without_space(text).is_some() => origin.error_with(
                    node.at,
                    cause,
                    "a colon needs a space behind it: `key: value`",
                ),
                _ => origin.error(node.at, cause),
            });
        };
        let fields = Self {
            origin,
            at: node.at,
            place,
            entries,
        };
        for (key, _) in entries {
            if keys_of(place).all(|info| info.key != key.text) {
                origin.keep(fields.unknown(key));
            }
        }
        Ok(fields)
    }

    /// Judges a key that does not belong here: mergekit's keys are skipped as in mergekit, with a
    /// warning.
    fn unknown(&self, key: &Key) -> Result<()> {
        let (origin, word, here) = (self.origin, &key.text, described(self.place));
        if is_mergekit_key(word) && self.place != Place::Align {
            // `model` for `models` is a slip of the finger and not another place's key.
            if let Some(meant) = self.slip(word) {
                let cause = format!("unknown key `{word}` in {here}, did you mean `{meant}`?");
                return Err(origin.error(key.at, cause));
            }
            origin.warn(
                key.at,
                format!(
                    "`{word}` in {here} has no effect here, as in mergekit{}",
                    belongs(word)
                ),
            );
            return Ok(());
        }
        if origin.notes.lenient {
            origin.warn(
                key.at,
                format!("`{word}` in {here} is not known and has no effect"),
            );
            return Ok(());
        }
        Err(unknown_key(origin, key, self.place))
    }

    /// Finds the absent key of mergekit's that differs from `word` by one letter, if there is one.
    fn slip(&self, word: &str) -> Option<&'static str> {
        let absent = |key: &str| self.entries.iter().all(|(known, _)| known.text != key);
        let near = keys_of(self.place)
            .filter(|info| info.mergekit && absent(info.key))
            .map(|info| info.key);
        near.into_iter().find(|key| distance(word, key) == 1)
    }

    /// Returns the value of `key`; `None` when it is absent or empty.
    pub(super) fn get(&self, key: &str) -> Option<Field<'a>> {
        let (key, node) = self.entries.iter().find(|(known, _)| known.text == key)?;
        let field = Field {
            origin: self.origin,
            key: &key.text,
            key_at: key.at,
            node,
        };
        Some(field).filter(|field| !matches!(field.node.value, Value::Null))
    }

    /// Reads the value of `key` by `read`; `None` when it is absent, or at fault; the fault is
    /// kept.
    pub(super) fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(Field<'a>) -> Result<T>,
    ) -> Option<T> {
        self.get(key)
            .and_then(|field| self.origin.keep(read(field)))
    }

    /// Returns the value of a key that must be there.
    pub(super) fn need(&self, key: &str) -> Result<Field<'a>> {
        self.get(key)
            .ok_or_else(|| self.error(format!("{} needs the key `{key}`", described(self.place))))
    }

    /// Makes an error about the mapping as a whole.
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

/// Says where a key of mergekit's has an effect, as the end of a sentence.
fn belongs(word: &str) -> String {
    if METHODS.iter().any(|info| info.parameter(word).is_some()) {
        return "; parameters stand under `parameters`".to_owned();
    }
    match KEYS.iter().find(|info| info.key == word) {
        Some(KeyInfo {
            place: Place::ReferencePath,
            ..
        }) => "; write `model: ORG/NAME@REVISION`".to_owned(),
        Some(info) => format!("; it belongs in {}", described(info.place)),
        None => String::new(),
    }
}

fn unknown_key(origin: Origin<'_>, key: &Key, place: Place) -> Error {
    let known = || keys_of(place).map(|info| info.key);
    let word = &key.text;
    if let Some(near) = nearest(word, known()) {
        let cause = format!(
            "unknown key `{word}` in {}, did you mean `{near}`?",
            described(place)
        );
        return origin.error(key.at, cause);
    }
    let elsewhere = KEYS.iter().find(|info| info.key == word);
    let help = match elsewhere {
        Some(info) => format!("`{word}` belongs in {}", described(info.place)),
        None => format!("known keys are {}", known().collect::<Vec<_>>().join(", ")),
    };
    origin.error_with(
        key.at,
        format!("unknown key `{word}` in {}", described(place)),
        &help,
    )
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
    /// Makes an error about the value; a value that spans lines is shown by its key.
    pub(super) fn error(&self, cause: impl Display) -> Error {
        let at = match self.node.value {
            Value::List(_) | Value::Map(_) => self.key_at,
            _ => self.node.at,
        };
        self.origin.error(at, format!("`{}` {cause}", self.name()))
    }

    /// Returns the user's name for the key: itself, or the flag that stands for it.
    fn name(&self) -> &str {
        match flag_of(self.key) {
            Some(flag) if self.origin.is_typed() => flag,
            _ => self.key,
        }
    }

    /// Reads the value as text; a number is not text, as YAML readers disagree about how it is
    /// spelt.
    pub(super) fn text(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => Err(self.error(format!(
                "must be text, found {}; put it in quotes",
                self.node.kind()
            ))),
            _ => Err(self.error(format!("must be text, found {}", self.node.kind()))),
        }
    }

    pub(super) fn list(&self) -> Result<&'a [Node]> {
        match &self.node.value {
            Value::List(items) => Ok(items),
            _ => Err(self.error(format!("must be a list, found {}", self.node.kind()))),
        }
    }

    /// Reads the value as a whole number from `least` to `most`.
    pub(super) fn whole(&self, least: u64, most: u64) -> Result<u64> {
        let wanted = format!("must be a whole number from {least} to {most}, found ");
        let must = || self.error(wanted.clone() + &self.found());
        let number = match &self.node.value {
            Value::Integer(number) => *number,
            // `3.0` counts as the whole number that it is, as in mergekit.
            #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
            Value::Float(number) if number.fract() == 0.0 && number.abs() < 9e15 => *number as i128,
            Value::Text(text) => text.trim().parse().map_err(|_| must())?,
            _ => return Err(must()),
        };
        u64::try_from(number)
            .ok()
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(must)
    }

    /// Reads the value as a whole number in `range`.
    pub(super) fn whole_in(&self, range: RangeInclusive<u64>) -> Result<u64> {
        self.whole(*range.start(), *range.end())
    }

    /// Reads the value as a count of bytes: a number, or text such as `5GB`.
    pub(super) fn bytes(&self) -> Result<u64> {
        match &self.node.value {
            Value::Text(text) => {
                parse_bytes(text).map_err(|sentence| self.error(format!("is wrong: {sentence}")))
            }
            _ => self.whole(1, i64::MAX.unsigned_abs()),
        }
    }

    /// Reads the value as one of `choices`.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Result<T> {
        let text = self.text()?;
        if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == text) {
            return Ok(*choice);
        }
        let names = || choices.iter().map(|(name, _)| *name);
        let near = nearest(text, names())
            .map(|near| format!(", did you mean `{near}`?"))
            .unwrap_or_default();
        let all: Vec<_> = names().collect();
        Err(self.error(format!(
            "must be one of {}, found `{text}`{near}",
            all.join(", ")
        )))
    }

    /// Reads the value as true or false.
    pub(super) fn switch(&self) -> Result<bool> {
        match self.node.value {
            Value::Bool(on) => Ok(on),
            _ => Err(self.error(format!("must be true or false, found {}", self.found()))),
        }
    }

    /// Reads the value as the name of a device.
    pub(super) fn device(&self) -> Result<Choice> {
        let text = self.text()?;
        Choice::parse(text).ok_or_else(|| {
            self.error(format!(
                "must be one of cpu, cuda, cuda:N, auto, found {}",
                self.found()
            ))
        })
    }

    /// Writes the value as an error message shows it.
    pub(super) fn found(&self) -> String {
        match &self.node.value {
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Text(text) if text.chars().count() <= 60 => format!("`{text}`"),
            _ => self.node.kind().to_owned(),
        }
    }
}
