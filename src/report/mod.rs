//! What ran, as a value; the command line prints it.

mod alignment;
mod combined;
mod found;
mod noticed;
mod summary;
pub mod words;

pub use alignment::{AlignmentReport, Cosines, Findings, ManyReport, RootFound};
pub use combined::{Combined, CombinedModel};
pub use found::Found;
pub use noticed::{Met, Noticed, Oddity};
pub use summary::{Moved, Report, Solved, listed_files};
