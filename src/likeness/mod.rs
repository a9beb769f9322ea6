//! Whether models mean the same by the same names and numbers: by the rows that belong to tokens,
//! by the axes that a config cuts into heads, groups and experts. Shapes do not tell, so that
//! weights which have nothing to do with each other would be merged without a word.
//!
//! Merges, alignments and interpolations ask here alike.

mod check;
mod config;
mod pieces;
mod table;
mod tokens;

pub use check::{Waived, meanings, vocabularies};
pub use tokens::is_by_token;
