//! The candidate entries of a cost matrix, row after row.

use super::nearest::{Nearest, NearestRows};

/// A sparse matrix of costs, each row in the order of its columns.
#[derive(Debug)]
pub(super) struct Graph {
    offsets: Vec<usize>,
    columns: Vec<u32>,
    costs: Vec<f32>,
}

/// One entry: row, column, cost.
pub(super) type Edge = (u32, u32, f32);

impl Graph {
    /// Returns the bytes of the graph.
    pub(super) fn bytes(&self) -> usize {
        self.offsets.len() * size_of::<usize>() + self.len() * (size_of::<u32>() + size_of::<f32>())
    }

    /// Counts the entries.
    pub(super) fn len(&self) -> usize {
        self.columns.len()
    }

    /// Returns the columns and costs of one row.
    pub(super) fn row(&self, row: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[row]..self.offsets[row + 1];
        (&self.columns[range.clone()], &self.costs[range])
    }

    /// Returns the columns and costs of one row, in pairs.
    pub(super) fn edges(&self, row: usize) -> impl Iterator<Item = (usize, f64)> {
        let (columns, costs) = self.row(row);
        columns
            .iter()
            .zip(costs)
            .map(|(column, cost)| (*column as usize, f64::from(*cost)))
    }

    /// Returns the cost of an entry, if it is a candidate.
    pub(super) fn cost(&self, row: usize, column: u32) -> Option<f32> {
        let (columns, costs) = self.row(row);
        columns.binary_search(&column).ok().map(|at| costs[at])
    }

    /// Unites the entries nearest to each row, those nearest to each column, and the permutation
    /// `start` with its costs.
    pub(super) fn gather(rows: &Nearest, columns: &NearestRows, start: &[(u32, f32)]) -> Self {
        let size = start.len();
        let mut edges: Vec<Edge> = Vec::with_capacity(size);
        for (column, at) in (0..size).zip(0..) {
            edges.extend(columns.list(column).map(|(cost, row)| (row, at, cost)));
        }
        edges.sort_unstable_by_key(|(row, column, _)| (*row, *column));
        let mut edges = edges.into_iter().peekable();
        Self::build(size, |row, at, entries| {
            entries.extend(rows.list(row).map(|(cost, column)| (column, cost)));
            entries.push(start[row]);
            while let Some((_, column, cost)) = edges.next_if(|edge| edge.0 == at) {
                entries.push((column, cost));
            }
        })
    }

    /// Adds `more` candidates, which are in row order.
    pub(super) fn with(&self, more: &[Edge]) -> Self {
        let mut more = more.iter().peekable();
        Self::build(self.offsets.len() - 1, |row, at, entries| {
            let (columns, costs) = self.row(row);
            entries.extend(columns.iter().copied().zip(costs.iter().copied()));
            while let Some((_, column, cost)) = more.next_if(|edge| edge.0 == at) {
                entries.push((*column, *cost));
            }
        })
    }

    /// Keeps the candidates for which `keep` of row, column and cost holds.
    pub(super) fn filtered(&self, keep: impl Fn(usize, u32, f32) -> bool) -> Self {
        Self::build(self.offsets.len() - 1, |row, _, entries| {
            let (columns, costs) = self.row(row);
            let edges = columns.iter().copied().zip(costs.iter().copied());
            entries.extend(edges.filter(|(column, cost)| keep(row, *column, *cost)));
        })
    }

    /// Collects the entries that `fill` lists for each row; an entry listed twice counts once.
    fn build(size: usize, mut fill: impl FnMut(usize, u32, &mut Vec<(u32, f32)>)) -> Self {
        let mut graph = Self {
            offsets: vec![0],
            columns: Vec::new(),
            costs: Vec::new(),
        };
        let mut entries = Vec::new();
        for (row, at) in (0..size).zip(0..) {
            entries.clear();
            fill(row, at, &mut entries);
            entries.sort_unstable_by_key(|(column, _)| *column);
            entries.dedup_by_key(|(column, _)| *column);
            graph
                .columns
                .extend(entries.iter().map(|(column, _)| *column));
            graph.costs.extend(entries.iter().map(|(_, cost)| *cost));
            graph.offsets.push(graph.columns.len());
        }
        graph
    }
}
