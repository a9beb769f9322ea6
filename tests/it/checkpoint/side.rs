//! Files beside the weights.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use thalweg::checkpoint::Checkpoint;

use super::{SPECS, file_of, write};

fn model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), "model.safetensors", file_of(&SPECS, 0));
    folder
}

#[test]
fn side_files_are_what_a_loader_wants_beside_weights() {
    let folder = model();
    let kept = [
        "1_Pooling/config.json",
        "LICENSE",
        "config.json",
        "modeling.py",
        "tokenizer.json",
        "tokenizer.model",
    ];
    let left = [
        ".gitattributes",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "model.gguf",
        "thalweg.json",
        "onnx/model.onnx",
        "onnx/config.json",
        "a/b/deep.json",
        ".cache/x.json",
        "half.safetensors.part",
    ];
    for name in kept.iter().chain(&left) {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("create");
        fs::write(path, "{}").expect("write");
    }
    symlink(folder.path(), folder.path().join("loop")).expect("link");
    let checkpoint = Checkpoint::open(folder.path()).expect("open");
    assert_eq!(
        checkpoint.side_files().expect("list"),
        kept.map(PathBuf::from)
    );
    let file = Checkpoint::open(&folder.path().join("model.safetensors")).expect("open");
    assert!(file.side_files().expect("list").is_empty());
    assert!(file.config().expect("config beside the file").is_some());
}

#[test]
fn a_link_does_not_fetch_a_secret_under_a_harmless_name() {
    let (folder, elsewhere) = (model(), tempfile::tempdir().expect("temporary folder"));
    write(elsewhere.path(), "id_rsa", "secret");
    write(elsewhere.path(), "tokenizer.json", "{}");
    let checkpoint = Checkpoint::open(folder.path()).expect("open");
    symlink(
        elsewhere.path().join("tokenizer.json"),
        folder.path().join("tokenizer.json"),
    )
    .expect("link");
    assert_eq!(
        checkpoint.side_files().expect("same name"),
        [Path::new("tokenizer.json")]
    );
    symlink(
        elsewhere.path().join("id_rsa"),
        folder.path().join("vocab.json"),
    )
    .expect("link");
    let error = checkpoint
        .side_files()
        .expect_err("another name")
        .to_string();
    assert!(
        error.contains("vocab.json") && error.contains("id_rsa"),
        "{error}"
    );
}

#[test]
fn a_broken_link_beside_the_weights_is_an_error() {
    let folder = model();
    symlink("gone", folder.path().join("tokenizer.json")).expect("link");
    let error = Checkpoint::open(folder.path())
        .expect("open")
        .side_files()
        .expect_err("broken")
        .to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
}

#[test]
fn a_config_is_optional_but_must_be_json_of_reasonable_size() {
    let folder = model();
    let checkpoint = Checkpoint::open(folder.path()).expect("open");
    assert_eq!(checkpoint.config().expect("none is fine"), None);
    write(folder.path(), "config.json", "{\"a\":");
    assert!(
        checkpoint
            .config()
            .expect_err("cut")
            .to_string()
            .contains("config.json")
    );
    let huge = fs::File::create(folder.path().join("config.json")).expect("create");
    huge.set_len((16 << 20) + 1).expect("grow");
    assert!(
        checkpoint
            .config()
            .expect_err("too long")
            .to_string()
            .contains("16777217 bytes")
    );
}
