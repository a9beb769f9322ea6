//! Whether two runs are the same run, and in which words they differ.

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// How many differences a message names.
const NAMED: usize = 3;

/// How many characters of a value a message shows.
const SHOWN: usize = 80;

/// An identity as it comes back from a file, so that one in memory and one read back compare equal.
pub(super) fn normalised(identity: &Value) -> Result<Value> {
    let through_text = serde_json::to_string(identity).and_then(|text| serde_json::from_str(&text));
    through_text.map_err(|error| Error::new(Kind::Resume, "cannot record", "the run's identity", error))
}

/// The first differences between what a file (`holder`, such as "journal") has and what this run is; none if equal.
pub(super) fn difference(holder: &str, stored: &Value, run: &Value) -> Option<String> {
    let mut found = vec![];
    compare("", Some(stored), Some(run), &mut found);
    let more = found.len().saturating_sub(NAMED);
    let mut words: Vec<_> = found
        .into_iter()
        .take(NAMED)
        .map(|(key, stored, run)| {
            let key = if key.is_empty() { "all" } else { &key };
            format!("{key}: {holder} has {}, this run {}", shown(stored), shown(run))
        })
        .collect();
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    (!words.is_empty()).then(|| words.join("; "))
}

type Difference<'a> = (String, Option<&'a Value>, Option<&'a Value>);

fn compare<'a>(key: &str, stored: Option<&'a Value>, run: Option<&'a Value>, found: &mut Vec<Difference<'a>>) {
    match (stored, run) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let dot = if key.is_empty() { "" } else { "." };
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                compare(&format!("{key}{dot}{name}"), a.get(name), b.get(name), found);
            }
        }
        // Lists of plain values say more as a whole: which weights, not which digit of the second one.
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
        assert_eq!(difference("journal", &normalised(&a).expect("plain"), &b), None);
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
        let text =
            difference("manifest", &json!({ "a": "ü".repeat(500) }), &json!({ "a": { "b": 1 } })).expect("differ");
        assert!(text.len() < 250 && text.contains("…, this run {\"b\":1}"), "{text}");
        assert_eq!(difference("journal", &json!(1), &json!(2)).expect("differ"), "all: journal has 1, this run 2");
        assert!(difference("journal", &json!([1, 2]), &json!([1])).is_some());
    }
}
