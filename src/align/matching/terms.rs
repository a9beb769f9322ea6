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

impl Extent {
    /// Returns the offset of each coordinate.
    fn places(self) -> impl Iterator<Item = u64> {
        (0..self.size as u64).map(move |at| at * self.stride)
    }
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
pub(super) struct TensorPart {
    pub tensor: String,
    pub start: u64,
    /// The factors, in memory order.
    pub factors: Vec<Factor>,
}

/// The tensor and offset in a model at which the elements of a term begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TermPlace {
    pub tensor: String,
    pub start: u64,
}

/// A matrix inside a tensor: a row for each cell, a column for each coordinate over which cells are
/// compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Term {
    /// The place in the reference.
    pub reference: TermPlace,
    /// The place in the model that is moved.
    pub moving: TermPlace,
    /// The extents of the rows; the first of them is cut into tiles.
    pub rows: Vec<Extent>,
    /// The extents of the columns.
    pub features: Vec<Extent>,
    /// True if signs act on the rows.
    pub signed: bool,
}

/// A term with its weight in the objective.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct WeightedTerm {
    pub term: Term,
    pub weight: f64,
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
        let tensors = symmetries.tensors.iter();
        tensors
            .filter(|(_, tensor)| {
                let index = tensor.index.as_ref();
                index.is_some_and(|index| index.group == self.root)
                    || tensor.axes.iter().any(|axis| self.acts_on(axis))
            })
            .map(|(name, _)| name.as_str())
    }

    /// True if the symmetries allow any move of the tree.
    pub fn is_free(&self, symmetries: &Symmetries, signs: bool) -> bool {
        self.groups().any(|group| {
            let group = &symmetries.groups[group];
            let is_ordered = group.may(Allowed::Permutation) && group.units > 1;
            let is_signed = signs && (group.may(Allowed::Sign) || group.may(Allowed::Rotation));
            group.units > 0 && (is_ordered || is_signed)
        })
    }

    /// Counts the floating-point operations of the products of all cells with all cells, at most;
    /// for experts, of each with each.
    pub fn operations(&self, symmetries: &Symmetries, tensors: &[String]) -> u64 {
        let counts = tensors.iter().map(|tensor| {
            let index = symmetries.tensors[tensor].index.as_ref();
            // A tensor that the root names is compared with each of its namesakes.
            let times = match index.is_some_and(|index| index.group == self.root) {
                true => symmetries.groups[self.root].units as u64,
                false => 1,
            };
            let parts = self.parts(symmetries, tensor);
            parts.iter().map(TensorPart::operations).sum::<u64>() * times
        });
        counts.sum()
    }

    /// Splits a tensor into parts; sums are split where the tree acts on a summand.
    pub fn parts(&self, symmetries: &Symmetries, tensor: &str) -> Vec<TensorPart> {
        let symmetry = &symmetries.tensors[tensor];
        let mut parts = vec![TensorPart {
            tensor: tensor.to_owned(),
            start: 0,
            factors: Vec::new(),
        }];
        let mut below: u64 = symmetry.shape.iter().product();
        for (node, len) in symmetry.axes.iter().zip(&symmetry.shape) {
            below /= (*len).max(1);
            let paths = self.paths(node, &symmetries.groups);
            parts = parts
                .iter()
                .flat_map(|part| paths.iter().map(move |path| part.joined(path, below)))
                .collect();
        }
        parts.iter_mut().for_each(TensorPart::merge);
        parts
    }

    /// Returns the products that `node` is a sum of, in units of its own elements.
    fn paths(&self, node: &Node, groups: &[Group]) -> Vec<Path> {
        let size = node.len(groups);
        match node {
            _ if !self.acts_on(node) => vec![Path::leaf(size, None)],
            Node::Fixed(_) => vec![Path::leaf(size, None)],
            Node::Group { group, signed } => vec![Path::leaf(size, Some((*group, *signed)))],
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
    /// The product of one factor.
    fn leaf(size: usize, acts: Option<(usize, bool)>) -> Self {
        let extent = Extent { size, stride: 1 };
        Self {
            start: 0,
            factors: vec![Factor { extent, acts }],
        }
    }

    fn moved(self, by: u64) -> Self {
        Self {
            start: self.start + by,
            ..self
        }
    }

    /// Nests `inner` in blocks of `len` elements.
    fn holding(&self, inner: &Self, len: u64) -> Self {
        let outer = self.factors.iter().map(|factor| factor.spread(len));
        Self {
            start: self.start * len + inner.start,
            factors: outer.chain(inner.factors.iter().copied()).collect(),
        }
    }
}

impl Factor {
    /// Returns the factor with its coordinates `by` times as far apart.
    fn spread(&self, by: u64) -> Self {
        let extent = Extent {
            stride: self.extent.stride * by,
            ..self.extent
        };
        Self { extent, ..*self }
    }
}

impl TensorPart {
    /// Returns the part with one axis more, of which `below` elements lie behind each coordinate.
    fn joined(&self, path: &Path, below: u64) -> Self {
        let more = path.factors.iter().map(|factor| factor.spread(below));
        Self {
            tensor: self.tensor.clone(),
            start: self.start + path.start * below,
            factors: self.factors.iter().copied().chain(more).collect(),
        }
    }

    /// Counts the floating-point operations of the products of all cells with all cells.
    fn operations(&self) -> u64 {
        let (mut rows, mut features) = (1, 1);
        for factor in &self.factors {
            let count = if factor.acts.is_some() {
                &mut rows
            } else {
                &mut features
            };
            *count *= factor.extent.size as u64;
        }
        2 * u64::pow(rows, 2) * features
    }

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
    pub fn new(part: &TensorPart, signed: bool, is_row: impl Fn(usize, &Factor) -> bool) -> Self {
        let place = TermPlace {
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
        first_stride(&self.features) > first_stride(&self.rows)
    }

    /// True if its rows are all the places along a last axis of `width`, in their order, and each
    /// feature is one such row.
    pub fn is_whole_rows(&self, width: u64) -> bool {
        // Each extent must begin where those behind it end.
        let mut rows = self.rows.iter().rev();
        let count = rows.try_fold(1, |count, extent| {
            (extent.size == 1 || extent.stride == count).then_some(count * extent.size as u64)
        });
        self.features_first()
            && count == Some(width)
            && self.moving.start.is_multiple_of(width)
            && self
                .features
                .iter()
                .all(|extent| extent.stride.is_multiple_of(width))
    }

    /// Returns a block of this term, `more` elements from its beginning in a model.
    pub fn block<'a>(
        &self,
        place: &'a TermPlace,
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
        // As many of the innermost extents as fit are taken whole.
        let mut inner = 1;
        let mut cut = self.features.len();
        while cut > 0 && inner * self.features[cut - 1].size <= most {
            cut -= 1;
            inner *= self.features[cut].size;
        }
        let whole = &self.features[cut..];
        let Some(last) = cut.checked_sub(1) else {
            return vec![(0, whole.to_vec())];
        };
        // The next one is cut into steps, and those before it give a start each.
        let step = (most / inner).max(1);
        let mut starts = vec![0];
        for extent in &self.features[..last] {
            let places = |start: u64| extent.places().map(move |place| start + place);
            starts = starts.into_iter().flat_map(places).collect();
        }
        let Extent { size, stride } = self.features[last];
        let firsts = || (0..size).step_by(step);
        starts
            .into_iter()
            .flat_map(|start| firsts().map(move |first| (start, first)))
            .map(|(start, first)| {
                let size = step.min(size - first);
                let features = std::iter::once(Extent { size, stride });
                let features = features.chain(whole.iter().copied()).collect();
                (start + first as u64 * stride, features)
            })
            .collect()
    }
}

/// Returns the stride of the first extent of more than one coordinate.
fn first_stride(extents: &[Extent]) -> u64 {
    let first = extents.iter().find(|extent| extent.size > 1);
    first.map_or(0, |extent| extent.stride)
}
