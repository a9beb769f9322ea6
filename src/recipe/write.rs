//! Writes documents back to mappings, which a run records and which read back as equal documents.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::document::{ChatTemplate, Document, LayerRange, Module, Sources, Tokenizer};
use super::setting::Parameters;
use crate::dtype::Dtype;

/// Writes `key` unless there is nothing to write.
pub(super) fn entry<M: SerializeMap, T: Serialize>(
    map: &mut M,
    key: &str,
    value: Option<T>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(key, &value))
}

/// Returns the name of a dtype in configs and recipes.
fn spelled(dtype: Dtype) -> &'static str {
    dtype.torch_name().unwrap_or_else(|| dtype.name())
}

fn filled(parameters: &Parameters) -> Option<&Parameters> {
    Some(parameters).filter(|parameters| !parameters.is_empty())
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "name", self.name.as_ref())?;
        map.serialize_entry("merge_method", &self.method)?;
        match &self.module {
            Some(module) => map.serialize_entry(
                "modules",
                &OneModule {
                    module,
                    sources: &self.sources,
                },
            )?,
            None => write_sources(&self.sources, &mut map)?,
        }
        entry(&mut map, "base_model", self.base_model.as_ref())?;
        entry(&mut map, "parameters", filled(&self.parameters))?;
        entry(&mut map, "dtype", self.dtype.map(spelled))?;
        entry(&mut map, "out_dtype", self.out_dtype.map(spelled))?;
        entry(&mut map, "tokenizer_source", self.tokenizer.as_ref())?;
        entry(&mut map, "chat_template", self.chat_template.as_ref())?;
        entry(&mut map, "pad_to_multiple_of", self.pad_to_multiple_of)?;
        self.own.write(&mut map)?;
        map.end()
    }
}

fn write_sources<M: SerializeMap>(sources: &Sources, map: &mut M) -> Result<(), M::Error> {
    match sources {
        Sources::Models(models) => map.serialize_entry("models", models),
        Sources::Slices(slices) => map.serialize_entry("slices", slices),
    }
}

/// The mapping `modules`, with its only entry.
struct OneModule<'a> {
    module: &'a Module,
    sources: &'a Sources,
}

impl Serialize for OneModule<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Body<'a>(&'a OneModule<'a>);
        impl Serialize for Body<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                write_sources(self.0.sources, &mut map)?;
                entry(&mut map, "parameters", filled(&self.0.module.parameters))?;
                map.end()
            }
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.module.name, &Body(self))?;
        map.end()
    }
}

impl Serialize for LayerRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        [self.start, self.end].serialize(serializer)
    }
}

impl Serialize for Tokenizer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Base => serializer.serialize_str("base"),
            Self::Model(model) => model.serialize(serializer),
        }
    }
}

impl Serialize for ChatTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Auto => "auto",
            Self::Preset(name) => name,
            Self::Jinja(text) => text,
        })
    }
}
