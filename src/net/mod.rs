//! Forward and backward passes of the networks of the built-in specs `mlp`, `mlp-flax`, `vgg16`,
//! `resnet20`, `resnet50` and `resnet50-hf`, for activations, losses and gradients.
//!
//! ```text
//! spec name, tensor names and shapes, shape of a sample ──► Network      families/  a list of operations
//!                                                           Parameters              their numbers
//!                               batch of samples ──► forward ──► logits, activations   pass, ops/
//!                                          labels ──► loss ──► backward ──► gradients  loss, pass, ops/
//! ```
//!
//! The checkpoint leaves choices open, which follow the custom of its family: ReLU behind every
//! layer but the last, norms before the ReLU with an epsilon of 1e-5, convolutions that keep the
//! size of the image, max pooling by two where the numbers of a VGG's layers leave room for it,
//! strides of two at the first block of each later stage of a ResNet. A config that says otherwise
//! is refused. Norms with running statistics use them as in inference, also in backward passes.
//!
//! Everything is f32; products run on the fixed grid of [`linalg`](crate::linalg) and sums over
//! samples have a fixed shape, so that all results have the same bits for every number of threads.

mod evaluate;
mod families;
mod graph;
mod loss;
mod ops;
mod parameters;
mod pass;
#[cfg(test)]
mod tests;
mod train;

pub use crate::random::SplitMix;
pub use evaluate::{Score, evaluate};
pub use graph::{Network, Shape, Units};
pub use loss::{Loss, cross_entropy};
pub use parameters::Parameters;
pub use pass::Values;
pub use train::{Adam, AdamOptions, Training, mlp, order, train};
