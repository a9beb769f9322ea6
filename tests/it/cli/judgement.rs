//! `plan` is the truth about `merge`: one judgement, one exit code, the same words.

use std::fs;
use std::path::Path;

use super::two_models;
use crate::support::program::{Ended, run};

/// What both commands say about the same arguments, after checking that they say the same.
#[track_caller]
fn judged(root: &Path, args: &[&str]) -> Ended {
    let planned = run(root, ["plan"].iter().chain(args).chain(&["--quiet"]));
    let merged = run(root, ["merge"].iter().chain(args).chain(&["--quiet"]));
    assert_eq!(
        (planned.code, &planned.stderr),
        (merged.code, &merged.stderr),
        "{args:?}"
    );
    merged
}

#[test]
fn what_merge_refuses_plan_refuses_in_the_same_words_and_nothing_was_started() {
    let root = two_models();
    let path = root.path();
    fs::create_dir(path.join("empty")).expect("made");
    fs::create_dir(path.join("other")).expect("made");
    fs::write(path.join("other/model.safetensors"), "somebody's").expect("written");
    fs::write(path.join("file"), "text").expect("written");
    let layers =
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [8, 99]}]}]\n";
    fs::write(path.join("layers.yml"), layers).expect("written");
    fs::create_dir(path.join("cut")).expect("made");
    fs::write(path.join("cut/model.safetensors"), "x").expect("written");
    let refused: [(&[&str], &str); 9] = [
        (&["a", "nowhere", "--out", "out"], "nowhere"),
        (&["a", "empty", "--out", "out"], "empty"),
        (&["a", "cut", "--out", "out"], "cut"),
        (&["a", "b", "--out", "other"], "other"),
        (&["a", "b", "--out", "a/out"], "it lies in the input"),
        (&["a", "b", "--out", "/proc/merged"], "proc"),
        (&["a", "b", "--out", "file/out"], "is a file"),
        (&["layers.yml", "--out", "out"], "layers"),
        (&["a", "b", "--out", "out", "--memory", "1MiB"], "memory"),
    ];
    for (args, word) in refused {
        let ended = judged(path, args);
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(ended.stderr.contains(word), "{args:?}: {ended:?}");
        assert!(!path.join("out").exists(), "{args:?}");
    }
}

#[test]
fn a_plan_takes_every_flag_of_a_merge_and_knows_what_they_change() {
    let root = two_models();
    let path = root.path();
    run(path, ["merge", "a", "b", "--out", "out", "--quiet"]).ok();
    let other = ["a", "b", "--weights", "0.9,0.1", "--out", "out"];
    let merged_before = fs::read(path.join("out/thalweg.json")).expect("there");
    let refused = run(path, ["plan"].iter().chain(&other))
        .fails(2, &["cannot write to folder: out", "--overwrite"]);
    assert!(
        refused.stdout.contains("refused: "),
        "the plan is shown all the same: {refused:?}"
    );
    let flags = [
        "--overwrite",
        "--restart",
        "--io",
        "pread",
        "--simd",
        "portable",
        "--verify",
    ];
    let allowed = run(path, ["plan"].iter().chain(&other).chain(&flags)).ok();
    assert!(allowed.stdout.contains("a new run begins"), "{allowed:?}");
    assert_eq!(
        fs::read(path.join("out/thalweg.json")).expect("there"),
        merged_before,
        "a plan writes nothing"
    );
    let json = run(path, ["plan"].iter().chain(&other).chain(&["--json"]))
        .fails(2, &["cannot write to folder"]);
    assert!(
        json.json()["outlook"]
            .as_str()
            .expect("text")
            .starts_with("refused: cannot write to folder")
    );
    let again = run(path, ["plan", "a", "b", "--out", "out"]).ok();
    assert!(again.stdout.contains("complete already"), "{again:?}");
}

#[test]
fn other_commands_too_say_with_their_code_that_nothing_was_started() {
    let root = two_models();
    let commands: [&[&str]; 5] = [
        &["align", "a", "nowhere", "--out", "t.safetensors"],
        &["apply", "nowhere", "--fold", "--out", "out"],
        &["interpolate", "a", "nowhere", "--out", "out"],
        &["symmetries", "nowhere"],
        &["verify", "a", "--against", "a", "nowhere"],
    ];
    for args in commands {
        run(root.path(), args).fails(2, &["nowhere"]);
        assert!(!root.path().join("out").exists(), "{args:?}");
    }
}
