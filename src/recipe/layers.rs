//! Layers, found in the names of tensors: `model.layers.12.mlp.up_proj.weight` is part of layer 12
//! of `model.layers.`.
//!
//! Architectures are not known. A number between dots counts as a layer when the text before it
//! comes with different numbers. The first such number in a name decides, so numbers that repeat
//! inside a layer stay inside it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A tensor's name, taken apart at its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerName<'a> {
    /// The part before the number, dot included.
    pub stem: &'a str,
    /// The number of the layer.
    pub index: u32,
    /// The part after the number, dot included; empty at the end of a name.
    pub rest: &'a str,
}

impl LayerName<'_> {
    /// Returns the name of the same tensor in another layer of another stack.
    pub fn renumbered(&self, stem: &str, index: u32) -> String {
        format!("{stem}{index}{}", self.rest)
    }
}

/// Words after which a single number counts as a layer; after any other word there must be several.
const STACKS: [&str; 8] = [
    "layers",
    "layer",
    "h",
    "blocks",
    "block",
    "resblocks",
    "decoder_layers",
    "encoder_layers",
];

/// Words after which a number counts other things than layers.
const NOT_STACKS: [&str; 2] = ["experts", "expert"];

/// Takes `name` apart at its first number, as far as one name can tell.
pub fn layer_of(name: &str) -> Option<LayerName<'_>> {
    numbers(name).next()
}

/// Returns every way to take `name` apart at a number, from left to right.
fn numbers(name: &str) -> impl Iterator<Item = LayerName<'_>> {
    let starts = name.match_indices('.').map(|(dot, _)| dot + 1);
    starts.filter_map(move |start| {
        let (stem, tail) = name.split_at(start);
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = tail.split_at(digits);
        // A leading zero would be lost when the number is written again.
        let canonical = number == "0" || !number.starts_with('0');
        let whole = canonical && (rest.is_empty() || rest.starts_with('.'));
        let index = number
            .parse()
            .ok()
            .filter(|_| whole && !NOT_STACKS.contains(&last_word(stem)))?;
        Some(LayerName { stem, index, rest })
    })
}

fn last_word(stem: &str) -> &str {
    stem.trim_end_matches('.')
        .rsplit('.')
        .next()
        .unwrap_or_default()
}

/// The stacks of layers of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layers {
    /// Stem and number of layers, in the order of stems.
    stacks: BTreeMap<String, u32>,
}

impl Layers {
    /// Finds the stacks that the names of a model's tensors show.
    pub fn find<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names: Vec<&str> = names.into_iter().collect();
        let mut indexes: HashMap<&str, BTreeSet<u32>> = HashMap::new();
        for part in names.iter().flat_map(|name| numbers(name)) {
            indexes.entry(part.stem).or_default().insert(part.index);
        }
        let mut stacks = BTreeMap::new();
        for name in names {
            let repeats = numbers(name).find(|part| {
                STACKS.contains(&last_word(part.stem))
                    || indexes.get(part.stem).is_some_and(|found| found.len() > 1)
            });
            let Some(part) = repeats else { continue };
            let count: &mut u32 = stacks.entry(part.stem.to_owned()).or_default();
            *count = (*count).max(part.index.saturating_add(1));
        }
        Self { stacks }
    }

    /// Returns the stem and the number of layers of each stack, in the order of stems.
    pub fn stacks(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.stacks
            .iter()
            .map(|(stem, count)| (stem.as_str(), *count))
    }

    /// Returns the layer of the tensor `name`; `None` outside the layers.
    pub fn of<'a>(&self, name: &'a str) -> Option<LayerName<'a>> {
        numbers(name).find(|part| self.stacks.contains_key(part.stem))
    }

    /// Returns the position of the tensor `name` in its stack: layer / (n - 1), 1 in a stack of
    /// one, 0 outside the layers.
    ///
    /// Tensors after the layers are at 0 too, as in mergekit: recipes are tuned to that.
    pub fn t(&self, name: &str) -> f64 {
        self.of(name).map_or(0.0, |part| {
            self.stacks
                .get(part.stem)
                .map_or(0.0, |&count| position(part.index, count))
        })
    }
}

/// Returns the position of a layer among `count`: from 0 to 1, and 1 when it is alone.
pub(super) fn position(layer: u32, count: u32) -> f64 {
    if count <= 1 {
        1.0
    } else {
        f64::from(layer) / f64::from(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(stem: &'static str, index: u32, rest: &'static str) -> Option<LayerName<'static>> {
        Some(LayerName { stem, index, rest })
    }

    #[test]
    fn layers_are_found_whatever_the_architecture_calls_them() {
        for (name, expected) in [
            (
                "model.layers.12.mlp.up_proj.weight",
                part("model.layers.", 12, ".mlp.up_proj.weight"),
            ),
            (
                "transformer.h.0.attn.bias",
                part("transformer.h.", 0, ".attn.bias"),
            ),
            ("h.11.ln_1.weight", part("h.", 11, ".ln_1.weight")),
            (
                "bert.encoder.layer.3.output.dense.bias",
                part("bert.encoder.layer.", 3, ".output.dense.bias"),
            ),
            ("blocks.7.norm1", part("blocks.", 7, ".norm1")),
            (
                "model.layers.5.mlp.experts.3.w1",
                part("model.layers.", 5, ".mlp.experts.3.w1"),
            ),
            ("stack.4", part("stack.", 4, "")),
            ("mlp.experts.3.w1", None),
            ("model.embed_tokens.weight", None),
            ("layer1.conv.weight", None),
            ("model.layers.07.w", None),
            ("model.layers.4294967296.w", None),
            ("model.layers.3b.w", None),
            ("", None),
            ("...", None),
        ] {
            assert_eq!(layer_of(name), expected, "{name}");
        }
    }

    #[test]
    fn only_numbers_that_repeat_make_a_stack() {
        let names = [
            "net.0.layers.0.w",
            "net.0.layers.1.w",
            "net.0.layers.1.experts.0.w",
            "net.0.layers.1.experts.1.w",
            "head.proj.0.weight",
            "decoder.block.0.w",
        ];
        let layers = Layers::find(names);
        assert_eq!(
            layers.stacks().collect::<Vec<_>>(),
            [("decoder.block.", 1), ("net.0.layers.", 2)]
        );
        assert_eq!(layers.of("head.proj.0.weight"), None);
        assert_eq!(
            layers
                .of("net.0.layers.1.experts.1.w")
                .map(|part| part.index),
            Some(1)
        );
    }

    #[test]
    fn positions_run_from_zero_to_one_and_stay_zero_outside_the_layers() {
        let layers = Layers::find(["l.layers.0.a", "l.layers.4.a", "v.h.0.a", "norm"]);
        for (name, t) in [
            ("l.layers.0.a", 0.0),
            ("l.layers.1.a", 0.25),
            ("l.layers.4.a", 1.0),
            ("v.h.0.a", 1.0),
            ("norm", 0.0),
        ] {
            assert_eq!(layers.t(name), t, "{name}");
        }
    }

    #[test]
    fn a_name_of_many_numbers_is_taken_apart_without_harm() {
        let name = "a.1".repeat(10_000);
        assert!(Layers::find([name.as_str()]).stacks().len() <= 1);
    }
}
