//! Compares the identities of two runs, and puts their differences into words.

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// The most differences that a message names.
const NAMED: usize = 3;

/// The most characters of a value that a message shows.
const SHOWN: usize = 80;

/// Normalises an identity through text, so that it equals one read back from a file.
pub(super) fn normalised(identity: &Value) -> Result<Value> {
    let through_text = serde_json::to_string(identity).and_then(|text| serde_json::from_str(&text));
    through_text
        .map_err(|error| Error::new(Kind::Resume, "cannot record", "the run's identity", error))
}

/// Removes the times of files with a content hash: runs over the same files from other times are
/// the same run.
pub(super) fn sealed(identity: &Value) -> Value {
    without("modified_ns", identity)
}

/// Removes the content hashes of files with a time, as identities were recorded before hashes.
pub(super) fn timed(identity: &Value) -> Value {
    without("blake3", identity)
}

/// Removes `key` from every file that has both time and content hash.
fn without(key: &str, value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| without(key, item)).collect(),
        Value::Object(fields) => {
            let has_both = fields.contains_key("modified_ns") && fields.contains_key("blake3");
            let kept = fields
                .iter()
                .filter(|(name, _)| !(has_both && *name == key));
            kept.map(|(name, value)| (name.clone(), without(key, value)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        plain => plain.clone(),
    }
}

/// Describes the first differences between the identity in a file (`holder`, such as "journal") and
/// this run's; `None` if equal.
pub(super) fn difference(holder: &str, stored: &Value, run: &Value) -> Option<String> {
    let mut found = vec![];
    compare("", Some(stored), Some(run), &mut found);
    let more = found.len().saturating_sub(NAMED);
    let mut words: Vec<_> = found
        .into_iter()
        .take(NAMED)
        .map(|(key, stored, run)| {
            let key = if key.is_empty() { "all" } else { &key };
            format!(
                "{key}: {holder} has {}, this run {}",
                shown(stored),
                shown(run)
            )
        })
        .collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    (!words.is_empty()).then(|| words.join("; "))
}

/// Describes how a finished merge differs from the requested one, in the words of a recipe; other
/// runs are compared by [`difference`]. `None` if they are equal.
pub(super) fn in_words(stored: &Value, run: &Value) -> Option<String> {
    if !stored["recipe"].is_object() || !run["recipe"].is_object() {
        return difference("manifest", stored, run);
    }
    let mut found = vec![];
    compare("", Some(stored), Some(run), &mut found);
    if found.is_empty() {
        return None;
    }
    let (there, here) = (merge_of(stored), merge_of(run));
    if there != here {
        return Some(format!(
            "it was merged from {there}; this run merges {here}"
        ));
    }
    let mut words: Vec<String> = Vec::new();
    for sentence in found
        .iter()
        .filter_map(|(key, stored, run)| setting(key, *stored, *run))
    {
        if !words.contains(&sentence) {
            words.push(sentence);
        }
    }
    let more = words.len().saturating_sub(NAMED);
    words.truncate(NAMED);
    if more > 0 {
        words.push(format!("and {more} more differences"));
    }
    let words = if words.is_empty() {
        "another version of thalweg made it".to_owned()
    } else {
        words.join("; ")
    };
    Some(format!("it was merged from {there} too, but {words}"))
}

/// Names the inputs of a merge and its method.
fn merge_of(identity: &Value) -> String {
    let names = identity["inputs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|input| input["name"].as_str());
    let names: Vec<&str> = names.collect();
    let (first, more) = names.split_at(names.len().min(4));
    let tail = if more.is_empty() {
        String::new()
    } else {
        format!(" and {} more", more.len())
    };
    format!(
        "{}{tail} by {}",
        first.join(", "),
        identity["recipe"]["merge_method"]
            .as_str()
            .unwrap_or("another method")
    )
}

/// Describes one difference between merges of the same inputs by the same method; `None` for a mere
/// consequence of others.
fn setting(key: &str, stored: Option<&Value>, run: Option<&Value>) -> Option<String> {
    let values = |key: &str| {
        Some(format!(
            "it has {}, this run {}",
            said(key, stored),
            said(key, run)
        ))
    };
    match key.strip_prefix("recipe.") {
        Some(inner) if inner.starts_with("models[") || inner.starts_with("slices[") => {
            let name = inner.rsplit('.').next().unwrap_or(inner);
            let number = inner
                .split_once('[')
                .and_then(|(_, rest)| rest.split(']').next()?.parse::<usize>().ok());
            let of = number.map_or_else(String::new, |number| {
                format!(" of {} {}", singular(inner), number + 1)
            });
            Some(format!(
                "`{name}`{of} is {} there and {} here",
                plain(stored),
                plain(run)
            ))
        }
        Some(inner) => values(inner.rsplit('.').next().unwrap_or(inner)),
        None if key.starts_with("inputs[") => {
            Some("files of its inputs have changed since".to_owned())
        }
        None if key.starts_with("alignments") => {
            Some("its inputs were aligned in another way".to_owned())
        }
        None => match key {
            "layout" | "arithmetic" | "donor" => None,
            "shard_bytes" => values("out_shard_size"),
            _ => values(key),
        },
    }
}

fn singular(list: &str) -> &'static str {
    if list.starts_with("models") {
        "model"
    } else {
        "slice"
    }
}

/// Formats a setting with its value as in a recipe.
fn said(key: &str, value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => format!("no `{key}:`"),
        value => format!("`{key}: {}`", plain(value)),
    }
}

/// Formats a value without the quotes of JSON, shortened.
fn plain(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) if text.chars().count() <= SHOWN => text.clone(),
        None | Some(Value::Null) => "not given".to_owned(),
        value => shown(value),
    }
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn compare<'a>(
    key: &str,
    stored: Option<&'a Value>,
    run: Option<&'a Value>,
    found: &mut Vec<Difference<'a>>,
) {
    match (stored, run) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let dot = if key.is_empty() { "" } else { "." };
            for name in a
                .keys()
                .chain(b.keys().filter(|name| !a.contains_key(*name)))
            {
                compare(
                    &format!("{key}{dot}{name}"),
                    a.get(name),
                    b.get(name),
                    found,
                );
            }
        }
        // Lists of plain values are clearer as a whole: all weights, not a digit of the second one.
        (Some(Value::Array(a)), Some(Value::Array(b))) if a.iter().chain(b).any(is_nested) => {
            for at in 0..a.len().max(b.len()) {
                compare(&format!("{key}[{at}]"), a.get(at), b.get(at), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push((key.to_owned(), a, b)),
    }
}

fn is_nested(value: &Value) -> bool {
    value.is_object() || value.is_array()
}

fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_identities_have_no_difference_whatever_the_order_of_keys() {
        let a = json!({ "weights": [0.1, 1.0, 1e-300], "n": u64::MAX, "x": null });
        let b = json!({ "x": null, "n": u64::MAX, "weights": [0.1, 1.0, 1e-300] });
        assert_eq!(
            difference("journal", &normalised(&a).expect("plain"), &b),
            None
        );
    }

    #[test]
    fn finished_merges_differ_in_the_words_in_which_they_are_asked_for() {
        let merge = |method: &str, names: [&str; 2], dtype: Value, weight: f64| {
            let models = json!([{ "model": names[0] }, { "model": names[1], "parameters": { "weight": weight } }]);
            json!({
                "recipe": { "merge_method": method, "models": models, "dtype": dtype },
                "inputs": names.map(|name| json!({ "name": name, "files": [] })),
                "dtype": dtype, "layout": "x",
            })
        };
        let stored = merge("karcher", ["a", "b"], Value::Null, 1.0);
        let words = |run: &Value| in_words(&stored, run).unwrap_or_default();
        assert_eq!(words(&stored), "");
        let other = merge("linear", ["a", "c"], Value::Null, 1.0);
        assert_eq!(
            words(&other),
            "it was merged from a, b by karcher; this run merges a, c by linear"
        );
        let other = merge("karcher", ["a", "b"], json!("float32"), 0.5);
        assert_eq!(
            words(&other),
            "it was merged from a, b by karcher too, but `weight` of model 2 is 1.0 there and 0.5 here; it has no \
             `dtype:`, this run `dtype: float32`"
        );
        let mut other = stored.clone();
        other["layout"] = json!("y");
        assert!(
            words(&other).ends_with("another version of thalweg made it"),
            "{}",
            words(&other)
        );
        assert_eq!(
            in_words(&json!(1), &json!(2)).as_deref(),
            Some("all: manifest has 1, this run 2")
        );
    }

    #[test]
    fn differences_are_named_by_key_with_both_values() {
        let file = |modified| json!({ "files": [{ "name": "a", "modified": modified }] });
        let a = json!({ "weights": [0.5, 0.5], "inputs": [file(1), file(2)], "gone": 1, "same": [1, { "b": 2 }] });
        let b = json!({ "weights": [0.3, 0.7], "inputs": [file(1), file(3)], "same": [1, { "b": 2 }], "new": "n" });
        assert_eq!(
            difference("journal", &a, &b).expect("they differ"),
            "weights: journal has [0.5,0.5], this run [0.3,0.7]; inputs[1].files[0].modified: journal has 2, this run 3; \
             gone: journal has 1, this run nothing; and 1 more"
        );
    }

    #[test]
    fn long_values_and_values_of_another_type_are_shown_short() {
        let text = difference(
            "manifest",
            &json!({ "a": "ü".repeat(500) }),
            &json!({ "a": { "b": 1 } }),
        )
        .expect("differ");
        assert!(
            text.len() < 250 && text.contains("…, this run {\"b\":1}"),
            "{text}"
        );
        assert_eq!(
            difference("journal", &json!(1), &json!(2)).expect("differ"),
            "all: journal has 1, this run 2"
        );
        assert!(difference("journal", &json!([1, 2]), &json!([1])).is_some());
    }
}
