//! Random numbers that are the same on every machine.

use crate::data::narrow;

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014.
#[derive(Debug, Clone)]
pub struct SplitMix(u64);

impl SplitMix {
    /// The stream of numbers `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95));
        random.next_bits();
        random
    }

    fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`; the bias is below 2^-38 for any data set.
    pub fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.next_bits()) * bound as u128;
        usize::try_from(product >> 64).expect("below the bound")
    }

    /// A number between -1 and 1.
    pub fn signed(&mut self) -> f32 {
        narrow((self.next_bits() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0)
    }
}
