//! The Gram sums of a chunk.
//!
//! A tile of every input is widened to f64, prepared (non-finite elements cleared, the centre
//! subtracted), and then multiplied in small blocks of inputs. The lanes of each pair stay in
//! memory between tiles and are added up at the chunk's end.

use super::Elements;
use super::block::{ROWS, Tiles, block};
use super::element::{BF16, Element, F16, F32};
use super::lanes::{Lanes, Scratch, TILE, TILE_STRIDE, flat};
use super::level::{Level, Task};
use super::pairs::pair_count;
use super::simd::Simd;
use super::tiles::{chunk_len, stage_tile};
use crate::dtype::Dtype;

/// The preparation of elements before they are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GramOptions {
    /// An input that is subtracted, in f64, from every other one; itself it stays unchanged.
    pub center: Option<usize>,
    /// True if a NaN or infinite element counts as zero, before the centre is subtracted.
    pub skip_nonfinite: bool,
}

pub(super) fn gram(
    level: Level,
    inputs: &[Elements<'_>],
    options: GramOptions,
    scratch: &mut Scratch,
    sums: &mut [f64],
) {
    let len = chunk_len(inputs);
    assert!(
        options.center.is_none_or(|center| center < inputs.len()),
        "the centre is no input"
    );
    assert_eq!(
        sums.len(),
        pair_count(inputs.len()),
        "sums are not one for each pair"
    );
    let rows = scratch.rows(Scratch::gram_rows(inputs.len()));
    let (tiles, lanes) = rows.split_at_mut(inputs.len() * TILE_STRIDE);
    lanes.fill(Lanes::ZERO);
    level.run(GramTask {
        inputs,
        options,
        len,
        tiles,
        lanes,
    });
    for (sum, lanes) in sums.iter_mut().zip(lanes) {
        let total = lanes.sum();
        // The payload of a NaN depends on the order of operands, which compilers may change.
        *sum = if total.is_nan() { f64::NAN } else { total };
    }
}

struct GramTask<'a> {
    inputs: &'a [Elements<'a>],
    options: GramOptions,
    len: usize,
    tiles: &'a mut [Lanes],
    lanes: &'a mut [Lanes],
}

impl Task for GramTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let exact = S::FUSES
            && self.options.center.is_none()
            && self.inputs.iter().all(|input| input.dtype != Dtype::F64);
        let done = if exact && !self.options.skip_nonfinite {
            direct::<S>(self.inputs, self.lanes)
        } else {
            0
        };
        for start in (done..self.len).step_by(TILE) {
            let steps =
                stage_tile::<S>(self.inputs, start, self.options.skip_nonfinite, self.tiles);
            if let Some(center) = self.options.center {
                subtract(self.tiles, center, steps);
            }
            let tiles = Tiles {
                rows: self.tiles,
                steps,
                inputs: self.inputs.len(),
            };
            if exact {
                blocks::<S, true>(tiles, self.lanes);
            } else {
                blocks::<S, false>(tiles, self.lanes);
            }
        }
    }
}

/// Multiplies as many elements as the level can directly from the inputs' bytes; returns their
/// number.
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

/// Subtracts the tile of input `center` from all others.
#[inline(always)]
fn subtract(tiles: &mut [Lanes], center: usize, steps: usize) {
    let (before, rest) = tiles.split_at_mut(center * TILE_STRIDE);
    let (base, after) = rest.split_at_mut(TILE_STRIDE);
    let base = flat(&mut base[..steps]);
    for tile in before
        .chunks_exact_mut(TILE_STRIDE)
        .chain(after.chunks_exact_mut(TILE_STRIDE))
    {
        for (x, b) in flat(&mut tile[..steps]).iter_mut().zip(base.iter()) {
            *x -= *b;
        }
    }
}

/// Adds the products of one tile: triangles along the diagonal, rectangles to the right of them.
#[inline(always)]
fn blocks<S: Simd, const EXACT: bool>(tiles: Tiles<'_>, lanes: &mut [Lanes]) {
    for row in (0..tiles.inputs).step_by(ROWS) {
        // A small triangle has few accumulators; several registers of each pair then hide the
        // adder's latency.
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
