//! `thalweg apply`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use crate::budget::parse_bytes;
use crate::checkpoint::Checkpoint;
use crate::engine::{self, Merge, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::output::{DiskStorage, Target, names_one_file};
use crate::plan::rename::rename_tensors;
use crate::plan::{Job, Plan};
use crate::symmetry::{
    Alignment, Element, OrthogonalMap, Symmetries, Transform, TransformFile, fingerprint,
};

use super::args::{self, BlockArgs, MemoryArgs, RenameArgs, RunArgs};
use super::quantised::QuantisedArgs;
use super::{job, merge, models, print, symmetries};

/// `thalweg apply`.
#[derive(Debug, Args)]
pub struct ApplyArgs {
    /// The checkpoint to transform: a folder or a file
    #[arg(value_parser = args::path())]
    pub model: PathBuf,

    /// Transform file that align wrote; or a file of one tensor, the orthogonal matrix that maps
    /// the residual stream
    #[arg(required_unless_present = "fold", value_parser = args::path())]
    pub transform: Option<PathBuf>,

    /// Only fold the weights of norms into the matrices that read from them, and untie the head.
    /// Transforms with a map do this first; a model needs it before it can be merged with one so
    /// transformed
    #[arg(long, conflicts_with_all = ["transform", "inverse", "any_model"])]
    pub fold: bool,

    /// The folder to write
    #[arg(short, long, value_name = "DIR", value_parser = args::path())]
    pub out: PathBuf,

    /// Symmetry spec (YAML or JSON file), or the name of a built-in one [default: chosen by
    /// config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Undo the transform instead
    #[arg(long)]
    pub inverse: bool,

    /// Apply the transform even to a model that it was not made for
    #[arg(long)]
    pub any_model: bool,

    /// Maximum bytes of tensor data in one shard [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub shard_size: Option<u64>,

    /// Rules that rename tensors.
    #[command(flatten)]
    pub rename: RenameArgs,

    /// Policy for quantised weights.
    #[command(flatten)]
    pub quantised: QuantisedArgs,

    /// Memory and threads.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Block size.
    #[command(flatten)]
    pub block: BlockArgs,

    /// Options of the run.
    #[command(flatten)]
    pub run: RunArgs,

    /// At the end, read every written block again and check it
    #[arg(long)]
    pub verify: bool,
}

/// Writes the transformed model as a checkpoint of its own; a killed run goes on when it is started
/// again.
///
/// # Errors
///
/// Whatever keeps the checkpoint from being finished.
pub fn run(args: &ApplyArgs) -> Result<()> {
    let kernels = merge::kernels(args.run.simd)?;
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let plan = planned(args).map_err(Error::refused)?;
    let (progress, monitor) = merge::watched(&args.run, plan.memory.limit);
    let outcome = engine::merge(Merge {
        plan: Arc::new(plan),
        storage: Arc::new(DiskStorage),
        target: Target {
            dir: args.out.clone(),
            overwrite: args.run.overwrite,
            restart: args.run.restart,
        },
        options: Options {
            kernels,
            io: merge::io(args.run.io),
            stop,
            monitor,
            ..Options::default()
        },
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

/// Plans to write the one model, transformed.
fn planned(args: &ApplyArgs) -> Result<Plan> {
    let model = job::located(&args.model)?;
    let wish = job::wish(None, &args.memory, &args.block)?;
    let rules = models::rename_rules(&args.rename, 1)?;
    let mut opened = models::open(&args.model, &args.quantised, &wish, &[])?;
    rename_tensors(&rules, std::slice::from_mut(&mut opened))?;
    let mut job = Job::of_one(model, Some(alignment(args, &opened)?))?;
    job.document.own.rename = rules.into_iter().map(|(rule, _)| rule).collect();
    job.document.own.quantised = args.quantised.key();
    job.shard_bytes = args.shard_size.unwrap_or(job.shard_bytes);
    job.weights_alone = names_one_file(&args.out) && !args.out.is_dir();
    Plan::new(&job, &wish)
}

fn alignment(args: &ApplyArgs, model: &Checkpoint) -> Result<Alignment> {
    let spec = args.spec.as_deref().map(symmetries::spec).transpose()?;
    let symmetries = Symmetries::of(model, spec.as_ref())?;
    let Some(path) = &args.transform else {
        let symmetries = symmetries.folded(model)?;
        let transform = Arc::new(Transform::identity(&symmetries));
        return Ok(Alignment {
            symmetries: Arc::new(symmetries),
            transform,
        });
    };
    let (symmetries, transform) = match TransformFile::is_folded(path)? {
        None if OrthogonalMap::may_be_in(path)? => mapped(symmetries.folded(model)?, path)?,
        folded => {
            let symmetries = if folded == Some(true) {
                symmetries.folded(model)?
            } else {
                symmetries
            };
            let file = TransformFile::read(path, &symmetries)?;
            if !args.any_model && fingerprint::of(model)? != file.model {
                let cause = format!("was made for another model than {}", model.root().display());
                return Err(Error::new(
                    Kind::Mismatch,
                    "cannot apply transform",
                    path.display(),
                    cause,
                )
                .with_hint(
                    "give the model that was aligned, or --any-model to use its orders on this one",
                ));
            }
            (symmetries, file.transform)
        }
    };
    let transform = if args.inverse {
        transform.inverse(&symmetries)
    } else {
        transform
    };
    Ok(Alignment {
        symmetries: Arc::new(symmetries),
        transform: Arc::new(transform),
    })
}

/// The transform that maps the residual stream by the matrix in a file.
fn mapped(symmetries: Symmetries, path: &Path) -> Result<(Symmetries, Transform)> {
    let residual = symmetries
        .groups
        .iter()
        .position(|group| group.residual)
        .unwrap_or(0);
    let map = OrthogonalMap::read(path, symmetries.groups[residual].units)?;
    let element = Element {
        map: Some(map),
        ..Element::default()
    };
    let transform = Transform::identity(&symmetries).with(&symmetries, residual, element)?;
    Ok((symmetries, transform))
}
