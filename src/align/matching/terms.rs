//! Tensors as strided blocks: coordinates that are the units of a group, and coordinates over which
//! units are compared.

use std::ops::Range;

use super::panel::Block;
use crate::symmetry::{Allowed, Group};
use crate::symmetry::{Node, Symmetries};

/// A number of coordinates of a tensor, at a constant distance in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub size: usize,
    pub stride: u64,
}

/// One factor of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Factor {
    pub extent: Extent,
    /// The group of the tree that acts on this factor, and true if its signs and rotations act too.
    pub acts: Option<(usize, bool)>,
}

/// A part of a tensor in which every axis is one product: an element lies at `start` plus a number
/// of strides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub tensor: String,
    pub start: u64,
    /// The factors, in memory order.
    pub factors: Vec<Factor>,
}

/// The tensor and offset in a model at which the elements of a term begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub tensor: String,
    pub start: u64,
}

/// A matrix inside a tensor: a row for each cell, a column for each coordinate over which cells are
/// compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    /// The place in the reference.
    pub reference: Place,
    /// The place in the model that is moved.
    pub moving: Place,
    /// The extents of the rows; the first of them is cut into tiles.
    pub rows: Vec<Extent>,
    /// The extents of the columns.
    pub features: Vec<Extent>,
    /// True if signs act on the rows.
    pub signed: bool,
}

/// A root, and the groups within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    pub root: usize,
    /// Groups directly within the root.
    pub inner: Vec<usize>,
}

impl Tree {
    pub fn of(symmetries: &Symmetries, root: usize) -> Self {
        let inner = |at: &usize| symmetries.groups[*at].within == Some(root);
        Self {
            root,
            inner: (0..symmetries.groups.len()).filter(inner).collect(),
        }
    }

    pub fn groups(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.root).chain(self.inner.iter().copied())
    }

    fn acts_on(&self, node: &Node) -> bool {
        self.groups().any(|group| node.names(group))
    }

    /// Returns the tensors on which the tree acts.
    pub fn tensors<'a>(&'a self, symmetries: &'a Symmetries) -> impl Iterator<Item = &'a str> {
        let acts = |tensor: &crate::symmetry::TensorSymmetry| {
            tensor
                .index
                .as_ref()
                .is_some_and(|index| index.group == self.root)
                || tensor.axes.iter().any(|axis| self.acts_on(axis))
        };
        symmetries
            .tensors
            .iter()
            .filter(move |(_, tensor)| acts(tensor))
            .map(|(name, _)| name.as_str())
    }

    /// True if the symmetries allow any move of the tree.
    pub fn is_free(&self, symmetries: &Symmetries, signs: bool) -> bool {
        let free = |group: &Group| {
            group.units > 0
                && (group.may(Allowed::Permutation) && group.units > 1
                    || signs && (group.may(Allowed::Sign) || group.may(Allowed::Rotation)))
        };
        self.groups().any(|group| free(&symmetries.groups[group]))
    }

    /// Counts the floating-point operations of the products of all cells with all cells, at most;
    /// for experts, of each with each.
    pub fn operations(&self, symmetries: &Symmetries, tensors: &[String]) -> u64 {
        let times = |part: &Part| {
            let named = symmetries.tensors[&part.tensor]
                .index
                .as_ref()
                .is_some_and(|index| index.group == self.root);
            if named {
                symmetries.groups[self.root].units as u64
            } else {
                1
            }
        };
        let of_part = |part: &Part| {
            let (rows, features): (Vec<&Factor>, Vec<&Factor>) = part
                .factors
                .iter()
                .partition(|factor| factor.acts.is_some());
            let count = |factors: &[&Factor]| {
                factors
                    .iter()
                    .map(|factor| factor.extent.size as u64)
                    .product::<u64>()
            };
            2 * count(&rows).pow(2) * count(&features) * times(part)
        };
        tensors
            .iter()
            .flat_map(|tensor| self.parts(symmetries, tensor))
            .map(|part| of_part(&part))
            .sum()
    }

    /// Splits a tensor into parts; sums are split where the tree acts on a summand.
    pub fn parts(&self, symmetries: &Symmetries, tensor: &str) -> Vec<Part> {
        let symmetry = &symmetries.tensors[tensor];
        let mut parts = vec![Part {
            tensor: tensor.to_owned(),
            start: 0,
            factors: Vec::new(),
        }];
        let mut below: u64 = symmetry.shape.iter().product();
        for (node, len) in symmetry.axes.iter().zip(&symmetry.shape) {
            below /= (*len).max(1);
            let paths = self.paths(node, &symmetries.groups);
            let joined = |part: &Part, path: &Path| {
                let factor = |factor: &Factor| {
                    let extent = Extent {
                        stride: factor.extent.stride * below,
                        ..factor.extent
                    };
                    Factor { extent, ..*factor }
                };
                let factors = part
                    .factors
                    .iter()
                    .copied()
                    .chain(path.factors.iter().map(factor))
                    .collect();
                Part {
                    tensor: part.tensor.clone(),
                    start: part.start + path.start * below,
                    factors,
                }
            };
            parts = parts
                .iter()
                .flat_map(|part| paths.iter().map(move |path| joined(part, path)))
                .collect();
        }
        parts.iter_mut().for_each(Part::merge);
        parts
    }

    /// Returns the products that `node` is a sum of, in units of its own elements.
    fn paths(&self, node: &Node, groups: &[Group]) -> Vec<Path> {
        let size = node.len(groups);
        let leaf = |acts| Path {
            start: 0,
            factors: vec![Factor {
                extent: Extent { size, stride: 1 },
                acts,
            }],
        };
        match node {
            _ if !self.acts_on(node) => vec![leaf(None)],
            Node::Fixed(_) => vec![leaf(None)],
            Node::Group { group, signed } => vec![leaf(Some((*group, *signed)))],
            Node::Sum(parts) => {
                let mut start = 0;
                let mut all = Vec::new();
                for part in parts {
                    all.extend(
                        self.paths(part, groups)
                            .into_iter()
                            .map(|path| path.moved(start)),
                    );
                    start += part.len(groups) as u64;
                }
                all
            }
            Node::Product(parts) => {
                let mut all = vec![Path {
                    start: 0,
                    factors: Vec::new(),
                }];
                for part in parts {
                    let len = part.len(groups) as u64;
                    let paths = self.paths(part, groups);
                    all = all
                        .iter()
                        .flat_map(|before| paths.iter().map(|path| before.holding(path, len)))
                        .collect();
                }
                all
            }
        }
    }
}

/// One product on an axis.
#[derive(Debug, Clone)]
struct Path {
    start: u64,
    factors: Vec<Factor>,
}

impl Path {
    fn moved(self, by: u64) -> Self {
        Self {
            start: self.start + by,
            ..self
        }
    }

    /// Nests `inner` in blocks of `len` elements.
    fn holding(&self, inner: &Self, len: u64) -> Self {
        let widened = |factor: &Factor| {
            let extent = Extent {
                stride: factor.extent.stride * len,
                ..factor.extent
            };
            Factor { extent, ..*factor }
        };
        let factors = self
            .factors
            .iter()
            .map(widened)
            .chain(inner.factors.iter().copied())
            .collect();
        Self {
            start: self.start * len + inner.start,
            factors,
        }
    }
}

impl Part {
    /// Merges neighbours on which nothing acts, and leaves out factors of one.
    fn merge(&mut self) {
        let mut merged: Vec<Factor> = Vec::with_capacity(self.factors.len());
        for factor in self.factors.drain(..) {
            match merged.last_mut() {
                _ if factor.extent.size == 1 && factor.acts.is_none() => {}
                Some(last)
                    if last.acts.is_none()
                        && factor.acts.is_none()
                        && last.extent.stride
                            == factor.extent.stride * factor.extent.size as u64 =>
                {
                    let size = last.extent.size * factor.extent.size;
                    last.extent = Extent {
                        size,
                        stride: factor.extent.stride,
                    };
                }
                _ => merged.push(factor),
            }
        }
        self.factors = merged;
    }

    /// Counts the factors on which `group` acts.
    pub fn times(&self, group: usize) -> usize {
        self.factors
            .iter()
            .filter(|factor| factor.acts.is_some_and(|(acts, _)| acts == group))
            .count()
    }
}

impl Term {
    /// Makes the term of `part` whose rows are the factors that `is_row` picks by their places.
    pub fn new(part: &Part, signed: bool, is_row: impl Fn(usize, &Factor) -> bool) -> Self {
        let place = Place {
            tensor: part.tensor.clone(),
            start: part.start,
        };
        let mut term = Self {
            reference: place.clone(),
            moving: place,
            rows: vec![],
            features: vec![],
            signed,
        };
        for (at, factor) in part.factors.iter().enumerate() {
            if is_row(at, factor) {
                &mut term.rows
            } else {
                &mut term.features
            }
            .push(factor.extent);
        }
        term
    }

    /// True if the file has all cells of a feature before the next feature.
    pub fn features_first(&self) -> bool {
        let first = |extents: &[Extent]| {
            extents
                .iter()
                .find(|extent| extent.size > 1)
                .map_or(0, |extent| extent.stride)
        };
        first(&self.features) > first(&self.rows)
    }

    /// True if its rows are all the places along a last axis of `width`, in their order, and each
    /// feature is one such row.
    pub fn is_whole_rows(&self, width: u64) -> bool {
        let mut count = 1;
        let behind = |extent: &Extent| {
            let follows = extent.size == 1 || extent.stride == count;
            count *= extent.size as u64;
            follows
        };
        self.features_first()
            && self.rows.iter().rev().all(behind)
            && count == width
            && self.moving.start.is_multiple_of(width)
            && self
                .features
                .iter()
                .all(|extent| extent.stride.is_multiple_of(width))
    }

    /// Returns a block of this term, `more` elements from its beginning in a model.
    pub fn block<'a>(
        &self,
        place: &'a Place,
        more: u64,
        rows: &'a [Extent],
        features: &'a [Extent],
    ) -> Block<'a> {
        let features_first = self.features_first();
        Block {
            tensor: &place.tensor,
            start: place.start + more,
            rows,
            features,
            features_first,
        }
    }

    /// Counts the cells of one unit of the first factor.
    pub fn cells(&self) -> usize {
        self.rows.iter().skip(1).map(|extent| extent.size).product()
    }

    /// Counts the features over which cells are compared.
    pub fn feature_count(&self) -> usize {
        self.features.iter().map(|extent| extent.size).product()
    }

    /// Returns the offset and extents of the rows of some units of the first factor.
    pub fn some_rows(&self, units: &Range<usize>) -> (u64, Vec<Extent>) {
        let mut rows = self.rows.clone();
        let Some(first) = rows.first_mut() else {
            return (0, rows);
        };
        first.size = units.len();
        (units.start as u64 * first.stride, rows)
    }

    /// Cuts the features into blocks of at most `most`, regardless of memory and threads: sums over
    /// features are cut at these blocks.
    pub fn blocks(&self, most: usize) -> Vec<(u64, Vec<Extent>)> {
        let mut inner = 1;
        let mut cut = self.features.len();
        while cut > 0 && inner * self.features[cut - 1].size <= most {
            cut -= 1;
            inner *= self.features[cut].size;
        }
        let whole = self.features[cut..].to_vec();
        let Some(last) = cut.checked_sub(1) else {
            return vec![(0, whole)];
        };
        let step = (most / inner).max(1);
        let mut starts = vec![0];
        for extent in &self.features[..last] {
            let along =
                |start: u64| (0..extent.size as u64).map(move |at| start + at * extent.stride);
            starts = starts.into_iter().flat_map(along).collect();
        }
        let Extent { size, stride } = self.features[last];
        let block = |start: u64, first: usize| {
            let cut = Extent {
                size: step.min(size - first),
                stride,
            };
            (
                start + first as u64 * stride,
                std::iter::once(cut).chain(whole.iter().copied()).collect(),
            )
        };
        starts
            .into_iter()
            .flat_map(|start| (0..size).step_by(step).map(move |first| (start, first)))
            .map(|(start, first)| block(start, first))
            .collect()
    }
}
