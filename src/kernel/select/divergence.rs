//! The divergence of two rows' softmaxes, with an exponential and a logarithm of plain operations,
//! so that the bits are the same on every machine.

use super::super::lanes::{LANES, Lanes};

/// The constant that keeps probabilities above zero, as in mergekit.
const LEAST: f64 = 1e-8;
/// ln 2, in a part whose products with small whole numbers are exact, and the rest.
const LN2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
/// Terms of the series of the exponential and of the logarithm.
const EXP_TERMS: u32 = 14;
const LN_TERMS: u32 = 11;
/// Below this the exponential is less than any normal number.
const LEAST_EXPONENT: f64 = -708.0;

/// Returns Σ P ln(P / Q), zero at least, for P and Q the softmaxes of `model` and `base`, each plus
/// 1e-8 (mergekit's importance). Terms are added in sixteen lanes by place. Rows of one element have
/// none.
///
/// # Panics
///
/// Panics if the rows differ in length.
pub fn divergence(model: &[f64], base: &[f64]) -> f64 {
    assert_eq!(model.len(), base.len(), "rows differ in length");
    let [p, q] = [model, base].map(Softmax::of);
    let terms = model.iter().zip(base).map(|(x, b)| {
        let (p, q) = (p.at(*x), q.at(*b));
        p * ln(p / q)
    });
    let sum = in_lanes(terms);
    if sum < 0.0 { 0.0 } else { sum }
}

/// The largest number of a row, and the sum of the exponentials of its distances from there.
struct Softmax {
    most: f64,
    sum: f64,
}

impl Softmax {
    fn of(row: &[f64]) -> Self {
        let most = row.iter().fold(f64::NEG_INFINITY, |most, x| {
            if *x > most || x.is_nan() { *x } else { most }
        });
        let sum = in_lanes(row.iter().map(|x| exp(x - most)));
        Self { most, sum }
    }

    fn at(&self, x: f64) -> f64 {
        exp(x - self.most) / self.sum + LEAST
    }
}

fn in_lanes(terms: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = Lanes::ZERO;
    for (place, term) in terms.enumerate() {
        lanes.0[place % LANES] += term;
    }
    lanes.sum()
}

/// The exponential of a number that is not positive: 2^k times the series of the rest, which is
/// below ln 2 / 2.
fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    if x < LEAST_EXPONENT {
        return 0.0;
    }
    let k = (x / std::f64::consts::LN_2).round();
    let rest = (x - k * LN2[0]) - k * LN2[1];
    let mut sum = 1.0;
    for term in (1..EXP_TERMS).rev() {
        sum = 1.0 + sum * rest / f64::from(term);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a biased exponent of a normal number"
    )]
    let power = f64::from_bits(((k + 1023.0) as u64) << 52);
    sum * power
}

/// The natural logarithm of a normal positive number: m·2^k with m near 1, and the series of the
/// inverse hyperbolic tangent of (m - 1) / (m + 1).
fn ln(x: f64) -> f64 {
    if x.is_nan() {
        return f64::NAN;
    }
    let bits = x.to_bits();
    let fraction = f64::from_bits(bits & !(0x7ff << 52) | 1023 << 52);
    let exponent = f64::from(u32::try_from(bits >> 52).unwrap_or(0)) - 1023.0;
    let (m, k) = match fraction > std::f64::consts::SQRT_2 {
        true => (fraction / 2.0, exponent + 1.0),
        false => (fraction, exponent),
    };
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for term in (0..LN_TERMS).rev() {
        sum = sum * square + 1.0 / f64::from(2 * term + 1);
    }
    k * LN2[0] + (k * LN2[1] + 2.0 * s * sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_and_logarithm_are_those_of_the_library_to_a_few_roundings() {
        for step in 0..4000 {
            let x = -f64::from(step) * 0.173;
            let (own, library) = (exp(x), x.exp());
            assert!((own - library).abs() <= 4e-16 * library, "exp {x}");
            let y = 1e-8 + f64::from(step) * 0.37;
            let (own, library) = (ln(y), y.ln());
            assert!(
                (own - library).abs() <= 4e-16 * library.abs().max(0.1),
                "ln {y}"
            );
        }
        assert_eq!((exp(0.0), ln(1.0)), (1.0, 0.0));
    }

    #[test]
    fn equal_rows_do_not_diverge_and_others_do() {
        let base = [0.1, -0.2, 0.3];
        assert_eq!(divergence(&base, &base), 0.0);
        assert_eq!(divergence(&[3.0], &[-1.0]), 0.0);
        let other = divergence(&[0.2, -0.2, 0.3], &base);
        assert!(other > 1e-4 && other < 1e-2, "{other}");
        assert!(divergence(&[f64::NAN, 0.0], &[0.0, 0.0]).is_nan());
    }
}
