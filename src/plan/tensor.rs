//! The plan of one output tensor: its sources and its treatment.

mod resolved;

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, Name, TensorEntry};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::kernel::{SelectScratch, pair_count};
use crate::method::Method;
use crate::method::elementwise::{Elementwise, SweepKind, total_bytes, worker_bytes};
use crate::recipe::{Mismatch, NanPolicy};
use crate::view::{Aligned, Place, Placed, Placement, Stack};

use super::assign::{Assignment, Span};
use super::coverage::Dropped;
use super::job::Job;
use super::layout::TensorSpec;
use super::vocabulary::Vocabulary;
use resolved::{Resolved, stored_name};

/// One input's part of a tensor.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    /// Index of the input.
    pub input: usize,
    /// Dtype of the elements as they are worked on.
    pub dtype: Dtype,
    /// Dtype of the elements in their own shape.
    pub held: Dtype,
    /// Name of the tensor there.
    pub name: Name,
    /// Its place in the files, and the views over it. A unit is an element, or a byte of a carried
    /// tensor.
    pub stack: Stack,
}

/// The treatment of a tensor.
#[derive(Debug, Clone)]
pub enum Action {
    /// Its elements are averaged.
    Merge(Arc<dyn Method>),
    /// Its bytes are taken from the source of this index; those of the others are compared and
    /// differences reported.
    Carry(usize),
}

/// One output tensor.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Its name in the output.
    pub name: Name,
    /// Its shape in the output.
    pub shape: Vec<u64>,
    /// Its dtype in the output.
    pub dtype: Dtype,
    /// Its sources.
    pub sources: Vec<SourcePlan>,
    /// Its treatment.
    pub action: Action,
    /// Elements to work on; for a carried tensor, bytes.
    pub elements: u64,
    /// The elements that one Gram matrix is taken over.
    pub span: Span,
    /// Elements of one segment, over which one Gram matrix is taken; all segments have this length.
    pub segment: u64,
    /// The index of the base among the sources.
    pub base: Option<usize>,
    /// True if it is checked before it is combined: a segment in which an input is not finite
    /// becomes the base's.
    pub scanned: bool,
}

impl TensorPlan {
    /// Resolves `assignment` against the inputs' headers; adds sources that it has to leave out to
    /// `dropped`.
    ///
    /// # Errors
    ///
    /// Fails when some sources hold floats and others do not, or the output would be bigger than
    /// can be counted.
    pub fn new(
        inputs: &[Checkpoint],
        assignment: Assignment,
        job: &Job,
        vocabulary: Option<Vocabulary>,
        dropped: &mut Vec<Dropped>,
    ) -> Result<Self> {
        let Resolved {
            name,
            sources,
            entries,
            carried,
            method,
            span,
            common,
        } = Resolved::of(inputs, assignment, job, dropped)?;
        let first = entries[carried];
        let mergeable = first.dtype.is_mergeable();
        let donor = &inputs[job.donor];
        let mut shape = common.clone();
        if let Some(vocabulary) = vocabulary.filter(|_| mergeable) {
            let stored = donor.tensors().get(name.as_str());
            vocabulary.fill_up(&name, &stored.unwrap_or(first).shape, &mut shape);
        }
        let (elements, dtype) = match mergeable {
            true => (count(&name, &shape)?, job.dtype.unwrap_or(entries[0].dtype)),
            false => (first.bytes.end - first.bytes.start, first.dtype),
        };
        let span = span.within(&shape);
        // Models that lack elements of the base do not differ from it there.
        let pads = mergeable && job.mismatch() == Mismatch::Pad;
        let fill = method.measured_from().filter(|_| pads);
        let shapes = Shapes {
            common: &common,
            output: &shape,
            fill,
        };
        Ok(Self {
            dtype,
            elements,
            segment: segment_of(&shape, elements, span),
            span,
            base: base_of(job, &sources),
            scanned: job.nan == NanPolicy::Base,
            action: if mergeable {
                Action::Merge(method)
            } else {
                Action::Carry(carried)
            },
            sources: placed(inputs, &entries, sources, job, shapes)?,
            shape,
            name: shared(donor, &name),
        })
    }

    /// Returns the tensor's description for the layout.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
        }
    }

    /// Returns the bytes of one unit of work of source `index`: an element, or a byte of a carried
    /// tensor.
    pub fn source_unit(&self, index: usize) -> u64 {
        match self.action {
            Action::Merge(_) => self.sources[index].dtype.bytes() as u64,
            Action::Carry(_) => 1,
        }
    }

    /// Returns the bytes of one unit of work of the output.
    pub fn output_unit(&self) -> u64 {
        match self.action {
            Action::Merge(_) => self.dtype.bytes() as u64,
            Action::Carry(_) => 1,
        }
    }

    /// Returns the bytes of one unit of work of all sources together.
    pub fn source_units(&self) -> u64 {
        (0..self.sources.len())
            .map(|index| self.source_unit(index))
            .sum()
    }

    /// Returns the bytes of memory for one unit of work of all sources together. Widened elements
    /// are there twice for a moment.
    pub fn window_units(&self) -> u64 {
        self.source_units()
            + self
                .sources
                .iter()
                .map(|source| source.stack.scratch_unit())
                .sum::<u64>()
    }

    /// Returns the bytes that the work on `len` units from `start` reads from the sources.
    pub fn read_bytes(&self, start: u64, len: u64) -> u64 {
        self.sources
            .iter()
            .map(|source| source.stack.read_bytes(start..start + len))
            .sum()
    }

    /// Returns the source from which the method measures the others.
    pub fn measured_from(&self) -> Option<usize> {
        match &self.action {
            Action::Merge(method) => method.measured_from(),
            Action::Carry(_) => None,
        }
    }

    /// Returns the bytes of memory that the views of the sources take besides the windows: all that
    /// are open, and the largest that is read.
    pub fn gather_bytes(&self) -> u64 {
        let stacks = self.sources.iter().map(|source| &source.stack);
        let opened: u64 = stacks.clone().map(Stack::bytes).sum();
        opened + stacks.map(Stack::scratch_bytes).max().unwrap_or(0)
    }

    /// Returns the files that the tensor is read from, source by source, as index of the input and
    /// index of the file there.
    pub fn files(&self) -> Vec<(usize, usize)> {
        self.sources
            .iter()
            .flat_map(|source| source.stack.places())
            .filter_map(|place| place.file())
            .collect()
    }

    /// Counts the vectors along the first axis.
    pub fn columns(&self) -> u64 {
        self.elements / self.shape.first().copied().unwrap_or(1).max(1)
    }

    /// Returns the bytes of the statistics and coefficients of all columns; 0 unless the tensor is
    /// merged by columns.
    pub fn column_bytes(&self) -> u64 {
        let (inputs, pairs) = (
            self.sources.len() as u64,
            pair_count(self.sources.len()) as u64,
        );
        // A sum and its rounding error for each pair, a coefficient for each input, two marks.
        let each = pairs * 16 + inputs * 8 + 2;
        if self.span == Span::FirstAxis {
            self.columns() * each
        } else {
            0
        }
    }

    /// Returns the description of a method that works element by element; `None` for another one,
    /// and for a carried tensor.
    pub fn elementwise(&self) -> Option<&Elementwise> {
        match &self.action {
            Action::Merge(method) => method.elementwise(),
            Action::Carry(_) => None,
        }
    }

    /// Returns the length of a row: of the last axis; a scalar is one row.
    pub fn row_len(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    /// Returns the elements that must be in memory together: a row for methods that look at rows,
    /// else one.
    pub fn whole_elements(&self) -> u64 {
        match self.elementwise() {
            Some(method) if method.is_by_row() => self.row_len(),
            _ => 1,
        }
    }

    /// Returns the sweeps over the elements before they are combined.
    pub fn sweeps(&self) -> Vec<SweepKind> {
        let sweeps = self.elementwise().map(Elementwise::sweeps);
        let sweeps = sweeps.filter(|sweeps| !sweeps.is_empty());
        sweeps.unwrap_or_else(|| vec![SweepKind::Scan])
    }

    /// Returns the bytes of the statistics and the rule of a group.
    pub fn group_bytes(&self) -> u64 {
        let counts = self
            .elementwise()
            .map_or(0, |method| total_bytes(method.streams().len()));
        self.column_bytes() + counts
    }

    /// Returns the bytes that a thread takes for selections.
    pub fn selection_bytes(&self) -> u64 {
        self.elementwise().map_or(0, |method| {
            let streams = method.streams().len();
            let counts = if streams > 0 {
                worker_bytes(streams)
            } else {
                0
            };
            let row = method.is_by_row().then(|| self.row_len());
            SelectScratch::bytes(row, method.models.len() as u64) + counts
        })
    }

    /// Returns the bytes that one reading of all sources takes.
    pub fn source_bytes(&self) -> u64 {
        self.read_bytes(0, self.elements)
    }

    /// Returns the bytes of the tensor in the output.
    pub fn output_bytes(&self) -> u64 {
        self.elements * self.output_unit()
    }
}

/// Returns the input's own copy of `name`, so that it is in memory once.
fn shared(input: &Checkpoint, name: &str) -> Name {
    input
        .tensors()
        .get_key_value(name)
        .map_or_else(|| name.into(), |(known, _)| known.clone())
}

/// The shapes that sources of different shapes are brought to.
struct Shapes<'a> {
    /// The common shape, to which all sources are padded or cropped.
    common: &'a [u64],
    /// The output's shape.
    output: &'a [u64],
    /// The source whose elements fill what others lack; zeros when `None`.
    fill: Option<usize>,
}

/// Returns the index of the base among the sources.
fn base_of(job: &Job, sources: &[(usize, String)]) -> Option<usize> {
    sources.iter().position(|(input, _)| *input == job.donor)
}

/// Plans the sources of a tensor, each with its views.
fn placed(
    inputs: &[Checkpoint],
    entries: &[&TensorEntry],
    sources: Vec<(usize, String)>,
    job: &Job,
    shapes: Shapes<'_>,
) -> Result<Vec<SourcePlan>> {
    let mut plans = Vec::with_capacity(sources.len());
    for (entry, (input, name)) in entries.iter().zip(sources) {
        plans.push(aligned(inputs, entry, input, &name, job)?);
    }
    let filler = shapes
        .fill
        .and_then(|fill| Some((fill, plans.get(fill)?.held)));
    for (at, (entry, plan)) in entries.iter().zip(&mut plans).enumerate() {
        let Some(placement) = Placement::new(&entry.shape, shapes.common, shapes.output) else {
            continue;
        };
        match filler.filter(|(fill, _)| *fill != at && placement.lacks_some()) {
            Some((source, other)) => {
                // The elements that fill it up must stay exact.
                plan.dtype = wider(plan.held, other);
                let place = Place::Window {
                    source,
                    dtype: plan.dtype,
                };
                plan.stack.push(
                    Placed::new(placement, plan.held, plan.dtype, true),
                    vec![place],
                );
            }
            None => plan.stack.push(
                Placed::new(placement, plan.held, plan.held, false),
                Vec::new(),
            ),
        }
    }
    Ok(plans)
}

/// Plans an input's tensor in its own shape, transformed if the input is aligned.
fn aligned(
    inputs: &[Checkpoint],
    entry: &TensorEntry,
    input: usize,
    name: &str,
    job: &Job,
) -> Result<SourcePlan> {
    // Carried tensors are counted in bytes.
    let unit = if entry.dtype.is_mergeable() {
        entry.dtype.bytes() as u64
    } else {
        1
    };
    let mut stack = Stack::new(Place::File {
        input,
        file: entry.file,
        offset: entry.bytes.start,
        unit,
    });
    let mut held = entry.dtype;
    if let Some(view) = job.alignment(input).map_or(Ok(None), |alignment| {
        Aligned::new(alignment, name, entry.dtype)
    })? {
        held = view.dtype();
        stack.push(view, Vec::new());
    }
    let name = shared(&inputs[input], &stored_name(job, input, name)?);
    Ok(SourcePlan {
        input,
        dtype: held,
        held,
        name,
        stack,
    })
}

/// Returns the dtype that holds the elements of both exactly.
fn wider(one: Dtype, other: Dtype) -> Dtype {
    match (one, other) {
        (one, other) if one == other => one,
        (Dtype::F64, _) | (_, Dtype::F64) => Dtype::F64,
        // Holds all narrower types exactly.
        _ => Dtype::F32,
    }
}

/// Counts the elements of a shape that no file vouches for.
fn count(name: &str, shape: &[u64]) -> Result<u64> {
    let count = shape
        .iter()
        .try_fold(1_u64, |count, size| count.checked_mul(*size));
    count.filter(|count| *count < 1 << 56).ok_or_else(|| {
        Error::new(
            Kind::Mismatch,
            "cannot merge tensor",
            name,
            format!("shape {shape:?} has more elements than can be counted"),
        )
    })
}

fn segment_of(shape: &[u64], elements: u64, span: Span) -> u64 {
    match (span, shape) {
        (Span::Row, [rows, _, ..]) if *rows > 0 => elements / rows,
        (Span::LastAxis, [.., last]) => *last,
        _ => elements,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_slice_along_the_first_axis_and_vectors_are_one_row() {
        assert_eq!(segment_of(&[4, 3, 2], 24, Span::Row), 6);
        assert_eq!(segment_of(&[4, 3, 2], 24, Span::LastAxis), 2);
        assert_eq!(segment_of(&[24], 24, Span::Row), 24);
        assert_eq!(segment_of(&[24], 24, Span::LastAxis), 24);
        assert_eq!(segment_of(&[], 1, Span::Row), 1);
        assert_eq!(segment_of(&[], 1, Span::LastAxis), 1);
        assert_eq!(segment_of(&[0, 5], 0, Span::Row), 0);
        assert_eq!(segment_of(&[4, 6], 24, Span::Tensor), 24);
    }
}
