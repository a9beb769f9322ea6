//! To be filled.

pub mod torch;
