//! The ways in which kept differences are mixed.

use serde::{Deserialize, Serialize};

/// The sign that is elected where the differences cancel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignTie {
    /// Plus, where the sum is exactly zero.
    #[default]
    Plus,
    /// None, so that nothing is added, where the sum is zero to the rounding of its terms.
    Zero,
}

/// A model's share in a mix.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Its weight.
    pub weight: f64,
    /// The factor that makes up for what was not kept.
    pub scale: f64,
    /// True if each element is also divided by the probability of keeping it.
    pub by_probability: bool,
}

/// A mix of kept differences δ_i, with v_i = w_i s_i δ_i for the model's weight and scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// The share of each model.
    pub shares: Vec<Share>,
    /// The factor λ of the mix.
    pub lambda: f64,
    /// The way in which the v_i are mixed.
    pub kind: MixKind,
    /// The condition of the mix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consensus: Option<Consensus>,
}

/// The ways in which differences are mixed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixKind {
    /// λ · Σ v_i / `divisor`.
    Sum {
        /// The divisor.
        divisor: f64,
    },
    /// λ · Σ v_i over the models whose v_i has the sign of Σ v_i, divided by the sum of their
    /// weights if `normalize`. A sum of weights of zero counts as one.
    Elect {
        /// True if the sum is divided.
        normalize: bool,
        /// The sign where all cancel.
        sign_tie: SignTie,
    },
    /// Σ w_i δ_i / Σ w_i over the models whose δ_i has the sign of Σ δ_i; the divisor is 1e-6 at
    /// least.
    Agreeing {
        /// The sign where all cancel.
        sign_tie: SignTie,
    },
    /// Of the models with |δ_i| > ε: f_i δ_i if there is one, the mean of δ_i if there are several.
    Unique {
        /// ε.
        epsilon: f64,
        /// The factor f_i of each model.
        factors: Vec<f64>,
    },
    /// u δ, u = t / max(|δ|, 1e-6) within 0 and 1; of one model.
    Near {
        /// t.
        t: f64,
    },
    /// The elements of the model where they are kept, of one model.
    Replace,
}

/// The condition under which a mix is added: at least `agree` models have
/// |δ_i| > t_i |λ mix - δ_i|, for the differences before any was dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Consensus {
    /// The fewest models.
    pub agree: u32,
    /// The factor t_i of each model.
    pub tall: Vec<f64>,
}

/// The elements of a mix that were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MixCounts {
    /// The kept elements of each model.
    pub kept: Vec<u64>,
    /// Elements where some v_i is not zero and a sign was elected.
    pub elections: u64,
    /// Those of them where the v_i cancel.
    pub undecided: u64,
    /// True if every element of every input was finite.
    pub finite: bool,
}

impl MixCounts {
    /// No element yet, of `models` models.
    pub fn new(models: usize) -> Self {
        Self {
            kept: vec![0; models],
            elections: 0,
            undecided: 0,
            finite: true,
        }
    }
}

impl MixKind {
    /// Tells if differences are weighted before they are mixed.
    pub(super) fn weighs(&self) -> bool {
        matches!(self, Self::Sum { .. } | Self::Elect { .. })
    }
}
