//! The kernels on one core, beside the plainest loops over the same bytes: a sum of words and a
//! copy.
//!
//! `tools/src/bin/kernel-ratios.rs` takes the ratios on all cores, reference and kernel
//! alternating.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use thalweg::dtype::Dtype;
use thalweg::kernel::{CHUNK, Elements, GramOptions, Kernels, Level, Scratch, pair_count};

/// Chunks of each input: beyond the caches, where a merge works.
const CHUNKS: usize = 512;

const DTYPES: [Dtype; 4] = [Dtype::BF16, Dtype::F16, Dtype::F32, Dtype::F8E4M3];

fn main() {
    divan::main();
}

fn inputs(dtype: Dtype, count: usize) -> Vec<Vec<u8>> {
    let values: Vec<u8> = (0..CHUNK)
        .flat_map(|k| ((k * 7 % 251) as f64 / 251.0 - 0.4).to_le_bytes())
        .collect();
    let mut chunk = vec![0; CHUNK * dtype.bytes()];
    Kernels::detect().convert(
        Elements {
            dtype: Dtype::F64,
            bytes: &values,
        },
        dtype,
        &mut chunk,
    );
    vec![chunk.repeat(CHUNKS); count]
}

fn chunk(data: &[u8], dtype: Dtype, index: usize) -> Elements<'_> {
    let size = CHUNK * dtype.bytes();
    Elements {
        dtype,
        bytes: &data[index * size..(index + 1) * size],
    }
}

#[divan::bench(args = [2, 4])]
fn plain_sum_of_words(bencher: Bencher, count: usize) {
    let data = inputs(Dtype::BF16, count);
    bencher
        .counter(BytesCount::new(count * data[0].len()))
        .bench(|| {
            let mut sums = [0u64; 16];
            for words in data
                .iter()
                .flat_map(|bytes| bytes.as_chunks::<8>().0.chunks_exact(16))
            {
                for (sum, word) in sums.iter_mut().zip(words) {
                    *sum = sum.wrapping_add(u64::from_le_bytes(*word));
                }
            }
            black_box(sums)
        });
}

#[divan::bench(args = [2, 4])]
fn copy_of_the_same_traffic(bencher: Bencher, count: usize) {
    let len = (count + 1) * CHUNKS * CHUNK * Dtype::BF16.bytes() / 2;
    let (from, mut to) = (vec![1u8; len], vec![2u8; len]);
    bencher.counter(BytesCount::new(2 * len)).bench_local(|| {
        to.copy_from_slice(black_box(&from));
        black_box(&mut to);
    });
}

fn gram(bencher: Bencher, level: Level, dtype: Dtype, count: usize) {
    let Some(kernels) = Kernels::at(level) else {
        return;
    };
    let data = inputs(dtype, count);
    let mut scratch = Scratch::default();
    let mut sums = vec![0.0; pair_count(count)];
    let bytes = BytesCount::new(count * data[0].len());
    bencher.counter(bytes).bench_local(|| {
        for index in 0..CHUNKS {
            let inputs: Vec<_> = data.iter().map(|data| chunk(data, dtype, index)).collect();
            kernels.gram(&inputs, GramOptions::default(), &mut scratch, &mut sums);
            black_box(&mut sums);
        }
    });
}

fn combine(bencher: Bencher, level: Level, dtype: Dtype, count: usize) {
    let Some(kernels) = Kernels::at(level) else {
        return;
    };
    let data = inputs(dtype, count);
    let mut scratch = Scratch::default();
    let size = CHUNK * dtype.bytes();
    let mut dst = vec![0; data[0].len()];
    bencher
        .counter(BytesCount::new((count + 1) * dst.len()))
        .bench_local(|| {
            for (index, dst) in dst.chunks_exact_mut(size).enumerate() {
                let terms: Vec<_> = data
                    .iter()
                    .map(|data| (0.4, chunk(data, dtype, index)))
                    .collect();
                black_box(kernels.combine(&terms, 1.0, dtype, &mut scratch, dst));
            }
        });
}

macro_rules! at_level {
    ($module:ident, $level:ident) => {
        mod $module {
            use super::*;

            #[divan::bench(args = DTYPES)]
            fn gram_of_2(bencher: Bencher, dtype: Dtype) {
                gram(bencher, Level::$level, dtype, 2);
            }

            #[divan::bench(args = [3, 4, 20])]
            fn gram_of_bf16(bencher: Bencher, count: usize) {
                gram(bencher, Level::$level, Dtype::BF16, count);
            }

            #[divan::bench(args = DTYPES)]
            fn combine_of_2(bencher: Bencher, dtype: Dtype) {
                combine(bencher, Level::$level, dtype, 2);
            }

            #[divan::bench(args = [3, 4, 20])]
            fn combine_of_bf16(bencher: Bencher, count: usize) {
                combine(bencher, Level::$level, Dtype::BF16, count);
            }
        }
    };
}

at_level!(portable, Portable);
at_level!(avx2, Avx2);
at_level!(avx512, Avx512);
