//! Values and gradients of each operation, for samples one after another.

mod convolution;
mod linear;
mod norm;
mod pool;

use rayon::prelude::*;

use super::Parameters;
use super::graph::{Op, Operation, Shape};

/// A function from a sample's input to its output.
type Forward<'a> = dyn Fn(&[f32], &mut [f32]) + Sync + 'a;
/// A function from a sample's input and the gradient by its output to the gradient by its input.
type Backward<'a> = dyn Fn(&[f32], &[f32], &mut [f32]) + Sync + 'a;

/// An operation on a batch.
#[derive(Clone, Copy)]
pub struct Step<'a> {
    pub node: &'a Operation,
    /// The shape of the operation's input.
    pub from: Shape,
    pub samples: usize,
    pub parameters: &'a Parameters,
}

impl Step<'_> {
    /// Computes the operation's value; a sum takes `other` too.
    pub fn forward(&self, input: &[f32], other: Option<&[f32]>) -> Vec<f32> {
        let mut output = vec![0.0; self.samples * self.node.shape.len()];
        match self.node.op {
            Op::Linear {
                weight,
                bias,
                in_out,
            } => self
                .linear(weight, in_out)
                .forward(input, bias, &mut output),
            Op::Convolution {
                weight,
                bias,
                stride,
                padding,
            } => {
                let filter = self.filter(weight, stride, padding);
                let weight = self.parameter(weight);
                let bias = bias.map(|bias| self.parameter(bias));
                let work = |from: &[f32], to: &mut [f32]| filter.forward(from, weight, bias, to);
                self.each_value(input, &mut output, &work);
            }
            Op::Add(_) => {
                let other = other.expect("a sum has two values");
                let sums = output.par_iter_mut().zip(input.par_iter().zip(other));
                sums.for_each(|(sum, (x, y))| *sum = x + y);
            }
            Op::BatchNorm { .. } | Op::LayerNorm { .. } => self.forward_norm(input, &mut output),
            Op::Relu | Op::MaxPool { .. } | Op::AveragePool => {
                self.forward_plain(input, &mut output);
            }
        }
        output
    }

    fn forward_norm(&self, input: &[f32], output: &mut [f32]) {
        match self.node.op {
            Op::BatchNorm {
                weight,
                bias,
                mean,
                variance,
            } => {
                let numbers = [weight, bias, mean, variance].map(|at| self.parameter(at));
                self.each_value(input, output, &|from, to| {
                    norm::batch_forward(from, numbers, to)
                });
            }
            Op::LayerNorm {
                weight,
                bias,
                over_places,
            } => {
                let sets = norm::Sets::new(self.from, over_places);
                let [weight, bias] = [weight, bias].map(|at| self.parameter(at));
                self.each_value(input, output, &|from, to| {
                    sets.forward(from, weight, bias, to)
                });
            }
            _ => unreachable!("the operation is a norm"),
        }
    }

    /// Computes the value of an operation without parameters.
    fn forward_plain(&self, input: &[f32], output: &mut [f32]) {
        match self.node.op {
            Op::MaxPool {
                size,
                stride,
                padding,
            } => {
                let pool = self.max_pool(size, stride, padding);
                self.each_value(input, output, &|from, to| pool.forward(from, to));
            }
            Op::AveragePool => {
                let pool = self.average_pool();
                self.each_value(input, output, &|from, to| pool.forward(from, to));
            }
            _ => self.each_value(input, output, &|from, to| {
                from.iter().zip(to).for_each(|(x, y)| *y = x.max(0.0));
            }),
        }
    }

    /// Writes the value of each sample.
    fn each_value(&self, input: &[f32], output: &mut [f32], work: &Forward<'_>) {
        let (from, to) = (self.from.len().max(1), self.node.shape.len().max(1));
        output
            .par_chunks_mut(to)
            .zip(input.par_chunks(from))
            .for_each(|(to, from)| work(from, to));
    }

    /// Computes the gradient by the input from that by the output; adds the gradients by the
    /// parameters to `gradients`.
    pub fn backward(
        &self,
        input: &[f32],
        gradient: &[f32],
        gradients: &mut Parameters,
    ) -> Vec<f32> {
        let mut back = vec![0.0; self.samples * self.from.len()];
        match self.node.op {
            Op::Linear { weight, in_out, .. } => {
                let linear = self.linear(weight, in_out);
                linear.backward(input, gradient, gradients, &mut back);
            }
            Op::Convolution {
                weight,
                stride,
                padding,
                ..
            } => {
                let filter = self.filter(weight, stride, padding);
                let factor = self.parameter(weight);
                self.each_gradient(input, gradient, &mut back, &|_, gradient, back| {
                    filter.backward(gradient, factor, back)
                });
                let sum = gradients.tensor_mut(weight);
                filter.weight_gradient(self.samples, input, gradient, sum);
            }
            Op::BatchNorm { .. } | Op::LayerNorm { .. } => {
                self.backward_norm(input, gradient, &mut back);
            }
            Op::Add(_) => back.copy_from_slice(gradient),
            Op::Relu | Op::MaxPool { .. } | Op::AveragePool => {
                self.backward_plain(input, gradient, &mut back);
            }
        }
        self.add_channel_gradients(input, gradient, gradients);
        back
    }

    fn backward_norm(&self, input: &[f32], gradient: &[f32], back: &mut [f32]) {
        match self.node.op {
            Op::BatchNorm {
                weight, variance, ..
            } => {
                let [factor, variance] = [weight, variance].map(|at| self.parameter(at));
                self.each_gradient(input, gradient, back, &|_, gradient, back| {
                    norm::batch_backward(gradient, factor, variance, back)
                });
            }
            Op::LayerNorm {
                weight,
                over_places,
                ..
            } => {
                let sets = norm::Sets::new(self.from, over_places);
                let factor = self.parameter(weight);
                self.each_gradient(input, gradient, back, &|input, gradient, back| {
                    sets.backward(input, gradient, factor, back)
                });
            }
            _ => unreachable!("the operation is a norm"),
        }
    }

    /// Computes the gradient by the input of an operation without parameters.
    fn backward_plain(&self, input: &[f32], gradient: &[f32], back: &mut [f32]) {
        match self.node.op {
            Op::MaxPool {
                size,
                stride,
                padding,
            } => {
                let pool = self.max_pool(size, stride, padding);
                self.each_gradient(input, gradient, back, &|input, gradient, back| {
                    pool.backward(input, gradient, back)
                });
            }
            Op::AveragePool => {
                let pool = self.average_pool();
                self.each_gradient(input, gradient, back, &|_, gradient, back| {
                    pool.backward(gradient, back)
                });
            }
            _ => self.each_gradient(input, gradient, back, &|input, gradient, back| {
                let pairs = input.iter().zip(gradient).zip(back);
                pairs.for_each(|((x, g), back)| *back = if *x > 0.0 { *g } else { 0.0 });
            }),
        }
    }

    /// Writes the gradient by the input of each sample.
    fn each_gradient(
        &self,
        input: &[f32],
        gradient: &[f32],
        back: &mut [f32],
        work: &Backward<'_>,
    ) {
        let (from, to) = (self.from.len().max(1), self.node.shape.len().max(1));
        let samples = input.par_chunks(from).zip(gradient.par_chunks(to));
        back.par_chunks_mut(from)
            .zip(samples)
            .for_each(|(back, (input, gradient))| work(input, gradient, back));
    }

    /// Adds the gradients by the parameters that are one number a channel: biases, and the weights
    /// of norms.
    fn add_channel_gradients(&self, input: &[f32], gradient: &[f32], gradients: &mut Parameters) {
        let Shape { channels, .. } = self.node.shape;
        let places = self.node.shape.places();
        match self.node.op {
            Op::Linear {
                bias: Some(bias), ..
            } => {
                let units = self.node.shape.len();
                channel_sums(gradient, units, 1, gradients.tensor_mut(bias));
            }
            Op::Convolution {
                bias: Some(bias), ..
            } => channel_sums(gradient, channels, places, gradients.tensor_mut(bias)),
            Op::BatchNorm {
                weight,
                bias,
                mean,
                variance,
            } => {
                let [mean, variance] = [mean, variance].map(|at| self.parameter(at));
                let normed = norm::batch_normed(input, self.from, mean, variance, gradient);
                let (channels, places) = (self.from.channels, self.from.places());
                channel_sums(&normed, channels, places, gradients.tensor_mut(weight));
                channel_sums(gradient, channels, places, gradients.tensor_mut(bias));
            }
            Op::LayerNorm {
                weight,
                bias,
                over_places,
            } => {
                let sets = norm::Sets::new(self.from, over_places);
                let (by_weight, by_bias) = sets.parameter_gradients(input, gradient);
                gradients.add(weight, &by_weight);
                gradients.add(bias, &by_bias);
            }
            _ => {}
        }
    }

    fn linear(&self, weight: usize, in_out: bool) -> linear::Linear<'_> {
        linear::Linear {
            step: self,
            weight,
            in_out,
        }
    }

    /// Returns the memory that a thread needs while it works on a sample, in bytes.
    pub fn scratch_bytes(node: &Operation, from: Shape, kernel: usize) -> u64 {
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
        let here = channel * places..(channel + 1) * places;
        let of_samples = values.chunks(stride).map(|sample| {
            let values = sample[here.clone()].iter();
            values.map(|value| f64::from(*value)).sum::<f64>()
        });
        *sum += crate::data::narrow(of_samples.sum());
    });
}
