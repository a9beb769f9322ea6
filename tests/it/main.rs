//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod crash;
mod merge;
mod method;
mod output;
mod output_crash;
mod output_verify;
mod recipe;
mod reference;
mod torch;
