//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod columns;
mod coverage;
mod crash;
mod method;
mod mismatch;
mod output;
mod output_crash;
mod output_verify;
mod recipe;
mod reference;
mod torch;
mod torch_merge;
mod whole;
