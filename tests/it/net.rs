//! Forward passes of the library beside those in f64, and data sets.

mod activations;
mod data;
mod digits;
mod forward;
mod interpolating;

use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};

/// Writes a data set: inputs and labels, each with type, shape and bytes, and metadata.
pub fn write_data(
    path: &Path,
    tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)],
    metadata: &[(&str, &str)],
) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (
            *name,
            TensorView::new(*dtype, shape.clone(), bytes).expect("bytes that fit the shape"),
        )
    });
    let metadata = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    std::fs::write(path, serialize(views, Some(metadata)).expect("tensors")).expect("written");
}

/// The nearest f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding is what is asked for"
)]
pub fn narrow(number: f64) -> f32 {
    number as f32
}
