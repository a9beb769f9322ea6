//! Every dtype and many sizes against the correctly rounded reference.

use safetensors::Dtype;
use thalweg::kernel::CHUNK;

use super::{Kinship, Place, Run, assert_rounded, random_models};
use crate::support::reference::{Granularity, Random, Rule, merge};

const DTYPES: [Dtype; 6] = [
    Dtype::F64,
    Dtype::F32,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F8_E4M3,
    Dtype::F8_E5M2,
];

/// Around every boundary inside: a sum's lanes, a tile, a chunk, a block.
const BOUNDARIES: [&[usize]; 17] = [
    &[],
    &[0],
    &[0, 5],
    &[5, 0],
    &[1],
    &[3, 1, 5],
    &[15],
    &[16],
    &[17],
    &[2, 4, 8],
    &[511],
    &[513],
    &[7, 37],
    &[CHUNK - 1],
    &[CHUNK],
    &[CHUNK + 1],
    &[2, CHUNK + 3],
];

const FEW: [&[usize]; 5] = [&[], &[0], &[40], &[6, 50, 3], &[CHUNK + 33]];

fn karcher(weights: &[f64]) -> Rule {
    Rule::Karcher {
        weights: weights.to_vec(),
        max_iter: 60,
    }
}

fn check(
    run: &Run,
    place: &Place,
    models: &[crate::support::reference::Model],
    weights: &[f64],
    about: &str,
) {
    for granularity in ["tensor", "row", "model"] {
        let by = match granularity {
            "tensor" => Granularity::Tensor,
            "row" => Granularity::Row,
            _ => Granularity::Model,
        };
        let got = place.merged(&run.clone().with("granularity", granularity));
        assert_rounded(
            &got,
            &merge(models, &karcher(weights), by),
            &format!("{about}, {granularity}"),
        );
    }
}

fn of_every_size(dtype: Dtype, kinship: Kinship) {
    let place = Place::new();
    let weights = [0.2, 0.5, 0.3];
    let models = random_models(&mut Random::new(100), &[dtype; 3], &BOUNDARIES, kinship);
    let run = Run::weighted(&place.models(&models), &weights).small_blocks();
    check(&run, &place, &models, &weights, &format!("{dtype:?}"));
}

#[test]
fn f64_of_every_size_is_the_mean_to_the_tolerance() {
    of_every_size(Dtype::F64, Kinship::Cosine(0.5));
}

#[test]
fn f32_of_every_size_is_the_mean_rounded_once() {
    of_every_size(Dtype::F32, Kinship::Cosine(0.5));
}

#[test]
fn f16_of_every_size_is_the_mean_rounded_once() {
    of_every_size(Dtype::F16, Kinship::Cosine(0.9));
}

#[test]
fn bf16_of_every_size_is_the_mean_rounded_once() {
    of_every_size(Dtype::BF16, Kinship::Cosine(0.9998));
}

#[test]
fn eight_bit_floats_of_every_size_are_the_mean_rounded_once() {
    of_every_size(Dtype::F8_E4M3, Kinship::Cosine(0.9));
    of_every_size(Dtype::F8_E5M2, Kinship::Cosine(0.5));
}

#[test]
fn a_tensor_of_several_blocks_and_chunks_is_the_mean_rounded_once() {
    let place = Place::new();
    let shapes: [&[usize]; 2] = [&[5 * CHUNK + 4097], &[3, 2 * CHUNK + 1]];
    let models = random_models(
        &mut Random::new(101),
        &[Dtype::BF16; 2],
        &shapes,
        Kinship::Independent,
    );
    let weights = [1.0, 1.0];
    let run = Run::karcher(&place.models(&models));
    // Two chunks to a block.
    let small = Run {
        block_bytes: Some(4 * u64::try_from(CHUNK).expect("small")),
        ..run
    };
    check(&small, &place, &models, &weights, "several blocks");
}

#[test]
fn any_number_of_models_has_the_mean_rounded_once() {
    let place = Place::new();
    for (count, cosine) in [(2, 0.3), (5, 0.3), (20, 0.3)] {
        let dtypes = vec![Dtype::F32; count];
        let models = random_models(
            &mut Random::new(102),
            &dtypes,
            &FEW,
            Kinship::Cosine(cosine),
        );
        let weights: Vec<f64> = (0u8..)
            .take(count)
            .map(|i| 1.0 + f64::from(i) / 8.0)
            .collect();
        let run = Run::weighted(&place.models(&models), &weights);
        check(&run, &place, &models, &weights, &format!("{count} models"));
    }
}

#[test]
fn a_hundred_models_have_the_mean_rounded_once() {
    let place = Place::new();
    let dtypes = [Dtype::BF16; 100];
    let models = random_models(
        &mut Random::new(103),
        &dtypes,
        &[&[], &[64], &[3, 40]],
        Kinship::Cosine(0.4),
    );
    check(
        &Run::karcher(&place.models(&models)),
        &place,
        &models,
        &[1.0; 100],
        "a hundred models",
    );
}

#[test]
fn independent_models_have_the_mean_rounded_once() {
    let place = Place::new();
    let shapes: [&[usize]; 3] = [&[4000], &[40, 1000], &[CHUNK + 1]];
    let models = random_models(
        &mut Random::new(104),
        &[Dtype::F32; 3],
        &shapes,
        Kinship::Independent,
    );
    let weights = [0.5, 0.3, 0.2];
    check(
        &Run::weighted(&place.models(&models), &weights),
        &place,
        &models,
        &weights,
        "independent",
    );
}

#[test]
fn fine_tunes_that_hardly_differ_have_the_mean_rounded_once() {
    let place = Place::new();
    let weights = [0.3, 0.3, 0.4];
    for (dtype, cosine) in [
        (Dtype::F32, 0.999_999_99),
        (Dtype::F32, 0.9998),
        (Dtype::F16, 0.9998),
    ] {
        let models = random_models(
            &mut Random::new(105),
            &[dtype; 3],
            &FEW,
            Kinship::Cosine(cosine),
        );
        let run = Run::weighted(&place.models(&models), &weights);
        check(
            &run,
            &place,
            &models,
            &weights,
            &format!("{dtype:?} of cosine {cosine}"),
        );
    }
}

#[test]
fn inputs_of_different_dtypes_are_merged_as_they_are_and_written_as_the_first() {
    let place = Place::new();
    let weights = [1.0; 6];
    for first in 0..DTYPES.len() {
        let mut dtypes = DTYPES;
        dtypes.rotate_left(first);
        let models = random_models(&mut Random::new(106), &dtypes, &FEW, Kinship::Cosine(0.8));
        let got = place.merged(&Run::karcher(&place.models(&models)).small_blocks());
        assert!(got.values().all(|tensor| tensor.dtype == dtypes[0]));
        let wanted = merge(&models, &karcher(&weights), Granularity::Tensor);
        assert_rounded(&got, &wanted, &format!("{dtypes:?}"));
    }
}

#[test]
fn the_output_is_rounded_once_to_the_dtype_that_was_asked_for() {
    let names = [
        "float64",
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
    ];
    let weights = [0.75, 0.25];
    for (i, from) in DTYPES.into_iter().enumerate() {
        let place = Place::new();
        let dtypes = [from, DTYPES[(i + 1) % DTYPES.len()]];
        let models = random_models(&mut Random::new(107), &dtypes, &FEW, Kinship::Cosine(0.6));
        let run = Run::weighted(&place.models(&models), &weights);
        let wanted = merge(&models, &karcher(&weights), Granularity::Tensor);
        for (name, to) in names.into_iter().zip(DTYPES) {
            let got = place.merged(&run.clone().with("dtype", name));
            assert!(got.values().all(|tensor| tensor.dtype == to));
            assert_rounded(&got, &wanted, &format!("{dtypes:?} to {name}"));
        }
    }
}
