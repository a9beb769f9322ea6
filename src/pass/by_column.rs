//! Coefficients for each vector along the first axis: the columns of a matrix.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::method::{Method, Solution, number};
use crate::plan::tensor::TensorPlan;

use super::bench::{Host, sliced};
use super::equal::sums_to_one;
use super::found::Found;
use super::let_through::Factors;
use super::policy::Policy;
use super::stretch::{cut, method_of};
use super::tile::{TILE, Tile, round};

/// Columns that one thread works on at a time.
pub(super) const STRIPE: usize = TILE;

/// Stands for no input in a byte per column; methods by columns take two inputs and a base.
const NONE: u8 = u8::MAX;

/// The coefficients of every column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ByColumn {
    inputs: usize,
    #[serde(with = "number::list")]
    coefficients: Vec<f64>,
    /// For each column the input from which differences are summed, or `NONE`.
    centers: Vec<u8>,
    /// The findings about all columns.
    pub(super) found: Found,
}

/// The coefficients of a few columns that are being solved.
pub(super) struct RuleStripe<'a> {
    inputs: usize,
    coefficients: &'a mut [f64],
    centers: &'a mut [u8],
    pub(super) found: Found,
}

impl RuleStripe<'_> {
    /// Sets the coefficients of column `at` of the stripe.
    pub(super) fn set(&mut self, at: usize, solution: &Solution) {
        self.found.add(Found::of(&solution.facts));
        self.coefficients[at * self.inputs..][..self.inputs]
            .copy_from_slice(&solution.coefficients);
        self.centers[at] = solution
            .center
            .map_or(NONE, |center| u8::try_from(center).expect("few inputs"));
    }
}

impl ByColumn {
    /// Zero coefficients, to be set column by column.
    pub(super) fn new(inputs: usize, columns: usize) -> Self {
        let (coefficients, centers) = (vec![0.0; columns * inputs], vec![NONE; columns]);
        Self {
            inputs,
            coefficients,
            centers,
            found: Found::default(),
        }
    }

    /// The coefficients by stripes of columns.
    pub(super) fn stripes(&mut self) -> impl IndexedParallelIterator<Item = RuleStripe<'_>> {
        let inputs = self.inputs;
        let parts = self
            .coefficients
            .par_chunks_mut(STRIPE * inputs)
            .zip(self.centers.par_chunks_mut(STRIPE));
        parts.map(move |(coefficients, centers)| RuleStripe {
            inputs,
            coefficients,
            centers,
            found: Found::default(),
        })
    }

    /// Combines a chunk, column by column, into its `output`; returns the number of finite values
    /// that overflowed.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`](crate::error::Kind::NonFinite) when such a value became NaN and NaN is
    /// not let through.
    pub(super) fn combine(
        &self,
        host: &Host<'_>,
        policy: Policy<'_>,
        chunk: &Range<usize>,
        output: &mut [u8],
    ) -> Result<u64> {
        let (columns, unit) = (column_count(policy.tensor), host.out.bytes());
        let mut tile = Tile::new(self.inputs);
        let mut merged = Vec::with_capacity(TILE);
        let mut overflowed = 0;
        for range in cut(chunk, TILE) {
            tile.load(host.kernels, sliced(host.inputs, &range).into_iter());
            let position = policy.moved(range.start).start % policy.tensor.columns();
            let first = usize::try_from(position).expect("columns fit the memory");
            merged.clear();
            for (at, column) in range.clone().zip(Columns {
                next: first,
                columns,
            }) {
                merged.push(self.sum(&tile, at - range.start, column));
            }
            if policy.lets_through() {
                let columns = Columns {
                    next: first,
                    columns,
                };
                self.let_through(method_of(policy.tensor), &tile, columns, &mut merged);
            }
            let bytes =
                &mut output[(range.start - chunk.start) * unit..(range.end - chunk.start) * unit];
            let count = round(host.kernels, &merged, host.out, bytes);
            if count > 0 {
                policy.refuse_overflow(host.kernels, &range, bytes)?;
            }
            overflowed += count;
        }
        Ok(overflowed)
    }

    fn center(&self, column: usize) -> Option<usize> {
        Some(self.centers[column])
            .filter(|center| *center != NONE)
            .map(usize::from)
    }

    fn coefficients(&self, column: usize) -> &[f64] {
        &self.coefficients[column * self.inputs..][..self.inputs]
    }

    /// Combines element `at` of a tile, which belongs to this column.
    fn sum(&self, tile: &Tile, at: usize, column: usize) -> f64 {
        match self.center(column) {
            None => sum_of_inputs(tile, at, self.coefficients(column)),
            Some(center) => sum_of_differences(tile, at, self.coefficients(column), center),
        }
    }

    /// Puts the NaN and infinity that the sums have lost into the combinations of a tile.
    fn let_through(&self, method: &dyn Method, tile: &Tile, columns: Columns, merged: &mut [f64]) {
        for (at, (merged, column)) in merged.iter_mut().zip(columns).enumerate() {
            if (0..self.inputs).all(|input| tile.get(input, at).is_finite()) {
                continue;
            }
            let factors = Factors::new(method, self.coefficients(column), self.center(column));
            if let Some(sum) = factors.and_then(|factors| factors.sum(tile, at)) {
                *merged = sum;
            }
        }
    }
}

/// The number of columns of a tensor.
pub(super) fn column_count(tensor: &TensorPlan) -> usize {
    usize::try_from(tensor.columns()).expect("the plan has counted the columns' memory")
}

/// Combines one element, in the order of the inputs, as for whole tensors: equal elements are
/// copied, since weights that sum to one need not give back an equal element.
fn sum_of_inputs(tile: &Tile, at: usize, coefficients: &[f64]) -> f64 {
    let value = |input: usize| tile.get(input, at);
    let mut terms = (0..coefficients.len()).filter(|input| coefficients[*input] != 0.0);
    let Some(first) = terms.next() else {
        return 0.0;
    };
    let alike = terms
        .clone()
        .all(|input| value(input).to_bits() == value(first).to_bits());
    if alike && sums_to_one(coefficients.iter().copied()) {
        return value(first);
    }
    quiet(
        terms.fold(coefficients[first] * value(first), |sum, input| {
            sum + coefficients[input] * value(input)
        }),
    )
}

/// Combines one element by differences from input `center`, whose own term is added last.
fn sum_of_differences(tile: &Tile, at: usize, coefficients: &[f64], center: usize) -> f64 {
    let base = tile.get(center, at);
    let terms =
        (0..coefficients.len()).filter(|input| coefficients[*input] != 0.0 && *input != center);
    if coefficients[center] == 1.0
        && terms
            .clone()
            .all(|input| tile.get(input, at).to_bits() == base.to_bits())
    {
        return base;
    }
    let differences = terms.map(|input| coefficients[input] * (tile.get(input, at) - base));
    let sum = differences.reduce(|sum, term| sum + term).unwrap_or(0.0);
    quiet(if coefficients[center] == 0.0 {
        sum
    } else {
        sum + coefficients[center] * base
    })
}

/// Replaces a computed NaN by the standard one: its payload depends on the order of operands,
/// which compilers may change.
fn quiet(sum: f64) -> f64 {
    if sum.is_nan() { f64::NAN } else { sum }
}

/// The columns of contiguous elements, row after row.
#[derive(Clone, Copy)]
struct Columns {
    next: usize,
    columns: usize,
}

impl Iterator for Columns {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let column = self.next;
        self.next = if column + 1 == self.columns {
            0
        } else {
            column + 1
        };
        Some(column)
    }
}
