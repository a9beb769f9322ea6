//! The identity of a run's work: one run may go on where another with an equal identity stopped.
//!
//! Threads, memory and block size are left out: the output does not depend on them. File times,
//! sizes and header hashes stand for the files' contents. Where digests of the contents are known
//! they are included, and only they are recorded with the result.

use serde_json::{Value, json};

use crate::checkpoint::{Checkpoint, InputFile};
use crate::symmetry::Alignment;

use super::job::Job;
use super::layout::Layout;
use super::made::Made;
use super::ties::Ties;

/// Raised when the output bytes of the same job change, so that no run resumes one of another
/// version.
const ARITHMETIC_VERSION: u32 = 2;

/// Returns the identity of `job` on these inputs.
pub fn of(job: &Job, inputs: &[Checkpoint], layout: &Layout, ties: &Ties) -> Value {
    let mut identity = json!({
        "arithmetic": ARITHMETIC_VERSION,
        "recipe": job.describe(),
        "dtype": job.dtype.map(|dtype| dtype.name()),
        "nan": job.nan.name(),
        "shard_bytes": job.shard_bytes,
        "zstd": job.zstd,
        "donor": job.donor,
        "layout": layout.fingerprint().to_hex().as_str(),
        "inputs": inputs.iter().enumerate().map(|(index, of)| input(of, &made(job, index))).collect::<Vec<_>>(),
    });
    if job.alignments.iter().any(Option::is_some) {
        let aligned = |alignment: &Option<Alignment>| alignment.as_ref().map(Alignment::digest);
        identity["alignments"] = job.alignments.iter().map(aligned).collect();
    }
    if let Some(tied) = ties.describe() {
        identity["ties"] = tied;
    }
    identity
}

/// Reads the digests of an input that an earlier stage made; empty for any other input.
fn made(job: &Job, input: usize) -> Made {
    match job.inputs.get(input).filter(|_| job.made.contains(&input)) {
        Some(folder) => Made::read(folder),
        None => Made::default(),
    }
}

fn input(checkpoint: &Checkpoint, made: &Made) -> Value {
    let name = checkpoint
        .root()
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    json!({ "name": name, "files": checkpoint.files().iter().map(|of| file(of, made)).collect::<Vec<_>>() })
}

fn file(file: &InputFile, made: &Made) -> Value {
    let mut value = json!({
        "name": file.name,
        "bytes": file.len,
        "modified_ns": file.modified_ns.to_string(),
        "header": blake3::Hash::from_bytes(file.header_hash).to_hex().as_str(),
    });
    if let Some(digest) = made.digest(file) {
        value["blake3"] = digest.into();
    }
    value
}
