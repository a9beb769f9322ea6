//! Weighted sums over a whole number.

use super::{Input, divided, oracle, portable, vector_levels};
use crate::dtype::Dtype;

#[test]
fn a_quotient_is_that_of_the_naive_sum_rounded_once() {
    for out in Dtype::MERGEABLE {
        for divisor in [1.0, 3.0, 6.0, 1_048_575.0] {
            let inputs = [0, 40, 90].map(|phase| Input::periodic(Dtype::BF16, 1030, phase));
            let values: Vec<Vec<f64>> = inputs.iter().map(Input::values).collect();
            let sums = (0..1030).map(|k| values[0][k] + values[1][k] + values[2][k]);
            let want: Vec<u8> = sums
                .flat_map(|sum| oracle::narrow(sum / divisor, out))
                .collect();
            let terms = inputs.each_ref().map(|input| (1.0, input));
            assert_eq!(
                divided(portable(), &terms, divisor, out, 1030).0,
                want,
                "{out} over {divisor}"
            );
        }
    }
}

#[test]
fn every_level_divides_as_the_portable_one() {
    let divisors = [
        3.0,
        5.0,
        6.0,
        7.0,
        49.0,
        100.0,
        65_537.0,
        1_048_573.0,
        1_048_576.0,
    ];
    for kernels in vector_levels() {
        for dtype in Dtype::MERGEABLE {
            for count in 1..=6 {
                let noise: Vec<Input> = (0..count)
                    .map(|seed| Input::noise(dtype, 4100, seed))
                    .collect();
                let plain: Vec<Input> = (0..6)
                    .map(|phase| Input::periodic(dtype, 4100, 31 * phase))
                    .collect();
                for inputs in [&noise[..], &plain[..noise.len()]] {
                    let terms: Vec<_> = (0..6).map(|i| f64::from(i % 3 - 1)).zip(inputs).collect();
                    for divisor in divisors {
                        let [got, want] = [kernels, portable()]
                            .map(|kernels| divided(kernels, &terms, divisor, dtype, 4100));
                        assert!(
                            got == want,
                            "{}: {count} of {dtype} over {divisor}",
                            kernels.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_negative_zero_stays_one_when_it_is_divided() {
    let zeros = Input::new(Dtype::BF16, &[0x00, 0x80].repeat(40));
    for kernels in vector_levels().into_iter().chain([portable()]) {
        let terms = [(1.0, &zeros), (2.0, &zeros)];
        assert_eq!(
            divided(kernels, &terms, 3.0, Dtype::BF16, 40).0,
            [0x00, 0x80].repeat(40)
        );
    }
}

#[test]
fn a_third_of_what_lies_between_two_numbers_goes_to_the_even_one() {
    // 1 + 2^-8 is between 1 and the next number of BF16; a factor of a third, which is rounded
    // down, would tip it.
    let value =
        |value: f32| Input::new(Dtype::BF16, &value.to_bits().to_le_bytes()[2..].repeat(33));
    let [low, middle, high] = [1.0, 1.0 + 2f32.powi(-7), 1.0 + 2f32.powi(-6)].map(value);
    for kernels in vector_levels().into_iter().chain([portable()]) {
        let below = [(3.0, &low), (3.0, &middle)];
        assert_eq!(
            divided(kernels, &below, 6.0, Dtype::BF16, 33).0,
            [0x80, 0x3f].repeat(33)
        );
        let above = [(3.0, &middle), (3.0, &high)];
        assert_eq!(
            divided(kernels, &above, 6.0, Dtype::BF16, 33).0,
            [0x82, 0x3f].repeat(33)
        );
    }
}
