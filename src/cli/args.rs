//! The command line, as typed.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::budget::parse_bytes;
use crate::device::Choice;
use crate::dtype::Dtype;

use super::activations::ActivationsArgs;
use super::align::AlignArgs;
use super::apply::ApplyArgs;
use super::interpolate::InterpolateArgs;
use super::symmetries::SymmetriesArgs;

/// Merges huge sharded model checkpoints out of core: exact Karcher means in a fixed memory budget.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or recipe, 3 stopped but resumable (run the same \
                          command again).";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Merge checkpoints into a new one; a killed merge goes on when the same command is run again
    Merge(Box<MergeArgs>),
    /// Show what a merge would read and write, its blocks, memory and disk; reads headers only
    Plan(Box<PlanArgs>),
    /// Re-read a merged checkpoint and check every block against its checksum, the index against the shards
    Verify(VerifyArgs),
    /// List the merge methods with their parameters, and every key that a recipe may have
    Reference(ReferenceArgs),
    /// Show the symmetries of a model: groups of hidden units, what they act on, which transformations keep its function
    Symmetries(SymmetriesArgs),
    /// Write a model with its hidden units reordered, flipped and turned, as a checkpoint of its own
    Apply(Box<ApplyArgs>),
    /// Find the order, signs and rotations of a model's hidden units that bring its weights nearest to another model's
    Align(Box<AlignArgs>),
    /// Record what the hidden units of an MLP, VGG or ResNet do on a data set, for align --activations
    Activations(Box<ActivationsArgs>),
    /// Measure loss and accuracy on the way between two models, with a plot, or write the models on the way
    Interpolate(Box<InterpolateArgs>),
}

/// What is merged and how: the part that `merge` and `plan` share.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The checkpoints (folders, .safetensors or PyTorch files), or one recipe (.yml, .yaml)
    #[arg(required_unless_present = "models", value_name = "MODEL|RECIPE")]
    pub inputs: Vec<PathBuf>,

    /// The folder to write, or one file, X.safetensors
    #[arg(short, long, value_name = "DIR|FILE", alias = "output")]
    pub out: PathBuf,

    /// How tensors are combined: karcher, frechet, linear, slerp, nuslerp, multislerp, task_arithmetic, model_stock,
    /// geometric_median or passthrough [default: karcher]
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,

    /// One weight a model [default: all equal]
    #[arg(long, value_delimiter = ',', value_name = "W,W,..", allow_negative_numbers = true)]
    pub weights: Option<Vec<f64>>,

    /// What is one point on a sphere: each tensor, each row along the first axis, or the whole model [default: tensor]
    #[arg(long, value_name = "KIND")]
    pub granularity: Option<String>,

    /// The most steps of an iteration [default: 1000]
    #[arg(long, value_name = "N", alias = "karcher-iter")]
    pub max_iter: Option<u32>,

    /// The tangent length, in radians, at which an iteration has converged [default: 1e-12]
    #[arg(long, value_name = "T", alias = "karcher-tol", allow_negative_numbers = true)]
    pub tol: Option<f64>,

    /// Another parameter of the method, such as t=0.3; may be given several times
    #[arg(short, long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, f64)>,

    /// Which model is the base, which also lends config, tokenizer and carried tensors: a position from 1
    /// [default: none; the first lends]
    #[arg(long, value_name = "N")]
    pub base: Option<usize>,

    /// The dtype that is written (float32, bfloat16, float16, float64, float8_e4m3fn, float8_e5m2)
    /// [default: the first model's, tensor by tensor]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub dtype: Option<Dtype>,

    /// The most tensor data in one shard [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub shard_size: Option<u64>,

    /// What to do about NaN and infinity in the inputs: error, propagate (they are not measured and reach the output),
    /// base (that tensor or row is the base's) [default: error]
    #[arg(long, value_name = "POLICY")]
    pub nan: Option<String>,

    /// What to do about a tensor that is not in every model: error, common (merge it over those that have it), base
    /// (take it from the base) [default: error]
    #[arg(long, value_name = "POLICY")]
    pub missing: Option<String>,

    /// What to do about a tensor whose shape differs between models: error, pad (fill smaller ones up with zeros), crop
    /// (cut the first axis to what all have), skip (take it from the base) [default: error]
    #[arg(long, value_name = "POLICY")]
    pub mismatch: Option<String>,

    /// The key under which the tensors of PyTorch files are, when they hold several state dicts
    #[arg(long, value_name = "KEY")]
    pub state_dict_key: Option<String>,

    /// Write seekable .safetensors.zst shards of this level (1 to 19) for archiving
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=19))]
    pub zstd: Option<i32>,

    /// Bring the models together before they are merged: weights matches all others to the base, or the first, and keeps
    /// the transforms in DIR/alignment; or transform files that align has written, each for the model that it was made
    /// for
    #[arg(long, value_delimiter = ',', value_name = "weights|FILE,..")]
    pub align: Option<Vec<String>>,

    /// With --align weights: match all others to the base or the first (base), or all to the mean of all as they are
    /// aligned by then (mean)
    #[arg(long, value_name = "base|mean", requires = "align", value_parser = ["base", "mean"])]
    pub align_reference: Option<String>,

    /// With --align weights: what is done to the units of the residual stream, as align has it
    #[arg(long, value_name = "WAY", requires = "align", value_parser = ["fixed", "permute", "orthogonal"])]
    pub align_residual: Option<String>,

    /// With --align: a symmetry spec (YAML or JSON), or the name of a built-in one [default: found by config.json and
    /// tensor names]
    #[arg(long, value_name = "SPEC", requires = "align")]
    pub spec: Option<String>,

    /// Where to compute: cpu, cuda, cuda:N, or auto (the first CUDA device if there is a usable one); the output is the
    /// same with each, but that --align weights may decide near ties in another way [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<Choice>,

    /// The most memory of the device that is used [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub device_memory: Option<u64>,

    /// In how much memory.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// In blocks of which size.
    #[command(flatten)]
    pub block: BlockArgs,

    /// Flags of another program's users.
    #[command(flatten)]
    pub script: ScriptArgs,
}

/// The flags of the Karcher-merge script: its users change one word.
#[derive(Debug, Args)]
#[command(next_help_heading = "As the Karcher-merge script has it")]
pub struct ScriptArgs {
    /// The checkpoints, separated by spaces. Shapes that differ are filled up with zeros, as there (--mismatch pad), unless
    /// --mismatch says otherwise. Its other flags are known too: --output is --out, --karcher-iter is --max-iter,
    /// --karcher-tol is --tol
    #[arg(long, num_args = 1.., value_name = "MODEL", hide_short_help = true, conflicts_with = "inputs")]
    pub models: Vec<PathBuf>,

    /// One weight a model, separated by spaces
    #[arg(
        long,
        num_args = 1..,
        value_name = "W",
        hide_short_help = true,
        allow_negative_numbers = true,
        conflicts_with = "weights"
    )]
    pub alphas: Option<Vec<f64>>,

    /// With a single file as output: put the first (or base) model's config, tokenizer and other files beside it.
    /// Files that are there already stay unless --overwrite is given. A folder always gets them
    #[arg(long, hide_short_help = true)]
    pub copy_extra_files: bool,
}

/// `thalweg merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// What is merged and how.
    #[command(flatten)]
    pub job: JobArgs,

    /// How the run is carried out.
    #[command(flatten)]
    pub run: RunArgs,

    /// Read every written block again at the end and check it
    #[arg(long)]
    pub verify: bool,
}

/// What a run may take of the machine.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// The most memory that the process may have resident [default: half of what is available]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,

    /// Threads that compute [default: one a core]
    #[arg(short = 'j', long, value_name = "N")]
    pub threads: Option<usize>,
}

/// How tensors are streamed.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// Bytes of one input's part of a block [default: chosen for the memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub block_size: Option<u64>,
}

/// How a run that writes something is carried out, whatever it is.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Begin anew: what an earlier, unfinished run has left there is discarded
    #[arg(long)]
    pub restart: bool,

    /// Replace a finished output that is there already
    #[arg(long)]
    pub overwrite: bool,

    /// How inputs are read: through memory maps, or by positioned reads (network file systems)
    #[arg(long, value_enum, value_name = "WAY", default_value = "map")]
    pub io: IoArg,

    /// The instruction set of the kernels; the output is the same with each
    #[arg(long, value_enum, value_name = "LEVEL", default_value = "auto", hide_possible_values = false)]
    pub simd: SimdArg,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `thalweg plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// What would be merged and how.
    #[command(flatten)]
    pub job: JobArgs,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,
}

/// `thalweg reference`.
#[derive(Debug, Args)]
pub struct ReferenceArgs {
    /// Print both tables as JSON
    #[arg(long)]
    pub json: bool,
}

/// `thalweg verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The merged checkpoint: a folder, or a single file with its manifest X.safetensors.thalweg.json beside it
    pub dir: PathBuf,

    /// Also compute blocks of it once more from its inputs, one after the other with the portable kernels, and compare
    /// every bit; all that follows is what `merge` was given, without --out
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "MODEL|RECIPE|OPTION")]
    pub against: Vec<OsString>,

    /// How many blocks of 32768 elements are computed once more, chosen at random; for each tensor that is met, the
    /// inputs are read whole
    #[arg(long, value_name = "N", default_value_t = 64, requires = "against")]
    pub sample: u64,

    /// What the choice of blocks depends on
    #[arg(long, value_name = "N", default_value_t = 0, requires = "against")]
    pub seed: u64,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// `--io`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum IoArg {
    /// Memory maps
    Map,
    /// Positioned reads
    Pread,
}

/// `--simd`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SimdArg {
    /// The best that the machine has
    Auto,
    /// No special instructions
    Portable,
    /// AVX2 and FMA
    Avx2,
    /// AVX-512
    Avx512,
}

fn parameter(text: &str) -> Result<(String, f64), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    let number = match value {
        "true" => 1.0,
        "false" => 0.0,
        _ => value.parse().map_err(|_| format!("`{value}` is neither a number nor true or false"))?,
    };
    Ok((name.to_owned(), number))
}

pub fn device(text: &str) -> Result<Choice, String> {
    Choice::parse(text).ok_or_else(|| "wanted cpu, cuda, cuda:N or auto".to_owned())
}

fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Dtype::MERGEABLE.iter().filter_map(|dtype| dtype.torch_name()).collect();
        format!("unknown dtype; known are {}", known.join(", "))
    })
}
