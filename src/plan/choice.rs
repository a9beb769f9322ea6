//! The method for one tensor: the document's, with the parameters that hold for this tensor.

use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::method::{
    GeometricMedian, Gram, Karcher, Linear, Method, ModelStock, Multislerp, Nuslerp, Passthrough, Slerp, Statistics,
    TaskArithmetic,
};
use crate::recipe::{BaseRule, Document, Granularity, MethodName, Scope, TensorPlace};

use super::assign::Span;

/// The method for the tensor at `place`, over those of the document's inputs that `members` lists.
///
/// # Errors
///
/// When a parameter has no value for this tensor or the method refuses it, or when the method needs the base and the
/// base lacks the tensor.
pub fn choose(document: &Document, place: &TensorPlace<'_>, members: &[usize]) -> Result<(Arc<dyn Method>, Span)> {
    let choice = Choice { document, place, members, base: base_among(document, place, members)? };
    // A method that needs others beside the base has nothing to do when only one input has the tensor.
    if members.len() == 1 && document.method != MethodName::Passthrough && document.method != MethodName::Linear {
        return Ok((Arc::new(Passthrough::new(1.0)?), Span::Tensor));
    }
    let method = choice.method().map_err(|error| choice.located(error))?;
    if method.statistics() == Statistics::None {
        // Nothing is left to be known: what cannot be solved is found before anything is read.
        method.solve(&Gram::new(0)).map_err(|error| choice.located(error.with_kind(Kind::Recipe)))?;
    }
    Ok((method, choice.span()?))
}

/// Where the base is among `members`.
fn base_among(document: &Document, place: &TensorPlace<'_>, members: &[usize]) -> Result<Option<usize>> {
    let Some(base) = document.base_index(place.slice) else {
        return Ok(None);
    };
    let among = members.iter().position(|member| *member == base);
    match (among, document.method.info().base) {
        (None, BaseRule::Required | BaseRule::RequiredCounted) => {
            let cause = format!("the base lacks it, and {} measures from the base", document.method);
            Err(Error::new(Kind::Mismatch, "cannot merge tensor", place.name, cause)
                .with_hint("say `missing: base` to leave such tensors out"))
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
    fn method(&self) -> Result<Arc<dyn Method>> {
        let weights = || self.weights();
        Ok(match self.document.method {
            MethodName::Linear => Arc::new(Linear::new(&weights()?, self.switch("normalize")?)?),
            MethodName::Passthrough => Arc::new(Passthrough::new(self.own("scale", 0)?)?),
            MethodName::TaskArithmetic => {
                let (normalize, lambda) = (self.switch("normalize")?, self.shared("lambda")?);
                Arc::new(TaskArithmetic::new(self.needed_base()?, &weights()?, normalize, lambda)?)
            }
            MethodName::Slerp => Arc::new(Slerp::new(self.needed_base()?, self.shared("t")?)?),
            MethodName::NuSlerp => Arc::new(Nuslerp::new(&weights()?, self.base)?),
            MethodName::MultiSlerp => {
                let normalize = self.switch("normalize_weights")?;
                Arc::new(Multislerp::new(&weights()?, normalize, self.shared("eps")?, self.base)?)
            }
            MethodName::Karcher | MethodName::Frechet => {
                Arc::new(Karcher::new(&weights()?, self.count("max_iter")?, self.shared("tol")?)?)
            }
            MethodName::GeometricMedian => {
                Arc::new(GeometricMedian::new(&weights()?, self.count("max_iter")?, self.shared("tol")?)?)
            }
            MethodName::ModelStock => Arc::new(ModelStock::new(self.needed_base()?, self.members.len())?),
        })
    }

    /// `error` with the place of the parameter that it is about, if it is about one that a method refuses.
    fn located(&self, error: Error) -> Error {
        let document = self.document;
        let subject = error.subject();
        let name = match subject {
            _ if subject.contains("weight") || subject.starts_with("coefficient") => "weight",
            _ => subject,
        };
        let Some(info) = document.method.info().parameter(name).filter(|_| error.kind() == Kind::Recipe) else {
            return error;
        };
        let mut values = String::new();
        let mut first = None;
        for &member in self.members.iter().filter(|_| info.scope == Scope::PerModel) {
            if let (Ok(value), Some(input)) = (self.own(name, member), document.inputs(self.place.slice).get(member)) {
                first = first.or(Some(member));
                let comma = if values.is_empty() { " (" } else { ", " };
                values.push_str(&format!("{comma}{value} for {}", input.model));
            }
        }
        values.push_str(if values.is_empty() { "" } else { ")" });
        let cause = format!("{subject}: {}{values}", error.cause());
        document.parameter_error(name, first, self.place, cause, error.hint().unwrap_or_default())
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

    fn needed_base(&self) -> Result<usize> {
        self.base.ok_or_else(|| {
            let cause = format!("{} needs `base_model:`", self.document.method);
            Error::new(Kind::Recipe, "cannot merge tensor", self.place.name, cause)
        })
    }

    /// One weight a member; a base from which the others are measured has none of its own.
    fn weights(&self) -> Result<Vec<f64>> {
        let measured_from = !matches!(self.document.method.info().base, BaseRule::Counted);
        let weight = |(at, member): (usize, &usize)| match self.base {
            Some(base) if base == at && measured_from => Ok(0.0),
            _ => self.own("weight", *member),
        };
        self.members.iter().enumerate().map(weight).collect()
    }

    fn own(&self, name: &str, input: usize) -> Result<f64> {
        self.document.parameter(name, Some(input), self.place)
    }

    fn shared(&self, name: &str) -> Result<f64> {
        self.document.parameter(name, None, self.place)
    }

    fn switch(&self, name: &str) -> Result<bool> {
        Ok(self.shared(name)? != 0.0)
    }

    fn count(&self, name: &str) -> Result<u32> {
        let value = self.shared(name)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within u32")]
        let count = value as u32;
        if f64::from(count) == value {
            return Ok(count);
        }
        Err(self.document.parameter_error(name, None, self.place, format!("wanted a whole number, got {value}"), ""))
    }
}
