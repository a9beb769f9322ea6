//! A finished folder is read back, and every kind of damage is found and named.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thalweg::dtype::Dtype;
use thalweg::output::{Begun, OpenShard, ShardBytes, Verified, verify, verify_with};
use thalweg::{Kind, Result};

use crate::output::{Fixture, spec};
use crate::support::files::flip;

fn checked(dir: &Path) -> Result<Verified> {
    verify(dir, &mut |_, _| Ok(()))
}

fn finished(fixture: Fixture) -> Fixture {
    fixture.finish();
    fixture
}

/// Damages a finished folder, which must then be refused in these words.
fn finds(words: &str, damage: impl Fn(&Fixture)) {
    let fixture = finished(Fixture::small());
    damage(&fixture);
    let error = checked(&fixture.dir()).expect_err(words);
    assert_eq!(error.kind(), Kind::Damaged, "{error}");
    assert!(error.to_string().contains(words), "{words}: {error}");
}

fn edit_json(path: &Path, edit: impl Fn(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(path).expect("there")).expect("JSON");
    edit(&mut value);
    fs::write(path, value.to_string()).expect("written");
}

/// A manifest as the first version had them, without a checksum of itself, so that one can see what
/// is behind that.
pub fn unsealed(manifest: &str) -> String {
    let lines: Vec<_> = manifest.lines().collect();
    let [above @ .., last, "}"] = &lines[..] else {
        panic!("{manifest}")
    };
    assert!(last.starts_with("  \"blake3_of_all_above\": "), "{last}");
    let text = format!("{}\n}}\n", above.join("\n").trim_end_matches(','));
    text.replacen("\"format\": 2,", "\"format\": 1,", 1)
}

fn unseal(fixture: &Fixture) -> PathBuf {
    let path = fixture.dir().join("thalweg.json");
    fs::write(&path, unsealed(&fs::read_to_string(&path).expect("there"))).expect("written");
    path
}

#[test]
fn sound_folders_are_sound_and_every_byte_was_read() {
    for fixture in [
        Fixture::small(),
        Fixture::large(),
        Fixture::new(vec![spec("a", Dtype::F32, &[3])], 100),
    ] {
        let fixture = finished(fixture);
        let data_bytes = fixture.layout().data_bytes();
        let mut last = (0, 0);
        let verified = verify(&fixture.dir(), &mut |done, of| {
            last = (done, of);
            Ok(())
        });
        let verified = verified.expect("sound");
        assert_eq!(last, (data_bytes, data_bytes));
        assert!(verified.has_checksums && verified.unnamed.is_empty());
        assert_eq!(
            (verified.shards, verified.tensors),
            (fixture.layout().shards().len(), fixture.specs.len())
        );
    }
}

#[test]
fn every_flipped_byte_of_every_file_of_weights_is_found() {
    let fixture = finished(Fixture::small());
    for shard in 0..3 {
        for at in 0..fixture.layout().shards()[shard].len {
            flip(&fixture.shard(shard), at);
            let error = checked(&fixture.dir()).expect_err("damage");
            assert_eq!(
                error.kind(),
                Kind::Damaged,
                "byte {at} of shard {shard}: {error}"
            );
            flip(&fixture.shard(shard), at);
        }
    }
    checked(&fixture.dir()).expect("all was put right again");
}

#[test]
fn a_damaged_block_is_named() {
    let fixture = finished(Fixture::large());
    let slot = fixture.layout().tensors()[0].clone();
    for (block, at) in [(0, 0), (0, (1 << 24) - 1), (1, 1 << 24), (2, slot.len - 1)] {
        flip(&fixture.shard(0), slot.offset + at);
        let error = checked(&fixture.dir()).expect_err("damage").to_string();
        assert!(
            error.contains("model-00001-of-00002")
                && error.contains(&format!("block {block} of tensor big")),
            "{error}"
        );
        flip(&fixture.shard(0), slot.offset + at);
    }
}

#[test]
fn missing_extra_and_cut_files_are_found() {
    finds("the shard is missing", |fixture| {
        fs::remove_file(fixture.shard(1)).expect("there")
    });
    finds("by its header wanted", |fixture| {
        let file = fs::File::options()
            .write(true)
            .open(fixture.shard(1))
            .expect("there");
        file.set_len(fixture.layout().shards()[1].len - 1)
            .expect("cut");
    });
    finds("too short for a header", |fixture| {
        fs::write(fixture.shard(1), "abc").expect("written")
    });
    finds("a header of", |fixture| {
        fs::write(fixture.shard(1), [0xff; 100]).expect("written")
    });
    finds("knows of no such shard", |fixture| {
        fs::copy(fixture.shard(0), fixture.dir().join("model.safetensors")).expect("copied");
    });
    finds("the index is missing", |fixture| {
        fs::remove_file(fixture.dir().join("model.safetensors.index.json")).expect("there");
    });
    finds("2 indexes", |fixture| {
        fs::write(fixture.dir().join("other.safetensors.index.json"), "{}").expect("written");
    });
    finds("not finished", |fixture| {
        fs::create_dir(fixture.dir().join(".thalweg")).expect("created")
    });
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_found() {
    let index = |edit: fn(&mut Value)| {
        move |fixture: &Fixture| {
            edit_json(&fixture.dir().join("model.safetensors.index.json"), edit)
        }
    };
    finds(
        "total_size is 1, wanted",
        index(|json| json["metadata"]["total_size"] = 1.into()),
    );
    finds(
        "total_size is null",
        index(|json| {
            _ = json["metadata"]
                .as_object_mut()
                .expect("object")
                .remove("total_size")
        }),
    );
    finds(
        "tensor ghost is not in",
        index(|json| json["weight_map"]["ghost"] = "model-00001-of-00003.safetensors".into()),
    );
    finds(
        "tensor up is in model-00002",
        index(|json| json["weight_map"]["up"] = "model-00001-of-00003.safetensors".into()),
    );
    finds(
        "is not listed",
        index(|json| {
            _ = json["weight_map"]
                .as_object_mut()
                .expect("object")
                .remove("up")
        }),
    );
    finds(
        "not a plain file name",
        index(|json| json["weight_map"]["up"] = "../model.safetensors".into()),
    );
    finds("model.safetensors.index.json", |fixture| {
        fs::write(fixture.dir().join("model.safetensors.index.json"), "{").expect("written");
    });
}

#[test]
fn a_manifest_that_does_not_fit_is_found() {
    let manifest =
        |edit: fn(&mut Value)| move |fixture: &Fixture| edit_json(&unseal(fixture), edit);
    finds(
        "format version 3",
        manifest(|json| json["format"] = 3.into()),
    );
    finds(
        "does not end with blake3_of_all_above",
        manifest(|json| json["format"] = 2.into()),
    );
    let digest = |json: &mut Value| json["shards"][1]["digest_of_hashes"] = "00".repeat(32).into();
    finds("digest_of_hashes is not that of", manifest(digest));
    finds(
        "(offset, length)",
        manifest(|json| json["tensors"][0]["offset"] = 8.into()),
    );
    finds(
        "(offset, length)",
        manifest(|json| json["tensors"][0]["length"] = u64::MAX.into()),
    );
    finds(
        "do not fit together",
        manifest(|json| json["tensors"][0]["blake3"] = "00".into()),
    );
    finds(
        "do not fit together",
        manifest(|json| json["tensors"][0]["blocks"] = vec!["00".repeat(32)].into()),
    );
    finds(
        "do not fit together",
        manifest(|json| json["tensors"][3]["blake3"] = "00".repeat(32).into()),
    );
    finds(
        "does not match its checksum",
        manifest(|json| json["tensors"][0]["blake3"] = "00".repeat(32).into()),
    );
    finds(
        "its header hashes to",
        manifest(|json| json["shards"][0]["header_blake3"] = "00".into()),
    );
    finds(
        "bytes, wanted 5",
        manifest(|json| json["shards"][0]["size"] = 5.into()),
    );
    finds(
        "no shard nowhere",
        manifest(|json| json["tensors"][0]["shard"] = "nowhere".into()),
    );
    finds(
        "tensors, wanted",
        manifest(|json| _ = json["tensors"].as_array_mut().expect("list").pop()),
    );
    finds(
        "not a plain file name",
        manifest(|json| json["shards"][0]["name"] = "../x".into()),
    );
    finds(
        "knows of no such index",
        manifest(|json| json["index"] = Value::Null),
    );
    finds("cannot read manifest", |fixture| {
        fs::write(fixture.dir().join("thalweg.json"), "[1]").expect("written")
    });
}

#[test]
fn every_flipped_bit_of_the_manifest_is_found() {
    let fixture = finished(Fixture::new(
        vec![spec("a", Dtype::F32, &[3]), spec("b", Dtype::U8, &[2])],
        100,
    ));
    let path = fixture.dir().join("thalweg.json");
    let sound = fs::read(&path).expect("there");
    let file = fs::File::options().write(true).open(&path).expect("there");
    for (at, byte) in (0..).zip(&sound) {
        for bit in 0..8 {
            file.write_all_at(&[byte ^ (1 << bit)], at)
                .expect("written");
            let error = checked(&fixture.dir()).expect_err("damage");
            assert_eq!(
                error.kind(),
                Kind::Damaged,
                "bit {bit} of byte {at}: {error}"
            );
            assert!(
                error.to_string().contains("thalweg.json"),
                "bit {bit} of byte {at}: {error}"
            );
        }
        file.write_all_at(&[*byte], at).expect("written");
    }
    for cut in [0, 1, sound.len() / 2, sound.len() - 2, sound.len() - 1] {
        fs::write(&path, &sound[..cut]).expect("written");
        checked(&fixture.dir()).expect_err("damage");
    }
    fs::write(&path, sound).expect("written");
    checked(&fixture.dir()).expect("all was put right again");
}

#[test]
fn a_manifest_of_the_first_version_is_still_read_and_still_finds_damage() {
    let fixture = finished(Fixture::small());
    edit_json(&unseal(&fixture), |json| {
        for shard in json["shards"].as_array_mut().expect("a list") {
            shard
                .as_object_mut()
                .expect("an object")
                .remove("digest_of_hashes")
                .expect("it has one");
        }
    });
    assert!(checked(&fixture.dir()).expect("sound").has_checksums);
    assert!(matches!(fixture.begin(), Ok(Begun::Complete(manifest)) if manifest.format == 1));
    flip(&fixture.shard(1), fixture.layout().shards()[1].len - 1);
    assert!(
        checked(&fixture.dir())
            .expect_err("damage")
            .to_string()
            .contains("does not match its checksum")
    );
}

/// As the documentation puts it, computed with nothing but BLAKE3 and the files.
#[test]
fn a_shards_digest_is_the_hash_of_the_hashes_of_its_parts_however_it_was_written() {
    let specs = vec![
        spec("last", Dtype::U8, &[5]),
        spec("none", Dtype::F32, &[0, 2]),
        spec("first", Dtype::F64, &[9]),
        spec("more", Dtype::BF16, &[1 << 24, 2]),
        spec("nothing", Dtype::U8, &[0]),
    ];
    let fixture = finished(Fixture::new(specs, 1 << 30));
    let manifest: Value =
        serde_json::from_slice(&fs::read(fixture.dir().join("thalweg.json")).expect("there"))
            .expect("JSON");
    let bytes = fs::read(fixture.shard(0)).expect("there");
    let len =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight"))).expect("small");
    let header: Value = serde_json::from_slice(&bytes[8..8 + len]).expect("JSON");
    let number = |value: &Value| usize::try_from(value.as_u64().expect("a number")).expect("small");
    let tensors = header
        .as_object()
        .expect("an object")
        .iter()
        .filter(|(name, _)| *name != "__metadata__");
    let mut places: Vec<(usize, usize)> = tensors
        .map(|(_, tensor)| {
            (
                number(&tensor["data_offsets"][0]),
                number(&tensor["data_offsets"][1]),
            )
        })
        .collect();
    places.sort_unstable();
    let mut hashes = blake3::hash(&bytes[..8 + len]).as_bytes().to_vec();
    for (start, end) in places {
        hashes.extend(blake3::hash(&bytes[8 + len + start..8 + len + end]).as_bytes());
    }
    assert_eq!(
        manifest["shards"][0]["digest_of_hashes"],
        blake3::hash(&hashes).to_hex().as_str()
    );
}

#[test]
fn without_a_manifest_only_the_structure_is_checked_and_said_to_be() {
    let fixture = finished(Fixture::small());
    fs::remove_file(fixture.dir().join("thalweg.json")).expect("there");
    flip(&fixture.shard(0), fixture.layout().tensors()[0].offset);
    fs::copy(fixture.shard(0), fixture.dir().join("stray.safetensors")).expect("copied");
    let verified = checked(&fixture.dir()).expect("its structure is sound");
    assert!(!verified.has_checksums);
    assert_eq!(verified.unnamed, ["stray.safetensors"]);
    assert_eq!(verified.data_bytes, fixture.layout().data_bytes());
    fs::remove_file(fixture.dir().join("model.safetensors.index.json")).expect("there");
    assert!(
        checked(&fixture.dir())
            .expect_err("no index")
            .to_string()
            .contains("no index and 4 safetensors files")
    );
    assert_eq!(
        checked(Path::new("/nowhere/at/all"))
            .expect_err("no folder")
            .kind(),
        Kind::Damaged
    );
}

struct InMemory(Vec<u8>);

impl ShardBytes for InMemory {
    fn size(&self) -> u64 {
        u64::try_from(self.0.len()).expect("small")
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let offset = usize::try_from(offset).expect("small");
        buffer.copy_from_slice(&self.0[offset..offset + buffer.len()]);
        Ok(())
    }
}

#[test]
fn shards_can_be_read_in_another_way() {
    let fixture = finished(Fixture::small());
    let packed = |path: &Path| path.with_extension("safetensors.zst");
    for shard in 0..3 {
        let bytes = fs::read(fixture.shard(shard)).expect("there");
        fs::write(
            packed(&fixture.shard(shard)),
            zstd::encode_all(bytes.as_slice(), 1).expect("packed"),
        )
        .expect("written");
        fs::remove_file(fixture.shard(shard)).expect("there");
    }
    let open: &OpenShard<'_> = &|path: &Path| {
        let bytes = fs::read(packed(path)).expect("there");
        Ok(Some(Box::new(InMemory(
            zstd::decode_all(bytes.as_slice()).expect("unpacked"),
        )) as Box<dyn ShardBytes>))
    };
    assert!(
        verify_with(&fixture.dir(), open, &mut |_, _| Ok(()))
            .expect("sound")
            .has_checksums
    );
    let error = checked(&fixture.dir())
        .expect_err("compressed in one piece")
        .to_string();
    assert!(error.contains("without a seek table"), "{error}");
}

#[test]
fn files_beside_the_weights_are_checked_and_those_for_people_may_be_edited() {
    let names = [
        "config.json",
        "tokenizer.json",
        "README.md",
        "code/model.py",
    ];
    let finished = || {
        let fixture = Fixture::new(vec![spec("a", Dtype::F32, &[3])], 100);
        let sides = names.map(|name| {
            thalweg::output::SideFile::new(name, thalweg::output::Contents::Bytes(name.into()))
                .expect("plain")
        });
        let Begun::Fresh(mut output) = fixture.begin().expect("may begin") else {
            panic!("not fresh")
        };
        output.write(0, 0, &fixture.bytes(0)).expect("written");
        output.finish(&sides, &Value::Null).expect("finished");
        fixture
    };
    assert_eq!(
        checked(&finished().dir()).expect("sound").side_files,
        names.len()
    );
    for name in names {
        for damage in [0, 1, 2] {
            let fixture = finished();
            let path = fixture.dir().join(name);
            let words = match damage {
                0 => fs::write(&path, "another").map(|()| "was changed"),
                1 => fs::write(&path, name.to_uppercase()).map(|()| "was changed"),
                _ => fs::remove_file(&path).map(|()| "is missing"),
            };
            let words = words.expect("damaged");
            let found = checked(&fixture.dir());
            if name == "README.md" {
                let notes = found.expect("it is for people").notes;
                assert!(
                    notes.len() == 1 && notes[0].contains(name) && notes[0].contains(words),
                    "{notes:?}"
                );
            } else {
                let error = found.expect_err("damage");
                assert!(
                    error.subject().ends_with(name) && error.to_string().contains(words),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn one_shard_is_checked_by_the_manifest_of_its_folder() {
    let fixture = finished(Fixture::small());
    for shard in 0..3 {
        let verified = checked(&fixture.shard(shard)).expect("sound");
        assert!(
            verified.has_checksums
                && verified.shards == 1
                && verified.notes[0].contains("one shard of")
        );
        flip(
            &fixture.shard(shard),
            fixture.layout().shards()[shard].len - 1,
        );
        assert_eq!(
            checked(&fixture.shard(shard)).expect_err("damage").kind(),
            Kind::Damaged
        );
    }
}
