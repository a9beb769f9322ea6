//! Symmetries of networks: which reorderings, sign flips and rotations of hidden units leave a model's function alone.
//!
//! ```text
//! spec (YAML) + tensor names and shapes + config.json ──► Symmetries   spec/       groups, and what acts on each axis
//!                                         folded norms    Fold         fold        the model as one of more symmetries
//!                                                         Transform    transform/  one element of every group
//!                                                         View         view/       a tensor's transformed elements
//!                                                         Weights      weights     the same as f32, from files or memory
//! ```
//!
//! A [`Spec`] is data: built-in families are written in the format that users write. [`Symmetries`] is a spec resolved
//! against one model, every size checked. A [`Transform`] is an element of every group; an [`Alignment`] is both
//! together, and its views let a reader take any range of the transformed model straight from the files of the original.
//! Which unit of one network goes with which of another is found by [`assignment`], exactly, from a cost matrix: that of
//! [`matching`] comes from weights, that of [`activations`] from what units do on data, and [`straight_through`] descends
//! the loss of the midpoint.

pub mod activations;
pub mod angles;
pub mod assignment;
mod axis;
pub mod fingerprint;
pub mod fold;
mod kept;
pub mod many;
pub mod matching;
pub mod network;
pub mod orthogonal;
pub mod spec;
pub mod straight_through;
mod symmetries;
pub mod transform;
pub mod view;
pub mod weights;

use std::sync::Arc;

pub use axis::{AxisMap, Turn};
pub use spec::{Allowed, Pairs, Spec};
pub use symmetries::{Group, NameAxis, Node, Symmetries, TensorSymmetry};
pub use transform::{Element, OrthogonalMap, Transform, TransformFile};
pub use view::{Gather, View};
pub use weights::{Numbers, Store, Transformed, Weights};

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
            let sizes = [group.name.len(), element.permutation.len(), element.negative.len(), element.angle.len()];
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
                map.elements().iter().for_each(|number| _ = hasher.update(&number.to_le_bytes()));
            }
        }
        if self.symmetries.fold.is_some() {
            hasher.update(b"folded");
        }
        hasher.finalize().to_hex().to_string()
    }
}
