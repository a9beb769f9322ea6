//! A group that reorders names, such as a layer's experts: an assignment of tensors, each entry of
//! which is an assignment of the units inside a pair.
//!
//! An entry of the outer matrix is the score of a pair of experts under the best order of their
//! units, plus the products of the pair on other axes where the outer group acts (the router's
//! rows). Each entry takes as long as an MLP. If all of them would take too long, a sample of units
//! tells which pairs are worth it: the largest product of each of some units of the reference's
//! expert with any unit of the other's. Pairs that come near the best, and each expert with its own
//! counterpart, are solved; the others are not candidates, and the result is not proved.

use super::flat;
use super::heads::unmatchable;
use super::moves::{Candidates, Order, apply, is_signed, order_of};
use super::panel::Panel;
use super::problem::{Problem, narrow};
use super::terms::{TensorPart, Term, TermPlace, Tree, WeightedTerm};
use crate::align::Weights;
use crate::error::Result;
use crate::symmetry::{Allowed, Element, Transform};

/// Floating-point operations up to which all pairs of a layer's experts are solved.
pub(super) const AFFORDED: u64 = 1 << 41;
/// The inverse of the share of an expert's units that is sampled.
const SAMPLED: usize = 64;
/// The least and the most units of a sample.
const SAMPLE: [usize; 2] = [16, 256];
/// A pair is solved if its sample comes within this share of the best of its expert.
const NEAR: f64 = 0.8;
/// The most pairs of an expert that are solved, besides its own counterpart.
const MOST_PAIRS: usize = 8;

/// The terms of one pair of experts.
struct Pair {
    /// Terms whose rows are the inner group's units.
    units: Vec<WeightedTerm>,
    /// Terms that do not depend on the order of units.
    constant: Vec<WeightedTerm>,
}

/// The best order of units for a pair, and its score.
struct SolvedPair {
    order: Order,
    score: f64,
}

/// Returns the transforms worth trying; all pairs are solved if that takes no more than `afforded`
/// operations.
pub(super) fn candidates(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
    afforded: u64,
) -> Result<Candidates> {
    let solver = Experts {
        problem,
        tree,
        tensors,
        units: inner_units(problem, tree),
        afforded,
    };
    let root = &problem.symmetries.groups[tree.root];
    let experts = root.units;
    let is_free = root.may(Allowed::Permutation);
    let wanted = match is_free {
        true => solver.wanted(current)?,
        false => diagonal(experts),
    };
    let found = solver.solved(current, &wanted)?;
    let order = outer_order(&found, experts)?;
    // A pair that was not solved could be better, and signs of whole experts are not optimised.
    let all_solved = wanted.iter().all(|wanted| *wanted) || !is_free;
    let is_exact = all_solved && !is_signed(problem, tree.root);
    let solved = found.iter().flatten();
    let within: f64 = solved.map(|found| found.order.optimal_within).sum();
    Ok(Candidates {
        transforms: solver.transforms(current, &found, &order)?,
        optimal_within: if is_exact { within } else { f64::INFINITY },
    })
}

fn inner_units(problem: &Problem<'_>, tree: &Tree) -> usize {
    tree.inner
        .first()
        .map_or(0, |inner| problem.symmetries.groups[*inner].units)
}

fn diagonal(experts: usize) -> Vec<bool> {
    (0..experts * experts)
        .map(|place| place / experts == place % experts)
        .collect()
}

/// Finds the best order of experts among the pairs that were solved.
fn outer_order(found: &[Option<SolvedPair>], experts: usize) -> Result<Vec<u32>> {
    let most = found
        .iter()
        .flatten()
        .map(|found| found.score.abs())
        .fold(1e-30, f64::max);
    // With one such entry a sum is below that of the diagonal, which was solved.
    let unsolved = -2.0 * most * (experts + 1) as f64;
    let scores = found.iter().map(|found| {
        let score = found.as_ref().map(|found| found.score);
        narrow(score.unwrap_or(unsolved))
    });
    Ok(order_of(&scores.collect::<Vec<f32>>(), experts)?.columns)
}

struct Experts<'a, 'p> {
    problem: &'a Problem<'p>,
    tree: &'a Tree,
    tensors: &'a [&'a str],
    units: usize,
    afforded: u64,
}

impl Experts<'_, '_> {
    /// Solves the wanted pairs, a row for each expert of the reference.
    fn solved(&self, current: &Transform, wanted: &[bool]) -> Result<Vec<Option<SolvedPair>>> {
        let experts = self.problem.symmetries.groups[self.tree.root].units;
        let moved = self.problem.moved(current);
        let pairs = wanted.iter().enumerate().map(|(place, wanted)| {
            let (one, other) = (place / experts, place % experts);
            let score = || self.pair_score(moved.as_ref(), current, one, other);
            wanted.then(score).transpose()
        });
        pairs.collect()
    }

    /// Returns the transforms worth trying, without those that change nothing.
    fn transforms(
        &self,
        current: &Transform,
        found: &[Option<SolvedPair>],
        order: &[u32],
    ) -> Result<Vec<Transform>> {
        let experts = order.len();
        let units_of = |one: usize, other: usize| units_of(&found[one * experts + other]);
        let pairs = order.iter().enumerate();
        let chosen: Vec<_> = pairs
            .map(|(one, other)| units_of(one, *other as usize))
            .collect();
        let mut transforms = vec![self.transform(current, order, &chosen)?];
        // The experts' order may gain nothing real while the order of their units, or their signs,
        // does.
        let identity: Vec<u32> = (0..).take(experts).collect();
        let own: Vec<_> = (0..experts).map(|one| units_of(one, one)).collect();
        if order != identity {
            transforms.push(self.transform(current, &identity, &own)?);
        }
        let stays = |order: &Vec<u32>| (0..).zip(order).all(|(unit, from)| *from == unit);
        if !own.iter().all(stays) {
            transforms.push(self.transform(current, &identity, &[])?);
        }
        transforms.retain(|transform| transform != current);
        Ok(transforms)
    }

    /// Chooses the pairs to solve.
    fn wanted(&self, current: &Transform) -> Result<Vec<bool>> {
        let experts = self.problem.symmetries.groups[self.tree.root].units;
        let pair = self.pair(current, 0, 0)?;
        let features = pair.units.iter();
        let features = features.map(|weighted| weighted.term.feature_count() as u64);
        let one = 2 * (self.units as u64).pow(2) * features.sum::<u64>();
        if one.saturating_mul((experts as u64).pow(2)) <= self.afforded {
            return Ok(vec![true; experts * experts]);
        }
        let sample = (self.units / SAMPLED)
            .clamp(SAMPLE[0], SAMPLE[1])
            .min(self.units);
        let moved = self.problem.moved(current);
        let mut wanted = diagonal(experts);
        for expert in 0..experts {
            let mut ranked = Vec::with_capacity(experts);
            for other in 0..experts {
                let pair = self.pair(current, expert, other)?;
                ranked.push((self.sampled(moved.as_ref(), &pair, sample)?, other));
            }
            // Equal estimates keep the order of experts, so that the choice is the same everywhere.
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let limit = ranked
                .first()
                .map_or(0.0, |(best, _)| best - (1.0 - NEAR) * best.abs());
            let near = ranked
                .iter()
                .take(MOST_PAIRS)
                .take_while(|(estimate, _)| *estimate >= limit);
            near.for_each(|(_, other)| wanted[expert * experts + other] = true);
        }
        Ok(wanted)
    }

    /// Estimates a pair's score: for some units of an expert the largest product with any unit of
    /// the other, plus the same share of the pair's constant terms.
    fn sampled(&self, moved: &dyn Weights, pair: &Pair, sample: usize) -> Result<f64> {
        // Terms on which signs act are summed apart: a unit's sign is free.
        let mut entries = [
            vec![0.0; sample * self.units],
            vec![0.0; sample * self.units],
        ];
        let mut panels = [Panel::default(), Panel::default()];
        for (signed, entries) in [false, true].into_iter().zip(&mut entries) {
            let mut sum = self.problem.options.backend.begin(sample, entries)?;
            let terms = pair.units.iter();
            for weighted in terms.filter(|weighted| weighted.term.signed == signed) {
                let (units, panels) = (0..sample, &mut panels);
                self.problem
                    .add_products(moved, weighted, &units, panels, sum.as_mut())?;
            }
            sum.finish()?;
        }
        let [plain, signed] = entries
            .each_ref()
            .map(|sums| sums.chunks(self.units.max(1)));
        let largest = plain.zip(signed).map(|(plain, signed)| {
            let entries = plain.iter().zip(signed);
            let entries = entries.map(|(plain, signed)| plain + signed.abs());
            f64::from(entries.fold(f32::NEG_INFINITY, f32::max))
        });
        let share = sample as f64 / self.units.max(1) as f64;
        Ok(largest.sum::<f64>() + share * self.constant(moved, pair)?)
    }

    /// Scores a pair under the best order of its units.
    fn pair_score(
        &self,
        moved: &dyn Weights,
        current: &Transform,
        expert: usize,
        other: usize,
    ) -> Result<SolvedPair> {
        let pair = self.pair(current, expert, other)?;
        let free =
            self.tree.inner.first().is_some_and(|inner| {
                self.problem.symmetries.groups[*inner].may(Allowed::Permutation)
            });
        let order = flat::order(self.problem, moved, &pair.units, self.units, free)?;
        let score = order.value + self.constant(moved, &pair)?;
        Ok(SolvedPair { order, score })
    }

    fn constant(&self, moved: &dyn Weights, pair: &Pair) -> Result<f64> {
        let mut sum = 0.0;
        for WeightedTerm { term, weight } in &pair.constant {
            let one = (self.problem.reference, &term.reference);
            let other = (moved, &term.moving);
            let products = self.problem.own_products(term, one, other, None)?;
            sum += weight * products.iter().sum::<f64>();
        }
        Ok(sum)
    }

    /// Collects the terms of a pair of experts.
    fn pair(&self, current: &Transform, expert: usize, other: usize) -> Result<Pair> {
        let symmetries = self.problem.symmetries;
        let mut pair = Pair {
            units: Vec::new(),
            constant: Vec::new(),
        };
        for tensor in self.tensors {
            let index = symmetries.tensors[*tensor]
                .index
                .as_ref()
                .filter(|index| index.group == self.tree.root);
            // Of the tensors whose names the root numbers, only this expert's are compared; the
            // other model's come from the other expert.
            if index.is_some_and(|index| index.position != expert as u64) {
                continue;
            }
            for part in self.tree.parts(symmetries, tensor) {
                let times = part.times(self.tree.root) + usize::from(index.is_some());
                let inner: usize = self.tree.inner.iter().map(|inner| part.times(*inner)).sum();
                if times == 0 {
                    continue;
                }
                // With one place for each group, the score of a pair is one assignment.
                if times > 1 || inner > 1 || self.tree.inner.len() > 1 {
                    return Err(unmatchable(self.problem, self.tree, tensor));
                }
                let mut term = self.term(&part, expert, other);
                if let Some(index) = index {
                    term.moving.tensor = index.name_of(other as u64);
                }
                let weight = self.problem.term_weight(&term, current)?;
                if weight > 0.0 {
                    let into = if inner == 1 {
                        &mut pair.units
                    } else {
                        &mut pair.constant
                    };
                    into.push(WeightedTerm { term, weight });
                }
            }
        }
        Ok(pair)
    }

    /// Makes the term of a part for a pair of experts.
    fn term(&self, part: &TensorPart, expert: usize, other: usize) -> Term {
        let is_inner = |group: usize| self.tree.inner.contains(&group);
        let signed = part.factors.iter().any(|factor| {
            factor.acts.is_some_and(|(group, signed)| {
                is_inner(group) && signed && is_signed(self.problem, group)
            })
        });
        // The root's factors are held at the two experts; what remains has the units as rows.
        let mut place = part.start;
        let mut cut = part.clone();
        cut.factors
            .retain(|factor| factor.acts.is_none_or(|(group, _)| is_inner(group)));
        let mut term = Term::new(&cut, signed, |_, factor| factor.acts.is_some());
        for factor in part
            .factors
            .iter()
            .filter(|factor| factor.acts.is_some_and(|(group, _)| !is_inner(group)))
        {
            place += factor.extent.stride * expert as u64;
            term.moving.start += factor.extent.stride * other as u64;
        }
        term.reference = TermPlace {
            start: place,
            ..term.reference
        };
        term
    }

    /// Returns `current` followed by this order of experts, these orders of their units, and the
    /// signs that are best under them.
    fn transform(
        &self,
        current: &Transform,
        order: &[u32],
        orders: &[Vec<u32>],
    ) -> Result<Transform> {
        let mut elements = vec![(
            self.tree.root,
            Element {
                permutation: order.to_vec(),
                ..Element::default()
            },
        )];
        let inner = self.tree.inner.first().copied();
        if let (Some(inner), false) = (inner, orders.is_empty()) {
            elements.push((
                inner,
                Element {
                    permutation: orders.concat(),
                    ..Element::default()
                },
            ));
        }
        let ordered = apply(self.problem, current, elements)?;
        let Some(inner) = inner.filter(|inner| is_signed(self.problem, *inner)) else {
            return Ok(ordered);
        };
        let moved = self.problem.moved(&ordered);
        let mut negative = Vec::new();
        for expert in 0..order.len() {
            let pair = self.pair(&ordered, expert, expert)?;
            let [_, signed] =
                flat::own_products(self.problem, moved.as_ref(), &pair.units, self.units)?;
            negative.extend(signed.iter().map(|product| *product < 0.0));
        }
        apply(
            self.problem,
            &ordered,
            vec![(
                inner,
                Element {
                    negative,
                    ..Element::default()
                },
            )],
        )
    }
}

/// Returns the order of units of a pair that was solved.
fn units_of(found: &Option<SolvedPair>) -> Vec<u32> {
    let pair = found.as_ref();
    let pair = pair.expect("a pair that was not solved is not taken");
    pair.order.columns.clone()
}
