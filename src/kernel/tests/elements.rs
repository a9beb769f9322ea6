//! Widening and narrowing, exhaustively where the types are small.

use half::{bf16, f16};
use proptest::prelude::*;

use super::{Input, convert, oracle, portable, split_mix, vector_levels};
use crate::dtype::Dtype;
use crate::kernel::Kernels;

const SMALL: [Dtype; 4] = [Dtype::F16, Dtype::BF16, Dtype::F8E4M3, Dtype::F8E5M2];

fn every_level() -> impl Iterator<Item = Kernels> {
    std::iter::once(portable()).chain(vector_levels())
}

/// Every code of a type of one or two bytes.
fn all_codes(dtype: Dtype) -> Vec<u8> {
    match dtype.bytes() {
        1 => (0..=u8::MAX).collect(),
        _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
    }
}

fn widened(kernels: Kernels, dtype: Dtype, codes: &[u8]) -> Vec<f64> {
    let (bytes, overflows) = convert(kernels, &Input::new(dtype, codes), Dtype::F64);
    assert_eq!(overflows, 0, "widening cannot overflow");
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f64::from_le_bytes(*bytes))
        .collect()
}

fn narrowed(kernels: Kernels, values: &[f64], out: Dtype) -> (Vec<u8>, u64) {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    convert(kernels, &Input::new(Dtype::F64, &bytes), out)
}

fn assert_same_number(got: f64, want: f64, what: &str) {
    let same = if want.is_nan() {
        got.to_bits() == f64::NAN.to_bits()
    } else {
        got.to_bits() == want.to_bits()
    };
    assert!(same, "{what}: got {got:e}, want {want:e}");
}

#[test]
fn every_code_widens_to_the_value_of_its_format() {
    for kernels in every_level() {
        for dtype in SMALL {
            let codes = all_codes(dtype);
            let wide = widened(kernels, dtype, &codes);
            for (code, got) in codes.chunks(dtype.bytes()).zip(wide) {
                let what = format!("{} {dtype} {code:02x?}", kernels.name());
                assert_same_number(got, oracle::widen(code, dtype), &what);
            }
        }
    }
}

#[test]
fn every_16_bit_code_widens_as_in_the_half_crate() {
    for kernels in every_level() {
        let halves = widened(kernels, Dtype::F16, &all_codes(Dtype::F16));
        let brains = widened(kernels, Dtype::BF16, &all_codes(Dtype::BF16));
        for code in 0..=u16::MAX {
            let at = usize::from(code);
            assert_same_number(
                halves[at],
                f16::from_bits(code).to_f64(),
                &format!("f16 {code:04x}"),
            );
            assert_same_number(
                brains[at],
                bf16::from_bits(code).to_f64(),
                &format!("bf16 {code:04x}"),
            );
        }
    }
}

#[test]
fn narrowing_undoes_widening_of_every_number() {
    for kernels in every_level() {
        for dtype in SMALL {
            let codes = all_codes(dtype);
            let wide = widened(kernels, dtype, &codes);
            let (back, overflows) = narrowed(kernels, &wide, dtype);
            assert_eq!(overflows, 0, "{} {dtype}", kernels.name());
            for ((code, back), value) in codes
                .chunks(dtype.bytes())
                .zip(back.chunks(dtype.bytes()))
                .zip(wide)
            {
                let want = if value.is_nan() {
                    oracle::narrow(f64::NAN, dtype)
                } else {
                    code.to_vec()
                };
                assert_eq!(back, want, "{} {dtype} of {value:e}", kernels.name());
            }
        }
    }
}

/// For every two neighbouring numbers of the type: the point halfway, its neighbours in f64, and
/// points nearer to it than f32 can tell, which a detour over f32 would round wrongly.
fn traps(dtype: Dtype) -> Vec<f64> {
    let positive = 1 << (8 * dtype.bytes() - 1);
    let number = |code: u64| oracle::widen(&code.to_le_bytes()[..dtype.bytes()], dtype);
    let mut values = Vec::new();
    for code in 0..positive - 1 {
        let (low, mut high) = (number(code), number(code + 1));
        if !low.is_finite() {
            break;
        }
        if !high.is_finite() {
            high = low + (low - number(code - 1));
        }
        let half = low + (high - low) / 2.0;
        let near = half * 2f64.powi(-30);
        for value in [
            low,
            half,
            half.next_down(),
            half.next_up(),
            half - near,
            half + near,
            high.next_down(),
            high,
        ] {
            values.extend([value, -value]);
        }
    }
    values
}

fn assert_narrows_as_the_oracle(values: &[f64], out: Dtype) {
    let want: Vec<u8> = values
        .iter()
        .flat_map(|&value| oracle::narrow(value, out))
        .collect();
    for kernels in every_level() {
        // In runs that fit a tile, so that one overflow does not send all others through the slow
        // path.
        for (values, want) in values.chunks(500).zip(want.chunks(500 * out.bytes())) {
            let (got, overflows) = narrowed(kernels, values, out);
            for ((got, want), value) in got
                .chunks(out.bytes())
                .zip(want.chunks(out.bytes()))
                .zip(values)
            {
                assert_eq!(
                    got,
                    want,
                    "{} {out} of {value:e} = {:016x}",
                    kernels.name(),
                    value.to_bits()
                );
            }
            let lost = |(code, value): (&[u8], &f64)| {
                value.is_finite() && !oracle::widen(code, out).is_finite()
            };
            let lost = want
                .chunks(out.bytes())
                .zip(values)
                .filter(|pair| lost(*pair))
                .count();
            assert_eq!(
                overflows,
                lost as u64,
                "{} {out}: overflows",
                kernels.name()
            );
        }
    }
}

#[test]
fn halfway_points_and_their_neighbours_round_once_to_nearest_even() {
    for dtype in SMALL {
        assert_narrows_as_the_oracle(&traps(dtype), dtype);
    }
}

#[test]
fn a_sticky_bit_below_f32_decides_a_tie() {
    let above_tie = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
    for kernels in every_level() {
        // A detour over f32 loses the sticky bit, and the tie rounds down to 1.
        let values = [above_tie; 20];
        let (bytes, _) = narrowed(kernels, &values, Dtype::BF16);
        assert_eq!(
            bytes,
            bf16::from_bits(0x3f81).to_le_bytes().repeat(20),
            "{}",
            kernels.name()
        );
    }
}

#[test]
fn special_values_have_defined_codes() {
    let cases = [
        (Dtype::F16, [0x7c00, 0xfc00, 0x7e00, 0x0000, 0x8000]),
        (Dtype::BF16, [0x7f80, 0xff80, 0x7fc0, 0x0000, 0x8000]),
        (Dtype::F8E4M3, [0x7f, 0xff, 0x7f, 0x00, 0x80]),
        (Dtype::F8E5M2, [0x7c, 0xfc, 0x7e, 0x00, 0x80]),
        (
            Dtype::F32,
            [0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0, 0x8000_0000_u32],
        ),
    ];
    let negative_nan = f64::from_bits(0xfff0_0000_0000_0001);
    for (dtype, codes) in cases {
        let want: Vec<u8> = codes
            .iter()
            .flat_map(|code| code.to_le_bytes()[..dtype.bytes()].to_vec())
            .collect();
        for kernels in every_level() {
            let values = [f64::INFINITY, f64::NEG_INFINITY, negative_nan, 0.0, -0.0].repeat(7);
            let (bytes, overflows) = narrowed(kernels, &values, dtype);
            assert_eq!(bytes, want.repeat(7), "{} {dtype}", kernels.name());
            assert_eq!(overflows, 0, "what was not finite does not overflow");
        }
    }
}

#[test]
fn e4m3_overflows_above_the_tie_with_its_missing_neighbour() {
    let values = [448.0, 464.0, 464.0f64.next_up(), -1e9];
    for kernels in every_level() {
        assert_eq!(
            narrowed(kernels, &values, Dtype::F8E4M3),
            (vec![0x7e, 0x7e, 0x7f, 0xff], 2),
            "{}",
            kernels.name()
        );
    }
}

#[test]
fn f32_rounds_as_the_cast_does_with_subnormals_kept() {
    let mut state = 7;
    let tiny = f64::from(f32::from_bits(1));
    let mut values = vec![
        tiny,
        tiny / 2.0,
        (tiny / 2.0).next_up(),
        -tiny * 1.5,
        f64::from(f32::MAX),
        1e300,
        -1e39,
    ];
    values.extend((0..4000).map(|_| f64::from_bits(split_mix(&mut state))));
    let finite: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
    assert_narrows_as_the_oracle(&finite, Dtype::F32);
}

#[test]
fn random_magnitudes_across_each_range_round_as_the_oracle() {
    let mut state = 11;
    for (dtype, lowest, highest) in [
        (Dtype::F16, -30, 18),
        (Dtype::BF16, -140, 130),
        (Dtype::F8E4M3, -14, 11),
        (Dtype::F8E5M2, -20, 18),
    ] {
        let mut values = Vec::new();
        for exponent in lowest..highest {
            for _ in 0..64 {
                let mantissa = f64::from_bits(split_mix(&mut state) >> 12 | 1023 << 52);
                values.push(mantissa * 2f64.powi(exponent));
            }
        }
        assert_narrows_as_the_oracle(&values, dtype);
    }
}

#[test]
fn equal_dtypes_are_copied_with_their_nan_payloads() {
    for dtype in Dtype::MERGEABLE {
        let input = Input::noise(dtype, 777, 3);
        for kernels in every_level() {
            assert_eq!(
                convert(kernels, &input, dtype),
                (input.bytes[1..].to_vec(), 0)
            );
        }
    }
}

#[test]
fn non_finite_elements_are_found_wherever_they_are() {
    for kernels in every_level() {
        for dtype in Dtype::MERGEABLE {
            for len in [0, 1, 17, 512, 513, 1100] {
                let clean = Input::periodic(dtype, len, 0);
                assert_eq!(
                    kernels.first_nonfinite(clean.elements()),
                    None,
                    "{} {dtype} {len}",
                    kernels.name()
                );
                for at in (0..len).step_by(37).chain(len.checked_sub(1)) {
                    let mut dirty = Input::periodic(dtype, len, 0);
                    for bad in [at, (at + 3).min(len - 1)] {
                        let code = oracle::narrow(f64::NEG_INFINITY, dtype);
                        dirty.bytes[1 + bad * code.len()..][..code.len()].copy_from_slice(&code);
                    }
                    assert_eq!(
                        kernels.first_nonfinite(dirty.elements()),
                        Some(at),
                        "{} {dtype}",
                        kernels.name()
                    );
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn any_f64_bits_round_as_the_oracle(bits in prop::collection::vec(any::<u64>(), 1..40), exponent in -155..140i32) {
        // Random bits are mostly huge or tiny; with a chosen exponent they fall into the ranges of
        // the small types.
        let raw: Vec<f64> = bits.into_iter().map(f64::from_bits).collect();
        let fraction = |value: &f64| f64::from_bits(value.to_bits() & !(0x7ff << 52) | 1023 << 52);
        let scaled: Vec<f64> = raw.iter().map(|value| fraction(value) * 2f64.powi(exponent)).collect();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F8E4M3, Dtype::F8E5M2] {
            assert_narrows_as_the_oracle(&raw, dtype);
            assert_narrows_as_the_oracle(&scaled, dtype);
        }
    }
}
