//! Merges huge sharded model checkpoints out of core.
//!
//! A checkpoint is never held in memory. Every tensor is streamed from its shard in blocks, measured, solved for a
//! handful of coefficients, streamed once more, combined with one rounding and written at an offset that was known
//! before the first byte was read.
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
//! The order of modules is the order of the data; a module uses only those above it.
//! Threads begin in `engine`, `align/run`, `cli/activations` and `cli/interpolate`; all else works on those of its caller.
//!
//! - [`door`]: settings in the words of the door that a user came in by: recipe or flags.
//! - [`error`]: one error type: kind, subject, cause, what to do.
//! - [`json`]: JSON as Python writes it, changed in place.
//! - [`dtype`]: element types and their names in files and configs.
//! - [`budget`]: the byte budget: reservations that give themselves back, recycled aligned buffers.
//! - [`monitor`]: what a run tells an observer; nothing here prints.
//! - [`random`]: random numbers that are the same on every machine.
//! - [`linalg`]: products of matrices, the same bits for every number of threads.
//! - [`kernel`]: Gram accumulation, weighted combination and rounding of a chunk; portable and SIMD, the same bits.
//! - [`device`]: the same on a graphics processor, the same bits.
//! - [`checkpoint`]: reading: files, folders, indexes, headers, maps, compressed shards.
//! - [`likeness`]: whether models mean the same by tokens, names and shapes.
//! - [`symmetry`]: symmetries of networks, folds of norms, transforms.
//! - [`view`]: tensors as a merge reads them, made of stored ones.
//! - [`method`]: Gram matrix in, coefficients out.
//! - [`recipe`]: what the user asks for.
//! - [`plan`]: recipe and headers in, a pure value out.
//! - [`journal`]: records of what is durably written, and their replay.
//! - [`output`]: shards, index, side files, manifest, and the file operations under them.
//! - [`sidecar`]: files beside the weights: config, tokenizer, chat template, model card, recipe.
//! - [`pass`]: statistic, rule, group: the two passes over the elements, written once.
//! - [`report`]: what ran, as a value.
//! - [`engine`]: the pipeline: reader, dispatch, writer.
//! - [`data`]: labelled samples in files.
//! - [`net`]: forward and backward passes of small families of networks.
//! - [`align`]: which unit of one network goes with which of another; a run that finds, keeps and reports it.
//! - [`curve`]: losses between two models, as points, table and plot.
//! - [`cli`]: arguments, progress, printing.

pub mod align;
pub mod budget;
pub mod checkpoint;
pub mod cli;
pub mod curve;
pub mod data;
pub mod device;
pub mod door;
pub mod dtype;
pub mod engine;
pub mod error;
pub mod journal;
pub mod json;
pub mod kernel;
pub mod likeness;
pub mod linalg;
pub mod method;
pub mod monitor;
pub mod net;
pub mod output;
pub mod pass;
pub mod plan;
pub mod random;
pub mod recipe;
pub mod report;
pub mod sidecar;
pub mod symmetry;
pub mod view;

pub use door::Door;
pub use error::{Error, Kind, Result};
