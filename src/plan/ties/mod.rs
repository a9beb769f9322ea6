//! Tensors that have several names: heads that the config ties to the embeddings, and tensors that
//! families of models share whatever the config says.
//!
//! [`Ties::of`] decides under which names such a tensor is written, and which stored tensor each
//! input gives for each name. A head that some inputs tie and others store separately is written
//! for all; the inputs that tie it give their embeddings.

mod aliases;
mod families;
mod heads;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::Result;

use super::coverage::Dropped;
use super::job::Job;

pub use families::TEXT_CONFIGS;

/// The names under which the inputs give their tensors.
#[derive(Debug, Default)]
pub struct Ties {
    inputs: Vec<Given>,
    /// True if some inputs tie a head that is written as a tensor of its own.
    pub untied: bool,
    /// True if a stored head is not written because all inputs tie it.
    pub tied: bool,
    /// Notes for the user.
    pub notes: Vec<String>,
    /// Tensors that are read under another name, each with the reason.
    pub dropped: Vec<Dropped>,
}

/// The differences between the names of one input and those in its files.
#[derive(Debug, Default, Clone)]
struct Given {
    /// Each name that it gives, and the name under which it is stored.
    aliases: BTreeMap<String, String>,
    /// Stored names that it does not give.
    hidden: BTreeSet<String>,
}

impl Ties {
    /// Finds the tensors that the `inputs` of `job` tie.
    ///
    /// # Errors
    ///
    /// Fails when a config cannot be read, or when a head that some inputs tie would compute
    /// something else if it were untied.
    pub fn of(job: &Job, inputs: &[Checkpoint]) -> Result<Self> {
        let mut ties = Self {
            inputs: vec![Given::default(); inputs.len()],
            ..Self::default()
        };
        let models = job.document.models();
        let members: BTreeSet<usize> = (0..job.document.slice_count())
            .flat_map(|slice| job.document.inputs(slice))
            .filter_map(|input| models.iter().position(|model| *model == input.model))
            .collect();
        // The donor comes first: its names are preferred.
        let mut members: Vec<usize> = members.into_iter().collect();
        members.sort_by_key(|member| *member != job.donor);
        let configs = inputs
            .iter()
            .map(Checkpoint::config)
            .collect::<Result<Vec<_>>>()?;
        let parts = Parts {
            job,
            inputs,
            configs,
            members,
        };
        aliases::share(&parts, &mut ties);
        heads::decide(&parts, &mut ties)?;
        Ok(ties)
    }

    /// Returns the name under which `input` stores what it gives as `name`; `None` when it has no
    /// such tensor.
    pub fn stored<'a>(
        &'a self,
        inputs: &[Checkpoint],
        input: usize,
        name: &'a str,
    ) -> Option<&'a str> {
        let given = &self.inputs[input];
        match given.aliases.get(name) {
            Some(stored) => Some(stored),
            None => (inputs[input].tensors().contains_key(name) && !given.hidden.contains(name))
                .then_some(name),
        }
    }

    /// Returns the names of all tensors that `input` gives: first as they lie in its files, then
    /// those that it stores under other names.
    pub fn names<'a>(
        &'a self,
        inputs: &'a [Checkpoint],
        input: usize,
    ) -> impl Iterator<Item = &'a str> {
        let (given, tensors) = (&self.inputs[input], inputs[input].tensors());
        let own = tensors.keys().map(|name| name.as_str());
        let own =
            own.filter(|name| !given.hidden.contains(*name) || given.aliases.contains_key(*name));
        own.chain(
            given
                .aliases
                .keys()
                .map(String::as_str)
                .filter(|name| !tensors.contains_key(*name)),
        )
    }

    /// Describes what of this decides the output besides the written names; `None` when each input
    /// gives what it stores.
    pub fn describe(&self) -> Option<Value> {
        let given = |given: &Given| json!({ "aliases": given.aliases, "hidden": given.hidden });
        let any = self
            .inputs
            .iter()
            .any(|given| !given.aliases.is_empty() || !given.hidden.is_empty());
        any.then(|| json!({ "inputs": self.inputs.iter().map(given).collect::<Vec<_>>(), "untied": self.untied }))
    }

    /// Makes `input` give its stored tensor `stored` as `name`.
    fn give(&mut self, input: usize, name: &str, stored: &str) {
        if name != stored {
            self.inputs[input]
                .aliases
                .insert(name.to_owned(), stored.to_owned());
        }
    }

    /// Leaves the stored tensor `name` of `input` out.
    fn hide(&mut self, input: usize, name: &str, reason: String) {
        if self.inputs[input].hidden.insert(name.to_owned()) {
            self.dropped.push(Dropped {
                input,
                name: name.to_owned(),
                reason,
                is_tied: true,
            });
        }
    }
}

/// The inputs that are merged, and their configs.
struct Parts<'a> {
    job: &'a Job,
    inputs: &'a [Checkpoint],
    configs: Vec<Option<Value>>,
    /// The inputs whose tensors are merged, the donor first.
    members: Vec<usize>,
}

impl Parts<'_> {
    fn shape(&self, input: usize, name: &str) -> Option<&[u64]> {
        self.inputs[input]
            .tensors()
            .get(name)
            .map(|entry| entry.shape.as_slice())
    }

    fn root(&self, input: usize) -> String {
        self.inputs[input].root().display().to_string()
    }
}

/// Returns the part of `name` before `end`, if `name` ends in these words.
fn before<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end)
        .filter(|begin| begin.is_empty() || begin.ends_with('.'))
}
