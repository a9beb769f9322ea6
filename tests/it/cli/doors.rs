//! Flags and recipes are two doors to one merge: the same bounds, and messages in the words of the
//! door.

use std::fs;
use std::path::Path;

use thalweg::method::{GeometricMedian, Karcher};
use thalweg::plan::DEFAULT_SHARD_BYTES;
use thalweg::recipe::{KEYS, Recipe, SWEEPS, THREADS, ZSTD_LEVELS};

use super::two_models;
use crate::crash_merge::small_shards;
use crate::support::program::run;
use crate::support::striped::write;

/// What the program says at exit code 0.
fn said(args: &str) -> String {
    run(Path::new("."), args.split_whitespace())
        .ok()
        .stdout
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn flags_and_keys_share_their_bounds() {
    let root = two_models();
    for (flag, key, bounds) in [
        ("threads", "threads", THREADS),
        ("zstd", "zstd", ZSTD_LEVELS),
    ] {
        for number in [
            *bounds.start() - 1,
            *bounds.start(),
            *bounds.end(),
            *bounds.end() + 1,
        ] {
            let inside = bounds.contains(&number);
            let number = number.to_string();
            let flags = [
                "plan",
                "a",
                "b",
                "--out",
                "out",
                &format!("--{flag}"),
                &number,
            ];
            // What does not fit the machine's memory is refused later, and in other words.
            let taken = !run(root.path(), flags).stderr.contains("wanted");
            let recipe = format!("merge_method: karcher\nmodels: [a, b]\n{key}: {number}\n");
            assert_eq!(
                (taken, Recipe::parse(&recipe, "r").is_ok()),
                (inside, inside),
                "{flag} {number}"
            );
        }
    }
}

#[test]
fn help_reference_and_guide_state_the_bounds_and_defaults_that_hold() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide.md"))
        .expect("a guide");
    let guide = guide.split_whitespace().collect::<Vec<_>>().join(" ");
    let (merge, align) = (said("merge --help"), said("align --help"));
    assert_eq!(
        (Karcher::MAX_ITER, Karcher::TOL),
        (GeometricMedian::MAX_ITER, GeometricMedian::TOL)
    );
    let threads = format!("{} to {}", THREADS.start(), THREADS.end());
    let levels = format!("{} to {}", ZSTD_LEVELS.start(), ZSTD_LEVELS.end());
    let sweeps = format!("{} to {}", SWEEPS.start(), SWEEPS.end());
    let (steps, tol) = (Karcher::MAX_ITER, Karcher::TOL);
    assert_eq!(DEFAULT_SHARD_BYTES, 5_000_000_000);
    for (text, words) in [
        (&merge, format!("threads, {threads} [default")),
        (&align, format!("threads, {threads} [default")),
        (&guide, format!("threads, {threads};")),
        (&merge, format!("of this level ({levels})")),
        (&guide, format!("level {levels} |")),
        (&merge, format!("number of iterations [default: {steps}]")),
        (&merge, format!("shorter than this [default: {tol:e}]")),
        (
            &guide,
            format!("after {steps} steps, or at a step of {tol:e} radians"),
        ),
        (&merge, "in one shard [default: 5GB]".to_owned()),
        (&guide, "in one output shard; 5GB by default".to_owned()),
        (&align, format!("over all groups, {sweeps}")),
    ] {
        assert!(text.contains(&words), "wanted {words:?} in {text}");
    }
    for (key, words) in [
        ("threads", &threads),
        ("zstd", &levels),
        ("max_sweeps", &sweeps),
    ] {
        let info = KEYS.iter().find(|info| info.key == key).expect("a key");
        assert!(
            info.value.ends_with(words.as_str()),
            "{key}: {}",
            info.value
        );
    }
    let reference = run(Path::new("."), ["reference", "--json"]).ok().json();
    let karcher = reference["methods"]
        .as_array()
        .expect("methods")
        .iter()
        .find(|method| method["name"] == "karcher");
    let parameters = karcher.expect("karcher")["parameters"]
        .as_array()
        .expect("parameters");
    let default = |name: &str| {
        parameters
            .iter()
            .find(|found| found["name"] == name)
            .expect("there")["default"]
            .clone()
    };
    assert_eq!(default("max_iter").as_f64(), Some(f64::from(steps)));
    assert_eq!(default("tol").as_f64(), Some(tol));
}

#[test]
fn help_is_written_in_plain_verbs_and_nouns() {
    let commands = [
        "merge",
        "plan",
        "verify",
        "reference",
        "symmetries",
        "apply",
        "align",
        "activations",
        "interpolate",
    ];
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

/// What is said, in one line, and the exit code.
fn ended(root: &Path, args: &[&str]) -> (String, Option<i32>) {
    let ended = run(root, args);
    (
        ended
            .stderr
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        ended.code,
    )
}

#[test]
fn every_mistake_by_flags_names_the_flag_what_was_typed_and_what_is_possible() {
    let root = two_models();
    for (typed, words) in [
        (
            "--method kracher",
            &[
                "--method kracher: unknown merge method",
                "did you mean `karcher`?",
            ][..],
        ),
        (
            "--method ties",
            &["--method ties: ties needs a `--base`", "`--base 1`"],
        ),
        (
            "--method slerp",
            &["--method slerp: slerp needs a `--base`", "`--base 1`"],
        ),
        (
            "--method slerp --base 1",
            &[
                "--method slerp: slerp needs the parameter `t`",
                "`--parameter t=0.5`",
            ],
        ),
        (
            "--weights 1",
            &["--weights 1: wanted 2 numbers, one for each model, got 1"],
        ),
        (
            "--weights 1,-1",
            &["--weights 1,-1: `weight` must not be negative, found -1"],
        ),
        (
            "--weights -1,2",
            &["--weights -1,2: `weight` must not be negative, found -1"],
        ),
        ("--weights 1,x", &["'x' for '--weights", "wanted a number"]),
        (
            "--weights 1,nan",
            &["a weight of NaN: wanted a finite number"],
        ),
        (
            "--weights 0.5 0.5",
            &[
                "`0.5` stands where a model is expected",
                "--weights 0.5,0.5",
            ],
        ),
        (
            "--base 3",
            &["--base 3: wanted a position from 1 to 2, or one of the models as it was given"],
        ),
        (
            "--base base",
            &["--base base: wanted a position from 1 to 2, or one of the models as it was given"],
        ),
        ("--base -1", &["--base -1: wanted a position from 1 to 2"]),
        (
            "--granularity layer",
            &[
                "--granularity layer: `--granularity` must be one of tensor, row, model, found `layer`",
            ],
        ),
        (
            "--nan ignore",
            &["--nan ignore: `--nan` must be one of error, propagate, base"],
        ),
        (
            "--nan base",
            &["--nan base: `--nan` takes tensors from the base, but there is no `--base`"],
        ),
        (
            "--missing base",
            &["--missing base: `--missing` takes tensors from the base, but there is no `--base`"],
        ),
        (
            "--mismatch pda",
            &[
                "--mismatch pda: `--mismatch` must be one of error, pad, crop, skip",
                "did you mean `pad`?",
            ],
        ),
        ("--dtype int8", &["'int8' for '--dtype", "float32"]),
        (
            "--tol -1",
            &["--tol -1: `--tol` must be above zero, found -1"],
        ),
        (
            "--max-iter -1",
            &["'-1' for '--max-iter", "wanted a whole number from 0 on"],
        ),
        (
            "--max-iter 2000000",
            &["--max-iter 2000000: `--max-iter` must be a whole number from 0 to 1000000"],
        ),
        (
            "-p colour=3",
            &[
                "--parameter colour=3: karcher has no parameter `colour`",
                "weight, max_iter, tol",
            ],
        ),
        (
            "-p wieght=3",
            &["--parameter wieght=3: karcher has no parameter `wieght`, did you mean `weight`?"],
        ),
        ("-p t", &["'t' for '--parameter", "write it as NAME=VALUE"]),
        (
            "--memory -1",
            &["'-1' for '--memory", "is not a size; write it as 256MiB"],
        ),
        (
            "--memory -1GiB",
            &["'-1GiB' for '--memory", "is not a size"],
        ),
        (
            "--shard-size -5GB",
            &["'-5GB' for '--shard-size", "is not a size"],
        ),
        ("--threads -1", &["'-1' for '--threads", "wanted 1 to 1024"]),
        (
            "--zstd -3",
            &["'-3' for '--zstd", "wanted a level from 1 to 19"],
        ),
        (
            "--align weights,b.safetensors",
            &["--align: wanted weights alone, or files"],
        ),
    ] {
        for command in ["merge", "plan"] {
            let args: Vec<&str> = [command, "a", "b"]
                .into_iter()
                .chain(typed.split(' '))
                .chain(["--out", "out"])
                .collect();
            let (said, code) = ended(root.path(), &args);
            assert_eq!(code, Some(2), "{typed}: {said}");
            assert!(
                words.iter().all(|words| said.contains(words)),
                "{typed}: wanted {words:?} in {said}"
            );
            assert!(
                !said.contains("'-- -") && !said.contains("command line:1"),
                "{typed}: {said}"
            );
        }
        assert!(!root.path().join("out").exists(), "{typed}");
    }
}

#[test]
fn several_mistakes_by_flags_are_told_at_once() {
    let root = two_models();
    let args =
        "merge a b --out out --method kracher --nan ignore --granularity layer --missing some";
    let said = run(root.path(), args.split(' ')).fails(
        2,
        &["--method kracher", "--nan ignore", "--granularity layer"],
    );
    assert_eq!(said.stderr.matches("thalweg: ").count(), 4, "{said:?}");
}

#[test]
fn weights_may_have_spaces_behind_their_commas_and_the_base_may_be_named() {
    let root = two_models();
    let plan = |args: &[&str]| {
        run(
            root.path(),
            ["plan", "a", "b", "--out", "out", "--json"]
                .iter()
                .chain(args),
        )
        .ok()
        .json()
    };
    let weights = |args: &[&str]| {
        plan(args)["identity"]["recipe"]["models"][1]["parameters"]["weight"].clone()
    };
    assert_eq!(weights(&["--weights", "0.25, 0.5"]), 0.5);
    assert_eq!(
        plan(&["--base", "b"])["identity"]["recipe"]["base_model"],
        "b"
    );
    assert_eq!(
        plan(&["--base", "2"])["identity"],
        plan(&["--base", "b"])["identity"]
    );
}

#[test]
fn hints_speak_in_the_words_of_the_door_that_the_user_came_in_by() {
    let root = two_models();
    let mut shards = small_shards();
    shards[1][0].shape = vec![16, 2048];
    write(&root.path().join("other"), &shards, 3);
    shards[1].remove(0);
    write(&root.path().join("fewer"), &shards, 4);
    write(&root.path().join("nan"), &small_shards(), 3);
    let second = root.path().join("nan/model-00002-of-00003.safetensors");
    let mut bytes = fs::read(&second).expect("there");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(second, bytes).expect("written");
    // What goes wrong, and the setting that is named: by flags, in a recipe.
    let cases = [
        ("other", "", "", "--mismatch pad", "mismatch: pad"),
        ("fewer", "", "", "--missing common", "missing: common"),
        ("nan", "", "", "--nan propagate", "nan: propagate"),
        ("b", "--nan base", "nan: base\n", "--base", "base_model"),
        (
            "b",
            "--missing base",
            "missing: base\n",
            "--base",
            "base_model",
        ),
        (
            "b",
            "--mismatch skip",
            "mismatch: skip\n",
            "--base",
            "base_model",
        ),
        (
            "b",
            "--method model_stock",
            "merge_method: model_stock\n",
            "--base 1",
            "base_model: ORG/NAME",
        ),
        (
            "b",
            "--method slerp --base 1",
            "merge_method: slerp\nbase_model: a\n",
            "--parameter t=0.5",
            "parameters: {t: 0.5}",
        ),
        (
            "b",
            "--method frechet --base 1 --nan base",
            "merge_method: frechet\nbase_model: a\nnan: base\n",
            "--granularity tensor",
            "granularity: tensor",
        ),
    ];
    for (model, typed, keys, flag, key) in cases {
        let flags: Vec<&str> = ["merge", "a", model, "--out", "out"]
            .into_iter()
            .chain(typed.split_whitespace())
            .collect();
        let (by_flags, _) = ended(root.path(), &flags);
        let method = if keys.contains("merge_method") {
            ""
        } else {
            "merge_method: karcher\n"
        };
        fs::write(
            root.path().join("case.yml"),
            format!("{method}{keys}models: [a, {model}]\n"),
        )
        .expect("written");
        let (by_recipe, _) = ended(root.path(), &["merge", "case.yml", "--out", "out"]);
        assert!(
            by_flags.contains(&format!("`{flag}`")),
            "{model} {typed}: {by_flags}"
        );
        assert!(!by_flags.contains(key), "{model} {typed}: {by_flags}");
        assert!(by_recipe.contains(key), "{model} {keys}: {by_recipe}");
        assert!(!by_recipe.contains(flag), "{model} {keys}: {by_recipe}");
        let _ = fs::remove_dir_all(root.path().join("out"));
    }
}

#[test]
fn a_recipe_is_known_by_what_it_says_whatever_it_is_called() {
    let root = two_models();
    let yaml = "merge_method: karcher\nmodels: [a, b]\n";
    let json = r#"{"merge_method": "karcher", "models": ["a", "b"]}"#;
    for (name, text) in [
        ("r.txt", yaml),
        ("r", yaml),
        ("r.json", json),
        ("r.yaml.bak", yaml),
    ] {
        fs::write(root.path().join(name), text).expect("written");
        run(root.path(), ["plan", name, "--out", "out"]).ok();
    }
    fs::write(
        root.path().join("moe.txt"),
        "base_model: a\ngate_mode: hidden\nexperts: [{source_model: a}]\n",
    )
    .expect("written");
    run(root.path(), ["merge", "moe.txt", "--out", "out"])
        .fails(2, &["mergekit-moe", "`merge_method`"]);
    for (name, text, words) in [
        (
            "config.json",
            r#"{"architectures": ["LlamaForCausalLM"]}"#,
            "is the configuration of a model",
        ),
        (
            "model.safetensors.index.json",
            r#"{"metadata": {}, "weight_map": {}}"#,
            "is the index of a checkpoint",
        ),
        (
            "notes.txt",
            "Some words on models.\n",
            "is text, neither a checkpoint nor a recipe",
        ),
    ] {
        fs::write(root.path().join(name), text).expect("written");
        let said = run(root.path(), ["merge", "a", name, "--out", "out"]).fails(2, &[name, words]);
        assert!(!said.stderr.contains("header of"), "{said:?}");
    }
}

#[test]
fn warnings_of_a_recipe_reach_plan_and_report() {
    let root = two_models();
    fs::write(
        root.path().join("r.yml"),
        "merge_method: karcher\nmodels: [a, b]\nint8_mask: true\nrandom_seed: 1\n",
    )
    .expect("written");
    let words = "r.yml:3:1: `int8_mask` in a recipe has no effect here, as in mergekit";
    for command in ["plan", "merge"] {
        let ended = run(root.path(), [command, "r.yml", "--out", "out"]).ok();
        assert!(
            ended.stdout.contains(words) && ended.stdout.contains("r.yml:4:1: `random_seed`"),
            "{ended:?}"
        );
    }
    fs::write(
        root.path().join("odd.yml"),
        "merge_method: karcher\nmodels: [a, b]\ntemprature: 1\n",
    )
    .expect("written");
    run(root.path(), ["plan", "odd.yml", "--out", "out2"]).fails(2, &["unknown key `temprature`"]);
    let lenient = run(
        root.path(),
        ["plan", "odd.yml", "--out", "out2", "--lenient"],
    )
    .ok();
    assert!(
        lenient
            .stdout
            .contains("`temprature` in a recipe is not known and has no effect"),
        "{lenient:?}"
    );
    run(root.path(), ["verify", "out", "--against", "r.yml"]).ok();
}

#[test]
fn mergekit_s_command_line_is_understood() {
    let root = two_models();
    fs::write(
        root.path().join("r.yml"),
        "merge_method: karcher\nmodels: [a, b]\n",
    )
    .expect("written");
    let typed = "merge r.yml out --lazy-unpickle --copy-tokenizer --out-shard-size 5B --num-threads 2 --low-cpu-memory \
                 --allow-crimes --trust-remote-code -v";
    let ended = run(root.path(), typed.split_whitespace()).ok();
    assert!(root.path().join("out/thalweg.json").exists());
    for flag in [
        "--low-cpu-memory has no effect here",
        "--allow-crimes has no effect here",
        "--trust-remote-code has no",
    ] {
        assert!(ended.stdout.contains(flag), "{flag}: {ended:?}");
    }
    assert!(!ended.stdout.contains("lazy-unpickle"), "{ended:?}");
    // The same command again: the output is there now.
    run(root.path(), ["merge", "r.yml", "out"]).ok();
    for (flag, words) in [
        ("--unsafe-truncate-embeddings", "--mismatch crop"),
        ("--no-safe-serialization", "writes safetensors only"),
        ("--transformers-cache=x", "HF_HUB_CACHE"),
        ("--num-threads=0", "wanted 1 to 1024"),
        ("--out-shard-size=x", "is not a size"),
    ] {
        let name = flag.split('=').next().expect("a name");
        run(root.path(), ["merge", "r.yml", "other", flag]).fails(2, &[name, words]);
    }
    // There may be no such device; then that is what is said.
    let cuda = run(root.path(), ["plan", "r.yml", "other", "--cuda"]);
    let same = run(root.path(), ["plan", "r.yml", "other", "--device", "cuda"]);
    assert_eq!((cuda.code, cuda.stderr), (same.code, same.stderr));
    run(root.path(), ["merge", "r.yml"]).fails(2, &["--out: is needed", "--out DIR"]);
}

#[test]
fn a_tilde_that_the_shell_has_left_is_the_home_folder() {
    let root = two_models();
    let mut command =
        crate::support::program::program(root.path(), ["merge", "~/a", "~/b", "--out=~/merged"]);
    let output = command
        .env("HOME", root.path())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    assert!(root.path().join("merged/thalweg.json").exists() && !root.path().join("~").exists());
}

#[test]
fn another_finished_merge_is_told_apart_in_words() {
    let root = two_models();
    write(&root.path().join("c"), &small_shards(), 5);
    run(root.path(), ["merge", "a", "b", "--out", "out"]).ok();
    for (typed, words) in [
        (
            "a c --method linear",
            "it was merged from a, b by karcher; this run merges a, c by linear",
        ),
        (
            "a b --dtype float32",
            "it was merged from a, b by karcher too, but it has no `--dtype`, this run `--dtype float32`",
        ),
        (
            "a b --nan propagate --restart",
            "it was merged from a, b by karcher too, but it has no `--nan`, this run `--nan propagate`",
        ),
    ] {
        let args = ["merge"]
            .into_iter()
            .chain(typed.split(' '))
            .chain(["--out", "out"]);
        let said = run(root.path(), args).fails(
            2,
            &["another merge is finished there", words, "--overwrite"],
        );
        assert!(
            !said.stderr.contains("manifest") && !said.stderr.contains("recipe."),
            "{said:?}"
        );
        assert_eq!(
            said.stderr
                .contains("--restart discards unfinished work only"),
            typed.contains("--restart"),
            "{said:?}"
        );
    }
}

#[test]
fn another_architecture_is_named_before_its_tensors() {
    let root = two_models();
    let mut shards = small_shards();
    shards[1].remove(0);
    write(&root.path().join("fewer"), &shards, 4);
    for (model, class) in [
        ("a", "LlamaForCausalLM"),
        ("b", "LlamaForCausalLM"),
        ("fewer", "GPT2LMHeadModel"),
    ] {
        let config = format!("{{\"architectures\": [\"{class}\"]}}");
        fs::write(root.path().join(model).join("config.json"), config).expect("written");
    }
    let said = run(root.path(), ["merge", "a", "fewer", "--out", "out"]);
    let at = |words: &str| {
        said.stderr
            .find(words)
            .unwrap_or_else(|| panic!("wanted {words:?} in {said:?}"))
    };
    assert!(
        at("a is a LlamaForCausalLM, fewer a GPT2LMHeadModel")
            < at("not there, though other inputs"),
        "{said:?}"
    );
}

#[test]
fn more_memory_than_the_machine_has_is_refused() {
    let root = two_models();
    for command in ["merge", "plan"] {
        let said = run(
            root.path(),
            [command, "a", "b", "--out", "out", "--memory", "9999TiB"],
        );
        said.fails(2, &["cannot have the memory", "--memory"]);
    }
}
