//! What is nearly a checkpoint: folders of several, parts of one, other formats; and what lies
//! beside one.

use std::fs;
use std::path::Path;

use safetensors::tensor::Dtype;
use thalweg::checkpoint::{Checkpoint, OpenOptions};

use super::{Spec, assert_refused, file_of, write};

const A: [Spec<'static>; 2] = [
    ("a.weight", Dtype::BF16, &[5, 3]),
    ("a.bias", Dtype::F32, &[3]),
];
const B: [Spec<'static>; 1] = [("b.weight", Dtype::F16, &[4, 4])];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

/// Files in folders that are made for them.
fn put(root: &Path, name: &str, content: impl AsRef<[u8]>) {
    fs::create_dir_all(root.join(name).parent().expect("a folder")).expect("made");
    write(root, name, content);
}

#[test]
fn a_folder_of_checkpoints_names_them_and_the_last() {
    let root = folder();
    for step in ["500", "1000", "1500"] {
        put(
            root.path(),
            &format!("checkpoint-{step}/model.safetensors"),
            file_of(&A, 0),
        );
    }
    put(root.path(), "runs/events", "x");
    put(root.path(), "trainer_state.json", "{}");
    let listed = "checkpoint-500, checkpoint-1000, checkpoint-1500";
    assert_refused(
        root.path(),
        &["holds no weights itself", listed, "checkpoint-1500]"],
    );
    assert!(Checkpoint::open(&root.path().join("checkpoint-500")).is_ok());
}

#[test]
fn a_folder_of_the_hubs_cache_stands_for_its_main_snapshot() {
    let root = folder();
    let cache = root.path().join("models--org--name");
    put(&cache, "snapshots/aaaa/model.safetensors", file_of(&A, 0));
    put(&cache, "blobs/x", "");
    assert_eq!(
        Checkpoint::open(&cache)
            .expect("the only snapshot")
            .tensors()
            .len(),
        2
    );
    assert_refused(
        root.path(),
        &["holds no weights itself", "models--org--name"],
    );
    put(&cache, "snapshots/bbbb/model.safetensors", file_of(&B, 0));
    assert_refused(
        &cache,
        &["snapshots/aaaa, snapshots/bbbb", "name one of them"],
    );
    put(&cache, "refs/main", "bbbb");
    let opened = Checkpoint::open(&cache).expect("the main snapshot");
    assert!(
        opened.tensors().contains_key("b.weight")
            && opened.folder() == Some(&*cache.join("snapshots/bbbb"))
    );
    put(&cache, "refs/main", "../../..");
    assert_refused(&cache, &["snapshots/aaaa, snapshots/bbbb"]);
}

#[test]
fn the_whole_model_in_one_file_is_read_before_shards_and_that_is_said() {
    let root = folder();
    write(root.path(), "model.safetensors", file_of(&B, 0));
    write(
        root.path(),
        "model-00001-of-00001.safetensors",
        file_of(&A, 0),
    );
    let index = r#"{"weight_map":{"a.weight":"model-00001-of-00001.safetensors","a.bias":"model-00001-of-00001.safetensors"}}"#;
    write(root.path(), "model.safetensors.index.json", index);
    let opened = Checkpoint::open(root.path()).expect("opens");
    assert_eq!(opened.files()[0].name, "model.safetensors");
    let warning = opened.warnings().join("\n");
    for words in [
        "model.safetensors is read, as transformers would",
        "model-00001-of-00001",
        "model.safetensors.index.json",
    ] {
        assert!(warning.contains(words), "{warning}");
    }
    // An index that names that file is about it.
    write(
        root.path(),
        "model.safetensors.index.json",
        r#"{"weight_map":{"b.weight":"model.safetensors"}}"#,
    );
    fs::remove_file(root.path().join("model-00001-of-00001.safetensors")).expect("removed");
    assert!(
        Checkpoint::open(root.path())
            .expect("opens")
            .warnings()
            .is_empty()
    );
}

#[test]
fn weights_beside_those_that_are_read_are_named() {
    for (other, named) in [
        ("pytorch_model.bin", true),
        ("model.fp16.safetensors", true),
        ("consolidated.safetensors", true),
        ("adapter_model.safetensors", true),
        ("training_args.bin", false),
        ("optimizer.pt", false),
        ("model.onnx", false),
    ] {
        let root = folder();
        write(root.path(), "model.safetensors", file_of(&A, 0));
        write(root.path(), other, file_of(&B, 0));
        let opened = Checkpoint::open(root.path()).expect("opens");
        assert_eq!(
            (opened.files().len(), opened.files()[0].name.as_str()),
            (1, "model.safetensors"),
            "{other}"
        );
        assert_eq!(
            opened
                .warnings()
                .iter()
                .any(|warning| warning.contains(other)),
            named,
            "{other}"
        );
    }
    let root = folder();
    for name in [
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.fp16.safetensors",
    ] {
        write(root.path(), name, file_of(&A, 0));
    }
    let opened = Checkpoint::open(root.path()).expect("one of both");
    assert_eq!(
        opened.files()[0].name,
        "diffusion_pytorch_model.safetensors"
    );
    assert!(opened.warnings()[0].contains("diffusion_pytorch_model.fp16.safetensors"));
}

#[test]
fn one_shard_of_several_is_refused_alone_unless_it_is_wanted_so() {
    let root = folder();
    let shard = root.path().join("model-00002-of-00003.safetensors");
    fs::write(&shard, file_of(&A, 0)).expect("written");
    assert_refused(&shard, &["is shard 2 of 3 of a model", "name the folder"]);
    assert_refused(
        root.path(),
        &[
            "1 of 3 shards are there",
            "model-00001-of-00003.safetensors",
        ],
    );
    let alone = OpenOptions {
        shard_alone: true,
        ..OpenOptions::default()
    };
    assert!(Checkpoint::open_with(&shard, &alone).is_ok());
    let only = root.path().join("model-00001-of-00001.safetensors");
    fs::rename(&shard, &only).expect("renamed");
    assert!(Checkpoint::open(&only).is_ok() && Checkpoint::open(root.path()).is_ok());
}

#[test]
fn parts_that_training_leaves_are_said_to_be_what_they_are() {
    let cases: [(&[&str], &str, &str); 10] = [
        (
            &["consolidated.00.pth", "consolidated.01.pth", "params.json"],
            "Meta's own format, split into 2 parts",
            "Hugging Face",
        ),
        (
            &["hf_model_0001_0.pt", "hf_model_0002_0.pt"],
            "torchtune",
            "pytorch_model-00001",
        ),
        (
            &["__0_0.distcp", "__1_0.distcp"],
            "FSDP, DCP",
            "accelerate merge-weights",
        ),
        (
            &["pytorch_model_fsdp_0/__0_0.distcp"],
            "FSDP, DCP",
            "accelerate merge-weights",
        ),
        (
            &[
                "zero_pp_rank_0_mp_rank_00_model_states.pt",
                "zero_pp_rank_1_mp_rank_00_model_states.pt",
            ],
            "ZeRO",
            "zero_to_fp32.py",
        ),
        (
            &[
                "global_step500/mp_rank_00_model_states.pt",
                "latest",
                "zero_to_fp32.py",
            ],
            "ZeRO",
            "zero_to_fp32.py",
        ),
        (
            &[
                "model_world_size_2_rank_0.pt",
                "model_world_size_2_rank_1.pt",
            ],
            "verl",
            "model_merger",
        ),
        (
            &[
                "iter_0000100/mp_rank_00/model_optim_rng.pt",
                "latest_checkpointed_iteration.txt",
            ],
            "Megatron",
            "convert",
        ),
        (
            &[
                "model.ckpt-100.index",
                "model.ckpt-100.data-00000-of-00001",
                "checkpoint",
            ],
            "TensorFlow",
            "from_tf",
        ),
        (&["_CHECKPOINT_METADATA", "d/0"], "Orbax", "convert"),
    ];
    for (names, what, cure) in cases {
        let root = folder();
        for name in names {
            put(root.path(), name, "weights");
        }
        put(root.path(), "config.json", "{}");
        assert_refused(root.path(), &[what, cure]);
    }
    for (names, what) in [
        (
            ["consolidated.00.pth", "consolidated.01.pth"],
            "several parts of a model in Meta's own format",
        ),
        (["hf_model_0001_0.pt", "hf_model_0002_0.pt"], "torchtune"),
        (
            ["zero_pp_rank_0_mp_rank_00_model_states.pt", "latest"],
            "ZeRO",
        ),
        (["__0_0.distcp", "latest"], "FSDP, DCP"),
    ] {
        let root = folder();
        for name in names {
            put(root.path(), name, "weights");
        }
        assert_refused(&root.path().join(names[0]), &[what]);
    }
}

#[test]
fn a_stub_of_empty_weights_is_told_from_a_model_with_an_empty_tensor() {
    let root = folder();
    let stub: [Spec<'static>; 3] = [
        ("a.weight", Dtype::BF16, &[0]),
        ("b.weight", Dtype::BF16, &[0]),
        ("a.bias", Dtype::F32, &[3]),
    ];
    write(root.path(), "model.safetensors", file_of(&stub, 0));
    assert_refused(
        root.path(),
        &[
            "2 of its 2 weights are empty",
            "`a.weight`",
            "ZeRO-3",
            "zero_to_fp32.py",
        ],
    );
    write(
        root.path(),
        "model.safetensors",
        file_of(&[A[0], B[0], ("c.weight", Dtype::BF16, &[0])], 0),
    );
    assert!(Checkpoint::open(root.path()).is_ok());
}

#[test]
fn other_formats_say_what_to_do() {
    for (name, format, cure) in [
        ("model.gguf", "GGUF", "gguf_file"),
        ("flax_model.msgpack", "Flax", "from_flax"),
        ("tf_model.h5", "Keras", "from_tf"),
        ("model.onnx", "ONNX", "exported from"),
    ] {
        let root = folder();
        write(root.path(), name, "weights");
        assert_refused(root.path(), &[format, cure]);
        assert_refused(&root.path().join(name), &[format, cure]);
    }
}

#[test]
fn a_pipeline_names_its_components_and_loose_files_of_several_models_are_told_apart() {
    let root = folder();
    put(
        root.path(),
        "unet/diffusion_pytorch_model.safetensors",
        file_of(&A, 0),
    );
    put(
        root.path(),
        "vae/diffusion_pytorch_model.safetensors",
        file_of(&B, 0),
    );
    put(root.path(), "scheduler/scheduler_config.json", "{}");
    put(root.path(), "model_index.json", "{}");
    assert_refused(
        root.path(),
        &[
            "pipeline of several models",
            "unet, vae",
            "name one of them",
        ],
    );
    let root = folder();
    put(root.path(), "one.safetensors", file_of(&A, 0));
    put(root.path(), "two.safetensors", file_of(&A, 0));
    assert_refused(
        root.path(),
        &[
            "`a.bias`",
            "one.safetensors",
            "two.safetensors",
            "name one of them",
        ],
    );
}
