//! Methods that work element by element: differences from a base are selected, and the selected
//! ones are mixed.
//!
//! All of them are one description ([`Elementwise`]): which elements of each difference are kept,
//! by what they are multiplied, how they are mixed. What depends on the data is found in *sweeps*
//! over the elements of a group ([`Sweep`]): thresholds by counting keys, norms and energies by
//! sums, shared elements by counts. The end is an [`ElementRule`], plain data that is applied to
//! any elements of the group.
//!
//! - `histogram`: counted keys and the thresholds found in them.
//! - `progress`: the sweeps of one group, and the rule that follows from them.
//! - `rule`: the rule. `threshold`: what is kept by the thresholds that were found.

mod histogram;
mod progress;
mod rule;
mod threshold;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::kernel::select::{Consensus, MixKind, SignTie, Ties};

use super::{Gram, Method, Solution, Statistics};

pub use histogram::{Histogram, Refinement, Stream, total_bytes, worker_bytes};
pub use progress::{Progress, Sums, Sweep, SweepKind};
pub use rule::{ElementRule, Keep, KeptModel};

/// A merge of differences from a base, element by element.
#[derive(Debug, Clone, PartialEq)]
pub struct Elementwise {
    /// The name in a recipe.
    pub name: &'static str,
    /// The place of the base among the inputs.
    pub base: usize,
    /// The models whose differences are mixed, in recipe order.
    pub models: Vec<Model>,
    /// The positions kept in all models alike, if they are chosen together.
    pub together: Option<Together>,
    /// The factor that makes up for what is not kept.
    pub rescale: Rescale,
    /// The way in which kept differences are mixed.
    pub mixing: Mixing,
    /// The factor of the mix.
    pub lambda: f64,
    /// The condition of the mix.
    pub consensus: Option<Consensus>,
    /// The choice among elements that are tied at a threshold.
    pub ties: Ties,
    /// The seed of random draws.
    pub seed: u64,
}

/// A model and the elements of its difference that are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its place among the inputs.
    pub input: usize,
    /// Its position in the recipe, by which it draws.
    pub position: u32,
    /// Its weight.
    pub weight: f64,
    /// The elements that are kept.
    pub select: Select,
}

/// The elements of a difference that are kept, out of the n of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Select {
    /// All.
    All,
    /// None.
    Nothing,
    /// The max(1, ⌊pn⌋) largest magnitudes, 0 < p < 1.
    Top {
        /// p.
        density: f64,
    },
    /// ⌊pn⌋ magnitudes below the largest ⌊γn⌋; fewer of these where n does not suffice.
    Band {
        /// p.
        density: f64,
        /// γ.
        gamma: f64,
    },
    /// Each with a probability.
    Draw {
        /// The probability.
        probability: f64,
    },
    /// Each with a probability that rises with its rank in the row, from p - ε to p + ε.
    DrawByRank {
        /// p.
        density: f64,
        /// ε.
        epsilon: f64,
    },
    /// Those with an importance beyond the median plus 1.5 times the distance of the quartiles.
    Important,
}

/// Positions that are kept in all models alike.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Together {
    /// The share of the positions with any deviation whose deviation is largest.
    pub share: f64,
}

/// The factor that makes up for elements that are not kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rescale {
    /// None.
    No,
    /// The ratio of Σ|δ| before and after, 1 if either is below the floor.
    Norm {
        /// The floor; zero takes every ratio that there is.
        floor: f64,
    },
    /// One over the density.
    Density,
    /// One over each element's own probability.
    Probability,
}

/// The way in which kept differences are mixed.
#[derive(Debug, Clone, PartialEq)]
pub enum Mixing {
    /// As said, whatever the data.
    Fixed(MixKind),
    /// By each model's share in the energy of all, over those that agree in sign.
    ByEnergy {
        /// The sum of mean squares below which all shares are equal.
        floor: f64,
        /// The sign where all cancel.
        sign_tie: SignTie,
    },
    /// The unique changes of a model grow with the share of its changes that others have too.
    UniqueScaled {
        /// The magnitude beyond which an element has changed.
        epsilon: f64,
        /// The rate of growth.
        r: f64,
        /// The largest share that counts.
        alpha: f64,
    },
}

/// The names of choices in a rule's report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RescaleBy {
    /// Norms, as mergekit.
    Norm,
    /// The density.
    Density,
    /// Each element's own probability.
    Probability,
}

impl Elementwise {
    /// Lists the sweeps over a group, in their order. [`SweepKind::Refine`] may not be needed.
    pub fn sweeps(&self) -> Vec<SweepKind> {
        let mut sweeps = Vec::new();
        if !self.streams().is_empty() {
            sweeps.extend([SweepKind::Histogram, SweepKind::Refine]);
        }
        if self.needs_sums() {
            sweeps.push(SweepKind::Sums);
        }
        if matches!(self.mixing, Mixing::UniqueScaled { .. }) {
            sweeps.push(SweepKind::Shared);
        }
        sweeps
    }

    /// Lists the numbers whose keys are counted.
    pub fn streams(&self) -> Vec<Stream> {
        if let Some(together) = self.together {
            let all = together.share >= 1.0;
            return if all { vec![] } else { vec![Stream::Deviation] };
        }
        let streams = self.models.iter().enumerate();
        streams
            .filter_map(|(model, Model { select, .. })| match select {
                Select::Top { .. } | Select::Band { .. } => Some(Stream::Magnitude(model)),
                Select::Important => Some(Stream::Importance(model)),
                _ => None,
            })
            .collect()
    }

    /// Tells if the elements of a row of the last axis must be seen together.
    pub fn is_by_row(&self) -> bool {
        let by_row =
            |model: &Model| matches!(model.select, Select::DrawByRank { .. } | Select::Important);
        self.models.iter().any(by_row)
    }

    fn needs_sums(&self) -> bool {
        let drops = |model: &Model| !matches!(model.select, Select::All | Select::Nothing);
        match self.mixing {
            Mixing::ByEnergy { .. } => true,
            _ => matches!(self.rescale, Rescale::Norm { .. }) && self.models.iter().any(drops),
        }
    }

    /// Checks every number.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when a weight, λ or another number is not finite, or `density` ± `epsilon`
    /// leaves the range of probabilities.
    pub fn checked(self) -> Result<Self> {
        super::weights::finite_parameter("lambda", self.lambda)?;
        for (at, model) in self.models.iter().enumerate() {
            if !model.weight.is_finite() {
                let cause = format!("is {}, not a finite number", model.weight);
                return Err(Error::new(
                    Kind::Recipe,
                    "cannot use parameter",
                    format!("weight of input {at}"),
                    cause,
                ));
            }
            if let Select::DrawByRank { density, epsilon } = model.select
                && !(density - epsilon > 0.0 && density + epsilon < 1.0)
            {
                let cause = format!(
                    "{epsilon} around a density of {density} leaves the range between 0 and 1"
                );
                return Err(
                    Error::new(Kind::Recipe, "cannot use parameter", "epsilon", cause)
                        .with_hint("give a smaller `epsilon`, or a density of 1 or 0"),
                );
            }
        }
        Ok(self)
    }
}

impl Method for Elementwise {
    fn name(&self) -> &'static str {
        self.name
    }

    fn statistics(&self) -> Statistics {
        Statistics::Elements
    }

    fn elementwise(&self) -> Option<&Elementwise> {
        Some(self)
    }

    fn measured_from(&self) -> Option<usize> {
        Some(self.base)
    }

    fn shares(&self) -> Vec<Option<f64>> {
        let inputs = self.models.len() + 1;
        let mut shares = vec![Some(0.0); inputs];
        for model in &self.models {
            shares[model.input] = Some(model.weight);
        }
        shares
    }

    /// Refuses: elements are mixed by an [`ElementRule`], not by coefficients.
    fn solve(&self, _gram: &Gram) -> Result<Solution> {
        Err(Error::new(
            Kind::Recipe,
            "cannot solve",
            self.name,
            "it has no coefficients; its elements are selected one by one",
        ))
    }
}
