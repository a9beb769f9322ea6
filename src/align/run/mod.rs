//! A whole alignment: begin or go on, match the weights, write the transform, report.
//!
//! Merging aligned models is [`merge`](crate::engine::merge())'s; which transform goes with which input of a merge is found in
//! [`inputs`].

mod backend;
mod by;
mod findings;
pub mod inputs;
pub mod many;
mod pair;
mod report;
mod session;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use rayon::{ThreadPool, ThreadPoolBuilder};
use serde_json::Value;

use crate::align::matching::{self, Step, Watch};
use crate::align::{Store, Transformed, Weights, angles};
use crate::budget::{check_limits, format_bytes, peak_resident_bytes};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::engine::Options;
use crate::engine::separate::refuse_inputs_folder;
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::monitor::Phase;
use crate::output::{BegunSteps, Steps, Storage, Target};
use crate::plan::memory::{DeviceWish, process_bytes};
use crate::symmetry::{Alignment, Transform, TransformFile};

pub use by::By;
use by::{Models, Solved};
pub use pair::Pair;
pub use report::{AlignmentReport, Cosines, Findings, ManyReport, RootFound};
use session::Session;

/// The keys of a transform file's notes.
mod note {
    /// What the run was asked to do.
    pub const IDENTITY: &str = "identity";
    /// The fingerprint of the model that stayed.
    pub const REFERENCE: &str = "reference";
    /// What was found: gains, certificates, cosines.
    pub const FINDINGS: &str = "findings";
    /// What was found about many models together.
    pub const TOGETHER: &str = "together";
}

/// The status of a run that had nothing to do.
const COMPLETE: &str = "complete already";

/// Everything that an alignment needs.
pub struct Align {
    /// What is aligned with what.
    pub pair: Pair,
    /// By what.
    pub by: By,
    /// How it is looked for; how much memory that may take is filled in here.
    pub matching: matching::Options,
    /// The most memory that may be resident, in bytes.
    pub memory: u64,
    /// Threads that compute.
    pub threads: usize,
    /// What may be used of the device of the options; without it that device has nothing to do.
    pub device: Option<DeviceWish>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// The transform file to write, `X.safetensors`; without one there is only a report.
    pub target: Option<Target>,
    /// How it is carried out.
    pub options: Options,
}

/// An alignment that was found.
pub struct Aligned {
    /// The transform with its notes, as it was written.
    pub file: TransformFile,
    /// What was found, for people and programs.
    pub report: AlignmentReport,
}

/// Aligns, or goes on with what an earlier run of the same alignment has left.
///
/// # Errors
///
/// Whatever keeps the transform from being found or written. The steps that were taken stay for the next run, when there
/// is a target.
pub fn align(align: Align) -> Result<Aligned> {
    let begun = Instant::now();
    let Align { pair, by, mut matching, memory, threads, device, storage, target, options } = align;
    check_limits(memory, threads)?;
    let pool = pool(threads)?;
    let on_device = backend::host_bytes(&options, device, memory)?;
    let left = left_for_matching(&pair, &by, &matching, (memory, on_device), &pool);
    matching.memory = left.map_err(Error::refused)?;
    let mut identity = pair.identity(&matching);
    by.add_to(&mut identity).map_err(Error::refused)?;
    let run = Run {
        pair: &pair,
        by: &by,
        matching: &matching,
        pool: &pool,
        options: &options,
        identity: &identity,
        device,
        memory,
    };
    let (file, status) = match &target {
        None => (run.carry_out(None, vec![])?, "aligned"),
        Some(target) => {
            refuse_other_names(&target.dir).map_err(Error::refused)?;
            refuse_inputs_folder([&pair.reference, &pair.model], &target.dir).map_err(Error::refused)?;
            match Steps::begin(storage, target, &identity, &|path| is_of(path, &identity)).map_err(Error::refused)? {
                BegunSteps::Complete => (TransformFile::read(&target.dir, &pair.symmetries)?, COMPLETE),
                BegunSteps::Fresh(steps) => (run.carry_out(Some(steps), vec![])?, "aligned"),
                BegunSteps::Resumed(steps, earlier) => {
                    let earlier = parsed(&earlier, &target.dir)?;
                    (run.carry_out(Some(steps), earlier)?, "resumed")
                }
            }
        }
    };
    let findings = findings_of(&file, target.as_ref().map_or(Path::new("transform"), |target| &target.dir))?;
    let report = AlignmentReport {
        status,
        reference: pair.reference.root().display().to_string(),
        model: pair.model.root().display().to_string(),
        out: target.map(|target| target.dir.display().to_string()),
        spec: pair.symmetries.spec.clone(),
        objective: findings.objective(),
        mean_angle: findings.mean_angle(),
        moved: findings.moved(),
        findings,
        seconds: begun.elapsed().as_secs_f64(),
        peak_resident_bytes: peak_resident_bytes(),
        memory_limit_bytes: memory,
        device: (status != COMPLETE).then(|| backend::name(&options, device)),
    };
    Ok(Aligned { file, report })
}

/// The threads that an alignment computes on.
fn pool(threads: usize) -> Result<ThreadPool> {
    let built = ThreadPoolBuilder::new().num_threads(threads).build();
    built.map_err(|error| Error::new(Kind::Io, "cannot start threads", "alignment", error))
}

/// What the matcher may take of `memory`, of which a device takes some.
fn left_for_matching(
    pair: &Pair,
    by: &By,
    matching: &matching::Options,
    (memory, on_device): (u64, u64),
    pool: &ThreadPool,
) -> Result<u64> {
    let symmetries = &pair.symmetries;
    // Held at once: what the matcher has found and what it tries, and the steps, twice where they are taken up again.
    let transforms = 6 * findings::largest_transform_bytes(symmetries);
    let threads = pool.current_num_threads();
    let process = process_bytes(threads, &[&pair.reference, &pair.model]);
    let fixed = process + 2 * symmetries.bytes() + transforms + on_device;
    let open = |model| Store::open(model, &SourceOptions::default(), Kernels::detect());
    let (reference, moving) = (open(&pair.reference)?, Arc::new(open(&pair.model)?));
    let least = fixed + pool.install(|| by.least_memory(&reference, &moving, symmetries, matching));
    if memory < least {
        let cause = format!("aligning these models needs at least {}", format_bytes(least));
        return Err(Error::new(Kind::Budget, "memory is too small", format_bytes(memory), cause)
            .with_hint(format!("give --memory {}MiB or more, or fewer --threads", least.div_ceil(1 << 20))));
    }
    Ok(memory - fixed)
}

/// A transform is read by its name as a checkpoint is.
fn refuse_other_names(out: &Path) -> Result<()> {
    if out.extension().is_some_and(|end| end == "safetensors") && !out.is_dir() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, "cannot write to file", out.display(), "wanted the name of one file, X.safetensors"))
}

/// Whether the file at `path` is the result of this very run.
fn is_of(path: &Path, identity: &Value) -> bool {
    let metadata = |stored: Checkpoint| stored.files().first().map(|file| file.metadata.clone());
    let metadata = Checkpoint::open(path).ok().and_then(metadata).unwrap_or_default();
    metadata.contains_key(note::FINDINGS) && metadata.get(note::IDENTITY) == Some(&identity.to_string())
}

fn parsed<S: serde::de::DeserializeOwned>(steps: &[String], out: &Path) -> Result<Vec<S>> {
    let odd = |error| {
        Error::new(Kind::Resume, "cannot resume", out.display(), format!("a journalled step is odd: {error}"))
            .with_hint("run with --restart to discard what was found and begin anew")
    };
    steps.iter().map(|step| serde_json::from_str(step).map_err(odd)).collect()
}

fn findings_of(file: &TransformFile, path: &Path) -> Result<Findings> {
    let text = file.notes.get(note::FINDINGS).map(String::as_str).unwrap_or_default();
    serde_json::from_str(text)
        .map_err(|error| Error::new(Kind::Damaged, "cannot read the notes of a transform", path.display(), error))
}

/// An alignment that is carried out.
struct Run<'a> {
    pair: &'a Pair,
    by: &'a By,
    matching: &'a matching::Options,
    pool: &'a ThreadPool,
    options: &'a Options,
    identity: &'a Value,
    /// What may be used of the device.
    device: Option<DeviceWish>,
    /// The most memory that may be resident, in bytes.
    memory: u64,
}

impl Run<'_> {
    /// Matches from behind the `earlier` steps on, and writes the transform if there is a journal.
    fn carry_out(&self, journal: Option<Steps>, earlier: Vec<Step>) -> Result<TransformFile> {
        let kept = journal.is_some();
        self.matched(journal, earlier).map_err(|error| backend::resumable(error, kept))
    }

    fn matched(&self, journal: Option<Steps>, earlier: Vec<Step>) -> Result<TransformFile> {
        let matching = matching::Options {
            backend: backend::backend(self.options, self.device, self.memory)?,
            ..self.matching.clone()
        };
        let sources = SourceOptions { io: self.options.io, scratch: journal.as_ref().map(Steps::scratch_dir) };
        let open = |model| Store::open(model, &sources, self.options.kernels);
        let (stored, moving) = (Arc::new(open(&self.pair.reference)?), Arc::new(open(&self.pair.model)?));
        let reference = self.reference(Arc::clone(&stored));
        let session = Session::new(&self.pair.symmetries, self.options, journal, earlier.clone());
        let (solved, cosines) = self.pool.install(|| {
            let (reference, stored) = (reference.as_ref(), stored.as_ref());
            let models = Models { pair: self.pair, reference, stored, moving: &moving, options: self.options };
            let solved = self.by.solve(&models, &matching, &earlier, &session)?;
            drop(matching);
            let cosines = self.cosines(reference, &moving, &solved.transform, &session)?;
            Ok::<_, Error>((solved, cosines))
        })?;
        let Solved { transform, sweeps, losses } = solved;
        let (steps, journal) = session.end();
        let symmetries = &self.pair.symmetries;
        let mut found = findings::of(symmetries, self.matching, &transform, sweeps, &steps, cosines);
        self.by.add_findings(&mut found, &steps, self.pair, losses);
        let text = |value: serde_json::Result<String>| value.expect("findings are plain data");
        let notes = IndexMap::from([
            (note::REFERENCE.to_owned(), self.pair.reference_print.clone()),
            (note::IDENTITY.to_owned(), self.identity.to_string()),
            (note::FINDINGS.to_owned(), text(serde_json::to_string(&found))),
        ]);
        let file = TransformFile { transform, model: self.pair.model_print.clone(), notes };
        if let Some(journal) = journal {
            journal.finish(file.to_bytes(symmetries)?)?;
        }
        Ok(file)
    }

    /// The reference as it is compared.
    fn reference(&self, store: Arc<Store>) -> Arc<dyn Weights> {
        let Some(symmetries) = &self.pair.folded else { return store };
        let (symmetries, transform) = (Arc::clone(symmetries), Arc::new(Transform::identity(symmetries)));
        Arc::new(Transformed::new(store, Alignment { symmetries, transform }))
    }

    /// The cosines of all tensors before and after.
    fn cosines(
        &self,
        reference: &dyn Weights,
        moving: &Arc<Store>,
        transform: &Transform,
        session: &Session<'_>,
    ) -> Result<[Vec<Option<f64>>; 2]> {
        let (symmetries, names) = (&self.pair.symmetries, self.pair.acted_on());
        let elements = |name: &&str| reference.shape(name).unwrap_or_default().iter().product::<u64>();
        let moves = !transform.is_identity(symmetries);
        let passes = 1 + u64::from(moves);
        self.options.monitor.phase(Phase::Measuring, 2 * 4 * passes * names.iter().map(elements).sum::<u64>());
        let passed = |elements: u64| {
            self.options.monitor.advance(2 * 4 * elements);
            session.go_on()
        };
        let measure = |model: &dyn Weights| angles::cosines(reference, model, &names, self.options.kernels, &passed);
        let before = measure(&self.under(moving, Transform::identity(symmetries)))?;
        if !moves {
            return Ok([before.clone(), before]);
        }
        let after = measure(&self.under(moving, transform.clone()))?;
        Ok([before, after])
    }

    /// The model under `transform`; its norms are folded where the pair's are.
    fn under(&self, moving: &Arc<Store>, transform: Transform) -> Transformed {
        let symmetries = Arc::clone(&self.pair.symmetries);
        Transformed::new(Arc::clone(moving), Alignment { symmetries, transform: Arc::new(transform) })
    }
}
