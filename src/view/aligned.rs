//! A tensor of the transformed model, read from the files of the original: any range of its
//! elements at any time.
//!
//! Reordered rows are copied as runs of bytes, neighbours that stay neighbours with one read;
//! reordered columns are gathered from whole rows. A sign flips the sign bit and nothing else.
//! Where pairs are turned the elements are given as f64, so that whoever uses them rounds once.
//! Nothing larger than a few rows is held.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::linalg::Columns;
use crate::symmetry::fold::Folded;
use crate::symmetry::{Alignment, AxisMap, Node, TensorSymmetry};

use super::mix::{Axis, Making, Mix, Size};
use super::moves::{BATCH_BYTES, Moves};
use super::{Below, Reading, View};

/// Runs of fewer bytes than this are gathered from memory, not read one by one.
const RUN_BYTES: u64 = 256;

/// How a tensor's elements come out of another's.
#[derive(Debug, Clone)]
pub struct Aligned {
    alignment: Alignment,
    name: String,
    stored: Dtype,
    turned: bool,
    making: Option<Making>,
}

/// Where each element of a transformed tensor comes from, worked out, with the memory that reading
/// it takes.
pub struct Gather {
    moves: Moves,
    mix: Option<Mix>,
}

/// A tensor as rows of cells: an innermost axis whose cells are gathered, everything before it
/// flattened to rows.
struct Rows {
    /// How many axes make up the rows.
    axes: usize,
    /// Whether the axis behind them is one of cells that are gathered.
    gathered: bool,
    /// Cells of a row.
    cells: u64,
    /// Elements of a cell.
    run: u64,
}

impl Aligned {
    /// The view of tensor `name` of the transformed model, whose elements are stored as `stored`;
    /// `None` when they come as they are from the tensor that [`Aligned::source_name`] gives.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when the tensor is to be transformed but its elements are no floats, or
    /// it is not known.
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

    /// The tensor of the original model from which tensor `name` of the transformed one is made.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when the tensor is not known.
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

    /// The type of the elements as the view gives them.
    pub fn dtype(&self) -> Dtype {
        if self.turned || self.making.is_some() {
            Dtype::F64
        } else {
            self.stored
        }
    }

    /// The type of the elements as they are stored.
    pub fn stored(&self) -> Dtype {
        self.stored
    }

    /// Memory that a [`Gather`] of this view takes at its peak, besides what it fills, in bytes.
    pub fn gather_bytes(&self) -> u64 {
        let tensor = self.tensor();
        let per_place = if self.turned { 64 } else { 5 };
        let active = tensor
            .axes
            .iter()
            .zip(&tensor.shape)
            .filter(|(axis, _)| is_active(&self.alignment, axis));
        // Twice: cells on their way to becoming a map.
        let maps: u64 = active.map(|(_, len)| len * (per_place + 48)).sum();
        let rows = Rows::of(&self.alignment, tensor, self.stored);
        let row = rows.cells * rows.run * self.stored.bytes() as u64;
        // Rows that are gathered from, twice where pairs are turned; then both rows as they are
        // stored, and one as f64.
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

    /// Works out where everything comes from.
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

    /// The same but for the order of columns, and that; `None` where more than that is done inside
    /// rows, or nothing.
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

    /// The tensor as a matrix, one of whose axes is the residual stream.
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
    /// Fills `into` with the elements of `range`, of the type that the view gives.
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

    /// Says that `range` will be read soon.
    pub fn prefetch(&self, from: Below<'_>, range: Range<u64>) {
        // Of what is mapped the rows of another range may be wanted; those of this one are a start.
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

/// What is made of a tensor besides moving its units: where norms are folded, and the residual
/// stream is mapped.
fn making(alignment: &Alignment, name: &str, tensor: &TensorSymmetry) -> Option<Making> {
    let fold = alignment.symmetries.fold.as_ref()?;
    let scale = match fold.get(name) {
        Some(Folded::Constant(number)) => return Some(Making::Constant(*number)),
        Some(Folded::Scaled(scale)) => Some(std::sync::Arc::clone(scale)),
        None => None,
    };
    let element_of = |node: &Node| match node {
        Node::Group { group, .. } if alignment.symmetries.groups[*group].residual => {
            Some(&alignment.transform.elements()[*group])
        }
        _ => None,
    };
    let (at, element) = tensor
        .axes
        .iter()
        .enumerate()
        .find_map(|(at, node)| Some((at, element_of(node)?)))?;
    let map = element.map.clone();
    // A vector that is added to the stream has it on its first axis, and one column.
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

/// Whether a group that does something acts on a part of this.
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
