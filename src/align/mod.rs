//! Finding transforms: which unit of one network goes with which unit of another.
//!
//! ```text
//! weights            the weights of a model as f32 numbers, from files or memory, as they are or transformed
//! assignment/        exact assignments from a cost matrix
//! matching/          of two models, by their weights
//! orthogonal/        with a map of the residual stream
//! many/              of many models
//! activations/       by what units do on data
//! straight_through   by the loss of the midpoint
//! run/               a whole alignment: steps journalled, transforms written, a report
//! ```
//!
//! Each gives a [`Transform`](crate::symmetry::Transform), an element of the
//! [`symmetry`](crate::symmetry) of one model.

pub mod activations;
pub mod angles;
pub mod assignment;
mod kept;
pub mod many;
pub mod matching;
pub mod network;
pub mod orthogonal;
pub mod run;
pub mod straight_through;
pub mod weights;

pub use weights::{Numbers, Store, Transformed, Weights};
