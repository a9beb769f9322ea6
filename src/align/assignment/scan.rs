//! The loops over whole rows. They keep several independent lanes so that the compiler can use
//! vector registers; minima do not depend on the order, so neither do the results.

const LANES: usize = 16;

/// Finds the first NaN or infinity.
pub(super) fn first_nonfinite(row: &[f32]) -> Option<usize> {
    let all_finite = row.chunks(256).all(|chunk| {
        chunk
            .iter()
            .fold(true, |all, entry| all & entry.is_finite())
    });
    if all_finite {
        None
    } else {
        row.iter().position(|entry| !entry.is_finite())
    }
}

/// Returns the largest absolute value.
pub(super) fn magnitude(row: &[f32]) -> f32 {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    let upper = |a: f32, b: f32| if b > a { b } else { a };
    for block in blocks {
        for (lane, entry) in lanes.iter_mut().zip(block) {
            *lane = upper(*lane, entry.abs());
        }
    }
    lanes
        .iter()
        .chain(rest)
        .fold(0.0, |most, entry| upper(most, entry.abs()))
}

fn lower(a: f64, b: f64) -> f64 {
    if b < a { b } else { a }
}

/// Writes `sign·entry - price` of every column to `out`, and returns the smallest.
pub(super) fn reduce(row: &[f32], sign: f64, prices: &[f64], out: &mut [f64]) -> f64 {
    let (row_blocks, row_rest) = row.as_chunks::<LANES>();
    let (price_blocks, price_rest) = prices.as_chunks::<LANES>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<LANES>();
    let mut lanes = [f64::INFINITY; LANES];
    for ((entries, prices), out) in row_blocks.iter().zip(price_blocks).zip(out_blocks) {
        for k in 0..LANES {
            out[k] = sign * f64::from(entries[k]) - prices[k];
            lanes[k] = lower(lanes[k], out[k]);
        }
    }
    for ((entry, price), out) in row_rest.iter().zip(price_rest).zip(&mut *out_rest) {
        *out = sign * f64::from(*entry) - price;
    }
    lanes
        .iter()
        .chain(&*out_rest)
        .fold(f64::INFINITY, |best, value| lower(best, *value))
}

/// The two smallest values of a row after reduction, and their columns; of equal ones the lowest
/// columns.
#[derive(Debug, Clone, Copy)]
pub(super) struct TwoSmallest {
    pub(super) first: f64,
    pub(super) first_column: usize,
    pub(super) second: f64,
    pub(super) second_column: usize,
}

impl TwoSmallest {
    pub(super) fn none() -> Self {
        Self {
            first: f64::INFINITY,
            first_column: usize::MAX,
            second: f64::INFINITY,
            second_column: usize::MAX,
        }
    }

    pub(super) fn see(&mut self, value: f64, column: usize) {
        if value < self.first {
            (self.second, self.second_column) = (self.first, self.first_column);
            (self.first, self.first_column) = (value, column);
        } else if value < self.second {
            (self.second, self.second_column) = (value, column);
        }
    }
}

/// Finds the two smallest of `sign·entry - price`.
pub(super) fn two_smallest(row: &[f32], sign: f64, prices: &[f64]) -> TwoSmallest {
    const BLOCK: usize = 128;
    let mut best = TwoSmallest::none();
    let mut reduced = [0.0; BLOCK];
    for (at, (entries, prices)) in row.chunks(BLOCK).zip(prices.chunks(BLOCK)).enumerate() {
        let reduced = &mut reduced[..entries.len()];
        // Few blocks hold one of the two smallest; only those are searched one by one.
        if reduce(entries, sign, prices, reduced) < best.second {
            reduced
                .iter()
                .enumerate()
                .for_each(|(k, value)| best.see(*value, at * BLOCK + k));
        }
    }
    best
}

/// A row of the costs whose edges a shortest path search follows.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub number: usize,
    pub entries: &'a [f32],
    pub sign: f64,
    /// The length of the way to the row, subtracted.
    pub offset: f64,
}

impl Row<'_> {
    /// Relaxes the distances: lowers every distance to `sign·entry - price - offset` if that is
    /// less, records the row as its origin, and returns the smallest distance.
    pub(super) fn relax(self, prices: &[f64], distances: &mut [f64], from: &mut [usize]) -> f64 {
        let (entry_blocks, entry_rest) = self.entries.as_chunks::<LANES>();
        let (price_blocks, price_rest) = prices.as_chunks::<LANES>();
        let (distance_blocks, distance_rest) = distances.as_chunks_mut::<LANES>();
        let (from_blocks, from_rest) = from.as_chunks_mut::<LANES>();
        let mut lanes = [f64::INFINITY; LANES];
        for (((entries, prices), distances), from) in entry_blocks
            .iter()
            .zip(price_blocks)
            .zip(distance_blocks)
            .zip(from_blocks)
        {
            for k in 0..LANES {
                self.lower(entries[k], prices[k], &mut distances[k], &mut from[k]);
                lanes[k] = lower(lanes[k], distances[k]);
            }
        }
        for (((entry, price), distance), from) in entry_rest
            .iter()
            .zip(price_rest)
            .zip(&mut *distance_rest)
            .zip(from_rest)
        {
            self.lower(*entry, *price, distance, from);
        }
        lanes
            .iter()
            .chain(&*distance_rest)
            .fold(f64::INFINITY, |best, value| lower(best, *value))
    }

    /// Lowers one distance. Both numbers are written either way, so that the loop has no branch.
    fn lower(self, entry: f32, price: f64, distance: &mut f64, from: &mut usize) {
        let reached = self.sign * f64::from(entry) - price - self.offset;
        let shorter = reached < *distance;
        *from = if shorter { self.number } else { *from };
        *distance = if shorter { reached } else { *distance };
    }
}
