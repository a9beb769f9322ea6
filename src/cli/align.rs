//! `thalweg align`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::align::matching::{Cost, Options as Matching, Residual};
use crate::checkpoint::Checkpoint;
use crate::engine::align::inputs::{AlignInputs, Finder, Looked};
use crate::engine::align::{Align, Pair, align};
use crate::engine::{COMMIT_BYTES, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Monitor, Silent};
use crate::output::{DiskStorage, Target};
use crate::plan::Job;
use crate::plan::memory::Wish;

use super::align_by::ByArgs;
use super::args::{BlockArgs, MemoryArgs, RunArgs};
use super::progress::Progress;
use super::{job, merge, print, symmetries};

/// `thalweg align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    /// The checkpoint that stays as it is: a folder or a file
    pub reference: PathBuf,

    /// The checkpoint that is brought near to it
    pub model: PathBuf,

    /// The transform file to write, X.safetensors, for merge --align and apply [default: none, only a report]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// A symmetry spec (YAML or JSON), or the name of a built-in one [default: found by config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// How much each tensor counts: normalised (all alike) or raw (by its norm, as in the paper)
    #[arg(long, value_enum, value_name = "COST", default_value = "normalised")]
    pub cost: CostArg,

    /// What is done to the units of the residual stream: fixed (nothing, right for models of one ancestor) or permute
    #[arg(long, value_enum, value_name = "WAY", default_value = "fixed")]
    pub residual: ResidualArg,

    /// Look for orders alone, not for signs and rotations
    #[arg(long)]
    pub no_signs: bool,

    /// Of the order in which groups are solved, where it matters
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// The most sweeps over all groups
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = sweeps)]
    pub max_sweeps: usize,

    /// Align models whose tokenizers number their tokens in different ways
    #[arg(long)]
    pub any_vocabulary: bool,

    /// Print a line for every group, not only for every kind
    #[arg(short = 'v', long)]
    pub groups: bool,

    /// By what.
    #[command(flatten)]
    pub by: ByArgs,

    /// In how much memory.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// How the run is carried out.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `--cost`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CostArg {
    /// Every tensor counts alike
    #[value(alias = "normalized")]
    Normalised,
    /// Those of large norm count more
    Raw,
}

/// `--residual`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ResidualArg {
    /// Its units stay where they are
    Fixed,
    /// They are reordered
    Permute,
}

/// Aligns a model with another one; a killed run goes on when it is started again.
///
/// # Errors
///
/// Whatever keeps the transform from being found or written.
pub fn run(args: &AlignArgs) -> Result<()> {
    let kernels = merge::kernels(args.run.simd)?;
    let target = target(args)?;
    let wish = job::wish(None, &args.memory, &BlockArgs { block_size: None })?;
    let spec = args.spec.as_deref().map(symmetries::spec).transpose()?;
    let open = |model| Checkpoint::open(&job::located(model)?);
    let pair = Pair::new(open(&args.reference)?, open(&args.model)?, spec.as_ref(), args.any_vocabulary)?;
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let progress = (!args.run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    let options =
        Options { kernels, io: merge::io(args.run.io), stop, monitor: monitor(&progress), commit_bytes: COMMIT_BYTES };
    let outcome = args.by.by(&pair, args.seed, !args.no_signs, &options).and_then(|by| {
        align(Align {
            pair,
            by,
            matching: matching(args),
            memory: wish.memory,
            threads: wish.threads,
            storage: Arc::new(DiskStorage),
            target,
            options,
        })
    });
    if let Some(progress) = progress {
        progress.clear();
    }
    let report = outcome?.report;
    match (args.run.json, args.run.quiet) {
        (true, _) => print(&format!("{:#}", json!(report))),
        (false, true) => Ok(()),
        (false, false) => {
            print(&report.to_string())?;
            if args.groups { print(&format!("\n{}", report.roots())) } else { Ok(()) }
        }
    }
}

/// Aligns the inputs of `job` as its recipe asks, as far as that is not done yet; prints a line for each. What a user
/// should know comes back.
///
/// # Errors
///
/// Whatever keeps them from being aligned.
pub fn align_inputs(job: &mut Job, wish: &Wish, target: &Target, run: &RunArgs, stop: &Stop) -> Result<Vec<String>> {
    if job.document.own.align.is_none() {
        return Ok(Vec::new());
    }
    let progress = (!run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    let options = Options {
        kernels: merge::kernels(run.simd)?,
        io: merge::io(run.io),
        stop: stop.clone(),
        monitor: monitor(&progress),
        commit_bytes: COMMIT_BYTES,
    };
    let told = |report: &crate::report::AlignmentReport| {
        if let Some(progress) = &progress {
            progress.clear();
        }
        if run.quiet || run.json { Ok(()) } else { print(&report.headline()) }
    };
    let looked = with_inputs(job, target, |inputs, job| {
        inputs.find(job, &Finder { wish, storage: Arc::new(DiskStorage), options: &options, told: &told })
    });
    if let Some(progress) = &progress {
        progress.clear();
    }
    Ok(looked?.warnings)
}

/// Fills in the alignments of `job` as far as they are there, for a plan.
///
/// # Errors
///
/// When a file cannot be used.
pub fn look_for_inputs(job: &mut Job, target: &Target) -> Result<Looked> {
    with_inputs(job, target, |inputs, job| inputs.look(job))
}

fn with_inputs(
    job: &mut Job,
    target: &Target,
    act: impl FnOnce(&AlignInputs<'_>, &mut Job) -> Result<Looked>,
) -> Result<Looked> {
    let Some(asked) = job.document.own.align.clone() else { return Ok(Looked::default()) };
    let spec = asked.spec.as_deref().map(symmetries::spec).transpose()?;
    act(&AlignInputs { asked: &asked, spec: spec.as_ref(), target }, job)
}

pub fn monitor(progress: &Option<Arc<Progress>>) -> Arc<dyn Monitor> {
    match progress {
        Some(progress) => Arc::clone(progress) as Arc<dyn Monitor>,
        None => Arc::new(Silent),
    }
}

fn target(args: &AlignArgs) -> Result<Option<Target>> {
    let RunArgs { overwrite, restart, .. } = args.run;
    match (&args.out, overwrite, restart) {
        (Some(out), _, _) => Ok(Some(Target { dir: out.clone(), overwrite, restart })),
        (None, false, false) => Ok(None),
        (None, ..) => {
            let flag = if overwrite { "--overwrite" } else { "--restart" };
            Err(Error::new(
                Kind::Usage,
                "cannot use the command line",
                flag,
                "goes with --out; without it nothing is written",
            ))
        }
    }
}

fn matching(args: &AlignArgs) -> Matching {
    Matching {
        cost: match args.cost {
            CostArg::Normalised => Cost::Normalised,
            CostArg::Raw => Cost::Raw,
        },
        residual: match args.residual {
            ResidualArg::Fixed => Residual::Fixed,
            ResidualArg::Permute => Residual::Permute,
        },
        signs: !args.no_signs,
        seed: args.seed,
        sweeps: args.max_sweeps,
        ..Matching::default()
    }
}

fn sweeps(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|most| *most > 0).ok_or_else(|| format!("`{text}` is no whole number above 0"))
}
