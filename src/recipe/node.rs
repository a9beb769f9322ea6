//! Parses YAML text into a tree whose every node knows its place.
//!
//! Recipes are read in two steps, text to tree and tree to [`Document`](super::Document), because
//! derived deserialisers cannot say which key was meant, nor where a value stands that is well
//! formed but makes no sense.

// Recipes are texts of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::keys::KEYS;
use super::origin::{At, Origin};
use crate::error::Result;

/// The largest recipe that is read.
pub const MAX_RECIPE_BYTES: usize = 16 << 20;

/// The most YAML nodes that a recipe may have, replayed aliases included.
const MAX_NODES: usize = 200_000;

/// The most levels of nesting; a recipe needs nine.
const MAX_DEPTH: usize = 48;

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// The value of a node.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping and its place.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) at: At,
    pub(super) text: String,
}

impl Node {
    /// Names the kind of the value, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// Keeps the last of equal keys in every mapping, as `PyYAML` does, with a warning for each
    /// that is dropped.
    pub(super) fn last_wins(&mut self, origin: Origin<'_>) {
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.last_wins(origin)),
            Value::Map(entries) => {
                drop_earlier(entries, origin);
                entries
                    .iter_mut()
                    .for_each(|(_, node)| node.last_wins(origin));
            }
            _ => {}
        }
    }
}

/// Drops all entries whose key comes again.
fn drop_earlier(entries: &mut Vec<(Key, Node)>, origin: Origin<'_>) {
    let mut last: HashMap<String, (usize, At)> = HashMap::with_capacity(entries.len());
    for (index, (key, _)) in entries.iter().enumerate() {
        last.insert(key.text.clone(), (index, key.at));
    }
    if last.len() == entries.len() {
        return;
    }
    for (index, entry) in std::mem::take(entries).into_iter().enumerate() {
        let key = &entry.0.text;
        match last.get(key) {
            Some((kept, at)) if *kept != index => {
                let line = at.line;
                let warning = format!("`{key}` is given again in line {line}; the last one counts");
                origin.warn(entry.0.at, warning);
            }
            _ => entries.push(entry),
        }
    }
}

/// Parses the documents of a YAML stream; leaves out empty ones.
///
/// # Errors
///
/// Text that is too large, is not YAML, or grows too large by its aliases.
pub(super) fn parse_documents(origin: Origin<'_>) -> Result<Vec<Node>> {
    let bytes = origin.text.len();
    if bytes > MAX_RECIPE_BYTES {
        let cause = format!("is {bytes} bytes long, a recipe has at most {MAX_RECIPE_BYTES}");
        return Err(origin.error(At::default(), cause));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_depth: MAX_DEPTH,
            max_documents: 256,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
    };
    let parsed: Result<Vec<Node>, _> =
        serde_saphyr::from_multiple_with_options(origin.text, options);
    parsed.map_err(|error| {
        let location = error.location();
        let at = location.map(place).unwrap_or_default();
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        // The place is told once, in the subject.
        let suffix = location
            .map(|l| format!(" at line {}, column {}", l.line(), l.column()))
            .unwrap_or_default();
        let first = message.lines().next().unwrap_or_default();
        let cause = format!("is not valid YAML: {}", first.replacen(&suffix, "", 1));
        match key_without_space(origin.text) {
            Some((at, key)) => origin.error_with(
                at,
                cause,
                &format!("a colon needs a space behind it: `{key}: …`"),
            ),
            None => origin.error(at, cause),
        }
    })
}

/// Finds the first line that is `key:value` without a space, with a key that recipes have: YAML
/// takes it for plain text and then stumbles over the line after it.
pub(super) fn key_without_space(text: &str) -> Option<(At, &str)> {
    text.lines().enumerate().find_map(|(index, line)| {
        let start = line.trim_start_matches([' ', '-']);
        let (key, value) = start.split_once(':')?;
        let known = KEYS.iter().any(|info| info.key == key);
        let glued = value.starts_with(|c: char| !c.is_whitespace());
        let column = line.chars().count() - start.chars().count() + 1;
        (known && glued).then_some((
            At {
                line: index + 1,
                column,
                width: key.chars().count() + 1,
            },
            key,
        ))
    })
}

fn place(location: Location) -> At {
    let count = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    At {
        line: count(location.line()),
        column: count(location.column()),
        width: count(location.span().len()),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            at: place(spanned.referenced),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, node)) = access.next_entry::<Spanned<String>, Node>()? {
            entries.push((
                Key {
                    at: place(key.referenced),
                    text: key.value,
                },
                node,
            ));
        }
        Ok(Value::Map(entries))
    }
}
