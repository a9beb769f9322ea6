//! Pooling of one sample.

use std::ops::Range;

use crate::data::narrow;
use crate::net::graph::Shape;

/// Pooling to the largest number of each window.
#[derive(Debug, Clone, Copy)]
pub struct Max {
    pub from: Shape,
    pub to: Shape,
    pub size: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Max {
    fn window(&self, at: usize, len: usize) -> Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.size - self.padding).min(len)
    }

    /// Calls `work` with each place of the output and the place of its window's largest number, the
    /// first of equal ones.
    fn each(&self, input: &[f32], mut work: impl FnMut(usize, usize)) {
        let Shape { height, width, .. } = self.from;
        for to in 0..self.to.len() {
            let (channel, place) = (to / self.to.places(), to % self.to.places());
            let rows = self.window(place / self.to.width, height);
            let columns = self.window(place % self.to.width, width);
            let places = rows.flat_map(|y| {
                columns
                    .clone()
                    .map(move |x| (channel * height + y) * width + x)
            });
            let best = places.reduce(|best, place| {
                if input[place] > input[best] {
                    place
                } else {
                    best
                }
            });
            work(to, best.expect("a window reaches into the image"));
        }
    }

    pub fn forward(&self, input: &[f32], output: &mut [f32]) {
        self.each(input, |to, from| output[to] = input[from]);
    }

    pub fn backward(&self, input: &[f32], gradient: &[f32], back: &mut [f32]) {
        self.each(input, |to, from| back[from] += gradient[to]);
    }
}

/// Pooling to means over windows that divide the image evenly, as in torch's adaptive pooling.
#[derive(Debug, Clone, Copy)]
pub struct Average {
    pub from: Shape,
    pub to: Shape,
}

impl Average {
    fn window(at: usize, of: usize, len: usize) -> Range<usize> {
        at * len / of..((at + 1) * len).div_ceil(of)
    }

    /// Calls `work` with each place of the output and the places of its window.
    fn each(&self, mut work: impl FnMut(usize, &[usize])) {
        let Shape { height, width, .. } = self.from;
        for to in 0..self.to.len() {
            let (channel, place) = (to / self.to.places(), to % self.to.places());
            let rows = Self::window(place / self.to.width, self.to.height, height);
            let columns = Self::window(place % self.to.width, self.to.width, width);
            let places = rows.flat_map(|y| {
                columns
                    .clone()
                    .map(move |x| (channel * height + y) * width + x)
            });
            work(to, &places.collect::<Vec<_>>());
        }
    }

    pub fn forward(&self, input: &[f32], output: &mut [f32]) {
        self.each(|to, window| {
            let sum: f64 = window.iter().map(|place| f64::from(input[*place])).sum();
            output[to] = narrow(sum / window.len() as f64);
        });
    }

    pub fn backward(&self, gradient: &[f32], back: &mut [f32]) {
        self.each(|to, window| {
            let share = narrow(f64::from(gradient[to]) / window.len() as f64);
            window.iter().for_each(|place| back[*place] += share);
        });
    }
}
