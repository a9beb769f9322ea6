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

use super::moves::{CellPair, CellProducts, Inner, Leaf, Moves, order_of};
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
pub(super) struct JointMoves {
    pub moves: Vec<Moves>,
    pub score: f64,
}

impl JointMoves {
    /// True if a score is better by more than rounding.
    fn is_exceeded_by(&self, score: f64) -> bool {
        score > self.score + NOISE * self.score.abs()
    }
}

/// The problem of one pair of units.
pub(super) struct Joint<'a> {
    pub inners: &'a [Inner<'a>],
    pub products: &'a [CellProducts],
    /// The other model's unit.
    pub unit: usize,
}

/// A cell, a cell of the other model that it comes from, and the factor.
#[derive(Debug, Clone, Copy)]
struct Image {
    cells: CellPair,
    factor: f64,
}

impl Joint<'_> {
    /// Finds the best moves and their score.
    pub fn solve(&self) -> Result<JointMoves> {
        let stay: Vec<Moves> = self.inners.iter().map(Inner::stay).collect();
        let mut best = self.ascend(stay.clone(), 0)?;
        let Some(first) = self.meeting() else {
            return Ok(best);
        };
        // Ascent may end in a local maximum: a few queries and the pairs of their key head hold each
        // other in place. So it also starts from every order of the group that meets most others.
        let reach = self.reach_of(first);
        // Products that do not meet the group are bounded apart from its order.
        let mut apart = 0.0;
        for products in self
            .products
            .iter()
            .filter(|products| !products.meet(first))
        {
            apart += bound(products, self.inners, self.unit)?;
        }
        for (order, most) in ranked(&reach, self.inners[first].group.units)? {
            // The bounds fall, so no later order can be better than the best either.
            if !best.is_exceeded_by(most + apart) {
                break;
            }
            let mut moves = stay.clone();
            moves[first].order = order;
            // The other groups answer to the order before it is solved again itself.
            let found = self.ascend(moves, first + 1)?;
            if best.is_exceeded_by(found.score) {
                best = found;
            }
        }
        Ok(best)
    }

    /// Returns the group that meets the most others on an axis, if any two meet.
    fn meeting(&self) -> Option<usize> {
        let ordered = (0..self.inners.len()).filter(|at| self.inners[*at].is_ordered());
        let meetings = ordered.map(|at| (self.meetings_of(at), at));
        let most = meetings.filter(|(meetings, _)| *meetings > 0);
        // Of equal groups the first is taken.
        let most = most.max_by_key(|(meetings, at)| (*meetings, std::cmp::Reverse(*at)));
        most.map(|(_, at)| at)
    }

    /// Counts the products in which a group meets others that may move.
    fn meetings_of(&self, at: usize) -> usize {
        let is_free = |leaf: &&Leaf| self.inners[leaf.inner].is_free();
        let shared = self.products.iter().filter(|products| {
            let free: Vec<&Leaf> = products.leaves.iter().filter(is_free).collect();
            free.len() > 1 && free.iter().any(|leaf| leaf.inner == at)
        });
        shared.count()
    }

    /// Solves the groups in turn, `first` first, until none gains.
    fn ascend(&self, mut moves: Vec<Moves>, first: usize) -> Result<JointMoves> {
        // Each group's own problem is solved exactly, so the score never falls; once no group has
        // gained since it was last solved, none would.
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
        Ok(JointMoves {
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
        // Less than the rounding of f32 products is no gain; without this, two groups could change
        // each other for ever.
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
        let mut new = old.clone();
        if inner.is_ordered() {
            // A unit's sign is chosen after its place, so a free sign makes every product positive.
            let entries = plain.iter().zip(&signed).map(|(plain, signed)| {
                narrow(plain + if inner.sign { signed.abs() } else { *signed })
            });
            new.order = order_of(&entries.collect::<Vec<f32>>(), units)?.columns;
        }
        let entry = |unit: usize, other: u32| unit * units + other as usize;
        if inner.sign {
            let order = new.order.iter().enumerate();
            new.negative = order
                .map(|(unit, other)| signed[entry(unit, *other)] < 0.0)
                .collect();
        }
        // Both scores are summed in f64 from the same products, so that they can be compared.
        let [before, after] = [old, &new].map(|moves| {
            let order = moves.order.iter().zip(&moves.negative).enumerate();
            let worth = order.map(|(unit, (other, negative))| {
                let at = entry(unit, *other);
                plain[at] + if *negative { -signed[at] } else { signed[at] }
            });
            worth.sum()
        });
        Ok((new, before, after))
    }

    /// Finds the best signs and angles of pairs, with all others held; returns the old and the new
    /// score too.
    fn turned(&self, at: usize, moves: &[Moves]) -> (Moves, f64, f64) {
        let (inner, old) = (&self.inners[at], &moves[at]);
        let mut new = old.clone();
        let (mut before, mut after) = (0.0, 0.0);
        let sums = self.pair_sums(at, moves);
        // Pairs turn independently of each other: each has its own D and X.
        for (pair, (along, across)) in sums.into_iter().enumerate() {
            (new.negative[pair], new.angle[pair]) = best_turn(inner, along, across);
            before += old.turned_worth(pair, along, across);
            after += new.turned_worth(pair, along, across);
        }
        (new, before, after)
    }

    /// Returns D and X of each pair of a group of pairs.
    fn pair_sums(&self, at: usize, moves: &[Moves]) -> Vec<(f64, f64)> {
        let inner = &self.inners[at];
        let mut sums = vec![(0.0, 0.0); inner.group.pair_count()];
        for products in self.products {
            let leaves = products.leaves.iter();
            for leaf in leaves.filter(|leaf| leaf.inner == at && leaf.signed) {
                self.visit(products, Some(leaf), moves, &mut |image| {
                    for (pair, (along, across)) in sums.iter_mut().enumerate() {
                        let (d, x) =
                            pair_products(products, inner, leaf, pair, self.unit, image.cells);
                        *along += image.factor * d;
                        *across += image.factor * x;
                    }
                });
            }
        }
        sums
    }

    /// Returns the products of each unit with each unit that could take its place: those without
    /// signs, and those with signs.
    fn costs(&self, at: usize, moves: &[Moves]) -> [Vec<f64>; 2] {
        let units = self.inners[at].group.units;
        let mut costs = [vec![0.0; units * units], vec![0.0; units * units]];
        for products in self.products {
            for leaf in products.leaves.iter().filter(|leaf| leaf.inner == at) {
                let into = &mut costs[usize::from(leaf.signed)];
                // All other groups stay where `moves` has them; only this leaf's unit is open.
                self.visit(products, Some(leaf), moves, &mut |image| {
                    for (unit, row) in into.chunks_exact_mut(units).enumerate() {
                        for (to, entry) in row.iter_mut().enumerate() {
                            let cells = image.cells.moved(unit * leaf.stride, to * leaf.stride);
                            *entry += image.factor * products.entry(self.unit, cells);
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
    fn reach(&self, products: &CellProducts, leaf: &Leaf, cell: usize, other: usize) -> f64 {
        let rest: Vec<&Leaf> = products
            .leaves
            .iter()
            .filter(|rest| !std::ptr::eq(*rest, leaf))
            .collect();
        // Every cell takes the best partner that any moves of the other groups could give it, though
        // no moves may give all of them theirs at once: so it is a bound.
        let (inners, unit) = (self.inners, self.unit);
        let mut sum = 0.0;
        each_cell(&rest, cell, inners, &mut |cell, pair| {
            let mut most = f64::NEG_INFINITY;
            each_target(&rest, cell, other, inners, &mut |target| {
                let cells = CellPair {
                    own: cell,
                    other: target,
                };
                most = most.max(cell_reach(products, inners, &rest, unit, cells, pair));
            });
            sum += most;
        });
        sum
    }

    /// Calls `visit` for all units of all leaves but one, with the cells without that leaf's part.
    fn visit(
        &self,
        products: &CellProducts,
        but: Option<&Leaf>,
        moves: &[Moves],
        visit: &mut dyn FnMut(Image),
    ) {
        let rest: Vec<Leaf> = products
            .leaves
            .iter()
            .filter(|leaf| !but.is_some_and(|but| std::ptr::eq(*leaf, but)))
            .copied()
            .collect();
        let begin = Image {
            cells: CellPair { own: 0, other: 0 },
            factor: 1.0,
        };
        self.walk(&rest, moves, begin, visit);
    }

    fn walk(&self, leaves: &[Leaf], moves: &[Moves], begin: Image, visit: &mut dyn FnMut(Image)) {
        let Some((leaf, rest)) = leaves.split_first() else {
            return visit(begin);
        };
        for unit in 0..leaf.size {
            // A turned unit comes from two old ones, so the walk forks there.
            let image = self.inners[leaf.inner].image(&moves[leaf.inner], leaf.signed, unit);
            for (from, share) in image.into_iter().filter(|(_, share)| *share != 0.0) {
                let next = Image {
                    cells: begin.cells.moved(unit * leaf.stride, from * leaf.stride),
                    factor: begin.factor * share,
                };
                self.walk(rest, moves, next, visit);
            }
        }
    }

    /// Returns the score of `moves`.
    fn score(&self, moves: &[Moves]) -> f64 {
        let mut score = 0.0;
        for products in self.products {
            self.visit(products, None, moves, &mut |image| {
                score += image.factor * products.entry(self.unit, image.cells);
            });
        }
        score
    }
}

/// Ranks orders of units by an upper bound on their score, the largest first; equal ones keep their
/// order.
fn ranked(reach: &[f64], units: usize) -> Result<Vec<(Vec<u32>, f64)>> {
    if units > RANKED {
        // Too many orders to list: the one with the largest bound is tried alone.
        let entries: Vec<f32> = reach.iter().map(|entry| narrow(*entry)).collect();
        let order = order_of(&entries, units)?.columns;
        let most = reach_under(reach, &order);
        return Ok(vec![(order, most)]);
    }
    let mut ranked: Vec<(Vec<u32>, f64)> = all_orders(units)
        .into_iter()
        .map(|order| (order.clone(), reach_under(reach, &order)))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    ranked.truncate(TRIED);
    Ok(ranked)
}

/// Bounds the score of an order by those of its units.
fn reach_under(reach: &[f64], order: &[u32]) -> f64 {
    let rows = reach.chunks(order.len().max(1)).zip(order);
    rows.map(|(row, to)| row[*to as usize]).sum()
}

/// Lists the orders of so many units, in lexicographic order.
fn all_orders(units: usize) -> Vec<Vec<u32>> {
    let mut orders = vec![Vec::new()];
    for _ in 0..units {
        let mut longer = Vec::new();
        for order in &orders {
            let free = (0..).take(units).filter(|unit| !order.contains(unit));
            longer.extend(free.map(|unit| [&order[..], &[unit]].concat()));
        }
        orders = longer;
    }
    orders
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
