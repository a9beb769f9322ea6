//! Inputs of every packaging give the same bytes, and stay as they are.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use safetensors::Dtype;
use thalweg::checkpoint::{Io, compress_seekable};
use thalweg::kernel::CHUNK;

use super::{Kinship, Place, Run, assert_same, files_of, random_models};
use crate::support::reference::files::write_model;
use crate::support::reference::{Model, Random, Tensor};

fn models() -> Vec<Model> {
    let shapes: [&[usize]; 5] = [&[], &[0], &[700], &[3, 90], &[3 * CHUNK + 5]];
    let dtypes = [Dtype::BF16, Dtype::F32];
    let mut models = random_models(
        &mut Random::new(800),
        &dtypes,
        &shapes,
        Kinship::Cosine(0.9),
    );
    for model in &mut models {
        // An odd number of bytes in front, so that nothing behind it is aligned in the file.
        model.insert(
            "a".into(),
            Tensor::from_bytes(Dtype::U8, &[3], vec![1, 2, 3]),
        );
    }
    models
}

/// The weights of a merge of these inputs, by every way of reading.
fn merged(place: &Place, inputs: &[PathBuf], about: &str) -> Model {
    let run = Run::karcher(inputs).small_blocks();
    let wanted = place.merged(&run);
    for run in [
        Run {
            io: Io::Positioned,
            ..run.clone()
        },
        Run {
            memory: 100 << 20,
            threads: 1,
            ..run
        },
    ] {
        assert_same(&place.merged(&run), &wanted, about);
    }
    wanted
}

/// Replaces every shard below `folder` by what `compress` makes of it.
fn compress_shards(folder: &Path, compress: impl Fn(&Path, &Path)) {
    for name in files_of(folder)
        .keys()
        .filter(|name| name.ends_with(".safetensors"))
    {
        compress(&folder.join(name), &folder.join(format!("{name}.zst")));
        fs::remove_file(folder.join(name)).expect("a shard");
    }
}

#[test]
fn files_folders_shards_and_compressed_shards_give_the_same_bytes() {
    let place = Place::new();
    let models = models();
    let folders = place.models(&models);
    let wanted = merged(&place, &folders, "folders");
    let files: Vec<PathBuf> = folders
        .iter()
        .map(|folder| folder.join("model.safetensors"))
        .collect();
    assert_same(&merged(&place, &files, "files"), &wanted, "single files");

    let sharded = |name: &str, shards: usize| -> Vec<PathBuf> {
        let write = |(i, model): (usize, &Model)| {
            let folder = place.path(&format!("{name}{i}"));
            write_model(&folder, model, shards);
            folder
        };
        models.iter().enumerate().map(write).collect()
    };
    assert_same(
        &merged(&place, &sharded("sharded", 3), "shards"),
        &wanted,
        "shards",
    );

    let seekable = sharded("seekable", 1);
    for folder in &seekable {
        compress_shards(folder, |from, to| {
            compress_seekable(from, to, 3).expect("a compressed shard");
        });
    }
    assert_same(
        &merged(&place, &seekable, "seekable"),
        &wanted,
        "seekable shards",
    );

    let streams = sharded("streams", 1);
    for folder in &streams {
        compress_shards(folder, |from, to| {
            let data = fs::read(from).expect("a shard");
            fs::write(
                to,
                zstd::bulk::compress(&data, 1).expect("a compressed shard"),
            )
            .expect("a file");
        });
    }
    assert_same(
        &merged(&place, &streams, "streams"),
        &wanted,
        "plain streams",
    );
    let mixed = [seekable[0].clone(), files[1].clone()];
    assert_same(&merged(&place, &mixed, "mixed"), &wanted, "one of each");
}

/// Every file with its bytes and the time it was last changed.
fn stamped(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let stamp = |name: &String| {
        fs::metadata(folder.join(name))
            .and_then(|meta| meta.modified())
            .expect("a time")
    };
    files_of(folder)
        .into_iter()
        .map(|(name, bytes)| (name.clone(), (bytes, stamp(&name))))
        .collect()
}

#[test]
fn inputs_stay_as_they_are() {
    let place = Place::new();
    let folders = place.models(&models());
    for folder in &folders {
        fs::write(folder.join("config.json"), r#"{"dtype": "float64"}"#).expect("a config");
        let (from, to) = (
            folder.join("model.safetensors"),
            folder.join("packed.safetensors"),
        );
        fs::rename(&from, &to).expect("a shard");
        let data = fs::read(&to).expect("a shard");
        fs::write(
            folder.join("packed.safetensors.zst"),
            zstd::bulk::compress(&data, 1).expect("data"),
        )
        .expect("a file");
        fs::remove_file(to).expect("a shard");
    }
    let before: Vec<_> = folders.iter().map(|folder| stamped(folder)).collect();
    for io in [Io::Map, Io::Positioned] {
        place.merged(&Run {
            io,
            ..Run::karcher(&folders)
        });
    }
    let after: Vec<_> = folders.iter().map(|folder| stamped(folder)).collect();
    assert!(before == after, "an input was changed");
    assert_eq!(before[0].len(), 2);
}

#[test]
fn inputs_that_cannot_be_written_are_merged_all_the_same() {
    let place = Place::new();
    let folders = place.models(&models());
    let wanted = place.merged(&Run::karcher(&folders));
    let lock = |folder: &Path, readonly: bool| {
        let file = folder.join("model.safetensors");
        for path in [file.as_path(), folder] {
            let mut permissions = fs::metadata(path).expect("there").permissions();
            permissions.set_readonly(readonly);
            if !readonly {
                use std::os::unix::fs::PermissionsExt as _;
                permissions.set_mode(0o755);
            }
            fs::set_permissions(path, permissions).expect("own files");
        }
    };
    folders.iter().for_each(|folder| lock(folder, true));
    let got = place.merged(&Run::karcher(&folders));
    folders.iter().for_each(|folder| lock(folder, false));
    assert_same(&got, &wanted, "read-only inputs");
}
