//! Every method by recipe against its definition.

use safetensors::Dtype;

use super::{Choice, DTYPES, FAMILY, Trial, dense, fine_tunes};
use crate::support::reference::selecting::{Keys, Part, RescaleBy, SignTie, Ties};
use crate::support::reference::{Granularity, Model, Random};

const SHAPES: [&[usize]; 7] = [&[300], &[12, 30], &[4, 5, 20], &[], &[1], &[9, 1], &[1, 9]];

const WEIGHTS: [f64; 5] = [1.0, 0.5, 0.75, -0.25, 2.0];

const DENSITIES: [f64; 6] = [0.3, 0.5, 0.05, 0.9, 1.0, 0.0];

/// So many models with weights and densities that begin at a place of the lists.
fn parts(count: usize, from: usize) -> Vec<Part> {
    let part = |model: usize| {
        let density = DENSITIES[(from + model) % DENSITIES.len()];
        Part {
            weight: WEIGHTS[(from + model) % WEIGHTS.len()],
            density,
            epsilon: 0.8 * density.min(1.0 - density),
            gamma: [0.01, 0.1, 0.6][(from + model) % 3],
        }
    };
    (0..count).map(part).collect()
}

#[test]
fn differences_are_thinned_out_elected_and_added_as_defined() {
    let mut random = Random::new(700);
    for name in FAMILY {
        for (number, dtypes) in DTYPES.iter().enumerate() {
            for count in 1..=5 {
                let from = number + 2 * count;
                let models = fine_tunes(&mut random, &dtypes[..=count], &SHAPES);
                let choice = Choice::of(name, &parts(count, from)).with("lambda", 0.75);
                let keys = Keys {
                    ties: [Ties::Spread, Ties::First][from % 2],
                    sign_tie: [SignTie::Plus, SignTie::Zero][count % 2],
                    seed: [0, 7, u64::from(u32::MAX) + 5][from % 3],
                    ..Keys::USUAL
                };
                let mut trial = Trial::new(models, choice).by(keys);
                trial.base = [None, Some(0), Some(count / 2), Some(count)][from % 4];
                trial.check();
            }
        }
    }
}

#[test]
fn sums_are_normalized_and_rescaled_as_the_recipe_says() {
    let mut random = Random::new(701);
    for (number, name) in FAMILY.into_iter().enumerate() {
        for rescale_by in [RescaleBy::Norm, RescaleBy::Density, RescaleBy::Probability] {
            for (normalize, rescale) in [(true, true), (true, false), (false, true), (false, false)]
            {
                let dtypes = &DTYPES[(number + usize::from(rescale)) % 3][..4];
                let models = fine_tunes(&mut random, dtypes, &[&[20, 30], &[77], &[]]);
                let choice = Choice::of(name, &parts(3, number))
                    .normalized(normalize)
                    .rescaled(rescale);
                let keys = Keys {
                    rescale_by,
                    ..Keys::USUAL
                };
                Trial::new(models, choice).by(keys).check();
            }
        }
    }
}

#[test]
fn thresholds_hold_for_rows_and_for_the_model_when_they_are_to() {
    let mut random = Random::new(702);
    for (number, name) in FAMILY.into_iter().enumerate() {
        for dtypes in &DTYPES {
            let models = fine_tunes(
                &mut random,
                &dtypes[..4],
                &[&[40, 70], &[6, 7, 8], &[50], &[]],
            );
            for granularity in [Granularity::Row, Granularity::Model] {
                let rules = match granularity {
                    Granularity::Model => &[Ties::Spread][..],
                    _ => &[Ties::Spread, Ties::First],
                };
                for &ties in rules {
                    let choice = Choice::of(name, &parts(3, number));
                    let keys = Keys {
                        granularity,
                        ties,
                        ..Keys::USUAL
                    };
                    Trial::new(models.clone(), choice).by(keys).check();
                }
            }
        }
    }
}

#[test]
fn one_threshold_over_the_model_holds_for_tensors_of_every_type() {
    let mut random = Random::new(709);
    for (one, other) in [
        (Dtype::F32, Dtype::BF16),
        (Dtype::BF16, Dtype::F64),
        (Dtype::F8_E4M3, Dtype::F16),
    ] {
        let mut of = |dtype, shape: &[usize]| {
            let models = fine_tunes(&mut random, &[dtype; 3], &[shape]);
            models
                .into_iter()
                .filter_map(|model| model.into_values().next())
        };
        let (a, b, c) = (of(one, &[50, 40]), of(other, &[70, 30]), of(one, &[9]));
        let named = |((a, b), c)| {
            Model::from([
                ("a".to_owned(), a),
                ("b".to_owned(), b),
                ("c".to_owned(), c),
            ])
        };
        let models: Vec<Model> = a.zip(b).zip(c).map(named).collect();
        let keys = Keys {
            granularity: Granularity::Model,
            ..Keys::USUAL
        };
        for name in [
            "ties",
            "breadcrumbs",
            "dare_linear",
            "della",
            "sce",
            "ramplus_tl",
        ] {
            let choice = Choice::of(name, &dense(0.4, 2));
            let choice = match name {
                "sce" => choice.with("select_topk", 0.4),
                "ramplus_tl" => choice,
                _ => choice.rescaled(true),
            };
            Trial::new(models.clone(), choice).by(keys).check();
        }
    }
}

#[test]
fn sce_selects_weighs_and_erases() {
    let mut random = Random::new(703);
    for dtypes in &DTYPES {
        for count in 1..=5 {
            let models = fine_tunes(&mut random, &dtypes[..=count], &SHAPES);
            for select_topk in [1.0, 0.3, 0.0] {
                let granularity = match count {
                    2 => Granularity::Row,
                    3 => Granularity::Model,
                    _ => Granularity::Tensor,
                };
                let keys = Keys {
                    granularity,
                    sign_tie: [SignTie::Plus, SignTie::Zero][count % 2],
                    ..Keys::USUAL
                };
                let choice = Choice::of("sce", &dense(1.0, count)).with("select_topk", select_topk);
                // Half of them below mergekit's floor, at which all weigh the same.
                let choice = match count % 2 {
                    0 => choice.with("weight_floor", 0.0),
                    _ => choice.with("weight_floor", 1e-3),
                };
                Trial::new(models.clone(), choice).by(keys).check();
            }
        }
    }
}

#[test]
fn ram_takes_means_over_those_who_changed_an_element() {
    let mut random = Random::new(704);
    for dtypes in &DTYPES {
        for count in 1..=5 {
            let models = fine_tunes(&mut random, &dtypes[..=count], &SHAPES);
            // About half of the differences are larger.
            for epsilon in [1e-5, 0.007] {
                let ram = Choice::of("ram", &dense(1.0, count)).with("epsilon", epsilon);
                Trial::new(models.clone(), ram).check();
                let granularity =
                    [Granularity::Tensor, Granularity::Row, Granularity::Model][count % 3];
                let keys = Keys {
                    granularity,
                    ..Keys::USUAL
                };
                let plus = Choice::of("ramplus_tl", &dense(1.0, count))
                    .with("epsilon", epsilon)
                    .with("r", 0.3)
                    .with("alpha", 1.5);
                Trial::new(models.clone(), plus).by(keys).check();
            }
        }
    }
}

#[test]
fn a_consensus_keeps_what_enough_models_are_behind() {
    let mut random = Random::new(708);
    for name in ["consensus_ta", "consensus_ties"] {
        for dtypes in &DTYPES {
            for count in 1..=5 {
                let models = fine_tunes(&mut random, &dtypes[..=count], &SHAPES);
                let (agree, tall_lambda) = [(1.0, 0.4), (2.0, 0.6), (3.0, 0.0)][count % 3];
                let choice = Choice::of(name, &parts(count, count))
                    .with("agree", agree)
                    .with("tall_lambda", tall_lambda)
                    .with("lambda", 0.75);
                Trial::new(models.clone(), choice).check();
            }
        }
    }
}

#[test]
fn nearswap_moves_towards_the_model_where_it_is_near() {
    let mut random = Random::new(705);
    for dtypes in &DTYPES {
        let models = fine_tunes(&mut random, &dtypes[..2], &SHAPES);
        for t in [0.0, 0.001, 0.01, 1.0] {
            let choice = Choice::of("nearswap", &dense(1.0, 1)).with("t", t);
            Trial::new(models.clone(), choice).check();
        }
    }
}

#[test]
fn arcee_fusion_takes_what_stands_out() {
    let mut random = Random::new(706);
    for dtypes in &DTYPES {
        let models = fine_tunes(
            &mut random,
            &dtypes[..2],
            &[&[300], &[12, 30], &[4, 5, 20], &[3000]],
        );
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Model] {
            let keys = Keys {
                granularity,
                ..Keys::USUAL
            };
            Trial::new(models.clone(), Choice::of("arcee_fusion", &dense(1.0, 1)))
                .by(keys)
                .check();
        }
    }
}

#[test]
fn outputs_of_another_type_are_rounded_once() {
    let mut random = Random::new(707);
    let models = fine_tunes(&mut random, &[Dtype::F32; 4], &[&[40, 50]]);
    for name in ["ties", "dare_linear", "sce", "ramplus_tl"] {
        for dtype in ["bfloat16", "float16", "float64", "float8_e4m3fn"] {
            let trial = Trial::new(models.clone(), Choice::of(name, &dense(0.5, 3)));
            let place = crate::merge::Place::in_memory();
            let got = place.merged(&trial.run(&place).with("dtype", dtype));
            assert_ne!(got["t[40, 50]"].dtype, Dtype::F32);
            trial.compare(&got);
        }
    }
}
