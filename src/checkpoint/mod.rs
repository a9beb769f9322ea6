//! Reads checkpoints: a file or a folder of shards, in plain or compressed safetensors or in the
//! format of `torch.save`.
//!
//! [`Checkpoint::open`] reads headers only and makes all checks that need no data. Bytes come
//! through a [`Source`] for each file, as [`Window`]s whose memory is freed when they are dropped.
//! Input files are opened for reading and never written to; any contents give a value or one error.
//!
//! The module does not decode tensors, schedule reads or create threads: the engine does.

mod adapter;
mod bus;
mod component;
mod file;
mod folder;
mod header;
mod index;
mod leftover;
mod map;
mod names;
mod nested;
mod opened;
mod parts;
mod pickled;
mod positioned;
pub mod quantised;
mod recycled;
mod regular;
mod rivals;
mod side;
mod source;
mod strings;
pub mod torch;
mod zst;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arcstr::ArcStr;
use indexmap::IndexMap;
use indexmap::map::Entry;

use self::header::shown;
use self::map::MapSource;
use self::pickled::ConvertedSource;
use self::positioned::PositionedSource;
use self::quantised::Stored;
use self::source::{Identity, Input};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

pub use bus::guard_maps;
pub use file::{Container, InputFile};
pub use header::MAX_HEADER_BYTES;
pub use names::Names;
pub use recycled::Recycler;
pub use regular::{create_anew, open_regular};
pub use side::{Beside, MANIFEST_NAME, look as look_beside};
pub use source::{Io, Source, SourceOptions, Window};
pub use zst::{FRAME_BYTES, SeekableWriter, compress_frame, compress_seekable};

/// The endings of the names of output heads that models tie to their input embeddings.
const HEADS: [&str; 3] = ["lm_head.weight", "embed_out.weight", "output.weight"];

/// The name of a tensor: one text, shared by all users of the tensor.
pub type Name = ArcStr;

/// The place, type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorEntry {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first; empty for a single number.
    pub shape: Vec<u64>,
    /// The index of its file in [`Checkpoint::files`].
    pub file: usize,
    /// Its byte range in the uncompressed or converted file; not necessarily aligned.
    pub bytes: Range<u64>,
}

/// A model on disk: its files and, in their order, its tensors.
///
/// Every tensor's range is checked: it lies in its file, fits dtype and shape, and overlaps no
/// other, except that tied tensors of a PyTorch file share their range.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    root: PathBuf,
    folder: Option<PathBuf>,
    files: Vec<InputFile>,
    tensors: IndexMap<Name, TensorEntry>,
    state_dict_key: Option<String>,
    left_out: Vec<(String, String)>,
    warnings: Vec<String>,
    stored: Stored,
}

/// The options for opening a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// The dotted key of the tensors in a PyTorch file; needed only when it holds several state
    /// dicts.
    pub state_dict_key: Option<String>,
    /// The memory limit of the headers, while they are read and afterwards, in bytes; `None` for no
    /// limit.
    pub memory: Option<u64>,
    /// True if codes of quantised weights and their scales are read as the stored numbers.
    pub raw_codes: bool,
    /// True if one shard of several is opened as a whole checkpoint.
    pub shard_alone: bool,
    /// True if a folder may be a pipeline: without weights of its own, but with a file that lists
    /// components.
    pub pipeline: bool,
}

impl Checkpoint {
    /// Opens a checkpoint as [`open_with`](Self::open_with) does, with the usual options.
    ///
    /// # Errors
    ///
    /// As [`open_with`](Self::open_with).
    ///
    /// # Examples
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = models()?;
    /// # let text = recipe(folder.path());
    /// # let model = folder.path().join("a");
    /// let checkpoint = thalweg::Checkpoint::open(&model)?;
    /// let tensor = &checkpoint.tensors()["layers.0.weight"];
    /// assert_eq!((tensor.dtype, tensor.shape.as_slice()), (thalweg::Dtype::F32, &[4, 8][..]));
    /// # Ok(())
    /// # }
    /// ```
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &OpenOptions::default())
    }

    /// Opens a weight file, an index file, or a folder, and reads the headers.
    ///
    /// In a folder it reads `model.safetensors`, as in transformers; without that file the shards
    /// of an index, without an index all loose shards. A folder of the hub's cache stands for its
    /// main snapshot. A folder without safetensors is searched for PyTorch files in the same way.
    /// Files are in the order of their names, tensors within a file in the order of their data, in
    /// a PyTorch file in that of the state dict. An output head is left out if it is stored again
    /// although the config ties it to the embeddings. A pipeline, if allowed, is opened without its
    /// components; see [`Checkpoint::attach`].
    ///
    /// # Errors
    ///
    /// A missing or unreadable path, an unknown format, missing shards, a damaged header or index
    /// or one that does not fit the files, a duplicate tensor; an adapter; quantised weights,
    /// unless `raw_codes` is set.
    pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let layout = folder::locate(path, options.shard_alone, options.pipeline)?;
        let mut checkpoint = Self {
            root: path.to_owned(),
            folder: layout.folder,
            files: Vec::new(),
            tensors: IndexMap::new(),
            state_dict_key: options.state_dict_key.clone(),
            left_out: Vec::new(),
            warnings: layout.rivals.into_iter().collect(),
            stored: Stored::Plain,
        };
        let mut ties = Vec::new();
        let mut held = 0;
        for (path, name) in layout.files {
            let left = options
                .memory
                .map_or(u64::MAX, |memory| memory.saturating_sub(held));
            let found = file::inspect(
                path,
                name,
                checkpoint.files.len(),
                options.state_dict_key.as_deref(),
                left,
            )?;
            held += found
                .tensors
                .iter()
                .map(|(name, tensor)| entry_bytes(name, tensor))
                .sum::<u64>();
            checkpoint.files.push(found.file);
            checkpoint.add(found.tensors)?;
            checkpoint.warnings.extend(found.warnings);
            ties.extend(found.ties);
        }
        if let Some(index) = layout.index {
            index.check(&checkpoint.tensors, &checkpoint.files)?;
        }
        checkpoint.untie(ties)?;
        checkpoint.judge(options)?;
        Ok(checkpoint)
    }

    /// Refuses anything but a model of plain numbers: adapters, and quantised weights unless
    /// `raw_codes` is set.
    fn judge(&mut self, options: &OpenOptions) -> Result<()> {
        if let Some(error) =
            adapter::refusal(&self.root, self.tensors.keys().map(|name| name.as_str()))
        {
            return Err(error);
        }
        let shapes = self
            .tensors
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.shape.as_slice()));
        if let Some(error) = parts::refuse_stubs(&self.root, shapes) {
            return Err(error);
        }
        self.stored = quantised::look(self.config_folder(), &self.files, &self.tensors);
        match &self.stored {
            Stored::Codes(codes) if !options.raw_codes => return Err(codes.refusal(&self.root)),
            Stored::Codes(codes) => self.warnings.push(codes.warning()),
            Stored::Stale(claim) => self.warnings.push(format!(
                "says that its weights are quantised ({claim}), but they are stored as plain numbers: that is taken as out \
                 of date, and is left out of the output"
            )),
            Stored::Plain | Stored::RoundedInUse => {}
        }
        Ok(())
    }

    /// Leaves out an output head that shares its bytes with the embeddings if the config ties them.
    /// If both were written, loaders would tie them, but the file would no longer show it.
    fn untie(&mut self, ties: Vec<(String, String)>) -> Result<()> {
        let is_head = |name: &str| HEADS.iter().any(|head| name.ends_with(head));
        let pairs = ties.into_iter().filter_map(|(later, first)| {
            match (is_head(&later), is_head(&first)) {
                (true, false) => Some((later, first)),
                (false, true) => Some((first, later)),
                _ => None,
            }
        });
        let pairs: Vec<_> = pairs.collect();
        let tied =
            |config: &serde_json::Value| config.get("tie_word_embeddings") == Some(&true.into());
        if pairs.is_empty()
            || !self
                .config()?
                .is_some_and(|config| tied(&config) || config.get("text_config").is_some_and(tied))
        {
            return Ok(());
        }
        for (head, embeddings) in pairs {
            if self.tensors.shift_remove(head.as_str()).is_some() {
                self.left_out.push((
                    head,
                    format!("it is {embeddings}, tied to it by the config"),
                ));
            }
        }
        Ok(())
    }

    /// Renames each tensor to the result of `new_name`; `None` keeps its name. The order stays.
    ///
    /// # Errors
    ///
    /// The errors of `new_name`, and two tensors with the same new name.
    pub fn rename(
        &mut self,
        mut new_name: impl FnMut(&str) -> Result<Option<String>>,
    ) -> Result<()> {
        let mut renamed = IndexMap::with_capacity(self.tensors.len());
        for (name, tensor) in std::mem::take(&mut self.tensors) {
            let to = new_name(&name)?.map_or_else(|| name.clone(), Name::from);
            let Some((first, _)) = renamed.insert(to.clone(), (name.clone(), tensor)) else {
                continue;
            };
            let cause = format!(
                "{} and {} would both be called {}",
                shown(&first),
                shown(&name),
                shown(&to)
            );
            return Err(Error::new(
                Kind::Mismatch,
                "cannot rename tensors",
                self.root.display(),
                cause,
            )
            .with_hint("write rules that give every tensor a name of its own"));
        }
        self.tensors = renamed
            .into_iter()
            .map(|(name, (_, tensor))| (name, tensor))
            .collect();
        Ok(())
    }

    fn add(&mut self, tensors: Vec<(Name, TensorEntry)>) -> Result<()> {
        self.tensors.reserve(tensors.len());
        for (name, tensor) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => {
                    entry.insert(tensor);
                }
                Entry::Occupied(entry) => {
                    let (first, second) = (
                        &self.files[entry.get().file].name,
                        &self.files[tensor.file].name,
                    );
                    let cause = format!(
                        "tensor {} is in {first} and in {second}",
                        shown(entry.key())
                    );
                    return Err(Error::new(
                        Kind::Input,
                        "cannot open checkpoint",
                        self.root.display(),
                        cause,
                    )
                    .with_hint("if these are files of several models, name one of them"));
                }
            }
        }
        Ok(())
    }

    /// Returns the path that [`Checkpoint::open`] was given.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder; `None` for a single weight file.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Returns the weight files.
    pub fn files(&self) -> &[InputFile] {
        &self.files
    }

    /// Returns all tensors by name, in their order in the files.
    pub fn tensors(&self) -> &IndexMap<Name, TensorEntry> {
        &self.tensors
    }

    /// Returns the stored tensors that are not among [`Checkpoint::tensors`], each with the reason.
    pub fn left_out(&self) -> &[(String, String)] {
        &self.left_out
    }

    /// Returns the warnings about the files.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the storage of the weights: numbers, or codes that are read raw.
    pub fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Reads the model's `config.json`, keys in their order, if there is one beside the weights.
    ///
    /// # Errors
    ///
    /// Fails when the config cannot be read, is not JSON, or is longer than 16 MiB.
    pub fn config(&self) -> Result<Option<serde_json::Value>> {
        side::config(self.config_folder())
    }

    /// Returns the folder with the model's config.
    fn config_folder(&self) -> &Path {
        let parent = || {
            self.root
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty())
        };
        self.folder().or_else(parent).unwrap_or(Path::new("."))
    }

    /// Lists the files beside the weights: configs, tokenizer, templates, code, licence; sorted,
    /// relative to the folder.
    ///
    /// Searches the folder and one level of sub-folders. Leaves out hidden files, weights and their
    /// indexes in any format, sub-folders with weights, leftovers of a training run, and thalweg's
    /// own manifest. Empty for a single weight file.
    ///
    /// # Errors
    ///
    /// A folder that cannot be listed, a dangling link, or a link to a file of another name outside
    /// the folder.
    pub fn side_files(&self) -> Result<Vec<PathBuf>> {
        self.folder
            .as_deref()
            .map_or_else(|| Ok(Vec::new()), side::list)
    }

    /// Opens one of [`Checkpoint::files`] for reading.
    ///
    /// # Errors
    ///
    /// Fails when the file is gone, cannot be read, or was changed since its header was read.
    ///
    /// # Panics
    ///
    /// Panics when there is no file of that number.
    pub fn open_file(&self, file: usize, options: &SourceOptions) -> Result<Arc<dyn Source>> {
        self.open_file_with(file, options, &Arc::default())
    }

    /// As [`open_file`](Self::open_file), with buffers of `recycler` where bytes are copied: for
    /// files that are read one after the other, whose windows are paid for together.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_file_with(
        &self,
        file: usize,
        options: &SourceOptions,
        recycler: &Arc<Recycler>,
    ) -> Result<Arc<dyn Source>> {
        let file = &self.files[file];
        let identity = Identity {
            len: file.len,
            modified_ns: file.modified_ns,
        };
        let input = Input::reopen(&file.path, identity)?;
        Ok(match file.container {
            Container::Plain | Container::Torch => open_plain(input, options.io, recycler),
            Container::TorchConverted => {
                let key = self.state_dict_key.as_deref();
                let source = ConvertedSource::new(input, file, key, options);
                Arc::new(source.with_recycler(recycler))
            }
            Container::ZstdSeekable => Arc::new(zst::SeekableSource::new(input)?),
            Container::ZstdStream => {
                let source = zst::StreamSource::new(input, file, options);
                Arc::new(source.with_recycler(recycler))
            }
        })
    }

    /// Estimates the memory that this value takes, in bytes.
    pub fn metadata_bytes(&self) -> u64 {
        let tensors: u64 = self
            .tensors
            .iter()
            .map(|(name, tensor)| entry_bytes(name, tensor))
            .sum();
        let files = self.files.iter().map(|file| {
            let metadata = file
                .metadata
                .iter()
                .map(|(key, value)| key.len() + value.len() + 6 * BLOCK_BYTES);
            size_of::<InputFile>()
                + file.path.as_os_str().len()
                + file.name.len()
                + metadata.sum::<usize>()
        });
        tensors + (size_of::<Self>() + files.sum::<usize>()) as u64
    }
}

/// The overhead of an allocator for a block, and of the hash table for an entry, in bytes.
const BLOCK_BYTES: usize = 16;

/// Estimates the memory of a tensor in [`Checkpoint::tensors`], in bytes.
fn entry_bytes(name: &Name, tensor: &TensorEntry) -> u64 {
    let entry = size_of::<(Name, TensorEntry)>() + 2 * size_of::<usize>();
    (entry + name.len() + tensor.shape.capacity() * size_of::<u64>() + 3 * BLOCK_BYTES) as u64
}

/// Opens a source over a plain file.
fn open_plain(input: Input, io: Io, recycler: &Arc<Recycler>) -> Arc<dyn Source> {
    match io {
        Io::Map => Arc::new(MapSource::new(input)),
        Io::Positioned => Arc::new(PositionedSource::new(input, Arc::clone(recycler))),
    }
}
