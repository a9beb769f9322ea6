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
use super::terms::{Term, Tree};
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

/// Terms and their weights; terms of weight zero are left out.
pub(super) type Weighted = Vec<(Term, f64)>;

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

/// Pairs the terms with their weights.
fn weighted(problem: &Problem<'_>, terms: Vec<Term>, current: &Transform) -> Result<Weighted> {
    let weighted = terms.into_iter().map(|term| {
        problem
            .term_weight(&term, current)
            .map(|weight| (term, weight))
    });
    let mut all = weighted.collect::<Result<Weighted>>()?;
    all.retain(|(_, weight)| *weight > 0.0);
    Ok(all)
}

/// Finds the best order of `units` units, if they may be reordered; each of `terms` has one factor
/// of rows.
pub(super) fn order(
    problem: &Problem<'_>,
    moved: &dyn Weights,
    terms: &Weighted,
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
        let options = assignment::Options {
            tile_rows: ASKED_ROWS,
            ..assignment::Options::default()
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
    terms: &Weighted,
    units: usize,
) -> Result<[Vec<f64>; 2]> {
    let mut sums = [vec![0.0; units], vec![0.0; units]];
    for (term, weight) in terms {
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
    let order = order(
        problem,
        problem.moved(current).as_ref(),
        &terms,
        group.units,
        is_free,
    )?;
    // If the group is on two axes of a tensor, the order was solved for one axis at a time.
    let twice = tensors
        .iter()
        .flat_map(|tensor| tree.parts(problem.symmetries, tensor));
    let held = twice.into_iter().any(|part| part.times(tree.root) > 1);
    let optimal_within = if held {
        f64::INFINITY
    } else {
        order.optimal_within
    };
    let mut found = Vec::new();
    let stays = order.is_identity();
    for order in std::iter::once(order).chain((!stays).then(|| Order::identity(group.units))) {
        let stays = order.is_identity();
        let permutation = if stays { Vec::new() } else { order.columns };
        let ordered = apply(
            problem,
            current,
            vec![(
                tree.root,
                Element {
                    permutation,
                    ..Element::default()
                },
            )],
        )?;
        let signed = terms.iter().any(|(term, _)| term.signed);
        let negative = if signed {
            let [_, signed] = own_products(
                problem,
                problem.moved(&ordered).as_ref(),
                &terms,
                group.units,
            )?;
            signed.iter().map(|product| *product < 0.0).collect()
        } else {
            Vec::new()
        };
        if negative.contains(&true) {
            found.push(apply(
                problem,
                &ordered,
                vec![(
                    tree.root,
                    Element {
                        negative,
                        ..Element::default()
                    },
                )],
            )?);
        } else if !stays {
            found.push(ordered);
        }
    }
    Ok(Candidates {
        transforms: found,
        optimal_within,
    })
}

/// Rows of C, computed on request.
struct Tiles<'a, 'b> {
    problem: &'a Problem<'b>,
    moved: &'a dyn Weights,
    terms: &'a Weighted,
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
        terms: &'a Weighted,
        units: usize,
    ) -> Result<Self> {
        let mixed = is_mixed(terms);
        let memory = problem.options.memory;
        let for_height = |height: usize, kept: usize| bytes(units, mixed, height, kept);
        let keep = for_height(linalg::ROWS, units) <= memory;
        // A device that cannot hold a strip of sums gets lower strips.
        let most = problem.options.backend.most_entries().unwrap_or(usize::MAX);
        let stays = |height: usize| height == linalg::ROWS || height * units <= most;
        let fits = |height: &usize| {
            for_height(*height, if keep { units } else { *height }) <= memory && stays(*height)
        };
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
        let (start, end) = if self.keep {
            (self.held.end, self.units.min(self.held.end + self.height))
        } else if asked.start == 0 || asked.start == self.held.end {
            (asked.start, self.units.min(asked.start + self.height))
        } else {
            let start = asked.start / linalg::ROWS * linalg::ROWS;
            (
                start,
                self.units.min(
                    asked
                        .end
                        .next_multiple_of(linalg::ROWS)
                        .min(start + self.height),
                ),
            )
        };
        let size = (end - start) * self.units;
        if self.keep {
            self.held = 0..end;
            self.entries
                .reserve_exact(self.units * self.units - self.entries.len());
        } else {
            self.held = start..end;
            self.entries.clear();
        }
        let begin = self.entries.len();
        self.entries.resize(begin + size, 0.0);
        let mixed = is_mixed(self.terms);
        self.signed.clear();
        self.signed.resize(if mixed { size } else { 0 }, 0.0);
        let tile = &mut self.entries[begin..];
        for (signed, out) in [(false, &mut *tile), (true, &mut self.signed)]
            .into_iter()
            .take(1 + usize::from(mixed))
        {
            let mut sum = self.problem.options.backend.begin(end - start, out)?;
            for (term, weight) in self
                .terms
                .iter()
                .filter(|(term, _)| !mixed || term.signed == signed)
            {
                let (term, units) = ((term, *weight), start..end);
                self.problem.add_products(
                    self.moved,
                    term,
                    &units,
                    &mut self.panels,
                    sum.as_mut(),
                )?;
            }
            sum.finish()?;
        }
        if mixed {
            tile.iter_mut()
                .zip(&self.signed)
                .for_each(|(entry, signed)| *entry += signed.abs());
        } else if self.terms.iter().any(|(term, _)| term.signed) {
            tile.iter_mut().for_each(|entry| *entry = entry.abs());
        }
        Ok(())
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

fn is_mixed(terms: &Weighted) -> bool {
    terms.iter().any(|(term, _)| term.signed) && terms.iter().any(|(term, _)| !term.signed)
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
