//! Conversion between stored models and networks that can be computed.

use indexmap::IndexMap;
use serde_json::Value;

use super::weights::{Store, Weights};
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::net::{Network, Parameters, Units};
use crate::symmetry::{Node, Symmetries};

/// Numbers that are read at a time: a window on a file takes memory too.
const PIECE: usize = 1 << 18;

/// Builds the network of a model with these symmetries, for samples of shape `sample`.
///
/// # Errors
///
/// As [`Network::new`].
pub fn network(
    symmetries: &Symmetries,
    config: Option<&Value>,
    sample: &[usize],
) -> Result<Network> {
    let shapes: IndexMap<String, Vec<u64>> = symmetries
        .tensors
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.shape.clone()))
        .collect();
    Network::new(&symmetries.spec, &shapes, config, sample)
}

/// Reads the parameters of `network` from `weights`.
///
/// # Errors
///
/// Fails if a tensor cannot be read or has another shape; [`Kind::NonFinite`] when it holds NaN or
/// infinity.
pub fn parameters(network: &Network, weights: &dyn Weights) -> Result<Parameters> {
    Parameters::read(network, |name, into| {
        let wanted = &network.parameters()[name];
        let shape = weights.shape(name).unwrap_or_default();
        let same = shape
            .iter()
            .copied()
            .eq(wanted.iter().map(|size| *size as u64));
        if weights.shape(name).is_some() && !same {
            let cause = format!("wanted shape {wanted:?}, got {shape:?}");
            return Err(Error::new(
                Kind::Mismatch,
                "cannot read weights",
                name.escape_debug(),
                cause,
            ));
        }
        let mut numbers = weights.tensor(name)?;
        let mut first = 0;
        for piece in into.chunks_mut(PIECE) {
            let range = first..first + piece.len() as u64;
            first = range.end;
            numbers.read(range, piece)?;
        }
        check_finite(name, into)
    })
}

/// Refuses NaN and infinity.
pub(crate) fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    let Some(at) = values.iter().position(|value| !value.is_finite()) else {
        return Ok(());
    };
    let cause = format!("element {at} is {}", values[at]);
    Err(Error::new(
        Kind::NonFinite,
        "cannot compute the network",
        name.escape_debug(),
        cause,
    ))
}

/// Holds the same numbers as weights in memory.
pub fn store(parameters: &Parameters, kernels: Kernels) -> Store {
    let tensors = parameters.iter().map(|(name, shape, numbers)| {
        let shape = shape.iter().map(|size| *size as u64).collect();
        (name.to_owned(), shape, numbers.to_vec())
    });
    Store::in_memory(tensors, kernels)
}

/// Finds the group to whose units activations belong.
pub fn group_of(symmetries: &Symmetries, units: &Units) -> Option<usize> {
    match symmetries
        .tensors
        .get(&units.weight)?
        .axes
        .get(units.axis)?
    {
        Node::Group { group, .. } => Some(*group),
        _ => None,
    }
}
