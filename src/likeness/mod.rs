//! Checks that equal names and numbers have equal meanings in two models: the rows that belong to
//! tokens, and the axes that a config divides into heads, groups and experts. Shapes do not show
//! this, so unrelated weights would be merged silently.
//!
//! Merges, alignments and interpolations all use it.

mod check;
mod config;
mod pieces;
mod table;
mod tokens;

pub use check::{Waived, meanings, vocabularies};
pub use tokens::is_by_token;
