//! Which elements of a difference are kept: full sorts, and a rule for equal ones.

use super::draws::{high, low, philox};

/// Which of the elements tied at a threshold are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// As many in every stretch.
    Spread,
    /// The first ones.
    First,
}

/// The bits of a magnitude rounded to f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the conversion of the language rounds to the nearest"
)]
pub fn key_of(value: f64) -> u32 {
    (value.abs() as f32).to_bits()
}

/// The largest whole number that is not larger than `value`; none is negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "callers ask for counts"
)]
pub fn floor(value: f64) -> u64 {
    value.max(0.0).floor() as u64
}

/// A count as a number.
pub fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).expect("small tensors"))
}

/// Elements in the order of their keys, equal ones in that of their places.
fn sorted(keys: &[u32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    order.sort_by_key(|at| (keys[*at], *at));
    order
}

/// Runs of equal keys: their ranks, and the elements in flat order.
fn runs(keys: &[u32]) -> Vec<(usize, Vec<usize>)> {
    let order = sorted(keys);
    let mut first = 0;
    order
        .chunk_by(|a, b| keys[*a] == keys[*b])
        .map(|run| {
            let begins = first;
            first += run.len();
            (begins, run.to_vec())
        })
        .collect()
}

/// Keeps the elements of the ascending ranks `from..to`. `choose` says which of so many equal ones
/// are kept when only some are, by their numbers in flat order.
pub fn band(
    keys: &[u32],
    from: usize,
    to: usize,
    choose: impl Fn(&[usize], usize) -> Vec<usize>,
) -> Vec<bool> {
    let mut kept = vec![false; keys.len()];
    for (begins, run) in runs(keys) {
        let within = to.min(begins + run.len()).saturating_sub(from.max(begins));
        let chosen = if within == run.len() {
            run
        } else {
            choose(&run, within)
        };
        for at in chosen {
            kept[at] = true;
        }
    }
    kept
}

/// Of so many tied elements so many are kept.
#[derive(Debug, Clone, Copy)]
pub struct Tied {
    pub kept: u64,
    pub of: u64,
}

/// Whether the tied element of this ordinal is kept, by the words of the group of 64 that it lies
/// in.
pub fn is_spread(ordinal: u64, tied: Tied, words: impl Fn(u64) -> [u32; 2]) -> bool {
    let group = ordinal / 64;
    let share =
        |end: u64| u128::from(end.min(tied.of)) * u128::from(tied.kept) / u128::from(tied.of);
    let count = share(64 * group + 64) - share(64 * group);
    let [first, second] = words(group);
    let place = |j: u64| (u64::from(2 * (first % 32) + 1) * j + u64::from(second % 64)) % 64;
    let there = 64.min(tied.of - 64 * group);
    let mut places: Vec<u64> = (0..there).map(place).collect();
    places.sort_unstable();
    let before = places.partition_point(|other| *other < place(ordinal % 64));
    u128::try_from(before).expect("small") < count
}

/// The first two words of a group of 64 tied elements; `row` is that of the group over which the
/// threshold is taken.
pub fn tie_words(key: [u32; 2], group: u64, row: u32) -> [u32; 2] {
    let [first, second, ..] = philox([low(group), high(group), 1, row], key);
    [first, second]
}

/// Twice the rank of each element of a row; equal ones have their middle rank, or with `first`
/// ranks in the order of columns.
pub fn double_ranks(keys: &[u32], ties: Ties) -> Vec<u64> {
    let mut ranks = vec![0; keys.len()];
    for (begins, run) in runs(keys) {
        let last = begins + run.len() - 1;
        for (nth, at) in run.iter().enumerate() {
            let doubled = match ties {
                Ties::Spread => begins + last,
                Ties::First => 2 * (begins + nth),
            };
            ranks[*at] = u64::try_from(doubled).expect("small");
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_band_keeps_ranks_and_as_many_of_equal_ones_as_fall_into_it() {
        let first = |run: &[usize], kept: usize| run[..kept].to_vec();
        let keys = [5, 1, 5, 3, 5, 9, 1];
        let kept = |from, to| band(&keys, from, to, first);
        let (t, f) = (true, false);
        assert_eq!(kept(0, 7), [t; 7]);
        assert_eq!(kept(3, 3), [f; 7]);
        assert_eq!(kept(6, 7), [f, f, f, f, f, t, f]);
        assert_eq!(kept(4, 7), [t, f, t, f, f, t, f]);
        assert_eq!(kept(1, 4), [t, t, f, t, f, f, f]);
        assert_eq!(kept(4, 5), [t, f, f, f, f, f, f]);
    }

    #[test]
    fn of_tied_elements_exactly_as_many_are_kept_as_asked_for() {
        for tied in [1, 2, 63, 64, 65, 130, 1000] {
            for kept in [0, 1, tied / 3, tied / 2, tied - 1, tied] {
                let rule = Tied { kept, of: tied };
                let chosen = |j: &u64| is_spread(*j, rule, |group| tie_words([7, 9], group, 3));
                assert_eq!(
                    (0..tied).filter(chosen).count(),
                    usize::try_from(kept).expect("small"),
                    "{kept} of {tied}"
                );
            }
        }
    }

    #[test]
    fn equal_elements_share_their_ranks_or_follow_their_columns() {
        let keys = [4, 0, 4, 4, 7];
        assert_eq!(double_ranks(&keys, Ties::Spread), [4, 0, 4, 4, 8]);
        assert_eq!(double_ranks(&keys, Ties::First), [2, 0, 4, 6, 8]);
    }

    #[test]
    fn keys_order_magnitudes_and_do_not_see_signs_nor_digits_beyond_f32() {
        assert_eq!(key_of(-1.0), key_of(1.0));
        assert_eq!(key_of(1.0 + 1e-12), key_of(1.0));
        assert!(key_of(1e-40) > 0 && key_of(f64::INFINITY) > key_of(3e38));
        assert!(key_of(f64::NAN) > key_of(f64::INFINITY));
        assert_eq!((floor(0.29 * 100.0), floor(-0.5)), (28, 0));
    }
}
