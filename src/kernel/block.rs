//! Products of a few inputs with a few others: the innermost loops of the Gram sums, accumulators
//! in registers.

use super::lanes::{LANES, Lanes, TILE_STRIDE};
use super::pairs::pair_index;
use super::simd::Simd;

/// The most inputs on the left side of a block.
pub(super) const ROWS: usize = 4;

/// The widened tiles of all inputs, the first `steps` rows of each filled.
#[derive(Clone, Copy)]
pub(super) struct Tiles<'a> {
    pub(super) rows: &'a [Lanes],
    pub(super) steps: usize,
    pub(super) inputs: usize,
}

impl<'a> Tiles<'a> {
    #[inline(always)]
    fn take<const N: usize>(self, first: usize) -> [&'a [Lanes]; N] {
        std::array::from_fn(|i| &self.rows[(first + i) * TILE_STRIDE..][..self.steps])
    }

    /// The place of (i, j), i ≤ j, in the upper triangle row by row.
    #[inline(always)]
    fn pair(self, i: usize, j: usize) -> usize {
        pair_index(self.inputs, i, j)
    }
}

/// Adds the products of the `R` inputs from `row` on with the `C` inputs from `column` on to their
/// pairs' lanes, `G` registers of a pair at a time. With `TRIANGLE` both sides are the same inputs,
/// and only i ≤ j is done.
///
/// `EXACT` promises that every product is exact in f64, so that a fused multiply-add changes
/// nothing.
#[inline(always)]
#[expect(
    clippy::needless_range_loop,
    reason = "counted loops are unrolled, their accumulators kept in registers"
)]
pub(super) fn block<
    S: Simd,
    const R: usize,
    const C: usize,
    const G: usize,
    const TRIANGLE: bool,
    const EXACT: bool,
>(
    tiles: Tiles<'_>,
    row: usize,
    column: usize,
    sums: &mut [Lanes],
) {
    let first = |i: usize| if TRIANGLE { i } else { 0 };
    let (x, y) = (tiles.take::<R>(row), tiles.take::<C>(column));
    for group in (0..LANES / S::WIDTH).step_by(G) {
        let mut acc = [[[S::splat(0.0); G]; C]; R];
        for i in 0..R {
            for j in first(i)..C {
                for g in 0..G {
                    acc[i][j][g] = S::load(&sums[tiles.pair(row + i, column + j)], group + g);
                }
            }
        }
        for step in 0..tiles.steps {
            for g in 0..G {
                let mut right = [S::splat(0.0); C];
                for j in 0..C {
                    right[j] = S::load(&y[j][step], group + g);
                }
                for i in 0..R {
                    let left = S::load(&x[i][step], group + g);
                    for j in first(i)..C {
                        acc[i][j][g] = if EXACT {
                            S::mul_add(left, right[j], acc[i][j][g])
                        } else {
                            S::add(acc[i][j][g], S::mul(left, right[j]))
                        };
                    }
                }
            }
        }
        for i in 0..R {
            for j in first(i)..C {
                for g in 0..G {
                    S::store(
                        acc[i][j][g],
                        &mut sums[tiles.pair(row + i, column + j)],
                        group + g,
                    );
                }
            }
        }
    }
}
