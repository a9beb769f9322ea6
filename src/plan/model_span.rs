//! Checks that all tensors are combined alike if one Gram matrix is taken over the whole model.

use crate::checkpoint::Name;
use crate::error::{Context, Kind, Result};
use crate::recipe::NanPolicy;

use super::assign::Span;
use super::job::Job;
use super::schedule::is_measured;
use super::tensor::{Action, TensorPlan};

/// Checks that the tensors which share one Gram matrix come from the same inputs and are merged
/// with the same parameters.
///
/// # Errors
///
/// [`Kind::Recipe`], naming two tensors that differ, or for `nan: base`, which replaces single
/// tensors.
pub fn check(job: &Job, tensors: &[TensorPlan]) -> Result<()> {
    let mut shared = tensors
        .iter()
        .filter(|tensor| tensor.span == Span::Model && is_measured(tensor));
    let Some(first) = shared.next() else {
        return Ok(());
    };

    if job.nan == NanPolicy::Base {
        let hint = "choose `granularity: tensor` or `granularity: row`, or `nan: propagate`";
        let cause = "`nan: base` replaces single tensors, and all are one point here";
        return context(first).with_hint(hint).fail(cause);
    }
    let (inputs, parameters) = (inputs_of(first), parameters_of(first));
    for tensor in shared {
        if inputs_of(tensor) != inputs {
            let cause = format!(
                "it is in other models than {}, and all tensors together are one point",
                first.name
            );
            let hint = "merge models that have the same tensors, or say `missing: base`";
            return context(tensor).with_hint(hint).fail(cause);
        }
        if parameters_of(tensor) != parameters {
            let one = match first.elementwise() {
                Some(_) => "threshold",
                None => "mean",
            };
            let cause = format!(
                "its parameters differ from those of {}, and there is one {one} only",
                first.name
            );
            let hint = "give every parameter as one number, without filters and gradients";
            return context(tensor).with_hint(hint).fail(cause);
        }
    }
    Ok(())
}

/// The failures of taking one mean or threshold over the model, on one of its tensors.
fn context(tensor: &TensorPlan) -> Context<&Name> {
    let doing = match tensor.elementwise() {
        Some(_) => "cannot take one threshold over the model",
        None => "cannot take one mean over the model",
    };
    Context::new(Kind::Recipe, doing, &tensor.name)
}

fn inputs_of(tensor: &TensorPlan) -> Vec<usize> {
    tensor.sources.iter().map(|source| source.input).collect()
}

/// Returns the debug form of the method, which shows every parameter.
fn parameters_of(tensor: &TensorPlan) -> String {
    match &tensor.action {
        Action::Merge(method) => format!("{method:?}"),
        Action::Carry(_) => String::new(),
    }
}
