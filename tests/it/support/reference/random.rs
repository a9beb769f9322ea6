//! Seeded random tensors.

use super::vector::{dot, norm};

/// A small generator (splitmix64, Steele et al. 2014): the same numbers everywhere for a seed.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `[0, 1)`.
    pub fn uniform(&mut self) -> f64 {
        let high = u32::try_from(self.bits() >> 32).expect("32 bits");
        f64::from(high) / 4_294_967_296.0
    }

    /// `count` independent standard normal numbers (Box and Muller 1958).
    pub fn gaussian(&mut self, count: usize) -> Vec<f64> {
        let mut one = || {
            let (radius, angle) = (1.0 - self.uniform(), self.uniform());
            (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
        };
        (0..count).map(|_| one()).collect()
    }

    /// `count` tensors `base + noise` of which every pair has about this cosine: exactly so far as
    /// independent noise is orthogonal to the base and to each other.
    pub fn fine_tunes(&mut self, base: &[f64], count: usize, cosine: f64) -> Vec<Vec<f64>> {
        let size = norm(base) * (1.0 / cosine - 1.0).sqrt();
        let mut one = || {
            let mut noise = self.gaussian(base.len());
            let along = dot(&noise, base) / dot(base, base);
            noise
                .iter_mut()
                .zip(base)
                .for_each(|(noise, base)| *noise -= along * base);
            let scale = size / norm(&noise);
            base.iter()
                .zip(&noise)
                .map(|(base, noise)| base + scale * noise)
                .collect()
        };
        (0..count).map(|_| one()).collect()
    }
}

#[test]
fn numbers_repeat_for_a_seed_and_have_their_distribution() {
    let numbers = Random::new(7).gaussian(20_000);
    assert_eq!(numbers, Random::new(7).gaussian(20_000));
    assert_ne!(numbers, Random::new(8).gaussian(20_000));
    let mean = numbers.iter().sum::<f64>() / 20_000.0;
    // Four standard errors.
    assert!(mean.abs() < 0.03, "mean {mean}");
    assert!((norm(&numbers).powi(2) / 20_000.0 - 1.0).abs() < 0.04);
}

#[test]
fn fine_tunes_have_the_cosine_asked_for() {
    let mut random = Random::new(1);
    let base = random.gaussian(20_000);
    for cosine in [0.5, 0.9, 0.99999] {
        let tunes = random.fine_tunes(&base, 3, cosine);
        let got = dot(&tunes[0], &tunes[2]) / norm(&tunes[0]) / norm(&tunes[2]);
        assert!(
            (got - cosine).abs() < 0.03 * (1.0 - cosine),
            "wanted {cosine}, got {got}"
        );
    }
}
