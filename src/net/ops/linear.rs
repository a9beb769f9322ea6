//! Matrices: samples are rows.

use super::Step;
use crate::linalg::{Matrix, add_product};
use crate::net::Parameters;

/// A product with a weight.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub step: &'a Step<'a>,
    pub weight: usize,
    /// True if the weight is [in, out].
    pub in_out: bool,
}

impl Linear<'_> {
    fn weight(&self) -> Matrix<'_> {
        let (inputs, outputs) = (self.step.from.len(), self.step.node.shape.len());
        let elements = self.step.parameter(self.weight);
        if self.in_out {
            Matrix::new(elements, inputs, outputs)
        } else {
            Matrix::new(elements, outputs, inputs).transposed()
        }
    }

    /// Writes the product, and adds the bias.
    pub fn forward(&self, input: &[f32], bias: Option<usize>, output: &mut [f32]) {
        let (inputs, outputs) = (self.step.from.len(), self.step.node.shape.len());
        if let Some(bias) = bias {
            output
                .chunks_mut(outputs.max(1))
                .for_each(|row| row.copy_from_slice(self.step.parameter(bias)));
        }
        let input = Matrix::new(input, self.step.samples, inputs);
        add_product(input, self.weight(), output);
    }

    /// Adds the gradient by the weight to `gradients`, and that by the input to `back`.
    pub fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        gradients: &mut Parameters,
        back: &mut [f32],
    ) {
        let (inputs, outputs) = (self.step.from.len(), self.step.node.shape.len());
        let input = Matrix::new(input, self.step.samples, inputs);
        let gradient = Matrix::new(gradient, self.step.samples, outputs);
        add_product(gradient, self.weight().transposed(), back);
        let by_weight = gradients.tensor_mut(self.weight);
        if self.in_out {
            add_product(input.transposed(), gradient, by_weight);
        } else {
            add_product(gradient.transposed(), input, by_weight);
        }
    }
}
