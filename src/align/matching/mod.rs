//! Weight matching: the element of every group that brings a model's weights nearest to a
//! reference's.
//!
//! Coordinate ascent as in Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), Algorithm 1,
//! on the objective Σ_t w_t ⟨A_t, π(B)_t⟩. A [`Step`] solves one *root*: a group that lies within
//! no other, together with the groups that lie within it, everything else held fixed. The order of
//! steps is a function of the symmetries and the options alone, so a run that was interrupted goes
//! on by replaying the steps that it has recorded.
//!
//! ```text
//! schedule   which root is solved when, and what is replayed
//! solve      one root: candidates, and whether the objective, computed anew in f64, is really larger
//!   flat     a group without groups within: one assignment, and signs
//!   heads    a group with groups within it on the same axes: an assignment whose entries are joint problems
//!     inner, reach     one such problem, and upper bounds of it
//!   experts  a group that reorders names: an assignment whose entries are assignments
//! moves      orders, signs and turns, and the candidates made of them
//! problem    both models, weights of tensors, objective, streamed products
//!   terms    tensors as strided blocks of cells and features
//!   panel    a block in memory
//! ```
//!
//! Products of units are summed in f32 on the grid of [`linalg`](crate::linalg), or on a device,
//! over features cut into blocks of a fixed size; whatever decides whether a step is taken, signs
//! of units and angles of pairs are summed in f64, always on the processor.

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

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Store, Transformed, Weights};
use crate::error::{Error, Kind, Result};
use crate::linalg::Backend;
use crate::symmetry::{Alignment, Element, Symmetries, Transform};

use problem::Problem;

/// How much each tensor counts in the objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cost {
    /// Each tensor is divided by its norm in either model, so that all count alike.
    #[default]
    Normalised,
    /// As in the paper: inner products of the tensors as they are; those of large norm decide.
    Raw,
}

/// What is done to the units of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residual {
    /// Nothing: right for models of one ancestor.
    #[default]
    Fixed,
    /// They are reordered (and flipped, where that is allowed), first by the tensors that have
    /// nothing else to align, such as embeddings, then in turn with all other groups.
    Permute,
    /// They are mapped by any orthogonal matrix, in turn with all other groups: for models whose
    /// norms are folded.
    Orthogonal,
    /// They are held under the map that is there from the start, of models whose norms are folded.
    Map,
}

/// How weights are matched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Options {
    /// How much each tensor counts.
    pub cost: Cost,
    /// What is done to the residual stream.
    pub residual: Residual,
    /// Whether signs and rotations are looked for where they are allowed.
    pub signs: bool,
    /// Of the order in which groups are solved, where it matters.
    pub seed: u64,
    /// The most sweeps over all groups.
    pub sweeps: usize,
    /// Bytes that tiles, candidates and buffers may take together.
    #[serde(skip)]
    pub memory: u64,
    /// Where products of units are summed. Sums of another backend are rounded otherwise, so where
    /// two orders are within rounding of each other it may find the other one.
    #[serde(skip)]
    pub backend: Backend,
}

/// What is known of a step's result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Leaving everything where it is was proved optimal, everything else held fixed, but for what
    /// rounding of the products in f32 is worth: by their assignment, and where groups lie within
    /// the root up to a ten-thousandth of the objective, for angles that are not worth taking.
    Identity,
    /// The result was proved optimal within so much of the objective, everything else held fixed.
    Optimal(f64),
    /// No better one was found; the parts were each solved exactly, the whole was not.
    Parts,
}

/// One root solved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The sweep, counted from 0.
    pub sweep: usize,
    /// The place of the root in [`Symmetries::groups`](crate::symmetry::Symmetries::groups).
    pub root: usize,
    /// New elements of the root and of the groups within it, by their places; empty when what was
    /// there stays.
    pub elements: Vec<(usize, Element)>,
    /// The part of the objective that the tensors solved on make up, before the step, in f64: those
    /// on which the root acts, of the residual stream in the first sweep those on which nothing
    /// else does.
    pub before: f64,
    /// The same after the step.
    pub after: f64,
    /// Units of the root and of the groups within it.
    pub units: usize,
    /// How many of them are, after the step, not where they are in the model as it is stored, have
    /// another sign or are turned.
    pub moved: usize,
    /// What is known of the result.
    pub proof: Proof,
}

/// Who watches a run, keeps its steps and may end it.
pub trait Watch<S = Step>: Sync {
    /// Model `model` is matched in round `round`, both counted from 0; told by runs of many models.
    fn begun(&self, round: usize, model: usize) {
        let _ = (round, model);
    }

    /// So many floating-point operations are left to do in this sweep, at most.
    fn planned(&self, operations: u64) {
        let _ = operations;
    }

    /// So many of them are done.
    fn advanced(&self, operations: u64) {
        let _ = operations;
    }

    /// A step was taken; not called for those that are replayed.
    ///
    /// # Errors
    ///
    /// Those that end the run.
    fn taken(&self, step: &S) -> Result<()> {
        let _ = step;
        Ok(())
    }

    /// Asked often, also amid a step.
    ///
    /// # Errors
    ///
    /// When the run is to end.
    fn go_on(&self) -> Result<()> {
        Ok(())
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl<S> Watch<S> for Unwatched {}

/// What a run has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// The element of every group.
    pub transform: Transform,
    /// The last step of each root, in the order of roots.
    pub steps: Vec<Step>,
    /// Sweeps in which a root was solved. A root is not solved again until something has moved that
    /// it depends on.
    pub sweeps: usize,
}

impl Default for Options {
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

/// Brings `moving` as near to `reference` as the moves that `symmetries` allow can, from `start`
/// on.
///
/// Where the residual stream is mapped, `symmetries` are those of the folded `moving`, and
/// `reference` is folded too.
///
/// The work is done on the threads of the current rayon pool, products on [`Options::backend`]; the
/// result does not depend on how many threads they are, nor on the memory. `replay` are the steps
/// of a run that was interrupted: they are taken over as they are.
///
/// # Errors
///
/// [`Kind::Mismatch`] when a tensor of either model has another shape than in `symmetries`, or
/// groups stand so that no assignment can be solved for, [`Kind::NonFinite`] when a tensor holds
/// NaN or infinity, [`Kind::Budget`] when the memory is too small for a group, [`Kind::Resume`]
/// when `replay` is of another run, [`Kind::Device`] when a device fails, and whatever `watch`
/// returns.
pub fn match_weights(
    reference: &dyn Weights,
    moving: &Arc<Store>,
    symmetries: &Arc<Symmetries>,
    start: &Transform,
    replay: &[Step],
    options: &Options,
    watch: &dyn Watch,
) -> Result<Matched> {
    // A folded model may have a tensor more than is stored.
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
            reference, moving, symmetries, start, replay, options, watch,
        );
    }
    let problem = Problem::new(reference, moving, symmetries, options, watch);
    schedule::run(&problem, start, replay, None)
}

/// The least [`Options::memory`] with which two models can be matched on the threads of the current
/// rayon pool; nothing of them is read.
pub fn least_memory(
    reference: &dyn Weights,
    moving: &Arc<Store>,
    symmetries: &Arc<Symmetries>,
    options: &Options,
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
        if tensor.index.is_none() && tensor.axes.iter().all(crate::symmetry::Node::is_fixed) {
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
