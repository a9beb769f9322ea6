//! The facts about the written weights for the config: dtype, rows of the embeddings, layers.

use serde_json::Value;

use crate::checkpoint::quantised::{Stored, is_code};
use crate::error::Result;
use crate::plan::Plan;
use crate::plan::agree::Deeper;
use crate::recipe::{Layers, Sources};

use super::config::{Restacked, Truth};

/// Collects the facts about the output of `plan`.
///
/// # Errors
///
/// When the config of an input cannot be read.
pub fn of(plan: &Plan) -> Result<Truth> {
    let untied = plan.job.is_folded()? || plan.ties.untied;
    let tied = plan.ties.tied && !untied;
    let layers = match &plan.agreed.deeper {
        Some(Deeper { before, origins }) => Some(Restacked {
            before: *before,
            origins: origins.clone(),
            configs: configs(plan)?,
        }),
        None => restacked(plan)?,
    };
    let edits = plan.agreed.edits.clone();
    Ok(Truth {
        dtype: plan.main_dtype(),
        vocab_rows: plan.vocab_rows(),
        layers,
        untied,
        tied,
        edits,
        plain: is_plain(plan),
    })
}

/// True if the donor's statements about quantised weights do not hold for the output: the weights
/// are not stored as stated, or raw codes were converted to another type.
fn is_plain(plan: &Plan) -> bool {
    let donor = plan.job.donor;
    match plan.inputs[donor].stored() {
        Stored::Plain | Stored::Stale(_) => true,
        Stored::RoundedInUse => false,
        Stored::Codes(_) => plan.tensors.iter().any(|tensor| {
            let source = tensor.sources.iter().find(|source| source.input == donor);
            source.is_some_and(|source| is_code(source.dtype) && source.dtype != tensor.dtype)
        }),
    }
}

/// Returns the origin of the layers, unless they are the donor's layers in order.
fn restacked(plan: &Plan) -> Result<Option<Restacked>> {
    let Sources::Slices(slices) = &plan.job.document.sources else {
        return Ok(None);
    };
    let document = &plan.job.document;
    let models = document.models();
    let mut origins = Vec::new();
    for slice in 0..slices.len() {
        let inputs = document.inputs(slice);
        // The donor decides the kind of a slice's layers; without it, the first model does.
        let donor = models.get(plan.job.donor);
        let chosen = inputs
            .iter()
            .find(|input| Some(&input.model) == donor)
            .or(inputs.first());
        let Some(input) = chosen else { continue };
        let Some(model) = models.iter().position(|model| *model == input.model) else {
            continue;
        };
        let range = input.layers.map_or(0..layer_count(plan, model), |range| {
            to_usize(range.start)..to_usize(range.end)
        });
        origins.extend(range.map(|layer| (model, layer)));
    }
    let before = layer_count(plan, plan.job.donor);
    if origins
        .iter()
        .copied()
        .eq((0..before).map(|layer| (plan.job.donor, layer)))
    {
        return Ok(None);
    }
    Ok(Some(Restacked {
        before,
        origins,
        configs: configs(plan)?,
    }))
}

fn configs(plan: &Plan) -> Result<Vec<Option<Value>>> {
    plan.inputs.iter().map(|input| input.config()).collect()
}

fn layer_count(plan: &Plan, input: usize) -> usize {
    let layers = Layers::find(
        plan.inputs[input]
            .tensors()
            .keys()
            .map(|name| name.as_str()),
    );
    layers
        .stacks()
        .next()
        .map_or(0, |(_, count)| to_usize(count))
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit a usize")
}
