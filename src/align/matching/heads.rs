//! A group with groups within it on the same axes: attention heads, with their queries, rotary
//! pairs, and dimensions.
//!
//! For each unit of the reference and each of the other model the inner groups are solved jointly
//! ([`inner`](super::inner)); the resulting score is an entry of the matrix from which the outer
//! order is found. The products of one reference unit's cells with all cells of the other model are
//! computed at a time.
//!
//! **Angles.** The angles from f32 products are only a start: once the order is known, D and X of
//! each pair are summed again in f64, and the angle is atan2(X, D). It is taken only if it gains
//! more than it costs:
//!
//! - Turned weights are rounded to the type that they are stored in, which moves them by up to u |B| (u the unit
//!   roundoff), while untouched ones stay exact. So the squared distance must fall by more than (u |B|)².
//! - Even if a pair is not turned at all, noise will say it is. By the Bayesian information
//!   criterion with twice its penalty, the squared distance must fall by more than 2 ln(n) times
//!   its mean per number, over the n numbers of a pair.
//!
//! So equal heads have the angle 0.0, and fine-tunes of one model are not turned by mere noise.

use rayon::prelude::*;

use super::inner::{Joint, best_turn};
use super::moves::{Candidates, Inner, Leaf, Moves, Products, apply, is_signed, order_of};
use super::panel::Panel;
use super::problem::{Problem, narrow};
use super::reach::bound;
use super::terms::{Part, Place, Term, Tree};
use super::{Cost, flat};
use crate::align::Weights;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::symmetry::{Allowed, Element, Transform};

/// The share of the objective within which an upper bound proves a result. Pairs that share an
/// angle could gain far less by angles of their own.
const PROVEN: f64 = 1e-4;

/// A term, its weight, and the factors of its rows.
struct Headed {
    term: Term,
    weight: f64,
    leaves: Vec<Leaf>,
}

/// The inner groups' moves for each unit of the reference, and the unit of the other model that
/// takes its place.
struct Heads {
    order: Vec<u32>,
    moves: Vec<Vec<Moves>>,
    /// The score by the f32 products.
    score: f64,
    /// An upper bound on the score of all other moves.
    bound: f64,
}

/// Returns the transforms worth trying.
pub(super) fn candidates(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
) -> Result<Candidates> {
    let groups = &problem.symmetries.groups;
    let inners: Vec<Inner<'_>> = tree
        .inner
        .iter()
        .map(|group| Inner::new(&groups[*group], problem.options.signs))
        .collect();
    let terms = terms(problem, tree, tensors, current)?;
    let heads = solve(problem, tree, &inners, &terms, current)?;
    let mut transforms = Vec::new();
    let mut dropped = 0.0;
    let relative = elements(tree, &heads.order, &heads.moves);
    let ordered = apply(problem, current, relative)?;
    let turned = turns(problem, tree, &inners, &terms, &ordered, &mut dropped)?;
    transforms.push(apply(problem, &ordered, turned)?);
    let stays = |order: &[u32]| order.iter().zip(0..).all(|(from, unit)| *from == unit);
    if !stays(&heads.order)
        || heads
            .moves
            .iter()
            .flatten()
            .any(|moves| !stays(&moves.order))
    {
        // The order may gain nothing real while signs and angles do.
        let turned = turns(problem, tree, &inners, &terms, current, &mut 0.0)?;
        transforms.push(apply(problem, current, turned)?);
    }
    transforms.retain(|transform| transform != current);
    let gap = (heads.bound - heads.score).max(0.0) + dropped;
    // Signs of whole units of the root are not optimised.
    let proven = gap <= PROVEN * heads.bound.abs() && !is_signed(problem, tree.root);
    Ok(Candidates {
        transforms,
        optimal_within: if proven { gap } else { f64::INFINITY },
    })
}

/// Collects the terms of the tree; units of the root come first among the rows.
fn terms(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
) -> Result<Vec<Headed>> {
    let mut terms = Vec::new();
    for part in tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor))
    {
        if part.factors.iter().all(|factor| factor.acts.is_none()) {
            continue;
        }
        if tree.groups().any(|group| part.times(group) > 1) || part.times(tree.root) == 0 {
            return Err(unmatchable(problem, tree, &part.tensor));
        }
        let (term, leaves) = headed(&part, tree);
        let weight = problem.term_weight(&term, current)?;
        if weight > 0.0 {
            terms.push(Headed {
                term,
                weight,
                leaves,
            });
        }
    }
    Ok(terms)
}

/// Builds the error for a spec that allows moves which cannot be solved for.
pub(super) fn unmatchable(problem: &Problem<'_>, tree: &Tree, tensor: &str) -> Error {
    let name = &problem.symmetries.groups[tree.root].name;
    let cause = format!("`{name}` and the groups within it act more than once on its elements");
    Error::new(
        Kind::Mismatch,
        "cannot match weights",
        tensor.escape_debug(),
        cause,
    )
    .with_hint("such a spec can be applied, but there is no one assignment to solve for")
}

fn headed(part: &Part, tree: &Tree) -> (Term, Vec<Leaf>) {
    let is_root = |group: usize| group == tree.root;
    let mut term = Term::new(part, false, |_, factor| {
        factor.acts.is_some_and(|(group, _)| is_root(group))
    });
    let mut leaves = Vec::new();
    term.features.clear();
    for factor in &part.factors {
        match factor.acts {
            Some((group, _)) if is_root(group) => {}
            Some((group, signed)) => {
                let inner = tree
                    .inner
                    .iter()
                    .position(|inner| *inner == group)
                    .unwrap_or_default();
                leaves.push(Leaf {
                    inner,
                    size: factor.extent.size,
                    stride: 1,
                    signed,
                });
                term.rows.push(factor.extent);
            }
            None => term.features.push(factor.extent),
        }
    }
    let mut stride = 1;
    for leaf in leaves.iter_mut().rev() {
        leaf.stride = stride;
        stride *= leaf.size;
    }
    (term, leaves)
}

/// Solves all pairs of units, then their order.
fn solve(
    problem: &Problem<'_>,
    tree: &Tree,
    inners: &[Inner<'_>],
    terms: &[Headed],
    current: &Transform,
) -> Result<Heads> {
    let root = &problem.symmetries.groups[tree.root];
    let units = root.units;
    let moves_order = root.may(Allowed::Permutation);
    check_memory(problem, terms, units)?;
    let moved = problem.moved(current);
    let mut panels = [Panel::default(), Panel::default()];
    let mut scores = vec![0.0; units * units];
    let mut bounds = vec![0.0; units * units];
    let mut found = Vec::with_capacity(units * units);
    for unit in 0..units {
        let products = products(problem, moved.as_ref(), terms, unit, &mut panels)?;
        let others = if moves_order {
            0..units
        } else {
            unit..unit + 1
        };
        let joint = |other: usize| {
            problem.watch.go_on()?;
            let most: Result<f64> = products
                .iter()
                .map(|products| bound(products, inners, other))
                .sum();
            Ok((
                Joint {
                    inners,
                    products: &products,
                    unit: other,
                }
                .solve()?,
                most?,
            ))
        };
        let solved = others
            .clone()
            .into_par_iter()
            .map(joint)
            .collect::<Result<Vec<_>>>()?;
        for (other, (pair, most)) in others.zip(&solved) {
            scores[unit * units + other] = narrow(pair.score);
            bounds[unit * units + other] = narrow(*most);
        }
        found.push(solved);
    }
    let stay = || {
        (0..units)
            .map(|unit| f64::from(bounds[unit * units + unit]))
            .sum()
    };
    let (order, most) = match moves_order {
        true => (
            order_of(&scores, units)?.columns,
            order_of(&bounds, units)?.value,
        ),
        false => ((0..).take(units).collect(), stay()),
    };
    let mut moves = Vec::with_capacity(units);
    let mut score = 0.0;
    for (solved, from) in found.into_iter().zip(&order) {
        let taken = if moves_order { *from as usize } else { 0 };
        let (pair, _) = solved
            .into_iter()
            .nth(taken)
            .expect("every pair was solved");
        score += pair.score;
        moves.push(pair.moves);
    }
    Ok(Heads {
        order,
        moves,
        score,
        bound: most,
    })
}

/// Returns the bytes in which the root of `tree` is solved on `tensors`.
pub(super) fn least_bytes(problem: &Problem<'_>, tree: &Tree, tensors: &[&str]) -> u64 {
    let parts = tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor));
    let acts = |part: &Part| part.factors.iter().any(|factor| factor.acts.is_some());
    let terms: Vec<Term> = parts
        .filter(acts)
        .map(|part| headed(&part, tree).0)
        .collect();
    bytes(terms.iter(), problem.symmetries.groups[tree.root].units)
}

fn bytes<'a>(terms: impl Iterator<Item = &'a Term>, units: usize) -> u64 {
    let cells: Vec<usize> = terms.map(Term::cells).collect();
    let entries: usize = cells.iter().map(|cells| cells * cells * units).sum();
    let widest = cells
        .iter()
        .map(|cells| cells * (units + 1))
        .max()
        .unwrap_or(0);
    let readers = rayon::current_num_threads() * flat::READER_BYTES;
    ((entries + widest * super::problem::FEATURES) * size_of::<f32>() + readers) as u64
}

fn check_memory(problem: &Problem<'_>, terms: &[Headed], units: usize) -> Result<()> {
    let bytes = bytes(terms.iter().map(|headed| &headed.term), units);
    let memory = problem.options.memory;
    if bytes <= memory {
        return Ok(());
    }
    let cause = format!("attention heads need at least {bytes} bytes, got {memory}");
    Err(Error::new(
        Kind::Budget,
        "cannot match weights",
        "memory budget",
        cause,
    ))
}

/// Computes the products of one unit's cells with all others', adding up terms with the same cells.
fn products(
    problem: &Problem<'_>,
    moved: &dyn Weights,
    terms: &[Headed],
    unit: usize,
    panels: &mut [Panel; 2],
) -> Result<Vec<Products>> {
    let mut all: Vec<Products> = Vec::new();
    for (at, Headed { term, leaves, .. }) in terms.iter().enumerate() {
        if all.iter().any(|products| products.leaves == *leaves) {
            continue;
        }
        let cells = term.cells();
        let units = term.rows.first().map_or(1, |extent| extent.size);
        let mut entries = vec![0.0; cells * cells * units];
        let mut sum = problem.options.backend.begin(cells, &mut entries)?;
        for Headed { term, weight, .. } in
            terms[at..].iter().filter(|other| other.leaves == *leaves)
        {
            problem.add_products(
                moved,
                (term, *weight),
                &(unit..unit + 1),
                panels,
                sum.as_mut(),
            )?;
        }
        sum.finish()?;
        all.push(Products {
            leaves: leaves.clone(),
            cells,
            units,
            entries,
        });
    }
    Ok(all)
}

/// Returns the elements of the tree's groups: orders and the signs of single units. Signs of pairs
/// are solved later.
fn elements(tree: &Tree, order: &[u32], moves: &[Vec<Moves>]) -> Vec<(usize, Element)> {
    let root = Element {
        permutation: order.to_vec(),
        ..Element::default()
    };
    let inner = |(at, group): (usize, &usize)| {
        let mut element = Element::default();
        for unit in moves {
            element.permutation.extend(&unit[at].order);
            if unit[at].angle.is_empty() {
                element.negative.extend(&unit[at].negative);
            }
        }
        (*group, element)
    };
    std::iter::once((tree.root, root))
        .chain(tree.inner.iter().enumerate().map(inner))
        .collect()
}

/// Sums over all numbers of a pair of units.
#[derive(Debug, Clone, Copy, Default)]
struct PairSums {
    along: f64,
    across: f64,
    reference: f64,
    moving: f64,
    numbers: f64,
}

/// Finds the signs and angles of pairs, with all orders as in `ordered`; adds the gain of rejected
/// angles to `dropped`.
fn turns(
    problem: &Problem<'_>,
    tree: &Tree,
    inners: &[Inner<'_>],
    terms: &[Headed],
    ordered: &Transform,
    dropped: &mut f64,
) -> Result<Vec<(usize, Element)>> {
    let units = problem.symmetries.groups[tree.root].units;
    let mut elements = Vec::new();
    for (at, inner) in inners.iter().enumerate() {
        if inner.group.pairs.is_none() || !(inner.sign || inner.turn) {
            continue;
        }
        let mut sums = vec![PairSums::default(); units * inner.group.pair_count()];
        let mut roundoff = 0.0_f64;
        for headed in terms {
            let Some(leaf) = headed
                .leaves
                .iter()
                .find(|leaf| leaf.inner == at && leaf.signed)
            else {
                continue;
            };
            add_pair_sums(problem, headed, (inner, leaf), ordered, &mut sums)?;
            roundoff = roundoff.max(unit_roundoff(problem, &headed.term.moving));
        }
        let mut element = Element::default();
        for sums in &sums {
            let (negative, angle) = best_turn(inner, sums.along, sums.across);
            let without = if negative { -sums.along } else { sums.along };
            let gain = sums.along.hypot(sums.across) - without;
            let taken = angle != 0.0 && is_worth_it(sums, gain, roundoff);
            if inner.turn && !taken {
                *dropped += gain.max(0.0);
            }
            element.negative.push(negative);
            element.angle.push(if taken { angle } else { 0.0 });
        }
        elements.push((tree.inner[at], element));
    }
    Ok(elements)
}

/// True if turning a pair brings it nearer by more than rounding and noise do.
fn is_worth_it(sums: &PairSums, gain: f64, roundoff: f64) -> bool {
    let apart = (sums.reference + sums.moving - 2.0 * sums.along.hypot(sums.across)).max(0.0);
    let noise = 2.0 * sums.numbers.max(2.0).ln() * apart / sums.numbers.max(1.0);
    2.0 * gain > noise.max(roundoff * roundoff * sums.moving)
}

/// Returns half the distance from 1.0 to the next number of the type in which the other model's
/// tensor is stored.
fn unit_roundoff(problem: &Problem<'_>, place: &Place) -> f64 {
    let digits = match problem.moving.dtype(&place.tensor) {
        Some(Dtype::BF16) => 8,
        Some(Dtype::F16) => 11,
        Some(Dtype::F8E4M3) => 4,
        Some(Dtype::F8E5M2) => 3,
        // Wider types are read as f32.
        _ => 24,
    };
    0.5_f64.powi(digits)
}

/// Adds a term's share of each pair's sums; `sums` holds all pairs of the first unit, then those of
/// the second.
fn add_pair_sums(
    problem: &Problem<'_>,
    headed: &Headed,
    (inner, leaf): (&Inner<'_>, &Leaf),
    ordered: &Transform,
    sums: &mut [PairSums],
) -> Result<()> {
    let Headed { term, weight, .. } = headed;
    let moved = problem.moved(ordered);
    let cells = term.cells();
    let unit_of = |cell: usize| cell / leaf.stride % leaf.size;
    let partner = |cell: usize| {
        let unit = unit_of(cell);
        cell - unit * leaf.stride + inner.group.partner(unit).unwrap_or(unit) * leaf.stride
    };
    let (a, b) = (
        (problem.reference, &term.reference),
        (moved.as_ref(), &term.moving),
    );
    let own = problem.own_products(term, a, b, None)?;
    let crossed = problem.own_products(term, a, b, Some(&partner))?;
    let squares = [
        problem.own_products(term, a, a, None)?,
        problem.own_products(term, b, b, None)?,
    ];
    let scale = match problem.options.cost {
        Cost::Raw => [1.0; 2],
        Cost::Normalised => problem.term_norms(term, ordered)?.map(|norm| norm.powi(-2)),
    };
    let numbers = own.len() / cells.max(1);
    debug_assert_eq!(numbers * inner.group.pair_count(), sums.len());
    for (at, own) in own.iter().enumerate() {
        let Some((pair, first)) = inner.group.place_in_pairs(unit_of(at % cells)) else {
            continue;
        };
        let sums = &mut sums[at / cells * inner.group.pair_count() + pair];
        sums.along += weight * own;
        // X = ⟨second, first'⟩ - ⟨first, second'⟩
        sums.across += weight * if first { -crossed[at] } else { crossed[at] };
        sums.reference += scale[0] * squares[0][at];
        sums.moving += scale[1] * squares[1][at];
        sums.numbers += term.feature_count() as f64;
    }
    Ok(())
}
