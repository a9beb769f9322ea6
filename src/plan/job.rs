//! The work to do: a recipe's document with its models found, and the other settings that decide
//! the output.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Names, OpenOptions};
use crate::door::Door;
use crate::dtype::Dtype;
use crate::error::{Context, Error, Kind, Result};
use crate::likeness::Waived;
use crate::recipe::{
    Document, Granularity, HubCache, Mismatch, Missing, ModelRef, NanPolicy, Quantised, Recipe,
    Tokenizer,
};
use crate::symmetry::Alignment;

use super::memory::Wish;
use super::{MOST_INPUTS, rename};

/// The default for the most bytes of tensor data in one shard, the same as in transformers.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// A merge as requested: its inputs, how they are combined, and what is written.
#[derive(Debug, Clone)]
pub struct Job {
    /// The recipe's document, which says how the inputs are combined.
    pub document: Document,
    /// The path of each of [`Document::models`].
    pub inputs: Vec<PathBuf>,
    /// The input that lends config, tokenizer and everything that is carried: the base, else the
    /// first.
    pub donor: usize,
    /// The dtype of every merged tensor; the first input's, tensor by tensor, when `None`.
    pub dtype: Option<Dtype>,
    /// The most bytes of tensor data in one shard.
    pub shard_bytes: u64,
    /// The treatment of NaN and infinity.
    pub nan: NanPolicy,
    /// The compression level of `.safetensors.zst` shards; plain shards when `None`.
    pub zstd: Option<i32>,
    /// The transform of each input while it is read; empty, or one for each of [`Job::inputs`].
    pub alignments: Vec<Option<Alignment>>,
    /// The files of the alignments, including those of inputs that stay unchanged.
    pub alignment_files: Vec<AlignmentFile>,
    /// The recipe's text, which goes with the output; made from the document when `None`.
    pub recipe_text: Option<String>,
    /// The inputs that an earlier stage of the same recipe has made.
    pub made: Vec<usize>,
    /// True if the output is a single file, beside which the donor's files are put.
    pub beside_a_file: bool,
    /// The door that the user came in by; messages use its words.
    pub door: Door,
    /// Warnings about the recipe.
    pub warnings: Vec<String>,
    /// True if the output is a single file of weights, which has no folders of components.
    pub weights_alone: bool,
    /// True if one model is written anew rather than merged: its own card goes along, and no
    /// recipe.
    pub rewritten: bool,
}

/// A transform file by which an input is aligned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AlignmentFile {
    /// The input, by its place in [`Job::inputs`].
    pub input: usize,
    /// The file's name; relative to the output folder if the file goes with the output.
    pub file: String,
    /// The BLAKE3 hash of its bytes, in hexadecimal.
    pub blake3: String,
    /// True if it changes anything; otherwise the input is read as it is.
    pub moves: bool,
}

impl Job {
    /// Makes the job that `document` describes, with its models at `inputs`, one for each of
    /// [`Document::models`].
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when there are too many models.
    pub fn new(document: Document, inputs: Vec<PathBuf>) -> Result<Self> {
        let models = document.models();
        assert_eq!(
            models.len(),
            inputs.len(),
            "each model was found or the search failed"
        );
        if models.is_empty() || models.len() > MOST_INPUTS {
            let cause = format!("wanted 1 to {MOST_INPUTS}, got {}", models.len());
            return Err(Error::new(Kind::Usage, "cannot merge", "models", cause));
        }
        let donor = document
            .base_model
            .as_ref()
            .and_then(|base| models.iter().position(|model| *model == base));
        Ok(Self {
            inputs,
            donor: donor.unwrap_or(0),
            dtype: document.output_dtype(),
            shard_bytes: document.own.out_shard_size.unwrap_or(DEFAULT_SHARD_BYTES),
            nan: document.own.nan.unwrap_or_default(),
            zstd: document.own.zstd,
            alignments: Vec::new(),
            alignment_files: Vec::new(),
            recipe_text: None,
            made: Vec::new(),
            beside_a_file: false,
            door: Door::Recipe,
            warnings: Vec::new(),
            weights_alone: false,
            rewritten: false,
            document,
        })
    }

    /// Makes the job of a recipe with one merge; finds its models in folders here or in the hub's
    /// cache.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when the recipe holds several merges or wants its models aligned first,
    /// which the command `thalweg merge` does; [`Kind::Input`] when a model cannot be found.
    ///
    /// # Examples
    ///
    /// ```
    /// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = models()?;
    /// # let text = recipe(folder.path());
    /// let recipe = thalweg::Recipe::parse(&text, "recipe.yml")?;
    /// let job = thalweg::Job { shard_bytes: 2_000_000_000, ..thalweg::Job::of(&recipe)? };
    /// assert_eq!(job.inputs.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn of(recipe: &Recipe) -> Result<Self> {
        let context = Context::new(Kind::Usage, "cannot plan recipe", &recipe.name);
        let [document] = recipe.documents.as_slice() else {
            let cause = format!(
                "it holds {} merges, each of which may take what another has made",
                recipe.documents.len()
            );
            return context
                .with_hint("merge it with `thalweg merge`, or plan each of its documents")
                .fail(cause);
        };
        if document.own.align.is_some() {
            return context
                .with_hint("merge it with `thalweg merge`, or align them")
                .fail("its models are to be aligned first");
        }
        let hub = HubCache::from_variables(|name| std::env::var_os(name));
        Self::found(recipe, document, |model| model.locate(&hub))
    }

    /// Makes the job of one document of a recipe, each of its models at the path that `find`
    /// returns.
    ///
    /// # Errors
    ///
    /// Those of `find`, and as [`new`](Self::new).
    pub fn found(
        recipe: &Recipe,
        document: &Document,
        find: impl FnMut(&ModelRef) -> Result<PathBuf>,
    ) -> Result<Self> {
        let inputs = document
            .models()
            .into_iter()
            .map(find)
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            door: recipe.door,
            warnings: recipe.warnings_of(document).to_vec(),
            recipe_text: Some(recipe.text.clone()),
            ..Self::new(document.clone(), inputs)?
        })
    }

    /// Makes the job that writes one model anew, transformed while it is read if it has an
    /// alignment.
    ///
    /// Elements that are only moved keep their bits, NaN and infinity included.
    ///
    /// # Errors
    ///
    /// None that the model could cause.
    pub fn of_one(model: PathBuf, alignment: Option<Alignment>) -> Result<Self> {
        let recipe = r#"{"merge_method": "passthrough", "models": [{"model": "model"}], "nan": "propagate"}"#;
        let document = Recipe::parse(recipe, "transform")?.documents.swap_remove(0);
        Ok(Self {
            alignments: vec![alignment],
            rewritten: true,
            ..Self::new(document, vec![model])?
        })
    }

    /// Opens the headers of all inputs with the document's options, and renames their tensors; with
    /// a `wish`, within its memory.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open_with`], and when a rule of `rename` does nothing or gives two
    /// tensors one name.
    pub fn open_inputs(&self, wish: Option<&Wish>) -> Result<Vec<Checkpoint>> {
        let mut opened: Vec<Checkpoint> = Vec::with_capacity(self.inputs.len());
        for path in &self.inputs {
            let memory = wish.map(|wish| wish.left_for_headers(&opened.iter().collect::<Vec<_>>()));
            let pipeline = wish.is_some() && !self.weights_alone;
            let options = OpenOptions {
                pipeline,
                ..self.open_options(memory)
            };
            opened.push(Checkpoint::open_with(path, &options)?);
        }
        rename::rename(&self.document, &mut opened)?;
        let mut names = Names::default();
        opened.iter_mut().for_each(|input| names.share(input));
        Ok(opened)
    }

    /// Returns the options for opening an input or a component, whose headers may take `memory`
    /// bytes.
    pub fn open_options(&self, memory: Option<u64>) -> OpenOptions {
        let state_dict_key = self.document.own.state_dict_key.clone();
        let raw_codes = self.document.own.quantised == Some(Quantised::Raw);
        OpenOptions {
            state_dict_key,
            memory,
            raw_codes,
            ..OpenOptions::default()
        }
    }

    /// Returns the granularity of Gram matrices, where the method does not say.
    pub fn granularity(&self) -> Granularity {
        self.document.granularity()
    }

    /// Returns the transform of an input while it is read, if it has one.
    pub fn alignment(&self, input: usize) -> Option<&Alignment> {
        self.alignments.get(input)?.as_ref()
    }

    /// Returns the head that an aligned input has besides the tensors of its files.
    pub fn untied_head(&self, input: usize) -> Option<&str> {
        self.alignment(input)?.symmetries.fold.as_ref()?.untied()
    }

    /// Tells if the output is a model whose norms are folded.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when some inputs are folded and others are not: their weights cannot be
    /// compared.
    pub fn is_folded(&self) -> Result<bool> {
        let (folded, plain): (Vec<usize>, Vec<usize>) =
            (0..self.inputs.len()).partition(|input| self.is_input_folded(*input));
        let count = folded.len();
        match plain.first().copied() {
            Some(plain) if count > 0 => {
                let cause =
                    "its norms are not folded into what reads them, those of other inputs are";
                Err(Error::new(
                    Kind::Mismatch,
                    "inputs do not fit each other",
                    self.inputs[plain].display(),
                    cause,
                )
                .with_hint("fold the norms of all inputs or of none"))
            }
            _ => Ok(count > 0),
        }
    }

    fn is_input_folded(&self, input: usize) -> bool {
        let alignment = self.alignment(input);
        alignment.is_some_and(|alignment| alignment.symmetries.fold.is_some())
    }

    /// Returns the treatment of shapes that differ.
    pub fn mismatch(&self) -> Mismatch {
        self.document.own.mismatch.unwrap_or_default()
    }

    /// Returns the differences between inputs that the merge accepts; those accepted for aligning
    /// are accepted for merging too.
    pub fn allowed(&self) -> Waived {
        let (own, align) = (&self.document.own, self.document.own.align.as_ref());
        Waived {
            vocabulary: own.any_vocabulary == Some(true)
                || align.is_some_and(|align| align.any_vocabulary),
            config: own.any_config == Some(true),
        }
    }

    /// Returns the treatment of tensors that some inputs lack.
    pub fn missing(&self) -> Missing {
        self.document.own.missing.unwrap_or_default()
    }

    /// Returns the input whose tokenizer files go with the output.
    pub fn tokenizer_donor(&self) -> usize {
        match &self.document.tokenizer {
            Some(Tokenizer::Model(wanted)) => self
                .document
                .models()
                .iter()
                .position(|model| *model == wanted)
                .unwrap_or(self.donor),
            _ => self.donor,
        }
    }

    /// Describes the request in a form that is equal exactly when the same is requested again.
    /// Memory and threads do not matter, nor does the place of the models, whose files are
    /// identified by themselves.
    pub fn describe(&self) -> Value {
        let mut document = self.document.clone();
        document.own.memory = None;
        document.own.threads = None;
        document.own.out_shard_size = None;
        document.own.zstd = None;
        document.own.device = None;
        document.own.any_vocabulary = None;
        document.own.any_config = None;
        document.name = None;
        serde_json::to_value(&document).expect("a document is plain data")
    }
}
