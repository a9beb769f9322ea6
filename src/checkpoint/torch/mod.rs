//! Reading PyTorch's `.bin`, `.pt` and `.pth` files without Python and without running anything.
//!
//! [`TorchFile::open`] reads a file's directory and pickle, never its data, and gives an index: every tensor of the
//! state dict with its dtype, shape, strides and place. Tensors that lie in the file as they should, which is nearly
//! all there are, are read from there as byte ranges ([`TorchFile::contiguous`]); when some do not,
//! [`TorchFile::convert`] writes all of them to a safetensors file in bounded memory. Folders and their
//! `pytorch_model.bin.index.json` are the caller's matter.
//!
//! ```text
//!  archive   zip members ──┐                 pickle     opcodes ──► graph of nodes and calls
//!  legacy    stream        ├─► storages      state_dict which part of the graph is the state dict
//!                          └─► data.pkl ──►  rebuild    calls ──► views of storages ──► TorchTensor
//!                                            convert    gather ──► safetensors
//! ```
//!
//! The tar archives of torch 0.1, TorchScript programs and big-endian files are refused by name.

mod archive;
mod convert;
mod fault;
mod file;
mod gather;
mod legacy;
mod pickle;
mod rebuild;
mod state_dict;
mod storage;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use archive::{Archive, Member};
use fault::{Fault, Parsed};
use file::At;
use pickle::{Graph, Id, Input};
use rebuild::{Value, View};

use crate::dtype::Dtype;
use crate::error::{Error, Result};

/// One tensor of a state dict and where its bytes are.
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
    /// An earlier tensor, by its position, with the same dtype, shape, strides and bytes: the two are tied.
    pub alias_of: Option<usize>,
    /// Its bytes in the file when they lie there in order, `0..0` when it has none; otherwise it must be converted.
    pub range: Option<Range<u64>>,
    storage: usize,
    /// The first element's place in the storage, in elements.
    offset: u64,
}

impl TorchTensor {
    /// Bytes of its elements, each counted once per position.
    pub fn bytes(&self) -> u64 {
        gather::elements(&self.shape).map_or(u64::MAX, |count| count.saturating_mul(self.dtype.bits() / 8))
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
    /// Reads the index of the file at `path`: of its only state dict, or of the one under the dotted `key` (`.` is the
    /// top level).
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is damaged or of another format, names code to run, holds no state dict or
    /// several without a `key`, or holds a tensor that is quantized, sparse, of an unknown class or outside its storage.
    pub fn open(path: &Path, key: Option<&str>) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("cannot open torch checkpoint", path, error))?;
        let mut index = Index::default();
        index.read(&file, key).map_err(|fault| fault.on(path))?;
        let Index { tensors, storages, skipped, .. } = index;
        Ok(Self { path: path.to_owned(), file, tensors, storages, skipped })
    }

    /// The file's path, as it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every tensor, in the order of the state dict.
    pub fn tensors(&self) -> &[TorchTensor] {
        &self.tensors
    }

    /// The tensors that can be read from the file as they are, with their bytes' range in it.
    pub fn contiguous(&self) -> impl Iterator<Item = (&TorchTensor, Range<u64>)> {
        self.tensors.iter().filter_map(|tensor| Some((tensor, tensor.range.clone()?)))
    }

    /// Whether some tensor has no byte range in the file: it is strided, or its storage is compressed.
    pub fn needs_conversion(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.range.is_none())
    }

    /// Entries of the state dict that are no tensors (counters, settings, extra state) and were passed over.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }
}

/// Whether a file beginning with `head`, four bytes or more, may be a torch checkpoint rather than safetensors.
pub fn is_torch(head: &[u8]) -> bool {
    head.starts_with(ZIP_MAGIC) || head.starts_with(&[PICKLE_MAGIC])
}

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const PICKLE_MAGIC: u8 = 0x80;
/// Where a tar archive says `ustar`.
const TAR_MAGIC: Range<usize> = 257..262;

/// What makes two tensors the same bytes: storage, offset, dtype, shape, strides.
type Identity = (usize, u64, Dtype, Vec<u64>, Vec<u64>);

/// What is gathered while a file is read.
#[derive(Default)]
struct Index {
    tensors: Vec<TorchTensor>,
    storages: Vec<Member>,
    skipped: Vec<String>,
    by_key: HashMap<String, usize>,
    first_of: HashMap<Identity, usize>,
    dims: u64,
}

impl Index {
    fn read(&mut self, file: &File, key: Option<&str>) -> Parsed<()> {
        let mut head = Vec::new();
        At::new(file, 0)?.take(TAR_MAGIC.end as u64).read_to_end(&mut head)?;
        if head.starts_with(ZIP_MAGIC) {
            let mut archive = Archive::open(file)?;
            let pickle = archive.pickle()?;
            let (graph, root) = pickle::read(&mut Input::new(pickle.as_slice()))?;
            drop(pickle);
            self.read_state(&graph, root, key, |key| archive.storage(key))
        } else if head.first() == Some(&PICKLE_MAGIC) {
            let legacy::Stream { graph, root, mut storages } = legacy::read(file)?;
            self.read_state(&graph, root, key, |key| {
                let range = storages.remove(key);
                let range = range.ok_or_else(|| Fault::new(format!("storage {key:?} is not in the file")))?;
                Ok(Member::Stored(range))
            })
        } else if head.get(TAR_MAGIC) == Some(b"ustar") {
            Err(Fault::new("is a tar archive as torch wrote them before version 0.2")
                .with_hint("load it in torch and save it again"))
        } else {
            Err(Fault::new("is neither a zip archive nor a pickle: torch.save did not write it"))
        }
    }

    fn read_state(
        &mut self,
        graph: &Graph,
        root: Id,
        key: Option<&str>,
        mut find: impl FnMut(&str) -> Parsed<Member>,
    ) -> Parsed<()> {
        for (name, id) in state_dict::entries(graph, root, key)? {
            if name.ends_with("_extra_state") {
                self.skipped.push(name);
                continue;
            }
            match rebuild::value(graph, id).map_err(|fault| fault.of(&name))? {
                Value::Tensor(view) => {
                    self.pay_for(&view, graph)?;
                    let added = self.add(name.clone(), *view, &mut find);
                    added.map_err(|fault| fault.of(&name))?;
                }
                Value::Plain => self.skipped.push(name),
                Value::Opaque(what) => {
                    return Err(Fault::new(format!("is {what}, which is not a tensor"))
                        .with_hint("save a plain state dict of tensors with torch.save")
                        .of(&name));
                }
            }
        }
        if self.tensors.is_empty() {
            return Err(Fault::new("the state dict holds no tensor"));
        }
        Ok(())
    }

    /// Shapes can be shared in a pickle but not here; honest files spell out each one, in a byte or more a dimension.
    fn pay_for(&mut self, view: &View<'_>, graph: &Graph) -> Parsed<()> {
        self.dims += view.shape.len() as u64 * 2;
        if self.dims > graph.pickle_bytes {
            return Err(Fault::new("the shapes of its tensors are out of all proportion to the file"));
        }
        Ok(())
    }

    fn add(&mut self, name: String, view: View<'_>, find: impl FnMut(&str) -> Parsed<Member>) -> Parsed<()> {
        let storage = self.storage_of(&view, find)?;
        let View { storage: reference, dtype, offset, shape, strides } = view;
        let first = reference.view.map_or(0, |(first, _)| first);
        let offset = offset.checked_add(first).ok_or_else(|| Fault::new("its offset is no offset"))?;
        // The view's part of the storage, in elements of this tensor.
        let limit = match reference.view {
            Some((first, length)) => first.saturating_add(length).min(reference.elements),
            None => reference.elements * reference.element_bytes / (dtype.bits() / 8),
        };
        let reach = gather::reach(&shape, &strides)
            .and_then(|reach| reach.checked_add(offset))
            .filter(|_| gather::elements(&shape).is_some_and(|count| count.checked_mul(dtype.bits()).is_some()))
            .ok_or_else(|| Fault::new(format!("shape {shape:?} with strides {strides:?} is beyond any storage")))?;
        if reach > limit && gather::elements(&shape) != Some(0) {
            return Err(Fault::new(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} reaches element {reach}; its storage \
                 {:?} ends at {limit}",
                reference.key
            )));
        }
        let position = self.tensors.len();
        let identity = (storage, offset, dtype, shape.clone(), strides.clone());
        let first = *self.first_of.entry(identity).or_insert(position);
        let mut tensor = TorchTensor { name, dtype, shape, strides, alias_of: None, range: None, storage, offset };
        tensor.alias_of = (first != position).then_some(first);
        tensor.range = self.range_of(&tensor);
        self.tensors.push(tensor);
        Ok(())
    }

    /// The number of the storage that `view` looks at, found in the file when it is new and long enough.
    fn storage_of(&mut self, view: &View<'_>, mut find: impl FnMut(&str) -> Parsed<Member>) -> Parsed<usize> {
        let reference = &view.storage;
        let storage = match self.by_key.get(reference.key) {
            Some(storage) => *storage,
            None => {
                self.storages.push(find(reference.key)?);
                self.by_key.insert(reference.key.to_owned(), self.storages.len() - 1);
                self.storages.len() - 1
            }
        };
        let held = self.storages[storage].bytes();
        let wanted = reference.elements.checked_mul(reference.element_bytes).filter(|wanted| *wanted <= held);
        match wanted {
            Some(_) => Ok(storage),
            None => Err(Fault::new(format!(
                "storage {:?} should have {} elements of {} bytes; the file holds {held} bytes of it",
                reference.key, reference.elements, reference.element_bytes
            ))),
        }
    }

    fn range_of(&self, tensor: &TorchTensor) -> Option<Range<u64>> {
        if tensor.bytes() == 0 {
            return Some(0..0);
        }
        let Member::Stored(held) = &self.storages[tensor.storage] else { return None };
        let start = held.start + tensor.offset * (tensor.dtype.bits() / 8);
        gather::is_contiguous(&tensor.shape, &tensor.strides).then(|| start..start + tensor.bytes())
    }
}
