//! Folders with models one level down: lists these models, and finds the one that stands for the
//! whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::folder::{FORMATS, file_names};
use super::side::weight_format;
use crate::error::{Error, Kind};

/// The most folders that a message names.
const NAMED: usize = 6;
/// The file that marks a diffusers pipeline.
const PIPELINE: &str = "model_index.json";

/// Finds the snapshot of a folder in the hub's cache (`models--org--name`): that of the main
/// branch, else the only one.
pub(super) fn snapshot_of(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    if !snapshots.is_dir() || !(folder.join("blobs").is_dir() || folder.join("refs").is_dir()) {
        return None;
    }
    let main = commit_in(&folder.join("refs/main")).map(|commit| snapshots.join(commit));
    main.filter(|snapshot| snapshot.is_dir())
        .or_else(|| match folders_in(&snapshots).as_slice() {
            [only] => Some(snapshots.join(only)),
            _ => None,
        })
}

/// Reads the commit in a ref file; `None` when the file holds anything but a name.
fn commit_in(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path)
        .ok()?
        .take(256)
        .read_to_string(&mut text)
        .ok()?;
    let commit = text.trim();
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| commit.to_owned())
}

/// Returns the error for a folder without weights of its own if its sub-folders have some.
pub(super) fn refusal(folder: &Path, names: &BTreeSet<String>) -> Option<Error> {
    let (within, prefix) = match names.contains("snapshots") {
        true => (folder.join("snapshots"), "snapshots/"),
        false => (folder.to_owned(), ""),
    };
    let mut models: Vec<String> = folders_in(&within)
        .into_iter()
        .filter(|name| has_weights(&within.join(name)))
        .collect();
    models.sort_by_key(|name| (trailing_number(name), name.clone()));
    let last = models.last()?;
    let shown: Vec<String> = models
        .iter()
        .take(NAMED)
        .map(|name| format!("{prefix}{}", name.escape_debug()))
        .collect();
    let more = match models.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let cause = match names.contains(PIPELINE) {
        true => format!(
            "is a pipeline of several models ({PIPELINE}): {}{more}",
            shown.join(", ")
        ),
        false => format!(
            "holds no weights itself, but these folders in it do: {}{more}",
            shown.join(", ")
        ),
    };
    let example = within.join(last);
    let error = Error::new(
        Kind::Input,
        "cannot open checkpoint",
        folder.display(),
        cause,
    );
    Some(error.with_hint(format!("name one of them, such as {}", example.display())))
}

/// Lists the names of sub-folders, links to folders included; empty when the folder cannot be
/// listed.
fn folders_in(folder: &Path) -> Vec<String> {
    let names = file_names(folder).unwrap_or_default();
    names
        .into_iter()
        .filter(|name| fs::metadata(folder.join(name)).is_ok_and(|entry| entry.is_dir()))
        .collect()
}

/// Tells if a folder holds readable weights, itself or, in the hub's cache, in a snapshot.
fn has_weights(folder: &Path) -> bool {
    let is_weights =
        |name: &String| weight_format(name).is_some_and(|format| FORMATS.contains(&format));
    let own = |folder: &Path| file_names(folder).is_ok_and(|names| names.iter().any(is_weights));
    own(folder) || snapshot_of(folder).is_some_and(|snapshot| own(&snapshot))
}

/// Returns the number at the end of `checkpoint-1000`, which orders checkpoints.
fn trailing_number(name: &str) -> u64 {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().unwrap_or(0)
}
