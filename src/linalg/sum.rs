//! Where products are added up: in memory, or on a device.
//!
//! A sum is not a call but something that stays: its rows × columns entries lie where the
//! arithmetic is while factors are brought there and multiplied, and are fetched once. So a strip
//! of H × n results over blocks of features costs 2 H n operations for every 4 (H + n) bytes that
//! are brought over, which for H = n = 4096 is 1024 a byte: more than any device does in the time
//! in which a byte crosses the bus.

use std::fmt;
use std::sync::Arc;

use super::{Columns, Matrix, add_scaled_product};
use crate::error::Result;

/// A matrix to which products are added. What lies in the memory that it was begun with is of no
/// meaning until it is finished.
pub trait Sum {
    /// Adds `scale` · `left` · `right`, on the threads of the current pool or elsewhere.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when a device fails.
    ///
    /// # Panics
    ///
    /// When the sizes do not go together.
    fn add(&mut self, scale: f32, left: Matrix<'_>, right: Matrix<'_>) -> Result<()>;

    /// Adds `scale` · `left` · `right`, the columns of `right` in another order than in memory,
    /// where it lies row by row.
    ///
    /// # Errors
    ///
    /// As [`Sum::add`].
    ///
    /// # Panics
    ///
    /// When the sizes do not go together, or a row of `right` does not lie behind the one before
    /// it.
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

    /// Ends with all entries in the memory that it was begun with.
    ///
    /// # Errors
    ///
    /// As [`Sum::add`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What adds products up elsewhere than in the caller's memory.
pub trait Adder: Send + Sync {
    /// Begins a sum of `rows` rows, from zero, whose end result, row by row, fills `result`. A
    /// thread has one at a time.
    ///
    /// # Errors
    ///
    /// [`Kind::Device`](crate::error::Kind::Device) when a device has failed or has not enough
    /// memory.
    fn begin<'a>(&'a self, rows: usize, result: &'a mut [f32]) -> Result<Box<dyn Sum + 'a>>;

    /// The most entries of a sum that stay where the arithmetic is; larger ones are carried there
    /// and back part by part.
    fn most_entries(&self) -> usize;
}

/// Where products are added up: in the caller's memory, on the threads of the current pool, unless
/// an [`Adder`] is given.
///
/// All are equal, as nothing that is looked for depends on it but for the rounding of sums.
#[derive(Clone, Default)]
pub struct Backend(Option<Arc<dyn Adder>>);

impl Backend {
    /// On a device.
    pub fn on(adder: Arc<dyn Adder>) -> Self {
        Self(Some(adder))
    }

    /// Begins a sum of `rows` rows, from zero, whose end result, row by row, fills `result`. A
    /// thread has one at a time.
    ///
    /// # Errors
    ///
    /// As [`Adder::begin`].
    ///
    /// # Panics
    ///
    /// When `result` does not hold whole rows.
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

    /// The most entries of a sum that are not carried to and fro; none when that is no question.
    pub fn most_entries(&self) -> Option<usize> {
        self.0.as_ref().map(|adder| adder.most_entries())
    }

    /// Whether it is worth leaving it to the sums to reorder columns.
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

/// The memory itself.
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
