//! Random numbers that are the same on every machine.

/// A `SplitMix64` stream (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// 2014).
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// Starts a stream at `state`; neighbouring states give unrelated numbers.
    pub fn from_state(state: u64) -> Self {
        Self(state)
    }

    /// Returns stream number `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next_bits();
        random
    }

    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`; probabilities are equal to within a relative `bound` / 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.below_wide(bound as u64)).expect("below the bound")
    }

    /// As [`below`](Self::below), for counts of more than a machine word.
    pub fn below_wide(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next_bits()) * u128::from(bound);
        u64::try_from(product >> 64).expect("the upper half of 128 bits")
    }

    /// A number at least 0 and below 1, a multiple of 2^-53.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub fn unit(&mut self) -> f64 {
        (self.next_bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number between -1 and 1.
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    pub fn signed(&mut self) -> f32 {
        (self.unit() * 2.0 - 1.0) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' own program for the state 1234567.
    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut random = SplitMix::from_state(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next_bits()).collect();
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut random = SplitMix::new(3, 1);
        assert!((0..1000).all(|_| random.below(7) < 7 && (0.0..1.0).contains(&random.unit())));
        assert_eq!(random.below(1), 0);
    }
}
