//! Outputs that released versions wrote: later versions verify what was finished, go on with what
//! was not, and refuse by name what they do not know. `scripts/fixtures/releases.sh` makes the
//! fixtures, which are never edited.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::support::files::{files_below, scratch};
use crate::support::program::{Ended, run};

/// Every released version whose outputs are kept.
const RELEASES: [&str; 1] = ["0.1.0"];

/// The options of the merge that all fixtures of a release come from, but for the output.
const MERGE: [&str; 8] = [
    "a",
    "b",
    "--weights",
    "0.75,0.25",
    "--memory",
    "256MiB",
    "--shard-size",
    "1KB",
];

/// The time of every input when the fixtures were made: it is part of what a run is known by.
const SECONDS: u64 = 1_700_000_000;

/// The bytes at which a journal's magic ends and its version begins.
const JOURNAL_VERSION: usize = 8;

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/releases")
}

/// A copy of a release's fixtures, its inputs of the age that they had.
fn copy(release: &str) -> TempDir {
    let root = scratch();
    for (name, bytes) in files_below(&kept().join(release)) {
        let path = root.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(SECONDS);
    for input in ["a", "b"] {
        for entry in fs::read_dir(root.path().join(input)).expect("an input") {
            let file = File::options()
                .write(true)
                .open(entry.expect("an input").path())
                .expect("a file");
            file.set_modified(time).expect("a time");
        }
    }
    root
}

fn merge(root: &Path, out: &str) -> Ended {
    run(
        root,
        ["merge"]
            .into_iter()
            .chain(MERGE)
            .chain(["--out", out, "--json", "--quiet"]),
    )
}

#[test]
fn every_release_that_is_kept_is_tested() {
    let entries = fs::read_dir(kept()).expect("releases");
    let names: BTreeSet<_> = entries
        .map(|entry| {
            entry
                .expect("a release")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect();
    assert_eq!(names, RELEASES.map(str::to_owned).into());
}

#[test]
fn what_a_release_finished_is_verified_and_complete() {
    for release in RELEASES {
        let root = copy(release);
        let before = files_below(root.path());
        for out in ["finished", "packed.safetensors.zst"] {
            run(root.path(), ["verify", out, "--quiet"]).ok();
        }
        let against = ["verify", "finished", "--sample", "1000", "--against"]
            .into_iter()
            .chain(MERGE);
        let rechecked = run(root.path(), against).ok();
        assert!(
            rechecked.stdout.contains("every bit is the same"),
            "{release}: {rechecked:?}"
        );
        assert_eq!(
            merge(root.path(), "finished").ok().json()["status"],
            "complete already",
            "{release}"
        );
        assert_eq!(
            files_below(root.path()),
            before,
            "{release}: something was written"
        );
    }
}

#[test]
fn what_a_release_left_half_done_is_gone_on_with_to_the_same_bytes() {
    for release in RELEASES {
        let root = copy(release);
        let wanted = files_below(&root.path().join("finished"));
        for out in ["killed", "stopped"] {
            let whole = files_below(&root.path().join(out))
                .into_keys()
                .filter(|name| wanted.contains_key(name))
                .count();
            assert_eq!(
                whole > 0,
                out == "stopped",
                "{release}: {whole} shards of {out} were whole"
            );
            let report = merge(root.path(), out).ok().json();
            assert_eq!(report["status"], "resumed", "{release}: {out}: {report}");
            assert!(
                files_below(&root.path().join(out)) == wanted,
                "{release}: {out} is another model than what was finished"
            );
        }
    }
}

#[test]
fn what_a_release_left_half_done_is_refused_when_an_input_has_changed_since() {
    for release in RELEASES {
        let root = copy(release);
        let file = File::options()
            .write(true)
            .open(root.path().join("b/model.safetensors"))
            .expect("a file");
        file.set_modified(SystemTime::now()).expect("a time");
        let before = files_below(root.path());
        let words = [
            "cannot resume",
            "stopped/.thalweg/journal",
            "modified_ns",
            "--restart",
        ];
        merge(root.path(), "stopped").fails(2, &words);
        assert_eq!(
            files_below(root.path()),
            before,
            "{release}: something was written"
        );
    }
}

#[test]
fn a_manifest_of_a_later_version_is_refused_by_name() {
    let root = copy("0.1.0");
    let path = root.path().join("finished/thalweg.json");
    let text = fs::read_to_string(&path).expect("a manifest").replacen(
        "\"format\": 2",
        "\"format\": 3",
        1,
    );
    fs::write(&path, text).expect("written");
    let before = files_below(root.path());
    let words = [
        "finished/thalweg.json",
        "format version 3, this program knows 1 and 2",
    ];
    run(root.path(), ["verify", "finished"]).fails(1, &words);
    // A merge takes it for somebody else's model, which it leaves alone.
    merge(root.path(), "finished").fails(2, &["cannot write to folder: finished", "--overwrite"]);
    assert_eq!(files_below(root.path()), before, "something was written");
}

#[test]
fn a_journal_of_a_later_version_is_refused_by_name() {
    for out in ["killed", "stopped"] {
        let root = copy("0.1.0");
        let path = root.path().join(out).join(".thalweg/journal");
        let mut bytes = fs::read(&path).expect("a journal");
        bytes[JOURNAL_VERSION] += 1;
        fs::write(&path, bytes).expect("written");
        let before = files_below(root.path());
        let words = [
            ".thalweg/journal",
            "format version 2, this program knows 1",
            "--restart",
        ];
        merge(root.path(), out).fails(2, &words);
        assert_eq!(files_below(root.path()), before, "something was written");
    }
}
