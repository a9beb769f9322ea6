//! The numbers of a network.

use super::Network;

/// The numbers of every tensor that a [`Network`] computes with, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameters {
    names: Vec<String>,
    shapes: Vec<Vec<usize>>,
    tensors: Vec<Vec<f32>>,
}

impl Parameters {
    /// Makes parameters that are all zero.
    pub fn zeros(network: &Network) -> Self {
        let names = network.parameters().keys().cloned().collect();
        let shapes: Vec<Vec<usize>> = network.parameters().values().cloned().collect();
        let tensors = shapes
            .iter()
            .map(|shape| vec![0.0; shape.iter().product()])
            .collect();
        Self {
            names,
            shapes,
            tensors,
        }
    }

    /// Fills each tensor by calling `read` with its name and its buffer.
    ///
    /// # Errors
    ///
    /// Passes on the errors of `read`.
    pub fn read<E>(
        network: &Network,
        mut read: impl FnMut(&str, &mut [f32]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut parameters = Self::zeros(network);
        let pairs = parameters.names.iter().zip(&mut parameters.tensors);
        pairs
            .into_iter()
            .try_for_each(|(name, tensor)| read(name, tensor))?;
        Ok(parameters)
    }

    /// Returns names, shapes and row-major numbers of all tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        let named = self.names.iter().zip(&self.shapes).zip(&self.tensors);
        named.map(|((name, shape), tensor)| (name.as_str(), shape.as_slice(), tensor.as_slice()))
    }

    /// Returns the numbers of all tensors.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Vec<f32>> {
        self.tensors.iter_mut()
    }

    /// Returns the numbers of one tensor.
    pub(super) fn tensor(&self, at: usize) -> &[f32] {
        &self.tensors[at]
    }

    pub(super) fn tensor_mut(&mut self, at: usize) -> &mut [f32] {
        &mut self.tensors[at]
    }

    pub(super) fn shape(&self, at: usize) -> &[usize] {
        &self.shapes[at]
    }

    pub(super) fn add(&mut self, at: usize, values: &[f32]) {
        self.tensors[at]
            .iter_mut()
            .zip(values)
            .for_each(|(sum, value)| *sum += value);
    }

    /// Computes `one` · `self` + `other` · `others`, number by number.
    ///
    /// # Panics
    ///
    /// Panics if they are not of one network.
    #[must_use]
    pub fn combine(&self, one: f32, others: &Self, other: f32) -> Self {
        assert_eq!(self.shapes, others.shapes, "parameters of one network");
        let pairs = self.tensors.iter().zip(&others.tensors);
        let sums = pairs.map(|(x, y)| {
            let numbers = x.iter().zip(y);
            numbers.map(|(x, y)| one * x + other * y).collect()
        });
        Self {
            tensors: sums.collect(),
            ..self.clone()
        }
    }

    /// Returns the memory of the numbers, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors
            .iter()
            .map(|tensor| 4 * tensor.len() as u64)
            .sum()
    }
}
