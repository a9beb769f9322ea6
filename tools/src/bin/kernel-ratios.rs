//! Measures the kernels against the plainest loops over the same bytes and prints the ratios.
//!
//! Reference and kernel run alternately, on buffers much larger than the last-level cache, chunk by
//! chunk on every core. A ratio of 1 means that the memory is the limit, not the kernel. Arguments:
//! rounds (default 7), mebibytes of each input (default 256), a level (default all).

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;
use thalweg::dtype::Dtype;
use thalweg::kernel::{CHUNK, Elements, GramOptions, Kernels, Scratch, pair_count};

struct Setup {
    kernels: Kernels,
    rounds: usize,
    bytes: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (rounds, bytes) = (number(7), number(256) << 20);
    let only = arguments.next().unwrap_or_default();
    println!(
        "{} threads, {rounds} rounds, {} MiB an input, GB/s",
        rayon::current_num_threads(),
        bytes >> 20
    );
    println!(
        "{:<9} {:<30} {:>9} {:>9} {:>7} {:>7}",
        "level", "kernel", "reference", "kernel", "ratio", "best"
    );
    for kernels in Kernels::available()
        .into_iter()
        .rev()
        .filter(|kernels| kernels.name().contains(&only))
    {
        let setup = Setup {
            kernels,
            rounds,
            bytes,
        };
        for (dtype, inputs) in [
            (Dtype::BF16, 2),
            (Dtype::BF16, 3),
            (Dtype::BF16, 4),
            (Dtype::BF16, 20),
            (Dtype::F16, 2),
            (Dtype::F32, 2),
            (Dtype::F64, 2),
            (Dtype::F8E4M3, 2),
        ] {
            setup.gram(dtype, inputs);
            setup.combine(dtype, inputs);
        }
    }
}

impl Setup {
    fn gram(&self, dtype: Dtype, inputs: usize) {
        let data = self.data(dtype, inputs);
        let traffic = data.iter().map(Vec::len).sum();
        let plain = || {
            data.iter()
                .map(|bytes| plain_sum(bytes))
                .fold(0, u64::wrapping_add)
        };
        let kernel = || self.gram_of(dtype, &data);
        self.row(
            &format!("gram {inputs} {dtype}"),
            traffic,
            || {
                black_box(plain());
            },
            || {
                drop(black_box(kernel()));
            },
        );
    }

    fn gram_of(&self, dtype: Dtype, data: &[Vec<u8>]) -> Vec<f64> {
        let size = CHUNK * dtype.bytes();
        let pairs = pair_count(data.len());
        (0..data[0].len() / size)
            .into_par_iter()
            .fold(
                || (Scratch::default(), vec![0.0; pairs], vec![0.0; pairs]),
                |(mut scratch, mut sums, mut total), chunk| {
                    let inputs: Vec<_> = data
                        .iter()
                        .map(|bytes| Elements {
                            dtype,
                            bytes: &bytes[chunk * size..(chunk + 1) * size],
                        })
                        .collect();
                    self.kernels
                        .gram(&inputs, GramOptions::default(), &mut scratch, &mut sums);
                    total
                        .iter_mut()
                        .zip(&sums)
                        .for_each(|(total, sum)| *total += sum);
                    (scratch, sums, total)
                },
            )
            .map(|(_, _, total)| total)
            .reduce(
                || vec![0.0; pairs],
                |a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect(),
            )
    }

    fn combine(&self, dtype: Dtype, inputs: usize) {
        let data = self.data(dtype, inputs);
        let size = CHUNK * dtype.bytes();
        let traffic: usize = (inputs + 1) * data[0].len();
        let mut dst = vec![1u8; data[0].len()];
        // Half the traffic of a copy is its input.
        let (from, mut to) = (vec![1u8; traffic / 2], vec![2u8; traffic / 2]);
        let weight = 1.0 / inputs as f64;
        self.row(
            &format!("combine {inputs} {dtype}"),
            traffic,
            || {
                let part = from.len().div_ceil(rayon::current_num_threads());
                to.par_chunks_mut(part)
                    .zip(from.par_chunks(part))
                    .for_each(|(to, from)| to.copy_from_slice(from));
            },
            || {
                dst.par_chunks_mut(size).enumerate().for_each_init(
                    Scratch::default,
                    |scratch, (chunk, dst)| {
                        let terms: Vec<_> = data
                            .iter()
                            .map(|bytes| {
                                (
                                    weight,
                                    Elements {
                                        dtype,
                                        bytes: &bytes[chunk * size..(chunk + 1) * size],
                                    },
                                )
                            })
                            .collect();
                        self.kernels.combine(&terms, 1.0, dtype, scratch, dst);
                    },
                );
            },
        );
    }

    /// Inputs of ordinary small numbers; all inputs together stay within four times one input's
    /// size.
    fn data(&self, dtype: Dtype, inputs: usize) -> Vec<Vec<u8>> {
        let unit = CHUNK * dtype.bytes();
        let bytes = (self.bytes * 4 / inputs.max(4)).div_ceil(unit) * unit;
        let make = |input: usize| {
            let mut data = vec![0; bytes];
            data.par_chunks_mut(unit)
                .enumerate()
                .for_each(|(chunk, data)| {
                    let values: Vec<u8> = (0..CHUNK)
                        .flat_map(|k| {
                            (((k * 7 + chunk + input * 3) % 251) as f64 / 251.0 - 0.4).to_le_bytes()
                        })
                        .collect();
                    let values = Elements {
                        dtype: Dtype::F64,
                        bytes: &values,
                    };
                    self.kernels.convert(values, dtype, data);
                });
            data
        };
        (0..inputs).map(make).collect()
    }

    fn row(&self, name: &str, bytes: usize, mut reference: impl FnMut(), mut kernel: impl FnMut()) {
        let (mut plain, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        reference();
        kernel();
        for _ in 0..self.rounds {
            plain.push(speed(bytes, &mut reference));
            ours.push(speed(bytes, &mut kernel));
            ratios.push(ours[ours.len() - 1] / plain[plain.len() - 1]);
        }
        println!(
            "{:<9} {name:<30} {:>9.2} {:>9.2} {:>7.3} {:>7.3}",
            self.kernels.name(),
            median(&mut plain),
            median(&mut ours),
            median(&mut ratios),
            ratios[ratios.len() - 1],
        );
    }
}

fn speed(bytes: usize, run: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    bytes as f64 / 1e9 / start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The sum of all bytes as little-endian u64, on every core, in sixteen chains so that no addition
/// waits for another.
fn plain_sum(bytes: &[u8]) -> u64 {
    let part = (bytes.len() / rayon::current_num_threads()).div_ceil(64) * 64;
    let sum = |bytes: &[u8]| {
        let mut sums = [0u64; 16];
        for words in bytes.as_chunks::<8>().0.chunks_exact(16) {
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        sums.into_iter().fold(0, u64::wrapping_add)
    };
    bytes
        .par_chunks(part)
        .map(sum)
        .reduce(|| 0, u64::wrapping_add)
}
