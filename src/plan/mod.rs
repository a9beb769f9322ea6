//! Recipe and headers in, a pure value out: what is written, from what, and where every byte of it goes.

pub mod layout;
