//! Everything that can be asked for wrongly, and what is said about it: a failure, a line, a hint.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::two_models;
use crate::support::program::run;
use crate::support::striped::write;

/// Files that are no models, or no longer.
fn spoil(root: &Path) {
    fs::create_dir(root.join("empty")).expect("made");
    fs::write(
        root.join("text.safetensors"),
        "this is no model, though its name says so\n",
    )
    .expect("written");
    fs::write(root.join("file"), "a file\n").expect("written");
    fs::create_dir(root.join("c")).expect("made");
    fs::copy(
        root.join("b/model-00001-of-00003.safetensors"),
        root.join("c/alone.safetensors"),
    )
    .expect("copied");
    for name in ["short", "gap", "other", "nan"] {
        write(&root.join(name), &crate::crash_merge::small_shards(), 3);
    }
    let second = "model-00002-of-00003.safetensors";
    let short = fs::read(root.join("short").join(second)).expect("there");
    fs::write(root.join("short").join(second), &short[..short.len() - 1]).expect("written");
    fs::remove_file(root.join("gap").join(second)).expect("removed");
    let mut shards = crate::crash_merge::small_shards();
    shards[1][0].shape = vec![16, 2048];
    write(&root.join("other"), &shards, 3);
    let mut bytes = fs::read(root.join("nan").join(second)).expect("there");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(root.join("nan").join(second), bytes).expect("written");
    fs::write(
        root.join("case.yml"),
        "merge_method: karcher\nmodels: [a, b]\n",
    )
    .expect("written");
    fs::write(
        root.join("bad.yml"),
        "merge_method: karcher\nmodels: [a, b]\ngranularty: row\n",
    )
    .expect("written");
}

const CASES: &[&str] = &[
    "",
    "blend a b",
    "merge",
    "merge a b",
    "merge --out out",
    "merge a b --out out --nonsense",
    "merge a nowhere --out out",
    "merge a empty --out out",
    "merge a file --out out",
    "merge a text.safetensors --out out",
    "merge a short --out out",
    "merge a gap --out out",
    "merge a other --out out",
    "merge a nan --out out",
    "merge a b --out file",
    "merge a b --out file/below",
    "merge a b --out /proc/nothing/out",
    "merge a b --out a",
    "merge a b --out b/../a --overwrite",
    "merge c/alone.safetensors --method linear --out c --overwrite --restart",
    "merge a b --out out --method blend",
    "merge a b --out out --method slerp",
    "merge a b --out out --weights 1",
    "merge a b --out out --weights 1,-1",
    "merge a b --out out --weights 0,0",
    "merge a b --out out --weights 1,x",
    "merge a b --out out --weights 1,nan",
    "merge a b --out out --base 3",
    "merge a b --out out --dtype int8",
    "merge a b --out out --shard-size 5parsecs",
    "merge a b --out out --shard-size 0",
    "merge a b --out out --memory 12",
    "merge a b --out out --memory lots",
    "merge a b --out out --threads 0",
    "merge a b --out out --tol -1",
    "merge a b --out out --tol inf",
    "merge a b --out out -p t=nan",
    "merge a b --out out --granularity layer",
    "merge a b --out out --nan ignore",
    "merge a b --out out --nan base",
    "merge a b --out out --missing base",
    "merge a b --out out -p t",
    "merge a b --out out -p t=half",
    "merge a b --out out -p colour=3",
    "merge a b --out out --zstd 77",
    "merge a b --out out --io tape",
    "merge case.yml a --out out",
    "merge case.yml --out out --method linear",
    "merge case.yml --out out --weights 1,1",
    "merge bad.yml --out out",
    "merge nowhere.yml --out out",
    "plan a nowhere --out out",
    "plan a b --out file",
    "merge a b --out file --overwrite",
    "plan nowhere.yml --out out",
    "symmetries a --spec nowhere.yml",
    "apply nowhere perms.safetensors --out out",
    "apply a nowhere.safetensors --out out",
    "verify a --against nowhere.yml",
    "verify a --against nowhere b",
    "verify",
    "verify file",
    "verify empty",
];

#[test]
fn bad_invocations_are_refused_in_these_words() {
    let root = two_models();
    spoil(root.path());
    let mut said = String::new();
    for case in CASES {
        let _ = fs::remove_dir_all(root.path().join("out"));
        let ended = run(root.path(), case.split_whitespace());
        let code = ended.code.expect("no signal");
        writeln!(said, "$ thalweg {case}\n{}[{code}]\n", ended.stderr).expect("memory");
        assert!(code == 1 || code == 2, "{case}: {ended:?}");
        assert_eq!(ended.stdout, "", "{case}");
        assert!(!ended.stderr.contains("panicked"), "{case}: {ended:?}");
        assert!(
            !root.path().join("out/model.safetensors").exists(),
            "{case}"
        );
        // What the argument parser does not find is one line and perhaps a hint; recipes show their
        // place.
        if !ended.stderr.contains("--help")
            && !ended.stderr.contains("  |\n")
            && !ended.stderr.contains("error: ")
        {
            assert!(ended.stderr.starts_with("thalweg: "), "{case}: {ended:?}");
            assert!(
                ended
                    .stderr
                    .lines()
                    .skip(1)
                    .all(|hint| hint.starts_with("  ")),
                "{case}: {ended:?}"
            );
        }
    }
    insta::assert_snapshot!("bad_invocations", said);
}
