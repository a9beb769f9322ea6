//! The same bytes whatever the threads, the memory, the blocks, the instruction set and the way of
//! reading.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use safetensors::Dtype;
use thalweg::checkpoint::Io;
use thalweg::error::Kind;
use thalweg::kernel::{CHUNK, Kernels};
use thalweg::plan::schedule::Role;

use super::{Kinship, Place, Run, files_of, random_models};
use crate::support::reference::{Random, Tensor};

/// The least memory that a run can be planned with.
pub fn least_memory(run: &Run) -> u64 {
    let fits = |memory| {
        Run {
            memory,
            ..run.clone()
        }
        .plan()
        .is_ok()
    };
    let (mut too_small, mut enough) = (0, 1 << 30);
    assert!(fits(enough), "a gibibyte is enough for these tests");
    while enough - too_small > 1 {
        let middle = too_small + (enough - too_small) / 2;
        if fits(middle) {
            enough = middle
        } else {
            too_small = middle
        }
    }
    enough
}

/// What is done with blocks, by name.
pub fn roles(run: &Run) -> BTreeSet<&'static str> {
    let plan = run.plan().expect("enough memory");
    let durable = vec![0; plan.tensors.len()];
    let name = |role| match role {
        Role::Whole => "whole",
        Role::Measure { keep: true, .. } => "keep",
        Role::Measure { keep: false, .. } => "drop",
        Role::Apply => "apply",
        Role::Carry => "carry",
    };
    plan.schedule(&durable, false)
        .map(|block| name(block.role))
        .collect()
}

fn models(place: &Place) -> Vec<PathBuf> {
    let shapes: [&[usize]; 7] = [
        &[],
        &[0],
        &[17],
        &[40, 100],
        &[CHUNK],
        &[3, 2 * CHUNK + 1],
        &[5 * CHUNK + 7],
    ];
    let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F32];
    let mut models = random_models(
        &mut Random::new(300),
        &dtypes,
        &shapes,
        Kinship::Cosine(0.7),
    );
    let ids = Tensor::from_bytes(
        Dtype::I64,
        &[13_000],
        (0..104_000u32).map(|i| i.to_le_bytes()[0]).collect(),
    );
    models
        .iter_mut()
        .for_each(|model| assert!(model.insert("ids".into(), ids.clone()).is_none()));
    place.models(&models)
}

/// Merges in every way and compares all files; returns what was done with blocks.
fn in_every_way(granularity: &str) -> BTreeSet<&'static str> {
    let place = Place::new();
    let run = Run::weighted(&models(&place), &[0.5, 0.2, 0.3]).with("granularity", granularity);
    let levels = Kernels::available();
    let mut wanted: Option<BTreeMap<String, Vec<u8>>> = None;
    let mut seen = BTreeSet::new();
    let mut number = 0;
    for threads in [1, 2, 3, 8] {
        for block_bytes in [Some(64 << 10), Some(256 << 10), None] {
            let run = Run {
                threads,
                block_bytes,
                ..run.clone()
            };
            let least = least_memory(&run);
            for memory in [least, least + (1 << 20), least + (8 << 20), 1 << 30] {
                // Every level meets every way of reading, each of them many memories and blocks.
                let io = if number % 2 == 0 {
                    Io::Map
                } else {
                    Io::Positioned
                };
                let commit_bytes = if number % 5 == 0 { 1 } else { run.commit_bytes };
                let kernels = levels[number / 2 % levels.len()];
                let run = Run {
                    memory,
                    io,
                    kernels,
                    commit_bytes,
                    ..run.clone()
                };
                let out = place.path(&format!("out{number}"));
                run.merge_to(&out).expect("a merge that succeeds");
                let files = files_of(&out);
                let about =
                    format!("{threads} threads, {memory} bytes, blocks of {block_bytes:?}, {io:?}");
                let names: Vec<&String> = files.keys().collect();
                assert_eq!(
                    names,
                    [
                        "README.md",
                        "mergekit_config.yml",
                        "model.safetensors",
                        "thalweg.json"
                    ],
                    "{about}"
                );
                assert!(
                    files == *wanted.get_or_insert_with(|| files.clone()),
                    "{about}: other bytes"
                );
                seen.extend(roles(&run));
                std::fs::remove_dir_all(&out).expect("an output");
                number += 1;
            }
        }
    }
    seen
}

#[test]
fn tensor_by_tensor_every_way_gives_the_same_bytes() {
    assert_eq!(
        in_every_way("tensor"),
        ["apply", "carry", "drop", "keep", "whole"].into()
    );
}

#[test]
fn row_by_row_every_way_gives_the_same_bytes() {
    assert_eq!(
        in_every_way("row"),
        ["apply", "carry", "drop", "keep", "whole"].into()
    );
}

#[test]
fn over_the_model_every_way_gives_the_same_bytes() {
    // What has no elements has no statistics, but there is no block of it either.
    assert_eq!(in_every_way("model"), ["apply", "carry", "drop"].into());
}

#[test]
fn methods_that_centre_or_measure_nothing_give_the_same_bytes_every_way() {
    let place = Place::new();
    let paths = models(&place);
    let base = paths[1].to_str().expect("text");
    let weights = [0.5, 0.2, 0.3];
    let recipes = [
        super::recipe("linear", &paths, Some(&weights)),
        super::recipe("model_stock", &paths, None),
        super::recipe("multislerp", &paths, Some(&weights)),
        super::recipe("geometric_median", &paths, Some(&weights)),
    ];
    for (i, recipe) in recipes.into_iter().enumerate() {
        let run = Run::new(recipe).with("base_model", base);
        let small = Run {
            threads: 1,
            block_bytes: Some(1),
            ..run.clone()
        };
        let small = Run {
            memory: least_memory(&small),
            ..small
        };
        let outputs = [&run, &small].map(|run| {
            Kernels::available()
                .into_iter()
                .map(|kernels| {
                    let out = place.path(&format!("out{i}-{}-{}", run.threads, kernels.name()));
                    Run {
                        kernels,
                        ..run.clone()
                    }
                    .merge_to(&out)
                    .expect("a merge that succeeds");
                    files_of(&out)
                })
                .collect::<Vec<_>>()
        });
        let first = &outputs[0][0];
        assert!(
            outputs.iter().flatten().all(|files| files == first),
            "{}",
            run.recipe["merge_method"]
        );
    }
}

#[test]
fn one_byte_less_than_the_least_memory_is_refused_with_what_would_do() {
    let place = Place::new();
    let run = Run::karcher(&models(&place));
    for threads in [1, 8] {
        let run = Run {
            threads,
            ..run.clone()
        };
        let least = least_memory(&run);
        let error = place.refused(&Run {
            memory: least - 1,
            ..run.clone()
        });
        assert_eq!(error.kind(), Kind::Budget, "{error}");
        let hint = error.hint().expect("says what to do");
        let digits: String = hint
            .chars()
            .skip_while(|c| !c.is_ascii_digit())
            .take_while(char::is_ascii_digit)
            .collect();
        let named: u64 = digits.parse().expect("a number of mebibytes");
        assert_eq!(named, least.div_ceil(1 << 20), "{hint}");
        assert!(error.to_string().contains("3 input tensors"), "{error}");
        assert!(
            !place
                .merged(&Run {
                    memory: least,
                    ..run
                })
                .is_empty()
        );
    }
}

#[test]
fn a_quarter_gibibyte_does_for_a_hundred_models() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(301),
        &[Dtype::F32; 100],
        &[&[2, CHUNK + 1]],
        Kinship::Independent,
    );
    let run = Run::karcher(&place.models(&models));
    assert!(least_memory(&Run { threads: 4, ..run }) <= 256 << 20);
}
