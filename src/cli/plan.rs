//! `thalweg plan`.

use std::path::Path;
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::budget::format_bytes;
use crate::device::{Choice, Opened};
use crate::engine::{Preflight, preflight};
use crate::error::{Error, Kind, Result, shown_name};
use crate::output::{DiskStorage, Target};
use crate::plan::Plan;
use crate::plan::memory::Staging;
use crate::plan::schedule::Role;
use crate::plan::tensor::{Action, TensorPlan};
use crate::recipe::Recipe;
use crate::report::words::{counted, grouped};
use crate::report::{Combined, listed_files};

use super::args::PlanArgs;
use super::device::Ready;
use super::stages::{self, Stage};
use super::{align, job, merge, print, trimmed};

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
    let looked = align::look_for_inputs(&mut job, &target)?;
    let wish = job::wish(Some(stage.document), &args.job.memory, &args.job.block)?;
    let (mut plan, opened) = Ready::of(stage.document, &args.job)?.planned(&job, &wish)?;
    plan.warnings.extend(looked.warnings);
    let traffic = Traffic::of(&plan);
    let ahead = Ahead::of(&plan, &target, opened)?;
    let mut text = summary(&plan, &stage.out, &traffic, &ahead, &looked.missing);
    if args.tensors && !args.run.json {
        text.push('\n');
        text.push_str(&tensors(&plan));
    }
    let json = if args.run.json {
        as_json(&plan, &stage.out, &traffic, &ahead, &looked.missing)
    } else {
        Value::Null
    };
    Ok(Shown {
        text,
        json,
        refusal: ahead.preflight.err(),
    })
}

/// The outlook of the merge: its preflight, its device and warnings.
struct Ahead {
    preflight: Result<Preflight>,
    device: String,
    warnings: Vec<String>,
}

impl Ahead {
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
    read_twice: u64,
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
            traffic.blocks += 1;
            traffic.read += bytes;
            if block.role == Role::Apply {
                traffic.read_twice += bytes;
            }
        }
        traffic
    }
}

fn summary(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    ahead: &Ahead,
    unaligned: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (index, input) in plan.inputs.iter().enumerate() {
        let bytes = input.files().iter().map(|file| file.len).sum();
        let role = if index == plan.job.donor {
            ", lends config and tokenizer"
        } else {
            ""
        };
        table.add_row([
            format!("model {}", index + 1),
            format!(
                "{} ({} in {}, {}{role})",
                input.root().display(),
                counted(input.tensors().len() as u64, "tensor"),
                counted(input.files().len() as u64, "file"),
                format_bytes(bytes)
            ),
        ]);
    }
    let memory = &plan.memory;
    let combined = Combined::of(plan);
    let enough = free_bytes(out).map_or(String::new(), |free| {
        format!(", {} free", format_bytes(free))
    });
    let sides = ahead.sides();
    let twice = match traffic.read_twice {
        0 => String::new(),
        bytes => format!(", of them {} a second time", format_bytes(bytes)),
    };
    let rows = [
        (
            "merge",
            format!("{}, into {}", combined.headline(), combined.dtypes()),
        ),
        ("weights", combined.weights().unwrap_or_default()),
        (
            "output",
            format!(
                "{} ({} in {}, {})",
                out.display(),
                counted(plan.tensors.len() as u64, "tensor"),
                counted(plan.layout.shards().len() as u64, "shard"),
                format_bytes(traffic.written)
            ),
        ),
        ("there", ahead.outlook()),
        ("read", format!("{}{twice}", format_bytes(traffic.read))),
        (
            "blocks",
            format!(
                "{}, each of {} at most",
                grouped(traffic.blocks),
                counted(memory.block, "element")
            ),
        ),
        (
            "memory",
            format!(
                "at most {}: {} fixed, {} for inputs, {} for outputs; {}",
                format_bytes(memory.limit),
                format_bytes(memory.fixed),
                format_bytes(memory.input),
                format_bytes(memory.output),
                counted(memory.threads as u64, "thread")
            ),
        ),
        ("device", device_of(plan, ahead)),
        (
            "disk",
            format!("{} needed{enough}", format_bytes(disk_bytes(plan))),
        ),
        (
            "files",
            if sides.is_empty() {
                "the weights alone".to_owned()
            } else {
                sides.join(", ")
            },
        ),
    ];
    let rows = rows.into_iter().filter(|(_, text)| !text.is_empty());
    let notes = plan.notes().into_iter().map(|note| ("note", note));
    let alignments = alignments(plan, unaligned);
    let left = ahead.left();
    let left =
        (!left.is_empty()).then(|| ("left", format!("not taken along: {}", listed_files(left))));
    let rows = rows
        .chain(left)
        .chain(notes)
        .chain(alignments.into_iter().map(|line| ("align", line)));
    let warnings = ahead
        .warnings
        .iter()
        .map(|warning| ("warning", warning.clone()));
    for (name, text) in rows.chain(warnings) {
        table.add_row([name.to_owned(), text]);
    }
    trimmed(&table)
}

/// Returns a line for each input that is aligned or will be.
fn alignments(plan: &Plan, unaligned: &[usize]) -> Vec<String> {
    let known = plan.job.alignment_files.iter().map(|file| {
        let moves = if file.moves {
            ""
        } else {
            ", by which nothing moves"
        };
        format!("model {} by {}{moves}", file.input + 1, file.file)
    });
    let together = plan
        .job
        .document
        .own
        .align
        .as_ref()
        .is_some_and(|align| align.together);
    let to = if together {
        "the mean of all".to_owned()
    } else {
        format!("model {}", plan.job.donor + 1)
    };
    let found = unaligned
        .iter()
        .map(|input| format!("model {} to {to} by weights, not done yet", input + 1));
    known.chain(found).collect()
}

fn device_of(plan: &Plan, ahead: &Ahead) -> String {
    match plan.memory.staging {
        Some(Staging { lanes, lane_bytes }) => {
            format!(
                "{}, {lanes} lanes of {} on each side",
                ahead.device,
                format_bytes(lane_bytes as u64)
            )
        }
        None => ahead.device.clone(),
    }
}

fn tensors(plan: &Plan) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["tensor", "shape", "from", "to", "bytes", "shard", "action"]);
    if let Some(column) = table.column_mut(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for (index, tensor) in plan.tensors.iter().enumerate() {
        let place = &plan.layout.tensors()[index];
        table.add_row([
            shown_name(&tensor.name),
            format!("{:?}", tensor.shape),
            tensor.sources[0].held.to_string(),
            tensor.dtype.to_string(),
            tensor.output_bytes().to_string(),
            plan.layout.shards()[place.shard].name.clone(),
            action(tensor),
        ]);
    }
    trimmed(&table)
}

fn action(tensor: &TensorPlan) -> String {
    match &tensor.action {
        Action::Merge(method) => method.name().to_owned(),
        Action::Carry(_) => "carried".to_owned(),
    }
}

fn as_json(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    ahead: &Ahead,
    unaligned: &[usize],
) -> Value {
    let tensors = plan.tensors.iter().enumerate().map(|(index, tensor)| {
        let place = &plan.layout.tensors()[index];
        json!({
            "name": tensor.name,
            "shape": tensor.shape,
            "dtype": tensor.dtype.name(),
            "bytes": tensor.output_bytes(),
            "shard": plan.layout.shards()[place.shard].name,
            "offset": place.offset,
            "action": action(tensor),
            "sources": tensor.sources.iter().map(|source| json!({
                "model": source.input, "name": source.name, "dtype": source.held.name(),
            })).collect::<Vec<_>>(),
        })
    });
    let mut value = json!({
        "out": out,
        "identity": plan.identity,
        "memory": {
            "limit": plan.memory.limit, "fixed": plan.memory.fixed, "input": plan.memory.input,
            "output": plan.memory.output, "threads": plan.memory.threads,
        },
        "device": ahead.device,
        "blocks": traffic.blocks,
        "block_elements": plan.memory.block,
        "read_bytes": traffic.read,
        "read_twice_bytes": traffic.read_twice,
        "written_bytes": traffic.written,
        "disk_needed_bytes": disk_bytes(plan),
        "disk_free_bytes": free_bytes(out),
        "side_files": ahead.sides(),
        "left_beside": ahead.left(),
        "outlook": ahead.outlook(),
        "combined": Combined::of(plan),
        "notes": plan.notes(),
        "tensors": tensors.collect::<Vec<_>>(),
        "dropped": plan.dropped,
        "partial": plan.partial,
        "warnings": ahead.warnings,
    });
    if plan.job.document.own.align.is_some() {
        value["alignment"] = json!({ "files": plan.job.alignment_files, "unaligned": unaligned });
    }
    value
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
