//! Activation matching: the permutation of every group that brings a model's activations nearest to
//! a reference's.
//!
//! As in Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), section 3.1: with Z_A and Z_B
//! the activations of a group's units over the same samples, [units, samples], the groups are
//! independent, and each is one exact assignment, argmax_P ⟨P, Z_A Z_B^T⟩. The paper's products are
//! uncentred; correlations are a choice.
//!
//! Activations are tensors [samples, units] with the names of their groups, read in blocks of rows.
//! Products of a block are f32; blocks are added up in f64, in their order.

mod moments;
mod products;
mod record;
mod write;

pub use record::{Recorded, Recording, record};

use serde::{Deserialize, Serialize};

use super::Weights;
use super::assignment::{self, CostTiles, Costs, Sense, certified, dense, gain};
use super::matching::{Matched, Proof, Step, Watch};
use crate::budget::format_bytes;
use crate::error::{Context, Error, Kind, Result};
use crate::linalg::Backend;
use crate::symmetry::{Allowed, Element, Transform};
use crate::symmetry::{Group, Symmetries};

use moments::{Moments, check_shapes};
use products::{ActivationProducts, ROWS};

/// The most units of a group that is solved on the whole matrix, if that fits the memory.
const DENSE: usize = 2048;

/// The measure by which two units are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// The inner product of their activations, as in the paper.
    #[default]
    Uncentred,
    /// The inner product of their deviations from their means.
    Centred,
    /// The correlation; for a unit that never changes it is zero.
    Correlation,
}

/// The options of activation matching.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationOptions {
    /// The measure of similarity.
    pub similarity: Similarity,
    /// True if signs are optimised where they are allowed.
    pub signs: bool,
    /// Bytes that matrices, candidates and buffers may take together.
    #[serde(skip)]
    pub memory: u64,
    /// The backend that sums products; see
    /// [`matching::MatchOptions::backend`](super::matching::MatchOptions::backend).
    #[serde(skip)]
    pub backend: Backend,
}

impl Default for ActivationOptions {
    fn default() -> Self {
        Self {
            similarity: Similarity::default(),
            signs: true,
            memory: 1 << 30,
            backend: Backend::default(),
        }
    }
}

/// Finds the element of every group for which there are activations, on the threads of the current
/// pool.
///
/// Groups within others, groups that contain others and groups of pairs cannot be matched by
/// activations; they and residual groups may be left out and stay unchanged. All other groups must
/// have activations. A step's objective is the cosine of the two sets of activations. `replay`
/// holds the steps of an interrupted run, whose results are reused.
///
/// # Errors
///
/// [`Kind::Mismatch`] when the activations of a group are missing, have another number of units or
/// of samples, or belong to a group that cannot be matched by them, or when `replay` is of another
/// run; [`Kind::NonFinite`] when one is NaN or infinite; [`Kind::Budget`] when the memory is too
/// small; [`Kind::Device`] when a device fails; the errors of reading and of `watch`.
pub fn match_activations(
    reference: &dyn Weights,
    moving: &dyn Weights,
    symmetries: &Symmetries,
    replay: &[Step],
    options: &ActivationOptions,
    watch: &dyn Watch,
) -> Result<Matched> {
    let groups = groups(reference, moving, symmetries)?;
    watch.planned(groups.iter().map(|group| group.operations()).sum());
    let mut transform = Transform::identity(symmetries);
    let mut steps = Vec::with_capacity(groups.len());
    for group in groups {
        watch.go_on()?;
        let step = match replay.get(steps.len()) {
            Some(step) if step.root == group.index => {
                watch.advanced(group.operations());
                step.clone()
            }
            Some(step) => {
                let cause = format!(
                    "step {} is of group {}, wanted {}",
                    steps.len(),
                    step.root,
                    group.index
                );
                return Err(Error::new(
                    Kind::Mismatch,
                    "cannot go on",
                    "recorded steps",
                    cause,
                ));
            }
            None => {
                let step = group.solve(reference, moving, options, watch)?;
                watch.taken(&step)?;
                step
            }
        };
        for (index, element) in &step.elements {
            transform = transform.with(symmetries, *index, element.clone())?;
        }
        steps.push(step);
    }
    Ok(Matched {
        transform,
        steps,
        sweeps: 1,
    })
}

/// Returns the least memory, in bytes, with which any selection of a model's groups can be matched.
pub fn least_memory(symmetries: &Symmetries) -> u64 {
    symmetries
        .groups
        .iter()
        .map(|group| products::bytes(group.units, ROWS.min(group.units)))
        .max()
        .unwrap_or(0)
}

/// A group that is matched.
struct Job<'a> {
    index: usize,
    group: &'a Group,
    samples: u64,
}

/// Collects the groups for which there are activations, and checks them.
fn groups<'a>(
    reference: &dyn Weights,
    moving: &dyn Weights,
    symmetries: &'a Symmetries,
) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    for (index, group) in symmetries.groups.iter().enumerate() {
        let there = [reference, moving].map(|weights| weights.shape(&group.name).is_some());
        let outer = symmetries
            .groups
            .iter()
            .any(|inner| inner.within == Some(index));
        let flat = group.within.is_none()
            && !outer
            && group.pairs.is_none()
            && group.may(Allowed::Permutation);
        if there == [false, false] && (!flat || group.residual) {
            continue;
        }
        let context = Context::new(
            Kind::Mismatch,
            "cannot match activations",
            group.name.escape_debug(),
        );
        if !flat {
            let cause = "the group has others within it, lies within one or may not be reordered";
            return context
                .with_hint("leave its activations out and match it by weights")
                .fail(cause);
        }
        for (there, side) in there
            .into_iter()
            .zip(["reference", "model that is aligned"])
        {
            if !there {
                let cause = format!("there are no activations of the {side} for it");
                return context
                    .with_hint("each group has a tensor [samples, units] of its name")
                    .fail(cause);
            }
        }
        jobs.push(Job {
            index,
            group,
            samples: check_shapes(reference, moving, group)?,
        });
    }
    if jobs.is_empty() {
        let cause = "there are activations of none of its groups";
        return Err(Error::new(
            Kind::Mismatch,
            "cannot match activations",
            &symmetries.spec,
            cause,
        ));
    }
    Ok(jobs)
}

impl Job<'_> {
    fn operations(&self) -> u64 {
        2 * self.samples * (self.group.units * self.group.units) as u64
    }

    fn solve(
        &self,
        reference: &dyn Weights,
        moving: &dyn Weights,
        options: &ActivationOptions,
        watch: &dyn Watch,
    ) -> Result<Step> {
        let units = self.group.units;
        let mut products = ActivationProducts {
            first: self.moments(reference, options)?,
            second: self.moments(moving, options)?,
            units,
            signs: options.signs && self.group.may(Allowed::Sign),
            backend: &options.backend,
            watch,
        };
        let (columns, proof) = self.assign(&mut products, options)?;
        let start: Vec<u32> = (0..).take(units).collect();
        // The solver works on f32; f64 sums decide if anything is moved.
        let (before, after) = (products.picked(&start)?, products.picked(&columns)?);
        let element = element_of(&columns, &before, &after, products.signs);
        let moved = moved_units(self.group, &element);
        let norms = products.norms();
        let cosine = |sum: f64| if norms > 0.0 { sum / norms } else { 0.0 };
        let before = cosine(before.iter().sum());
        let step = Step {
            sweep: 0,
            root: self.index,
            elements: Vec::new(),
            before,
            after: before,
            units,
            moved,
            proof: Proof::Identity,
        };
        if moved == 0 {
            return Ok(step);
        }
        let after = after.iter().map(|term| products.value(*term));
        Ok(Step {
            elements: vec![(self.index, element)],
            after: cosine(after.sum()),
            proof,
            ..step
        })
    }

    /// Reads the moments of one model's activations.
    fn moments<'b>(
        &'b self,
        weights: &'b dyn Weights,
        options: &ActivationOptions,
    ) -> Result<Moments<'b>> {
        let (name, units) = (&self.group.name, self.group.units);
        Moments::new(weights, name, self.samples, units, options.similarity)
    }

    /// Finds the order of units with the largest sum: on the whole matrix where it fits the memory,
    /// else on tiles of it.
    fn assign(
        &self,
        products: &mut ActivationProducts<'_>,
        options: &ActivationOptions,
    ) -> Result<(Vec<u32>, Proof)> {
        let units = self.group.units;
        if units <= DENSE && products::bytes(units, units) <= options.memory {
            let mut costs = vec![0.0; units * units];
            products.rows(0..units, &mut costs)?;
            let solved = dense(&Costs::new(units, &costs)?, Sense::Maximise)?;
            return Ok((solved.columns, Proof::Optimal(0.0)));
        }
        let settings = assignment::CertifiedOptions {
            tile_rows: self.tile_rows(options)?,
            ..Default::default()
        };
        let start: Vec<u32> = (0..).take(units).collect();
        let (solved, certificate) = certified(products, Sense::Maximise, &start, &settings)?;
        Ok((solved.columns, Proof::Optimal(certificate.optimal_within)))
    }

    fn tile_rows(&self, options: &ActivationOptions) -> Result<usize> {
        let units = self.group.units;
        let fits = |rows: &usize| products::bytes(units, (*rows).min(units)) <= options.memory;
        let most = (1..=units.div_ceil(ROWS))
            .map(|tiles| tiles * ROWS)
            .take_while(fits)
            .last();
        most.ok_or_else(|| {
            let cause = format!(
                "group {} needs {}",
                self.group.name,
                format_bytes(products::bytes(units, ROWS.min(units)))
            );
            Error::new(
                Kind::Budget,
                "cannot match activations",
                format_bytes(options.memory),
                cause,
            )
            .with_hint("give more --memory")
        })
    }
}

/// Returns the order and the signs of units, unless they gain nothing. `before` and `after` are the
/// products of units that meet now and after it.
fn element_of(columns: &[u32], before: &[f64], after: &[f64], signs: bool) -> Element {
    let value = |term: &f64| if signs { term.abs() } else { *term };
    let mut element = Element::default();
    if !gain(before.iter().copied(), after.iter().map(value)).is_real() {
        return element;
    }
    if (0..).zip(columns).any(|(at, column)| at != *column) {
        element.permutation = columns.to_vec();
    }
    if signs && after.iter().any(|term| *term < 0.0) {
        element.negative = after.iter().map(|term| *term < 0.0).collect();
    }
    element
}

/// Counts the units of a group that an element moves or flips.
fn moved_units(group: &Group, element: &Element) -> usize {
    let units = (0..group.units)
        .filter(|at| element.unit(group, 0, *at) != *at || element.is_negative(group, 0, *at));
    units.count()
}
