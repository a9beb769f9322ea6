//! The shape of an output tensor when those of the inputs differ.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::recipe::Mismatch;

use super::assign::Assignment;
use super::coverage::named;
use super::job::Job;
use super::tensor::{SourcePlan, TensorPlan};

/// The most tensors that an error lists before it only counts.
const LISTED: usize = 5;

/// Hint for shapes that differ only in the sizes of their axes.
const BROUGHT_TOGETHER: &str = "merge models of one size, or say `mismatch: pad` to fill smaller tensors up, with zeros or, where a \
     method measures from a base, with its elements; `crop` to cut every axis to what all have; `skip` to take such \
     tensors from the base (`base_model:`)";

/// Hint for shapes that differ in more than that.
const TAKEN_FROM_BASE: &str = "merge models of one architecture: shapes of other numbers of axes can be neither filled up nor cut, and what is not \
     averaged is not either; `mismatch: skip` takes all tensors that differ from the base \
     (`base_model:`)";

/// Returns the common shape of `shapes` under `policy`; `None` when there is none.
///
/// Padding takes the largest size of each axis, cropping the smallest; shapes with different
/// numbers of axes have no common one.
pub fn common(shapes: &[&[u64]], policy: Mismatch) -> Option<Vec<u64>> {
    let (first, rest) = shapes.split_first()?;
    if rest.iter().all(|shape| shape == first) {
        return Some(first.to_vec());
    }
    if rest.iter().any(|shape| shape.len() != first.len()) {
        return None;
    }
    let sizes = |axis: usize| shapes.iter().map(move |shape| shape[axis]);
    match policy {
        Mismatch::Pad => (0..first.len()).map(|axis| sizes(axis).max()).collect(),
        Mismatch::Crop => (0..first.len()).map(|axis| sizes(axis).min()).collect(),
        Mismatch::Error | Mismatch::Skip => None,
    }
}

/// Refuses tensors whose shapes differ and cannot be brought together, all of them in one error.
///
/// # Errors
///
/// [`Kind::Mismatch`], unless such tensors are to be skipped.
pub fn refuse_mismatches(
    job: &Job,
    inputs: &[Checkpoint],
    assignments: &[Assignment],
) -> Result<()> {
    if job.mismatch() == Mismatch::Skip {
        return Ok(());
    }
    let unfit: Vec<Unfit> = assignments
        .iter()
        .filter_map(|assignment| Unfit::of(job, inputs, assignment))
        .collect();
    if unfit.is_empty() {
        return Ok(());
    }
    let mut described: Vec<String> = unfit
        .iter()
        .map(|tensor| tensor.described(inputs))
        .collect();
    let more = described.len().saturating_sub(LISTED);
    let tail = if more > 0 {
        format!("; and {more} more tensors")
    } else {
        String::new()
    };
    described.truncate(LISTED);
    // Recommend only what would work.
    let hint = if unfit.iter().all(|tensor| tensor.can_be_padded) {
        BROUGHT_TOGETHER
    } else {
        TAKEN_FROM_BASE
    };
    Err(Error::new(
        Kind::Mismatch,
        "inputs differ in their shapes",
        "inputs",
        described.join("; ") + &tail,
    )
    .with_hint(hint))
}

/// A tensor whose shapes cannot be brought together, with two inputs that differ.
struct Unfit<'a> {
    name: &'a str,
    one: (usize, &'a [u64]),
    other: (usize, &'a [u64]),
    can_be_padded: bool,
}

impl<'a> Unfit<'a> {
    /// Examines one output tensor; `None` when its sources fit.
    fn of(job: &Job, inputs: &'a [Checkpoint], assignment: &'a Assignment) -> Option<Self> {
        let sources = assignment.sources.iter();
        let found: Vec<_> = sources
            .filter_map(|(input, name)| {
                Some((*input, inputs[*input].tensors().get(name.as_str())?))
            })
            .collect();
        let shapes: Vec<&[u64]> = found
            .iter()
            .map(|(_, entry)| entry.shape.as_slice())
            .collect();
        // Tensors that are not averaged come from the base under every policy but `error`.
        let carried = found.iter().any(|(_, entry)| !entry.dtype.is_mergeable());
        let taken_from_base = carried && job.mismatch() != Mismatch::Error;
        if taken_from_base || common(&shapes, job.mismatch()).is_some() {
            return None;
        }
        let (first, one) = found.first()?;
        let (second, other) = found.iter().find(|(_, other)| other.shape != one.shape)?;
        Some(Self {
            name: &assignment.name,
            one: (*first, &one.shape),
            other: (*second, &other.shape),
            can_be_padded: !carried && common(&shapes, Mismatch::Pad).is_some(),
        })
    }

    fn described(&self, inputs: &[Checkpoint]) -> String {
        let root = |input: usize| inputs[input].root().display();
        format!(
            "`{}` is {:?} in {} and {:?} in {}",
            self.name.escape_debug(),
            self.one.1,
            root(self.one.0),
            self.other.1,
            root(self.other.0)
        )
    }
}

/// Returns warnings about tensors whose shapes differ and are brought together.
pub fn warnings(job: &Job, inputs: &[Checkpoint], tensors: &[TensorPlan]) -> Vec<String> {
    let mut said: Vec<(&str, Vec<&str>)> = Vec::new();
    for tensor in tensors.iter().filter(|tensor| differs(inputs, tensor)) {
        for sentence in sentences(job, tensor) {
            match said.iter_mut().find(|(known, _)| *known == sentence) {
                Some((_, names)) => names.push(&tensor.name),
                None => said.push((sentence, vec![&tensor.name])),
            }
        }
    }
    said.into_iter()
        .map(|(sentence, names)| format!("{sentence}: {}", named(&names)))
        .collect()
}

/// True if the stored shapes of a tensor differ.
fn differs(inputs: &[Checkpoint], tensor: &TensorPlan) -> bool {
    let mut shapes = tensor.sources.iter().filter_map(|source| {
        let stored = inputs[source.input].tensors().get(&source.name)?;
        Some(&stored.shape)
    });
    let first = shapes.next();
    shapes.any(|shape| Some(shape) != first)
}

/// Describes how the shapes of a tensor are brought together.
fn sentences(job: &Job, tensor: &TensorPlan) -> Vec<&'static str> {
    let lacking = |source: &SourcePlan| source.stack.lacks_some();
    let filled = |source: &&SourcePlan| lacking(source) && source.stack.window().is_some();
    let base = tensor.measured_from();
    let others = tensor.sources.iter().enumerate();
    let mut others = others.filter(|(at, _)| Some(*at) != base);
    let zeros = others.any(|(_, source)| lacking(source) && source.stack.window().is_none());
    let crop = job.mismatch() == Mismatch::Crop;
    [
        (crop, "shapes differ, and larger tensors are cut to what all have"),
        (
            zeros,
            "shapes differ, and what smaller tensors lack is filled up with zeros",
        ),
        (
            tensor.sources.iter().find(filled).is_some(),
            "shapes differ, and what smaller tensors lack is filled up with the base's elements, so that they do not \
             differ from it there",
        ),
        (
            base.is_some_and(|base| lacking(&tensor.sources[base])),
            "shapes differ, and the base is smaller: what it lacks counts as zeros, from which the others' elements are \
             differences",
        ),
    ]
    .into_iter()
    .filter_map(|(holds, sentence)| holds.then_some(sentence))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_brought_together_as_the_policy_says() {
        let pad = |shapes: &[&[u64]]| common(shapes, Mismatch::Pad);
        let crop = |shapes: &[&[u64]]| common(shapes, Mismatch::Crop);
        assert_eq!(pad(&[&[5, 4], &[3, 6]]), Some(vec![5, 6]));
        assert_eq!(pad(&[&[2, 5, 4], &[3, 3, 6]]), Some(vec![3, 5, 6]));
        assert_eq!(pad(&[&[8, 9, 3, 3], &[8, 4, 3, 3]]), Some(vec![8, 9, 3, 3]));
        assert_eq!(pad(&[&[5], &[3]]), Some(vec![5]));
        assert_eq!(pad(&[&[5], &[5, 1]]), None);
        assert_eq!(crop(&[&[5, 4], &[3, 4], &[9, 4]]), Some(vec![3, 4]));
        assert_eq!(crop(&[&[5, 4], &[3, 5]]), Some(vec![3, 4]));
        assert_eq!(
            crop(&[&[8, 9, 3, 3], &[8, 4, 3, 3]]),
            Some(vec![8, 4, 3, 3])
        );
        assert_eq!(crop(&[&[5, 4], &[20]]), None);
        assert_eq!(common(&[&[5], &[4]], Mismatch::Error), None);
        assert_eq!(common(&[&[5], &[5]], Mismatch::Error), Some(vec![5]));
    }
}
