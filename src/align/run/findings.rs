//! Findings for the report, derived from steps and a transform.

use crate::align::matching::{MatchOptions, Step};
use crate::symmetry::{Element, Group, Symmetries, Transform};

use super::{Cosines, Findings, RootFound};

/// Collects the findings of a run from all its steps, in their order.
pub fn of(
    symmetries: &Symmetries,
    options: &MatchOptions,
    transform: &Transform,
    sweeps: usize,
    steps: &[Step],
    cosines: [Vec<Option<f64>>; 2],
) -> Findings {
    let names: Vec<&str> = super::pair::acted_on(symmetries).collect();
    let mut roots: Vec<(usize, RootFound)> = Vec::new();
    for step in steps {
        match roots.iter_mut().find(|(root, _)| *root == step.root) {
            Some((_, known)) => known.proof = step.proof,
            None => {
                let tree = tree_of(symmetries, step.root);
                let sums = sums_of(symmetries, &tree, &names, &cosines);
                let (units, moved) = moved_units(symmetries, transform, &tree);
                let group = &symmetries.groups[step.root];
                let found = RootFound {
                    name: group.name.clone(),
                    kind: group.key.clone(),
                    units,
                    moved,
                    before: sums[0],
                    after: sums[1],
                    proof: step.proof,
                    activations: None,
                };
                roots.push((step.root, found));
            }
        }
    }
    let [before, after] = cosines;
    let tensors = names.into_iter().zip(before.into_iter().zip(after));
    let tensors = tensors.map(|(name, (before, after))| Cosines {
        tensor: name.to_owned(),
        before,
        after,
    });
    Findings {
        options: options.clone(),
        sweeps,
        losses: None,
        roots: roots.into_iter().map(|(_, root)| root).collect(),
        tensors: tensors.collect(),
    }
}

/// Sums the cosines of all tensors on which groups of a tree act, before and after. A step may use
/// only a part of the tensors, or weight them by their norms; the report always shows these sums.
fn sums_of(
    symmetries: &Symmetries,
    tree: &[usize],
    names: &[&str],
    cosines: &[Vec<Option<f64>>; 2],
) -> [f64; 2] {
    let acts = |name: &str| tree.iter().any(|group| acts_on(symmetries, *group, name));
    cosines.each_ref().map(|cosines| {
        let own = names.iter().zip(cosines).filter(|(name, _)| acts(name));
        own.filter_map(|(_, cosine)| *cosine).sum()
    })
}

/// Returns the most bytes that a transform of these groups can take.
pub fn largest_transform_bytes(symmetries: &Symmetries) -> u64 {
    let groups = symmetries.groups.iter();
    groups.map(largest_element_bytes).sum::<usize>() as u64
}

fn largest_element_bytes(group: &Group) -> usize {
    let angles = match group.pairs {
        Some(_) => group.pair_count(),
        None => 0,
    };
    let map = match group.may(crate::symmetry::Allowed::Orthogonal) {
        true => 8 * group.units * group.units,
        false => 0,
    };
    let numbers = group.copies * (4 * group.units + group.sign_count() + 8 * angles);
    size_of::<Element>() + map + numbers
}

/// Returns a root and the groups within it.
fn tree_of(symmetries: &Symmetries, root: usize) -> Vec<usize> {
    let groups = &symmetries.groups;
    (0..groups.len())
        .filter(|group| symmetries.outermost(*group) == root)
        .collect()
}

fn acts_on(symmetries: &Symmetries, group: usize, tensor: &str) -> bool {
    let tensor = &symmetries.tensors[tensor];
    let by_name = tensor
        .index
        .as_ref()
        .is_some_and(|index| index.group == group);
    by_name || tensor.axes.iter().any(|axis| axis.names(group))
}

/// Counts the units of these groups, and those of them that change places or signs, or are turned.
fn moved_units(symmetries: &Symmetries, transform: &Transform, tree: &[usize]) -> (usize, usize) {
    tree.iter().fold((0, 0), |(units, moved), &group| {
        let (own, element) = (&symmetries.groups[group], &transform.elements()[group]);
        let all = (0..own.copies).flat_map(|copy| (0..own.units).map(move |unit| (copy, unit)));
        let count = all
            .filter(|&(copy, unit)| moves(own, element, copy, unit))
            .count();
        (units + own.copies * own.units, moved + count)
    })
}

fn moves(group: &Group, element: &Element, copy: usize, unit: usize) -> bool {
    let at = group.place_in_pairs(unit).map_or(unit, |(pair, _)| pair);
    let is_turned = group.pairs.is_some() && element.angle_of(group, copy, at) != 0.0;
    element.map.is_some()
        || element.unit(group, copy, unit) != unit
        || element.is_negative(group, copy, at)
        || is_turned
}
