//! The two solvers beside other crates, on matrices like those that aligning networks gives.

use divan::{Bencher, black_box};
use thalweg::align::assignment::{CertifiedOptions, Costs, Sense, certified, dense};

const WIDTH: usize = 64;
const SIZES: [usize; 3] = [1024, 2048, 4096];
const KINDS: [&str; 3] = ["unrelated", "hard", "planted"];

fn main() {
    divan::main();
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

/// Rows of two matrices whose inner products are the gains of pairing units.
fn units(kind: &str, size: usize) -> (Vec<f32>, Vec<f32>) {
    let (mut a, mut b) = (bells(1, size * WIDTH), bells(2, size * WIDTH));
    let (shared, here, there) = (bells(3, 8 * WIDTH), bells(4, size * 8), bells(5, size * 8));
    for row in 0..size {
        let other = (row * 7 + 3) % size;
        let strength = (row * 31 % 101) as f32 / 100.0;
        for k in 0..WIDTH {
            let (x, y) = (row * WIDTH + k, other * WIDTH + k);
            let part = |share: &[f32], unit: usize| -> f32 {
                (0..8)
                    .map(|r| 0.5 * share[unit * 8 + r] * shared[r * WIDTH + k])
                    .sum()
            };
            match kind {
                "planted" => b[y] = a[x] + 3.0 * b[y],
                "hard" => {
                    b[y] = strength * a[x]
                        + (1.0 - strength * strength).sqrt() * b[y]
                        + part(&there, other);
                    a[x] += part(&here, row);
                }
                _ => {}
            }
        }
    }
    (a, b)
}

/// Costs: the gains with their sign turned, which all solvers minimise.
fn matrix(kind: &str, size: usize) -> Vec<f32> {
    let (a, b) = units(kind, size);
    let dot = |x: &[f32], y: &[f32]| {
        let mut lanes = [0.0f32; 8];
        for (x, y) in x.as_chunks::<8>().0.iter().zip(y.as_chunks::<8>().0) {
            (0..8).for_each(|k| lanes[k] -= x[k] * y[k]);
        }
        lanes.iter().sum()
    };
    a.chunks(WIDTH)
        .flat_map(|x| b.chunks(WIDTH).map(move |y| dot(x, y)))
        .collect()
}

fn cases() -> impl Iterator<Item = String> {
    SIZES
        .into_iter()
        .flat_map(|size| KINDS.into_iter().map(move |kind| format!("{kind} {size}")))
}

fn case(name: &str) -> (usize, Vec<f32>) {
    let (kind, size) = name.split_once(' ').expect("kind and size");
    let size = size.parse().expect("a number");
    (size, matrix(kind, size))
}

#[divan::bench(args = cases(), sample_count = 3, sample_size = 1)]
fn dense_in_memory(bencher: Bencher, name: &str) {
    let (size, entries) = case(name);
    bencher.bench_local(|| {
        dense(
            &Costs::new(size, black_box(&entries)).expect("square"),
            Sense::Minimise,
        )
    });
}

#[divan::bench(args = cases(), sample_count = 3, sample_size = 1)]
fn certified_from_tiles(bencher: Bencher, name: &str) {
    let (size, entries) = case(name);
    let start: Vec<u32> = (0..).take(size).collect();
    bencher.bench_local(|| {
        let mut costs = Costs::new(size, black_box(&entries)).expect("square");
        certified(
            &mut costs,
            Sense::Minimise,
            &start,
            &CertifiedOptions::default(),
        )
    });
}

#[divan::bench(args = cases(), sample_count = 3, sample_size = 1)]
fn crate_lapjv(bencher: Bencher, name: &str) {
    let (size, entries) = case(name);
    let costs = lapjv::Matrix::from_shape_vec((size, size), entries).expect("square");
    bencher.bench_local(|| lapjv::lapjv(black_box(&costs)));
}

#[divan::bench(args = cases(), sample_count = 3, sample_size = 1)]
fn crate_lsap(bencher: Bencher, name: &str) {
    let (size, entries) = case(name);
    let costs: Vec<f64> = entries.into_iter().map(f64::from).collect();
    bencher.bench_local(|| lsap::solve(size, size, black_box(&costs), false).is_ok());
}
