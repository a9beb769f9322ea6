//! Every vector level against the portable one, bit for bit.

use proptest::prelude::*;

use super::{Input, combine, portable, vector_levels};
use crate::dtype::Dtype;
use crate::kernel::lanes::TILE;
use crate::kernel::{CHUNK, GramOptions, Kernels, Scratch, pair_count};

/// Zero, one, and one either side of each internal boundary.
const LENGTHS: [usize; 19] = [
    0,
    1,
    3,
    4,
    7,
    8,
    9,
    15,
    16,
    17,
    31,
    33,
    251,
    TILE - 1,
    TILE,
    TILE + 1,
    2 * TILE + 17,
    CHUNK - 1,
    CHUNK,
];

fn gram_bits(
    kernels: Kernels,
    inputs: &[Input],
    options: GramOptions,
    scratch: &mut Scratch,
) -> Vec<u64> {
    let elements: Vec<_> = inputs.iter().map(Input::elements).collect();
    let mut sums = vec![-1.0; pair_count(inputs.len())];
    kernels.gram(&elements, options, scratch, &mut sums);
    sums.into_iter().map(f64::to_bits).collect()
}

fn assert_levels_agree(inputs: &[Input], options: GramOptions, what: &str) {
    let want = gram_bits(portable(), inputs, options, &mut Scratch::default());
    // A scratch that held other sums before must make no difference.
    let mut scratch = Scratch::default();
    gram_bits(
        portable(),
        &[Input::noise(Dtype::F64, 2000, 99)],
        GramOptions::default(),
        &mut scratch,
    );
    for kernels in vector_levels() {
        assert_eq!(
            gram_bits(kernels, inputs, options, &mut scratch),
            want,
            "{}: {what}",
            kernels.name()
        );
    }
}

#[test]
fn gram_sums_agree_at_every_boundary_length() {
    for len in LENGTHS {
        for dtype in Dtype::MERGEABLE {
            for count in [1, 2, 3, 4, 5] {
                let inputs: Vec<_> = (0..count)
                    .map(|i| Input::periodic(dtype, len, i * 31))
                    .collect();
                assert_levels_agree(
                    &inputs,
                    GramOptions::default(),
                    &format!("{count} {dtype} of {len}"),
                );
            }
        }
    }
}

#[test]
fn gram_sums_agree_for_every_pair_of_dtypes_and_option() {
    for a in Dtype::MERGEABLE {
        for b in Dtype::MERGEABLE {
            let clean = [Input::periodic(a, 1100, 0), Input::periodic(b, 1100, 50)];
            let noise = [Input::noise(a, 1100, 1), Input::noise(b, 1100, 2)];
            for (inputs, center, skip_nonfinite) in [
                (&clean, None, false),
                (&clean, Some(0), false),
                (&clean, Some(1), false),
                (&clean, None, true),
                (&noise, None, false),
                (&noise, None, true),
                (&noise, Some(1), true),
            ] {
                let options = GramOptions {
                    center,
                    skip_nonfinite,
                };
                assert_levels_agree(inputs, options, &format!("{a} {b} {options:?}"));
            }
        }
    }
}

#[test]
fn gram_sums_agree_for_many_mixed_inputs() {
    for count in [6, 7, 8, 9, 10, 11, 12, 13, 20, 100] {
        for exact in [true, false] {
            // Without F64 the vector levels fuse.
            let dtype = |i: usize| Dtype::MERGEABLE[if exact { 1 + i % 5 } else { i % 6 }];
            let inputs: Vec<_> = (0..count)
                .map(|i| Input::periodic(dtype(i), 531, i * 13))
                .collect();
            assert_levels_agree(&inputs, GramOptions::default(), &format!("{count} inputs"));
            assert_levels_agree(
                &inputs,
                GramOptions {
                    center: Some(count / 2),
                    skip_nonfinite: true,
                },
                "centred",
            );
        }
    }
}

#[test]
fn combinations_agree_at_every_boundary_length_and_output() {
    for len in LENGTHS {
        for dtype in Dtype::MERGEABLE {
            let inputs: Vec<_> = (0..3)
                .map(|i| Input::periodic(dtype, len, i * 31))
                .collect();
            let terms: Vec<_> = [0.3, -1.7, 1e-3].into_iter().zip(&inputs).collect();
            for out in Dtype::MERGEABLE {
                let want = combine(portable(), &terms, out, len);
                for kernels in vector_levels() {
                    assert_eq!(
                        combine(kernels, &terms, out, len),
                        want,
                        "{} {dtype} {out} {len}",
                        kernels.name()
                    );
                }
            }
        }
    }
}

#[test]
fn combinations_of_noise_and_of_many_mixed_inputs_agree() {
    for count in [1, 2, 3, 4, 5, 6, 9, 20, 100] {
        let inputs: Vec<_> = (0..count)
            .map(|i| Input::noise(Dtype::MERGEABLE[i / 2 % 6], 1100, i as u64))
            .collect();
        let terms: Vec<_> = inputs
            .iter()
            .enumerate()
            .map(|(i, input)| (1.0 / (i as f64 + 3.0), input))
            .collect();
        for out in Dtype::MERGEABLE {
            let want = combine(portable(), &terms, out, 1100);
            for kernels in vector_levels() {
                assert_eq!(
                    combine(kernels, &terms, out, 1100),
                    want,
                    "{} {count} {out}",
                    kernels.name()
                );
            }
        }
    }
}

proptest! {
    #[test]
    fn random_inputs_agree(
        dtypes in prop::collection::vec(0..6usize, 1..10),
        len in 0..700usize,
        seed in any::<u64>(),
        center in any::<bool>(),
        skip_nonfinite in any::<bool>(),
    ) {
        let count = dtypes.len();
        let inputs: Vec<_> = dtypes
            .iter()
            .enumerate()
            .map(|(i, dtype)| Input::noise(Dtype::MERGEABLE[*dtype], len, seed.wrapping_add(i as u64)))
            .collect();
        let center = center.then_some(count / 2);
        assert_levels_agree(&inputs, GramOptions { center, skip_nonfinite }, "random");
        let terms: Vec<_> = inputs.iter().map(|input| (0.4, input)).collect();
        for out in Dtype::MERGEABLE {
            let want = combine(portable(), &terms, out, len);
            for kernels in vector_levels() {
                prop_assert_eq!(combine(kernels, &terms, out, len), want.clone(), "{} {}", kernels.name(), out);
            }
        }
    }
}
