//! Counting keys in bins: integers, so that neither order nor rounding matters.
//!
//! A bin holds the keys that agree in all but their lowest bits, and one bit more tells if those
//! are all zero. A bin without such a remainder has one key only, so a threshold in it is exact.
//! Otherwise its keys are counted one by one in a second sweep.

use std::ops::Range;

/// The division of 31-bit keys into bins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bins {
    /// The bits of a key that its bin does not tell.
    low: u32,
}

/// The bins, or keys of one bin, that a count may have touched.
pub type Touched = Range<usize>;

const KEY_BITS: u32 = 31;

impl Bins {
    /// 2^19 bins: all bits but 13, as many as differences of 16-bit numbers need but rarely more.
    pub const FINE: Self = Self { low: 13 };
    /// 2^16 bins, for many models in little memory and for short groups.
    pub const COARSE: Self = Self { low: 16 };

    /// The number of bins.
    pub fn count(self) -> usize {
        1 << (KEY_BITS - self.low + 1)
    }

    /// The number of keys that one bin with a remainder stands for.
    pub fn keys(self) -> usize {
        1 << self.low
    }

    /// The bin of `key`.
    #[inline(always)]
    pub fn bin(self, key: u32) -> u32 {
        (key >> self.low) << 1 | u32::from(key & self.mask() != 0)
    }

    /// The only key of `bin`; `None` if it may have several.
    pub fn only_key(self, bin: u32) -> Option<u32> {
        (bin & 1 == 0).then_some((bin >> 1) << self.low)
    }

    /// The key of `bin` whose low bits are `low`.
    pub fn key(self, bin: u32, low: u32) -> u32 {
        (bin >> 1) << self.low | low
    }

    fn mask(self) -> u32 {
        (1 << self.low) - 1
    }

    /// Adds one for each of `keys` to its bin; returns the bins that may have been touched.
    ///
    /// # Panics
    ///
    /// Panics if `counts` has not one place for each bin.
    pub fn add(self, keys: &[u32], counts: &mut [u32]) -> Touched {
        assert_eq!(counts.len(), self.count(), "one count for each bin");
        let (mut least, mut most, mut zeros) = (u32::MAX, 0, 0);
        for &key in keys {
            // Zeros are many, and additions to one place wait for each other.
            zeros += u32::from(key == 0);
            least = least.min(key);
            most = most.max(key);
        }
        if zeros == 0 {
            for &key in keys {
                counts[self.bin(key) as usize] += 1;
            }
        } else {
            for &key in keys {
                counts[self.bin(key) as usize] += u32::from(key != 0);
            }
            counts[0] += zeros;
        }
        match keys.is_empty() {
            true => 0..0,
            false => self.bin(least) as usize..self.bin(most) as usize + 1,
        }
    }

    /// Adds one for each of `keys` in `bin` to the place of its low bits.
    ///
    /// # Panics
    ///
    /// Panics if `counts` has not one place for each key of a bin.
    pub fn add_in(self, bin: u32, keys: &[u32], counts: &mut [u32]) {
        assert_eq!(counts.len(), self.keys(), "one count for each key");
        for tile in keys.chunks(64) {
            // Few keys are in the bin: most tiles have none.
            let any = tile
                .iter()
                .fold(false, |any, key| any | (self.bin(*key) == bin));
            if !any {
                continue;
            }
            for &key in tile.iter().filter(|key| self.bin(**key) == bin) {
                counts[(key & self.mask()) as usize] += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_in_the_order_of_keys_and_tell_a_key_that_is_alone() {
        for bins in [Bins::FINE, Bins::COARSE] {
            let last = 0x7fff_ffff;
            assert_eq!(bins.bin(last) as usize, bins.count() - 1);
            assert_eq!(bins.only_key(bins.bin(0)), Some(0));
            let step = 1 << bins.low;
            assert_eq!(bins.only_key(bins.bin(3 * step)), Some(3 * step));
            assert_eq!(bins.only_key(bins.bin(3 * step + 1)), None);
            assert!(bins.bin(3 * step) < bins.bin(3 * step + 1));
            assert!(bins.bin(3 * step + 1) < bins.bin(4 * step));
            assert_eq!(bins.key(bins.bin(3 * step + 7), 7), 3 * step + 7);
        }
    }

    #[test]
    fn counts_are_of_bins_first_and_of_the_keys_of_one_bin_then() {
        let bins = Bins::FINE;
        let keys = [0, 0, 1, 0x3f80_0000, 0x3f80_0001, 0x3f80_0001, 0x3f80_1fff];
        let mut counts = vec![0; bins.count()];
        let touched = bins.add(&keys, &mut counts);
        assert_eq!((counts[0], counts[1]), (2, 1));
        let bin = bins.bin(0x3f80_0001);
        assert_eq!((counts[bin as usize - 1], counts[bin as usize]), (1, 3));
        assert_eq!(touched, 0..bin as usize + 1);
        let mut low = vec![0; bins.keys()];
        bins.add_in(bin, &keys, &mut low);
        assert_eq!((low[0], low[1], low[0x1fff]), (0, 2, 1));
        assert_eq!(low.iter().sum::<u32>(), 3);
    }
}
