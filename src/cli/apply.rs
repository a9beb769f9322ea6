//! `thalweg apply`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::align::{Alignment, Symmetries, TransformFile, fingerprint};
use crate::budget::parse_bytes;
use crate::checkpoint::Checkpoint;
use crate::engine::{self, COMMIT_BYTES, Merge, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Monitor, Silent};
use crate::output::{DiskStorage, Target};
use crate::plan::{Job, Plan};

use super::args::{BlockArgs, MemoryArgs, RunArgs};
use super::progress::Progress;
use super::{job, merge, print, symmetries};

/// `thalweg apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The checkpoint that is transformed: a folder or a file
    pub model: PathBuf,

    /// The orders, signs and rotations of its hidden units, as `align` writes them
    pub transform: PathBuf,

    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,

    /// A symmetry spec (YAML or JSON), or the name of a built-in one [default: found by config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Undo the transform instead
    #[arg(long)]
    pub inverse: bool,

    /// Transform another model than the one for which the transform was made
    #[arg(long)]
    pub any_model: bool,

    /// The most tensor data in one shard [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub shard_size: Option<u64>,

    /// In how much memory.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// In blocks of which size.
    #[command(flatten)]
    pub block: BlockArgs,

    /// How the run is carried out.
    #[command(flatten)]
    pub run: RunArgs,

    /// Read every written block again at the end and check it
    #[arg(long)]
    pub verify: bool,
}

/// Writes the transformed model as a checkpoint of its own; a killed run goes on when it is started again.
///
/// # Errors
///
/// Whatever keeps the checkpoint from being finished.
pub fn run(args: &ApplyArgs) -> Result<()> {
    let kernels = merge::kernels(args.run.simd)?;
    let model = job::located(&args.model)?;
    let alignment = alignment(args, &Checkpoint::open(&model)?)?;
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let wish = job::wish(None, &args.memory, &args.block)?;
    let mut job = Job::of_one(model, Some(alignment))?;
    job.shard_bytes = args.shard_size.unwrap_or(job.shard_bytes);
    let progress = (!args.run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    let monitor: Arc<dyn Monitor> = match &progress {
        Some(progress) => Arc::clone(progress) as Arc<dyn Monitor>,
        None => Arc::new(Silent),
    };
    let outcome = engine::merge(Merge {
        plan: Arc::new(Plan::new(&job, &wish)?),
        storage: Arc::new(DiskStorage),
        target: Target { dir: args.out.clone(), overwrite: args.run.overwrite, restart: args.run.restart },
        options: Options { kernels, io: merge::io(args.run.io), stop, monitor, commit_bytes: COMMIT_BYTES },
        verify: args.verify,
    });
    if let Some(progress) = progress {
        progress.clear();
    }
    let report = outcome?;
    match (args.run.json, args.run.quiet) {
        (true, _) => print(&format!("{:#}", json!(report))),
        (false, false) => print(&report.to_string()),
        (false, true) => Ok(()),
    }
}

fn alignment(args: &ApplyArgs, model: &Checkpoint) -> Result<Alignment> {
    let spec = args.spec.as_deref().map(symmetries::spec).transpose()?;
    let symmetries = Arc::new(Symmetries::of(model, spec.as_ref())?);
    let file = TransformFile::read(&args.transform, &symmetries)?;
    if !args.any_model && fingerprint::of(model)? != file.model {
        let cause = format!("was made for another model than {}", model.root().display());
        return Err(Error::new(Kind::Mismatch, "cannot apply transform", args.transform.display(), cause)
            .with_hint("give the model that was aligned, or --any-model to use its orders on this one"));
    }
    let transform = if args.inverse { file.transform.inverse(&symmetries) } else { file.transform };
    Ok(Alignment { symmetries, transform: Arc::new(transform) })
}
