//! A whole merge: begin or go on, run the pipeline, seal, report.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use crate::budget::check_limits;
use crate::error::{Error, Kind, Result};
use crate::method::Solution;
use crate::monitor::Phase;
use crate::output::{Begun, Manifest, Output, SideFile, Storage, Target, check_sides, verify};
use crate::plan::Plan;
use crate::report::{Found, Moved, Noted, Report};

use super::Options;
use super::pack::pack_in_parallel;
use super::separate::refuse_inputs_folder;
use super::side::{left_beside, side_files};

/// Where the manifest keeps the coefficients of a merge over the whole model, and what was found about them.
const SOLUTION: &str = "solution";

/// Where the manifest lists the transform files of aligned inputs.
const ALIGNMENT: &str = "alignment";

/// What a merge is called whose output was there already.
const COMPLETE: &str = "complete already";

/// What a warning calls all tensors together.
const WHOLE_MODEL: &str = "the whole model";

/// Everything that a merge needs.
pub struct Merge {
    /// What is to be done.
    pub plan: Arc<Plan>,
    /// The file operations under the output.
    pub storage: Arc<dyn Storage>,
    /// Where the output goes.
    pub target: Target,
    /// How it is carried out.
    pub options: Options,
    /// Whether everything that was written is read back at the end.
    pub verify: bool,
}

/// Merges, or goes on with what an earlier run of the same plan has left, to a sealed checkpoint.
///
/// # Errors
///
/// Whatever keeps the checkpoint from being sealed. What was done by then stays for the next run.
pub fn merge(merge: Merge) -> Result<Report> {
    let Merge { plan, storage, target, options, verify: again } = merge;
    refuse_several_shards(&plan, &target)?;
    target.check_place()?;
    refuse_inputs_folder(&plan.inputs, &target.dir)?;
    check_sides(&target.dir, &wanted_sides(&plan, &target)?)?;
    check_limits(plan.memory.limit, plan.memory.threads)?;
    let mut check = checking(&options);
    let begun = Output::begin(storage, &target, plan.layout.clone(), &plan.identity, &mut check)?;
    let (manifest, moved, status) = match begun {
        Begun::Complete(manifest) => (manifest, Moved::default(), COMPLETE),
        Begun::Fresh(output) => carry_out(&plan, output, &target, &options).map(|(m, moved)| (m, moved, "merged"))?,
        Begun::Resumed(output) => {
            carry_out(&plan, output, &target, &options).map(|(m, moved)| (m, moved, "resumed"))?
        }
    };
    let verified = again.then(|| verify(&target.dir, &mut checking(&options))).transpose()?;
    let noted = noted(&manifest, &plan)?;
    let device = (status != COMPLETE).then(|| super::device_name(&plan, &options));
    let report = Report::new(&plan, target.dir.display().to_string(), status, moved, &noted);
    let left = if target.is_file() && !plan.job.beside_a_file { Vec::new() } else { left_beside(&plan)? };
    let report = report.with_left_beside(left);
    Ok(report.with_device(device).with_stored(&manifest).with_verified(verified.map(|verified| verified.data_bytes)))
}

fn carry_out(plan: &Arc<Plan>, mut output: Output, target: &Target, options: &Options) -> Result<(Manifest, Moved)> {
    pack_in_parallel(plan, &mut output, options)?;
    let moved = super::run(plan, &mut output, options)?;
    options.monitor.phase(Phase::Sealing, output.bytes_to_pack());
    let sides = wanted_sides(plan, target)?;
    let mut run = json!({ "program": concat!("thalweg ", env!("CARGO_PKG_VERSION")) });
    if let Some(solution) = output.run_note() {
        run[SOLUTION] = solution.clone();
    }
    if !plan.job.alignment_files.is_empty() {
        run[ALIGNMENT] = json!(plan.job.alignment_files);
    }
    let manifest = output.finish(&sides, &run)?;
    Ok((manifest, moved))
}

/// The side files that a merge of `plan` to `target` writes. A single file gets some only when that was asked for; it
/// lies among others, which stand back only where the target may be overwritten.
///
/// # Errors
///
/// When the files of a lender cannot be listed or read.
pub fn wanted_sides(plan: &Plan, target: &Target) -> Result<Vec<SideFile>> {
    if !target.is_file() {
        return side_files(plan);
    }
    if !plan.job.beside_a_file {
        return Ok(vec![]);
    }
    let mut sides = side_files(plan)?;
    let folder = target.dir.parent().unwrap_or(Path::new(""));
    sides.retain(|side| target.overwrite || !folder.join(side.name()).exists());
    Ok(sides)
}

/// A single file has a single header.
fn refuse_several_shards(plan: &Plan, target: &Target) -> Result<()> {
    let shards = plan.layout.shards().len();
    if !target.is_file() || shards == 1 {
        return Ok(());
    }
    let cause = format!("the output has {shards} shards, a single file holds one");
    Err(Error::new(Kind::Usage, "cannot write to file", target.dir.display(), cause).with_hint("name a folder"))
}

/// Tells the monitor how far a check is, and ends it when somebody asks to stop.
fn checking(options: &Options) -> impl FnMut(u64, u64) -> Result<()> {
    let mut before = None;
    move |done, total| {
        if before.is_none() {
            options.monitor.phase(Phase::Checking, total);
        }
        options.monitor.advance(done - before.unwrap_or(0));
        before = Some(done);
        if options.stop.asked() {
            return Err(Error::new(Kind::Interrupted, "stopped on request", "check", "not everything was checked")
                .with_hint("run the same command again")
                .resumable());
        }
        Ok(())
    }
}

fn noted<'a>(manifest: &'a Manifest, plan: &Plan) -> Result<Vec<Noted<'a>>> {
    let odd = |error| Error::new(Kind::Damaged, "cannot read manifest", plan.layout.index_name(), error);
    let read = |note: &Option<serde_json::Value>| match note {
        None => Ok(Found::default()),
        Some(note) => serde_json::from_value(note.clone()).map_err(odd),
    };
    let tensors = manifest.tensors.iter().map(|tensor| Ok((tensor.name.as_str(), read(&tensor.note)?)));
    let mut noted = tensors.collect::<Result<Vec<_>>>()?;
    if let Some(solution) = manifest.run.get(SOLUTION) {
        let solution: Solution = serde_json::from_value(solution.clone()).map_err(odd)?;
        noted.push((WHOLE_MODEL, Found::of(&solution.facts)));
    }
    Ok(noted)
}
