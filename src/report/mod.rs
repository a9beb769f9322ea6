//! What ran, as a value; the command line prints it.

mod combined;
mod found;
mod noticed;
mod summary;
pub mod words;

pub use combined::{Combined, CombinedModel};
pub use found::Found;
pub use noticed::{Met, Noticed, Oddity};
pub use summary::{Moved, Report, Solved, listed_files};
