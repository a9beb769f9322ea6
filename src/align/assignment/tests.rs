//! The solvers compared with brute force, with an independent solver and with each other; duals are
//! checked separately.

use std::ops::Range;

use super::{Assignment, Certificate, CertifiedOptions, CostTiles, Costs, Sense, certified, dense};
use crate::error::{Error, Kind, Result};

/// A splitmix64 stream.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Draws a number evenly from -1..1.
    fn even(&mut self) -> f32 {
        f32::from(u16::try_from(self.next() >> 48).expect("sixteen bits are left")) / 32768.0 - 1.0
    }

    /// Draws a bell-shaped number of variance 1.
    fn bell(&mut self) -> f32 {
        (0..12).map(|_| self.even()).sum::<f32>() / 2.0
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.next() % limit).expect("the limits here are small")
    }

    fn bells(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.bell()).collect()
    }

    fn permutation(&mut self, size: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..).take(size).collect();
        for last in (1..size).rev() {
            order.swap(last, self.below(last as u64 + 1));
        }
        order
    }
}

const WIDTH: usize = 32;

/// Returns the inner products of the rows of two matrices of [`WIDTH`] columns.
fn products(a: &[f32], b: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
    a.chunks(WIDTH)
        .flat_map(|x| b.chunks(WIDTH).map(move |y| dot(x, y)))
        .collect()
}

fn unrelated(size: usize) -> Vec<f32> {
    let mut random = Random(1);
    products(&random.bells(size * WIDTH), &random.bells(size * WIDTH))
}

/// Makes a permuted copy with noise; returns the permutation too.
fn planted(size: usize, noise: f32) -> (Vec<f32>, Vec<u32>) {
    let mut random = Random(2);
    let order = random.permutation(size);
    let a = random.bells(size * WIDTH);
    let mut b = random.bells(size * WIDTH);
    for (row, column) in order.iter().enumerate() {
        for k in 0..WIDTH {
            let at = *column as usize * WIDTH + k;
            b[at] = a[row * WIDTH + k] + noise * b[at];
        }
    }
    (products(&a, &b), order)
}

/// Makes a matrix in which a shared part of low rank makes some columns every row's favourite, and
/// each unit has its own strength of match.
fn hard(size: usize) -> Vec<f32> {
    let mut random = Random(3);
    let order = random.permutation(size);
    let shared = random.bells(4 * WIDTH);
    let (mut a, mut b) = (random.bells(size * WIDTH), random.bells(size * WIDTH));
    for (row, column) in order.iter().enumerate() {
        let strength = random.even().abs();
        let (here, there) = (random.bells(4), random.bells(4));
        for k in 0..WIDTH {
            let (x, y) = (row * WIDTH + k, *column as usize * WIDTH + k);
            let part = |share: &[f32]| {
                (0..4)
                    .map(|r| share[r] * shared[r * WIDTH + k])
                    .sum::<f32>()
            };
            b[y] = strength * a[x] + (1.0 - strength * strength).sqrt() * b[y] + part(&there);
            a[x] += part(&here);
        }
    }
    products(&a, &b)
}

fn uniform(size: usize) -> Vec<f32> {
    let mut random = Random(4);
    (0..size * size).map(|_| random.even()).collect()
}

/// Makes the matrix `(i + 1)(j + 1)`: every row wants the same columns, and only the last
/// augmentation settles it.
fn worst(size: usize) -> Vec<f32> {
    let number = |k: usize| f32::from(u16::try_from(k + 1).expect("small"));
    (0..size * size)
        .map(|k| number(k / size) * number(k % size))
        .collect()
}

/// Makes a matrix in which half of the units are dead: their rows and columns are all zero.
fn dead(size: usize) -> Vec<f32> {
    let live = planted(size, 0.5).0;
    let is_dead = |unit: usize| unit % 4 < 2;
    live.iter()
        .enumerate()
        .map(|(k, x)| {
            if is_dead(k / size) || is_dead(k % size) {
                0.0
            } else {
                *x
            }
        })
        .collect()
}

fn identity(size: usize) -> Vec<u32> {
    (0..).take(size).collect()
}

fn solve_dense(size: usize, entries: &[f32], sense: Sense) -> Assignment {
    dense(&Costs::new(size, entries).expect("square"), sense).expect("finite")
}

fn solve_sparse(
    size: usize,
    entries: &[f32],
    sense: Sense,
    candidates: usize,
) -> (Assignment, Certificate) {
    let options = CertifiedOptions {
        candidates,
        tile_rows: 37,
        ..CertifiedOptions::default()
    };
    let mut costs = Costs::new(size, entries).expect("square");
    certified(&mut costs, sense, &identity(size), &options).expect("finite")
}

/// Returns the sum that a permutation picks; fails if `columns` is not a permutation.
fn objective(size: usize, entries: &[f32], columns: &[u32]) -> f64 {
    let mut sorted = columns.to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, identity(size), "every column once");
    columns
        .iter()
        .enumerate()
        .map(|(row, column)| f64::from(entries[row * size + *column as usize]))
        .sum()
}

/// Proves optimality from the duals alone: no entry is beyond them, and they add up to the
/// objective.
fn assert_optimal(size: usize, entries: &[f32], sense: Sense, found: &Assignment) {
    let scale = entries
        .iter()
        .fold(1e-30, |most: f64, entry| most.max(f64::from(entry.abs())));
    let sign = if sense == Sense::Minimise { 1.0 } else { -1.0 };
    for (k, entry) in entries.iter().enumerate() {
        let excess =
            sign * (f64::from(*entry) - found.row_duals[k / size] - found.column_duals[k % size]);
        // The tolerance is a few thousand roundings of sums no larger than some entries.
        assert!(
            excess >= -scale * 1e-11,
            "entry {} {} is beyond the duals by {excess}",
            k / size,
            k % size
        );
    }
    let bound = found
        .row_duals
        .iter()
        .chain(&found.column_duals)
        .sum::<f64>();
    let sum = objective(size, entries, &found.columns);
    let tolerance = scale * 1e-11 * (size as f64 + 1.0);
    assert!(
        (sum - found.objective).abs() <= tolerance,
        "objective {} is not {sum}",
        found.objective
    );
    assert!(
        (sum - bound).abs() <= tolerance,
        "objective {sum}, bound {bound}"
    );
}

fn assert_certified(
    size: usize,
    entries: &[f32],
    sense: Sense,
    candidates: usize,
) -> (Assignment, Certificate) {
    let (found, certificate) = solve_sparse(size, entries, sense, candidates);
    assert_optimal(size, entries, sense, &found);
    let scale = entries
        .iter()
        .fold(0.0, |most: f64, entry| most.max(f64::from(entry.abs())));
    assert!(
        certificate.optimal_within <= scale * 1e-11 * size as f64,
        "{certificate:?}"
    );
    assert_eq!(certificate.violations, 0);
    (found, certificate)
}

/// Returns the largest or smallest sum over all permutations.
fn brute_force(size: usize, entries: &[f32], sense: Sense) -> f64 {
    fn best(entries: &[f32], size: usize, row: usize, used: u32, sense: Sense) -> f64 {
        let free = (0..size).filter(|column| used & (1 << column) == 0);
        let sums = free.map(|column| {
            f64::from(entries[row * size + column])
                + best(entries, size, row + 1, used | 1 << column, sense)
        });
        match sense {
            _ if row == size => 0.0,
            Sense::Minimise => sums.fold(f64::INFINITY, f64::min),
            Sense::Maximise => sums.fold(f64::NEG_INFINITY, f64::max),
        }
    }
    best(entries, size, 0, 0, sense)
}

#[test]
fn small_integer_matrices_get_the_best_of_all_permutations() {
    let mut random = Random(5);
    for round in 0..300 {
        let size = if round < 6 { 8 } else { 1 + round % 7 };
        // Small ranges make ties and equal rows common.
        let range = [2, 3, 10, 1000][round % 4];
        let mut entries: Vec<f32> = (0..size * size)
            .map(|_| u16::try_from(random.below(range)).map_or(0.0, f32::from) - 1.0)
            .collect();
        if round % 3 == 0 && size > 2 {
            entries.copy_within(0..size, size);
        }
        for sense in [Sense::Minimise, Sense::Maximise] {
            let wanted = brute_force(size, &entries, sense);
            let found = solve_dense(size, &entries, sense);
            assert_eq!(
                objective(size, &entries, &found.columns),
                wanted,
                "dense, {entries:?}"
            );
            assert_optimal(size, &entries, sense, &found);
            for candidates in [1, 2, 8] {
                let (found, _) = assert_certified(size, &entries, sense, candidates);
                assert_eq!(
                    objective(size, &entries, &found.columns),
                    wanted,
                    "sparse, {entries:?}"
                );
            }
        }
    }
}

fn assert_agrees(name: &str, size: usize, entries: &[f32]) {
    let found = solve_dense(size, entries, Sense::Maximise);
    assert_optimal(size, entries, Sense::Maximise, &found);
    let costs = entries.iter().map(|entry| -f64::from(*entry)).collect();
    let costs = lapjv::Matrix::from_shape_vec((size, size), costs).expect("square");
    let (columns, _) = lapjv::lapjv(&costs).expect("the other solver ends");
    let columns: Vec<u32> = columns
        .into_iter()
        .map(|column| u32::try_from(column).expect("small"))
        .collect();
    let other = objective(size, entries, &columns);
    // Both are f64 sums of the same number of entries; only their order differs.
    let tolerance = other.abs() * 1e-11;
    assert!(
        (found.objective - other).abs() <= tolerance,
        "{name}: {} but {other}",
        found.objective
    );
    for candidates in [2, 8, 16] {
        let (sparse, _) = assert_certified(size, entries, Sense::Maximise, candidates);
        assert!(
            (sparse.objective - other).abs() <= tolerance,
            "{name}, {candidates}: {}",
            sparse.objective
        );
    }
}

#[test]
fn all_solvers_agree_on_matrices_like_those_of_networks() {
    for size in [15, 16, 17, 129, 300] {
        assert_agrees("unrelated", size, &unrelated(size));
        assert_agrees("hard", size, &hard(size));
        assert_agrees("planted", size, &planted(size, 2.0).0);
        assert_agrees("uniform", size, &uniform(size));
        assert_agrees("dead", size, &dead(size));
    }
}

#[test]
fn all_solvers_agree_on_a_hard_matrix_of_two_thousand() {
    let entries = hard(2000);
    let found = solve_dense(2000, &entries, Sense::Maximise);
    let (sparse, certificate) = assert_certified(2000, &entries, Sense::Maximise, 16);
    assert!((found.objective - sparse.objective).abs() <= found.objective * 1e-11);
    let costs =
        lapjv::Matrix::from_shape_vec((2000, 2000), entries.iter().map(|entry| -entry).collect());
    let (columns, _) = lapjv::lapjv(&costs.expect("square")).expect("the other solver ends");
    let columns: Vec<u32> = columns
        .into_iter()
        .map(|column| u32::try_from(column).expect("small"))
        .collect();
    let other = objective(2000, &entries, &columns);
    // The other solver works in f32.
    assert!(
        (found.objective - other).abs() <= other * 1e-5,
        "{} but {other}",
        found.objective
    );
    assert!(
        found.objective >= other * (1.0 - 1e-11),
        "{} but {other}",
        found.objective
    );
    assert_bounded(2000, &certificate, 16);
}

/// Bounds the memory by candidates before and after growth, additions, duals and the state of a
/// search, and one tile; nothing else.
fn assert_bounded(size: usize, certificate: &Certificate, candidates: usize) {
    let additions = CertifiedOptions::default().additions;
    let graphs = 2 * 2 * (candidates + additions) * 8;
    let row_bytes = graphs + additions * 24 + 100;
    assert!(
        certificate.peak_bytes <= size * row_bytes + 37 * size * 4,
        "{certificate:?}"
    );
    assert!(
        certificate.candidates_per_row <= 2.0 * (candidates + additions) as f64,
        "{certificate:?}"
    );
}

#[test]
fn the_worst_case_is_solved_in_bounded_memory() {
    let size = 512;
    let entries = worst(size);
    let found = solve_dense(size, &entries, Sense::Minimise);
    assert_optimal(size, &entries, Sense::Minimise, &found);
    assert!(
        found
            .columns
            .iter()
            .rev()
            .zip(0..)
            .all(|(column, row)| *column == row),
        "largest with smallest"
    );
    for candidates in [2, 8, 16] {
        let (sparse, certificate) = assert_certified(size, &entries, Sense::Minimise, candidates);
        assert_eq!(sparse.columns, found.columns);
        assert_bounded(size, &certificate, candidates);
    }
}

#[test]
fn one_pass_proves_a_permutation_that_every_row_wants() {
    let (entries, order) = planted(400, 0.1);
    let (found, certificate) = assert_certified(400, &entries, Sense::Maximise, 2);
    assert_eq!(found.columns, order);
    assert_eq!((certificate.rounds, certificate.rows_streamed), (1, 400));
    assert!(!found.is_identity());
}

#[test]
fn equal_choices_leave_the_start_as_it_is() {
    let size = 100;
    let start = Random(6).permutation(size);
    let mut zeros = vec![0.0; size * size];
    let solve = |entries: &[f32]| {
        let mut costs = Costs::new(size, entries).expect("square");
        certified(
            &mut costs,
            Sense::Maximise,
            &start,
            &CertifiedOptions::default(),
        )
        .expect("finite")
    };
    let (found, certificate) = solve(&zeros);
    assert_eq!(found.columns, start);
    assert_eq!(certificate.rounds, 1);
    // One row wants another column: only this row and that column's owner move.
    zeros[7 * size + start[9] as usize] = 1.0;
    let (found, _) = solve(&zeros);
    assert_eq!(
        found
            .columns
            .iter()
            .zip(&start)
            .filter(|(a, b)| a != b)
            .count(),
        2
    );
    assert_eq!(found.objective, 1.0);
}

#[test]
fn no_rows_and_one_row_are_assigned() {
    for sense in [Sense::Minimise, Sense::Maximise] {
        let none = solve_dense(0, &[], sense);
        assert_eq!((none.columns.len(), none.objective), (0, 0.0));
        assert_eq!(solve_sparse(0, &[], sense, 4).0, none);
        let one = solve_dense(1, &[-2.5], sense);
        assert_eq!((&one.columns[..], one.objective), (&[0][..], -2.5));
        assert_eq!(solve_sparse(1, &[-2.5], sense, 4).0.objective, -2.5);
        assert_optimal(1, &[-2.5], sense, &one);
    }
}

#[test]
fn nan_and_infinity_are_refused_with_their_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut entries = uniform(50);
        entries[31 * 50 + 49] = bad;
        let mut costs = Costs::new(50, &entries).expect("square");
        let first = dense(&costs, Sense::Minimise).expect_err("refused");
        let second = certified(
            &mut costs,
            Sense::Minimise,
            &identity(50),
            &CertifiedOptions::default(),
        )
        .expect_err("refused");
        for error in [first, second] {
            assert_eq!(error.kind(), Kind::NonFinite);
            assert!(error.subject().contains("row 31, column 49"), "{error}");
        }
    }
}

#[test]
fn what_is_no_square_and_no_permutation_is_refused() {
    assert_eq!(
        Costs::new(3, &[0.0; 8]).expect_err("not square").kind(),
        Kind::Mismatch
    );
    assert_eq!(
        Costs::new(usize::MAX, &[]).expect_err("too large").kind(),
        Kind::Mismatch
    );
    for start in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3]] {
        let mut costs = Costs::new(3, &[0.0; 9]).expect("square");
        let error = certified(
            &mut costs,
            Sense::Minimise,
            start,
            &CertifiedOptions::default(),
        )
        .expect_err("refused");
        assert_eq!(error.kind(), Kind::Mismatch, "{start:?}");
    }
}

#[test]
fn the_result_does_not_depend_on_the_tiles() {
    let entries = hard(200);
    let solve = |tile_rows| {
        let mut costs = Costs::new(200, &entries).expect("square");
        let options = CertifiedOptions {
            candidates: 4,
            tile_rows,
            ..CertifiedOptions::default()
        };
        certified(&mut costs, Sense::Maximise, &identity(200), &options)
            .expect("finite")
            .0
    };
    let whole = solve(200);
    for tile_rows in [1, 7, 64, 200, 1000] {
        assert_eq!(solve(tile_rows), whole, "{tile_rows} rows at a time");
    }
}

#[test]
fn an_error_of_the_tiles_ends_the_search() {
    struct Broken(usize);
    impl CostTiles for Broken {
        fn size(&self) -> usize {
            64
        }
        fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            if rows.end > self.0 {
                return Err(Error::new(
                    Kind::Interrupted,
                    "cannot align",
                    "layer 3",
                    "stopped",
                ));
            }
            out.fill(0.0);
            Ok(())
        }
    }
    let options = CertifiedOptions {
        tile_rows: 16,
        ..CertifiedOptions::default()
    };
    let solve = |rows| certified(&mut Broken(rows), Sense::Minimise, &identity(64), &options);
    assert_eq!(solve(63).expect_err("stopped").kind(), Kind::Interrupted);
    assert!(solve(64).expect("whole").0.is_identity());
}
