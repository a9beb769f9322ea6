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
    let layers = Layers::find(
        assignments
            .iter()
            .map(|assignment| assignment.name.as_str()),
    );
    let place = |name: &str| {
        layers.of(name).map_or_else(
            || name.to_owned(),
            |part| format!("{}*{}", part.stem, part.rest),
        )
    };
    let known: BTreeSet<String> = given.names(given.job.donor).map(place).collect();
    // Only biases of modules that the donor has: no switch adds whole modules.
    let is_new = |name: &str| {
        let weight = name
            .strip_suffix("bias")
            .map(|module| format!("{module}weight"));
        weight.is_some_and(|weight| known.contains(&place(&weight)))
            && !known.contains(&place(name))
    };
    let mut new: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in assignments
        .iter()
        .map(|assignment| assignment.name.as_str())
        .filter(|name| is_new(name))
    {
        new.entry(place(name)).or_default().push(name);
    }
    if new.is_empty() {
        return Ok(());
    }
    let (path, fields) = described(config);
    let family = fields
        .get("model_type")
        .or(config.get("model_type"))
        .and_then(Value::as_str)
        .unwrap_or_default();
    let depth = layers
        .stacks()
        .map(|(_, count)| to_usize(count))
        .max()
        .unwrap_or(0);
    for switch in SWITCHES
        .iter()
        .filter(|switch| switch.families.contains(&family))
    {
        let whole = |module| {
            new.iter()
                .any(|(place, names)| of(place, module) && names.len() == depth)
        };
        if switch.modules.iter().all(|module| whole(module)) {
            new.retain(|place, _| !switch.modules.iter().any(|module| of(place, module)));
            agreed.edits.push(Edit {
                path: path.clone(),
                key: switch.key.to_owned(),
                value: true.into(),
            });
        }
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
