//! Cuts the elements of a chunk or of an output into tiles, and checks the inputs of all kernels.

use std::ops::Range;

use super::element::{Element, with_element};
use super::lanes::{LANES, Lanes, TILE, TILE_STRIDE, flat};
use super::simd::Simd;
use super::{CHUNK, Elements};
use crate::dtype::Dtype;

/// Checks that the inputs of a chunk have one length, and returns it.
pub(super) fn chunk_len(inputs: &[Elements<'_>]) -> usize {
    let len = inputs.first().map_or(0, Elements::len);
    assert!(
        len <= CHUNK,
        "{len} elements are more than a chunk of {CHUNK}"
    );
    for input in inputs {
        assert!(
            input.dtype.is_mergeable(),
            "{} elements are not averaged",
            input.dtype
        );
        assert_eq!(input.len(), len, "inputs differ in length");
    }
    len
}

/// Checks that every input has as many elements as the output `dst` of type `out`.
pub(super) fn check_output<'a>(inputs: impl Iterator<Item = Elements<'a>>, out: Dtype, dst: &[u8]) {
    let len = dst.len() / out.bytes();
    assert_eq!(
        dst.len(),
        len * out.bytes(),
        "the output is no whole number of elements"
    );
    for input in inputs {
        assert_eq!(input.len(), len, "an input's length is not the output's");
    }
}

/// The elements of tile `tile`, whose output is `bytes`, `size` of them for each element.
#[inline(always)]
pub(super) fn tile_range(tile: usize, bytes: &[u8], size: usize) -> Range<usize> {
    tile * TILE..tile * TILE + bytes.len() / size
}

/// Widens the tile of every input that begins at element `start` into `tiles`; returns the number
/// of rows filled of each.
///
/// The last row is padded with zeros, which add nothing to any sum.
#[inline(always)]
pub(super) fn stage_tile<S: Simd>(
    inputs: &[Elements<'_>],
    start: usize,
    skip_nonfinite: bool,
    tiles: &mut [Lanes],
) -> usize {
    let mut steps = 0;
    for (input, tile) in inputs.iter().zip(tiles.chunks_exact_mut(TILE_STRIDE)) {
        let end = input.len().min(start + TILE);
        steps = (end - start).div_ceil(LANES);
        stage::<S>(input.slice(start..end), skip_nonfinite, &mut tile[..steps]);
    }
    steps
}

/// Widens one input into `rows`.
#[inline(always)]
fn stage<S: Simd>(input: Elements<'_>, skip_nonfinite: bool, rows: &mut [Lanes]) {
    let wide = flat(rows);
    with_element!(input.dtype, E => S::widen::<E>(E::split(input.bytes), wide));
    wide[input.len()..].fill(0.0);
    if skip_nonfinite {
        for x in wide {
            *x = if x.is_finite() { *x } else { 0.0 };
        }
    }
}
