//! Writes values as text.

use serde_json::Value;

use super::unmarked;

/// The layout of new values in a text.
#[derive(Debug, Clone)]
pub(super) struct Style {
    /// The indent of the value's own line; `None` puts everything on one line.
    pub indent: Option<String>,
    /// The separator between a key and its value.
    pub colon: String,
    /// The separator between two values on a line.
    pub comma: String,
}

/// Writes the value as a whole file: a line for each key, two spaces per level, a line break at the
/// end.
pub fn pretty(value: &Value) -> String {
    let style = Style {
        indent: Some(String::new()),
        colon: ": ".into(),
        comma: ", ".into(),
    };
    let mut text = String::new();
    write(value, &style, &mut text);
    text.push('\n');
    text
}

/// Writes the value on one line, for a message.
pub fn shown(value: &Value) -> String {
    let mut text = String::new();
    write(
        value,
        &Style {
            indent: None,
            colon: ": ".into(),
            comma: ", ".into(),
        },
        &mut text,
    );
    text
}

pub(super) fn write(value: &Value, style: &Style, into: &mut String) {
    match value {
        Value::Array(items) => {
            let items = items.iter().map(|item| (None, item));
            list(['[', ']'], items, style, into);
        }
        Value::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, value)| (Some(key.as_str()), value));
            list(['{', '}'], fields, style, into);
        }
        Value::String(text) => match unmarked(text) {
            Some(number) => into.push_str(number),
            None => into.push_str(&value.to_string()),
        },
        _ => into.push_str(&value.to_string()),
    }
}

/// Writes a key and its value, as in an object.
pub(super) fn field(key: &str, value: &Value, style: &Style, into: &mut String) {
    into.push_str(&Value::from(key).to_string());
    into.push_str(&style.colon);
    write(value, style, into);
}

fn list<'a>(
    [open, close]: [char; 2],
    entries: impl Iterator<Item = (Option<&'a str>, &'a Value)>,
    style: &Style,
    into: &mut String,
) {
    let inner = Style {
        indent: style.indent.as_ref().map(|indent| format!("{indent}  ")),
        ..style.clone()
    };
    into.push(open);
    let mut any = false;
    for (key, value) in entries {
        match &inner.indent {
            Some(indent) => into.push_str(&format!("{}\n{indent}", if any { "," } else { "" })),
            None => into.push_str(if any { &style.comma } else { "" }),
        }
        match key {
            Some(key) => field(key, value, &inner, into),
            None => write(value, &inner, into),
        }
        any = true;
    }
    if let Some(indent) = style.indent.as_ref().filter(|_| any) {
        into.push_str(&format!("\n{indent}"));
    }
    into.push(close);
}
