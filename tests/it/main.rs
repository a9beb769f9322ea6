//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod cli;
mod crash;
mod crash_merge;
mod kill;
mod memory;
mod merge;
mod method;
mod output;
mod output_crash;
mod output_verify;
mod program;
mod recipe;
mod reference;
mod resume;
mod striped;
mod torch;
