//! Vectors along the first axis: the columns of a matrix, each with inner products and coefficients of its own.
//!
//! Blocks come in file order, row by row, so the sums of all columns grow together. Each column's products are added in
//! the order of its rows, compensated, by whichever thread has its stripe: neither blocks nor threads change a bit.

use std::ops::Range;

use crossbeam::channel::{Receiver, Sender, bounded};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels, pair_count};
use crate::method::{Gram, Method, Solution, Statistics};
use crate::plan::tensor::{Action, TensorPlan};
use crate::recipe::NanPolicy;
use crate::report::Found;

use super::copied::sums_to_one;
use super::propagate::{Factors, refuse_overflow};
use super::tiny;
use super::work::{Part, nonfinite};

/// Columns that one thread works on at a time.
const STRIPE: usize = 512;
/// Bytes of an f64.
const WIDE: usize = 8;
/// No input, where columns count inputs in a byte; methods by columns take two and a base.
const NONE: u8 = u8::MAX;

/// The inner products of every column of a tensor that is being measured.
pub struct ColumnSums {
    inputs: usize,
    /// For each column and pair of inputs: the sum, and what its additions have lost.
    sums: Vec<[f64; 2]>,
    /// Columns in which an input is not finite.
    replaced: Vec<bool>,
}

/// The coefficients of every column.
pub struct ColumnRule {
    inputs: usize,
    coefficients: Vec<f64>,
    /// For each column the input from which differences are summed, or one beyond the last.
    centers: Vec<u8>,
    _alive: Sender<()>,
}

/// The first element that is not finite and may not be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Refused {
    position: u64,
    input: usize,
}

impl ColumnSums {
    /// Sums of no row yet.
    pub fn new(tensor: &TensorPlan) -> Self {
        let (inputs, columns) = (tensor.sources.len(), count(tensor));
        Self { inputs, sums: vec![[0.0; 2]; columns * pair_count(inputs)], replaced: vec![false; columns] }
    }

    /// Adds the products of a block, which must follow the block that was added before.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] when an input holds NaN or infinity where that is not allowed.
    pub fn add(&mut self, pool: &ThreadPool, kernels: Kernels, part: &Part<'_>, method: &dyn Method) -> Result<()> {
        let Statistics::Gram { center } = method.statistics() else { return Ok(()) };
        let stripe = STRIPE * pair_count(self.inputs);
        let refused = pool.install(|| {
            let stripes = self.sums.par_chunks_mut(stripe).zip(self.replaced.par_chunks_mut(STRIPE)).enumerate();
            let added = stripes.map(|(index, (sums, replaced))| {
                let first = (index * STRIPE) as u64;
                Stripe { kernels, part, center, first, sums, replaced, wide: Wide::new(self.inputs) }.add()
            });
            added.flatten().min()
        });
        match refused {
            Some(Refused { position, input }) => Err(nonfinite(part.plan, part.tensor(), input, position)),
            None => Ok(()),
        }
    }

    /// Solves every column; the receiver hears of it when the rule is let go.
    ///
    /// # Errors
    ///
    /// What the method refuses, in the first column in which it does.
    pub fn solve(
        self,
        pool: &ThreadPool,
        tensor: &TensorPlan,
        method: &dyn Method,
    ) -> Result<(ColumnRule, Found, Receiver<()>)> {
        let (inputs, columns) = (self.inputs, self.replaced.len());
        let pairs = pair_count(inputs);
        let mut coefficients = vec![0.0; columns * inputs];
        let mut centers = vec![NONE; columns];
        let found = pool.install(|| {
            let sums = self.sums.par_chunks(STRIPE * pairs).zip(self.replaced.par_chunks(STRIPE));
            let rules = coefficients.par_chunks_mut(STRIPE * inputs).zip(centers.par_chunks_mut(STRIPE));
            let stripes = sums.zip(rules).map(|((sums, replaced), (coefficients, centers))| {
                let mut found = Found::default();
                for (at, sums) in sums.chunks_exact(pairs).enumerate() {
                    let solution = if replaced[at] {
                        base_instead(tensor)?
                    } else {
                        let gram = Gram::from_sums(inputs, sums.iter().map(|[sum, lost]| sum + lost).collect());
                        tiny::refuse(tensor, method.statistics(), &gram)?;
                        method.solve(&gram)?
                    };
                    found.add(Found::of(&solution.facts));
                    coefficients[at * inputs..][..inputs].copy_from_slice(&solution.coefficients);
                    centers[at] = solution.center.map_or(NONE, |center| u8::try_from(center).expect("few inputs"));
                }
                Ok(found)
            });
            stripes.collect::<Vec<Result<Found>>>()
        });
        let mut all = Found::default();
        for found in found {
            all.add(found?);
        }
        let (alive, gone) = bounded(0);
        Ok((ColumnRule { inputs, coefficients, centers, _alive: alive }, all, gone))
    }
}

/// The solution that takes a segment from the base.
///
/// # Errors
///
/// When the base does not have the tensor.
pub fn base_instead(tensor: &TensorPlan) -> Result<Solution> {
    let base = tensor.base.ok_or_else(|| {
        let cause = "an input is not finite, and the base, which is to replace it, lacks the tensor";
        Error::new(Kind::NonFinite, "cannot merge tensor", tensor.name.escape_debug(), cause)
    })?;
    Ok(Solution::base_instead(tensor.sources.len(), base))
}

impl ColumnRule {
    /// Combines a block, column by column; returns how many finite values overflowed.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] when they became NaN and that is not let through.
    pub fn apply(&self, kernels: Kernels, part: &Part<'_>, output: &mut [u8]) -> Result<u64> {
        let tensor = part.tensor();
        let (columns, unit) = (count(tensor), tensor.dtype.bytes());
        let mut column = usize::try_from(part.block.start % tensor.columns()).expect("columns fit the memory");
        let mut wide = Wide::new(self.inputs);
        let mut merged = Vec::with_capacity(STRIPE * WIDE);
        let mut overflowed = 0;
        for start in (0..part.len()).step_by(STRIPE) {
            let range = start..part.len().min(start + STRIPE);
            wide.load(kernels, part, &range);
            merged.clear();
            for at in 0..range.len() {
                merged.extend(self.combine(&wide, at, column, part).to_le_bytes());
                column = if column + 1 == columns { 0 } else { column + 1 };
            }
            let values = Elements { dtype: Dtype::F64, bytes: &merged };
            let bytes = &mut output[range.start * unit..range.end * unit];
            let count = kernels.convert(values, tensor.dtype, bytes);
            if count > 0 {
                refuse_overflow(kernels, part, &range, bytes)?;
            }
            overflowed += count;
        }
        Ok(overflowed)
    }
}

impl ColumnRule {
    /// The combination of element `at` of what is loaded, which is of this column.
    fn combine(&self, wide: &Wide, at: usize, column: usize, part: &Part<'_>) -> f64 {
        let coefficients = &self.coefficients[column * self.inputs..][..self.inputs];
        let center = (self.centers[column] != NONE).then(|| usize::from(self.centers[column]));
        if part.plan.job.nan == NanPolicy::Propagate
            && (0..self.inputs).any(|input| !wide.get(input, at).is_finite())
            && let Action::Merge(method) = &part.tensor().action
            && let Some(factors) = Factors::new(&**method, coefficients, center)
            && let Some(sum) = factors.sum(|input| wide.get(input, at))
        {
            return sum;
        }
        match center {
            None => wide.combine(at, coefficients),
            Some(center) => wide.combine_differences(at, coefficients, center),
        }
    }
}

/// One stripe of columns in one block.
struct Stripe<'a> {
    kernels: Kernels,
    part: &'a Part<'a>,
    center: Option<usize>,
    /// The first column.
    first: u64,
    sums: &'a mut [[f64; 2]],
    replaced: &'a mut [bool],
    wide: Wide,
}

impl Stripe<'_> {
    /// Adds the stripe's part of every row in the block.
    fn add(mut self) -> Option<Refused> {
        let (block, columns) = (self.part.block, self.part.tensor().columns());
        let end = block.start + block.len;
        let width = self.replaced.len() as u64;
        let mut refused = None;
        for row in block.start / columns..end.div_ceil(columns) {
            let first = row * columns + self.first;
            let range = first.clamp(block.start, end)..(first + width).clamp(block.start, end);
            let local = |position: u64| usize::try_from(position).expect("a block fits the memory");
            let within = local(range.start - block.start)..local(range.end - block.start);
            if within.is_empty() {
                continue;
            }
            self.wide.load(self.kernels, self.part, &within);
            let offset = local(range.start - first);
            for at in 0..within.len() {
                let found = self.element(offset + at, at, range.start + at as u64);
                refused = refused.or(found);
            }
        }
        refused
    }

    /// Adds the products of element `at` of what is loaded to the stripe's column `column`.
    fn element(&mut self, column: usize, at: usize, position: u64) -> Option<Refused> {
        let inputs = self.wide.inputs;
        let mut refused = None;
        for input in 0..inputs {
            if !self.wide.get(input, at).is_finite() {
                refused = refused.or(self.odd(column, input, position));
                self.wide.set(input, at, 0.0);
            }
        }
        if let Some(center) = self.center {
            let base = self.wide.get(center, at);
            for input in (0..inputs).filter(|input| *input != center) {
                let difference = self.wide.get(input, at) - base;
                self.wide.set(input, at, difference);
            }
        }
        let pairs = pair_count(inputs);
        let mut sums = self.sums[column * pairs..][..pairs].iter_mut();
        for i in 0..inputs {
            for j in i..inputs {
                let [x, y] = [self.wide.get(i, at), self.wide.get(j, at)];
                let next = if i == j && x != 0.0 && x * y == 0.0 { tiny::MARK } else { x * y };
                let [sum, lost] = sums.next().expect("a sum for each pair");
                // Neumaier 1974, as for the sums of chunks.
                let total = *sum + next;
                *lost += if sum.abs() >= next.abs() { (*sum - total) + next } else { (next - total) + *sum };
                *sum = total;
            }
        }
        refused
    }

    /// What to do about an element that is not finite; it counts as zero.
    fn odd(&mut self, column: usize, input: usize, position: u64) -> Option<Refused> {
        match self.part.plan.job.nan {
            NanPolicy::Propagate => None,
            NanPolicy::Base if self.part.tensor().base != Some(input) => {
                self.replaced[column] = true;
                None
            }
            NanPolicy::Base | NanPolicy::Error => Some(Refused { position, input }),
        }
    }
}

/// Some elements of every input as f64.
struct Wide {
    inputs: usize,
    values: Vec<[u8; WIDE]>,
}

impl Wide {
    fn new(inputs: usize) -> Self {
        Self { inputs, values: vec![[0; WIDE]; inputs * STRIPE] }
    }

    fn load(&mut self, kernels: Kernels, part: &Part<'_>, range: &Range<usize>) {
        for (input, values) in part.elements(range).into_iter().zip(self.values.chunks_exact_mut(STRIPE)) {
            // Nothing overflows on the way to a wider type.
            kernels.convert(input, Dtype::F64, values[..range.len()].as_flattened_mut());
        }
    }

    fn get(&self, input: usize, at: usize) -> f64 {
        f64::from_le_bytes(self.values[input * STRIPE + at])
    }

    fn set(&mut self, input: usize, at: usize, value: f64) {
        self.values[input * STRIPE + at] = value.to_le_bytes();
    }

    /// The combination of one element, in the order of the inputs, as for whole tensors: equal elements are copied, since
    /// weights that sum to one need not give them back.
    fn combine(&self, at: usize, coefficients: &[f64]) -> f64 {
        let value = |input: usize| self.get(input, at);
        let mut terms = (0..self.inputs).filter(|input| coefficients[*input] != 0.0);
        let Some(first) = terms.next() else { return 0.0 };
        let alike = || terms.clone().all(|input| value(input).to_bits() == value(first).to_bits());
        if alike() && sums_to_one(coefficients.iter().copied()) {
            return value(first);
        }
        let sum = terms.fold(coefficients[first] * value(first), |sum, input| sum + coefficients[input] * value(input));
        if sum.is_nan() { f64::NAN } else { sum }
    }

    /// The same of differences from input `center`, its own term last.
    fn combine_differences(&self, at: usize, coefficients: &[f64], center: usize) -> f64 {
        let base = self.get(center, at);
        let terms = (0..self.inputs).filter(|input| coefficients[*input] != 0.0 && *input != center);
        if coefficients[center] == 1.0 && terms.clone().all(|input| self.get(input, at).to_bits() == base.to_bits()) {
            return base;
        }
        let differences = terms.map(|input| coefficients[input] * (self.get(input, at) - base));
        let sum = differences.reduce(|sum, term| sum + term).unwrap_or(0.0);
        let sum = if coefficients[center] == 0.0 { sum } else { sum + coefficients[center] * base };
        if sum.is_nan() { f64::NAN } else { sum }
    }
}

fn count(tensor: &TensorPlan) -> usize {
    usize::try_from(tensor.columns()).expect("the plan has counted the columns' memory")
}
