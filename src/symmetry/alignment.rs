//! A model's symmetries together with one transform from them.

use std::sync::Arc;

use super::{Symmetries, Transform};

/// A model's symmetries, and the transform that is applied to it.
#[derive(Debug, Clone)]
pub struct Alignment {
    /// The symmetries: every transform that is allowed.
    pub symmetries: Arc<Symmetries>,
    /// The transform that is applied.
    pub transform: Arc<Transform>,
}

impl Alignment {
    /// Estimates the memory that this takes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.symmetries.bytes() + self.transform.bytes()
    }

    /// Hashes spec name, transform and folding; different ones give different hashes.
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
