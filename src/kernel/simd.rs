//! The interface of a level: registers of f64 for the blocks, and the loops over elements.

use super::element::{Element, plain};
use super::lanes::Lanes;

/// Registers of f64 and the loops over elements at one level.
///
/// Implementations may use instructions of their level, so their methods must only run inside
/// [`Level::run`](super::Level::run), whose entry functions they are inlined into.
pub(super) trait Simd {
    /// Numbers in one register.
    const WIDTH: usize;
    /// The most inputs that a block multiplies by four inputs with all accumulators in registers.
    const COLUMNS: usize;
    /// The most inputs of one type whose Gram sums all stay in registers, so that they are not
    /// staged in tiles.
    const DIRECT: usize;
    /// True if `mul_add` rounds once; otherwise it is a multiplication, then an addition.
    const FUSES: bool;

    type Register: Copy;

    fn splat(value: f64) -> Self::Register;
    /// The `group`-th register of the lanes.
    fn load(lanes: &Lanes, group: usize) -> Self::Register;
    fn store(value: Self::Register, lanes: &mut Lanes, group: usize);
    fn add(a: Self::Register, b: Self::Register) -> Self::Register;
    fn mul(a: Self::Register, b: Self::Register) -> Self::Register;
    /// a·b + c.
    fn mul_add(a: Self::Register, b: Self::Register, c: Self::Register) -> Self::Register;

    /// Widens every element.
    #[inline(always)]
    fn widen<E: Element>(elements: &[E::Bytes], wide: &mut [f64]) {
        plain::widen::<E>(elements, wide);
    }

    /// Adds `weights[i]`·`inputs[i][k]` to `sums[k]`, i in order; `FRESH` sums begin as the first
    /// term.
    #[inline(always)]
    fn add_terms<E: Element, const N: usize, const FRESH: bool>(
        weights: [f64; N],
        inputs: [&[E::Bytes]; N],
        sums: &mut [f64],
    ) {
        plain::add_terms::<E, N, FRESH>(weights, inputs, sums);
    }

    /// Rounds every value and returns true; returns false if a value is near overflow or not
    /// finite, and then the written elements are not valid.
    #[inline(always)]
    fn narrow<E: Element>(values: &[f64], rounded: &mut [E::Bytes]) -> bool {
        let limit = E::LIMIT;
        plain::narrow::<E>(values, rounded);
        values
            .iter()
            .fold(true, |below, value| below & (value.abs() < limit))
    }

    /// Rounds the weighted sums of `N` inputs, over `divisor` with `DIVIDED`, to their own type in
    /// one sweep, with the bits of [`Simd::add_terms`], a division and [`Simd::narrow`]. Returns
    /// false if a sum is near overflow or not finite, or the level has no such sweep for the type;
    /// then the written elements are not valid.
    #[inline(always)]
    fn mix<E: Element, const N: usize, const DIVIDED: bool>(
        _weights: [f64; N],
        _divisor: f64,
        _inputs: [&[E::Bytes]; N],
        _rounded: &mut [E::Bytes],
    ) -> bool {
        false
    }

    /// Adds the products of `N` inputs, at most [`Self::DIRECT`], to the lanes of their pairs;
    /// returns the number of elements done of each, a multiple of the lanes. The elements must be
    /// of a type whose products are exact.
    #[inline(always)]
    fn gram<E: Element, const N: usize>(_inputs: [&[E::Bytes]; N], _sums: &mut [Lanes]) -> usize {
        0
    }
}

/// The registers of [`Level::Portable`](super::Level::Portable).
pub(super) struct Portable;

impl Simd for Portable {
    const WIDTH: usize = 2;
    const COLUMNS: usize = 2;
    const DIRECT: usize = 0;
    const FUSES: bool = false;

    type Register = [f64; 2];

    #[inline(always)]
    fn splat(value: f64) -> [f64; 2] {
        [value; 2]
    }

    #[inline(always)]
    fn load(lanes: &Lanes, group: usize) -> [f64; 2] {
        [lanes.0[2 * group], lanes.0[2 * group + 1]]
    }

    #[inline(always)]
    fn store(value: [f64; 2], lanes: &mut Lanes, group: usize) {
        lanes.0[2 * group] = value[0];
        lanes.0[2 * group + 1] = value[1];
    }

    #[inline(always)]
    fn add(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [a[0] + b[0], a[1] + b[1]]
    }

    #[inline(always)]
    fn mul(a: [f64; 2], b: [f64; 2]) -> [f64; 2] {
        [a[0] * b[0], a[1] * b[1]]
    }

    #[inline(always)]
    fn mul_add(a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> [f64; 2] {
        Self::add(c, Self::mul(a, b))
    }
}
