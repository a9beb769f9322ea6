//! Weight matching: the element of every group that brings a model's weights nearest to a
//! reference's.
//!
//! Coordinate ascent as in Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), Algorithm 1,
//! on the objective Σ_t w_t ⟨A_t, π(B)_t⟩. A [`Step`] solves one *root*: a group that lies within
//! no other, together with the groups that lie within it, with everything else held fixed. The
//! order of steps is a function of the symmetries and the options alone, so an interrupted run
//! continues by replaying its recorded steps.
//!
//! ```text
//! schedule   which root is solved when, and what is replayed
//! solve      one root: candidates, and whether the objective, computed anew in f64, is really larger
//!   flat     a group without groups within: one assignment, and signs
//!   heads    a group with groups within it on the same axes: an assignment whose entries are joint problems
//!     inner, reach     one such problem, and upper bounds of it
//!     turns            signs and angles of pairs, once the order is known
//!   experts  a group that reorders names: an assignment whose entries are assignments
//! moves      orders, signs and turns, and the candidates made of them
//! problem    both models, weights of tensors, objective, streamed products
//!   terms    tensors as strided blocks of cells and features
//!   panel    a block in memory
//! ```
//!
//! Products of units are summed in f32 on the grid of [`linalg`](crate::linalg), or on a device,
//! over features cut into blocks of a fixed size. The sums that decide if a step is taken, signs of
//! units and angles of pairs are in f64 and always on the processor.

mod experts;
mod flat;
mod heads;
mod inner;
mod moves;
mod panel;
pub(super) mod problem;
mod reach;
pub(super) mod schedule;
mod solve;
mod terms;
#[cfg(test)]
mod tests;
mod turns;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Store, Transformed, Weights};
use crate::error::{Error, Kind, Result};
use crate::linalg::Backend;
use crate::symmetry::{Alignment, Element, Symmetries, Transform};

use problem::Problem;

/// The weight of each tensor in the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Each tensor is divided by its norm in either model, so that all count alike.
    #[default]
    Normalised,
    /// Inner products of the unscaled tensors, as in the paper; tensors of large norm dominate.
    Raw,
}

/// The treatment of the units of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residual {
    /// Units stay fixed: right for models of one ancestor.
    #[default]
    Fixed,
    /// Units are reordered (and flipped, if that is allowed), first by the tensors that have
    /// nothing else to align, such as embeddings, then in turn with all other groups.
    Permute,
    /// Units are mapped by any orthogonal matrix, in turn with all other groups: for models whose
    /// norms are folded.
    Orthogonal,
    /// Units are held under the map of the start, for models whose norms are folded.
    Map,
}

/// The options of weight matching.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatchOptions {
    /// The weight of each tensor.
    pub cost: Cost,
    /// The treatment of the residual stream.
    pub residual: Residual,
    /// True if signs and rotations are optimised where they are allowed.
    pub signs: bool,
    /// The seed for the order in which groups are solved, where it matters.
    pub seed: u64,
    /// The most sweeps over all groups.
    pub sweeps: usize,
    /// Bytes that tiles, candidates and buffers may take together.
    #[serde(skip)]
    pub memory: u64,
    /// The backend that sums products of units. Sums of another backend are rounded differently, so
    /// it may choose another order if two orders are within rounding of each other.
    #[serde(skip)]
    pub backend: Backend,
}

/// The certificate of a step's result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Leaving everything in place was proved optimal, with everything else held fixed, up to the
    /// rounding of products in f32: by their assignment, and if groups lie within the root up to a
    /// ten-thousandth of the objective, for angles that are not worth taking.
    Identity,
    /// The result was proved optimal within this much of the objective, with everything else held
    /// fixed.
    Optimal(f64),
    /// No better result was found; the parts were each solved exactly, the whole was not.
    Parts,
}

/// The solution of one root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The sweep, counted from 0.
    pub sweep: usize,
    /// The index of the root in [`Symmetries::groups`](crate::symmetry::Symmetries::groups).
    pub root: usize,
    /// New elements of the root and of the groups within it, by their indices; empty if nothing
    /// moved.
    pub elements: Vec<(usize, Element)>,
    /// The objective over the tensors that the step solves, before the step, in f64: those on which
    /// the root acts, or for the residual stream in the first sweep those on which nothing else
    /// acts.
    pub before: f64,
    /// The same objective after the step.
    pub after: f64,
    /// Units of the root and of the groups within it.
    pub units: usize,
    /// The number of units that, after the step, are not in their places of the stored model, have
    /// another sign or are turned.
    pub moved: usize,
    /// The certificate of the result.
    pub proof: Proof,
}

/// An observer of a run that keeps its steps and may end it.
pub trait Watch<S = Step>: Sync {
    /// Called by runs of many models when model `model` is matched in round `round`, both counted
    /// from 0.
    fn begun(&self, round: usize, model: usize) {
        let _ = (round, model);
    }

    /// Called with the most floating-point operations that this sweep has left.
    fn planned(&self, operations: u64) {
        let _ = operations;
    }

    /// Called with the number of operations just done.
    fn advanced(&self, operations: u64) {
        let _ = operations;
    }

    /// Called after a step is taken, but not for replayed steps.
    ///
    /// # Errors
    ///
    /// Errors that end the run.
    fn taken(&self, step: &S) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// Called often, also within a step.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }
}

/// An observer that does nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl<S> Watch<S> for Unwatched {}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// The element of every group.
    pub transform: Transform,
    /// The last step of each root, in the order of roots.
    pub steps: Vec<Step>,
    /// The number of sweeps in which a root was solved. A root is solved again only after something
    /// that it depends on has moved.
    pub sweeps: usize,
}

impl Default for MatchOptions {
    fn default() -> Self {
        Self {
            cost: Cost::Normalised,
            residual: Residual::Fixed,
            signs: true,
            seed: 0,
            sweeps: 100,
            memory: 1 << 30,
            backend: Backend::default(),
        }
    }
}

/// The state from which a model is matched.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The transform at the beginning.
    pub transform: &'a Transform,
    /// The steps of an interrupted run, which are taken over unchanged.
    pub steps: &'a [Step],
}

/// Brings `moving` as near to `reference` as the moves of `symmetries` allow, from `start` on.
///
/// If the residual stream is mapped, `symmetries` are those of the folded `moving`, and `reference`
/// is folded too.
///
/// The work is done on the threads of the current rayon pool, products on [`MatchOptions::backend`]; the
/// result depends neither on the number of threads nor on the memory.
///
/// # Errors
///
/// [`Kind::Mismatch`] when a tensor of either model has another shape than in `symmetries`, or when
/// groups are placed so that no assignment can be solved for, [`Kind::NonFinite`] when a tensor
/// holds NaN or infinity, [`Kind::Budget`] when the memory is too small for a group,
/// [`Kind::Resume`] when the steps of `start` are of another run, [`Kind::Device`] when a device fails, and the
/// errors of `watch`.
pub fn match_weights(
    reference: &dyn Weights,
    moving: &Arc<Store>,
    symmetries: &Arc<Symmetries>,
    start: Start<'_>,
    options: &MatchOptions,
    watch: &dyn Watch,
) -> Result<Matched> {
    // A folded model may have one tensor more than the stored model.
    let identity = Arc::new(Transform::identity(symmetries));
    let still = Transformed::new(
        Arc::clone(moving),
        Alignment {
            symmetries: Arc::clone(symmetries),
            transform: identity,
        },
    );
    for (model, weights) in [
        ("reference", reference),
        ("model that is moved", &still as &dyn Weights),
    ] {
        check_shapes(symmetries, model, weights)?;
    }
    let groups = &symmetries.groups;
    if let Some(group) = groups.iter().find(|group| {
        group
            .within
            .is_some_and(|outer| groups[outer].within.is_some())
    }) {
        let cause = "lies within a group that lies within another; orders three levels deep are not solved for";
        return Err(Error::new(
            Kind::Mismatch,
            "cannot match weights",
            group.name.escape_debug(),
            cause,
        ));
    }
    if matches!(options.residual, Residual::Orthogonal | Residual::Map) {
        return super::orthogonal::match_mapped(
            reference, moving, symmetries, start, options, watch,
        );
    }
    let problem = Problem::new(reference, moving, symmetries, options, watch);
    schedule::run(&problem, start, None)
}

/// Returns the least [`MatchOptions::memory`] with which two models can be matched on the threads of the
/// current rayon pool; reads no tensor.
pub fn least_memory(
    reference: &dyn Weights,
    moving: &Arc<Store>,
    symmetries: &Arc<Symmetries>,
    options: &MatchOptions,
) -> u64 {
    let tiles = schedule::least_bytes(&Problem::new(
        reference, moving, symmetries, options, &Unwatched,
    ));
    match options.residual {
        Residual::Fixed | Residual::Permute => tiles,
        Residual::Orthogonal | Residual::Map => super::orthogonal::least_bytes(symmetries, tiles),
    }
}

fn check_shapes(symmetries: &Symmetries, model: &str, weights: &dyn Weights) -> Result<()> {
    for (name, tensor) in &symmetries.tensors {
        if !tensor.is_acted_on() {
            continue;
        }
        let shape = weights.shape(name);
        if shape != Some(tensor.shape.as_slice()) {
            let got = shape.map_or_else(
                || "does not have it".to_owned(),
                |shape| format!("has it as {shape:?}"),
            );
            let cause = format!("wanted {:?}, the {model} {got}", tensor.shape);
            return Err(Error::new(
                Kind::Mismatch,
                "cannot match weights",
                name.escape_debug(),
                cause,
            )
            .with_hint("only models of one architecture and size can be aligned"));
        }
    }
    Ok(())
}
