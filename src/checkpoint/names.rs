//! The names of tensors, with each text once in memory.

use std::collections::HashSet;

use indexmap::map::MutableKeys;

use super::{Checkpoint, Name};

/// The names that checkpoints of one architecture share.
#[derive(Debug, Default)]
pub struct Names(HashSet<Name>);

impl Names {
    /// Makes `checkpoint` share its names with checkpoints before it, and offers its own to later
    /// ones.
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
