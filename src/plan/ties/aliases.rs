//! Tensors with several names, whatever the config says.

use std::collections::{BTreeMap, BTreeSet};

use super::families::{ALIASES, is_apart};
use super::{Parts, Ties, before};

/// One tensor with several names.
#[derive(Default)]
struct AliasGroup {
    /// Its stored names; the one that the others are aliases of is among them if an input stores
    /// it.
    names: BTreeSet<String>,
    both: bool,
}

/// Makes every input give such a tensor under the names that are written.
pub fn share(parts: &Parts<'_>, ties: &mut Ties) {
    if parts.configs.iter().flatten().any(is_apart) {
        return;
    }
    let mut groups: BTreeMap<String, AliasGroup> = BTreeMap::new();
    let stored = parts
        .members
        .iter()
        .flat_map(|input| parts.inputs[*input].tensors().keys());
    for name in stored {
        let Some((canonical, both)) = canonical(name) else {
            continue;
        };
        let group = groups.entry(canonical).or_default();
        group.both |= both;
        group.names.insert(name.to_string());
    }
    for (canonical, mut group) in groups {
        if parts.members.iter().any(|input| {
            parts.inputs[*input]
                .tensors()
                .contains_key(canonical.as_str())
        }) {
            group.names.insert(canonical.clone());
        }
        share_names(parts, ties, &canonical, &group);
    }
}

/// Returns the name that `name` is an alias of, and true if both are written.
fn canonical(name: &str) -> Option<(String, bool)> {
    ALIASES.iter().find_map(|alias| {
        Some((
            format!("{}{}", before(name, alias.end)?, alias.of),
            alias.both,
        ))
    })
}

fn share_names(parts: &Parts<'_>, ties: &mut Ties, canonical: &str, group: &AliasGroup) {
    let stored = |input: usize| group.stored(parts, input, canonical);
    let mut members = parts.members.iter();
    let all_alike = members.all(|input| stored(*input).len() == group.names.len());
    let mut members = parts.members.iter();
    if all_alike || !members.all(|input| has_one_shape(parts, *input, &stored(*input))) {
        return;
    }
    // The donor comes first among the members, so its name is the one that is written if it has the
    // tensor.
    let mut members = parts.members.iter();
    let Some(written) = members.find_map(|input| stored(*input).first().copied()) else {
        return;
    };
    for &input in &parts.members {
        let names = stored(input);
        let Some(first) = names.first() else { continue };
        if group.both {
            let absent = group.names.iter();
            absent
                .filter(|name| parts.shape(input, name).is_none())
                .for_each(|name| ties.give(input, name, first));
            continue;
        }
        let own = if names.contains(&written) {
            written
        } else {
            first
        };
        ties.give(input, written, own);
        for name in names
            .iter()
            .filter(|name| **name != written && **name != own)
        {
            ties.hide(
                input,
                name,
                format!("it is {own}, of which it is another name, and one is written"),
            );
        }
        if own != written {
            ties.inputs[input].hidden.insert(own.to_owned());
        }
    }
}

/// True if an input stores a tensor in the same shape under all of these names.
fn has_one_shape(parts: &Parts<'_>, input: usize, names: &[&str]) -> bool {
    let mut shapes = names.iter().map(|name| parts.shape(input, name));
    let first = shapes.next();
    shapes.all(|shape| Some(shape) == first)
}

impl AliasGroup {
    /// Returns the names under which an input stores the tensor, the canonical one first.
    fn stored(&self, parts: &Parts<'_>, input: usize, canonical: &str) -> Vec<&str> {
        let names = self.names.iter().map(String::as_str);
        let mut names: Vec<&str> = names
            .filter(|name| parts.shape(input, name).is_some())
            .collect();
        names.sort_by_key(|name| *name != canonical);
        names
    }
}
