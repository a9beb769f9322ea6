//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod crash;
mod crash_merge;
mod faults;
mod hostile;
mod kill;
mod method;
mod mutants;
mod output;
mod output_crash;
mod output_verify;
mod program;
mod recheck;
mod recipe;
mod reference;
mod resume;
mod striped;
mod torch;
