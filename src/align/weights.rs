//! The weights of a model as f32 numbers, in any range of a tensor and in any order: from files or
//! from memory, stored or transformed.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;

use crate::checkpoint::{Checkpoint, Source, SourceOptions, Window};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use crate::linalg::Columns;
use crate::symmetry::Alignment;
use crate::view::{Aligned, Below, Gather, Readable, Stored};

/// Elements that are converted at a time.
const PIECE: u64 = 1 << 16;

/// Pieces of fewer bytes are not worth a window of their own.
const WINDOW_BYTES: u64 = 1 << 16;

/// Tensors that are read as numbers.
pub trait Weights: Send + Sync {
    /// Returns the dimensions of a tensor, outermost first; `None` if there is no such tensor.
    fn shape(&self, tensor: &str) -> Option<&[u64]>;

    /// Opens a tensor for reading with the columns of its rows in their stored order, and returns
    /// how they are to be reordered; `None` if more than that, or nothing, is done inside rows.
    ///
    /// # Errors
    ///
    /// As [`Weights::tensor`].
    fn apart(&self, tensor: &str) -> Result<Option<(Box<dyn Numbers + '_>, Columns)>> {
        let _ = tensor;
        Ok(None)
    }

    /// Opens a tensor for reading.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when there is no such tensor, or its elements are not floats.
    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>>;
}

/// One tensor's elements in row-major order.
pub trait Numbers: Send {
    /// Fills `into` with the elements of `range`, which has the same length; wider types are
    /// rounded to f32.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read.
    fn read(&mut self, range: Range<u64>, into: &mut [f32]) -> Result<()>;

    /// Announces that `range` will be read soon.
    fn prefetch(&self, range: Range<u64>);
}

/// A model's stored tensors, in files or in memory.
pub struct Store {
    tensors: IndexMap<String, Entry>,
    kernels: Kernels,
}

struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    offset: u64,
    source: Arc<dyn Source>,
}

impl Entry {
    fn stored(&self) -> Stored<'_> {
        Stored {
            source: self.source.as_ref(),
            offset: self.offset,
            unit: self.dtype.bytes() as u64,
        }
    }
}

impl Store {
    /// Opens the files of a checkpoint and takes its tensors.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be opened.
    pub fn open(model: &Checkpoint, options: &SourceOptions, kernels: Kernels) -> Result<Self> {
        let sources = (0..model.files().len())
            .map(|file| model.open_file(file, options))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            tensors: model
                .tensors()
                .iter()
                .map(|(name, entry)| {
                    let entry = Entry {
                        dtype: entry.dtype,
                        shape: entry.shape.clone(),
                        offset: entry.bytes.start,
                        source: Arc::clone(&sources[entry.file]),
                    };
                    (name.to_string(), entry)
                })
                .collect(),
            kernels,
        })
    }

    /// Makes a store of tensors with these shapes and row-major elements.
    ///
    /// # Panics
    ///
    /// Panics if a tensor's number of elements does not match its shape.
    pub fn in_memory(
        tensors: impl IntoIterator<Item = (String, Vec<u64>, Vec<f32>)>,
        kernels: Kernels,
    ) -> Self {
        let tensors = tensors.into_iter().map(|(name, shape, elements)| {
            assert_eq!(
                elements.len() as u64,
                shape.iter().product::<u64>(),
                "`{name}` has another shape"
            );
            let source: Arc<dyn Source> = Arc::new(Memory {
                path: PathBuf::from(&name),
                bytes: bytemuck::cast_slice(&elements).to_vec(),
            });
            (name, shape, source)
        });
        Self::of_sources(tensors, Dtype::F32, kernels)
    }

    /// Makes a store of tensors with these shapes, each from the start of its source on.
    pub(super) fn of_sources(
        tensors: impl IntoIterator<Item = (String, Vec<u64>, Arc<dyn Source>)>,
        dtype: Dtype,
        kernels: Kernels,
    ) -> Self {
        Self {
            tensors: tensors
                .into_iter()
                .map(|(name, shape, source)| {
                    let entry = Entry {
                        dtype,
                        shape,
                        offset: 0,
                        source,
                    };
                    (name, entry)
                })
                .collect(),
            kernels,
        }
    }

    /// Returns the kernels that convert the elements.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Returns the dimensions of all tensors.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[u64])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
    }

    /// Returns the type in which a tensor's elements are stored.
    pub fn dtype(&self, tensor: &str) -> Option<Dtype> {
        self.tensors.get(tensor).map(|entry| entry.dtype)
    }

    fn entry(&self, tensor: &str) -> Result<&Entry> {
        self.tensors.get(tensor).ok_or_else(|| {
            Error::new(
                Kind::Mismatch,
                "cannot read weights",
                tensor.escape_debug(),
                "the model does not have it",
            )
        })
    }
}

impl Weights for Store {
    fn shape(&self, tensor: &str) -> Option<&[u64]> {
        self.tensors.get(tensor).map(|entry| entry.shape.as_slice())
    }

    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>> {
        Ok(Box::new(Plain::new(
            mergeable(tensor, self.entry(tensor)?)?,
            self.kernels,
        )))
    }
}

/// A model's weights under a transform, computed while they are read; nothing is stored.
#[derive(Clone)]
pub struct Transformed {
    store: Arc<Store>,
    alignment: Alignment,
}

impl Transformed {
    /// Puts the model `store` under `alignment`.
    pub fn new(store: Arc<Store>, alignment: Alignment) -> Self {
        Self { store, alignment }
    }

    /// Returns the alignment of the model.
    pub fn alignment(&self) -> &Alignment {
        &self.alignment
    }
}

impl Weights for Transformed {
    fn shape(&self, tensor: &str) -> Option<&[u64]> {
        // A folded model may have one tensor more than the stored model.
        self.store.shape(tensor).or_else(|| {
            let made = self.alignment.symmetries.tensors.get(tensor)?;
            Some(&made.shape)
        })
    }

    fn apart(&self, tensor: &str) -> Result<Option<(Box<dyn Numbers + '_>, Columns)>> {
        let from = Aligned::source_name(&self.alignment, tensor)?;
        let entry = mergeable(&from, self.store.entry(&from)?)?;
        let Some(view) = Aligned::new(&self.alignment, tensor, entry.dtype)? else {
            return Ok(None);
        };
        let Some((gather, columns)) = view.apart() else {
            return Ok(None);
        };
        let (kernels, dtype) = (self.store.kernels, view.dtype());
        Ok(Some((
            Box::new(Viewed {
                entry,
                kernels,
                dtype,
                gather,
                bytes: Vec::new(),
            }),
            columns,
        )))
    }

    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>> {
        let from = Aligned::source_name(&self.alignment, tensor)?;
        let entry = mergeable(&from, self.store.entry(&from)?)?;
        Ok(match Aligned::new(&self.alignment, tensor, entry.dtype)? {
            None => Box::new(Plain::new(entry, self.store.kernels)),
            Some(view) => Box::new(Viewed {
                entry,
                kernels: self.store.kernels,
                dtype: view.dtype(),
                gather: view.gather(),
                bytes: Vec::new(),
            }),
        })
    }
}

struct Plain<'a> {
    entry: &'a Entry,
    kernels: Kernels,
    small: Vec<u8>,
}

impl<'a> Plain<'a> {
    fn new(entry: &'a Entry, kernels: Kernels) -> Self {
        Self {
            entry,
            kernels,
            small: Vec::new(),
        }
    }

    fn bytes(&self, range: Range<u64>) -> Range<u64> {
        let unit = self.entry.dtype.bytes() as u64;
        self.entry.offset + range.start * unit..self.entry.offset + range.end * unit
    }
}

impl Numbers for Plain<'_> {
    fn read(&mut self, range: Range<u64>, into: &mut [f32]) -> Result<()> {
        let bytes = self.bytes(range);
        if bytes.end - bytes.start < WINDOW_BYTES {
            self.small.resize(index(bytes.end - bytes.start), 0);
            self.entry.source.read_into(bytes, &mut self.small)?;
            let elements = Elements {
                dtype: self.entry.dtype,
                bytes: &self.small,
            };
            self.kernels
                .convert(elements, Dtype::F32, bytemuck::cast_slice_mut(into));
            return Ok(());
        }
        let window = self.entry.source.load(bytes)?;
        let elements = Elements {
            dtype: self.entry.dtype,
            bytes: &window,
        };
        self.kernels
            .convert(elements, Dtype::F32, bytemuck::cast_slice_mut(into));
        window.intact()
    }

    fn prefetch(&self, range: Range<u64>) {
        self.entry.source.prefetch(self.bytes(range));
    }
}

struct Viewed<'a> {
    entry: &'a Entry,
    kernels: Kernels,
    /// The type of the elements as they are gathered.
    dtype: Dtype,
    gather: Gather,
    bytes: Vec<u8>,
}

impl Numbers for Viewed<'_> {
    fn read(&mut self, range: Range<u64>, into: &mut [f32]) -> Result<()> {
        let stored = self.entry.stored();
        let from = Below {
            tensors: &[&stored as &dyn Readable],
            kernels: self.kernels,
            pool: None,
        };
        let mut rest = into;
        let mut at = range.start;
        while at < range.end {
            let count = PIECE.min(range.end - at);
            let (piece, after) = rest.split_at_mut(index(count));
            self.bytes.resize(piece.len() * self.dtype.bytes(), 0);
            self.gather.read(from, at..at + count, &mut self.bytes)?;
            let elements = Elements {
                dtype: self.dtype,
                bytes: &self.bytes,
            };
            self.kernels
                .convert(elements, Dtype::F32, bytemuck::cast_slice_mut(piece));
            (rest, at) = (after, at + count);
        }
        Ok(())
    }

    fn prefetch(&self, range: Range<u64>) {
        let stored = self.entry.stored();
        let from = Below {
            tensors: &[&stored as &dyn Readable],
            kernels: self.kernels,
            pool: None,
        };
        self.gather.prefetch(from, range);
    }
}

/// Bytes in memory.
struct Memory {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Source for Memory {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn prefetch(&self, _: Range<u64>) {}

    fn load(&self, range: Range<u64>) -> Result<Window> {
        let bytes = &self.bytes[index(range.start)..index(range.end)];
        Window::assembled(bytes.len() as u64, &self.path, |into| {
            into.copy_from_slice(bytes)
        })
    }

    fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(&self.bytes[index(range.start)..index(range.end)]);
        Ok(())
    }

    fn overhead_bytes(&self) -> u64 {
        self.len()
    }
}

fn mergeable<'a>(tensor: &str, entry: &'a Entry) -> Result<&'a Entry> {
    if entry.dtype.is_mergeable() {
        return Ok(entry);
    }
    let cause = format!("{} elements are no floats", entry.dtype);
    Err(Error::new(
        Kind::Mismatch,
        "cannot read weights",
        tensor.escape_debug(),
        cause,
    )
    .with_hint("align models before they are quantised"))
}

fn index(count: u64) -> usize {
    usize::try_from(count).expect("what is in memory fits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symmetry::{Symmetries, Transform, spec::builtin};

    #[test]
    fn memory_is_read_plain_and_transformed() {
        let weight: Vec<f32> = (0..12_u8).map(f32::from).collect();
        let tensors = [
            ("layers.0.weight".to_owned(), vec![4, 3], weight.clone()),
            ("layers.0.bias".to_owned(), vec![4], weight[..4].to_vec()),
            (
                "layers.1.weight".to_owned(),
                vec![2, 4],
                weight[..8].to_vec(),
            ),
            ("layers.1.bias".to_owned(), vec![2], weight[..2].to_vec()),
        ];
        let store = Arc::new(Store::in_memory(tensors, Kernels::detect()));
        let shapes = store
            .shapes()
            .map(|(name, shape)| (name.to_owned(), shape.to_vec()))
            .collect();
        let symmetries = Arc::new(
            builtin::named("mlp")
                .and_then(|spec| spec.resolve(&shapes, None))
                .expect("an MLP"),
        );
        let transform = Arc::new(Transform::random(&symmetries, 3));
        let model = Transformed::new(
            Arc::clone(&store),
            Alignment {
                symmetries: Arc::clone(&symmetries),
                transform,
            },
        );
        let mut plain = [0.0; 5];
        store
            .tensor("layers.0.weight")
            .and_then(|mut it| it.read(4..9, &mut plain))
            .expect("is there");
        assert_eq!(plain, weight[4..9]);
        let element = &model.alignment().transform.elements()[0];
        let group: &crate::symmetry::Group = &symmetries.groups[0];
        let mut rows = [0.0; 12];
        model
            .tensor("layers.0.weight")
            .and_then(|mut it| it.read(0..12, &mut rows))
            .expect("is there");
        for row in 0..4 {
            let old = element.unit(group, 0, row);
            assert_eq!(rows[3 * row..][..3], weight[3 * old..][..3]);
        }
        assert!(store.tensor("none").is_err());
        assert!(Symmetries::group(&symmetries, "none").is_none());
    }
}
