//! The symmetries of one model: its groups, and the groups that act on each axis of each tensor.

use std::collections::HashMap;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::Serialize;

use super::fold::{Fold, Folding};
use super::spec::{Allowed, Pairs, Spec, builtin};
use crate::checkpoint::Checkpoint;
use crate::error::{Context, Kind, Result};

/// A group of units, with one copy for each unit of its enclosing group if it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The name, unique in the model.
    pub name: String,
    /// The key in the spec, shared by the groups of one kind in all layers.
    pub key: String,
    /// The index of the enclosing group; each of its units has a separate element of this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<usize>,
    /// The number of elements: one, or one for each unit of the enclosing group.
    pub copies: usize,
    /// The units that one element acts on.
    pub units: usize,
    /// The changes that keep the function.
    pub allows: Vec<Allowed>,
    /// The layout of pairs, for groups of pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Pairs>,
    /// True for the units of the residual stream.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub residual: bool,
}

impl Group {
    /// True if the group allows `what`.
    pub fn may(&self, what: Allowed) -> bool {
        self.allows.contains(&what)
    }

    /// Counts the pairs of one element, if units come in pairs.
    pub fn pair_count(&self) -> usize {
        self.units / 2
    }

    /// Counts the signs of one element: one per unit, or one per pair.
    pub fn sign_count(&self) -> usize {
        if self.pairs.is_some() {
            self.pair_count()
        } else {
            self.units
        }
    }

    /// Returns the pair of a unit, and true if the unit is the first in it; `None` without pairs.
    pub fn place_in_pairs(&self, unit: usize) -> Option<(usize, bool)> {
        let half = self.pair_count();
        self.pairs.map(|pairs| match pairs {
            Pairs::Half => (unit % half.max(1), unit < half),
            Pairs::Adjacent => (unit / 2, unit.is_multiple_of(2)),
        })
    }

    /// Returns the other unit of a unit's pair.
    pub fn partner(&self, unit: usize) -> Option<usize> {
        let half = self.pair_count();
        self.pairs.map(|pairs| match pairs {
            Pairs::Half if unit < half => unit + half,
            Pairs::Half => unit - half,
            Pairs::Adjacent => unit ^ 1,
        })
    }
}

/// The groups that act on an axis or on a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Node {
    /// Nothing acts on this number of elements.
    Fixed(u64),
    /// A group.
    Group {
        /// The index in [`Symmetries::groups`].
        group: usize,
        /// True if signs and rotations act too; false for the order only.
        signed: bool,
    },
    /// Blocks: the first factor orders the blocks, the others act inside each.
    Product(Vec<Self>),
    /// Slices, one after the other.
    Sum(Vec<Self>),
}

/// A number in a tensor's name that is itself an axis, such as an expert's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NameAxis {
    /// The group that reorders the names.
    pub group: usize,
    /// The number in this tensor's name.
    pub position: u64,
    /// The name before the number.
    pub before: String,
    /// The name after the number.
    pub after: String,
}

impl TensorSymmetry {
    /// True if some group acts on the tensor or orders it among others.
    pub fn is_acted_on(&self) -> bool {
        self.index.is_some() || !self.axes.iter().all(Node::is_fixed)
    }

    /// Lets nothing act on the tensor.
    pub(super) fn fix_axes(&mut self) {
        self.axes = self.shape.iter().map(|size| Node::Fixed(*size)).collect();
    }
}

impl NameAxis {
    /// Builds the name with another number.
    pub fn name_of(&self, position: u64) -> String {
        format!("{}{position}{}", self.before, self.after)
    }
}

/// The groups that act on a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorSymmetry {
    /// The shape.
    pub shape: Vec<u64>,
    /// The axis in the tensor's name, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<NameAxis>,
    /// The groups that act on each axis.
    pub axes: Vec<Node>,
}

/// A spec resolved against one model. Every size was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Symmetries {
    /// The spec's name.
    pub spec: String,
    /// The groups; an enclosing group comes before the groups in it.
    pub groups: Vec<Group>,
    /// All tensors of the model, in the model's order.
    pub tensors: IndexMap<String, TensorSymmetry>,
    /// The plan for folding norm weights, or the reason against it.
    #[serde(skip)]
    pub folding: Folding,
    /// The changes to the tensors, if these are the symmetries of the folded model.
    #[serde(skip)]
    pub fold: Option<Arc<Fold>>,
}

impl Symmetries {
    /// Resolves `spec` on `model`. By default the built-in spec is chosen by the model's config, or
    /// by its tensors if it has none.
    ///
    /// # Errors
    ///
    /// When no built-in spec is for this model, or the spec does not fit the model.
    pub fn of(model: &Checkpoint, spec: Option<&Spec>) -> Result<Self> {
        let config = model.config()?;
        let shapes: IndexMap<String, Vec<u64>> = model
            .tensors()
            .iter()
            .map(|(name, entry)| (name.to_string(), entry.shape.clone()))
            .collect();
        let chosen;
        let spec = match spec {
            Some(spec) => spec,
            None => {
                chosen = builtin::choose(
                    &shapes,
                    config.as_ref(),
                    &model.root().display().to_string(),
                )?;
                &chosen
            }
        };
        spec.resolve(&shapes, config.as_ref())
    }

    /// Finds the index of the group of this name.
    pub fn group(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|group| group.name == name)
    }

    /// Lists the tensors and axes on which `group` acts, each axis once.
    pub fn acting(&self, group: usize) -> impl Iterator<Item = (&str, usize)> {
        self.tensors.iter().flat_map(move |(name, tensor)| {
            let axes = tensor
                .axes
                .iter()
                .enumerate()
                .filter(move |(_, node)| node.names(group));
            axes.map(move |(axis, _)| (name.as_str(), axis))
        })
    }

    /// Estimates the memory that this takes, in bytes.
    pub fn bytes(&self) -> u64 {
        let tensors = self
            .tensors
            .iter()
            .map(|(name, tensor)| 256 + name.len() + 64 * tensor.axes.len());
        let groups = self
            .groups
            .iter()
            .map(|group| 192 + group.name.len() + group.key.len());
        (tensors.sum::<usize>() + groups.sum::<usize>()) as u64
            + self.fold.as_ref().map_or(0, |fold| fold.bytes())
    }

    /// Returns the group that holds `group` and that no other holds; it may be `group` itself.
    pub fn outermost(&self, mut group: usize) -> usize {
        while let Some(outer) = self.groups[group].within {
            group = outer;
        }
        group
    }

    /// Formats an axis as a spec writes it.
    pub fn shown(&self, node: &Node) -> String {
        match node {
            Node::Fixed(_) => "fixed".into(),
            Node::Group {
                group,
                signed: true,
            } => self.groups[*group].name.clone(),
            Node::Group {
                group,
                signed: false,
            } => format!("order({})", self.groups[*group].name),
            Node::Sum(parts) if parts.is_empty() => "nothing".into(),
            Node::Sum(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.shown(part)).collect();
                parts.join(" + ")
            }
            Node::Product(parts) => {
                let parts: Vec<_> = parts.iter().map(|part| self.shown_factor(part)).collect();
                parts.join(" * ")
            }
        }
    }

    fn shown_factor(&self, part: &Node) -> String {
        match part {
            Node::Sum(inner) if inner.len() > 1 => format!("({})", self.shown(part)),
            _ => self.shown(part),
        }
    }

    /// Checks that inner groups are used inside their outer groups, that pairs are whole, that
    /// numbered names are complete, and that every group acts on at least two axes of matrices.
    pub(super) fn check(&self) -> Result<()> {
        self.groups.iter().try_for_each(check_sizes)?;
        let mut places = vec![0_usize; self.groups.len()];
        for (name, tensor) in &self.tensors {
            self.check_tensor(tensor, &mut places)
                .map_err(|cause| misfit(name.escape_debug()).error(cause))?;
        }
        for (group, places) in self.groups.iter().zip(places) {
            if places < 2 {
                return misfit(group.name.escape_debug())
                    .fail("acts on less than two axes of matrices, so that nothing undoes it");
            }
        }
        self.check_name_axes()
    }

    /// Checks the axes of a tensor, and counts for each group the axes of matrices on which it acts.
    fn check_tensor(&self, tensor: &TensorSymmetry, places: &mut Vec<usize>) -> Result<(), String> {
        let mut outer = Vec::new();
        if let Some(index) = &tensor.index {
            places[index.group] += 1;
            outer.push(index.group);
        }
        let mut turned = 0;
        for (node, len) in tensor.axes.iter().zip(&tensor.shape) {
            if !node.is_fixed() && u32::try_from(*len).is_err() {
                return Err(format!("an axis of {len} is too long to be reordered"));
            }
            // A vector follows a matrix's output, so it undoes nothing and does not count.
            let counted = tensor.shape.len() > 1;
            self.check_node(node, &mut outer, counted.then_some(&mut *places))?;
            turned += usize::from(self.turns(node));
        }
        if turned > 1 {
            return Err("rotations act on two of its axes".to_owned());
        }
        Ok(())
    }

    fn check_node(
        &self,
        node: &Node,
        outer: &mut Vec<usize>,
        mut places: Option<&mut Vec<usize>>,
    ) -> Result<(), String> {
        match node {
            Node::Fixed(_) => Ok(()),
            Node::Group { group, .. } => {
                if let Some(places) = places {
                    places[*group] += 1;
                }
                match self.groups[*group].within {
                    Some(within) if !outer.contains(&within) => Err(format!(
                        "`{}` stands outside of `{}`, within which it lies",
                        self.groups[*group].name, self.groups[within].name
                    )),
                    _ => Ok(()),
                }
            }
            Node::Sum(parts) => parts
                .iter()
                .try_for_each(|part| self.check_node(part, outer, places.as_deref_mut())),
            Node::Product(parts) => {
                let depth = outer.len();
                for part in parts {
                    self.check_node(part, outer, places.as_deref_mut())?;
                    if let Node::Group { group, .. } = part {
                        outer.push(*group);
                    }
                }
                outer.truncate(depth);
                Ok(())
            }
        }
    }

    /// True if a rotation may act on a part of the axis.
    fn turns(&self, node: &Node) -> bool {
        match node {
            Node::Fixed(_) => false,
            Node::Group { group, signed } => *signed && self.groups[*group].may(Allowed::Rotation),
            Node::Product(parts) | Node::Sum(parts) => parts.iter().any(|part| self.turns(part)),
        }
    }

    fn check_name_axes(&self) -> Result<()> {
        let mut families: HashMap<(&str, &str), (usize, &TensorSymmetry)> = HashMap::new();
        for tensor in self.tensors.values() {
            let Some(index) = &tensor.index else { continue };
            let group = &self.groups[index.group];
            let family = families
                .entry((&index.before, &index.after))
                .or_insert((0, tensor));
            family.0 += 1;
            let subject = index.name_of(index.position);
            let context = misfit(&subject);
            if index.position >= group.units as u64 {
                return context.fail(format!(
                    "`{}` has {} units, numbered from 0",
                    group.name, group.units
                ));
            }
            if tensor.shape != family.1.shape {
                return context.fail(format!(
                    "has shape {:?}, others of its kind {:?}",
                    tensor.shape, family.1.shape
                ));
            }
        }
        for ((before, after), (count, tensor)) in families {
            let units = tensor
                .index
                .as_ref()
                .map_or(0, |index| self.groups[index.group].units);
            if count != units {
                let cause = format!("wanted {units} tensors of this kind, got {count}");
                return misfit(format!("{before}…{after}")).fail(cause);
            }
        }
        Ok(())
    }
}

impl Node {
    /// True if the group acts on a part of this.
    pub fn names(&self, wanted: usize) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Group { group, .. } => *group == wanted,
            Self::Product(parts) | Self::Sum(parts) => parts.iter().any(|part| part.names(wanted)),
        }
    }

    /// Counts the elements that this covers.
    pub fn len(&self, groups: &[Group]) -> usize {
        match self {
            Self::Fixed(size) => usize::try_from(*size).unwrap_or(usize::MAX),
            Self::Group { group, .. } => groups[*group].units,
            Self::Product(parts) => parts.iter().map(|part| part.len(groups)).product(),
            Self::Sum(parts) => parts.iter().map(|part| part.len(groups)).sum(),
        }
    }

    /// True if nothing acts on any part.
    pub fn is_fixed(&self) -> bool {
        match self {
            Self::Fixed(_) => true,
            Self::Group { .. } => false,
            Self::Product(parts) | Self::Sum(parts) => parts.iter().all(Self::is_fixed),
        }
    }
}

/// The failures of a spec on the part `subject` of a model.
fn misfit<S: std::fmt::Display>(subject: S) -> Context<S> {
    Context::new(Kind::Mismatch, "spec does not fit the model", subject)
}

/// Checks that pairs are whole and that the units can be counted.
fn check_sizes(group: &Group) -> Result<()> {
    let context = misfit(group.name.escape_debug());
    if group.pairs.is_some() && group.units % 2 == 1 {
        return context.fail(format!("units come in pairs, got {}", group.units));
    }
    let all = group.copies.checked_mul(group.units);
    if all.is_none_or(|all| all > 1 << 28) {
        return context.fail(format!(
            "{} copies of {} units are too many",
            group.copies, group.units
        ));
    }
    Ok(())
}
