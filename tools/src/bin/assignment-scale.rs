//! A certified assignment of as many units as an MLP of an 8B model has, and what it costs.
//!
//!     cargo run --release -p thalweg-tools --bin assignment-scale [SIZE] [unrelated|hard|planted]
//!
//! The matrix, 822 MB at the default size, is never held: tiles of inner products are computed on
//! the fly from two matrices of 64 columns.

#![expect(
    clippy::print_stdout,
    reason = "a program that prints what it measured"
)]

use std::ops::Range;
use std::time::{Duration, Instant};

use thalweg::Result;
use thalweg::align::assignment::{CertifiedOptions, CostTiles, Sense, certified};

const WIDTH: usize = 64;
/// Columns of a block: eight partial rows of it stay in the first cache.
const BLOCK: usize = 512;

/// Inner products of the rows of two matrices, the second stored column after column.
struct Products {
    size: usize,
    a: Vec<f32>,
    b_transposed: Vec<f32>,
    spent: Duration,
}

impl CostTiles for Products {
    fn size(&self) -> usize {
        self.size
    }

    fn rows(&mut self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let begun = Instant::now();
        out.fill(0.0);
        for first in (0..self.size).step_by(BLOCK) {
            let end = self.size.min(first + BLOCK);
            for (row, out) in rows.clone().zip(out.chunks_exact_mut(self.size)) {
                let out = &mut out[first..end];
                let units = self.a[row * WIDTH..][..WIDTH].as_chunks::<4>().0;
                for (k, weights) in units.iter().enumerate() {
                    let line =
                        |step: usize| &self.b_transposed[(4 * k + step) * self.size..][first..end];
                    let (p, q, r, s) = (line(0), line(1), line(2), line(3));
                    for ((((out, p), q), r), s) in out.iter_mut().zip(p).zip(q).zip(r).zip(s) {
                        *out += weights[0] * p + weights[1] * q + (weights[2] * r + weights[3] * s);
                    }
                }
            }
        }
        self.spent += begun.elapsed();
        Ok(())
    }
}

/// A multiplicative generator; eight uniform numbers make a bell-shaped one.
fn bells(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut even = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).expect("sixteen bits are left")) / 32768.0 - 1.0
    };
    (0..count)
        .map(|_| (0..8).map(|_| even()).sum::<f32>() * 0.61)
        .collect()
}

fn products(size: usize, kind: &str) -> Products {
    let (mut a, b) = (bells(1, size * WIDTH), bells(2, size * WIDTH));
    let mut b_transposed = vec![0.0; size * WIDTH];
    let shared = bells(3, 8 * WIDTH);
    let (here, there) = (bells(4, size * 8), bells(5, size * 8));
    for row in 0..size {
        let other = size - 1 - row;
        let strength = (row * 31 % 101) as f32 / 100.0;
        for k in 0..WIDTH {
            let part = |share: &[f32], unit: usize| -> f32 {
                (0..8)
                    .map(|r| 0.5 * share[unit * 8 + r] * shared[r * WIDTH + k])
                    .sum()
            };
            let (x, y) = (a[row * WIDTH + k], b[other * WIDTH + k]);
            b_transposed[k * size + other] = match kind {
                "planted" => x + 0.5 * y,
                "hard" => {
                    strength * x + (1.0 - strength * strength).sqrt() * y + part(&there, other)
                }
                _ => y,
            };
            if kind == "hard" {
                a[row * WIDTH + k] += part(&here, row);
            }
        }
    }
    Products {
        size,
        a,
        b_transposed,
        spent: Duration::ZERO,
    }
}

/// The most memory this process ever held, in KiB, where the system tells.
fn peak_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()
    })
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let size: usize = arguments
        .next()
        .map_or(14336, |size| size.parse().expect("a size is a number"));
    let kind = arguments.next().unwrap_or_else(|| "unrelated".into());
    let mut tiles = products(size, &kind);
    let operands_mb = (2 * size * WIDTH * size_of::<f32>()) as f64 / 1e6;
    let before = peak_kib();
    let start: Vec<u32> = (0..).take(size).collect();
    let begun = Instant::now();
    let (assignment, certificate) = certified(
        &mut tiles,
        Sense::Maximise,
        &start,
        &CertifiedOptions::default(),
    )?;
    let (all, spent) = (begun.elapsed().as_secs_f64(), tiles.spent.as_secs_f64());
    println!(
        "{kind}, {size} x {size}: objective {:.3}, {certificate:?}",
        assignment.objective
    );
    println!(
        "{all:.2} s, of which {spent:.2} s for the tiles and {:.2} s for the assignment",
        all - spent
    );
    println!(
        "memory of the solver: {:.1} MB",
        certificate.peak_bytes as f64 / 1e6
    );
    if let (Some(before), Some(after)) = (before, peak_kib()) {
        let (before, after) = (before as f64 * 1.024e-3, after as f64 * 1.024e-3);
        println!(
            "peak of the process: {after:.1} MB, {before:.1} before, {operands_mb:.1} of them operands"
        );
    }
    Ok(())
}
