//! Weight matching: the element of every group that brings a model's weights nearest to a reference's.
//!
//! Coordinate ascent as in Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), Algorithm 1, on the objective
//! Σ_t w_t ⟨A_t, π(B)_t⟩. A [`Step`] solves one *root*: a group that lies within no other, together with the groups that
//! lie within it, everything else held fixed. The order of steps is a function of the symmetries and the options alone,
//! so a run that was interrupted goes on by replaying the steps that it has recorded.

use serde::{Deserialize, Serialize};

use super::{Element, Transform};
use crate::error::Result;

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
    /// They are reordered (and flipped, where that is allowed), first by the tensors that have nothing else to align,
    /// such as embeddings, then in turn with all other groups.
    Permute,
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
}

/// What is known of a step's result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Leaving everything where it is was proved optimal, everything else held fixed.
    Identity,
    /// The assignment was proved optimal within so much of the objective, everything else held fixed.
    Optimal(f64),
    /// No better one was found; the parts were each solved exactly, the whole was not.
    Parts,
}

/// One root solved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The sweep, counted from 0.
    pub sweep: usize,
    /// The place of the root in [`Symmetries::groups`](super::Symmetries::groups).
    pub root: usize,
    /// New elements of the root and of the groups within it, by their places; empty when what was there stays.
    pub elements: Vec<(usize, Element)>,
    /// The root's part of the objective before, in f64.
    pub before: f64,
    /// The same after the step.
    pub after: f64,
    /// Units of the root and of the groups within it, and how many of them are not in their old places, have another
    /// sign or were turned.
    pub units: usize,
    /// See [`Step::units`].
    pub moved: usize,
    /// What is known of the result.
    pub proof: Proof,
}

/// Who watches a run, keeps its steps and may end it.
pub trait Watch: Sync {
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
    fn taken(&self, step: &Step) -> Result<()> {
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

impl Watch for Unwatched {}

/// What a run has found.
#[derive(Debug, Clone, PartialEq)]
pub struct Matched {
    /// The element of every group.
    pub transform: Transform,
    /// The last step of each root, in the order of roots.
    pub steps: Vec<Step>,
    /// Sweeps until no step moved anything, that one included.
    pub sweeps: usize,
}

impl Default for Options {
    fn default() -> Self {
        let memory = 1 << 30;
        Self { cost: Cost::Normalised, residual: Residual::Fixed, signs: true, seed: 0, sweeps: 100, memory }
    }
}
