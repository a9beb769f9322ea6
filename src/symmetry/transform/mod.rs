//! An element of every group of a model: orders, signs, angles.
//!
//! Applying one gives `new[i] = sign[i] · old[permutation[i]]`; a pair (x, y) turned by θ becomes
//! (x cos θ - y sin θ, x sin θ + y cos θ), times the pair's sign. Elements of a group `within`
//! another are numbered by the *new* place of the outer unit: `new[k, i] = old[outer[k],
//! permutation[k][i]]`.

mod file;
mod map;
mod random;

pub use file::TransformFile;
pub use map::{OrthogonalMap, TOLERANCE};

use serde::{Deserialize, Serialize};

use super::spec::Allowed;
use super::symmetries::{Group, Symmetries};
use crate::error::{Context, Error, Kind, Result};

/// An element of one group, with all copies one after the other. An empty field does nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Element {
    /// The old unit of each new unit, counted from 0 in each copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub permutation: Vec<u32>,
    /// True for each new unit, or each pair, whose sign is flipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negative: Vec<bool>,
    /// The rotation angle of each pair, in radians.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub angle: Vec<f64>,
    /// A map of all units at once, which replaces the other fields. Transform files hold it;
    /// serialised records do not.
    #[serde(skip)]
    pub map: Option<OrthogonalMap>,
}

impl Element {
    /// True if it does nothing.
    pub fn is_identity(&self, units: usize) -> bool {
        self.map.is_none() && self.is_in_place(units)
    }

    /// True if no unit is moved, flipped or turned; a map of all units may still act.
    pub fn is_in_place(&self, units: usize) -> bool {
        self.permutation.chunks(units.max(1)).all(is_in_order)
            && !self.negative.contains(&true)
            && self.angle.iter().all(|angle| *angle == 0.0)
    }

    /// Estimates the memory that this takes, in bytes.
    fn bytes(&self) -> usize {
        let map = self.map.as_ref().map_or(0, |map| map.elements().len());
        let numbers =
            4 * self.permutation.len() + self.negative.len() + 8 * (self.angle.len() + map);
        size_of::<Self>() + numbers
    }

    /// Returns the old unit for new unit `unit` of copy `copy`.
    pub fn unit(&self, group: &Group, copy: usize, unit: usize) -> usize {
        self.permutation
            .get(copy * group.units + unit)
            .map_or(unit, |&old| old as usize)
    }

    /// True if sign `at` of copy `copy` is flipped.
    pub fn is_negative(&self, group: &Group, copy: usize, at: usize) -> bool {
        self.negative
            .get(copy * group.sign_count() + at)
            .copied()
            .unwrap_or(false)
    }

    /// Returns the map, or builds one from order and signs.
    fn as_map(&self, group: &Group) -> OrthogonalMap {
        self.map.clone().unwrap_or_else(|| {
            let mut elements = vec![0.0; group.units * group.units];
            for unit in 0..group.units {
                let sign = if self.is_negative(group, 0, unit) {
                    -1.0
                } else {
                    1.0
                };
                elements[unit * group.units + self.unit(group, 0, unit)] = sign;
            }
            OrthogonalMap::new(group.units, elements).expect("signed orders are orthogonal")
        })
    }

    /// Returns the angle of pair `pair` of copy `copy`.
    pub fn angle_of(&self, group: &Group, copy: usize, pair: usize) -> f64 {
        self.angle
            .get(copy * group.pair_count() + pair)
            .copied()
            .unwrap_or(0.0)
    }
}

/// An element of every group of [`Symmetries::groups`], in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Transform {
    elements: Vec<Element>,
}

impl Transform {
    /// Makes the transform that does nothing.
    pub fn identity(symmetries: &Symmetries) -> Self {
        Self {
            elements: vec![Element::default(); symmetries.groups.len()],
        }
    }

    /// Makes a transform from one element per group.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when an element does not fit its group: wrong sizes, not a permutation,
    /// or a change that the group does not allow.
    pub fn new(symmetries: &Symmetries, elements: Vec<Element>) -> Result<Self> {
        if elements.len() != symmetries.groups.len() {
            let cause = format!(
                "wanted {} elements, one a group, got {}",
                symmetries.groups.len(),
                elements.len()
            );
            return Err(Error::new(
                Kind::Mismatch,
                "transform does not fit the model",
                &symmetries.spec,
                cause,
            ));
        }
        symmetries
            .groups
            .iter()
            .zip(&elements)
            .try_for_each(|(group, element)| check(group, element))?;
        Ok(Self { elements })
    }

    /// Returns the element of each group.
    pub fn elements(&self) -> &[Element] {
        &self.elements
    }

    /// Replaces the element of one group.
    ///
    /// # Errors
    ///
    /// Those of [`Transform::new`].
    pub fn with(mut self, symmetries: &Symmetries, group: usize, element: Element) -> Result<Self> {
        check(&symmetries.groups[group], &element)?;
        self.elements[group] = element;
        Ok(self)
    }

    /// True if it does nothing.
    pub fn is_identity(&self, symmetries: &Symmetries) -> bool {
        let pairs = symmetries.groups.iter().zip(&self.elements);
        pairs
            .into_iter()
            .all(|(group, element)| element.is_identity(group.units))
    }

    /// Estimates the memory that this takes, in bytes.
    pub fn bytes(&self) -> u64 {
        self.elements.iter().map(Element::bytes).sum::<usize>() as u64
    }

    /// Composes this transform with `then`, which acts second.
    ///
    /// Signs and orders are composed exactly; angles are added and maps multiplied in f64.
    #[must_use]
    pub fn compose(&self, symmetries: &Symmetries, then: &Self) -> Self {
        let groups = symmetries.groups.iter().enumerate();
        let elements = groups.map(|(index, group)| {
            let (first, second) = (&self.elements[index], &then.elements[index]);
            if first.map.is_none() && second.map.is_none() {
                return self.composed_moves(&symmetries.groups, index, then);
            }
            // An identity is not multiplied in, so it causes no rounding.
            if first.is_identity(group.units) || second.is_identity(group.units) {
                let kept = if first.map.is_some() { first } else { second };
                return kept.clone();
            }
            let [one, other] = [first, second].map(|element| element.as_map(group));
            Element {
                map: Some(other.after(&one)),
                ..Element::default()
            }
        });
        Self {
            elements: elements.collect(),
        }
    }

    /// Composes the orders, signs and angles of a group with those of `then`.
    fn composed_moves(&self, groups: &[Group], index: usize, then: &Self) -> Element {
        let (first, second) = (&self.elements[index], &then.elements[index]);
        let group = &groups[index];
        let mut composed = Element::default();
        for copy in 0..group.copies {
            // The first transform acted on the copy that the second one brings here.
            let middle = then.old_copy(groups, index, copy);
            for at in 0..group.units {
                let unit = first.unit(group, middle, second.unit(group, copy, at));
                composed.permutation.push(number(unit));
            }
            for at in 0..group.sign_count() {
                let from = match group.pairs {
                    // A pair has one sign and stays where it is.
                    Some(_) => at,
                    None => second.unit(group, copy, at),
                };
                let flips = first.is_negative(group, middle, from);
                composed
                    .negative
                    .push(second.is_negative(group, copy, at) ^ flips);
            }
            if group.pairs.is_some() {
                composed.angle.extend((0..group.pair_count()).map(|at| {
                    second.angle_of(group, copy, at) + first.angle_of(group, middle, at)
                }));
            }
        }
        simplified(composed, group)
    }

    /// Returns the transform that undoes this one.
    #[must_use]
    pub fn inverse(&self, symmetries: &Symmetries) -> Self {
        let groups = 0..symmetries.groups.len();
        let elements = groups.map(|index| match &self.elements[index].map {
            Some(map) => Element {
                map: Some(map.transposed()),
                ..Element::default()
            },
            None => self.inverse_moves(&symmetries.groups, index),
        });
        Self {
            elements: elements.collect(),
        }
    }

    /// Inverts the order, the signs and the angles of a group.
    fn inverse_moves(&self, groups: &[Group], index: usize) -> Element {
        let (own, group) = (&self.elements[index], &groups[index]);
        let angles = match group.pairs {
            Some(_) => group.copies * group.pair_count(),
            None => 0,
        };
        let mut inverse = Element {
            permutation: vec![0; group.copies * group.units],
            negative: vec![false; group.copies * group.sign_count()],
            angle: vec![0.0; angles],
            map: None,
        };
        for copy in 0..group.copies {
            // What the transform brought here from `old` goes back there.
            let old = self.old_copy(groups, index, copy);
            for unit in 0..group.units {
                let to = old * group.units + own.unit(group, copy, unit);
                inverse.permutation[to] = number(unit);
            }
            for at in 0..group.sign_count() {
                let to = match group.pairs {
                    Some(_) => at,
                    None => own.unit(group, copy, at),
                };
                inverse.negative[old * group.sign_count() + to] = own.is_negative(group, copy, at);
            }
            if group.pairs.is_some() {
                for pair in 0..group.pair_count() {
                    let to = old * group.pair_count() + pair;
                    inverse.angle[to] = -own.angle_of(group, copy, pair);
                }
            }
        }
        simplified(inverse, group)
    }

    /// Returns the old index of copy `copy` of a group, which moves with the units of its outer
    /// group.
    pub fn old_copy(&self, groups: &[Group], group: usize, copy: usize) -> usize {
        let Some(outer) = groups[group].within else {
            return copy;
        };
        let units = groups[outer].units.max(1);
        let (outer_copy, unit) = (copy / units, copy % units);
        self.old_copy(groups, outer, outer_copy) * units
            + self.elements[outer].unit(&groups[outer], outer_copy, unit)
    }
}

/// Empties the fields that do nothing.
fn simplified(mut element: Element, group: &Group) -> Element {
    let units = group.units.max(1);
    if element
        .permutation
        .iter()
        .enumerate()
        .all(|(at, &unit)| at % units == unit as usize)
    {
        element.permutation = Vec::new();
    }
    if !element.negative.contains(&true) {
        element.negative = Vec::new();
    }
    if element.angle.iter().all(|angle| *angle == 0.0) {
        element.angle = Vec::new();
    }
    element
}

fn number(unit: usize) -> u32 {
    u32::try_from(unit).expect("groups have fewer units")
}

fn check(group: &Group, element: &Element) -> Result<()> {
    let context = Context::new(
        Kind::Mismatch,
        "transform does not fit the model",
        group.name.escape_debug(),
    );
    let sizes = [
        (
            "a permutation",
            element.permutation.len(),
            group.copies * group.units,
            Allowed::Permutation,
        ),
        (
            "signs",
            element.negative.len(),
            group.copies * group.sign_count(),
            Allowed::Sign,
        ),
        (
            "a rotation",
            element.angle.len(),
            group.copies * group.pair_count(),
            Allowed::Rotation,
        ),
    ];
    for (what, got, wanted, allowed) in sizes {
        if got != 0 && got != wanted {
            return context.fail(format!("{what}: wanted {wanted} numbers, got {got}"));
        }
        if got != 0 && !group.may(allowed) {
            return context.fail(format!("does not allow {what}: the function would change"));
        }
    }
    if let Some(map) = &element.map {
        check_map(group, element, map).map_err(|cause| context.error(cause))?;
    }
    if let Some(angle) = element.angle.iter().find(|angle| !angle.is_finite()) {
        return context.fail(format!("an angle is {angle}"));
    }
    for copy in element.permutation.chunks(group.units.max(1)) {
        check_permutation(copy, group.units).map_err(|cause| context.error(cause))?;
    }
    Ok(())
}

fn check_map(group: &Group, element: &Element, map: &OrthogonalMap) -> Result<(), String> {
    if !group.may(Allowed::Orthogonal) {
        let cause = "allows orthogonal maps only when the weights of the norms are folded";
        return Err(cause.to_owned());
    }
    if map.size() != group.units || !element.is_in_place(group.units) {
        return Err(format!(
            "wanted a map of {} units and no order or sign besides, got {}",
            group.units,
            map.size()
        ));
    }
    Ok(())
}

/// Checks that the units of one copy are a permutation.
fn check_permutation(copy: &[u32], units: usize) -> Result<(), String> {
    let mut seen = vec![false; units];
    for &unit in copy {
        match seen.get_mut(unit as usize) {
            None => return Err(format!("unit {unit} of {units}, counted from 0")),
            Some(true) => return Err(format!("not a permutation: unit {unit} comes twice")),
            Some(seen) => *seen = true,
        }
    }
    Ok(())
}

/// True if every unit is at its place.
fn is_in_order(copy: &[u32]) -> bool {
    (0..).zip(copy).all(|(at, &unit)| at == unit)
}
