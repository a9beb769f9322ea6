//! The Gram sums of a chunk.
//!
//! A tile of every input is widened to f64, prepared (non-finite elements cleared, the centre subtracted), and then
//! multiplied in small blocks of inputs. The lanes of each pair stay in memory between tiles and are added up at the
//! chunk's end.

use super::block::{ROWS, Tiles, block};
use super::element::{BF16, Element, F16, F32, with_element};
use super::lanes::{LANES, Lanes, Scratch, TILE, TILE_STRIDE, flat};
use super::level::{Level, Task};
use super::simd::Simd;
use super::{CHUNK, Elements};
use crate::dtype::Dtype;

/// What is done to the elements before they are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gram {
    /// An input that is subtracted, in f64, from every other one; it takes part itself as it is.
    pub center: Option<usize>,
    /// Whether a NaN or infinite element counts as zero, before the centre is subtracted.
    pub skip_nonfinite: bool,
}

/// The number of pairs i ≤ j among `n` inputs.
pub fn pair_count(n: usize) -> usize {
    n * (n + 1) / 2
}

pub(super) fn gram(level: Level, inputs: &[Elements<'_>], options: Gram, scratch: &mut Scratch, sums: &mut [f64]) {
    let len = inputs.first().map_or(0, Elements::len);
    assert!(len <= CHUNK, "{len} elements are more than a chunk of {CHUNK}");
    for input in inputs {
        assert!(input.dtype.is_mergeable(), "{} elements are not averaged", input.dtype);
        assert_eq!(input.len(), len, "inputs differ in length");
    }
    assert!(options.center.is_none_or(|center| center < inputs.len()), "the centre is no input");
    assert_eq!(sums.len(), pair_count(inputs.len()), "sums are not one for each pair");
    let rows = scratch.rows(Scratch::gram_rows(inputs.len()));
    let (tiles, lanes) = rows.split_at_mut(inputs.len() * TILE_STRIDE);
    lanes.fill(Lanes::ZERO);
    level.run(GramTask { inputs, options, len, tiles, lanes });
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        let total = lanes.sum();
        // The payload of a NaN depends on the order of operands, which compilers may change.
        *sum = if total.is_nan() { f64::NAN } else { total };
    }
}

struct GramTask<'a> {
    inputs: &'a [Elements<'a>],
    options: Gram,
    len: usize,
    tiles: &'a mut [Lanes],
    lanes: &'a mut [Lanes],
}

impl Task for GramTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let exact =
            S::FUSES && self.options.center.is_none() && self.inputs.iter().all(|input| input.dtype != Dtype::F64);
        let done = if exact && !self.options.skip_nonfinite { direct::<S>(self.inputs, self.lanes) } else { 0 };
        for start in (done..self.len).step_by(TILE) {
            let end = self.len.min(start + TILE);
            let steps = (end - start).div_ceil(LANES);
            for (input, tile) in self.inputs.iter().zip(self.tiles.chunks_exact_mut(TILE_STRIDE)) {
                stage::<S>(input.slice(start..end), self.options.skip_nonfinite, &mut tile[..steps]);
            }
            if let Some(center) = self.options.center {
                subtract(self.tiles, center, steps);
            }
            let tiles = Tiles { rows: self.tiles, steps, inputs: self.inputs.len() };
            if exact {
                blocks::<S, true>(tiles, self.lanes);
            } else {
                blocks::<S, false>(tiles, self.lanes);
            }
        }
    }
}

/// Multiplies straight from the inputs' bytes as many elements as the level can; returns how many.
#[inline(always)]
fn direct<S: Simd>(inputs: &[Elements<'_>], lanes: &mut [Lanes]) -> usize {
    let dtype = inputs.first().map_or(Dtype::F64, |input| input.dtype);
    if inputs.len() > S::DIRECT || inputs.iter().any(|input| input.dtype != dtype) {
        return 0;
    }
    match dtype {
        Dtype::BF16 => direct_of::<S, BF16>(inputs, lanes),
        Dtype::F16 => direct_of::<S, F16>(inputs, lanes),
        Dtype::F32 => direct_of::<S, F32>(inputs, lanes),
        _ => 0,
    }
}

#[inline(always)]
fn direct_of<S: Simd, E: Element>(inputs: &[Elements<'_>], lanes: &mut [Lanes]) -> usize {
    match inputs {
        [a, b] => S::gram::<E, 2>([a, b].map(|input| E::split(input.bytes)), lanes),
        [a, b, c] => S::gram::<E, 3>([a, b, c].map(|input| E::split(input.bytes)), lanes),
        [a, b, c, d] => S::gram::<E, 4>([a, b, c, d].map(|input| E::split(input.bytes)), lanes),
        _ => 0,
    }
}

/// Widens `input` into `rows` and pads the last row with zeros, which add nothing to any sum.
#[inline(always)]
pub(super) fn stage<S: Simd>(input: Elements<'_>, skip_nonfinite: bool, rows: &mut [Lanes]) {
    let wide = flat(rows);
    with_element!(input.dtype, E => S::widen::<E>(E::split(input.bytes), wide));
    wide[input.len()..].fill(0.0);
    if skip_nonfinite {
        for x in wide {
            *x = if x.is_finite() { *x } else { 0.0 };
        }
    }
}

/// Subtracts the tile of input `center` from all others.
#[inline(always)]
fn subtract(tiles: &mut [Lanes], center: usize, steps: usize) {
    let (before, rest) = tiles.split_at_mut(center * TILE_STRIDE);
    let (base, after) = rest.split_at_mut(TILE_STRIDE);
    let base = flat(&mut base[..steps]);
    for tile in before.chunks_exact_mut(TILE_STRIDE).chain(after.chunks_exact_mut(TILE_STRIDE)) {
        for (x, b) in flat(&mut tile[..steps]).iter_mut().zip(base.iter()) {
            *x -= *b;
        }
    }
}

/// Adds the products of one tile: triangles along the diagonal, rectangles to the right of them.
#[inline(always)]
fn blocks<S: Simd, const EXACT: bool>(tiles: Tiles<'_>, lanes: &mut [Lanes]) {
    for row in (0..tiles.inputs).step_by(ROWS) {
        // A small triangle has few accumulators; several registers of each pair then hide the adder's latency.
        match tiles.inputs - row {
            1 => block::<S, 1, 1, 2, true, EXACT>(tiles, row, row, lanes),
            2 => block::<S, 2, 2, 2, true, EXACT>(tiles, row, row, lanes),
            3 => block::<S, 3, 3, 2, true, EXACT>(tiles, row, row, lanes),
            _ => block::<S, 4, 4, 1, true, EXACT>(tiles, row, row, lanes),
        }
        for column in (row + ROWS..tiles.inputs).step_by(S::COLUMNS) {
            match (tiles.inputs - column).min(S::COLUMNS) {
                1 => block::<S, ROWS, 1, 2, false, EXACT>(tiles, row, column, lanes),
                2 => block::<S, ROWS, 2, 1, false, EXACT>(tiles, row, column, lanes),
                3 => block::<S, ROWS, 3, 1, false, EXACT>(tiles, row, column, lanes),
                _ => block::<S, ROWS, 4, 1, false, EXACT>(tiles, row, column, lanes),
            }
        }
    }
}
