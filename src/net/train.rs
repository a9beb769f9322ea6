//! Training of small networks, and the optimiser of the straight-through estimator.

use indexmap::IndexMap;

use super::loss::cross_entropy;
use super::{Network, Parameters, SplitMix};
use crate::data::{Batch, DataSet, narrow};
use crate::error::Result;

/// Adam with decoupled weight decay (Kingma, Ba, 2015; Loshchilov, Hutter, "Decoupled weight decay
/// regularization", 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamOptions {
    /// The learning rate.
    pub rate: f64,
    /// The share of the mean gradient that is kept at a step.
    pub beta1: f64,
    /// The share of the mean squared gradient that is kept at a step.
    pub beta2: f64,
    /// The number that is added to the root of the mean squared gradient.
    pub epsilon: f64,
    /// The weight decay: at each step, weights of more than one axis shrink by `rate` times this
    /// share.
    pub decay: f64,
}

impl Default for AdamOptions {
    fn default() -> Self {
        Self {
            rate: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            decay: 1e-2,
        }
    }
}

/// The state of Adam.
#[derive(Debug, Clone)]
pub struct Adam {
    options: AdamOptions,
    steps: i32,
    mean: Parameters,
    square: Parameters,
}

impl Adam {
    /// Makes the state before the first step.
    pub fn new(network: &Network, options: AdamOptions) -> Self {
        Self {
            options,
            steps: 0,
            mean: Parameters::zeros(network),
            square: Parameters::zeros(network),
        }
    }

    /// Takes a step against `gradients`. Parameters without a gradient, such as running statistics,
    /// stay unchanged.
    pub fn step(&mut self, parameters: &mut Parameters, gradients: &Parameters) {
        let AdamOptions {
            rate,
            beta1,
            beta2,
            epsilon,
            decay,
        } = self.options;
        self.steps = self.steps.saturating_add(1);
        let (first, second) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        let decays: Vec<f64> = parameters
            .iter()
            .map(|(_, shape, _)| if shape.len() > 1 { rate * decay } else { 0.0 })
            .collect();
        let moments = self.mean.tensors_mut().zip(self.square.tensors_mut());
        let pairs = parameters
            .tensors_mut()
            .zip(gradients.iter())
            .zip(moments)
            .zip(decays);
        for (((tensor, (_, _, slopes)), (mean, square)), decay) in pairs {
            let numbers = tensor
                .iter_mut()
                .zip(slopes)
                .zip(mean.iter_mut().zip(square.iter_mut()));
            for ((number, slope), (mean, square)) in numbers {
                let slope = f64::from(*slope);
                *mean = narrow(beta1 * f64::from(*mean) + (1.0 - beta1) * slope);
                *square = narrow(beta2 * f64::from(*square) + (1.0 - beta2) * slope * slope);
                let step =
                    f64::from(*mean) / first / ((f64::from(*square) / second).sqrt() + epsilon);
                *number = narrow(f64::from(*number) * (1.0 - decay) - rate * step);
            }
        }
    }
}

/// The settings of a training run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Training {
    /// The number of times that each sample is seen.
    pub epochs: usize,
    /// Samples of a step.
    pub batch: usize,
    /// The seed for the order of samples.
    pub seed: u64,
    /// The optimiser.
    pub adam: AdamOptions,
}

/// Trains `parameters` by cross-entropy; the result has the same bits for every number of threads.
///
/// # Errors
///
/// Passes on the errors of reading and those of `go_on`, which is called before every step; fails
/// for a label that is not a class.
pub fn train(
    network: &Network,
    parameters: &mut Parameters,
    data: &DataSet,
    training: &Training,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let mut adam = Adam::new(network, training.adam);
    for epoch in 0..training.epochs {
        for samples in order(data.samples(), training.seed, epoch).chunks(training.batch.max(1)) {
            go_on()?;
            let batch = network.gathered(data, samples)?;
            let (_, gradients) = network.gradients(parameters, batch);
            adam.step(parameters, &gradients);
        }
    }
    Ok(())
}

/// Returns all samples in the order of an epoch (Fisher-Yates).
pub fn order(samples: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut random = SplitMix::new(seed, 1 + epoch as u64);
    let mut order: Vec<usize> = (0..samples).collect();
    (1..samples)
        .rev()
        .for_each(|at| order.swap(at, random.below(at + 1)));
    order
}

impl Network {
    /// Reads samples by their numbers, and checks that their labels are classes.
    pub(crate) fn gathered(&self, data: &DataSet, samples: &[usize]) -> Result<Batch> {
        let batch = data.gather(samples)?;
        self.check_labels(data, &batch.labels, |at| samples[at])?;
        Ok(batch)
    }

    /// Computes the mean cross-entropy of a batch and its gradients by all parameters.
    pub fn gradients(&self, parameters: &Parameters, batch: Batch) -> (f64, Parameters) {
        let Batch { inputs, labels } = batch;
        let values = self.forward(parameters, inputs, labels.len(), &|_| true);
        let loss = cross_entropy(values.logits(), &labels, self.classes());
        let mut gradients = Parameters::zeros(self);
        self.backward(parameters, &values, loss.gradient, &mut gradients);
        (loss.sum / labels.len().max(1) as f64, gradients)
    }
}

/// Makes an MLP of layers `layers.0`, `layers.1`, … with these numbers of features, and its initial
/// parameters: uniform within one over the root of a layer's inputs, as in torch.
///
/// # Panics
///
/// Panics with fewer than two sizes.
pub fn mlp(sizes: &[usize], seed: u64) -> (Network, Parameters) {
    assert!(sizes.len() > 1, "inputs and outputs");
    let mut tensors = IndexMap::new();
    for (layer, sizes) in sizes.windows(2).enumerate() {
        tensors.insert(
            format!("layers.{layer}.weight"),
            vec![sizes[1] as u64, sizes[0] as u64],
        );
        tensors.insert(format!("layers.{layer}.bias"), vec![sizes[1] as u64]);
    }
    let network =
        Network::new("mlp", &tensors, None, &sizes[..1]).expect("layers that follow one another");
    let mut parameters = Parameters::zeros(&network);
    for (at, tensor) in parameters.tensors_mut().enumerate() {
        let mut random = SplitMix::new(seed, at as u64);
        let bound = narrow((sizes[at / 2] as f64).sqrt().recip());
        tensor
            .iter_mut()
            .for_each(|number| *number = bound * random.signed());
    }
    (network, parameters)
}
