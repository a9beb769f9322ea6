//! Orders, signs and turns of units: the candidate moves of one root, and the parts of joint
//! problems.

use super::problem::Problem;
use crate::align::assignment::{self, Costs, Sense};
use crate::error::Result;
use crate::symmetry::{Allowed, Element, Group, Transform};

/// The moves that may raise the objective of a root.
pub(super) struct Candidates {
    /// Transforms from the largest expected gain to the smallest; none if everything should stay.
    pub transforms: Vec<Transform>,
    /// The most by which another transform can be better than the first, or than staying; infinite
    /// if unknown.
    pub optimal_within: f64,
}

/// An order of units, its score, and a bound on how much better another order can be.
#[derive(Debug)]
pub(super) struct Order {
    pub columns: Vec<u32>,
    /// The score by the f32 matrix.
    pub value: f64,
    /// The most by which another order can be better, in the f32 matrix.
    pub optimal_within: f64,
}

impl Order {
    pub fn identity(units: usize) -> Self {
        Self {
            columns: (0..).take(units).collect(),
            value: 0.0,
            optimal_within: 0.0,
        }
    }

    pub fn is_identity(&self) -> bool {
        self.columns
            .iter()
            .zip(0..)
            .all(|(column, unit)| *column == unit)
    }
}

/// A group and the moves that it allows.
#[derive(Debug)]
pub(super) struct Inner<'a> {
    pub group: &'a Group,
    /// True if its units, or pairs, may be flipped.
    pub sign: bool,
    /// True if its pairs may be turned.
    pub turn: bool,
}

/// One factor of the cells of a term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Leaf {
    /// The group's index among the inner groups.
    pub inner: usize,
    pub size: usize,
    /// The number of cells from one unit to the next.
    pub stride: usize,
    pub signed: bool,
}

/// The products of a term's cells: a row for each cell of one unit of the reference, a column for
/// each cell of every unit of the other model.
#[derive(Debug)]
pub(super) struct CellProducts {
    pub leaves: Vec<Leaf>,
    pub cells: usize,
    pub units: usize,
    pub entries: Vec<f32>,
}

/// A cell of a unit of the reference, and a cell of a unit of the other model.
#[derive(Debug, Clone, Copy)]
pub(super) struct CellPair {
    pub own: usize,
    pub other: usize,
}

impl CellPair {
    /// Returns the pair with both cells further on.
    pub fn moved(self, own: usize, other: usize) -> Self {
        Self {
            own: self.own + own,
            other: self.other + other,
        }
    }
}

/// The moves of the units of one group.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Moves {
    pub order: Vec<u32>,
    /// Signs of units or pairs.
    pub negative: Vec<bool>,
    /// Angles of pairs.
    pub angle: Vec<f64>,
}

impl Moves {
    /// Returns the score D cos θ + X sin θ of a pair, with its sign.
    pub fn turned_worth(&self, pair: usize, along: f64, across: f64) -> f64 {
        let (sin, cos) = self.angle[pair].sin_cos();
        let value = along * cos + across * sin;
        match self.negative.get(pair) {
            Some(true) => -value,
            _ => value,
        }
    }
}

impl<'a> Inner<'a> {
    pub fn new(group: &'a Group, signs: bool) -> Self {
        let turn = signs && group.pairs.is_some() && group.may(Allowed::Rotation);
        Self {
            group,
            sign: signs && group.may(Allowed::Sign),
            turn,
        }
    }

    pub fn is_paired(&self) -> bool {
        self.group.pairs.is_some()
    }

    /// True if units may be reordered. Units of pairs stay: each pair has a frequency of its own.
    pub fn is_ordered(&self) -> bool {
        !self.is_paired() && self.group.may(Allowed::Permutation) && self.group.units > 1
    }

    pub fn is_free(&self) -> bool {
        self.is_ordered() || self.sign || self.turn
    }

    /// Returns the units of a pair, the first one first.
    pub fn pair(&self, pair: usize) -> (usize, usize) {
        let of = |unit: usize| self.group.place_in_pairs(unit) == Some((pair, true));
        let first = [pair, 2 * pair]
            .into_iter()
            .find(|unit| of(*unit))
            .unwrap_or(pair);
        (first, self.group.partner(first).unwrap_or(first))
    }

    pub fn stay(&self) -> Moves {
        Moves {
            order: (0..).take(self.group.units).collect(),
            negative: vec![false; self.group.sign_count()],
            angle: match self.is_paired() {
                true => vec![0.0; self.group.pair_count()],
                false => Vec::new(),
            },
        }
    }

    /// Returns the old units that make up a new one, with their factors. Outside of pairs the second
    /// factor is zero.
    pub fn image(&self, moves: &Moves, signed: bool, unit: usize) -> [(usize, f64); 2] {
        let own = moves.order[unit] as usize;
        if !signed {
            return [(own, 1.0), (own, 0.0)];
        }
        let sign = |at: usize| if moves.negative[at] { -1.0 } else { 1.0 };
        // A pair (r, s) becomes (cos θ r - sin θ s, sin θ r + cos θ s), and has one sign.
        match self.group.place_in_pairs(unit) {
            None => [(own, sign(unit)), (own, 0.0)],
            Some((pair, first)) => {
                let (sin, cos) = moves.angle[pair].sin_cos();
                let sin = if first { -sin } else { sin };
                [
                    (own, sign(pair) * cos),
                    (self.group.partner(unit).unwrap_or(own), sign(pair) * sin),
                ]
            }
        }
    }
}

impl CellProducts {
    /// True if the inner group `inner` acts on the cells.
    pub fn meet(&self, inner: usize) -> bool {
        self.leaves.iter().any(|leaf| leaf.inner == inner)
    }

    /// Returns the product of two cells, the second one of unit `unit` of the other model.
    pub fn entry(&self, unit: usize, cells: CellPair) -> f64 {
        let row = &self.entries[cells.own * self.units * self.cells..];
        f64::from(row[unit * self.cells + cells.other])
    }
}

/// True if signs of a group's units are optimised.
pub(super) fn is_signed(problem: &Problem<'_>, group: usize) -> bool {
    problem.options.signs && problem.symmetries.groups[group].may(Allowed::Sign)
}

/// Finds the best order by a matrix in memory. Of equal choices the units stay in their places.
pub(super) fn order_of(entries: &[f32], units: usize) -> Result<Order> {
    let value = (0..units)
        .map(|unit| f64::from(entries[unit * units + unit]))
        .sum();
    // Most groups of related models stay: where each unit is its own best partner, no assignment
    // has to be solved.
    let mut rows = entries.chunks_exact(units.max(1)).enumerate();
    if rows.all(|(unit, row)| row.iter().all(|entry| *entry <= row[unit])) {
        return Ok(Order {
            value,
            ..Order::identity(units)
        });
    }
    let found = assignment::dense(&Costs::new(units, entries)?, Sense::Maximise)?;
    // Another order of the same score would move units for nothing.
    if found.objective <= value {
        return Ok(Order {
            value,
            ..Order::identity(units)
        });
    }
    Ok(Order {
        columns: found.columns,
        value: found.objective,
        optimal_within: 0.0,
    })
}

/// Returns `current` followed by `elements` of some groups; elements that do nothing are left out.
pub(super) fn apply(
    problem: &Problem<'_>,
    current: &Transform,
    elements: Vec<(usize, Element)>,
) -> Result<Transform> {
    let symmetries = problem.symmetries;
    let mut then = Transform::identity(symmetries);
    for (group, mut element) in elements {
        // A part that does nothing is left out, so that a transform that is reached in two ways is
        // equal to itself.
        let units = symmetries.groups[group].units.max(1);
        if element
            .permutation
            .iter()
            .enumerate()
            .all(|(at, unit)| at % units == *unit as usize)
        {
            element.permutation.clear();
        }
        if !element.negative.contains(&true) {
            element.negative.clear();
        }
        if element.angle.iter().all(|angle| *angle == 0.0) {
            element.angle.clear();
        }
        then = then.with(symmetries, group, element)?;
    }
    Ok(current.compose(symmetries, &then))
}
