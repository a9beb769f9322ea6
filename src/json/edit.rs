//! Edits in a text: unchanged values keep their bytes, new ones are written in the style around
//! them.

use std::ops::Range;

use serde_json::{Map, Value};

use super::parse;
use super::scan::Scanner;
use super::write::{Style, field, pretty, write};

/// Edits the JSON `text` so that its value becomes `changed`; only differences are rewritten.
///
/// A text that cannot be parsed is replaced as a whole.
pub fn edited(text: &str, changed: &Value) -> String {
    let Ok(before) = parse(text) else {
        return pretty(changed);
    };
    let mut editor = Editor {
        text,
        scanner: Scanner::new(text),
        out: String::with_capacity(text.len() + 64),
    };
    editor.scanner.space();
    editor.copy(0..editor.scanner.at);
    editor.value(&before, changed, "");
    editor.copy(editor.scanner.at..text.len());
    editor.out
}

struct Editor<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
    out: String,
}

/// An entry of an array or object as it stands in the text.
struct Entry {
    key: Option<String>,
    /// The white space before the entry.
    space: Range<usize>,
    /// The key and what follows it, up to the value.
    head: Range<usize>,
    value: Range<usize>,
}

impl<'a> Editor<'a> {
    /// Returns a piece of the text.
    fn piece(&self, range: &Range<usize>) -> &'a str {
        self.text.get(range.clone()).unwrap_or_default()
    }

    /// Copies a piece of the text.
    fn copy(&mut self, range: Range<usize>) {
        self.out.push_str(self.piece(&range));
    }

    /// Copies a value that was `before`, with the changes to `changed`. `indent` is that of the
    /// value's first line.
    fn value(&mut self, before: &Value, changed: &Value, indent: &str) {
        match (before, changed) {
            _ if before == changed => {
                let span = self.scanner.over();
                self.copy(span);
            }
            (Value::Object(before), Value::Object(changed)) => self.object(before, changed, indent),
            (Value::Array(before), Value::Array(changed)) if before.len() == changed.len() => {
                self.array(before, changed, indent);
            }
            _ => {
                let span = self.scanner.over();
                let style = style_of(self.piece(&span), changed, indent);
                write(changed, &style, &mut self.out);
            }
        }
    }

    fn array(&mut self, before: &[Value], changed: &[Value], indent: &str) {
        let (entries, end) = self.entries(b']');
        for (entry, (before, changed)) in entries.iter().zip(before.iter().zip(changed)) {
            let begin = self.scanner.at;
            self.copy(begin..entry.value.start);
            self.scanner.at = entry.value.start;
            self.value(before, changed, &self.indent_of(&entry.space, indent));
        }
        self.rest(end);
    }

    fn object(&mut self, before: &Map<String, Value>, changed: &Map<String, Value>, indent: &str) {
        let start = self.scanner.at;
        let (entries, end) = self.entries(b'}');
        self.out.push('{');
        let any = self.kept_fields(start, &entries, [before, changed], indent);
        let new = changed.iter().filter(|(key, _)| !before.contains_key(*key));
        let new: Vec<_> = new.collect();
        self.new_fields(&new, &entries, any, indent);
        let last_end = entries.last().map_or(start + 1, |entry| entry.value.end);
        let closing = last_end..end.saturating_sub(1);
        match entries.is_empty() {
            // Keys on lines of their own need one for the bracket too.
            true if closing.is_empty() && !new.is_empty() => {
                self.out.push_str(&format!("\n{indent}"))
            }
            false if !any && new.is_empty() => {}
            _ => self.copy(closing),
        }
        self.out.push('}');
        self.scanner.at = end;
    }

    /// Copies the fields that stay, with their changes; returns true if there are any.
    fn kept_fields(
        &mut self,
        start: usize,
        entries: &[Entry],
        objects: [&Map<String, Value>; 2],
        indent: &str,
    ) -> bool {
        let [before, changed] = objects;
        let mut any = false;
        let mut last_end = start + 1;
        for (at, entry) in entries.iter().enumerate() {
            // No comma precedes the first entry.
            let begin = std::mem::replace(&mut last_end, entry.value.end);
            let key = entry.key.as_deref().unwrap_or_default();
            let (Some(before), Some(changed)) = (before.get(key), changed.get(key)) else {
                continue;
            };
            let first = entries.first().filter(|_| !any);
            let space = first.map_or(begin..entry.head.start, |first| first.space.clone());
            self.copy(space);
            self.copy(entry.head.clone());
            self.scanner.at = entry.value.start;
            // Only the last of duplicate keys counts.
            let mut later = entries.iter().skip(at + 1);
            if entry.key.is_some() && later.all(|later| later.key != entry.key) {
                self.value(before, changed, &self.indent_of(&entry.space, indent));
            } else {
                self.copy(entry.value.clone());
            }
            any = true;
        }
        any
    }

    /// Writes new fields after the existing ones, in their style.
    fn new_fields(
        &mut self,
        new: &[(&String, &Value)],
        entries: &[Entry],
        any: bool,
        indent: &str,
    ) {
        let inside = self.text.get(self.scanner.at..).unwrap_or_default();
        let style = match entries.last() {
            Some(last) => {
                let colon = self.piece(&last.head).rsplit('"').next().unwrap_or(": ");
                let space = self.piece(&last.space);
                let indent = space
                    .contains('\n')
                    .then(|| self.indent_of(&last.space, indent));
                let comma = if space.is_empty() { "," } else { ", " };
                Style {
                    indent,
                    colon: colon.into(),
                    comma: comma.into(),
                }
            }
            // The object was empty; white space inside it asks for one line.
            None if inside.starts_with("{ ") => Style {
                indent: None,
                colon: ": ".into(),
                comma: ", ".into(),
            },
            None => Style {
                indent: Some(format!("{indent}  ")),
                colon: ": ".into(),
                comma: ", ".into(),
            },
        };
        let mut any = any;
        for (key, value) in new {
            match &style.indent {
                Some(indent) => self
                    .out
                    .push_str(&format!("{}\n{indent}", if any { "," } else { "" })),
                None if any => self.out.push_str(&style.comma),
                None => {
                    let first = entries.first().map(|first| self.piece(&first.space));
                    self.out.push_str(first.unwrap_or(" "));
                }
            }
            field(key, value, &style, &mut self.out);
            any = true;
        }
    }

    /// Returns the entries of the array or object that begins here, up to its `end`, and the
    /// position of that end. The scanner does not move.
    fn entries(&mut self, end: u8) -> (Vec<Entry>, usize) {
        let begin = self.scanner.at;
        let mut entries = Vec::new();
        self.scanner.at += 1;
        loop {
            let space = self.scanner.at;
            self.scanner.space();
            if self.scanner.take(end) || self.scanner.peek().is_none() {
                break;
            }
            let (space, head) = (space..self.scanner.at, self.scanner.at);
            let key = if end == b'}' {
                self.scanner.key().ok()
            } else {
                None
            };
            self.scanner.space();
            if end == b'}' && self.scanner.take(b':') {
                self.scanner.space();
            }
            let head = head..self.scanner.at;
            entries.push(Entry {
                key,
                space,
                head,
                value: self.scanner.over(),
            });
            self.scanner.space();
            self.scanner.take(b',');
        }
        (entries, std::mem::replace(&mut self.scanner.at, begin))
    }

    fn rest(&mut self, end: usize) {
        self.copy(self.scanner.at..end);
        self.scanner.at = end;
    }

    /// Returns the indent after the last line break in `space`, or `indent` without one.
    fn indent_of(&self, space: &Range<usize>, indent: &str) -> String {
        let last = self.piece(space).rsplit_once('\n');
        last.map_or(indent, |(_, own)| own).to_owned()
    }
}

/// Returns the style for a value that replaces `text`.
fn style_of(text: &str, changed: &Value, indent: &str) -> Style {
    let lines = text.contains('\n') || (changed.is_object() && !text.starts_with(['{', '[']));
    Style {
        indent: lines.then(|| indent.to_owned()),
        colon: ": ".into(),
        comma: ", ".into(),
    }
}
