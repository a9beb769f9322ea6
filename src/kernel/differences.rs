//! Weighted sums of differences from one input: for weights so large that sums of the inputs
//! themselves would cancel.

use super::Elements;
use super::combine::{Combined, narrow};
use super::element::{Element, with_element};
use super::lanes::{DIFFERENCE_ROWS, Scratch, TILE, flat};
use super::level::{Level, Task};
use super::simd::Simd;
use super::tiles::{check_output, tile_range};
use crate::dtype::Dtype;

/// The elements of an input and their weight.
type Weighted<'a> = (f64, Elements<'a>);

pub(super) fn combine(
    level: Level,
    center: Weighted<'_>,
    terms: &[Weighted<'_>],
    out: Dtype,
    scratch: &mut Scratch,
    dst: &mut [u8],
) -> Combined {
    check_output(
        terms.iter().chain([&center]).map(|(_, input)| *input),
        out,
        dst,
    );
    let rows = flat(scratch.rows(DIFFERENCE_ROWS));
    level.run(Differences {
        center,
        terms,
        out,
        rows,
        dst,
    })
}

struct Differences<'a> {
    center: Weighted<'a>,
    terms: &'a [Weighted<'a>],
    out: Dtype,
    rows: &'a mut [f64],
    dst: &'a mut [u8],
}

impl Task for Differences<'_> {
    type Output = Combined;

    #[inline(always)]
    fn run<S: Simd>(self) -> Combined {
        let size = self.out.bytes();
        let (sums, rest) = self.rows.split_at_mut(TILE);
        let (base, x) = rest.split_at_mut(TILE);
        let mut found = Combined::PLAIN;
        for (tile, dst) in self.dst.chunks_mut(TILE * size).enumerate() {
            let range = tile_range(tile, dst, size);
            let sums = &mut sums[..range.len()];
            widen::<S>(self.center.1.slice(range.clone()), base);
            sums.fill(0.0);
            for (term, (weight, input)) in self.terms.iter().enumerate() {
                widen::<S>(input.slice(range.clone()), x);
                add(*weight, x, base, term == 0, sums);
            }
            if self.center.0 != 0.0 {
                // Last: the differences are summed to their own precision first.
                sums.iter_mut()
                    .zip(&*base)
                    .for_each(|(sum, base)| *sum += self.center.0 * base);
            }
            found = found.and(narrow::<S>(self.out, sums, dst));
        }
        found
    }
}

#[inline(always)]
fn widen<S: Simd>(input: Elements<'_>, wide: &mut [f64]) {
    with_element!(input.dtype, E => S::widen::<E>(E::split(input.bytes), wide));
}

/// Adds `weight`·(`x[k]` - `base[k]`) to `sums[k]`; `fresh` sums are set to it.
#[inline(always)]
fn add(weight: f64, x: &[f64], base: &[f64], fresh: bool, sums: &mut [f64]) {
    for ((sum, x), base) in sums.iter_mut().zip(x).zip(base) {
        let term = weight * (x - base);
        *sum = if fresh { term } else { *sum + term };
    }
}
