//! The user's request: mergekit's YAML, read, checked whole and resolved to numbers.
//!
//! ```text
//! text ──► tree with places ──► Document ──► parameter(name, model, tensor)
//!          node                 read         resolve
//!                                   └──────► stacked_tensors(names)   for slices
//! ```
//!
//! [`Recipe::parse`] refuses unknown keys: every key is in [`KEYS`], every method and parameter in
//! [`METHODS`], and every error names file, line, column and key; all faults are found in one run.
//! Keys of mergekit that have no effect where they stand are warnings. Model names are looked up by
//! [`ModelRef::locate`], on this machine only. Nothing here opens a model.
//!
//! Gradients behave as in mergekit, down to a surprise that recipes are tuned to: tensors before
//! *and after* the layers take a gradient's first value, the final norm and `lm_head` included; a
//! filter gives them another one.

mod align;
mod choices;
mod document;
mod elementwise;
mod foreign;
mod given;
mod hub;
mod keys;
mod layers;
mod limits;
mod methods;
mod model_ref;
mod node;
mod origin;
mod own;
mod places;
mod read;
mod rename;
mod resolve;
mod setting;
mod stack;
mod typed;
mod write;

use std::fs;
use std::io::Read as _;
use std::path::Path;

pub use align::{Align, AlignFrom, Cost, Residual, WeightMatching};
pub use choices::{RescaleBy, SignRule, TieRule};
pub use document::{
    CHAT_TEMPLATES, ChatTemplate, Document, Input, LayerRange, ModelEntry, Module, Slice,
    SliceSource, Sources, Tokenizer,
};
pub use given::{ElementChoices, Given};
pub use hub::{HubCache, Snapshot};
pub use keys::{KEYS, KeyInfo, Place, keys_of};
pub use layers::{LayerName, Layers, layer_of};
pub use limits::{SEEDS, SWEEPS, THREADS, ZSTD_LEVELS};
pub use methods::{BaseRule, Domain, METHODS, MethodInfo, MethodName, ParameterInfo, Scope};
pub use model_ref::{ModelRef, expand_home};
pub use node::MAX_RECIPE_BYTES;
pub use own::{Granularity, Mismatch, Missing, NanPolicy, OwnKeys, Quantised};
pub use places::Places;
pub use rename::{Pattern, Rename};
pub use resolve::TensorPlace;
pub use setting::{Condition, Parameters, Setting};
pub use stack::{StackedSource, StackedTensor, stacked_tensors};
pub use typed::Typed;

use crate::door::Door;
use crate::error::{Error, Kind, Result};
use node::Node;
use origin::{At, Notes, Origin};

/// A recipe: its text, and the merges it asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Its name in messages, such as its path.
    pub name: String,
    /// The text as it was read.
    pub text: String,
    /// The merges, at least one, in the order written.
    pub documents: Vec<Document>,
    /// The warnings about each document.
    pub warnings: Vec<Vec<String>>,
    /// The door that it came in by; messages use its words.
    pub door: Door,
}

/// The strictness with which a recipe is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reading {
    /// An unknown key is a fault.
    #[default]
    Strict,
    /// An unknown key is a warning.
    Lenient,
}

impl Recipe {
    /// Parses the recipe in `text`, which messages call `name`.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] with the place and the key, and the line as its hint; [`Error::others`] has
    /// the faults after the first.
    ///
    /// # Examples
    ///
    /// ```
    /// use thalweg::{Kind, Recipe};
    ///
    /// let recipe = Recipe::parse("merge_method: slerp\nt: 0.3\nmodels: [{model: a}, {model: b}]", "recipe.yml");
    /// assert_eq!(recipe.expect_err("t is a parameter").kind(), Kind::Recipe);
    /// let text = "merge_method: slerp\nparameters: {t: 0.3}\nbase_model: a\nmodels: [{model: a}, {model: b}]";
    /// assert_eq!(Recipe::parse(text, "recipe.yml").expect("now it is one").documents.len(), 1);
    /// ```
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        Self::parse_as(text, name, Reading::Strict)
    }

    /// Parses like [`parse`](Self::parse), as strictly as `reading` says.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn parse_as(text: &str, name: &str, reading: Reading) -> Result<Self> {
        Self::noted(
            text,
            name,
            Notes::new(Vec::new(), reading == Reading::Lenient),
        )
    }

    fn noted(text: &str, name: &str, notes: Notes) -> Result<Self> {
        let origin = Origin {
            name,
            text,
            notes: &notes,
        };
        let mut nodes = node::parse_documents(origin)?;
        if nodes.is_empty() {
            return Err(origin.error(At::default(), "holds nothing to merge"));
        }
        let (mut documents, mut warnings) = (Vec::new(), Vec::new());
        let last = nodes.len() - 1;
        for (index, node) in nodes.iter_mut().enumerate() {
            node.last_wins(origin);
            documents.extend(read::document(origin, node, index == last));
            warnings.push(origin.notes.take_warnings());
        }
        let door = if origin.is_typed() {
            Door::Flags
        } else {
            Door::Recipe
        };
        let mut recipe = Self {
            name: name.to_owned(),
            text: text.to_owned(),
            documents,
            warnings,
            door,
        };
        if origin.notes.fault_count() == 0 {
            origin.keep(recipe.check_stages(origin, &nodes));
        }
        notes.into_result(&recipe.warnings)?;
        for warning in recipe.warnings.iter_mut().flatten() {
            *warning = door.words(warning).into_owned();
        }
        Ok(recipe)
    }

    /// Reads the recipe in the file `path`, as strictly as `reading` says.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when it cannot be read, and as [`parse`](Self::parse).
    pub fn read_as(path: &Path, reading: Reading) -> Result<Self> {
        let name = path.display().to_string();
        let cap = u64::try_from(MAX_RECIPE_BYTES).expect("16 MiB fit 64 bits") + 1;
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(cap).read_to_end(&mut bytes))
            .map_err(|error| {
                Error::io("cannot read recipe", path, error).with_kind(Kind::Recipe)
            })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            Error::new(
                Kind::Recipe,
                "cannot use recipe",
                &name,
                format!("is not UTF-8 text: {}", error.utf8_error()),
            )
        })?;
        Self::parse_as(&text, &name, reading)
    }

    /// Reads like [`read_as`](Self::read_as), strictly.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Examples
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = models()?;
    /// # let text = recipe(folder.path());
    /// # let file = folder.path().join("recipe.yml");
    /// # std::fs::write(&file, text)?;
    /// let recipe = thalweg::Recipe::read(&file)?;
    /// assert!(recipe.name.ends_with("recipe.yml"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_as(path, Reading::Strict)
    }

    /// Returns the warnings about `document`, one of this recipe's.
    ///
    /// # Examples
    ///
    /// ```
    /// use thalweg::{Reading, Recipe};
    ///
    /// let text = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\ncolour: red\n";
    /// let recipe = Recipe::parse_as(text, "recipe.yml", Reading::Lenient).expect("a recipe with one key too many");
    /// assert!(recipe.warnings_of(&recipe.documents[0])[0].contains("colour"));
    /// ```
    pub fn warnings_of(&self, document: &Document) -> &[String] {
        let index = self.documents.iter().position(|other| other == document);
        index
            .and_then(|index| self.warnings.get(index))
            .map_or(&[], Vec::as_slice)
    }

    /// Returns the document whose result `model` names, if it names one. No document takes the last
    /// one's.
    pub fn stage(&self, model: &ModelRef) -> Option<usize> {
        let earlier = self.documents.len().saturating_sub(1);
        let named = |document: &Document| document.name.as_deref() == Some(&*model.path);
        self.documents[..earlier]
            .iter()
            .position(named)
            .filter(|_| model.revision.is_none())
    }

    /// Checks that stages have different names, that all but the last have one, and that each takes
    /// only earlier ones.
    fn check_stages(&self, origin: Origin<'_>, nodes: &[Node]) -> Result<()> {
        let last = self.documents.len() - 1;
        for (index, (document, node)) in self.documents.iter().zip(nodes).enumerate() {
            match &document.name {
                None if index < last => {
                    return Err(
                        origin.error(node.at, "only the last document may do without a `name`")
                    );
                }
                Some(name)
                    if self.documents[..index]
                        .iter()
                        .any(|other| other.name.as_ref() == Some(name)) =>
                {
                    return Err(
                        origin.error(node.at, format!("two documents have the `name` {name}"))
                    );
                }
                _ => {}
            }
            let mut models = document.models().into_iter();
            if let Some(model) = models.find(|model| self.is_made_later(model, index)) {
                let cause = format!("takes the result of `{model}`, which is not made before it");
                return Err(origin.error_with(
                    node.at,
                    cause,
                    "put the documents in the order in which they are made",
                ));
            }
        }
        Ok(())
    }

    /// True if document `index` or a later one makes a model. The last one's own name is free, and
    /// may be that of a model on the hub.
    fn is_made_later(&self, model: &ModelRef, index: usize) -> bool {
        let last = self.documents.len() - 1;
        let mut documents = self.documents.iter();
        let made = documents.position(|document| document.name.as_deref() == Some(&*model.path));
        made.filter(|_| model.revision.is_none())
            .is_some_and(|at| at >= index && !(at == last && index == last))
    }
}
