//! A tensor of the transformed model, read from the original's files in any range of elements.
//!
//! Reordered rows are copied as runs of bytes, with one read for neighbours that stay neighbours;
//! reordered columns are gathered from whole rows. A sign flips the sign bit and nothing else.
//! Where pairs are turned the elements are f64, so they are rounded only once, by the caller.
//! Memory holds a few rows at most.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::linalg::Columns;
use crate::symmetry::fold::Folded;
use crate::symmetry::{Alignment, AxisMap, Node, TensorSymmetry};

use super::mix::{Axis, Making, Mix, Size};
use super::moves::{BATCH_BYTES, Moves};
use super::{Below, Reading, View};

/// The shortest run, in bytes, that is read by itself; shorter ones are gathered from memory.
const RUN_BYTES: u64 = 256;

/// The view of one tensor of a transformed model.
#[derive(Debug, Clone)]
pub struct Aligned {
    alignment: Alignment,
    name: String,
    stored: Dtype,
    turned: bool,
    making: Option<Making>,
}

/// The computed source of each element of a transformed tensor, with the buffers for reading.
pub struct Gather {
    moves: Moves,
    mix: Option<Mix>,
}

/// A tensor as rows of cells: an innermost axis whose cells are gathered, with all axes before it
/// flattened to rows.
struct Rows {
    /// The number of axes that make up the rows.
    axes: usize,
    /// True if the next axis has cells that are gathered.
    gathered: bool,
    /// The cells of a row.
    cells: u64,
    /// The elements of a cell.
    run: u64,
}

impl Aligned {
    /// Makes the view of tensor `name` of the transformed model, whose elements are stored as
    /// `stored`. `None` when the elements are those of [`Aligned::source_name`], unchanged.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when the tensor must be transformed but does not hold floats, or is
    /// unknown.
    pub fn new(alignment: &Alignment, name: &str, stored: Dtype) -> Result<Option<Self>> {
        let tensor = tensor_of(alignment, name)?;
        let making = making(alignment, name, tensor);
        if making.is_none() && !tensor.axes.iter().any(|axis| is_active(alignment, axis)) {
            return Ok(None);
        }
        if !stored.is_mergeable() {
            let cause = format!("{stored} elements can be neither reordered nor turned");
            return Err(Error::new(
                Kind::Mismatch,
                "cannot transform tensor",
                name.escape_debug(),
                cause,
            )
            .with_hint("transform the model before it is quantised"));
        }
        let turned = tensor.axes.iter().any(|axis| is_turned(alignment, axis));
        Ok(Some(Self {
            alignment: alignment.clone(),
            name: name.to_owned(),
            stored,
            turned,
            making,
        }))
    }

    /// Returns the tensor of the original model from which tensor `name` of the transformed one is
    /// made.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when the tensor is unknown.
    pub fn source_name(alignment: &Alignment, name: &str) -> Result<String> {
        let tensor = tensor_of(alignment, name)?;
        let Some(index) = &tensor.index else {
            let made_of = alignment
                .symmetries
                .fold
                .as_ref()
                .and_then(|fold| fold.source(name));
            return Ok(made_of.unwrap_or(name).to_owned());
        };
        let group = &alignment.symmetries.groups[index.group];
        let position = usize::try_from(index.position).unwrap_or(usize::MAX);
        Ok(index
            .name_of(alignment.transform.elements()[index.group].unit(group, 0, position) as u64))
    }

    /// Returns the type of the view's elements.
    pub fn dtype(&self) -> Dtype {
        if self.turned || self.making.is_some() {
            Dtype::F64
        } else {
            self.stored
        }
    }

    /// Returns the type of the stored elements.
    pub fn stored(&self) -> Dtype {
        self.stored
    }

    /// Returns the peak memory of a [`Gather`] of this view, besides the buffer that it fills, in
    /// bytes.
    pub fn gather_bytes(&self) -> u64 {
        let tensor = self.tensor();
        let per_place = if self.turned { 64 } else { 5 };
        let active = tensor
            .axes
            .iter()
            .zip(&tensor.shape)
            .filter(|(axis, _)| is_active(&self.alignment, axis));
        // The map, and the cells from which it is made.
        let maps: u64 = active.map(|(_, len)| len * (per_place + 48)).sum();
        let rows = Rows::of(&self.alignment, tensor, self.stored);
        let row = rows.cells * rows.run * self.stored.bytes() as u64;
        // The rows to gather from, twice where pairs are turned; then both rows as stored, and one
        // as f64.
        let batches = if rows.gathered {
            row.max(BATCH_BYTES) * (1 + u64::from(self.turned))
        } else {
            0
        };
        let turned = if self.turned {
            2 * row + rows.cells * rows.run * Dtype::F64.bytes() as u64
        } else {
            0
        };
        let unit = if self.turned {
            Dtype::F64.bytes()
        } else {
            self.stored.bytes()
        } as u64;
        let made = self
            .making
            .as_ref()
            .map_or(0, |making| making.bytes(self.size(making), unit));
        maps + batches + turned + made
    }

    /// Computes the source of every element.
    pub fn gather(&self) -> Gather {
        let tensor = self.tensor();
        let map = |axis: usize| AxisMap::new(&self.alignment, tensor, axis);
        let rows = Rows::of(&self.alignment, tensor, self.stored);
        let outer = (0..rows.axes)
            .map(|axis| (tensor.shape[axis], map(axis)))
            .collect();
        let columns = if rows.gathered { map(rows.axes) } else { None };
        let moves = Moves::new(
            outer,
            columns,
            rows.cells * rows.run,
            rows.run,
            self.stored,
            self.turned,
        );
        let mix = self
            .making
            .as_ref()
            .map(|making| Mix::new(making.clone(), self.size(making)));
        Gather { moves, mix }
    }

    /// Splits the view into row moves and a column order. `None` when columns are not merely
    /// reordered and flipped.
    pub fn apart(&self) -> Option<(Gather, Columns)> {
        let tensor = self.tensor();
        let rows = Rows::of(&self.alignment, tensor, self.stored);
        let is_last = rows.gathered && rows.axes + 1 == tensor.axes.len();
        if !is_last || self.turned || self.making.is_some() {
            return None;
        }
        let map = |axis: usize| AxisMap::new(&self.alignment, tensor, axis);
        let columns = map(rows.axes)?;
        let outer = (0..rows.axes)
            .map(|axis| (tensor.shape[axis], map(axis)))
            .collect();
        let moves = Moves::new(outer, None, rows.cells, 1, self.stored, false);
        Some((
            Gather { moves, mix: None },
            Columns::new(&columns.source, &columns.negative),
        ))
    }

    /// Returns the tensor's size as a matrix, one axis of which is the residual stream.
    fn size(&self, making: &Making) -> Size {
        let shape = &self.tensor().shape;
        let all: u64 = shape.iter().product();
        let last = matches!(
            making,
            Making::Mixed {
                axis: Axis::Last,
                ..
            }
        );
        let rows = if last {
            all / shape.last().copied().unwrap_or(1).max(1)
        } else {
            shape.first().copied().unwrap_or(1)
        };
        Size {
            rows,
            row: all / rows.max(1),
        }
    }

    fn tensor(&self) -> &TensorSymmetry {
        &self.alignment.symmetries.tensors[&self.name]
    }
}

impl Gather {
    /// Fills `into` with the elements of `range`, of the view's type.
    ///
    /// # Errors
    ///
    /// When the original cannot be read.
    pub fn read(&mut self, from: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        match &mut self.mix {
            None => self.moves.read(from, range, into),
            Some(mix) => mix.read(&mut self.moves, from, range, into),
        }
    }

    /// Announces that `range` will be read soon.
    pub fn prefetch(&self, from: Below<'_>, range: Range<u64>) {
        // A mapped range may need other rows too; its own rows are a start.
        self.moves.prefetch(from, range);
    }
}

impl View for Aligned {
    fn dtype(&self) -> Dtype {
        Self::dtype(self)
    }

    fn bytes(&self) -> u64 {
        self.gather_bytes()
    }

    fn span(&self, _: Range<u64>) -> Option<Range<u64>> {
        None
    }

    fn open(&self) -> Box<dyn Reading> {
        Box::new(self.gather())
    }
}

impl Reading for Gather {
    fn read(&mut self, below: Below<'_>, range: Range<u64>, into: &mut [u8]) -> Result<()> {
        Self::read(self, below, range, into)
    }

    fn prefetch(&self, below: Below<'_>, range: Range<u64>) {
        Self::prefetch(self, below, range);
    }
}

/// Returns the computation beyond moving units: scaling by folded norms and mapping the residual
/// stream. `None` if there is none.
fn making(alignment: &Alignment, name: &str, tensor: &TensorSymmetry) -> Option<Making> {
    let fold = alignment.symmetries.fold.as_ref()?;
    let scale = match fold.get(name) {
        Some(Folded::Constant(number)) => return Some(Making::Constant(*number)),
        Some(Folded::Scaled(scale)) => Some(std::sync::Arc::clone(scale)),
        None => None,
    };
    let (at, element) = tensor
        .axes
        .iter()
        .enumerate()
        .find_map(|(at, node)| match node {
            Node::Group { group, .. } if alignment.symmetries.groups[*group].residual => {
                Some((at, &alignment.transform.elements()[*group]))
            }
            _ => None,
        })?;
    let map = element.map.clone();
    // A vector that is added to the stream has the stream on its first axis, and one column.
    let axis = if at == 0 { Axis::First } else { Axis::Last };
    (scale.is_some() || map.is_some()).then_some(Making::Mixed { axis, scale, map })
}

impl Rows {
    fn of(alignment: &Alignment, tensor: &TensorSymmetry, stored: Dtype) -> Self {
        let last = tensor
            .axes
            .iter()
            .rposition(|axis| is_active(alignment, axis))
            .map_or(0, |last| last + 1);
        let run: u64 = tensor.shape[last..].iter().product();
        if last > 0 && run * (stored.bytes() as u64) < RUN_BYTES {
            return Self {
                axes: last - 1,
                gathered: true,
                cells: tensor.shape[last - 1],
                run,
            };
        }
        Self {
            axes: last,
            gathered: false,
            cells: 1,
            run,
        }
    }
}

fn tensor_of<'a>(alignment: &'a Alignment, name: &str) -> Result<&'a TensorSymmetry> {
    alignment.symmetries.tensors.get(name).ok_or_else(|| {
        let cause = "the model whose symmetries these are does not have it";
        Error::new(
            Kind::Mismatch,
            "cannot transform tensor",
            name.escape_debug(),
            cause,
        )
    })
}

/// True if a group that moves its units acts on a part of this.
fn is_active(alignment: &Alignment, node: &Node) -> bool {
    match node {
        Node::Fixed(_) => false,
        Node::Group { group, .. } => {
            let units = alignment.symmetries.groups[*group].units;
            !alignment.transform.elements()[*group].is_in_place(units)
        }
        Node::Product(parts) | Node::Sum(parts) => {
            parts.iter().any(|part| is_active(alignment, part))
        }
    }
}

fn is_turned(alignment: &Alignment, node: &Node) -> bool {
    match node {
        Node::Fixed(_) | Node::Group { signed: false, .. } => false,
        Node::Group { group, .. } => alignment.transform.elements()[*group]
            .angle
            .iter()
            .any(|angle| *angle != 0.0),
        Node::Product(parts) | Node::Sum(parts) => {
            parts.iter().any(|part| is_turned(alignment, part))
        }
    }
}
