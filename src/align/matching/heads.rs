//! A group with groups within it on the same axes: attention heads, with their queries, rotary
//! pairs, and dimensions.
//!
//! For each unit of the reference and each of the other model the inner groups are solved jointly
//! ([`inner`](super::inner)); the resulting score is an entry of the matrix from which the outer
//! order is found. The products of one reference unit's cells with all cells of the other model are
//! computed at a time.
//! Orders and signs are solved here, angles of pairs in [`turns`](super::turns).

use rayon::prelude::*;

use super::flat;
use super::inner::{Joint, JointMoves};
use super::moves::{Candidates, CellProducts, Inner, Leaf, Moves, apply, is_signed, order_of};
use super::panel::Panel;
use super::problem::{Problem, narrow};
use super::reach::bound;
use super::terms::{TensorPart, Term, Tree, WeightedTerm};
use super::turns::{Headed, turns};
use crate::align::Weights;
use crate::error::{Error, Kind, Result};
use crate::symmetry::{Allowed, Element, Transform};

/// The share of the objective within which an upper bound proves a result. Pairs that share an
/// angle could gain far less by angles of their own.
const PROVEN: f64 = 1e-4;

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

impl Heads {
    /// True if a unit of the root or of a group within it changes its place.
    fn moves_units(&self) -> bool {
        let stays = |order: &[u32]| order.iter().zip(0..).all(|(from, unit)| *from == unit);
        let inner = self.moves.iter().flatten();
        !stays(&self.order) || inner.into_iter().any(|moves| !stays(&moves.order))
    }
}

/// One unit of the reference with each unit of the other model that may take its place: the best
/// moves within, and an upper bound on the score of all others.
type Row = Vec<(JointMoves, f64)>;

/// Returns the transforms worth trying.
pub(super) fn candidates(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
) -> Result<Candidates> {
    let groups = &problem.symmetries.groups;
    let inner = tree.inner.iter();
    let inners: Vec<Inner<'_>> = inner
        .map(|group| Inner::new(&groups[*group], problem.options.signs))
        .collect();
    let terms = terms(problem, tree, tensors, current)?;
    let heads = solve(problem, tree, &inners, &terms, current)?;
    let mut dropped = 0.0;
    // Orders and single signs come first; angles are summed again in f64 under them.
    let relative = elements(tree, &heads.order, &heads.moves);
    let ordered = apply(problem, current, relative)?;
    let turned = turns(problem, tree, &inners, &terms, &ordered, &mut dropped)?;
    let mut transforms = vec![apply(problem, &ordered, turned)?];
    if heads.moves_units() {
        // The order may gain nothing real while signs and angles do.
        let turned = turns(problem, tree, &inners, &terms, current, &mut 0.0)?;
        transforms.push(apply(problem, current, turned)?);
    }
    transforms.retain(|transform| transform != current);
    // Between the bound and the score lies everything that was not tried, and angles that were
    // rejected.
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
                weighted: WeightedTerm { term, weight },
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

fn headed(part: &TensorPart, tree: &Tree) -> (Term, Vec<Leaf>) {
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
    check_memory(problem, terms, units)?;
    let moved = problem.moved(current);
    let mut panels = [Panel::default(), Panel::default()];
    let mut rows = Vec::with_capacity(units);
    for unit in 0..units {
        // The products of all pairs together would not fit; those of one unit are held at a time.
        let products = products(problem, moved.as_ref(), terms, unit, &mut panels)?;
        let others = match root.may(Allowed::Permutation) {
            true => 0..units,
            false => unit..unit + 1,
        };
        let solved = others.into_par_iter().map(|other| {
            problem.watch.go_on()?;
            joint(inners, &products, other)
        });
        rows.push(solved.collect::<Result<Row>>()?);
    }
    match root.may(Allowed::Permutation) {
        true => ordered(rows),
        false => Ok(in_place(rows)),
    }
}

/// Solves the inner groups of one pair of units; returns an upper bound on the score too.
fn joint(
    inners: &[Inner<'_>],
    products: &[CellProducts],
    unit: usize,
) -> Result<(JointMoves, f64)> {
    let bounds = products
        .iter()
        .map(|products| bound(products, inners, unit));
    let most = bounds.sum::<Result<f64>>()?;
    let joint = Joint {
        inners,
        products,
        unit,
    };
    Ok((joint.solve()?, most))
}

/// Finds the order of units by the scores of all pairs, and a bound by the bounds of all pairs.
fn ordered(rows: Vec<Row>) -> Result<Heads> {
    let units = rows.len();
    let pairs = || rows.iter().flatten();
    let scores: Vec<f32> = pairs().map(|(pair, _)| narrow(pair.score)).collect();
    let bounds: Vec<f32> = pairs().map(|(_, most)| narrow(*most)).collect();
    let order = order_of(&scores, units)?.columns;
    let bound = order_of(&bounds, units)?.value;
    let rows = rows.into_iter().zip(&order);
    let chosen = rows.map(|(row, from)| {
        let pair = row.into_iter().nth(*from as usize);
        pair.expect("every pair was solved").0
    });
    let chosen: Vec<JointMoves> = chosen.collect();
    Ok(Heads {
        score: chosen.iter().map(|pair| pair.score).sum(),
        moves: chosen.into_iter().map(|pair| pair.moves).collect(),
        order,
        bound,
    })
}

/// Takes the only pair of each unit: units stay in their places.
fn in_place(rows: Vec<Row>) -> Heads {
    let order = (0..).take(rows.len()).collect();
    let pairs: Vec<(JointMoves, f64)> = rows.into_iter().flatten().collect();
    let bounds = pairs.iter().map(|(_, most)| f64::from(narrow(*most)));
    Heads {
        order,
        score: pairs.iter().map(|(pair, _)| pair.score).sum(),
        bound: bounds.sum(),
        moves: pairs.into_iter().map(|(pair, _)| pair.moves).collect(),
    }
}

/// Returns the bytes in which the root of `tree` is solved on `tensors`.
pub(super) fn least_bytes(problem: &Problem<'_>, tree: &Tree, tensors: &[&str]) -> u64 {
    let parts = tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor));
    let acts = |part: &TensorPart| part.factors.iter().any(|factor| factor.acts.is_some());
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
    let bytes = bytes(terms.iter().map(|headed| &headed.weighted.term), units);
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
) -> Result<Vec<CellProducts>> {
    let mut all: Vec<CellProducts> = Vec::new();
    for (at, Headed { weighted, leaves }) in terms.iter().enumerate() {
        // Terms with the same cells were added to the first of them.
        if all.iter().any(|products| products.leaves == *leaves) {
            continue;
        }
        let term = &weighted.term;
        let cells = term.cells();
        let units = term.rows.first().map_or(1, |extent| extent.size);
        let mut entries = vec![0.0; cells * cells * units];
        let mut sum = problem.options.backend.begin(cells, &mut entries)?;
        for other in terms[at..].iter().filter(|other| other.leaves == *leaves) {
            let unit = unit..unit + 1;
            problem.add_products(moved, &other.weighted, &unit, panels, sum.as_mut())?;
        }
        sum.finish()?;
        all.push(CellProducts {
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
    let mut elements = vec![(tree.root, root)];
    for (at, group) in tree.inner.iter().enumerate() {
        let mut element = Element::default();
        for unit in moves {
            element.permutation.extend(&unit[at].order);
            if unit[at].angle.is_empty() {
                element.negative.extend(&unit[at].negative);
            }
        }
        elements.push((*group, element));
    }
    elements
}
