//! Makes the methods that work element by element from what a recipe gives.

use super::super::Given;
use super::super::choices::{RescaleBy, SignRule, TieRule};
use super::super::methods::MethodName;
use crate::error::Result;
use crate::kernel::select::{Consensus, MixKind, SignTie, Ties};
use crate::method::Elementwise;
use crate::method::elementwise::{Mixing, Model, Rescale, Select, Together};

/// A sum of weights below this divides nothing, as in mergekit.
const LEAST_WEIGHT: f64 = 1e-8;

/// Makes a method that works element by element.
///
/// # Errors
///
/// Fails when a parameter has no value for the tensor, or the method refuses it.
pub(in crate::recipe) fn make(name: MethodName, given: &dyn Given) -> Result<Elementwise> {
    let base = given.needed_base()?;
    let weighs = name.info().parameter("weight").is_some();
    let weights = match weighs {
        true => given.weights()?,
        false => vec![1.0; given.inputs()],
    };
    let mut models = Vec::new();
    for (input, weight) in weights.into_iter().enumerate() {
        if input != base {
            models.push(Model {
                input,
                position: given.position(input),
                weight,
                select: select(name, given, input)?,
            });
        }
    }
    let choices = given.choices();
    let together = match name {
        MethodName::Sce => Some(Together {
            share: given.shared("select_topk")?,
        }),
        _ => None,
    };
    Elementwise {
        name: name.info().name,
        base,
        rescale: rescale_of(name, given)?,
        mixing: mixing(name, given, &models)?,
        lambda: match name.info().parameter("lambda") {
            Some(_) => given.shared("lambda")?,
            None => 1.0,
        },
        consensus: consensus(name, given, &models)?,
        models,
        together,
        ties: match choices.ties {
            TieRule::Spread => Ties::Spread,
            TieRule::First => Ties::First,
        },
        seed: choices.seed,
    }
    .checked()
}

/// The elements of input `input` that are kept.
fn select(name: MethodName, given: &dyn Given, input: usize) -> Result<Select> {
    if name == MethodName::ArceeFusion {
        return Ok(Select::Important);
    }
    if name.info().parameter("density").is_none() {
        return Ok(Select::All);
    }
    let of = |parameter: &str| given.of_member(parameter, input);
    let density = of("density")?;
    Ok(match name {
        _ if density >= 1.0 => Select::All,
        _ if density <= 0.0 => Select::Nothing,
        MethodName::DareLinear | MethodName::DareTies => Select::Draw {
            probability: density,
        },
        MethodName::Della | MethodName::DellaLinear => Select::DrawByRank {
            density,
            epsilon: of("epsilon")?,
        },
        MethodName::Breadcrumbs | MethodName::BreadcrumbsTies => Select::Band {
            density,
            gamma: of("gamma")?,
        },
        _ => Select::Top { density },
    })
}

fn rescale_of(name: MethodName, given: &dyn Given) -> Result<Rescale> {
    if name.info().parameter("rescale").is_none() || !given.switch("rescale")? {
        return Ok(Rescale::No);
    }
    Ok(match given.choices().rescale_by {
        RescaleBy::Norm => Rescale::Norm {
            floor: given.shared("rescale_floor")?,
        },
        RescaleBy::Density => Rescale::Density,
        RescaleBy::Probability => Rescale::Probability,
    })
}

fn mixing(name: MethodName, given: &dyn Given, models: &[Model]) -> Result<Mixing> {
    let sign_tie = match given.choices().sign_tie {
        SignRule::Plus => SignTie::Plus,
        SignRule::Zero => SignTie::Zero,
    };
    Ok(match name {
        MethodName::Sce => Mixing::ByEnergy {
            floor: given.shared("weight_floor")?,
            sign_tie,
        },
        MethodName::RamPlusTl => Mixing::UniqueScaled {
            epsilon: given.shared("epsilon")?,
            r: given.shared("r")?,
            alpha: given.shared("alpha")?,
        },
        MethodName::Ram => Mixing::Fixed(MixKind::Unique {
            epsilon: given.shared("epsilon")?,
            factors: vec![1.0; models.len()],
        }),
        MethodName::NearSwap => Mixing::Fixed(MixKind::Near {
            t: given.shared("t")?,
        }),
        MethodName::ArceeFusion => Mixing::Fixed(MixKind::Replace),
        MethodName::ConsensusTa => Mixing::Fixed(MixKind::Sum { divisor: 1.0 }),
        MethodName::ConsensusTies => Mixing::Fixed(MixKind::Elect {
            normalize: true,
            sign_tie,
        }),
        MethodName::Ties
        | MethodName::DareTies
        | MethodName::Della
        | MethodName::BreadcrumbsTies => Mixing::Fixed(MixKind::Elect {
            normalize: given.switch("normalize")?,
            sign_tie,
        }),
        _ => {
            let sum: f64 = models.iter().map(|model| model.weight).sum();
            let divides = given.switch("normalize")? && sum.abs() >= LEAST_WEIGHT;
            Mixing::Fixed(MixKind::Sum {
                divisor: if divides { sum } else { 1.0 },
            })
        }
    })
}

fn consensus(name: MethodName, given: &dyn Given, models: &[Model]) -> Result<Option<Consensus>> {
    if !matches!(name, MethodName::ConsensusTa | MethodName::ConsensusTies) {
        return Ok(None);
    }
    let tall = models
        .iter()
        .map(|model| given.of_member("tall_lambda", model.input));
    Ok(Some(Consensus {
        agree: given.count("agree")?,
        tall: tall.collect::<Result<_>>()?,
    }))
}
