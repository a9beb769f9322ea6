//! Folders: which files count, in which order, and what is said when they do not fit.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use safetensors::tensor::Dtype;
use thalweg::Kind;
use thalweg::checkpoint::{Checkpoint, SourceOptions, compress_seekable};

use super::{Spec, assert_holds, assert_refused, file_of, write};

const A: [Spec<'static>; 2] = [
    ("a.weight", Dtype::BF16, &[5, 3]),
    ("a.bias", Dtype::F32, &[3]),
];
const B: [Spec<'static>; 1] = [("b.weight", Dtype::F16, &[4, 4])];

fn index(entries: &[(&str, &str)]) -> String {
    let map: Vec<_> = entries
        .iter()
        .map(|(tensor, shard)| format!("{tensor:?}:{shard:?}"))
        .collect();
    format!(
        "{{\"metadata\":{{\"total_size\":74}},\"weight_map\":{{{}}}}}",
        map.join(",")
    )
}

const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";
const GOOD: [(&str, &str); 3] = [("b.weight", SECOND), ("a.weight", FIRST), ("a.bias", FIRST)];

/// A folder of two shards and an index of these entries.
fn sharded(entries: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), FIRST, file_of(&A, 0));
    write(folder.path(), SECOND, file_of(&B, 0));
    write(
        folder.path(),
        "model.safetensors.index.json",
        index(entries),
    );
    folder
}

fn assert_both(path: &Path) -> Checkpoint {
    let checkpoint = Checkpoint::open(path).expect("open");
    assert_eq!(checkpoint.tensors().len(), 3);
    assert_holds(&checkpoint, &A, 0, &SourceOptions::default());
    assert_holds(&checkpoint, &B, 0, &SourceOptions::default());
    checkpoint
}

#[test]
fn an_index_leads_to_its_shards_in_order_of_their_names() {
    let folder = sharded(&GOOD);
    write(folder.path(), "stray.safetensors", file_of(&A, 9));
    let checkpoint = assert_both(folder.path());
    let names: Vec<_> = checkpoint
        .files()
        .iter()
        .map(|file| file.name.as_str())
        .collect();
    assert_eq!(names, [FIRST, SECOND]);
    let tensors: Vec<_> = checkpoint
        .tensors()
        .keys()
        .map(|name| name.as_str())
        .collect();
    assert_eq!(tensors, ["a.bias", "a.weight", "b.weight"]);
    assert_eq!(checkpoint.folder(), Some(folder.path()));
    assert!(checkpoint.metadata_bytes() > 300 && checkpoint.metadata_bytes() < 10_000);
    assert_both(&folder.path().join("model.safetensors.index.json"));
}

#[test]
fn missing_shards_are_listed_together() {
    let folder = sharded(&[
        ("x", "m-1.safetensors"),
        ("a.bias", FIRST),
        ("y", "m-2.safetensors"),
        ("b.weight", SECOND),
    ]);
    assert_refused(
        folder.path(),
        &[
            "2 of 4 shards are there",
            "m-1.safetensors, m-2.safetensors",
        ],
    );
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let cases = [
        (
            vec![
                ("a.weight", SECOND),
                ("b.weight", SECOND),
                ("a.bias", FIRST),
            ],
            vec![
                "`a.weight`",
                "should be in model-00002",
                "is in model-00001",
            ],
        ),
        (
            vec![("c", FIRST), ("b.weight", SECOND)],
            vec!["`c`", "is not in model-00001"],
        ),
        (
            vec![("a.weight", "../x.safetensors")],
            vec!["plain file name", "a.weight"],
        ),
        (
            vec![("a.weight", "/etc/x.safetensors")],
            vec!["plain file name"],
        ),
        (
            vec![("a.weight", "sub\\x.safetensors")],
            vec!["plain file name"],
        ),
        (vec![("a.weight", "..")], vec!["plain file name"]),
        (vec![("a.weight", "")], vec!["not a safetensors file"]),
        (
            vec![("a.weight", "pytorch_model.bin")],
            vec!["not a safetensors file"],
        ),
        (vec![], vec!["names no tensor"]),
        (
            vec![("a.weight", FIRST), ("a.weight", SECOND)],
            vec!["`a.weight` is there twice"],
        ),
    ];
    for (entries, parts) in cases {
        assert_refused(
            sharded(&entries).path(),
            &[&["model.safetensors.index.json"], &parts[..]].concat(),
        );
    }
    for json in [
        "",
        "[]",
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"a\":1}}",
        "{\"weight_map\":{},\"weight_map\":{}}",
    ] {
        let folder = sharded(&GOOD);
        write(folder.path(), "model.safetensors.index.json", json);
        assert_refused(folder.path(), &["cannot read index"]);
    }
}

#[test]
fn a_tensor_that_is_in_two_shards_is_refused_with_both_names() {
    let folder = sharded(&GOOD);
    write(folder.path(), SECOND, file_of(&[B[0], A[1]], 0));
    assert_refused(folder.path(), &["`a.bias`", FIRST, SECOND]);
    fs::remove_file(folder.path().join("model.safetensors.index.json")).expect("remove");
    assert_refused(folder.path(), &["`a.bias`", FIRST, SECOND]);
}

#[test]
fn numbered_shards_without_an_index_must_be_complete() {
    let folder = sharded(&GOOD);
    fs::remove_file(folder.path().join("model.safetensors.index.json")).expect("remove");
    assert_both(folder.path());
    fs::remove_file(folder.path().join(FIRST)).expect("remove");
    assert_refused(
        folder.path(),
        &["1 of 2 shards", "missing: model-00001-of-00002.safetensors"],
    );
    write(
        folder.path(),
        "model-00001-of-00003.safetensors",
        file_of(&A, 0),
    );
    assert_refused(folder.path(), &["two sets", "of-00002", "of-00003"]);
    fs::remove_file(folder.path().join("model-00001-of-00003.safetensors")).expect("remove");
    write(
        folder.path(),
        "model-00001-of-4000000000.safetensors",
        file_of(&A, 0),
    );
    fs::remove_file(folder.path().join(SECOND)).expect("remove");
    assert_refused(folder.path(), &["1 of 4000000000 shards", "…"]);
}

#[test]
fn one_model_file_goes_before_loose_ones_and_adapters_are_left_out() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), "adapter_model.safetensors", file_of(&A, 9));
    assert_refused(folder.path(), &["adapter"]);
    write(
        folder.path(),
        "consolidated.safetensors",
        file_of(&[A[0], A[1], B[0]], 0),
    );
    assert_both(folder.path());
    write(folder.path(), "x.safetensors", file_of(&A, 0));
    write(folder.path(), "y.safetensors", file_of(&B, 0));
    assert_eq!(assert_both(folder.path()).files().len(), 2);
    write(
        folder.path(),
        "model.safetensors",
        file_of(&[A[0], A[1], B[0]], 0),
    );
    assert_eq!(
        assert_both(folder.path()).files()[0].name,
        "model.safetensors"
    );
}

#[test]
fn compressed_shards_stand_in_for_plain_ones() {
    for listed_suffix in ["", ".zst"] {
        let second = format!("{SECOND}{listed_suffix}");
        let folder = sharded(&[
            ("a.weight", FIRST),
            ("a.bias", FIRST),
            ("b.weight", &second),
        ]);
        let plain = folder.path().join(SECOND);
        compress_seekable(&plain, &folder.path().join(format!("{SECOND}.zst")), 1)
            .expect("compress");
        fs::remove_file(plain).expect("remove");
        assert_eq!(
            assert_both(folder.path()).files()[1].name,
            format!("{SECOND}.zst")
        );
        fs::remove_file(folder.path().join("model.safetensors.index.json")).expect("remove");
        assert_both(folder.path());
        write(folder.path(), SECOND, file_of(&B, 0));
        assert_eq!(assert_both(folder.path()).files()[1].name, SECOND);
    }
}

#[test]
fn other_formats_are_named() {
    for (name, format) in [
        ("model.gguf", "GGUF"),
        ("tf_model.h5", "Keras"),
        ("model.onnx", "ONNX"),
    ] {
        let folder = tempfile::tempdir().expect("temporary folder");
        write(folder.path(), "config.json", "{}");
        write(folder.path(), name, "weights");
        assert_refused(folder.path(), &[format, "safetensors are needed"]);
        assert_refused(
            &folder.path().join(name),
            &[format, "safetensors are needed"],
        );
    }
}

#[test]
fn what_is_not_a_checkpoint_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    assert_refused(folder.path(), &["folder is empty"]);
    write(folder.path(), "README.md", "");
    assert_refused(folder.path(), &["no safetensors file"]);
    assert_refused(
        &folder.path().join("gone"),
        &["gone", "no such file or folder"],
    );
    assert_refused(Path::new("/dev/null"), &["not a regular file"]);
    let kind = Checkpoint::open(&folder.path().join("gone"))
        .expect_err("nothing there")
        .kind();
    assert_eq!(kind, Kind::Input);
    fs::create_dir(folder.path().join("model.safetensors")).expect("create folder");
    assert_refused(folder.path(), &["not a regular file"]);
}

#[test]
fn several_indexes_without_the_usual_one_must_be_told_apart() {
    let folder = sharded(&GOOD);
    fs::rename(
        folder.path().join("model.safetensors.index.json"),
        folder.path().join("a.safetensors.index.json"),
    )
    .expect("rename");
    assert_both(folder.path());
    write(folder.path(), "b.safetensors.index.fp16.json", index(&GOOD));
    assert_refused(folder.path(), &["several indexes", "name one"]);
    assert_both(&folder.path().join("b.safetensors.index.fp16.json"));
}

#[test]
fn a_hub_cache_of_links_reads_like_a_folder() {
    let cache = tempfile::tempdir().expect("temporary folder");
    let (blobs, snapshot) = (
        cache.path().join("blobs"),
        cache.path().join("snapshots/abc"),
    );
    fs::create_dir_all(&blobs).expect("create");
    fs::create_dir_all(&snapshot).expect("create");
    let files = [
        (FIRST, file_of(&A, 0)),
        (SECOND, file_of(&B, 0)),
        ("model.safetensors.index.json", index(&GOOD).into_bytes()),
        ("config.json", b"{\"b\":1,\"a\":2}".to_vec()),
    ];
    for (i, (name, content)) in files.iter().enumerate() {
        write(&blobs, &format!("{i:064}"), content);
        symlink(format!("../../blobs/{i:064}"), snapshot.join(name)).expect("link");
    }
    let link = cache.path().join("link");
    symlink(&snapshot, &link).expect("link");
    for path in [snapshot, link] {
        let checkpoint = assert_both(&path);
        assert_eq!(
            checkpoint
                .config()
                .expect("config")
                .expect("is there")
                .to_string(),
            "{\"b\":1,\"a\":2}"
        );
        assert_eq!(
            checkpoint.side_files().expect("list"),
            [Path::new("config.json")]
        );
    }
}

#[test]
fn links_in_circles_and_into_nothing_are_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    symlink("b.safetensors", folder.path().join("a.safetensors")).expect("link");
    symlink("a.safetensors", folder.path().join("b.safetensors")).expect("link");
    assert_refused(folder.path(), &["cannot open", "symbolic links"]);
    assert_refused(
        &folder.path().join("a.safetensors"),
        &["cannot open", "symbolic links"],
    );
    fs::remove_file(folder.path().join("a.safetensors")).expect("remove");
    assert_refused(folder.path(), &["b.safetensors", "No such file"]);
}
