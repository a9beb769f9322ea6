//! The solution of one root: candidate moves, and the test that they really gain.

use super::moves::{Candidates, is_signed};
use super::problem::Problem;
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
    let found = if before.is_at_its_bound() && !names_tensors(problem, tree) {
        Candidates {
            transforms: Vec::new(),
            optimal_within: 0.0,
        }
    } else if names_tensors(problem, tree) {
        experts::candidates(problem, tree, tensors, current, experts::AFFORDED)?
    } else if tree.inner.is_empty() {
        flat::candidates(problem, tree, tensors, current)?
    } else {
        heads::candidates(problem, tree, tensors, current)?
    };
    let mut taken = None;
    for transform in found.transforms {
        let after = problem.objective(tensors, &transform)?;
        if after.exceeds(&before) {
            taken = Some((transform, after));
            break;
        }
    }
    let (transform, after) = match &taken {
        Some((transform, after)) => (transform, after.value()),
        None => (current, before.value()),
    };
    let groups = &problem.symmetries.groups;
    let element = |group: usize| (group, transform.elements()[group].clone());
    let moved = tree
        .groups()
        .map(|group| moved_units(&groups[group], &transform.elements()[group]))
        .sum();
    let proof = match found.optimal_within {
        within if !within.is_finite() => Proof::Parts,
        _ if moved == 0 => Proof::Identity,
        within => Proof::Optimal(within),
    };
    let step = Step {
        sweep,
        root: tree.root,
        elements: if taken.is_some() {
            tree.groups().map(element).collect()
        } else {
            Vec::new()
        },
        before: before.value(),
        after,
        units: tree
            .groups()
            .map(|group| groups[group].copies * groups[group].units)
            .sum(),
        moved,
        proof,
    };
    Ok((
        step,
        taken.map_or_else(|| current.clone(), |(transform, _)| transform),
    ))
}

/// Returns the least memory in which the root of `tree` is solved on `tensors`.
pub(super) fn least_bytes(problem: &Problem<'_>, tree: &Tree, tensors: &[&str]) -> u64 {
    let flat = |group: usize| {
        flat::least_bytes(
            problem.symmetries.groups[group].units,
            is_signed(problem, group),
        )
    };
    if names_tensors(problem, tree) || tree.inner.is_empty() {
        return tree.groups().map(flat).max().unwrap_or(0);
    }
    heads::least_bytes(problem, tree, tensors)
}

/// True if the root's units are numbers in the names of tensors, as experts are.
fn names_tensors(problem: &Problem<'_>, tree: &Tree) -> bool {
    let index =
        |tensor: &crate::symmetry::TensorSymmetry| tensor.index.as_ref().map(|index| index.group);
    problem
        .symmetries
        .tensors
        .values()
        .any(|tensor| index(tensor) == Some(tree.root))
}

/// Counts the units of a group that an element moves, flips or turns.
fn moved_units(group: &Group, element: &Element) -> usize {
    let moved = |copy: usize, unit: usize| {
        let pair = group.place_in_pairs(unit).map(|(pair, _)| pair);
        element.unit(group, copy, unit) != unit
            || element.is_negative(group, copy, pair.unwrap_or(unit))
            || pair.is_some_and(|pair| element.angle_of(group, copy, pair) != 0.0)
    };
    (0..group.copies)
        .map(|copy| (0..group.units).filter(|unit| moved(copy, *unit)).count())
        .sum()
}
