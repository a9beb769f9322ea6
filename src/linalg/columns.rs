//! Reordered columns.

use std::ops::Range;

/// Which column of a matrix each of another one comes from, and whether its elements change their
/// signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(Vec<u32>);

impl Columns {
    /// This bit is set where signs change.
    const FLIPPED: u32 = 1 << 31;

    /// From `source`; `negative` says for each whether signs change, and is empty when none do.
    ///
    /// # Panics
    ///
    /// When a place is none of as many columns, or there are 2^31.
    pub fn new(source: &[u32], negative: &[bool]) -> Self {
        let count = u32::try_from(source.len())
            .ok()
            .filter(|count| *count < Self::FLIPPED);
        let count = count.expect("columns are numbered by 31 bits");
        assert!(
            source.iter().all(|place| *place < count),
            "a column that is not there"
        );
        let flipped = |at: usize| {
            if negative.get(at) == Some(&true) {
                Self::FLIPPED
            } else {
                0
            }
        };
        Self(
            source
                .iter()
                .enumerate()
                .map(|(at, place)| place | flipped(at))
                .collect(),
        )
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The places as a device takes them: those with changed signs have the highest bit too.
    pub fn places(&self) -> &[u32] {
        &self.0
    }

    /// Fills `into` with the columns `range` of a row whose elements are `row` as they lie there.
    ///
    /// # Panics
    ///
    /// When the row or the range has another length.
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
