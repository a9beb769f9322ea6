//! PyTorch files as parts of a checkpoint.
//!
//! Tensors whose bytes are in order are read from the file. A file with any other tensor is
//! converted, whole and once, into the scratch folder; the layout of the conversion is known when
//! the file is opened.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::file::{Container, InputFile, Inspected};
use super::header::{Header, check_name, shown};
use super::side::weight_format;
use super::source::{Input, Io, Source, SourceOptions, Window, within};
use super::torch::{TorchFile, is_torch};
use super::{Name, Recycler, TensorEntry, open_plain};
use crate::budget::default_bytes;
use crate::error::{Error, Kind, Result};

/// The peak memory of a conversion without the pickle, in bytes.
const CONVERSION_BYTES: u64 = 20 << 20;
/// The most entries that a warning names; the rest are counted.
const NAMED: usize = 3;

/// Tells if `input` must be read as a PyTorch file.
pub(super) fn is_pickled(input: &Input, name: &str) -> Result<bool> {
    let mut head = [0; 9];
    let read = input
        .read_at(&mut head, 0)
        .map_err(|error| Error::io("cannot read", &input.path, error))?;
    // A safetensors header of suitable length begins like a pickle, but its brace is where no torch
    // file has one.
    let is_json = read == head.len() && head[8] == b'{';
    Ok(match weight_format(name) {
        Some("safetensors") => false,
        // Other contents get the torch reader's error, which describes them best.
        Some("PyTorch") => !is_json,
        _ => is_torch(&head[..read]) && !is_json,
    })
}

/// Reads the index of a PyTorch file that will be number `index` of its checkpoint.
pub(super) fn inspect(
    input: &Input,
    name: String,
    index: usize,
    key: Option<&str>,
    memory: u64,
) -> Result<Inspected> {
    let torch = TorchFile::open_within(&input.path, key, memory.min(default_bytes()))?;
    let converted = torch.needs_conversion();
    let (tensors, data_len) = if converted {
        let header = Header::read(
            torch.header()?.as_slice(),
            None,
            &input.path,
            index,
            u64::MAX,
        )?;
        (header.tensors, header.data_len)
    } else {
        (in_place(&torch, index)?, input.identity.len)
    };
    let file = InputFile {
        path: input.path.clone(),
        name,
        len: input.identity.len,
        modified_ns: input.identity.modified_ns,
        header_hash: torch.index_hash(),
        container: if converted {
            Container::TorchConverted
        } else {
            Container::Torch
        },
        data_len,
        metadata: [("format".to_owned(), "pt".to_owned())]
            .into_iter()
            .collect(),
    };
    let all = torch.tensors();
    let ties = all
        .iter()
        .filter_map(|tensor| Some((tensor.name.clone(), all[tensor.alias_of?].name.clone())));
    Ok(Inspected {
        tensors,
        ties: ties.collect(),
        warnings: skipped(&torch, &file.name),
        file,
    })
}

fn in_place(torch: &TorchFile, file: usize) -> Result<Vec<(Name, TensorEntry)>> {
    let entry = |(tensor, bytes): (&super::torch::TorchTensor, Range<u64>)| {
        check_name(&tensor.name).map_err(|cause| {
            Error::new(
                Kind::Input,
                "cannot open checkpoint",
                torch.path().display(),
                cause,
            )
        })?;
        let entry = TensorEntry {
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            file,
            bytes,
        };
        Ok((tensor.name.as_str().into(), entry))
    };
    torch.contiguous().map(entry).collect()
}

/// Returns the warning about entries that are not tensors.
fn skipped(torch: &TorchFile, name: &str) -> Vec<String> {
    let names = torch.skipped();
    let listed: Vec<String> = names.iter().take(NAMED).map(|name| shown(name)).collect();
    let more = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    if names.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "{name}: left out what is no tensor: {}{more}",
        listed.join(", ")
    )]
}

/// A PyTorch file that is read through a safetensors copy in the scratch folder.
pub(super) struct ConvertedSource {
    input: Input,
    header_hash: [u8; 32],
    data_len: u64,
    key: Option<String>,
    /// The path of the copy, which may not exist yet.
    copy: Option<PathBuf>,
    io: Io,
    recycler: Arc<Recycler>,
    converted: Mutex<Option<Arc<dyn Source>>>,
}

impl ConvertedSource {
    /// Creates a source that converts the state dict under `key` into the scratch folder of
    /// `options` on the first load.
    pub fn new(input: Input, file: &InputFile, key: Option<&str>, options: &SourceOptions) -> Self {
        let copy = options
            .scratch
            .as_ref()
            .map(|scratch| scratch.join(super::zst::copy_name(&input, file)));
        let (header_hash, data_len, key) =
            (file.header_hash, file.data_len, key.map(str::to_owned));
        Self {
            input,
            header_hash,
            data_len,
            key,
            copy,
            io: options.io,
            recycler: Arc::default(),
            converted: Mutex::default(),
        }
    }

    /// The same source with windows in buffers of `recycler`.
    #[must_use]
    pub fn with_recycler(mut self, recycler: &Arc<Recycler>) -> Self {
        self.recycler = Arc::clone(recycler);
        self
    }

    fn converted(&self) -> Result<Arc<dyn Source>> {
        let mut converted = self
            .converted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = &*converted {
            return Ok(Arc::clone(source));
        }
        let Some(copy) = &self.copy else {
            let cause = "holds tensors that are compressed or not in order, and there is no scratch folder to convert in";
            return Err(
                Error::new(Kind::Input, "cannot read", self.input.path.display(), cause)
                    .with_hint("name a scratch folder, or save the model as safetensors"),
            );
        };
        let source = open_plain(self.convert(copy)?, self.io, &self.recycler);
        *converted = Some(Arc::clone(&source));
        Ok(source)
    }

    /// Creates the copy unless an earlier run has left it whole. The copy gets its final name only
    /// when it is durable.
    fn convert(&self, copy: &Path) -> Result<Input> {
        let held = copy.with_extension("lock");
        let broken = |error| Error::io("cannot convert into", &held, error);
        // The scratch folder is created at its first use: most merges never need it.
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder).map_err(broken)?;
        }
        // Another source may be converting the same file.
        let lock = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&held)
            .map_err(broken)?;
        lock.lock().map_err(broken)?;
        if let Ok(whole) = Input::open(copy) {
            if whole.identity.len == self.data_len {
                return Ok(whole);
            }
            fs::remove_file(copy).map_err(|error| Error::io("cannot replace", copy, error))?;
        }
        self.input.unchanged()?;
        let torch = TorchFile::open(&self.input.path, self.key.as_deref())?;
        if torch.index_hash() != self.header_hash {
            let cause = "changed while it was read: its index is another one";
            return Err(
                Error::new(Kind::Input, "cannot read", self.input.path.display(), cause).with_hint(
                    "let nothing write to the input checkpoints during a merge, then start again",
                ),
            );
        }
        torch.convert(copy)?;
        self.input.unchanged()?;
        Input::open(copy)
    }
}

impl Source for ConvertedSource {
    fn path(&self) -> &Path {
        &self.input.path
    }

    fn len(&self) -> u64 {
        self.data_len
    }

    fn prefetch(&self, range: Range<u64>) {
        // Converting takes long, so prefetch neither starts it nor waits for it.
        if let Ok(converted) = self.converted.try_lock()
            && let Some(source) = &*converted
        {
            source.prefetch(range);
        }
    }

    fn load(&self, range: Range<u64>) -> Result<Window> {
        within(&range, self.data_len, &self.input.path)?;
        self.input.unchanged()?;
        self.converted()?.load(range)
    }

    fn overhead_bytes(&self) -> u64 {
        CONVERSION_BYTES
    }
}
