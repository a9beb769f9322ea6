//! Loss and accuracy over a data set.

use std::ops::Range;

use rayon::prelude::*;

use super::loss::{Loss, cross_entropy};
use super::{Network, Parameters};
use crate::budget::format_bytes;
use crate::data::{Batch, DataSet};
use crate::error::{Error, Kind, Result};

/// Samples of a batch: whole panels of a product, and always this number, so that no bit of the
/// result depends on the memory.
const BATCH: usize = 256;
/// Samples of a batch for networks with convolutions, whose values are large.
const IMAGES: usize = 32;

/// The loss and accuracy of a network on a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// The mean cross-entropy, in nats.
    pub loss: f64,
    /// The share of samples whose largest logit is that of their class.
    pub accuracy: f64,
}

/// Computes the mean cross-entropy and the accuracy over all samples, in at most `memory` bytes
/// besides the parameters, on the threads of the current pool.
///
/// # Errors
///
/// [`Kind::Budget`] when one batch does not fit `memory`, [`Kind::Mismatch`] for a label that is
/// not a class of the network, the errors of reading, and those of `go_on`, which is called before
/// every few batches.
pub fn evaluate(
    network: &Network,
    parameters: &Parameters,
    data: &DataSet,
    memory: u64,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Score> {
    let ranges: Vec<Range<usize>> = network.batches(data.samples()).collect();
    let bytes = network.forward_bytes(network.batch().min(data.samples()), &|_| false);
    let at_once = room(memory, bytes)?;
    let (mut loss, mut correct) = (0.0, 0);
    for ranges in ranges.chunks(at_once) {
        go_on()?;
        for found in ranges
            .par_iter()
            .map(|range| loss_of(network, parameters, data, range))
            .collect::<Result<Vec<_>>>()?
        {
            loss += found.sum;
            correct += found.correct;
        }
    }
    let samples = data.samples() as f64;
    Ok(Score {
        loss: loss / samples,
        accuracy: correct as f64 / samples,
    })
}

/// Computes the loss of one batch.
fn loss_of(
    network: &Network,
    parameters: &Parameters,
    data: &DataSet,
    samples: &Range<usize>,
) -> Result<Loss> {
    let Batch { inputs, labels } = network.checked(data, samples.clone())?;
    let values = network.forward(parameters, inputs, labels.len(), &|_| false);
    Ok(cross_entropy(values.logits(), &labels, network.classes()))
}

/// Counts the passes of `bytes` bytes each that fit `memory` at once.
fn room(memory: u64, bytes: u64) -> Result<usize> {
    if bytes > memory {
        let cause = format!("a batch of samples needs {}", format_bytes(bytes));
        return Err(Error::new(
            Kind::Budget,
            "cannot compute the network",
            format_bytes(memory),
            cause,
        )
        .with_hint("give more --memory"));
    }
    let fit = usize::try_from(memory / bytes.max(1)).unwrap_or(usize::MAX);
    Ok(fit.min(rayon::current_num_threads()))
}

impl Network {
    /// Returns the number of samples that are computed together.
    pub(crate) fn batch(&self) -> usize {
        if self.convolves() { IMAGES } else { BATCH }
    }

    /// Splits this many samples into batches.
    pub(crate) fn batches(&self, samples: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let batch = self.batch();
        (0..samples)
            .step_by(batch)
            .map(move |first| first..samples.min(first + batch))
    }

    /// Reads samples and checks that their labels are classes.
    pub(crate) fn checked(&self, data: &DataSet, samples: Range<usize>) -> Result<Batch> {
        let first = samples.start;
        let batch = data.read(samples)?;
        self.check_labels(data, &batch.labels, |at| first + at)?;
        Ok(batch)
    }

    /// Refuses labels that are not classes; `sample` maps a place among the labels to a sample's
    /// number.
    pub(crate) fn check_labels(
        &self,
        data: &DataSet,
        labels: &[usize],
        sample: impl Fn(usize) -> usize,
    ) -> Result<()> {
        let Some(at) = labels.iter().position(|label| *label >= self.classes()) else {
            return Ok(());
        };
        let cause = format!(
            "sample {} has label {}, the network has {} classes",
            sample(at),
            labels[at],
            self.classes()
        );
        Err(Error::new(
            Kind::Mismatch,
            "cannot use data set",
            format!("{}: `labels`", data.path().display()),
            cause,
        ))
    }
}
