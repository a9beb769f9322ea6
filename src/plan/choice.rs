//! The method for one tensor: the document's, with the parameters that hold for this tensor.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::method::{Gram, Method, Passthrough, Statistics};
use crate::recipe::{
    BaseRule, Document, ElementChoices, Given, Granularity, MethodName, Scope, TensorPlace,
};

use super::assign::Span;

/// Chooses the method for the tensor at `place`, and its span, over those of the document's inputs
/// that `members` lists.
///
/// # Errors
///
/// Fails when a parameter has no value for this tensor or the method refuses it, or when the method
/// needs the base and the base lacks the tensor.
pub fn choose(
    document: &Document,
    place: &TensorPlace<'_>,
    members: &[usize],
) -> Result<(Arc<dyn Method>, Span)> {
    let choice = Choice {
        document,
        place,
        members,
        base: base_among(document, place, members)?,
    };
    // With only one input that has the tensor, a method that needs others besides the base has
    // nothing to do.
    if members.len() == 1
        && document.method != MethodName::Passthrough
        && document.method != MethodName::Linear
    {
        return Ok((Arc::new(Passthrough::new(1.0)?), Span::Tensor));
    }
    let method = document
        .method
        .make(&choice)
        .map_err(|error| choice.located(error))?;
    if method.statistics() == Statistics::None {
        // Nothing depends on the data: an unsolvable case is found before anything is read.
        method
            .solve(&Gram::new(0))
            .map_err(|error| choice.located(error.with_kind(Kind::Recipe)))?;
    }
    Ok((method, choice.span()?))
}

/// Returns the position of the base among `members`.
fn base_among(
    document: &Document,
    place: &TensorPlace<'_>,
    members: &[usize],
) -> Result<Option<usize>> {
    let Some(base) = document.base_index(place.slice) else {
        return Ok(None);
    };
    let among = members.iter().position(|member| *member == base);
    match (among, document.method.info().base) {
        (None, BaseRule::Required | BaseRule::RequiredCounted) => {
            let cause = format!(
                "the base lacks it, and {} measures from the base",
                document.method
            );
            Err(
                Error::new(Kind::Mismatch, "cannot merge tensor", place.name, cause)
                    .with_hint("say `missing: base` to leave such tensors out"),
            )
        }
        _ => Ok(among),
    }
}

struct Choice<'a> {
    document: &'a Document,
    place: &'a TensorPlace<'a>,
    members: &'a [usize],
    base: Option<usize>,
}

impl Choice<'_> {
    /// Adds the place of the parameter to `error`, if it is about one that the method refuses.
    fn located(&self, error: Error) -> Error {
        let document = self.document;
        let subject = error.subject();
        let name = match subject {
            _ if subject.contains("weight") || subject.starts_with("coefficient") => "weight",
            _ => subject,
        };
        let Some(info) = document
            .method
            .info()
            .parameter(name)
            .filter(|_| error.kind() == Kind::Recipe)
        else {
            return error;
        };
        let mut values = String::new();
        let mut first = None;
        for &member in self
            .members
            .iter()
            .filter(|member| info.scope == Scope::PerModel && !self.is_measured_from(**member))
        {
            if let (Ok(value), Some(input)) = (
                self.of_input(name, member),
                document.inputs(self.place.slice).get(member),
            ) {
                first = first.or(Some(member));
                let comma = if values.is_empty() { " (" } else { ", " };
                values.push_str(&format!("{comma}{value} for {}", input.model));
            }
        }
        values.push_str(if values.is_empty() { "" } else { ")" });
        let cause = format!("{subject}: {}{values}", error.cause());
        document.parameter_error(
            name,
            first,
            self.place,
            cause,
            error.hint().unwrap_or_default(),
        )
    }

    /// Tells if an input is the base that others are measured from, which has no parameters.
    fn is_measured_from(&self, member: usize) -> bool {
        let counts = matches!(self.document.method.info().base, BaseRule::Counted);
        !counts && self.base.is_some_and(|base| self.members[base] == member)
    }

    fn span(&self) -> Result<Span> {
        match self.document.method {
            MethodName::NuSlerp if !self.switch("nuslerp_flatten")? => {
                if self.switch("nuslerp_row_wise")? {
                    Ok(Span::FirstAxis)
                } else {
                    Ok(Span::LastAxis)
                }
            }
            MethodName::ModelStock if self.switch("filter_wise")? => Ok(Span::LastAxis),
            _ => Ok(match self.document.granularity() {
                Granularity::Tensor => Span::Tensor,
                Granularity::Row => Span::Row,
                Granularity::Model => Span::Model,
            }),
        }
    }
}

impl Given for Choice<'_> {
    fn inputs(&self) -> usize {
        self.members.len()
    }

    fn base(&self) -> Option<usize> {
        self.base
    }

    fn needed_base(&self) -> Result<usize> {
        self.base.ok_or_else(|| {
            let cause = format!("{} needs `base_model:`", self.document.method);
            Error::new(Kind::Recipe, "cannot merge tensor", self.place.name, cause)
        })
    }

    fn weights(&self) -> Result<Vec<f64>> {
        let measured_from = !matches!(self.document.method.info().base, BaseRule::Counted);
        let weight = |(at, member): (usize, &usize)| match self.base {
            Some(base) if base == at && measured_from => Ok(0.0),
            _ => self.of_input("weight", *member),
        };
        self.members.iter().enumerate().map(weight).collect()
    }

    fn position(&self, at: usize) -> u32 {
        u32::try_from(self.members[at]).expect("models are listed in a recipe")
    }

    fn choices(&self) -> ElementChoices {
        let own = &self.document.own;
        ElementChoices {
            seed: own.seed.unwrap_or_default(),
            ties: own.ties.unwrap_or_default(),
            sign_tie: own.sign_tie.unwrap_or_default(),
            rescale_by: own.rescale_by.unwrap_or_default(),
        }
    }

    fn of_input(&self, name: &str, input: usize) -> Result<f64> {
        self.document.parameter(name, Some(input), self.place)
    }

    fn shared(&self, name: &str) -> Result<f64> {
        self.document.parameter(name, None, self.place)
    }

    fn count(&self, name: &str) -> Result<u32> {
        let value = self.shared(name)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to lie within u32"
        )]
        let count = value as u32;
        if f64::from(count) == value {
            return Ok(count);
        }
        Err(self.document.parameter_error(
            name,
            None,
            self.place,
            format!("wanted a whole number, got {value}"),
            "",
        ))
    }
}
