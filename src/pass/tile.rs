//! A few elements of every input as f64, for work element by element.

use crate::dtype::Dtype;
use crate::kernel::{Elements, Kernels};

/// The most elements of a tile.
pub(super) const TILE: usize = 512;

/// Bytes of an f64.
const WIDE: usize = 8;

/// The elements of every input, widened to f64.
pub(super) struct Tile {
    inputs: usize,
    values: Vec<[u8; WIDE]>,
}

impl Tile {
    /// Room for the elements of `inputs` inputs.
    pub(super) fn new(inputs: usize) -> Self {
        Self {
            inputs,
            values: vec![[0; WIDE]; inputs * TILE],
        }
    }

    /// The number of inputs.
    pub(super) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Loads at most [`TILE`] elements of each input.
    pub(super) fn load<'e>(
        &mut self,
        kernels: Kernels,
        inputs: impl Iterator<Item = Elements<'e>>,
    ) {
        for (input, values) in inputs.zip(self.values.chunks_exact_mut(TILE)) {
            // Widening never overflows.
            kernels.convert(input, Dtype::F64, values[..input.len()].as_flattened_mut());
        }
    }

    /// Element `at` of `input`.
    pub(super) fn get(&self, input: usize, at: usize) -> f64 {
        f64::from_le_bytes(self.values[input * TILE + at])
    }

    /// Puts `value` in the place of element `at` of `input`.
    pub(super) fn set(&mut self, input: usize, at: usize, value: f64) {
        self.values[input * TILE + at] = value.to_le_bytes();
    }
}

/// Rounds `values` to `out`; returns the number of finite values that became infinite or NaN.
pub(super) fn round(kernels: Kernels, values: &[f64], out: Dtype, output: &mut [u8]) -> u64 {
    let mut bytes = [[0; WIDE]; TILE];
    for (bytes, value) in bytes.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
    kernels.convert(
        Elements {
            dtype: Dtype::F64,
            bytes: bytes[..values.len()].as_flattened(),
        },
        out,
        output,
    )
}
