//! Helpers that several modules of tests share.
//!
//! - `reference`: an independent, plain merger in f64, the oracle.
//! - `forward`: small networks computed in f64.
//! - `program`: the program, run, watched, signalled.
//! - `whole`: whole merges through the library.
//! - `striped`: inputs of shards with seeded numbers; `small` and `slow` make models of them.
//! - `files`: temporary folders and their files.
//! - `crash`: a disk that loses power.

pub mod crash;
pub mod files;
pub mod forward;
pub mod program;
pub mod reference;
pub mod slow;
pub mod small;
pub mod striped;
pub mod whole;
