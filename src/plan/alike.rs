//! Checks that the inputs of a merge mean the same by their rows and axes.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::likeness::{is_by_token, meanings, vocabularies};

use super::job::Job;
use super::tensor::{Action, TensorPlan};

/// The operation that errors about inputs of different meaning name.
const WHAT: &str = "cannot merge";

/// Compares the tokenizers of inputs whose rows for tokens are merged, and the configs of all
/// inputs that lend weights with the donor's, which the output gets. Returns warnings.
///
/// # Errors
///
/// [`Kind::Mismatch`](crate::error::Kind::Mismatch) with what differs, unless the job allows that.
pub fn check(job: &Job, inputs: &[Checkpoint], tensors: &[TensorPlan]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for input in lenders(tensors.iter())
        .into_iter()
        .filter(|input| *input != job.donor)
    {
        warnings.extend(meanings(
            WHAT,
            &inputs[job.donor],
            &inputs[input],
            job.allowed(),
        )?);
    }
    let by_token = lenders(
        tensors
            .iter()
            .filter(|tensor| matches!(tensor.action, Action::Merge(_)) && tensor.sources.len() > 1)
            .filter(|tensor| is_by_token(&tensor.name)),
    );
    let first = if by_token.contains(&job.donor) {
        Some(job.donor)
    } else {
        by_token.first().copied()
    };
    for input in by_token.into_iter().filter(|input| Some(*input) != first) {
        if let Some(first) = first {
            warnings.extend(vocabularies(
                WHAT,
                &inputs[first],
                &inputs[input],
                job.allowed(),
            )?);
        }
    }
    Ok(warnings)
}

/// Returns the inputs that these tensors come from.
fn lenders<'a>(tensors: impl Iterator<Item = &'a TensorPlan>) -> BTreeSet<usize> {
    tensors
        .flat_map(|tensor| &tensor.sources)
        .map(|source| source.input)
        .collect()
}
