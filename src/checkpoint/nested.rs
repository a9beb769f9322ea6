//! Folders that hold models one level down: which they are, and which of them can be taken for the
//! whole.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::folder::{FORMATS, file_names};
use super::side::weight_format;
use crate::error::{Error, Kind};

/// How many folders a message names.
const NAMED: usize = 6;
/// What a diffusers pipeline is known by.
const PIPELINE: &str = "model_index.json";

/// The snapshot that a folder of the hub's cache (`models--org--name`) stands for: that of the main
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

/// The commit in a ref file; none when it holds anything but a name.
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

/// What to say of a folder without weights of its own when folders in it have some.
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

/// The names of the folders in a folder, links to folders among them; none when it cannot be
/// listed.
fn folders_in(folder: &Path) -> Vec<String> {
    let names = file_names(folder).unwrap_or_default();
    names
        .into_iter()
        .filter(|name| fs::metadata(folder.join(name)).is_ok_and(|entry| entry.is_dir()))
        .collect()
}

/// Whether a folder holds weights that could be read, itself or, as one of the hub's cache does, in
/// a snapshot.
fn has_weights(folder: &Path) -> bool {
    let is_weights =
        |name: &String| weight_format(name).is_some_and(|format| FORMATS.contains(&format));
    let own = |folder: &Path| file_names(folder).is_ok_and(|names| names.iter().any(is_weights));
    own(folder) || snapshot_of(folder).is_some_and(|snapshot| own(&snapshot))
}

/// The number at the end of `checkpoint-1000`, by which checkpoints follow each other.
fn trailing_number(name: &str) -> u64 {
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().unwrap_or(0)
}
