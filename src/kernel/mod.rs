//! The loops that touch every element: Gram sums, weighted combination, conversion between element
//! types.
//!
//! All of them work on [`Elements`], runs of bytes as they lie in a file, at any alignment. They
//! allocate nothing, start no thread and know nothing of tensors; the engine calls them once per
//! chunk.
//!
//! **The bits of a result do not depend on the instruction set.** Sums have a fixed shape: element
//! `k` of a chunk is added to lane `k mod 16`, the sixteen f64 lanes are added in one fixed tree at
//! the chunk's end. A fused multiply-add is used only where the product is exact in f64, so that it
//! cannot differ from multiply, then add. Everything else is plain IEEE arithmetic on single
//! elements, compiled once per instruction set from the same source.
//!
//! - `level`: the instruction sets, and running a task compiled for one of them.
//! - `element`: one element: widening to f64 and the single rounding back; the plain loops.
//! - `pairs`: the order of inner products; `exact`: sums that keep their rounding error.
//! - `lanes`: the sixteen lanes and the working memory made of them.
//! - `simd`, `native`, `x86`: the registers of a level, and loops that use its conversions.
//! - `tiles`: cutting elements into tiles.
//! - `block`: products of a few inputs with a few others, accumulators in registers.
//! - `gram`: the Gram sums of a chunk.
//! - `wide`: the Gram sums of a chunk to twice the digits.
//! - `combine`: weighted sums and conversions.
//! - `differences`: weighted sums of differences from one input.
//! - `product`: products of matrices in f64.
//! - [`select`]: differences from a base, element by element.

mod block;
mod combine;
mod differences;
mod element;
mod exact;
mod gram;
mod lanes;
mod level;
#[cfg(target_arch = "x86_64")]
mod native;
mod pairs;
mod product;
pub mod select;
mod simd;
#[cfg(test)]
mod tests;
mod tiles;
mod wide;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use crate::dtype::Dtype;

pub use combine::{Combined, MOST_DIVISOR};
pub(crate) use exact::{add_compensated, two_sum};
pub use gram::GramOptions;
pub use lanes::{Scratch, SelectScratch};
pub use level::Level;
pub use pairs::pair_count;
pub(crate) use pairs::pair_index;
pub use product::{Right, Wide};

/// Elements of one chunk: the unit of every sum. Chunk sums are added in chunk order, so no result
/// depends on how a tensor was cut into blocks.
pub const CHUNK: usize = 1 << 15;

/// A run of elements of one input as they lie in its file: little endian, at any alignment.
#[derive(Debug, Clone, Copy)]
pub struct Elements<'a> {
    /// The type of each element, one of [`Dtype::MERGEABLE`].
    pub dtype: Dtype,
    /// The elements' bytes, a whole number of elements.
    pub bytes: &'a [u8],
}

impl<'a> Elements<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements of `range`.
    ///
    /// # Panics
    ///
    /// Panics if the range ends beyond the last element.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Elements<'a> {
        let size = self.dtype.bytes();
        Elements {
            dtype: self.dtype,
            bytes: &self.bytes[range.start * size..range.end * size],
        }
    }
}

/// The kernels for one instruction set of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    level: Level,
}

impl Kernels {
    /// The fastest kernels of this machine.
    pub fn detect() -> Self {
        let level = Level::ALL
            .into_iter()
            .rev()
            .find(|level| level.is_available())
            .unwrap_or(Level::Portable);
        Self { level }
    }

    /// The kernels for every instruction set of this machine, [`Level::Portable`] first.
    pub fn available() -> Vec<Self> {
        Level::ALL.into_iter().filter_map(Self::at).collect()
    }

    /// The kernels for `level`; `None` if this machine lacks it.
    pub fn at(level: Level) -> Option<Self> {
        level.is_available().then_some(Self { level })
    }

    /// The name of the instruction set, such as `avx512`.
    pub fn name(&self) -> &'static str {
        self.level.name()
    }

    /// The instruction set.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Writes `sums[p]` = Σ_k x_i\[k\]·x_j\[k\] over one chunk in f64, p running over the upper
    /// triangle row by row: (0,0), (0,1) … (0,n-1), (1,1) …
    ///
    /// A NaN sum is written as [`f64::NAN`].
    ///
    /// # Panics
    ///
    /// Panics if the inputs differ in length or are longer than [`CHUNK`], a dtype is not
    /// mergeable, `options.center` is not the index of an input, or `sums` does not hold
    /// [`pair_count`] numbers.
    pub fn gram(
        &self,
        inputs: &[Elements<'_>],
        options: GramOptions,
        scratch: &mut Scratch,
        sums: &mut [f64],
    ) {
        gram::gram(self.level, inputs, options, scratch, sums);
    }

    /// Writes the sums of [`Kernels::gram`], without a centre, to twice the digits of f64: all sums
    /// in f64, then the rounding errors of all.
    ///
    /// A sum that is not finite is [`f64::NAN`].
    ///
    /// # Panics
    ///
    /// As for `gram`; `sums` must hold twice [`pair_count`] numbers.
    pub fn gram_wide(
        &self,
        inputs: &[Elements<'_>],
        skip_nonfinite: bool,
        scratch: &mut Scratch,
        sums: &mut [f64],
    ) {
        wide::gram(self.level, inputs, skip_nonfinite, scratch, sums);
    }

    /// The index of the first NaN or infinity.
    ///
    /// # Panics
    ///
    /// Panics if the dtype is not mergeable.
    pub fn first_nonfinite(&self, input: Elements<'_>) -> Option<usize> {
        combine::first_nonfinite(self.level, input)
    }

    /// Writes `dst[k]` = Σ_i w_i·x_i\[k\] / `divisor`, summed in the given order in f64, divided
    /// with one rounding of f64 and rounded once to `out`, nearest even.
    ///
    /// Any length. The sum starts as w_0·x_0, so a negative zero survives; without terms it is +0.
    /// A NaN is written as the quiet NaN of positive sign.
    ///
    /// # Panics
    ///
    /// Panics if an input's length is not that of `dst`, a dtype is not mergeable, or the divisor
    /// is not a whole number from 1 to [`MOST_DIVISOR`].
    pub fn combine(
        &self,
        terms: &[(f64, Elements<'_>)],
        divisor: f64,
        out: Dtype,
        scratch: &mut Scratch,
        dst: &mut [u8],
    ) -> Combined {
        combine::combine(self.level, terms, divisor, out, scratch, dst)
    }

    /// Writes `dst[k]` = Σ_i w_i·(x_i\[k\] - c\[k\]) + w·c\[k\] for the `center` (w, c), each
    /// difference and the sums in f64, the centre's term added last, rounded once to `out`, nearest
    /// even.
    ///
    /// A centre of weight zero is only subtracted. Any length. A NaN is written as the quiet NaN of
    /// positive sign.
    ///
    /// # Panics
    ///
    /// Panics if an input's length is not that of `dst`, or a dtype is not mergeable.
    pub fn combine_differences(
        &self,
        center: (f64, Elements<'_>),
        terms: &[(f64, Elements<'_>)],
        out: Dtype,
        scratch: &mut Scratch,
        dst: &mut [u8],
    ) -> Combined {
        differences::combine(self.level, center, terms, out, scratch, dst)
    }

    /// Writes each element converted to `out` with one rounding, nearest even; returns the number
    /// of finite elements that became infinite or NaN. If the dtypes are equal, the bytes are
    /// copied unchanged, NaN payloads included.
    ///
    /// # Panics
    ///
    /// Panics if the lengths differ or a dtype is not mergeable.
    pub fn convert(&self, input: Elements<'_>, out: Dtype, dst: &mut [u8]) -> u64 {
        combine::convert(self.level, input, out, dst)
    }

    /// Adds `left` · `right` to the row-major `result`: the terms of every entry one by one in
    /// their order, in f64, without fused operations, so that the bits depend on the factors alone.
    ///
    /// # Panics
    ///
    /// Panics if the sizes do not match.
    pub fn add_product(&self, left: Wide<'_>, right: Right<'_>, result: &mut [f64]) {
        product::add_product(self.level, left, right, result);
    }
}
