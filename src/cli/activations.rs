//! `thalweg activations`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use indexmap::IndexMap;
use rayon::ThreadPoolBuilder;
use serde_json::json;

use crate::align::Store;
use crate::align::activations::{Recorded, Recording, record};
use crate::align::network::{network, parameters};
use crate::checkpoint::{Checkpoint, SourceOptions};
use crate::data::DataSet;
use crate::engine::Stop;
use crate::error::{Error, Kind, Result, shown_name};
use crate::kernel::Kernels;
use crate::monitor::{Monitor, Phase};
use crate::output::check_ending;
use crate::plan::memory::process_bytes;
use crate::symmetry::{Symmetries, fingerprint};

use super::args::{self, BlockArgs, MemoryArgs};
use super::progress::Progress;
use super::quantised::QuantisedArgs;
use super::{job, merge, models, print, symmetries, trimmed};

/// The name of the file in a folder.
const FILE: &str = "activations.safetensors";

/// `thalweg activations`.
#[derive(Debug, Args)]
pub struct ActivationsArgs {
    /// The checkpoint, an MLP, VGG or ResNet: a folder or a file
    #[arg(value_parser = args::path())]
    pub model: PathBuf,

    /// The samples, a safetensors file with `inputs` [samples, ...] and `labels` [samples]
    #[arg(long, value_name = "FILE", value_parser = args::path())]
    pub data: PathBuf,

    /// Output: a folder for activations.safetensors, or one file, X.safetensors
    #[arg(short, long, value_name = "DIR|FILE", value_parser = args::path())]
    pub out: PathBuf,

    /// Symmetry spec (YAML or JSON file), or the name of a built-in one [default: chosen by
    /// config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Policy for quantised weights.
    #[command(flatten)]
    pub quantised: QuantisedArgs,

    /// Memory and threads.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Records the activations of all groups of a model.
///
/// # Errors
///
/// Whatever keeps the file from being written.
pub fn run(args: &ActivationsArgs) -> Result<()> {
    let kernels = Kernels::detect();
    let wish = job::wish(None, &args.memory, &BlockArgs { block_size: None })?;
    let path = path_of(args)?;
    let model = models::open(&args.model, &args.quantised, &wish, &[]).map_err(Error::refused)?;
    let symmetries = found(args, &model).map_err(Error::refused)?;
    let data = DataSet::open(&args.data, kernels).map_err(Error::refused)?;
    let config = model.config()?;
    let network = network(&symmetries, config.as_ref(), data.shape()).map_err(Error::refused)?;
    let store = Store::open(&model, &SourceOptions::default(), kernels)?;
    let parameters = parameters(&network, &store)?;
    let fixed = process_bytes(wish.threads, &[&model]) + parameters.bytes();
    let stop = Stop::default();
    merge::watch_signals(&stop)?;
    let recording = Recording {
        symmetries: &symmetries,
        network: &network,
        parameters: &parameters,
        data: &data,
        notes: IndexMap::from([("model".to_owned(), fingerprint::of(&model)?)]),
        memory: wish.memory.saturating_sub(fixed),
    };
    let watch = Watch {
        progress: (!args.quiet).then(|| Progress::new(wish.memory)),
        sample_bytes: sample_bytes(&data),
        recorded: AtomicUsize::new(0),
        path: &path,
        stop: &stop,
    };
    print_recorded(args, &path, &watch.record(&recording, wish.threads)?)
}

fn print_recorded(args: &ActivationsArgs, path: &Path, recorded: &[Recorded]) -> Result<()> {
    match (args.json, args.quiet) {
        (true, _) => {
            let value = json!({ "out": path.display().to_string(), "groups": recorded });
            print(&format!("{value:#}"))
        }
        (false, false) => print(&as_text(path, recorded)),
        (false, true) => Ok(()),
    }
}

/// A recording that is shown on the way and can be stopped.
struct Watch<'a> {
    progress: Option<Progress>,
    sample_bytes: u64,
    /// The samples that are recorded already.
    recorded: AtomicUsize,
    path: &'a Path,
    stop: &'a Stop,
}

impl Watch<'_> {
    /// Records on so many threads.
    fn record(&self, recording: &Recording<'_>, threads: usize) -> Result<Vec<Recorded>> {
        if let Some(progress) = &self.progress {
            let all = recording.data.samples() as u64 * self.sample_bytes;
            progress.phase(Phase::Evaluating, all);
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| Error::new(Kind::Io, "cannot start threads", threads, error))?;
        let go_on = |samples: usize| self.go_on(samples);
        let outcome = pool.install(|| record(recording, self.path, &go_on));
        if let Some(progress) = &self.progress {
            progress.clear();
        }
        outcome
    }

    /// Notes that so many samples are recorded, and goes on unless the user asked to stop.
    fn go_on(&self, samples: usize) -> Result<()> {
        if let Some(progress) = &self.progress {
            let new = samples - self.recorded.swap(samples, Ordering::Relaxed);
            progress.advance(new as u64 * self.sample_bytes);
        }
        if self.stop.asked() {
            return Err(stopped(self.path));
        }
        Ok(())
    }
}

fn found(args: &ActivationsArgs, model: &Checkpoint) -> Result<Symmetries> {
    let spec = args.spec.as_deref().map(symmetries::spec).transpose()?;
    Symmetries::of(model, spec.as_ref())
}

fn stopped(path: &Path) -> Error {
    let cause = "the activations are not all recorded";
    Error::new(
        Kind::Interrupted,
        "stopped on request",
        path.display(),
        cause,
    )
    .with_hint("run the same command again")
}

fn path_of(args: &ActivationsArgs) -> Result<PathBuf> {
    check_ending(&args.out)?;
    let is_file =
        args.out.extension().is_some_and(|end| end == "safetensors") && !args.out.is_dir();
    let path = if is_file {
        args.out.clone()
    } else {
        args.out.join(FILE)
    };
    if path.exists() && !args.overwrite {
        return Err(Error::new(
            Kind::Occupied,
            "cannot write activations",
            path.display(),
            "the file is there already",
        )
        .with_hint("choose another name, or let --overwrite replace it"));
    }
    Ok(path)
}

fn as_text(path: &Path, recorded: &[Recorded]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["group", "samples", "units"]);
    for group in recorded {
        let name = shown_name(&group.group);
        table.add_row([name, group.samples.to_string(), group.units.to_string()]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!(
        "recorded: {} groups in {}\n{}",
        recorded.len(),
        path.display(),
        trimmed(&table)
    )
}

/// Returns the bytes of a sample as it is computed with.
fn sample_bytes(data: &DataSet) -> u64 {
    (data.shape().iter().product::<usize>() * size_of::<f32>()) as u64
}
