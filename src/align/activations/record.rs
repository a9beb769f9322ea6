//! Records a model's activations on a data set.

use std::path::Path;

use indexmap::IndexMap;

use super::write::Writer;
use crate::align::network::group_of;
use crate::budget::format_bytes;
use crate::data::{Batch, DataSet};
use crate::error::{Error, Kind, Result};
use crate::net::{Network, Parameters};
use crate::symmetry::Symmetries;

/// The inputs of a recording.
pub struct Recording<'a> {
    /// The model's groups.
    pub symmetries: &'a Symmetries,
    /// The network that is computed.
    pub network: &'a Network,
    /// The network's parameters.
    pub parameters: &'a Parameters,
    /// The samples.
    pub data: &'a DataSet,
    /// Metadata for the file, besides its format.
    pub notes: IndexMap<String, String>,
    /// Bytes that values and buffers may take together, besides the parameters.
    pub memory: u64,
}

/// A group whose activations were recorded.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Recorded {
    /// The group's name.
    pub group: String,
    /// The number of rows: samples times places of an image, over all layers whose outputs are the
    /// group's units.
    pub samples: u64,
    /// The number of columns.
    pub units: usize,
}

/// A value of the network that belongs to a group, and its first row among the group's rows.
struct RecordedPart {
    tensor: usize,
    value: usize,
    first_row: u64,
}

/// Writes the activations of every group, taken behind norm and ReLU, as f32 to the file `path`:
/// under a temporary name first, renamed when the file is complete and durable. `go_on` is called
/// before every batch with the number of samples done.
///
/// # Errors
///
/// [`Kind::Budget`] when one batch does not fit the memory, [`Kind::NonFinite`] for an activation
/// that is NaN or infinite, the errors of reading, writing and `go_on`.
pub fn record(
    recording: &Recording<'_>,
    path: &Path,
    go_on: &dyn Fn(usize) -> Result<()>,
) -> Result<Vec<Recorded>> {
    let Recording {
        network,
        parameters,
        data,
        ..
    } = recording;
    let (groups, parts) = plan(recording);
    let keep = |value: usize| parts.iter().any(|part| part.value == value);
    let samples = network.batch().min(data.samples());
    let lens = parts.iter().map(|part| network.shape(part.value).len());
    let largest = (4 * samples * lens.max().unwrap_or(0)) as u64;
    check_memory(recording, network.forward_bytes(samples, &keep) + largest)?;
    let tensors = groups.iter().map(Recorded::matrix);
    let mut writer = Writer::create(path, tensors, &recording.notes)?;
    for range in network.batches(data.samples()) {
        go_on(range.start)?;
        let first = range.start as u64;
        let Batch { inputs, labels } = network.checked(data, range)?;
        let values = network.forward(parameters, inputs, labels.len(), &keep);
        for part in &parts {
            let shape = network.shape(part.value);
            let rows = rows(values.get(part.value), shape.channels, shape.places());
            check_finite(&groups[part.tensor], &rows)?;
            let first_row = part.first_row + first * shape.places() as u64;
            writer.write(part.tensor, first_row, &rows)?;
        }
    }
    go_on(data.samples())?;
    writer.finish()?;
    Ok(groups)
}

/// Checks that one batch, which takes `bytes`, fits the memory.
fn check_memory(recording: &Recording<'_>, bytes: u64) -> Result<()> {
    if bytes <= recording.memory {
        return Ok(());
    }
    let cause = format!("a batch of samples needs {}", format_bytes(bytes));
    Err(Error::new(
        Kind::Budget,
        "cannot record activations",
        format_bytes(recording.memory),
        cause,
    )
    .with_hint("give more --memory"))
}

fn check_finite(group: &Recorded, rows: &[f32]) -> Result<()> {
    if rows.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(Error::new(
        Kind::NonFinite,
        "cannot record activations",
        group.group.escape_debug(),
        "an activation is NaN or infinite",
    ))
}

/// Lists the groups in their order, and the values that belong to each.
fn plan(recording: &Recording<'_>) -> (Vec<Recorded>, Vec<RecordedPart>) {
    let Recording {
        symmetries,
        network,
        data,
        ..
    } = recording;
    let (mut groups, mut parts) = (Vec::new(), Vec::new());
    for (index, group) in symmetries.groups.iter().enumerate() {
        let of_group = network
            .units()
            .iter()
            .filter(|units| group_of(symmetries, units) == Some(index));
        let mut samples = 0;
        for units in of_group {
            parts.push(RecordedPart {
                tensor: groups.len(),
                value: units.value,
                first_row: samples,
            });
            samples += (data.samples() * network.shape(units.value).places()) as u64;
        }
        if samples > 0 {
            groups.push(Recorded {
                group: group.name.clone(),
                samples,
                units: group.units,
            });
        }
    }
    (groups, parts)
}

/// Reorders [samples, channels, places] to [samples · places, channels].
fn rows(values: &[f32], channels: usize, places: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(values.len());
    for sample in values.chunks((channels * places).max(1)) {
        (0..places).for_each(|place| rows.extend(sample.iter().skip(place).step_by(places)));
    }
    rows
}

impl Recorded {
    /// Returns the name and the shape of the group's matrix.
    fn matrix(&self) -> (String, [u64; 2]) {
        (self.group.clone(), [self.samples, self.units as u64])
    }
}
