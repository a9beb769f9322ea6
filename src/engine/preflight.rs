//! Decides, before a byte of data is read or written, if a merge can be carried out; `plan` and
//! `merge` share this one judgement.

use std::path::Path;
use std::sync::Arc;

use crate::budget::check_limits;
use crate::error::{Error, Kind, Result};
use crate::output::{Outlook, SideFile, Storage, Target, check_sides, outlook};
use crate::plan::Plan;
use crate::sidecar::{left_beside, side_files};

use super::separate::refuse_inputs_folder;

/// The outlook of a merge at its target.
#[derive(Debug)]
pub struct Preflight {
    /// Begin, go on, or nothing to do.
    pub outlook: Outlook,
    /// The files that go beside the weights.
    pub sides: Vec<SideFile>,
    /// Names of the base's files that are not copied.
    pub left: Vec<String>,
}

/// Judges whether `plan` can be carried out at `target`; changes nothing.
///
/// # Errors
///
/// Whatever [`merge`](super::merge()) would refuse before it starts, marked as
/// [refused](Error::refused): an output in an input's folder or in a place that cannot be written
/// to, another checkpoint there, a limit below the budget, a disk that is too small, side files
/// that cannot be read.
pub fn preflight(plan: &Plan, storage: Arc<dyn Storage>, target: &Target) -> Result<Preflight> {
    judge(plan, storage, target).map_err(Error::refused)
}

fn judge(plan: &Plan, storage: Arc<dyn Storage>, target: &Target) -> Result<Preflight> {
    refuse_several_shards(plan, target)?;
    target.check_place()?;
    refuse_inputs_folder(&plan.inputs, &target.dir)?;
    check_limits(plan.memory.limit, plan.memory.threads)?;
    let sides = wanted_sides(plan, target)?;
    check_sides(&target.dir, &sides)?;
    let outlook = outlook(storage, target, &plan.layout, &plan.identity)?;
    let left = if sides.is_empty() {
        Vec::new()
    } else {
        left_beside(plan)?
    };
    Ok(Preflight {
        outlook,
        sides,
        left,
    })
}

/// Returns the side files that a merge of `plan` to `target` writes. A single file gets side files
/// only on request; other files in its folder are replaced only if the target may be overwritten.
///
/// # Errors
///
/// Fails if the files of a lender cannot be listed or read.
fn wanted_sides(plan: &Plan, target: &Target) -> Result<Vec<SideFile>> {
    if !target.is_file() {
        return side_files(plan);
    }
    if !plan.job.beside_a_file {
        return Ok(vec![]);
    }
    let sides = side_files(plan)?;
    let folder = target.dir.parent().unwrap_or(Path::new(""));
    let mut wanted = vec![];
    for side in sides {
        let path = folder.join(side.name());
        // Files that an earlier attempt of this run has written may be written again.
        if target.overwrite || !path.exists() || side.is_at(&path)? {
            wanted.push(side);
        }
    }
    Ok(wanted)
}

/// A single file has a single header.
fn refuse_several_shards(plan: &Plan, target: &Target) -> Result<()> {
    let shards = plan.layout.shards().len();
    if !target.is_file() || shards == 1 {
        return Ok(());
    }
    let cause = format!("the output has {shards} shards, a single file holds one");
    Err(Error::new(
        Kind::Usage,
        "cannot write to file",
        target.dir.display(),
        cause,
    )
    .with_hint("name a folder"))
}
