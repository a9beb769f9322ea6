//! The keys by which elements are selected.

use super::super::element::with_element;
use super::super::lanes::{Scratch, TILE, flat};
use super::super::level::{Level, Task};
use super::super::simd::Simd;
use super::{Deltas, Elements};
use crate::dtype::Dtype;
use crate::kernel::element::Element;

/// The key of every NaN: above that of infinity.
const NAN_KEY: u32 = 0x7fc0_0000;
const INFINITY_KEY: u32 = 0x7f80_0000;

/// The number whose key is taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KeyOf {
    /// |δ| of one model times a factor.
    Magnitude {
        /// The index of the model.
        model: usize,
        /// The factor.
        factor: f64,
    },
    /// √V of all M models, V = Σ_i (M δ_i - Σ_j δ_j)², which is M³ times the variance.
    Deviation,
}

/// The key of a number that is not negative: its bits as f32. Every NaN has the same, largest key.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the key is that of the nearest f32"
)]
#[inline(always)]
pub fn key_of(magnitude: f64) -> u32 {
    let key = (magnitude as f32).to_bits();
    if key > INFINITY_KEY { NAN_KEY } else { key }
}

/// The number of a key.
pub fn value_of(key: u32) -> f64 {
    f64::from(f32::from_bits(key))
}

/// Widens elements into a row.
#[inline(always)]
pub(super) fn widen<S: Simd>(input: Elements<'_>, row: &mut [f64]) {
    with_element!(input.dtype, E => S::widen::<E>(E::split(input.bytes), row));
}

/// Writes the differences of a tile of one model into `row`, whose base is `base`.
#[inline(always)]
pub(super) fn differences<S: Simd>(model: Elements<'_>, base: &[f64], row: &mut [f64]) {
    widen::<S>(model, row);
    for (x, b) in row.iter_mut().zip(base) {
        *x -= b;
    }
}

/// Writes the deviation of each element into `deviations`: `rows` hold the differences of each
/// model, `TILE` apart.
#[inline(always)]
pub(super) fn deviations(rows: &[f64], sums: &mut [f64], deviations: &mut [f64]) {
    let len = deviations.len();
    #[expect(clippy::cast_precision_loss, reason = "a hundred models at most")]
    let models = rows.chunks_exact(TILE).count() as f64;
    sums[..len].fill(0.0);
    for row in rows.chunks_exact(TILE) {
        for (sum, delta) in sums.iter_mut().zip(&row[..len]) {
            *sum += delta;
        }
    }
    deviations.fill(0.0);
    for row in rows.chunks_exact(TILE) {
        for ((deviation, delta), sum) in deviations.iter_mut().zip(row).zip(&*sums) {
            let apart = models * delta - sum;
            *deviation += apart * apart;
        }
    }
    for deviation in deviations {
        *deviation = deviation.sqrt();
    }
}

pub(super) fn keys(
    level: Level,
    deltas: Deltas<'_>,
    of: KeyOf,
    scratch: &mut Scratch,
    keys: &mut [u32],
) {
    let rows = flat(scratch.rows(Scratch::select_rows(deltas.models.len())));
    level.run(Keys {
        deltas,
        of,
        rows,
        keys,
    });
}

struct Keys<'a> {
    deltas: Deltas<'a>,
    of: KeyOf,
    rows: &'a mut [f64],
    keys: &'a mut [u32],
}

impl Task for Keys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (base, rest) = self.rows.split_at_mut(TILE);
        let (sums, rest) = rest.split_at_mut(TILE);
        let (result, rows) = rest.split_at_mut(TILE);
        for (tile, keys) in self.keys.chunks_mut(TILE).enumerate() {
            let range = tile * TILE..tile * TILE + keys.len();
            widen::<S>(self.deltas.base.slice(range.clone()), base);
            let result = &mut result[..keys.len()];
            match self.of {
                KeyOf::Magnitude { model, factor } => {
                    let model = self.deltas.models[model].slice(range);
                    differences::<S>(model, base, result);
                    for delta in result.iter_mut() {
                        *delta = delta.abs() * factor;
                    }
                }
                KeyOf::Deviation => {
                    let models = self.deltas.models;
                    for (model, row) in models.iter().zip(rows.chunks_exact_mut(TILE)) {
                        let row = &mut row[..keys.len()];
                        differences::<S>(model.slice(range.clone()), base, row);
                    }
                    deviations(&rows[..models.len() * TILE], sums, result);
                }
            }
            for (key, magnitude) in keys.iter_mut().zip(&*result) {
                *key = key_of(*magnitude);
            }
        }
    }
}
