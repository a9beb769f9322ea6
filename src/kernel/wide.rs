//! Gram sums of a chunk to twice the digits of f64, so that differences of sums keep enough digits.
//!
//! A sum is two numbers, its value in f64 and the rounding error of that (Ogita, Rump and Oishi,
//! *Accurate sum and dot product*, 2005, Dot2). The lanes are those of the plain sums, and no
//! operation that rounds is fused, so the bits are the same at every level.

use super::Elements;
use super::exact::two_sum;
use super::lanes::{Lanes, Scratch, TILE, TILE_STRIDE};
use super::level::{Level, Task};
use super::pairs::pair_count;
use super::simd::Simd;
use super::tiles::{chunk_len, stage_tile};
use crate::dtype::Dtype;

pub(super) fn gram(
    level: Level,
    inputs: &[Elements<'_>],
    skip_nonfinite: bool,
    scratch: &mut Scratch,
    sums: &mut [f64],
) {
    let len = chunk_len(inputs);
    let pairs = pair_count(inputs.len());
    assert_eq!(sums.len(), 2 * pairs, "sums are not two for each pair");
    let rows = scratch.rows(Scratch::wide_rows(inputs.len()));
    let (tiles, lanes) = rows.split_at_mut(inputs.len() * TILE_STRIDE);
    lanes.fill(Lanes::ZERO);
    level.run(WideGram {
        inputs,
        skip_nonfinite,
        len,
        tiles,
        lanes,
    });
    let (sums, lost) = sums.split_at_mut(pairs);
    for ((sum, lost), lanes) in sums.iter_mut().zip(lost).zip(lanes.chunks_exact(2)) {
        let (total, rest) = total(&lanes[0], &lanes[1]);
        // The rounding error of an infinite sum is infinity minus infinity, a NaN whose payload
        // depends on the compiler.
        (*sum, *lost) = if total.is_finite() {
            (total, rest)
        } else {
            (f64::NAN, f64::NAN)
        };
    }
}

/// The sum of the lanes in the order of [`Lanes::sum`].
fn total(sums: &Lanes, lost: &Lanes) -> (f64, f64) {
    let (mut sums, mut lost) = (sums.0, lost.0);
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            let [sum, rest] = two_sum(sums[l], sums[l + half]);
            (sums[l], lost[l]) = (sum, lost[l] + lost[l + half] + rest);
        }
    }
    (sums[0], lost[0])
}

struct WideGram<'a> {
    inputs: &'a [Elements<'a>],
    skip_nonfinite: bool,
    len: usize,
    tiles: &'a mut [Lanes],
    /// The sums and their rounding errors, one after the other for each pair.
    lanes: &'a mut [Lanes],
}

impl Task for WideGram<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let exact = self.inputs.iter().all(|input| input.dtype != Dtype::F64);
        for start in (0..self.len).step_by(TILE) {
            let steps = stage_tile::<S>(self.inputs, start, self.skip_nonfinite, self.tiles);
            let mut pairs = self.lanes.chunks_exact_mut(2);
            for i in 0..self.inputs.len() {
                for j in i..self.inputs.len() {
                    let [x, y] = [i, j].map(|input| &self.tiles[input * TILE_STRIDE..][..steps]);
                    let lanes = pairs.next().expect("two lanes for each pair");
                    if exact {
                        add::<true>(x, y, lanes);
                    } else {
                        add::<false>(x, y, lanes);
                    }
                }
            }
        }
    }
}

/// Adds the products of two tiles; `EXACT` promises that no product is rounded.
#[inline(always)]
fn add<const EXACT: bool>(x: &[Lanes], y: &[Lanes], lanes: &mut [Lanes]) {
    let (mut sums, mut lost) = (lanes[0].0, lanes[1].0);
    for (x, y) in x.iter().zip(y) {
        for (((sum, lost), x), y) in sums.iter_mut().zip(&mut lost).zip(&x.0).zip(&y.0) {
            let product = x * y;
            let rounded = if EXACT { 0.0 } else { x.mul_add(*y, -product) };
            let [total, rest] = two_sum(*sum, product);
            *sum = total;
            *lost += rest + rounded;
        }
    }
    (lanes[0].0, lanes[1].0) = (sums, lost);
}
