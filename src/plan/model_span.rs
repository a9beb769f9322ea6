//! Checks that all tensors are combined alike if one Gram matrix is taken over the whole model.

use crate::error::{Error, Kind, Result};
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
    let refuse = |subject: &TensorPlan, cause: String, hint: &str| {
        Err(Error::new(
            Kind::Recipe,
            "cannot take one mean over the model",
            &subject.name,
            cause,
        )
        .with_hint(hint))
    };
    if job.nan == NanPolicy::Base {
        let hint = "choose `granularity: tensor` or `granularity: row`, or `nan: propagate`";
        return refuse(
            first,
            "`nan: base` replaces single tensors, and all are one point here".into(),
            hint,
        );
    }
    let (inputs, parameters) = (inputs_of(first), parameters_of(first));
    for tensor in shared {
        if inputs_of(tensor) != inputs {
            let cause = format!(
                "it is in other models than {}, and all tensors together are one point",
                first.name
            );
            return refuse(
                tensor,
                cause,
                "merge models that have the same tensors, or say `missing: base`",
            );
        }
        if parameters_of(tensor) != parameters {
            let cause = format!(
                "its parameters differ from those of {}, and there is one mean only",
                first.name
            );
            return refuse(
                tensor,
                cause,
                "give every parameter as one number, without filters and gradients",
            );
        }
    }
    Ok(())
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
