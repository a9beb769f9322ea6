//! Sub-folders with weights of their own, and what the headers of weights say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use thalweg::dtype::Dtype;

use crate::support::files::{files_below, scratch};
use crate::support::program::run;
use crate::support::striped::{Spec, spec, write};

/// The header of a safetensors file.
fn header(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let len =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight"))).expect("small");
    serde_json::from_slice(&bytes[8..8 + len]).expect("JSON")
}

/// Gives a file the metadata.
fn with_metadata(path: &Path, metadata: &Value) {
    let bytes = fs::read(path).expect("there");
    let len =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight"))).expect("small");
    let mut fields: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    fields["__metadata__"] = metadata.clone();
    let text = fields.to_string();
    let mut new = (text.len() as u64).to_le_bytes().to_vec();
    new.extend(text.as_bytes());
    new.extend(&bytes[8 + len..]);
    fs::write(path, new).expect("written");
}

fn put(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    fs::write(path, text).expect("written");
}

fn weights_of(specs: &[Spec], folder: &Path, seed: u64) {
    write(folder, &[specs.to_vec()], seed);
    fs::remove_file(folder.join("config.json")).expect("written before");
}

/// Two sentence-transformers models with a dense layer behind the pooling.
fn sentence_models() -> TempDir {
    let root = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let folder = root.path().join(name);
        write(
            &folder,
            &[vec![spec("embeddings.weight", Dtype::F32, &[40, 8])]],
            seed,
        );
        weights_of(
            &[spec("linear.weight", Dtype::F32, &[8, 8])],
            &folder.join("2_Dense"),
            seed + 10,
        );
        put(
            &folder,
            "2_Dense/config.json",
            "{\"in_features\": 8, \"out_features\": 8}",
        );
        put(&folder, "1_Pooling/config.json", "{}");
        let modules = json!([{ "path": "" }, { "path": "1_Pooling" }, { "path": "2_Dense" }]);
        put(&folder, "modules.json", &modules.to_string());
    }
    root
}

/// Two pipelines of a network, an autoencoder and a text encoder.
fn pipelines() -> TempDir {
    let root = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        let folder = root.path().join(name);
        let unet = [
            spec("conv_in.weight", Dtype::F16, &[8, 4, 3, 3]),
            spec("mid.weight", Dtype::F16, &[300, 40]),
        ];
        weights_of(&unet, &folder.join("unet"), seed);
        weights_of(
            &[spec("decoder.weight", Dtype::F32, &[16, 16])],
            &folder.join("vae"),
            seed + 10,
        );
        for part in ["unet", "vae"] {
            let at = folder.join(part);
            fs::rename(
                at.join("model.safetensors"),
                at.join("diffusion_pytorch_model.safetensors"),
            )
            .expect("there");
            fs::copy(
                at.join("diffusion_pytorch_model.safetensors"),
                at.join("diffusion_pytorch_model.fp16.safetensors"),
            )
            .expect("copied");
            put(
                &at,
                "config.json",
                "{\"_class_name\": \"X\", \"_diffusers_version\": \"0.30.0\"}",
            );
        }
        weights_of(
            &[spec("text.weight", Dtype::F16, &[20, 8])],
            &folder.join("text_encoder"),
            seed + 20,
        );
        put(
            &folder,
            "text_encoder/config.json",
            "{\"torch_dtype\": \"float16\", \"vocab_size\": 20}",
        );
        put(
            &folder,
            "scheduler/scheduler_config.json",
            &format!("{{\"of\": \"{name}\"}}"),
        );
        put(
            &folder,
            "tokenizer/vocab.json",
            &format!("{{\"of\": \"{name}\"}}"),
        );
        let both = ["diffusers", "X"];
        let index = json!({
            "_class_name": "P", "unet": both, "vae": both, "text_encoder": ["transformers", "Y"],
            "scheduler": both, "safety_checker": [null, null],
        });
        put(&folder, "model_index.json", &index.to_string());
    }
    root
}

/// The bytes of a folder's only tensors file behind its header.
fn data_of(path: &Path) -> Vec<u8> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let len =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight"))).expect("small");
    bytes[8 + len..].to_vec()
}

/// The component is what a merge of the two folders alone gives.
#[track_caller]
fn merged_alone(root: &Path, component: &str, file: &str, more: &[&str]) {
    let out = format!("alone-{component}");
    let folders = [format!("a/{component}"), format!("b/{component}")];
    let args = ["merge", &folders[0], &folders[1], "--out", &out]
        .into_iter()
        .chain(more.iter().copied());
    run(root, args).ok();
    let alone = data_of(&root.join(&out).join(file));
    assert!(
        alone == data_of(&root.join("out").join(component).join(file)),
        "{component}"
    );
}

#[test]
fn a_sub_folder_that_all_inputs_have_is_merged_by_the_same_recipe() {
    let root = sentence_models();
    let report = run(root.path(), ["merge", "a", "b", "--out", "out", "--json"])
        .ok()
        .json();
    assert_eq!(report["tensors"], 2);
    merged_alone(root.path(), "2_Dense", "model.safetensors", &[]);
    let tensors = header(&root.path().join("out/2_Dense/model.safetensors"));
    assert!(tensors.get("linear.weight").is_some(), "{tensors}");
    for name in [
        "modules.json",
        "2_Dense/config.json",
        "1_Pooling/config.json",
        "model.safetensors",
    ] {
        assert!(root.path().join("out").join(name).exists(), "{name}");
    }
    run(root.path(), ["verify", "out"]).ok();
    let found = run(
        root.path(),
        [
            "verify",
            "out",
            "--json",
            "--sample",
            "100",
            "--against",
            "a",
            "b",
        ],
    )
    .ok()
    .json();
    assert_eq!(found["rechecked"]["tensors"], 2, "{found}");
    let again = run(root.path(), ["merge", "a", "b", "--out", "out", "--json"])
        .ok()
        .json();
    assert_eq!(again["status"], "complete already");
    crate::support::files::flip(&root.path().join("out/2_Dense/model.safetensors"), 300);
    run(root.path(), ["verify", "out"]).fails(1, &["2_Dense/model.safetensors"]);
    let card = fs::read_to_string(root.path().join("out/README.md")).expect("a card");
    assert!(
        card.contains("library_name: sentence-transformers"),
        "{card}"
    );
}

#[test]
fn a_sub_folder_that_only_some_inputs_have_is_carried_from_the_base_with_a_warning() {
    let root = sentence_models();
    fs::remove_dir_all(root.path().join("b/2_Dense")).expect("there");
    let plan = run(
        root.path(),
        [
            "plan", "a", "b", "--out", "out", "--dtype", "bfloat16", "--json",
        ],
    )
    .ok()
    .json();
    let said = "2_Dense/ is the base's, not merged: b has no such folder";
    let has = |warnings: &Value, words: &str| {
        warnings.as_array().is_some_and(|all| {
            all.iter()
                .any(|line| line.as_str().is_some_and(|line| line.contains(words)))
        })
    };
    assert!(has(&plan["warnings"], said), "{plan}");
    run(
        root.path(),
        ["merge", "a", "b", "--out", "out", "--dtype", "bfloat16"],
    )
    .ok();
    let name = "2_Dense/model.safetensors";
    assert!(
        data_of(&root.path().join("out").join(name)) == data_of(&root.path().join("a").join(name))
    );
    run(
        root.path(),
        [
            "verify",
            "out",
            "--sample",
            "100",
            "--against",
            "a",
            "b",
            "--dtype",
            "bfloat16",
        ],
    )
    .ok();
    // The other way round it is left out, by name.
    let plan = run(root.path(), ["plan", "b", "a", "--out", "other", "--json"])
        .ok()
        .json();
    assert!(
        has(&plan["warnings"], "a: the weights in 2_Dense/ are left out"),
        "{plan}"
    );
}

#[test]
fn a_sub_folder_of_other_tensors_is_refused_where_the_model_lists_it_and_carried_where_it_does_not()
{
    let root = sentence_models();
    fs::remove_dir_all(root.path().join("b/2_Dense")).expect("there");
    weights_of(
        &[spec("other.weight", Dtype::F32, &[8, 8])],
        &root.path().join("b/2_Dense"),
        3,
    );
    run(root.path(), ["merge", "a", "b", "--out", "out"])
        .fails(2, &["2_Dense/", "`2_Dense/linear.weight`"]);
    fs::remove_file(root.path().join("a/modules.json")).expect("there");
    let plan = run(root.path(), ["plan", "a", "b", "--out", "out"])
        .ok()
        .stdout;
    assert!(plan.contains("its tensors have other names in b"), "{plan}");
}

#[test]
fn a_pipeline_is_merged_component_by_component_under_the_names_of_its_files() {
    let root = pipelines();
    run(
        root.path(),
        [
            "merge",
            "a",
            "b",
            "--out",
            "out",
            "--dtype",
            "float32",
            "--shard-size",
            "20KB",
        ],
    )
    .ok();
    let out = root.path().join("out");
    let names: Vec<String> = files_below(&out)
        .keys()
        .map(|name| name.display().to_string())
        .collect();
    let wanted = [
        "README.md",
        "mergekit_config.yml",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "thalweg.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(names, wanted);
    merged_alone(
        root.path(),
        "vae",
        "diffusion_pytorch_model.safetensors",
        &["--dtype", "float32"],
    );
    let text = |name: &str| fs::read_to_string(out.join(name)).expect("there");
    // A dtype that is stated is true; where none is, none is put.
    let encoder: Value = serde_json::from_str(&text("text_encoder/config.json")).expect("JSON");
    assert_eq!(
        encoder,
        json!({ "torch_dtype": "float32", "vocab_size": 20 })
    );
    let original = fs::read_to_string(root.path().join("a/unet/config.json")).expect("there");
    assert_eq!(text("unet/config.json"), original);
    assert_eq!(text("tokenizer/vocab.json"), "{\"of\": \"a\"}");
    assert!(text("README.md").contains("library_name: diffusers"));
    run(root.path(), ["verify", "out"]).ok();
    let against = [
        "--against",
        "a",
        "b",
        "--dtype",
        "float32",
        "--shard-size",
        "20KB",
    ];
    run(
        root.path(),
        ["verify", "out", "--sample", "1000"].iter().chain(&against),
    )
    .ok();
    // A merge of another kind takes its place whole.
    run(
        root.path(),
        ["merge", "a/vae", "b/vae", "--out", "out", "--overwrite"],
    )
    .ok();
    assert!(
        !out.join("unet/diffusion_pytorch_model.safetensors.index.json")
            .exists()
    );
    assert!(out.join("diffusion_pytorch_model.safetensors").exists());
}

#[test]
fn the_bytes_of_components_do_not_depend_on_threads_blocks_and_memory() {
    let root = pipelines();
    let weights = |out: &str, more: &[&str]| -> BTreeMap<_, _> {
        run(
            root.path(),
            ["merge", "a", "b", "--out", out].iter().chain(more),
        )
        .ok();
        files_below(&root.path().join(out))
    };
    let one = weights("one", &["--threads", "1", "--granularity", "model"]);
    assert!(
        one == weights(
            "two",
            &[
                "--threads",
                "2",
                "--granularity",
                "model",
                "--block-size",
                "64KiB"
            ]
        )
    );
}

#[test]
fn filters_of_a_recipe_see_the_folder_of_a_component() {
    let root = pipelines();
    let weight = "parameters: {weight: [{filter: 'unet/', value: 0}, {value: 1}]}";
    let recipe = format!(
        "merge_method: linear\nmodels:\n- {{model: a, parameters: {{weight: 1}}}}\n- {{model: b, {weight}}}\n"
    );
    put(root.path(), "recipe.yml", &recipe);
    run(root.path(), ["merge", "recipe.yml", "--out", "out"]).ok();
    let same = |name: &str| {
        data_of(&root.path().join("out").join(name)) == data_of(&root.path().join("a").join(name))
    };
    assert!(same("unet/diffusion_pytorch_model.safetensors"));
    assert!(!same("vae/diffusion_pytorch_model.safetensors"));
}

#[test]
fn pipelines_are_refused_by_name_where_one_model_is_asked_for() {
    let root = pipelines();
    run(root.path(), ["merge", "a", "b", "--out", "x.safetensors"]).fails(2, &["is a pipeline"]);
    run(root.path(), ["align", "a", "b", "--out", "t.safetensors"]).fails(2, &["is a pipeline"]);
    let slices =
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n";
    put(root.path(), "slices.yml", slices);
    run(root.path(), ["plan", "slices.yml", "--out", "out"])
        .fails(2, &["slices stack the layers of one model"]);
}

#[test]
fn the_base_s_metadata_is_in_every_header_of_the_output() {
    let root = scratch();
    let shards = [
        vec![spec("x", Dtype::F32, &[40, 8])],
        vec![spec("y", Dtype::F32, &[40, 8])],
    ];
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(&root.path().join(name), &shards, seed);
    }
    for (number, own) in [(1, "one"), (2, "two")] {
        let file = root
            .path()
            .join(format!("a/model-0000{number}-of-00002.safetensors"));
        with_metadata(
            &file,
            &json!({ "zeta": "é", "alpha": "1", "differs": own, "sshs_model_hash": "0" }),
        );
    }
    let plan = run(root.path(), ["plan", "a", "b", "--out", "out"])
        .ok()
        .stdout;
    assert!(
        plan.contains("its shards differ in the metadata `differs`"),
        "{plan}"
    );
    run(
        root.path(),
        ["merge", "a", "b", "--out", "out", "--shard-size", "1300"],
    )
    .ok();
    for number in [1, 2] {
        let found = header(
            &root
                .path()
                .join(format!("out/model-0000{number}-of-00002.safetensors")),
        );
        let wanted =
            json!({ "alpha": "1", "format": "pt", "thalweg.method": "karcher", "zeta": "é" });
        assert_eq!(found["__metadata__"], wanted);
    }
    let against = [
        "verify",
        "out",
        "--against",
        "a",
        "b",
        "--shard-size",
        "1300",
    ];
    run(root.path(), against).ok();
    // Other metadata is noticed, also where no checksum tells.
    fs::remove_file(root.path().join("out/thalweg.json")).expect("there");
    let shard = root.path().join("out/model-00002-of-00002.safetensors");
    with_metadata(
        &shard,
        &json!({ "alpha": "2", "format": "pt", "thalweg.method": "karcher", "zeta": "é" }),
    );
    run(root.path(), against).fails(1, &["metadata `alpha`", "wanted `1`, got `2`"]);
}

#[test]
fn a_single_file_of_modelspec_says_what_it_was_merged_from_and_nothing_untrue() {
    let root = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(
            &root.path().join(name),
            &[vec![spec("x", Dtype::F32, &[40, 8])]],
            seed,
        );
        let file = root.path().join(format!("{name}.safetensors"));
        fs::rename(root.path().join(name).join("model.safetensors"), &file).expect("there");
        let metadata = json!({
            "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-xl-v1-base",
            "modelspec.title": format!("Model {name}"), "modelspec.hash_sha256": "0x00", "modelspec.author": name,
            "modelspec.license": "CC0", "modelspec.date": "2024-01-01", "modelspec.resolution": "1024x1024",
            "ss_learning_rate": "1e-4", "ss_base_model_version": "sdxl_base_v1-0",
        });
        with_metadata(&file, &metadata);
    }
    run(
        root.path(),
        [
            "merge",
            "a.safetensors",
            "b.safetensors",
            "--out",
            "out.safetensors",
        ],
    )
    .ok();
    let wanted = json!({
        "format": "pt", "modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.license": "CC0",
        "modelspec.merged_from": "Model a, Model b", "modelspec.resolution": "1024x1024",
        "modelspec.sai_model_spec": "1.0.0", "modelspec.title": "Merge of Model a, Model b",
        "ss_base_model_version": "sdxl_base_v1-0", "thalweg.method": "karcher",
    });
    assert_eq!(
        header(&root.path().join("out.safetensors"))["__metadata__"],
        wanted
    );
}

#[test]
fn metadata_of_megabytes_is_left_out_with_a_warning() {
    let root = scratch();
    for (name, seed) in [("a", 1), ("b", 2)] {
        write(
            &root.path().join(name),
            &[vec![spec("x", Dtype::F32, &[40, 8])]],
            seed,
        );
    }
    with_metadata(
        &root.path().join("a/model.safetensors"),
        &json!({ "notes": "x".repeat(6 << 20) }),
    );
    let report = run(root.path(), ["merge", "a", "b", "--out", "out"])
        .ok()
        .stdout;
    assert!(
        report.contains("bytes of metadata are left out"),
        "{report}"
    );
    assert_eq!(
        header(&root.path().join("out/model.safetensors"))["__metadata__"],
        json!({ "format": "pt" })
    );
}
