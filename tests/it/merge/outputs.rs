//! What is written: shards, index, config and whatever else makes a checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use thalweg::checkpoint::Name;

use super::{Kinship, Place, Run, assert_same, files_of, random_models, recipe};
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Random, Tensor};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a readable file")).expect("JSON")
}

/// Models of tensors of a thousand bytes each and one of 5,000.
fn models(count: usize) -> Vec<Model> {
    let shapes: [&[usize]; 4] = [&[2500], &[500], &[5, 100], &[20, 25]];
    let mut models = random_models(
        &mut Random::new(700),
        &vec![Dtype::BF16; count],
        &shapes,
        Kinship::Cosine(0.9),
    );
    for model in &mut models {
        model.insert(
            "odd".into(),
            Tensor::from_bytes(Dtype::U8, &[3], vec![1, 2, 3]),
        );
        model.insert(
            "wide".into(),
            Tensor::from_bytes(Dtype::I64, &[2], vec![7; 16]),
        );
    }
    models
}

#[test]
fn shards_keep_to_their_size_and_the_index_names_every_tensor_once() {
    let place = Place::new();
    let models = models(2);
    let run = Run::karcher(&place.models(&models));
    let whole = place.merged(&run);
    for (size, shards) in [
        (1000, 6),
        (2000, 4),
        (2500, 3),
        (5000, 3),
        (6016, 2),
        (9019, 1),
    ] {
        let out = place.path(&format!("{size}"));
        run.clone()
            .with("out_shard_size", size)
            .merge_to(&out)
            .expect("a merge that succeeds");
        assert_same(&read_model(&out), &whole, &format!("shards of {size}"));
        let files = files_of(&out);
        let weights: BTreeMap<&String, &Vec<u8>> = files
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
            .collect();
        assert_eq!(weights.len(), shards, "{size}: {:?}", weights.keys());
        let index = out.join("model.safetensors.index.json");
        assert_eq!(index.exists(), shards > 1);
        if shards == 1 {
            assert!(files.contains_key("model.safetensors"));
            continue;
        }
        let index = json_of(&index);
        let map = index["weight_map"].as_object().expect("a map");
        assert_eq!(map.len(), whole.len());
        let total: usize = whole.values().map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(index["metadata"]["total_size"], total);
        for (number, (name, bytes)) in weights.iter().enumerate() {
            assert_eq!(
                **name,
                format!("model-{:05}-of-{shards:05}.safetensors", number + 1)
            );
            let tensors = SafeTensors::deserialize(bytes).expect("a valid shard");
            let data: usize = tensors
                .tensors()
                .iter()
                .map(|(_, view)| view.data().len())
                .sum();
            assert!(
                data <= size || tensors.len() == 1,
                "{name} of {data} bytes in {size}"
            );
            let own: BTreeSet<&str> = tensors.names().into_iter().collect();
            let mapped: BTreeSet<&str> = map
                .iter()
                .filter(|(_, shard)| *shard == *name)
                .map(|(tensor, _)| tensor.as_str())
                .collect();
            assert_eq!(own, mapped, "{name}");
        }
    }
}

#[test]
fn headers_say_pt_and_data_is_aligned() {
    let place = Place::new();
    let run = Run::karcher(&place.models(&models(2)));
    for size in ["2KB", "1GB"] {
        let out = place.path(size);
        run.clone()
            .with("out_shard_size", size)
            .merge_to(&out)
            .expect("a merge that succeeds");
        for (name, bytes) in files_of(&out)
            .iter()
            .filter(|(name, _)| name.ends_with(".safetensors"))
        {
            let (length, metadata) = SafeTensors::read_metadata(bytes).expect("a header");
            assert_eq!(length % 8, 0, "{name}");
            assert_eq!(
                metadata.metadata().as_ref().expect("metadata")["format"],
                "pt"
            );
            for (tensor, info) in metadata.tensors() {
                let width = if info.dtype == Dtype::I64 {
                    8
                } else if info.dtype == Dtype::BF16 {
                    2
                } else {
                    1
                };
                assert_eq!(
                    (8 + length + info.data_offsets.0) % width,
                    0,
                    "{tensor} in {name}"
                );
            }
        }
    }
}

#[test]
fn config_tells_the_dtype_that_was_written_and_other_files_are_the_bases() {
    let place = Place::new();
    let paths = place.models(&models(3));
    for (i, path) in paths.iter().enumerate() {
        let config = json!({ "model_type": "llama", "z": 1, "a": i, "torch_dtype": "bfloat16" });
        fs::write(path.join("config.json"), config.to_string()).expect("a config");
        fs::write(path.join("tokenizer.json"), format!("tokens of {i}\r\n")).expect("a tokenizer");
        fs::write(path.join("chat_template.jinja"), format!("{i}")).expect("a template");
        fs::write(path.join("pytorch_model.gguf"), "other weights").expect("a file");
        fs::write(path.join(".hidden"), "hidden").expect("a file");
        fs::create_dir(path.join("code")).expect("a folder");
        fs::write(path.join("code/modeling.py"), format!("print({i})")).expect("code");
    }
    let run = Run::karcher(&paths);
    let out = place.path("same");
    run.merge_to(&out).expect("a merge that succeeds");
    assert_eq!(
        fs::read(out.join("config.json")).expect("a config"),
        fs::read(paths[0].join("config.json")).expect("it")
    );
    let base = paths[2].to_str().expect("text");
    let out = place.path("halves");
    run.with("base_model", base)
        .with("dtype", "float16")
        .merge_to(&out)
        .expect("a merge that succeeds");
    let config = fs::read_to_string(out.join("config.json")).expect("a config");
    assert_eq!(
        serde_json::from_str::<Value>(&config).expect("JSON"),
        json!({ "model_type": "llama", "z": 1, "a": 2, "torch_dtype": "float16" })
    );
    let at = |key: &str| config.find(key).expect("a key");
    assert!(
        at("model_type") < at("\"z\"") && at("\"z\"") < at("\"a\""),
        "the order of keys is kept: {config}"
    );
    let files = files_of(&out);
    assert_eq!(files["tokenizer.json"], b"tokens of 2\r\n");
    assert_eq!(files["chat_template.jinja"], b"2");
    assert_eq!(files["code/modeling.py"], b"print(2)");
    for name in ["pytorch_model.gguf", ".hidden"] {
        assert!(!files.contains_key(name), "{name} was taken along");
    }
}

#[test]
fn a_head_that_is_tied_is_not_invented() {
    let place = Place::new();
    let names = [
        "model.embed_tokens.weight",
        "model.layers.0.w",
        "model.norm.weight",
    ];
    let mut random = Random::new(701);
    let mut one = || {
        let shapes: [&[usize]; 1] = [&[8, 4]];
        let tensor =
            random_models(&mut random, &[Dtype::F32], &shapes, Kinship::Independent).remove(0);
        tensor.into_values().next().expect("a tensor")
    };
    let models: Vec<Model> = (0..2)
        .map(|_| names.map(|name| (name.to_owned(), one())).into())
        .collect();
    let paths = place.models(&models);
    for path in &paths {
        fs::write(path.join("config.json"), r#"{"tie_word_embeddings": true}"#).expect("a config");
    }
    let out = place.path("out");
    Run::karcher(&paths)
        .merge_to(&out)
        .expect("a merge that succeeds");
    assert_eq!(read_model(&out).keys().collect::<Vec<_>>(), names);
    assert_eq!(
        json_of(&out.join("config.json"))["tie_word_embeddings"],
        true
    );
}

#[test]
fn a_merged_checkpoint_can_be_merged_again() {
    let place = Place::new();
    let paths = place.models(&models(3));
    fs::write(paths[0].join("config.json"), r#"{"dtype": "bfloat16"}"#).expect("a config");
    let run = Run::karcher(&paths[..2]).with("out_shard_size", "2KB");
    let (once, again) = (place.path("once"), place.path("again"));
    run.merge_to(&once).expect("a merge that succeeds");
    let same = Run::karcher(&[once.clone(), once.clone()]).with("out_shard_size", "2KB");
    same.merge_to(&again).expect("a merge that succeeds");
    let without_manifest = |folder: &Path| {
        let mut files = files_of(folder);
        for name in ["thalweg.json", "README.md", "mergekit_config.yml"] {
            files.remove(name).expect("what names the inputs");
        }
        files
    };
    assert!(
        without_manifest(&once) == without_manifest(&again),
        "a merge of equal models is a copy"
    );
    let third = place.merged(&Run::karcher(&[once.clone(), paths[2].clone()]));
    let model = read_model(&once);
    let copy = place.model("copy", &model);
    assert_same(
        &third,
        &place.merged(&Run::karcher(&[copy, paths[2].clone()])),
        "once more",
    );
}

#[test]
fn tensors_come_in_the_order_of_the_first_models_files() {
    let place = Place::new();
    let models = models(2);
    let first = place.path("first");
    write_model(&first, &models[0], 3);
    let second = place.model("second", &models[1]);
    let plan = Run::karcher(&[first.clone(), second])
        .plan()
        .expect("a plan");
    let checkpoint = thalweg::checkpoint::Checkpoint::open(&first).expect("a checkpoint");
    let names: Vec<&Name> = plan.tensors.iter().map(|tensor| &tensor.name).collect();
    assert_eq!(names, checkpoint.tensors().keys().collect::<Vec<_>>());
}

#[test]
fn the_program_writes_what_the_library_writes() {
    let place = Place::new();
    let paths = place.models(&models(3));
    let (ours, its) = (place.path("ours"), place.path("its"));
    let run =
        Run::new(recipe("karcher", &paths, Some(&[0.5, 0.25, 0.25]))).with("granularity", "row");
    run.with("dtype", "float32")
        .with("out_shard_size", "4KB")
        .merge_to(&ours)
        .expect("a merge that succeeds");
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.arg("merge").args(&paths).arg("--out").arg(&its);
    command.args([
        "--weights",
        "2,1,1",
        "--granularity",
        "row",
        "--dtype",
        "float32",
        "--shard-size",
        "4KB",
    ]);
    command.args([
        "--threads",
        "1",
        "--io",
        "pread",
        "--simd",
        "portable",
        "--quiet",
    ]);
    command.assert().success();
    let weights = |folder: &Path| -> BTreeMap<String, Vec<u8>> {
        files_of(folder)
            .into_iter()
            .filter(|(name, _)| name.contains(".safetensors"))
            .collect()
    };
    assert!(weights(&ours).len() > 2);
    assert!(weights(&ours) == weights(&its), "other bytes");
}
