//! Alignment of a merge's inputs, as its recipe asks.

use std::sync::Arc;

use crate::align::run::AlignmentReport;
use crate::align::run::inputs::{AlignInputs, Finder, TransformSearch};
use crate::engine::{Options, Stop};
use crate::error::Result;
use crate::output::{DiskStorage, Target};
use crate::plan::Job;
use crate::plan::memory::Wish;
use crate::recipe::AlignFrom;

use super::align::monitor;
use super::args::RunArgs;
use super::device::OpenedDevice;
use super::progress::Progress;
use super::{merge, print, symmetries};

/// Aligns the inputs of `job` as its recipe asks, except those that are aligned already; prints a
/// line for each. Returns warnings for the user.
///
/// # Errors
///
/// Whatever keeps them from being aligned.
pub fn align_inputs(
    job: &mut Job,
    wish: &Wish,
    target: &Target,
    run: &RunArgs,
    stop: &Stop,
    opened_device: &mut OpenedDevice,
) -> Result<Vec<String>> {
    let Some(asked) = &job.document.own.align else {
        return Ok(Vec::new());
    };
    let device = if matches!(asked.from, AlignFrom::Weights(_)) {
        opened_device.for_products(wish)?
    } else {
        None
    };
    let progress = (!run.quiet).then(|| Arc::new(Progress::new(wish.memory)));
    let options = Options {
        kernels: merge::kernels(run.simd)?,
        device: opened_device.opened().driver.clone(),
        io: merge::io(run.io),
        stop: stop.clone(),
        monitor: monitor(&progress),
        ..Options::default()
    };
    let search = with_inputs(job, target, |inputs, job| {
        let storage = Arc::new(DiskStorage);
        inputs.find(
            job,
            &Finder {
                wish,
                device,
                storage,
                options: &options,
                told: &|report| tell_found(run, progress.as_deref(), report),
            },
        )
    });
    if let Some(progress) = &progress {
        progress.clear();
    }
    Ok(search?.warnings)
}

/// Prints one line about an alignment that was found.
fn tell_found(run: &RunArgs, progress: Option<&Progress>, report: &AlignmentReport) -> Result<()> {
    if let Some(progress) = progress {
        progress.clear();
    }
    if run.quiet || run.json {
        return Ok(());
    }
    print(&report.headline())
}

/// Fills in the alignments of `job` that exist already, for a plan.
///
/// # Errors
///
/// Fails if a file cannot be used.
pub fn look_for_inputs(job: &mut Job, target: &Target) -> Result<TransformSearch> {
    with_inputs(job, target, |inputs, job| inputs.look(job))
}

fn with_inputs(
    job: &mut Job,
    target: &Target,
    act: impl FnOnce(&AlignInputs<'_>, &mut Job) -> Result<TransformSearch>,
) -> Result<TransformSearch> {
    let Some(asked) = job.document.own.align.clone() else {
        return Ok(TransformSearch::default());
    };
    let spec = asked.spec.as_deref().map(symmetries::spec).transpose()?;
    let allowed = job.allowed();
    act(
        &AlignInputs {
            asked: &asked,
            allowed,
            spec: spec.as_ref(),
            target,
        },
        job,
    )
}
