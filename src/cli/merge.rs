//! `thalweg merge`.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::checkpoint::Io;
use crate::engine::{self, COMMIT_BYTES, Merge, Options, Stop};
use crate::error::{Error, Kind, Result};
use crate::kernel::{Kernels, Level};
use crate::monitor::Monitor;
use crate::output::{DiskStorage, Target};
use crate::plan::Job;
use crate::plan::memory::Wish;
use crate::recipe::Recipe;
use crate::report::Report;

use super::args::{IoArg, MergeArgs, RunArgs, SimdArg};
use super::device::OpenedDevice;
use super::progress::Progress;
use super::stages::{Stage, folder_named, stages};
use super::{align, align_inputs, job, print};

/// Runs a merge, stage by stage, to its end and prints its summary.
///
/// # Errors
///
/// Whatever keeps the merge from being finished.
pub fn run(args: &MergeArgs) -> Result<()> {
    let recipe = job::recipe(&args.job).map_err(Error::refused)?;
    let stages = stages(&recipe, &args.job.out)?;
    let stop = Stop::default();
    watch_signals(&stop)?;
    let run = MergeRun {
        args,
        recipe: &recipe,
        stages: &stages,
        stop: &stop,
        kernels: kernels(args.run.simd)?,
    };
    let mut reports = Vec::new();
    for stage in &stages {
        let report = run.stage(stage, reports.is_empty())?;
        if !args.run.json && !args.run.quiet {
            print(&report.to_string())?;
        }
        reports.push(report);
    }
    if !args.run.json {
        return Ok(());
    }
    let json = if reports.len() == 1 {
        json!(reports[0])
    } else {
        json!(reports)
    };
    print(&format!("{json:#}"))
}

/// The parts that the stages of one run share.
struct MergeRun<'a> {
    args: &'a MergeArgs,
    recipe: &'a Recipe,
    stages: &'a [Stage<'a>],
    stop: &'a Stop,
    kernels: Kernels,
}

impl MergeRun<'_> {
    /// Plans and merges one stage. If the `first` stage is refused before it begins, the error says
    /// that nothing was started.
    fn stage(&self, stage: &Stage<'_>, first: bool) -> Result<Report> {
        let run = &self.args.run;
        let target = Target {
            dir: stage.out.clone(),
            overwrite: run.overwrite,
            restart: run.restart,
        };
        target.check_place()?;
        let (mut job, wish, mut opened_device) = self
            .asked(stage)
            .map_err(|error| refused_if(first, error))?;
        let warnings = align_inputs::align_inputs(
            &mut job,
            &wish,
            &target,
            run,
            self.stop,
            &mut opened_device,
        )?;
        let (mut plan, opened) = opened_device
            .planned(&job, &wish)
            .map_err(|error| refused_if(first, error))?;
        plan.warnings.extend(warnings);
        let (progress, monitor) = watched(run, plan.memory.limit);
        let instead = opened.instead_notice();
        if let Some(warning) = &instead {
            monitor.warn(warning);
        }
        let outcome = engine::merge(Merge {
            plan: Arc::new(plan),
            storage: Arc::new(DiskStorage),
            target,
            options: Options {
                kernels: self.kernels,
                device: opened.driver,
                io: io(run.io),
                stop: self.stop.clone(),
                monitor,
                commit_bytes: COMMIT_BYTES,
            },
            verify: self.args.verify,
        });
        if let Some(progress) = progress {
            progress.clear();
        }
        let mut report = outcome?;
        report.warnings.extend(instead);
        Ok(report)
    }

    /// Returns the job of a stage, the settings of its run, and the device that was asked for.
    fn asked(&self, stage: &Stage<'_>) -> Result<(Job, Wish, OpenedDevice)> {
        let args = &self.args.job;
        let wish = job::wish(Some(stage.document), &args.memory, &args.block)?;
        let folder = |name: &str| folder_named(self.stages, name);
        let job = job::job(self.recipe, stage.document, args, &folder)?;
        Ok((job, wish, OpenedDevice::of(stage.document, args)?))
    }
}

/// Marks the error of the `first` stage as one before which nothing was started.
pub(super) fn refused_if(first: bool, error: Error) -> Error {
    if first { error.refused() } else { error }
}

/// Returns a display of a run's progress and the monitor that feeds it; with `--quiet` no display
/// and a silent monitor.
pub(super) fn watched(run: &RunArgs, memory: u64) -> (Option<Arc<Progress>>, Arc<dyn Monitor>) {
    let progress = (!run.quiet).then(|| Arc::new(Progress::new(memory)));
    let monitor = align::monitor(&progress);
    (progress, monitor)
}

/// Handles signals: the first asks the run to stop, the second ends the process at once.
pub(super) fn watch_signals(stop: &Stop) -> Result<()> {
    let asked: Arc<AtomicBool> = stop.flag();
    for signal in [SIGINT, SIGTERM] {
        // The order matters: at the first signal the shutdown must still see the flag unset.
        flag::register_conditional_shutdown(signal, 3, Arc::clone(&asked))
            .and_then(|_| flag::register(signal, Arc::clone(&asked)))
            .map_err(|error| Error::new(Kind::Io, "cannot watch signals", signal, error))?;
    }
    Ok(())
}

pub(super) fn io(arg: IoArg) -> Io {
    match arg {
        IoArg::Map => Io::Map,
        IoArg::Pread => Io::Positioned,
    }
}

pub(super) fn kernels(arg: SimdArg) -> Result<Kernels> {
    let level = match arg {
        SimdArg::Auto => return Ok(Kernels::detect()),
        SimdArg::Portable => Level::Portable,
        SimdArg::Avx2 => Level::Avx2,
        SimdArg::Avx512 => Level::Avx512,
    };
    Kernels::at(level).ok_or_else(|| {
        Error::new(
            Kind::Usage,
            "cannot use these instructions",
            format!("{level:?}"),
            "this machine lacks them",
        )
        .with_hint("leave out --simd: the output is the same with every instruction set")
    })
}
