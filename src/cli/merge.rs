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
use crate::monitor::{Monitor, Silent};
use crate::output::{DiskStorage, Target};

use super::args::{IoArg, MergeArgs, SimdArg};
use super::device::{self, Ready};
use super::progress::Progress;
use super::stages::{folder_named, stages};
use super::{align, job, print};

/// Runs a merge, stage by stage, to its end and prints its summary.
///
/// # Errors
///
/// Whatever keeps the merge from being finished.
pub fn run(args: &MergeArgs) -> Result<()> {
    let kernels = kernels(args.run.simd)?;
    let recipe = job::recipe(&args.job)?;
    let stages = stages(&recipe, &args.job.out)?;
    let stop = Stop::default();
    watch_signals(&stop)?;
    let mut reports = Vec::new();
    for stage in &stages {
        let folder = |name: &str| folder_named(&stages, name);
        let wish = job::wish(Some(stage.document), &args.job.memory, &args.job.block)?;
        let mut job = job::job(&recipe, stage.document, &args.job, &folder)?;
        let target = Target { dir: stage.out.clone(), overwrite: args.run.overwrite, restart: args.run.restart };
        target.check_place()?;
        let mut ready = Ready::of(stage.document, &args.job)?;
        let warnings = align::align_inputs(&mut job, &wish, &target, &args.run, (&stop, &mut ready))?;
        let (mut plan, opened) = ready.planned(&job, &wish)?;
        plan.warnings.extend(warnings);
        let progress = (!args.run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
        let monitor: Arc<dyn Monitor> = match &progress {
            Some(progress) => Arc::clone(progress) as Arc<dyn Monitor>,
            None => Arc::new(Silent),
        };
        let instead = device::instead(&opened);
        if let Some(warning) = &instead {
            monitor.warn(warning);
        }
        let outcome = engine::merge(Merge {
            plan: Arc::new(plan),
            storage: Arc::new(DiskStorage),
            target,
            options: Options {
                kernels,
                device: opened.driver,
                io: io(args.run.io),
                stop: stop.clone(),
                monitor,
                commit_bytes: COMMIT_BYTES,
            },
            verify: args.verify,
        });
        if let Some(progress) = progress {
            progress.clear();
        }
        let mut report = outcome?;
        report.warnings.extend(instead);
        if !args.run.json && !args.run.quiet {
            print(&report.to_string())?;
        }
        reports.push(report);
    }
    if !args.run.json {
        return Ok(());
    }
    let json = if reports.len() == 1 { json!(reports[0]) } else { json!(reports) };
    print(&format!("{json:#}"))
}

/// The first signal asks the run to end in good order; the second ends the process at once.
pub(super) fn watch_signals(stop: &Stop) -> Result<()> {
    let asked: Arc<AtomicBool> = stop.flag();
    for signal in [SIGINT, SIGTERM] {
        // The order matters: at the first signal the shutdown sees the flag as it was before.
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
        Error::new(Kind::Usage, "cannot use these instructions", format!("{level:?}"), "this machine lacks them")
            .with_hint("leave out --simd: the output is the same with every instruction set")
    })
}
