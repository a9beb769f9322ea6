//! The built-in specs, and the choice of one for a model.

use indexmap::IndexMap;
use serde_json::Value;

use super::Spec;
use super::pattern::Pattern;
use crate::error::{Error, Kind, Result};

macro_rules! specs {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("builtin/", $name, ".yml")))),*]
    };
}

/// Name and text of each spec. For a model without a config the first spec whose tensors it has is
/// used, so special ones come first.
const SPECS: [(&str, &str); 19] = specs![
    "mixtral",
    "qwen3-moe",
    "qwen2-moe",
    "qwen3",
    "gemma3",
    "phi3",
    "llama",
    "gemma",
    "gemma2",
    "neox",
    "gpt2",
    "bert",
    "vit",
    "resnet50",
    "resnet50-hf",
    "resnet20",
    "vgg16",
    "mlp-flax",
    "mlp",
];

/// Lists the names of all built-in specs.
pub fn names() -> impl Iterator<Item = &'static str> {
    SPECS.iter().map(|(name, _)| *name)
}

/// Returns the text of a built-in spec.
pub fn text_of(name: &str) -> Option<&'static str> {
    SPECS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
}

/// Parses a built-in spec.
///
/// # Errors
///
/// [`Kind::Usage`] when no spec has that name.
pub fn named(name: &str) -> Result<Spec> {
    let text = text_of(name).ok_or_else(|| {
        let known: Vec<&str> = names().collect();
        let cause = format!(
            "there is no such built-in spec; known are {}",
            known.join(", ")
        );
        Error::new(Kind::Usage, "cannot use spec", name.escape_debug(), cause)
    })?;
    Spec::parse(text, name)
}

/// Chooses the built-in spec for a model: by the config's model type, else by its architecture,
/// else the first spec whose tensors the model has.
///
/// A model type that no spec names is refused, whatever its tensor names: the same names may belong
/// to another function (other rotary embeddings, other norms), which a transform would change.
///
/// # Errors
///
/// [`Kind::Mismatch`] when no spec fits. Messages call the model `model`.
pub fn choose(
    shapes: &IndexMap<String, Vec<u64>>,
    config: Option<&Value>,
    model: &str,
) -> Result<Spec> {
    let specs = SPECS
        .iter()
        .map(|(name, text)| Spec::parse(text, name))
        .collect::<Result<Vec<_>>>()?;
    let model_type = config.and_then(|config| config.get("model_type")?.as_str());
    let architecture = config.and_then(|config| config.get("architectures")?.get(0)?.as_str());
    let found = match (model_type, architecture) {
        (Some(model_type), _) => specs.into_iter().find(|spec| {
            spec.matching
                .model_types
                .iter()
                .any(|known| known == model_type)
        }),
        (None, Some(name)) => specs.into_iter().find(|spec| {
            spec.matching
                .architectures
                .iter()
                .any(|known| known == name)
        }),
        (None, None) => specs.into_iter().find(|spec| has_tensors(spec, shapes)),
    };
    found.ok_or_else(|| {
        let cause = match model_type.or(architecture) {
            Some(known) => format!("no built-in symmetry spec is for `{}`", known.escape_debug()),
            None => "no built-in symmetry spec knows its tensors, and no config.json names its architecture".into(),
        };
        Error::new(Kind::Mismatch, "cannot find symmetries", model, cause)
            .with_hint("give a spec of your own, `spec: FILE`; it may extend a built-in one")
    })
}

fn has_tensors(spec: &Spec, shapes: &IndexMap<String, Vec<u64>>) -> bool {
    let none = [String::new()];
    let prefixes = if spec.prefixes.is_empty() {
        &none[..]
    } else {
        &spec.prefixes
    };
    let wanted = &spec.matching.tensors;
    !wanted.is_empty()
        && prefixes
            .iter()
            .any(|prefix| wanted.iter().all(|text| has_tensor(shapes, prefix, text)))
}

/// True if a tensor has the name that the pattern `text` describes under `prefix`.
fn has_tensor(shapes: &IndexMap<String, Vec<u64>>, prefix: &str, text: &str) -> bool {
    let pattern = Pattern::parse(text, prefix);
    pattern.is_ok_and(|pattern| shapes.keys().any(|name| pattern.bind(name).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_spec_is_read_and_bears_its_own_name() {
        for name in names() {
            let spec = named(name).expect(name);
            assert_eq!(spec.name, name);
            assert!(!spec.matching.is_empty(), "{name}");
            let again = Spec::parse(&serde_json::to_string(&spec).expect("plain data"), name)
                .expect("reads its own JSON");
            assert_eq!(again, spec);
        }
    }

    #[test]
    fn a_model_type_that_is_not_known_is_refused_however_familiar_the_tensors() {
        let shapes = IndexMap::from([(
            "model.layers.0.self_attn.q_proj.weight".to_owned(),
            vec![8, 8],
        )]);
        let config = serde_json::json!({ "model_type": "cohere" });
        assert!(choose(&shapes, Some(&config), "m").is_err());
        assert_eq!(
            choose(&shapes, None, "m").expect("by its tensors").name,
            "llama"
        );
    }
}
