//! Changes to the written config for tensors that its model lacks: layers and biases of other
//! models. Where the right change cannot be told, the merge is refused.

mod biases;
mod layers;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::recipe::{Missing, Sources};

use super::assign::Assignment;
use super::missing::Inputs;

/// The most names that a message shows before it only counts.
const NAMED: usize = 3;

/// A value that the config must state.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    /// The keys that lead to the mapping that holds it; none for the top.
    pub path: Vec<String>,
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Value,
}

/// A longer version of the donor's only stack of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deeper {
    /// The number of layers in the donor.
    pub before: usize,
    /// For each written layer, the input that determines it, and its number there.
    pub origins: Vec<(usize, usize)>,
}

/// The changes to the config.
#[derive(Debug, Default)]
pub struct Agreed {
    /// The stack of layers, where it is longer than the donor's.
    pub deeper: Option<Deeper>,
    /// Single values.
    pub edits: Vec<Edit>,
}

/// A tensor that is merged over fewer inputs than there are, because the others lack it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partial {
    /// Its name.
    pub name: String,
    /// The inputs that lack it.
    pub lacking: Vec<usize>,
}

impl Agreed {
    /// Determines the changes to the donor's config for the written tensors, `assignments`.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] for layers and biases that the config lacks and cannot be made to
    /// describe.
    pub fn of(given: &Inputs<'_>, assignments: &[Assignment], partial: &[Partial]) -> Result<Self> {
        let donor = given.job.donor;
        let foreign = partial.iter().any(|tensor| tensor.lacking.contains(&donor));
        let whole = matches!(given.job.document.sources, Sources::Models(_));
        let Some(config) = given.inputs[donor].config()? else {
            return Ok(Self::default());
        };
        if !whole || !foreign || given.job.missing() != Missing::Common {
            return Ok(Self::default());
        }
        let mut agreed = Self::default();
        layers::agree(given, &config, assignments, &mut agreed)?;
        biases::agree(given, &config, assignments, &mut agreed)?;
        Ok(agreed)
    }
}

/// Returns a warning for each set of inputs that lack tensors which are merged over the others.
pub fn warnings(given: &Inputs<'_>, partial: &[Partial]) -> Vec<String> {
    let mut groups: BTreeMap<&[usize], Vec<&str>> = BTreeMap::new();
    for tensor in partial {
        groups
            .entry(&tensor.lacking)
            .or_default()
            .push(&tensor.name);
    }
    groups
        .into_iter()
        .map(|(lacking, names)| {
            let roots: Vec<String> = lacking
                .iter()
                .map(|input| given.inputs[*input].root().display().to_string())
                .collect();
            let lack = if roots.len() == 1 { "lacks" } else { "lack" };
            format!(
                "merged over fewer models, because {} {lack} {}",
                named(&roots),
                listed(&names)
            )
        })
        .collect()
}

fn named(roots: &[String]) -> String {
    match roots {
        [one, two, three, _, rest @ ..] => {
            format!("{one}, {two}, {three} and {} more", rest.len() + 1)
        }
        _ => roots.join(", "),
    }
}

fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMED)
        .map(|name| name.escape_debug().to_string())
        .collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more tensors", shown.join(", ")),
    }
}

/// Makes the error about tensors that the donor's config cannot describe.
fn refusal(given: &Inputs<'_>, cause: String) -> Error {
    let subject = given.inputs[given.job.donor].root().join("config.json");
    Error::new(Kind::Mismatch, "cannot make config and tensors agree", subject.display(), cause).with_hint(
        "choose the model that has them as the base, whose config is written (--base N, `base_model`); or say `missing: base` \
         to leave out what the base lacks",
    )
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).expect("32 bits fit a usize")
}
