//! Which output tensors there are and which tensors of which inputs go into each.

use std::collections::HashSet;
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::method::Method;
use crate::recipe::{Layers, Missing, Sources, TensorPlace, stacked_tensors};

use super::choice::choose;
use super::coverage::Dropped;
use super::job::Job;

/// How many names an error lists before it only counts.
const LISTED: usize = 5;

/// Over what one Gram matrix is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// The whole tensor.
    Tensor,
    /// Each slice along the first axis; vectors and scalars are one row.
    Row,
    /// Each vector along the last axis.
    LastAxis,
    /// Each vector along the first axis: the columns of a matrix.
    FirstAxis,
    /// All tensors of this span together.
    Model,
}

/// One output tensor and what it is made of.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The tensor's name in the output.
    pub name: String,
    /// The tensors that go into it: index of the input, name there. The first gives shape and dtype.
    pub sources: Vec<(usize, String)>,
    /// How they are combined when their elements can be averaged.
    pub method: Arc<dyn Method>,
    /// Over what a Gram matrix is taken.
    pub span: Span,
}

/// A tensor that the document asks for, before it is known which inputs have it.
struct Wanted {
    name: String,
    slice: usize,
    t: f64,
    /// For each input of the slice: index among all inputs, name there.
    sources: Vec<(usize, String)>,
}

/// The output tensors, in the order in which they are written: the donor's file order, what it lacks last; and the tensors
/// that go into none of them although an output tensor was asked of them.
///
/// # Errors
///
/// When inputs lack tensors and that is not allowed, layers do not fit, or a parameter has no value.
pub fn assign(job: &Job, inputs: &[Checkpoint]) -> Result<(Vec<Assignment>, Vec<Dropped>)> {
    let wanted = match &job.document.sources {
        Sources::Models(_) => whole_models(job, inputs),
        Sources::Slices(_) => stacked(job, inputs)?,
    };
    let (mut missing, mut dropped) = (Vec::new(), Vec::new());
    let mut assignments = Vec::with_capacity(wanted.len());
    for tensor in wanted {
        let there = |(input, name): &(usize, String)| {
            inputs[*input].tensors().contains_key(name) || untied(job, *input) == Some(name.as_str())
        };
        let absent = tensor.sources.iter().find(|source| !there(source)).cloned();
        match (absent, job.missing()) {
            (Some((input, name)), Missing::Error) => missing.push((input, name)),
            (Some(_), Missing::Base) => assignments.extend(from_base(job, &tensor, &there, &mut dropped)?),
            _ => assignments.push(common(job, &tensor, &there)?),
        }
    }
    refuse_missing(inputs, &missing)?;
    if assignments.is_empty() {
        return Err(Error::new(Kind::Mismatch, "nothing to merge", "inputs", "no tensor is left to be written"));
    }
    Ok((assignments, dropped))
}

/// Every tensor of whole models.
fn whole_models(job: &Job, inputs: &[Checkpoint]) -> Vec<Wanted> {
    let models = job.document.models();
    let members: Vec<usize> = job
        .document
        .inputs(0)
        .iter()
        .filter_map(|input| models.iter().position(|model| *model == input.model))
        .collect();
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    let donor_first = members.iter().filter(|&&m| m == job.donor).chain(members.iter().filter(|&&m| m != job.donor));
    for &member in donor_first {
        let own = inputs[member].tensors().keys().map(String::as_str).chain(untied(job, member));
        names.extend(own.filter(|name| seen.insert(*name)));
    }
    let layers = Layers::find(names.iter().copied());
    let wanted = names.iter().map(|&name| Wanted {
        name: name.to_owned(),
        slice: 0,
        t: layers.t(name),
        sources: members.iter().map(|&member| (member, name.to_owned())).collect(),
    });
    wanted.collect()
}

/// The head that an aligned input has besides the tensors of its files.
fn untied(job: &Job, input: usize) -> Option<&str> {
    job.alignment(input)?.symmetries.fold.as_ref()?.untied()
}

fn stacked(job: &Job, inputs: &[Checkpoint]) -> Result<Vec<Wanted>> {
    let names: Vec<Vec<&str>> =
        inputs.iter().map(|input| input.tensors().keys().map(String::as_str).collect()).collect();
    let wanted = stacked_tensors(&job.document, &names)?.into_iter().map(|tensor| Wanted {
        name: tensor.name,
        slice: tensor.slice,
        t: tensor.t,
        sources: tensor.sources.into_iter().map(|source| (source.model, source.name)).collect(),
    });
    Ok(wanted.collect())
}

/// The tensor merged over the inputs that have it.
fn common(job: &Job, tensor: &Wanted, there: &impl Fn(&(usize, String)) -> bool) -> Result<Assignment> {
    let members: Vec<usize> = (0..tensor.sources.len()).filter(|&i| there(&tensor.sources[i])).collect();
    let place = TensorPlace { name: &tensor.name, slice: tensor.slice, t: tensor.t };
    let (method, span) = choose(&job.document, &place, &members)?;
    Ok(Assignment {
        name: tensor.name.clone(),
        sources: members.iter().map(|&member| tensor.sources[member].clone()).collect(),
        method,
        span,
    })
}

/// The tensor as the donor has it; nothing when the donor lacks it.
fn from_base(
    job: &Job,
    tensor: &Wanted,
    there: &impl Fn(&(usize, String)) -> bool,
    dropped: &mut Vec<Dropped>,
) -> Result<Option<Assignment>> {
    let base = tensor.sources.iter().find(|source| source.0 == job.donor && there(source));
    let reason = if base.is_some() { "a model lacks it, so it is the base's" } else { "the base lacks it" };
    let others = tensor.sources.iter().filter(|source| there(source) && source.0 != job.donor);
    dropped.extend(others.map(|(input, name)| Dropped {
        input: *input,
        name: name.clone(),
        reason: reason.to_owned(),
    }));
    let Some(source) = base else {
        return Ok(None);
    };
    Ok(Some(Assignment {
        name: tensor.name.clone(),
        sources: vec![source.clone()],
        method: Arc::new(crate::method::Passthrough::new(1.0)?),
        span: Span::Tensor,
    }))
}

fn refuse_missing(inputs: &[Checkpoint], missing: &[(usize, String)]) -> Result<()> {
    let Some((input, _)) = missing.first() else {
        return Ok(());
    };
    let names: Vec<String> = missing
        .iter()
        .filter(|(other, _)| other == input)
        .map(|(_, name)| format!("`{}`", name.escape_debug()))
        .collect();
    let more = names.len().saturating_sub(LISTED);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    let cause = format!("{}{tail} not there, though other inputs have what to merge it with", {
        names.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ")
    });
    let hint = "merge models of one architecture (a tied lm_head is stored by all or by none), or say `missing: common` \
                to merge such tensors over the models that have them, `missing: base` to take them from the base";
    Err(Error::new(Kind::Mismatch, "inputs differ in their tensors", inputs[*input].root().display(), cause)
        .with_hint(hint))
}
