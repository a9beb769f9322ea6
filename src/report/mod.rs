//! What ran, as a value; the command line prints it.

mod alignment;
mod combined;
mod found;
mod summary;
pub mod words;

pub use alignment::{AlignmentReport, Cosines, Findings, ManyReport, RootFound};
pub use combined::{Combined, CombinedModel};
pub use found::Found;
pub use summary::{Moved, Report, Solved, listed_files};

/// A tensor's name and what was found about it.
pub type Noted<'a> = (&'a str, Found);
