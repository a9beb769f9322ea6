//! Choosing an exact number of elements among those that are tied at a threshold.

use serde::{Deserialize, Serialize};

use super::philox::philox;

/// Tied elements that are chosen among together.
const GROUP: u64 = 64;
/// The stream of draws for ties; stream 0 is that of masks.
const STREAM: u32 = 1;

/// The rule by which tied elements are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// Evenly over the tensor, without a pattern.
    #[default]
    Spread,
    /// Those with the lowest flat indices.
    First,
}

/// A threshold on keys: elements above it are taken, and `kept` of the `of` elements at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The key of the threshold.
    pub key: u32,
    /// The elements of the group that have this key.
    pub of: u64,
    /// Those of them that are taken.
    pub kept: u64,
}

impl Edge {
    /// Tells if all tied elements are taken, or none, so that their order does not matter.
    pub fn is_clear(self) -> bool {
        self.kept == 0 || self.kept == self.of
    }
}

/// The random words of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words {
    /// The key of the model's draws in the tensor.
    pub key: u64,
    /// The row of the tensor that the group is; 0 if it is no row.
    pub row: u32,
}

/// Chooses among the tied elements of a group, asked about one after the other in flat order.
#[derive(Debug, Clone)]
pub struct Chooser {
    edge: Edge,
    rule: Ties,
    words: Words,
    seen: u64,
    /// The elements chosen in the group of 64 that `seen` is in, as bits.
    chosen: u64,
}

impl Chooser {
    /// Chooses at `edge` by `rule`, with these random words, after `seen` tied elements have gone
    /// by.
    pub fn new(edge: Edge, rule: Ties, words: Words, seen: u64) -> Self {
        let mut chooser = Self {
            edge,
            rule,
            words,
            seen,
            chosen: 0,
        };
        if !seen.is_multiple_of(GROUP) {
            chooser.begin_group();
        }
        chooser
    }

    /// The threshold.
    pub fn edge(&self) -> Edge {
        self.edge
    }

    /// Tells if the next tied element is taken.
    pub fn take(&mut self) -> bool {
        let ordinal = self.seen;
        if self.rule == Ties::Spread && ordinal.is_multiple_of(GROUP) {
            self.begin_group();
        }
        self.seen += 1;
        match self.rule {
            _ if self.edge.is_clear() => self.edge.kept > 0,
            Ties::First => ordinal < self.edge.kept,
            Ties::Spread => self.chosen >> (ordinal % GROUP) & 1 == 1,
        }
    }

    /// Chooses in the group of 64 that begins at or before `seen`: as many as its share of all, so
    /// that the total is exact, at places from a permutation drawn for the group.
    fn begin_group(&mut self) {
        if self.rule == Ties::First || self.edge.is_clear() {
            return;
        }
        let group = self.seen / GROUP;
        let start = group * GROUP;
        let end = self.edge.of.min(start.saturating_add(GROUP));
        let share = share(end, self.edge) - share(start, self.edge);
        #[expect(clippy::cast_possible_truncation, reason = "the halves are asked for")]
        let counter = [group as u32, (group >> 32) as u32, STREAM, self.words.row];
        let [one, two, ..] = philox(counter, self.words.key);
        let (factor, shift) = (2 * u64::from(one % 32) + 1, u64::from(two % 64));
        let mut places: Vec<(u64, u64)> = (0..end.saturating_sub(start))
            .map(|place| ((factor * place + shift) % GROUP, place))
            .collect();
        places.sort_unstable();
        let share = usize::try_from(share).expect("at most 64");
        self.chosen = places
            .iter()
            .take(share)
            .fold(0, |chosen, (_, place)| chosen | 1 << place);
    }
}

/// Returns the number of elements taken among the first `ordinals` tied ones.
fn share(ordinals: u64, edge: Edge) -> u64 {
    let share = u128::from(ordinals) * u128::from(edge.kept) / u128::from(edge.of.max(1));
    u64::try_from(share).expect("at most the elements kept")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words = Words { key: 99, row: 3 };

    fn taken(edge: Edge, rule: Ties) -> Vec<bool> {
        let mut chooser = Chooser::new(edge, rule, WORDS, 0);
        (0..edge.of).map(|_| chooser.take()).collect()
    }

    #[test]
    fn exactly_as_many_are_taken_as_are_wanted_by_either_rule() {
        for of in [1, 2, 63, 64, 65, 200, 1000] {
            for kept in [0, 1, of / 3, of / 2, of - 1, of] {
                let edge = Edge { key: 5, of, kept };
                for rule in [Ties::First, Ties::Spread] {
                    let count = taken(edge, rule).iter().filter(|taken| **taken).count();
                    assert_eq!(count as u64, kept, "{rule:?} of {of}");
                }
            }
        }
    }

    #[test]
    fn a_chooser_that_begins_in_the_middle_goes_on_alike() {
        let edge = Edge {
            key: 5,
            of: 300,
            kept: 117,
        };
        for rule in [Ties::First, Ties::Spread] {
            let all = taken(edge, rule);
            for begin in [1, 63, 64, 100, 299] {
                let mut chooser = Chooser::new(edge, rule, WORDS, begin);
                let rest: Vec<bool> = (begin..300).map(|_| chooser.take()).collect();
                assert_eq!(rest, all[usize::try_from(begin).expect("small")..]);
            }
        }
    }
}
