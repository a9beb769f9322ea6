//! The combination of inputs in words: models, method, weights, dtypes.

use serde::Serialize;

use crate::dtype::Dtype;
use crate::error::shown_name;
use crate::plan::Plan;
use crate::plan::tensor::{Action, TensorPlan};
use crate::recipe::Setting;

use super::words::{counted, listed};

/// The combination of a merge's inputs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Combined {
    /// The method's name in a recipe.
    pub method: &'static str,
    /// The models, in the order of the recipe.
    pub models: Vec<CombinedModel>,
    /// The dtypes of the merged tensors as config files name them, those of most bytes first.
    pub dtypes: Vec<String>,
    /// True if the output is one model written anew, not a merge.
    #[serde(skip)]
    rewritten: bool,
}

/// One model of a merge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CombinedModel {
    /// The path that it was read from.
    pub model: String,
    /// Its weight: a number, or a gradient or conditions as in the recipe; `None` if the method
    /// takes none or none was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<Setting>,
    /// True if it is the base, which the others are measured from.
    pub base: bool,
}

impl Combined {
    /// Reads the combination off a plan.
    pub fn of(plan: &Plan) -> Self {
        let document = &plan.job.document;
        let inputs: Vec<_> = (0..document.slice_count())
            .flat_map(|slice| document.inputs(slice))
            .collect();
        let models = document
            .models()
            .into_iter()
            .zip(&plan.inputs)
            .map(|(model, checkpoint)| {
                let own = inputs
                    .iter()
                    .find(|input| input.model == model)
                    .and_then(|input| input.parameters);
                CombinedModel {
                    model: shown_name(&checkpoint.root().display().to_string()),
                    weight: own.and_then(|own| own.get("weight")).cloned(),
                    base: document.base_model.as_ref() == Some(model),
                }
            });
        Self {
            method: document.method.info().name,
            models: models.collect(),
            dtypes: dtypes(plan),
            rewritten: plan.job.rewritten,
        }
    }

    /// Returns `3 models by karcher`, or the one model that is written anew.
    pub fn headline(&self) -> String {
        match self.models.as_slice() {
            [one] if self.rewritten => one.model.clone(),
            models => format!(
                "{} by {}",
                counted(models.len() as u64, "model"),
                self.method
            ),
        }
    }

    /// Returns each model with its weight; `None` if no model was given one.
    pub fn weights(&self) -> Option<String> {
        self.models
            .iter()
            .any(|model| model.weight.is_some())
            .then(|| {
                let models = self
                    .models
                    .iter()
                    .map(CombinedModel::weighed)
                    .collect::<Vec<_>>();
                models.join(", ")
            })
    }

    /// Returns the dtypes of the merged tensors, in words.
    pub fn dtypes(&self) -> String {
        listed(&self.dtypes)
    }
}

impl CombinedModel {
    fn weighed(&self) -> String {
        let role = if self.base { " (base)" } else { "" };
        match &self.weight {
            None => format!("{}{role}", self.model),
            Some(Setting::Number(number)) => format!("{} {number}{role}", self.model),
            Some(_) => format!("{} by layer or tensor{role}", self.model),
        }
    }
}

/// Returns the dtypes of the tensors that are merged, those of most bytes first.
fn dtypes(plan: &Plan) -> Vec<String> {
    let merged = plan
        .tensors
        .iter()
        .filter(|tensor| matches!(tensor.action, Action::Merge(_)));
    let sizes = Dtype::MERGEABLE.into_iter().map(|dtype| {
        let of_it = merged.clone().filter(|tensor| tensor.dtype == dtype);
        (dtype, of_it.map(TensorPlan::output_bytes).sum::<u64>())
    });
    let mut sizes: Vec<(Dtype, u64)> = sizes.collect();
    sizes.retain(|(_, bytes)| *bytes > 0);
    sizes.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
    sizes
        .into_iter()
        .map(|(dtype, _)| dtype.torch_name().unwrap_or(dtype.name()).to_owned())
        .collect()
}
