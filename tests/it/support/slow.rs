//! A merge that is slow enough to be interrupted, and hashes of what it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use thalweg::dtype::Dtype;

use super::files::scratch;
use super::striped::{Spec, spec, write};

/// Two models of three tensors; the merge takes a second or so, and commits a few times.
pub fn slow_inputs() -> TempDir {
    let root = scratch();
    let shards: Vec<Vec<Spec>> = (0..5)
        .map(|shard| {
            let name = |part: &str| format!("layers.{shard}.{part}");
            vec![
                spec(name("up"), Dtype::BF16, &[30_000, 1000]),
                spec(name("norm"), Dtype::BF16, &[1000]),
            ]
        })
        .collect();
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(&root.path().join(name), &shards, seed);
    }
    root
}

/// A merge of [`slow_inputs`] into `out`, with further arguments.
pub fn slow_merge<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "merge",
        "a",
        "b",
        "--out",
        out,
        "--shard-size",
        "65MB",
        "--memory",
        "256MiB",
    ];
    args.extend(["--threads", "1"]);
    args.extend(more);
    args
}

/// The hash of every file below a folder, but of those in the making.
pub fn hashes(dir: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).expect("readable folder") {
        let path = entry.expect("readable folder").path();
        if path.is_dir() {
            if path.ends_with(".thalweg") {
                continue;
            }
            found.extend(hashes(&path));
        } else {
            found.insert(
                path.clone(),
                blake3::hash(&fs::read(&path).expect("readable file")),
            );
        }
    }
    found
}

/// As [`hashes`], by path relative to the folder.
pub fn relative_hashes(dir: &Path) -> BTreeMap<PathBuf, blake3::Hash> {
    let below = |path: PathBuf| path.strip_prefix(dir).expect("below").to_owned();
    hashes(dir)
        .into_iter()
        .map(|(path, hash)| (below(path), hash))
        .collect()
}
