//! Many models aligned with each other: a transform file for each, `1.safetensors` and so on in one folder.
//!
//! The steps are journalled beside the last of these files, which is written when all others are durable: while it is
//! not there the run is not finished, and goes on when it is started again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use rayon::ThreadPool;
use serde_json::{Value, json};

use crate::align::many::{ManyMatched, ManyOptions, ManyStep, match_many};
use crate::align::matching::{self, least_memory};
use crate::align::{Store, Transformed, angles};
use crate::budget::{check_limits, format_bytes, peak_resident_bytes};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::engine::Options;
use crate::engine::separate::refuse_inputs_folder;
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::likeness::Waived;
use crate::output::{BegunSteps, Steps, Storage, Target, check_folder_ending};
use crate::plan::memory::{DeviceWish, process_bytes};
use crate::symmetry::{Alignment, Spec, Symmetries, Transform, TransformFile};

use super::session::Session;
use super::{AlignmentReport, COMPLETE, Findings, ManyReport, Pair, backend, findings, findings_of, is_of, note, pair, parsed, pool};

/// Bytes that a thread takes to read a part of one model of a mean.
const READER_BYTES: u64 = 4 << 20;

/// Models that can be aligned with each other, headers only.
pub struct Crowd {
    models: Vec<Checkpoint>,
    prints: Vec<String>,
    symmetries: Arc<Symmetries>,
    /// The symmetries' part of the identity, which is that of each pair.
    spec: Value,
    /// What a user should know of their differences.
    pub warnings: Vec<String>,
}

/// Everything that aligning many models needs.
pub struct AlignMany {
    /// The models.
    pub crowd: Crowd,
    /// How they are brought together; how much memory that may take is filled in here.
    pub many: ManyOptions,
    /// The most memory that may be resident, in bytes.
    pub memory: u64,
    /// Threads that compute.
    pub threads: usize,
    /// What may be used of the device of the options; without it that device has nothing to do.
    pub device: Option<DeviceWish>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// The folder of transform files to write; without one there is only a report.
    pub target: Option<Target>,
    /// How it is carried out.
    pub options: Options,
}

impl Crowd {
    /// Checks that these models can be aligned with each other, as [`Pair::new`] does for two.
    ///
    /// # Errors
    ///
    /// As [`Pair::new`]; [`Kind::Usage`] for fewer than two models, or two of one content, which need no alignment and
    /// could not be told apart by their transforms.
    pub fn new(models: Vec<Checkpoint>, spec: Option<&Spec>, allowed: Waived) -> Result<Self> {
        let [first, others @ ..] = models.as_slice() else {
            return Err(Error::new(Kind::Usage, "cannot align", "models", "wanted at least two, got none"));
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
                return Err(Error::new(Kind::Usage, "cannot align", other.root().display(), cause)
                    .with_hint("name each model once"));
            }
            warnings.extend(pair.warnings);
            let spec = pair::spec_identity(&pair.symmetries);
            prints.push(pair.model_print);
            found.get_or_insert((pair.symmetries, spec));
        }
        let Some((symmetries, spec)) = found else {
            return Err(Error::new(Kind::Usage, "cannot align", "models", "wanted at least two, got one"));
        };
        Ok(Self { models, prints, symmetries, spec, warnings })
    }

    /// What decides whether two runs look for the same.
    pub fn identity(&self, many: &ManyOptions) -> Value {
        json!({ "alignment": pair::ALIGNMENT_VERSION, "models": self.prints, "spec": self.spec, "options": many })
    }

    /// The symmetries of all.
    pub fn symmetries(&self) -> &Arc<Symmetries> {
        &self.symmetries
    }
}

/// Where the transform of a model lies in the folder `out`.
pub fn path_of(out: &Path, model: usize) -> PathBuf {
    out.join(file_of(model))
}

fn file_of(model: usize) -> String {
    format!("{}.safetensors", model + 1)
}

/// Aligns, or goes on with what an earlier run of the same alignment has left.
///
/// # Errors
///
/// Whatever keeps the transforms from being found or written. The steps that were taken stay for the next run, when there
/// is a target.
pub fn align_many(align: AlignMany) -> Result<ManyReport> {
    let begun = Instant::now();
    let AlignMany { crowd, mut many, memory, threads, device, storage, target, options } = align;
    check_limits(memory, threads)?;
    let pool = pool(threads)?;
    let on_device = backend::host_bytes(&options, device, memory)?;
    many.matching.memory = left_for_matching(&crowd, &many.matching, (memory, on_device), &pool)?;
    let identity = crowd.identity(&many);
    let run = Run { crowd: &crowd, many: &many, pool: &pool, options: &options, identity: &identity, device, memory };
    let (files, status) = match &target {
        None => (run.carry_out(None, vec![])?, "aligned"),
        Some(target) => {
            check_folder_ending(&target.dir).map_err(Error::refused)?;
            refuse_inputs_folder(&crowd.models, &target.dir).map_err(Error::refused)?;
            let out = target.dir.as_path();
            let last = Target { dir: path_of(out, crowd.models.len() - 1), ..target.clone() };
            refuse_others(&crowd, target, &identity).map_err(Error::refused)?;
            let is_same = |_: &Path| (0..crowd.models.len()).all(|model| is_of(&path_of(out, model), &identity));
            match Steps::begin(storage, &last, &identity, &is_same).map_err(Error::refused)? {
                BegunSteps::Complete => {
                    let read = |model| TransformFile::read(&path_of(out, model), &crowd.symmetries);
                    ((0..crowd.models.len()).map(read).collect::<Result<_>>()?, COMPLETE)
                }
                BegunSteps::Fresh(steps) => (run.carry_out(Some(steps), vec![])?, "aligned"),
                BegunSteps::Resumed(steps, earlier) => {
                    let earlier = parsed(&earlier, out)?;
                    (run.carry_out(Some(steps), earlier)?, "resumed")
                }
            }
        }
    };
    let device = (status != COMPLETE).then(|| backend::name(&options, device));
    run.report(&files, (status, device), target.as_ref().map(|target| target.dir.as_path()), begun, memory)
}

/// What the matcher may take of `memory`, of which a device takes some.
fn left_for_matching(
    crowd: &Crowd,
    matching: &matching::Options,
    (memory, on_device): (u64, u64),
    pool: &ThreadPool,
) -> Result<u64> {
    let threads = pool.current_num_threads();
    let models: Vec<&Checkpoint> = crowd.models.iter().collect();
    let count = models.len() as u64;
    // Held at once: what is done to each model, what is tried, what comes of it, and the steps as they are journalled.
    let transforms = (3 * count + 4) * findings::largest_transform_bytes(&crowd.symmetries);
    let readers = threads as u64 * count * READER_BYTES;
    let process = process_bytes(threads, &models);
    let fixed = process + 2 * crowd.symmetries.bytes() + transforms + readers + on_device;
    let open = |model| Store::open(model, &SourceOptions::default(), Kernels::detect());
    let (one, other) = (open(&crowd.models[0])?, Arc::new(open(&crowd.models[1])?));
    let least = fixed + pool.install(|| least_memory(&one, &other, &crowd.symmetries, matching));
    if memory < least {
        let cause = format!("aligning {count} of these models needs at least {}", format_bytes(least));
        return Err(Error::new(Kind::Budget, "memory is too small", format_bytes(memory), cause)
            .with_hint(format!("give --memory {}MiB or more, or fewer --threads", least.div_ceil(1 << 20))));
    }
    Ok(memory - fixed)
}

/// Refuses to replace files that another run has written.
fn refuse_others(crowd: &Crowd, target: &Target, identity: &Value) -> Result<()> {
    if target.overwrite {
        return Ok(());
    }
    let paths = (0..crowd.models.len()).map(|model| path_of(&target.dir, model));
    match paths.into_iter().find(|path| path.exists() && !is_of(path, identity)) {
        None => Ok(()),
        Some(path) => {
            let cause = "a file is there that this run did not write";
            Err(Error::new(Kind::Occupied, "cannot write to file", path.display(), cause)
                .with_hint("choose another folder, or let --overwrite replace it"))
        }
    }
}

/// An alignment that is carried out.
struct Run<'a> {
    crowd: &'a Crowd,
    many: &'a ManyOptions,
    pool: &'a ThreadPool,
    options: &'a Options,
    identity: &'a Value,
    /// What may be used of the device.
    device: Option<DeviceWish>,
    /// The most memory that may be resident, in bytes.
    memory: u64,
}

impl Run<'_> {
    /// Matches from behind the `earlier` steps on, and writes the transforms if there is a journal.
    fn carry_out(&self, journal: Option<Steps>, earlier: Vec<ManyStep>) -> Result<Vec<TransformFile>> {
        let kept = journal.is_some();
        self.matched(journal, earlier).map_err(|error| backend::resumable(error, kept))
    }

    fn matched(&self, journal: Option<Steps>, earlier: Vec<ManyStep>) -> Result<Vec<TransformFile>> {
        let matching = matching::Options {
            backend: backend::backend(self.options, self.device, self.memory)?,
            ..self.many.matching.clone()
        };
        let many = ManyOptions { matching, ..self.many.clone() };
        let sources = SourceOptions { io: self.options.io, scratch: journal.as_ref().map(Steps::scratch_dir) };
        let open = |model| Ok(Arc::new(Store::open(model, &sources, self.options.kernels)?));
        let models = self.crowd.models.iter().map(open).collect::<Result<Vec<_>>>()?;
        let symmetries = &self.crowd.symmetries;
        let session = Session::new(symmetries, self.options, journal, earlier.clone());
        let (found, files) = self.pool.install(|| {
            let found = match_many(&models, &[], symmetries, &earlier, &many, &session)?;
            drop(many);
            let files = (0..models.len()).map(|model| self.file(&models, &found, model));
            let files = files.collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>((found, files))
        })?;
        drop(found);
        let (_, journal) = session.end();
        if let Some(journal) = journal {
            let Some((last, others)) = files.split_last() else { return Ok(files) };
            for (model, file) in others.iter().enumerate() {
                journal.write_beside(&file_of(model), file.to_bytes(symmetries)?)?;
            }
            journal.finish(last.to_bytes(symmetries)?)?;
        }
        Ok(files)
    }

    /// The transform file of a model, with what was found about it beside the one that stays.
    fn file(&self, models: &[Arc<Store>], found: &ManyMatched, model: usize) -> Result<TransformFile> {
        let symmetries = &self.crowd.symmetries;
        let transform = &found.transforms[model];
        let names: Vec<&str> = pair::acted_on(symmetries).collect();
        let reference = models[found.begun].as_ref();
        let measure = |transform: Transform| {
            let alignment = Alignment { symmetries: Arc::clone(symmetries), transform: Arc::new(transform) };
            let moved = Transformed::new(Arc::clone(&models[model]), alignment);
            let passed = |_| match self.options.stop.asked() {
                // The steps are journalled, so that only the measuring is done again.
                true => Err(Error::new(Kind::Interrupted, "stopped on request", "alignment", "it is not written")
                    .with_hint("run the same command again to go on from here")
                    .resumable()),
                false => Ok(()),
            };
            angles::cosines(reference, &moved, &names, self.options.kernels, &passed)
        };
        let before = measure(Transform::identity(symmetries))?;
        let after = if transform.is_identity(symmetries) { before.clone() } else { measure(transform.clone())? };
        let (options, steps) = (&self.many.matching, &found.steps[model]);
        let found_here = findings::of(symmetries, options, transform, found.rounds, steps, [before, after]);
        let text = |value: serde_json::Result<String>| value.expect("findings are plain data");
        let together = json!({
            "begun": found.begun, "rounds": found.rounds, "settled": found.settled, "cycle_error": found.cycle_error,
        });
        let notes = IndexMap::from([
            (note::REFERENCE.to_owned(), self.crowd.prints[found.begun].clone()),
            (note::IDENTITY.to_owned(), self.identity.to_string()),
            (note::FINDINGS.to_owned(), text(serde_json::to_string(&found_here))),
            (note::TOGETHER.to_owned(), together.to_string()),
        ]);
        Ok(TransformFile { transform: transform.clone(), model: self.crowd.prints[model].clone(), notes })
    }

    fn report(
        &self,
        files: &[TransformFile],
        (status, device): (&'static str, Option<String>),
        out: Option<&Path>,
        begun: Instant,
        memory: u64,
    ) -> Result<ManyReport> {
        let name = |model: usize| self.crowd.models[model].root().display().to_string();
        let path = |model: usize| out.map_or_else(|| PathBuf::from("transform"), |out| path_of(out, model));
        let together = files.first().and_then(|file| file.notes.get(note::TOGETHER)).map(String::as_str);
        let together: Value = serde_json::from_str(together.unwrap_or_default()).map_err(|error| {
            Error::new(Kind::Damaged, "cannot read the notes of a transform", path(0).display(), error)
        })?;
        let number = |key: &str| together[key].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
        let reference = number("begun").min(files.len().saturating_sub(1));
        let one = |(model, file): (usize, &TransformFile)| {
            let findings: Findings = findings_of(file, &path(model))?;
            Ok(AlignmentReport {
                status,
                reference: name(reference),
                model: name(model),
                out: out.map(|_| path(model).display().to_string()),
                spec: self.crowd.symmetries.spec.clone(),
                objective: findings.objective(),
                mean_angle: findings.mean_angle(),
                moved: findings.moved(),
                findings,
                seconds: begun.elapsed().as_secs_f64(),
                peak_resident_bytes: peak_resident_bytes(),
                memory_limit_bytes: memory,
                device: device.clone(),
            })
        };
        Ok(ManyReport {
            models: files.iter().enumerate().map(one).collect::<Result<_>>()?,
            options: self.many.clone(),
            reference,
            rounds: number("rounds"),
            settled: together["settled"].as_bool().unwrap_or(false),
            cycle_error: together["cycle_error"].as_f64().unwrap_or(f64::NAN),
        })
    }
}
