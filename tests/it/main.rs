//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod columns;
mod coverage;
mod crash;
mod crash_merge;
mod karcher_script;
mod kill;
mod merge;
mod method;
mod mismatch;
mod output;
mod output_crash;
mod output_verify;
mod program;
mod recipe;
mod reference;
mod resume;
mod side;
mod striped;
mod torch;
mod torch_merge;
mod whole;
mod zstd;
