//! `thalweg verify`.

use serde_json::json;

use crate::budget::format_bytes;
use crate::error::Result;
use crate::monitor::{Monitor, Phase};
use crate::output::{Verified, verify};

use super::args::VerifyArgs;
use super::print;
use super::progress::Progress;

/// Reads a checkpoint back and checks it against its manifest.
///
/// # Errors
///
/// The first damage that was found.
pub fn run(args: &VerifyArgs) -> Result<()> {
    let progress = (!args.quiet).then(|| Progress::new(0));
    let mut before = None;
    let outcome = verify(&args.dir, &mut |done, total| {
        if let Some(progress) = &progress {
            if before.is_none() {
                progress.phase(Phase::Checking, total);
            }
            progress.advance(done - before.unwrap_or(0));
        }
        before = Some(done);
        Ok(())
    });
    if let Some(progress) = progress {
        progress.clear();
    }
    let verified = outcome?;
    if args.json {
        return print(&as_json(&verified));
    }
    if args.quiet { Ok(()) } else { print(&as_text(&verified)) }
}

fn as_json(verified: &Verified) -> String {
    let value = json!({
        "shards": verified.shards,
        "tensors": verified.tensors,
        "data_bytes": verified.data_bytes,
        "has_checksums": verified.has_checksums,
        "unnamed": verified.unnamed,
    });
    format!("{value:#}")
}

fn as_text(verified: &Verified) -> String {
    let Verified { shards, tensors, data_bytes, has_checksums, unnamed } = verified;
    let what = if *has_checksums {
        "every block matches its checksum"
    } else {
        "the structure is sound; there is no thalweg.json, so there are no checksums to compare with"
    };
    let mut text = format!("verified: {tensors} tensors in {shards} shards, {}: {what}", format_bytes(*data_bytes));
    for name in unnamed {
        text.push_str(&format!("\nwarning: {name} is not part of this checkpoint"));
    }
    text
}
