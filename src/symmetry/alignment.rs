//! An element of the symmetries of one model.

use std::sync::Arc;

use super::{Symmetries, Transform};

/// A model's symmetries and the element of them that is applied to it.
#[derive(Debug, Clone)]
pub struct Alignment {
    /// What may be done.
    pub symmetries: Arc<Symmetries>,
    /// What is done.
    pub transform: Arc<Transform>,
}

impl Alignment {
    /// About how many bytes of memory this takes.
    pub fn bytes(&self) -> u64 {
        self.symmetries.bytes() + self.transform.bytes()
    }

    /// A hash that is equal for the same spec and the same transform only.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.symmetries.spec.as_bytes());
        for (group, element) in self.symmetries.groups.iter().zip(self.transform.elements()) {
            let sizes = [
                group.name.len(),
                element.permutation.len(),
                element.negative.len(),
                element.angle.len(),
            ];
            hasher.update(format!("{sizes:?}{}", group.name).as_bytes());
            for unit in &element.permutation {
                hasher.update(&unit.to_le_bytes());
            }
            for negative in &element.negative {
                hasher.update(&[u8::from(*negative)]);
            }
            for angle in &element.angle {
                hasher.update(&angle.to_le_bytes());
            }
            if let Some(map) = &element.map {
                hasher.update(b"map");
                map.elements()
                    .iter()
                    .for_each(|number| _ = hasher.update(&number.to_le_bytes()));
            }
        }
        if self.symmetries.fold.is_some() {
            hasher.update(b"folded");
        }
        hasher.finalize().to_hex().to_string()
    }
}
