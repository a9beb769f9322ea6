//! Symmetry specs: data that says which groups a family of models has and what acts on which axis
//! of which tensor.
//!
//! ```yaml
//! name: mine
//! sizes:                                  # numbers of units, from config.json or as they are
//!   kv: num_key_value_heads or num_attention_heads
//! groups:
//!   residual: { residual: true, allows: [permutation, sign] }       # size taken from the tensors
//!   kv:    { name: "layers.{l}.kv", units: kv, allows: [permutation] }
//!   value: { name: "layers.{l}.value", within: kv, units: 64, allows: [permutation, sign] }
//! tensors:                                # the first rule that fits a tensor's name and rank holds
//!   - { name: "layers.{l}.v_proj.weight", axes: [kv * value, residual] }
//!   - { name: "layers.{l}.norm.weight", axes: [order(residual)] }   # reordered, but no signs
//!   - { name: "layers.{l}.inv_freq", axes: fixed }
//! ```
//!
//! An axis is a sum of slices, a slice is a product of blocks: `kv * queries * key + kv * key + kv * value` is what acts
//! on the rows of a fused projection. In a product the first factor orders the blocks and the next acts inside each; a
//! group `within` another has an element of its own for every unit of that other. `fixed` is a part on which nothing
//! acts. `previous(g)`, `latest(g)`, `last(g)` and `g[3]` name another instance than the tensor's own, counted along the
//! last placeholder of the group's name; a group with `chain: true` exists only where some tensor reads it as `previous`
//! or `last`, so that the output of a chain of layers stays as it is.
//!
//! `fold` says which weights of norms (RMSNorm only) may be multiplied into the matrices that read
//! what they normalise; then any orthogonal map of the residual stream keeps the function:
//!
//! ```yaml
//! fold:
//!   embeddings: [embed.weight]
//!   head: { name: lm_head.weight, embeddings: embed.weight }   # a tied head becomes a tensor of its own
//!   norms:
//!     - { norm: norm.weight, into: [lm_head.weight] }
//!     - { norm: "layers.{l}.norm.weight", into: ["layers.{l}.v_proj.weight"] }
//! ```

pub mod builtin;
mod expression;
mod fold;
mod pattern;
mod read;
mod resolve;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use read::MAX_SPEC_BYTES;

/// What may be done with a group's units so that the function stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// Another order.
    Permutation,
    /// Other signs; for a group of pairs, of both units of a pair at once.
    Sign,
    /// Each pair turned by an angle.
    Rotation,
    /// Any orthogonal map: what follows for the residual stream when norm weights are folded; no
    /// spec says it.
    Orthogonal,
}

/// Which units make a pair that turns together under rotary position embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pairs {
    /// Unit i and unit i + n/2.
    Half,
    /// Units 2i and 2i + 1.
    Adjacent,
}

/// A family of models: its groups and tensors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What messages and files call it.
    pub name: String,
    /// The built-in spec that this one adds to: groups and sizes of the same key replace that
    /// one's, tensors come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// Which models it is for.
    #[serde(default, rename = "match", skip_serializing_if = "Matching::is_empty")]
    pub matching: Matching,
    /// What `{prefix}` in tensor names may stand for; the one under which most tensors are known is
    /// taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Numbers of units by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub sizes: IndexMap<String, Size>,
    /// The groups by key.
    #[serde(default)]
    pub groups: IndexMap<String, GroupRule>,
    /// What acts on which tensor.
    #[serde(default)]
    pub tensors: Vec<TensorRule>,
    /// Names of tensors that are one in the model; they must have the same symmetries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tied: Vec<[String; 2]>,
    /// Which weights of norms may go into what reads the normalised stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<FoldRule>,
}

/// How the weights of norms are folded into the matrices that read what they normalise.
///
/// A spec that extends another adds to its rule: what is given replaces that one's, norms and
/// embeddings come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldRule {
    /// Why this must not be done with these models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never: Option<String>,
    /// What the norms add to their weights before they multiply: 0, or 1 for Gemma's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u8>,
    /// Tensors whose rows are put into the residual stream as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<String>,
    /// The head, which is made of the embeddings where it is tied to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadRule>,
    /// The norms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub norms: Vec<NormRule>,
}

/// A head that may be tied to the embeddings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRule {
    /// Its name.
    pub name: String,
    /// The tensor that stands for it where it is tied.
    pub embeddings: String,
}

/// A norm and what reads its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormRule {
    /// Its weight.
    pub norm: String,
    /// The matrices that it goes into, whose placeholders are at least its own; those that a model
    /// lacks count for nothing.
    pub into: Vec<String>,
}

/// Which models a built-in spec is for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matching {
    /// Values of `model_type` in config.json.
    #[serde(default)]
    pub model_types: Vec<String>,
    /// Values in `architectures` in config.json, for configs without a model type.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Tensors that a model without a config has.
    #[serde(default)]
    pub tensors: Vec<String>,
}

impl Matching {
    fn is_empty(&self) -> bool {
        self.model_types.is_empty() && self.architectures.is_empty() && self.tensors.is_empty()
    }
}

/// A number of units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// As it is.
    Number(u32),
    /// An expression over config.json and other sizes.
    Text(String),
}

/// A group, or one for each combination of the placeholders in its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// Its name, with placeholders; the key when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many units; what the tensors' shapes leave when it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Size>,
    /// The group for each of whose units there is an element of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// What keeps the function.
    pub allows: Vec<Allowed>,
    /// Which units make a pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    /// Exists only where a later tensor reads it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chain: bool,
    /// These are the units of the residual stream, which all blocks share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
}

/// What acts on the tensors of a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRule {
    /// Their names.
    pub name: Names,
    /// What acts on each axis.
    pub axes: Axes,
    /// Placeholders that are themselves an axis, such as the number of an expert, and the group
    /// that acts on it.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub index: IndexMap<String, String>,
    /// Holds only when this tensor is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// One.
    One(String),
    /// Several, all with the same axes.
    Many(Vec<String>),
}

impl Names {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Many(names) => names,
        }
    }
}

/// What acts on the axes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Axes {
    /// `fixed`: nothing, whatever its rank.
    All(FixedWord),
    /// An expression for each axis.
    Each(Vec<String>),
}

/// The word `fixed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FixedWord {
    /// Nothing acts.
    #[serde(rename = "fixed")]
    Fixed,
}
