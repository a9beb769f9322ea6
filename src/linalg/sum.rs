//! Sums of products, held in memory or on a device.
//!
//! A sum is an object, not a call: its rows × columns entries stay where the arithmetic runs,
//! factors are sent there and multiplied, and the entries are fetched once. So a strip of H × n
//! results over blocks of features costs 2 H n operations for every 4 (H + n) bytes sent, which for
//! H = n = 4096 is 1024 a byte: more than any device does in the time in which a byte crosses the
//! bus.

use std::fmt;
use std::sync::Arc;

use super::{Columns, Matrix, add_scaled_product};
use crate::error::Result;

/// A matrix to which products are added. The memory that it was begun with holds valid entries only
/// once the sum is finished.
pub trait Sum {
    /// Adds `scale` · `left` · `right`, on the threads of the current pool or elsewhere.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when a device fails.
    ///
    /// # Panics
    ///
    /// Panics if the sizes do not match.
    fn add(&mut self, scale: f32, left: Matrix<'_>, right: Matrix<'_>) -> Result<()>;

    /// Adds `scale` · `left` · `right`, with the columns of `right` reordered. `right` is stored
    /// row by row.
    ///
    /// # Errors
    ///
    /// As [`Sum::add`].
    ///
    /// # Panics
    ///
    /// Panics if the sizes do not match, or if the rows of `right` are not contiguous in memory.
    fn add_gathered(
        &mut self,
        scale: f32,
        left: Matrix<'_>,
        right: Matrix<'_>,
        columns: &Columns,
    ) -> Result<()> {
        assert!(
            !right.is_transposed() && right.columns() == columns.len(),
            "rows of as many columns"
        );
        let width = right.columns().max(1);
        let mut gathered = vec![0.0; right.elements().len()];
        let rows = right
            .elements()
            .chunks_exact(width)
            .zip(gathered.chunks_exact_mut(width));
        rows.for_each(|(from, into)| columns.gather(from, 0..columns.len(), into));
        self.add(
            scale,
            left,
            Matrix::new(&gathered, right.rows(), right.columns()),
        )
    }

    /// Ends the sum and leaves all its entries in the memory that it was begun with.
    ///
    /// # Errors
    ///
    /// As [`Sum::add`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A place outside the caller's memory that adds products up, such as a device.
pub trait Adder: Send + Sync {
    /// Begins a sum of `rows` rows at zero; `finish` writes it to `result`, row by row. A thread
    /// has one sum at a time.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when a device has failed or has not enough
    /// memory.
    fn begin<'a>(&'a self, rows: usize, result: &'a mut [f32]) -> Result<Box<dyn Sum + 'a>>;

    /// Returns the most entries of a sum that stay where the arithmetic runs; larger sums are
    /// carried there and back part by part.
    fn most_entries(&self) -> usize;
}

/// The place where products are added up: the caller's memory, on the threads of the current pool,
/// or an [`Adder`].
///
/// All backends compare as equal, because results depend on them only by the rounding of sums.
#[derive(Clone, Default)]
pub struct Backend(Option<Arc<dyn Adder>>);

impl Backend {
    /// Adds products up on a device.
    pub fn on(adder: Arc<dyn Adder>) -> Self {
        Self(Some(adder))
    }

    /// Begins a sum of `rows` rows at zero; `finish` writes it to `result`, row by row. A thread
    /// has one sum at a time.
    ///
    /// # Errors
    ///
    /// As [`Adder::begin`].
    ///
    /// # Panics
    ///
    /// Panics unless `result` holds whole rows.
    pub fn begin<'a>(&'a self, rows: usize, result: &'a mut [f32]) -> Result<Box<dyn Sum + 'a>> {
        assert!(
            result.len() == rows * (result.len() / rows.max(1)),
            "the result of a product"
        );
        match &self.0 {
            Some(adder) => adder.begin(rows, result),
            None => {
                result.fill(0.0);
                Ok(Box::new(InPlace(result)))
            }
        }
    }

    /// Returns the most entries of a sum that are not carried to and fro; `None` for sums in
    /// memory.
    pub fn most_entries(&self) -> Option<usize> {
        self.0.as_ref().map(|adder| adder.most_entries())
    }

    /// True if sums should reorder the columns themselves, as those on a device do.
    pub fn gathers(&self) -> bool {
        self.0.is_some()
    }
}

impl PartialEq for Backend {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Backend {}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "on a device"
        } else {
            "in memory"
        })
    }
}

/// A sum in the caller's own memory.
struct InPlace<'a>(&'a mut [f32]);

impl Sum for InPlace<'_> {
    fn add(&mut self, scale: f32, left: Matrix<'_>, right: Matrix<'_>) -> Result<()> {
        add_scaled_product(scale, left, right, self.0);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
