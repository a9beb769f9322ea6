//! The integration tests: one binary, a module per subject.

mod method;
mod reference;
