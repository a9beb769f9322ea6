//! `thalweg verify`.

use std::ffi::OsString;

use clap::{Args, Command, FromArgMatches};
use serde_json::json;

use crate::budget::{default_bytes, format_bytes, peak_resident_bytes};
use crate::engine::{Rechecked, Sample, recheck};
use crate::error::{Error, Kind, Result};
use crate::monitor::{Monitor, Phase};
use crate::output::{Target, Verified, verify_within};
use crate::plan::Plan;
use crate::report::words::counted;

use super::args::{MergeArgs, VerifyArgs};
use super::flags::complete_flags;
use super::progress::Progress;
use super::stages::{folder_named, stages};
use super::{align_inputs, job, print};

/// Reads a checkpoint back and checks it against its manifest, and against its inputs where they
/// are given.
///
/// # Errors
///
/// The first damage that was found.
pub fn run(args: &VerifyArgs) -> Result<()> {
    // An impossible comparison is refused before minutes are spent on reading.
    let plan = if args.against.is_empty() {
        None
    } else {
        Some(plan(args).map_err(Error::refused)?)
    };
    let progress = (!args.quiet).then(|| Progress::new(0));
    let memory = args.memory.unwrap_or_else(default_bytes);
    let outcome =
        verify_within(&args.dir, memory, &mut shown(progress.as_ref())).and_then(|verified| {
            let sample = Sample {
                blocks: args.sample,
                seed: args.seed,
            };
            let rechecked = plan.as_ref().map(|plan| {
                let mut told = shown(progress.as_ref());
                recheck(plan, &args.dir, sample, None, &mut told)
            });
            Ok((verified, rechecked.transpose()?))
        });
    if let Some(progress) = progress {
        progress.clear();
    }
    let (verified, rechecked) = outcome?;
    if args.json {
        return print(&as_json(&verified, rechecked, memory));
    }
    if args.quiet {
        Ok(())
    } else {
        print(&as_text(&verified, rechecked))
    }
}

/// Returns a callback that shows the progress of a check.
fn shown(progress: Option<&Progress>) -> impl FnMut(u64, u64) -> Result<()> {
    let mut before = None;
    move |done, total| {
        if let Some(progress) = progress {
            if before.is_none() {
                progress.phase(Phase::Checking, total);
            }
            progress.advance(done - before.unwrap_or(0));
        }
        before = Some(done);
        Ok(())
    }
}

/// Plans the merge whose arguments follow `--against`.
fn plan(args: &VerifyArgs) -> Result<Plan> {
    let line = [OsString::from("--against")]
        .into_iter()
        .chain(args.against.iter().cloned());
    let line = line.chain([OsString::from("--out"), args.dir.clone().into()]);
    let own = args
        .memory
        .map(|bytes| OsString::from(format!("--memory={bytes}")));
    let line = line.chain(own.filter(|_| !gives_memory(&args.against)));
    let parsed = MergeArgs::augment_args(Command::new("merge")).try_get_matches_from(line);
    let mut merge = parsed
        .and_then(|matches| MergeArgs::from_arg_matches(&matches))
        .map_err(|error| {
            let text = error.to_string();
            let line = text
                .lines()
                .next()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            Error::new(
                Kind::Usage,
                "cannot use the command line",
                "--against",
                line,
            )
            .with_hint("behind --against comes what merge was given, without --out")
        })?;
    complete_flags(&mut merge.job)?;
    planned(args, &merge).map_err(|error| error.through(job::door(&merge.job)))
}

fn planned(args: &VerifyArgs, merge: &MergeArgs) -> Result<Plan> {
    let recipe = job::recipe(&merge.job)?;
    let stages = stages(&recipe, &args.dir)?;
    let last = stages.last().expect("a recipe has a document");
    let folder = |name: &str| folder_named(&stages, name);
    let mut job = job::job(&recipe, last.document, &merge.job, &folder)?;
    let target = Target {
        dir: args.dir.clone(),
        overwrite: false,
        restart: false,
    };
    if let Some(input) = align_inputs::look_for_inputs(&mut job, &target)?
        .missing
        .first()
    {
        let cause = format!(
            "the transform of model {} that the merge has found is not beside it any more",
            input + 1
        );
        return Err(Error::new(
            Kind::Mismatch,
            "cannot compare with a merge",
            args.dir.display(),
            cause,
        )
        .with_hint("give the very inputs and options that the merge was given"));
    }
    Plan::new(
        &job,
        &job::wish(Some(last.document), &merge.job.memory, &merge.job.block)?,
    )
}

/// Tells if the arguments of the merge limit its memory.
fn gives_memory(against: &[OsString]) -> bool {
    let text = |arg: &OsString| arg.to_string_lossy().into_owned();
    against
        .iter()
        .map(text)
        .any(|arg| arg.starts_with("-m") || arg == "--memory" || arg.starts_with("--memory="))
}

fn as_json(verified: &Verified, rechecked: Option<Rechecked>, memory: u64) -> String {
    let rechecked = rechecked.map(|found| {
        json!({
            "blocks": found.blocks,
            "all_blocks": found.all_blocks,
            "bytes": found.bytes,
            "tensors": found.tensors,
        })
    });
    let value = json!({
        "status": "sound",
        "shards": verified.shards,
        "tensors": verified.tensors,
        "data_bytes": verified.data_bytes,
        "has_checksums": verified.has_checksums,
        "unnamed": verified.unnamed,
        "side_files": verified.side_files,
        "notes": verified.notes,
        "rechecked": rechecked,
        "peak_resident_bytes": peak_resident_bytes(),
        "memory_limit_bytes": memory,
    });
    format!("{value:#}")
}

fn as_text(verified: &Verified, rechecked: Option<Rechecked>) -> String {
    let Verified {
        shards,
        tensors,
        data_bytes,
        has_checksums,
        unnamed,
        side_files,
        notes,
    } = verified;
    let what = if *has_checksums {
        "every block matches its checksum"
    } else {
        "the structure is sound; there is no thalweg.json, so there are no checksums to compare with"
    };
    let mut text = format!(
        "verified: {} in {}, {}: {what}",
        counted(*tensors as u64, "tensor"),
        counted(*shards as u64, "shard"),
        format_bytes(*data_bytes)
    );
    if let Some(Rechecked {
        blocks,
        all_blocks,
        bytes,
        tensors,
    }) = rechecked
    {
        text.push_str(&format!(
            "\nrechecked: {blocks} of {all_blocks} blocks ({}, in {tensors} tensors) computed once more from the inputs: \
             every bit is the same",
            format_bytes(bytes)
        ));
    }
    if *side_files > 0 {
        text.push_str(&format!(
            "\nother files: {side_files} compared with what was recorded of them"
        ));
    }
    for note in notes {
        text.push_str(&format!("\nwarning: {note}"));
    }
    for name in unnamed {
        text.push_str(&format!("\nwarning: {name} is not part of this checkpoint"));
    }
    text
}
