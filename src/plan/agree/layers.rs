//! Layers that the donor does not have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::error::Result;
use crate::plan::assign::Assignment;
use crate::plan::missing::Inputs;
use crate::plan::ties::TEXT_CONFIGS;
use crate::recipe::Layers;

use super::{Agreed, Deeper, Edit, refusal, to_usize};

/// Keys that count layers, and the part of the model that each counts.
const COUNTS: [(&str, ModelPart); 9] = [
    ("num_hidden_layers", ModelPart::Any),
    ("n_layer", ModelPart::Any),
    ("num_layers", ModelPart::Any),
    ("n_layers", ModelPart::Any),
    ("depth", ModelPart::Any),
    ("encoder_layers", ModelPart::Encoder),
    ("num_encoder_layers", ModelPart::Encoder),
    ("decoder_layers", ModelPart::Decoder),
    ("num_decoder_layers", ModelPart::Decoder),
];

/// The part of a model that has the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelPart {
    /// The only part, or the language model.
    Any,
    Vision,
    Audio,
    Encoder,
    Decoder,
}

/// A stack that is longer than the donor's.
struct Stack<'a> {
    stem: &'a str,
    before: u32,
    count: u32,
    /// The tensors of each layer, and the input that its first tensor comes from.
    layers: BTreeMap<u32, (BTreeSet<&'a str>, usize)>,
}

/// Sets the number of layers in the donor's `config` to that of the written ones.
///
/// # Errors
///
/// Fails when the config does not count them, or the layers are unlike the others.
pub fn agree(
    given: &Inputs<'_>,
    config: &Value,
    assignments: &[Assignment],
    agreed: &mut Agreed,
) -> Result<()> {
    let found = Layers::find(
        assignments
            .iter()
            .map(|assignment| assignment.name.as_str()),
    );
    let own = Layers::find(given.names(given.job.donor));
    let counts: BTreeMap<&str, u32> = own.stacks().collect();
    let longer = found
        .stacks()
        .filter(|(stem, count)| counts.get(stem).is_none_or(|before| before < count));
    for (stem, count) in longer {
        let mut stack = Stack {
            stem,
            before: counts.get(stem).copied().unwrap_or(0),
            count,
            layers: BTreeMap::new(),
        };
        for assignment in assignments {
            let Some(part) = found.of(&assignment.name).filter(|part| part.stem == stem) else {
                continue;
            };
            let layer = stack
                .layers
                .entry(part.index)
                .or_insert_with(|| (BTreeSet::new(), assignment.sources[0].0));
            layer.0.insert(part.rest);
        }
        stack.refuse_odd(given)?;
        stack.count(given, config, own.stacks().len() == 1, agreed)?;
    }
    Ok(())
}

impl Stack<'_> {
    /// Refuses layers that no config could count: of a stack that the donor lacks, after a gap, or
    /// unlike all others.
    fn refuse_odd(&self, given: &Inputs<'_>) -> Result<()> {
        let name = |layer: u32| format!("`{}{layer}`", self.stem);
        if self.before == 0 {
            let cause = format!(
                "the base has no layers `{}*`, so its config describes none",
                self.stem
            );
            return Err(refusal(given, cause));
        }
        if let Some(gap) = (self.before..self.count).find(|layer| !self.layers.contains_key(layer))
        {
            let cause = format!(
                "{} would be written, but no model has {}",
                name(self.count - 1),
                name(gap)
            );
            return Err(refusal(given, cause));
        }
        match (self.before..self.count).find(|layer| !self.is_like_one_before(*layer)) {
            Some(odd) => {
                let cause = format!(
                    "{} is in {} and not in the base, and has other tensors than the base's layers",
                    name(odd),
                    given.inputs[self.layers[&odd].1].root().display()
                );
                Err(refusal(given, cause))
            }
            None => Ok(()),
        }
    }

    /// True if a layer has the same tensors as one of the donor's.
    fn is_like_one_before(&self, layer: u32) -> bool {
        let (parts, _) = &self.layers[&layer];
        let mut before = self.layers.range(..self.before);
        before.any(|(_, (others, _))| parts == others)
    }

    /// Writes the number of layers wherever the config states it.
    fn count(
        &self,
        given: &Inputs<'_>,
        config: &Value,
        only: bool,
        agreed: &mut Agreed,
    ) -> Result<()> {
        let places = self.places(config);
        let stated = self.stated(given, &places)?;
        let added = u64::from(self.count - self.before);
        self.check_last(given, stated, stated + added)?;
        if only && places.iter().all(|place| place.is_plain()) {
            agreed.deeper = Some(self.deeper(given.job.donor));
            return Ok(());
        }
        for place in places {
            if let Some(list) = place.lists.first() {
                let cause = format!(
                    "its `{list}` has a value for each of the layers `{}*`",
                    self.stem
                );
                return Err(refusal(given, cause));
            }
            agreed.edits.push(Edit {
                path: place.path,
                key: place.key,
                value: (stated + added).into(),
            });
        }
        Ok(())
    }

    /// Returns the number of layers that the config states, the same at all places.
    fn stated(&self, given: &Inputs<'_>, places: &[CountPlace]) -> Result<u64> {
        let stated = places.first().map(|place| place.stated);
        stated
            .filter(|stated| places.iter().all(|place| place.stated == *stated))
            .ok_or_else(|| {
                let cause = format!(
                    "it does not say how many layers `{}*` there are, of which {} are written",
                    self.stem, self.count
                );
                refusal(given, cause)
            })
    }

    /// Checks that the model of the last layer counts its layers as the donor does, so that its
    /// config states `wanted`.
    fn check_last(&self, given: &Inputs<'_>, stated: u64, wanted: u64) -> Result<()> {
        let last = &given.inputs[self.layers[&(self.count - 1)].1];
        let config = last.config()?;
        let theirs = config.map(|config| self.places(&config));
        let other = theirs.as_ref().and_then(|places| places.first());
        let Some(other) = other.filter(|other| other.stated != wanted) else {
            return Ok(());
        };
        let cause = format!(
            "it counts {stated} layers and that of {} {}, where {} and {} are stored: which of them count cannot be told",
            last.root().display(),
            other.stated,
            self.before,
            self.count
        );
        Err(refusal(given, cause))
    }

    /// Returns the origin of each layer: the donor's own, then those that are added.
    fn deeper(&self, donor: usize) -> Deeper {
        let own = (0..self.before).map(|layer| (donor, to_usize(layer)));
        let added = (self.before..self.count).map(|layer| (self.layers[&layer].1, to_usize(layer)));
        Deeper {
            before: to_usize(self.before),
            origins: own.chain(added).collect(),
        }
    }

    /// Finds the places where a config counts these layers.
    fn places(&self, config: &Value) -> Vec<CountPlace> {
        let mut all = Vec::new();
        if let Some(fields) = config.as_object() {
            self.places_in(fields, &[], ModelPart::Any, &mut all);
        }
        let wanted = part_of(self.stem);
        let exact: Vec<CountPlace> = all
            .iter()
            .filter(|(part, _)| *part == wanted)
            .map(|(_, place)| place.clone())
            .collect();
        // An encoder or decoder that is the whole model is counted by a key that does not name it.
        match exact.is_empty() && matches!(wanted, ModelPart::Encoder | ModelPart::Decoder) {
            true => all
                .into_iter()
                .filter(|(part, _)| *part == ModelPart::Any)
                .map(|(_, place)| place)
                .collect(),
            false => exact,
        }
    }

    fn places_in(
        &self,
        fields: &Map<String, Value>,
        path: &[String],
        of: ModelPart,
        all: &mut Vec<(ModelPart, CountPlace)>,
    ) {
        for (key, part) in COUNTS {
            if let Some(stated) = fields.get(key).and_then(Value::as_u64) {
                let lists = self.lists_by_layer(fields);
                let part = if of == ModelPart::Any { part } else { of };
                all.push((
                    part,
                    CountPlace {
                        path: path.to_vec(),
                        key: key.to_owned(),
                        stated,
                        lists,
                    },
                ));
            }
        }
        for (key, inner) in fields
            .iter()
            .filter_map(|(key, value)| Some((key, value.as_object()?)))
        {
            let part = match key.as_str() {
                _ if TEXT_CONFIGS.contains(&key.as_str()) => ModelPart::Any,
                _ if key.ends_with("_config") || key == "encoder" || key == "decoder" => {
                    part_of(key)
                }
                _ => continue,
            };
            if path.is_empty() && (part != ModelPart::Any || TEXT_CONFIGS.contains(&key.as_str())) {
                self.places_in(inner, std::slice::from_ref(key), part, all);
            }
        }
    }

    /// Returns the keys of lists that have a value for each layer.
    fn lists_by_layer(&self, fields: &Map<String, Value>) -> Vec<String> {
        fields
            .iter()
            .filter(|(key, _)| *key != "architectures" && !key.contains("token"))
            .filter(|(_, value)| {
                let list = value.as_array();
                list.is_some_and(|list| list.len() == to_usize(self.before))
            })
            .map(|(key, _)| key.clone())
            .collect()
    }
}

/// A place where a config counts layers.
#[derive(Debug, Clone, Default)]
struct CountPlace {
    path: Vec<String>,
    key: String,
    stated: u64,
    /// Lists beside it that have one value per layer.
    lists: Vec<String>,
}

impl CountPlace {
    /// Tells if restacking a model updates this place by itself.
    fn is_plain(&self) -> bool {
        let text = self
            .path
            .iter()
            .all(|key| TEXT_CONFIGS.contains(&key.as_str()));
        text && COUNTS
            .iter()
            .any(|(key, part)| *key == self.key && *part == ModelPart::Any && *key != "depth")
    }
}

fn part_of(words: &str) -> ModelPart {
    let has = |of: &[&str]| of.iter().any(|word| words.contains(word));
    match () {
        () if has(&["vision", "visual", "image", "vit"]) => ModelPart::Vision,
        () if has(&["audio", "speech"]) => ModelPart::Audio,
        () if has(&["decoder"]) => ModelPart::Decoder,
        () if has(&["encoder"]) => ModelPart::Encoder,
        () => ModelPart::Any,
    }
}
