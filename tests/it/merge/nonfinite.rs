//! NaN and infinity in an input: named to the element, or let through.

use safetensors::Dtype;
use serde_json::json;
use thalweg::error::{Error, Kind};
use thalweg::kernel::{CHUNK, Kernels};

use super::same_bytes::least_memory;
use super::{Kinship, Place, Run, assert_same, only, random_models, recipe, vector};
use crate::support::reference::{Model, Random, Tensor};

/// Bytes of the F32 pattern of a NaN with a payload, a signalling one.
const PAYLOAD: u32 = 0xffa1_2345;

/// Puts `bits`, of whatever width the tensor's elements have, at a flat index.
fn put(model: &mut Model, name: &str, index: usize, bits: u64) {
    let tensor = model.get_mut(name).expect("a tensor");
    let width = tensor.bytes.len() / tensor.values.len();
    let mut bytes = tensor.bytes.clone();
    bytes[index * width..(index + 1) * width].copy_from_slice(&bits.to_le_bytes()[..width]);
    *tensor = Tensor::from_bytes(tensor.dtype, &tensor.shape, bytes);
}

pub fn assert_names(error: &Error, model: &str, tensor: &str, index: usize, about: &str) {
    let text = error.to_string();
    assert_eq!(
        (error.kind(), error.exit_code()),
        (Kind::NonFinite, 1),
        "{about}: {text}"
    );
    assert!(
        text.contains(&format!("/{model}: `{tensor}`")),
        "{about}: {text}"
    );
    assert!(
        text.ends_with(&format!("flat index {index}")),
        "{about}: wanted {index}: {text}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("`nan: propagate`")),
        "{about}"
    );
}

/// Four chunks to a block of F32.
const BLOCK: usize = 4 * CHUNK;

#[test]
fn the_error_names_model_tensor_and_index_in_whatever_chunk_and_block() {
    let place = Place::new();
    let name = format!("t[{}]", 3 * BLOCK + 5);
    let shapes: [&[usize]; 2] = [&[100], &[3 * BLOCK + 5]];
    let models = random_models(
        &mut Random::new(400),
        &[Dtype::F32; 3],
        &shapes,
        Kinship::Independent,
    );
    for (number, index) in [0, CHUNK - 1, BLOCK + 2 * CHUNK + 17, 3 * BLOCK + 4]
        .into_iter()
        .enumerate()
    {
        for (which, bits) in [
            (0, u64::from(PAYLOAD)),
            (2, u64::from(f32::NEG_INFINITY.to_bits())),
        ] {
            let mut models = models.clone();
            put(&mut models[which], &name, index, bits);
            let paths: Vec<_> = models
                .iter()
                .enumerate()
                .map(|(i, m)| place.model(&format!("n{number}-{which}-{i}"), m))
                .collect();
            for recipe in [
                recipe("karcher", &paths, None),
                recipe("linear", &paths, Some(&[1.0, 1.0, 1.0])),
                json!({ "merge_method": "passthrough", "models": [{ "model": paths[which] }] }),
                recipe("frechet", &paths, None),
            ] {
                let block_bytes = Some(4 * u64::try_from(BLOCK).expect("small"));
                let run = Run {
                    block_bytes,
                    ..Run::new(recipe)
                };
                // With little memory the blocks are smaller and the windows are not kept.
                for run in [
                    Run {
                        memory: least_memory(&run),
                        ..run.clone()
                    },
                    run,
                ] {
                    let about = format!("{}, {} bytes", run.recipe["merge_method"], run.memory);
                    assert_names(
                        &place.refused(&run),
                        &format!("n{number}-{which}-{which}"),
                        &name,
                        index,
                        &about,
                    );
                }
            }
        }
    }
}

#[test]
fn the_first_one_is_named_whatever_the_threads_and_the_instructions() {
    let place = Place::new();
    let name = format!("t[70, {CHUNK}]");
    let shapes: [&[usize]; 1] = [&[70, CHUNK]];
    let mut models = random_models(
        &mut Random::new(401),
        &[Dtype::BF16; 2],
        &shapes,
        Kinship::Independent,
    );
    put(&mut models[0], &name, 9 * CHUNK + 3, 0x7f80);
    put(&mut models[1], &name, 7 * CHUNK + 9, 0x7fc0);
    put(&mut models[1], &name, 7 * CHUNK + 12, 0xff80);
    put(&mut models[0], &name, 60 * CHUNK, 0x7fc0);
    let paths = place.models(&models);
    for granularity in ["tensor", "row", "model"] {
        for kernels in Kernels::available() {
            for threads in [1, 3, 8] {
                let run = Run {
                    threads,
                    kernels,
                    ..Run::karcher(&paths)
                }
                .with("granularity", granularity);
                for run in [run.clone(), run.small_blocks()] {
                    let error = place.refused(&run);
                    assert_names(
                        &error,
                        "m1",
                        &name,
                        7 * CHUNK + 9,
                        &format!("{granularity}, {kernels:?}, {threads}"),
                    );
                }
            }
        }
    }
}

#[test]
fn every_dtype_has_its_own_patterns() {
    let patterns: [(Dtype, &[u64]); 6] = [
        (Dtype::F64, &[0x7ff0 << 48, 0xfff8 << 48, 1 | 0x7ff0 << 48]),
        (Dtype::F32, &[0x7f80_0000, 0xffc0_0000, 0x7f80_0001]),
        (Dtype::F16, &[0x7c00, 0xfe00, 0x7c01]),
        (Dtype::BF16, &[0xff80, 0x7fc0, 0x7f81]),
        (Dtype::F8_E5M2, &[0x7c, 0xfc, 0x7d]),
        (Dtype::F8_E4M3, &[0x7f, 0xff]),
    ];
    for (dtype, patterns) in patterns {
        let place = Place::new();
        let models = random_models(
            &mut Random::new(402),
            &[dtype; 2],
            &[&[1000]],
            Kinship::Independent,
        );
        for (i, bits) in patterns.iter().enumerate() {
            let mut models = models.clone();
            put(&mut models[1], "t[1000]", 777, *bits);
            let paths = [
                place.model(&format!("a{i}"), &models[0]),
                place.model(&format!("b{i}"), &models[1]),
            ];
            let about = format!("{dtype:?} {bits:#x}");
            assert_names(
                &place.refused(&Run::karcher(&paths)),
                &format!("b{i}"),
                "t[1000]",
                777,
                &about,
            );
        }
    }
}

#[test]
fn what_is_let_through_is_not_measured_and_changes_nothing_else() {
    let place = Place::new();
    let shapes: [&[usize]; 3] = [&[50], &[20, 70], &[3 * CHUNK + 11]];
    for (number, dtype) in [Dtype::F32, Dtype::F64, Dtype::BF16]
        .into_iter()
        .enumerate()
    {
        let (infinity, nan) = match dtype {
            Dtype::F64 => (f64::INFINITY.to_bits(), f64::NAN.to_bits()),
            Dtype::F32 => (u64::from(f32::INFINITY.to_bits()), u64::from(PAYLOAD)),
            _ => (0x7f80, 0xffc1),
        };
        let mut odd = random_models(
            &mut Random::new(403),
            &[dtype; 3],
            &shapes,
            Kinship::Cosine(0.8),
        );
        let mut plain = odd.clone();
        let big = format!("t[{}]", 3 * CHUNK + 11);
        let places = [
            (0, "t[20, 70]", 71, nan),
            (1, &big, 5, infinity),
            (2, &big, 2 * CHUNK + 1, nan),
            (0, &big, 5, nan),
        ];
        for (model, name, index, bits) in places {
            put(&mut odd[model], name, index, bits);
            put(&mut plain[model], name, index, 0);
        }
        // An infinity alone stays one.
        put(&mut odd[1], &big, 9, infinity);
        put(&mut plain[1], &big, 9, 0);
        let paths = |models: &[Model], kind: &str| -> Vec<_> {
            models
                .iter()
                .enumerate()
                .map(|(i, m)| place.model(&format!("{kind}{number}-{i}"), m))
                .collect()
        };
        let (odd, plain) = (paths(&odd, "odd"), paths(&plain, "plain"));
        for granularity in ["tensor", "row", "model"] {
            let run = |paths: &[_]| {
                Run::weighted(paths, &[0.5, 0.2, 0.3]).with("granularity", granularity)
            };
            let got = place.merged(&run(&odd).with("nan", "propagate").small_blocks());
            let mut wanted = place.merged(&run(&plain));
            for (name, index) in [
                ("t[20, 70]", 71),
                (&big, 5),
                (&big, 2 * CHUNK + 1),
                (&big, 9),
            ] {
                let value = got[name].values[index];
                assert!(
                    if index == 9 {
                        value == f64::INFINITY
                    } else {
                        value.is_nan()
                    },
                    "{name} {index}: {value}"
                );
                put(&mut wanted, name, index, got[name].bits()[index]);
            }
            assert_same(&got, &wanted, &format!("{dtype:?} by {granularity}"));
        }
    }
}

#[test]
fn an_odd_value_of_a_model_without_weight_reaches_nothing_when_it_is_let_through() {
    let place = Place::new();
    let mut models = random_models(
        &mut Random::new(404),
        &[Dtype::F32; 3],
        &[&[500]],
        Kinship::Cosine(0.5),
    );
    put(&mut models[1], "t[500]", 3, u64::from(f32::NAN.to_bits()));
    let paths = place.models(&models);
    let got = place.merged(&Run::weighted(&paths, &[1.0, 0.0, 3.0]).with("nan", "propagate"));
    let two = [paths[0].clone(), paths[2].clone()];
    assert_same(
        &got,
        &place.merged(&Run::weighted(&two, &[1.0, 3.0])),
        "without the model",
    );
    let error = place.refused(&Run::weighted(&paths, &[1.0, 0.0, 3.0]));
    assert_names(&error, "m1", "t[500]", 3, "a model without weight");
}

#[test]
fn one_model_and_equal_models_are_copied_payloads_and_all() {
    let place = Place::new();
    let mut model = random_models(
        &mut Random::new(405),
        &[Dtype::F32],
        &[&[900], &[CHUNK + 9]],
        Kinship::Independent,
    )
    .remove(0);
    put(&mut model, "t[900]", 17, u64::from(PAYLOAD));
    put(&mut model, "t[900]", 18, 1 << 31);
    let one = place.model("one", &model);
    let other = place.model("other", &model);
    let runs = [
        Run::karcher(std::slice::from_ref(&one)),
        Run::new(recipe("linear", std::slice::from_ref(&one), Some(&[2.0]))),
        Run::new(recipe("passthrough", std::slice::from_ref(&one), None)),
        Run::karcher(&[one.clone(), other.clone()]),
        Run::karcher(&[one.clone(), one.clone(), other.clone()]),
    ];
    for run in runs {
        let got = place.merged(&run.clone().with("nan", "propagate"));
        assert_same(&got, &model, &run.recipe.to_string());
        assert_names(&place.refused(&run), "one", "t[900]", 17, "not let through");
    }
}

#[test]
fn squares_that_overflow_are_refused_and_not_taken_for_infinity() {
    let place = Place::new();
    let model = |x: f64| only(vector(Dtype::F64, &[1.0, x, 2.0]));
    let paths = place.models(&[model(1e200), model(-2e200)]);
    let error = place.refused(&Run::karcher(&paths));
    assert_eq!(error.kind(), Kind::NonFinite, "{error}");
    assert!(error.to_string().contains("overflow"), "{error}");
    // Where nothing is measured nothing overflows.
    let got = place.merged(&Run::new(recipe("linear", &paths, Some(&[1.0, 1.0]))));
    assert_eq!(got["w"].values, [1.0, -5e199, 2.0]);
}
