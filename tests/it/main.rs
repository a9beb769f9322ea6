//! The integration tests: one binary, a module per subject.

mod crash;
mod output;
mod output_crash;
mod output_verify;
