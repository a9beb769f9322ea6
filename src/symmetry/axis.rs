//! The effect of a transform on one axis of one tensor, unit by unit.

use super::symmetries::{Node, TensorSymmetry};
use super::{Alignment, Element, Group};

/// A pair's rotation as one of its two units sees it: `new = cos · old[source] + sin ·
/// old[partner]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// The other unit's old place.
    pub partner: u32,
    /// The factor of the unit itself.
    pub cos: f64,
    /// The factor of the other unit, with its sign.
    pub sin: f64,
}

/// The source of one place on an axis.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    source: u32,
    negative: bool,
    turn: Option<Turn>,
}

/// The source of each place along an axis.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AxisMap {
    /// The old place of each new place.
    pub source: Vec<u32>,
    /// True for each new place whose sign is flipped; empty when none is.
    pub negative: Vec<bool>,
    /// The rotation at each new place; empty when none is turned.
    pub turns: Vec<Option<Turn>>,
}

impl AxisMap {
    /// Maps axis `axis` of a tensor; `None` when the axis does not change.
    pub fn new(alignment: &Alignment, tensor: &TensorSymmetry, axis: usize) -> Option<Self> {
        let node = &tensor.axes[axis];
        let Alignment {
            symmetries,
            transform,
        } = alignment;
        // Most axes of a big model do not change; checking the groups is cheaper than building
        // cells.
        let mut groups = symmetries.groups.iter().enumerate();
        let is_idle = groups.all(|(at, group)| {
            !node.names(at) || transform.elements()[at].is_in_place(group.units)
        });
        if node.is_fixed() || is_idle {
            return None;
        }
        let mut outer = outer_of(alignment, tensor);
        let cells = cells(alignment, node, &mut outer);
        if (0..).zip(&cells).all(|(at, cell)| *cell == Cell::at(at)) {
            return None;
        }
        let mut map = Self {
            source: cells.iter().map(|cell| cell.source).collect(),
            ..Self::default()
        };
        if cells.iter().any(|cell| cell.negative) {
            map.negative = cells.iter().map(|cell| cell.negative).collect();
        }
        if cells.iter().any(|cell| cell.turn.is_some()) {
            map.turns = cells.iter().map(|cell| cell.turn).collect();
        }
        Some(map)
    }

    /// True if the sign of place `at` is flipped.
    pub fn is_negative(&self, at: usize) -> bool {
        self.negative.get(at).copied().unwrap_or(false)
    }

    /// Returns the rotation at place `at`, if there is one.
    pub fn turn(&self, at: usize) -> Option<Turn> {
        self.turns.get(at).copied().flatten()
    }
}

/// Lists the outer units that a tensor's name selects: the group, and the copy of groups inside it.
fn outer_of(alignment: &Alignment, tensor: &TensorSymmetry) -> Vec<(usize, usize)> {
    let groups = &alignment.symmetries.groups;
    let index = tensor.index.iter();
    // A group of names lies in no other group, so its unit's number is the copy's number.
    index
        .map(|index| {
            (
                index.group,
                usize::try_from(index.position).unwrap_or(groups[index.group].units),
            )
        })
        .collect()
}

/// Returns the places of `node`. `outer` holds each enclosing group with the index of the current
/// unit, counted over all copies.
fn cells(alignment: &Alignment, node: &Node, outer: &mut Vec<(usize, usize)>) -> Vec<Cell> {
    match node {
        Node::Fixed(size) => {
            let size = u32::try_from(*size).expect("axes are numbered by 32 bits");
            (0..size).map(Cell::at).collect()
        }
        Node::Group { group, signed } => leaf(
            alignment,
            *group,
            *signed,
            copy_in(alignment, *group, outer),
        ),
        Node::Sum(parts) => {
            let mut all = Vec::new();
            for part in parts {
                let start = number(all.len());
                let cells = cells(alignment, part, outer);
                all.extend(cells.into_iter().map(|cell| cell.moved(start)));
            }
            all
        }
        Node::Product(parts) => match parts.split_first() {
            Some((first, rest)) => product(alignment, first, rest, outer),
            None => vec![Cell::at(0)],
        },
    }
}

/// Returns the places of a product: `rest` within each place of `first`.
fn product(
    alignment: &Alignment,
    first: &Node,
    rest: &[Node],
    outer: &mut Vec<(usize, usize)>,
) -> Vec<Cell> {
    let groups = &alignment.symmetries.groups;
    let rest = Node::Product(rest.to_vec());
    let len = number(rest.len(groups));
    let mut all = Vec::new();
    let blocks = cells(alignment, first, outer);
    for (at, block) in blocks.into_iter().enumerate() {
        // Groups within this one act on the copy that belongs to the unit.
        if let Node::Group { group, .. } = first {
            let unit = copy_in(alignment, *group, outer) * groups[*group].units + at;
            outer.push((*group, unit));
        }
        let inner = cells(alignment, &rest, outer);
        all.extend(inner.into_iter().map(|cell| block.holding(cell, len)));
        if matches!(first, Node::Group { .. }) {
            outer.pop();
        }
    }
    all
}

/// Returns the copy of a group that acts inside `outer`.
fn copy_in(alignment: &Alignment, group: usize, outer: &[(usize, usize)]) -> usize {
    let within = alignment.symmetries.groups[group].within;
    within.map_or(0, |within| {
        let found = outer.iter().rev().find(|(outer, _)| *outer == within);
        found
            .expect("inner groups were checked to stand inside their outer ones")
            .1
    })
}

fn leaf(alignment: &Alignment, index: usize, signed: bool, copy: usize) -> Vec<Cell> {
    let group = &alignment.symmetries.groups[index];
    let element = &alignment.transform.elements()[index];
    let units = 0..group.units;
    if signed {
        return units
            .map(|unit| signed_cell(group, element, copy, unit))
            .collect();
    }
    units
        .map(|unit| Cell::at(number(element.unit(group, copy, unit))))
        .collect()
}

/// Returns the place of a unit that may be flipped or turned.
fn signed_cell(group: &Group, element: &Element, copy: usize, unit: usize) -> Cell {
    let cell = Cell::at(number(element.unit(group, copy, unit)));
    let Some((pair, first)) = group.place_in_pairs(unit) else {
        return Cell {
            negative: element.is_negative(group, copy, unit),
            ..cell
        };
    };
    let angle = element.angle_of(group, copy, pair);
    let turn = (angle != 0.0).then(|| Turn {
        partner: number(group.partner(unit).expect("units of pairs have partners")),
        cos: angle.cos(),
        sin: if first { -angle.sin() } else { angle.sin() },
    });
    Cell {
        negative: element.is_negative(group, copy, pair),
        turn,
        ..cell
    }
}

impl Cell {
    /// A place that keeps what was at `source`.
    fn at(source: u32) -> Self {
        Self {
            source,
            negative: false,
            turn: None,
        }
    }

    fn moved(self, by: u32) -> Self {
        let turn = self.turn.map(|turn| Turn {
            partner: turn.partner + by,
            ..turn
        });
        Self {
            source: self.source + by,
            turn,
            ..self
        }
    }

    /// Composes a block's place with place `inner` inside the block, which has `len` elements.
    fn holding(self, inner: Self, len: u32) -> Self {
        let at = |block: u32, inside: u32| block * len + inside;
        let turn = match (self.turn, inner.turn) {
            (Some(turn), _) => Some(Turn {
                partner: at(turn.partner, inner.source),
                ..turn
            }),
            (None, Some(turn)) => Some(Turn {
                partner: at(self.source, turn.partner),
                ..turn
            }),
            (None, None) => None,
        };
        Self {
            source: at(self.source, inner.source),
            negative: self.negative ^ inner.negative,
            turn,
        }
    }
}

fn number(place: usize) -> u32 {
    u32::try_from(place).expect("axes are numbered by 32 bits")
}
