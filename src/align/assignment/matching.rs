//! Assignment on the candidates of a large matrix, by shortest augmenting paths that start from the
//! last solution.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::graph::Graph;
use super::scan::TwoSmallest;

const NONE: u32 = u32::MAX;

/// A matching and column prices, such that every matched row has a column that is cheapest for it.
///
/// Prices begin at zero and only ever fall, so the caller can keep lower bounds on reduced costs.
#[derive(Debug)]
pub(super) struct Matching {
    /// The column of each row.
    columns: Vec<u32>,
    /// The row of each column.
    rows: Vec<u32>,
    /// The cost of each row's column.
    costs: Vec<f64>,
    prices: Vec<f64>,
}

impl Matching {
    /// Bytes for each row of the matrix, including those of the search.
    pub(super) const BYTES_PER_ROW: usize = 3 * size_of::<f64>() + 6 * size_of::<u32>();

    pub(super) fn new(size: usize) -> Self {
        Self {
            columns: vec![NONE; size],
            rows: vec![NONE; size],
            costs: vec![0.0; size],
            prices: vec![0.0; size],
        }
    }

    pub(super) fn prices(&self) -> &[f64] {
        &self.prices
    }

    pub(super) fn columns(&self) -> &[u32] {
        &self.columns
    }

    /// Returns the reduced cost of the row's column, which is the row's dual.
    pub(super) fn dual(&self, row: usize) -> f64 {
        self.costs[row] - self.prices[self.columns[row] as usize]
    }

    /// Returns the cost of the whole matching.
    pub(super) fn total(&self) -> f64 {
        self.costs.iter().sum()
    }

    /// Returns columns, their costs, and prices.
    pub(super) fn into_parts(self) -> (Vec<u32>, Vec<f64>, Vec<f64>) {
        (self.columns, self.costs, self.prices)
    }

    /// Gives every row its cheapest column as long as no other row has it; those of `start` come
    /// first. No price moves, so where no two rows compete the duals are as low as they can be.
    pub(super) fn prefer(&mut self, graph: &Graph, start: &[u32]) {
        for (row, column) in start.iter().enumerate() {
            let cost = graph
                .cost(row, *column)
                .map(f64::from)
                .expect("the start is among the candidates");
            let price = self.prices[*column as usize];
            if graph
                .edges(row)
                .all(|(other, other_cost)| other_cost - self.prices[other] >= cost - price)
            {
                self.assign(row, *column as usize, cost);
            }
        }
        for row in 0..self.columns.len() {
            let (best, costs) = self.two_cheapest(graph, row);
            if self.columns[row] == NONE && self.rows[best.first_column] == NONE {
                self.assign(row, best.first_column, costs.0);
            }
        }
    }

    /// Makes the matching perfect and optimal on the candidates, which must contain a perfect
    /// matching. Rows whose column a new candidate undercuts by more than `tolerance` are matched
    /// again; the others keep theirs if they can.
    pub(super) fn solve(&mut self, graph: &Graph, tolerance: f64) {
        let mut free = self.release(graph, tolerance);
        for _ in 0..2 {
            free = self.bid(graph, free);
        }
        let mut search = Search::new(self.columns.len());
        for row in free {
            self.augment(graph, row, &mut search);
        }
    }

    fn assign(&mut self, row: usize, column: usize, cost: f64) {
        self.columns[row] = index(column);
        self.rows[column] = index(row);
        self.costs[row] = cost;
    }

    fn release(&mut self, graph: &Graph, tolerance: f64) -> Vec<usize> {
        let mut free = Vec::new();
        for row in 0..self.columns.len() {
            let column = self.columns[row];
            if column != NONE {
                let limit = self.dual(row) - tolerance;
                if graph
                    .edges(row)
                    .all(|(other, cost)| cost - self.prices[other] >= limit)
                {
                    continue;
                }
                self.rows[column as usize] = NONE;
                self.columns[row] = NONE;
            }
            free.push(row);
        }
        free
    }

    /// Lets free rows take their cheapest column at a price that makes it as dear as their second
    /// choice; returns the rows that lost theirs and stay free.
    fn bid(&mut self, graph: &Graph, free: Vec<usize>) -> Vec<usize> {
        let mut outbid = Vec::new();
        let mut steps = 0;
        for first in free {
            let mut next = Some(first);
            while let Some(row) = next.take() {
                let (best, costs) = self.two_cheapest(graph, row);
                let lowers = best.first < best.second;
                let taken = self.rows[best.first_column] != NONE;
                if best.second.is_infinite() && taken {
                    // A row with a single candidate would pay any price.
                    outbid.push(row);
                    continue;
                }
                let (column, cost) = if lowers || !taken {
                    (best.first_column, costs.0)
                } else {
                    (best.second_column, costs.1)
                };
                if best.second.is_finite() {
                    self.prices[best.first_column] -= best.second - best.first;
                }
                let owner = self.rows[column];
                self.assign(row, column, cost);
                if owner != NONE {
                    self.columns[owner as usize] = NONE;
                    steps += 1;
                    // Chains of ever smaller bids must end: after this many steps the losers wait
                    // for a path.
                    if lowers && steps <= 4 * self.columns.len() {
                        next = Some(owner as usize);
                    } else {
                        outbid.push(owner as usize);
                    }
                }
            }
        }
        outbid
    }

    /// Returns the two cheapest columns of a row and their costs.
    fn two_cheapest(&self, graph: &Graph, row: usize) -> (TwoSmallest, (f64, f64)) {
        let mut best = TwoSmallest::none();
        for (column, cost) in graph.edges(row) {
            best.see(cost - self.prices[column], column);
        }
        let cost = |column: usize| graph.cost(row, index(column));
        let first = cost(best.first_column);
        let second = best.second.is_finite().then_some(best.second_column);
        let costs = [first, second.and_then(cost)];
        let [first, second] = costs.map(|cost| cost.map_or(f64::INFINITY, f64::from));
        (best, (first, second))
    }

    /// Matches one free row along a shortest alternating path.
    fn augment(&mut self, graph: &Graph, start: usize, search: &mut Search) {
        let (mut column, distance) = self.nearest_free_column(graph, start, search);
        for (column, reached) in &search.closed {
            self.prices[*column as usize] += reached - distance;
        }
        loop {
            let row = search.from[column] as usize;
            let before = self.columns[row];
            let cost = graph
                .cost(row, index(column))
                .map(f64::from)
                .expect("paths run along candidates");
            self.assign(row, column, cost);
            if row == start {
                break;
            }
            column = before as usize;
        }
    }

    fn nearest_free_column(
        &self,
        graph: &Graph,
        start: usize,
        search: &mut Search,
    ) -> (usize, f64) {
        search.begin();
        // The nearest free column so far; columns beyond it need no visit.
        let mut nearest = (f64::INFINITY, usize::MAX);
        let (mut row, mut distance, mut offset) = (start, 0.0, 0.0);
        loop {
            for (column, cost) in graph.edges(row) {
                let reached = f64::max(
                    cost - self.prices[column] - offset,
                    distance_floor(row, start, distance),
                );
                if reached >= nearest.0 || !search.improves(column, reached) {
                    continue;
                }
                search.reach(column, reached, row);
                if self.rows[column] == NONE {
                    nearest = (reached, column);
                } else {
                    search.heap.push(Reverse(Step {
                        distance: reached,
                        column: index(column),
                    }));
                }
            }
            let Some(step) = search.pop(nearest.0) else {
                assert!(
                    nearest.1 != usize::MAX,
                    "the candidates hold a perfect matching"
                );
                return (nearest.1, nearest.0);
            };
            let column = step.column as usize;
            search.closed.push((step.column, step.distance));
            row = self.rows[column] as usize;
            distance = step.distance;
            offset = self.dual(row) - distance;
        }
    }
}

/// Returns the least distance that a next step can have: distances never fall along a path, except
/// by rounding. The first row's are its reduced costs, of any sign.
fn distance_floor(row: usize, start: usize, distance: f64) -> f64 {
    if row == start {
        f64::NEG_INFINITY
    } else {
        distance
    }
}

fn index(value: usize) -> u32 {
    u32::try_from(value).expect("the size fits 32 bits")
}

/// A column on the front of a search; nearer columns come first, then lower ones.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Step {
    distance: f64,
    column: u32,
}

impl Eq for Step {}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        self.distance
            .total_cmp(&other.distance)
            .then(self.column.cmp(&other.column))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The state of one search, kept from one to the next so that a short search costs little.
struct Search {
    distances: Vec<f64>,
    from: Vec<u32>,
    /// The search that last reached each column.
    seen: Vec<u32>,
    current: u32,
    heap: BinaryHeap<Reverse<Step>>,
    closed: Vec<(u32, f64)>,
}

impl Search {
    fn new(size: usize) -> Self {
        Self {
            distances: vec![0.0; size],
            from: vec![NONE; size],
            seen: vec![0; size],
            current: 0,
            heap: BinaryHeap::new(),
            closed: Vec::new(),
        }
    }

    fn begin(&mut self) {
        self.current += 1;
        self.heap.clear();
        self.closed.clear();
    }

    fn improves(&self, column: usize, distance: f64) -> bool {
        self.seen[column] != self.current || distance < self.distances[column]
    }

    fn reach(&mut self, column: usize, distance: f64, row: usize) {
        self.seen[column] = self.current;
        self.distances[column] = distance;
        self.from[column] = index(row);
    }

    /// Takes the nearest column of the front, if it is nearer than `limit`.
    fn pop(&mut self, limit: f64) -> Option<Step> {
        while let Some(Reverse(step)) = self.heap.pop() {
            if step.distance >= limit {
                return None;
            }
            // A column that was reached again by a shorter path is in the heap twice.
            if step.distance == self.distances[step.column as usize] {
                return Some(step);
            }
        }
        None
    }
}
