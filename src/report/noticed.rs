//! The findings about all tensors of a merge, gathered as their notes pass by.

use std::fmt;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::Found;

/// The most tensors that a line names before it only counts.
pub const NAMED: usize = 3;

/// The finding that all tensors of one line share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oddity {
    /// A flag of its solution, as a sentence.
    Flag(&'static str),
    /// Values that became infinite or NaN.
    Overflow,
    /// A carried tensor of which another input holds other values.
    Differs {
        /// The input that it was taken from; `None` for the base.
        taken: Option<usize>,
        /// The input that holds other values.
        input: usize,
    },
}

/// The tensors with one oddity: the first ones by name, and their number.
#[derive(Debug, Clone)]
pub struct Met {
    /// The oddity.
    pub oddity: Oddity,
    /// The names of the first tensors.
    pub first: Vec<String>,
    /// The number of all tensors with it.
    pub count: usize,
}

/// All findings.
#[derive(Debug, Clone, Default)]
pub struct Noticed {
    /// The findings about all tensors together.
    pub all: Found,
    /// Each tensor that is carried although some inputs differ: its place, its name, and those
    /// inputs.
    carried: Vec<(usize, String, Vec<usize>)>,
    /// The oddities in the order in which they were first met, with the place of the first tensor.
    met: Vec<(usize, Met)>,
    tensors: usize,
}

impl Noticed {
    /// Adds the findings about the tensor called `name`, the next one in plan order.
    pub fn add(&mut self, name: &str, mut found: Found) {
        for sentence in found.flags.sentences() {
            self.meet(self.tensors, Oddity::Flag(sentence), name);
        }
        if found.overflowed > 0 {
            self.meet(self.tensors, Oddity::Overflow, name);
        }
        let differing = std::mem::take(&mut found.differing);
        if !differing.is_empty() {
            self.carried
                .push((self.tensors, name.to_owned(), differing));
        }
        self.all.add(found);
        self.tensors += 1;
    }

    /// Returns the oddities in the order in which they were first met; `taken` says which input a
    /// carried tensor was taken from.
    pub fn met(mut self, taken: impl Fn(usize) -> Option<usize>) -> Vec<Met> {
        for (tensor, name, inputs) in std::mem::take(&mut self.carried) {
            for input in inputs {
                self.meet(
                    tensor,
                    Oddity::Differs {
                        taken: taken(tensor),
                        input,
                    },
                    &name,
                );
            }
        }
        self.met.sort_by_key(|(first, _)| *first);
        self.met.into_iter().map(|(_, met)| met).collect()
    }

    fn meet(&mut self, tensor: usize, oddity: Oddity, name: &str) {
        let at = self
            .met
            .iter()
            .position(|(_, met)| met.oddity == oddity)
            .unwrap_or_else(|| {
                self.met.push((
                    tensor,
                    Met {
                        oddity,
                        first: Vec::new(),
                        count: 0,
                    },
                ));
                self.met.len() - 1
            });
        let (_, met) = &mut self.met[at];
        if met.first.len() < NAMED {
            met.first.push(name.to_owned());
        }
        met.count += 1;
    }
}

/// Reads a list of named tensors with notes, such as a manifest has.
impl<'de> Deserialize<'de> for Noticed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Each)
    }
}

struct Each;

#[derive(serde::Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    note: Option<Found>,
}

impl<'de> Visitor<'de> for Each {
    type Value = Noticed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Noticed, A::Error> {
        let mut noticed = Noticed::default();
        while let Some(Entry { name, note }) = list.next_element()? {
            noticed.add(&name, note.unwrap_or_default());
        }
        Ok(noticed)
    }
}
