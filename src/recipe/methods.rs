//! The requirements of each merge method on a recipe: its models, its base, its parameters.
//!
//! Names, parameters and defaults are mergekit's, except where the meaning text says otherwise. A
//! recipe is checked against this table, so a parameter that a method does not have is an error
//! here, where mergekit ignores it.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::method::{
    GeometricMedian, Karcher, Linear, Method, ModelStock, Multislerp, Nuslerp, Passthrough, Slerp,
    TaskArithmetic,
};

use super::{Given, elementwise};

/// A merge method that thalweg has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each variant is the method of the same name; METHODS says what it does"
)]
pub enum MethodName {
    Linear,
    Passthrough,
    TaskArithmetic,
    Slerp,
    NuSlerp,
    MultiSlerp,
    Karcher,
    Frechet,
    GeometricMedian,
    ModelStock,
    Ties,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Breadcrumbs,
    BreadcrumbsTies,
    Sce,
    NearSwap,
    ArceeFusion,
    Ram,
    RamPlusTl,
    ConsensusTa,
    ConsensusTies,
}

/// The use that a method makes of `base_model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseRule {
    /// It is one more model like the others.
    Counted,
    /// Needed; it is the point the others are measured from.
    Required,
    /// Needed, and one of the models that are counted.
    RequiredCounted,
    /// If there is one, the others are measured from it.
    Optional,
}

/// The levels at which a parameter may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// For each model, or for all of them at once.
    PerModel,
    /// For the merge or a slice, not for a single model.
    Whole,
}

/// The values that a parameter may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Any finite number.
    Real,
    /// A number that is not below zero.
    NonNegative,
    /// A number above zero.
    Positive,
    /// A number from zero to one.
    Fraction,
    /// A whole number from zero to a million.
    Count,
    /// True or false.
    Switch,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterInfo {
    /// Its name in a recipe.
    pub name: &'static str,
    /// The levels at which it may be given.
    pub scope: Scope,
    /// The values that it may take.
    pub domain: Domain,
    /// Its default; `None` when it must be given.
    pub default: Option<f64>,
    /// Its effect, in words.
    pub meaning: &'static str,
}

/// A method and its requirements on a recipe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MethodInfo {
    /// The method.
    pub method: MethodName,
    /// Its name in a recipe.
    pub name: &'static str,
    /// The use that it makes of `base_model`.
    pub base: BaseRule,
    /// The fewest models; a base counts only where [`BaseRule`] says so.
    pub fewest: usize,
    /// The most models.
    pub most: usize,
    /// Its parameters.
    pub parameters: &'static [ParameterInfo],
    /// The keys at the top of a recipe that have a meaning for it, of those that not every method
    /// has: `CHOICES`.
    pub choices: &'static [&'static str],
    /// Its effect, in words.
    pub meaning: &'static str,
}

/// The keys at the top of a recipe that only some methods have a meaning for.
pub const CHOICES: [&str; 4] = ["seed", "ties", "sign_tie", "rescale_by"];

pub(super) const fn per_model(
    name: &'static str,
    domain: Domain,
    default: Option<f64>,
    meaning: &'static str,
) -> ParameterInfo {
    ParameterInfo {
        name,
        scope: Scope::PerModel,
        domain,
        default,
        meaning,
    }
}

pub(super) const fn whole(
    name: &'static str,
    domain: Domain,
    default: Option<f64>,
    meaning: &'static str,
) -> ParameterInfo {
    ParameterInfo {
        name,
        scope: Scope::Whole,
        domain,
        default,
        meaning,
    }
}

const MEAN: &[ParameterInfo] = &[
    per_model(
        "weight",
        Domain::NonNegative,
        Some(1.0),
        "share of the model in the mean; scaled to sum to one",
    ),
    whole(
        "max_iter",
        Domain::Count,
        Some(MAX_ITER),
        "most iterations; each costs microseconds (mergekit: 10)",
    ),
    whole(
        "tol",
        Domain::Positive,
        Some(Karcher::TOL),
        "length of the step at which to stop (mergekit: 1e-5)",
    ),
];

/// The limit of iterations as a parameter, which is a number like all others.
const MAX_ITER: f64 = Karcher::MAX_ITER as f64;

// One row serves both iterations, so they must agree.
const _: () =
    assert!(Karcher::MAX_ITER == GeometricMedian::MAX_ITER && Karcher::TOL == GeometricMedian::TOL);

/// Every method, in the order in which help lists them.
pub const METHODS: [MethodInfo; 24] = [
    MethodInfo {
        method: MethodName::Karcher,
        name: "karcher",
        base: BaseRule::Counted,
        fewest: 1,
        most: usize::MAX,
        parameters: MEAN,
        choices: &[],
        meaning: "the Karcher mean on the sphere, scaled to the mean norm",
    },
    MethodInfo {
        method: MethodName::Frechet,
        name: "frechet",
        base: BaseRule::Counted,
        fewest: 1,
        most: usize::MAX,
        parameters: MEAN,
        choices: &[],
        meaning: "karcher with `granularity: model`: one sphere for the whole network",
    },
    MethodInfo {
        method: MethodName::Linear,
        name: "linear",
        base: BaseRule::Counted,
        fewest: 1,
        most: usize::MAX,
        parameters: &[
            per_model("weight", Domain::Real, None, "factor of the model"),
            whole(
                "normalize",
                Domain::Switch,
                Some(1.0),
                "divide by the sum of the weights",
            ),
        ],
        choices: &[],
        meaning: "the weighted mean",
    },
    MethodInfo {
        method: MethodName::Slerp,
        name: "slerp",
        base: BaseRule::RequiredCounted,
        fewest: 2,
        most: 2,
        parameters: &[whole(
            "t",
            Domain::Real,
            None,
            "0 is the base model, 1 the other one",
        )],
        choices: &[],
        meaning: "along the great circle from the base model to another one",
    },
    MethodInfo {
        method: MethodName::NuSlerp,
        name: "nuslerp",
        base: BaseRule::Optional,
        fewest: 2,
        most: 2,
        parameters: &[
            per_model(
                "weight",
                Domain::Real,
                None,
                "share of the model; scaled to sum to one",
            ),
            whole(
                "nuslerp_flatten",
                Domain::Switch,
                Some(1.0),
                "one direction per tensor, not per row or column",
            ),
            whole(
                "nuslerp_row_wise",
                Domain::Switch,
                Some(0.0),
                "without flatten: directions of rows, not columns",
            ),
        ],
        choices: &[],
        meaning: "slerp of two models, or of their differences from a base",
    },
    MethodInfo {
        method: MethodName::MultiSlerp,
        name: "multislerp",
        base: BaseRule::Optional,
        fewest: 2,
        most: usize::MAX,
        parameters: &[
            per_model("weight", Domain::Real, None, "share of the model"),
            whole(
                "normalize_weights",
                Domain::Switch,
                Some(1.0),
                "scale the weights to sum to one",
            ),
            whole(
                "eps",
                Domain::Positive,
                Some(Multislerp::EPS),
                "length below which a direction counts as none",
            ),
        ],
        choices: &[],
        meaning: "the normalised mean direction of models, or of their differences from a base",
    },
    MethodInfo {
        method: MethodName::TaskArithmetic,
        name: "task_arithmetic",
        base: BaseRule::Required,
        fewest: 1,
        most: usize::MAX,
        parameters: &[
            per_model(
                "weight",
                Domain::Real,
                None,
                "factor of the model's difference from the base",
            ),
            per_model(
                "density",
                Domain::Fraction,
                Some(1.0),
                "accepted for mergekit's sake, without effect",
            ),
            whole(
                "normalize",
                Domain::Switch,
                Some(0.0),
                "divide by the sum of the weights",
            ),
            whole(
                "lambda",
                Domain::Real,
                Some(1.0),
                "factor of the summed differences",
            ),
            whole(
                "rescale",
                Domain::Switch,
                Some(0.0),
                "accepted for mergekit's sake, without effect",
            ),
            whole(
                "int8_mask",
                Domain::Switch,
                Some(0.0),
                "accepted for mergekit's sake, without effect",
            ),
        ],
        choices: &[],
        meaning: "the base plus weighted differences from it",
    },
    MethodInfo {
        method: MethodName::ModelStock,
        name: "model_stock",
        base: BaseRule::Required,
        fewest: 2,
        most: usize::MAX,
        parameters: &[whole(
            "filter_wise",
            Domain::Switch,
            Some(0.0),
            "a factor per row, not per tensor",
        )],
        choices: &[],
        meaning: "between the base and the mean, as the angles between differences tell",
    },
    MethodInfo {
        method: MethodName::GeometricMedian,
        name: "geometric_median",
        base: BaseRule::Counted,
        fewest: 1,
        most: usize::MAX,
        parameters: MEAN,
        choices: &[],
        meaning: "the point with the least weighted sum of distances; outliers pull less",
    },
    MethodInfo {
        method: MethodName::Passthrough,
        name: "passthrough",
        base: BaseRule::Counted,
        fewest: 1,
        most: 1,
        parameters: &[per_model(
            "scale",
            Domain::Real,
            Some(1.0),
            "factor of the tensor",
        )],
        choices: &[],
        meaning: "the tensors of one model, for stacking slices",
    },
    elementwise::TIES,
    elementwise::DARE_LINEAR,
    elementwise::DARE_TIES,
    elementwise::DELLA_LINEAR,
    elementwise::DELLA,
    elementwise::BREADCRUMBS,
    elementwise::BREADCRUMBS_TIES,
    elementwise::SCE,
    elementwise::NEARSWAP,
    elementwise::ARCEE_FUSION,
    elementwise::RAM,
    elementwise::RAMPLUS_TL,
    elementwise::CONSENSUS_TA,
    elementwise::CONSENSUS_TIES,
];

impl MethodName {
    /// Returns the method of this name.
    pub fn parse(name: &str) -> Option<Self> {
        METHODS
            .iter()
            .find(|info| info.name == name)
            .map(|info| info.method)
    }

    /// Returns the method's requirements on a recipe.
    pub fn info(self) -> &'static MethodInfo {
        METHODS
            .iter()
            .find(|info| info.method == self)
            .expect("METHODS has a row for every variant")
    }

    /// Makes the method with the parameters of one tensor.
    ///
    /// # Errors
    ///
    /// Fails when a parameter has no value for the tensor, or the method refuses it.
    pub fn make(self, given: &dyn Given) -> Result<Arc<dyn Method>> {
        Ok(match self {
            Self::Linear => Arc::new(Linear::new(&given.weights()?, given.switch("normalize")?)?),
            Self::Passthrough => Arc::new(Passthrough::new(given.of_input("scale", 0)?)?),
            Self::TaskArithmetic => {
                let (normalize, lambda) = (given.switch("normalize")?, given.shared("lambda")?);
                Arc::new(TaskArithmetic::new(
                    given.needed_base()?,
                    &given.weights()?,
                    normalize,
                    lambda,
                )?)
            }
            Self::Slerp => Arc::new(Slerp::new(given.needed_base()?, given.shared("t")?)?),
            Self::NuSlerp => Arc::new(Nuslerp::new(&given.weights()?, given.base())?),
            Self::MultiSlerp => {
                let (normalize, eps) = (given.switch("normalize_weights")?, given.shared("eps")?);
                Arc::new(Multislerp::new(
                    &given.weights()?,
                    normalize,
                    eps,
                    given.base(),
                )?)
            }
            Self::Karcher | Self::Frechet => Arc::new(Karcher::new(
                &given.weights()?,
                given.count("max_iter")?,
                given.shared("tol")?,
            )?),
            Self::GeometricMedian => Arc::new(GeometricMedian::new(
                &given.weights()?,
                given.count("max_iter")?,
                given.shared("tol")?,
            )?),
            Self::ModelStock => Arc::new(ModelStock::new(given.needed_base()?, given.inputs())?),
            by_element => Arc::new(elementwise::make(by_element, given)?),
        })
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.info().name)
    }
}

impl Serialize for MethodName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.info().name)
    }
}

impl MethodInfo {
    /// Returns the parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&'static ParameterInfo> {
        self.parameters.iter().find(|info| info.name == name)
    }
}

impl Domain {
    /// Returns the reason that `value` is not in the domain, as `must be …`; `None` when it is.
    pub fn refusal(self, value: f64) -> Option<&'static str> {
        let (fits, must) = match self {
            Self::Real => (true, "must be a finite number"),
            Self::NonNegative => (value >= 0.0, "must not be negative"),
            Self::Positive => (value > 0.0, "must be above zero"),
            Self::Fraction => ((0.0..=1.0).contains(&value), "must lie between 0 and 1"),
            Self::Count => (
                value.fract() == 0.0 && (0.0..=1e6).contains(&value),
                "must be a whole number from 0 to 1000000",
            ),
            Self::Switch => (value == 0.0 || value == 1.0, "must be true or false"),
        };
        match (value.is_finite(), fits) {
            (true, true) => None,
            (false, _) => Some("must be a finite number"),
            (true, false) => Some(must),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_under_its_own_name_and_no_other() {
        for info in &METHODS {
            assert_eq!(MethodName::parse(info.name), Some(info.method));
            assert_eq!(info.method.info(), info);
            assert!(info.fewest <= info.most);
            for parameter in info.parameters {
                assert_eq!(
                    info.parameter(parameter.name),
                    Some(parameter),
                    "{}",
                    info.name
                );
                assert_eq!(
                    parameter
                        .default
                        .and_then(|value| parameter.domain.refusal(value)),
                    None
                );
            }
        }
        assert_eq!(MethodName::parse("Linear"), None);
    }

    #[test]
    fn domains_hold_at_their_edges() {
        for (domain, inside, outside) in [
            (
                Domain::Real,
                vec![-1e300, 0.0],
                vec![f64::NAN, f64::INFINITY],
            ),
            (Domain::NonNegative, vec![0.0, 2.0], vec![-1e-300]),
            (Domain::Positive, vec![1e-300], vec![0.0, -0.0, -1.0]),
            (Domain::Fraction, vec![0.0, 1.0], vec![-0.1, 1.1]),
            (Domain::Count, vec![0.0, 1e6], vec![0.5, -1.0, 1e6 + 1.0]),
            (Domain::Switch, vec![0.0, 1.0], vec![0.5, 2.0]),
        ] {
            assert!(
                inside.iter().all(|&value| domain.refusal(value).is_none()),
                "{domain:?}"
            );
            assert!(
                outside.iter().all(|&value| domain.refusal(value).is_some()),
                "{domain:?}"
            );
        }
    }
}
