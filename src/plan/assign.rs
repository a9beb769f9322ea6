//! The output tensors, and the input tensors that go into each.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::method::Method;
use crate::recipe::{Layers, Missing, Sources, TensorPlace, stacked_tensors};

use super::agree::Partial;
use super::choice::choose;
use super::coverage::Dropped;
use super::job::Job;
use super::missing::Inputs;

/// The elements that one Gram matrix is taken over.
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

impl Span {
    /// Returns the span of a tensor of this shape: a vector has one vector along its first axis,
    /// itself.
    pub(super) fn within(self, shape: &[u64]) -> Self {
        match self {
            Self::FirstAxis if shape.len() < 2 => Self::Tensor,
            span => span,
        }
    }
}

/// One output tensor and its sources.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// The tensor's name in the output.
    pub name: String,
    /// The tensors that go into it: index of the input, name there. The first gives shape and
    /// dtype.
    pub sources: Vec<(usize, String)>,
    /// The method that combines them when their elements can be averaged.
    pub method: Arc<dyn Method>,
    /// The elements that one Gram matrix is taken over.
    pub span: Span,
}

/// The assignment of all inputs' tensors.
#[derive(Debug, Default)]
pub struct Assigned {
    /// The output tensors in the order in which they are written: the donor's in file order, then
    /// those that it lacks.
    pub assignments: Vec<Assignment>,
    /// Tensors that go into none of them although one was to be made of them.
    pub dropped: Vec<Dropped>,
    /// Tensors that are merged over fewer inputs than there are.
    pub partial: Vec<Partial>,
}

/// A tensor that the document asks for, before it is known which inputs have it.
struct Wanted {
    name: String,
    slice: usize,
    t: f64,
    /// For each input of the slice: index among all inputs, name there.
    sources: Vec<(usize, String)>,
}

/// Assigns the inputs' tensors to output tensors.
///
/// # Errors
///
/// Fails when inputs lack tensors and that is not allowed, layers do not fit, or a parameter has no
/// value.
pub fn assign(given: &Inputs<'_>) -> Result<Assigned> {
    let Inputs { job, inputs, ties } = *given;
    let wanted = match &job.document.sources {
        Sources::Models(_) => whole_models(given)?,
        Sources::Slices(_) => stacked(given)?,
    };
    let (mut missing, mut dropped, mut partial) = (Vec::new(), ties.dropped.clone(), Vec::new());
    let mut assignments = Vec::with_capacity(wanted.len());
    let there = |(input, name): &(usize, String)| has_tensor(job, &inputs[*input], *input, name);
    for tensor in wanted {
        let absent = tensor.sources.iter().find(|source| !there(source)).cloned();
        match (absent, job.missing()) {
            (Some((input, name)), Missing::Error) => missing.push((input, name)),
            (Some(_), Missing::Base) => {
                assignments.extend(from_base(job, &tensor, &there, &mut dropped)?)
            }
            _ => {
                partial.extend(lacking_some(&tensor, &there));
                assignments.push(common(job, &tensor, &there)?);
            }
        }
    }
    given.refuse(&missing)?;
    if assignments.is_empty() {
        return Err(Error::new(
            Kind::Mismatch,
            "nothing to merge",
            "inputs",
            "no tensor is left to be written",
        ));
    }
    share_methods(&mut assignments);
    Ok(Assigned {
        assignments,
        dropped,
        partial,
    })
}

/// True if input number `input` stores a tensor, or folding its norms makes it.
fn has_tensor(job: &Job, checkpoint: &Checkpoint, input: usize, name: &str) -> bool {
    checkpoint.tensors().contains_key(name) || job.untied_head(input) == Some(name)
}

/// Returns the inputs that lack a tensor, if there are any.
fn lacking_some(tensor: &Wanted, there: &impl Fn(&(usize, String)) -> bool) -> Option<Partial> {
    let lacking = tensor.sources.iter().filter(|source| !there(source));
    let lacking: Vec<usize> = lacking.map(|source| source.0).collect();
    (!lacking.is_empty()).then(|| Partial {
        name: tensor.name.clone(),
        lacking,
    })
}

/// Makes tensors with equal parameters share one method; its debug form shows all parameters.
fn share_methods(assignments: &mut [Assignment]) {
    let mut known: HashMap<String, Arc<dyn Method>> = HashMap::new();
    for assignment in assignments {
        let own = Arc::clone(&assignment.method);
        assignment.method = Arc::clone(known.entry(format!("{own:?}")).or_insert(own));
    }
}

/// Lists every tensor of whole models.
///
/// # Errors
///
/// Fails when models share almost no tensor and would be put side by side.
fn whole_models(given: &Inputs<'_>) -> Result<Vec<Wanted>> {
    let models = given.job.document.models();
    let members: Vec<usize> = given
        .job
        .document
        .inputs(0)
        .iter()
        .filter_map(|input| models.iter().position(|model| *model == input.model))
        .collect();
    if given.job.missing() != Missing::Error {
        given.refuse_strangers(&members)?;
    }
    let mut names = Vec::new();
    let mut seen = HashSet::new();
    let is_donor = |member: &&usize| **member == given.job.donor;
    let donor_first = members
        .iter()
        .filter(is_donor)
        .chain(members.iter().filter(|member| !is_donor(member)));
    for &member in donor_first {
        names.extend(given.names(member).filter(|name| seen.insert(*name)));
    }
    let layers = Layers::find(names.iter().copied());
    let wanted = names.iter().map(|&name| Wanted {
        name: name.to_owned(),
        slice: 0,
        t: layers.t(name),
        sources: members
            .iter()
            .map(|&member| (member, given.stored(member, name)))
            .collect(),
    });
    Ok(wanted.collect())
}

fn stacked(given: &Inputs<'_>) -> Result<Vec<Wanted>> {
    let names: Vec<Vec<&str>> = (0..given.inputs.len())
        .map(|input| given.names(input).collect())
        .collect();
    let wanted = stacked_tensors(&given.job.document, &names)?
        .into_iter()
        .map(|tensor| Wanted {
            name: tensor.name,
            slice: tensor.slice,
            t: tensor.t,
            sources: tensor
                .sources
                .iter()
                .map(|source| (source.model, given.stored(source.model, &source.name)))
                .collect(),
        });
    Ok(wanted.collect())
}

/// Assigns a tensor that is merged over the inputs that have it.
fn common(
    job: &Job,
    tensor: &Wanted,
    there: &impl Fn(&(usize, String)) -> bool,
) -> Result<Assignment> {
    let members: Vec<usize> = (0..tensor.sources.len())
        .filter(|&i| there(&tensor.sources[i]))
        .collect();
    let place = TensorPlace {
        name: &tensor.name,
        slice: tensor.slice,
        t: tensor.t,
    };
    let (method, span) = choose(&job.document, &place, &members)?;
    Ok(Assignment {
        name: tensor.name.clone(),
        sources: members
            .iter()
            .map(|&member| tensor.sources[member].clone())
            .collect(),
        method,
        span,
    })
}

/// Assigns the donor's tensor unchanged; `None` when the donor lacks it.
fn from_base(
    job: &Job,
    tensor: &Wanted,
    there: &impl Fn(&(usize, String)) -> bool,
    dropped: &mut Vec<Dropped>,
) -> Result<Option<Assignment>> {
    let base = tensor
        .sources
        .iter()
        .find(|source| source.0 == job.donor && there(source));
    let reason = if base.is_some() {
        "a model lacks it, so it is the base's"
    } else {
        "the base lacks it"
    };
    let others = tensor
        .sources
        .iter()
        .filter(|source| there(source) && source.0 != job.donor);
    dropped.extend(others.map(|(input, name)| Dropped {
        input: *input,
        name: name.clone(),
        reason: reason.to_owned(),
        is_tied: false,
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
