//! Turns a recipe and the inputs' headers into a plan, a pure value: every output tensor, its
//! sources, its dtype, its shard and final offset, the blocks in which it is worked on, and the
//! shares of the memory. No tensor data is read here.
//!
//! [`Plan::new`] takes these steps in order: open the inputs' headers, assign input tensors to
//! output tensors, each with a method and its parameters ([`assign`]), resolve each tensor
//! ([`tensor`]) to one [`shape`], lay out the output ([`layout`]), share out the memory
//! ([`memory`]), and record the identity by which a later run recognises the same work
//! ([`identity`]). The order in which blocks are read is in [`schedule`].

pub mod agree;
mod alike;
mod architecture;
pub mod assign;
mod choice;
mod components;
mod counters;
mod coverage;
pub mod identity;
mod job;
pub mod layout;
mod made;
pub mod memory;
pub mod metadata;
mod missing;
mod model_span;
mod names;
mod parts;
pub mod rename;
pub mod schedule;
pub mod shape;
mod staging;
pub mod tensor;
mod ties;
mod vocabulary;

use std::sync::Arc;

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::recipe::{MethodName, Recipe};
use crate::symmetry::Alignment;

use agree::{Agreed, Partial};
use assign::{Assigned, Span};
pub use components::Component;
use components::Components;
pub use coverage::Dropped;
pub use job::{AlignmentFile, DEFAULT_SHARD_BYTES, Job};
use layout::{Layout, TensorSpec};
use memory::{DeviceWish, Memory, Wish};
use missing::Inputs;
use tensor::{Action, TensorPlan};
pub use ties::{TEXT_CONFIGS, Ties};
use vocabulary::Vocabulary;

/// The most inputs that one merge takes.
pub const MOST_INPUTS: usize = 100;

/// Everything that a merge will do, decided before a byte of data is read.
pub struct Plan {
    /// The inputs, headers only.
    pub inputs: Vec<Checkpoint>,
    /// The output tensors in the order of [`Layout`]'s tensors.
    pub tensors: Vec<TensorPlan>,
    /// The folders of the output with weights of their own, whose tensors come last.
    pub components: Vec<Component>,
    /// The shards, and the place of each tensor in them.
    pub layout: Arc<Layout>,
    /// The shares of the memory.
    pub memory: Memory,
    /// Input tensors that go into none of the output's, each with the reason.
    pub dropped: Vec<Dropped>,
    /// Warnings to show before the merge.
    pub warnings: Vec<String>,
    /// Tensors that have several names.
    pub ties: Ties,
    /// Changes that the written config needs from the donor's.
    pub agreed: Agreed,
    /// Tensors that are merged over fewer inputs than there are.
    pub partial: Vec<Partial>,
    /// The job that this plans.
    pub job: Job,
    /// The identity of the work, which must be equal in a resumed run.
    pub identity: Value,
}

impl Plan {
    /// Plans the merge that a recipe describes, with the memory and threads that the recipe names,
    /// or else the machine's.
    ///
    /// # Errors
    ///
    /// As [`Job::of`] and [`Plan::new`].
    ///
    /// # Examples
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = models()?;
    /// # let text = recipe(folder.path());
    /// let recipe = thalweg::Recipe::parse(&text, "recipe.yml")?;
    /// let plan = thalweg::Plan::of(&recipe)?;
    /// for (tensor, slot) in plan.tensors.iter().zip(plan.layout.tensors()) {
    ///     println!("{}: {} bytes in {}", tensor.name, slot.len, plan.layout.shards()[slot.shard].name);
    /// }
    /// # assert_eq!(plan.tensors.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let job = Job::of(recipe)?;
        Self::new(&job, &Wish::of(&job.document.own))
    }

    /// Plans `job` under the memory and threads of `wish`.
    ///
    /// # Errors
    ///
    /// Fails when an input cannot be opened, the inputs do not fit each other, or the memory is too
    /// small.
    ///
    /// # Examples
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = models()?;
    /// # let text = recipe(folder.path());
    /// use thalweg::{Job, Kind, Plan, Recipe, Wish};
    ///
    /// let job = Job::of(&Recipe::parse(&text, "recipe.yml")?)?;
    /// let wish = Wish { memory: 256 << 20, threads: 2, block_bytes: None };
    /// let plan = Plan::new(&job, &wish)?;
    /// assert_eq!(plan.source_bytes(), 2 * plan.output_bytes());
    /// let Err(error) = Plan::new(&job, &Wish { memory: 1 << 20, ..wish }) else { panic!("one megabyte is too little") };
    /// assert_eq!(error.kind(), Kind::Budget);
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(job: &Job, wish: &Wish) -> Result<Self> {
        Self::with_device(job, wish, None)
    }

    /// Plans like [`Plan::new`], with memory set aside for a device that computes.
    ///
    /// # Errors
    ///
    /// As there, and [`Kind::Device`](crate::error::Kind::Device) when the device's memory is too
    /// small.
    pub fn with_device(job: &Job, wish: &Wish, device: Option<&DeviceWish>) -> Result<Self> {
        let (mut inputs, mut components) = open(job, wish)?;
        let ties = Ties::of(job, &inputs)?;
        let given = Inputs {
            job,
            inputs: &inputs,
            ties: &ties,
        };
        let Resolved {
            mut tensors,
            mut dropped,
            partial,
            agreed,
            mut warnings,
        } = Resolved::of(&given, &components)?;
        components.attach(&mut inputs)?;
        tensors.extend(components.tensors(job, &inputs, &mut dropped)?);
        model_span::check(job, &tensors)?;
        let (layout, notes) = laid_out(job, &inputs, &tensors, &components.list)?;
        let aligned: u64 = job.alignments.iter().flatten().map(Alignment::bytes).sum();
        let held = layout.metadata_bytes() + aligned;
        let memory = Memory::share_out(wish, device, &inputs, &tensors, job.zstd, held)?;
        let identity = identity::of(job, &inputs, &layout, &ties);
        let dropped = coverage::dropped(job, &inputs, &tensors, dropped);
        warnings.extend(warnings_of(job, &inputs, &tensors, &dropped)?);
        warnings.extend(components.warnings);
        warnings.extend(notes);
        let warnings = warnings.iter();
        let warnings = warnings
            .map(|warning| job.door.words(warning).into_owned())
            .collect();
        Ok(Self {
            inputs,
            tensors,
            components: components.list,
            layout: Arc::new(layout),
            memory,
            dropped,
            warnings,
            ties,
            agreed,
            partial,
            job: job.clone(),
            identity,
        })
    }

    /// Tells if one Gram matrix is taken over all merged tensors.
    pub fn is_over_model(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.span == Span::Model)
    }

    /// Returns notes about the merge that need no action.
    pub fn notes(&self) -> Vec<String> {
        let alone = self.inputs.len() == 1
            && !self.job.rewritten
            && self.job.document.method != MethodName::Passthrough;
        let alone = alone.then_some(
            "there is one model only: its weights are copied, in the dtype that was asked for",
        );
        let said = coverage::notes(&self.inputs, &self.dropped);
        let tied = self
            .ties
            .notes
            .iter()
            .chain(&said)
            .map(|note| self.job.door.words(note).into_owned());
        alone.map(str::to_owned).into_iter().chain(tied).collect()
    }

    /// Returns the rows of the written input embeddings, for the config, if they are not as many as
    /// the donor's.
    pub fn vocab_rows(&self) -> Option<u64> {
        vocabulary::changed_rows(&self.inputs[self.job.donor], &self.tensors)
    }

    /// Returns the dtype of most merged bytes of the model, its components not counted.
    pub fn main_dtype(&self) -> Option<Dtype> {
        let tensors = self.tensors.iter();
        main_dtype(tensors.filter(|tensor| {
            let mut components = self.components.iter();
            !components.any(|component| component.holds(&tensor.name))
        }))
    }

    /// Returns the dtype of most merged bytes of a component.
    pub fn dtype_of(&self, component: &Component) -> Option<Dtype> {
        main_dtype(
            self.tensors
                .iter()
                .filter(|tensor| component.holds(&tensor.name)),
        )
    }

    /// Returns the bytes that one full reading of all sources takes.
    pub fn source_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::source_bytes).sum()
    }

    /// Returns the bytes of tensor data that are written.
    pub fn output_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::output_bytes).sum()
    }
}

/// The model's own tensors, resolved against the inputs' headers.
struct Resolved {
    tensors: Vec<TensorPlan>,
    /// Input tensors that were left out so far.
    dropped: Vec<Dropped>,
    partial: Vec<Partial>,
    agreed: Agreed,
    warnings: Vec<String>,
}

impl Resolved {
    fn of(given: &Inputs<'_>, components: &Components) -> Result<Self> {
        let Inputs { job, inputs, .. } = *given;
        // A pipeline has components only.
        let is_pipeline =
            !components.list.is_empty() && inputs.iter().all(|input| input.tensors().is_empty());
        let Assigned {
            assignments,
            mut dropped,
            partial,
        } = match is_pipeline {
            true => Assigned::default(),
            false => assign::assign(given)
                .map_err(|error| architecture::name_architectures_first(error, inputs))?,
        };
        let agreed = Agreed::of(given, &assignments, &partial)?;
        let mut warnings = job.warnings.clone();
        warnings.extend(agree::warnings(given, &partial));
        shape::refuse_mismatches(job, inputs, &assignments)
            .map_err(|error| architecture::name_architectures_first(error, inputs))?;
        let vocabulary = Vocabulary::of(&inputs[job.donor], job.document.pad_to_multiple_of)?;
        let tensors = assignments
            .into_iter()
            .map(|assignment| TensorPlan::new(inputs, assignment, job, vocabulary, &mut dropped))
            .collect::<Result<_>>()?;
        Ok(Self {
            tensors,
            dropped,
            partial,
            agreed,
            warnings,
        })
    }
}

/// Lays out the output; returns warnings about the metadata of its shards too.
fn laid_out(
    job: &Job,
    inputs: &[Checkpoint],
    tensors: &[TensorPlan],
    components: &[Component],
) -> Result<(Layout, Vec<String>)> {
    let specs: Vec<TensorSpec> = tensors.iter().map(TensorPlan::spec).collect();
    let (parts, mut warnings) = parts::of(job, inputs, tensors, components);
    let wanted = parts.clone();
    let mut layout = Layout::of_parts(&specs, job.shard_bytes, parts)?;
    if let Some(level) = job.zstd {
        layout = layout.compressed(level);
    }
    warnings.extend(parts::lost(&wanted, &layout));
    Ok((layout, warnings))
}

/// Opens the headers of the inputs and of their components.
fn open(job: &Job, wish: &Wish) -> Result<(Vec<Checkpoint>, Components)> {
    let inputs = job.open_inputs(Some(wish))?;
    let left = wish.left_for_headers(&inputs.iter().collect::<Vec<_>>());
    let options = job.open_options(Some(left));
    job.is_folded()?;
    let components = Components::find(job, &inputs, &options)?;
    Ok((inputs, components))
}

/// Warns of tensors that are left out, brought to one shape or of a dtype that nothing states, and
/// of models that are unlike.
fn warnings_of(
    job: &Job,
    inputs: &[Checkpoint],
    tensors: &[TensorPlan],
    dropped: &[Dropped],
) -> Result<Vec<String>> {
    let mut warnings = coverage::warnings(inputs, dropped);
    warnings.extend(shape::warnings(job, inputs, tensors));
    warnings.extend(unstated_dtype(tensors));
    warnings.extend(alike::check(job, inputs, tensors)?);
    Ok(warnings)
}

fn main_dtype<'a>(tensors: impl Iterator<Item = &'a TensorPlan> + Clone) -> Option<Dtype> {
    let merged = tensors.filter(|tensor| matches!(tensor.action, Action::Merge(_)));
    let sized = Dtype::MERGEABLE.into_iter().map(|dtype| {
        let of_it = merged.clone().filter(|tensor| tensor.dtype == dtype);
        (of_it.map(TensorPlan::output_bytes).sum::<u64>(), dtype)
    });
    let most = sized.filter(|(bytes, _)| *bytes > 0);
    most.max_by_key(|(bytes, _)| *bytes).map(|(_, dtype)| dtype)
}

/// Returns a warning about a dtype that the config cannot name.
fn unstated_dtype(tensors: &[TensorPlan]) -> Option<String> {
    let dtype = main_dtype(tensors.iter()).filter(|dtype| !dtype.is_torch_default())?;
    let name = dtype.torch_name()?;
    Some(format!(
        "the weights are {name}, which torch cannot compute in by default: config.json says bfloat16, which holds them \
         exactly; where a loader leaves them as they are, convert the model by .to(torch.bfloat16)"
    ))
}
