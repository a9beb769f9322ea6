//! The contents of a recipe, as values.

use super::methods::{BaseRule, MethodName};
use super::model_ref::ModelRef;
use super::own::{Granularity, OwnKeys};
use super::places::Places;
use super::setting::Parameters;
use crate::dtype::Dtype;

/// One merge: a document of a recipe.
///
/// It serialises to a mapping that reads back as an equal document, with short forms written out.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The name of the stage, by which later documents may take its result.
    pub name: Option<String>,
    /// The merge method.
    pub method: MethodName,
    /// The models or slices to merge.
    pub sources: Sources,
    /// The module that the sources were given in, if any.
    pub module: Option<Module>,
    /// The base of the merge.
    pub base_model: Option<ModelRef>,
    /// The parameters of the whole merge.
    pub parameters: Parameters,
    /// The dtype to merge to, unless `out_dtype` is given.
    pub dtype: Option<Dtype>,
    /// The dtype to write.
    pub out_dtype: Option<Dtype>,
    /// The model whose tokenizer files are copied.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template to write.
    pub chat_template: Option<ChatTemplate>,
    /// Rows of the embeddings are filled up to a multiple of this.
    pub pad_to_multiple_of: Option<u64>,
    /// The keys that mergekit does not have.
    pub own: OwnKeys,
    /// The places of the parameters in the text.
    pub places: Places,
}

/// The models or slices that a document merges.
#[derive(Debug, Clone, PartialEq)]
pub enum Sources {
    /// Whole models.
    Models(Vec<ModelEntry>),
    /// Ranges of layers, stacked in this order.
    Slices(Vec<Slice>),
}

/// A model of `models`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ModelEntry {
    /// The model.
    pub model: ModelRef,
    /// Its parameters.
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// A slice of `slices`: equally long ranges of layers, merged with each other.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Slice {
    /// The ranges.
    pub sources: Vec<SliceSource>,
    /// The base of this slice, if it is not that of the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<ModelRef>,
    /// The parameters of this slice.
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// Layers of a model.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SliceSource {
    /// The model.
    pub model: ModelRef,
    /// Its layers; all when `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer_range: Option<LayerRange>,
    /// Parameters of this model in this slice.
    #[serde(skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// The layers from `start` up to, but not with, `end`; never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRange {
    /// The first layer.
    pub start: u32,
    /// The layer after the last one.
    pub end: u32,
}

impl LayerRange {
    /// Counts the layers.
    pub fn count(self) -> u32 {
        self.end.saturating_sub(self.start)
    }
}

/// The only module of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// Its name, which nothing depends on.
    pub name: String,
    /// Its parameters, asked before those of the document.
    pub parameters: Parameters,
}

/// The model whose tokenizer files go with the merged model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tokenizer {
    /// The base model's, or the first model's when there is no base.
    Base,
    /// Another model's.
    Model(ModelRef),
}

/// The chat template of the merged model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatTemplate {
    /// The one most models have.
    Auto,
    /// A well-known one, by name.
    Preset(&'static str),
    /// Jinja, as it stands.
    Jinja(String),
}

/// The chat templates that have a name.
pub const CHAT_TEMPLATES: [&str; 5] = ["alpaca", "chatml", "exaone", "llama3", "mistral"];

/// A model as the resolver sees it: one entry of `models`, or one source of a slice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Input<'a> {
    /// The model.
    pub model: &'a ModelRef,
    /// Its own parameters; `None` for a base that is named nowhere else.
    pub parameters: Option<&'a Parameters>,
    /// Its layers; `None` for whole models.
    pub layers: Option<LayerRange>,
}

impl Document {
    /// Counts the slices; whole models count as one.
    pub fn slice_count(&self) -> usize {
        match &self.sources {
            Sources::Models(_) => 1,
            Sources::Slices(slices) => slices.len(),
        }
    }

    /// Returns the models that are merged in slice `slice`, in the order of their indexes
    /// elsewhere.
    ///
    /// Whole models are slice 0; a base that `models` does not list comes last, as in mergekit,
    /// unless the method is passthrough, which has no use for one.
    pub fn inputs<'a>(&'a self, slice: usize) -> Vec<Input<'a>> {
        match &self.sources {
            Sources::Models(models) => {
                let mut inputs: Vec<_> = models
                    .iter()
                    .map(|entry| Input {
                        model: &entry.model,
                        parameters: Some(&entry.parameters),
                        layers: None,
                    })
                    .collect();
                if let Some(base) = &self.base_model
                    && self.method != MethodName::Passthrough
                    && models.iter().all(|entry| entry.model != *base)
                {
                    inputs.push(Input {
                        model: base,
                        parameters: None,
                        layers: None,
                    });
                }
                inputs
            }
            Sources::Slices(slices) => slices.get(slice).map_or_else(Vec::new, |slice| {
                let sources = slice.sources.iter();
                sources
                    .map(|source| Input {
                        model: &source.model,
                        parameters: Some(&source.parameters),
                        layers: source.layer_range,
                    })
                    .collect()
            }),
        }
    }

    /// Returns the base of slice `slice`, as named there or for the whole merge.
    pub fn base_model_of(&self, slice: usize) -> Option<&ModelRef> {
        let own = match &self.sources {
            Sources::Models(_) => None,
            Sources::Slices(slices) => slices
                .get(slice)
                .and_then(|slice| slice.base_model.as_ref()),
        };
        own.or(self.base_model.as_ref())
    }

    /// Returns the index in [`inputs`](Self::inputs) of the base that the others are measured from;
    /// `None` when the method counts a base like the others.
    pub fn base_index(&self, slice: usize) -> Option<usize> {
        if self.method.info().base == BaseRule::Counted {
            return None;
        }
        let base = self.base_model_of(slice)?;
        self.inputs(slice)
            .iter()
            .position(|input| input.model == base)
    }

    /// Returns every model that the document names, each once, in order of appearance; a base comes
    /// last.
    ///
    /// # Examples
    ///
    /// ```
    /// let recipe = thalweg::Recipe::parse("merge_method: karcher\nmodels: [{model: a}, {model: b}]", "recipe.yml")?;
    /// let names: Vec<&str> = recipe.documents[0].models().iter().map(|model| model.path.as_str()).collect();
    /// assert_eq!(names, ["a", "b"]);
    /// # Ok::<(), thalweg::Error>(())
    /// ```
    pub fn models(&self) -> Vec<&ModelRef> {
        let mut models = Vec::new();
        let inputs = (0..self.slice_count())
            .flat_map(|slice| self.inputs(slice))
            .map(|input| input.model);
        let bases = (0..self.slice_count()).filter_map(|slice| self.base_model_of(slice));
        for model in inputs.chain(bases).chain(&self.base_model) {
            if !models.contains(&model) {
                models.push(model);
            }
        }
        models
    }

    /// Returns the granularity of means: the method's own choice, the recipe's, or single tensors.
    pub fn granularity(&self) -> Granularity {
        match self.method {
            MethodName::Frechet => Granularity::Model,
            _ => self.own.granularity.unwrap_or_default(),
        }
    }

    /// Returns the dtype to write; `None` keeps what is stored.
    pub fn output_dtype(&self) -> Option<Dtype> {
        self.out_dtype.or(self.dtype)
    }
}
