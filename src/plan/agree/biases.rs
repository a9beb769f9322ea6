//! Biases that the donor does not have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::Result;
use crate::plan::assign::Assignment;
use crate::plan::missing::Inputs;
use crate::plan::ties::TEXT_CONFIGS;
use crate::recipe::Layers;

use super::{Agreed, Edit, listed, refusal, to_usize};

/// A switch in the configs of some families, and the modules of each layer that have a bias when it
/// is on.
struct Switch {
    families: &'static [&'static str],
    key: &'static str,
    modules: &'static [&'static str],
}

const ATTENTION: &[&str] = &["q_proj", "k_proj", "v_proj", "o_proj"];
const QUERIES: &[&str] = &["q_proj", "k_proj", "v_proj"];
const GATED: &[&str] = &["gate_proj", "up_proj", "down_proj"];

/// The switches of transformers' models.
const SWITCHES: [Switch; 11] = [
    Switch {
        families: &[
            "llama",
            "qwen3",
            "qwen3_moe",
            "qwen3_next",
            "granite",
            "granitemoe",
            "cohere",
            "cohere2",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo",
            "olmo2",
            "olmo3",
            "olmoe",
            "flex_olmo",
            "apertus",
            "arcee",
            "bitnet",
            "nemotron",
            "smollm3",
            "diffllama",
            "hunyuan_v1_dense",
            "dots1",
            "phimoe",
            "vaultgemma",
            "chameleon",
            "aria_text",
            "emu3_text_model",
        ],
        key: "attention_bias",
        modules: ATTENTION,
    },
    Switch {
        families: &["glm", "glm4", "glm4_moe", "helium", "seed_oss"],
        key: "attention_bias",
        modules: QUERIES,
    },
    Switch {
        families: &["gpt_neox"],
        key: "attention_bias",
        modules: &["query_key_value", "dense"],
    },
    Switch {
        families: &["qwen2_moe"],
        key: "qkv_bias",
        modules: QUERIES,
    },
    Switch {
        families: &["stablelm"],
        key: "use_qkv_bias",
        modules: QUERIES,
    },
    Switch {
        families: &[
            "llama",
            "granite",
            "smollm3",
            "seed_oss",
            "diffllama",
            "helium",
            "chameleon",
            "aria_text",
            "emu3_text_model",
        ],
        key: "mlp_bias",
        modules: GATED,
    },
    Switch {
        families: &["arcee", "nemotron"],
        key: "mlp_bias",
        modules: &["up_proj", "down_proj"],
    },
    Switch {
        families: &["ernie4_5", "ernie4_5_moe"],
        key: "use_bias",
        modules: &[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
    },
    Switch {
        families: &["starcoder2"],
        key: "use_bias",
        modules: &["q_proj", "k_proj", "v_proj", "o_proj", "c_fc", "c_proj"],
    },
    Switch {
        families: &["falcon"],
        key: "bias",
        modules: &["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    },
    Switch {
        families: &["opt"],
        key: "enable_bias",
        modules: &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    },
];

/// Switches on the biases in the donor's `config` that are written but that the donor lacks.
///
/// # Errors
///
/// Fails when there is no switch for them, or it covers more biases than are written.
pub fn agree(
    given: &Inputs<'_>,
    config: &Value,
    assignments: &[Assignment],
    agreed: &mut Agreed,
) -> Result<()> {
    let names = assignments.iter().map(|tensor| tensor.name.as_str());
    let layers = Layers::find(names.clone());
    let mut new = new_biases(given, &layers, names);
    if new.is_empty() {
        return Ok(());
    }
    let (path, fields) = described(config);
    let family = fields.get("model_type").or(config.get("model_type"));
    let family = family.and_then(Value::as_str).unwrap_or_default();
    let depths = layers.stacks().map(|(_, count)| to_usize(count));
    let depth = depths.max().unwrap_or(0);
    for key in take_switches(&mut new, family, depth) {
        let (path, key, value) = (path.clone(), key.to_owned(), true.into());
        agreed.edits.push(Edit { path, key, value });
    }
    let left: Vec<&str> = new.into_values().flatten().collect();
    if left.is_empty() {
        return Ok(());
    }
    let cause = format!(
        "the base has no {}, and its config ({family}) cannot say that there are just these",
        listed(&left)
    );
    Err(refusal(given, cause))
}

/// Returns the keys of the family's switches whose biases are new in all layers, and takes these
/// out of `new`.
fn take_switches(
    new: &mut BTreeMap<String, Vec<&str>>,
    family: &str,
    depth: usize,
) -> Vec<&'static str> {
    let of_family = |switch: &&Switch| switch.families.contains(&family);
    let mut keys = Vec::new();
    for switch in SWITCHES.iter().filter(of_family) {
        // A switch is for all layers and for all of its modules.
        let is_whole = switch.modules.iter().all(|module| {
            let mut places = new.iter();
            places.any(|(place, names)| of(place, module) && names.len() == depth)
        });
        if is_whole {
            new.retain(|place, _| !switch.modules.iter().any(|module| of(place, module)));
            keys.push(switch.key);
        }
    }
    keys
}

/// Returns the biases that the donor lacks although it has their modules, by their place in a
/// layer: no switch adds whole modules.
fn new_biases<'a>(
    given: &Inputs<'_>,
    layers: &Layers,
    names: impl Iterator<Item = &'a str>,
) -> BTreeMap<String, Vec<&'a str>> {
    let known: BTreeSet<String> = given
        .names(given.job.donor)
        .map(|name| place_of(layers, name))
        .collect();
    let mut new: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in names {
        let Some(module) = name.strip_suffix("bias") else {
            continue;
        };
        let weight = place_of(layers, &format!("{module}weight"));
        let place = place_of(layers, name);
        if known.contains(&weight) && !known.contains(&place) {
            new.entry(place).or_default().push(name);
        }
    }
    new
}

/// Returns a name with a star for the number of its layer.
fn place_of(layers: &Layers, name: &str) -> String {
    let part = layers.of(name);
    part.map_or_else(
        || name.to_owned(),
        |part| format!("{}*{}", part.stem, part.rest),
    )
}

/// Tells if `place` is the bias of a module of this name.
fn of(place: &str, module: &str) -> bool {
    place
        .strip_suffix(".bias")
        .is_some_and(|begin| begin.rsplit('.').next() == Some(module))
}

/// Returns the part of a config that describes the language model, and the keys that lead to it.
fn described(config: &Value) -> (Vec<String>, &Value) {
    let inner = TEXT_CONFIGS.iter().find_map(|key| {
        Some((
            (*key).to_owned(),
            config.get(key).filter(|it| it.is_object())?,
        ))
    });
    inner.map_or((Vec::new(), config), |(key, text)| (vec![key], text))
}
