//! Differences from a base, element by element: their keys, which of them are kept, and how the
//! kept ones are mixed.
//!
//! A difference is δ = x - b in f64. Its *key* is the bit pattern of |δ| rounded to f32: keys of
//! differences compare as the magnitudes do, and can be counted. Elements are taken by a threshold
//! on the key, with an exact number of those that are tied at it ([`Chooser`]), or by random draws
//! that are a function of the element's place (`philox`). All loops are compiled for each
//! instruction set from the same source and give the same bits.
//!
//! - `philox`: random words. `keys`: keys of differences, deviations and importances.
//! - `bins`: counting keys. `choose`: choosing among tied elements. `ranks`: ranks in a row.
//! - `divergence`: the divergence of two rows.
//! - `pick`: the kept elements of a tile, as masks. `sums`: sums over kept differences.
//! - `kinds`: the ways to mix. `mix`: the output from the kept differences. `tiles`: the loops of its steps.

mod bins;
mod choose;
mod divergence;
mod keys;
mod kinds;
mod mix;
mod philox;
mod pick;
mod ranks;
mod sums;
mod tiles;

use super::lanes::Scratch;
use super::{Combined, Elements, Kernels};
use crate::dtype::Dtype;

pub use bins::{Bins, Touched};
pub use choose::{Chooser, Edge, Ties, Words};
pub use divergence::divergence;
pub use keys::{KeyOf, key_of, value_of};
pub use kinds::{Consensus, Mix, MixCounts, MixKind, Share, SignTie};
pub use philox::Draws;
pub use pick::{Band, Pick, Picks};
pub use ranks::{RankDraw, limits};
pub use sums::Power;

/// Elements of the base and of the models that are measured from it, equally many of each.
#[derive(Debug, Clone, Copy)]
pub struct Deltas<'a> {
    /// The base.
    pub base: Elements<'a>,
    /// The models.
    pub models: &'a [Elements<'a>],
}

impl Deltas<'_> {
    fn check(&self) -> usize {
        let len = self.base.len();
        for input in self.models.iter().chain([&self.base]) {
            assert!(
                input.dtype.is_mergeable(),
                "{} elements are not averaged",
                input.dtype
            );
            assert_eq!(input.len(), len, "inputs differ in length");
        }
        len
    }
}

impl Kernels {
    /// Writes the key of each element into `keys`.
    ///
    /// # Panics
    ///
    /// Panics if the inputs differ in length, or `keys` has another one.
    pub fn keys(&self, deltas: Deltas<'_>, of: KeyOf, scratch: &mut Scratch, keys: &mut [u32]) {
        assert_eq!(deltas.check(), keys.len(), "one key for each element");
        keys::keys(self.level(), deltas, of, scratch, keys);
    }

    /// Adds, for each model, the sum over all elements and over the kept ones to `sums`.
    ///
    /// The sums of a chunk have a fixed shape: sixteen lanes, added in one tree.
    ///
    /// # Panics
    ///
    /// Panics if the numbers of models, picks and sums differ.
    pub fn kept_sums(
        &self,
        deltas: Deltas<'_>,
        picks: Picks<'_, '_>,
        power: Power,
        scratch: &mut Scratch,
        sums: &mut [[f64; 2]],
    ) {
        deltas.check();
        sums::kept(self.level(), deltas, picks, power, scratch, sums);
    }

    /// Counts, for each model, the elements with |δ| > `epsilon`: those where another model's is,
    /// too, and those where none is.
    ///
    /// # Panics
    ///
    /// Panics if `counts` has not one entry for each model.
    pub fn count_shared(
        &self,
        deltas: Deltas<'_>,
        epsilon: f64,
        scratch: &mut Scratch,
        counts: &mut [[u64; 2]],
    ) {
        deltas.check();
        sums::count_shared(self.level(), deltas, epsilon, scratch, counts);
    }

    /// Writes the base plus the mix of the kept differences, in f64, rounded once to the type of the
    /// output, nearest even, and adds to `counts`. An element with a mix of zero is the base's.
    ///
    /// # Panics
    ///
    /// Panics if a length differs from that of the output, or the numbers of models and picks
    /// differ.
    pub fn mix(
        &self,
        mixing: Mixing<'_, '_, '_>,
        scratch: &mut Scratch,
        counts: &mut MixCounts,
    ) -> Combined {
        let output = &mixing.output;
        assert_eq!(
            mixing.deltas.check() * output.dtype.bytes(),
            output.bytes.len(),
            "an input's length is not the output's"
        );
        mix::mix(self.level(), mixing, scratch, counts)
    }
}

/// Differences that are selected and mixed.
#[derive(Debug)]
pub struct Mixing<'a, 'p, 't> {
    /// The differences.
    pub deltas: Deltas<'a>,
    /// The elements of them that are kept.
    pub picks: Picks<'p, 't>,
    /// The mix.
    pub mix: &'a Mix,
    /// The result.
    pub output: Output<'a>,
}

/// The elements of an output, to be written.
#[derive(Debug)]
pub struct Output<'a> {
    /// Their type.
    pub dtype: Dtype,
    /// Their bytes.
    pub bytes: &'a mut [u8],
}

#[cfg(test)]
mod tests;
