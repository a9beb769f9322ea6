//! Assignment on a matrix that is streamed and never held, with a proof that the result is optimal.

use crate::error::{Context, Kind, Result};

use super::graph::{Edge, Graph};
use super::matching::Matching;
use super::nearest::{Nearest, NearestRows, few_smallest};
use super::{Assignment, CostTiles, Sense, costs, scan};

/// The trade between memory and passes over the matrix in [`certified`].
#[derive(Debug, Clone, PartialEq)]
pub struct CertifiedOptions {
    /// Candidates that the first pass keeps of each row, and of each column.
    pub candidates: usize,
    /// Candidates that a further pass may add to a row.
    pub additions: usize,
    /// Rows that are requested at a time.
    pub tile_rows: usize,
    /// The tolerance for violations of a dual, in the unit of the entries. `None`, NaN and negative
    /// values stand for the f64 rounding of the largest entry.
    pub tolerance: Option<f64>,
}

impl Default for CertifiedOptions {
    fn default() -> Self {
        Self {
            candidates: 16,
            additions: 16,
            tile_rows: 128,
            tolerance: None,
        }
    }
}

impl CertifiedOptions {
    /// Returns the number of candidates per row beyond which those of large reduced cost are
    /// dropped.
    fn most_candidates(&self) -> usize {
        2 * (self.candidates.max(1) + self.additions.max(1))
    }
}

/// The proof that comes with a result of [`certified`].
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// No permutation is better by more than this: the sum of the duals' violations over rows.
    pub optimal_within: f64,
    /// Passes over the matrix. After the first, a pass skips the rows whose bounds already prove
    /// them.
    pub rounds: usize,
    /// Rows computed over all passes.
    pub rows_streamed: usize,
    /// Candidates at the end, divided by rows.
    pub candidates_per_row: f64,
    /// Entries that violate the duals by more than the tolerance; always zero in a certificate.
    pub violations: usize,
    /// The most memory that was held at a time, tile included.
    pub peak_bytes: usize,
}

/// Finds the optimal permutation of a matrix that is streamed in row tiles, and the proof.
///
/// The first pass keeps the smallest entries of each row and column; these candidates and the
/// permutation `start` are solved exactly. Further passes look at the rows that may still hold an
/// entry that violates the duals, and make the worst such entries candidates, until there is none
/// (column generation, as in Volgenant, "Linear and semi-assignment problems: a core oriented
/// approach", 1996). If the smallest entries of all rows are in different columns, the first pass
/// proves the result. Of equal choices `start` is taken, then the lowest index.
///
/// Memory is O(n · (candidates + additions)) and one tile: when a row has too many candidates,
/// those of large reduced cost are dropped. That is done only if the objective fell since the last
/// time, so the search cannot cycle. The result does not depend on the tiles.
///
/// # Errors
///
/// [`Kind::Mismatch`] when `start` is not a permutation of that many rows, [`Kind::NonFinite`] when
/// an entry is NaN or infinite, and the errors of `tiles`.
pub fn certified(
    tiles: &mut dyn CostTiles,
    sense: Sense,
    start: &[u32],
    options: &CertifiedOptions,
) -> Result<(Assignment, Certificate)> {
    let mut run = Passes::new(tiles, sense, options);
    let (graph, matching) = run.generate(start, usize::MAX)?;
    let certificate = Certificate {
        optimal_within: run.gap(&graph, &matching),
        rounds: run.rounds,
        rows_streamed: run.rows_streamed,
        candidates_per_row: graph.len() as f64 / start.len().max(1) as f64,
        violations: 0,
        peak_bytes: run.peak_bytes,
    };
    let (columns, costs, prices) = matching.into_parts();
    Ok((Assignment::new(columns, &costs, prices, sense), certificate))
}

/// Returns columns and prices after at most `rounds` passes: a permutation that is optimal or
/// nearly so.
pub(super) fn approximate(
    tiles: &mut dyn CostTiles,
    sense: Sense,
    rounds: usize,
) -> Result<(Vec<u32>, Vec<f64>)> {
    let start: Vec<u32> = (0..).take(tiles.size()).collect();
    let options = CertifiedOptions::default();
    let (_, matching) = Passes::new(tiles, sense, &options).generate(&start, rounds)?;
    let (columns, _, prices) = matching.into_parts();
    Ok((columns, prices))
}

/// The rounding of sums of duals in f64, as a share of the largest entry: some thousand roundings.
const ROUNDING: f64 = f64::EPSILON * 4096.0;

fn check_start(start: &[u32], size: usize) -> Result<()> {
    let context = Context::new(Kind::Mismatch, "cannot assign", "starting permutation");
    costs::check_size(size)?;
    if start.len() != size {
        return context.fail(format!("wanted {size} rows, got {}", start.len()));
    }
    let mut seen = vec![false; size];
    for (row, column) in start.iter().enumerate() {
        match seen.get_mut(*column as usize) {
            None => {
                return context.fail(format!(
                    "row {row} has column {column}, wanted less than {size}"
                ));
            }
            Some(true) => {
                return context.fail(format!(
                    "row {row} has column {column}, which another row has"
                ));
            }
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// The state of the passes over one matrix.
struct Passes<'a> {
    tiles: &'a mut dyn CostTiles,
    sense: Sense,
    options: &'a CertifiedOptions,
    tile: Vec<f32>,
    /// For each row, a lower bound on the reduced costs of entries that are not candidates. Prices
    /// only fall, so the bounds stay valid.
    bounds: Vec<f64>,
    /// The largest absolute entry.
    scale: f32,
    rounds: usize,
    rows_streamed: usize,
    peak_bytes: usize,
}

impl<'a> Passes<'a> {
    fn new(tiles: &'a mut dyn CostTiles, sense: Sense, options: &'a CertifiedOptions) -> Self {
        Self {
            tiles,
            sense,
            options,
            tile: Vec::new(),
            bounds: Vec::new(),
            scale: 0.0,
            rounds: 0,
            rows_streamed: 0,
            peak_bytes: 0,
        }
    }

    /// Adds candidates and solves them until no entry violates the duals, or for at most
    /// `most_rounds` passes.
    fn generate(&mut self, start: &[u32], most_rounds: usize) -> Result<(Graph, Matching)> {
        check_start(start, self.tiles.size())?;
        let mut graph = self.first_pass(start)?;
        self.rounds = 1;
        let tolerance = self.options.tolerance.filter(|given| *given >= 0.0);
        let tolerance = tolerance.unwrap_or(f64::from(self.scale) * ROUNDING);
        let mut matching = Matching::new(start.len());
        matching.prefer(&graph, start);
        let mut thinned_at = f64::INFINITY;
        loop {
            matching.solve(&graph, tolerance);
            let doubtful = self.doubtful(&matching, tolerance);
            if doubtful.is_empty() || self.rounds >= most_rounds {
                return Ok((graph, matching));
            }
            self.rounds += 1;
            let more = self.pass(&doubtful, &graph, &matching, tolerance)?;
            if more.is_empty() {
                return Ok((graph, matching));
            }
            let limit = start.len() * self.options.most_candidates();
            if graph.len() + more.len() > limit && matching.total() < thinned_at {
                thinned_at = matching.total();
                graph = self.thin(&graph, &matching);
            }
            let grown = graph.with(&more);
            self.note_peak(graph.bytes() + grown.bytes() + size_of_val(&more[..]));
            graph = grown;
        }
    }

    fn tile_rows(&self) -> usize {
        self.options.tile_rows.max(1)
    }

    /// Reads rows `first..end` into the tile, as costs.
    fn read(&mut self, first: usize, end: usize) -> Result<()> {
        let size = self.tiles.size();
        self.tile.resize(self.tile_rows().min(size) * size, 0.0);
        let tile = &mut self.tile[..(end - first) * size];
        self.tiles.rows(first..end, tile)?;
        for (row, entries) in (first..end).zip(tile.chunks_exact_mut(size)) {
            costs::check_row(row, entries)?;
            if self.sense == Sense::Maximise {
                entries.iter_mut().for_each(|entry| *entry = -*entry);
            }
        }
        self.rows_streamed += end - first;
        Ok(())
    }

    /// Collects the candidates and the bounds that follow from them.
    fn first_pass(&mut self, start: &[u32]) -> Result<Graph> {
        let size = start.len();
        let keep = self.options.candidates.clamp(1, size.max(1));
        let mut rows = Nearest::new(size, keep);
        let mut columns = NearestRows::new(size, keep);
        let mut started = Vec::with_capacity(size);
        for first in (0..size).step_by(self.tile_rows()) {
            let end = size.min(first + self.tile_rows());
            self.read(first, end)?;
            for ((row, column), entries) in (first..end)
                .zip(&start[first..end])
                .zip(self.tile.chunks_exact(size))
            {
                self.scale = self.scale.max(scan::magnitude(entries));
                rows.offer_row(row, entries);
                columns.offer(u32::try_from(row).expect("the size fits 32 bits"), entries);
                started.push((*column, entries[*column as usize]));
            }
        }
        self.bounds = match keep < size {
            true => (0..size).map(|row| f64::from(rows.bound(row))).collect(),
            false => vec![f64::INFINITY; size],
        };
        let graph = Graph::gather(&rows, &columns, &started);
        self.note_peak(
            graph.bytes() + size * (2 * Nearest::bytes(keep) + size_of::<Edge>() * keep),
        );
        Ok(graph)
    }

    /// Returns the rows whose duals the bounds do not prove.
    fn doubtful(&self, matching: &Matching, tolerance: f64) -> Vec<usize> {
        let rows = self.bounds.iter().enumerate();
        rows.filter(|(row, bound)| **bound < matching.dual(*row) - tolerance)
            .map(|(row, _)| row)
            .collect()
    }

    /// Reads the `doubtful` rows, and the rows between them in a tile; renews the bounds and
    /// returns the worst entry of each row that violates the duals.
    fn pass(
        &mut self,
        doubtful: &[usize],
        graph: &Graph,
        matching: &Matching,
        tolerance: f64,
    ) -> Result<Vec<Edge>> {
        let size = self.bounds.len();
        let mut found = Vec::new();
        let mut reduced = vec![0.0; size];
        let mut least = Vec::new();
        let mut rest = doubtful;
        while let Some(&first) = rest.first() {
            let (near, far) =
                rest.split_at(rest.partition_point(|row| *row < first + self.tile_rows()));
            rest = far;
            let end = near.last().map_or(first, |row| row + 1);
            self.read(first, end)?;
            for (row, entries) in (first..end).zip(self.tile.chunks_exact_mut(size)) {
                // Candidates are already solved for; the bound is the least of the others.
                graph
                    .row(row)
                    .0
                    .iter()
                    .for_each(|column| entries[*column as usize] = f32::INFINITY);
                self.bounds[row] = scan::reduce(entries, 1.0, matching.prices(), &mut reduced);
                let limit = matching.dual(row) - tolerance;
                if self.bounds[row] < limit {
                    self.bounds[row] =
                        few_smallest(&reduced, self.options.additions.max(1), &mut least);
                    let at = u32::try_from(row).expect("the size fits 32 bits");
                    found.extend(
                        least
                            .iter()
                            .map(|(_, column)| (at, *column, entries[*column as usize])),
                    );
                }
            }
        }
        self.note_peak(
            graph.bytes() + size_of_val(&reduced[..]) + found.capacity() * size_of::<Edge>(),
        );
        Ok(found)
    }

    /// Keeps the candidates of least reduced cost of each row, and its own column; the bounds are
    /// lowered to cover the dropped ones.
    fn thin(&mut self, graph: &Graph, matching: &Matching) -> Graph {
        let keep = (self.options.candidates + self.options.additions).max(2);
        let prices = matching.prices();
        let mut ranked = Vec::new();
        let mut last = Vec::with_capacity(self.bounds.len());
        for (row, bound) in self.bounds.iter_mut().enumerate() {
            ranked.clear();
            ranked.extend(
                graph
                    .edges(row)
                    .map(|(column, cost)| (cost - prices[column], column)),
            );
            ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            *bound = ranked
                .get(keep)
                .map_or(*bound, |(first_dropped, _)| bound.min(*first_dropped));
            last.push(
                ranked
                    .get(keep - 1)
                    .copied()
                    .unwrap_or((f64::INFINITY, usize::MAX)),
            );
        }
        graph.filtered(|row, column, cost| {
            let at = column as usize;
            let reduced = f64::from(cost) - prices[at];
            column == matching.columns()[row]
                || reduced < last[row].0
                || (reduced == last[row].0 && at <= last[row].1)
        })
    }

    /// Sums the excess of the duals over the rows' entries: the gap between the objective and the
    /// bound on all permutations that the duals set once they are lowered until they are valid.
    fn gap(&self, graph: &Graph, matching: &Matching) -> f64 {
        let prices = matching.prices();
        let excess = self.bounds.iter().enumerate().map(|(row, bound)| {
            let edges = graph.edges(row);
            let lowest = edges.fold(*bound, |least, (at, cost)| least.min(cost - prices[at]));
            (matching.dual(row) - lowest).max(0.0)
        });
        excess.sum()
    }

    fn note_peak(&mut self, other_bytes: usize) {
        let own = size_of_val(&self.tile[..])
            + self.bounds.len() * (size_of::<f64>() + Matching::BYTES_PER_ROW);
        self.peak_bytes = self.peak_bytes.max(own + other_bytes);
    }
}
