//! Orthogonal maps of the residual stream.

use std::path::Path;
use std::sync::Arc;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

use crate::checkpoint::{Checkpoint, SourceOptions, TensorEntry};
use crate::dtype::Dtype;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{Elements, Kernels};

/// The largest deviation of a map from orthogonal: the largest entry of |Q Qᵀ - 1|. The function
/// changes by as much; rounding an orthogonal matrix to f32 costs a few 1e-8.
pub const TOLERANCE: f64 = 1e-6;

/// The name of the map in a file that holds other tensors too.
const NAME: &str = "residual.map";
/// The rows that are checked at a time.
const BLOCK: usize = 64;
/// The largest map that is read: 2^15 units of f64 are 8 GiB.
const MOST_UNITS: u64 = 1 << 15;

/// An orthogonal matrix Q of size `size` x `size` in f64, row by row: `new = Q · old`.
#[derive(Debug, Clone, PartialEq)]
pub struct OrthogonalMap {
    size: usize,
    elements: Arc<Vec<f64>>,
}

impl OrthogonalMap {
    /// Makes a map from row-major elements.
    ///
    /// # Errors
    ///
    /// A sentence that states the fault: the number of elements, or the deviation from orthogonal.
    pub fn new(size: usize, elements: Vec<f64>) -> Result<Self, String> {
        if elements.len() != size * size {
            return Err(format!(
                "wanted {size} x {size} numbers, got {}",
                elements.len()
            ));
        }
        if let Some(at) = elements.iter().position(|element| !element.is_finite()) {
            return Err(format!(
                "row {}, column {} is {}",
                at / size,
                at % size,
                elements[at]
            ));
        }
        let map = Self {
            size,
            elements: Arc::new(elements),
        };
        let (off, row, column) = map.deviation();
        if off > TOLERANCE {
            return Err(format!(
                "not orthogonal: rows {row} and {column} are off by {off:.1e}, at most {TOLERANCE:.0e} is taken"
            ));
        }
        Ok(map)
    }

    /// True if the file `path` may hold a map: its only tensor is a square matrix, or one is called
    /// `residual.map`.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn may_be_in(path: &Path) -> Result<bool> {
        let stored = Checkpoint::open(path)?;
        let tensors = stored.tensors();
        Ok(tensors.contains_key(NAME) || tensors.len() == 1 && tensors.values().all(is_square))
    }

    /// Reads the file `path`: its only tensor, or the one called `residual.map`, floats of shape
    /// `[size, size]`.
    ///
    /// # Errors
    ///
    /// [`Kind::Input`] when the file has no such tensor or the matrix is not orthogonal.
    pub fn read(path: &Path, size: usize) -> Result<Self> {
        let stored = Checkpoint::open(path)?;
        let context = Context::new(Kind::Input, "cannot use residual map", path.display());
        let entry = match stored.tensors().get(NAME) {
            Some(entry) => entry,
            None if stored.tensors().len() == 1 => &stored.tensors()[0],
            None => {
                return context.fail(format!("wanted one tensor, or one called `{NAME}`"));
            }
        };
        let elements = read(&stored, entry, size as u64).map_err(|error| match error {
            Unread::Refused(cause) => context.error(cause),
            Unread::Failed(error) => error,
        })?;
        Self::new(size, elements).map_err(|cause| {
            context
                .error(cause)
                .with_hint("store the map as F64 or F32; new = map · old, row by row")
        })
    }

    /// True if both share their elements in memory; elements are not compared.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.elements, &other.elements)
    }

    /// Returns the number of rows, which is also that of columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the elements, row by row.
    pub fn elements(&self) -> &[f64] {
        &self.elements
    }

    /// Returns the transposed map, which undoes this one.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let size = self.size;
        let element = |at: usize| self.elements[at % size * size + at / size];
        Self {
            size,
            elements: Arc::new((0..size * size).map(element).collect()),
        }
    }

    /// Composes `first` with this map, which acts second: the product self · first.
    ///
    /// # Panics
    ///
    /// When the sizes differ.
    #[must_use]
    pub fn after(&self, first: &Self) -> Self {
        assert_eq!(self.size, first.size, "maps of one stream");
        let mut product = Mat::<f64>::zeros(self.size, self.size);
        matmul(
            product.as_mut(),
            Accum::Replace,
            self.as_ref(),
            first.as_ref(),
            1.0,
            Par::Seq,
        );
        let elements =
            (0..self.size).flat_map(|row| (0..self.size).map(move |column| (row, column)));
        Self {
            size: self.size,
            elements: Arc::new(
                elements
                    .map(|(row, column)| product[(row, column)])
                    .collect(),
            ),
        }
    }

    /// Finds the largest entry of |Q Qᵀ - 1|, with its row and column.
    pub fn deviation(&self) -> (f64, usize, usize) {
        let mut worst = (0.0, 0, 0);
        let mut block = Mat::<f64>::zeros(BLOCK.min(self.size), self.size);
        for first in (0..self.size).step_by(BLOCK) {
            let count = BLOCK.min(self.size - first);
            let (rows, mut out) = (
                self.as_ref().subrows(first, count),
                block.as_mut().subrows_mut(0, count),
            );
            matmul(
                out.as_mut(),
                Accum::Replace,
                rows,
                self.as_ref().transpose(),
                1.0,
                Par::Seq,
            );
            for column in 0..self.size {
                for row in 0..count {
                    let wanted = if first + row == column { 1.0 } else { 0.0 };
                    let off: f64 = (out[(row, column)] - wanted).abs();
                    if off > worst.0 {
                        worst = (off, first + row, column);
                    }
                }
            }
        }
        worst
    }

    fn as_ref(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.elements, self.size, self.size)
    }
}

enum Unread {
    Refused(String),
    Failed(Error),
}

impl From<Error> for Unread {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn read(stored: &Checkpoint, entry: &TensorEntry, size: u64) -> Result<Vec<f64>, Unread> {
    if !entry.dtype.is_mergeable() || entry.shape != [size, size] || size > MOST_UNITS {
        let cause = format!(
            "wanted floats of shape {:?}, got {} {:?}",
            [size, size],
            entry.dtype,
            entry.shape
        );
        return Err(Unread::Refused(cause));
    }
    let window = stored
        .open_file(entry.file, &SourceOptions::default())?
        .load(entry.bytes.clone())?;
    let elements = Elements {
        dtype: entry.dtype,
        bytes: &window,
    };
    let mut wide = vec![0.0; elements.len()];
    Kernels::detect().convert(elements, Dtype::F64, bytemuck::cast_slice_mut(&mut wide));
    window.intact()?;
    Ok(wide)
}

fn is_square(entry: &TensorEntry) -> bool {
    matches!(entry.shape[..], [rows, columns] if rows == columns)
}
