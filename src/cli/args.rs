//! The command line, as typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::budget::parse_bytes;
use crate::device::Choice;
use crate::dtype::Dtype;
use crate::recipe::{Rename, THREADS, ZSTD_LEVELS, expand_home};

use super::activations::ActivationsArgs;
use super::align::AlignArgs;
use super::apply::ApplyArgs;
use super::interpolate::InterpolateArgs;
use super::mergekit::MergekitArgs;
use super::symmetries::SymmetriesArgs;

/// Merges huge sharded model checkpoints out of core: exact Karcher means in a fixed memory budget.
#[derive(Debug, Parser)]
#[command(name = "thalweg", version, max_term_width = 110, after_help = EXIT_CODES)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 usage or recipe, 3 stopped but resumable (run the same \
                          command again).";

/// A command with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Merge checkpoints into a new one; a killed merge goes on when the same command is run again
    #[command(override_usage = "thalweg merge [OPTIONS] --out <DIR|FILE> <MODEL|RECIPE>...")]
    Merge(Box<MergeArgs>),
    /// Show what a merge would read and write, its blocks, memory and disk; reads headers only
    #[command(override_usage = "thalweg plan [OPTIONS] --out <DIR|FILE> <MODEL|RECIPE>...")]
    Plan(Box<PlanArgs>),
    /// Re-read a merged checkpoint and check every block against its checksum, the index against
    /// the shards
    Verify(VerifyArgs),
    /// List the merge methods with their parameters, and every key that a recipe may have
    Reference(ReferenceArgs),
    /// Show the symmetries of a model: groups of hidden units, the tensors they act on, the changes
    /// that keep its function
    Symmetries(SymmetriesArgs),
    /// Write a model with its hidden units reordered, flipped and turned, as a checkpoint of its
    /// own
    Apply(Box<ApplyArgs>),
    /// Find the order, signs and rotations of a model's hidden units that bring its weights closest
    /// to another model's
    Align(Box<AlignArgs>),
    /// Record the activations of the hidden units of an MLP, VGG or ResNet on a data set, for align
    /// --activations
    Activations(Box<ActivationsArgs>),
    /// Measure loss and accuracy along the line between two models, with a plot, or write the
    /// models along it
    Interpolate(Box<InterpolateArgs>),
}

/// The models and the method: the part that `merge` and `plan` share.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The checkpoints (folders, .safetensors or PyTorch files), or one recipe (YAML or JSON)
    #[arg(required_unless_present = "models", value_name = "MODEL|RECIPE", value_parser = path())]
    pub inputs: Vec<PathBuf>,

    /// The folder to write, or one file, X.safetensors
    #[arg(short, long = "out", value_name = "DIR|FILE", alias = "output", value_parser = path())]
    pub out_given: Option<PathBuf>,

    /// The same once it is known, as [`flags`](super::flags) finds it.
    #[arg(skip)]
    pub out: PathBuf,

    /// Merge method, such as karcher, linear, slerp, task_arithmetic, ties, dare_ties or della;
    /// `thalweg reference` lists all [default: karcher]
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,

    /// One weight for each model, in their order [default: all equal]
    #[arg(long, value_delimiter = ',', value_name = "W,W,..", allow_hyphen_values = true, value_parser = number)]
    pub weights: Option<Vec<f64>>,

    /// The unit over which one mean is taken: each tensor (tensor), each row along the first axis
    /// (row), or the whole model (model) [default: tensor]
    #[arg(long, value_name = "KIND")]
    pub granularity: Option<String>,

    /// Seed of random draws, and of the choice among tied elements [default: 0]
    #[arg(long, value_name = "N", value_parser = whole::<u64>)]
    pub seed: Option<u64>,

    /// Choice among elements that are tied at a threshold: evenly over the tensor (spread), or the
    /// first ones (first) [default: spread]
    #[arg(long, value_name = "RULE")]
    pub ties: Option<String>,

    /// The sign elected where weighted differences cancel: plus, or none (zero) [default: plus]
    #[arg(long, value_name = "SIGN")]
    pub sign_tie: Option<String>,

    /// Make up for dropped elements by the ratio of L1 norms (norm), the density, or each element's
    /// own probability [default: norm]
    #[arg(long, value_name = "RULE")]
    pub rescale_by: Option<String>,

    /// Maximum number of iterations [default: 1000]
    #[arg(long, value_name = "N", alias = "karcher-iter", allow_negative_numbers = true, value_parser = whole::<u32>)]
    pub max_iter: Option<u32>,

    /// Stop an iteration when its step, in radians, is shorter than this [default: 1e-12]
    #[arg(long, value_name = "T", alias = "karcher-tol", allow_negative_numbers = true, value_parser = number)]
    pub tol: Option<f64>,

    /// Another parameter of the method, such as t=0.3; may be given several times
    #[arg(short, long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, f64)>,

    /// The base model: its position, from 1, or its name as it was given. The base also provides
    /// config, tokenizer and the tensors that are not merged [default: no base; the first model
    /// provides them]
    #[arg(long, value_name = "N|MODEL", allow_negative_numbers = true)]
    pub base: Option<String>,

    /// Dtype of the output (float32, bfloat16, float16, float64, float8_e4m3fn, float8_e5m2)
    /// [default: the first model's, tensor by tensor]
    #[arg(long, value_name = "DTYPE", value_parser = dtype)]
    pub dtype: Option<Dtype>,

    /// Maximum bytes of tensor data in one shard [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub shard_size: Option<u64>,

    /// Policy for NaN and infinity in the inputs: stop (error), leave them out of the measurement
    /// and write them to the output (propagate), or take that tensor or row from the base (base)
    /// [default: error]
    #[arg(long, value_name = "POLICY")]
    pub nan: Option<String>,

    /// Policy for quantised weights, which are codes with scales beside them: stop (error), or take
    /// codes and scales as the numbers that they are stored as (raw) [default: error]
    #[arg(long, value_name = "POLICY", alias = "quantized")]
    pub quantised: Option<String>,

    /// Policy for a tensor that some models lack: stop (error), merge it over the models that have
    /// it (common), or take it from the base (base) [default: error]
    #[arg(long, value_name = "POLICY")]
    pub missing: Option<String>,

    /// Policy for a tensor whose shape differs between models: stop (error), fill smaller ones with
    /// zeros, or with the base where the method measures from it (pad), cut every axis to the
    /// length that all have (crop), or take it from the base (skip) [default: error]
    #[arg(long, value_name = "POLICY")]
    pub mismatch: Option<String>,

    /// Go on although tokenizers number their tokens in other ways: rows of embeddings and heads
    /// are merged as they are
    #[arg(long)]
    pub any_vocabulary: bool,

    /// Go on although equal shapes mean different things by the models' configs, such as other
    /// numbers of heads
    #[arg(long)]
    pub any_config: bool,

    /// Rules that rename tensors.
    #[command(flatten)]
    pub rename: RenameArgs,

    /// Key of the state dict in PyTorch files that hold several
    #[arg(long, value_name = "KEY")]
    pub state_dict_key: Option<String>,

    /// Compress the shards for archiving: seekable .safetensors.zst files of this level (1 to 19)
    #[arg(long, value_name = "LEVEL", value_parser = zstd_level, allow_negative_numbers = true)]
    pub zstd: Option<i32>,

    /// Align the models before they are merged. `weights` matches all others to the base (else the
    /// first) by their weights and keeps the transforms in DIR/alignment; otherwise transform files
    /// that align wrote, each used for its model
    #[arg(long, value_delimiter = ',', value_name = "weights|FILE,..")]
    pub align: Option<Vec<String>>,

    /// With --align weights: match all others to the base, else the first model (base), or all
    /// models to their mean as aligned so far (mean)
    #[arg(long, value_name = "base|mean", requires = "align", value_parser = ["base", "mean"])]
    pub align_reference: Option<String>,

    /// With --align weights: leave the units of the residual stream in place (fixed), reorder them
    /// (permute), or map them by any orthogonal matrix (orthogonal) [default: fixed]
    #[arg(long, value_name = "WAY", requires = "align", value_parser = ["fixed", "permute", "orthogonal"])]
    pub align_residual: Option<String>,

    /// With --align: symmetry spec (YAML or JSON file), or the name of a built-in one [default:
    /// chosen by config.json and tensor names]
    #[arg(long, value_name = "SPEC", requires = "align")]
    pub spec: Option<String>,

    /// Device that computes: cpu, cuda, cuda:N, or auto (the first usable CUDA device, else the
    /// cpu). The output is the same on each, except that --align weights may decide near ties
    /// differently [default: cpu]
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<Choice>,

    /// Maximum device memory to use [default: 80 % of what is free]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub device_memory: Option<u64>,

    /// Treat keys and parameters that nobody knows as warnings
    #[arg(long)]
    pub lenient: bool,

    /// Memory and threads.
    #[command(flatten)]
    pub memory: MemoryArgs,

    /// Block size.
    #[command(flatten)]
    pub block: BlockArgs,

    /// Flags of another program's users.
    #[command(flatten)]
    pub script: ScriptArgs,

    /// mergekit's flags.
    #[command(flatten)]
    pub mergekit: MergekitArgs,
}

/// The heading of its flags: given to each, since one that is given to all would stay for those of
/// others.
const SCRIPT: &str = "As the Karcher-merge script has it";

/// The flags of the Karcher-merge script, whose users change one word.
#[derive(Debug, Args)]
pub struct ScriptArgs {
    /// The checkpoints, separated by spaces. Shapes that differ are filled up with zeros, as there
    /// (--mismatch pad), unless --mismatch says otherwise. Its other flags are known too: --output
    /// is --out, --karcher-iter is --max-iter, --karcher-tol is --tol
    #[arg(
        long,
        help_heading = SCRIPT,
        num_args = 1..,
        value_name = "MODEL",
        hide_short_help = true,
        conflicts_with = "inputs",
        value_parser = path()
    )]
    pub models: Vec<PathBuf>,

    /// One weight for each model, separated by spaces
    #[arg(
        long,
        help_heading = SCRIPT,
        num_args = 1..,
        value_name = "W",
        hide_short_help = true,
        allow_negative_numbers = true,
        value_parser = number,
        conflicts_with = "weights"
    )]
    pub alphas: Option<Vec<f64>>,

    /// With a single file as output: copy config, tokenizer and other files of the base (else the
    /// first) model beside it. Existing files stay unless --overwrite is given. A folder always
    /// gets them
    #[arg(long, help_heading = SCRIPT, hide_short_help = true)]
    pub copy_extra_files: bool,
}

/// `thalweg merge`.
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The models and the method.
    #[command(flatten)]
    pub job: JobArgs,

    /// Options of the run.
    #[command(flatten)]
    pub run: RunArgs,

    /// At the end, read every written block again and check it
    #[arg(long)]
    pub verify: bool,
}

/// The share of the machine that a run may use.
#[derive(Debug, Args)]
pub struct MemoryArgs {
    /// Maximum resident memory of the process [default: half of what is available]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub memory: Option<u64>,

    /// Number of computing threads, 1 to 1024 [default: one for each core]
    #[arg(short = 'j', long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub threads: Option<usize>,
}

/// The cut of tensors into blocks.
#[derive(Debug, Args)]
pub struct BlockArgs {
    /// Bytes of each input in one block [default: fits the memory]
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, allow_hyphen_values = true)]
    pub block_size: Option<u64>,
}

/// Options of every run that writes something.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Discard what an earlier, unfinished run left in the output, and start again
    #[arg(long)]
    pub restart: bool,

    /// Replace a finished output
    #[arg(long)]
    pub overwrite: bool,

    /// Way of reading inputs: memory maps (map), or positioned reads for network file systems (pread)
    #[arg(long, value_enum, value_name = "WAY", default_value = "map")]
    pub io: IoArg,

    /// Instruction set of the kernels; the output is the same with each
    #[arg(
        long,
        value_enum,
        value_name = "LEVEL",
        default_value = "auto",
        hide_possible_values = false
    )]
    pub simd: SimdArg,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `thalweg plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// The models and the method.
    #[command(flatten)]
    pub job: JobArgs,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Options of the merge that would run.
    #[command(flatten)]
    pub run: RunArgs,

    /// Accepted as merge takes it: plan reads no data
    #[arg(long)]
    pub verify: bool,
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
    /// The merged checkpoint: a folder, or a single file with its manifest
    /// X.safetensors.thalweg.json beside it
    #[arg(value_parser = path())]
    pub dir: PathBuf,

    /// Maximum resident memory of the process [default: half of what is available]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    pub memory: Option<u64>,

    /// Also recompute blocks from the inputs, one after the other with the portable kernels, and
    /// compare every bit. Repeat after it the arguments that merge was given, without --out
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "MODEL|RECIPE|OPTION")]
    pub against: Vec<OsString>,

    /// With --against: number of blocks of 32768 elements to recompute, chosen at random. The
    /// inputs of each tensor that is chosen are read whole
    #[arg(long, value_name = "N", default_value_t = 64, requires = "against", allow_negative_numbers = true,
          value_parser = whole::<u64>)]
    pub sample: u64,

    /// With --against: seed for choosing the blocks
    #[arg(long, value_name = "N", default_value_t = 0, requires = "against", allow_negative_numbers = true,
          value_parser = whole::<u64>)]
    pub seed: u64,

    /// Print a machine-readable summary on standard output
    #[arg(long)]
    pub json: bool,

    /// Print errors only
    #[arg(short, long)]
    pub quiet: bool,
}

/// `--rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Rename tensors as they are read: what REGEX finds in a name becomes TEMPLATE, where $1
    /// stands for its first group; N:REGEX=TEMPLATE does so in the N-th model alone. May be given
    /// several times: the first rule that matches a name decides, those of one model come before
    /// those of all
    #[arg(id = "rename", long = "rename", value_name = "[N:]REGEX=TEMPLATE", value_parser = rename)]
    pub rules: Vec<RenameArg>,
}

/// One rule of `--rename`.
#[derive(Debug, Clone)]
pub struct RenameArg {
    /// The model whose tensors are renamed, counted from 1; all models when `None`.
    pub model: Option<usize>,
    /// The rule.
    pub rule: Rename,
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
    /// The best that the machine supports
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
    let number = match value.trim() {
        "true" => 1.0,
        "false" => 0.0,
        value => value
            .parse()
            .map_err(|_| format!("`{value}` is neither a number nor true or false"))?,
    };
    Ok((name.trim().to_owned(), number))
}

/// A path in which a leading `~/` is the home folder, as the shell has it where it is not quoted.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| path.to_str().map(expand_home).unwrap_or(path))
}

fn number(text: &str) -> Result<f64, String> {
    text.trim()
        .parse()
        .map_err(|_| "wanted a number".to_owned())
}

/// A whole number that is not negative.
pub fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.trim()
        .parse()
        .map_err(|_| "wanted a whole number from 0 on".to_owned())
}

fn zstd_level(text: &str) -> Result<i32, String> {
    let level = text
        .parse()
        .ok()
        .filter(|level| ZSTD_LEVELS.contains(level));
    let level = level.and_then(|level| i32::try_from(level).ok());
    level.ok_or_else(|| {
        format!(
            "wanted a level from {} to {}",
            ZSTD_LEVELS.start(),
            ZSTD_LEVELS.end()
        )
    })
}

fn threads(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| THREADS.contains(count));
    let count = count.and_then(|count| usize::try_from(count).ok());
    count.ok_or_else(|| format!("wanted {} to {}", THREADS.start(), THREADS.end()))
}

fn rename(text: &str) -> Result<RenameArg, String> {
    let numbered = text
        .split_once(':')
        .and_then(|(number, rule)| Some((number.parse().ok()?, rule)));
    let (model, rule) = numbered.map_or((None, text), |(number, rule)| (Some(number), rule));
    Ok(RenameArg {
        model,
        rule: Rename::parse(None, rule)?,
    })
}

pub fn device(text: &str) -> Result<Choice, String> {
    Choice::parse(text).ok_or_else(|| "wanted cpu, cuda, cuda:N or auto".to_owned())
}

fn dtype(text: &str) -> Result<Dtype, String> {
    Dtype::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Dtype::MERGEABLE
            .iter()
            .filter_map(|dtype| dtype.torch_name())
            .collect();
        format!("unknown dtype; known are {}", known.join(", "))
    })
}
