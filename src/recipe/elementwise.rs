//! The methods that work element by element: their requirements on a recipe, and their making.
//!
//! Names, parameters and defaults are mergekit's (0.1.5), but for `weight_floor`, `rescale_floor`,
//! `tall_lambda` and `agree`, which it does not have.

mod make;

use super::methods::{BaseRule, Domain, MethodInfo, MethodName, ParameterInfo, per_model, whole};

pub(super) use make::make;

const WEIGHT: ParameterInfo = per_model(
    "weight",
    Domain::Real,
    None,
    "factor of the model's difference from the base",
);
const DENSITY: ParameterInfo = per_model(
    "density",
    Domain::Fraction,
    Some(1.0),
    "share of the differences that is kept",
);
const EPSILON: ParameterInfo = per_model(
    "epsilon",
    Domain::NonNegative,
    Some(0.15),
    "the probability of keeping an element rises with its rank from density - epsilon to density + epsilon",
);
const GAMMA: ParameterInfo = per_model(
    "gamma",
    Domain::Fraction,
    Some(0.01),
    "share of the largest differences that is dropped",
);
const LAMBDA: ParameterInfo = whole(
    "lambda",
    Domain::Real,
    Some(1.0),
    "factor of the mixed differences",
);
const INT8_MASK: ParameterInfo = whole(
    "int8_mask",
    Domain::Switch,
    Some(0.0),
    "accepted for mergekit's sake, without effect",
);
const RESCALE_FLOOR: ParameterInfo = whole(
    "rescale_floor",
    Domain::NonNegative,
    Some(1e-7),
    "L1 norm below which nothing is rescaled",
);

const fn normalize(default: f64) -> ParameterInfo {
    whole(
        "normalize",
        Domain::Switch,
        Some(default),
        "divide by the sum of the weights that count",
    )
}

const fn rescale(default: f64) -> ParameterInfo {
    whole(
        "rescale",
        Domain::Switch,
        Some(default),
        "make up for the differences that are dropped (see `rescale_by`)",
    )
}

const fn epsilon_of_change() -> ParameterInfo {
    whole(
        "epsilon",
        Domain::NonNegative,
        Some(1e-5),
        "difference up to which an element counts as unchanged",
    )
}

const fn row(
    method: MethodName,
    name: &'static str,
    parameters: &'static [ParameterInfo],
    choices: &'static [&'static str],
    meaning: &'static str,
) -> MethodInfo {
    MethodInfo {
        method,
        name,
        base: BaseRule::Required,
        fewest: 1,
        most: usize::MAX,
        parameters,
        choices,
        meaning,
    }
}

pub(super) const TIES: MethodInfo = row(
    MethodName::Ties,
    "ties",
    &[
        WEIGHT,
        DENSITY,
        normalize(1.0),
        rescale(0.0),
        RESCALE_FLOOR,
        LAMBDA,
        INT8_MASK,
    ],
    &["seed", "ties", "sign_tie", "rescale_by"],
    "the largest differences from the base, those that agree in sign",
);
pub(super) const DARE_LINEAR: MethodInfo = row(
    MethodName::DareLinear,
    "dare_linear",
    &[
        WEIGHT,
        DENSITY,
        normalize(0.0),
        rescale(1.0),
        RESCALE_FLOOR,
        LAMBDA,
        INT8_MASK,
    ],
    &["seed", "rescale_by"],
    "the base plus randomly drawn differences from it",
);
pub(super) const DARE_TIES: MethodInfo = row(
    MethodName::DareTies,
    "dare_ties",
    DARE_LINEAR.parameters,
    &["seed", "sign_tie", "rescale_by"],
    "randomly drawn differences from the base, those that agree in sign",
);
pub(super) const DELLA_LINEAR: MethodInfo = row(
    MethodName::DellaLinear,
    "della_linear",
    &[
        WEIGHT,
        DENSITY,
        EPSILON,
        normalize(0.0),
        rescale(1.0),
        RESCALE_FLOOR,
        LAMBDA,
        INT8_MASK,
    ],
    &["seed", "ties", "rescale_by"],
    "the base plus differences from it, drawn the likelier the larger they are",
);
pub(super) const DELLA: MethodInfo = row(
    MethodName::Della,
    "della",
    &[
        WEIGHT,
        DENSITY,
        EPSILON,
        normalize(1.0),
        rescale(1.0),
        RESCALE_FLOOR,
        LAMBDA,
        INT8_MASK,
    ],
    &["seed", "ties", "sign_tie", "rescale_by"],
    "differences from the base, drawn the likelier the larger they are, those that agree in sign",
);
pub(super) const BREADCRUMBS: MethodInfo = row(
    MethodName::Breadcrumbs,
    "breadcrumbs",
    &[
        WEIGHT,
        DENSITY,
        GAMMA,
        normalize(0.0),
        rescale(0.0),
        RESCALE_FLOOR,
        LAMBDA,
        INT8_MASK,
    ],
    &["seed", "ties", "rescale_by"],
    "the base plus large differences from it, but not the largest",
);
pub(super) const BREADCRUMBS_TIES: MethodInfo = row(
    MethodName::BreadcrumbsTies,
    "breadcrumbs_ties",
    BREADCRUMBS.parameters,
    &["seed", "ties", "sign_tie", "rescale_by"],
    "large differences from the base, but not the largest, those that agree in sign",
);
pub(super) const SCE: MethodInfo = row(
    MethodName::Sce,
    "sce",
    &[
        whole(
            "select_topk",
            Domain::Fraction,
            Some(1.0),
            "share of the elements, those in which models differ most, that is merged",
        ),
        whole(
            "weight_floor",
            Domain::NonNegative,
            Some(1e-6),
            "sum of mean squares below which all models weigh the same; 0 weighs them always",
        ),
        INT8_MASK,
    ],
    &["seed", "ties", "sign_tie"],
    "elements in which models differ most, weighted by energy, those that agree in sign",
);
pub(super) const NEARSWAP: MethodInfo = MethodInfo {
    most: 1,
    ..row(
        MethodName::NearSwap,
        "nearswap",
        &[whole(
            "t",
            Domain::Real,
            None,
            "difference up to which an element is taken from the other model",
        )],
        &[],
        "the base, drawn towards another model where that is near",
    )
};
pub(super) const ARCEE_FUSION: MethodInfo = MethodInfo {
    most: 1,
    ..row(
        MethodName::ArceeFusion,
        "arcee_fusion",
        &[],
        &[],
        "the base, with those elements of another model that matter most",
    )
};
pub(super) const RAM: MethodInfo = row(
    MethodName::Ram,
    "ram",
    &[epsilon_of_change()],
    &[],
    "changes that one model alone has, and the mean of those that several have",
);
pub(super) const RAMPLUS_TL: MethodInfo = row(
    MethodName::RamPlusTl,
    "ramplus_tl",
    &[
        epsilon_of_change(),
        whole(
            "r",
            Domain::Real,
            Some(0.1),
            "rate at which unique changes grow with the share of common ones",
        ),
        whole(
            "alpha",
            Domain::NonNegative,
            Some(0.2),
            "largest share of common changes that counts",
        ),
    ],
    &[],
    "ram with larger unique changes where a model shares many",
);
const TALL: ParameterInfo = per_model(
    "tall_lambda",
    Domain::NonNegative,
    Some(0.4),
    "a model agrees where its difference exceeds this share of what the mix leaves of it",
);
const AGREE: ParameterInfo = whole(
    "agree",
    Domain::Count,
    Some(2.0),
    "fewest models that agree with an element that is merged",
);
pub(super) const CONSENSUS_TA: MethodInfo = row(
    MethodName::ConsensusTa,
    "consensus_ta",
    &[WEIGHT, LAMBDA, TALL, AGREE],
    &[],
    "task arithmetic where several models agree with the result",
);
pub(super) const CONSENSUS_TIES: MethodInfo = row(
    MethodName::ConsensusTies,
    "consensus_ties",
    &[WEIGHT, DENSITY, LAMBDA, TALL, AGREE],
    &["seed", "ties", "sign_tie"],
    "ties where several models agree with the result",
);
