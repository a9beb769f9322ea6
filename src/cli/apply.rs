//! `thalweg apply`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::align::{Alignment, Symmetries, TransformFile, fingerprint};
use crate::budget::{self, parse_bytes};
use crate::checkpoint::Checkpoint;
use crate::engine::{self, Merge, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Monitor, Silent};
use crate::output::{DiskStorage, Target};
use crate::plan::memory::Wish;
use crate::plan::{Job, Plan};

use super::args::{IoArg, SimdArg};
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

    /// The most memory that the process may have resident [default: half of what is available]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,

    /// Threads that compute [default: one a core]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Bytes of one input's part of a block [default: chosen for the memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub block_size: Option<u64>,

    /// Begin anew: what an earlier, unfinished run has left in DIR is discarded
    #[arg(long)]
    pub restart: bool,

    /// Replace a checkpoint that is in DIR already
    #[arg(long)]
    pub overwrite: bool,

    /// Read every written block again at the end and check it
    #[arg(long)]
    pub verify: bool,

    /// How inputs are read: through memory maps, or by positioned reads (network file systems)
    #[arg(long, value_enum, value_name = "WAY", default_value = "map")]
    pub io: IoArg,

    /// The instruction set of the kernels; the output is the same with each
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "auto")]
    pub simd: SimdArg,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Writes the transformed model as a checkpoint of its own; a killed run goes on when it is started again.
///
/// # Errors
///
/// Whatever keeps the checkpoint from being finished.
pub fn run(args: &ApplyArgs) -> Result<()> {
    let kernels = merge::kernels(args.simd)?;
    let model = job::located(&args.model)?;
    let alignment = alignment(args, &Checkpoint::open(&model)?)?;
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let wish = Wish {
        memory: args.memory.unwrap_or_else(budget::default_bytes),
        threads: args.threads.map_or_else(cores, usize::from),
        block_bytes: args.block_size,
    };
    let mut job = Job::of_one(model, Some(alignment))?;
    job.shard_bytes = args.shard_size.unwrap_or(job.shard_bytes);
    let progress = (!args.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    let monitor: Arc<dyn Monitor> = match &progress {
        Some(progress) => Arc::clone(progress) as Arc<dyn Monitor>,
        None => Arc::new(Silent),
    };
    let outcome = engine::merge(Merge {
        plan: Arc::new(Plan::new(&job, &wish)?),
        storage: Arc::new(DiskStorage),
        target: Target { dir: args.out.clone(), overwrite: args.overwrite, restart: args.restart },
        options: Options { kernels, io: merge::io(args.io), stop, monitor, ..Options::default() },
        verify: args.verify,
    });
    if let Some(progress) = progress {
        progress.clear();
    }
    let report = outcome?;
    match (args.json, args.quiet) {
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
