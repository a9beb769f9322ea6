//! Matrices: samples are rows.

use super::Step;
use crate::linalg::{Matrix, add_product};
use crate::net::Parameters;

/// Views the weight as a matrix [in, out].
fn matrix(elements: &[f32], inputs: usize, outputs: usize, in_out: bool) -> Matrix<'_> {
    if in_out {
        Matrix::new(elements, inputs, outputs)
    } else {
        Matrix::new(elements, outputs, inputs).transposed()
    }
}

pub fn forward(
    step: &Step<'_>,
    input: &[f32],
    weight: usize,
    bias: Option<usize>,
    in_out: bool,
    output: &mut [f32],
) {
    let (inputs, outputs) = (step.from.len(), step.node.shape.len());
    if let Some(bias) = bias {
        output
            .chunks_mut(outputs.max(1))
            .for_each(|row| row.copy_from_slice(step.parameter(bias)));
    }
    let weight = matrix(step.parameter(weight), inputs, outputs, in_out);
    add_product(Matrix::new(input, step.samples, inputs), weight, output);
}

/// Adds the gradient by the weight to `gradients`, and that by the input to `back`.
pub fn backward(
    step: &Step<'_>,
    input: &[f32],
    gradient: &[f32],
    weight: usize,
    in_out: bool,
    gradients: &mut Parameters,
    back: &mut [f32],
) {
    let (inputs, outputs) = (step.from.len(), step.node.shape.len());
    let (input, gradient) = (
        Matrix::new(input, step.samples, inputs),
        Matrix::new(gradient, step.samples, outputs),
    );
    add_product(
        gradient,
        matrix(step.parameter(weight), inputs, outputs, in_out).transposed(),
        back,
    );
    let by_weight = gradients.tensor_mut(weight);
    if in_out {
        add_product(input.transposed(), gradient, by_weight);
    } else {
        add_product(gradient.transposed(), input, by_weight);
    }
}
