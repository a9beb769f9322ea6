//! The checksums of the output: BLAKE3 in blocks, so that any part of a tensor can be checked
//! alone.
//!
//! A tensor's bytes are cut into check blocks of [`CHECK_BLOCK`], counted from the tensor's start.
//! In a tensor of one block the block's value is the plain hash. In a longer tensor each value is
//! the chaining value of the BLAKE3 subtree over that block (BLAKE3 paper, section 2.1), and
//! merging them gives the plain hash of all bytes. So one pass over the data yields both the values
//! that a resume checks and a hash that any other tool can compute.

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::error::Result;
use crate::journal::Value;

/// The size of a check block, in bytes: a power of two, so that every block is a whole BLAKE3
/// subtree.
pub const CHECK_BLOCK: u64 = 1 << 24;

/// The bytes that are read at a time when blocks are checked.
const READ_BYTES: usize = 1 << 20;

/// Counts the check blocks of a tensor of `len` bytes; an empty tensor has none.
pub fn block_count(len: u64) -> u64 {
    len.div_ceil(CHECK_BLOCK)
}

/// Returns the byte range of block number `block` in a tensor of `len` bytes.
pub fn block_range(len: u64, block: u64) -> Range<u64> {
    let start = block.saturating_mul(CHECK_BLOCK).min(len);
    start..start.saturating_add(CHECK_BLOCK).min(len)
}

/// Computes the BLAKE3 hash of a tensor of `len` bytes from its blocks' values; equal to the plain
/// hash of its bytes.
///
/// # Panics
///
/// Panics when the number of values is not [`block_count`].
pub fn root(len: u64, values: &[Value]) -> Value {
    assert_eq!(
        u64::try_from(values.len()),
        Ok(block_count(len)),
        "a value for each block"
    );
    match values {
        [] => *blake3::hash(&[]).as_bytes(),
        [only] => *only,
        _ => {
            let (left, right) = halves(values);
            *merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes()
        }
    }
}

/// Hashes the parts of a file together: the BLAKE3 hash of the header's hash (32 bytes), followed
/// by the hash of each tensor in file order. All empty tensors have the same hash, so their order
/// at one offset does not matter.
pub fn digest_of_hashes(header: &Value, tensors: impl Iterator<Item = Value>) -> Value {
    let mut hasher = blake3::Hasher::new();
    hasher.update(header);
    tensors.for_each(|hash| {
        hasher.update(&hash);
    });
    *hasher.finalize().as_bytes()
}

fn subtree(values: &[Value]) -> Value {
    match values {
        [only] => *only,
        _ => {
            let (left, right) = halves(values);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// Splits the values at the largest power of two that leaves some for the right subtree.
fn halves(values: &[Value]) -> (&[Value], &[Value]) {
    values.split_at(values.len().div_ceil(2).next_power_of_two())
}

/// Hashes one check block.
struct BlockHasher {
    hasher: Box<blake3::Hasher>,
    is_whole_tensor: bool,
}

impl BlockHasher {
    fn new(tensor_len: u64, block: u64) -> Self {
        let mut hasher = Box::new(blake3::Hasher::new());
        hasher.set_input_offset(block * CHECK_BLOCK);
        Self {
            hasher,
            is_whole_tensor: tensor_len <= CHECK_BLOCK,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn finish(self) -> Value {
        if self.is_whole_tensor {
            *self.hasher.finalize().as_bytes()
        } else {
            self.hasher.finalize_non_root()
        }
    }
}

/// Hashes a tensor's bytes in order, as they are written.
pub struct TensorHasher {
    len: u64,
    hashed: u64,
    values: Vec<Value>,
    open: Option<BlockHasher>,
}

impl TensorHasher {
    /// Creates a hasher for a tensor of `len` bytes that continues behind the blocks with known
    /// `values`.
    pub fn resume(len: u64, values: Vec<Value>) -> Self {
        let blocks = u64::try_from(values.len()).expect("a count fits 64 bits");
        Self {
            len,
            hashed: block_range(len, blocks).start,
            values,
            open: None,
        }
    }

    /// Hashes the next bytes.
    ///
    /// # Panics
    ///
    /// Panics when the bytes reach beyond the tensor's end.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let block = self.hashed / CHECK_BLOCK;
            let end = block_range(self.len, block).end;
            assert!(self.hashed < end, "bytes beyond the tensor's end");
            let open = self
                .open
                .get_or_insert_with(|| BlockHasher::new(self.len, block));
            let room = usize::try_from(end - self.hashed).expect("a check block fits memory");
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            open.update(taken);
            self.hashed += u64::try_from(taken.len()).expect("a length fits 64 bits");
            if self.hashed == end {
                self.values
                    .extend(self.open.take().map(BlockHasher::finish));
            }
            bytes = rest;
        }
    }

    /// Returns the number of bytes hashed, those of known blocks included.
    pub fn hashed(&self) -> u64 {
        self.hashed
    }

    /// Returns the values of the whole blocks.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Tells if all of the tensor was hashed.
    pub fn is_whole(&self) -> bool {
        self.hashed == self.len
    }
}

/// Computes the value of a block in a tensor of `len` bytes. `read` fills a buffer from an offset
/// in the tensor.
///
/// # Errors
///
/// Whatever `read` fails with.
pub fn hash_block(
    len: u64,
    block: u64,
    read: &mut dyn FnMut(&mut [u8], u64) -> Result<()>,
) -> Result<Value> {
    let range = block_range(len, block);
    let mut hasher = BlockHasher::new(len, block);
    let mut buffer = vec![
        0;
        usize::try_from(range.end - range.start)
            .unwrap_or(READ_BYTES)
            .min(READ_BYTES)
    ];
    let mut at = range.start;
    while at < range.end {
        let wanted = usize::try_from(range.end - at)
            .unwrap_or(READ_BYTES)
            .min(buffer.len());
        read(&mut buffer[..wanted], at)?;
        hasher.update(&buffer[..wanted]);
        at += u64::try_from(wanted).expect("a length fits 64 bits");
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn painted(len: u64) -> Vec<u8> {
        (0..len)
            .map(|i| u8::try_from(i % 251).expect("below 251"))
            .collect()
    }

    fn blocks_read_back(bytes: &[u8]) -> Vec<Value> {
        let len = u64::try_from(bytes.len()).expect("small");
        let mut read = |buffer: &mut [u8], at: u64| {
            let at = usize::try_from(at).expect("small");
            buffer.copy_from_slice(&bytes[at..at + buffer.len()]);
            Ok(())
        };
        (0..block_count(len))
            .map(|block| hash_block(len, block, &mut read).expect("in memory"))
            .collect()
    }

    #[test]
    fn merged_values_equal_the_plain_hash_at_every_boundary() {
        let edge = CHECK_BLOCK;
        for len in [
            0,
            1,
            1024,
            edge - 1,
            edge,
            edge + 1,
            2 * edge - 1,
            2 * edge,
            2 * edge + 1,
            3 * edge,
            5 * edge + 7,
        ] {
            let bytes = painted(len);
            let mut hasher = TensorHasher::resume(len, vec![]);
            for piece in bytes.chunks(999_983) {
                hasher.update(piece);
            }
            assert!(hasher.is_whole());
            assert_eq!(
                root(len, hasher.values()),
                *blake3::hash(&bytes).as_bytes(),
                "{len} bytes"
            );
            assert_eq!(hasher.values(), blocks_read_back(&bytes), "{len} bytes");
        }
    }

    #[test]
    fn every_number_of_blocks_merges_to_the_plain_hash() {
        // The tree's shape depends on the block count alone, so comparing up to nine blocks is
        // enough.
        let bytes = painted(9 * CHECK_BLOCK);
        for blocks in 2..=9u64 {
            let part = &bytes[..usize::try_from(blocks * CHECK_BLOCK - 5).expect("small")];
            let len = u64::try_from(part.len()).expect("small");
            assert_eq!(
                root(len, &blocks_read_back(part)),
                *blake3::hash(part).as_bytes(),
                "{blocks} blocks"
            );
        }
    }

    #[test]
    fn hashing_goes_on_behind_known_blocks() {
        let len = 2 * CHECK_BLOCK + 100;
        let bytes = painted(len);
        let whole = blocks_read_back(&bytes);
        for known in 0..=3usize {
            let mut hasher = TensorHasher::resume(len, whole[..known].to_vec());
            hasher.update(&bytes[usize::try_from(hasher.hashed()).expect("small")..]);
            assert_eq!(hasher.values(), whole);
        }
    }
}
