//! `thalweg plan`.

mod shown;

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::device::{Choice, Opened};
use crate::engine::{Preflight, preflight};
use crate::error::{Error, Kind, Result};
use crate::output::{DiskStorage, Target};
use crate::plan::Plan;
use crate::plan::schedule::Role;
use crate::plan::tensor::Action;
use crate::recipe::Recipe;

use super::args::PlanArgs;
use super::device::OpenedDevice;
use super::stages::{self, Stage};
use super::{align_inputs, job, merge, print};
use shown::{as_json, summary, tensors};

/// Prints the plan of a merge.
///
/// # Errors
///
/// Whatever would keep the merge from beginning, in the merge's own words; the part that can be
/// planned was printed by then.
pub fn run(args: &PlanArgs) -> Result<()> {
    planned(args).map_err(Error::refused)
}

fn planned(args: &PlanArgs) -> Result<()> {
    merge::kernels(args.run.simd)?;
    let recipe = job::recipe(&args.job)?;
    let stages = stages::stages(&recipe, &args.job.out)?;
    let (mut plans, mut refusal) = (Vec::new(), None);
    for stage in &stages {
        // A later stage can be planned once the stages that it builds on exist: it needs their
        // headers.
        if let Some(waits_for) = stages::unfinished(&stages, stage) {
            plans.push(json!({ "out": stage.out, "waits_for": waits_for }));
            let text = format!(
                "{}: can be planned when {} is merged",
                stage.out.display(),
                waits_for.display()
            );
            show(args, &text)?;
            continue;
        }
        let shown = one(args, &recipe, &stages, stage)?;
        show(args, &shown.text)?;
        plans.push(shown.json);
        refusal = refusal.or(shown.refusal);
    }
    if args.run.json {
        let value = if plans.len() == 1 {
            plans.remove(0)
        } else {
            Value::from(plans)
        };
        print(&format!("{value:#}"))?;
    }
    refusal.map_or(Ok(()), Err)
}

/// Prints text for people, unless JSON or silence was asked for.
fn show(args: &PlanArgs, text: &str) -> Result<()> {
    if args.run.json || args.run.quiet {
        Ok(())
    } else {
        print(text)
    }
}

/// A stage as text and JSON, and the error with which the merge would refuse it.
struct Shown {
    text: String,
    json: Value,
    refusal: Option<Error>,
}

fn one(args: &PlanArgs, recipe: &Recipe, stages: &[Stage<'_>], stage: &Stage<'_>) -> Result<Shown> {
    let folder = |name: &str| stages::folder_named(stages, name);
    let mut job = job::job(recipe, stage.document, &args.job, &folder)?;
    let target = Target {
        dir: stage.out.clone(),
        overwrite: args.run.overwrite,
        restart: args.run.restart,
    };
    target.check_place()?;
    let search = align_inputs::look_for_inputs(&mut job, &target)?;
    let wish = job::wish(Some(stage.document), &args.job.memory, &args.job.block)?;
    let (mut plan, opened) = OpenedDevice::of(stage.document, &args.job)?.planned(&job, &wish)?;
    plan.warnings.extend(search.warnings);
    let traffic = Traffic::of(&plan);
    let outlook = Outlook::of(&plan, &target, opened)?;
    let mut text = summary(&plan, &stage.out, &traffic, &outlook, &search.missing);
    if args.tensors && !args.run.json {
        text.push('\n');
        text.push_str(&tensors(&plan));
    }
    let json = if args.run.json {
        as_json(&plan, &stage.out, &traffic, &outlook, &search.missing)
    } else {
        Value::Null
    };
    Ok(Shown {
        text,
        json,
        refusal: outlook.preflight.err(),
    })
}

/// The outlook of the merge: its preflight, its device and warnings.
struct Outlook {
    preflight: Result<Preflight>,
    device: String,
    warnings: Vec<String>,
}

impl Outlook {
    fn of(plan: &Plan, target: &Target, opened: Opened) -> Result<Self> {
        let preflight = match preflight(plan, Arc::new(DiskStorage), target) {
            // A command line that cannot work gets an error instead of a table.
            Err(error) if error.kind() == Kind::Usage => return Err(error),
            preflight => preflight,
        };
        let mut warnings = plan.warnings.clone();
        warnings.extend(opened.instead_notice());
        let device = opened
            .driver
            .map_or_else(|| Choice::Cpu.to_string(), |driver| driver.name());
        let carried = plan
            .tensors
            .iter()
            .filter(|tensor| matches!(tensor.action, Action::Carry(_)));
        match carried.filter(|tensor| tensor.sources.len() > 1).count() {
            0 => {}
            1 => warnings.push(
                "1 tensor is carried, not merged: its elements cannot be averaged".to_owned(),
            ),
            count => warnings.push(format!(
                "{count} tensors are carried, not merged: their elements cannot be averaged"
            )),
        }
        Ok(Self {
            preflight,
            device,
            warnings,
        })
    }

    /// Describes the first step of the merge.
    fn outlook(&self) -> String {
        match &self.preflight {
            Ok(preflight) => preflight.outlook.to_string(),
            Err(error) => format!("refused: {error}"),
        }
    }

    /// Names of the base's files that are not copied.
    fn left(&self) -> &[String] {
        self.preflight
            .as_ref()
            .map_or(&[], |preflight| &preflight.left)
    }

    /// The names of the files that go beside the weights.
    fn sides(&self) -> Vec<String> {
        let sides = self.preflight.iter().flat_map(|preflight| &preflight.sides);
        sides
            .map(|side| side.name().display().to_string())
            .collect()
    }
}

/// Blocks, and bytes read and written, when the plan is carried out from the start.
#[derive(Default)]
struct Traffic {
    blocks: u64,
    read: u64,
    /// Of them: bytes that are read again.
    read_twice: u64,
    /// Besides them: bytes that are read once more where a threshold is not found at once.
    read_if_needed: u64,
    /// True if some bytes are read more than twice.
    read_often: bool,
    written: u64,
}

impl Traffic {
    fn of(plan: &Plan) -> Self {
        let durable = vec![0; plan.tensors.len()];
        let mut traffic = Self {
            written: plan.output_bytes(),
            ..Self::default()
        };
        for block in plan.schedule(&durable, false) {
            let bytes = plan.tensors[block.tensor].read_bytes(block.start, block.len);
            if matches!(block.role, Role::Measure { sure: false, .. }) {
                traffic.read_if_needed += bytes;
                continue;
            }
            traffic.blocks += 1;
            traffic.read += bytes;
            let is_further = matches!(block.role, Role::Measure { sweep: 1.., .. });
            traffic.read_often |= is_further;
            if is_further || block.role == Role::Apply {
                traffic.read_twice += bytes;
            }
        }
        traffic
    }
}

/// Returns the peak bytes of the output on disk: while a shard is compressed, it exists twice.
fn disk_bytes(plan: &Plan) -> u64 {
    let shards = || plan.layout.shards().iter().map(|shard| shard.len);
    let twice = if plan.job.zstd.is_some() {
        shards().max().unwrap_or(0)
    } else {
        0
    };
    shards().sum::<u64>() + twice
}

/// Returns the free bytes on the file system of the output.
fn free_bytes(out: &Path) -> Option<u64> {
    let absolute = std::path::absolute(out).ok()?;
    let there = absolute.ancestors().find(|folder| folder.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}
