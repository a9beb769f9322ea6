//! One element: widening to f64, and the single rounding back.
//!
//! Everything is branch free, so that the loops around it become vector code at every level. The
//! crate `half` says which 16-bit elements are finite, and is the oracle of the tests. Its
//! conversions are not used here: they go by way of f32, which rounds twice, and branch.

/// The exponent bits of an f64.
const EXPONENT: u64 = 0x7ff << 52;

/// Element types for which a level may have instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    BF16,
    Other,
}

/// An element type that a merge averages.
pub(super) trait Element {
    /// The bytes of one element in a file.
    type Bytes: Copy;

    /// The kind of instructions that a level may have for it.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only native levels ask for it")
    )]
    const KIND: Kind;
    /// Finite magnitudes from here on may round to infinity or NaN; smaller ones never do.
    const LIMIT: f64;
    /// The least number of the limit's binade.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only native levels ask for it")
    )]
    const LAST_BINADE: f64 = f64::from_bits(Self::LIMIT.to_bits() & EXPONENT);

    /// The value, exactly.
    fn widen(bytes: Self::Bytes) -> f64;

    /// Tells from the bits if the element is neither NaN nor infinite.
    fn is_finite(bytes: Self::Bytes) -> bool;

    /// The nearest representable value, ties to even; a NaN becomes the positive quiet NaN.
    fn narrow(value: f64) -> Self::Bytes;

    /// The bytes as whole elements.
    fn split(bytes: &[u8]) -> &[Self::Bytes];

    /// The bytes as whole elements, to be written.
    fn split_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];
}

/// Calls `$body` with `$element` standing for the [`Element`] of `$dtype`.
///
/// Panics for dtypes that a merge does not average: those never reach a kernel.
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            Dtype::F64 => {
                type $element = crate::kernel::element::F64;
                $body
            }
            Dtype::F32 => {
                type $element = crate::kernel::element::F32;
                $body
            }
            Dtype::F16 => {
                type $element = crate::kernel::element::F16;
                $body
            }
            Dtype::BF16 => {
                type $element = crate::kernel::element::BF16;
                $body
            }
            Dtype::F8E4M3 => {
                type $element = crate::kernel::element::F8E4M3;
                $body
            }
            Dtype::F8E5M2 => {
                type $element = crate::kernel::element::F8E5M2;
                $body
            }
            other => panic!("{other} elements are not averaged"),
        }
    };
}
pub(super) use with_element;

macro_rules! element {
    ($(#[$docs:meta])* $name:ident, $size:literal, $kind:ident, limit $limit:expr, $widen:expr, $finite:expr, $narrow:expr) => {
        $(#[$docs])*
        pub(super) struct $name;

        impl Element for $name {
            type Bytes = [u8; $size];

            const KIND: Kind = Kind::$kind;
            const LIMIT: f64 = $limit;

            #[inline(always)]
            fn widen(bytes: [u8; $size]) -> f64 {
                $widen(bytes)
            }

            #[inline(always)]
            fn is_finite(bytes: [u8; $size]) -> bool {
                $finite(bytes)
            }

            #[inline(always)]
            fn narrow(value: f64) -> [u8; $size] {
                $narrow(value)
            }

            #[inline(always)]
            fn split(bytes: &[u8]) -> &[[u8; $size]] {
                bytes.as_chunks().0
            }

            #[inline(always)]
            fn split_mut(bytes: &mut [u8]) -> &mut [[u8; $size]] {
                bytes.as_chunks_mut().0
            }
        }
    };
}

element!(
    /// IEEE binary64.
    F64,
    8,
    Other,
    limit f64::INFINITY,
    f64::from_le_bytes,
    |bytes| f64::from_le_bytes(bytes).is_finite(),
    |value: f64| if value.is_nan() { f64::NAN } else { value }.to_le_bytes()
);
element!(
    /// IEEE binary32.
    F32,
    4,
    F32,
    limit (2.0 - power(-24)) * power(127),
    |bytes| f64::from(f32::from_le_bytes(bytes)),
    |bytes| f32::from_le_bytes(bytes).is_finite(),
    |value: f64| if value.is_nan() { f32::NAN } else { to_f32(value) }.to_le_bytes()
);
element!(
    /// IEEE binary16.
    F16,
    2,
    F16,
    limit 65520.0,
    |bytes| widen_f16(u16::from_le_bytes(bytes)),
    |bytes| half::f16::from_le_bytes(bytes).is_finite(),
    |value| (low_u16(encode::<10, -14, 16>(value, 65536.0, 0x7e00))).to_le_bytes()
);
element!(
    /// The upper half of a binary32.
    BF16,
    2,
    BF16,
    limit (2.0 - power(-8)) * power(127),
    |bytes| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
    |bytes| half::bf16::from_le_bytes(bytes).is_finite(),
    |value| (low_u16(encode::<7, -126, 16>(value, power(128), 0x7fc0))).to_le_bytes()
);
element!(
    /// OCP E4M3: no infinity, one NaN for each sign; what overflows becomes NaN.
    F8E4M3,
    1,
    Other,
    limit 464.0,
    |[byte]: [u8; 1]| E4M3[usize::from(byte)],
    |[byte]: [u8; 1]| byte & 0x7f != 0x7f,
    |value| [low_u8(encode::<3, -6, 8>(value, 480.0, 0x7f))]
);
element!(
    /// OCP E5M2: the upper half of a binary16.
    F8E5M2,
    1,
    Other,
    limit 61440.0,
    |[byte]: [u8; 1]| E5M2[usize::from(byte)],
    |[byte]: [u8; 1]| byte & 0x7f < 0x7c,
    |value| [low_u8(encode::<2, -14, 8>(value, 65536.0, 0x7e))]
);

/// 2^`exponent`, for exponents of normal numbers.
pub(super) const fn power(exponent: i32) -> f64 {
    assert!(
        -1022 <= exponent && exponent <= 1023,
        "not the exponent of a normal number"
    );
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[inline(always)]
const fn widen_f16(bits: u16) -> f64 {
    const MAGNITUDE: u32 = 0x7fff << 13;
    /// 2^-14, the smallest normal binary16, as a binary32.
    const SMALLEST_NORMAL: u32 = 113 << 23;
    let magnitude = (bits as u32) << 13 & MAGNITUDE;
    let sign = ((bits & 0x8000) as u32) << 16;
    let normal = magnitude + (112 << 23);
    // A subnormal's mantissa under the exponent of the smallest normal is that normal too big.
    let subnormal =
        (f32::from_bits(magnitude + SMALLEST_NORMAL) - f32::from_bits(SMALLEST_NORMAL)).to_bits();
    let finite = if magnitude < 1 << 23 {
        subnormal
    } else {
        normal
    };
    let wide = if magnitude >= 0x1f << 23 {
        magnitude | 0xff << 23
    } else {
        finite
    };
    f32::from_bits(wide | sign) as f64
}

/// The value of every F8_E5M2 code.
static E5M2: [f64; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0u16;
    while code < 256 {
        values[code as usize] = widen_f16(code << 8);
        code += 1;
    }
    values
};

/// The value of every F8_E4M3 code.
static E4M3: [f64; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0u16;
    while code < 256 {
        // The code moved into a binary16 is the value over 2^8, the difference of the biases.
        let half = (code & 0x7f) << 7 | (code & 0x80) << 8;
        values[code as usize] = if code & 0x7f == 0x7f {
            f64::NAN
        } else {
            widen_f16(half) * 256.0
        };
        code += 1;
    }
    values
};

/// The code of `value` in a binary format of `BITS` bits, `MANTISSA` of them stored mantissa, the
/// smallest normal number 2^`SMALLEST`. Magnitudes from `cap` on get the code that `cap` would
/// have: infinity, or NaN where there is none.
///
/// Adding 2^52 steps of the format to the magnitude makes the f64 adder itself round to the
/// format's steps, once, to nearest even, subnormal or not. The sum's low bits then count steps,
/// and a mantissa that rounds up to the next power of two carries into the exponent, as it must.
#[inline(always)]
fn encode<const MANTISSA: u32, const SMALLEST: i32, const BITS: u32>(
    value: f64,
    cap: f64,
    nan: u64,
) -> u64 {
    let smallest = power(SMALLEST);
    let magnitude = value.abs();
    let magnitude = if magnitude < cap { magnitude } else { cap };
    let binade = f64::from_bits(magnitude.to_bits() & EXPONENT);
    let binade = if binade > smallest { binade } else { smallest };
    let shifter = binade * (1u64 << (52 - MANTISSA)) as f64;
    let steps = (magnitude + shifter).to_bits() - shifter.to_bits();
    let code = steps + ((binade.to_bits() - smallest.to_bits()) >> (52 - MANTISSA));
    let sign = value.to_bits() >> 63 << (BITS - 1);
    if value.is_nan() { nan } else { code | sign }
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "this is the rounding: nearest even, once"
)]
fn to_f32(value: f64) -> f32 {
    value as f32
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "codes of 16-bit formats have 16 bits"
)]
fn low_u16(code: u64) -> u16 {
    code as u16
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "codes of 8-bit formats have 8 bits"
)]
fn low_u8(code: u64) -> u8 {
    code as u8
}

/// The loops over elements in plain Rust, whose bits every level's loops must reproduce.
pub(super) mod plain {
    use super::Element;

    /// Widens every element.
    #[inline(always)]
    pub(in crate::kernel) fn widen<E: Element>(elements: &[E::Bytes], wide: &mut [f64]) {
        for (wide, &element) in wide.iter_mut().zip(elements) {
            *wide = E::widen(element);
        }
    }

    /// Adds `weights[i]`·`inputs[i][k]` to `sums[k]`, i in order; `FRESH` sums begin as the first
    /// term.
    #[inline(always)]
    pub(in crate::kernel) fn add_terms<E: Element, const N: usize, const FRESH: bool>(
        weights: [f64; N],
        inputs: [&[E::Bytes]; N],
        sums: &mut [f64],
    ) {
        let inputs = inputs.map(|input| &input[..sums.len()]);
        for (k, sum) in sums.iter_mut().enumerate() {
            let first = weights[0] * E::widen(inputs[0][k]);
            *sum = if FRESH { first } else { *sum + first };
            for i in 1..N {
                *sum += weights[i] * E::widen(inputs[i][k]);
            }
        }
    }

    /// Divides every sum.
    #[inline(always)]
    pub(in crate::kernel) fn divide(sums: &mut [f64], divisor: f64) {
        if divisor != 1.0 {
            sums.iter_mut().for_each(|sum| *sum /= divisor);
        }
    }

    /// Rounds every value.
    #[inline(always)]
    pub(in crate::kernel) fn narrow<E: Element>(values: &[f64], rounded: &mut [E::Bytes]) {
        for (rounded, &value) in rounded.iter_mut().zip(values) {
            *rounded = E::narrow(value);
        }
    }
}
