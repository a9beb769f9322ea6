//! The flags of the Karcher-merge script: its users change one word.

use std::fs;
use std::path::Path;

use tempfile::{TempDir, tempdir};
use thalweg::dtype::Dtype;

use crate::support::program::run;
use crate::support::striped::{spec, write};

fn models() -> TempDir {
    let root = tempdir().expect("temporary folder");
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        write(
            &root.path().join(name),
            &[vec![spec("w", Dtype::BF16, &[40, 30])]],
            seed,
        );
        fs::write(root.path().join(name).join("tokenizer.json"), name).expect("written");
    }
    root
}

const SCRIPT: [&str; 15] = [
    "merge",
    "--models",
    "a",
    "b",
    "c",
    "--alphas",
    "0.5",
    "0.3",
    "0.2",
    "--karcher-iter",
    "10",
    "--karcher-tol",
    "1e-5",
    "--device",
    "cpu",
];

fn script<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SCRIPT.into_iter().chain(more.iter().copied()).collect()
}

fn bytes(root: &Path, name: &str) -> Vec<u8> {
    fs::read(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn its_command_does_what_our_own_flags_do() {
    let root = models();
    run(
        root.path(),
        script(&["--output", "out/x.safetensors", "--copy-extra-files"]),
    )
    .ok();
    let own = [
        "merge",
        "a",
        "b",
        "c",
        "--weights",
        "0.5,0.3,0.2",
        "--max-iter",
        "10",
        "--tol",
        "1e-5",
        "--out",
        "own",
    ];
    run(root.path(), own).ok();
    assert!(bytes(root.path(), "out/x.safetensors") == bytes(root.path(), "own/model.safetensors"));
    assert_eq!(bytes(root.path(), "out/tokenizer.json"), b"a");
    assert!(bytes(root.path(), "out/config.json") == bytes(root.path(), "a/config.json"));
    assert!(
        !root.path().join("out/README.md").exists(),
        "a single file may lie among others"
    );
    run(root.path(), script(&["--output", "folder"])).ok();
    assert!(
        bytes(root.path(), "folder/model.safetensors")
            == bytes(root.path(), "own/model.safetensors")
    );
}

#[test]
fn its_extra_files_come_from_around_a_single_file_and_replace_nothing_unasked() {
    let root = models();
    fs::create_dir(root.path().join("out")).expect("made");
    fs::write(root.path().join("out/tokenizer.json"), "mine").expect("written");
    let args = [
        "merge",
        "--models",
        "b/model.safetensors",
        "a/model.safetensors",
        "--copy-extra-files",
        "--output",
    ];
    run(root.path(), args.iter().chain(&["out/x.safetensors"])).ok();
    assert_eq!(bytes(root.path(), "out/tokenizer.json"), b"mine");
    assert!(bytes(root.path(), "out/config.json") == bytes(root.path(), "b/config.json"));
    run(
        root.path(),
        args.iter().chain(&["out/y.safetensors", "--overwrite"]),
    )
    .ok();
    assert_eq!(bytes(root.path(), "out/tokenizer.json"), b"b");
    run(
        root.path(),
        [
            "merge",
            "--models",
            "b",
            "a",
            "--output",
            "alone/x.safetensors",
        ],
    )
    .ok();
    assert!(!root.path().join("alone/config.json").exists());
}

#[test]
fn its_flags_fill_smaller_tensors_up_with_zeros_and_say_so() {
    let root = tempdir().expect("temporary folder");
    for (name, rows) in [("a", 40), ("b", 38)] {
        write(
            &root.path().join(name),
            &[vec![spec("w", Dtype::BF16, &[rows, 30])]],
            1,
        );
    }
    let plan = ["plan", "--models", "a", "b", "--output", "out.safetensors"];
    let planned = run(root.path(), plan).ok().stdout;
    assert!(
        planned.contains("warning") && planned.contains("filled up with zeros"),
        "{planned}"
    );
    let said = run(
        root.path(),
        ["merge", "--models", "a", "b", "--output", "out.safetensors"],
    )
    .ok()
    .stdout;
    assert!(
        said.contains("warning") && said.contains("filled up with zeros") && said.contains(": w"),
        "{said}"
    );
    run(
        root.path(),
        ["merge", "a", "b", "--mismatch", "pad", "--out", "own"],
    )
    .ok();
    assert!(bytes(root.path(), "out.safetensors") == bytes(root.path(), "own/model.safetensors"));
    let other = [
        "merge",
        "--models",
        "a",
        "b",
        "--output",
        "other.safetensors",
        "--mismatch",
        "error",
    ];
    run(root.path(), other).fails(2, &["inputs differ in their shapes"]);
    run(root.path(), ["merge", "a", "b", "--out", "other"])
        .fails(2, &["inputs differ in their shapes"]);
}

#[test]
fn what_cannot_be_is_said_clearly() {
    let root = models();
    let cuda = [
        "merge",
        "--models",
        "a",
        "b",
        "--output",
        "x.safetensors",
        "--device",
        "gpu",
    ];
    run(root.path(), cuda).fails(2, &["--device", "wanted cpu, cuda, cuda:N or auto"]);
    let weights = [
        "merge",
        "--models",
        "a",
        "b",
        "--alphas",
        "1",
        "--output",
        "x.safetensors",
    ];
    run(root.path(), weights).fails(
        2,
        &["--alphas", "wanted 2 numbers, one for each model, got 1"],
    );
    run(
        root.path(),
        ["merge", "a", "--models", "b", "--output", "x.safetensors"],
    )
    .fails(2, &["--models"]);
    assert_eq!(
        fs::read_dir(root.path()).expect("the folder").count(),
        3,
        "nothing was written"
    );
}

#[test]
fn its_flags_stand_in_the_long_help_only() {
    let root = models();
    let (short, long) = (
        run(root.path(), ["merge", "-h"]).ok().stdout,
        run(root.path(), ["merge", "--help"]).ok().stdout,
    );
    for flag in ["--models", "--alphas", "--copy-extra-files"] {
        assert!(long.contains(flag) && !short.contains(flag), "{flag}");
    }
    assert!(long.contains("Karcher-merge script") && long.contains("--karcher-iter"));
}
