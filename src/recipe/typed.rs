//! A recipe made of flags: every line of its text remembers what the user typed for it, which
//! messages then name.

use super::Reading;
use super::Recipe;
use super::origin::Notes;
use crate::error::Result;

/// The text of a recipe that flags stand for, line by line.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    lines: Vec<String>,
    typed: Vec<String>,
}

impl Typed {
    /// Adds a line of JSON, and what was typed for it.
    pub fn line(&mut self, json: impl Into<String>, typed: impl Into<String>) {
        let json = json.into();
        debug_assert!(!json.contains('\n'), "one line");
        self.lines.push(json);
        self.typed.push(typed.into());
    }

    /// The text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// The recipe, in whose place errors name what was typed.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`](crate::error::Kind::Usage) naming the flag;
    /// [`Error::others`](crate::error::Error::others) has the faults beside the first.
    pub fn recipe(self, reading: Reading) -> Result<Recipe> {
        let text = self.text();
        Recipe::noted(
            &text,
            "command line",
            Notes::new(self.typed, reading == Reading::Lenient),
        )
    }
}
