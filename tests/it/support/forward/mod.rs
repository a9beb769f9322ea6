//! Forward passes of tiny networks in f64, plain loops: what tells whether a transform keeps a
//! function.

mod bert;
mod chain;
mod gpt2;
mod llama;
mod neox;
mod resnet;
mod vit;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::reference::files::{read_model, write_model};
use super::reference::{Model, Tensor};
use safetensors::Dtype;

pub use bert::Bert;
pub use chain::{Chain, Vgg};
pub use gpt2::Gpt2;
pub use llama::{Experts, Llama};
pub use neox::Neox;
pub use resnet::ResNet;
pub use vit::Vit;

/// A network: tensors by name, and what its config says.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    pub config: Value,
}

/// A kind of network: random ones of it, and what they compute.
pub trait Family {
    /// A network whose every number is random.
    fn random(&self, seed: u64) -> Net;

    /// Its outputs for an input that is random too, but always the same.
    fn outputs(&self, net: &Net) -> Vec<f64>;
}

impl Net {
    pub fn new(config: Value) -> Self {
        Self {
            tensors: BTreeMap::new(),
            config,
        }
    }

    /// Adds a matrix or a bias of random numbers whose products keep their size.
    pub fn add(&mut self, random: &mut Random, name: &str, shape: &[usize]) {
        let fan = shape[1..].iter().product::<usize>().max(1);
        let scale = 1.5 / (fan as f64).sqrt();
        let count = shape.iter().product();
        self.tensors.insert(
            name.to_owned(),
            (
                shape.to_vec(),
                (0..count).map(|_| scale * random.signed()).collect(),
            ),
        );
    }

    /// Adds a vector of positive numbers around one.
    pub fn add_scale(&mut self, random: &mut Random, name: &str, shape: &[usize]) {
        let count = shape.iter().product();
        self.tensors.insert(
            name.to_owned(),
            (
                shape.to_vec(),
                (0..count).map(|_| 1.0 + 0.5 * random.signed()).collect(),
            ),
        );
    }

    pub fn get(&self, name: &str) -> &[f64] {
        &self
            .tensors
            .get(name)
            .unwrap_or_else(|| panic!("the network has no {name}"))
            .1
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub fn shape(&self, name: &str) -> &[usize] {
        &self
            .tensors
            .get(name)
            .unwrap_or_else(|| panic!("the network has no {name}"))
            .0
    }

    /// x W^T + b of a layer stored as [out, in].
    pub fn linear(&self, layer: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.get(&format!("{layer}.weight"));
        let bias = format!("{layer}.bias");
        let mut y: Vec<f64> = weight.chunks(x.len()).map(|row| dot(row, x)).collect();
        if self.has(&bias) {
            add_to(&mut y, self.get(&bias));
        }
        y
    }

    /// x W + b of a layer stored as [in, out].
    pub fn linear_in_out(&self, weight: &str, bias: &str, x: &[f64]) -> Vec<f64> {
        let mut y = self.get(bias).to_vec();
        for (x, row) in x.iter().zip(self.get(weight).chunks(y.len())) {
            y.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
        }
        y
    }

    pub fn layer_norm(&self, layer: &str, x: &[f64]) -> Vec<f64> {
        let (weight, bias) = (
            self.get(&format!("{layer}.weight")),
            self.get(&format!("{layer}.bias")),
        );
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
        let scale = (variance + 1e-5).sqrt().recip();
        x.iter()
            .zip(weight.iter().zip(bias))
            .map(|(x, (w, b))| (x - mean) * scale * w + b)
            .collect()
    }

    /// The network as a checkpoint.
    pub fn write(&self, folder: &Path) {
        let tensors = self.tensors.iter().map(|(name, (shape, values))| {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (name.clone(), Tensor::from_bytes(Dtype::F64, shape, bytes))
        });
        write_model(folder, &tensors.collect::<Model>(), 1);
        std::fs::write(folder.join("config.json"), self.config.to_string())
            .expect("a writable folder");
    }

    /// The network that a checkpoint of this one's config holds.
    pub fn read(&self, folder: &Path) -> Self {
        let model = read_model(folder);
        let tensors = model.iter().map(|(name, tensor)| {
            assert_eq!(tensor.dtype, Dtype::F64, "{name}");
            let values = tensor
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f64::from_le_bytes(*bytes))
                .collect();
            (name.clone(), (tensor.shape.clone(), values))
        });
        Self {
            tensors: tensors.collect(),
            config: self.config.clone(),
        }
    }
}

pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

pub fn add_to(x: &mut [f64], y: &[f64]) {
    assert_eq!(x.len(), y.len());
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

pub fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = x.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// The tanh form of GELU.
pub fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x * x * x)).tanh())
}

pub fn map(x: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|x| f(*x)).collect()
}

/// Softmax attention of one head; rows are positions, and position i sees `visible(i)` of them.
pub fn attend(
    queries: &[Vec<f64>],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    visible: impl Fn(usize) -> usize,
) -> Vec<Vec<f64>> {
    let scale = (queries[0].len() as f64).sqrt().recip();
    let row = |(i, query): (usize, &Vec<f64>)| {
        let scores: Vec<f64> = keys[..visible(i)]
            .iter()
            .map(|key| scale * dot(query, key))
            .collect();
        let mut mixed = vec![0.0; values[0].len()];
        for (share, value) in softmax(&scores).iter().zip(values) {
            mixed
                .iter_mut()
                .zip(value)
                .for_each(|(mixed, value)| *mixed += share * value);
        }
        mixed
    };
    queries.iter().enumerate().map(row).collect()
}

/// Head `head` of every position.
pub fn head(rows: &[Vec<f64>], head: usize, dim: usize) -> Vec<Vec<f64>> {
    rows.iter()
        .map(|row| row[head * dim..(head + 1) * dim].to_vec())
        .collect()
}

/// Rotary embeddings on the first `rotary` units, unit i paired with i + rotary/2, in place.
pub fn rotate(x: &mut [f64], rotary: usize, position: usize) {
    let half = rotary / 2;
    for i in 0..half {
        let angle = position as f64 * 100_f64.powf(-(i as f64) / half as f64);
        let (sin, cos) = angle.sin_cos();
        (x[i], x[i + half]) = (
            x[i] * cos - x[i + half] * sin,
            x[i + half] * cos + x[i] * sin,
        );
    }
}

/// Numbers that look random, the same on every machine.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number in [-1, 1).
    pub fn signed(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    pub fn vector(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.signed()).collect()
    }
}

/// Tokens that every language model here reads.
pub const TOKENS: [usize; 7] = [3, 0, 5, 1, 4, 4, 2];
/// Tokens that there are.
pub const VOCABULARY: usize = 6;

/// Row `index` of a table of rows of this length.
pub fn row(table: &[f64], index: usize, len: usize) -> &[f64] {
    &table[index * len..(index + 1) * len]
}
