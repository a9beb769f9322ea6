//! Accounts for every input tensor: those neither merged nor carried are listed with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::shown_name;
use crate::recipe::Sources;

use super::job::Job;
use super::tensor::TensorPlan;

/// The most tensors that a warning names before it only counts.
const NAMED: usize = 3;

/// A tensor of an input that does not go into the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Index of the input.
    pub input: usize,
    /// Its name there.
    pub name: String,
    /// The reason.
    pub reason: String,
    /// True if nothing is lost: its values are those of another tensor, which is written.
    #[serde(skip)]
    pub is_tied: bool,
}

impl Dropped {
    /// A tensor of which nothing is made.
    fn unused(input: usize, name: &str, reason: &str) -> Self {
        Self {
            input,
            name: name.to_owned(),
            reason: reason.to_owned(),
            is_tied: false,
        }
    }

    /// A tensor that is left out because it is another one.
    fn tied(input: usize, name: String, reason: String) -> Self {
        Self {
            input,
            name,
            reason,
            is_tied: true,
        }
    }
}

/// Returns the input tensors that no output tensor is made of; `known` has the reasons for some of
/// them.
pub fn dropped(
    job: &Job,
    inputs: &[Checkpoint],
    tensors: &[TensorPlan],
    known: Vec<Dropped>,
) -> Vec<Dropped> {
    let sources = tensors.iter().flat_map(|tensor| &tensor.sources);
    let used = sources.map(|source| (source.input, source.name.as_str()));
    let used: HashSet<(usize, &str)> = used.collect();
    let taking_part: HashSet<usize> = used.iter().map(|(input, _)| *input).collect();
    let reasons: HashMap<(usize, &str), &Dropped> = known
        .iter()
        .map(|known| ((known.input, known.name.as_str()), known))
        .collect();
    let mut dropped = Vec::new();
    for (input, checkpoint) in inputs.iter().enumerate() {
        let default = match job.document.sources {
            _ if !taking_part.contains(&input) => "the model only lends what is not weights",
            Sources::Slices(_) => "no slice takes it",
            Sources::Models(_) => "nothing is made of it",
        };
        let left_out = checkpoint.left_out().iter().cloned();
        dropped.extend(left_out.map(|(name, reason)| Dropped::tied(input, name, reason)));
        let names = checkpoint.tensors().keys().map(|name| name.as_str());
        for name in names.filter(|name| !used.contains(&(input, *name))) {
            dropped.push(match reasons.get(&(input, name)) {
                Some(known) => Dropped::clone(known),
                None => Dropped::unused(input, name, default),
            });
        }
    }
    dropped
}

/// Returns the warnings to show before the merge: oddities of the files, and a summary of dropped
/// tensors.
pub fn warnings(inputs: &[Checkpoint], dropped: &[Dropped]) -> Vec<String> {
    let of_files = inputs.iter().flat_map(|input| {
        let root = input.root().display();
        input
            .warnings()
            .iter()
            .map(move |warning| format!("{root}: {warning}"))
    });
    of_files.chain(in_lines(inputs, dropped, false)).collect()
}

/// Says which tensors are not written because others have the same values.
pub fn notes(inputs: &[Checkpoint], dropped: &[Dropped]) -> Vec<String> {
    in_lines(inputs, dropped, true)
}

/// Writes one line for each input and reason, for the tied tensors or for the others.
fn in_lines(inputs: &[Checkpoint], dropped: &[Dropped], tied: bool) -> Vec<String> {
    let mut groups: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
    for tensor in dropped.iter().filter(|tensor| tensor.is_tied == tied) {
        groups
            .entry((tensor.input, &tensor.reason))
            .or_default()
            .push(&tensor.name);
    }
    groups
        .into_iter()
        .map(|((input, reason), names)| {
            format!(
                "{}: left out because {reason}: {}",
                inputs[input].root().display(),
                named(&names)
            )
        })
        .collect()
}

/// Lists the first of these names and counts the rest.
pub fn named(names: &[&str]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| shown_name(name))
        .collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more tensors", shown.join(", ")),
    }
}
