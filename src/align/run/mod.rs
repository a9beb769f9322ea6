//! A whole alignment of two models or many: begin or go on, match, write the transforms, report.
//!
//! Two models are a [`PairTask`], which writes one file; many are a [`ModelSetTask`], which writes a
//! file for each of them, `1.safetensors` and so on in one folder. The steps are journalled beside
//! the last of these files, which is written once all others are durable: until it exists the run
//! is not finished, and continues when it is started again.
//!
//! Merging aligned models is the task of [`merge`](crate::engine::merge()); [`inputs`] finds the
//! transform for each input of a merge.

mod backend;
mod findings;
pub mod inputs;
mod matcher;
mod model_set_task;
mod pair;
mod pair_task;
mod report;
mod session;
mod task;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::Value;

use crate::align::Store;
use crate::budget::{check_limits, format_bytes, peak_resident_bytes};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::engine::Options;
use crate::engine::separate::refuse_inputs_folder;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::Kernels;
use crate::output::{BegunSteps, Steps, Storage, Target};
use crate::plan::memory::{DeviceWish, process_bytes};
use crate::symmetry::{Symmetries, TransformFile};

pub use matcher::Matcher;
pub use model_set_task::{ModelSet, ModelSetTask};
pub use pair::Pair;
pub use pair_task::{Aligned, PairTask};
pub use report::{AlignmentReport, Cosines, Findings, ManyReport, RootFound};
pub use session::{Session, TaskStep};
pub use task::{Ran, Solving, Task};

/// The keys of a transform file's notes.
mod note {
    /// The identity of the run.
    pub const IDENTITY: &str = "identity";
    /// The fingerprint of the model that stayed.
    pub const REFERENCE: &str = "reference";
    /// The findings: gains, certificates, cosines.
    pub const FINDINGS: &str = "findings";
    /// The findings about many models together.
    pub const TOGETHER: &str = "together";
}

/// The status of a run that had nothing to do.
const COMPLETE: &str = "complete already";

/// The inputs and limits of an alignment.
pub struct Align<T> {
    /// The models, and the options for aligning them.
    pub task: T,
    /// The most memory that may be resident, in bytes.
    pub memory: u64,
    /// Bytes of this memory that the caller holds during the run.
    pub held: u64,
    /// The number of threads for computing.
    pub threads: usize,
    /// The share of the options' device that may be used; without it the device stays idle.
    pub device: Option<DeviceWish>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// The transform file to write, `X.safetensors`, or the folder of transform files; without a
    /// target there is only a report.
    pub target: Option<Target>,
    /// The options of the run.
    pub options: Options,
}

/// Aligns models, or continues an earlier run of the same alignment.
///
/// # Errors
///
/// Passes on the errors of finding and writing the transforms. If there is a target, the steps
/// taken so far are kept for the next run.
pub fn align<T: Task>(align: Align<T>) -> Result<T::Found> {
    let begun = Instant::now();
    let Align {
        mut task,
        memory,
        held,
        threads,
        device,
        storage,
        target,
        options,
    } = align;
    check_limits(memory, threads)?;
    let pool = pool(threads)?;
    let held = held + backend::host_bytes(&options, device, memory)?;
    task.set_memory(left_for_matching(&task, memory, held, &pool).map_err(Error::refused)?);
    let identity = task.identity().map_err(Error::refused)?;
    let run = AlignRun {
        task: &task,
        pool: &pool,
        options: &options,
        identity: &identity,
        device,
        memory,
    };
    let (files, status) = match &target {
        None => (run.carry_out(None, vec![])?, "aligned"),
        Some(target) => run.carry_out_to(target, storage)?,
    };
    let ran = Ran {
        status,
        out: target.map(|target| target.dir),
        seconds: begun.elapsed().as_secs_f64(),
        memory,
        device: (status != COMPLETE).then(|| backend::name(&options, device)),
    };
    task.found(files, &ran)
}

/// Builds the pool of threads that an alignment computes on.
fn pool(threads: usize) -> Result<ThreadPool> {
    let built = ThreadPoolBuilder::new().num_threads(threads).build();
    built.map_err(|error| Error::new(Kind::Io, "cannot start threads", "alignment", error))
}

/// Returns the bytes of `memory` that are left for the matcher, when `held` are taken.
fn left_for_matching<T: Task>(task: &T, memory: u64, held: u64, pool: &ThreadPool) -> Result<u64> {
    let (models, threads) = (task.models(), pool.current_num_threads());
    let process = process_bytes(threads, &models);
    let fixed = process + 2 * task.symmetries().bytes() + task.held_bytes(threads) + held;
    let open = |model| Store::open(model, &SourceOptions::default(), Kernels::detect());
    let (first, second) = (open(models[0])?, Arc::new(open(models[1])?));
    let least = fixed + pool.install(|| task.least_bytes(&first, &second));
    if memory < least {
        let cause = format!(
            "aligning {} needs at least {}",
            task.words(),
            format_bytes(least)
        );
        return Err(Error::new(
            Kind::Budget,
            "memory is too small",
            format_bytes(memory),
            cause,
        )
        .with_hint(format!(
            "give --memory {}MiB or more, or fewer --threads",
            least.div_ceil(1 << 20)
        )));
    }
    Ok(memory - fixed)
}

/// True if the file at `path` is the result of this very run.
fn is_of(path: &Path, identity: &Value) -> bool {
    let metadata = |stored: Checkpoint| stored.files().first().map(|file| file.metadata.clone());
    let metadata = Checkpoint::open(path)
        .ok()
        .and_then(metadata)
        .unwrap_or_default();
    metadata.contains_key(note::FINDINGS)
        && metadata.get(note::IDENTITY) == Some(&identity.to_string())
}

fn parsed<S: TaskStep>(steps: &[String], out: &Path) -> Result<Vec<S>> {
    let context = Context::new(Kind::Resume, "cannot resume", out.display())
        .with_hint("run with --restart to discard what was found and begin anew");
    let steps = steps.iter().map(|step| {
        let step = serde_json::from_str(step);
        step.map_err(|error| context.error(format!("a journalled step is odd: {error}")))
    });
    steps.collect()
}

fn findings_of(file: &TransformFile, path: &Path) -> Result<Findings> {
    let text = file
        .notes
        .get(note::FINDINGS)
        .map(String::as_str)
        .unwrap_or_default();
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            Kind::Damaged,
            "cannot read the notes of a transform",
            path.display(),
            error,
        )
    })
}

/// Reports on the alignment of `model` to `reference`, whose transform `file` belongs at `path`.
fn report_of(
    file: &TransformFile,
    path: Option<&Path>,
    models: [&Checkpoint; 2],
    symmetries: &Symmetries,
    ran: &Ran,
) -> Result<AlignmentReport> {
    let findings = findings_of(file, path.unwrap_or(Path::new("transform")))?;
    let [reference, model] = models.map(|model| model.root().display().to_string());
    Ok(AlignmentReport {
        status: ran.status,
        reference,
        model,
        out: path.map(|path| path.display().to_string()),
        spec: symmetries.spec.clone(),
        objective: findings.objective(),
        mean_angle: findings.mean_angle(),
        moved: findings.moved(),
        findings,
        seconds: ran.seconds,
        peak_resident_bytes: peak_resident_bytes(),
        memory_limit_bytes: ran.memory,
        device: ran.device.clone(),
    })
}

/// An alignment in progress.
struct AlignRun<'a, T> {
    task: &'a T,
    pool: &'a ThreadPool,
    options: &'a Options,
    identity: &'a Value,
    /// The share of the device that may be used.
    device: Option<DeviceWish>,
    /// The most memory that may be resident, in bytes.
    memory: u64,
}

impl<T: Task> AlignRun<'_, T> {
    /// Returns the transforms at `target`, after finding and writing them if they are missing, and
    /// the status.
    fn carry_out_to(
        &self,
        target: &Target,
        storage: Arc<dyn Storage>,
    ) -> Result<(Vec<TransformFile>, &'static str)> {
        let (task, identity) = (self.task, self.identity);
        task.check_target(target, identity)
            .map_err(Error::refused)?;
        let paths = task.paths(&target.dir);
        let last = Target {
            dir: last_of(&paths),
            ..target.clone()
        };
        let is_same = |_: &Path| paths.iter().all(|path| is_of(path, identity));
        Ok(
            match Steps::begin(storage, &last, identity, &is_same).map_err(Error::refused)? {
                BegunSteps::Complete => {
                    let read = |path: &PathBuf| TransformFile::read(path, task.symmetries());
                    (paths.iter().map(read).collect::<Result<_>>()?, COMPLETE)
                }
                BegunSteps::Fresh(steps) => (self.carry_out(Some(steps), vec![])?, "aligned"),
                BegunSteps::Resumed(steps, earlier) => (
                    self.carry_out(Some(steps), parsed(&earlier, &target.dir)?)?,
                    "resumed",
                ),
            },
        )
    }

    /// Matches from the end of the `earlier` steps on, and writes the transforms if there is a
    /// journal.
    fn carry_out(
        &self,
        journal: Option<Steps>,
        earlier: Vec<T::Step>,
    ) -> Result<Vec<TransformFile>> {
        let kept = journal.is_some();
        self.matched(journal, earlier)
            .map_err(|error| backend::resumable(error, kept))
    }

    fn matched(&self, journal: Option<Steps>, earlier: Vec<T::Step>) -> Result<Vec<TransformFile>> {
        let (task, options) = (self.task, self.options);
        let backend = backend::backend(options, self.device, self.memory)?;
        let sources = SourceOptions {
            io: options.io,
            scratch: journal.as_ref().map(Steps::scratch_dir),
        };
        let open = |model| Ok(Arc::new(Store::open(model, &sources, options.kernels)?));
        let stores = task
            .models()
            .into_iter()
            .map(open)
            .collect::<Result<Vec<_>>>()?;
        let session = Session::new(task.symmetries(), options, journal, earlier.clone());
        let solving = Solving {
            stores: &stores,
            earlier: &earlier,
            session: &session,
            options,
            identity: self.identity,
        };
        let files = self.pool.install(|| task.solve(&solving, backend))?;
        drop(stores);
        if let Some(journal) = session.end() {
            self.write(journal, &files)?;
        }
        Ok(files)
    }

    /// Writes the transforms; the last one is written last.
    fn write(&self, journal: Steps, files: &[TransformFile]) -> Result<()> {
        let (symmetries, paths) = (self.task.symmetries(), self.task.paths(Path::new("")));
        let Some((last, others)) = files.split_last() else {
            return Ok(());
        };
        for (file, path) in others.iter().zip(&paths) {
            journal.write_beside(&path.to_string_lossy(), file.to_bytes(symmetries)?)?;
        }
        journal.finish(last.to_bytes(symmetries)?)?;
        Ok(())
    }
}

/// Returns the path of the file that finishes a run.
fn last_of(paths: &[PathBuf]) -> PathBuf {
    paths.last().cloned().unwrap_or_default()
}
