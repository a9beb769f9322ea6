//! The transforms for the inputs of a merge: read from files, or found now and kept beside the
//! output.
//!
//! Transforms that are found for a merge go to the folder `alignment` of its output, or to
//! `X.safetensors.alignment` beside a single file: one for each aligned input, with the inputs'
//! numbers from 1. They are complete before the merge begins, so a merge that was killed finds them
//! and aligns nothing again.

mod files;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::align::many::{Begin, ManyOptions};
use crate::align::matching::{self, Cost, Residual};
use crate::checkpoint::Checkpoint;
use crate::engine::Options;
use crate::engine::separate::refuse_inputs_folder;
use crate::error::{Error, Kind, Result};
use crate::likeness::Waived;
use crate::output::{
    Storage, Target, check_folder, check_target, is_replacing, tidy_transforms, transform_folders,
};
use crate::plan::memory::{DeviceWish, Wish};
use crate::plan::{Job, Plan};
use crate::recipe::{self, Align as Asked, AlignFrom, WeightMatching, expand_home};
use crate::symmetry::{Alignment, Spec, Symmetries, Transform, TransformFile, fingerprint};

use super::model_set_task::path_of;
use super::{
    Align, AlignmentReport, Matcher, ModelSet, ModelSetTask, Pair, PairTask, align, is_of,
};
use files::{input_of, take};

/// The first words of a refusal.
const WHAT: &str = "cannot use transform";

/// The inputs of a merge that are to be aligned.
pub struct AlignInputs<'a> {
    /// The alignment that the recipe asks for.
    pub asked: &'a Asked,
    /// Differences between the inputs that are allowed.
    pub allowed: Waived,
    /// The symmetry spec that the recipe names.
    pub spec: Option<&'a Spec>,
    /// The target of the merge's output.
    pub target: &'a Target,
}

/// The means for finding transforms that are still missing.
pub struct Finder<'a> {
    /// The memory and the number of threads.
    pub wish: &'a Wish,
    /// The share of the options' device that may be used.
    pub device: Option<DeviceWish>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// The options of the run.
    pub options: &'a Options,
    /// Called with the report of every alignment.
    pub told: &'a dyn Fn(&AlignmentReport) -> Result<()>,
}

/// The result of looking for transforms.
#[derive(Debug, Default)]
pub struct TransformSearch {
    /// Inputs whose transforms are still missing.
    pub missing: Vec<usize>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

impl AlignInputs<'_> {
    /// Fills in the alignments of `job` for which files exist.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be used, is for none of the inputs, or two are for one; and for the
    /// reasons that keep the inputs from being aligned with each other.
    pub fn look(&self, job: &mut Job) -> Result<TransformSearch> {
        let models = job.open_inputs(None)?;
        self.look_among(job, &models)
    }

    /// Looks for transforms of inputs that are already open.
    fn look_among(&self, job: &mut Job, models: &[Checkpoint]) -> Result<TransformSearch> {
        job.alignments = vec![None; models.len()];
        job.alignment_files.clear();
        let search = self.look_for(job, models)?;
        self.fold_all(job, models)?;
        Ok(search)
    }

    fn look_for(&self, job: &mut Job, models: &[Checkpoint]) -> Result<TransformSearch> {
        match &self.asked.from {
            AlignFrom::Weights(asked) => self.look_beside(job, models, &matching_options(asked)),
            AlignFrom::Files(files) => {
                let prints = models
                    .iter()
                    .map(fingerprint::of)
                    .collect::<Result<Vec<_>>>()?;
                let files = files
                    .iter()
                    .map(|file| expand_home(file))
                    .collect::<Vec<_>>();
                let chosen = files
                    .iter()
                    .map(|file| Ok((file.clone(), input_of(file, &prints, models)?)));
                let chosen = chosen.collect::<Result<Vec<_>>>()?;
                self.use_files(job, models, &prints, &chosen)
            }
            AlignFrom::FilesOf(files) => {
                let prints = models
                    .iter()
                    .map(fingerprint::of)
                    .collect::<Result<Vec<_>>>()?;
                let names = job.document.models();
                let chosen = files.iter().filter_map(|(model, file)| {
                    let input = names.iter().position(|name| name.to_string() == *model)?;
                    Some((expand_home(file), vec![input]))
                });
                let chosen: Vec<_> = chosen.collect();
                self.use_files(job, models, &prints, &chosen)
            }
        }
    }

    /// Folds the norms of all inputs if those of one are folded: only then are their weights
    /// comparable.
    fn fold_all(&self, job: &mut Job, models: &[Checkpoint]) -> Result<()> {
        let folded = |alignment: &Alignment| alignment.symmetries.fold.is_some();
        if !job.alignments.iter().flatten().any(folded) {
            return Ok(());
        }
        for (alignment, model) in job.alignments.iter_mut().zip(models) {
            if alignment.as_ref().is_some_and(folded) {
                continue;
            }
            let symmetries = match &alignment {
                Some(alignment) => alignment.symmetries.folded(model)?,
                None => Symmetries::of(model, self.spec)?.folded(model)?,
            };
            let elements = alignment
                .as_ref()
                .map(|alignment| alignment.transform.elements().to_vec());
            let transform = match elements {
                Some(elements) => Transform::new(&symmetries, elements)?,
                None => Transform::identity(&symmetries),
            };
            *alignment = Some(Alignment {
                symmetries: Arc::new(symmetries),
                transform: Arc::new(transform),
            });
        }
        Ok(())
    }

    /// Fills in the alignments of `job`, and finds those that are missing.
    ///
    /// # Errors
    ///
    /// As [`AlignInputs::look`] and [`align`]; fails too if the output may not be written.
    pub fn find(&self, job: &mut Job, finder: &Finder<'_>) -> Result<TransformSearch> {
        // The inputs are opened once for all steps below.
        let models = job.open_inputs(None).map_err(Error::refused)?;
        let search = self.look_among(job, &models).map_err(Error::refused)?;
        let AlignFrom::Weights(asked) = &self.asked.from else {
            return Ok(search);
        };
        let storage = finder.storage.as_ref();
        if search.missing.is_empty() {
            tidy_transforms(storage, &self.target.dir)?;
            return Ok(search);
        }
        self.check(job, finder).map_err(Error::refused)?;
        let options = matching_options(asked);
        match self.asked.together {
            true => self.find_all(job, &models, &options, finder)?,
            false => search
                .missing
                .iter()
                .try_for_each(|input| self.find_one(job, &models, *input, &options, finder))?,
        }
        let again = self.look_among(job, &models)?;
        match again.missing.first() {
            None => {
                tidy_transforms(storage, &self.target.dir)?;
                Ok(again)
            }
            Some(input) => {
                let path = path_of(&self.folder(storage)?, *input);
                let cause = "it was written and is not what was written";
                Err(Error::new(Kind::Damaged, WHAT, path.display(), cause))
            }
        }
    }

    /// Finds the transform that brings `input` near to the donor.
    fn find_one(
        &self,
        job: &Job,
        models: &[Checkpoint],
        input: usize,
        options: &matching::MatchOptions,
        finder: &Finder<'_>,
    ) -> Result<()> {
        let pair = self
            .pair(models[job.donor].clone(), models[input].clone())?
            .ready_for(options.residual)?;
        let task = PairTask {
            pair,
            by: Matcher::Weights,
            matching: options.clone(),
        };
        let path = path_of(&self.folder(finder.storage.as_ref())?, input);
        let found = align(self.run(task, path, models, finder))?;
        (finder.told)(&found.report)
    }

    /// Sets up the run of `task` that writes to `path`, counting the headers of `models` as held.
    fn run<T>(
        &self,
        task: T,
        path: PathBuf,
        models: &[Checkpoint],
        finder: &Finder<'_>,
    ) -> Align<T> {
        let Target {
            overwrite, restart, ..
        } = *self.target;
        Align {
            task,
            memory: finder.wish.memory,
            held: models.iter().map(Checkpoint::metadata_bytes).sum(),
            threads: finder.wish.threads,
            device: finder.device,
            storage: Arc::clone(&finder.storage),
            // A merge that may restart its output may also overwrite the transforms of another run.
            target: Some(Target {
                dir: path,
                overwrite: overwrite || restart,
                restart,
            }),
            options: finder.options.clone(),
        }
    }

    /// Checks the merge's plan and target before hours are spent on its inputs.
    fn check(&self, job: &Job, finder: &Finder<'_>) -> Result<()> {
        let bare = Job {
            alignments: Vec::new(),
            alignment_files: Vec::new(),
            ..job.clone()
        };
        let plan = Plan::new(&bare, finder.wish)?;
        refuse_inputs_folder(&plan.inputs, &self.target.dir)?;
        check_target(
            Arc::clone(&finder.storage),
            self.target,
            &plan.layout,
            &plan.identity,
        )
    }

    /// Returns the transform file of an input from an earlier run of this merge: beside the
    /// output's weights, or with the new output that is to replace them.
    fn found(&self, input: usize, is_of: &dyn Fn(&Path) -> bool) -> Result<Option<PathBuf>> {
        let [last, aside] = transform_folders(&self.target.dir);
        check_folder(&last)?;
        let paths = [path_of(&last, input), path_of(&aside, input)];
        Ok(paths.into_iter().find(|path| path.is_file() && is_of(path)))
    }

    /// Returns the folder for transforms that are found now.
    fn folder(&self, storage: &dyn Storage) -> Result<PathBuf> {
        let [last, aside] = transform_folders(&self.target.dir);
        check_folder(&last)?;
        Ok(if is_replacing(storage, self.target)? {
            aside
        } else {
            last
        })
    }

    fn pair(&self, reference: Checkpoint, model: Checkpoint) -> Result<Pair> {
        Pair::new(reference, model, self.spec, self.allowed)
    }

    /// Takes the transforms that a run of the same merge has found.
    fn look_beside(
        &self,
        job: &mut Job,
        models: &[Checkpoint],
        options: &matching::MatchOptions,
    ) -> Result<TransformSearch> {
        if self.asked.together {
            return self.look_for_all(job, models, options);
        }
        let mut search = TransformSearch::default();
        let donor = job.donor;
        for input in (0..models.len()).filter(|input| *input != donor) {
            let pair = self
                .pair(models[donor].clone(), models[input].clone())?
                .ready_for(options.residual)?;
            let identity = pair.identity(options);
            let Some(path) = self.found(input, &|path| is_of(path, &identity))? else {
                search.missing.push(input);
                continue;
            };
            let file = TransformFile::read(&path, &pair.symmetries)?;
            take(job, input, &path, name_of(&path), file, pair.symmetries)?;
        }
        Ok(search)
    }

    /// Takes the transforms that a run of the same merge has found for all models together; either
    /// all of them exist or none is used.
    fn look_for_all(
        &self,
        job: &mut Job,
        models: &[Checkpoint],
        options: &matching::MatchOptions,
    ) -> Result<TransformSearch> {
        let set = self.model_set(models.to_vec())?;
        let identity = set.identity(&together(job, options));
        let all = (0..models.len()).map(|input| self.found(input, &|path| is_of(path, &identity)));
        let all: Option<Vec<PathBuf>> = all.collect::<Result<Vec<_>>>()?.into_iter().collect();
        let others = (0..models.len()).filter(|input| *input != job.donor);
        let Some(all) = all else {
            return Ok(TransformSearch {
                missing: others.collect(),
                ..TransformSearch::default()
            });
        };
        for input in others.collect::<Vec<_>>() {
            let path = &all[input];
            let file = TransformFile::read(path, set.symmetries())?;
            take(
                job,
                input,
                path,
                name_of(path),
                file,
                Arc::clone(set.symmetries()),
            )?;
        }
        Ok(TransformSearch::default())
    }

    fn model_set(&self, models: Vec<Checkpoint>) -> Result<ModelSet> {
        ModelSet::new(models, self.spec, self.allowed)
    }

    /// Finds the transforms of all models together.
    fn find_all(
        &self,
        job: &Job,
        models: &[Checkpoint],
        options: &matching::MatchOptions,
        finder: &Finder<'_>,
    ) -> Result<()> {
        let task = ModelSetTask {
            set: self.model_set(models.to_vec())?,
            many: together(job, options),
        };
        let folder = self.folder(finder.storage.as_ref())?;
        let report = align(self.run(task, folder, models, finder))?;
        let others = report
            .models
            .iter()
            .enumerate()
            .filter(|(model, _)| *model != job.donor);
        others.map(|(_, report)| report).try_for_each(finder.told)
    }
}

/// Converts a recipe's options into those of the matcher.
fn matching_options(asked: &WeightMatching) -> matching::MatchOptions {
    matching::MatchOptions {
        cost: match asked.cost {
            recipe::Cost::Normalised => Cost::Normalised,
            recipe::Cost::Raw => Cost::Raw,
        },
        residual: match asked.residual {
            recipe::Residual::Fixed => Residual::Fixed,
            recipe::Residual::Permute => Residual::Permute,
            recipe::Residual::Orthogonal => Residual::Orthogonal,
        },
        signs: asked.signs,
        seed: asked.seed,
        sweeps: asked.sweeps,
        ..matching::MatchOptions::default()
    }
}

/// Names a transform beside the output by its path in the output.
fn name_of(path: &Path) -> String {
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default();
    Path::new(folder)
        .join(path.file_name().unwrap_or_default())
        .display()
        .to_string()
}

/// Returns the options for aligning the inputs of a merge together; the donor stays unchanged.
fn together(job: &Job, options: &matching::MatchOptions) -> ManyOptions {
    ManyOptions {
        begin: Begin::Model(job.donor),
        matching: options.clone(),
        ..ManyOptions::default()
    }
}
