//! Reads PyTorch's `.bin`, `.pt` and `.pth` files without Python and without running any code.
//!
//! [`TorchFile::open`] reads a file's directory and pickle, never its data, and gives an index:
//! every tensor of the state dict with its dtype, shape, strides and place. Tensors whose bytes are
//! contiguous, nearly all in practice, are read from the file as byte ranges
//! ([`TorchFile::contiguous`]); if some are not, [`TorchFile::convert`] writes all of them to a
//! safetensors file in bounded memory. The caller handles folders and their
//! `pytorch_model.bin.index.json`.
//!
//! ```text
//!  archive   zip members ──┐                 pickle     opcodes ──► graph of nodes and calls
//!  legacy    stream        ├─► storages      state_dict which part of the graph is the state dict
//!                          └─► data.pkl ──►  rebuild    calls ──► views of storages ──► TorchTensor
//!                                            convert    gather ──► safetensors
//! ```
//!
//! The tar archives of torch 0.1, TorchScript programs and big-endian files are recognised and
//! refused.

mod archive;
mod convert;
mod fault;
mod file;
mod gather;
mod index;
mod legacy;
mod pickle;
mod rebuild;
mod state_dict;
mod storage;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use archive::Member;
use index::Index;

use crate::budget::default_bytes;
use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// One tensor of a state dict and the place of its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// Its name in the state dict.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first; empty for a scalar.
    pub shape: Vec<u64>,
    /// Its strides, in elements.
    pub strides: Vec<u64>,
    /// The position of an earlier tensor with the same dtype, shape, strides and bytes: the two are
    /// tied.
    pub alias_of: Option<usize>,
    /// Its byte range in the file if its bytes are in order, `0..0` if it is empty; `None` if it
    /// must be converted.
    pub range: Option<Range<u64>>,
    storage: usize,
    /// The first element's place in the storage, in elements.
    offset: u64,
}

impl TorchTensor {
    /// Returns the size of its elements in bytes, each counted once per position.
    pub fn bytes(&self) -> u64 {
        gather::elements(&self.shape).map_or(u64::MAX, |count| {
            count.saturating_mul(self.dtype.bits() / 8)
        })
    }
}

/// An open torch checkpoint: the index of its state dict.
#[derive(Debug)]
pub struct TorchFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TorchTensor>,
    storages: Vec<Member>,
    skipped: Vec<String>,
}

impl TorchFile {
    /// Reads the index of the file at `path`: of its only state dict, or of the one under the
    /// dotted `key` (`.` is the top level).
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be read, is damaged or of another format, names code to run,
    /// holds no state dict or several without a `key`, or holds a tensor that is quantized, sparse,
    /// of an unknown class or outside its storage.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        Self::open_within(path, key, default_bytes())
    }

    /// As [`open`](Self::open), in at most `memory` bytes of memory.
    ///
    /// # Errors
    ///
    /// As `open`, and when the contents need more memory.
    pub fn open_within(path: &Path, key: Option<&str>, memory: u64) -> Result<Self> {
        let file = crate::checkpoint::open_regular(path)
            .map_err(|error| Error::io("cannot open torch checkpoint", path, error))?;
        let Index {
            tensors,
            storages,
            skipped,
            ..
        } = Index::read(&file, key, memory).map_err(|fault| fault.on(path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            tensors,
            storages,
            skipped,
        })
    }

    /// Returns the file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns every tensor, in the order of the state dict.
    pub fn tensors(&self) -> &[TorchTensor] {
        &self.tensors
    }

    /// Returns the tensors that can be read from the file directly, with their byte ranges in it.
    pub fn contiguous(&self) -> impl Iterator<Item = (&TorchTensor, Range<u64>)> {
        self.tensors
            .iter()
            .filter_map(|tensor| Some((tensor, tensor.range.clone()?)))
    }

    /// Tells if some tensor has no byte range in the file: it is strided, or its storage is
    /// compressed.
    pub fn needs_conversion(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.range.is_none())
    }

    /// Hashes the list of tensors with all their fields and places.
    pub fn index_hash(&self) -> [u8; 32] {
        let mut hash = blake3::Hasher::new();
        // `Debug` shows every field; a hash that changes with the compiler costs no more than a
        // fresh start.
        hash.update(format!("{:?}", self.storages).as_bytes());
        for tensor in &self.tensors {
            hash.update(format!("{tensor:?}").as_bytes());
        }
        *hash.finalize().as_bytes()
    }

    /// Returns the skipped entries of the state dict that are not tensors (counters, settings,
    /// extra state).
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// Tells if a file that begins with `head`, four bytes or more, may be a torch checkpoint rather
/// than safetensors.
pub fn is_torch(head: &[u8]) -> bool {
    index::is_zip(head) || index::is_pickle(head)
}
