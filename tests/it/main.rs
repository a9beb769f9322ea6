//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod method;
mod recipe;
mod reference;
mod torch;
mod crash;
mod output;
mod output_crash;
mod output_verify;
