//! Merges huge sharded model checkpoints out of core.
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = models()?;
//! # std::fs::write(folder.path().join("recipe.yml"), recipe(folder.path()))?;
//! # std::env::set_current_dir(folder.path())?;
//! use std::path::Path;
//! use thalweg::{Options, Plan, Recipe, Target, merge, verify};
//!
//! let recipe = Recipe::read(Path::new("recipe.yml"))?;
//! let plan = Plan::of(&recipe)?; // reads headers only
//! println!("{} tensors in {} shards", plan.tensors.len(), plan.layout.shards().len());
//! let report = merge(plan, Target::new("merged"), Options::default())?;
//! println!("{report}");
//! verify(Path::new("merged"), &mut |_, _| Ok(()))?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Job`] and [`Wish`] set what a recipe leaves open, [`Options`] has the monitor and the stop
//! flag of a run, and every failure is an [`Error`]. `examples/` has whole programs.
//!
//! # How it works
//!
//! A checkpoint is never held in memory. Every tensor is streamed from its shard in blocks,
//! measured, solved for a handful of coefficients, streamed once more, combined with one rounding
//! and written at an offset that was known before the first byte was read. A method that selects
//! elements may measure in several sweeps; its rule then picks and mixes differences from a base.
//!
//! ```text
//!  command line / recipe ──► Job            recipe/      what is asked for, validated whole
//!          model folders ──► Checkpoint     checkpoint/  headers only: names, dtypes, shapes, byte ranges
//!                            Plan           plan/        every output tensor, its sources, shard, offset and blocks
//!
//!   ┌─────────────────────────────── engine/ ───────────────────────────────┐
//!   │ reader ──► measure ──► solve ──► (read again) ──► apply ──► writer    │
//!   │ Source     pass/       method/                    pass/     output/   │
//!   │            Statistic   Rule                       one rounding        │
//!   └──────── windows and buffers in flight are paid for in budget ─────────┘
//!
//!                            journal/       data, fsync, record, fsync: what a killed run goes on from
//!                            output/        shards, index, side files, manifest, renamed when whole
//!                            sidecar/       config, tokenizer, chat template, model card, recipe
//!                            report/        what ran: norms, angles, iterations, flags
//! ```
//!
//! The order of modules is the order of the data; a module uses only those above it. Threads begin
//! in `engine`, `align/run`, `cli/activations` and `cli/interpolate`; all else works on those of
//! its caller.
//!
//! - [`door`]: settings in the words of the door that a user came in by: recipe or flags.
//! - [`error`]: one error type: kind, subject, cause, hint.
//! - [`json`]: JSON as Python writes it, changed in place.
//! - [`dtype`]: element types and their names in files and configs.
//! - [`budget`]: the byte budget: reservations that give themselves back, recycled aligned buffers.
//! - [`monitor`]: the events that a run reports to an observer; nothing here prints.
//! - [`random`]: random numbers that are the same on every machine.
//! - [`linalg`]: products of matrices, the same bits for every number of threads.
//! - [`kernel`]: Gram accumulation, weighted combination and rounding of a chunk; portable and
//!   SIMD, the same bits.
//! - [`device`]: the work of `kernel` on a graphics processor, with the same bits.
//! - [`checkpoint`]: reading: files, folders, indexes, headers, maps, compressed shards.
//! - [`likeness`]: checks that models mean the same by tokens, names and shapes.
//! - [`symmetry`]: symmetries of networks, folds of norms, transforms.
//! - [`view`]: tensors as a merge reads them, computed from stored ones.
//! - [`method`]: Gram matrix in, coefficients out; differences in, a rule for each element out.
//! - [`recipe`]: recipes: reading, checking and writing them.
//! - [`plan`]: recipe and headers in, a pure value out.
//! - [`journal`]: records of durably written data, and their replay.
//! - [`output`]: shards, index, side files, manifest, and the file operations under them.
//! - [`sidecar`]: files beside the weights: config, tokenizer, chat template, model card, recipe.
//! - [`pass`]: statistic, rule, group: the two passes over the elements, written once.
//! - [`report`]: the summary of a run, as a value.
//! - [`engine`]: the pipeline: reader, dispatch, writer.
//! - [`data`]: labelled samples in files.
//! - [`net`]: forward and backward passes of small families of networks.
//! - [`align`]: matching the units of one network to those of another; a run that finds, keeps and
//!   reports the match.
//! - [`curve`]: losses between two models, as points, table and plot.
//! - [`cli`]: arguments, progress, printing.

#[doc(hidden)]
pub mod align;
#[doc(hidden)]
pub mod budget;
#[doc(hidden)]
pub mod checkpoint;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod curve;
#[doc(hidden)]
pub mod data;
#[doc(hidden)]
pub mod device;
#[doc(hidden)]
pub mod door;
#[doc(hidden)]
pub mod dtype;
#[doc(hidden)]
pub mod engine;
#[doc(hidden)]
pub mod error;
#[doc(hidden)]
pub mod journal;
#[doc(hidden)]
pub mod json;
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
pub mod likeness;
#[doc(hidden)]
pub mod linalg;
#[doc(hidden)]
pub mod method;
#[doc(hidden)]
pub mod monitor;
#[doc(hidden)]
pub mod net;
#[doc(hidden)]
pub mod output;
#[doc(hidden)]
pub mod pass;
#[doc(hidden)]
pub mod plan;
#[doc(hidden)]
pub mod random;
#[doc(hidden)]
pub mod recipe;
#[doc(hidden)]
pub mod report;
#[doc(hidden)]
pub mod sidecar;
#[doc(hidden)]
pub mod symmetry;
#[doc(hidden)]
pub mod view;

pub use budget::{format_bytes, parse_bytes};
pub use checkpoint::{Checkpoint, OpenOptions, TensorEntry};
pub use door::Door;
pub use dtype::Dtype;
pub use engine::{Options, Stop};
pub use error::{Error, Kind, Result};
pub use monitor::{Monitor, Phase, Silent};
pub use output::{Target, Verified, verify, verify_within};
pub use plan::memory::Wish;
pub use plan::{Job, Plan};
pub use recipe::{Document, ModelRef, Reading, Recipe};
pub use report::Report;

/// Carries out `plan` into the folder or file of `target`, or goes on where an earlier run of the
/// same plan has stopped.
///
/// # Errors
///
/// Any failure that keeps the checkpoint from being finished. The bytes written by then stay for
/// the next run.
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let recipe = thalweg::Recipe::parse(&recipe(folder.path()), "recipe.yml")?;
/// use thalweg::{Options, Plan, Target, merge};
///
/// let out = folder.path().join("merged");
/// merge(Plan::of(&recipe)?, Target::new(&out), Options::default())?;
/// assert!(out.join("model.safetensors").exists());
/// let again = merge(Plan::of(&recipe)?, Target::new(&out), Options::default())?;
/// assert_eq!(again.status, "complete already");
/// # Ok(())
/// # }
/// ```
pub fn merge(plan: Plan, target: Target, options: Options) -> Result<Report> {
    let storage = std::sync::Arc::new(output::DiskStorage);
    engine::merge(engine::Merge {
        plan: std::sync::Arc::new(plan),
        storage,
        target,
        options,
        verify: false,
    })
}
