//! Findings about a tensor: angles, iterations, flags. They are journalled with the tensor and end
//! in the manifest, so they must not depend on the cut of the tensor into blocks: every sum here is
//! of integers.

use serde::{Deserialize, Serialize};

use crate::kernel::select::MixCounts;
use crate::method::elementwise::ElementRule;
use crate::method::{Facts, Flags, Stop, number};

/// Angles are summed in billionths of a radian.
const ANGLE_UNITS: f64 = 1e9;

/// The findings of merging one tensor, over all of its segments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Segments that were solved.
    pub segments: u64,
    /// The largest angle between an input and the mean, in radians.
    #[serde(with = "number")]
    pub largest_angle: f64,
    /// Sum of all angles between inputs and means, in billionths of a radian.
    pub angle_sum: u64,
    /// The number of angles; zero tensors have none.
    pub angle_count: u64,
    /// The most iterations that a segment took.
    pub iterations: u32,
    /// The largest residual tangent of a segment.
    #[serde(with = "number")]
    pub residual: f64,
    /// Segments that needed no iteration.
    pub exact: u64,
    /// Segments whose tangent fell below the tolerance.
    pub converged: u64,
    /// Segments that ended because rounding keeps the tangent from falling further.
    pub floor: u64,
    /// Segments that ran out of iterations.
    pub exhausted: u64,
    /// Unusual situations.
    pub flags: Flags,
    /// Finite values that became infinite or NaN when they were narrowed.
    pub overflowed: u64,
    /// Inputs whose bytes differ from those of the input that was copied.
    pub differing: Vec<usize>,
    /// Norms and angles, when the tensor is one segment.
    pub facts: Option<Facts>,
    /// The elements that a method kept which selects them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Box<Selection>>,
}

/// The elements that a method kept which selects them, over all segments of a tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// The elements of the output.
    pub elements: u64,
    /// Those where a sign was elected among differences that are not all zero.
    pub elections: u64,
    /// Those of them where the weighted differences cancel.
    pub undecided: u64,
    /// Segments in which all models weigh the same, because the energy of their differences is below
    /// the floor.
    #[serde(default)]
    pub below_floor: u64,
    /// The findings about each model.
    pub models: Vec<SelectedModel>,
}

/// The elements of one model that were kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectedModel {
    /// The model's place among the inputs of the tensor.
    pub input: usize,
    /// The kept elements.
    pub kept: u64,
    /// The elements that are tied at a threshold of which not all are kept.
    pub tied: u64,
    /// Those of them that are kept.
    pub tied_kept: u64,
    /// The least magnitude that is kept, when the tensor is one segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    /// The factor that makes up for what is dropped, when the tensor is one segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The model's weight in the mix, when the tensor is one segment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

impl Selection {
    /// The findings of the rule of one segment.
    fn of(rule: &ElementRule) -> Self {
        let keeps = rule.keeps();
        let models = rule.models.iter().zip(&rule.mix.shares).enumerate();
        let models = models.map(|(at, (model, share))| {
            let edges = keeps[at.min(keeps.len() - 1)].edges();
            let edges = edges.into_iter().flatten();
            SelectedModel {
                input: model.input,
                tied: edges.clone().map(|edge| edge.of).sum(),
                tied_kept: edges.map(|edge| edge.kept).sum(),
                threshold: keeps[at.min(keeps.len() - 1)].threshold(),
                scale: Some(share.scale).filter(|scale| *scale != 1.0),
                weight: Some(share.weight),
                kept: 0,
            }
        });
        Self {
            models: models.collect(),
            below_floor: u64::from(rule.below_floor),
            ..Self::default()
        }
    }

    /// The findings of applying a rule to `elements` elements.
    pub(super) fn applied(rule: &ElementRule, counts: &MixCounts, elements: u64) -> Self {
        let models = rule.models.iter().zip(&counts.kept);
        Self {
            elements,
            elections: counts.elections,
            undecided: counts.undecided,
            below_floor: 0,
            models: models
                .map(|(model, kept)| SelectedModel {
                    input: model.input,
                    kept: *kept,
                    ..SelectedModel::default()
                })
                .collect(),
        }
    }

    /// Adds the findings of another part; `one` tells if both are of one segment.
    fn add(&mut self, other: Self, one: bool) {
        self.elements += other.elements;
        self.elections += other.elections;
        self.undecided += other.undecided;
        self.below_floor += other.below_floor;
        for next in other.models {
            let own = self.models.iter_mut().find(|own| own.input == next.input);
            match own {
                Some(own) => own.add(next),
                None => self.models.push(next),
            }
        }
        self.models.sort_by_key(|model| model.input);
        if !one {
            for model in &mut self.models {
                (model.threshold, model.scale, model.weight) = (None, None, None);
            }
        }
    }
}

impl SelectedModel {
    fn add(&mut self, next: Self) {
        self.kept += next.kept;
        self.tied += next.tied;
        self.tied_kept += next.tied_kept;
        self.threshold = self.threshold.or(next.threshold);
        self.scale = self.scale.or(next.scale);
        self.weight = self.weight.or(next.weight);
    }
}

impl Found {
    /// The findings of one solution.
    pub fn of(facts: &Facts) -> Self {
        let angles = facts.angles.iter().flatten();
        let count = |stop| u64::from(facts.stop == stop);
        Self {
            segments: 1,
            largest_angle: angles.clone().copied().fold(0.0, f64::max),
            angle_sum: angles.clone().copied().map(units).sum(),
            angle_count: angles.count() as u64,
            iterations: facts.iterations,
            residual: facts.residual,
            exact: count(Stop::Exact),
            converged: count(Stop::Converged),
            floor: count(Stop::Floor),
            exhausted: count(Stop::MaxIterations),
            flags: facts.flags,
            facts: Some(facts.clone()),
            ..Self::default()
        }
    }

    /// The findings of the rule of one segment that selects elements.
    pub fn of_elements(rule: &ElementRule) -> Self {
        Self {
            segments: 1,
            exact: 1,
            selection: Some(Box::new(Selection::of(rule))),
            ..Self::default()
        }
    }

    /// Adds the findings of another part. The order of additions does not matter.
    pub fn add(&mut self, other: Self) {
        self.facts = match (self.segments, other.segments) {
            (_, 0) => self.facts.take(),
            (0, _) => other.facts,
            _ => None,
        };
        let one = self.segments + other.segments <= 1;
        match (&mut self.selection, other.selection) {
            (Some(own), Some(other)) => own.add(*other, one),
            (own @ None, other) => *own = other,
            (Some(_), None) => {}
        }
        self.segments += other.segments;
        self.largest_angle = self.largest_angle.max(other.largest_angle);
        self.angle_sum += other.angle_sum;
        self.angle_count += other.angle_count;
        self.iterations = self.iterations.max(other.iterations);
        self.residual = self.residual.max(other.residual);
        self.exact += other.exact;
        self.converged += other.converged;
        self.floor += other.floor;
        self.exhausted += other.exhausted;
        self.flags |= other.flags;
        self.overflowed += other.overflowed;
        self.differing.extend(other.differing);
        self.differing.sort_unstable();
        self.differing.dedup();
    }

    /// The mean angle between inputs and means, in radians; `None` without angles.
    pub fn mean_angle(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
        (self.angle_count > 0)
            .then(|| self.angle_sum as f64 / self.angle_count as f64 / ANGLE_UNITS)
    }
}

fn units(angle: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an angle lies within 0 and pi"
    )]
    let units = (angle * ANGLE_UNITS).round() as u64;
    units
}
