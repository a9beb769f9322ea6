//! The kept elements of a tile, as masks: all bits set for an element that is kept.

use super::super::lanes::TILE;
use super::choose::Chooser;
use super::keys::key_of;
use super::philox::Draws;

/// The elements of one model that are kept.
#[derive(Debug, Clone)]
pub enum Pick<'t> {
    /// All.
    All,
    /// None.
    Nothing,
    /// Those whose |δ| lies in a band.
    Band(Band),
    /// Those whose word is below a limit.
    Draw {
        /// The draws.
        draws: Draws,
        /// The flat index of the first element in the tensor.
        start: u64,
        /// The limit; 2^32 keeps all.
        below: u64,
    },
    /// Those whose word is below a limit of their own.
    DrawBelow {
        /// The draws.
        draws: Draws,
        /// The flat index of the first element in the tensor.
        start: u64,
        /// The limit of each element.
        below: &'t [u32],
    },
    /// Those whose |δ|, times a factor and rounded to f32, is not below a threshold.
    Above {
        /// The factor.
        factor: f64,
        /// The threshold.
        least: f64,
    },
}

/// The elements that are kept, model by model or at the same places of all.
#[derive(Debug)]
pub enum Picks<'p, 't> {
    /// Those of each model.
    Each(&'p mut [Pick<'t>]),
    /// Those of all models whose deviation lies in a band.
    Together(&'p mut Band),
}

/// A band of keys: from `low` on, below `high`. Elements tied at an edge are chosen one by one.
#[derive(Debug, Clone)]
pub struct Band {
    /// The lower edge, which takes its elements in; none without one.
    pub low: Option<Chooser>,
    /// The upper edge: what lies above is out, of the elements at it the chosen ones stay.
    pub high: Option<Chooser>,
}

impl Band {
    /// Writes the mask of a tile with these magnitudes.
    #[inline(always)]
    pub(super) fn mask(&mut self, magnitudes: impl Iterator<Item = f64>, mask: &mut [u64]) {
        let mut keys = [0; TILE];
        let keys = &mut keys[..mask.len()];
        for (key, magnitude) in keys.iter_mut().zip(magnitudes) {
            *key = key_of(magnitude);
        }
        match &mut self.low {
            None => mask.fill(!0),
            Some(chooser) => take_in(chooser, keys, mask),
        }
        if let Some(chooser) = &mut self.high {
            take_out(chooser, keys, mask);
        }
    }
}

/// Keeps the elements above the edge, and the chosen ones at it.
#[inline(always)]
fn take_in(chooser: &mut Chooser, keys: &[u32], mask: &mut [u64]) {
    let edge = chooser.edge();
    if edge.kept == edge.of {
        for (mask, key) in mask.iter_mut().zip(keys) {
            *mask = all_if(*key >= edge.key);
        }
        return;
    }
    let mut tied = 0_u32;
    for (mask, key) in mask.iter_mut().zip(keys) {
        *mask = all_if(*key > edge.key);
        tied += u32::from(*key == edge.key);
    }
    if tied > 0 && edge.kept > 0 {
        for (mask, _) in mask
            .iter_mut()
            .zip(keys)
            .filter(|(_, key)| **key == edge.key)
        {
            *mask = all_if(chooser.take());
        }
    }
}

/// Drops the elements above the edge, and those at it that are not chosen.
#[inline(always)]
fn take_out(chooser: &mut Chooser, keys: &[u32], mask: &mut [u64]) {
    let edge = chooser.edge();
    let mut tied = 0_u32;
    for (mask, key) in mask.iter_mut().zip(keys) {
        *mask &= all_if(*key <= edge.key);
        tied += u32::from(*key == edge.key);
    }
    if tied > 0 && edge.kept < edge.of {
        for (mask, _) in mask
            .iter_mut()
            .zip(keys)
            .filter(|(_, key)| **key == edge.key)
        {
            *mask &= all_if(chooser.take());
        }
    }
}

#[inline(always)]
pub(super) fn all_if(kept: bool) -> u64 {
    if kept { !0 } else { 0 }
}

impl Pick<'_> {
    /// Writes the mask of the tile that begins at element `at`, whose differences are `deltas`.
    #[inline(always)]
    pub(super) fn mask(&mut self, at: usize, deltas: &[f64], mask: &mut [u64]) {
        match self {
            Self::All => mask.fill(!0),
            Self::Nothing => mask.fill(0),
            Self::Band(band) => band.mask(deltas.iter().map(|delta| delta.abs()), mask),
            Self::Draw {
                draws,
                start,
                below,
            } => {
                draws.fill(*start + at as u64, mask);
                for word in mask {
                    *word = all_if(*word < *below);
                }
            }
            Self::DrawBelow {
                draws,
                start,
                below,
            } => {
                draws.fill(*start + at as u64, mask);
                for (word, below) in mask.iter_mut().zip(&below[at..]) {
                    *word = all_if(*word < u64::from(*below));
                }
            }
            Self::Above { factor, least } => {
                for (mask, delta) in mask.iter_mut().zip(deltas) {
                    let importance = f32_of(delta.abs() * *factor);
                    *mask = all_if((importance >= *least) | importance.is_nan());
                }
            }
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "importances are compared as f32, as they are counted"
)]
#[inline(always)]
fn f32_of(value: f64) -> f64 {
    f64::from(value as f32)
}

/// Clears the elements that are not kept; returns the number of those that are.
#[inline(always)]
pub(super) fn clear(mask: &[u64], row: &mut [f64]) -> u64 {
    let mut kept = 0;
    for (value, mask) in row.iter_mut().zip(mask) {
        *value = f64::from_bits(value.to_bits() & mask);
        kept += mask & 1;
    }
    kept
}
