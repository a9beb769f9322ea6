//! Shards, index, side files, manifest, and the file operations under them.

pub mod checksum;
pub mod storage;
