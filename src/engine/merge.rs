//! A whole merge: begin or go on, run the pipeline, seal, report.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::monitor::Phase;
use crate::output::{
    Begun, Manifest, Output, Restored, SideFile, Storage, Target, read_manifest, restore,
    tidy_transforms, verify_within,
};
use crate::pass::Rule;
use crate::plan::Plan;
use crate::report::{Moved, Noticed, Report};
use crate::sidecar::side_files;

use super::Options;
use super::pack::pack_in_parallel;
use super::preflight::{Preflight, preflight};

/// The manifest key for the coefficients of a merge over the whole model and the findings about
/// them.
const SOLUTION: &str = "solution";

/// The manifest key for the transform files of aligned inputs.
const ALIGNMENT: &str = "alignment";

/// The status of a merge whose output was there already.
const COMPLETE: &str = "complete already";

/// The name of all tensors together in a warning.
const WHOLE_MODEL: &str = "the whole model";

/// Everything that a merge needs.
pub struct Merge {
    /// The plan to carry out.
    pub plan: Arc<Plan>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// The place of the output.
    pub target: Target,
    /// The options of the run.
    pub options: Options,
    /// True if everything that was written is read back at the end.
    pub verify: bool,
}

/// Merges to a sealed checkpoint, or goes on where an earlier run of the same plan has stopped.
///
/// # Errors
///
/// Whatever keeps the checkpoint from being sealed. What was done by then stays for the next run.
pub fn merge(merge: Merge) -> Result<Report> {
    let Merge {
        plan,
        storage,
        target,
        options,
        verify: again,
    } = merge;
    let Preflight { sides, left, .. } = preflight(&plan, Arc::clone(&storage), &target)?;
    let mut check = checking(&options);
    let begun = Output::begin(
        Arc::clone(&storage),
        &target,
        Arc::clone(&plan.layout),
        &plan.identity,
        &mut check,
    )?;
    let (mut looked_at, mut said) = (None, vec![]);
    let (manifest, moved, status) = match begun {
        Begun::Complete(manifest) => {
            let restored = looked_after(&plan, storage.as_ref(), &target, &manifest)?;
            looked_at = Some(restored.looked_at);
            said = said_of(restored);
            (manifest, Moved::default(), COMPLETE)
        }
        Begun::Fresh(output) => carry_out(&plan, output, &sides, &options)
            .map(|(m, moved)| (m, moved, done_as(&plan)))?,
        Begun::Resumed(output) => {
            said = output.repairs().to_vec();
            carry_out(&plan, output, &sides, &options).map(|(m, moved)| (m, moved, "resumed"))?
        }
    };
    tidy_transforms(storage.as_ref(), &target.dir)?;
    let verified = again
        .then(|| verify_within(&target.dir, plan.memory.limit, &mut checking(&options)))
        .transpose()?;
    // The findings of an earlier run are not reported again.
    let noticed = match status {
        COMPLETE => Noticed::default(),
        _ => noticed(storage.as_ref(), &target.dir, &manifest)?,
    };
    let device = (status != COMPLETE).then(|| super::device_name(&plan, &options));
    let report = Report::new(
        &plan,
        target.dir.display().to_string(),
        status,
        moved,
        noticed,
    );
    let report = report
        .with_left_beside(left)
        .with_looked_at(looked_at, said);
    Ok(report
        .with_device(device)
        .with_stored(&manifest)
        .with_verified(verified.map(|verified| verified.data_bytes)))
}

/// Returns the status of a run from the start.
fn done_as(plan: &Plan) -> &'static str {
    if plan.job.rewritten {
        "written"
    } else {
        "merged"
    }
}

fn carry_out(
    plan: &Arc<Plan>,
    mut output: Output,
    sides: &[SideFile],
    options: &Options,
) -> Result<(Manifest, Moved)> {
    pack_in_parallel(plan, &mut output, options)?;
    let moved = super::run(plan, &mut output, options)?;
    options
        .monitor
        .phase(Phase::Sealing, output.bytes_to_pack());
    let mut run = json!({ "program": concat!("thalweg ", env!("CARGO_PKG_VERSION")) });
    if let Some(solution) = output.run_note() {
        run[SOLUTION] = solution.clone();
    }
    if !plan.job.alignment_files.is_empty() {
        run[ALIGNMENT] = json!(plan.job.alignment_files);
    }
    let manifest = output.finish(sides, &run)?;
    Ok((manifest, moved))
}

/// Restores the files beside finished weights: writes missing ones again, and changed ones if they
/// may be overwritten.
fn looked_after(
    plan: &Plan,
    storage: &dyn Storage,
    target: &Target,
    manifest: &Manifest,
) -> Result<Restored> {
    let sides = match (target.is_file(), plan.job.beside_a_file) {
        (true, false) => vec![],
        (true, true) => {
            let recorded = |side: &SideFile| {
                manifest
                    .side_files
                    .iter()
                    .any(|known| Path::new(&known.name) == side.name())
            };
            side_files(plan)?.into_iter().filter(recorded).collect()
        }
        (false, _) => side_files(plan)?,
    };
    restore(
        storage,
        &target.dir,
        &plan.layout,
        manifest,
        &sides,
        target.overwrite,
    )
}

/// Describes, for the user, the restored and the changed files beside finished weights.
fn said_of(restored: Restored) -> Vec<String> {
    let written = restored
        .written
        .into_iter()
        .map(|name| format!("{name} was not as it was written: written again"));
    let changed = restored.changed.into_iter().map(|name| {
        format!("{name} is not as it was written, and stays as it is; --overwrite writes it again")
    });
    let missing = restored.missing.into_iter().map(|name| {
        format!("{name} is missing, and the inputs have it no more; --restart --overwrite makes the output anew")
    });
    written.chain(changed).chain(missing).collect()
}

/// Returns a callback that reports the progress of a check and ends it on a request to stop.
fn checking(options: &Options) -> impl FnMut(u64, u64) -> Result<()> {
    let mut before = None;
    move |done, total| {
        if before.is_none() {
            options.monitor.phase(Phase::Checking, total);
        }
        options.monitor.advance(done - before.unwrap_or(0));
        before = Some(done);
        if options.stop.asked() {
            return Err(Error::new(
                Kind::Interrupted,
                "stopped on request",
                "check",
                "not everything was checked",
            )
            .with_hint("run the same command again")
            .resumable());
        }
        Ok(())
    }
}

/// Reads the findings noted in the manifest of the finished output.
fn noticed(storage: &dyn Storage, dir: &Path, manifest: &Manifest) -> Result<Noticed> {
    let odd = |error: &dyn std::fmt::Display| {
        Error::new(Kind::Damaged, "cannot read manifest", dir.display(), error)
    };
    let mut noticed: Noticed = read_manifest(storage, dir)?
        .ok_or_else(|| odd(&"it is gone"))?
        .tensors;
    if let Some(solution) = manifest.run.get(SOLUTION) {
        let rule = Rule::restore(solution).map_err(|error| odd(&error))?;
        noticed.add(WHOLE_MODEL, rule.found());
    }
    Ok(noticed)
}
