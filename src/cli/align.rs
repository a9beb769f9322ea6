//! `thalweg align`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use crate::align::many::{Begin, ManyOptions, Towards};
use crate::align::matching::{Cost, MatchOptions, Residual};
use crate::align::run::{Align, ModelSet, ModelSetTask, Pair, PairTask, Task, align};
use crate::budget::parse_bytes;
use crate::device::Choice;
use crate::engine::{Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::likeness::Waived;
use crate::monitor::{Monitor, Silent};
use crate::output::{DiskStorage, Target};
use crate::plan::memory::Wish;
use crate::recipe::SWEEPS;
use crate::symmetry::Spec;

use super::args::{self, BlockArgs, MemoryArgs, RenameArgs, RunArgs};
use super::device::OpenedDevice;
use super::matcher::MatcherArgs;
use super::progress::Progress;
use super::quantised::QuantisedArgs;
use super::{job, merge, models, print, symmetries};

/// `thalweg align`.
#[derive(Debug, Args)]
pub struct AlignArgs {
    /// The checkpoint that stays as it is: a folder or a file
    #[arg(value_parser = args::path())]
    pub reference: PathBuf,

    /// The checkpoint whose units are matched to it
    #[arg(value_parser = args::path())]
    pub model: PathBuf,

    /// Further checkpoints: all models are matched to each other, and --out is a folder with a
    /// transform file for each
    #[arg(value_parser = args::path())]
    pub others: Vec<PathBuf>,

    /// With more than two models, match each to the mean of all as aligned so far (mean), to the
    /// first model only (first), or to a mean that starts from this checkpoint (MODEL) [default:
    /// mean, starting from the model nearest to the others]
    #[arg(long = "reference", value_name = "mean|first|MODEL", value_parser = args::path())]
    pub to: Option<PathBuf>,

    /// Match each model to the mean of the others instead, in random order (MergeMany)
    #[arg(long)]
    pub merge_many: bool,

    /// With more than two models: maximum number of rounds over all of them
    #[arg(long, value_name = "N", default_value_t = 100, allow_negative_numbers = true,
          value_parser = args::whole::<usize>)]
    pub max_rounds: usize,

    /// Transform file to write, X.safetensors, for merge --align and apply [default: none, print a
    /// report only]
    #[arg(short, long, value_name = "FILE", value_parser = args::path())]
    pub out: Option<PathBuf>,

    /// Symmetry spec (YAML or JSON file), or the name of a built-in one [default: chosen by
    /// config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Weight of each tensor: the same for all (normalised), or its norm, as in the paper (raw)
    #[arg(long, value_enum, value_name = "COST", default_value = "normalised")]
    pub cost: CostArg,

    /// Treatment of the units of the residual stream: leave them in place, right for models of one
    /// ancestor (fixed), reorder them (permute), map them by any orthogonal matrix, which folds
    /// norms and unties a tied head (orthogonal), or map them by the matrix in a file (FILE)
    #[arg(long, value_name = "WAY|FILE", default_value = "fixed", value_parser = residual)]
    pub residual: ResidualArg,

    /// Find orders only, no signs and rotations
    #[arg(long)]
    pub no_signs: bool,

    /// Seed for the order in which groups are solved
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true,
          value_parser = args::whole::<u64>)]
    pub seed: u64,

    /// Maximum number of sweeps over all groups, 1 to 1000000
    #[arg(long, value_name = "N", default_value_t = MatchOptions::default().sweeps, value_parser = sweeps,
          allow_negative_numbers = true)]
    pub max_sweeps: usize,

    /// Align models even if their tokenizers number tokens differently
    #[arg(long)]
    pub any_vocabulary: bool,

    /// Align models by whose configs equal shapes mean different things, such as other numbers of
    /// heads
    #[arg(long)]
    pub any_config: bool,

    /// Print a line for every group, not only for every kind of group
    #[arg(short = 'v', long)]
    pub groups: bool,

    /// The criterion.
    #[command(flatten)]
    pub by: MatcherArgs,

    /// Device that multiplies matrices: cpu, cuda, cuda:N, or auto (the first usable CUDA device,
    /// else the cpu). A GPU sums in another order: where two orders of units are equally good to
    /// within rounding, it may find the other one [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = args::device)]
    pub device: Option<Choice>,

    /// Maximum device memory to use [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub device_memory: Option<u64>,

    /// Rules that rename tensors.
    #[command(flatten)]
    pub rename: RenameArgs,

    /// Policy for quantised weights.
    #[command(flatten)]
    pub quantised: QuantisedArgs,

    /// Memory and threads.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Options of the run.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `--cost`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CostArg {
    /// Every tensor has the same weight
    #[value(alias = "normalized")]
    Normalised,
    /// A tensor's weight is its norm
    Raw,
}

/// `--residual`.
#[derive(Debug, Clone)]
pub enum ResidualArg {
    /// Its units stay in place
    Fixed,
    /// They are reordered
    Permute,
    /// They are mapped by the best orthogonal matrix
    Orthogonal,
    /// They are mapped by the matrix in this file
    Map(PathBuf),
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
    let spec = args
        .spec
        .as_deref()
        .map(symmetries::spec)
        .transpose()
        .map_err(Error::refused)?;
    let opened_device = OpenedDevice::open(args.device, args.device_memory, true)?;
    let run = MatchRun {
        args,
        kernels,
        wish,
        target,
        opened_device,
    };
    if args.others.is_empty() && args.to.is_none() && !args.merge_many {
        return run.pair(spec.as_ref());
    }
    run.many(spec.as_ref())
}

/// The parts that a run of two models shares with a run of many.
struct MatchRun<'a> {
    args: &'a AlignArgs,
    kernels: Kernels,
    wish: Wish,
    target: Option<Target>,
    opened_device: OpenedDevice,
}

impl MatchRun<'_> {
    /// Aligns a model with another one.
    fn pair(self, spec: Option<&Spec>) -> Result<()> {
        let args = self.args;
        let pair = paired(args, &self.wish, spec).map_err(Error::refused)?;
        let warnings = pair.warnings.clone();
        let aligned = self.carry_out(&warnings, |options| {
            let by = args
                .by
                .by(&pair, args.seed, !args.no_signs, options)
                .map_err(Error::refused)?;
            Ok(PairTask {
                pair,
                by,
                matching: matching(args),
            })
        });
        let report = aligned?.report;
        shown(args, &report)?;
        let rows = args.groups && !args.run.json && !args.run.quiet;
        if rows {
            print(&format!("\n{}", report.roots()))
        } else {
            Ok(())
        }
    }

    /// Aligns many models with each other.
    fn many(self, spec: Option<&Spec>) -> Result<()> {
        let args = self.args;
        let paths: Vec<&PathBuf> = [&args.reference, &args.model]
            .into_iter()
            .chain(&args.others)
            .collect();
        let set = model_set(args, &paths, &self.wish, spec).map_err(Error::refused)?;
        let many = many(args, &paths)?;
        let warnings = set.warnings.clone();
        let report = self.carry_out(&warnings, |_| Ok(ModelSetTask { set, many }))?;
        shown(args, &report)
    }

    /// Carries out the task that `make` gives, after its warnings were shown.
    fn carry_out<T: Task>(
        mut self,
        warnings: &[String],
        make: impl FnOnce(&Options) -> Result<T>,
    ) -> Result<T::Found> {
        let stop = Stop::default();
        merge::watch_signals(&stop)?;
        let device = self.opened_device.for_products(&self.wish)?;
        let progress = (!self.args.run.quiet).then(|| Arc::new(Progress::new(self.wish.memory)));
        let monitor = monitor(&progress);
        tell(&self.opened_device, warnings, monitor.as_ref());
        let options = Options {
            kernels: self.kernels,
            device: self.opened_device.opened().driver.clone(),
            io: merge::io(self.args.run.io),
            stop,
            monitor,
            ..Options::default()
        };
        let outcome = make(&options).and_then(|task| {
            align(Align {
                task,
                memory: self.wish.memory,
                held: 0,
                threads: self.wish.threads,
                device,
                storage: Arc::new(DiskStorage),
                target: self.target,
                options,
            })
        });
        if let Some(progress) = progress {
            progress.clear();
        }
        outcome
    }
}

/// Prints a report as JSON or for people.
fn shown(args: &AlignArgs, report: &(impl Serialize + ToString)) -> Result<()> {
    match (args.run.json, args.run.quiet) {
        (true, _) => print(&format!("{:#}", json!(report))),
        (false, true) => Ok(()),
        (false, false) => print(&report.to_string()),
    }
}

/// Opens the two models in the form in which they are matched.
fn paired(args: &AlignArgs, wish: &Wish, spec: Option<&Spec>) -> Result<Pair> {
    let models = [&args.reference, &args.model];
    let [reference, model] = models::open_two(models, &args.quantised, &args.rename, wish)?;
    let pair = Pair::new(reference, model, spec, allowed(args))?;
    match &args.residual {
        ResidualArg::Map(path) => pair.held_under(path),
        _ => pair.ready_for(matching(args).residual),
    }
}

/// Opens all models.
fn model_set(
    args: &AlignArgs,
    paths: &[&PathBuf],
    wish: &Wish,
    spec: Option<&Spec>,
) -> Result<ModelSet> {
    let models = models::open_all(paths, &args.quantised, &args.rename, wish)?;
    ModelSet::new(models, spec, allowed(args))
}

/// Returns the options for matching many models.
fn many(args: &AlignArgs, paths: &[&PathBuf]) -> Result<ManyOptions> {
    let (mut towards, mut begin) = (Towards::Mean, Begin::Nearest);
    match &args.to {
        None => {}
        Some(to) if to == Path::new("mean") => {}
        Some(to) if to == Path::new("first") => (towards, begin) = (Towards::One, Begin::Model(0)),
        Some(to) => {
            let named = paths.iter().position(|path| *path == to).ok_or_else(|| {
                let cause = "wanted mean, first, or one of the checkpoints that are aligned";
                Error::new(
                    Kind::Usage,
                    "cannot use the command line",
                    format!("--reference {}", to.display()),
                    cause,
                )
            })?;
            begin = Begin::Model(named);
        }
    }
    if args.merge_many {
        towards = Towards::Others;
    }
    Ok(ManyOptions {
        towards,
        begin,
        rounds: args.max_rounds,
        matching: matching(args),
    })
}

pub fn monitor(progress: &Option<Arc<Progress>>) -> Arc<dyn Monitor> {
    match progress {
        Some(progress) => Arc::clone(progress) as Arc<dyn Monitor>,
        None => Arc::new(Silent),
    }
}

fn allowed(args: &AlignArgs) -> Waived {
    Waived {
        vocabulary: args.any_vocabulary,
        config: args.any_config,
    }
}

/// Warns of differences between the models, and of a device that cannot be used.
fn tell(opened_device: &OpenedDevice, warnings: &[String], monitor: &dyn Monitor) {
    warnings.iter().for_each(|warning| monitor.warn(warning));
    if let Some(warning) = opened_device.opened().instead_notice() {
        monitor.warn(&warning);
    }
}

fn target(args: &AlignArgs) -> Result<Option<Target>> {
    let RunArgs {
        overwrite, restart, ..
    } = args.run;
    match (&args.out, overwrite, restart) {
        (Some(out), _, _) => Ok(Some(Target {
            dir: out.clone(),
            overwrite,
            restart,
        })),
        (None, false, false) => Ok(None),
        (None, ..) => {
            let flag = if overwrite {
                "--overwrite"
            } else {
                "--restart"
            };
            Err(Error::new(
                Kind::Usage,
                "cannot use the command line",
                flag,
                "goes with --out; without it nothing is written",
            ))
        }
    }
}

fn matching(args: &AlignArgs) -> MatchOptions {
    MatchOptions {
        cost: match args.cost {
            CostArg::Normalised => Cost::Normalised,
            CostArg::Raw => Cost::Raw,
        },
        residual: match &args.residual {
            ResidualArg::Fixed => Residual::Fixed,
            ResidualArg::Permute => Residual::Permute,
            ResidualArg::Orthogonal => Residual::Orthogonal,
            ResidualArg::Map(_) => Residual::Map,
        },
        signs: !args.no_signs,
        seed: args.seed,
        sweeps: args.max_sweeps,
        ..MatchOptions::default()
    }
}

fn residual(text: &str) -> Result<ResidualArg, String> {
    Ok(match text {
        "fixed" => ResidualArg::Fixed,
        "permute" => ResidualArg::Permute,
        "orthogonal" => ResidualArg::Orthogonal,
        file if Path::new(file).exists() || file.ends_with(".safetensors") => {
            ResidualArg::Map(file.into())
        }
        _ => return Err("wanted fixed, permute, orthogonal, or a file that is there".into()),
    })
}

fn sweeps(text: &str) -> Result<usize, String> {
    let most = text
        .parse()
        .ok()
        .filter(|most| SWEEPS.contains(most))
        .and_then(|most| usize::try_from(most).ok());
    most.ok_or_else(|| {
        format!(
            "wanted a whole number from {} to {}",
            SWEEPS.start(),
            SWEEPS.end()
        )
    })
}
