//! Recognises weights that are stored as codes with scales beside them. Such codes are not plain
//! numbers: a mean of codes and a mean of scales do not give the mean of the weights.
//!
//! The names and types of the tensors decide; a config gives the layout its name, and decides if
//! the names alone cannot. A config that calls plain floats quantised is stale. `layouts` lists the
//! known layouts, `claim` reads the configs. This module decodes nothing.

mod claim;
mod layouts;

use std::path::Path;

use indexmap::IndexMap;

use super::header::shown;
use super::{InputFile, Name, TensorEntry};
use crate::dtype::Dtype;
use crate::error::{Error, Kind};
pub use claim::CONFIG_KEYS;
use claim::Claim;
pub use layouts::is_code;
use layouts::{
    BESIDE_TENSOR, BESIDE_WEIGHT, COMPANIONS, LAYOUTS, Layout, MICROSCALING, SCALED_FP8, UNNAMED,
};

type Tensors = IndexMap<Name, TensorEntry>;

/// The storage of a checkpoint's weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Numbers, without a statement to the contrary.
    Plain,
    /// Numbers that the model rounds at every use, by its config.
    RoundedInUse,
    /// Numbers, though a config calls them quantised; the text names the config and the method.
    Stale(String),
    /// Codes.
    Codes(Codes),
}

/// Weights that are stored as codes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes {
    /// The layout's name.
    pub layout: String,
    /// The first tensor by which it was recognised.
    pub tensor: String,
    /// The advice for converting such a model back to floats.
    pub cure: &'static str,
}

/// Determines the storage of the weights of the model in `folder`.
pub(super) fn look(folder: &Path, files: &[InputFile], tensors: &Tensors) -> Stored {
    let claim = Claim::find(folder, files);
    let found = by_mark(tensors).or_else(|| by_scales(tensors));
    match (claim, found) {
        (None, None) => Stored::Plain,
        (None, Some((layout, tensor))) => codes(layout.name.to_owned(), layout, tensor),
        (Some(claim), Some((layout, tensor))) => {
            let named = layouts::called(&claim.method);
            let specific = named
                .filter(|named| !named.marks.is_empty() || layout.marks.is_empty())
                .unwrap_or(layout);
            let name = match named {
                Some(_) => specific.name.to_owned(),
                None => format!(
                    "{} ({}: {})",
                    layout.name,
                    claim.place,
                    shown(&claim.method)
                ),
            };
            codes(name, specific, tensor)
        }
        (Some(claim), None) => match by_claim(tensors) {
            Some(tensor) => {
                let layout = layouts::called(&claim.method).unwrap_or(&UNNAMED);
                let name = layouts::called(&claim.method)
                    .map_or_else(|| shown(&claim.method), |l| l.name.to_owned());
                codes(format!("{name}, by {}", claim.place), layout, tensor)
            }
            None if claim.when_used => Stored::RoundedInUse,
            None => Stored::Stale(format!("{}: {}", claim.place, shown(&claim.method))),
        },
    }
}

fn codes(layout: String, known: &Layout, tensor: &str) -> Stored {
    Stored::Codes(Codes {
        layout,
        tensor: tensor.to_owned(),
        cure: known.cure,
    })
}

/// Finds the first layout with an identifying tensor, and that tensor.
fn by_mark(tensors: &Tensors) -> Option<(&'static Layout, &str)> {
    let mut marks = LAYOUTS
        .iter()
        .flat_map(|layout| layout.marks.iter().map(move |mark| (layout, mark)));
    marks.find_map(|(layout, mark)| {
        let is_marked = |(name, entry): &(&Name, &TensorEntry)| {
            let Some(stem) = name.strip_suffix(mark.code) else {
                return false;
            };
            let there = |with: &&str| tensors.contains_key(format!("{stem}{with}").as_str());
            mark.holds.fits(entry.dtype) && (mark.with.is_empty() || mark.with.iter().any(there))
        };
        tensors
            .iter()
            .find(is_marked)
            .map(|(name, _)| (layout, name.as_str()))
    })
}

/// Finds the first tensor of codes with scales beside it, in any layout, or the first tensor of
/// microscaling scales.
fn by_scales(tensors: &Tensors) -> Option<(&'static Layout, &str)> {
    let found = tensors
        .iter()
        .find(|(name, entry)| is_code(entry.dtype) && has_scales(tensors, name, entry));
    found.map(|(name, entry)| {
        let layout = match entry.dtype {
            Dtype::F8E8M0 => &MICROSCALING,
            dtype if layouts::is_fp8(dtype) => &SCALED_FP8,
            _ => &UNNAMED,
        };
        (layout, name.as_str())
    })
}

fn has_scales(tensors: &Tensors, name: &str, entry: &TensorEntry) -> bool {
    if entry.dtype == Dtype::F8E8M0 {
        return true;
    }
    // Codes of weights have rows and columns; a vector may be anything.
    if entry.shape.len() < 2 {
        return false;
    }
    let count = |shape: &[u64]| shape.iter().product::<u64>();
    // A tool that casts all tensors of an ordinary model to eight bits casts its scales too.
    let is_scale = |name: String| {
        let fits = |scale: &TensorEntry| {
            !layouts::is_fp8(scale.dtype) && count(&scale.shape) < count(&entry.shape)
        };
        tensors.get(name.as_str()).is_some_and(fits)
    };
    let module = name
        .strip_suffix("weight")
        .filter(|module| module.ends_with('.'));
    BESIDE_TENSOR
        .iter()
        .any(|ending| is_scale(format!("{name}{ending}")))
        || module.is_some_and(|module| {
            BESIDE_WEIGHT
                .iter()
                .any(|sibling| is_scale(format!("{module}{sibling}")))
        })
}

/// Finds the first tensor that confirms a config's statement that weights are quantised.
fn by_claim(tensors: &Tensors) -> Option<&str> {
    /// Buffers of whole numbers that ordinary models have.
    const BUFFERS: [&str; 4] = ["ids", "index", "mask", ".bias"];
    let agrees = |(name, entry): &(&Name, &TensorEntry)| {
        let is_buffer = BUFFERS.iter().any(|ending| name.ends_with(ending));
        (is_code(entry.dtype) && entry.shape.len() > 1 && !is_buffer)
            || COMPANIONS.iter().any(|ending| name.ends_with(ending))
    };
    tensors.iter().find(agrees).map(|(name, _)| name.as_str())
}

impl Codes {
    /// Returns the error for a checkpoint of such weights.
    pub(super) fn refusal(&self, root: &Path) -> Error {
        let Self {
            layout,
            tensor,
            cure,
        } = self;
        let cause = format!(
            "its weights are quantised: {layout}, as {} shows. Codes and scales cannot be averaged or moved as if they \
             were numbers",
            shown(tensor)
        );
        Error::new(Kind::Input, "cannot open checkpoint", root.display(), cause).with_hint(format!(
            "dequantise it first ({cure}); or say `quantised: raw` to take codes and scales \
             as the numbers that they are stored as"
        ))
    }

    /// Returns the warning if such weights are read all the same.
    pub(super) fn warning(&self) -> String {
        format!(
            "quantised ({}, as {} shows): codes and scales are taken as the numbers that they are stored as",
            self.layout,
            shown(&self.tensor)
        )
    }
}
