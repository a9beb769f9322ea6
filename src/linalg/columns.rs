//! Reordered columns.

use std::ops::Range;

/// A reordering of the columns of a matrix: the source of each new column, and if its sign changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(Vec<u32>);

impl Columns {
    /// The bit that is set where the sign changes.
    const FLIPPED: u32 = 1 << 31;

    /// Takes each column from its place in `source`; `negative` marks the columns whose sign
    /// changes, and is empty when none does.
    ///
    /// # Panics
    ///
    /// Panics if a source is not one of these columns, or if there are 2^31 columns or more.
    pub fn new(source: &[u32], negative: &[bool]) -> Self {
        let count = u32::try_from(source.len())
            .ok()
            .filter(|count| *count < Self::FLIPPED);
        let count = count.expect("columns are numbered by 31 bits");
        assert!(
            source.iter().all(|place| *place < count),
            "a column that is not there"
        );
        Self(
            source
                .iter()
                .enumerate()
                .map(|(at, place)| match negative.get(at) {
                    Some(true) => place | Self::FLIPPED,
                    _ => *place,
                })
                .collect(),
        )
    }

    /// Counts the columns.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are no columns.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the source of each column in a device's format: the highest bit marks a changed
    /// sign.
    pub fn places(&self) -> &[u32] {
        &self.0
    }

    /// Fills `into` with the columns `range` of the reordered `row`, which is given in its stored
    /// order.
    ///
    /// # Panics
    ///
    /// Panics if the row or the range has another length.
    pub fn gather(&self, row: &[f32], range: Range<usize>, into: &mut [f32]) {
        assert_eq!(
            (row.len(), range.len()),
            (self.0.len(), into.len()),
            "a row of as many columns"
        );
        for (into, place) in into.iter_mut().zip(&self.0[range]) {
            let value = row[(place & !Self::FLIPPED) as usize];
            *into = f32::from_bits(value.to_bits() ^ (place & Self::FLIPPED));
        }
    }
}
