//! What becomes of every input tensor: whatever is neither merged nor carried is named with the reason.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::error::shown_name;
use crate::recipe::Sources;

use super::job::Job;
use super::tensor::TensorPlan;

/// How many tensors a warning names before it only counts.
const NAMED: usize = 3;

/// A tensor of an input that does not go into the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Index of the input.
    pub input: usize,
    /// Its name there.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// Every input tensor that no output tensor is made of; `known` says why some are not.
pub fn dropped(job: &Job, inputs: &[Checkpoint], tensors: &[TensorPlan], known: Vec<Dropped>) -> Vec<Dropped> {
    let sources = || tensors.iter().flat_map(|tensor| &tensor.sources);
    let used: HashSet<(usize, &str)> = sources().map(|source| (source.input, source.name.as_str())).collect();
    let taking_part: HashSet<usize> = sources().map(|source| source.input).collect();
    let reasons: HashMap<(usize, String), String> =
        known.into_iter().map(|known| ((known.input, known.name), known.reason)).collect();
    let default = |input: usize| match job.document.sources {
        _ if !taking_part.contains(&input) => "the model only lends what is not weights",
        Sources::Slices(_) => "no slice takes it",
        Sources::Models(_) => "nothing is made of it",
    };
    let mut dropped = Vec::new();
    for (input, checkpoint) in inputs.iter().enumerate() {
        let left_out = checkpoint.left_out().iter().cloned();
        dropped.extend(left_out.map(|(name, reason)| Dropped { input, name, reason }));
        for name in checkpoint.tensors().keys().filter(|name| !used.contains(&(input, name.as_str()))) {
            let reason = reasons.get(&(input, name.to_string())).map_or(default(input), String::as_str);
            dropped.push(Dropped { input, name: name.to_string(), reason: reason.to_owned() });
        }
    }
    dropped
}

/// What a user should know before the merge: what is odd about the files, and what is dropped, summarised.
pub fn warnings(inputs: &[Checkpoint], dropped: &[Dropped]) -> Vec<String> {
    let mut groups: BTreeMap<(usize, &str), Vec<&str>> = BTreeMap::new();
    for tensor in dropped {
        groups.entry((tensor.input, &tensor.reason)).or_default().push(&tensor.name);
    }
    let of_files = inputs.iter().flat_map(|input| {
        let root = input.root().display();
        input.warnings().iter().map(move |warning| format!("{root}: {warning}"))
    });
    let of_tensors = groups.into_iter().map(|((input, reason), names)| {
        format!("{}: left out because {reason}: {}", inputs[input].root().display(), named(&names))
    });
    of_files.chain(of_tensors).collect()
}

/// The first of these names, and how many more there are.
pub fn named(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| shown_name(name)).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more tensors", shown.join(", ")),
    }
}
