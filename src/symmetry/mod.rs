//! Symmetries of networks: the reorderings, sign flips and rotations of hidden units that keep a
//! model's function.
//!
//! ```text
//! spec (YAML) + tensor names and shapes + config.json ──► Symmetries   spec/       groups, and what acts on each axis
//!                                         folded norms    Fold         fold        the model as one of more symmetries
//!                                                         Transform    transform/  one element of every group
//!                                                         Alignment    alignment   both, for one model
//! ```
//!
//! A [`Spec`] is data: built-in families are written in the format that users write. [`Symmetries`]
//! is a spec resolved against one model, every size checked. A [`Transform`] is an element of every
//! group; an [`Alignment`] is both together. Views of transformed tensors are made in
//! [`view`](crate::view); transforms are found in [`align`](crate::align).

mod alignment;
mod axis;
pub mod fingerprint;
pub mod fold;
pub mod spec;
mod symmetries;
pub mod transform;

pub use alignment::Alignment;
pub use axis::{AxisMap, Turn};
pub use spec::{Allowed, Pairs, Spec};
pub use symmetries::{Group, NameAxis, Node, Symmetries, TensorSymmetry};
pub use transform::{Element, OrthogonalMap, Transform, TransformFile};
