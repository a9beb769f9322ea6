//! The value of a parameter for one model and one tensor.
//!
//! Levels are asked from the inside out, as in mergekit: the model or source, its slice, the
//! module, the document. A level that says nothing about a tensor, because no condition fits its
//! name, is passed over.

use super::document::{Document, Sources};
use super::setting::{Parameters, Setting};
use crate::error::{Error, Kind, Result};

/// A tensor of the merged model, as parameters see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorPlace<'a> {
    /// Its name in the merged model.
    pub name: &'a str,
    /// The slice it is in; whole models are slice 0.
    pub slice: usize,
    /// The position of its layer within the slice, from 0 to 1; 0 for tensors outside the layers.
    pub t: f64,
}

impl Document {
    /// Returns the value of the parameter `name` for one of [`inputs`](Self::inputs), or without an
    /// input for all of them.
    ///
    /// A switch is 0 or 1. Where the recipe says nothing, the method's default holds.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when a parameter without a default has no value for this tensor, or when
    /// the method has no such parameter.
    pub fn parameter(
        &self,
        name: &str,
        input: Option<usize>,
        place: &TensorPlace<'_>,
    ) -> Result<f64> {
        if let Some(value) = self.setting(name, input, place) {
            return Ok(value);
        }
        let Some(info) = self.method.info().parameter(name) else {
            let cause = format!("{} has no such parameter", self.method);
            return Err(Error::new(
                Kind::Recipe,
                "cannot find parameter",
                name,
                cause,
            ));
        };
        info.default.ok_or_else(|| {
            let model = input.and_then(|input| {
                self.inputs(place.slice)
                    .get(input)
                    .map(|input| input.model.clone())
            });
            let of = model
                .map(|model| format!(" (model {model})"))
                .unwrap_or_default();
            let cause = format!("no condition fits it{of}");
            self.parameter_error(
                name,
                input,
                place,
                cause,
                "add a last condition without a filter: `- value: …`",
            )
        })
    }

    /// Returns the value that the recipe itself gives, without defaults.
    fn setting(&self, name: &str, input: Option<usize>, place: &TensorPlace<'_>) -> Option<f64> {
        let own = input
            .and_then(|input| self.own_parameters(place.slice, input))
            .and_then(|own| own.get(name));
        own.into_iter()
            .chain(self.shared_settings(name, place.slice))
            .find_map(|level| level.at(place.name, place.t))
    }

    /// Returns the parameters of one input; called for every tensor, so it does not make the list
    /// of inputs.
    fn own_parameters(&self, slice: usize, input: usize) -> Option<&Parameters> {
        match &self.sources {
            Sources::Models(models) => models.get(input).map(|entry| &entry.parameters),
            Sources::Slices(slices) => slices
                .get(slice)?
                .sources
                .get(input)
                .map(|source| &source.parameters),
        }
    }

    /// Returns the settings of `name` in the slice, the module and the document, in this order.
    pub(super) fn shared_settings<'a>(
        &'a self,
        name: &'a str,
        slice: usize,
    ) -> impl Iterator<Item = &'a Setting> {
        let slice = match &self.sources {
            Sources::Models(_) => None,
            Sources::Slices(slices) => slices.get(slice).map(|slice| &slice.parameters),
        };
        let module = self.module.as_ref().map(|module| &module.parameters);
        [slice, module, Some(&self.parameters)]
            .into_iter()
            .flatten()
            .filter_map(move |level| level.get(name))
    }
}
