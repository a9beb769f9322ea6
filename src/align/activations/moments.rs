//! Activations in blocks of rows, centred and scaled before they are compared.

use super::Similarity;
use crate::align::Weights;
use crate::data::narrow;
use crate::error::{Context, Error, Kind, Result};
use crate::symmetry::Group;

/// Rows that are read and multiplied together; always this number, so that sums have one shape.
pub const BLOCK: u64 = 1024;

/// Checks that both tensors are [samples, units]; returns the number of samples.
pub fn check_shapes(reference: &dyn Weights, moving: &dyn Weights, group: &Group) -> Result<u64> {
    let context = Context::new(
        Kind::Mismatch,
        "cannot match activations",
        group.name.escape_debug(),
    );
    let sides = [(reference, "reference"), (moving, "model that is aligned")];
    for (weights, side) in sides {
        let shape = weights.shape(&group.name).unwrap_or_default();
        if !matches!(shape, [samples, units] if *units == group.units as u64 && *samples > 0) {
            return context.fail(format!(
                "wanted shape [samples, {}], got {shape:?} of the {side}",
                group.units
            ));
        }
    }
    let [first, second] =
        sides.map(|(weights, _)| weights.shape(&group.name).map_or(0, |shape| shape[0]));
    if first != second {
        return context.fail(format!(
            "the reference has {first} samples, the model that is aligned {second}"
        ));
    }
    Ok(first)
}

/// One model's activations of one group.
pub struct Moments<'a> {
    weights: &'a dyn Weights,
    name: &'a str,
    samples: u64,
    /// For each unit, the number that is subtracted and the factor for the rest.
    scaling: Vec<(f64, f64)>,
    /// The sum of squares after centring and scaling.
    pub square: f64,
}

impl<'a> Moments<'a> {
    pub fn new(
        weights: &'a dyn Weights,
        name: &'a str,
        samples: u64,
        units: usize,
        similarity: Similarity,
    ) -> Result<Self> {
        let mut own = Self {
            weights,
            name,
            samples,
            scaling: vec![(0.0, 1.0); units],
            square: 0.0,
        };
        if similarity != Similarity::Uncentred {
            let sums = own.sums(|value| value)?;
            own.scaling = sums
                .into_iter()
                .map(|sum| (sum / samples as f64, 1.0))
                .collect();
        }
        let squares = own.sums(|value| value * value)?;
        own.square = squares.iter().sum();
        if similarity == Similarity::Correlation {
            // A unit that never changes correlates with nothing; it is left at zero.
            for (scaling, square) in own.scaling.iter_mut().zip(&squares) {
                scaling.1 = match *square > 0.0 {
                    true => (square / samples as f64).sqrt().recip(),
                    false => 0.0,
                };
            }
            own.square =
                squares.iter().filter(|square| **square > 0.0).count() as f64 * samples as f64;
        }
        Ok(own)
    }

    /// Sums `term` of each unit over samples, in f64 and in the order of samples.
    fn sums(&self, term: impl Fn(f64) -> f64) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; self.scaling.len()];
        for first in (0..self.samples).step_by(usize::try_from(BLOCK).expect("a small number")) {
            for row in self.read(first)?.chunks(self.scaling.len().max(1)) {
                for ((sum, value), (shift, scale)) in sums.iter_mut().zip(row).zip(&self.scaling) {
                    *sum += term((f64::from(*value) - shift) * scale);
                }
            }
        }
        Ok(sums)
    }

    fn read(&self, first: u64) -> Result<Vec<f32>> {
        let units = self.scaling.len() as u64;
        let rows = BLOCK.min(self.samples - first);
        let mut block = vec![0.0; usize::try_from(rows * units).expect("a block is small")];
        let mut numbers = self.weights.tensor(self.name)?;
        numbers.prefetch((first + rows) * units..(first + rows + BLOCK).min(self.samples) * units);
        numbers.read(first * units..(first + rows) * units, &mut block)?;
        if let Some(at) = block.iter().position(|value| !value.is_finite()) {
            let (sample, unit) = (first + at as u64 / units, at as u64 % units);
            let cause = format!(
                "sample {sample}, unit {unit}: the activation is {}",
                block[at]
            );
            return Err(Error::new(
                Kind::NonFinite,
                "cannot match activations",
                self.name.escape_debug(),
                cause,
            ));
        }
        Ok(block)
    }

    /// Returns the rows from `first` on, at most [`BLOCK`], shifted and scaled.
    pub fn block(&self, first: u64) -> Result<Vec<f32>> {
        let mut block = self.read(first)?;
        if self.scaling.iter().all(|scaling| *scaling == (0.0, 1.0)) {
            return Ok(block);
        }
        for row in block.chunks_mut(self.scaling.len().max(1)) {
            for (value, (shift, scale)) in row.iter_mut().zip(&self.scaling) {
                *value = narrow((f64::from(*value) - shift) * scale);
            }
        }
        Ok(block)
    }

    /// Returns the first row of each block.
    pub fn blocks(&self) -> impl Iterator<Item = u64> + use<> {
        (0..self.samples).step_by(usize::try_from(BLOCK).expect("a small number"))
    }
}
