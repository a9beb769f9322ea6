//! Many models brought together.
//!
//! *Universe matching* (in the manner of Crisostomi et al., "C²M³: Cycle-Consistent Multi-Model
//! Merging", NeurIPS 2024, with exact assignments in place of their Frank-Wolfe steps): every model
//! is matched to the mean U of all models as aligned so far, round after round, until none moves.
//! Each step raises Σ_t |Σ_i a_i π_i(B_i)_t|, tensors normalised (or its raw counterpart), so the
//! rounds end. All transforms go through U, so every cycle of them is consistent.
//!
//! *MergeMany* (Ainsworth, Hayase, Srinivasa, "Git Re-Basin", ICLR 2023, Algorithm 3): in a seeded
//! random order, drawn anew for every round, each model is matched to the mean of the *others*.
//! Unlike in the paper's code a model continues from its current transform, and moves only if it
//! comes nearer, so this ends too.
//!
//! Both begin with every model matched to one of them. Models are streamed from their files; a mean
//! is computed block by block while it is read, and never held.

mod cycle;
mod mean;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use cycle::{cycle_error, through_universe};

use self::mean::{Mean, Member, Scales};
use super::matching::{MatchOptions, Matched, Residual, Start, Step, Watch, match_weights};
use super::{Store, Transformed, angles};
use crate::error::{Context, Error, Kind, Result};
use crate::symmetry::{Alignment, Symmetries, Transform};

/// The target to which each model is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Towards {
    /// The first model, or the one that the user names, and nothing else: one round.
    One,
    /// The mean of all models.
    #[default]
    Mean,
    /// The mean of the other models, in random order.
    Others,
}

/// The model with which a run begins; it stays unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Begin {
    /// The model that is nearest to the others before alignment.
    #[default]
    Nearest,
    /// The model with this number.
    Model(usize),
}

/// The options for aligning many models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManyOptions {
    /// The target to which each model is matched.
    pub towards: Towards,
    /// The model to begin with.
    pub begin: Begin,
    /// The most rounds over all models after the first, in which each is matched to one of them.
    pub rounds: usize,
    /// The options for matching one model.
    pub matching: MatchOptions,
}

impl Default for ManyOptions {
    fn default() -> Self {
        Self {
            towards: Towards::Mean,
            begin: Begin::Nearest,
            rounds: 100,
            matching: MatchOptions::default(),
        }
    }
}

/// A step of matching one of the models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ManyStep {
    /// The round, counted from 0.
    pub round: usize,
    /// The number of the model.
    pub model: usize,
    /// The step of its matching.
    pub step: Step,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct ManyMatched {
    /// The transform of each model; that of the model with which the run began is the identity.
    pub transforms: Vec<Transform>,
    /// The model with which it began.
    pub begun: usize,
    /// Rounds until no model moved, including the last.
    pub rounds: usize,
    /// True if the run ended because no model moved, not because the rounds were used up.
    pub settled: bool,
    /// The last steps of each model, root by root.
    pub steps: Vec<Vec<Step>>,
    /// The [`cycle_error`] of the transforms through their universe.
    pub cycle_error: f64,
}

/// Aligns `models` with each other, with one weight for each in `weights` or no weights at all.
///
/// The work is done on the threads of the current rayon pool; the result depends neither on their
/// number nor on the memory. `replay` holds the steps of an interrupted run.
///
/// # Errors
///
/// As [`match_weights`]; [`Kind::Usage`] for fewer than two models, weights that are not positive
/// or not one for each, a model that does not exist, and residual maps, which are supported for
/// pairs only.
pub fn match_many(
    models: &[Arc<Store>],
    weights: &[f64],
    symmetries: &Arc<Symmetries>,
    replay: &[ManyStep],
    options: &ManyOptions,
    watch: &dyn Watch<ManyStep>,
) -> Result<ManyMatched> {
    check(models, weights, options)?;
    let weights = if weights.is_empty() {
        vec![1.0; models.len()]
    } else {
        weights.to_vec()
    };
    let cost = options.matching.cost;
    let scales = models
        .iter()
        .map(|model| Scales::of(model, symmetries, cost, &|| watch.go_on()));
    let scales = scales.collect::<Result<Vec<_>>>()?;
    let begun = match options.begin {
        Begin::Model(model) => model,
        Begin::Nearest => nearest(models, symmetries, watch)?,
    };
    let mut run = ManyRun {
        models,
        weights,
        scales,
        symmetries,
        options,
        watch,
        replay,
        current: vec![Transform::identity(symmetries); models.len()],
        steps: vec![Vec::new(); models.len()],
    };
    for model in (0..models.len()).filter(|model| *model != begun) {
        run.solve(0, model, &[begun])?;
    }
    let (rounds, settled) = run.rounds()?;
    run.finish(begun, rounds, settled)
}

fn check(models: &[Arc<Store>], weights: &[f64], options: &ManyOptions) -> Result<()> {
    if models.len() < 2 {
        return refused("models").fail(format!("wanted at least 2, got {}", models.len()));
    }
    if !weights.is_empty() && weights.len() != models.len() {
        return refused("weights").fail(format!(
            "wanted one for each of {} models, got {}",
            models.len(),
            weights.len()
        ));
    }
    if let Some(odd) = weights
        .iter()
        .find(|weight| !(weight.is_finite() && **weight > 0.0))
    {
        return refused("weights").fail(format!("wanted positive numbers, got {odd}"));
    }
    if let Begin::Model(model) = options.begin
        && model >= models.len()
    {
        return refused("reference").fail(format!(
            "wanted one of {} models, counted from 0, got {model}",
            models.len()
        ));
    }
    match options.matching.residual {
        Residual::Fixed | Residual::Permute => Ok(()),
        Residual::Orthogonal | Residual::Map => {
            refused("residual").fail("maps of the residual stream are found for two models only")
        }
    }
}

/// The failures of aligning many models because of a part of what is asked for.
fn refused(part: &str) -> Context<&str> {
    Context::new(Kind::Usage, "cannot align many", part)
}

/// Finds the model whose tensors have the largest cosines with those of all others.
fn nearest(
    models: &[Arc<Store>],
    symmetries: &Symmetries,
    watch: &dyn Watch<ManyStep>,
) -> Result<usize> {
    let acted = symmetries
        .tensors
        .iter()
        .filter(|(_, tensor)| !tensor.axes.iter().all(crate::symmetry::Node::is_fixed));
    let names: Vec<&str> = acted.map(|(name, _)| name.as_str()).collect();
    let mut sums = vec![0.0; models.len()];
    for (one, model) in models.iter().enumerate() {
        for (other, second) in models.iter().enumerate().skip(one + 1) {
            let passed = |_| watch.go_on();
            let cosines = angles::cosines(
                model.as_ref(),
                second.as_ref(),
                &names,
                model.kernels(),
                &passed,
            )?;
            let sum: f64 = cosines.into_iter().flatten().sum();
            sums[one] += sum;
            sums[other] += sum;
        }
    }
    // Of equal models the first wins.
    let best = (0..models.len())
        .rev()
        .max_by(|one, other| sums[*one].total_cmp(&sums[*other]));
    Ok(best.expect("there are at least two"))
}

/// The state of a run between its rounds.
struct ManyRun<'a> {
    models: &'a [Arc<Store>],
    weights: Vec<f64>,
    scales: Vec<Scales>,
    symmetries: &'a Arc<Symmetries>,
    options: &'a ManyOptions,
    watch: &'a dyn Watch<ManyStep>,
    replay: &'a [ManyStep],
    current: Vec<Transform>,
    steps: Vec<Vec<Step>>,
}

impl ManyRun<'_> {
    /// Matches the models in rounds, until none moves; returns the number of rounds, counted from
    /// the first that brings the models to one, and true if the last moved nothing.
    fn rounds(&mut self) -> Result<(usize, bool)> {
        let all = 0..self.models.len();
        let (mut rounds, mut settled) = (1, self.options.towards == Towards::One);
        while !settled && rounds <= self.options.rounds {
            let mut moved = false;
            for model in self.order(rounds) {
                let members = all.clone();
                let members: Vec<usize> = match self.options.towards {
                    Towards::Others => members.filter(|other| *other != model).collect(),
                    Towards::One | Towards::Mean => members.collect(),
                };
                moved |= self.solve(rounds, model, &members)?;
            }
            rounds += 1;
            settled = !moved;
        }
        Ok((rounds, settled))
    }

    /// Returns the order of a round: if it is random, by hashes of seed, round and number, so that
    /// it is the same on every machine.
    fn order(&self, round: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        if self.options.towards == Towards::Others {
            let seed = self.options.matching.seed;
            order.sort_by_key(|model| {
                *blake3::hash(format!("{seed} {round} {model}").as_bytes()).as_bytes()
            });
        }
        order
    }

    /// Matches a model to the mean of `members`; returns true if it moved.
    fn solve(&mut self, round: usize, model: usize, members: &[usize]) -> Result<bool> {
        let members = members.iter().map(|member| {
            let model = Transformed::new(
                Arc::clone(&self.models[*member]),
                Alignment {
                    symmetries: Arc::clone(self.symmetries),
                    transform: Arc::new(self.current[*member].clone()),
                },
            );
            Member {
                model,
                weight: self.weights[*member],
                scales: &self.scales[*member],
            }
        });
        let mean = Mean {
            members: members.collect(),
        };
        let own = self
            .replay
            .iter()
            .take_while(|step| (step.round, step.model) == (round, model))
            .count();
        let (own, rest) = self.replay.split_at(own);
        let steps: Vec<Step> = own.iter().map(|step| step.step.clone()).collect();
        self.replay = rest;
        let watch = One {
            watch: self.watch,
            round,
            model,
        };
        let Matched {
            transform, steps, ..
        } = match_weights(
            &mean,
            &self.models[model],
            self.symmetries,
            Start {
                transform: &self.current[model],
                steps: &steps,
            },
            &self.options.matching,
            &watch,
        )?;
        drop(mean);
        let moved = transform != self.current[model];
        self.current[model] = transform;
        self.steps[model] = steps;
        Ok(moved)
    }

    fn finish(self, begun: usize, rounds: usize, settled: bool) -> Result<ManyMatched> {
        if let Some(ManyStep { round, model, .. }) = self.replay.first() {
            let cause = format!(
                "{} steps are left, the first of model {model} in round {round}",
                self.replay.len()
            );
            return Err(Error::new(
                Kind::Resume,
                "cannot go on with recorded steps",
                "end of the run",
                cause,
            )
            .with_hint("they are of another run: other models, symmetries or options"));
        }
        let symmetries = self.symmetries;
        let cycle_error = cycle_error(symmetries, &through_universe(symmetries, &self.current));
        let back = self.current[begun].inverse(symmetries);
        let transforms =
            self.current
                .iter()
                .enumerate()
                .map(|(model, transform)| match model == begun {
                    true => Transform::identity(symmetries),
                    // If there is nothing to undo, nothing that could round is computed.
                    false if back.is_identity(symmetries) => transform.clone(),
                    false => transform.compose(symmetries, &back),
                });
        Ok(ManyMatched {
            transforms: transforms.collect(),
            begun,
            rounds,
            settled,
            steps: self.steps,
            cycle_error,
        })
    }
}

/// Watches the matching of one model.
struct One<'a> {
    watch: &'a dyn Watch<ManyStep>,
    round: usize,
    model: usize,
}

impl Watch for One<'_> {
    fn planned(&self, operations: u64) {
        self.watch.begun(self.round, self.model);
        self.watch.planned(operations);
    }

    fn advanced(&self, operations: u64) {
        self.watch.advanced(operations);
    }

    fn taken(&self, step: &Step) -> Result<()> {
        self.watch.taken(&ManyStep {
            round: self.round,
            model: self.model,
            step: step.clone(),
        })
    }

    fn go_on(&self) -> Result<()> {
        self.watch.go_on()
    }
}
