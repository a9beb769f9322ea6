//! Every level against the portable one, bit for bit; the portable one against slow, independent
//! arithmetic.

mod elements;
mod levels;
mod oracle;
mod quotients;
mod sums;

use super::{Kernels, Level, Scratch};
use crate::dtype::Dtype;

/// Owned elements of one input, one byte off any alignment.
struct Input {
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl Input {
    fn new(dtype: Dtype, bytes: &[u8]) -> Self {
        Self {
            dtype,
            bytes: [&[0xaa], bytes].concat(),
        }
    }

    /// Bit patterns of the whole range of the type, NaNs and infinities included, from `seed`.
    fn noise(dtype: Dtype, len: usize, seed: u64) -> Self {
        let mut state = seed;
        let bytes: Vec<u8> = (0..len * dtype.bytes())
            .map(|_| split_mix(&mut state).to_le_bytes()[7])
            .collect();
        Self::new(dtype, &bytes)
    }

    /// Finite values whose period is the prime 251, so that swapped parts cannot cancel;
    /// subnormals, both zeros and, for the wider types, large and tiny numbers are among them.
    fn periodic(dtype: Dtype, len: usize, phase: usize) -> Self {
        let wide: Vec<f64> = (0..len)
            .map(|k| periodic_value(dtype, (k + phase) % 251))
            .collect();
        let bytes: Vec<u8> = wide
            .iter()
            .flat_map(|&value| oracle::narrow(value, dtype))
            .collect();
        Self::new(dtype, &bytes)
    }

    fn elements(&self) -> super::Elements<'_> {
        super::Elements {
            dtype: self.dtype,
            bytes: &self.bytes[1..],
        }
    }

    fn values(&self) -> Vec<f64> {
        self.bytes[1..]
            .chunks(self.dtype.bytes())
            .map(|bytes| oracle::widen(bytes, self.dtype))
            .collect()
    }
}

fn periodic_value(dtype: Dtype, place: usize) -> f64 {
    let sign = if place % 3 == 1 { -1.0 } else { 1.0 };
    let value = match place % 17 {
        5 => 0.0,
        7 => smallest(dtype) * (1 + place % 5) as f64,
        11 => 200.0 / (1 + place) as f64,
        _ => (place as f64 + 0.3) / 251.0,
    };
    sign * value
}

/// The smallest positive number of the type.
fn smallest(dtype: Dtype) -> f64 {
    let mut bytes = vec![0; dtype.bytes()];
    bytes[0] = 1;
    oracle::widen(&bytes, dtype)
}

/// A step of the SplitMix64 generator.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn portable() -> Kernels {
    Kernels::at(Level::Portable).expect("every machine has the portable level")
}

/// The levels beyond the portable one. A machine that lacks one says so, and fails if
/// `THALWEG_REQUIRE_SIMD` is set.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn vector_levels() -> Vec<Kernels> {
    let wanted = Level::ALL
        .into_iter()
        .filter(|level| *level != Level::Portable);
    wanted
        .filter_map(|level| {
            let kernels = Kernels::at(level);
            if kernels.is_none() {
                assert!(
                    std::env::var_os("THALWEG_REQUIRE_SIMD").is_none(),
                    "this machine lacks {}",
                    level.name()
                );
                eprintln!("skipped: this machine lacks {}", level.name());
            }
            kernels
        })
        .collect()
}

fn combine(kernels: Kernels, terms: &[(f64, &Input)], out: Dtype, len: usize) -> (Vec<u8>, u64) {
    divided(kernels, terms, 1.0, out, len)
}

/// The bytes of the weighted sums over `divisor`, and the count of overflows.
fn divided(
    kernels: Kernels,
    terms: &[(f64, &Input)],
    divisor: f64,
    out: Dtype,
    len: usize,
) -> (Vec<u8>, u64) {
    let elements: Vec<_> = terms
        .iter()
        .map(|(weight, input)| (*weight, input.elements()))
        .collect();
    let mut bytes = vec![0x55; 1 + len * out.bytes()];
    let found = kernels.combine(
        &elements,
        divisor,
        out,
        &mut Scratch::default(),
        &mut bytes[1..],
    );
    let mut sums = vec![0.0; len];
    for (weight, input) in terms {
        sums.iter_mut()
            .zip(input.values())
            .for_each(|(sum, value)| *sum += weight * value);
    }
    sums.iter_mut().for_each(|sum| *sum /= divisor);
    assert_eq!(
        found.finite,
        sums.iter().all(|sum| sum.is_finite()),
        "{}: finite sums",
        kernels.name()
    );
    (bytes.split_off(1), found.overflows)
}

fn convert(kernels: Kernels, input: &Input, out: Dtype) -> (Vec<u8>, u64) {
    let mut bytes = vec![0x55; 1 + input.elements().len() * out.bytes()];
    let overflows = kernels.convert(input.elements(), out, &mut bytes[1..]);
    (bytes.split_off(1), overflows)
}
