//! Findings about a tensor: angles, iterations, flags. They are journalled with the tensor and end
//! in the manifest, so they must not depend on the cut of the tensor into blocks: every sum here is
//! of integers.

use serde::{Deserialize, Serialize};

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

    /// Adds the findings of another part. The order of additions does not matter.
    pub fn add(&mut self, other: Self) {
        self.facts = match (self.segments, other.segments) {
            (_, 0) => self.facts.take(),
            (0, _) => other.facts,
            _ => None,
        };
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
