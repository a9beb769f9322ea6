//! The inner products of vectors along the first axis: the columns of a matrix, each with sums of
//! its own.
//!
//! Blocks come in file order, row by row, so the sums of all columns grow together. Each column's
//! products are added in the order of its rows, compensated, by the thread that has its stripe:
//! neither blocks nor threads change a bit.

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::kernel::{Kernels, add_compensated, pair_count};
use crate::method::{Gram, Method, Solution, Statistics, number};
use crate::plan::tensor::TensorPlan;

use super::bench::Bench;
use super::by_column::{ByColumn, STRIPE, column_count};
use super::policy::OddElement;
use super::rule::base_instead;
use super::stretch::Stretch;
use super::tile::Tile;
use super::tiny;

/// The inner products of every column of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GramByColumn {
    inputs: usize,
    /// For each column and pair of inputs: the sum, and the rounding error of its additions.
    #[serde(with = "number::pairs")]
    sums: Vec<[f64; 2]>,
    /// Columns in which an input is not finite.
    odd: Vec<bool>,
}

impl GramByColumn {
    /// Zero sums, before the first row.
    pub(super) fn new(tensor: &TensorPlan) -> Self {
        let (inputs, columns) = (tensor.sources.len(), column_count(tensor));
        Self {
            inputs,
            sums: vec![[0.0; 2]; columns * pair_count(inputs)],
            odd: vec![false; columns],
        }
    }

    /// Adds the products of a stretch, which must follow the one that was added before.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`](crate::error::Kind::NonFinite) when an input holds NaN or infinity and
    /// that is not allowed.
    pub(super) fn add(&mut self, bench: &dyn Bench, stretch: &Stretch<'_>) -> Result<()> {
        let kernels = bench.kernels();
        let Statistics::Gram { center } = stretch.method().statistics() else {
            return Ok(());
        };
        let sums = self.sums.par_chunks_mut(STRIPE * pair_count(self.inputs));
        let stripes = sums.zip(self.odd.par_chunks_mut(STRIPE)).enumerate();
        let added = stripes.flat_map_iter(|(index, (sums, odd))| {
            let first_column = (index * STRIPE) as u64;
            let (tile, first_odd) = (Tile::new(self.inputs), vec![None; self.inputs]);
            let stripe = Stripe {
                kernels,
                stretch,
                center,
                first_column,
                sums,
                odd,
                tile,
                first_odd,
            };
            stripe.add()
        });
        let mut found: Vec<OddElement> = bench.pool().install(|| added.collect());
        found.sort_unstable();
        stretch.policy.judge(&found).map(drop)
    }

    /// Solves every column.
    ///
    /// # Errors
    ///
    /// The method's refusal in the first column that it refuses.
    pub(super) fn solve(
        self,
        bench: &dyn Bench,
        tensor: &TensorPlan,
        method: &dyn Method,
    ) -> Result<ByColumn> {
        let pairs = pair_count(self.inputs);
        let mut rule = ByColumn::new(self.inputs, self.odd.len());
        let sums = self
            .sums
            .par_chunks(STRIPE * pairs)
            .zip(self.odd.par_chunks(STRIPE));
        let stripes = sums.zip(rule.stripes());
        let solved = stripes.map(|((sums, odd), mut part)| {
            for (at, (sums, odd)) in sums.chunks_exact(pairs).zip(odd).enumerate() {
                // NaN and infinity are refused, let through, or replaced.
                let solution = match *odd && tensor.scanned {
                    true => base_instead(tensor)?,
                    false => solve_column(self.inputs, sums, tensor, method)?,
                };
                part.set(at, &solution);
            }
            Ok(part.found)
        });
        let found: Vec<Result<_>> = bench.pool().install(|| solved.collect());
        for found in found {
            rule.found.add(found?);
        }
        Ok(rule)
    }
}

fn solve_column(
    inputs: usize,
    sums: &[[f64; 2]],
    tensor: &TensorPlan,
    method: &dyn Method,
) -> Result<Solution> {
    let gram = Gram::from_sums(inputs, sums.iter().map(|[sum, lost]| sum + lost).collect());
    tiny::refuse(tensor, method.statistics(), &gram)?;
    method.solve(&gram)
}

/// One stripe of columns in one stretch.
struct Stripe<'a> {
    kernels: Kernels,
    stretch: &'a Stretch<'a>,
    center: Option<usize>,
    first_column: u64,
    sums: &'a mut [[f64; 2]],
    odd: &'a mut [bool],
    tile: Tile,
    /// For each input, the place of its first element that is not finite.
    first_odd: Vec<Option<u64>>,
}

impl Stripe<'_> {
    /// Adds the stripe's part of every row in the stretch; returns the first odd element of each
    /// input.
    fn add(mut self) -> impl Iterator<Item = OddElement> {
        let columns = self.stretch.tensor().columns();
        let start = self.stretch.policy.start;
        let end = start + self.stretch.len() as u64;
        for row in start / columns..end.div_ceil(columns) {
            let first = row * columns + self.first_column;
            let part = first.clamp(start, end)..(first + self.odd.len() as u64).clamp(start, end);
            if !part.is_empty() {
                self.add_row(local(part.start - first), part);
            }
        }
        let odd = self.first_odd.into_iter().enumerate();
        odd.filter_map(|(input, position)| position.map(|position| OddElement { position, input }))
    }

    /// Adds the elements at `part` of the tensor, the first of which is in column `column` of the
    /// stripe.
    fn add_row(&mut self, column: usize, part: Range<u64>) {
        let start = self.stretch.policy.start;
        let range = local(part.start - start)..local(part.end - start);
        self.tile
            .load(self.kernels, self.stretch.elements(&range).into_iter());
        for at in 0..range.len() {
            self.clear_odd(column + at, at, part.start + at as u64);
            self.subtract_center(at);
            self.add_products(column + at, at);
        }
    }

    /// Notes the odd elements at place `at` of the tile, which count as zero.
    fn clear_odd(&mut self, column: usize, at: usize, position: u64) {
        for input in 0..self.tile.inputs() {
            if !self.tile.get(input, at).is_finite() {
                self.tile.set(input, at, 0.0);
                self.odd[column] = true;
                self.first_odd[input].get_or_insert(position);
            }
        }
    }

    fn subtract_center(&mut self, at: usize) {
        let Some(center) = self.center else { return };
        let base = self.tile.get(center, at);
        for input in (0..self.tile.inputs()).filter(|input| *input != center) {
            self.tile.set(input, at, self.tile.get(input, at) - base);
        }
    }

    fn add_products(&mut self, column: usize, at: usize) {
        let inputs = self.tile.inputs();
        let pairs = pair_count(inputs);
        let mut sums = self.sums[column * pairs..][..pairs].iter_mut();
        for i in 0..inputs {
            for j in i..inputs {
                let [x, y] = [self.tile.get(i, at), self.tile.get(j, at)];
                let next = if i == j && x != 0.0 && x * y == 0.0 {
                    tiny::MARK
                } else {
                    x * y
                };
                let [sum, lost] = sums.next().expect("a sum for each pair");
                add_compensated(sum, lost, next);
            }
        }
    }
}

fn local(position: u64) -> usize {
    usize::try_from(position).expect("a stretch fits the memory")
}
