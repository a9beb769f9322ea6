//! Forward and backward passes through the list of operations.

use super::graph::{Network, Op};
use super::ops::Step;
use super::parameters::Parameters;

/// The values that a forward pass kept, by their numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Values {
    samples: usize,
    values: Vec<Option<Vec<f32>>>,
}

impl Values {
    /// Counts the samples of the pass.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Returns the numbers of value `value`: sample after sample, channel after channel.
    ///
    /// # Panics
    ///
    /// Panics if the value was not kept.
    pub fn get(&self, value: usize) -> &[f32] {
        self.values[value]
            .as_deref()
            .expect("values that are asked for were kept")
    }

    /// Returns the network's output: [samples, classes].
    pub fn logits(&self) -> &[f32] {
        self.get(self.values.len() - 1)
    }
}

impl Network {
    /// Computes all values of `samples` samples, and keeps the last one and those that `keep`
    /// picks.
    ///
    /// # Panics
    ///
    /// Panics unless there are inputs for that many samples.
    pub fn forward(
        &self,
        parameters: &Parameters,
        inputs: Vec<f32>,
        samples: usize,
        keep: &dyn Fn(usize) -> bool,
    ) -> Values {
        assert_eq!(
            inputs.len(),
            samples * self.input.len(),
            "inputs of {samples} samples"
        );
        let mut values = vec![None; self.nodes.len() + 1];
        values[0] = Some(inputs);
        for (at, node) in self.nodes.iter().enumerate() {
            let step = Step {
                node,
                from: self.shape(node.input),
                samples,
                parameters,
            };
            let other = match node.op {
                Op::Add(other) => values[other].as_deref(),
                _ => None,
            };
            let input = values[node.input]
                .as_deref()
                .expect("an earlier value is there until its last use");
            let value = step.forward(input, other);
            values[at + 1] = Some(value);
            for used in [
                Some(node.input),
                if let Op::Add(other) = node.op {
                    Some(other)
                } else {
                    None
                },
            ] {
                if let Some(used) = used.filter(|used| self.last_use(*used) == at && !keep(*used)) {
                    values[used] = None;
                }
            }
        }
        Values { samples, values }
    }

    /// Adds the gradients of a loss by all parameters to `gradients`, starting from its gradient by
    /// the logits, [samples, classes].
    ///
    /// # Panics
    ///
    /// Panics if the forward pass did not keep a value that is needed.
    pub fn backward(
        &self,
        parameters: &Parameters,
        values: &Values,
        by_logits: Vec<f32>,
        gradients: &mut Parameters,
    ) {
        let mut slopes: Vec<Option<Vec<f32>>> = vec![None; self.nodes.len() + 1];
        slopes[self.nodes.len()] = Some(by_logits);
        for (at, node) in self.nodes.iter().enumerate().rev() {
            let Some(slope) = slopes[at + 1].take() else {
                continue;
            };
            let step = Step {
                node,
                from: self.shape(node.input),
                samples: values.samples,
                parameters,
            };
            let back = step.backward(values.get(node.input), &slope, gradients);
            add(&mut slopes[node.input], back);
            if let Op::Add(other) = node.op {
                add(&mut slopes[other], slope);
            }
        }
    }

    /// Returns the peak memory of a forward pass of this many samples, parameters excluded, in
    /// bytes, when it keeps the values that `keep` picks.
    pub fn forward_bytes(&self, samples: usize, keep: &dyn Fn(usize) -> bool) -> u64 {
        let bytes = |value: usize| (samples * self.shape(value).len() * size_of::<f32>()) as u64;
        let mut live = bytes(0);
        let mut peak = live;
        for (at, node) in self.nodes.iter().enumerate() {
            let kernel = match node.op {
                Op::Convolution { weight, .. } => self.parameters[weight][2],
                _ => 0,
            };
            // The samples that are computed at once: one per thread, and no more than all.
            let at_once = rayon::current_num_threads().min(samples) as u64;
            live += bytes(at + 1);
            peak = peak
                .max(live + at_once * Step::scratch_bytes(node, self.shape(node.input), kernel));
            let used = (0..=at).filter(|value| self.last_use(*value) == at && !keep(*value));
            live -= used.map(bytes).sum::<u64>();
        }
        peak
    }
}

fn add(sum: &mut Option<Vec<f32>>, values: Vec<f32>) {
    match sum {
        None => *sum = Some(values),
        Some(sum) => sum
            .iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum += value),
    }
}
