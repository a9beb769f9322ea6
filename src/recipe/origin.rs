//! Where in a recipe a value stands, and errors that show it.

use std::fmt::{Display, Write as _};

use crate::error::{Error, Kind};

/// Characters of a source line that an error shows before it crops.
const SHOWN: usize = 120;

/// Characters of a cause; values from the recipe may be of any length.
const LONGEST: usize = 600;

/// A place in the text: line and column from one, and how many characters it spans; line zero is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// The text of a recipe and what to call it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Origin<'_> {
    /// An error at `at`, with the line it is about as its hint.
    pub(super) fn error(&self, at: At, cause: impl Display) -> Error {
        self.error_with(at, cause, "")
    }

    /// An error at `at` whose hint is `help` above the line it is about.
    pub(super) fn error_with(&self, at: At, cause: impl Display, help: &str) -> Error {
        let subject = match at.line {
            0 => self.name.to_owned(),
            line => format!("{}:{line}:{}", self.name, at.column),
        };
        let error = Error::new(Kind::Recipe, "cannot use recipe", subject, printable(&cause.to_string()));
        let snippet = self.snippet(at);
        match (help.is_empty(), snippet.is_empty()) {
            (true, true) => error,
            (false, true) => error.with_hint(help),
            (true, false) => error.with_hint(snippet),
            (false, false) => error.with_hint(format!("{help}\n{snippet}")),
        }
    }

    /// The line at `at` with carets below it, the way compilers show it; empty when the place is unknown.
    fn snippet(&self, at: At) -> String {
        let Some(line) = at.line.checked_sub(1).and_then(|index| self.text.lines().nth(index)) else {
            return String::new();
        };
        let start = at.column.saturating_sub(1);
        let skipped = if start >= SHOWN { start - SHOWN / 2 } else { 0 };
        // Control characters would let a recipe drive the terminal; a tab would move the carets.
        let shown: String =
            line.chars().skip(skipped).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let room = shown.trim_end().chars().count().saturating_sub(start - skipped);
        let width = at.width.clamp(1, room.max(1));
        let number = at.line.to_string();
        let margin = " ".repeat(number.len());
        let mut out = String::new();
        let drawn = write!(
            out,
            "{margin} |\n{number} | {}\n{margin} | {}{}",
            shown.trim_end(),
            " ".repeat(start - skipped),
            "^".repeat(width)
        );
        drawn.map(|()| out).unwrap_or_default()
    }
}

/// `text` without what would drive a terminal, and no longer than a message should be.
fn printable(text: &str) -> String {
    let end = if text.chars().count() > LONGEST { "…" } else { "" };
    let shown = text.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c });
    shown.collect::<String>() + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_line_with_carets_below() {
        let origin = Origin { name: "a.yml", text: "one: 1\n\ttwo: 2\n" };
        let error = origin.error_with(At { line: 2, column: 2, width: 3 }, "wrong", "do this");
        assert_eq!(error.to_string(), "cannot use recipe: a.yml:2:2: wrong");
        assert_eq!(error.hint(), Some("do this\n  |\n2 |  two: 2\n  |  ^^^"));
    }

    #[test]
    fn places_outside_the_text_and_very_long_lines_are_shown_without_a_panic() {
        let long = "x".repeat(10_000);
        let origin = Origin { name: "a.yml", text: &long };
        for (line, column, width) in [(0, 0, 0), (9, 1, 1), (1, 9_000, 10_000), (1, 10_001, 1), (1, 50_000, 1)] {
            let error = origin.error(At { line, column, width }, "wrong");
            assert!(error.hint().is_none_or(|hint| hint.chars().count() < 4 * SHOWN), "{line} {column}");
        }
    }
}
