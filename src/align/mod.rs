//! Permutations that bring the units of one network into the order of another, so that a merge averages like with like.
//!
//! The units of a hidden layer can be listed in any order without changing what the network computes, so two networks
//! trained apart hide the same unit at different places (Ainsworth, Hayase, Srinivasa, "Git Re-Basin", 2023).
//!
//! - [`assignment`]: which unit goes with which, exactly, from a cost matrix.

pub mod assignment;
