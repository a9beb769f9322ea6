//! The sources of an output tensor, looked up in the inputs' headers.

use std::borrow::Cow;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, TensorEntry};
use crate::error::{Context, Error, Kind, Result};
use crate::method::{Method, Passthrough};
use crate::recipe::Mismatch;
use crate::view::Aligned;

use super::super::assign::{Assignment, Span};
use super::super::counters;
use super::super::coverage::Dropped;
use super::super::job::Job;
use super::super::shape;
use super::base_of;

/// An assignment with its sources' headers and their common shape.
pub(super) struct Resolved<'a> {
    pub name: String,
    pub sources: Vec<(usize, String)>,
    /// The header of each source.
    pub entries: Vec<&'a TensorEntry>,
    /// The source that is taken where nothing is merged.
    pub carried: usize,
    pub method: Arc<dyn Method>,
    pub span: Span,
    pub common: Vec<u64>,
}

impl<'a> Resolved<'a> {
    /// Looks up the sources, and leaves out those that do not go with the others.
    pub(super) fn of(
        inputs: &'a [Checkpoint],
        assignment: Assignment,
        job: &Job,
        dropped: &mut Vec<Dropped>,
    ) -> Result<Self> {
        let Assignment {
            name,
            mut sources,
            method,
            span,
        } = assignment;
        let mut entries = entries_of(inputs, &sources, job)?;
        counters::leave_floats_out(job, &mut entries, &mut sources, dropped);
        let Some(&first) = entries.first() else {
            return Err(Error::new(
                Kind::Mismatch,
                "nothing to merge",
                name,
                "no input has this tensor",
            ));
        };
        for (entry, (input, name)) in entries.iter().zip(&sources) {
            fits(first, entry, name, &inputs[*input])?;
        }
        let base = base_of(job, &sources);
        let shapes: Vec<&[u64]> = entries.iter().map(|entry| entry.shape.as_slice()).collect();
        let policy = if first.dtype.is_mergeable() {
            job.mismatch()
        } else {
            Mismatch::Skip
        };
        let common = shape::common(&shapes, policy);
        let is_common = common.is_some();
        let mut resolved = Self {
            name,
            sources,
            entries,
            carried: base.unwrap_or(0),
            method,
            span,
            common: common.unwrap_or_default(),
        };
        if !is_common {
            resolved.keep_base_only(dropped);
        }
        Ok(resolved)
    }

    /// Takes the tensor from the base as it is, since the shapes have nothing in common.
    fn keep_base_only(&mut self, dropped: &mut Vec<Dropped>) {
        self.method = Arc::new(Passthrough::new(1.0).expect("one is finite"));
        self.span = Span::Tensor;
        let kept = std::mem::take(&mut self.carried);
        self.entries = vec![self.entries[kept]];
        self.common = self.entries[0].shape.clone();
        let after = self.sources.split_off(kept + 1);
        let others = after.into_iter().chain(self.sources.drain(..kept));
        let reason = "its shape differs from the base's, which is taken";
        dropped.extend(others.map(|(input, name)| Dropped {
            input,
            name,
            reason: reason.to_owned(),
            is_tied: false,
        }));
    }
}

fn entries_of<'a>(
    inputs: &'a [Checkpoint],
    sources: &[(usize, String)],
    job: &Job,
) -> Result<Vec<&'a TensorEntry>> {
    sources
        .iter()
        .map(|(input, name)| entry_of(inputs, *input, &stored_name(job, *input, name)?))
        .collect()
}

/// Returns the stored name of the tensor that an input gives as `name`; alignments may rename
/// experts.
pub(super) fn stored_name<'a>(job: &Job, input: usize, name: &'a str) -> Result<Cow<'a, str>> {
    job.alignment(input).map_or(Ok(name.into()), |alignment| {
        Aligned::source_name(alignment, name).map(Cow::from)
    })
}

fn entry_of<'a>(inputs: &'a [Checkpoint], input: usize, name: &str) -> Result<&'a TensorEntry> {
    let checkpoint = &inputs[input];
    checkpoint.tensors().get(name).ok_or_else(|| {
        Error::new(
            Kind::Mismatch,
            "tensor is missing",
            checkpoint.root().display(),
            format!("there is no `{name}`"),
        )
    })
}

fn fits(first: &TensorEntry, entry: &TensorEntry, name: &str, input: &Checkpoint) -> Result<()> {
    let subject = format!("{}: `{}`", input.root().display(), name.escape_debug());
    let context = Context::new(Kind::Mismatch, "tensors do not fit each other", subject);
    let both_float = first.dtype.is_mergeable() && entry.dtype.is_mergeable();
    if !both_float && first.dtype != entry.dtype {
        return context.fail(format!(
            "wanted dtype {} as in the first input, got {}",
            first.dtype, entry.dtype
        ));
    }
    Ok(())
}
