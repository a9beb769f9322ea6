//! Norm weights folded into the matrices that read the norms' outputs.
//!
//! RMSNorm gives w ∘ x / rms(x). With w multiplied into the columns of every matrix that reads it,
//! the norm's own weight becomes one, and the norm commutes with every orthogonal map Q of the
//! residual stream: a matrix that writes to it becomes Q W, one that reads from it W diag(w) Qᵀ
//! (Ashkboos et al., "SliceGPT", ICLR 2024, section 3). A head that is tied to the embeddings takes
//! the last norm's weight and so becomes a separate tensor.
//!
//! A folded model computes the same function and has more symmetries: [`Symmetries::folded`]
//! returns them.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;

use super::spec::Allowed;
use super::symmetries::{Symmetries, TensorSymmetry};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::dtype::Dtype;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{Elements, Kernels};

/// The possibility of folding a model's norms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Folding {
    /// Folding is impossible, for this reason.
    Never(String),
    /// Folding is possible by this plan.
    Possible(FoldPlan),
}

/// The norm that each tensor takes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoldPlan {
    /// The group of the residual stream.
    pub residual: usize,
    /// The number that the norms add to their weights: 0 or 1.
    pub offset: u8,
    /// The weight of the norm whose output each tensor reads, by tensor name.
    pub readers: IndexMap<String, String>,
    /// The weights of all norms.
    pub norms: Vec<String>,
    /// The tied head, and the embeddings from which it is made.
    pub head: Option<(String, String)>,
}

/// The changes to the tensors of a folded model, with the weights of its norms.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fold {
    tensors: HashMap<String, Folded>,
    head: Option<(String, String)>,
}

/// NOTE: the numbers are finite, so equality is reflexive.
impl Eq for Fold {}

/// The change to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Folded {
    /// Every element becomes this number.
    Constant(f64),
    /// The elements are multiplied by these numbers along the residual axis.
    Scaled(Arc<Vec<f64>>),
}

impl Default for Folding {
    fn default() -> Self {
        Self::Never("nobody has said how".into())
    }
}

/// The advice about a model whose norms cannot be folded.
const NOT_FOLDED: &str =
    "only a residual stream that is left alone or reordered keeps this model's function";

impl Folded {
    /// Estimates the memory that the numbers take, in bytes.
    fn bytes(&self) -> usize {
        match self {
            Self::Constant(_) => 0,
            Self::Scaled(scale) => size_of::<f64>() * scale.len(),
        }
    }
}

impl Fold {
    /// Returns the change to a tensor; `None` when it does not change.
    pub fn get(&self, tensor: &str) -> Option<&Folded> {
        self.tensors.get(tensor)
    }

    /// Returns the stored tensor from which `tensor` is made, when its name differs.
    pub fn source(&self, tensor: &str) -> Option<&str> {
        self.head
            .as_ref()
            .filter(|(head, _)| head == tensor)
            .map(|(_, embeddings)| embeddings.as_str())
    }

    /// Returns the tensor that folding adds to the model, if any: a head that was tied.
    pub fn untied(&self) -> Option<&str> {
        self.head.as_ref().map(|(head, _)| head.as_str())
    }

    /// Estimates the memory that this takes, in bytes.
    pub fn bytes(&self) -> u64 {
        let tensors = self.tensors.iter();
        let bytes =
            tensors.map(|(name, folded)| size_of::<Folded>() + name.len() + 64 + folded.bytes());
        bytes.sum::<usize>() as u64
    }
}

impl Symmetries {
    /// Returns the symmetries of `model` with its norms folded: the residual stream allows every
    /// orthogonal map, and a tied head is a separate tensor.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] with the reason when folding is impossible; an error when a norm's weight
    /// cannot be read; [`Kind::NonFinite`] when the weight is not finite.
    pub fn folded(&self, model: &Checkpoint) -> Result<Self> {
        let context = Context::new(Kind::Mismatch, "cannot fold norms", model.root().display())
            .with_hint(NOT_FOLDED);
        let plan = match &self.folding {
            _ if self.fold.is_some() => return Ok(self.clone()),
            Folding::Never(cause) => return context.fail(cause),
            Folding::Possible(plan) => plan,
        };
        let mut folded = self.clone();
        let offset = f64::from(plan.offset);
        let mut fold = Fold {
            head: plan.head.clone(),
            ..Fold::default()
        };
        let mut scales = HashMap::new();
        for norm in &plan.norms {
            let mut scale = vector(model, norm)?;
            scale.iter_mut().for_each(|weight| *weight += offset);
            scales.insert(norm.as_str(), Arc::new(scale));
            fold.tensors
                .insert(norm.clone(), Folded::Constant(1.0 - offset));
            folded.tensors[norm.as_str()].fix_axes();
        }
        if let Some((head, embeddings)) = &plan.head {
            let made = self
                .untied(head, embeddings)
                .map_err(|cause| context.error(cause))?;
            folded.tensors.insert(head.clone(), made);
        }
        for (reader, norm) in &plan.readers {
            let scale = Arc::clone(&scales[norm.as_str()]);
            fold.tensors.insert(reader.clone(), Folded::Scaled(scale));
        }
        folded.groups[plan.residual]
            .allows
            .push(Allowed::Orthogonal);
        folded.fold = Some(Arc::new(fold));
        Ok(folded)
    }

    /// Returns the symmetry of a head of its own, which acts as the embeddings that it is tied to.
    fn untied(&self, head: &str, embeddings: &str) -> Result<TensorSymmetry, String> {
        let TensorSymmetry { shape, axes, .. } = &self.tensors[embeddings];
        let stored = self.tensors.get(head);
        if stored.is_some_and(|stored| stored.shape != *shape) {
            return Err(format!(
                "`{head}` is tied to `{embeddings}`, but has another shape"
            ));
        }
        Ok(TensorSymmetry {
            shape: shape.clone(),
            index: None,
            axes: axes.clone(),
        })
    }
}

/// Reads all elements of a model's vector as f64.
fn vector(model: &Checkpoint, name: &str) -> Result<Vec<f64>> {
    let subject = || format!("{}: `{}`", model.root().display(), name.escape_debug());
    let entry = model.tensors().get(name).ok_or_else(|| {
        Error::new(
            Kind::Mismatch,
            "cannot fold norms",
            subject(),
            "the model does not have this tensor",
        )
    })?;
    if !entry.dtype.is_mergeable() {
        let cause = format!("{} elements are no floats", entry.dtype);
        return Err(Error::new(
            Kind::Mismatch,
            "cannot fold norms",
            subject(),
            cause,
        ));
    }
    let window = model
        .open_file(entry.file, &SourceOptions::default())?
        .load(entry.bytes.clone())?;
    let elements = Elements {
        dtype: entry.dtype,
        bytes: &window,
    };
    let mut values = vec![0.0; elements.len()];
    Kernels::detect().convert(elements, Dtype::F64, bytemuck::cast_slice_mut(&mut values));
    window.intact()?;
    match values.iter().position(|value: &f64| !value.is_finite()) {
        Some(at) => {
            let cause = format!("element {at} is {}", values[at]);
            Err(Error::new(
                Kind::NonFinite,
                "cannot fold norms",
                subject(),
                cause,
            ))
        }
        None => Ok(values),
    }
}
