//! Tensors with several names, whatever the config says.

use std::collections::{BTreeMap, BTreeSet};

use super::families::{ALIASES, is_apart};
use super::{Parts, Ties, before};

/// One tensor with several names.
#[derive(Default)]
struct Group {
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
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
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
        settle(parts, ties, &canonical, &group);
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

fn settle(parts: &Parts<'_>, ties: &mut Ties, canonical: &str, group: &Group) {
    let has = |input: usize, name: &str| parts.shape(input, name).is_some();
    let stored = |input: usize| -> Vec<&str> {
        let mut names: Vec<&str> = group
            .names
            .iter()
            .map(String::as_str)
            .filter(|name| has(input, name))
            .collect();
        names.sort_by_key(|name| *name != canonical);
        names
    };
    let all_alike = parts
        .members
        .iter()
        .all(|input| stored(*input).len() == group.names.len());
    let one_shape = |input: &usize| {
        let names = stored(*input);
        names
            .iter()
            .all(|name| parts.shape(*input, name) == parts.shape(*input, names[0]))
    };
    if all_alike || !parts.members.iter().all(one_shape) {
        return;
    }
    // The donor comes first among the members, so its name is the one that is written if it has the
    // tensor.
    let Some(written) = parts
        .members
        .iter()
        .find_map(|input| stored(*input).first().copied())
    else {
        return;
    };
    for &input in &parts.members {
        let names = stored(input);
        let Some(first) = names.first() else { continue };
        if group.both {
            group
                .names
                .iter()
                .filter(|name| !has(input, name))
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
