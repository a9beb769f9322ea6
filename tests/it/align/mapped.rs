//! Maps of the residual stream, and many models, through the program: align, apply, merge.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use serde_json::{Value, json};
use thalweg::align::many::ManyOptions;
use thalweg::align::run::{Align, ManyReport, ModelSet, ModelSetTask, align};
use thalweg::checkpoint::Checkpoint;
use thalweg::engine::Options;
use thalweg::error::Result;
use thalweg::likeness::Waived;
use thalweg::output::{Storage, Target};
use thalweg::symmetry::Transform;

use super::Stored;
use super::function::distance;
use crate::support::crash::{CrashStorage, Image};
use crate::support::files::scratch;
use crate::support::forward::{Chain, Family, Gpt2, Llama, Net};
use crate::support::program::run;
use crate::support::reference::Tensor;
use crate::support::reference::files::{read_model, write_model};
use crate::support::whole::PLENTY;

/// Outputs may differ by so much of the largest where a map was found from sums in f32.
const FOUND: f64 = 1e-4;

fn family() -> Llama {
    Llama {
        model_type: "llama",
        tied: true,
        ..Llama::default()
    }
}

/// `model`, and `planted`: folded, its stream under a random map and everything else moved, tied
/// head and all.
fn planted(dir: &Stored, net: &Net) -> Transform {
    let folded = Stored::new(net, None)
        .folded()
        .expect("norms that may be folded");
    let transform = Transform::random(&folded.symmetries, 3);
    folded.apply("model", transform.clone(), "planted", &PLENTY);
    for name in ["config.json", "model.safetensors"] {
        let to = dir.dir.path().join("planted");
        fs::create_dir_all(&to).expect("a folder");
        fs::copy(folded.dir.path().join("planted").join(name), to.join(name)).expect("copied");
    }
    transform
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).expect("written")).expect("JSON")
}

#[test]
fn a_planted_map_is_found_applied_and_merged_over() {
    let net = Llama {
        tied: false,
        ..family()
    }
    .random(6);
    let stored = Stored::new(&net, None);
    planted(&stored, &net);
    let dir = stored.dir.path();
    let align = [
        "align",
        "model",
        "planted",
        "--residual",
        "orthogonal",
        "--out",
        "map.safetensors",
        "--json",
    ];
    let report = run(dir, align).ok().json();
    let [before, after] = [0, 1].map(|at| report["objective"][at].as_f64().expect("a number"));
    assert!(
        before < 8.0 && after > 15.999 && after < 16.001,
        "{before} {after}"
    );
    assert_eq!(report["findings"]["options"]["residual"], "orthogonal");
    assert_eq!(run(dir, align).ok().json()["status"], "complete already");
    run(
        dir,
        [
            "apply",
            "planted",
            "map.safetensors",
            "--out",
            "back",
            "--quiet",
        ],
    )
    .ok();
    run(
        dir,
        ["apply", "model", "--fold", "--out", "folded", "--quiet"],
    )
    .ok();
    run(
        dir,
        [
            "merge",
            "model",
            "planted",
            "--align",
            "map.safetensors",
            "--out",
            "merged",
            "--quiet",
        ],
    )
    .ok();
    let found = [
        "merge",
        "model",
        "planted",
        "--align",
        "weights",
        "--align-residual",
        "orthogonal",
        "--out",
        "found",
    ];
    run(dir, found).ok();
    assert_eq!(
        read_model(&dir.join("merged")),
        read_model(&dir.join("found"))
    );
    let [back, folded, merged] = ["back", "folded", "merged"].map(|name| net.read(&dir.join(name)));
    for (name, (_, values)) in &folded.tensors {
        let far = values
            .iter()
            .zip(back.get(name))
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max);
        assert!(far < FOUND, "{name}: {far:e}");
    }
    assert!(distance(&family(), &net, &folded) < 1e-10);
    assert!(
        distance(&family(), &net, &merged) < FOUND,
        "{:e}",
        distance(&family(), &net, &merged)
    );
    for name in ["back", "folded", "merged", "found"] {
        assert_eq!(
            config(&dir.join(name))["tie_word_embeddings"],
            json!(false),
            "{name}"
        );
    }
    let verify = [
        "verify",
        "found",
        "--against",
        "model",
        "planted",
        "--align",
        "weights",
        "--align-residual",
        "orthogonal",
    ];
    run(dir, verify).ok();
    // The map by itself, as somebody else would bring it.
    let transform = read_model(&dir.join("map.safetensors"));
    let map = &transform["residual.map"];
    write_model(
        &dir.join("raw"),
        &[("anything".to_owned(), map.clone())].into_iter().collect(),
        1,
    );
    let given = [
        "align",
        "model",
        "planted",
        "--residual",
        "raw/model.safetensors",
        "--out",
        "given.safetensors",
    ];
    run(dir, given).ok();
    let given = read_model(&dir.join("given.safetensors"));
    assert_eq!(given["residual.map"].bytes, map.bytes);
    run(
        dir,
        [
            "apply",
            "planted",
            "given.safetensors",
            "--out",
            "given",
            "--quiet",
        ],
    )
    .ok();
    let given = net.read(&dir.join("given"));
    assert!(folded.tensors.iter().all(|(name, (_, values))| {
        values
            .iter()
            .zip(given.get(name))
            .all(|(x, y)| (x - y).abs() < FOUND)
    }));
    run(
        dir,
        [
            "apply",
            "planted",
            "raw/model.safetensors",
            "--out",
            "stream",
            "--quiet",
        ],
    )
    .ok();
    let stream = net.read(&dir.join("stream"));
    assert_eq!(
        stream.get("model.embed_tokens.weight"),
        back.get("model.embed_tokens.weight")
    );
    assert!(
        distance(&family(), &net, &stream) < 1e-10,
        "whatever the map, the function stays"
    );
    run(
        dir,
        [
            "apply",
            "stream",
            "raw/model.safetensors",
            "--inverse",
            "--out",
            "again",
            "--quiet",
        ],
    )
    .ok();
    let far = |one: &[f64], other: &[f64]| {
        one.iter()
            .zip(other)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max)
    };
    let again = net.read(&dir.join("again"));
    let planted = net.read(&dir.join("planted"));
    assert!(
        far(
            again.get("model.embed_tokens.weight"),
            planted.get("model.embed_tokens.weight")
        ) < 1e-13
    );
}

#[test]
fn what_cannot_be_mapped_is_refused_in_words() {
    let net = Llama {
        tied: false,
        ..family()
    }
    .random(6);
    let stored = Stored::new(&net, None);
    planted(&stored, &net);
    let dir = stored.dir.path();
    let align = |residual: &str| run(dir, ["align", "model", "planted", "--residual", residual]);
    align("sideways").fails(
        2,
        &["wanted fixed, permute, orthogonal, or a file that is there"],
    );
    align("model").fails(2, &["one called `residual.map`"]);
    let write = |name: &str, size: usize, values: &[f64]| {
        let tensor = Tensor::rounded(Dtype::F64, &[size, size], values);
        write_model(
            &dir.join(name),
            &[("map".to_owned(), tensor)].into_iter().collect(),
            1,
        );
    };
    let mut almost = vec![0.0; 144];
    (0..12).for_each(|at| almost[at * 13] = 1.0);
    write("small", 3, &[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
    align("small/model.safetensors").fails(2, &["wanted floats of shape [12, 12], got F64 [3, 3]"]);
    almost[1] = 0.01;
    write("almost", 12, &almost);
    align("almost/model.safetensors").fails(2, &["not orthogonal: rows 1 and 0 are off by 1.0e-2"]);
    let apply = |map: &str| run(dir, ["apply", "planted", map, "--out", "out"]);
    apply("almost/model.safetensors").fails(2, &["not orthogonal"]);
    apply("model/model.safetensors").fails(2, &["cannot use transform"]);
    run(
        dir,
        [
            "apply",
            "planted",
            "--fold",
            "almost/model.safetensors",
            "--out",
            "out",
        ],
    )
    .fails(2, &["--fold"]);
    run(dir, ["apply", "planted", "--out", "out"]).fails(2, &["TRANSFORM"]);
    let gpt2 = Stored::new(&Gpt2.random(1), None);
    let other = Stored::new(&Gpt2.random(2), None);
    let path = other.dir.path().join("model");
    let align = [
        Path::new("align"),
        Path::new("model"),
        &path,
        Path::new("--residual"),
        Path::new("orthogonal"),
    ];
    run(gpt2.dir.path(), align).fails(2, &["cannot fold norms", "LayerNorm takes the mean away"]);
    run(
        gpt2.dir.path(),
        ["apply", "model", "--fold", "--out", "out"],
    )
    .fails(2, &["LayerNorm takes the mean away"]);
    assert!(!dir.join("out").exists());
}

/// Noisy copies of a network, each with its hidden units in another order, in folders `m0`, `m1`
/// and so on.
pub fn set(count: usize) -> Stored {
    let net = Chain {
        norms: false,
        flax: false,
    }
    .random(4);
    let stored = Stored::new(&net, None);
    for model in 0..count {
        let mut noisy = net.clone();
        let mut random = crate::support::forward::Random::new(100 + model as u64);
        for (_, values) in noisy.tensors.values_mut() {
            values
                .iter_mut()
                .for_each(|value| *value += 0.02 * random.signed());
        }
        let member = Stored::new(&noisy, None);
        let transform = Transform::random(&member.symmetries, model as u64);
        member.apply("model", transform, "moved", &PLENTY);
        let to = stored.dir.path().join(format!("m{model}"));
        fs::create_dir_all(&to).expect("a folder");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(member.dir.path().join("moved").join(name), to.join(name)).expect("copied");
        }
    }
    stored
}

#[test]
fn many_models_are_aligned_applied_and_merged() {
    let stored = set(4);
    let dir = stored.dir.path();
    let align = [
        "align",
        "m0",
        "m1",
        "m2",
        "m3",
        "--reference",
        "m2",
        "--out",
        "maps",
        "--json",
    ];
    let report = run(dir, align).ok().json();
    assert_eq!(
        (
            &report["reference"],
            &report["settled"],
            &report["cycle_error"]
        ),
        (&json!(2), &json!(true), &json!(0.0))
    );
    assert_eq!(
        run(dir, align).ok().json()["models"][0]["status"],
        "complete already"
    );
    let shown = run(dir, &align[..9]).ok().stdout;
    assert!(
        shown.contains("m2 stays as it is")
            && shown.contains("nothing moves any more; cycle error 0"),
        "{shown}"
    );
    let mut near = Vec::new();
    for model in 0..4 {
        let (file, out) = (
            format!("maps/{}.safetensors", model + 1),
            format!("a{model}"),
        );
        run(
            dir,
            [
                "apply",
                &format!("m{model}"),
                &file,
                "--out",
                &out,
                "--quiet",
            ],
        )
        .ok();
        near.push(read_model(&dir.join(out)));
    }
    assert_eq!(
        near[2],
        read_model(&dir.join("m2")),
        "that with which it began"
    );
    for (name, tensor) in &near[2] {
        for other in &near {
            let far = tensor
                .values
                .iter()
                .zip(&other[name].values)
                .map(|(x, y)| (x - y).abs())
                .fold(0.0, f64::max);
            assert!(far < 0.05, "{name}: {far}");
        }
    }
    // Each of several ways ends with the same, as the noise is small.
    for (at, more) in [
        &["--merge-many"][..],
        &["--reference", "mean"],
        &["--max-rounds", "3"],
    ]
    .iter()
    .enumerate()
    {
        let out = format!("way-{at}");
        let align = ["align", "m0", "m1", "m2", "m3", "--out", &out, "--json"];
        let found = run(dir, align.iter().chain(*more)).ok().json();
        assert_eq!(found["settled"], json!(true), "{more:?}");
    }
    let first = ["align", "m0", "m1", "m2", "--reference", "first", "--json"];
    assert_eq!(run(dir, first).ok().json()["rounds"], json!(1));
    // Before a merge: the donor stays.
    let merge = [
        "merge",
        "m0",
        "m1",
        "m2",
        "m3",
        "--align",
        "weights",
        "--align-reference",
        "mean",
        "--method",
        "linear",
    ];
    run(dir, merge.iter().chain(&["--out", "merged", "--quiet"])).ok();
    let merged = read_model(&dir.join("merged"));
    for (name, tensor) in &read_model(&dir.join("m0")) {
        let far = tensor
            .values
            .iter()
            .zip(&merged[name].values)
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max);
        assert!(far < 0.05, "{name}: {far}");
    }
    assert!(dir.join("merged/alignment/4.safetensors").is_file());
    run(
        dir,
        ["verify", "merged", "--against"].iter().chain(&merge[1..]),
    )
    .ok();
}

#[test]
fn many_models_that_do_not_fit_are_refused() {
    let stored = set(3);
    let dir = stored.dir.path();
    run(dir, ["align", "m0", "m1", "m2", "--reference", "m7"])
        .fails(2, &["one of the checkpoints that are aligned"]);
    run(dir, ["align", "m0", "m1", "m0"]).fails(2, &["the same model as m0"]);
    run(dir, ["align", "m0", "m1", "m1"]).fails(2, &["has the content of m1"]);
    run(dir, ["align", "m0", "m1", "m2", "--residual", "orthogonal"])
        .fails(2, &["two models only"]);
    fs::create_dir(dir.join("maps")).expect("a folder");
    fs::write(dir.join("maps/2.safetensors"), "mine").expect("written");
    run(dir, ["align", "m0", "m1", "m2", "--out", "maps"])
        .fails(2, &["did not write", "--overwrite"]);
    run(dir, ["align", "m0", "m1", "m2", "--out", "m1"]).fails(2, &["it is the input m1"]);
    run(dir, ["align", "m0", "m1", "m2", "--memory", "1MiB"]).fails(2, &["needs at least"]);
}

fn aligned(
    inputs: &Path,
    storage: CrashStorage,
    root: &Path,
) -> (CrashStorage, Result<ManyReport>) {
    let storage = Arc::new(storage);
    let models =
        (0..3).map(|model| Checkpoint::open(&inputs.join(format!("m{model}"))).expect("opens"));
    let outcome = align(Align {
        task: ModelSetTask {
            set: ModelSet::new(models.collect(), None, Waived::default()).expect("a set"),
            many: ManyOptions::default(),
        },
        memory: 256 << 20,
        held: 0,
        threads: 1,
        device: None,
        storage: Arc::clone(&storage) as Arc<dyn Storage>,
        target: Some(Target {
            dir: root.join("maps"),
            overwrite: false,
            restart: false,
        }),
        options: Options::default(),
    });
    (
        Arc::into_inner(storage).expect("all of the run is dropped"),
        outcome,
    )
}

#[test]
fn power_may_go_at_every_operation_on_many() {
    let stored = set(3);
    let undisturbed = scratch();
    let (storage, outcome) = aligned(
        stored.dir.path(),
        CrashStorage::reliable(undisturbed.path()),
        undisturbed.path(),
    );
    assert_eq!(outcome.expect("nothing fails").models[0].status, "aligned");
    let files = |root: &Path| -> Vec<Vec<u8>> {
        (1..=3)
            .map(|model| fs::read(root.join(format!("maps/{model}.safetensors"))).expect("written"))
            .collect()
    };
    let wanted = files(undisturbed.path());
    let mut resumed = 0;
    for at in (1..=storage.operations()).step_by(3) {
        for image in Image::ALL {
            let root = scratch();
            let (storage, outcome) = aligned(
                stored.dir.path(),
                CrashStorage::new(root.path(), at),
                root.path(),
            );
            assert!(outcome.is_err(), "the power went at operation {at}");
            let after = scratch();
            storage.image(image, after.path());
            let (_, outcome) = aligned(
                stored.dir.path(),
                CrashStorage::reliable(after.path()),
                after.path(),
            );
            let report = outcome.unwrap_or_else(|error| panic!("{at} {image:?}: {error}"));
            resumed += usize::from(report.models[0].status == "resumed");
            assert_eq!(files(after.path()), wanted, "{at} {image:?}");
            assert_eq!(
                fs::read_dir(after.path().join("maps"))
                    .expect("a folder")
                    .count(),
                3,
                "{at} {image:?}"
            );
        }
    }
    assert!(resumed > 0);
}
