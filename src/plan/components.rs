//! Components: sub-folders with weights of their own, merged by the same recipe or carried
//! unchanged from the base.
//!
//! The output's tensors are named after their folder, `unet/conv_in.weight`, so that filters of a
//! recipe see it. A mean over the model includes its components. An alignment covers the model
//! alone; it does not reorder units that a component reads.

use std::collections::BTreeSet;

use indexmap::IndexSet;

use crate::checkpoint::{Checkpoint, Name, OpenOptions};
use crate::error::{Error, Kind, Result};
use crate::recipe::{Layers, Missing, Sources, TensorPlace};

use super::assign::{Assignment, Span};
use super::choice::choose;
use super::coverage::Dropped;
use super::job::Job;
use super::shape;
use super::tensor::{Action, SourcePlan, TensorPlan};
use crate::view::{Place, Stack};

/// The most names that a message lists before it only counts.
const LISTED: usize = 5;

/// A sub-folder of the output with weights of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Its name.
    pub folder: String,
    /// True if its tensors are the donor's bit for bit, false if they are merged.
    pub carried: bool,
}

impl Component {
    /// Tells if a tensor of the output belongs to it.
    pub fn holds(&self, tensor: &str) -> bool {
        tensor
            .strip_prefix(&self.folder)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The components of an output, and the folders of the inputs that were opened for them.
pub struct Components {
    /// The components, by name.
    pub list: Vec<Component>,
    /// Warnings about them.
    pub warnings: Vec<String>,
    /// For each of `list`, the inputs whose folder was opened, and its contents.
    opened: Vec<Vec<(usize, Checkpoint)>>,
}

impl Components {
    /// Finds the components of `inputs`. A component is merged if all inputs that take part have
    /// the folder, and the same tensors in it unless the model's own list names it. It is carried
    /// from the donor if some inputs lack it, and left out if the donor does.
    ///
    /// # Errors
    ///
    /// Fails when a listed component cannot be opened, or when layers of a pipeline are to be
    /// stacked.
    pub fn find(job: &Job, inputs: &[Checkpoint], options: &OpenOptions) -> Result<Self> {
        let mut found = Self {
            list: Vec::new(),
            warnings: Vec::new(),
            opened: Vec::new(),
        };
        let members = members(job);
        let folders = inputs
            .iter()
            .map(Checkpoint::component_folders)
            .collect::<Result<Vec<_>>>()?;
        let names: BTreeSet<&String> = members
            .iter()
            .flat_map(|member| &folders[*member])
            .collect();
        if job.weights_alone {
            found.warn_of_folders(job, inputs, &folders[job.donor]);
            return Ok(found);
        }
        for name in names {
            if !folders[job.donor].contains(name) {
                let has = members
                    .iter()
                    .find(|member| folders[**member].contains(name));
                let root = inputs[*has.unwrap_or(&job.donor)].root().display();
                found.warnings.push(format!(
                    "{root}: the weights in {name}/ are left out, the base has no such folder"
                ));
                continue;
            }
            found.add(
                job,
                inputs,
                &Wanted {
                    name,
                    members: &members,
                    folders: &folders,
                    options,
                },
            )?;
        }
        found.refuse_stacked_pipeline(job, inputs)?;
        Ok(found)
    }

    fn add(&mut self, job: &Job, inputs: &[Checkpoint], wanted: &Wanted<'_>) -> Result<()> {
        let Wanted {
            name,
            members,
            options,
            ..
        } = *wanted;
        let donor = &inputs[job.donor];
        let declared = donor.declares_component(name)?;
        let own = match donor.open_component(name, options) {
            Err(error) if !declared => {
                let left = format!(
                    "{}: the weights in {name}/ are left out: {error}",
                    donor.root().display()
                );
                self.warnings.push(left);
                return Ok(());
            }
            opened => opened?,
        };
        let mut reason = wanted.reason_to_carry(job, inputs);
        let mut opened = vec![(job.donor, own)];
        if reason.is_none() {
            for &member in members.iter().filter(|member| **member != job.donor) {
                opened.push((member, inputs[member].open_component(name, options)?));
            }
            let mut others = opened.iter();
            let other = others.find(|(_, other)| !same_names(&opened[0].1, other));
            // Tensors of a listed component may differ as those of the model may.
            if let Some((member, _)) = other.filter(|_| !declared) {
                reason = Some(format!(
                    "its tensors have other names in {}",
                    inputs[*member].root().display()
                ));
            }
        }
        if let Some(reason) = &reason {
            opened.truncate(1);
            self.warnings
                .push(format!("{name}/ is the base's, not merged: {reason}"));
        }
        opened.sort_by_key(|(member, _)| *member);
        self.opened.push(opened);
        self.list.push(Component {
            folder: name.to_owned(),
            carried: reason.is_some(),
        });
        Ok(())
    }

    fn warn_of_folders(&mut self, job: &Job, inputs: &[Checkpoint], folders: &[String]) {
        let root = inputs[job.donor].root().display();
        self.warnings.extend(folders.iter().map(|name| {
            format!("{root}: the weights in {name}/ are left out, a single file has no folders")
        }));
    }

    fn refuse_stacked_pipeline(&self, job: &Job, inputs: &[Checkpoint]) -> Result<()> {
        let donor = &inputs[job.donor];
        if !matches!(job.document.sources, Sources::Slices(_)) || !donor.tensors().is_empty() {
            return Ok(());
        }
        let cause = "it is a pipeline, and slices stack the layers of one model";
        Err(Error::new(
            Kind::Recipe,
            "cannot stack layers",
            donor.root().display(),
            cause,
        )
        .with_hint("name one of its folders as the model"))
    }

    /// Attaches the files and tensors of their components to the inputs.
    ///
    /// # Errors
    ///
    /// As [`Checkpoint::attach`].
    pub fn attach(&mut self, inputs: &mut [Checkpoint]) -> Result<()> {
        for (component, opened) in self.list.iter().zip(std::mem::take(&mut self.opened)) {
            for (input, checkpoint) in opened {
                inputs[input].attach(&component.folder, checkpoint)?;
            }
        }
        Ok(())
    }

    /// Plans the tensors of all components, which must be attached to `inputs`.
    ///
    /// # Errors
    ///
    /// Fails when inputs lack tensors and that is not allowed, shapes do not fit, or a parameter
    /// has no value.
    pub fn tensors(
        &self,
        job: &Job,
        inputs: &[Checkpoint],
        dropped: &mut Vec<Dropped>,
    ) -> Result<Vec<TensorPlan>> {
        let mut tensors = Vec::new();
        // The symmetries of an aligned model do not cover its components.
        let plain = Job {
            alignments: Vec::new(),
            ..job.clone()
        };
        for component in &self.list {
            if component.carried {
                tensors.extend(
                    names_in(component, &inputs[job.donor]).map(|name| carried(job, inputs, name)),
                );
                continue;
            }
            let assignments = assign(&plain, inputs, component, &mut tensors, dropped)?;
            shape::refuse_mismatches(&plain, inputs, &assignments)?;
            for assignment in assignments {
                tensors.push(TensorPlan::new(inputs, assignment, &plain, None, dropped)?);
            }
        }
        Ok(tensors)
    }
}

struct Wanted<'a> {
    name: &'a str,
    members: &'a [usize],
    folders: &'a [Vec<String>],
    options: &'a OpenOptions,
}

impl Wanted<'_> {
    /// Returns the reason why the component is the donor's whatever is in it; `None` when it may be
    /// merged.
    fn reason_to_carry(&self, job: &Job, inputs: &[Checkpoint]) -> Option<String> {
        if matches!(job.document.sources, Sources::Slices(_)) {
            return Some("layers are stacked in the model itself only".to_owned());
        }
        let mut members = self.members.iter();
        let lacking = members.find(|member| {
            self.folders[**member]
                .iter()
                .all(|folder| folder != self.name)
        })?;
        let root = inputs[*lacking].root().display();
        Some(format!("{root} has no such folder"))
    }
}

/// Returns the inputs that lend weights; others lend a tokenizer at most.
fn members(job: &Job) -> Vec<usize> {
    let models = job.document.models();
    let inputs = (0..job.document.slice_count()).flat_map(|slice| job.document.inputs(slice));
    let members: BTreeSet<usize> = inputs
        .filter_map(|input| models.iter().position(|model| *model == input.model))
        .collect();
    members.into_iter().collect()
}

fn same_names(one: &Checkpoint, other: &Checkpoint) -> bool {
    one.tensors().len() == other.tensors().len()
        && one
            .tensors()
            .keys()
            .all(|name| other.tensors().contains_key(name))
}

fn names_in<'a>(component: &'a Component, input: &'a Checkpoint) -> impl Iterator<Item = &'a str> {
    input
        .tensors()
        .keys()
        .map(|name| name.as_str())
        .filter(|name| component.holds(name))
}

/// Assigns the inputs' tensors to those of a merged component; adds tensors carried from the donor
/// to `tensors`.
fn assign(
    job: &Job,
    inputs: &[Checkpoint],
    component: &Component,
    tensors: &mut Vec<TensorPlan>,
    dropped: &mut Vec<Dropped>,
) -> Result<Vec<Assignment>> {
    let members = members_of_first(job);
    let names = all_names(job, inputs, component, &members);
    let layers = Layers::find(names.iter().copied());
    let (mut assignments, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        let there = where_stored(inputs, &members, name);
        let sources = there.iter().map(|at| members[*at]);
        let is_lacking = there.len() < members.len();
        match job.missing() {
            Missing::Error if is_lacking => {
                missing.push(name);
                continue;
            }
            Missing::Base if is_lacking => {
                if inputs[job.donor].tensors().contains_key(name) {
                    tensors.push(carried(job, inputs, name));
                }
                let others = sources.filter(|member| *member != job.donor);
                dropped.extend(others.map(|input| lacked_elsewhere(input, name)));
                continue;
            }
            Missing::Error | Missing::Base | Missing::Common => {}
        }
        let t = layers.t(name);
        let place = TensorPlace { name, slice: 0, t };
        let (method, span) = choose(&job.document, &place, &there)?;
        assignments.push(Assignment {
            name: name.to_owned(),
            sources: sources.map(|member| (member, name.to_owned())).collect(),
            method,
            span,
        });
    }
    refuse_missing(component, &missing)?;
    Ok(assignments)
}

/// Returns the members that store a tensor, as indexes into `members`.
fn where_stored(inputs: &[Checkpoint], members: &[usize], name: &str) -> Vec<usize> {
    let has = |at: &usize| inputs[members[*at]].tensors().contains_key(name);
    (0..members.len()).filter(has).collect()
}

/// Returns the names of all inputs' tensors in a component, the donor's first.
fn all_names<'a>(
    job: &Job,
    inputs: &'a [Checkpoint],
    component: &'a Component,
    members: &[usize],
) -> IndexSet<&'a str> {
    let others = members.iter().filter(|member| **member != job.donor);
    let donor_first = std::iter::once(&job.donor).chain(others);
    donor_first
        .flat_map(|member| names_in(component, &inputs[*member]))
        .collect()
}

/// A tensor that is left out because another model lacks it.
fn lacked_elsewhere(input: usize, name: &str) -> Dropped {
    Dropped {
        input,
        name: name.to_owned(),
        reason: "a model lacks it".to_owned(),
        is_tied: false,
    }
}

/// Returns the inputs of whole models in the document's order, which its parameters follow.
fn members_of_first(job: &Job) -> Vec<usize> {
    let models = job.document.models();
    let inputs = job.document.inputs(0);
    inputs
        .iter()
        .filter_map(|input| models.iter().position(|model| *model == input.model))
        .collect()
}

fn refuse_missing(component: &Component, missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = missing
        .iter()
        .take(LISTED)
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    let more = match missing.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let cause = format!("{}{more} are not in all models", shown.join(", "));
    Err(Error::new(Kind::Mismatch, "inputs differ in their tensors", format!("{}/", component.folder), cause)
        .with_hint("merge pipelines of one architecture, or allow for missing tensors (`missing: common` or `base`)"))
}

/// Plans a tensor that is the donor's, bit for bit.
fn carried(job: &Job, inputs: &[Checkpoint], name: &str) -> TensorPlan {
    let entry = &inputs[job.donor].tensors()[name];
    let source = SourcePlan {
        input: job.donor,
        dtype: entry.dtype,
        held: entry.dtype,
        name: Name::from(name),
        stack: Stack::new(Place::File {
            input: job.donor,
            file: entry.file,
            offset: entry.bytes.start,
            unit: 1,
        }),
    };
    let elements = entry.bytes.end - entry.bytes.start;
    TensorPlan {
        name: Name::from(name),
        shape: entry.shape.clone(),
        dtype: entry.dtype,
        sources: vec![source],
        action: Action::Carry(0),
        elements,
        span: Span::Tensor,
        segment: elements,
        base: Some(0),
        scanned: false,
    }
}
