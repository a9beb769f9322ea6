//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod method;
mod recipe;
mod reference;
mod torch;
