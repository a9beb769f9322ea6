//! JSON as model libraries write it: read with Python's `NaN` and `Infinity` and with numbers of
//! any size, edited in place so that unchanged parts keep their bytes.
//!
//! A number that 64 bits or JSON cannot hold is kept as text. In a [`Value`] it is a string that
//! begins with a mark that no other text has; [`pretty`] and [`edited`] write it as it was.

// The texts come from files of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

mod edit;
mod scan;
mod write;

use serde_json::Value;

pub use edit::edited;
pub use write::{pretty, shown};

/// The first character of a string that holds a number's text; a noncharacter of Unicode.
const MARK: char = '\u{fdd0}';

/// Parses `text`, with keys in order; the last of duplicate keys counts.
///
/// # Errors
///
/// A message that states the fault, with line and column.
pub fn parse(text: &str) -> Result<Value, String> {
    scan::Scanner::new(text).whole()
}

/// Makes the value for a number that is kept as text.
fn marked(text: &str) -> Value {
    Value::String(format!("{MARK}{text}"))
}

/// Returns the text of a number that is kept as text.
fn unmarked(text: &str) -> Option<&str> {
    text.strip_prefix(MARK)
        .filter(|text| scan::number(text).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ODD: &str = "{\n    \"time_step_limit\": [0.0, Infinity],\n    \"low\": -Infinity, \"none\": NaN,\n    \
                       \"model_max_length\": 1000000000000000019884624838656,\n    \"big\": 1e+400, \"eps\": 1.0e-05,\n    \
                       \"vocab_size\": 10\n}\n";

    #[test]
    fn what_python_writes_is_read_and_comes_back_as_it_was() {
        let value = parse(ODD).expect("read");
        assert_eq!(
            (&value["eps"], &value["vocab_size"]),
            (&json!(1e-5), &json!(10))
        );
        assert_eq!(shown(&value["time_step_limit"]), "[0.0, Infinity]");
        assert_eq!(edited(ODD, &value), ODD);
        let mut changed = value.clone();
        changed["vocab_size"] = json!(16);
        assert_eq!(
            edited(ODD, &changed),
            ODD.replace("\"vocab_size\": 10", "\"vocab_size\": 16")
        );
        let again = pretty(&changed);
        assert_eq!(parse(&again), Ok(changed));
        for text in [
            "Infinity",
            "-Infinity",
            "NaN",
            "1000000000000000019884624838656",
            "1e+400",
        ] {
            assert!(
                again.contains(text) && !again.contains(&format!("\"{text}\"")),
                "{again}"
            );
        }
    }

    #[test]
    fn a_text_that_only_looks_like_a_kept_number_stays_a_text() {
        for text in ["\u{fdd0}", "\u{fdd0}x, \"y\": 1", "\u{fdd0}1 "] {
            let value = json!({ "a": text });
            assert_eq!(
                serde_json::from_str::<Value>(&pretty(&value)).expect("JSON"),
                value
            );
        }
    }

    #[test]
    fn keys_are_added_changed_and_taken_away_in_the_style_of_the_text() {
        let cases = [
            (
                "{\"a\": 1, \"b\": 2}",
                json!({ "a": 1, "b": 2, "c": [1, 2] }),
                "{\"a\": 1, \"b\": 2, \"c\": [1, 2]}",
            ),
            (
                "{\"a\":1,\"b\":2}",
                json!({ "a": 1, "b": 3, "c": 4 }),
                "{\"a\":1,\"b\":3,\"c\":4}",
            ),
            (
                "{\n  \"a\": 1,\n  \"b\": 2\n}",
                json!({ "b": 2, "c": "x" }),
                "{\n  \"b\": 2,\n  \"c\": \"x\"\n}",
            ),
            (
                "{ \"a\" : 1 , \"b\" : 2 }",
                json!({ "a": 1 }),
                "{ \"a\" : 1 }",
            ),
            ("{\"a\": 1}", json!({}), "{}"),
            ("{ }", json!({ "a": 1 }), "{ \"a\": 1 }"),
            ("{}", json!({ "a": 1 }), "{\n  \"a\": 1\n}"),
            (
                "{\n  \"t\": {\n    \"l\": [\n      \"a\",\n      \"b\"\n    ]\n  }\n}",
                json!({ "t": { "l": ["a", "b", "c"], "n": 3 } }),
                "{\n  \"t\": {\n    \"l\": [\n      \"a\",\n      \"b\",\n      \"c\"\n    ],\n    \"n\": 3\n  }\n}",
            ),
            (
                "{\"a\": [1.50, 2.0e0, 3]}",
                json!({ "a": [1.5, 2.0, 4] }),
                "{\"a\": [1.50, 2.0e0, 4]}",
            ),
            (
                "{\"a\": 0, \"a\": 1.00}",
                json!({ "a": 1.0 }),
                "{\"a\": 0, \"a\": 1.00}",
            ),
            (
                "{\"a\": {\"b\": 0}, \"a\": 1}",
                json!({ "a": 2 }),
                "{\"a\": {\"b\": 0}, \"a\": 2}",
            ),
        ];
        for (text, changed, wanted) in cases {
            let got = edited(text, &changed);
            assert_eq!(got, wanted);
            assert_eq!(parse(&got), Ok(changed));
        }
    }

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        let cases = [
            ("", "line 1 column 1"),
            ("{\n  \"a\": }", "line 2 column 8"),
            ("{\"a\": 1,}", "line 1 column 9"),
            ("[1, 2", "line 1 column 6"),
            ("{\"a\": +1}", "line 1 column 7"),
            ("{\"a\": infinity}", "line 1 column 7"),
            ("{\"a\": 01}", "line 1 column 7"),
            ("{} x", "line 1 column 4"),
            ("\"\\x\"", "line 1 column 1"),
            ("\"a\nb\"", "line 1 column 1"),
        ];
        for (text, place) in cases {
            let error = parse(text).expect_err(text);
            assert!(error.ends_with(place), "{text}: {error}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err_and(|error| error.contains("nested")));
    }

    /// Values as configs hold them.
    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            "[a-z\"\\\\\n\u{e9}]{0,6}".prop_map(Value::from),
            prop_oneof![
                Just("NaN"),
                Just("-Infinity"),
                Just("1e999"),
                Just("100000000000000000000000")
            ]
            .prop_map(marked),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-c]{1,2}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_change_of_any_value_reads_back_as_what_it_was_changed_to(before in value(), after in value()) {
            let text = pretty(&before);
            prop_assert_eq!(parse(&text), Ok(before.clone()));
            prop_assert_eq!(edited(&text, &before), text.clone());
            prop_assert_eq!(parse(&edited(&text, &after)), Ok(after.clone()));
            let line = shown(&before);
            prop_assert_eq!(parse(&edited(&line, &after)), Ok(after));
        }
    }
}
