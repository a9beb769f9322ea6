//! The same bytes whatever the threads, the memory, the blocks, the instruction set and the way of
//! reading, and those that the definition says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use safetensors::Dtype;
use thalweg::checkpoint::Io;
use thalweg::kernel::{CHUNK, Kernels};

use super::{Choice, Trial, dense, fine_tunes};
use crate::merge::{Place, Run, files_of, least_memory, roles};
use crate::support::reference::files::read_model;
use crate::support::reference::selecting::{Keys, Part};
use crate::support::reference::{Granularity, Model, Random};

const SHAPES: [&[usize]; 5] = [&[], &[0], &[40, 100], &[2, CHUNK + 1], &[2 * CHUNK + 7]];

fn models(dtypes: [Dtype; 3]) -> Vec<Model> {
    fine_tunes(&mut Random::new(770), &dtypes, &SHAPES)
}

/// Merges in every way and compares all files with each other and with the definition; returns
/// what was done with blocks.
fn in_every_way(trial: &Trial, ways: &[(usize, Option<u64>)]) -> BTreeSet<&'static str> {
    let place = Place::in_memory();
    let run = trial.run(&place);
    let levels = Kernels::available();
    let mut wanted: Option<BTreeMap<String, Vec<u8>>> = None;
    let (mut seen, mut number) = (BTreeSet::new(), 0);
    for &(threads, block_bytes) in ways {
        let run = Run {
            threads,
            block_bytes,
            ..run.clone()
        };
        let least = least_memory(&run);
        for memory in [least, 1 << 30] {
            let run = Run {
                memory,
                io: [Io::Map, Io::Positioned][number % 2],
                kernels: levels[number / 2 % levels.len()],
                commit_bytes: if number % 5 == 0 { 1 } else { run.commit_bytes },
                ..run.clone()
            };
            let out = place.path(&format!("out{number}"));
            run.merge_to(&out).expect("a merge that succeeds");
            if number == 0 {
                trial.compare(&read_model(&out));
            }
            let files = files_of(&out);
            let same = files == *wanted.get_or_insert_with(|| files.clone());
            assert!(
                same,
                "{}: other bytes by {threads} threads, {memory} bytes, blocks of {block_bytes:?}, {:?}, {}",
                trial.about(),
                run.io,
                run.kernels.name()
            );
            seen.extend(roles(&run));
            fs::remove_dir_all(&out).expect("an output");
            number += 1;
        }
    }
    seen
}

const WAYS: [(usize, Option<u64>); 4] = [
    (1, Some(1)),
    (3, Some(256 << 10)),
    (8, Some(64 << 10)),
    (2, None),
];

const FEW: [(usize, Option<u64>); 2] = [(1, Some(1)), (3, None)];

fn by(granularity: Granularity) -> Keys {
    Keys {
        granularity,
        ..Keys::USUAL
    }
}

fn parts() -> Vec<Part> {
    [(0.5, 0.3), (1.0, 0.6)]
        .map(|(weight, density)| Part {
            weight,
            ..dense(density, 1)[0]
        })
        .to_vec()
}

#[test]
fn selections_by_magnitude_give_the_same_bytes_every_way() {
    for dtypes in [[Dtype::F32, Dtype::BF16, Dtype::F32], [Dtype::BF16; 3]] {
        let choice = Choice::of("ties", &parts()).rescaled(true);
        let trial = Trial::new(models(dtypes), choice);
        let seen = in_every_way(&trial, &WAYS);
        for role in ["apply", "drop", "keep", "whole"] {
            assert!(seen.contains(role), "{role}: {seen:?}");
        }
    }
}

#[test]
fn bands_draws_and_ranks_give_the_same_bytes_every_way() {
    let models = models([Dtype::F32, Dtype::BF16, Dtype::F32]);
    for (name, rescale) in [
        ("breadcrumbs_ties", true),
        ("dare_linear", true),
        ("della", true),
    ] {
        let choice = Choice::of(name, &parts()).rescaled(rescale);
        in_every_way(&Trial::new(models.clone(), choice), &FEW);
    }
}

#[test]
fn selections_over_models_give_the_same_bytes_every_way() {
    let models = models([Dtype::F32, Dtype::BF16, Dtype::F32]);
    let sce = Choice::of("sce", &parts()).with("select_topk", 0.3);
    in_every_way(&Trial::new(models.clone(), sce), &FEW);
    let ram = Choice::of("ramplus_tl", &parts()).with("epsilon", 0.01);
    in_every_way(&Trial::new(models.clone(), ram), &FEW);
    let two = models[..2].to_vec();
    in_every_way(
        &Trial::new(two.clone(), Choice::of("arcee_fusion", &parts()[..1])),
        &FEW,
    );
    let near = Choice::of("nearswap", &parts()[..1]).with("t", 0.01);
    in_every_way(&Trial::new(two, near), &FEW);
}

#[test]
fn rows_and_the_model_give_the_same_bytes_every_way() {
    let models = models([Dtype::F32, Dtype::BF16, Dtype::F32]);
    for (name, granularity) in [
        ("ties", Granularity::Row),
        ("sce", Granularity::Row),
        ("ties", Granularity::Model),
        ("dare_linear", Granularity::Model),
        ("ramplus_tl", Granularity::Model),
    ] {
        let choice = Choice::of(name, &parts());
        let choice = match name {
            "sce" => choice.with("select_topk", 0.3),
            "ramplus_tl" => choice,
            _ => choice.rescaled(true),
        };
        let trial = Trial::new(models.clone(), choice).by(by(granularity));
        in_every_way(&trial, &FEW);
    }
}

#[test]
fn equal_differences_over_many_blocks_give_the_same_bytes_every_way() {
    // Every element is tied with all others, in blocks of one chunk and of many.
    let mut models = models([Dtype::BF16; 3]);
    let base = models[0].clone();
    for (model, step) in models[1..].iter_mut().zip([0.5, -0.25]) {
        for (name, tensor) in model.iter_mut() {
            let ones = vec![1.0; base[name].values.len()];
            let values: Vec<f64> = ones.iter().map(|x| x + step).collect();
            *tensor =
                crate::support::reference::Tensor::rounded(Dtype::BF16, &tensor.shape, &values);
        }
    }
    for tensor in models[0].values_mut() {
        let ones = vec![1.0; tensor.values.len()];
        *tensor = crate::support::reference::Tensor::rounded(Dtype::BF16, &tensor.shape, &ones);
    }
    for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Model] {
        let trial = Trial::new(models.clone(), Choice::of("ties", &dense(0.5, 2)));
        in_every_way(&trial.by(by(granularity)), &FEW);
    }
}
