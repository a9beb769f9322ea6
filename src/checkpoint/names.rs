//! The names of tensors, each text once in memory.

use std::collections::HashSet;

use indexmap::map::MutableKeys;

use super::{Checkpoint, Name};

/// The names that checkpoints of one architecture have in common.
#[derive(Debug, Default)]
pub struct Names(HashSet<Name>);

impl Names {
    /// Lets `checkpoint` share the names that others before it have, and others behind it its own.
    pub fn share(&mut self, checkpoint: &mut Checkpoint) {
        for at in 0..checkpoint.tensors.len() {
            let Some((name, _)) = checkpoint.tensors.get_index_mut2(at) else {
                continue;
            };
            match self.0.get(name) {
                Some(known) => *name = known.clone(),
                None => _ = self.0.insert(name.clone()),
            }
        }
    }
}
