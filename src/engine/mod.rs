//! The pipeline, with its threads and channels.
//!
//! ```text
//!  reader ──Loaded──► dispatch ──Order──► writer ──Pending──► syncer
//!    │ windows          │ tasks              │ write_at          │ fsync data, append records, fsync journal
//!    └ input budget     └ pool, output budget└ hashes            └
//! ```
//!
//! Each stage takes its input in plan order and passes it on in plan order; the pool answers
//! through one-shot promises, so nothing is ever sorted. Memory is bounded by two budgets: windows
//! are paid for by the reader, output buffers by the dispatcher, both in plan order. An earlier
//! block therefore never waits for a later one, and no order of events can lock the pipeline up.
//!
//! With a device, a task of the pool holds one lane of it while it works on a block; other tasks
//! copy or compute in other lanes meanwhile. A device failure is an error like any other: what was
//! written is committed, and the next run goes on from there, on a device or on the processor.
//!
//! A stage ends when its input ends or the next stage is gone. The run keeps and returns the first
//! error; pieces written by then are committed, so that the next run goes on from there.

mod dispatch;
mod in_memory;
mod merge;
mod pack;
mod preflight;
mod promise;
mod reader;
mod recheck;
pub(crate) mod separate;
mod stop;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::thread::Builder;
use std::time::Instant;

use crossbeam::channel::{bounded, unbounded};
use rayon::ThreadPoolBuilder;

use crate::budget::{Budget, give_back};
use crate::checkpoint::{Io, SourceOptions};
use crate::device::{Choice, Driver, Lanes};
use crate::error::{Error, Kind, Result};
use crate::kernel::Kernels;
use crate::monitor::{Monitor, Phase, Silent};
use crate::output::Output;
use crate::pass::{Bench, Device, Processor, Rule, Solved};
use crate::plan::Plan;
use crate::plan::schedule::{Block, Role};
use crate::report::Moved;
use crate::view::{Place, Stack};

use dispatch::{Dispatch, Memory};
pub use in_memory::merge_in_memory;
pub use merge::{Merge, merge};
pub use preflight::{Preflight, preflight};
use reader::{OpenedStacks, Reader, Sources};
pub use recheck::{Rechecked, Sample, recheck};
pub use stop::Stop;
use writer::Writer;

/// Options of a run, none of which changes the output.
///
/// # Examples
///
/// ```
/// use thalweg::{Options, Stop};
///
/// let stop = Stop::default();
/// let options = Options { stop: stop.clone(), ..Options::default() };
/// stop.ask();
/// assert!(options.stop.asked());
/// ```
#[derive(Clone)]
pub struct Options {
    /// The instruction set.
    pub kernels: Kernels,
    /// The device that computes, if the plan or the alignment has set memory aside for one; the
    /// processor otherwise.
    pub device: Option<Arc<dyn Driver>>,
    /// The way in which inputs are read.
    pub io: Io,
    /// The flag that ends the run early.
    pub stop: Stop,
    /// The observer of progress and warnings.
    pub monitor: Arc<dyn Monitor>,
    /// Bytes written between two commits, which make them durable and journal them: the most that a
    /// kill can cost.
    /// [`COMMIT_BYTES`] suits a real disk; tests that cut a run short take less.
    pub commit_bytes: u64,
}

/// The default of bytes written between two commits: a few syncs a second at the speed of a disk.
pub const COMMIT_BYTES: u64 = 128 << 20;

impl Default for Options {
    /// The best instruction set, memory maps, no device and a silent monitor.
    fn default() -> Self {
        Self {
            kernels: Kernels::detect(),
            device: None,
            io: Io::default(),
            stop: Stop::default(),
            monitor: Arc::new(Silent),
            commit_bytes: COMMIT_BYTES,
        }
    }
}

/// Merges the part of `plan` that is still missing from `output` into it.
///
/// # Errors
///
/// The first failure; [`Kind::Interrupted`] when the run was asked to stop.
pub fn run(plan: &Arc<Plan>, output: &mut Output, options: &Options) -> Result<Moved> {
    let begun = Instant::now();
    let durable: Vec<u64> = (0..plan.tensors.len())
        .map(|tensor| output.durable_bytes(tensor))
        .collect();
    let known = known_rule(plan, output)?;
    let moved = expected(plan, &durable, known.is_some());
    // A single shard is compressed after everything else, several as soon as each is whole.
    let packed = if plan.layout.shards().len() > 1 {
        output.bytes_to_pack()
    } else {
        0
    };
    options
        .monitor
        .phase(Phase::Merging, moved.read + moved.written + packed);
    let sources = open_sources(plan, Some(&output.scratch_dir()), options.io)?;
    // Memory that planning has freed goes back to the system before the pipeline takes its own.
    give_back();
    stages(plan, output, options, &sources, &durable, known)?;
    Ok(Moved {
        seconds: begun.elapsed().as_secs_f64(),
        ..moved
    })
}

fn stages(
    plan: &Arc<Plan>,
    output: &mut Output,
    options: &Options,
    sources: &Sources,
    durable: &[u64],
    known: Option<Rule>,
) -> Result<()> {
    let threads = plan.memory.threads;
    let input = Budget::new(plan.memory.input);
    let memory = Memory::of(plan);
    let bench = bench(plan, options)?;
    let stop = &options.stop;
    let end = |outcome: Result<()>| {
        if let Err(error) = outcome {
            stop.fail(error);
            input.close();
            memory.close();
        }
    };
    std::thread::scope(|scope| {
        let (loaded_to, loaded) = bounded(threads + 2);
        let (sweeps_to, sweeps) = unbounded();
        let (orders_to, orders) = bounded(2 * threads + 4);
        let reader = Reader {
            plan,
            sources,
            kernels: options.kernels,
            opened: OpenedStacks::default(),
            pool: Some(bench.pool()),
            budget: &input,
            monitor: &*options.monitor,
            stop,
            sweeps: Some(sweeps),
        };
        let blocks = plan.schedule(durable, known.is_some());
        let end = &end;
        let (bench, memory) = (&bench, &memory);
        // If a thread cannot be started, its closure drops its ends of the channels, and the other
        // stages wind down.
        let spawned =
            stage("read").spawn_scoped(scope, move || end(reader.run(blocks, &loaded_to)));
        end(spawned.map(drop).map_err(no_thread));
        let spawned = stage("dispatch").spawn_scoped(scope, move || {
            let stage = Dispatch {
                plan,
                bench,
                memory,
                writer: &orders_to,
                reader: &sweeps_to,
            };
            end(stage.run(&loaded, known.map(Solved::from)));
        });
        end(spawned.map(drop).map_err(no_thread));
        let (monitor, commit_bytes) = (&*options.monitor, options.commit_bytes);
        let writer = Writer {
            plan,
            output,
            durable,
            monitor,
            commit_bytes,
        };
        end(writer.run(&orders));
        // Closed before the scope waits for the other stages: a stage that still sends would wait
        // for ever.
        drop(orders);
    });
    match stop.take_error() {
        Some(error) if matches!(error.kind(), Kind::Io | Kind::Device) => Err(error.resumable()),
        Some(error) => Err(error),
        None if stop.asked() => Err(interrupted(output)),
        None => Ok(()),
    }
}

/// Opens the device beside the processor, or the processor alone if the plan has set no memory
/// aside for a device.
fn bench(plan: &Plan, options: &Options) -> Result<Arc<dyn Bench>> {
    let threads = plan.memory.threads;
    let pool = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("thalweg-{index}"))
        // The promise of a task that panicked is broken, which its waiter reports.
        .panic_handler(|_| {})
        .build()
        .map_err(|error| Error::new(Kind::Io, "cannot start threads", threads, error))?;
    let processor = Processor::new(options.kernels, pool);
    let (Some(driver), Some(staging)) = (&options.device, plan.memory.staging) else {
        return Ok(Arc::new(processor));
    };
    let lanes = Lanes::new(Arc::clone(driver), staging.lanes, staging.lane_bytes);
    // The work of earlier runs stays, and the next run may compute on another device.
    let lanes = lanes.map_err(Error::resumable)?;
    Ok(Arc::new(Device::new(lanes, processor)))
}

/// Returns the report's name of the device that [`run`] computes on.
fn device_name(plan: &Plan, options: &Options) -> String {
    match (&options.device, plan.memory.staging) {
        (Some(driver), Some(_)) => driver.name(),
        _ => Choice::Cpu.to_string(),
    }
}

/// Returns the builder of a thread of the pipeline, named for profilers and debuggers.
fn stage(name: &str) -> Builder {
    Builder::new().name(name.to_owned())
}

fn no_thread(error: std::io::Error) -> Error {
    Error::new(Kind::Io, "cannot start threads", "pipeline", error)
}

fn interrupted(output: &Output) -> Error {
    Error::new(
        Kind::Interrupted,
        "stopped on request",
        output.dir().display(),
        "the merge is not finished",
    )
    .with_hint("run the same command again to go on from here")
    .resumable()
}

/// The rule of a merge over the whole model, when an earlier run has journalled it.
fn known_rule(plan: &Plan, output: &Output) -> Result<Option<Rule>> {
    let note = output.run_note().filter(|_| plan.is_over_model());
    note.map(Rule::restore).transpose().map_err(|error| {
        Error::new(
            Kind::Resume,
            "journal is odd",
            output.dir().display(),
            error,
        )
    })
}

/// Counts the bytes that the schedule will read and write.
fn expected(plan: &Plan, durable: &[u64], solved: bool) -> Moved {
    let mut moved = Moved::default();
    for Block {
        tensor,
        start,
        len,
        role,
    } in plan.schedule(durable, solved)
    {
        if matches!(role, Role::Measure { sure: false, .. }) {
            continue;
        }
        let (done, tensor) = (durable[tensor], &plan.tensors[tensor]);
        moved.read += tensor.read_bytes(start, len);
        if !matches!(role, Role::Measure { keep: false, .. }) {
            let unit = tensor.output_unit();
            moved.written += ((start + len) * unit).saturating_sub(done.max(start * unit));
        }
    }
    moved
}

fn open_sources(plan: &Plan, scratch: Option<&Path>, io: Io) -> Result<Sources> {
    let options = SourceOptions {
        io,
        scratch: scratch.map(Path::to_owned),
    };
    let mut sources = Sources::new();
    let recycler = Arc::default();
    let stacks = plan
        .tensors
        .iter()
        .flat_map(|tensor| &tensor.sources)
        .map(|source| &source.stack);
    for place in stacks.flat_map(Stack::places) {
        let Place::File { input, file, .. } = place else {
            continue;
        };
        if let std::collections::hash_map::Entry::Vacant(vacant) = sources.entry((input, file)) {
            vacant.insert(plan.inputs[input].open_file_with(file, &options, &recycler)?);
        }
    }
    Ok(sources)
}
