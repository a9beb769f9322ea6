//! The problem of a run: two models, their symmetries, the weights of tensors, and the objective.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::panel::Panel;
use super::terms::{Term, TermPlace, WeightedTerm};
use super::{Cost, MatchOptions, Watch};
use crate::align::assignment::{Gain, gain};
use crate::align::{Numbers, Store, Transformed, Weights};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::linalg::{Columns, Matrix, Sum};
use crate::symmetry::{Alignment, Symmetries, Transform};

/// Features that are read at a time. Sums over features are cut at these blocks, so this is not an
/// option.
pub(super) const FEATURES: usize = 512;
/// Units whose products with their own counterparts are summed at a time.
const UNITS: usize = 1024;
/// Elements whose products are summed at a time.
const PIECE: u64 = 1 << 20;

/// A model that can be read under any transform.
pub(in crate::align) trait Moving: Sync {
    /// Returns the model under `transform`.
    fn under(&self, symmetries: &Arc<Symmetries>, transform: &Transform) -> Box<dyn Weights + '_>;

    /// Returns the type in which a tensor's elements are stored.
    fn dtype(&self, tensor: &str) -> Option<Dtype>;

    /// Called before a root with these tensors is solved; they are read many times from then on.
    ///
    /// # Errors
    ///
    /// Passes on the errors of preparing them.
    fn prepare(
        &self,
        problem: &Problem<'_>,
        tensors: &[&str],
        transform: &Transform,
    ) -> Result<()> {
        let _ = (problem, tensors, transform);
        Ok(())
    }
}

impl Moving for Arc<Store> {
    fn under(&self, symmetries: &Arc<Symmetries>, transform: &Transform) -> Box<dyn Weights + '_> {
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(transform.clone()),
        };
        Box::new(Transformed::new(Self::clone(self), alignment))
    }

    fn dtype(&self, tensor: &str) -> Option<Dtype> {
        Store::dtype(self, tensor)
    }
}

/// Two models, and the options by which they are compared.
pub(in crate::align) struct Problem<'a> {
    pub reference: &'a dyn Weights,
    pub moving: &'a dyn Moving,
    pub symmetries: &'a Arc<Symmetries>,
    pub options: &'a MatchOptions,
    pub watch: &'a dyn Watch,
    /// Norms of the tensors of either model, as stored.
    norms: Mutex<[HashMap<String, f64>; 2]>,
}

impl<'a> Problem<'a> {
    pub fn new(
        reference: &'a dyn Weights,
        moving: &'a dyn Moving,
        symmetries: &'a Arc<Symmetries>,
        options: &'a MatchOptions,
        watch: &'a dyn Watch,
    ) -> Self {
        Self {
            reference,
            moving,
            symmetries,
            options,
            watch,
            norms: Mutex::default(),
        }
    }

    /// Returns the moving model under `transform`.
    pub(super) fn moved(&self, transform: &Transform) -> Box<dyn Weights + '_> {
        self.moving.under(self.symmetries, transform)
    }

    /// Returns the norms of these tensors in the reference and in the other model, in f64.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] when a tensor holds NaN or infinity.
    pub fn norms(&self, reference: &str, moving: &str) -> Result<[f64; 2]> {
        let mut found = [0.0; 2];
        for (side, (tensor, model)) in [(reference, "reference"), (moving, "model that is moved")]
            .into_iter()
            .enumerate()
        {
            let known = |norms: &[HashMap<String, f64>; 2]| norms[side].get(tensor).copied();
            if let Some(norm) = known(&self.norms.lock().unwrap_or_else(PoisonError::into_inner)) {
                found[side] = norm;
                continue;
            }
            let squares = if side == 0 {
                self.products(self.reference, None, tensor)?
            } else {
                self.products(
                    self.moved(&Transform::identity(self.symmetries)).as_ref(),
                    None,
                    tensor,
                )?
            };
            found[side] = squares.iter().sum::<f64>().sqrt();
            if !found[side].is_finite() {
                let subject = tensor.escape_debug();
                let cause = format!("the {model} holds NaN or infinity in it");
                return Err(Error::new(Kind::NonFinite, "cannot match weights", subject, cause)
                    .with_hint("no unit can be told from another by such numbers; repair the checkpoint first"));
            }
            let mut norms = self.norms.lock().unwrap_or_else(PoisonError::into_inner);
            norms[side].insert(tensor.to_owned(), found[side]);
        }
        Ok(found)
    }

    /// Returns the weight of products of tensors with these norms.
    pub fn weight(&self, [reference, moving]: [f64; 2]) -> f64 {
        match self.options.cost {
            Cost::Raw => 1.0,
            Cost::Normalised if reference * moving > 0.0 => 1.0 / (reference * moving),
            Cost::Normalised => 0.0,
        }
    }

    /// Returns the norms of the tensors of a term, with the other model under `current`.
    pub(super) fn term_norms(&self, term: &Term, current: &Transform) -> Result<[f64; 2]> {
        self.norms(
            &term.reference.tensor,
            &self.source_name(current, &term.moving.tensor),
        )
    }

    /// Returns the weight of a term, with the other model under `current`.
    pub(super) fn term_weight(&self, term: &Term, current: &Transform) -> Result<f64> {
        Ok(self.weight(self.term_norms(term, current)?))
    }

    /// Names the other model's tensor that `transform` brings to `tensor`.
    fn source_name(&self, transform: &Transform, tensor: &str) -> String {
        let index = self
            .symmetries
            .tensors
            .get(tensor)
            .and_then(|symmetry| symmetry.index.as_ref());
        index.map_or_else(
            || tensor.to_owned(),
            |index| {
                let group = &self.symmetries.groups[index.group];
                let position =
                    usize::try_from(index.position).expect("positions were checked to be units");
                index.name_of(transform.elements()[index.group].unit(group, 0, position) as u64)
            },
        )
    }

    /// Computes the objective over `tensors`, with the other model under `transform`.
    pub(super) fn objective(&self, tensors: &[&str], transform: &Transform) -> Result<Objective> {
        let moved = self.moved(transform);
        let mut objective = Objective::default();
        for tensor in tensors {
            let source = self.source_name(transform, tensor);
            let norms = self.norms(tensor, &source)?;
            let weight = self.weight(norms);
            if weight > 0.0 {
                let terms = self.products(self.reference, Some(moved.as_ref()), tensor)?;
                objective
                    .terms
                    .extend(terms.into_iter().map(|term| weight * term));
                objective.scale += weight * norms[0] * norms[1];
            }
        }
        Ok(objective)
    }

    /// Adds to `sum` the products of the cells of `units` in the reference with all cells of the
    /// other model, times the weight of the term.
    pub(super) fn add_products(
        &self,
        moved: &dyn Weights,
        weighted: &WeightedTerm,
        units: &Range<usize>,
        panels: &mut [Panel; 2],
        sum: &mut dyn Sum,
    ) -> Result<()> {
        let WeightedTerm { term, weight } = weighted;
        let weight = narrow(*weight);
        let (first, rows) = term.some_rows(units);
        let blocks = term.blocks(FEATURES);
        let apart = self.apart(moved, term)?;
        let moved = apart.as_ref().map_or(moved, |apart| apart);
        let own = |at: u64, features| term.block(&term.reference, first + at, &rows, features);
        let other = |at: u64, features| term.block(&term.moving, at, &term.rows, features);
        let [left, right] = panels;
        for (at, (block, features)) in blocks.iter().enumerate() {
            self.watch.go_on()?;
            left.fill(self.reference, &own(*block, features))?;
            right.fill(moved, &other(*block, features))?;
            if let Some((next, features)) = blocks.get(at + 1) {
                own(*next, features).prefetch(self.reference)?;
                other(*next, features).prefetch(moved)?;
            }
            let (left, right) = (left.matrix(), right.matrix().transposed());
            match &apart {
                Some(apart) => sum.add_gathered(weight, left, right, &apart.columns)?,
                None => sum.add(weight, left, right)?,
            }
            self.watch.advanced(operations_of(left, right));
        }
        Ok(())
    }

    /// Returns the other model with the columns of the term's tensor in their stored order, if the
    /// sum can reorder them: the backend gathers columns, rows are read whole, and a row is all
    /// cells of a feature.
    fn apart<'w>(&self, moved: &'w dyn Weights, term: &Term) -> Result<Option<Apart<'w>>> {
        let tensor = term.moving.tensor.as_str();
        let width = moved
            .shape(tensor)
            .and_then(|shape| shape.last().copied())
            .unwrap_or(0);
        if !self.options.backend.gathers() || !term.is_whole_rows(width) {
            return Ok(None);
        }
        Ok(moved
            .apart(tensor)?
            .map(|(_, columns)| Apart { moved, columns }))
    }

    /// Computes the products of each cell of `one` with the same cell of `other`, or with its
    /// `partner`, counted within a unit of the first factor, in f64.
    pub(super) fn own_products(
        &self,
        term: &Term,
        one: (&dyn Weights, &TermPlace),
        other: (&dyn Weights, &TermPlace),
        partner: Option<&dyn Fn(usize) -> usize>,
    ) -> Result<Vec<f64>> {
        let units = term.rows.first().map_or(1, |extent| extent.size);
        let cells = term.cells();
        let map: Vec<usize> = (0..cells)
            .map(|cell| partner.map_or(cell, |partner| partner(cell)))
            .collect();
        let mut panels = [Panel::default(), Panel::default()];
        let mut sums = Vec::with_capacity(units * cells);
        for first in (0..units).step_by(UNITS) {
            let some = first..units.min(first + UNITS);
            let (start, rows) = term.some_rows(&some);
            let mut products = vec![0.0; some.len() * cells];
            for (block, features) in term.blocks(FEATURES) {
                self.watch.go_on()?;
                let [left, right] = &mut panels;
                left.fill(one.0, &term.block(one.1, start + block, &rows, &features))?;
                right.fill(
                    other.0,
                    &term.block(other.1, start + block, &rows, &features),
                )?;
                left.add_row_products(right, &map, &mut products);
            }
            sums.append(&mut products);
        }
        Ok(sums)
    }

    /// Computes the products of a tensor's numbers in `one` with those in `other`, or with
    /// themselves, in pieces of [`PIECE`], each summed in f64.
    fn products(
        &self,
        one: &dyn Weights,
        other: Option<&dyn Weights>,
        tensor: &str,
    ) -> Result<Vec<f64>> {
        let count: u64 = one.shape(tensor).unwrap_or_default().iter().product();
        let pieces = (0..count.div_ceil(PIECE)).into_par_iter();
        let products = pieces.map_init(<[Vec<f32>; 2]>::default, |[a, b], piece| {
            self.watch.go_on()?;
            let range = piece * PIECE..count.min((piece + 1) * PIECE);
            let len = usize::try_from(range.end - range.start).expect("a piece fits the memory");
            a.resize(len, 0.0);
            one.tensor(tensor)?.read(range.clone(), a)?;
            let Some(other) = other else {
                return Ok(dot(a, a));
            };
            b.resize(len, 0.0);
            other.tensor(tensor)?.read(range, b)?;
            Ok(dot(a, b))
        });
        products.collect()
    }
}

/// A model whose tensors are read with their columns in stored order.
struct Apart<'a> {
    moved: &'a dyn Weights,
    columns: Columns,
}

impl Weights for Apart<'_> {
    fn shape(&self, tensor: &str) -> Option<&[u64]> {
        self.moved.shape(tensor)
    }

    fn tensor(&self, tensor: &str) -> Result<Box<dyn Numbers + '_>> {
        match self.moved.apart(tensor)? {
            Some((numbers, _)) => Ok(numbers),
            None => self.moved.tensor(tensor),
        }
    }
}

/// A part of the objective, as terms that are always the same and in the same order for the same
/// transform.
#[derive(Debug, Default)]
pub(super) struct Objective {
    terms: Vec<f64>,
    /// The value if the models were equal up to scale.
    scale: f64,
}

impl Objective {
    /// The error of products of two tensors in f64, as a share of the product of their norms: a
    /// term is a sum of [`LANES`] partial sums of at most 2^16 products each, whose roundings have
    /// either sign.
    const ROUNDING: f64 = 1e-13;
    /// The least gain that counts, as a share of the product of the tensors' norms. Orders of units
    /// are compared by products in f32, an entry of which is off by half a unit in the last place,
    /// 2^-24 of the product of the units' norms, in any order of summation; over all units that is
    /// this share. A step that gains less was found by chance: its gain in f64 is real but says
    /// nothing about the networks, so everything stays in place.
    const WORTH: f64 = 1.0 / 16_777_216.0;

    pub fn value(&self) -> f64 {
        self.terms.iter().sum()
    }

    /// True if the value is as large as tensors of these norms allow (Cauchy, Schwarz): no move of
    /// units that leaves tensors in their places could raise it.
    pub fn is_at_its_bound(&self) -> bool {
        self.value() >= self.scale * (1.0 - Self::ROUNDING)
    }

    /// True if this is larger than `before` by more than the error of the f32 products that led to
    /// it.
    pub fn exceeds(&self, before: &Self) -> bool {
        let Gain { value, rounding } =
            gain(before.terms.iter().copied(), self.terms.iter().copied());
        value > rounding.max(Self::WORTH * self.scale)
    }
}

/// The number of partial sums of a piece.
const LANES: usize = 16;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (a, rest_a) = a.as_chunks::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(*a) * f64::from(*b);
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
        *lane += f64::from(*a) * f64::from(*b);
    }
    lanes.iter().sum()
}

/// Rounds to f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding is wanted")]
pub(in crate::align) fn narrow(value: f64) -> f32 {
    value as f32
}

/// Counts the floating-point operations of a product.
fn operations_of(left: Matrix<'_>, right: Matrix<'_>) -> u64 {
    2 * left.rows() as u64 * right.columns() as u64 * left.columns() as u64
}
