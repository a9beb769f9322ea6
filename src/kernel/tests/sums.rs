//! The portable level against naive sums in f64.

use super::{Input, combine, oracle, portable};
use crate::dtype::Dtype;
use crate::kernel::{CHUNK, GramOptions, Scratch, pair_count};

fn gram(inputs: &[Input], options: GramOptions) -> Vec<f64> {
    let elements: Vec<_> = inputs.iter().map(Input::elements).collect();
    let mut sums = vec![f64::NAN; pair_count(inputs.len())];
    portable().gram(&elements, options, &mut Scratch::default(), &mut sums);
    sums
}

/// The sums with the fixed shape written out: sixteen lanes, then halves onto each other.
fn shaped_gram(inputs: &[Input], options: GramOptions) -> Vec<f64> {
    let mut values: Vec<Vec<f64>> = inputs.iter().map(Input::values).collect();
    if options.skip_nonfinite {
        values
            .iter_mut()
            .flatten()
            .filter(|value| !value.is_finite())
            .for_each(|value| *value = 0.0);
    }
    if let Some(center) = options.center {
        let base = values[center].clone();
        for (_, input) in values.iter_mut().enumerate().filter(|(i, _)| *i != center) {
            input.iter_mut().zip(&base).for_each(|(x, b)| *x -= b);
        }
    }
    let mut sums = Vec::new();
    for i in 0..values.len() {
        for j in i..values.len() {
            let mut lanes = vec![0.0; 16];
            for (k, (a, b)) in values[i].iter().zip(&values[j]).enumerate() {
                lanes[k % 16] += a * b;
            }
            while lanes.len() > 1 {
                let upper = lanes.split_off(lanes.len() / 2);
                lanes
                    .iter_mut()
                    .zip(upper)
                    .for_each(|(low, high)| *low += high);
            }
            sums.push(lanes[0]);
        }
    }
    sums
}

fn bits(sums: &[f64]) -> Vec<u64> {
    sums.iter()
        .map(|sum| {
            if sum.is_nan() {
                f64::NAN.to_bits()
            } else {
                sum.to_bits()
            }
        })
        .collect()
}

#[test]
fn pairs_are_the_upper_triangle_row_by_row() {
    assert_eq!([0, 1, 2, 3, 100].map(pair_count), [0, 1, 3, 6, 5050]);
    let inputs: Vec<Input> = [2.0f32, 3.0, 5.0]
        .iter()
        .map(|x| Input::new(Dtype::F32, &x.to_le_bytes()))
        .collect();
    assert_eq!(
        gram(&inputs, GramOptions::default()),
        [4.0, 6.0, 10.0, 9.0, 15.0, 25.0]
    );
}

#[test]
fn no_inputs_and_no_elements_sum_to_nothing() {
    assert!(gram(&[], GramOptions::default()).is_empty());
    let empty = [Input::new(Dtype::BF16, &[]), Input::new(Dtype::F8E4M3, &[])];
    assert_eq!(gram(&empty, GramOptions::default()), [0.0; 3]);
}

#[test]
fn gram_sums_have_the_documented_shape_at_every_input_count() {
    for count in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20, 100] {
        let input = |i: usize| Input::periodic(Dtype::MERGEABLE[i * 5 % 6], 1100, i * 7);
        let inputs: Vec<Input> = (0..count).map(input).collect();
        for center in [None, Some(0), Some(count - 1)] {
            let options = GramOptions {
                center,
                skip_nonfinite: false,
            };
            assert_eq!(
                bits(&gram(&inputs, options)),
                bits(&shaped_gram(&inputs, options)),
                "{count} {center:?}"
            );
        }
    }
}

#[test]
fn gram_sums_are_near_the_exact_ones() {
    let inputs = [
        Input::periodic(Dtype::F32, CHUNK, 0),
        Input::periodic(Dtype::BF16, CHUNK, 100),
    ];
    let (a, b) = (inputs[0].values(), inputs[1].values());
    // The summands in units of 2^-60, exactly in integers up to the truncation of each, 2^-60.
    let exact: i128 = a.iter().zip(&b).map(|(a, b)| fixed(a * b)).sum();
    let got = gram(&inputs, GramOptions::default())[1];
    // 2048 additions a lane, each off by half an ulp of a sum of at most 2^13: about 2^-30, mostly
    // cancelling.
    assert!(
        (got - exact as f64 / 2f64.powi(60)).abs() < 2f64.powi(-30),
        "{got}"
    );
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "truncation to the unit is within the test's bound"
)]
fn fixed(value: f64) -> i128 {
    (value * 2f64.powi(60)) as i128
}

#[test]
fn skipped_elements_count_as_zero_before_the_centre_is_subtracted() {
    let input = |values: [f32; 3]| Input::new(Dtype::F32, &values.map(f32::to_le_bytes).concat());
    let inputs = [
        input([1.0, f32::NAN, 2.0]),
        input([f32::INFINITY, 5.0, 3.0]),
    ];
    let skip = GramOptions {
        center: None,
        skip_nonfinite: true,
    };
    assert_eq!(gram(&inputs, skip), [5.0, 6.0, 34.0]);
    // (0, 5, 3) - (1, 0, 2) = (-1, 5, 1)
    assert_eq!(
        gram(
            &inputs,
            GramOptions {
                center: Some(0),
                ..skip
            }
        ),
        [5.0, 1.0, 27.0]
    );
    let kept = gram(&inputs, GramOptions::default());
    assert_eq!(bits(&kept), bits(&[f64::NAN, f64::NAN, f64::INFINITY]));
}

#[test]
fn noise_with_nan_and_infinity_sums_as_the_shaped_oracle() {
    for dtype in Dtype::MERGEABLE {
        for skip_nonfinite in [false, true] {
            let options = GramOptions {
                center: None,
                skip_nonfinite,
            };
            for len in [5, 40, 600] {
                let inputs: Vec<Input> =
                    (0..3).map(|seed| Input::noise(dtype, len, seed)).collect();
                assert_eq!(
                    bits(&gram(&inputs, options)),
                    bits(&shaped_gram(&inputs, options)),
                    "{dtype} {len}"
                );
            }
        }
    }
}

#[test]
fn combining_is_the_naive_sum_rounded_once() {
    for out in Dtype::MERGEABLE {
        for count in [1, 2, 3, 4, 5, 9] {
            let input = |i: usize| Input::periodic(Dtype::MERGEABLE[(i / 2) % 6], 1030, i * 11);
            let inputs: Vec<Input> = (0..count).map(input).collect();
            let weights: Vec<f64> = (0..count).map(|i| 0.7 - i as f64 / 3.0).collect();
            let terms: Vec<_> = weights.iter().copied().zip(&inputs).collect();
            let values: Vec<Vec<f64>> = inputs.iter().map(Input::values).collect();
            let naive = |k: usize| {
                let first = weights[0] * values[0][k];
                weights
                    .iter()
                    .zip(&values)
                    .skip(1)
                    .fold(first, |sum, (weight, values)| sum + weight * values[k])
            };
            let want: Vec<u8> = (0..1030)
                .flat_map(|k| oracle::narrow(naive(k), out))
                .collect();
            assert_eq!(
                combine(portable(), &terms, out, 1030).0,
                want,
                "{count} {out}"
            );
        }
    }
}

#[test]
fn a_negative_zero_survives_alone_and_with_its_like() {
    let zeros = Input::new(Dtype::BF16, &[0x00, 0x80].repeat(20));
    for terms in [vec![(1.0, &zeros)], vec![(0.25, &zeros), (3.0, &zeros)]] {
        assert_eq!(
            combine(portable(), &terms, Dtype::BF16, 20).0,
            [0x00, 0x80].repeat(20)
        );
    }
}

#[test]
fn no_terms_write_positive_zeros() {
    assert_eq!(combine(portable(), &[], Dtype::F32, 9), (vec![0; 36], 0));
}

#[test]
fn overflows_of_finite_sums_are_counted_one_by_one() {
    let values = [1.0f64, 7e4, -7e4, f64::INFINITY, f64::NAN, 65519.0, 65520.0];
    let input = Input::new(Dtype::F64, &values.map(f64::to_le_bytes).concat());
    assert_eq!(combine(portable(), &[(1.0, &input)], Dtype::F16, 7).1, 3);
    assert_eq!(combine(portable(), &[(1.0, &input)], Dtype::BF16, 7).1, 0);
}

#[test]
fn a_scratch_never_outgrows_its_bound() {
    for count in [1, 2, 5, 30] {
        let inputs: Vec<Input> = (0..count)
            .map(|i| Input::periodic(Dtype::F16, 100, i))
            .collect();
        let elements: Vec<_> = inputs.iter().map(Input::elements).collect();
        let terms: Vec<_> = elements.iter().map(|elements| (0.5, *elements)).collect();
        let mut scratch = Scratch::default();
        portable().gram(
            &elements,
            GramOptions::default(),
            &mut scratch,
            &mut vec![0.0; pair_count(count)],
        );
        portable().combine(&terms, 1.0, Dtype::F16, &mut scratch, &mut [0; 200]);
        assert!(
            scratch.held_bytes() <= Scratch::bytes(count),
            "{count} inputs"
        );
    }
}
