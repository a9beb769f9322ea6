//! The result of a run, as a value; the command line prints it.

mod combined;
mod noticed;
mod selected;
mod summary;
pub mod words;

pub use crate::pass::Found;
pub use combined::{Combined, CombinedModel};
pub use noticed::{Met, Noticed, Oddity};
pub use selected::Selected;
pub use summary::{Moved, Report, Solved, listed_files};
