//! Compressed output: what it holds, that it is read back, resumed and verified like any other.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::{TempDir, tempdir};
use thalweg::dtype::Dtype;

use crate::crash_merge::{Case, SMALL_KEYS, small_shards};
use crate::support::crash::{CrashStorage, Image};
use crate::support::files::files_below;
use crate::support::files::flip;
use crate::support::program::run;
use crate::support::striped::{spec, write};

/// Two models in two shards, the first of which takes several frames.
fn inputs() -> TempDir {
    let root = tempdir().expect("temporary folder");
    let shards = [
        vec![spec("big", Dtype::BF16, &[2600, 1024])],
        vec![spec("small", Dtype::F32, &[999])],
    ];
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(&root.path().join(name), &shards, seed);
    }
    root
}

const PLAIN: [&str; 7] = [
    "merge",
    "a",
    "b",
    "--shard-size",
    "5326000",
    "--out",
    "plain",
];

fn packed<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "merge",
        "a",
        "b",
        "--shard-size",
        "5326000",
        "--zstd",
        "3",
        "--out",
        out,
    ];
    args.extend(more);
    args
}

fn expanded(path: &Path) -> Vec<u8> {
    zstd::decode_all(fs::File::open(path).expect("a shard")).expect("what any decoder reads")
}

const SHARDS: [&str; 2] = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
];

#[test]
fn compressed_shards_expand_to_the_plain_ones_and_everything_names_them() {
    let root = inputs();
    run(root.path(), PLAIN).ok();
    let ended = run(root.path(), packed("packed", &["--verify", "--json"])).ok();
    let (plain, packed) = (root.path().join("plain"), root.path().join("packed"));
    let manifest: Value =
        serde_json::from_slice(&fs::read(packed.join("thalweg.json")).expect("it")).expect("JSON");
    let index = fs::read_to_string(packed.join("model.safetensors.index.json")).expect("an index");
    let mut stored = 0;
    for (number, name) in SHARDS.iter().enumerate() {
        let file = packed.join(format!("{name}.zst"));
        assert_eq!(
            expanded(&file),
            fs::read(plain.join(name)).expect("a shard"),
            "{name}"
        );
        let len = fs::metadata(&file).expect("there").len();
        assert_eq!(manifest["shards"][number]["compressed_size"], len);
        assert_eq!(
            manifest["shards"][number]["size"],
            fs::metadata(plain.join(name)).expect("there").len()
        );
        assert!(
            index.contains(&format!("{name}.zst")) && !packed.join(name).exists(),
            "{name}"
        );
        stored += len;
    }
    assert!(!packed.join(".thalweg").exists());
    let report = ended.json();
    assert_eq!(report["stored_bytes"], stored);
    assert!(
        stored < report["output_bytes"].as_u64().expect("a number") / 2,
        "holes take nearly nothing"
    );
    assert_eq!(report["verified_bytes"], report["output_bytes"]);
}

#[test]
fn the_only_shard_and_a_single_file_are_compressed_too() {
    let root = inputs();
    run(root.path(), ["merge", "a", "b", "--out", "plain"]).ok();
    run(
        root.path(),
        ["merge", "a", "b", "--zstd", "1", "--out", "packed"],
    )
    .ok();
    run(
        root.path(),
        [
            "merge",
            "a",
            "b",
            "--zstd",
            "1",
            "--out",
            "one.safetensors.zst",
        ],
    )
    .ok();
    let wanted = fs::read(root.path().join("plain/model.safetensors")).expect("it");
    assert_eq!(
        expanded(&root.path().join("packed/model.safetensors.zst")),
        wanted
    );
    assert_eq!(expanded(&root.path().join("one.safetensors.zst")), wanted);
    for out in ["packed", "one.safetensors.zst"] {
        run(root.path(), ["verify", out]).ok();
    }
    run(
        root.path(),
        ["merge", "a", "b", "--zstd", "1", "--out", "x.safetensors"],
    )
    .fails(2, &["X.safetensors.zst"]);
    run(
        root.path(),
        ["merge", "a", "b", "--out", "x.safetensors.zst"],
    )
    .fails(2, &["--zstd LEVEL"]);
}

#[test]
fn bytes_depend_neither_on_threads_nor_on_memory() {
    let root = inputs();
    run(
        root.path(),
        packed("one", &["--threads", "1", "--memory", "100MiB"]),
    )
    .ok();
    run(
        root.path(),
        packed("many", &["--threads", "5", "--memory", "1GiB"]),
    )
    .ok();
    assert!(files_below(&root.path().join("one")) == files_below(&root.path().join("many")));
}

#[test]
fn a_compressed_output_is_an_input_like_any_other_and_complete_the_second_time() {
    let root = inputs();
    run(root.path(), PLAIN).ok();
    run(root.path(), packed("packed", &[])).ok();
    let again = run(root.path(), packed("packed", &["--json"])).ok().json();
    assert_eq!(again["status"], "complete already");
    assert!(
        run(
            root.path(),
            [
                "plan",
                "a",
                "b",
                "--out",
                "packed",
                "--zstd",
                "3",
                "--shard-size",
                "5326000"
            ]
        )
        .ok()
        .stdout
        .contains("complete already")
    );
    for (from, out) in [("plain", "x"), ("packed", "y")] {
        run(root.path(), ["merge", from, "b", "--out", out]).ok();
    }
    let merged = |out: &str| fs::read(root.path().join(out).join("model.safetensors")).expect("it");
    assert!(merged("x") == merged("y"));
}

#[test]
fn damage_is_found_through_the_compression() {
    let root = inputs();
    run(root.path(), packed("packed", &[])).ok();
    let shard = root
        .path()
        .join("packed")
        .join(format!("{}.zst", SHARDS[0]));
    let len = fs::metadata(&shard).expect("there").len();
    // In the first frame's head, in its data, in the last frame's checksum, in the seek table.
    for at in [0, 5, len / 4, len / 2, len - 9, len - 1] {
        flip(&shard, at);
        run(root.path(), ["verify", "packed"]).fails(1, &["model-00001-of-00002"]);
        flip(&shard, at);
    }
    run(root.path(), ["verify", "packed"]).ok();
    fs::File::options()
        .write(true)
        .open(&shard)
        .expect("there")
        .set_len(len - 100)
        .expect("cut");
    run(root.path(), ["verify", "packed"]).fails(1, &["model-00001-of-00002"]);
    fs::remove_file(&shard).expect("there");
    run(root.path(), ["verify", "packed"]).fails(1, &["the shard is missing"]);
}

#[test]
fn a_compressed_merge_survives_power_loss_at_every_operation() {
    let case = Case::new(&small_shards(), &format!("{SMALL_KEYS}zstd: 3\n"));
    let (wanted, operations) = case.undisturbed();
    assert_eq!(
        wanted
            .keys()
            .filter(|name| name.extension().is_some_and(|end| end == "zst"))
            .count(),
        3
    );
    for at in 1..=operations {
        let image = Image::ALL[at % 4];
        let after = case.crashed(at, image);
        let (_, outcome) = case.run(CrashStorage::reliable(after.path()), after.path());
        outcome.unwrap_or_else(|error| panic!("operation {at}, {image:?}: {error}"));
        assert!(
            files_below(&after.path().join("out")) == wanted,
            "operation {at} of {operations}, {image:?}"
        );
    }
}

#[test]
fn a_finished_compressed_shard_that_was_changed_is_not_taken_up_again() {
    let case = Case::new(&small_shards(), &format!("{SMALL_KEYS}zstd: 3\n"));
    let (_, operations) = case.undisturbed();
    // Shortly before the end all shards are compressed and the manifest is not there yet.
    let after = case.crashed(operations - 14, Image::Kept);
    let out = after.path().join("out");
    let shard = fs::read_dir(&out)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.extension().is_some_and(|end| end == "zst"))
        .expect("a finished shard");
    assert!(
        !out.join("model.safetensors.index.json").exists(),
        "the run is not finished"
    );
    flip(&shard, fs::metadata(&shard).expect("there").len() / 2);
    let (_, outcome) = case.run(CrashStorage::reliable(after.path()), after.path());
    let error = outcome.expect_err("refused");
    assert_eq!(error.kind(), thalweg::Kind::Resume, "{error}");
}
