//! The integration tests: one binary, a module per subject.

mod align;
mod checkpoint;
mod columns;
mod coverage;
mod crash;
mod crash_merge;
mod forward;
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
mod striped;
mod torch;
mod whole;
