//! Floating point formats by their definition, and rounding by search.

use safetensors::Dtype;

/// A format of sign, exponent and mantissa of at most 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    exponent: u32,
    mantissa: u32,
    /// Whether the highest exponent holds infinity and NaNs; if not, only the pattern of all ones
    /// is NaN.
    infinite: bool,
}

impl Format {
    /// The format of a type, if it is a floating point one that can be merged.
    pub fn of(dtype: Dtype) -> Option<Self> {
        let (exponent, mantissa, infinite) = match dtype {
            Dtype::F64 => (11, 52, true),
            Dtype::F32 => (8, 23, true),
            Dtype::F16 => (5, 10, true),
            Dtype::BF16 => (8, 7, true),
            Dtype::F8_E5M2 => (5, 2, true),
            Dtype::F8_E4M3 => (4, 3, false),
            _ => return None,
        };
        Some(Self {
            exponent,
            mantissa,
            infinite,
        })
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        usize::try_from((1 + self.exponent + self.mantissa) / 8).expect("small")
    }

    fn sign(self) -> u64 {
        1 << (self.exponent + self.mantissa)
    }

    /// The smallest magnitude that is not a finite number: infinity, or the only NaN.
    fn overflow(self) -> u64 {
        if self.infinite {
            self.sign() - (1 << self.mantissa)
        } else {
            self.sign() - 1
        }
    }

    /// The value that a magnitude has, or would have if the highest exponent were an ordinary one.
    fn value(self, magnitude: u64) -> f64 {
        let bias = (1i64 << (self.exponent - 1)) - 1;
        let field = i64::try_from(magnitude >> self.mantissa).expect("small");
        let fraction = magnitude & ((1 << self.mantissa) - 1);
        let significand = if field == 0 {
            fraction
        } else {
            fraction | (1 << self.mantissa)
        };
        let power = field.max(1) - bias - i64::from(self.mantissa);
        let significand = f64::from(u32::try_from(significand).expect("formats narrower than f64"));
        significand * f64::from_bits(u64::try_from(power + 1023).expect("a normal f64") << 52)
    }

    fn is_nan(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign() - 1);
        magnitude > self.overflow() || (!self.infinite && magnitude == self.overflow())
    }
}

/// The bits of one element from its little-endian bytes.
pub fn bits(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
}

fn format(dtype: Dtype) -> Format {
    Format::of(dtype).expect("a floating point type")
}

/// The value of an element.
pub fn widen(dtype: Dtype, bits: u64) -> f64 {
    let format = format(dtype);
    if dtype == Dtype::F64 {
        return f64::from_bits(bits);
    }
    let magnitude = bits & (format.sign() - 1);
    let value = match () {
        () if format.is_nan(bits) => f64::NAN,
        () if magnitude == format.overflow() => f64::INFINITY,
        () => format.value(magnitude),
    };
    if bits & format.sign() == 0 {
        value
    } else {
        -value
    }
}

/// The bits of the element nearest to `value`, of two equally near the even one: found by halving
/// the range of all magnitudes. What rounds beyond the largest number becomes infinity, or NaN in a
/// format without; NaN becomes a quiet NaN of some sign and payload.
pub fn round_to(dtype: Dtype, value: f64) -> u64 {
    let format = format(dtype);
    if dtype == Dtype::F64 {
        return value.to_bits();
    }
    let sign = if value.is_sign_negative() {
        format.sign()
    } else {
        0
    };
    let (size, overflow) = (value.abs(), format.overflow());
    if value.is_nan() {
        return if format.infinite {
            overflow | (1 << (format.mantissa - 1))
        } else {
            overflow
        };
    }
    if size >= format.value(overflow) {
        return sign | overflow;
    }
    let (mut low, mut high) = (0, overflow);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if format.value(middle) <= size {
            low = middle
        } else {
            high = middle
        }
    }
    // One bit more than the format has: exact in f64.
    let halfway = (format.value(low) + format.value(high)) / 2.0;
    let up = size > halfway || (size == halfway && low % 2 == 1);
    sign | if up { high } else { low }
}

/// How many representable numbers lie between two elements: 0 for equal ones, for zeros of both
/// signs and for two NaNs.
pub fn ulp_distance(dtype: Dtype, a: u64, b: u64) -> u64 {
    let format = format(dtype);
    if format.is_nan(a) || format.is_nan(b) {
        return if format.is_nan(a) && format.is_nan(b) {
            0
        } else {
            u64::MAX
        };
    }
    let (magnitude, sign) = (format.sign() - 1, |bits: u64| bits & format.sign());
    if sign(a) == sign(b) {
        (a & magnitude).abs_diff(b & magnitude)
    } else {
        (a & magnitude) + (b & magnitude)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Random;
    use super::*;

    #[test]
    fn half_formats_widen_as_in_another_implementation() {
        for bits in 0..=u16::MAX {
            for (dtype, wanted) in [
                (Dtype::F16, half::f16::from_bits(bits).to_f64()),
                (Dtype::BF16, half::bf16::from_bits(bits).to_f64()),
            ] {
                let got = widen(dtype, u64::from(bits));
                assert!(
                    got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan()),
                    "{dtype:?} {bits:#x}"
                );
            }
        }
    }

    #[test]
    fn eight_bit_formats_have_the_values_of_their_definition() {
        let e4m3 = |bits| widen(Dtype::F8_E4M3, bits);
        assert_eq!(
            (e4m3(0x7e), e4m3(0x38), e4m3(0x01), e4m3(0xfe)),
            (448.0, 1.0, 1.0 / 512.0, -448.0)
        );
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        let e5m2 = |bits| widen(Dtype::F8_E5M2, bits);
        assert_eq!(
            (e5m2(0x7b), e5m2(0x3c), e5m2(0x01), e5m2(0xfc)),
            (57344.0, 1.0, 1.0 / 65536.0, f64::NEG_INFINITY)
        );
        assert!(e5m2(0x7d).is_nan() && e5m2(0x7f).is_nan());
    }

    #[test]
    fn every_number_rounds_to_itself_and_a_tie_to_the_even_one() {
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2] {
            let format = Format::of(dtype).expect("floating point");
            for low in 0..format.overflow() {
                let (a, b) = (format.value(low), format.value(low + 1));
                let halfway = (a + b) / 2.0;
                let even = if low % 2 == 0 { low } else { low + 1 };
                assert_eq!(round_to(dtype, a), low, "{dtype:?}");
                assert_eq!(round_to(dtype, -a), low | format.sign(), "{dtype:?}");
                assert_eq!(round_to(dtype, halfway), even, "{dtype:?} {low:#x}");
                assert_eq!(
                    round_to(dtype, halfway.next_down()),
                    low,
                    "{dtype:?} {low:#x}"
                );
                assert_eq!(
                    round_to(dtype, halfway.next_up()),
                    low + 1,
                    "{dtype:?} {low:#x}"
                );
            }
            assert!(format.is_nan(round_to(dtype, f64::NAN)));
            assert_eq!(
                round_to(dtype, f64::NEG_INFINITY),
                format.overflow() | format.sign()
            );
        }
        assert_eq!(round_to(Dtype::F8_E4M3, 464.0), 0x7e);
        assert_eq!(round_to(Dtype::F8_E5M2, 61440.0), 0x7c);
    }

    #[test]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the conversion of the language is the oracle"
    )]
    fn single_precision_rounds_as_the_language_does() {
        let mut random = Random::new(3);
        let traps = [
            0.0,
            -0.0,
            1e-45,
            7e-46,
            1.2e-38,
            3.5e38,
            3.402_823_6e38,
            1e300,
            f64::INFINITY,
        ];
        let any = (0..20_000).map(|_| f64::from_bits(random.bits()));
        let near = Random::new(4)
            .gaussian(20_000)
            .into_iter()
            .map(|x| x * 1e-40);
        for value in traps
            .into_iter()
            .chain(any)
            .chain(near)
            .filter(|value| !value.is_nan())
        {
            assert_eq!(
                round_to(Dtype::F32, value),
                u64::from((value as f32).to_bits()),
                "{value:e}"
            );
        }
        assert_eq!(round_to(Dtype::F64, 0.1), 0.1f64.to_bits());
    }

    #[test]
    fn ulps_are_counted_across_zero() {
        let at = |value| round_to(Dtype::BF16, value);
        assert_eq!(ulp_distance(Dtype::BF16, at(1.0), at(1.0)), 0);
        assert_eq!(ulp_distance(Dtype::BF16, at(1.0), at(1.0) + 1), 1);
        assert_eq!(ulp_distance(Dtype::BF16, at(0.0), at(-0.0)), 0);
        assert_eq!(ulp_distance(Dtype::BF16, 1, at(-0.0) + 2), 3);
        assert_eq!(ulp_distance(Dtype::BF16, at(f64::NAN), at(f64::NAN)), 0);
        assert_eq!(ulp_distance(Dtype::F8_E4M3, 0x7f, 0), u64::MAX);
        assert_eq!(
            ulp_distance(Dtype::F64, (-0.0f64).to_bits(), 5e-324f64.to_bits()),
            1
        );
    }

    #[test]
    fn bytes_are_little_endian() {
        assert_eq!(bits(&[0x34, 0x12]), 0x1234);
    }
}
