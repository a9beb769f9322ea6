//! Flags and recipes are two doors to one merge: the same bounds, and messages in the words of the door.

use std::fs;
use std::path::Path;

use thalweg::method::{GeometricMedian, Karcher};
use thalweg::plan::DEFAULT_SHARD_BYTES;
use thalweg::recipe::{KEYS, Recipe, SWEEPS, THREADS, ZSTD_LEVELS};

use super::two_models;
use crate::program::run;

/// What the program says at exit code 0.
fn said(args: &str) -> String {
    run(Path::new("."), args.split_whitespace()).ok().stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn flags_and_keys_share_their_bounds() {
    let root = two_models();
    for (flag, key, bounds) in [("threads", "threads", THREADS), ("zstd", "zstd", ZSTD_LEVELS)] {
        for number in [*bounds.start() - 1, *bounds.start(), *bounds.end(), *bounds.end() + 1] {
            let inside = bounds.contains(&number);
            let number = number.to_string();
            let flags = ["plan", "a", "b", "--out", "out", &format!("--{flag}"), &number];
            // What does not fit the machine's memory is refused later, and in other words.
            let taken = !run(root.path(), flags).stderr.contains("wanted");
            let recipe = format!("merge_method: karcher\nmodels: [a, b]\n{key}: {number}\n");
            assert_eq!((taken, Recipe::parse(&recipe, "r").is_ok()), (inside, inside), "{flag} {number}");
        }
    }
}

#[test]
fn help_reference_and_readme_state_the_bounds_and_defaults_that_hold() {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("a README");
    let readme = readme.split_whitespace().collect::<Vec<_>>().join(" ");
    let (merge, align) = (said("merge --help"), said("align --help"));
    assert_eq!((Karcher::MAX_ITER, Karcher::TOL), (GeometricMedian::MAX_ITER, GeometricMedian::TOL));
    let threads = format!("{} to {}", THREADS.start(), THREADS.end());
    let levels = format!("{} to {}", ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
    let sweeps = format!("{} to {}", SWEEPS.start(), SWEEPS.end());
    let (steps, tol) = (Karcher::MAX_ITER, Karcher::TOL);
    assert_eq!(DEFAULT_SHARD_BYTES, 5_000_000_000);
    for (text, words) in [
        (&merge, format!("threads, {threads} [default")),
        (&align, format!("threads, {threads} [default")),
        (&readme, format!("threads, {threads};")),
        (&merge, format!("of this level ({levels})")),
        (&readme, format!("level {levels} |")),
        (&merge, format!("number of iterations [default: {steps}]")),
        (&merge, format!("shorter than this [default: {tol:e}]")),
        (&readme, format!("after {steps} steps, or at a step of {tol:e} radians")),
        (&merge, "in one shard [default: 5GB]".to_owned()),
        (&readme, "in one output shard; 5GB by default".to_owned()),
        (&align, format!("over all groups, {sweeps}")),
    ] {
        assert!(text.contains(&words), "wanted {words:?} in {text}");
    }
    for (key, words) in [("threads", &threads), ("zstd", &levels), ("max_sweeps", &sweeps)] {
        let info = KEYS.iter().find(|info| info.key == key).expect("a key");
        assert!(info.value.ends_with(words.as_str()), "{key}: {}", info.value);
    }
    let reference = run(Path::new("."), ["reference", "--json"]).ok().json();
    let karcher = reference["methods"].as_array().expect("methods").iter().find(|method| method["name"] == "karcher");
    let parameters = karcher.expect("karcher")["parameters"].as_array().expect("parameters");
    let default = |name: &str| parameters.iter().find(|found| found["name"] == name).expect("there")["default"].clone();
    assert_eq!(default("max_iter").as_f64(), Some(f64::from(steps)));
    assert_eq!(default("tol").as_f64(), Some(tol));
}

#[test]
fn help_is_written_in_plain_verbs_and_nouns() {
    let commands =
        ["merge", "plan", "verify", "reference", "symmetries", "apply", "align", "activations", "interpolate"];
    for command in commands {
        let help = run(Path::new("."), [command, "--help"]).ok().stdout;
        let odd: Vec<&str> = help
            .lines()
            .map(str::trim)
            .filter(|line| {
                [
                    "What ",
                    "Whether ",
                    "How many ",
                    "In how ",
                    "In blocks ",
                    "Of the ",
                    "By what",
                    "To what ",
                    "Where to ",
                ]
                .iter()
                .any(|opening| line.starts_with(opening))
            })
            .collect();
        assert!(odd.is_empty(), "{command}: {odd:?}");
    }
}
