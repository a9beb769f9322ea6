//! The number of units of each group: from the spec's sizes, or solved from the tensors' shapes.

use indexmap::IndexMap;

use super::{MOST_UNITS, Resolver, listed};
use crate::error::{Error, Kind, Result};
use crate::symmetry::spec::Size;
use crate::symmetry::spec::expression::{SizeExpression, config_number};
use crate::symmetry::{Node, TensorSymmetry};

/// An unknown size on an axis, which may follow from the axis length.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Group(usize),
    Fixed,
}

impl Resolver<'_> {
    /// Evaluates a size for group `name`.
    pub(super) fn size(&mut self, size: &Size, name: &str) -> Result<u64> {
        let value = match size {
            Size::Number(number) => f64::from(*number),
            Size::Text(text) => self.evaluate(text, &format!("units of group `{name}`"), 0)?,
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to lie in the range"
        )]
        let units = value as u64;
        // A rotary fraction of a head is rounded down, as models do.
        if (0.0..=67_108_864.0).contains(&value) && units <= MOST_UNITS {
            return Ok(units);
        }
        let cause = format!("units of group `{name}`: wanted 0 to {MOST_UNITS}, got {value}");
        Err(Error::new(
            Kind::Mismatch,
            "spec does not fit the model",
            &self.spec.name,
            cause,
        ))
    }

    fn evaluate(&mut self, text: &str, subject: &str, depth: usize) -> Result<f64> {
        let wrong = |cause: String| Error::new(Kind::Recipe, "cannot use spec", subject, cause);
        let expression = SizeExpression::parse(text).map_err(wrong)?;
        let spec = self.spec;
        for (name, size) in &spec.sizes {
            if self.sizes.contains_key(name) || !has_word(text, name) {
                continue;
            }
            if depth > spec.sizes.len() {
                return Err(wrong(format!("size `{name}` is defined by itself")));
            }
            let value = match size {
                Size::Number(number) => f64::from(*number),
                Size::Text(inner) => self.evaluate(inner, &format!("size `{name}`"), depth + 1)?,
            };
            self.sizes.insert(name.clone(), value);
        }
        let known = |name: &str| self.known(name);
        expression.value(&known).ok_or_else(|| {
            let there = if self.config.is_some() {
                "config.json does not have"
            } else {
                "there is no config.json for"
            };
            let cause = format!("{there} {}", expression.unknown(&known).join(", "));
            Error::new(
                Kind::Mismatch,
                "spec does not fit the model",
                subject,
                cause,
            )
            .with_hint(
                "put the model's config.json beside its weights, or give a spec with numbers",
            )
        })
    }

    /// Returns a size of the spec that is worked out already, or a number of the config.
    fn known(&self, name: &str) -> Option<f64> {
        let own = self.sizes.get(name).copied();
        own.or_else(|| self.config.and_then(|config| config_number(config, name)))
    }

    /// Solves the unknown sizes from the tensors' shapes and checks every axis length.
    pub(super) fn work_out_sizes(
        &mut self,
        tensors: &mut IndexMap<String, TensorSymmetry>,
    ) -> Result<()> {
        loop {
            let before = self.units.iter().flatten().count();
            let axes = tensors
                .values()
                .flat_map(|tensor| tensor.axes.iter().zip(&tensor.shape));
            for (node, &len) in axes {
                let mut unknown = Vec::new();
                unknown_of(node, &self.units, &mut unknown);
                if let [Unknown::Group(group)] = unknown.as_slice() {
                    self.units[*group] =
                        solved(node, &self.units, len).filter(|units| *units <= MOST_UNITS);
                }
            }
            if self.units.iter().flatten().count() == before {
                break;
            }
        }
        let mut wrong = Vec::new();
        for (name, tensor) in tensors {
            for (axis, (node, &len)) in tensor.axes.iter_mut().zip(&tensor.shape).enumerate() {
                if let Some(size) = solved(node, &self.units, len) {
                    fill_in(node, size);
                }
                let got = length(node, &self.units, 0);
                if got != len && !self.lacks(node) {
                    wrong.push(format!(
                        "axis {axis} of `{}` wants {got}, got {len}",
                        name.escape_debug()
                    ));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::new(Kind::Mismatch, "spec does not fit the shapes", &self.spec.name, listed(wrong))
            .with_hint("config.json and weights are of two models, or this architecture needs a spec of its own"))
    }

    fn lacks(&self, node: &Node) -> bool {
        match node {
            Node::Fixed(_) => false,
            Node::Group { group, .. } => self.units[*group].is_none(),
            Node::Product(parts) | Node::Sum(parts) => parts.iter().any(|part| self.lacks(part)),
        }
    }
}

/// Adds the unknown sizes in `node`, each once.
fn unknown_of(node: &Node, units: &[Option<u64>], found: &mut Vec<Unknown>) {
    let unknown = match node {
        Node::Fixed(_) => Unknown::Fixed,
        Node::Group { group, .. } if units[*group].is_none() => Unknown::Group(*group),
        Node::Group { .. } => return,
        Node::Product(parts) | Node::Sum(parts) => {
            return parts.iter().for_each(|part| unknown_of(part, units, found));
        }
    };
    if !found.contains(&unknown) {
        found.push(unknown);
    }
}

/// Returns the length of an axis if every unknown part has the size `unknown`.
fn length(node: &Node, units: &[Option<u64>], unknown: u64) -> u64 {
    match node {
        Node::Fixed(0) => unknown,
        Node::Fixed(size) => *size,
        Node::Group { group, .. } => units[*group].unwrap_or(unknown),
        Node::Product(parts) => parts.iter().fold(1, |product, part| {
            product.saturating_mul(length(part, units, unknown))
        }),
        Node::Sum(parts) => parts.iter().fold(0, |sum, part| {
            sum.saturating_add(length(part, units, unknown))
        }),
    }
}

/// Solves for the unknown size that makes the axis `len` long; `None` if no whole size does. The
/// length is linear in it.
fn solved(node: &Node, units: &[Option<u64>], len: u64) -> Option<u64> {
    let (none, one) = (length(node, units, 0), length(node, units, 1));
    let (left, slope) = (len.checked_sub(none)?, one.checked_sub(none)?);
    let size = left.checked_div(slope)?;
    (length(node, units, size) == len).then_some(size)
}

/// Gives this size to every fixed part that has none.
fn fill_in(node: &mut Node, size: u64) {
    match node {
        Node::Fixed(own @ 0) => *own = size,
        Node::Product(parts) | Node::Sum(parts) => {
            parts.iter_mut().for_each(|part| fill_in(part, size))
        }
        Node::Fixed(_) | Node::Group { .. } => {}
    }
}

/// True if `name` is one of the words of an expression.
fn has_word(text: &str, name: &str) -> bool {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .any(|word| word == name)
}
