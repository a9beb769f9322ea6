//! What was found about all tensors of a merge, gathered as their notes pass by.

use std::fmt;

use serde::de::{Deserialize, Deserializer, SeqAccess, Visitor};

use super::Found;

/// How many tensors a line names before it only counts.
pub const NAMED: usize = 3;

/// What is the same for all tensors that a line speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Oddity {
    /// A flag of its solution, as a sentence.
    Flag(&'static str),
    /// Values that became infinite or NaN.
    Overflow,
    /// A carried tensor of which this input holds other values; by the input that it was taken
    /// from.
    Differs {
        /// Where it was taken from.
        taken: Option<usize>,
        /// Who holds other values.
        input: usize,
    },
}

/// The tensors where something odd was met: the first ones by name, and how many there are.
#[derive(Debug, Clone)]
pub struct Met {
    /// What it was.
    pub oddity: Oddity,
    /// The first tensors.
    pub first: Vec<String>,
    /// All of them.
    pub count: usize,
}

/// Everything that was found.
#[derive(Debug, Clone, Default)]
pub struct Noticed {
    /// About all tensors together.
    pub all: Found,
    /// The place of each tensor that is carried although an input differs, and which inputs do.
    carried: Vec<(usize, String, Vec<usize>)>,
    /// What was odd, in the order in which it was met first, with the place of the tensor.
    met: Vec<(usize, Met)>,
    tensors: usize,
}

impl Noticed {
    /// Adds what was found about the tensor called `name`, the next one in plan order.
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

    /// What was odd, in the order in which it was met first; `taken` says which input a carried
    /// tensor was taken from.
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

/// From a list of named tensors with notes, such as a manifest has.
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
