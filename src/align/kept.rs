//! Tensors of a transformed model, computed once and kept in memory: those whose every element is a
//! sum over a row or a column, which is too costly to repeat for each piece that is read.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Store, Transformed, Weights};
use crate::checkpoint::{Source, Window};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;

/// Elements that are computed at a time.
const PIECE: u64 = 1 << 20;

/// Returns the bytes that these tensors of a model take when they are kept.
pub(super) fn bytes(model: &dyn Weights, tensors: &[&str]) -> u64 {
    tensors.iter().map(|tensor| 4 * count(model, tensor)).sum()
}

/// Computes these tensors of `model` as f32 in memory, on the threads of the current pool.
///
/// # Errors
///
/// [`Kind::Budget`] when they take more than `most` bytes; the errors of reading the model, and
/// those of `go_on`.
pub(super) fn keep(
    model: &Transformed,
    tensors: &[&str],
    kernels: Kernels,
    most: u64,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Store> {
    let wanted = bytes(model, tensors);
    if wanted > most {
        let first = tensors.first().copied().unwrap_or_default();
        let cause = format!(
            "the mapped tensors around `{}` take {wanted} bytes, {most} are left",
            first.escape_debug()
        );
        return Err(
            Error::new(Kind::Budget, "cannot match weights", "memory budget", cause)
                .with_hint("give more --memory"),
        );
    }
    let mut kept: Vec<(String, Vec<u64>, Arc<dyn Source>)> = Vec::with_capacity(tensors.len());
    for &tensor in tensors {
        let mut elements =
            vec![0.0_f32; usize::try_from(count(model, tensor)).expect("what fits the budget")];
        let mut numbers = model.tensor(tensor)?;
        let mut at = 0;
        for piece in elements.chunks_mut(usize::try_from(PIECE).expect("a piece fits the memory")) {
            go_on()?;
            let end = at + piece.len() as u64;
            numbers.read(at..end, piece)?;
            at = end;
        }
        let shape = model.shape(tensor).unwrap_or_default().to_vec();
        kept.push((
            tensor.to_owned(),
            shape,
            Arc::new(Kept {
                path: PathBuf::from(tensor),
                elements,
            }),
        ));
    }
    Ok(Store::of_sources(kept, Dtype::F32, kernels))
}

fn count(model: &dyn Weights, tensor: &str) -> u64 {
    model.shape(tensor).unwrap_or_default().iter().product()
}

struct Kept {
    path: PathBuf,
    elements: Vec<f32>,
}

impl Kept {
    fn bytes(&self, range: Range<u64>) -> &[u8] {
        let place = |offset: u64| usize::try_from(offset).expect("what is in memory fits");
        &bytemuck::cast_slice(&self.elements)[place(range.start)..place(range.end)]
    }
}

impl Source for Kept {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        4 * self.elements.len() as u64
    }

    fn prefetch(&self, _: Range<u64>) {}

    fn load(&self, range: Range<u64>) -> Result<Window> {
        let bytes = self.bytes(range);
        Window::assembled(bytes.len() as u64, &self.path, |into| {
            into.copy_from_slice(bytes)
        })
    }

    fn read_into(&self, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        into.copy_from_slice(self.bytes(range));
        Ok(())
    }

    fn overhead_bytes(&self) -> u64 {
        self.len()
    }
}
