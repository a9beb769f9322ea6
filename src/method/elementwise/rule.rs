//! The rule that computes elements from those of base and models: plain data.

use serde::{Deserialize, Serialize};

use crate::kernel::select::{Edge, Mix, RankDraw, Ties, value_of};

/// The rule of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElementRule {
    /// The place of the base among the inputs.
    pub base: usize,
    /// The models, and the elements of each that are kept.
    pub models: Vec<KeptModel>,
    /// The band of deviations whose positions are kept in all models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Keep>,
    /// The mix of what is kept.
    pub mix: Mix,
    /// True if all models weigh the same because the energy of their differences is below the floor.
    #[serde(default)]
    pub below_floor: bool,
    /// The choice among tied elements.
    pub ties: Ties,
    /// The seed of random draws.
    pub seed: u64,
}

/// A model in a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptModel {
    /// Its place among the inputs.
    pub input: usize,
    /// Its position in the recipe.
    pub position: u32,
    /// The elements that are kept.
    pub keep: Keep,
}

/// The elements that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// All.
    All,
    /// None.
    Nothing,
    /// From `low` on, below `high`.
    Band {
        /// The lower edge.
        low: Option<Edge>,
        /// The upper edge: what lies above is out, and `kept` of the elements at it stay.
        high: Option<Edge>,
    },
    /// Each whose word is below this.
    Draw {
        /// The limit.
        below: u64,
    },
    /// Each whose word is below a limit by its rank in the row.
    DrawByRank(RankDraw),
    /// Importances from this on.
    Above {
        /// The threshold.
        least: f64,
    },
}

impl Keep {
    /// Tells if the choice among tied elements needs their order.
    pub fn needs_order(self) -> bool {
        let unclear = |edge: Option<Edge>| edge.is_some_and(|edge| !edge.is_clear());
        matches!(self, Self::Band { low, high } if unclear(low) || unclear(high))
    }

    /// The least magnitude that is kept, if there is one.
    pub fn threshold(self) -> Option<f64> {
        match self {
            Self::Band { low, .. } => low.map(|edge| value_of(edge.key)),
            Self::Above { least } => Some(least),
            _ => None,
        }
        .filter(|value| value.is_finite())
    }

    /// The edges whose tied elements must be counted.
    pub fn edges(self) -> [Option<Edge>; 2] {
        match self {
            Self::Band { low, high } => {
                [low, high].map(|edge| edge.filter(|edge| !edge.is_clear()))
            }
            _ => [None, None],
        }
    }
}

impl ElementRule {
    /// Lists what is kept: of each model, or once for all.
    pub fn keeps(&self) -> Vec<Keep> {
        match self.together {
            Some(keep) => vec![keep],
            None => self.models.iter().map(|model| model.keep).collect(),
        }
    }

    /// Tells if an element depends on the number of tied elements before it.
    pub fn needs_order(&self) -> bool {
        self.keeps().into_iter().any(Keep::needs_order)
    }

    /// Tells if the elements of a row must be seen together.
    pub fn is_by_row(&self) -> bool {
        let by_row =
            |model: &KeptModel| matches!(model.keep, Keep::DrawByRank(_) | Keep::Above { .. });
        self.models.iter().any(by_row)
    }
}
