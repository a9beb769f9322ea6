//! Assignment on a matrix in memory.

use crate::error::Result;

use super::scan;
use super::{Assignment, Costs, Sense, certified};

const NONE: usize = usize::MAX;

/// The size from which a few rounds on candidates pay, because they leave so little to do.
const LARGE: usize = 512;
/// The number of those rounds; a matrix that is not nearly solved by then is a hard case for
/// candidates.
const ROUNDS: usize = 8;

/// Finds the optimal permutation of a matrix in memory.
///
/// Column reduction, augmenting row reduction, then one shortest augmenting path for each row that
/// is still free (Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse
/// linear assignment problems", 1987), with duals in f64. A large matrix begins instead with the
/// prices that a few rounds of `certified` find, and keeps those of their matches that are cheapest
/// in the whole row. Time is O(n³) at worst; memory besides the matrix is O(n). The result depends
/// on the entries only, and among equal choices the lowest index is taken.
///
/// # Errors
///
/// [`Kind::NonFinite`](crate::Kind::NonFinite) when an entry is NaN or infinite.
pub fn dense(costs: &Costs<'_>, sense: Sense) -> Result<Assignment> {
    costs.check()?;
    let mut search = Search::new(costs, sense.sign());
    if costs.size() < LARGE {
        search.reduce_columns();
    } else {
        let (columns, prices) = certified::approximate(&mut costs.clone(), sense, ROUNDS)?;
        search.adopt(columns, prices);
    }
    let free = search.reduce_rows();
    search.augment(&free);
    let assigned: Vec<f64> = (0..costs.size())
        .map(|row| search.cost(row, search.columns[row]))
        .collect();
    let columns = search
        .columns
        .iter()
        .map(|column| u32::try_from(*column).expect("the size fits 32 bits"))
        .collect();
    Ok(Assignment::new(columns, &assigned, search.prices, sense))
}

/// A partial matching whose rows each have a cheapest column at the current prices.
struct Search<'a> {
    costs: &'a Costs<'a>,
    sign: f64,
    /// The column of each row, or [`NONE`].
    columns: Vec<usize>,
    /// The row of each column, or [`NONE`].
    rows: Vec<usize>,
    prices: Vec<f64>,
}

impl<'a> Search<'a> {
    fn new(costs: &'a Costs<'a>, sign: f64) -> Self {
        let size = costs.size();
        Self {
            costs,
            sign,
            columns: vec![NONE; size],
            rows: vec![NONE; size],
            prices: vec![0.0; size],
        }
    }

    fn cost(&self, row: usize, column: usize) -> f64 {
        self.sign * f64::from(self.costs.row(row)[column])
    }

    /// Returns a row for a search in which the way to it is `offset` long.
    fn row(&self, number: usize, offset: f64) -> scan::Row<'a> {
        scan::Row {
            number,
            entries: self.costs.row(number),
            sign: self.sign,
            offset,
        }
    }

    fn assign(&mut self, row: usize, column: usize) {
        self.columns[row] = column;
        self.rows[column] = row;
    }

    /// Sets every price to its column's smallest cost, and gives each column to the row that has
    /// that cost, at most one column per row.
    fn reduce_columns(&mut self) {
        let size = self.costs.size();
        let mut cheapest = vec![NONE; size];
        self.prices.fill(f64::INFINITY);
        let zeros = vec![0.0; size];
        for row in 0..size {
            self.row(row, 0.0)
                .relax(&zeros, &mut self.prices, &mut cheapest);
        }
        for (column, row) in cheapest.into_iter().enumerate() {
            if self.columns[row] == NONE {
                self.assign(row, column);
            }
        }
    }

    /// Takes over prices, and those columns that are the cheapest of their row at these prices.
    fn adopt(&mut self, columns: Vec<u32>, prices: Vec<f64>) {
        self.prices = prices;
        for (row, column) in columns.into_iter().enumerate() {
            let column = column as usize;
            let least = scan::two_smallest(self.costs.row(row), self.sign, &self.prices).first;
            if self.cost(row, column) - self.prices[column] <= least {
                self.assign(row, column);
            }
        }
    }

    /// Lets free rows take their cheapest column, in two rounds, at a price that makes it as dear
    /// as their second choice; returns the rows that stay free.
    fn reduce_rows(&mut self) -> Vec<usize> {
        let size = self.costs.size();
        let mut free: Vec<usize> = (0..size).filter(|row| self.columns[*row] == NONE).collect();
        if size < 2 {
            return free;
        }
        for _ in 0..2 {
            let mut outbid = Vec::new();
            let mut steps = 0;
            for first in std::mem::take(&mut free) {
                let mut next = Some(first);
                while let Some(row) = next.take() {
                    let best = scan::two_smallest(self.costs.row(row), self.sign, &self.prices);
                    let lowers = best.first < best.second;
                    let taken = self.rows[best.first_column] != NONE;
                    let column = if lowers || !taken {
                        best.first_column
                    } else {
                        best.second_column
                    };
                    self.prices[best.first_column] -= best.second - best.first;
                    let owner = self.rows[column];
                    self.assign(row, column);
                    if owner != NONE {
                        self.columns[owner] = NONE;
                        // Chains of ever smaller bids must end: after one step per row the loser
                        // waits for a path.
                        steps += 1;
                        if lowers && steps <= size {
                            next = Some(owner);
                        } else {
                            outbid.push(owner);
                        }
                    }
                }
            }
            free = outbid;
        }
        free
    }

    /// Gives each free row a column along a shortest alternating path, by Dijkstra's algorithm on
    /// reduced costs.
    fn augment(&mut self, free: &[usize]) {
        let size = self.costs.size();
        let mut tree = Tree {
            open: Vec::new(),
            distances: vec![0.0; size],
            from: vec![0; size],
            closed: Vec::new(),
        };
        for &start in free {
            let (mut column, distance) = self.nearest_free_column(start, &mut tree);
            for (column, reached) in &tree.closed {
                self.prices[*column] += reached - distance;
            }
            loop {
                let row = tree.from[column];
                let before = self.columns[row];
                self.assign(row, column);
                if row == start {
                    break;
                }
                column = before;
            }
        }
    }

    fn nearest_free_column(&self, start: usize, tree: &mut Tree) -> (usize, f64) {
        tree.open.clone_from(&self.prices);
        tree.distances.fill(f64::INFINITY);
        tree.closed.clear();
        let mut least = self
            .row(start, 0.0)
            .relax(&tree.open, &mut tree.distances, &mut tree.from);
        let mut front = Vec::new();
        loop {
            front.clear();
            front.extend(
                (0..tree.distances.len()).filter(|column| tree.distances[*column] == least),
            );
            if let Some(column) = front.iter().find(|column| self.rows[**column] == NONE) {
                return (*column, least);
            }
            for &column in &front {
                // A closed column is made infinitely far, so the loops over columns need not test
                // for it.
                tree.closed.push((column, least));
                tree.open[column] = f64::NEG_INFINITY;
                tree.distances[column] = f64::INFINITY;
            }
            let distance = least;
            for &column in &front {
                let row = self.rows[column];
                let offset = self.cost(row, column) - self.prices[column] - distance;
                let row = self.row(row, offset);
                least = row.relax(&tree.open, &mut tree.distances, &mut tree.from);
            }
        }
    }
}

/// The shortest path tree of one search.
struct Tree {
    /// Prices of the open columns, and negative infinity for closed ones.
    open: Vec<f64>,
    distances: Vec<f64>,
    /// The row from which each column was reached.
    from: Vec<usize>,
    /// Columns whose distance is final.
    closed: Vec<(usize, f64)>,
}
