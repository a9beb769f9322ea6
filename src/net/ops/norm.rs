//! Norms: by running statistics (Ioffe, Szegedy, "Batch normalization", 2015, as in inference), and
//! over the units of each sample (Ba, Kiros, Hinton, "Layer normalization", 2016). Both add
//! [`EPSILON`] to the variance.

use rayon::prelude::*;

use crate::data::narrow;
use crate::net::graph::Shape;

/// The epsilon that torch uses.
const EPSILON: f64 = 1e-5;

/// Returns one over the standard deviation, with the epsilon added to the variance.
fn scale(variance: f64) -> f64 {
    (variance + EPSILON).sqrt().recip()
}

/// Normalises one sample; the parameters are weight, bias, mean and variance of each channel.
pub fn batch_forward(
    input: &[f32],
    [weight, bias, mean, variance]: [&[f32]; 4],
    output: &mut [f32],
) {
    let places = (input.len() / weight.len().max(1)).max(1);
    let channels = input
        .chunks(places)
        .zip(output.chunks_mut(places))
        .enumerate();
    for (channel, (input, output)) in channels {
        let factor = f64::from(weight[channel]) * scale(f64::from(variance[channel]));
        let (mean, bias) = (f64::from(mean[channel]), f64::from(bias[channel]));
        input
            .iter()
            .zip(output)
            .for_each(|(x, y)| *y = narrow((f64::from(*x) - mean) * factor + bias));
    }
}

/// Computes the gradient of one sample by its input.
pub fn batch_backward(gradient: &[f32], weight: &[f32], variance: &[f32], back: &mut [f32]) {
    let places = (gradient.len() / weight.len().max(1)).max(1);
    for (channel, (gradient, back)) in gradient
        .chunks(places)
        .zip(back.chunks_mut(places))
        .enumerate()
    {
        let factor = f64::from(weight[channel]) * scale(f64::from(variance[channel]));
        gradient
            .iter()
            .zip(back)
            .for_each(|(g, back)| *back = narrow(f64::from(*g) * factor));
    }
}

/// Multiplies each input, centred and scaled, by its gradient: the terms whose sum is the gradient
/// by the weight.
pub fn batch_normed(
    input: &[f32],
    shape: Shape,
    mean: &[f32],
    variance: &[f32],
    gradient: &[f32],
) -> Vec<f32> {
    let places = shape.places().max(1);
    input
        .par_iter()
        .zip(gradient)
        .enumerate()
        .map(|(at, (x, g))| {
            let channel = at / places % shape.channels;
            let centred = f64::from(*x) - f64::from(mean[channel]);
            narrow(centred * scale(f64::from(variance[channel])) * f64::from(*g))
        })
        .collect()
}

/// The sets of numbers of a sample that are normalised together: the channels of each place, or
/// all.
#[derive(Debug, Clone, Copy)]
pub struct Sets {
    count: usize,
    /// The size of a set.
    len: usize,
    /// The distance from one number of a set to the next.
    stride: usize,
}

impl Sets {
    pub fn new(shape: Shape, over_places: bool) -> Self {
        if over_places {
            return Self {
                count: 1,
                len: shape.len(),
                stride: 1,
            };
        }
        Self {
            count: shape.places(),
            len: shape.channels,
            stride: shape.places(),
        }
    }

    fn place(&self, set: usize, at: usize) -> usize {
        set + at * self.stride
    }

    /// Returns the mean of a set, and the factor that its centred numbers are multiplied by.
    fn moments(&self, sample: &[f32], set: usize) -> (f64, f64) {
        let values = || (0..self.len).map(|at| f64::from(sample[self.place(set, at)]));
        let count = self.len.max(1) as f64;
        let mean = values().sum::<f64>() / count;
        (
            mean,
            scale(values().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count),
        )
    }

    pub fn forward(&self, sample: &[f32], weight: &[f32], bias: &[f32], output: &mut [f32]) {
        for set in 0..self.count {
            let (mean, scale) = self.moments(sample, set);
            for (at, (weight, bias)) in weight.iter().zip(bias).enumerate() {
                let place = self.place(set, at);
                let normed = (f64::from(sample[place]) - mean) * scale;
                output[place] = narrow(normed * f64::from(*weight) + f64::from(*bias));
            }
        }
    }

    /// Computes the gradient of one sample by its input.
    pub fn backward(&self, sample: &[f32], gradient: &[f32], weight: &[f32], back: &mut [f32]) {
        let count = self.len.max(1) as f64;
        for set in 0..self.count {
            let (mean, scale) = self.moments(sample, set);
            let normed = |at: usize| (f64::from(sample[self.place(set, at)]) - mean) * scale;
            let gradient = |at: usize| f64::from(gradient[self.place(set, at)]);
            let slope = |at: usize| gradient(at) * f64::from(weight[at]);
            let slopes = (0..self.len).map(slope).sum::<f64>() / count;
            let along = (0..self.len).map(|at| slope(at) * normed(at)).sum::<f64>() / count;
            for at in 0..self.len {
                back[self.place(set, at)] =
                    narrow(scale * (slope(at) - slopes - normed(at) * along));
            }
        }
    }

    /// Computes the gradients by weight and bias, adding samples in their order.
    pub fn parameter_gradients(&self, input: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut sums = (vec![0.0_f64; self.len], vec![0.0_f64; self.len]);
        let size = (self.len * self.count).max(1);
        for (sample, gradient) in input.chunks(size).zip(gradient.chunks(size)) {
            for set in 0..self.count {
                let (mean, scale) = self.moments(sample, set);
                for (at, (by_weight, by_bias)) in sums.0.iter_mut().zip(&mut sums.1).enumerate() {
                    let place = self.place(set, at);
                    let slope = f64::from(gradient[place]);
                    *by_weight += slope * (f64::from(sample[place]) - mean) * scale;
                    *by_bias += slope;
                }
            }
        }
        let narrowed = |sums: Vec<f64>| sums.into_iter().map(narrow).collect();
        (narrowed(sums.0), narrowed(sums.1))
    }
}
