//! One weight file: its container, its header and its state when the header was read.

use std::io::{BufReader, Read};
use std::path::PathBuf;

use indexmap::IndexMap;

use super::header::Header;
use super::source::{Input, Source};
use super::{Name, TensorEntry, pickled, zst};
use crate::error::{Error, Kind, Result};

/// The wrapping of a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Container {
    /// No wrapping: ranges of the file are ranges of the data.
    Plain,
    /// zstd frames with a seek table, so that any range can be decoded.
    ZstdSeekable,
    /// One zstd stream, which must be expanded before ranges can be read.
    ZstdStream,
    /// A PyTorch file whose tensors are ranges of it.
    Torch,
    /// A PyTorch file that must be converted before ranges can be read.
    TorchConverted,
}

/// One weight file of a checkpoint, in its state when the header was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Its path.
    pub path: PathBuf,
    /// Its name in the folder.
    pub name: String,
    /// Its size on disk, in bytes.
    pub len: u64,
    /// The time of the last write, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// blake3 of the header: its length prefix and its JSON; of the index of a PyTorch file.
    pub header_hash: [u8; 32],
    /// The wrapping of its bytes.
    pub container: Container,
    /// Its size once unwrapped or converted, header included, in bytes.
    pub data_len: u64,
    /// The header's `__metadata__`.
    pub metadata: IndexMap<String, String>,
}

/// A file whose header was read.
pub(super) struct Inspected {
    pub file: InputFile,
    pub tensors: Vec<(Name, TensorEntry)>,
    /// Tensors that share their bytes with an earlier one, each with that one.
    pub ties: Vec<(String, String)>,
    pub warnings: Vec<String>,
}

/// Reads the header of a weight file that will be number `index` of its checkpoint; `key` leads to
/// the tensors in a PyTorch file with several state dicts, `memory` is the limit for reading, in
/// bytes.
pub(super) fn inspect(
    path: PathBuf,
    name: String,
    index: usize,
    key: Option<&str>,
    memory: u64,
) -> Result<Inspected> {
    let input = Input::open(&path)?;
    let container = zst::detect(&input)?;
    if container == Container::Plain && pickled::is_pickled(&input, &name)? {
        let inspected = pickled::inspect(&input, name, index, key, memory)?;
        input.unchanged()?;
        return Ok(inspected);
    }
    let identity = input.identity;
    let header = match container {
        Container::Plain => {
            let file = input
                .file()
                .map_err(|error| Error::io("cannot read", &path, error))?;
            Header::read(
                BufReader::new(&*file),
                Some(identity.len),
                &path,
                index,
                memory,
            )?
        }
        Container::ZstdSeekable => {
            let source = zst::SeekableSource::new(Input::reopen(&path, identity)?)?;
            Header::read(plain(&input)?, Some(source.len()), &path, index, memory)?
        }
        _ => Header::read(plain(&input)?, None, &path, index, memory)?,
    };
    input.unchanged()?;
    let file = InputFile {
        path,
        name,
        len: identity.len,
        modified_ns: identity.modified_ns,
        header_hash: header.hash,
        container,
        data_len: header.data_len,
        metadata: header.metadata,
    };
    Ok(Inspected {
        file,
        tensors: header.tensors,
        ties: Vec::new(),
        warnings: Vec::new(),
    })
}

fn plain(input: &Input) -> Result<impl Read> {
    zst::decoder(input).map_err(|error| {
        Error::new(
            Kind::Input,
            "cannot decompress",
            input.path.display(),
            error,
        )
    })
}
