//! What summaries, plans and help say first, and in which words.

use super::two_models;
use crate::support::program::run;

#[test]
fn a_summary_says_what_was_merged_how_and_into_which_type() {
    let root = two_models();
    let merge = [
        "merge",
        "a",
        "b",
        "--weights",
        "0.25,0.75",
        "--out",
        "out",
        "--dtype",
        "float32",
    ];
    let said = run(root.path(), merge).ok().stdout;
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("merged 2 models by karcher into out in "),
        "{said}"
    );
    assert_eq!(lines[1], "weights: a 0.25, b 0.75");
    assert!(lines[2].contains(" of float32 in 1 shard"), "{said}");
    assert!(
        !said.contains(" 0 ") && !said.contains("1 shards"),
        "what did not happen is not said: {said}"
    );
    let json = run(
        root.path(),
        merge[..3].iter().chain(&["--out", "other", "--json"]),
    )
    .ok()
    .json();
    assert_eq!(json["combined"]["method"], "karcher");
    assert_eq!(json["combined"]["models"][1]["model"], "b");
}

#[test]
fn a_plan_says_method_weights_and_type_and_no_number_that_is_zero() {
    let root = two_models();
    let plan = [
        "plan",
        "a",
        "b",
        "--method",
        "linear",
        "--weights",
        "1,3",
        "--out",
        "out",
    ];
    let said = run(root.path(), plan).ok().stdout;
    for words in [
        "2 models by linear, into ",
        "a 1, b 3",
        " in 1 shard, ",
        "a new run begins",
    ] {
        assert!(said.contains(words), "wanted {words:?} in {said}");
    }
    assert!(
        !said.contains("0 B a second time") && !said.contains("1 shards"),
        "{said}"
    );
}

#[test]
fn one_model_alone_is_remarked_upon() {
    let root = two_models();
    for args in [
        ["plan", "a", "--out", "out"],
        ["merge", "a", "--out", "out"],
    ] {
        let said = run(root.path(), args).ok().stdout;
        assert!(said.contains("there is one model only"), "{said}");
    }
}

#[test]
fn compressed_output_says_how_it_is_loaded() {
    let root = two_models();
    let said = run(
        root.path(),
        ["merge", "a", "b", "--out", "out", "--zstd", "3"],
    )
    .ok()
    .stdout;
    assert!(said.contains("zstd -d"), "{said}");
}

#[test]
fn only_the_flags_of_the_script_stand_under_its_heading() {
    let root = two_models();
    let help = run(root.path(), ["merge", "--help"]).ok().stdout;
    let (_, script) = help
        .split_once("As the Karcher-merge script has it:")
        .expect("a heading");
    let flags = script
        .lines()
        .filter(|line| line.starts_with("      --"))
        .count();
    assert_eq!(flags, 3, "{script}");
}

#[test]
fn verify_says_in_json_that_all_is_sound() {
    let root = two_models();
    run(root.path(), ["merge", "a", "b", "--out", "out", "--quiet"]).ok();
    assert_eq!(
        run(root.path(), ["verify", "out", "--json"]).ok().json()["status"],
        "sound"
    );
}
