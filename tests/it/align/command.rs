//! `thalweg symmetries` and `thalweg apply`.

use thalweg::symmetry::{Transform, TransformFile};

use super::Stored;
use crate::support::forward::{Family, Gpt2, Llama};
use crate::support::program::run;
use crate::support::reference::files::read_model;

fn stored() -> Stored {
    let stored = Stored::new(
        &Llama {
            model_type: "llama",
            ..Llama::default()
        }
        .random(2),
        None,
    );
    stored.write_random_transform("model");
    stored
}

#[test]
fn symmetries_are_shown_to_people_and_programs() {
    let stored = stored();
    let shown = run(stored.dir.path(), ["symmetries", "model"]).ok().stdout;
    for words in [
        "spec llama: 11 groups",
        "rotation of pairs, sign of pairs (i, i + n/2)",
        "layers.0.kv * layers.0.queries * ",
        "order(residual)",
    ] {
        assert!(shown.contains(words), "wanted {words:?} in {shown}");
    }
    let json = run(stored.dir.path(), ["symmetries", "model", "--json"])
        .ok()
        .json();
    assert_eq!(json["spec"], "llama");
    assert_eq!(json["groups"].as_array().map(Vec::len), Some(11));
    assert_eq!(
        json["tensors"].as_array().map(Vec::len),
        Some(stored.symmetries.tensors.len())
    );
}

#[test]
fn a_spec_may_be_named_or_given_as_a_file() {
    let stored = stored();
    run(stored.dir.path(), ["symmetries", "model", "--spec", "gpt2"])
        .fails(2, &["tensors are not mapped"]);
    let own = "name: own\nextends: llama\ngroups: { residual: { residual: true, allows: [permutation] } }\n";
    std::fs::write(stored.dir.path().join("own.yml"), own).expect("written");
    let json = run(
        stored.dir.path(),
        ["symmetries", "model", "--spec", "own.yml", "--json"],
    )
    .ok()
    .json();
    assert_eq!(
        json["groups"][0]["allows"],
        serde_json::json!(["permutation"])
    );
    run(
        stored.dir.path(),
        ["symmetries", "model", "--spec", "other.yml"],
    )
    .fails(2, &["other.yml"]);
}

#[test]
fn apply_writes_what_the_library_writes_and_undoes_it_again() {
    let stored = stored();
    std::fs::write(stored.dir.path().join("model/README.md"), "# Mine").expect("written");
    let transform = Transform::random(&stored.symmetries, 7);
    stored.apply("model", transform, "wanted", &crate::support::whole::PLENTY);
    let args = [
        "apply",
        "model",
        "perms.safetensors",
        "--out",
        "out",
        "--memory",
        "64MiB",
        "-j",
        "2",
    ];
    run(stored.dir.path(), args).ok();
    let [model, wanted, out] =
        ["model", "wanted", "out"].map(|name| read_model(&stored.dir.path().join(name)));
    assert_eq!(wanted, out);
    assert_ne!(model, out);
    let args = [
        "apply",
        "out",
        "perms.safetensors",
        "--out",
        "back",
        "--inverse",
    ];
    run(stored.dir.path(), args).fails(2, &["made for another model", "--any-model"]);
    let args = [
        "apply",
        "out",
        "perms.safetensors",
        "--out",
        "back",
        "--inverse",
        "--any-model",
        "--quiet",
    ];
    assert_eq!(run(stored.dir.path(), args).ok().stdout, "");
    let back = read_model(&stored.dir.path().join("back"));
    for (name, tensor) in &model {
        let farthest = tensor
            .values
            .iter()
            .zip(&back[name].values)
            .fold(0.0_f64, |most, (x, y)| most.max((x - y).abs()));
        // Pairs are turned there and back, each time rounded to f64.
        assert!(
            farthest < 1e-15 || (farthest < 1e-14 && name.contains("_proj")),
            "{name}: {farthest:e}"
        );
    }
    let text = |name: &str| std::fs::read_to_string(stored.dir.path().join(name)).ok();
    assert_eq!(text("back/README.md").as_deref(), Some("# Mine"));
    assert_eq!(text("back/mergekit_config.yml"), None, "it is no merge");
    assert!(text("back/config.json").is_some());
}

#[test]
fn an_output_of_another_transform_is_not_gone_on_with() {
    let stored = stored();
    run(
        stored.dir.path(),
        [
            "apply",
            "model",
            "perms.safetensors",
            "--out",
            "out",
            "--quiet",
        ],
    )
    .ok();
    let other = Stored::new(&Gpt2.random(1), None);
    let gpt2 = other.dir.path().join("model");
    let args = [gpt2.to_str().expect("UTF-8"), "perms.safetensors"];
    run(stored.dir.path(), ["apply", args[0], args[1], "--out", "x"])
        .fails(2, &["made by the spec `llama`"]);
    let again = run(
        stored.dir.path(),
        [
            "apply",
            "model",
            "perms.safetensors",
            "--out",
            "out",
            "--json",
        ],
    )
    .ok()
    .json();
    assert_eq!(again["status"], "complete already");
    let path = stored.dir.path().join("perms.safetensors");
    let mut file = TransformFile::read(&path, &stored.symmetries).expect("read");
    file.transform = file.transform.compose(&stored.symmetries, &file.transform);
    file.write(&path, &stored.symmetries).expect("written");
    assert_ne!(
        run(
            stored.dir.path(),
            ["apply", "model", "perms.safetensors", "--out", "out"]
        )
        .code,
        Some(0)
    );
}
