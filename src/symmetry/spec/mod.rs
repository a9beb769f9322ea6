//! Symmetry specs: data that names the groups of a family of models, and the groups that act on
//! each axis of each tensor.
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
//! An axis is a sum of slices, a slice is a product of blocks: `kv * queries * key + kv * key +
//! kv * value` acts on the rows of a fused projection. In a product the first factor orders the
//! blocks and the next acts inside each; a group `within` another has one element for every unit
//! of that other. `fixed` is a part on which nothing acts. `previous(g)`, `latest(g)`, `last(g)`
//! and `g[3]` name another instance than the tensor's own, counted along the last placeholder of
//! the group's name. A group with `chain: true` exists only where some tensor reads it as
//! `previous` or `last`, so the output of a chain of layers stays fixed.
//!
//! `fold` lists norm weights (RMSNorm only) that may be multiplied into the matrices that read the
//! normalised stream. Then any orthogonal map of the residual stream keeps the function:
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

/// A change to a group's units that keeps the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// Reordering the units.
    Permutation,
    /// Flipping signs; in a group of pairs, both units of a pair at once.
    Sign,
    /// Rotating each pair by an angle.
    Rotation,
    /// Any orthogonal map. Folding norm weights allows it on the residual stream; a spec may not
    /// state it.
    Orthogonal,
}

/// The layout of the pairs that rotary position embeddings rotate.
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
    /// The name in messages and files.
    pub name: String,
    /// The built-in spec that this one extends. Groups and sizes of the same key are replaced;
    /// tensor rules of this spec come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// The models that the spec is for.
    #[serde(default, rename = "match", skip_serializing_if = "Matching::is_empty")]
    pub matching: Matching,
    /// The possible values of `{prefix}` in tensor names; the one under which most tensors match is
    /// used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
    /// Numbers of units by name.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub sizes: IndexMap<String, Size>,
    /// The groups by key.
    #[serde(default)]
    pub groups: IndexMap<String, GroupRule>,
    /// The rules that assign groups to tensors.
    #[serde(default)]
    pub tensors: Vec<TensorRule>,
    /// Pairs of names for one shared tensor; both must have the same symmetries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tied: Vec<[String; 2]>,
    /// The norm weights that may be folded into the matrices that read the normalised stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fold: Option<FoldRule>,
}

/// The rule for folding norm weights into the matrices that read the normalised stream.
///
/// In a spec that extends another, the given fields replace those of the other; its norms and
/// embeddings come first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldRule {
    /// The reason why these models must not be folded, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub never: Option<String>,
    /// The number that the norms add to their weights before they multiply: 0, or 1 for Gemma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u8>,
    /// Tensors whose rows enter the residual stream unchanged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embeddings: Vec<String>,
    /// The head, which is made from the embeddings where the two are tied.
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
    /// The name of the head.
    pub name: String,
    /// The tensor that is used for a tied head.
    pub embeddings: String,
}

/// A norm and the matrices that read its output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormRule {
    /// The name of the norm's weight.
    pub norm: String,
    /// The matrices that take in the weight. Their names have at least the norm's placeholders;
    /// matrices that a model lacks are ignored.
    pub into: Vec<String>,
}

/// The models that a built-in spec is for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matching {
    /// Values of `model_type` in config.json.
    #[serde(default)]
    pub model_types: Vec<String>,
    /// Values of `architectures` in config.json, for configs without a model type.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// Tensors that identify a model without a config.
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
    /// A number.
    Number(u32),
    /// An expression over config.json and other sizes.
    Text(String),
}

/// A group, or one for each combination of the placeholders in its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupRule {
    /// The name, with placeholders; the key by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The number of units; by default it follows from the tensors' shapes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<Size>,
    /// The enclosing group; each of its units has a separate element of this group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
    /// The changes that keep the function.
    pub allows: Vec<Allowed>,
    /// The layout of pairs, for groups of pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    /// True if the group exists only where a later tensor reads it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub chain: bool,
    /// True for the units of the residual stream, which all blocks share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
}

/// The groups that act on the tensors of some names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRule {
    /// The names of the tensors.
    pub name: Names,
    /// The groups that act on each axis.
    pub axes: Axes,
    /// Placeholders that are themselves an axis, such as the number of an expert, and the group
    /// that acts on it.
    #[serde(default, skip_serializing_if = "IndexMap::is_empty")]
    pub index: IndexMap<String, String>,
    /// A tensor that must exist for the rule to apply.
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

/// The groups that act on a tensor's axes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Axes {
    /// `fixed`: nothing acts, whatever the rank.
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
