//! A group without groups within: one assignment of its units, and their signs.
//!
//! The other model is read under the current transform, including this group's element, so the
//! solution is a further move of the units: the identity if there is nothing to gain. The products
//! of all pairs of units are a matrix C = U + |S|, U from terms on which only the order acts, S
//! from those on which signs act too (a unit's sign is free, so the best sign gives |S|). It is
//! computed in row tiles as the assignment requests them.

use std::ops::Range;

use super::moves::{Candidates, Order, apply, is_signed, order_of};
use super::panel::Panel;
use super::problem::{FEATURES, Problem};
use super::terms::{Term, Tree, WeightedTerm};
use crate::align::Weights;
use crate::align::assignment::{self, CostTiles, Sense};
use crate::error::{Error, Kind, Result};
use crate::linalg;
use crate::symmetry::{Allowed, Element, Transform};

/// The largest matrix that is held and solved whole.
const DENSE: usize = 1024;
/// The most rows of a tile: with more, reading the other model again for each tile costs next to
/// nothing.
const MOST_ROWS: usize = 4096;
/// Bytes of the assignment for each unit: candidates, bounds, prices.
const SOLVER_BYTES: usize = 3072;
/// Bytes of a thread's buffers for reading and gathering.
pub(super) const READER_BYTES: usize = 10 << 20;
/// Rows that the assignment requests at a time.
const ASKED_ROWS: usize = 128;

/// Returns the terms of a group that contains no other group. If it acts on several axes of a
/// tensor, there is one term for each axis, with the other axes held fixed.
pub(super) fn terms(problem: &Problem<'_>, tree: &Tree, tensors: &[&str]) -> Vec<Term> {
    let signed_group = is_signed(problem, tree.root);
    let mut terms = Vec::new();
    for part in tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor))
    {
        for (place, factor) in part.factors.iter().enumerate() {
            if let Some((_, signed)) = factor.acts {
                terms.push(Term::new(&part, signed && signed_group, |at, _| {
                    at == place
                }));
            }
        }
    }
    terms
}

/// Gives the terms their weights; those of weight zero are left out.
fn weighted(
    problem: &Problem<'_>,
    terms: Vec<Term>,
    current: &Transform,
) -> Result<Vec<WeightedTerm>> {
    let weighted = terms.into_iter().map(|term| {
        let weight = problem.term_weight(&term, current)?;
        Ok(WeightedTerm { term, weight })
    });
    let mut all = weighted.collect::<Result<Vec<_>>>()?;
    all.retain(|weighted| weighted.weight > 0.0);
    Ok(all)
}

/// Finds the best order of `units` units, if they may be reordered; each of `terms` has one factor
/// of rows.
pub(super) fn order(
    problem: &Problem<'_>,
    moved: &dyn Weights,
    terms: &[WeightedTerm],
    units: usize,
    is_free: bool,
) -> Result<Order> {
    let mut identity = Order::identity(units);
    if terms.is_empty() {
        return Ok(identity);
    }
    if !is_free {
        let [plain, signed] = own_products(problem, moved, terms, units)?;
        identity.value = plain
            .iter()
            .zip(&signed)
            .map(|(plain, signed)| plain + signed.abs())
            .sum();
        return Ok(identity);
    }
    let mut tiles = Tiles::new(problem, moved, terms, units)?;
    if units > DENSE {
        let options = assignment::CertifiedOptions {
            tile_rows: ASKED_ROWS,
            ..assignment::CertifiedOptions::default()
        };
        let (found, certificate) =
            assignment::certified(&mut tiles, Sense::Maximise, &identity.columns, &options)?;
        let (columns, optimal_within) = (found.columns, certificate.optimal_within);
        return Ok(Order {
            columns,
            value: found.objective,
            optimal_within,
        });
    }
    let mut entries = vec![0.0; units * units];
    tiles.rows(0..units, &mut entries)?;
    drop(tiles);
    order_of(&entries, units)
}

/// Returns the product of each unit with its own counterpart: over terms without signs, and over
/// terms with signs.
pub(super) fn own_products(
    problem: &Problem<'_>,
    moved: &dyn Weights,
    terms: &[WeightedTerm],
    units: usize,
) -> Result<[Vec<f64>; 2]> {
    let mut sums = [vec![0.0; units], vec![0.0; units]];
    for WeightedTerm { term, weight } in terms {
        let (one, other) = ((problem.reference, &term.reference), (moved, &term.moving));
        let products = problem.own_products(term, one, other, None)?;
        let into = &mut sums[usize::from(term.signed)];
        into.iter_mut()
            .zip(&products)
            .for_each(|(sum, product)| *sum += weight * product);
    }
    Ok(sums)
}

/// Returns the transforms worth trying, from the largest expected gain to the smallest.
pub(super) fn candidates(
    problem: &Problem<'_>,
    tree: &Tree,
    tensors: &[&str],
    current: &Transform,
) -> Result<Candidates> {
    let group = &problem.symmetries.groups[tree.root];
    let terms = weighted(problem, terms(problem, tree, tensors), current)?;
    let is_free = group.may(Allowed::Permutation);
    let moved = problem.moved(current);
    let order = order(problem, moved.as_ref(), &terms, group.units, is_free)?;
    // If the group is on two axes of a tensor, the order was solved for one axis at a time.
    let mut parts = tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor));
    let optimal_within = match parts.any(|part| part.times(tree.root) > 1) {
        true => f64::INFINITY,
        false => order.optimal_within,
    };
    // The order may gain nothing real while signs do, so the units' places are tried too.
    let stay = (!order.is_identity()).then(|| Order::identity(group.units));
    let mut transforms = Vec::new();
    for order in std::iter::once(order).chain(stay) {
        let permutation = match order.is_identity() {
            true => Vec::new(),
            false => order.columns,
        };
        let transform = flipped(problem, tree.root, &terms, current, permutation)?;
        transforms.extend((transform != *current).then_some(transform));
    }
    Ok(Candidates {
        transforms,
        optimal_within,
    })
}

/// Returns `current` followed by an order of units and the signs that are best under it.
fn flipped(
    problem: &Problem<'_>,
    root: usize,
    terms: &[WeightedTerm],
    current: &Transform,
    permutation: Vec<u32>,
) -> Result<Transform> {
    let order = Element {
        permutation,
        ..Element::default()
    };
    let ordered = apply(problem, current, vec![(root, order)])?;
    if !terms.iter().any(|weighted| weighted.term.signed) {
        return Ok(ordered);
    }
    let units = problem.symmetries.groups[root].units;
    let moved = problem.moved(&ordered);
    let [_, signed] = own_products(problem, moved.as_ref(), terms, units)?;
    let signs = Element {
        negative: signed.iter().map(|product| *product < 0.0).collect(),
        ..Element::default()
    };
    apply(problem, &ordered, vec![(root, signs)])
}

/// Rows of C, computed on request.
struct Tiles<'a, 'b> {
    problem: &'a Problem<'b>,
    moved: &'a dyn Weights,
    terms: &'a [WeightedTerm],
    units: usize,
    /// Rows that are computed together.
    height: usize,
    /// The range of rows that are held.
    held: Range<usize>,
    entries: Vec<f32>,
    /// The matrix S, if there is a U as well.
    signed: Vec<f32>,
    panels: [Panel; 2],
    /// True if all rows are kept once they are computed.
    keep: bool,
}

impl<'a, 'b> Tiles<'a, 'b> {
    fn new(
        problem: &'a Problem<'b>,
        moved: &'a dyn Weights,
        terms: &'a [WeightedTerm],
        units: usize,
    ) -> Result<Self> {
        let mixed = is_mixed(terms);
        let memory = problem.options.memory;
        let for_height = |height: usize, kept: usize| bytes(units, mixed, height, kept);
        let keep = for_height(linalg::ROWS, units) <= memory;
        // A device that cannot hold a strip of sums gets lower strips.
        let most = problem.options.backend.most_entries().unwrap_or(usize::MAX);
        let stays = |height: usize| height == linalg::ROWS || height * units <= most;
        let kept = |height: usize| if keep { units } else { height };
        let fits = |height: &usize| for_height(*height, kept(*height)) <= memory && stays(*height);
        let heights = (linalg::ROWS..=MOST_ROWS.max(linalg::ROWS)).step_by(linalg::ROWS);
        let Some(height) = heights.take_while(fits).last() else {
            let least = least_bytes(units, mixed);
            let cause = format!("{units} units need at least {least} bytes, got {memory}");
            return Err(Error::new(
                Kind::Budget,
                "cannot match weights",
                "memory budget",
                cause,
            ));
        };
        let panels = [Panel::default(), Panel::default()];
        let (entries, signed) = (Vec::new(), Vec::new());
        Ok(Self {
            problem,
            moved,
            terms,
            units,
            height,
            held: 0..0,
            entries,
            signed,
            panels,
            keep,
        })
    }

    /// Computes the next rows if all are kept; else rows from the first requested one on: a tile of
    /// full height if a pass begins or continues, and only the requested rows if it has skipped
    /// some.
    fn compute(&mut self, asked: &Range<usize>) -> Result<()> {
        let rows = self.next_rows(asked);
        let mixed = is_mixed(self.terms);
        let begin = self.make_room(&rows, mixed);
        let tile = &mut self.entries[begin..];
        // Without a U, S alone is summed into the tile; the absolute values are taken at the end.
        let mut sums = vec![(false, &mut *tile)];
        if mixed {
            sums.push((true, &mut self.signed));
        }
        for (signed, out) in sums {
            let mut sum = self.problem.options.backend.begin(rows.len(), out)?;
            let terms = self.terms.iter();
            for weighted in terms.filter(|weighted| !mixed || weighted.term.signed == signed) {
                let panels = &mut self.panels;
                self.problem
                    .add_products(self.moved, weighted, &rows, panels, sum.as_mut())?;
            }
            sum.finish()?;
        }
        if mixed {
            let entries = tile.iter_mut().zip(&self.signed);
            entries.for_each(|(entry, signed)| *entry += signed.abs());
        } else if self.terms.iter().any(|weighted| weighted.term.signed) {
            tile.iter_mut().for_each(|entry| *entry = entry.abs());
        }
        Ok(())
    }

    /// Makes room for rows, and for those of S beside them if it is `mixed` with U; returns where
    /// they begin.
    fn make_room(&mut self, rows: &Range<usize>, mixed: bool) -> usize {
        let size = rows.len() * self.units;
        if self.keep {
            self.held = 0..rows.end;
            self.entries
                .reserve_exact(self.units * self.units - self.entries.len());
        } else {
            self.held = rows.clone();
            self.entries.clear();
        }
        let begin = self.entries.len();
        self.entries.resize(begin + size, 0.0);
        self.signed.clear();
        self.signed.resize(if mixed { size } else { 0 }, 0.0);
        begin
    }

    /// Chooses the rows to compute.
    fn next_rows(&self, asked: &Range<usize>) -> Range<usize> {
        let tile = |start: usize| start..self.units.min(start + self.height);
        if self.keep {
            return tile(self.held.end);
        }
        if asked.start == 0 || asked.start == self.held.end {
            return tile(asked.start);
        }
        // Products are computed on a grid of rows, so that their bits do not depend on the request.
        let start = asked.start / linalg::ROWS * linalg::ROWS;
        let end = asked.end.next_multiple_of(linalg::ROWS);
        start..self.units.min(end.min(start + self.height))
    }
}

/// Returns the bytes for this many units when `height` rows are computed together and `kept` rows
/// are held: tiles, panels of both models, and the assignment.
fn bytes(units: usize, mixed: bool, height: usize, kept: usize) -> u64 {
    let row = units * size_of::<f32>();
    let readers = rayon::current_num_threads() * READER_BYTES;
    let fixed = readers + units * (FEATURES * size_of::<f32>() + SOLVER_BYTES) + ASKED_ROWS * row;
    (fixed + height * FEATURES * size_of::<f32>() + (kept + height * usize::from(mixed)) * row)
        as u64
}

/// Returns the least bytes in which this many units are assigned; `mixed` means that signs act on
/// some of the terms and not on others.
pub(super) fn least_bytes(units: usize, mixed: bool) -> u64 {
    bytes(units, mixed, linalg::ROWS, linalg::ROWS)
}

fn is_mixed(terms: &[WeightedTerm]) -> bool {
    terms.iter().any(|weighted| weighted.term.signed)
        && terms.iter().any(|weighted| !weighted.term.signed)
}

impl CostTiles for Tiles<'_, '_> {
    fn size(&self) -> usize {
        self.units
    }

    fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut rest = out;
        let mut at = rows.start;
        while at < rows.end {
            if !self.held.contains(&at) {
                self.compute(&(at..rows.end))?;
                continue;
            }
            let end = rows.end.min(self.held.end);
            let (piece, after) = rest.split_at_mut((end - at) * self.units);
            let from = (at - self.held.start) * self.units;
            piece.copy_from_slice(&self.entries[from..from + piece.len()]);
            (rest, at) = (after, end);
        }
        Ok(())
    }
}
