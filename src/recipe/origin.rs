//! The places of values in a recipe, and errors that show them.

use std::cell::RefCell;
use std::fmt::{Display, Write as _};

use crate::door::Door;
use crate::error::{Error, Kind, Result};

/// The most characters of a source line that an error shows before it crops.
const SHOWN: usize = 120;

/// The most characters of a cause; values from the recipe may be of any length.
const LONGEST: usize = 600;

/// A place in the text: line and column from one, and how many characters it spans; line zero is
/// unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// The text of a recipe, its name, and the notes on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) notes: &'a Notes,
}

/// The notes of a reader: faults, after which it goes on, and warnings for the user.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// The flags that the user typed for each line of the text, if it was made of flags.
    typed: Vec<String>,
    /// True if unknown keys are warnings rather than faults.
    pub(super) lenient: bool,
    faults: RefCell<Vec<Error>>,
    warnings: RefCell<Vec<String>>,
}

impl Notes {
    /// Makes empty notes on a text; `typed` holds the flags that its lines stand for, if any.
    pub(super) fn new(typed: Vec<String>, lenient: bool) -> Self {
        Self {
            typed,
            lenient,
            ..Self::default()
        }
    }

    /// Counts the faults so far.
    pub(super) fn fault_count(&self) -> usize {
        self.faults.borrow().len()
    }

    /// Takes the warnings since the last call.
    pub(super) fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// Joins all faults, in the order of the text, into one error; `Ok` when there are none. The
    /// `warnings` may tell the reason and go with the first fault.
    pub(super) fn into_result(self, warnings: &[Vec<String>]) -> Result<()> {
        let mut faults = self.faults.into_inner();
        if self.typed.is_empty() {
            faults.sort_by_key(|fault| place_in(fault.subject()));
        }
        drop_consequences(&mut faults);
        let Some(error) = Error::all(faults) else {
            return Ok(());
        };
        let notes: Vec<&str> = warnings
            .iter()
            .flatten()
            .take(NOTED)
            .map(String::as_str)
            .collect();
        if notes.is_empty() {
            return Err(error);
        }
        let before = error
            .hint()
            .map(|hint| format!("{hint}\n"))
            .unwrap_or_default();
        Err(error.with_hint(format!("{before}also: {}", notes.join("\nalso: "))))
    }
}

/// The most warnings that go with a fault.
const NOTED: usize = 5;

/// Returns the key that a misspelt one stands for.
fn key_meant(fault: &Error) -> Option<String> {
    let text = fault.to_string();
    let (_, rest) = text.split_once("did you mean `")?;
    rest.split('`').next().map(str::to_owned)
}

/// Drops faults about a missing key where another fault says that the key was misspelt.
fn drop_consequences(faults: &mut Vec<Error>) {
    let misspelt: Vec<String> = faults.iter().filter_map(key_meant).collect();
    faults.retain(|fault| {
        let text = fault.to_string();
        let Some((_, missing)) = text
            .split_once("needs the key ")
            .or_else(|| text.split_once("needs one of "))
        else {
            return true;
        };
        !misspelt
            .iter()
            .any(|key| missing.contains(&format!("`{key}`")))
    });
}

/// Reads line and column at the end of `name:line:column`; zeros when there are none.
fn place_in(subject: &str) -> (usize, usize) {
    let mut parts = subject.rsplit(':').map(|part| part.parse().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(column), Some(line)) => (line, column),
        _ => (0, 0),
    }
}

impl Origin<'_> {
    /// Returns the value; keeps a fault and returns `None`.
    pub(super) fn keep<T>(&self, read: Result<T>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(fault) => {
                self.notes.faults.borrow_mut().push(fault);
                None
            }
        }
    }

    /// Keeps a warning for the user, with its place.
    pub(super) fn warn(&self, at: At, sentence: impl Display) {
        let warning = format!("{}: {}", self.place(at), printable(&sentence.to_string()));
        let mut warnings = self.notes.warnings.borrow_mut();
        // A warning that an anchor repeats is given once.
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// Tells if the recipe was made of flags.
    pub(super) fn is_typed(&self) -> bool {
        !self.notes.typed.is_empty()
    }

    /// Makes an error at `at`, with its line as the hint.
    pub(super) fn error(&self, at: At, cause: impl Display) -> Error {
        self.error_with(at, cause, "")
    }

    /// Makes an error at `at` whose hint is `help` above its line.
    pub(super) fn error_with(&self, at: At, cause: impl Display, help: &str) -> Error {
        let cause = printable(&cause.to_string());
        if self.is_typed() {
            let error = Error::new(
                Kind::Usage,
                "cannot use the command line",
                self.place(at),
                cause,
            );
            let error = if help.is_empty() {
                error
            } else {
                error.with_hint(help)
            };
            return error.through(Door::Flags);
        }
        let error = Error::new(Kind::Recipe, "cannot use recipe", self.place(at), cause);
        let snippet = self.snippet(at);
        match (help.is_empty(), snippet.is_empty()) {
            (true, true) => error,
            (false, true) => error.with_hint(help),
            (true, false) => error.with_hint(snippet),
            (false, false) => error.with_hint(format!("{help}\n{snippet}")),
        }
    }

    /// Returns the name of the place `at` in messages: name, line and column, or the flag that was
    /// typed.
    fn place(&self, at: At) -> String {
        match (
            at.line,
            at.line
                .checked_sub(1)
                .and_then(|index| self.notes.typed.get(index)),
        ) {
            (_, Some(typed)) => printable(typed),
            (0, None) => self.name.to_owned(),
            (line, None) => format!("{}:{line}:{}", self.name, at.column),
        }
    }

    /// Shows the line at `at` with carets below it, the way compilers do; empty when the place is
    /// unknown.
    fn snippet(&self, at: At) -> String {
        let Some(line) = at
            .line
            .checked_sub(1)
            .and_then(|index| self.text.lines().nth(index))
        else {
            return String::new();
        };
        let start = at.column.saturating_sub(1);
        let skipped = if start >= SHOWN { start - SHOWN / 2 } else { 0 };
        // Control characters would let a recipe drive the terminal; a tab would move the carets.
        let shown: String = line
            .chars()
            .skip(skipped)
            .take(SHOWN)
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let room = shown
            .trim_end()
            .chars()
            .count()
            .saturating_sub(start - skipped);
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

/// Replaces characters of `text` that would drive a terminal, and crops it to the length of a
/// message.
fn printable(text: &str) -> String {
    let end = if text.chars().count() > LONGEST {
        "…"
    } else {
        ""
    };
    let shown = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    shown.collect::<String>() + end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_its_line_with_carets_below() {
        let notes = Notes::default();
        let origin = Origin {
            name: "a.yml",
            text: "one: 1\n\ttwo: 2\n",
            notes: &notes,
        };
        let error = origin.error_with(
            At {
                line: 2,
                column: 2,
                width: 3,
            },
            "wrong",
            "do this",
        );
        assert_eq!(error.to_string(), "cannot use recipe: a.yml:2:2: wrong");
        assert_eq!(error.hint(), Some("do this\n  |\n2 |  two: 2\n  |  ^^^"));
    }

    #[test]
    fn what_was_typed_stands_for_the_lines_of_a_recipe_made_of_flags() {
        let notes = Notes {
            typed: vec!["merge".to_owned(), "--nan base".to_owned()],
            ..Notes::default()
        };
        let origin = Origin {
            name: "command line",
            text: "{\n\"nan\": 1}",
            notes: &notes,
        };
        let error = origin.error_with(
            At {
                line: 2,
                column: 1,
                width: 3,
            },
            "there is no `base_model:`",
            "give one",
        );
        assert_eq!(
            error.to_string(),
            "cannot use the command line: --nan base: there is no `--base`"
        );
        assert_eq!(
            (error.kind(), error.hint()),
            (Kind::Usage, Some("give one"))
        );
    }

    #[test]
    fn places_outside_the_text_and_very_long_lines_are_shown_without_a_panic() {
        let long = "x".repeat(10_000);
        let notes = Notes::default();
        let origin = Origin {
            name: "a.yml",
            text: &long,
            notes: &notes,
        };
        for (line, column, width) in [
            (0, 0, 0),
            (9, 1, 1),
            (1, 9_000, 10_000),
            (1, 10_001, 1),
            (1, 50_000, 1),
        ] {
            let error = origin.error(
                At {
                    line,
                    column,
                    width,
                },
                "wrong",
            );
            assert!(
                error
                    .hint()
                    .is_none_or(|hint| hint.chars().count() < 4 * SHOWN),
                "{line} {column}"
            );
        }
    }
}
