//! Reads checkpoints: a file, or a folder of shards, plain or compressed.
//!
//! [`Checkpoint::open`] reads headers only and checks everything that can be checked without the data. Bytes come through
//! a [`Source`] for each file, as [`Window`]s whose memory is given back when they are dropped. Input files are opened
//! for reading and never written to; whatever they hold ends in a value or one error.
//!
//! It does not decode tensors, does not decide what to read when, and makes no threads: that is the engine's.

mod bus;
mod file;
mod folder;
mod header;
mod index;
mod map;
mod positioned;
mod side;
mod source;
pub mod torch;
mod zst;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use indexmap::map::Entry;

use self::header::shown;
use self::map::MapSource;
use self::positioned::PositionedSource;
use self::source::{Identity, Input};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

pub use bus::guard_maps;
pub use file::{Container, InputFile};
pub use header::MAX_HEADER_BYTES;
pub use source::{Io, Source, SourceOptions, Window};
pub use zst::{FRAME_BYTES, SeekableWriter, compress_frame, compress_seekable};

/// Where a tensor is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a single number.
    pub shape: Vec<u64>,
    /// Which of [`Checkpoint::files`] holds it.
    pub file: usize,
    /// Its bytes, counted from the start of the uncompressed file; not necessarily aligned.
    pub bytes: Range<u64>,
}

/// A model as it is on disk: its files and, in their order, its tensors.
///
/// Every tensor's range was checked to lie in its file, to fit dtype and shape, and to overlap no other.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    root: PathBuf,
    folder: Option<PathBuf>,
    files: Vec<InputFile>,
    tensors: IndexMap<String, TensorEntry>,
}

impl Checkpoint {
    /// Opens a weight file, an index file, or a folder, and reads the headers.
    ///
    /// In a folder an index decides which shards there are; without one it is `model.safetensors`, else all loose shards
    /// together. Files are in the order of their names, tensors within a file in the order of their data.
    ///
    /// # Errors
    ///
    /// Nothing to read or not readable, an unknown format, missing shards, a header or an index that is damaged or does
    /// not fit the files, a tensor that is there twice.
    pub fn open(path: &Path) -> Result<Self> {
        let layout = folder::locate(path)?;
        let mut checkpoint =
            Self { root: path.to_owned(), folder: layout.folder, files: Vec::new(), tensors: IndexMap::new() };
        for (path, name) in layout.files {
            let (file, tensors) = file::inspect(path, name, checkpoint.files.len())?;
            checkpoint.files.push(file);
            checkpoint.add(tensors)?;
        }
        if let Some(index) = layout.index {
            index.check(&checkpoint.tensors, &checkpoint.files)?;
        }
        Ok(checkpoint)
    }

    fn add(&mut self, tensors: Vec<(String, TensorEntry)>) -> Result<()> {
        self.tensors.reserve(tensors.len());
        for (name, tensor) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(tensor);
                }
                Entry::Occupied(entry) => {
                    let (first, second) = (&self.files[entry.get().file].name, &self.files[tensor.file].name);
                    let cause = format!("tensor {} is in {first} and in {second}", shown(entry.key()));
                    return Err(Error::new(Kind::Input, "cannot open checkpoint", self.root.display(), cause));
                }
            }
        }
        Ok(())
    }

    /// What [`Checkpoint::open`] was given.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder, if the checkpoint is a folder; `None` for a single weight file.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The weight files.
    pub fn files(&self) -> &[InputFile] {
        &self.files
    }

    /// All tensors by name, in the order in which they lie in the files.
    pub fn tensors(&self) -> &IndexMap<String, TensorEntry> {
        &self.tensors
    }

    /// The model's `config.json`, keys in their order, if there is one beside the weights.
    ///
    /// # Errors
    ///
    /// It cannot be read, is not JSON, or is longer than 16 MiB.
    pub fn config(&self) -> Result<Option<serde_json::Value>> {
        side::config(self.folder().or_else(|| self.root.parent()).unwrap_or(Path::new(".")))
    }

    /// What stands in the folder beside weights: configs, tokenizer, templates, code, licence; sorted, relative to it.
    ///
    /// Looks into the folder and one level of sub-folders, leaves out hidden files, weights and their indexes in any
    /// format, sub-folders that hold weights, and thalweg's own manifest. Empty for a single weight file.
    ///
    /// # Errors
    ///
    /// A folder that cannot be listed, a link that leads nowhere or to a file of another name outside of the folder.
    pub fn side_files(&self) -> Result<Vec<PathBuf>> {
        self.folder.as_deref().map_or_else(|| Ok(Vec::new()), side::list)
    }

    /// Opens one of [`Checkpoint::files`] for reading.
    ///
    /// # Errors
    ///
    /// The file is gone, cannot be read, or is not the one any more whose header was read.
    ///
    /// # Panics
    ///
    /// If there is no file of that number.
    pub fn open_file(&self, file: usize, options: &SourceOptions) -> Result<Arc<dyn Source>> {
        let file = &self.files[file];
        let identity = Identity { len: file.len, modified_ns: file.modified_ns };
        let input = Input::reopen(&file.path, identity)?;
        Ok(match file.container {
            Container::Plain => open_plain(input, options.io),
            Container::ZstdSeekable => Arc::new(zst::SeekableSource::new(input)?),
            Container::ZstdStream => Arc::new(zst::StreamSource::new(input, file, options)),
        })
    }

    /// About how many bytes of memory this value takes.
    pub fn metadata_bytes(&self) -> u64 {
        /// An allocator's own bytes for a block, and the hash table's for an entry.
        const BLOCK_BYTES: usize = 16;
        let tensors = self.tensors.iter().map(|(name, tensor)| {
            let entry = size_of::<(String, TensorEntry)>() + 2 * size_of::<usize>();
            entry + name.capacity() + tensor.shape.capacity() * size_of::<u64>() + 3 * BLOCK_BYTES
        });
        let files = self.files.iter().map(|file| {
            let metadata = file.metadata.iter().map(|(key, value)| key.len() + value.len() + 6 * BLOCK_BYTES);
            size_of::<InputFile>() + file.path.as_os_str().len() + file.name.len() + metadata.sum::<usize>()
        });
        (size_of::<Self>() + tensors.sum::<usize>() + files.sum::<usize>()) as u64
    }
}

/// A source over a file that holds its bytes as they are.
fn open_plain(input: Input, io: Io) -> Arc<dyn Source> {
    match io {
        Io::Map => Arc::new(MapSource::new(input)),
        Io::Positioned => Arc::new(PositionedSource::new(input)),
    }
}
