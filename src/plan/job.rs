//! What is to be done: a document of a recipe with its models found, and what decides the output
//! beside it.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::checkpoint::{Checkpoint, Names, OpenOptions};
use crate::door::Door;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::likeness::Waived;
use crate::recipe::{
    Document, Granularity, HubCache, Mismatch, Missing, ModelRef, NanPolicy, Quantised, Recipe,
    Tokenizer,
};
use crate::symmetry::Alignment;

use super::memory::Wish;
use super::{MOST_INPUTS, rename};

/// The most tensor data in one shard when nobody says otherwise, as transformers has it.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// A merge as asked for: inputs, how they are combined, and what is written.
#[derive(Debug, Clone)]
pub struct Job {
    /// How the inputs are combined.
    pub document: Document,
    /// Where each of [`Document::models`] is.
    pub inputs: Vec<PathBuf>,
    /// The input that lends config, tokenizer and everything that is carried: the base, else the
    /// first.
    pub donor: usize,
    /// The dtype of every merged tensor; the first input's, tensor by tensor, when `None`.
    pub dtype: Option<Dtype>,
    /// The most bytes of tensor data in one shard.
    pub shard_bytes: u64,
    /// What to do about NaN and infinity.
    pub nan: NanPolicy,
    /// The compression level of `.safetensors.zst` shards; plain shards when `None`.
    pub zstd: Option<i32>,
    /// How each input is transformed while it is read; empty, or one for each of [`Job::inputs`].
    pub alignments: Vec<Option<Alignment>>,
    /// Where the alignments come from; those of inputs that stay as they are too.
    pub alignment_files: Vec<AlignmentFile>,
    /// The recipe's text, which goes with the output; made from the document when `None`.
    pub recipe_text: Option<String>,
    /// The inputs that an earlier stage of the same recipe has made.
    pub made: Vec<usize>,
    /// The output is a single file, beside which the donor's files are put.
    pub beside_a_file: bool,
    /// How the user came in; messages speak accordingly.
    pub door: Door,
    /// What a user should know of the recipe.
    pub warnings: Vec<String>,
    /// The output is a single file of weights, which has no folders of components.
    pub weights_alone: bool,
    /// The output is one model anew, not a merge: its own card goes along, and no recipe.
    pub rewritten: bool,
}

/// A transform file by which an input is aligned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AlignmentFile {
    /// The input, by its place in [`Job::inputs`].
    pub input: usize,
    /// Its name; below the output folder for those that go with the output.
    pub file: String,
    /// The BLAKE3 hash of its bytes, in hexadecimal.
    pub blake3: String,
    /// Whether it changes anything; an input is read as it is when not.
    pub moves: bool,
}

impl Job {
    /// The job that `document` describes, its models found at `inputs`, one for each of
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

    /// The job that a recipe of one merge describes, its models found in folders here or in the
    /// hub's cache.
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
        let refused = |cause: String, hint: &'static str| {
            Err(Error::new(Kind::Usage, "cannot plan recipe", &recipe.name, cause).with_hint(hint))
        };
        let [document] = recipe.documents.as_slice() else {
            let cause = format!(
                "it holds {} merges, each of which may take what another has made",
                recipe.documents.len()
            );
            return refused(
                cause,
                "merge it with `thalweg merge`, or plan each of its documents",
            );
        };
        if document.own.align.is_some() {
            return refused(
                "its models are to be aligned first".into(),
                "merge it with `thalweg merge`, or align them",
            );
        }
        let hub = HubCache::from_variables(|name| std::env::var_os(name));
        Self::found(recipe, document, |model| model.locate(&hub))
    }

    /// The job that one document of a recipe describes, each of its models where `find` finds it.
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

    /// The job that writes one model anew, transformed while it is read when it has an alignment.
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

    /// Opens all inputs, headers only, as the document wants them to be opened, their tensors
    /// renamed; with a `wish`, in its memory.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::open_with`], and when a rule of `rename` does nothing or makes one
    /// name of two.
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

    /// How an input or one of its components is opened, whose headers may take `memory` bytes.
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

    /// Over what a Gram matrix is taken, where the method does not say.
    pub fn granularity(&self) -> Granularity {
        self.document.granularity()
    }

    /// How an input is transformed while it is read, if it is.
    pub fn alignment(&self, input: usize) -> Option<&Alignment> {
        self.alignments.get(input)?.as_ref()
    }

    /// The head that an aligned input has besides the tensors of its files.
    pub fn untied_head(&self, input: usize) -> Option<&str> {
        self.alignment(input)?.symmetries.fold.as_ref()?.untied()
    }

    /// Whether the output is a model whose norms are folded.
    ///
    /// # Errors
    ///
    /// [`Kind::Mismatch`] when some inputs are folded and others are not: their weights have
    /// nothing to do with each other.
    pub fn is_folded(&self) -> Result<bool> {
        let folded = |input: usize| {
            self.alignment(input)
                .is_some_and(|alignment| alignment.symmetries.fold.is_some())
        };
        let count = (0..self.inputs.len())
            .filter(|input| folded(*input))
            .count();
        match (0..self.inputs.len()).find(|input| !folded(*input)) {
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

    /// What to do when shapes differ.
    pub fn mismatch(&self) -> Mismatch {
        self.document.own.mismatch.unwrap_or_default()
    }

    /// Differences between the inputs with which the merge goes on; what is aligned is merged too.
    pub fn allowed(&self) -> Waived {
        let (own, align) = (&self.document.own, self.document.own.align.as_ref());
        Waived {
            vocabulary: own.any_vocabulary == Some(true)
                || align.is_some_and(|align| align.any_vocabulary),
            config: own.any_config == Some(true),
        }
    }

    /// What to do when a tensor is not in every input.
    pub fn missing(&self) -> Missing {
        self.document.own.missing.unwrap_or_default()
    }

    /// The input whose tokenizer files go with the output.
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

    /// What was asked for, in a form that is equal exactly when the same is asked for again: how
    /// much memory, how many threads do not matter, where the models lie does not either, since
    /// their files are identified by themselves.
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
