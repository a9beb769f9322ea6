//! Values and gradients of each operation, for samples one after another.

mod convolution;
mod linear;
mod norm;
mod pool;

use rayon::prelude::*;

use super::Parameters;
use super::graph::{Node, Op, Shape};

/// A function from a sample's input to its output.
type Forward<'a> = dyn Fn(&[f32], &mut [f32]) + Sync + 'a;
/// A function from a sample's input and the gradient by its output to the gradient by its input.
type Backward<'a> = dyn Fn(&[f32], &[f32], &mut [f32]) + Sync + 'a;

/// An operation on a batch.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    pub node: &'a Node,
    /// The shape of the operation's input.
    pub from: Shape,
    pub samples: usize,
    pub parameters: &'a Parameters,
}

impl Step<'_> {
    /// Computes the operation's value; a sum takes `other` too.
    pub fn forward(&self, input: &[f32], other: Option<&[f32]>) -> Vec<f32> {
        let mut output = vec![0.0; self.samples * self.node.shape.len()];
        let (from, to) = (self.from.len().max(1), self.node.shape.len().max(1));
        let each = |output: &mut [f32], work: &Forward<'_>| {
            output
                .par_chunks_mut(to)
                .zip(input.par_chunks(from))
                .for_each(|(to, from)| work(from, to));
        };
        match &self.node.op {
            Op::Linear {
                weight,
                bias,
                in_out,
            } => {
                linear::forward(self, input, *weight, *bias, *in_out, &mut output);
            }
            Op::Convolution {
                weight,
                bias,
                stride,
                padding,
            } => {
                let filter = self.filter(*weight, *stride, *padding);
                let bias = bias.map(|bias| self.parameter(bias));
                each(&mut output, &|from, to| {
                    filter.forward(from, self.parameter(*weight), bias, to)
                });
            }
            Op::BatchNorm {
                weight,
                bias,
                mean,
                variance,
            } => {
                let [weight, bias, mean, variance] =
                    [weight, bias, mean, variance].map(|at| self.parameter(*at));
                each(&mut output, &|from, to| {
                    norm::batch_forward(from, [weight, bias, mean, variance], to)
                });
            }
            Op::LayerNorm {
                weight,
                bias,
                over_places,
            } => {
                let sets = norm::Sets::new(self.from, *over_places);
                let [weight, bias] = [weight, bias].map(|at| self.parameter(*at));
                each(&mut output, &|from, to| {
                    sets.forward(from, weight, bias, to)
                });
            }
            Op::Relu => each(&mut output, &|from, to| {
                from.iter().zip(to).for_each(|(x, y)| *y = x.max(0.0));
            }),
            Op::MaxPool {
                size,
                stride,
                padding,
            } => {
                let pool = self.max_pool(*size, *stride, *padding);
                each(&mut output, &|from, to| pool.forward(from, to));
            }
            Op::AveragePool => {
                let pool = self.average_pool();
                each(&mut output, &|from, to| pool.forward(from, to));
            }
            Op::Add(_) => {
                let other = other.expect("a sum has two values");
                let sums = output.par_iter_mut().zip(input.par_iter().zip(other));
                sums.for_each(|(sum, (x, y))| *sum = x + y);
            }
        }
        output
    }

    /// Computes the gradient by the input from that by the output; adds the gradients by the
    /// parameters to `gradients`.
    pub fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        gradients: &mut Parameters,
    ) -> Vec<f32> {
        let (from, to) = (self.from.len().max(1), self.node.shape.len().max(1));
        let mut back = vec![0.0; self.samples * self.from.len()];
        let each = |back: &mut [f32], work: &Backward<'_>| {
            let samples = input.par_chunks(from).zip(gradient.par_chunks(to));
            back.par_chunks_mut(from)
                .zip(samples)
                .for_each(|(back, (input, gradient))| work(input, gradient, back));
        };
        match &self.node.op {
            Op::Linear {
                weight,
                bias,
                in_out,
            } => {
                let units = self.node.shape.len();
                linear::backward(
                    self, input, gradient, *weight, *in_out, gradients, &mut back,
                );
                if let Some(bias) = bias {
                    channel_sums(gradient, units, 1, gradients.tensor_mut(*bias));
                }
            }
            Op::Convolution {
                weight,
                bias,
                stride,
                padding,
            } => {
                let filter = self.filter(*weight, *stride, *padding);
                each(&mut back, &|_, gradient, back| {
                    filter.backward(gradient, self.parameter(*weight), back)
                });
                filter.weight_gradient(
                    self.samples,
                    input,
                    gradient,
                    gradients.tensor_mut(*weight),
                );
                if let Some(bias) = bias {
                    let Shape { channels, .. } = self.node.shape;
                    channel_sums(
                        gradient,
                        channels,
                        self.node.shape.places(),
                        gradients.tensor_mut(*bias),
                    );
                }
            }
            Op::BatchNorm {
                weight,
                bias,
                mean,
                variance,
            } => {
                let [factor, mean, variance] =
                    [weight, mean, variance].map(|at| self.parameter(*at));
                each(&mut back, &|_, gradient, back| {
                    norm::batch_backward(gradient, factor, variance, back)
                });
                let normed = norm::batch_normed(input, self.from, mean, variance, gradient);
                channel_sums(
                    &normed,
                    self.from.channels,
                    self.from.places(),
                    gradients.tensor_mut(*weight),
                );
                channel_sums(
                    gradient,
                    self.from.channels,
                    self.from.places(),
                    gradients.tensor_mut(*bias),
                );
            }
            Op::LayerNorm {
                weight,
                bias,
                over_places,
            } => {
                let sets = norm::Sets::new(self.from, *over_places);
                let factor = self.parameter(*weight);
                each(&mut back, &|input, gradient, back| {
                    sets.backward(input, gradient, factor, back)
                });
                let (by_weight, by_bias) = sets.parameter_gradients(input, gradient);
                gradients.add(*weight, &by_weight);
                gradients.add(*bias, &by_bias);
            }
            Op::Relu => each(&mut back, &|input, gradient, back| {
                let pairs = input.iter().zip(gradient).zip(back);
                pairs.for_each(|((x, g), back)| *back = if *x > 0.0 { *g } else { 0.0 });
            }),
            Op::MaxPool {
                size,
                stride,
                padding,
            } => {
                let pool = self.max_pool(*size, *stride, *padding);
                each(&mut back, &|input, gradient, back| {
                    pool.backward(input, gradient, back)
                });
            }
            Op::AveragePool => {
                let pool = self.average_pool();
                each(&mut back, &|_, gradient, back| {
                    pool.backward(gradient, back)
                });
            }
            Op::Add(_) => back.copy_from_slice(gradient),
        }
        back
    }

    /// Returns the memory that a thread needs while it works on a sample, in bytes.
    pub fn scratch_bytes(node: &Node, from: Shape, kernel: usize) -> u64 {
        let columns = match node.op {
            Op::Convolution { .. } => from.channels * kernel * kernel * node.shape.places(),
            _ => 0,
        };
        (columns * size_of::<f32>()) as u64
    }

    fn parameter(&self, at: usize) -> &[f32] {
        self.parameters.tensor(at)
    }

    fn filter(&self, weight: usize, stride: usize, padding: usize) -> convolution::Filter {
        let size = self.parameters.shape(weight)[2];
        convolution::Filter {
            from: self.from,
            to: self.node.shape,
            size,
            stride,
            padding,
        }
    }

    fn max_pool(&self, size: usize, stride: usize, padding: usize) -> pool::Max {
        pool::Max {
            from: self.from,
            to: self.node.shape,
            size,
            stride,
            padding,
        }
    }

    fn average_pool(&self) -> pool::Average {
        pool::Average {
            from: self.from,
            to: self.node.shape,
        }
    }
}

/// Adds each channel's sum over samples and places to `sums`: in f64, in the order of samples.
fn channel_sums(values: &[f32], channels: usize, places: usize, sums: &mut [f32]) {
    let stride = (channels * places).max(1);
    sums.par_iter_mut().enumerate().for_each(|(channel, sum)| {
        let of_sample = |sample: &[f32]| -> f64 {
            sample[channel * places..(channel + 1) * places]
                .iter()
                .map(|value| f64::from(*value))
                .sum()
        };
        *sum += crate::data::narrow(values.chunks(stride).map(of_sample).sum());
    });
}
