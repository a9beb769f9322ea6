//! Sixteen f64 lanes, and the working memory made of them.

use bytemuck::{Pod, Zeroable};

use super::CHUNK;
use super::pairs::pair_count;

/// Lanes of every sum; element `k` of a chunk goes to lane `k mod LANES`.
pub(super) const LANES: usize = 16;

/// Elements that are widened to f64 at a time, so that they are still in the first-level cache when
/// they are used.
pub(super) const TILE: usize = 512;

/// Rows from one input's tile to the next. The one spare row keeps the tiles from lying a multiple
/// of 4 KiB apart, where they would all compete for the same few cache sets.
pub(super) const TILE_STRIDE: usize = TILE / LANES + 1;

/// Rows for a sum of differences: one tile each for the sums, the centre's elements and a term's
/// elements.
pub(super) const DIFFERENCE_ROWS: usize = 3 * TILE / LANES;

/// One f64 for each lane.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lanes(pub(super) [f64; LANES]);

// SAFETY: all zero bits are sixteen zeros.
unsafe impl Zeroable for Lanes {}
// SAFETY: sixteen f64 without padding, as 128 is a multiple of the alignment; every bit pattern is
// valid.
unsafe impl Pod for Lanes {}

impl Lanes {
    pub(super) const ZERO: Self = Self([0.0; LANES]);

    /// Adds the lanes up in the order used everywhere: the upper half onto the lower, four times.
    pub(super) fn sum(&self) -> f64 {
        let mut lanes = self.0;
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] += lanes[l + half];
            }
        }
        lanes[0]
    }
}

/// The elements of `rows` one after another.
pub(super) fn flat(rows: &mut [Lanes]) -> &mut [f64] {
    bytemuck::cast_slice_mut(rows)
}

/// A thread's working memory: grown when first needed, then reused.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<Lanes>,
    /// For selections, of which only few merges have some.
    pub select: SelectScratch,
}

impl Scratch {
    /// Upper bound on the bytes of a scratch used by kernels on up to `inputs` inputs.
    pub fn bytes(inputs: usize) -> usize {
        Self::wide_rows(inputs.max(1)).max(DIFFERENCE_ROWS) * size_of::<Lanes>()
    }

    /// The bytes that this scratch holds now.
    pub fn held_bytes(&self) -> usize {
        self.rows.capacity() * size_of::<Lanes>()
    }

    /// Rows for the Gram sums of `inputs` inputs: a tile for each input and the accumulators of
    /// each pair.
    pub(super) fn gram_rows(inputs: usize) -> usize {
        inputs * TILE_STRIDE + pair_count(inputs)
    }

    /// Rows for Gram sums to twice the digits.
    pub(super) fn wide_rows(inputs: usize) -> usize {
        inputs * TILE_STRIDE + 2 * pair_count(inputs)
    }

    /// The first `count` rows, their contents left from the last use.
    pub(super) fn rows(&mut self, count: usize) -> &mut [Lanes] {
        if self.rows.len() < count {
            // The old rows go first: their contents are not needed, and the two together would
            // exceed the bound.
            self.rows = Vec::new();
            self.rows = vec![Lanes::ZERO; count];
        }
        &mut self.rows[..count]
    }
}

/// Rows of lanes that a tile takes.
pub(super) const ROW: usize = TILE / LANES;

/// Tiles of a selection besides those of the models: the base, a mask, and four sums.
pub(super) const OTHER_TILES: usize = 6;

/// A thread's working memory for selections: grown when first needed, then reused.
#[derive(Debug, Default)]
pub struct SelectScratch {
    /// Keys of a chunk or row.
    pub keys: Vec<u32>,
    /// Counts of keys, zeros between two uses.
    pub counts: Vec<u32>,
    /// Limits of draws, for a row of each model.
    pub limits: Vec<Vec<u32>>,
    /// Keys and places of a row, to be sorted.
    pub order: Vec<u64>,
    /// The rows of a model and of the base, widened.
    pub wide: [Vec<f64>; 2],
}

impl SelectScratch {
    /// Upper bound on the bytes besides counts, the rows of the scratch for differences included.
    /// `row` is the length of the rows that `models` models
    /// are looked at by; `None` if they are not.
    pub fn bytes(row: Option<u64>, models: u64) -> u64 {
        let key = size_of::<u32>() as u64;
        let keys = row.unwrap_or(0).max(CHUNK as u64) * key;
        let wide = size_of::<f64>() as u64;
        let by_row = |row| row * (key * models + 2 * wide + size_of::<u64>() as u64);
        let models = usize::try_from(models).unwrap_or(usize::MAX);
        let rows = Scratch::select_rows(models) * size_of::<Lanes>();
        keys + row.map_or(0, by_row) + rows as u64
    }
}

impl Scratch {
    /// Rows for the differences of `models` models: a tile and the lanes of two sums for each, and
    /// the tiles that all share.
    pub(super) fn select_rows(models: usize) -> usize {
        models * (ROW + 2) + OTHER_TILES * ROW
    }
}
