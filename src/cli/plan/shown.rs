//! A plan as a table and as JSON.

use std::path::Path;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::budget::format_bytes;
use crate::error::shown_name;
use crate::plan::Plan;
use crate::plan::memory::Staging;
use crate::plan::tensor::{Action, TensorPlan};
use crate::report::words::{counted, grouped};
use crate::report::{Combined, listed_files};

use super::super::trimmed;
use super::{Outlook, Traffic, disk_bytes, free_bytes};

pub(super) fn summary(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    outlook: &Outlook,
    unaligned: &[usize],
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    for (index, input) in plan.inputs.iter().enumerate() {
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
                format_bytes(input.files().iter().map(|file| file.len).sum())
            ),
        ]);
    }
    let mut rows = rows_of_output(plan, out, traffic, outlook);
    rows.extend(rows_of_resources(plan, out, traffic, outlook));
    let left = outlook.left();
    if !left.is_empty() {
        rows.push(("left", format!("not taken along: {}", listed_files(left))));
    }
    rows.extend(plan.notes().into_iter().map(|note| ("note", note)));
    let alignments = alignments(plan, unaligned);
    rows.extend(alignments.into_iter().map(|line| ("align", line)));
    let warnings = outlook.warnings.iter();
    rows.extend(warnings.map(|warning| ("warning", warning.clone())));
    for (name, text) in rows {
        table.add_row([name.to_owned(), text]);
    }
    trimmed(&table)
}

/// Describes the result of the merge.
fn rows_of_output(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    outlook: &Outlook,
) -> Vec<(&'static str, String)> {
    let combined = Combined::of(plan);
    let merge = format!("{}, into {}", combined.headline(), combined.dtypes());
    let weights = combined.weights().unwrap_or_default();
    let output = format!(
        "{} ({} in {}, {})",
        out.display(),
        counted(plan.tensors.len() as u64, "tensor"),
        counted(plan.layout.shards().len() as u64, "shard"),
        format_bytes(traffic.written)
    );
    let mut rows = vec![
        ("merge", merge),
        ("weights", weights),
        ("output", output),
        ("there", outlook.outlook()),
    ];
    rows.retain(|(_, text)| !text.is_empty());
    rows
}

/// Describes the bytes that are moved, and the memory and disk that the merge takes.
fn rows_of_resources(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    outlook: &Outlook,
) -> Vec<(&'static str, String)> {
    let twice = match traffic.read_twice {
        0 => String::new(),
        bytes if traffic.read_often => format!(", of them {} again", format_bytes(bytes)),
        bytes => format!(", of them {} a second time", format_bytes(bytes)),
    };
    let more = match traffic.read_if_needed {
        0 => String::new(),
        bytes => format!("; {} more where a threshold needs it", format_bytes(bytes)),
    };
    let memory = &plan.memory;
    let block = counted(memory.block, "element");
    let shares = format!(
        "at most {}: {} fixed, {} for inputs, {} for outputs; {}",
        format_bytes(memory.limit),
        format_bytes(memory.fixed),
        format_bytes(memory.input),
        format_bytes(memory.output),
        counted(memory.threads as u64, "thread")
    );
    let needed = format_bytes(disk_bytes(plan));
    let free = free_bytes(out).map(|free| format!(", {} free", format_bytes(free)));
    let sides = outlook.sides();
    let files = match sides.is_empty() {
        true => "the weights alone".to_owned(),
        false => sides.join(", "),
    };
    let mut rows = vec![
        (
            "read",
            format!("{}{twice}{more}", format_bytes(traffic.read)),
        ),
        (
            "blocks",
            format!("{}, each of {block} at most", grouped(traffic.blocks)),
        ),
        ("memory", shares),
        ("device", device_of(plan, outlook)),
        (
            "disk",
            format!("{needed} needed{}", free.unwrap_or_default()),
        ),
        ("files", files),
    ];
    rows.retain(|(_, text)| !text.is_empty());
    rows
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

fn device_of(plan: &Plan, outlook: &Outlook) -> String {
    match plan.memory.staging {
        Some(Staging { lanes, lane_bytes }) => {
            format!(
                "{}, {lanes} lanes of {} on each side",
                outlook.device,
                format_bytes(lane_bytes as u64)
            )
        }
        None => outlook.device.clone(),
    }
}

pub(super) fn tensors(plan: &Plan) -> String {
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

pub(super) fn as_json(
    plan: &Plan,
    out: &Path,
    traffic: &Traffic,
    outlook: &Outlook,
    unaligned: &[usize],
) -> Value {
    let tensors: Vec<Value> = (0..plan.tensors.len())
        .map(|index| tensor_as_json(plan, index))
        .collect();
    let mut value = json!({
        "out": out,
        "identity": plan.identity,
        "memory": {
            "limit": plan.memory.limit, "fixed": plan.memory.fixed, "input": plan.memory.input,
            "output": plan.memory.output, "threads": plan.memory.threads,
        },
        "device": outlook.device,
        "blocks": traffic.blocks,
        "block_elements": plan.memory.block,
        "read_bytes": traffic.read,
        "read_twice_bytes": traffic.read_twice,
        "read_if_needed_bytes": traffic.read_if_needed,
        "written_bytes": traffic.written,
        "disk_needed_bytes": disk_bytes(plan),
        "disk_free_bytes": free_bytes(out),
        "side_files": outlook.sides(),
        "left_beside": outlook.left(),
        "outlook": outlook.outlook(),
        "combined": Combined::of(plan),
        "notes": plan.notes(),
        "tensors": tensors,
        "dropped": plan.dropped,
        "partial": plan.partial,
        "warnings": outlook.warnings,
    });
    if plan.job.document.own.align.is_some() {
        value["alignment"] = json!({ "files": plan.job.alignment_files, "unaligned": unaligned });
    }
    value
}

fn tensor_as_json(plan: &Plan, index: usize) -> Value {
    let (tensor, place) = (&plan.tensors[index], &plan.layout.tensors()[index]);
    let sources = tensor.sources.iter().map(|source| {
        let dtype = source.held.name();
        json!({ "model": source.input, "name": source.name, "dtype": dtype })
    });
    json!({
        "name": tensor.name,
        "shape": tensor.shape,
        "dtype": tensor.dtype.name(),
        "bytes": tensor.output_bytes(),
        "shard": plan.layout.shards()[place.shard].name,
        "offset": place.offset,
        "action": action(tensor),
        "sources": sources.collect::<Vec<_>>(),
    })
}
