//! Exact linear assignment: the permutation `p` with the smallest (or largest) sum of `c[i][p(i)]`.
//!
//! Two solvers with one result type:
//!
//! - `dense` works on a matrix in memory, by shortest augmenting paths.
//! - `certified` never holds the matrix. Rows stream by in tiles, a few candidates of each row and
//!   column are kept and solved, and the duals of that small problem are checked against the whole
//!   matrix in further passes; entries that they miss become candidates. When none is left the
//!   duals prove that the small problem's optimum is the whole one's.
//!
//! With signed units the caller puts `unsigned + |signed|` into the entries; the solvers find only
//! the permutation. `gain` decides if a permutation is worth taking.

mod certified;
mod costs;
mod dense;
mod gain;
mod graph;
mod matching;
mod nearest;
mod scan;
#[cfg(test)]
mod tests;

pub use certified::{Certificate, CertifiedOptions, certified};
pub use costs::{CostTiles, Costs};
pub use dense::dense;
pub use gain::{Gain, gain};

/// The direction in which the sum is optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sense {
    /// The entries are costs.
    Minimise,
    /// The entries are gains.
    Maximise,
}

impl Sense {
    /// Returns the factor that turns an entry into a cost.
    fn sign(self) -> f64 {
        match self {
            Self::Minimise => 1.0,
            Self::Maximise => -1.0,
        }
    }
}

/// An optimal permutation and the duals that prove it.
///
/// With [`Sense::Minimise`] every entry has `c[i][j] >= row_duals[i] + column_duals[j]`, with
/// [`Sense::Maximise`] `<=`, up to f64 rounding, and the assigned entries have equality. So the
/// duals add up to the objective, and no permutation can pass that sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The column of each row.
    pub columns: Vec<u32>,
    /// One dual of each row.
    pub row_duals: Vec<f64>,
    /// One dual of each column.
    pub column_duals: Vec<f64>,
    /// The sum of the assigned entries, added in row order.
    pub objective: f64,
}

impl Assignment {
    /// True if every row has its own column.
    pub fn is_identity(&self) -> bool {
        self.columns
            .iter()
            .zip(0..)
            .all(|(column, row)| *column == row)
    }

    /// Makes the result from these assigned costs and column prices, with the signs of `sense`.
    fn new(columns: Vec<u32>, costs: &[f64], mut prices: Vec<f64>, sense: Sense) -> Self {
        let sign = sense.sign();
        let row_duals = columns
            .iter()
            .zip(costs)
            .map(|(column, cost)| sign * (cost - prices[*column as usize]))
            .collect();
        prices.iter_mut().for_each(|price| *price *= sign);
        let objective = costs.iter().fold(0.0, |sum, cost| sum + sign * cost);
        Self {
            columns,
            row_duals,
            column_duals: prices,
            objective,
        }
    }
}
