//! The seeds of the fuzz targets and mutations of them, through the same doors: no input may do
//! more than fail.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use thalweg::checkpoint::compress_seekable;
use thalweg::journal::{Claim, claims_record, head_with_identity};

use crate::output_verify::unsealed;
use crate::support::files::scratch;
use crate::support::reference::Random;

#[path = "../../fuzz/entries.rs"]
mod entries;

/// Mutations of each seed; more with this variable.
const MUTANTS: usize = 100;
const MORE: &str = "THALWEG_MUTANTS";

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = fs::read_dir(corpus(target))
        .expect("seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).expect("a seed"))
        .collect()
}

fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.bits() % bound.max(1) as u64).expect("below a length")
}

/// A few changes: bytes, lengths, parts that are cut out, doubled or taken from another seed.
fn mutate(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    const ODD: [u64; 8] = [
        0,
        1,
        0x7f,
        0xff,
        0x7fff_ffff,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        u64::MAX,
    ];
    let mut bytes = seed.to_vec();
    for _ in 0..=below(random, 4) {
        let at = below(random, bytes.len());
        let end = at + below(random, (bytes.len() - at).min(64) + 1);
        match below(random, 7) {
            0 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= 1 << below(random, 8)),
            1 => bytes
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte = random.bits().to_le_bytes()[0]),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            5 => {
                let odd = ODD[below(random, ODD.len())].to_le_bytes();
                let width = 1 << below(random, 4);
                bytes
                    .iter_mut()
                    .skip(at)
                    .zip(&odd[..width])
                    .for_each(|(byte, odd)| *byte = *odd);
            }
            _ => {
                let from = below(random, other.len());
                let to = from + below(random, (other.len() - from).min(64) + 1);
                drop(bytes.splice(at..end, other[from..to].to_vec()));
            }
        }
    }
    bytes
}

fn withstand(target: &str) {
    let (_, entry) = entries::ALL
        .into_iter()
        .find(|(name, _)| *name == target)
        .expect("a target");
    let mutants = std::env::var(MORE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(MUTANTS);
    let seeds = seeds(target);
    assert!(!seeds.is_empty(), "no seeds for {target}");
    let folder = scratch();
    let mut random = Random::new(77);
    for seed in &seeds {
        entry(seed, folder.path());
        for _ in 0..mutants {
            let other = &seeds[below(&mut random, seeds.len())];
            entry(&mutate(seed, other, &mut random), folder.path());
        }
    }
}

#[test]
fn no_header_does_more_than_fail() {
    withstand("header");
}

#[test]
fn no_index_does_more_than_fail() {
    withstand("index");
}

#[test]
fn no_pickle_does_more_than_fail() {
    withstand("pickle");
}

#[test]
fn no_torch_file_does_more_than_fail() {
    withstand("torch");
}

#[test]
fn no_recipe_does_more_than_fail() {
    withstand("recipe");
}

#[test]
fn no_journal_does_more_than_fail() {
    withstand("journal");
}

#[test]
fn no_manifest_does_more_than_fail() {
    withstand("manifest");
}

#[test]
fn no_compressed_file_does_more_than_fail() {
    withstand("zst");
}

#[test]
fn no_spec_does_more_than_fail() {
    withstand("spec");
}

/// Else mutations of them would get nowhere.
#[test]
fn specs_among_the_seeds_fit_the_models_they_are_tried_on() {
    for (name, found) in [("llama", true), ("mlp", true), ("resnet20", false)] {
        assert_eq!(
            entries::resolves(&fs::read_to_string(corpus("spec").join(name)).expect("a seed")),
            found,
            "{name}"
        );
    }
}

#[test]
fn every_target_has_seeds_a_binary_and_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
    let this =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/mutants.rs"))
            .expect("this file");
    for (name, _) in entries::ALL {
        assert!(
            folder
                .join("fuzz_targets")
                .join(name)
                .with_extension("rs")
                .exists(),
            "{name}"
        );
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        assert!(
            this.contains(&format!("    withstand(\"{name}\");")),
            "{name}"
        );
        assert!(!seeds(name).is_empty(), "{name}");
    }
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &vec![0x3f; data],
    ]
    .concat()
}

/// Makes the seeds that are not copies of other test data.
#[test]
#[ignore = "writes into the source tree; for when a format changes"]
fn write_seeds() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(corpus(target)).expect("made");
        fs::write(corpus(target).join(name), bytes).expect("written");
    };
    let two = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}  "#;
    let empty = r#"{"e":{"dtype":"I64","shape":[0,4],"data_offsets":[0,0]},"f":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[0,5]}}"#;
    for (name, header, data) in [
        ("two", two, 16),
        ("empty-tensor", empty, 5),
        ("none", "{}", 0),
    ] {
        let file = safetensors(header, data);
        write("header", name, &file);
        let folder = scratch();
        let (plain, packed) = (folder.path().join("plain"), folder.path().join("packed"));
        fs::write(&plain, &file).expect("written");
        compress_seekable(&plain, &packed, 3).expect("packed");
        write(
            "zst",
            &format!("{name}-seekable"),
            &fs::read(packed).expect("packed"),
        );
        write(
            "zst",
            &format!("{name}-frame"),
            &thalweg::checkpoint::compress_frame(&file, 1).expect("packed"),
        );
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": { "t": "a.safetensors" } });
    write("index", "one", index.to_string().as_bytes());
    write("index", "pretty", format!("{index:#}").as_bytes());
    let mut journal = head_with_identity(r#"{"layout":"x","identity":{}}"#).expect("an identity");
    write("journal", "begun", &journal);
    let claims = [
        Claim::Blocks {
            tensor: 0,
            first: 0,
            values: vec![[7; 32], [8; 32]],
        },
        Claim::Note {
            tensor: 2,
            note: "{}".into(),
        },
    ];
    journal.extend(claims_record(&claims).expect("claims"));
    journal.extend(
        claims_record(&[
            Claim::RunNote { note: "[]".into() },
            Claim::Shard { shard: 1 },
        ])
        .expect("claims"),
    );
    write("journal", "claims", &journal);
    journal.truncate(journal.len() - 5);
    write("journal", "torn", &journal);
    let model = scratch();
    fs::write(model.path().join("m.safetensors"), safetensors(two, 16)).expect("written");
    let args = [
        "merge",
        "m.safetensors",
        "m.safetensors",
        "--out",
        "out",
        "--memory",
        "256MiB",
        "--quiet",
    ];
    crate::support::program::run(model.path(), args).ok();
    let manifest = fs::read_to_string(model.path().join("out/thalweg.json")).expect("a manifest");
    write("manifest", "sealed", manifest.as_bytes());
    // A mutation of one with a checksum gets no further than that.
    write("manifest", "merged", unsealed(&manifest).as_bytes());
}
