//! Indexes the tensors of an open file's state dict, each checked against its storage.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;

use super::archive::{Archive, Member};
use super::fault::{Fault, Parsed};
use super::file::At;
use super::pickle::{self, Graph, Id, Input};
use super::rebuild::{self, Value, View};
use super::{TorchTensor, gather, legacy, state_dict};
use crate::dtype::Dtype;

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
const PICKLE_MAGIC: u8 = 0x80;
/// The byte range of `ustar` in a tar archive.
const TAR_MAGIC: Range<usize> = 257..262;

/// The memory of a tensor beside its name and dimensions, in bytes: the entry of the state dict,
/// its place, its identity, and its storage.
const TENSOR_BYTES: u64 = 768;
/// The memory of each dimension with its stride, in bytes, in the tensor and in its identity.
const DIMENSION_BYTES: u64 = 32;

pub(super) fn is_zip(head: &[u8]) -> bool {
    head.starts_with(ZIP_MAGIC)
}

pub(super) fn is_pickle(head: &[u8]) -> bool {
    head.first() == Some(&PICKLE_MAGIC)
}

/// The identity of a tensor's bytes: storage, offset, dtype, shape, strides. Equal ones are tied.
type Identity = (usize, u64, Dtype, Vec<u64>, Vec<u64>);

/// The tensors and storages that are found while a file is read.
#[derive(Default)]
pub(super) struct Index {
    pub(super) tensors: Vec<TorchTensor>,
    pub(super) storages: Vec<Member>,
    pub(super) skipped: Vec<String>,
    by_key: HashMap<String, usize>,
    first_of: HashMap<Identity, usize>,
    dims: u64,
    /// The memory left, in bytes.
    left: u64,
}

impl Index {
    /// Reads the index of the state dict under `key` in `file`, of any torch format, in at most
    /// `memory` bytes.
    pub(super) fn read(file: &File, key: Option<&str>, memory: u64) -> Parsed<Self> {
        let mut index = Self::default();
        let mut head = Vec::new();
        At::new(file, 0)?
            .take(TAR_MAGIC.end as u64)
            .read_to_end(&mut head)?;
        if is_zip(&head) {
            let mut archive = Archive::open(file, memory)?;
            let pickle = archive.pickle()?;
            // The buffer may have twice that capacity.
            let left = archive
                .left()
                .checked_sub(2 * pickle.len() as u64)
                .ok_or_else(pickle::too_much)?;
            let (graph, root) = pickle::read(&mut Input::new(pickle.as_slice(), left))?;
            drop(pickle);
            index.read_state(&graph, root, key, |key| archive.storage(key))?;
        } else if is_pickle(&head) {
            let legacy::Stream {
                graph,
                root,
                mut storages,
            } = legacy::read(file, memory)?;
            index.read_state(&graph, root, key, |key| {
                let range = storages.remove(key);
                let range = range
                    .ok_or_else(|| Fault::new(format!("storage {key:?} is not in the file")))?;
                Ok(Member::Stored(range))
            })?;
        } else if head.get(TAR_MAGIC) == Some(b"ustar") {
            return Err(
                Fault::new("is a tar archive as torch wrote them before version 0.2")
                    .with_hint("load it in torch and save it again"),
            );
        } else {
            return Err(Fault::new(
                "is neither a zip archive nor a pickle: torch.save did not write it",
            ));
        }
        Ok(index)
    }

    fn read_state(
        &mut self,
        graph: &Graph,
        root: Id,
        key: Option<&str>,
        mut find: impl FnMut(&str) -> Parsed<Member>,
    ) -> Parsed<()> {
        self.left = graph.left;
        for (name, id) in state_dict::entries(graph, root, key)? {
            if name.ends_with("_extra_state") {
                self.skipped.push(name);
                continue;
            }
            match rebuild::value(graph, id).map_err(|fault| fault.of(&name))? {
                Value::Tensor(view) => {
                    self.pay_for(&name, &view, graph)?;
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

    /// Reserves memory for a tensor. A pickle can share shapes, but this index cannot; honest files
    /// spell out each shape, in a byte or more per dimension.
    fn pay_for(&mut self, name: &str, view: &View<'_>, graph: &Graph) -> Parsed<()> {
        self.dims += view.shape.len() as u64 * 2;
        let bytes =
            TENSOR_BYTES + DIMENSION_BYTES * view.shape.len() as u64 + 3 * name.len() as u64;
        self.left = self.left.checked_sub(bytes).ok_or_else(pickle::too_much)?;
        if self.dims > graph.pickle_bytes {
            return Err(Fault::new(
                "the shapes of its tensors are out of all proportion to the file",
            ));
        }
        Ok(())
    }

    fn add(
        &mut self,
        name: String,
        view: View<'_>,
        find: impl FnMut(&str) -> Parsed<Member>,
    ) -> Parsed<()> {
        let storage = self.storage_of(&view, find)?;
        let View {
            storage: reference,
            dtype,
            offset,
            shape,
            strides,
        } = view;
        let first = reference.view.map_or(0, |(first, _)| first);
        let offset = offset
            .checked_add(first)
            .ok_or_else(|| Fault::new("its offset is no offset"))?;
        // The view's part of the storage, in elements of this tensor.
        let limit = match reference.view {
            Some((first, length)) => first.saturating_add(length).min(reference.elements),
            None => reference.elements * reference.element_bytes / (dtype.bits() / 8),
        };
        let reach = gather::reach(&shape, &strides)
            .and_then(|reach| reach.checked_add(offset))
            .filter(|_| {
                gather::elements(&shape)
                    .is_some_and(|count| count.checked_mul(dtype.bits()).is_some())
            })
            .ok_or_else(|| {
                Fault::new(format!(
                    "shape {shape:?} with strides {strides:?} is beyond any storage"
                ))
            })?;
        let empty = shape.contains(&0);
        if reach > limit && !empty {
            return Err(Fault::new(format!(
                "shape {shape:?} with strides {strides:?} from element {offset} reaches element {reach}; its storage \
                 {:?} ends at {limit}",
                reference.key
            )));
        }
        // The offset of an empty tensor does not matter, and is not checked.
        let offset = if empty { 0 } else { offset };
        let position = self.tensors.len();
        let identity = (storage, offset, dtype, shape.clone(), strides.clone());
        let first = *self.first_of.entry(identity).or_insert(position);
        let mut tensor = TorchTensor {
            name,
            dtype,
            shape,
            strides,
            alias_of: None,
            range: None,
            storage,
            offset,
        };
        tensor.alias_of = (first != position).then_some(first);
        tensor.range = self.range_of(&tensor);
        self.tensors.push(tensor);
        Ok(())
    }

    /// Returns the number of the storage of `view`. A new one is found in the file and must be long
    /// enough.
    fn storage_of(
        &mut self,
        view: &View<'_>,
        mut find: impl FnMut(&str) -> Parsed<Member>,
    ) -> Parsed<usize> {
        let reference = &view.storage;
        let storage = match self.by_key.get(reference.key) {
            Some(storage) => *storage,
            None => {
                self.storages.push(find(reference.key)?);
                self.by_key
                    .insert(reference.key.to_owned(), self.storages.len() - 1);
                self.storages.len() - 1
            }
        };
        let held = self.storages[storage].bytes();
        let wanted = reference
            .elements
            .checked_mul(reference.element_bytes)
            .filter(|wanted| *wanted <= held);
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
        let Member::Stored(held) = &self.storages[tensor.storage] else {
            return None;
        };
        let start = held.start + tensor.offset * (tensor.dtype.bits() / 8);
        gather::is_contiguous(&tensor.shape, &tensor.strides).then(|| start..start + tensor.bytes())
    }
}
