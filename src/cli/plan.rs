//! `thalweg plan`.

use std::path::Path;
use std::sync::Arc;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::budget::format_bytes;
use crate::device::{Choice, Opened};
use crate::engine::{left_beside, wanted_sides};
use crate::error::{Result, shown_name};
use crate::output::{DiskStorage, Outlook, Target, outlook};
use crate::plan::Plan;
use crate::plan::memory::Staging;
use crate::plan::schedule::Role;
use crate::plan::tensor::{Action, TensorPlan};
use crate::report::listed_files;

use super::args::PlanArgs;
use super::device::Ready;
use super::{align, job, print, stages, trimmed};

/// Prints what a merge would do.
///
/// # Errors
///
/// Whatever would keep the merge from beginning.
pub fn run(args: &PlanArgs) -> Result<()> {
    let recipe = job::recipe(&args.job)?;
    let stages = stages::stages(&recipe, &args.job.out)?;
    let mut plans = Vec::new();
    for stage in &stages {
        // A later stage can be planned once what it builds on is there: its headers are needed.
        let folder = |name: &str| stages::folder_named(&stages, name);
        if let Some(waits_for) = stages::unfinished(&stages, stage) {
            plans.push(json!({ "out": stage.out, "waits_for": waits_for }));
            if !args.json {
                print(&format!("{}: can be planned when {} is merged", stage.out.display(), waits_for.display()))?;
            }
            continue;
        }
        let mut job = job::job(&recipe, stage.document, &args.job, &folder)?;
        let target = Target { dir: stage.out.clone(), overwrite: false, restart: false };
        target.check_place()?;
        let looked = align::look_for_inputs(&mut job, &target)?;
        let wish = job::wish(Some(stage.document), &args.job.memory, &args.job.block)?;
        let (mut plan, opened) = Ready::of(stage.document, &args.job)?.planned(&job, &wish)?;
        plan.warnings.extend(looked.warnings);
        let traffic = Traffic::of(&plan);
        let ahead = Ahead::of(&plan, &stage.out, opened)?;
        if args.json {
            plans.push(as_json(&plan, &stage.out, &traffic, &ahead, &looked.missing));
            continue;
        }
        print(&summary(&plan, &stage.out, &traffic, &ahead, &looked.missing))?;
        if args.tensors {
            print(&tensors(&plan))?;
        }
    }
    if !args.json {
        return Ok(());
    }
    let value = if plans.len() == 1 { plans.remove(0) } else { Value::from(plans) };
    print(&format!("{value:#}"))
}

/// What the output's place and the files around the weights say.
struct Ahead {
    free: Option<u64>,
    outlook: Outlook,
    sides: Vec<String>,
    left: Vec<String>,
    device: String,
    warnings: Vec<String>,
}

impl Ahead {
    fn of(plan: &Plan, out: &Path, opened: Opened) -> Result<Self> {
        let target = Target { dir: out.to_owned(), overwrite: false, restart: false };
        let outlook = outlook(Arc::new(DiskStorage), &target, &plan.layout, &plan.identity)?;
        let sides = wanted_sides(plan, &target)?;
        let free = free_bytes(out);
        let mut warnings = plan.warnings.clone();
        warnings.extend(opened.instead.map(|reason| format!("computed on the cpu: {reason}")));
        let device = opened.driver.map_or_else(|| Choice::Cpu.to_string(), |driver| driver.name());
        let needed = disk_bytes(plan);
        if let Some(free) = free.filter(|free| *free < needed && outlook == Outlook::Begin) {
            warnings.push(format!("{} are free where {} are needed", format_bytes(free), format_bytes(needed)));
        }
        let unlike =
            plan.tensors.iter().filter(|tensor| matches!(tensor.action, Action::Carry(_)) && tensor.sources.len() > 1);
        match unlike.count() {
            0 => {}
            count => {
                warnings.push(format!("{count} tensors are carried, not merged: their elements cannot be averaged"))
            }
        }
        let names = sides.iter().map(|side| side.name().display().to_string());
        let left = if sides.is_empty() { Vec::new() } else { left_beside(plan)? };
        Ok(Self { free, outlook, sides: names.collect(), left, device, warnings })
    }
}

/// What moves when the plan is carried out from the start.
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
        let mut traffic = Self { written: plan.output_bytes(), ..Self::default() };
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

fn summary(plan: &Plan, out: &Path, traffic: &Traffic, ahead: &Ahead, unaligned: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (index, input) in plan.inputs.iter().enumerate() {
        let bytes = input.files().iter().map(|file| file.len).sum();
        let role = if index == plan.job.donor { ", lends config and tokenizer" } else { "" };
        table.add_row([
            format!("model {}", index + 1),
            format!(
                "{} ({} tensors in {} files, {}{role})",
                input.root().display(),
                input.tensors().len(),
                input.files().len(),
                format_bytes(bytes)
            ),
        ]);
    }
    let memory = &plan.memory;
    let enough = match ahead.free {
        Some(free) => format!(", {} free", format_bytes(free)),
        None => String::new(),
    };
    let rows = [
        (
            "output",
            format!(
                "{} ({} tensors in {} shards, {})",
                out.display(),
                plan.tensors.len(),
                plan.layout.shards().len(),
                format_bytes(traffic.written)
            ),
        ),
        ("read", format!("{}, of them {} a second time", format_bytes(traffic.read), format_bytes(traffic.read_twice))),
        ("blocks", format!("{} of at most {} elements", traffic.blocks, memory.block)),
        (
            "memory",
            format!(
                "at most {}: {} fixed, {} for inputs, {} for outputs, {} threads",
                format_bytes(memory.limit),
                format_bytes(memory.fixed),
                format_bytes(memory.input),
                format_bytes(memory.output),
                memory.threads
            ),
        ),
        ("device", device_of(plan, ahead)),
        ("disk", format!("{} needed{enough}", format_bytes(disk_bytes(plan)))),
        ("files", if ahead.sides.is_empty() { "the weights alone".to_owned() } else { ahead.sides.join(", ") }),
        ("there", ahead.outlook.to_string()),
    ];
    let alignments = alignments(plan, unaligned);
    let left = (!ahead.left.is_empty()).then(|| ("left", format!("not taken along: {}", listed_files(&ahead.left))));
    let rows = rows.into_iter().chain(left).chain(alignments.into_iter().map(|line| ("align", line)));
    let warnings = ahead.warnings.iter().map(|warning| ("warning", warning.clone()));
    for (name, text) in rows.chain(warnings) {
        table.add_row([name.to_owned(), text]);
    }
    trimmed(&table)
}

/// A line for each input that is aligned or will be.
fn alignments(plan: &Plan, unaligned: &[usize]) -> Vec<String> {
    let known = plan.job.alignment_files.iter().map(|file| {
        let moves = if file.moves { "" } else { ", by which nothing moves" };
        format!("model {} by {}{moves}", file.input + 1, file.file)
    });
    let together = plan.job.document.own.align.as_ref().is_some_and(|align| align.together);
    let to = if together { "the mean of all".to_owned() } else { format!("model {}", plan.job.donor + 1) };
    let found = unaligned.iter().map(|input| format!("model {} to {to} by weights, not done yet", input + 1));
    known.chain(found).collect()
}

fn device_of(plan: &Plan, ahead: &Ahead) -> String {
    match plan.memory.staging {
        Some(Staging { lanes, lane_bytes }) => {
            format!("{}, {lanes} lanes of {} on each side", ahead.device, format_bytes(lane_bytes as u64))
        }
        None => ahead.device.clone(),
    }
}

fn tensors(plan: &Plan) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["tensor", "shape", "from", "to", "bytes", "shard", "action"]);
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

fn as_json(plan: &Plan, out: &Path, traffic: &Traffic, ahead: &Ahead, unaligned: &[usize]) -> Value {
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
        "disk_free_bytes": ahead.free,
        "side_files": ahead.sides,
        "left_beside": ahead.left,
        "outlook": ahead.outlook.to_string(),
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

/// What the output takes on disk at its largest: while a shard is compressed, it is there twice.
fn disk_bytes(plan: &Plan) -> u64 {
    let shards = || plan.layout.shards().iter().map(|shard| shard.len);
    let twice = if plan.job.zstd.is_some() { shards().max().unwrap_or(0) } else { 0 };
    shards().sum::<u64>() + twice
}

/// Free bytes on the file system that would take the output.
fn free_bytes(out: &Path) -> Option<u64> {
    let absolute = std::path::absolute(out).ok()?;
    let there = absolute.ancestors().find(|folder| folder.exists())?;
    let stat = rustix::fs::statvfs(there).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}
