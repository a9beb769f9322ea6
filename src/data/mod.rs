//! Labelled samples in a safetensors file, read a few at a time.
//!
//! | tensor | dtype | shape | |
//! |---|---|---|---|
//! | `inputs` | U8 or a float type | `[samples, ...]` | images as `[samples, channels, height, width]` |
//! | `labels` | any integer type | `[samples]` | classes, counted from 0 |
//!
//! `__metadata__` may give the scaling of inputs into the network's numbers, (scale · stored -
//! mean) / std: `scale` is one number (by default 1/255 for U8 and 1 for floats), `mean` and `std`
//! are one number or one per channel, separated by commas (by default 0 and 1). The caller decides
//! which samples are read when.

// The data sets are files of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

mod labels;
mod scaling;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Source, SourceOptions, TensorEntry};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{Elements, Kernels};
use scaling::Scaling;
pub(crate) use scaling::narrow;

const INPUTS: &str = "inputs";
const LABELS: &str = "labels";

/// An open data set; only its header is in memory.
pub struct DataSet {
    path: PathBuf,
    inputs: Stored,
    labels: Stored,
    samples: usize,
    shape: Vec<usize>,
    scaling: Scaling,
    kernels: Kernels,
}

/// One of the two tensors and its place in the file.
struct Stored {
    entry: TensorEntry,
    source: Arc<dyn Source>,
}

/// Some samples in memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// The inputs, sample after sample, each in row-major order of [`DataSet::shape`].
    pub inputs: Vec<f32>,
    /// The classes of the samples.
    pub labels: Vec<usize>,
}

impl DataSet {
    /// Opens the file `path` and reads its header.
    ///
    /// # Errors
    ///
    /// Fails if the file is not safetensors, if a tensor is missing or of the wrong type or shape,
    /// or if the metadata make no sense; each error names the key.
    pub fn open(path: &Path, kernels: Kernels) -> Result<Self> {
        let stored = Checkpoint::open(path)?;
        let inputs = open_part(path, &stored, INPUTS)?;
        let labels = open_part(path, &stored, LABELS)?;
        let (samples, shape) =
            samples_of(&inputs.entry).map_err(|cause| unfit(path, INPUTS, cause))?;
        if labels.entry.shape != [samples as u64] {
            let cause = format!(
                "wanted shape [{samples}], one a sample, got {:?}",
                labels.entry.shape
            );
            return Err(unfit(path, LABELS, cause));
        }
        labels::check(labels.entry.dtype).map_err(|cause| unfit(path, LABELS, cause))?;
        if samples == 0 {
            return Err(unfit(path, INPUTS, "there is not one sample"));
        }
        let file = stored.files().get(inputs.entry.file);
        let metadata = file.map(|file| file.metadata.clone()).unwrap_or_default();
        let scaling = Scaling::read(&metadata, inputs.entry.dtype, &shape)
            .map_err(|(key, cause)| unfit(path, &format!("__metadata__.{key}"), cause))?;
        Ok(Self {
            path: path.to_owned(),
            inputs,
            labels,
            samples,
            shape,
            scaling,
            kernels,
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Counts the samples: at least one.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Returns the dimensions of one sample.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Reads a contiguous range of samples.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, an input is NaN or infinite, or a label is negative.
    ///
    /// # Panics
    ///
    /// Panics if there are fewer samples.
    pub fn read(&self, samples: Range<usize>) -> Result<Batch> {
        let mut batch = Batch::default();
        self.append(samples, &mut batch)?;
        Ok(batch)
    }

    /// Reads the samples with these numbers, in this order.
    ///
    /// # Errors
    ///
    /// As [`DataSet::read`].
    ///
    /// # Panics
    ///
    /// As [`DataSet::read`].
    pub fn gather(&self, samples: &[usize]) -> Result<Batch> {
        let mut batch = Batch::default();
        samples
            .iter()
            .try_for_each(|sample| self.append(*sample..sample + 1, &mut batch))?;
        Ok(batch)
    }

    fn append(&self, samples: Range<usize>, batch: &mut Batch) -> Result<()> {
        assert!(
            samples.start <= samples.end && samples.end <= self.samples,
            "samples that there are"
        );
        let per_sample: usize = self.shape.iter().product();
        let start = batch.inputs.len();
        batch.inputs.resize(start + per_sample * samples.len(), 0.0);
        let (_, values) = batch.inputs.split_at_mut(start);
        let bytes = self.inputs.load(&samples, per_sample)?;
        self.convert(&bytes, values);
        bytes.intact()?;
        let mut numbers = values.iter().enumerate();
        if let Some((at, value)) = numbers.find(|(_, value)| !value.is_finite()) {
            let sample = samples.start + at / per_sample;
            let cause = format!(
                "sample {sample}, number {}: the value is {value}",
                at % per_sample
            );
            return Err(unfit(&self.path, INPUTS, cause).with_kind(Kind::NonFinite));
        }
        values
            .chunks_mut(per_sample.max(1))
            .for_each(|sample| self.scaling.apply(sample));
        let bytes = self.labels.load(&samples, 1)?;
        let labels = labels::read(self.labels.entry.dtype, &bytes).map_err(|(at, cause)| {
            unfit(
                &self.path,
                LABELS,
                format!("sample {}: {cause}", samples.start + at),
            )
        })?;
        batch.labels.extend(labels);
        bytes.intact()
    }

    /// Converts stored inputs to f32.
    fn convert(&self, bytes: &[u8], values: &mut [f32]) {
        match self.inputs.entry.dtype {
            Dtype::U8 => values
                .iter_mut()
                .zip(bytes)
                .for_each(|(value, byte)| *value = f32::from(*byte)),
            dtype => {
                let elements = Elements { dtype, bytes };
                self.kernels
                    .convert(elements, Dtype::F32, bytemuck::cast_slice_mut(values));
            }
        }
    }
}

impl Stored {
    fn load(&self, samples: &Range<usize>, per_sample: usize) -> Result<crate::checkpoint::Window> {
        let unit = (per_sample * self.entry.dtype.bytes()) as u64;
        let start = self.entry.bytes.start;
        self.source
            .load(start + samples.start as u64 * unit..start + samples.end as u64 * unit)
    }
}

fn unfit(path: &Path, key: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(
        Kind::Input,
        "cannot use data set",
        format!("{}: `{key}`", path.display()),
        cause,
    )
}

/// Opens the tensor `key`.
fn open_part(path: &Path, stored: &Checkpoint, key: &str) -> Result<Stored> {
    let Some(entry) = stored.tensors().get(key) else {
        let cause = "there is no such tensor";
        return Err(unfit(path, key, cause)
            .with_hint("a data set has `inputs` [samples, ...] and `labels` [samples]"));
    };
    let source = stored.open_file(entry.file, &SourceOptions::default())?;
    Ok(Stored {
        entry: entry.clone(),
        source,
    })
}

/// Checks type and shape of the inputs; returns the number of samples and the shape of one.
fn samples_of(inputs: &TensorEntry) -> Result<(usize, Vec<usize>), String> {
    let sizes = inputs.shape.iter().map(|size| usize::try_from(*size));
    let shape: Vec<usize> = sizes
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let (samples, shape) = shape
        .split_first()
        .filter(|(_, shape)| !shape.is_empty())
        .ok_or_else(|| format!("wanted shape [samples, ...], got {:?}", inputs.shape))?;
    if inputs.dtype != Dtype::U8 && !inputs.dtype.is_mergeable() {
        return Err(format!("wanted U8 or a float type, got {}", inputs.dtype));
    }
    Ok((*samples, shape.to_vec()))
}
