//! Refuses inputs that differ in the names of their tensors, and suggests a remedy.

use std::collections::HashSet;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};

use super::job::Job;
use super::names::Edit;
use super::ties::Ties;

/// The most names that an error lists before it only counts.
const LISTED: usize = 5;

/// Two inputs are different models if each has more than this many times the names that both share.
const FEW: usize = 10;

const WHAT: &str = "inputs differ in their tensors";

/// The inputs and the names that they give.
pub struct Inputs<'a> {
    /// The job.
    pub job: &'a Job,
    /// The inputs.
    pub inputs: &'a [Checkpoint],
    /// The names under which they give their tensors.
    pub ties: &'a Ties,
}

/// A renaming that makes two inputs agree.
struct Renaming {
    input: usize,
    edit: Edit,
    /// Number of names that only one of the two has, even after renaming.
    left: usize,
}

impl Inputs<'_> {
    /// Returns the names that `input` gives.
    pub fn names(&self, input: usize) -> impl Iterator<Item = &str> {
        let untied = self.job.untied_head(input);
        self.ties
            .names(self.inputs, input)
            .chain(untied.filter(move |name| !self.inputs[input].tensors().contains_key(*name)))
    }

    /// Returns the name under which `input` stores what it gives as `name`; `name` itself when it
    /// has no such tensor.
    pub fn stored(&self, input: usize, name: &str) -> String {
        self.ties
            .stored(self.inputs, input, name)
            .unwrap_or(name)
            .to_owned()
    }

    /// Refuses tensors that inputs lack, each given by the index of the input and the name there.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`], unless there are none.
    pub fn refuse(&self, missing: &[(usize, String)]) -> Result<()> {
        let Some((input, _)) = missing.first() else {
            return Ok(());
        };
        let names: Vec<&str> = missing
            .iter()
            .filter(|(other, _)| other == input)
            .map(|(_, name)| name.as_str())
            .collect();
        let other = if *input == self.job.donor {
            self.holder(*input, names[0])
        } else {
            Some(self.job.donor)
        };
        if let Some(renaming) = other.and_then(|other| self.renaming(*input, other)) {
            return Err(self.differ_by_a_part(*input, other.unwrap_or(*input), &renaming));
        }
        let cause = format!(
            "{} not there, though other inputs have what to merge it with",
            listed(&names)
        );
        let hint = "merge models of one architecture, or say `missing: common` to merge such tensors over the models that \
                    have them, `missing: base` to take them from the base";
        Err(Error::new(Kind::Mismatch, WHAT, self.root(*input), cause).with_hint(hint))
    }

    /// Refuses inputs whose names equal the donor's except for a part, and inputs that share almost
    /// no names with it: the output would be two models side by side.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`].
    pub fn refuse_strangers(&self, members: &[usize]) -> Result<()> {
        let Some(reference) = members
            .iter()
            .copied()
            .find(|member| *member == self.job.donor)
            .or(members.first().copied())
        else {
            return Ok(());
        };
        let known: HashSet<&str> = self.names(reference).collect();
        for &input in members.iter().filter(|member| **member != reference) {
            let (mut count, mut shared) = (0, 0);
            for name in self.names(input) {
                count += 1;
                shared += usize::from(known.contains(name));
            }
            if shared == count || shared == known.len() {
                continue;
            }
            if let Some(renaming) = self.renaming(input, reference) {
                return Err(self.differ_by_a_part(input, reference, &renaming));
            }
            if shared * FEW < count.min(known.len()) {
                let other = self.root(reference);
                let cause = format!(
                    "of its {count} tensors {shared} {} in {other}, so that two models would stand side by side in the output",
                    if shared == 1 { "is" } else { "are" }
                );
                return Err(
                    Error::new(Kind::Mismatch, WHAT, self.root(input), cause).with_hint(
                        "merge models of one architecture; where only names differ, rename them",
                    ),
                );
            }
        }
        Ok(())
    }

    /// Finds the renaming of one input that makes the two agree: of `input` where that does not
    /// wrap its modules, else of `other`.
    fn renaming(&self, input: usize, other: usize) -> Option<Renaming> {
        let (ours, theirs): (HashSet<&str>, HashSet<&str>) =
            (self.names(input).collect(), self.names(other).collect());
        let own: Vec<&str> = self
            .names(input)
            .filter(|name| !theirs.contains(name))
            .collect();
        let wanted: Vec<&str> = self
            .names(other)
            .filter(|name| !ours.contains(name))
            .collect();
        let here = Edit::between(&own, &wanted).filter(|(edit, _)| !edit.wraps());
        let found = here
            .map(|found| (input, found))
            .or_else(|| Some((other, Edit::between(&wanted, &own)?)));
        let (renamed, (edit, made)) = found?;
        Some(Renaming {
            input: renamed,
            edit,
            left: own.len() + wanted.len() - 2 * made,
        })
    }

    /// Makes the error that the names of `input` equal those of `other` except for a part, with the
    /// flag to type as its hint.
    fn differ_by_a_part(&self, input: usize, other: usize, renaming: &Renaming) -> Error {
        let Renaming {
            input: renamed,
            edit,
            left,
        } = renaming;
        let against = if *renamed == input { other } else { input };
        let cause = format!(
            "its names are those of {} but for {}",
            self.root(against),
            edit.words()
        );
        let (from, to) = edit.rule();
        let model = self.job.document.models()[*renamed].to_string();
        let rest = match left {
            0 => String::new(),
            1 => {
                "\n1 tensor is in one of the two only even then: `missing` says what becomes of it"
                    .to_owned()
            }
            left => {
                format!(
                    "\n{left} tensors are in one of the two only even then: `missing` says what becomes of those"
                )
            }
        };
        let hint = format!(
            "rename them: --rename '{}:{from}={to}', or in a recipe\n  rename: [{{model: {model:?}, from: '{from}', to: '{to}'}}]{rest}",
            renamed + 1,
        );
        Error::new(Kind::Mismatch, WHAT, self.root(*renamed), cause).with_hint(hint)
    }

    /// Finds another input that has the tensor `name`.
    fn holder(&self, input: usize, name: &str) -> Option<usize> {
        let has = |other: &usize| self.ties.stored(self.inputs, *other, name).is_some();
        (0..self.inputs.len())
            .filter(|other| *other != input)
            .find(has)
    }

    fn root(&self, input: usize) -> std::path::Display<'_> {
        self.inputs[input].root().display()
    }
}

/// Lists the first of `names`, counts the rest, and adds the verb.
fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(LISTED)
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    let verb = if names.len() == 1 { " is" } else { " are" };
    match names.len().saturating_sub(LISTED) {
        0 => format!("{}{verb}", shown.join(", ")),
        more => format!("{} and {more} more{verb}", shown.join(", ")),
    }
}
