//! Slow, exact conversions, written from the formats' definitions and from nothing in the module
//! under test.

use crate::dtype::Dtype;

/// A binary format: stored mantissa bits, exponent bits, and a flag, true if the all-ones exponent
/// holds infinity and NaN only.
struct Format {
    mantissa: u32,
    exponent: u32,
    has_infinity: bool,
}

fn format(dtype: Dtype) -> Format {
    let (mantissa, exponent) = match dtype {
        Dtype::F64 => (52, 11),
        Dtype::F32 => (23, 8),
        Dtype::F16 => (10, 5),
        Dtype::BF16 => (7, 8),
        Dtype::F8E4M3 => (3, 4),
        Dtype::F8E5M2 => (2, 5),
        other => panic!("no format for {other}"),
    };
    Format {
        mantissa,
        exponent,
        has_infinity: dtype != Dtype::F8E4M3,
    }
}

impl Format {
    fn bias(&self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn infinity(&self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    fn nan(&self) -> u64 {
        if self.has_infinity {
            self.infinity() | 1 << (self.mantissa - 1)
        } else {
            self.infinity() | 7
        }
    }

    /// The value of a code without its sign.
    fn value(&self, code: u64) -> f64 {
        let special = if self.has_infinity {
            code >= self.infinity()
        } else {
            code == self.nan()
        };
        if special {
            return if self.has_infinity && code == self.infinity() {
                f64::INFINITY
            } else {
                f64::NAN
            };
        }
        self.finite_value(code)
    }

    /// The value that the code has, or would have if the exponents went on.
    fn finite_value(&self, code: u64) -> f64 {
        let mantissa = code & ((1 << self.mantissa) - 1);
        let exponent = i32::try_from(code >> self.mantissa).expect("exponents are small");
        let steps = if exponent == 0 {
            mantissa
        } else {
            mantissa + (1 << self.mantissa)
        };
        let scale = exponent.max(1)
            - self.bias()
            - i32::try_from(self.mantissa).expect("mantissas are short");
        // In two factors, as 2^scale alone may be below the range of f64.
        steps as f64 * 2f64.powi(scale / 2) * 2f64.powi(scale - scale / 2)
    }
}

pub(super) fn widen(bytes: &[u8], dtype: Dtype) -> f64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    let code = u64::from_le_bytes(all);
    if dtype == Dtype::F64 {
        return f64::from_bits(code);
    }
    let sign_bit = 1 << (8 * bytes.len() - 1);
    let value = format(dtype).value(code & (sign_bit - 1));
    if code & sign_bit == 0 { value } else { -value }
}

/// The nearest code by bisection over the ordered codes of positive numbers; at equal distance the
/// even one.
pub(super) fn narrow(value: f64, dtype: Dtype) -> Vec<u8> {
    let format = format(dtype);
    let size = dtype.bytes();
    let code = if value.is_nan() {
        format.nan()
    } else if dtype == Dtype::F64 {
        value.to_bits()
    } else {
        let sign = if value.is_sign_negative() {
            1 << (8 * size - 1)
        } else {
            0
        };
        nearest(value.abs(), &format) | sign
    };
    code.to_le_bytes()[..size].to_vec()
}

fn nearest(magnitude: f64, format: &Format) -> u64 {
    // For rounding, the first code that is not a number stands for the next power of two, or for
    // 480.
    let beyond = if format.has_infinity {
        format.infinity()
    } else {
        format.nan()
    };
    if magnitude >= format.finite_value(beyond) {
        return beyond;
    }
    let (mut below, mut above) = (0, beyond);
    while above - below > 1 {
        let middle = below.midpoint(above);
        if format.finite_value(middle) <= magnitude {
            below = middle
        } else {
            above = middle
        }
    }
    // Both differences are exact: neighbours differ by less than a factor of two, or the lower one
    // is zero.
    let (down, up) = (
        magnitude - format.finite_value(below),
        format.finite_value(above) - magnitude,
    );
    if down < up || (down == up && below % 2 == 0) {
        below
    } else {
        above
    }
}
