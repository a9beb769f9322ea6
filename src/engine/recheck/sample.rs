//! Chooses the blocks of an output to recompute: at random, the same ones for the same seed.

use std::collections::BTreeMap;

use crate::random::SplitMix;

/// The number of blocks to recompute, and the seed that chooses them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The number of blocks; all blocks if there are fewer.
    pub blocks: u64,
    /// Equal seeds choose equal blocks of equal outputs.
    pub seed: u64,
}

/// The chosen blocks by tensor, both in ascending order.
pub(super) fn choose(counts: &[u64], sample: Sample) -> BTreeMap<usize, Vec<u64>> {
    let mut numbers: Vec<u64> = match counts.iter().sum() {
        all if all <= sample.blocks => (0..all).collect(),
        all => distinct(all, sample),
    };
    numbers.sort_unstable();
    let mut chosen: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    let (mut tensor, mut before) = (0, 0);
    for number in numbers {
        while number - before >= counts[tensor] {
            before += counts[tensor];
            tensor += 1;
        }
        chosen.entry(tensor).or_default().push(number - before);
    }
    chosen
}

/// Draws distinct numbers below `all`, as many as `sample` wants and fewer than `all` (Floyd's
/// sampling).
fn distinct(all: u64, sample: Sample) -> Vec<u64> {
    let mut random = SplitMix::from_state(sample.seed);
    let mut taken = std::collections::BTreeSet::new();
    for last in all - sample.blocks..all {
        let number = random.below_wide(last + 1);
        if !taken.insert(number) {
            taken.insert(last);
        }
    }
    taken.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_different_blocks_and_the_same_for_the_same_seed() {
        let counts = [3, 0, 1, 1000, 0, 7];
        let of = |blocks, seed| choose(&counts, Sample { blocks, seed });
        let flat = |chosen: &BTreeMap<usize, Vec<u64>>| -> Vec<(usize, u64)> {
            chosen
                .iter()
                .flat_map(|(tensor, blocks)| blocks.iter().map(|block| (*tensor, *block)))
                .collect()
        };
        assert_eq!(of(50, 7), of(50, 7));
        assert_ne!(of(50, 7), of(50, 8));
        for blocks in [0, 1, 50, 1010, 1011, 5000] {
            let mut flat = flat(&of(blocks, 1));
            assert_eq!(flat.len() as u64, blocks.min(1011));
            assert!(flat.iter().all(|(tensor, block)| *block < counts[*tensor]));
            flat.dedup();
            assert_eq!(flat.len() as u64, blocks.min(1011));
        }
    }

    #[test]
    fn every_block_is_chosen_as_often_as_every_other() {
        let mut times = [0_u32; 20];
        for seed in 0..4000 {
            for (_, blocks) in choose(&[20], Sample { blocks: 5, seed }) {
                blocks
                    .iter()
                    .for_each(|block| times[usize::try_from(*block).expect("small")] += 1);
            }
        }
        // 1000 of each, with a standard deviation of 27.
        assert!(
            times.iter().all(|times| (865..=1135).contains(times)),
            "{times:?}"
        );
    }
}
