//! The integration tests: one binary, a module per subject.

mod checkpoint;
mod recipe;
mod torch;
mod method;
mod reference;
