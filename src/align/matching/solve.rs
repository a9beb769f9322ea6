//! The solution of one root: candidate moves, and the test that they really gain.

use super::moves::{Candidates, is_signed};
use super::problem::{Objective, Problem};
use super::terms::Tree;
use super::{Proof, Step};
use super::{experts, flat, heads};
use crate::error::Result;
use crate::symmetry::{Element, Group, Transform};

/// Solves the root of `tree` on `tensors`, with everything else held as in `current`.
pub(super) fn solve(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
    sweep: usize,
) -> Result<(Step, Transform)> {
    let before = problem.objective(tensors, current)?;
    let found = candidates(problem, tree, tensors, current, &before)?;
    // Candidates come from f32 products. The first whose objective, computed anew in f64, is really
    // larger is taken.
    let mut taken = None;
    for transform in found.transforms {
        let after = problem.objective(tensors, &transform)?;
        if after.exceeds(&before) {
            taken = Some((transform, after.value()));
            break;
        }
    }
    let moves = taken.is_some();
    let (transform, after) = taken.unwrap_or_else(|| (current.clone(), before.value()));
    let elements = transform.elements();
    let groups = || tree.groups().map(|at| (at, &problem.symmetries.groups[at]));
    let moved = groups()
        .map(|(at, group)| moved_units(group, &elements[at]))
        .sum();
    let proof = match found.optimal_within {
        within if !within.is_finite() => Proof::Parts,
        _ if moved == 0 => Proof::Identity,
        within => Proof::Optimal(within),
    };
    let step = Step {
        sweep,
        root: tree.root,
        elements: match moves {
            true => tree.groups().map(|at| (at, elements[at].clone())).collect(),
            false => Vec::new(),
        },
        before: before.value(),
        after,
        units: groups().map(|(_, group)| group.copies * group.units).sum(),
        moved,
        proof,
    };
    Ok((step, transform))
}

/// Finds the moves worth trying, by the method that fits the tree.
fn candidates(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
    before: &Objective,
) -> Result<Candidates> {
    if names_tensors(problem, tree) {
        return experts::candidates(problem, tree, tensors, current, experts::AFFORDED);
    }
    if before.is_at_its_bound() {
        return Ok(Candidates {
            transforms: Vec::new(),
            optimal_within: 0.0,
        });
    }
    match tree.inner.is_empty() {
        true => flat::candidates(problem, tree, tensors, current),
        false => heads::candidates(problem, tree, tensors, current),
    }
}

/// Returns the least memory in which the root of `tree` is solved on `tensors`.
pub(super) fn least_bytes(problem: &Problem<'_>, tree: &Tree, tensors: &[&str]) -> u64 {
    if names_tensors(problem, tree) || tree.inner.is_empty() {
        let bytes = tree.groups().map(|group| {
            let units = problem.symmetries.groups[group].units;
            flat::least_bytes(units, is_signed(problem, group))
        });
        return bytes.max().unwrap_or(0);
    }
    heads::least_bytes(problem, tree, tensors)
}

/// True if the root's units are numbers in the names of tensors, as experts are.
fn names_tensors(problem: &Problem<'_>, tree: &Tree) -> bool {
    let mut tensors = problem.symmetries.tensors.values();
    tensors.any(|tensor| {
        let index = tensor.index.as_ref();
        index.is_some_and(|index| index.group == tree.root)
    })
}

/// Counts the units of a group that an element moves, flips or turns.
fn moved_units(group: &Group, element: &Element) -> usize {
    let units = (0..group.copies).flat_map(|copy| (0..group.units).map(move |unit| (copy, unit)));
    let moved = units.filter(|(copy, unit)| moves(group, element, *copy, *unit));
    moved.count()
}

/// True if an element moves, flips or turns a unit.
fn moves(group: &Group, element: &Element, copy: usize, unit: usize) -> bool {
    let pair = group.place_in_pairs(unit).map(|(pair, _)| pair);
    element.unit(group, copy, unit) != unit
        || element.is_negative(group, copy, pair.unwrap_or(unit))
        || pair.is_some_and(|pair| element.angle_of(group, copy, pair) != 0.0)
}
