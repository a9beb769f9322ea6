//! `thalweg interpolate`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use rayon::ThreadPoolBuilder;
use serde_json::{Value, json};

use crate::align::network::network;
use crate::align::run::Pair;
use crate::checkpoint::create_anew;
use crate::curve::{Curve, Ends, Measure, Way, csv, lambdas, svg};
use crate::data::DataSet;
use crate::engine::{self, Merge, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::likeness::Waived;
use crate::monitor::{Monitor, Phase};
use crate::net::Network;
use crate::output::{DiskStorage, Target, check_folder_ending};
use crate::plan::memory::{Wish, process_bytes};
use crate::plan::{AlignmentFile, Plan};
use crate::symmetry::{Alignment, TransformFile};

use super::args::{self, BlockArgs, MemoryArgs, RenameArgs, RunArgs};
use super::progress::Progress;
use super::quantised::QuantisedArgs;
use super::{align, job, merge, models, print, symmetries, trimmed};

/// `thalweg interpolate`.
#[derive(Debug, Args)]
pub struct InterpolateArgs {
    /// The checkpoint at 0: a folder or a file
    #[arg(value_parser = args::path())]
    pub reference: PathBuf,

    /// The checkpoint at 1, of the same architecture
    #[arg(value_parser = args::path())]
    pub model: PathBuf,

    /// Number of points, both ends included
    #[arg(long, value_name = "N", default_value_t = 25, allow_negative_numbers = true,
          value_parser = args::whole::<usize>)]
    pub points: usize,

    /// Transform file, written by align, that aligns the second model to the first
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub align: Option<PathBuf>,

    /// Samples on which loss and accuracy are measured, for MLPs, VGG and ResNets: a safetensors
    /// file with `inputs` [samples, ...] and `labels` [samples] [default: none, write each point as
    /// a checkpoint]
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub data: Option<PathBuf>,

    /// Without --data: merge method of the checkpoints that are written
    #[arg(
        long,
        value_enum,
        value_name = "WAY",
        default_value = "linear",
        conflicts_with = "data"
    )]
    pub method: WayArg,

    /// Output folder: curve.csv and curve.svg with --data, else a folder lambda-X for each point
    #[arg(short, long, value_name = "DIR", value_parser = args::path())]
    pub out: PathBuf,

    /// Symmetry spec (YAML or JSON file), or the name of a built-in one [default: chosen by
    /// config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Go on although the tokenizers of both number their tokens in other ways
    #[arg(long)]
    pub any_vocabulary: bool,

    /// Go on although equal shapes mean different things by the configs of both
    #[arg(long)]
    pub any_config: bool,

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

/// `--method`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum WayArg {
    /// The weighted mean
    Linear,
    /// The Karcher mean of every tensor
    Karcher,
}

impl From<WayArg> for Way {
    fn from(arg: WayArg) -> Self {
        match arg {
            WayArg::Linear => Self::Linear,
            WayArg::Karcher => Self::Karcher,
        }
    }
}

/// Measures or writes the models between two models.
///
/// # Errors
///
/// Whatever keeps that from being done.
pub fn run(args: &InterpolateArgs) -> Result<()> {
    check_folder_ending(&args.out)?;
    let wish = job::wish(None, &args.memory, &BlockArgs { block_size: None })?;
    let lambdas = lambdas(args.points)?;
    let (paths, pair) = paired(args, &wish).map_err(Error::refused)?;
    let file = args.align.as_deref().map(|file| alignment(file, &pair));
    let file = file.transpose().map_err(Error::refused)?;
    let ends = Ends {
        names: [&args.reference, &args.model].map(|path| path.display().to_string()),
        paths,
        allowed: allowed(args),
        quantised: args.quantised.key(),
        rename: models::rename_rules(&args.rename, 2).map_err(Error::refused)?,
        alignment: file.as_ref().map(|(alignment, _)| alignment.clone()),
    };
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let progress = (!args.run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    warn_all(&pair.warnings, &progress);
    let run = CurveRun {
        args,
        wish,
        pair: &pair,
        ends: &ends,
        stop: &stop,
        progress: &progress,
    };
    let outcome = match &args.data {
        Some(data) => run.measure(data, &lambdas),
        None => run.write(&lambdas, file.map(|(_, file)| file)),
    };
    if let Some(progress) = &progress {
        progress.clear();
    }
    print_outcome(&args.run, outcome?)
}

fn warn_all(warnings: &[String], progress: &Option<Arc<Progress>>) {
    let monitor = align::monitor(progress);
    warnings.iter().for_each(|warning| monitor.warn(warning));
}

/// Prints findings that are there as text and as JSON.
fn print_outcome(run: &RunArgs, outcome: (String, Value)) -> Result<()> {
    let (text, json) = outcome;
    match (run.json, run.quiet) {
        (true, _) => print(&format!("{json:#}")),
        (false, false) => print(&text),
        (false, true) => Ok(()),
    }
}

/// Opens the two models; returns them with their paths.
fn paired(args: &InterpolateArgs, wish: &Wish) -> Result<([PathBuf; 2], Pair)> {
    let spec = args.spec.as_deref().map(symmetries::spec).transpose()?;
    let paths = [job::located(&args.reference)?, job::located(&args.model)?];
    // If rows of embeddings belong to different tokens, a point between them means nothing.
    let models = [&args.reference, &args.model];
    let [reference, model] = models::open_two(models, &args.quantised, &args.rename, wish)?;
    let pair = Pair::new(reference, model, spec.as_ref(), allowed(args))?;
    Ok((paths, pair))
}

fn allowed(args: &InterpolateArgs) -> Waived {
    Waived {
        vocabulary: args.any_vocabulary,
        config: args.any_config,
    }
}

/// Reads the transform in `file`; returns it with its origin.
fn alignment(file: &Path, pair: &Pair) -> Result<(Alignment, AlignmentFile)> {
    let read = TransformFile::read(file, &pair.symmetries)?;
    if read.model != pair.model_print {
        let cause = format!(
            "was made for another model than {}",
            pair.model.root().display()
        );
        return Err(Error::new(
            Kind::Mismatch,
            "cannot use transform",
            file.display(),
            cause,
        )
        .with_hint(
            "the second model must be the one that was aligned, the first the one that stayed",
        ));
    }
    let bytes = fs::read(file).map_err(|error| Error::io("cannot read transform", file, error))?;
    let described = AlignmentFile {
        input: 1,
        file: file.display().to_string(),
        blake3: blake3::hash(&bytes).to_hex().to_string(),
        moves: !read.transform.is_identity(&pair.symmetries),
    };
    let alignment = Alignment {
        symmetries: Arc::clone(&pair.symmetries),
        transform: Arc::new(read.transform),
    };
    Ok((alignment, described))
}

/// A run that measures or writes the models on the way.
struct CurveRun<'a> {
    args: &'a InterpolateArgs,
    wish: Wish,
    pair: &'a Pair,
    ends: &'a Ends,
    stop: &'a Stop,
    progress: &'a Option<Arc<Progress>>,
}

impl CurveRun<'_> {
    /// The ways to measure: for each the name, the way, and true if the second model is aligned.
    fn ways(&self) -> Vec<(&'static str, Way, bool)> {
        if self.ends.alignment.is_none() {
            return vec![
                ("naive", Way::Linear, false),
                ("naive, Karcher", Way::Karcher, false),
            ];
        }
        vec![
            ("naive", Way::Linear, false),
            ("aligned", Way::Linear, true),
            ("aligned, Karcher", Way::Karcher, true),
        ]
    }

    /// Measures all ways, writes table and plot, and returns the findings as text and as JSON.
    fn measure(&self, data: &Path, lambdas: &[f64]) -> Result<(String, Value)> {
        let outputs = ["curve.csv", "curve.svg"].map(|name| self.args.out.join(name));
        self.refuse_existing(&outputs)?;
        let kernels = merge::kernels(self.args.run.simd)?;
        let data = DataSet::open(data, kernels).map_err(Error::refused)?;
        let network = self.network(&data).map_err(Error::refused)?;
        let shapes = network.parameters().values();
        let parameters = shapes.map(|shape| 4 * shape.iter().product::<usize>() as u64);
        // Those of both ends and of the model between them.
        let held = 3 * parameters.sum::<u64>();
        let models = [&self.pair.reference, &self.pair.model];
        let fixed = process_bytes(self.wish.threads, &models) + held;
        let memory = |held| self.wish.memory.saturating_sub(held);
        let measure = Measure {
            network: &network,
            data: &data,
            wish: Wish {
                memory: memory(held),
                ..self.wish
            },
            memory: memory(fixed),
            kernels,
            io: merge::io(self.args.run.io),
            go_on: &|| self.go_on(),
        };
        let curves = self.curves(&measure, lambdas)?;
        self.put_all(&outputs, &[csv(&curves), svg(&curves)])?;
        Ok((table(&curves), as_json(&curves)))
    }

    /// Writes the files of the folder.
    fn put_all(&self, outputs: &[PathBuf], texts: &[String]) -> Result<()> {
        fs::create_dir_all(&self.args.out)
            .map_err(|error| Error::io("cannot write curve", &self.args.out, error))?;
        let mut files = outputs.iter().zip(texts);
        files.try_for_each(|(path, text)| put(path, text))
    }

    /// Refuses to write over a table or a plot, unless that is allowed.
    fn refuse_existing(&self, outputs: &[PathBuf]) -> Result<()> {
        let mut existing = outputs.iter().filter(|path| path.exists());
        match existing.next().filter(|_| !self.args.run.overwrite) {
            Some(path) => Err(Error::new(
                Kind::Occupied,
                "cannot write curve",
                path.display(),
                "the file is there already",
            )
            .with_hint("choose another folder, or let --overwrite replace it")),
            None => Ok(()),
        }
    }

    /// Measures each way at all points.
    fn curves(&self, measure: &Measure<'_>, lambdas: &[f64]) -> Result<Vec<Curve>> {
        let ways = self.ways();
        let samples = measure.data.samples() * measure.data.shape().iter().product::<usize>();
        let bytes = (samples * size_of::<f32>()) as u64;
        if let Some(progress) = self.progress {
            let points = (ways.len() * lambdas.len()) as u64;
            progress.phase(Phase::Evaluating, bytes * points);
        }
        let threads = self.wish.threads;
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| Error::new(Kind::Io, "cannot start threads", threads, error))?;
        let mut curves = Vec::new();
        for (name, way, aligned) in ways {
            let mut points = Vec::with_capacity(lambdas.len());
            for lambda in lambdas {
                points.push(pool.install(|| measure.point(self.ends, way, aligned, *lambda))?);
                if let Some(progress) = self.progress {
                    progress.advance(bytes);
                }
            }
            let name = name.to_owned();
            curves.push(Curve { name, points });
        }
        Ok(curves)
    }

    /// Returns the network of both ends, for samples of this shape.
    fn network(&self, data: &DataSet) -> Result<Network> {
        network(
            &self.pair.symmetries,
            self.pair.reference.config()?.as_ref(),
            data.shape(),
        )
    }

    fn go_on(&self) -> Result<()> {
        if !self.stop.asked() {
            return Ok(());
        }
        let cause = "the curve is not whole, so nothing is written";
        Err(Error::new(
            Kind::Interrupted,
            "stopped on request",
            self.args.out.display(),
            cause,
        )
        .with_hint("run the same command again; it begins anew"))
    }

    /// Writes a checkpoint for each point; leaves those that an earlier run has finished as they
    /// are.
    fn write(&self, lambdas: &[f64], file: Option<AlignmentFile>) -> Result<(String, Value)> {
        let RunArgs {
            overwrite,
            restart,
            simd,
            io,
            ..
        } = self.args.run;
        let kernels = merge::kernels(simd)?;
        let mut lines = Vec::new();
        let mut reports = Vec::new();
        for lambda in lambdas {
            let aligned = file.as_ref().is_some_and(|file| file.moves);
            let mut job = self.ends.job(self.args.method.into(), aligned, *lambda)?;
            job.alignment_files.extend(file.clone());
            let out = self.args.out.join(format!("lambda-{lambda:.4}"));
            let report = engine::merge(Merge {
                plan: Arc::new(
                    Plan::new(&job, &self.wish)
                        .map_err(|error| merge::refused_if(lines.is_empty(), error))?,
                ),
                storage: Arc::new(DiskStorage),
                target: Target {
                    dir: out.clone(),
                    overwrite,
                    restart,
                },
                options: Options {
                    kernels,
                    io: merge::io(io),
                    stop: self.stop.clone(),
                    monitor: align::monitor(self.progress),
                    ..Options::default()
                },
                verify: false,
            })?;
            lines.push(format!("{}: {}", out.display(), report.status));
            reports.push(
                json!({ "lambda": lambda, "out": out.display().to_string(), "report": report }),
            );
        }
        Ok((lines.join("\n"), json!({ "points": reports })))
    }
}

/// Writes a small file under another name first, renamed when it is whole and durable.
fn put(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    let failed = |error| Error::io("cannot write curve", path, error);
    let mut file = create_anew(&part).map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&part, path).map_err(failed)
}

fn table(curves: &[Curve]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "way",
        "barrier",
        "loss at 0",
        "at 1",
        "in the middle",
        "accuracy at 0",
        "at 1",
        "in the middle",
    ]);
    for curve in curves {
        let (Some(first), Some(middle), Some(last)) =
            (curve.points.first(), curve.middle(), curve.points.last())
        else {
            continue;
        };
        let numbers = [
            curve.barrier(),
            first.loss,
            last.loss,
            middle.loss,
            first.accuracy,
            last.accuracy,
            middle.accuracy,
        ];
        table.add_row(
            [curve.name.clone()]
                .into_iter()
                .chain(numbers.map(|number| format!("{number:.4}"))),
        );
    }
    for column in 1..8 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "{}\nbarrier: how far the loss rises above the line between its ends, at most; in nats",
        trimmed(&table)
    )
}

fn as_json(curves: &[Curve]) -> Value {
    let barriers = curves.iter();
    let barriers = barriers.map(|curve| (curve.name.clone(), curve.barrier().into()));
    json!({ "curves": curves, "barriers": Value::Object(barriers.collect()) })
}
