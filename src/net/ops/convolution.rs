//! Convolutions as products: each place's window becomes a column (im2col; Chellapilla, Puri,
//! Simard, "High performance convolutional neural networks for document processing", 2006).

use rayon::prelude::*;

use crate::linalg::{Matrix, add_product};
use crate::net::graph::Shape;

/// The most runs of samples in which gradients by the weight are summed; then the runs are summed.
const RUNS: usize = 4;

/// The shape of a convolution, without its weights.
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    pub from: Shape,
    pub to: Shape,
    /// Rows, and columns, of the kernel.
    pub size: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Filter {
    /// Counts the rows of the matrix of windows: channels times places of the kernel.
    fn taps(&self) -> usize {
        self.from.channels * self.size * self.size
    }

    /// Calls `work` with each entry of the matrix of windows and the place of the input that it
    /// holds; entries beyond the image are left out.
    fn each(&self, mut work: impl FnMut(usize, usize)) {
        let Shape { height, width, .. } = self.from;
        for tap in 0..self.taps() {
            let (channel, row, column) = (
                tap / (self.size * self.size),
                tap / self.size % self.size,
                tap % self.size,
            );
            for y in 0..self.to.height {
                let Some(y_in) = (y * self.stride + row)
                    .checked_sub(self.padding)
                    .filter(|y| *y < height)
                else {
                    continue;
                };
                for x in 0..self.to.width {
                    let Some(x_in) = (x * self.stride + column).checked_sub(self.padding) else {
                        continue;
                    };
                    if x_in < width {
                        let to = tap * self.to.places() + y * self.to.width + x;
                        work(to, (channel * height + y_in) * width + x_in);
                    }
                }
            }
        }
    }

    /// Gathers the windows of one sample, [taps, places].
    fn columns(&self, input: &[f32]) -> Vec<f32> {
        if self.size == 1 && self.stride == 1 {
            return input.to_vec();
        }
        let mut columns = vec![0.0; self.taps() * self.to.places()];
        self.each(|to, from| columns[to] = input[from]);
        columns
    }

    pub fn forward(&self, input: &[f32], weight: &[f32], bias: Option<&[f32]>, output: &mut [f32]) {
        let (taps, places) = (self.taps(), self.to.places());
        if let Some(bias) = bias {
            output
                .chunks_mut(places.max(1))
                .zip(bias)
                .for_each(|(channel, bias)| channel.fill(*bias));
        }
        let columns = self.columns(input);
        add_product(
            Matrix::new(weight, self.to.channels, taps),
            Matrix::new(&columns, taps, places),
            output,
        );
    }

    /// Adds the gradient of one sample by its input to `back`.
    pub fn backward(&self, gradient: &[f32], weight: &[f32], back: &mut [f32]) {
        let (taps, places) = (self.taps(), self.to.places());
        let mut columns = vec![0.0; taps * places];
        let weight = Matrix::new(weight, self.to.channels, taps).transposed();
        add_product(
            weight,
            Matrix::new(gradient, self.to.channels, places),
            &mut columns,
        );
        self.each(|to, from| back[from] += columns[to]);
    }

    /// Adds the gradient of all samples by the weight to `sum`.
    pub fn weight_gradient(
        &self,
        samples: usize,
        input: &[f32],
        gradient: &[f32],
        sum: &mut [f32],
    ) {
        let (taps, places) = (self.taps(), self.to.places());
        let run = samples.div_ceil(RUNS).max(1);
        let (from, to) = (self.from.len(), self.to.len());
        let pairs = input
            .par_chunks(run * from)
            .zip(gradient.par_chunks(run * to));
        let parts: Vec<Vec<f32>> = pairs
            .map(|(input, gradient)| {
                let mut sum = vec![0.0; sum.len()];
                for (input, gradient) in input.chunks(from).zip(gradient.chunks(to)) {
                    let columns = self.columns(input);
                    let columns = Matrix::new(&columns, taps, places).transposed();
                    let gradient = Matrix::new(gradient, self.to.channels, places);
                    add_product(gradient, columns, &mut sum);
                }
                sum
            })
            .collect();
        for part in parts {
            sum.iter_mut()
                .zip(part)
                .for_each(|(sum, part)| *sum += part);
        }
    }
}
