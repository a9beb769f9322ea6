//! Many models aligned with each other: a transform file for each, in one folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::align::many::{ManyMatched, ManyOptions, ManyStep, match_many};
use crate::align::matching::{self, least_memory};
use crate::align::{Store, Transformed, angles};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::likeness::Waived;
use crate::linalg::Backend;
use crate::output::{Target, check_folder_ending};
use crate::symmetry::{Alignment, Spec, Symmetries, Transform, TransformFile};

use super::{
    ManyReport, Pair, Ran, Solving, Task, findings, is_of, note, pair, refuse_inputs_folder,
    report_of,
};

/// Bytes that a thread needs to read a part of one model of a mean.
const READER_BYTES: u64 = 4 << 20;

/// Models that can be aligned with each other; only headers are read.
pub struct ModelSet {
    models: Vec<Checkpoint>,
    prints: Vec<String>,
    symmetries: Arc<Symmetries>,
    /// The symmetries' part of the identity; each pair has the same.
    spec: Value,
    /// Warnings about differences between the models.
    pub warnings: Vec<String>,
}

/// Many models, and the options for aligning them.
pub struct ModelSetTask {
    /// The models.
    pub set: ModelSet,
    /// The options for aligning them; the run fills in their memory.
    pub many: ManyOptions,
}

impl ModelSet {
    /// Checks that these models can be aligned with each other, as [`Pair::new`] does for two.
    ///
    /// # Errors
    ///
    /// As [`Pair::new`]; [`Kind::Usage`] for fewer than two models, or for two of equal content,
    /// which need no alignment and whose transforms could not be told apart.
    pub fn new(models: Vec<Checkpoint>, spec: Option<&Spec>, allowed: Waived) -> Result<Self> {
        let [first, others @ ..] = models.as_slice() else {
            return Err(Error::new(
                Kind::Usage,
                "cannot align",
                "models",
                "wanted at least two, got none",
            ));
        };
        let mut found: Option<(Arc<Symmetries>, Value)> = None;
        let mut prints = Vec::with_capacity(models.len());
        let mut warnings = Vec::new();
        for other in others {
            let pair = Pair::new(first.clone(), other.clone(), spec, allowed)?;
            if prints.is_empty() {
                prints.push(pair.reference_print.clone());
            }
            if let Some(same) = prints.iter().position(|print| *print == pair.model_print) {
                let cause = format!("it has the content of {}", models[same].root().display());
                return Err(
                    Error::new(Kind::Usage, "cannot align", other.root().display(), cause)
                        .with_hint("name each model once"),
                );
            }
            warnings.extend(pair.warnings);
            let spec = pair::spec_identity(&pair.symmetries);
            prints.push(pair.model_print);
            found.get_or_insert((pair.symmetries, spec));
        }
        let Some((symmetries, spec)) = found else {
            return Err(Error::new(
                Kind::Usage,
                "cannot align",
                "models",
                "wanted at least two, got one",
            ));
        };
        Ok(Self {
            models,
            prints,
            symmetries,
            spec,
            warnings,
        })
    }

    /// Returns the identity of a run: everything that determines its result.
    pub fn identity(&self, many: &ManyOptions) -> Value {
        json!({ "alignment": pair::ALIGNMENT_VERSION, "models": self.prints, "spec": self.spec, "options": many })
    }

    /// Returns the symmetries of all models.
    pub fn symmetries(&self) -> &Arc<Symmetries> {
        &self.symmetries
    }
}

/// Returns the path of a model's transform in the folder `out`.
pub fn path_of(out: &Path, model: usize) -> PathBuf {
    out.join(format!("{}.safetensors", model + 1))
}

impl Task for ModelSetTask {
    type Step = ManyStep;
    type Found = ManyReport;

    fn models(&self) -> Vec<&Checkpoint> {
        self.set.models.iter().collect()
    }

    fn symmetries(&self) -> &Arc<Symmetries> {
        &self.set.symmetries
    }

    fn words(&self) -> String {
        format!("{} of these models", self.set.models.len())
    }

    /// Counts the transforms of each model, those that are tried and those that result, and the
    /// steps as they are journalled; then the buffers for parts of the models of a mean.
    fn held_bytes(&self, threads: usize) -> u64 {
        let count = self.set.models.len() as u64;
        let transforms = (3 * count + 4) * findings::largest_transform_bytes(&self.set.symmetries);
        transforms + threads as u64 * count * READER_BYTES
    }

    fn least_bytes(&self, first: &Store, second: &Arc<Store>) -> u64 {
        least_memory(first, second, &self.set.symmetries, &self.many.matching)
    }

    fn set_memory(&mut self, bytes: u64) {
        self.many.matching.memory = bytes;
    }

    fn identity(&self) -> Result<Value> {
        Ok(self.set.identity(&self.many))
    }

    fn paths(&self, out: &Path) -> Vec<PathBuf> {
        (0..self.set.models.len())
            .map(|model| path_of(out, model))
            .collect()
    }

    fn check_target(&self, target: &Target, identity: &Value) -> Result<()> {
        check_folder_ending(&target.dir)?;
        refuse_inputs_folder(&self.set.models, &target.dir)?;
        refuse_others(&self.set, target, identity)
    }

    fn solve(
        &self,
        solving: &Solving<'_, ManyStep>,
        backend: Backend,
    ) -> Result<Vec<TransformFile>> {
        let matching = matching::MatchOptions {
            backend,
            ..self.many.matching.clone()
        };
        let many = ManyOptions {
            matching,
            ..self.many.clone()
        };
        let symmetries = &self.set.symmetries;
        let found = match_many(
            solving.stores,
            &[],
            symmetries,
            solving.earlier,
            &many,
            solving.session,
        )?;
        // The backend is not needed any more.
        drop(many);
        (0..solving.stores.len())
            .map(|model| self.file(solving, &found, model))
            .collect()
    }

    fn found(&self, files: Vec<TransformFile>, ran: &Ran) -> Result<ManyReport> {
        let path = |model: usize| ran.out.as_ref().map(|out| path_of(out, model));
        let together = files
            .first()
            .and_then(|file| file.notes.get(note::TOGETHER))
            .map(String::as_str);
        let together: Value =
            serde_json::from_str(together.unwrap_or_default()).map_err(|error| {
                let path = path(0).unwrap_or_else(|| PathBuf::from("transform"));
                Error::new(
                    Kind::Damaged,
                    "cannot read the notes of a transform",
                    path.display(),
                    error,
                )
            })?;
        let reference = number_in(&together, "begun").min(files.len().saturating_sub(1));
        let models = &self.set.models;
        let reports = files.iter().enumerate().map(|(model, file)| {
            let path = path(model);
            report_of(
                file,
                path.as_deref(),
                [&models[reference], &models[model]],
                &self.set.symmetries,
                ran,
            )
        });
        Ok(ManyReport {
            models: reports.collect::<Result<_>>()?,
            options: self.many.clone(),
            reference,
            rounds: number_in(&together, "rounds"),
            settled: together["settled"].as_bool().unwrap_or(false),
            cycle_error: together["cycle_error"].as_f64().unwrap_or(f64::NAN),
        })
    }
}

impl ModelSetTask {
    /// Builds the transform file of a model, with the findings about it relative to the reference.
    fn file(
        &self,
        solving: &Solving<'_, ManyStep>,
        found: &ManyMatched,
        model: usize,
    ) -> Result<TransformFile> {
        let (symmetries, transform) = (&self.set.symmetries, &found.transforms[model]);
        let before = self.cosines(solving, found.begun, model, Transform::identity(symmetries))?;
        let after = match transform.is_identity(symmetries) {
            true => before.clone(),
            false => self.cosines(solving, found.begun, model, transform.clone())?,
        };
        let (options, steps) = (&self.many.matching, &found.steps[model]);
        let found_here = findings::of(
            symmetries,
            options,
            transform,
            found.rounds,
            steps,
            [before, after],
        );
        let together = json!({
            "begun": found.begun, "rounds": found.rounds, "settled": found.settled, "cycle_error": found.cycle_error,
        });
        let notes = IndexMap::from([
            (
                note::REFERENCE.to_owned(),
                self.set.prints[found.begun].clone(),
            ),
            (note::IDENTITY.to_owned(), solving.identity.to_string()),
            (
                note::FINDINGS.to_owned(),
                serde_json::to_string(&found_here).expect("findings are plain data"),
            ),
            (note::TOGETHER.to_owned(), together.to_string()),
        ]);
        Ok(TransformFile {
            transform: transform.clone(),
            model: self.set.prints[model].clone(),
            notes,
        })
    }

    /// Computes the cosines between the tensors of model `reference` and of `model` under
    /// `transform`.
    fn cosines(
        &self,
        solving: &Solving<'_, ManyStep>,
        reference: usize,
        model: usize,
        transform: Transform,
    ) -> Result<Vec<Option<f64>>> {
        let (symmetries, stores, options) = (&self.set.symmetries, solving.stores, solving.options);
        let names: Vec<&str> = pair::acted_on(symmetries).collect();
        let alignment = Alignment {
            symmetries: Arc::clone(symmetries),
            transform: Arc::new(transform),
        };
        let moved = Transformed::new(Arc::clone(&stores[model]), alignment);
        let reference = stores[reference].as_ref();
        angles::cosines(
            reference,
            &moved,
            &names,
            options.kernels,
            &|_| match options.stop.asked() {
                true => Err(interrupted()),
                false => Ok(()),
            },
        )
    }
}

/// Refuses to replace files of another run.
fn refuse_others(set: &ModelSet, target: &Target, identity: &Value) -> Result<()> {
    if target.overwrite {
        return Ok(());
    }
    let paths = (0..set.models.len()).map(|model| path_of(&target.dir, model));
    match paths
        .into_iter()
        .find(|path| path.exists() && !is_of(path, identity))
    {
        None => Ok(()),
        Some(path) => {
            let cause = "a file is there that this run did not write";
            Err(Error::new(
                Kind::Occupied,
                "cannot write to file",
                path.display(),
                cause,
            )
            .with_hint("choose another folder, or let --overwrite replace it"))
        }
    }
}

/// Returns a count in the notes; 0 when there is none.
fn number_in(notes: &Value, key: &str) -> usize {
    let number = notes[key].as_u64();
    number
        .and_then(|number| usize::try_from(number).ok())
        .unwrap_or(0)
}

/// The failure of a measurement that the user stopped. The steps are journalled, so that only the
/// measurement has to be repeated.
fn interrupted() -> Error {
    let cause = "it is not written";
    Error::new(Kind::Interrupted, "stopped on request", "alignment", cause)
        .with_hint("run the same command again to go on from here")
        .resumable()
}
