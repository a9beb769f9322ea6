//! The joint problem of the groups within one unit of a root, for one pair of units, on the
//! products of their cells.
//!
//! The product of a cell of the reference's unit and a cell of the other model's unit is one entry
//! of a small matrix. Each inner group's own problem, with all others held, is exact: an assignment
//! if units may be reordered, the sign of a sum if they may be flipped, and for a pair turned by θ
//! the maximum of D cos θ + X sin θ, which is at atan2(X, D). Groups that meet on one axis (the
//! queries of a head and their rotary pairs) are solved in turn until nothing is gained: first from
//! their current moves, then from each order of the group that meets most others, best first by an
//! upper bound on the score, until the bound is below the best score found. With the few queries
//! that share a key head all orders are tried or ruled out by the bound, so the result is exact; of
//! many queries the most promising orders are tried.

use super::moves::{Inner, Leaf, Moves, Products, order_of};
use super::problem::narrow;
use super::reach::{bound, cell_reach, each_cell, each_target, pair_products};
use crate::error::Result;

/// The most rounds over all inner groups; the objective grows in each, so there are few.
const ROUNDS: usize = 32;
/// The most units for which all orders are ranked.
const RANKED: usize = 7;
/// The most ranked orders that are tried: all of those of four units.
const TRIED: usize = 24;
/// The share of a sum of f32 products that is attributed to rounding.
const NOISE: f64 = 1e-6;

/// The best moves found for a pair of units, and their score.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub moves: Vec<Moves>,
    pub score: f64,
}

/// The problem of one pair of units.
pub(super) struct Joint<'a> {
    pub inners: &'a [Inner<'a>],
    pub products: &'a [Products],
    /// The other model's unit.
    pub unit: usize,
}

impl Joint<'_> {
    /// Finds the best moves and their score.
    pub fn solve(&self) -> Result<Found> {
        let stay: Vec<Moves> = self.inners.iter().map(Inner::stay).collect();
        let mut best = self.ascend(stay.clone(), 0)?;
        let Some(first) = self.meeting() else {
            return Ok(best);
        };
        let reach = self.reach_of(first);
        let mut apart = 0.0;
        for products in self
            .products
            .iter()
            .filter(|products| products.leaves.iter().all(|leaf| leaf.inner != first))
        {
            apart += bound(products, self.inners, self.unit)?;
        }
        for (order, most) in ranked(&reach, self.inners[first].group.units)? {
            let is_better =
                |score: f64, best: &Found| score > best.score + NOISE * best.score.abs();
            if !is_better(most + apart, &best) {
                break;
            }
            let mut moves = stay.clone();
            moves[first].order = order;
            let found = self.ascend(moves, first + 1)?;
            if is_better(found.score, &best) {
                best = found;
            }
        }
        Ok(best)
    }

    /// Returns the group that meets the most others on an axis, if any two meet.
    fn meeting(&self) -> Option<usize> {
        let free = |leaf: &&Leaf| self.inners[leaf.inner].is_free();
        let meets = |at: usize| {
            let shared = self.products.iter().filter(|products| {
                let free: Vec<&Leaf> = products.leaves.iter().filter(free).collect();
                free.len() > 1 && free.iter().any(|leaf| leaf.inner == at)
            });
            shared.count()
        };
        let ordered =
            (0..self.inners.len()).filter(|at| self.inners[*at].is_ordered() && meets(*at) > 0);
        ordered.max_by_key(|at| (meets(*at), std::cmp::Reverse(*at)))
    }

    /// Solves the groups in turn, `first` first, until none gains.
    fn ascend(&self, mut moves: Vec<Moves>, first: usize) -> Result<Found> {
        let mut idle = 0;
        for turn in 0..ROUNDS * self.inners.len() {
            let at = (first + turn) % self.inners.len();
            idle += 1;
            if self.inners[at].is_free() && self.improve(at, &mut moves)? {
                idle = 0;
            }
            if idle == self.inners.len() {
                break;
            }
        }
        Ok(Found {
            score: self.score(&moves),
            moves,
        })
    }

    /// Solves one group; returns true if that gained anything.
    fn improve(&self, at: usize, moves: &mut [Moves]) -> Result<bool> {
        let inner = &self.inners[at];
        let (better, before, after) = if inner.is_paired() {
            self.turned(at, moves)
        } else {
            self.ordered(at, moves)?
        };
        let gains = after > before + NOISE * before.abs().max(after.abs());
        if gains {
            moves[at] = better;
        }
        Ok(gains)
    }

    /// Finds the best order and signs, with all others held; returns the old and the new score too.
    fn ordered(&self, at: usize, moves: &[Moves]) -> Result<(Moves, f64, f64)> {
        let (inner, old) = (&self.inners[at], &moves[at]);
        let units = inner.group.units;
        let [plain, signed] = self.costs(at, moves);
        let worth = |unit: usize, other: usize, negative: bool| {
            let entry = unit * units + other;
            plain[entry]
                + if negative {
                    -signed[entry]
                } else {
                    signed[entry]
                }
        };
        let mut new = old.clone();
        if inner.is_ordered() {
            let best = |(plain, signed): (&f64, &f64)| {
                plain + if inner.sign { signed.abs() } else { *signed }
            };
            let entries: Vec<f32> = plain.iter().zip(&signed).map(best).map(narrow).collect();
            new.order = order_of(&entries, units)?.columns;
        }
        if inner.sign {
            let flips = |(unit, other): (usize, &u32)| signed[unit * units + *other as usize] < 0.0;
            new.negative = new.order.iter().enumerate().map(flips).collect();
        }
        let value = |moves: &Moves| -> f64 {
            (0..units)
                .map(|unit| worth(unit, moves.order[unit] as usize, moves.negative[unit]))
                .sum()
        };
        let (before, after) = (value(old), value(&new));
        Ok((new, before, after))
    }

    /// Finds the best signs and angles of pairs, with all others held; returns the old and the new
    /// score too.
    fn turned(&self, at: usize, moves: &[Moves]) -> (Moves, f64, f64) {
        let (inner, old) = (&self.inners[at], &moves[at]);
        let mut new = old.clone();
        let (mut before, mut after) = (0.0, 0.0);
        let sums = self.pair_sums(at, moves);
        for (pair, (along, across)) in sums.into_iter().enumerate() {
            let worth = |moves: &Moves| {
                let (sin, cos) = moves.angle[pair].sin_cos();
                let value = along * cos + across * sin;
                if moves.negative.get(pair) == Some(&true) {
                    -value
                } else {
                    value
                }
            };
            (new.negative[pair], new.angle[pair]) = best_turn(inner, along, across);
            before += worth(old);
            after += worth(&new);
        }
        (new, before, after)
    }

    /// Returns D and X of each pair of a group of pairs.
    fn pair_sums(&self, at: usize, moves: &[Moves]) -> Vec<(f64, f64)> {
        let inner = &self.inners[at];
        let mut sums = vec![(0.0, 0.0); inner.group.pair_count()];
        for products in self.products {
            for leaf in products
                .leaves
                .iter()
                .filter(|leaf| leaf.inner == at && leaf.signed)
            {
                self.visit(products, Some(leaf), moves, &mut |cell, other, factor| {
                    for (pair, (along, across)) in sums.iter_mut().enumerate() {
                        let (d, x) = self.pair_products(products, leaf, pair, cell, other);
                        *along += factor * d;
                        *across += factor * x;
                    }
                });
            }
        }
        sums
    }

    /// Computes D and X of one pair of one leaf.
    fn pair_products(
        &self,
        products: &Products,
        leaf: &Leaf,
        pair: usize,
        cell: usize,
        other: usize,
    ) -> (f64, f64) {
        pair_products(
            products,
            &self.inners[leaf.inner],
            leaf,
            (pair, self.unit),
            (cell, other),
        )
    }

    /// Returns the products of each unit with each unit that could take its place: those without
    /// signs, and those with signs.
    fn costs(&self, at: usize, moves: &[Moves]) -> [Vec<f64>; 2] {
        let units = self.inners[at].group.units;
        let mut costs = [vec![0.0; units * units], vec![0.0; units * units]];
        for products in self.products {
            for leaf in products.leaves.iter().filter(|leaf| leaf.inner == at) {
                let into = &mut costs[usize::from(leaf.signed)];
                self.visit(products, Some(leaf), moves, &mut |cell, other, factor| {
                    for (unit, row) in into.chunks_exact_mut(units).enumerate() {
                        for (to, entry) in row.iter_mut().enumerate() {
                            let (cell, other) =
                                (cell + unit * leaf.stride, other + to * leaf.stride);
                            *entry += factor * products.entry(self.unit, cell, other);
                        }
                    }
                });
            }
        }
        costs
    }

    /// Bounds the score of each unit of group `at` with each unit that could take its place, for
    /// any moves of the groups that it meets.
    fn reach_of(&self, at: usize) -> Vec<f64> {
        let units = self.inners[at].group.units;
        let mut most = vec![0.0; units * units];
        for products in self.products {
            for leaf in products.leaves.iter().filter(|leaf| leaf.inner == at) {
                for (place, entry) in most.iter_mut().enumerate() {
                    let (unit, to) = (place / units, place % units);
                    *entry += self.reach(products, leaf, unit * leaf.stride, to * leaf.stride);
                }
            }
        }
        most
    }

    /// Bounds the products of cells with one unit of `leaf` and cells with another.
    fn reach(&self, products: &Products, leaf: &Leaf, cell: usize, other: usize) -> f64 {
        let rest: Vec<&Leaf> = products
            .leaves
            .iter()
            .filter(|rest| !std::ptr::eq(*rest, leaf))
            .collect();
        let mut sum = 0.0;
        each_cell(&rest, cell, self.inners, &mut |cell, pair| {
            let mut most = f64::NEG_INFINITY;
            each_target(&rest, cell, other, self.inners, &mut |target| {
                most = most.max(cell_reach(
                    products,
                    self.inners,
                    &rest,
                    self.unit,
                    (cell, target),
                    pair,
                ));
            });
            sum += most;
        });
        sum
    }

    /// Calls `visit` for all units of all leaves but one, with the cell (without that leaf's part),
    /// a cell that it comes from, and the factor.
    fn visit(
        &self,
        products: &Products,
        but: Option<&Leaf>,
        moves: &[Moves],
        visit: &mut dyn FnMut(usize, usize, f64),
    ) {
        let rest: Vec<Leaf> = products
            .leaves
            .iter()
            .filter(|leaf| !but.is_some_and(|but| std::ptr::eq(*leaf, but)))
            .copied()
            .collect();
        self.walk(&rest, moves, (0, 0, 1.0), visit);
    }

    fn walk(
        &self,
        leaves: &[Leaf],
        moves: &[Moves],
        (cell, other, factor): (usize, usize, f64),
        visit: &mut dyn FnMut(usize, usize, f64),
    ) {
        let Some((leaf, rest)) = leaves.split_first() else {
            return visit(cell, other, factor);
        };
        for unit in 0..leaf.size {
            let image = self.inners[leaf.inner].image(&moves[leaf.inner], leaf.signed, unit);
            for (from, share) in image {
                if share != 0.0 {
                    let next = (
                        cell + unit * leaf.stride,
                        other + from * leaf.stride,
                        factor * share,
                    );
                    self.walk(rest, moves, next, visit);
                }
            }
        }
    }

    /// Returns the score of `moves`.
    fn score(&self, moves: &[Moves]) -> f64 {
        let mut score = 0.0;
        for products in self.products {
            self.visit(products, None, moves, &mut |cell, other, factor| {
                score += factor * products.entry(self.unit, cell, other);
            });
        }
        score
    }
}

/// Ranks orders of units by an upper bound on their score, the largest first; equal ones keep their
/// order.
fn ranked(reach: &[f64], units: usize) -> Result<Vec<(Vec<u32>, f64)>> {
    let most = |order: &[u32]| -> f64 {
        order
            .iter()
            .enumerate()
            .map(|(unit, to)| reach[unit * units + *to as usize])
            .sum()
    };
    if units > RANKED {
        let entries: Vec<f32> = reach.iter().map(|entry| narrow(*entry)).collect();
        let order = order_of(&entries, units)?.columns;
        let most = most(&order);
        return Ok(vec![(order, most)]);
    }
    let mut orders = vec![Vec::new()];
    for _ in 0..units {
        let longer = |order: &Vec<u32>| {
            let free = (0..).take(units).filter(|unit| !order.contains(unit));
            free.map(|unit| order.iter().copied().chain([unit]).collect())
                .collect::<Vec<Vec<u32>>>()
        };
        orders = orders.iter().flat_map(longer).collect();
    }
    let mut ranked: Vec<(Vec<u32>, f64)> = orders
        .into_iter()
        .map(|order| (order.clone(), most(&order)))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(TRIED);
    Ok(ranked)
}

/// Returns the best sign and angle of a pair with these sums. A sign is exact while a turn rounds,
/// so a pair that may be flipped is turned by at most a quarter of a circle.
pub(super) fn best_turn(inner: &Inner<'_>, along: f64, across: f64) -> (bool, f64) {
    let negative = inner.sign && along < 0.0;
    let (along, across) = if negative {
        (-along, -across)
    } else {
        (along, across)
    };
    (negative, if inner.turn { across.atan2(along) } else { 0.0 })
}
