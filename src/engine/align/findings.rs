//! From steps and a transform to what is reported of them.

use crate::align::matching::{Options, Step};
use crate::align::{Element, Group, Symmetries, Transform};
use crate::report::{Cosines, Findings, RootFound};

/// What the steps of a run have found, all of them in their order.
pub fn of(
    symmetries: &Symmetries,
    options: &Options,
    transform: &Transform,
    sweeps: usize,
    steps: &[Step],
    cosines: [Vec<Option<f64>>; 2],
) -> Findings {
    let mut roots: Vec<(usize, RootFound)> = Vec::new();
    for step in steps {
        if let Some((_, known)) = roots.iter_mut().find(|(root, _)| *root == step.root) {
            (known.after, known.proof) = (step.after, step.proof);
            continue;
        }
        let group = &symmetries.groups[step.root];
        let (units, moved) = moved_units(symmetries, transform, step.root);
        let (name, kind) = (group.name.clone(), group.key.clone());
        let (before, after, proof) = (step.before, step.after, step.proof);
        roots.push((step.root, RootFound { name, kind, units, moved, before, after, proof }));
    }
    let names = super::pair::acted_on(symmetries);
    let [before, after] = cosines;
    let tensor = |(name, (before, after)): (&str, (Option<f64>, Option<f64>))| Cosines {
        tensor: name.to_owned(),
        before,
        after,
    };
    Findings {
        options: options.clone(),
        sweeps,
        roots: roots.into_iter().map(|(_, root)| root).collect(),
        tensors: names.zip(before.into_iter().zip(after)).map(tensor).collect(),
    }
}

/// The most bytes that a transform of these groups can take.
pub fn largest_transform_bytes(symmetries: &Symmetries) -> u64 {
    let group = |group: &Group| {
        let angles = if group.pairs.is_some() { group.pair_count() } else { 0 };
        let map = if group.may(crate::align::Allowed::Orthogonal) { 8 * group.units * group.units } else { 0 };
        size_of::<Element>() + map + group.copies * (4 * group.units + group.sign_count() + 8 * angles)
    };
    symmetries.groups.iter().map(group).sum::<usize>() as u64
}

/// Units of a root and of the groups within it, and how many of them change places or signs, or are turned.
fn moved_units(symmetries: &Symmetries, transform: &Transform, root: usize) -> (usize, usize) {
    let groups = &symmetries.groups;
    let within = |mut group: usize| {
        while let Some(outer) = groups[group].within {
            group = outer;
        }
        group == root
    };
    let tree = (0..groups.len()).filter(|&group| within(group));
    tree.fold((0, 0), |(units, moved), group| {
        let (own, element) = (&groups[group], &transform.elements()[group]);
        let all = (0..own.copies).flat_map(|copy| (0..own.units).map(move |unit| (copy, unit)));
        let count = all.filter(|&(copy, unit)| moves(own, element, copy, unit)).count();
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
