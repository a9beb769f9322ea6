//! Philox4x32-10 (Salmon et al. 2011): random words as a function of key and counter, so that any
//! element can be drawn alone.

/// The factors of a round.
const FACTORS: [u64; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// The steps of the key from round to round.
const STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: usize = 10;
const LOW: u64 = 0xffff_ffff;
/// Counters that are worked on side by side.
const WIDTH: usize = 8;

/// The words of one counter under `key`, whose low half is the first word of the key.
pub fn philox(counter: [u32; 4], key: u64) -> [u32; 4] {
    let mut state = counter.map(|word| [u64::from(word)]);
    rounds(&mut state, key);
    state.map(|[word]| low(word))
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
#[inline(always)]
fn low(word: u64) -> u32 {
    word as u32
}

/// Runs all rounds on `N` counters; each word is in the low half of its number.
#[inline(always)]
fn rounds<const N: usize>(state: &mut [[u64; N]; 4], key: u64) {
    let mut key = [low(key), low(key >> 32)];
    let [x0, x1, x2, x3] = state;
    for _ in 0..ROUNDS {
        for j in 0..N {
            // The high halves are not cleared before multiplying: the factors are masked instead.
            let one = FACTORS[0] * (x0[j] & LOW);
            let two = FACTORS[1] * (x2[j] & LOW);
            let next = [
                (two >> 32) ^ (x1[j] & LOW) ^ u64::from(key[0]),
                two & LOW,
                (one >> 32) ^ (x3[j] & LOW) ^ u64::from(key[1]),
                one & LOW,
            ];
            (x0[j], x1[j], x2[j], x3[j]) = (next[0], next[1], next[2], next[3]);
        }
        key = [key[0].wrapping_add(STEPS[0]), key[1].wrapping_add(STEPS[1])];
    }
}

/// The random draws of one model's elements in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draws {
    /// The key.
    pub key: u64,
}

impl Draws {
    /// The key of a model's draws: the first eight bytes of a hash over seed, the model's position
    /// in the recipe and the name of the output tensor.
    pub fn new(seed: u64, model: u32, tensor: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"thalweg draws 1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(&model.to_le_bytes());
        hasher.update(tensor.as_bytes());
        let mut key = [0; 8];
        hasher.finalize_xof().fill(&mut key);
        Self {
            key: u64::from_le_bytes(key),
        }
    }

    /// Writes the words of the elements from flat index `start` on, one for each of `words`.
    #[inline(always)]
    pub(super) fn fill(self, start: u64, words: &mut [u64]) {
        let first = start / 4;
        let skipped = usize::try_from(start % 4).expect("below four");
        let mut group = [0; 4 * WIDTH];
        let mut counter = first;
        // The elements before `start` that share its counter are drawn and not used.
        let mut skip = skipped;
        let mut rest = words;
        while !rest.is_empty() {
            let mut state = [[0; WIDTH]; 4];
            let [low, high, ..] = &mut state;
            for (j, (low, high)) in low.iter_mut().zip(high).enumerate() {
                let counter = counter.wrapping_add(j as u64);
                (*low, *high) = (counter & LOW, counter >> 32);
            }
            rounds(&mut state, self.key);
            for (j, words) in group.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *words = [state[0][j], state[1][j], state[2][j], state[3][j]];
            }
            let len = rest.len().min(group.len() - skip);
            rest[..len].copy_from_slice(&group[skip..skip + len]);
            rest = &mut rest[len..];
            counter = counter.wrapping_add(WIDTH as u64);
            skip = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answers_come_out() {
        let key = |low: u64, high: u64| high << 32 | low;
        for (counter, key, words) in [
            (
                [0; 4],
                0,
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                u64::MAX,
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                key(0xa409_3822, 0x299f_31d0),
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), words);
        }
    }

    #[test]
    fn every_element_has_its_word_wherever_a_run_begins() {
        let draws = Draws::new(7, 1, "layers.0.weight");
        for start in [0_u64, 1, 3, 4, 509, (1 << 34) - 3] {
            let mut words = [0; 77];
            draws.fill(start, &mut words);
            for (at, word) in words.iter().enumerate() {
                let index = start + at as u64;
                let counter = index / 4;
                let [c0, c1] = [low(counter), low(counter >> 32)];
                let own = philox([c0, c1, 0, 0], draws.key);
                assert_eq!(
                    *word,
                    u64::from(own[usize::try_from(index % 4).expect("small")])
                );
            }
        }
        assert_ne!(draws.key, Draws::new(8, 1, "layers.0.weight").key);
        assert_ne!(draws.key, Draws::new(7, 2, "layers.0.weight").key);
        assert_ne!(draws.key, Draws::new(7, 1, "layers.1.weight").key);
    }
}
