//! Layers one behind the other: MLPs and VGG.

use serde_json::json;

use super::{Family, Net, Random, map};

/// An MLP, with batch norms between its layers or without.
pub struct Chain {
    pub norms: bool,
    pub flax: bool,
}

const SIZES: [usize; 5] = [6, 9, 7, 11, 4];

impl Family for Chain {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let mut net = Net::new(json!({}));
        for (l, sizes) in SIZES.windows(2).enumerate() {
            let (from, to) = (sizes[0], sizes[1]);
            if self.flax {
                net.add(random, &format!("Dense_{l}.kernel"), &[from, to]);
                net.add(random, &format!("Dense_{l}.bias"), &[to]);
                continue;
            }
            // As in a `Sequential` whose activations have numbers too.
            net.add(random, &format!("layers.{}.weight", 3 * l), &[to, from]);
            net.add(random, &format!("layers.{}.bias", 3 * l), &[to]);
            if self.norms && l + 2 < SIZES.len() {
                add_norm(&mut net, random, &format!("layers.{}", 3 * l + 1), to);
            }
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let mut x = Random::new(5).vector(SIZES[0]);
        for l in 0..SIZES.len() - 1 {
            x = if self.flax {
                net.linear_in_out(&format!("Dense_{l}.kernel"), &format!("Dense_{l}.bias"), &x)
            } else {
                net.linear(&format!("layers.{}", 3 * l), &x)
            };
            if l + 2 < SIZES.len() {
                let norm = format!("layers.{}", 3 * l + 1);
                if net.has(&format!("{norm}.weight")) {
                    x = batch_norm(net, &norm, &x, 1);
                }
                x = map(&x, |x| x.max(0.0));
            }
        }
        x
    }
}

pub fn add_norm(net: &mut Net, random: &mut Random, name: &str, channels: usize) {
    net.add_scale(random, &format!("{name}.weight"), &[channels]);
    net.add(random, &format!("{name}.bias"), &[channels]);
    net.add(random, &format!("{name}.running_mean"), &[channels]);
    net.add_scale(random, &format!("{name}.running_var"), &[channels]);
}

/// A batch norm of `places` numbers a channel, or, where no statistics are stored, a layer norm
/// over the channels.
pub fn batch_norm(net: &Net, name: &str, x: &[f64], places: usize) -> Vec<f64> {
    let (weight, bias) = (
        net.get(&format!("{name}.weight")),
        net.get(&format!("{name}.bias")),
    );
    let channels = weight.len();
    let mean = |at: usize| match net.tensors.get(&format!("{name}.running_mean")) {
        Some((_, means)) => means[at / places],
        None => {
            (0..channels)
                .map(|c| x[c * places + at % places])
                .sum::<f64>()
                / channels as f64
        }
    };
    let variance = |at: usize| match net.tensors.get(&format!("{name}.running_var")) {
        Some((_, variances)) => variances[at / places],
        None => {
            let mean = mean(at);
            (0..channels)
                .map(|c| (x[c * places + at % places] - mean).powi(2))
                .sum::<f64>()
                / channels as f64
        }
    };
    let value = |(at, x): (usize, &f64)| {
        (x - mean(at)) / (variance(at) + 1e-5).sqrt() * weight[at / places] + bias[at / places]
    };
    x.iter().enumerate().map(value).collect()
}

/// A convolution with padding that keeps the size of the image; channels outermost.
pub fn convolve(net: &Net, name: &str, x: &[f64], side: usize) -> Vec<f64> {
    let shape = net.shape(&format!("{name}.weight"));
    let (to, from, kernel) = (shape[0], shape[1], shape[2]);
    let filters = net.get(&format!("{name}.weight"));
    let mut y = vec![0.0; to * side * side];
    for (at, y) in y.iter_mut().enumerate() {
        let (o, row, column) = (at / (side * side), at / side % side, at % side);
        for (k, weight) in filters[o * from * kernel * kernel..(o + 1) * from * kernel * kernel]
            .iter()
            .enumerate()
        {
            let (i, dy, dx) = (k / (kernel * kernel), k / kernel % kernel, k % kernel);
            let place = (
                (row + dy).checked_sub(kernel / 2),
                (column + dx).checked_sub(kernel / 2),
            );
            if let (Some(r), Some(c)) = place
                && r < side
                && c < side
            {
                *y += weight * x[(i * side + r) * side + c];
            }
        }
    }
    if net.has(&format!("{name}.bias")) {
        for (channel, bias) in y
            .chunks_mut(side * side)
            .zip(net.get(&format!("{name}.bias")))
        {
            channel.iter_mut().for_each(|y| *y += bias);
        }
    }
    y
}

/// Every second row and column.
pub fn halve(x: &[f64], side: usize) -> Vec<f64> {
    let half = side / 2;
    let channels = x.len() / (side * side);
    let place =
        |at: usize| (at / (half * half) * side + at / half % half * 2) * side + at % half * 2;
    (0..channels * half * half).map(|at| x[place(at)]).collect()
}

/// The largest number of each square of two by two.
pub fn max_pool(x: &[f64], side: usize) -> Vec<f64> {
    let shifted = |by: usize| {
        let moved: Vec<f64> = x.iter().copied().cycle().skip(by).take(x.len()).collect();
        halve(&moved, side)
    };
    let corners = [0, 1, side, side + 1].map(shifted);
    (0..corners[0].len())
        .map(|at| {
            corners
                .iter()
                .map(|corner| corner[at])
                .fold(f64::NEG_INFINITY, f64::max)
        })
        .collect()
}

/// The layout of VGG16 with few channels: a convolution a layer, images halved behind some of them.
pub struct Vgg {
    pub norms: bool,
}

const SIDE: usize = 8;
const PLAN: [(usize, bool); 5] = [(4, false), (5, true), (6, false), (7, false), (6, true)];

impl Vgg {
    /// The numbers of the convolutions: one for each layer, activation, norm and pooling.
    fn numbers(&self) -> Vec<usize> {
        let mut next = 0;
        let number = |(_, pooled): &(usize, bool)| {
            let own = next;
            next += 2 + usize::from(self.norms) + usize::from(*pooled);
            own
        };
        PLAN.iter().map(number).collect()
    }
}

impl Family for Vgg {
    fn random(&self, seed: u64) -> Net {
        let random = &mut Random::new(seed);
        let mut net = Net::new(json!({ "model_type": "vgg16" }));
        let mut from = 3;
        for (number, (to, _)) in self.numbers().into_iter().zip(PLAN) {
            net.add(
                random,
                &format!("features.{number}.weight"),
                &[to, from, 3, 3],
            );
            net.add(random, &format!("features.{number}.bias"), &[to]);
            if self.norms {
                add_norm(&mut net, random, &format!("features.{}", number + 1), to);
            }
            from = to;
        }
        let side = SIDE / 4;
        for (number, to, from) in [(0, 9, from * side * side), (3, 8, 9), (6, 5, 8)] {
            net.add(random, &format!("classifier.{number}.weight"), &[to, from]);
            net.add(random, &format!("classifier.{number}.bias"), &[to]);
        }
        net
    }

    fn outputs(&self, net: &Net) -> Vec<f64> {
        let mut side = SIDE;
        let mut x = Random::new(6).vector(3 * side * side);
        for (number, (_, pooled)) in self.numbers().into_iter().zip(PLAN) {
            x = convolve(net, &format!("features.{number}"), &x, side);
            if self.norms {
                x = batch_norm(net, &format!("features.{}", number + 1), &x, side * side);
            }
            x = map(&x, |x| x.max(0.0));
            if pooled {
                x = max_pool(&x, side);
                side /= 2;
            }
        }
        for number in [0, 3, 6] {
            x = net.linear(&format!("classifier.{number}"), &x);
            if number < 6 {
                x = map(&x, |x| x.max(0.0));
            }
        }
        x
    }
}
