//! The tensors of a model that is stacked from slices, and the sources of each.

use std::collections::BTreeSet;

use super::document::{Document, Input, LayerRange, Sources};
use super::layers::{Layers, position};
use super::model_ref::ModelRef;
use super::resolve::TensorPlace;
use crate::error::{Error, Kind, Result};

/// A tensor of the stacked model.
#[derive(Debug, Clone, PartialEq)]
pub struct StackedTensor {
    /// Its name in the stacked model.
    pub name: String,
    /// Its slice; tensors before the layers belong to the first one, those after them to the last
    /// one.
    pub slice: usize,
    /// The position of its layer in the slice, as [`Layers::t`] has it for whole models.
    pub t: f64,
    /// Its sources, one for each of [`Document::inputs`] of the slice.
    pub sources: Vec<StackedSource>,
}

/// A source of a stacked tensor. At least one of the sources has such a tensor, not necessarily
/// each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StackedSource {
    /// The model, as an index of [`Document::models`].
    pub model: usize,
    /// The tensor's name in that model.
    pub name: String,
}

impl StackedTensor {
    /// Returns the tensor's place, as parameters see it.
    pub fn place(&self) -> TensorPlace<'_> {
        TensorPlace {
            name: &self.name,
            slice: self.slice,
            t: self.t,
        }
    }
}

/// Lists the tensors that the slices of `document` ask for; `names` are those of the tensors of
/// each of [`Document::models`].
///
/// Layers are renumbered from zero. Tensors outside the layers come once: those of embeddings from
/// the first slice, all others (final norm, head) from the last one. Whole models give no stacked
/// tensors.
///
/// # Errors
///
/// [`Kind::Mismatch`] when a model has no layers or several stacks of them, when layers are called
/// differently, or when a slice asks for layers that its model does not have; [`Kind::Usage`] when
/// `names` are not those of the models.
pub fn stacked_tensors(document: &Document, names: &[Vec<&str>]) -> Result<Vec<StackedTensor>> {
    let Sources::Slices(slices) = &document.sources else {
        return Ok(Vec::new());
    };
    let known = document.models();
    if names.len() != known.len() {
        let cause = format!(
            "has names of {} models, the recipe has {}",
            names.len(),
            known.len()
        );
        return Err(Error::new(
            Kind::Usage,
            "cannot stack slices",
            document.method,
            cause,
        ));
    }
    let stock = Stock::new(&known, names)?;
    let mut tensors = Vec::new();
    let mut offset = 0;
    for slice in 0..slices.len() {
        let inputs = document.inputs(slice);
        if slice == 0 {
            stock.outside(slice, &inputs, is_before_layers, &mut tensors);
        }
        offset = stock.layers(slice, &inputs, offset, &mut tensors)?;
        if slice + 1 == slices.len() {
            stock.outside(slice, &inputs, |name| !is_before_layers(name), &mut tensors);
        }
    }
    Ok(tensors)
}

/// Tells by its name if a tensor outside the layers is read before them; output embeddings are
/// heads.
fn is_before_layers(name: &str) -> bool {
    let input = ["embed", "wte", "wpe", "emb.", "_emb"]
        .iter()
        .any(|part| name.contains(part));
    let output = ["embed_out", "output_embed", "lm_head"]
        .iter()
        .any(|part| name.contains(part));
    input && !output
}

/// The models, and the tensors and layers that they have.
struct Stock<'a> {
    models: &'a [&'a ModelRef],
    names: &'a [Vec<&'a str>],
    layers: Vec<Layers>,
    stem: String,
}

impl<'a> Stock<'a> {
    fn new(models: &'a [&'a ModelRef], names: &'a [Vec<&'a str>]) -> Result<Self> {
        let layers: Vec<Layers> = names
            .iter()
            .map(|names| Layers::find(names.iter().copied()))
            .collect();
        let mut stem: Option<(&str, &ModelRef)> = None;
        for (found, &model) in layers.iter().zip(models) {
            let stacks: Vec<&str> = found.stacks().map(|(stem, _)| stem).collect();
            let [own] = stacks[..] else {
                let cause = match stacks.len() {
                    0 => "has no layers to slice".to_owned(),
                    _ => format!(
                        "has several stacks of layers ({}), slices need one",
                        stacks.join(", ")
                    ),
                };
                return Err(refusal(model, cause));
            };
            let (first, of) = *stem.get_or_insert((own, model));
            if first != own {
                return Err(refusal(
                    model,
                    format!("calls its layers {own}, {of} calls them {first}"),
                ));
            }
        }
        let stem = stem.map(|(stem, _)| stem.to_owned()).unwrap_or_default();
        Ok(Self {
            models,
            names,
            layers,
            stem,
        })
    }

    fn model(&self, input: &Input<'_>) -> usize {
        self.models
            .iter()
            .position(|&model| model == input.model)
            .expect("inputs are among the document's models")
    }

    fn count(&self, model: usize) -> u32 {
        self.layers
            .get(model)
            .and_then(|layers| layers.stacks().next())
            .map_or(0, |(_, count)| count)
    }

    /// Returns the range of each input, checked against its model and against each other.
    fn ranges(&self, slice: usize, inputs: &[Input<'_>]) -> Result<Vec<LayerRange>> {
        let mut ranges: Vec<LayerRange> = Vec::new();
        for input in inputs {
            let count = self.count(self.model(input));
            let range = input.layers.unwrap_or(LayerRange {
                start: 0,
                end: count,
            });
            if range.end > count {
                let LayerRange { start, end } = range;
                let cause = format!(
                    "slice {slice} asks for layers [{start}, {end}], the model has {count}"
                );
                return Err(refusal(input.model, cause));
            }
            if let Some(first) = ranges.first()
                && first.count() != range.count()
            {
                let (one, other) = (first.count(), range.count());
                let cause = format!(
                    "slice {slice} takes {other} layers of it, but {one} of {}",
                    inputs[0].model
                );
                return Err(refusal(input.model, cause));
            }
            ranges.push(range);
        }
        Ok(ranges)
    }

    /// Adds the layers of a slice, numbered from `offset` on; returns the number after them.
    fn layers(
        &self,
        slice: usize,
        inputs: &[Input<'_>],
        offset: u32,
        tensors: &mut Vec<StackedTensor>,
    ) -> Result<u32> {
        let ranges = self.ranges(slice, inputs)?;
        let length = ranges.first().map_or(0, |range| range.count());
        let end = offset.checked_add(length).ok_or_else(|| {
            let cause = "the slices have more layers than can be counted";
            refusal(inputs[0].model, cause.to_owned())
        })?;
        let rests = self.rests(inputs, &ranges);
        for layer in 0..length {
            let here = rests.range((layer, "")..(layer + 1, ""));
            let before = tensors.len();
            for &(_, rest) in here {
                let sources = inputs.iter().zip(&ranges);
                let sources = sources.map(|(input, range)| StackedSource {
                    model: self.model(input),
                    name: format!("{}{}{rest}", self.stem, range.start + layer),
                });
                tensors.push(StackedTensor {
                    name: format!("{}{}{rest}", self.stem, offset + layer),
                    slice,
                    t: position(layer, length),
                    sources: sources.collect(),
                });
            }
            if tensors.len() == before {
                let cause = format!(
                    "slice {slice} asks for layer {}, which has no tensors",
                    ranges[0].start + layer
                );
                return Err(refusal(inputs[0].model, cause));
            }
        }
        Ok(end)
    }

    /// Collects the tensors that any input has in its range: layer within the slice, and the name's
    /// rest.
    fn rests(&self, inputs: &[Input<'_>], ranges: &[LayerRange]) -> BTreeSet<(u32, &'a str)> {
        let mut rests = BTreeSet::new();
        for (input, range) in inputs.iter().zip(ranges) {
            let model = self.model(input);
            for name in &self.names[model] {
                if let Some(part) = self.layers[model].of(name)
                    && (range.start..range.end).contains(&part.index)
                {
                    rests.insert((part.index - range.start, part.rest));
                }
            }
        }
        rests
    }

    /// Adds the tensors outside the layers that any input has and that `wanted` picks.
    fn outside(
        &self,
        slice: usize,
        inputs: &[Input<'_>],
        wanted: impl Fn(&str) -> bool,
        tensors: &mut Vec<StackedTensor>,
    ) {
        let models: Vec<usize> = inputs.iter().map(|input| self.model(input)).collect();
        let names: BTreeSet<&str> = models
            .iter()
            .flat_map(|&model| {
                self.names[model]
                    .iter()
                    .filter(move |name| self.layers[model].of(name).is_none())
            })
            .copied()
            .filter(|name| wanted(name))
            .collect();
        tensors.extend(names.into_iter().map(|name| {
            let sources = models.iter().map(|model| StackedSource {
                model: *model,
                name: name.to_owned(),
            });
            StackedTensor {
                name: name.to_owned(),
                slice,
                t: 0.0,
                sources: sources.collect(),
            }
        }));
    }
}

fn refusal(model: &ModelRef, cause: String) -> Error {
    Error::new(Kind::Mismatch, "cannot stack slices", model, cause)
}
