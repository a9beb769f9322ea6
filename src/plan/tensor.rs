//! One output tensor: what it is made of and how.

use std::sync::Arc;

use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::method::Method;

use super::assign::{Assignment, Span};
use super::job::Job;
use super::layout::TensorSpec;

/// Where one input's part of a tensor lies.
#[derive(Debug, Clone)]
pub struct SourcePlan {
    /// Index of the input.
    pub input: usize,
    /// Index of the file among the input's files.
    pub file: usize,
    /// Byte offset of the first element in that file.
    pub offset: u64,
    /// Type of the elements there.
    pub dtype: Dtype,
    /// Name of the tensor there.
    pub name: String,
}

/// What becomes of a tensor.
#[derive(Debug, Clone)]
pub enum Action {
    /// Its elements are averaged.
    Merge(Arc<dyn Method>),
    /// Its bytes are taken from the source of this index; those of the others are compared and differences reported.
    Carry(usize),
}

/// One output tensor.
#[derive(Debug, Clone)]
pub struct TensorPlan {
    /// Its name in the output.
    pub name: String,
    /// Its shape in the output.
    pub shape: Vec<u64>,
    /// Its dtype in the output.
    pub dtype: Dtype,
    /// What it is made of.
    pub sources: Vec<SourcePlan>,
    /// How.
    pub action: Action,
    /// Elements to work on; for a carried tensor, bytes.
    pub elements: u64,
    /// Over what a Gram matrix is taken.
    pub span: Span,
    /// Elements of one segment, the unit over which one Gram matrix is taken; all of them have this length.
    pub segment: u64,
}

impl TensorPlan {
    /// Resolves `assignment` against the inputs' headers.
    ///
    /// # Errors
    ///
    /// When the sources differ in shape, or some hold floats and others do not.
    pub fn new(inputs: &[Checkpoint], assignment: Assignment, job: &Job) -> Result<Self> {
        let entries = assignment
            .sources
            .iter()
            .map(|(input, name)| entry_of(inputs, *input, name).map(|entry| (*input, name, entry)))
            .collect::<Result<Vec<_>>>()?;
        let Some(&(_, _, first)) = entries.first() else {
            return Err(Error::new(Kind::Mismatch, "nothing to merge", &assignment.name, "no input has this tensor"));
        };
        for (input, name, entry) in &entries {
            fits(first, entry, name, &inputs[*input])?;
        }
        let mergeable = first.dtype.is_mergeable();
        let dtype = if mergeable { job.dtype.unwrap_or(first.dtype) } else { first.dtype };
        let elements = if mergeable { first.shape.iter().product() } else { first.bytes.end - first.bytes.start };
        let carried = assignment.sources.iter().position(|(input, _)| *input == job.donor).unwrap_or(0);
        Ok(Self {
            shape: first.shape.clone(),
            dtype,
            elements,
            segment: segment_of(&first.shape, elements, assignment.span),
            span: assignment.span,
            action: if mergeable { Action::Merge(assignment.method) } else { Action::Carry(carried) },
            sources: entries
                .iter()
                .map(|&(input, name, entry)| SourcePlan {
                    input,
                    file: entry.file,
                    offset: entry.bytes.start,
                    dtype: entry.dtype,
                    name: name.clone(),
                })
                .collect(),
            name: assignment.name,
        })
    }

    /// What the layout needs to know.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }

    /// Bytes of one unit of work of source `index`: an element, or a byte of a carried tensor.
    pub fn source_unit(&self, index: usize) -> u64 {
        match self.action {
            Action::Merge(_) => self.sources[index].dtype.bytes() as u64,
            Action::Carry(_) => 1,
        }
    }

    /// Bytes of one unit of work of the output.
    pub fn output_unit(&self) -> u64 {
        match self.action {
            Action::Merge(_) => self.dtype.bytes() as u64,
            Action::Carry(_) => 1,
        }
    }

    /// Bytes of one unit of work of all sources together.
    pub fn source_units(&self) -> u64 {
        (0..self.sources.len()).map(|index| self.source_unit(index)).sum()
    }

    /// Bytes that one reading of all sources takes.
    pub fn source_bytes(&self) -> u64 {
        self.elements * self.source_units()
    }

    /// Bytes of the tensor in the output.
    pub fn output_bytes(&self) -> u64 {
        self.elements * self.output_unit()
    }
}

fn entry_of<'a>(inputs: &'a [Checkpoint], input: usize, name: &str) -> Result<&'a TensorEntry> {
    let checkpoint = &inputs[input];
    checkpoint.tensors().get(name).ok_or_else(|| {
        Error::new(Kind::Mismatch, "tensor is missing", checkpoint.root().display(), format!("there is no `{name}`"))
    })
}

fn fits(first: &TensorEntry, entry: &TensorEntry, name: &str, input: &Checkpoint) -> Result<()> {
    let refuse = |cause: String| {
        let subject = format!("{}: `{}`", input.root().display(), name.escape_debug());
        Err(Error::new(Kind::Mismatch, "tensors do not fit each other", subject, cause))
    };
    if first.shape != entry.shape {
        return refuse(format!("wanted shape {:?} as in the first input, got {:?}", first.shape, entry.shape));
    }
    let both_float = first.dtype.is_mergeable() && entry.dtype.is_mergeable();
    if !both_float && first.dtype != entry.dtype {
        return refuse(format!("wanted dtype {} as in the first input, got {}", first.dtype, entry.dtype));
    }
    Ok(())
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
