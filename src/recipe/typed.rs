//! A recipe made of flags: every line of its text remembers the flag that the user typed, which
//! messages then name.

use super::Reading;
use super::Recipe;
use super::origin::Notes;
use crate::error::Result;

/// The text of a recipe made of flags, line by line.
#[derive(Debug, Clone, Default)]
pub struct Typed {
    lines: Vec<String>,
    typed: Vec<String>,
}

impl Typed {
    /// Adds a line of JSON, and the flags that were typed for it.
    pub fn line(&mut self, json: impl Into<String>, typed: impl Into<String>) {
        let json = json.into();
        debug_assert!(!json.contains('\n'), "one line");
        self.lines.push(json);
        self.typed.push(typed.into());
    }

    /// Returns the text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Reads the recipe; errors name the flags that were typed.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`](crate::error::Kind::Usage) naming the flag;
    /// [`Error::others`](crate::error::Error::others) has the faults after the first.
    pub fn recipe(self, reading: Reading) -> Result<Recipe> {
        let text = self.text();
        Recipe::noted(
            &text,
            "command line",
            Notes::new(self.typed, reading == Reading::Lenient),
        )
    }
}
