//! Pairs of models of which one is the other with its units moved, and what `align` and `merge
//! --align` make of them.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;
use thalweg::checkpoint::Checkpoint;
use thalweg::symmetry::{Element, Transform, fingerprint};

use super::Stored;
use super::applying::{exact, same_bytes};
use crate::support::forward::{Chain, Experts, Family, Llama, Net, Random};
use crate::support::program::run;
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Tensor};
use crate::support::whole::PLENTY;

/// `net` in the folder `model`, and in `planted` the same with its units moved: not those of the
/// residual stream, unless that is said, and without rotations, which round.
pub fn planted(net: &Net, residual: bool) -> Stored {
    let stored = Stored::new(net, None);
    let random = exact(&stored.symmetries, Transform::random(&stored.symmetries, 3));
    let groups = stored.symmetries.groups.iter().zip(random.elements());
    let element = |(group, element): (&thalweg::symmetry::Group, &Element)| {
        if group.residual && !residual {
            Element::default()
        } else {
            element.clone()
        }
    };
    let moved =
        Transform::new(&stored.symmetries, groups.map(element).collect()).expect("still fits");
    stored.apply("model", moved, "planted", &PLENTY);
    // As far as the tests go, the tokenizer of a model lies beside it.
    for name in ["model", "planted"] {
        fs::write(
            stored.dir.path().join(name).join("vocab.json"),
            r#"{"a": 0, "b": 1}"#,
        )
        .expect("written");
    }
    stored
}

pub fn llama() -> Net {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
    .random(2)
}

/// `model` with a little noise on every number, in `name`.
pub fn noised(stored: &Stored, name: &str, noise: f64) {
    let mut random = Random::new(77);
    let changed = |(name, tensor): (String, Tensor)| {
        let values: Vec<f64> = tensor
            .values
            .iter()
            .map(|value| value + noise * random.signed())
            .collect();
        (name, Tensor::rounded(Dtype::F64, &tensor.shape, &values))
    };
    let folder = stored.dir.path().join(name);
    let model: Model = read_model(&stored.dir.path().join("model"))
        .into_iter()
        .map(changed)
        .collect();
    write_model(&folder, &model, 1);
    fs::copy(
        stored.dir.path().join("model/config.json"),
        folder.join("config.json"),
    )
    .expect("copied");
}

fn print_of(folder: &Path) -> String {
    fingerprint::of(&Checkpoint::open(folder).expect("opens")).expect("read")
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

/// Aligns, applies, and compares; the report as JSON.
fn found_and_undone(stored: &Stored, more: &[&str]) -> Value {
    let dir = stored.dir.path();
    let align = [
        "align",
        "model",
        "planted",
        "--out",
        "perms.safetensors",
        "--json",
    ];
    let report = run(dir, align.iter().chain(more)).ok().json();
    assert_eq!(report["status"], "aligned");
    let tensors = report["findings"]["tensors"].as_array().expect("a list");
    let count = f64::from(u32::try_from(tensors.len()).expect("few"));
    let (before, after) = (
        number(&report["objective"][0]),
        number(&report["objective"][1]),
    );
    assert!(
        before < 0.9 * count && (after - count).abs() < 1e-9,
        "{before} {after} {count}"
    );
    // An angle is the square root of twice what its cosine lacks.
    assert!(number(&report["mean_angle"][1]) < 1e-6, "{report}");
    assert!(report["moved"].as_u64() > Some(0));
    run(
        dir,
        [
            "apply",
            "planted",
            "perms.safetensors",
            "--out",
            "back",
            "--quiet",
        ],
    )
    .ok();
    same_bytes(stored, "model", "back");
    report
}

#[test]
fn what_was_planted_is_found_and_undone_bit_for_bit() {
    found_and_undone(
        &planted(
            &Chain {
                norms: true,
                flax: false,
            }
            .random(4),
            false,
        ),
        &[],
    );
    found_and_undone(&planted(&llama(), false), &[]);
    let mixtral = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    };
    found_and_undone(&planted(&mixtral.random(8), false), &[]);
}

#[test]
fn the_residual_stream_is_found_when_it_may_move() {
    let stored = planted(&llama(), true);
    let report = found_and_undone(&stored, &["--residual", "permute"]);
    assert_eq!(report["findings"]["options"]["residual"], "permute");
    let kinds = report["findings"]["roots"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|root| &root["kind"]);
    assert!(kinds.into_iter().any(|kind| kind == "residual"), "{report}");
}

#[test]
fn people_are_told_by_kinds_and_by_groups() {
    let stored = planted(&llama(), false);
    let shown = run(stored.dir.path(), ["align", "model", "planted"]).ok();
    assert_eq!(shown.stderr, "");
    let lines: Vec<&str> = shown.stdout.lines().collect();
    assert!(
        lines[0].starts_with("aligned: planted to model by the spec llama: "),
        "{shown:?}"
    );
    assert!(
        lines[1].trim_start().starts_with("kind ") && lines[1].trim_end().ends_with("certificate"),
        "{shown:?}"
    );
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.trim_start().starts_with("mlp "))
            .count(),
        1,
        "{shown:?}"
    );
    assert!(
        shown.stdout.contains("certified optimal") && shown.stdout.contains("a diagnostic"),
        "{shown:?}"
    );
    assert!(!stored.dir.path().join("perms.safetensors").exists());
    let groups = run(stored.dir.path(), ["align", "model", "planted", "-v"])
        .ok()
        .stdout;
    assert!(
        groups.contains("\n group ") && groups.contains("layers.1.mlp"),
        "{groups}"
    );
    assert_eq!(
        run(stored.dir.path(), ["align", "model", "planted", "--quiet"])
            .ok()
            .stdout,
        ""
    );
}

#[test]
fn models_of_one_ancestor_are_certified_to_stay_and_merged_as_they_are() {
    let stored = Stored::new(&llama(), None);
    noised(&stored, "tuned", 1e-3);
    let dir = stored.dir.path();
    let report = run(
        dir,
        [
            "align",
            "model",
            "tuned",
            "--out",
            "perms.safetensors",
            "--json",
        ],
    )
    .ok()
    .json();
    assert_eq!(report["moved"], 0);
    let roots = report["findings"]["roots"].as_array().expect("a list");
    // Of heads the proof is a bound, which noise may leave open.
    let proved = |root: &Value| {
        root["proof"] == "identity" || (root["kind"] == "kv" && root["proof"] == "parts")
    };
    assert!(!roots.is_empty() && roots.iter().all(proved), "{report}");
    let shown = run(
        dir,
        ["align", "model", "tuned", "--out", "perms.safetensors"],
    )
    .ok()
    .stdout;
    assert!(shown.starts_with(
        "complete already: tuned to model by the spec llama, in perms.safetensors: nothing worth moving\n"
    ));
    assert!(shown.contains("identity certified"), "{shown}");
    run(
        dir,
        ["merge", "model", "tuned", "--out", "plain", "--quiet"],
    )
    .ok();
    for (way, out) in [("weights", "weights"), ("perms.safetensors", "file")] {
        run(
            dir,
            [
                "merge", "model", "tuned", "--align", way, "--out", out, "--quiet",
            ],
        )
        .ok();
        same_bytes(&stored, "plain", out);
        let card = fs::read_to_string(dir.join(out).join("README.md")).expect("a card");
        assert!(card.contains(".safetensors: nothing moves"), "{card}");
    }
}

/// The whole of it: plan, merge, what lies beside the output, check against the inputs, and the
/// same again.
#[test]
fn a_merge_aligns_first_and_keeps_what_it_found() {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    let merge = [
        "merge", "model", "planted", "--align", "weights", "--out", "out",
    ];
    let plan = [
        "plan", "model", "planted", "--align", "weights", "--out", "out",
    ];
    assert!(
        run(dir, plan)
            .ok()
            .stdout
            .contains("model 2 to model 1 by weights, not done yet")
    );
    let json = run(dir, plan.iter().chain(&["--json"])).ok().json();
    assert_eq!(
        json["alignment"],
        serde_json::json!({ "files": [], "unaligned": [1] })
    );
    assert!(!dir.join("out").exists(), "a plan writes nothing");
    let shown = run(dir, merge).ok();
    assert!(shown.stdout.starts_with(
        "aligned: planted to model by the spec llama, in out/alignment/2.safetensors: "
    ));
    assert!(
        shown
            .stdout
            .contains("\nmerged 2 models by karcher into out in "),
        "{shown:?}"
    );
    same_bytes(&stored, "model", "out");
    assert!(
        !dir.join("out/.thalweg").exists()
            && !dir.join("out/alignment/.2.safetensors.thalweg").exists()
    );
    let manifest: Value =
        serde_json::from_slice(&fs::read(dir.join("out/thalweg.json")).expect("a manifest"))
            .expect("JSON");
    let listed = &manifest["run"]["alignment"][0];
    assert_eq!(
        (&listed["input"], &listed["file"]),
        (&1.into(), &"alignment/2.safetensors".into()),
        "{listed}"
    );
    let bytes = fs::read(dir.join("out/alignment/2.safetensors")).expect("there");
    assert_eq!(listed["blake3"], blake3::hash(&bytes).to_hex().as_str());
    let card = fs::read_to_string(dir.join("out/README.md")).expect("a card");
    assert!(
        card.contains("aligned by alignment/2.safetensors"),
        "{card}"
    );
    assert!(
        run(dir, plan)
            .ok()
            .stdout
            .contains("model 2 by alignment/2.safetensors")
    );
    let recipe = fs::read_to_string(dir.join("out/mergekit_config.yml")).expect("a recipe");
    assert!(recipe.contains("align:"), "{recipe}");

    run(dir, ["verify", "out"]).ok();
    let against = [
        "verify",
        "out",
        "--sample",
        "1000",
        "--against",
        "model",
        "planted",
        "--align",
        "weights",
    ];
    assert!(
        run(dir, against)
            .ok()
            .stdout
            .contains("every bit is the same")
    );
    run(dir, &against[..7]).fails(1, &["differ"]);
    let again = run(dir, merge.iter().chain(&["--json"])).ok().json();
    assert_eq!(again["status"], "complete already");
    assert_eq!(again["alignments"][0]["file"], "alignment/2.safetensors");
    // The transform is one for `apply` too, and for another merge.
    run(
        dir,
        [
            "apply",
            "planted",
            "out/alignment/2.safetensors",
            "--out",
            "back",
            "--quiet",
        ],
    )
    .ok();
    same_bytes(&stored, "model", "back");
    let other = [
        "merge",
        "model",
        "planted",
        "--align",
        "out/alignment/2.safetensors",
        "--out",
        "other",
        "--quiet",
    ];
    run(dir, other).ok();
    same_bytes(&stored, "model", "other");
    let against = [
        "verify",
        "other",
        "--against",
        "model",
        "planted",
        "--align",
        "out/alignment/2.safetensors",
    ];
    run(dir, against).ok();

    crate::support::files::flip(
        &dir.join("out/alignment/2.safetensors"),
        bytes.len() as u64 - 1,
    );
    run(dir, ["verify", "out"]).fails(
        1,
        &["out/alignment/2.safetensors: the transform was changed"],
    );
    fs::remove_dir_all(dir.join("out/alignment")).expect("removed");
    run(dir, ["verify", "out"]).fails(
        1,
        &["out/alignment/2.safetensors: the transform is missing"],
    );
    run(
        dir,
        [
            "verify",
            "out",
            "--against",
            "model",
            "planted",
            "--align",
            "weights",
        ],
    )
    .fails(
        2,
        &["the transform of model 2", "is not beside it any more"],
    );
    run(dir, merge).fails(2, &["another merge is finished there"]);
    run(dir, merge.iter().chain(&["--overwrite"])).ok();
    same_bytes(&stored, "model", "out");
}

#[test]
fn the_base_stays_and_three_models_are_brought_to_it() {
    let stored = planted(&llama(), false);
    noised(&stored, "tuned", 1e-3);
    let dir = stored.dir.path();
    let recipe = "merge_method: linear\nalign: weights\nbase_model: model\nmodels:\n\
                  \x20 - {model: planted, parameters: {weight: 1}}\n  - {model: tuned, parameters: {weight: 1}}\n\
                  \x20 - {model: model, parameters: {weight: 1}}\n";
    fs::write(dir.join("merge.yml"), recipe).expect("written");
    run(dir, ["merge", "merge.yml", "--out", "out", "--quiet"]).ok();
    let names = |folder: &str| {
        let names = fs::read_dir(dir.join(folder))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<_> = names
            .map(|name| name.into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        names("out/alignment"),
        ["1.safetensors", "2.safetensors"],
        "the base is the third model"
    );
    // By files, each for its model, the same comes out.
    let by_files = recipe.replace(
        "align: weights",
        "align: {files: {planted: out/alignment/1.safetensors, tuned: out/alignment/2.safetensors}}",
    );
    fs::write(dir.join("files.yml"), by_files).expect("written");
    run(dir, ["merge", "files.yml", "--out", "other", "--quiet"]).ok();
    same_bytes(&stored, "out", "other");
    run(dir, ["verify", "other", "--against", "files.yml"]).ok();
    // A third of each, the planted one in its place.
    let [model, tuned, out] = ["model", "tuned", "out"].map(|name| read_model(&dir.join(name)));
    for (name, tensor) in &out {
        for (at, value) in tensor.values.iter().enumerate() {
            let wanted = (2.0 * model[name].values[at] + tuned[name].values[at]) / 3.0;
            // Sums of three terms in f64.
            assert!(
                (value - wanted).abs() < 1e-15 * (1.0 + wanted.abs()),
                "{name} {at}: {value} {wanted}"
            );
        }
    }
}

#[test]
fn a_single_file_has_its_transforms_beside_it() {
    let stored = planted(&llama(), false);
    let dir = stored.dir.path();
    run(
        dir,
        [
            "merge",
            "model",
            "planted",
            "--align",
            "weights",
            "--out",
            "one.safetensors",
            "--quiet",
        ],
    )
    .ok();
    assert!(
        dir.join("one.safetensors.alignment/2.safetensors")
            .is_file()
    );
    let [model, one] = [dir.join("model"), dir.join("one.safetensors")]
        .map(|path| Checkpoint::open(&path).expect("opens"));
    assert_eq!(
        fingerprint::of(&model).expect("read"),
        fingerprint::of(&one).expect("read")
    );
    let against = [
        "verify",
        "one.safetensors",
        "--against",
        "model",
        "planted",
        "--align",
        "weights",
    ];
    assert!(
        run(dir, against)
            .ok()
            .stdout
            .contains("every bit is the same")
    );
}

#[test]
fn a_file_that_was_found_against_a_model_that_is_not_merged_is_warned_of() {
    let stored = planted(&llama(), false);
    noised(&stored, "tuned", 1e-3);
    let dir = stored.dir.path();
    run(
        dir,
        [
            "align",
            "model",
            "planted",
            "--out",
            "perms.safetensors",
            "--quiet",
        ],
    )
    .ok();
    let args = [
        "merge",
        "tuned",
        "planted",
        "--align",
        "perms.safetensors",
        "--out",
        "out",
    ];
    let shown = run(dir, args).ok().stdout;
    assert!(
        shown.contains(
            "warning: perms.safetensors was found against a model that is none of the inputs"
        ),
        "{shown}"
    );
    let shown = run(
        dir,
        [
            "merge",
            "model",
            "tuned",
            "planted",
            "--align",
            "perms.safetensors",
            "--out",
            "all",
        ],
    )
    .ok();
    assert!(!shown.stdout.contains("was found against"), "{shown:?}");
}

#[test]
fn threads_memory_and_instructions_do_not_show_in_a_transform() {
    let stored = planted(&llama(), true);
    let dir = stored.dir.path();
    let mut wanted = None;
    let ways: [&[&str]; 4] = [
        &["-j", "1"],
        &["-j", "3", "--memory", "64MiB"],
        &["-j", "2", "--memory", "1GiB", "--io", "pread"],
        &["--simd", "portable"],
    ];
    for way in ways {
        let args = [
            "align",
            "model",
            "planted",
            "--residual",
            "permute",
            "--quiet",
            "--overwrite",
            "--restart",
        ];
        run(
            dir,
            args.iter()
                .chain(&["--out", "perms.safetensors"])
                .chain(way),
        )
        .ok();
        let bytes = fs::read(dir.join("perms.safetensors")).expect("written");
        assert_eq!(
            wanted.get_or_insert_with(|| bytes.clone()),
            &bytes,
            "{way:?}"
        );
    }
    let print = print_of(&dir.join("planted"));
    let text = String::from_utf8_lossy(wanted.as_deref().expect("made"));
    assert!(text.contains(&print) && text.contains(&print_of(&dir.join("model"))));
}
