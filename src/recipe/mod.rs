//! What the user asks for: mergekit's YAML, read, checked whole and resolved to numbers.
//!
//! ```text
//! text ──► tree with places ──► Document ──► parameter(name, model, tensor)
//!          node                 read         resolve
//!                                   └──────► stacked_tensors(names)   for slices
//! ```
//!
//! [`Recipe::parse`] refuses what it does not know: every key is in [`KEYS`], every method and parameter in [`METHODS`],
//! and every error names file, line, column and key. Model names are looked up by [`ModelRef::locate`], on this machine
//! only. Nothing here opens a model.
//!
//! Gradients behave as in mergekit, down to a surprise that recipes are tuned to: tensors before *and after* the layers
//! take a gradient's first value, the final norm and `lm_head` included; a filter gives them another one.

mod align;
mod document;
mod hub;
mod keys;
mod layers;
mod limits;
mod methods;
mod model_ref;
mod node;
mod origin;
mod own;
mod read;
mod rename;
mod resolve;
mod setting;
mod stack;
mod write;

use std::fs;
use std::io::Read as _;
use std::path::Path;

pub use align::{Align, AlignFrom};
pub use document::{
    CHAT_TEMPLATES, ChatTemplate, Document, Input, LayerRange, ModelEntry, Module, Slice, SliceSource, Sources,
    Tokenizer,
};
pub use hub::{HubCache, Snapshot};
pub use keys::{KEYS, KeyInfo, Place, keys_of};
pub use layers::{LayerName, Layers, layer_of};
pub use limits::{SWEEPS, THREADS, ZSTD_LEVELS};
pub use methods::{BaseRule, Domain, METHODS, MethodInfo, MethodName, ParameterInfo, Scope};
pub use model_ref::{ModelRef, expand_home};
pub use node::MAX_RECIPE_BYTES;
pub use own::{Granularity, Mismatch, Missing, NanPolicy, OwnKeys, Quantised};
pub use rename::{Pattern, Rename};
pub use resolve::TensorPlace;
pub use setting::{Condition, Parameters, Setting};
pub use stack::{StackedSource, StackedTensor, stacked_tensors};

use crate::error::{Error, Kind, Result};
use origin::{At, Origin};

/// A recipe: its text, and the merges it asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What messages call it, such as its path.
    pub name: String,
    /// The text as it was read.
    pub text: String,
    /// The merges, at least one, in the order written.
    pub documents: Vec<Document>,
}

impl Recipe {
    /// The recipe in `text`, which messages call `name`.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] with the place and the key, and the line in question as its hint.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let origin = Origin { name, text };
        let nodes = node::parse_documents(origin)?;
        if nodes.is_empty() {
            return Err(origin.error(At::default(), "holds nothing to merge"));
        }
        let documents = nodes.iter().map(|node| read::document(origin, node)).collect::<Result<Vec<_>>>()?;
        let recipe = Self { name: name.to_owned(), text: text.to_owned(), documents };
        recipe.check_stages(&nodes.iter().map(|node| node.at).collect::<Vec<_>>())?;
        Ok(recipe)
    }

    /// The recipe in the file `path`.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when it cannot be read, and as [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let cap = u64::try_from(MAX_RECIPE_BYTES).expect("16 MiB fit 64 bits") + 1;
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(cap).read_to_end(&mut bytes))
            .map_err(|error| Error::io("cannot read recipe", path, error).with_kind(Kind::Recipe))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            Error::new(Kind::Recipe, "cannot use recipe", &name, format!("is not UTF-8 text: {}", error.utf8_error()))
        })?;
        Self::parse(&text, &name)
    }

    /// The document whose result `model` names, if it names one.
    pub fn stage(&self, model: &ModelRef) -> Option<usize> {
        let named = |document: &Document| document.name.as_deref() == Some(&*model.path);
        self.documents.iter().position(named).filter(|_| model.revision.is_none())
    }

    /// Checks that stages are named apart, that all but the last have names, and that each takes earlier ones only.
    fn check_stages(&self, places: &[At]) -> Result<()> {
        let origin = Origin { name: &self.name, text: &self.text };
        let last = self.documents.len() - 1;
        for (index, (document, &at)) in self.documents.iter().zip(places).enumerate() {
            match &document.name {
                None if index < last => {
                    return Err(origin.error(at, "only the last document may do without a `name`"));
                }
                Some(name) if self.documents[..index].iter().any(|other| other.name.as_ref() == Some(name)) => {
                    return Err(origin.error(at, format!("two documents have the `name` {name}")));
                }
                _ => {}
            }
            let later = document.models().into_iter().find(|model| self.stage(model) >= Some(index));
            if let Some(model) = later {
                let cause = format!("takes the result of `{model}`, which is not made before it");
                return Err(origin.error_with(at, cause, "put the documents in the order in which they are made"));
            }
        }
        Ok(())
    }
}
