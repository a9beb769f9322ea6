//! Transforms as files.

use std::fs;

use thalweg::checkpoint::Checkpoint;
use thalweg::symmetry::{Element, Transform, TransformFile, fingerprint};

use super::Stored;
use crate::support::forward::{Experts, Family, Gpt2, Llama};

fn stored() -> Stored {
    let family = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    };
    Stored::new(&family.random(2), None)
}

fn file(stored: &Stored) -> TransformFile {
    TransformFile {
        transform: Transform::random(&stored.symmetries, 7),
        model: "a model".into(),
        notes: [("gain.layers.0.mlp".to_owned(), "3.5".to_owned())]
            .into_iter()
            .collect(),
    }
}

#[test]
fn what_was_written_is_read_again() {
    let stored = stored();
    let path = stored.dir.path().join("perms.safetensors");
    let written = file(&stored);
    written.write(&path, &stored.symmetries).expect("written");
    assert_eq!(
        TransformFile::read(&path, &stored.symmetries).expect("read"),
        written
    );
    let identity = TransformFile {
        transform: Transform::identity(&stored.symmetries),
        ..written
    };
    identity.write(&path, &stored.symmetries).expect("replaced");
    assert_eq!(
        TransformFile::read(&path, &stored.symmetries).expect("read"),
        identity
    );
    assert_eq!(
        fs::read_dir(stored.dir.path()).expect("a folder").count(),
        2,
        "nothing is left beside model and file"
    );
}

#[test]
fn other_specs_groups_and_versions_are_refused() {
    let stored = stored();
    let path = stored.dir.path().join("perms.safetensors");
    file(&stored)
        .write(&path, &stored.symmetries)
        .expect("written");
    let gpt2 = Stored::new(&Gpt2.random(1), None);
    let error = TransformFile::read(&path, &gpt2.symmetries).expect_err("another spec");
    assert!(
        error.to_string().contains("made by the spec `mixtral`"),
        "{error}"
    );
    let whole = fs::read(&path).expect("a file");
    let damage = |from: &str, to: &str, words: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .expect(from);
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        fs::write(&path, bytes).expect("written");
        let error = TransformFile::read(&path, &stored.symmetries).expect_err(to);
        assert!(error.to_string().contains(words), "{to}: {error}");
    };
    damage(
        "thalweg-transform",
        "thalweg-transmute",
        "not one file whose metadata",
    );
    damage(
        "\"version\":\"1\"",
        "\"version\":\"9\"",
        "wanted version 1, got `9`",
    );
    damage(
        "layers.1.kv.permutation",
        "layers.7.kv.permutation",
        "belongs to no group",
    );
    damage(
        "layers.1.kv.permutation",
        "layers.1.kv.permutatios",
        "neither permutation, sign nor rotation",
    );
    damage("\"I32\"", "\"F32\"", "wanted I32");
    for len in [0, 7, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).expect("written");
        assert!(
            TransformFile::read(&path, &stored.symmetries).is_err(),
            "{len} bytes"
        );
    }
}

#[test]
fn elements_that_do_not_fit_their_group_are_refused() {
    let stored = stored();
    let symmetries = &*stored.symmetries;
    let with = |name: &str, element: Element| {
        let group = symmetries.group(name).expect(name);
        Transform::identity(symmetries)
            .with(symmetries, group, element)
            .expect_err(name)
            .to_string()
    };
    let permutation = |permutation: Vec<u32>| Element {
        permutation,
        ..Element::default()
    };
    assert!(with("layers.0.experts", permutation(vec![0, 1, 1, 3])).contains("unit 1 comes twice"));
    assert!(with("layers.0.experts", permutation(vec![0, 1, 2, 4])).contains("unit 4 of 4"));
    assert!(
        with("layers.0.experts", permutation(vec![0, 1, 2])).contains("wanted 4 numbers, got 3")
    );
    assert!(
        with("layers.0.rope", permutation((0..24).collect()))
            .contains("does not allow a permutation")
    );
    let sign = Element {
        negative: vec![true; 4],
        ..Element::default()
    };
    assert!(with("layers.0.experts", sign).contains("does not allow signs"));
    let angle = Element {
        angle: vec![f64::NAN; 12],
        ..Element::default()
    };
    assert!(with("layers.0.rope", angle).contains("angle is NaN"));
}

#[test]
fn a_fingerprint_knows_the_model_and_not_its_files() {
    let net = Gpt2.random(1);
    let dir = tempfile::TempDir::new().expect("a folder");
    let of = |name: &str| {
        fingerprint::of(&Checkpoint::open(&dir.path().join(name)).expect("opens")).expect("read")
    };
    net.write(&dir.path().join("one"));
    let model = crate::support::reference::files::read_model(&dir.path().join("one"));
    crate::support::reference::files::write_model(&dir.path().join("sharded"), &model, 3);
    assert_eq!(of("one"), of("sharded"));
    let mut other = net.clone();
    let values = &mut other
        .tensors
        .get_mut("transformer.h.1.mlp.c_fc.weight")
        .expect("there")
        .1;
    let middle = values.len() / 2;
    values[middle] += 1e-9;
    other.write(&dir.path().join("other"));
    assert_ne!(of("one"), of("other"));
}
