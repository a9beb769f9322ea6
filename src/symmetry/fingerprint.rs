//! A fingerprint that tells models apart without reading all of their bytes.

use std::ops::Range;

use crate::checkpoint::{Checkpoint, Name, SourceOptions, TensorEntry};
use crate::error::Result;

/// The bytes of each tensor that are hashed.
const SAMPLE_BYTES: u64 = 256;

/// Hashes every tensor's name, type, shape and up to 256 bytes from its middle.
///
/// Two fine-tunes of one model have different hashes unless all of these bytes are equal. Copies of
/// a model have the same hash, however they are sharded.
///
/// # Errors
///
/// When a file cannot be read.
pub fn of(model: &Checkpoint) -> Result<String> {
    let options = SourceOptions::default();
    let mut names: Vec<(&Name, &TensorEntry)> = model.tensors().iter().collect();
    // Read in file order, so that compressed files are read from front to back.
    names.sort_by_key(|(_, entry)| (entry.file, entry.bytes.start));
    let mut open = None;
    let mut hashes = Vec::with_capacity(names.len());
    for (name, entry) in names {
        let source = match &open {
            Some((file, source)) if *file == entry.file => std::sync::Arc::clone(source),
            _ => model.open_file(entry.file, &options)?,
        };
        let bytes = source.load(middle(&entry.bytes))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{name:?} {} {:?}", entry.dtype, entry.shape).as_bytes());
        hasher.update(&bytes);
        hashes.push((name, hasher.finalize()));
        open = Some((entry.file, source));
    }
    hashes.sort_by_key(|(name, _)| *name);
    let mut all = blake3::Hasher::new();
    for (_, hash) in hashes {
        all.update(hash.as_bytes());
    }
    Ok(all.finalize().to_hex().to_string())
}

fn middle(bytes: &Range<u64>) -> Range<u64> {
    let len = bytes.end - bytes.start;
    let taken = len.min(SAMPLE_BYTES);
    let start = bytes.start + (len - taken) / 2;
    start..start + taken
}
