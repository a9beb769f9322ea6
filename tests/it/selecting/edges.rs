//! One element, all of them, none, equal ones, and vectors beside matrices.

use safetensors::Dtype;

use super::{Choice, FAMILY, OTHERS, Trial, dense, shaped, vectors};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, Part, SignTie, choose};
use crate::support::reference::{Granularity, Model, Random, Tensor};

/// Merges and says which elements differ from the base.
pub fn changed(trial: &Trial) -> Vec<bool> {
    let place = Place::in_memory();
    let got = place.merged(&trial.run(&place));
    trial.compare(&got);
    let base = &trial.models[0]["w"].values;
    got["w"]
        .values
        .iter()
        .zip(base)
        .map(|(x, b)| x != b)
        .collect()
}

pub fn count(flags: &[bool]) -> usize {
    flags.iter().filter(|flag| **flag).count()
}

#[test]
fn at_least_one_element_is_kept_and_no_more_than_the_share_rounded_down() {
    let mut random = Random::new(710);
    for (n, density, wanted) in [
        (1, 0.01, 1),
        (1, 0.99, 1),
        (10, 0.01, 1),
        (10, 0.19, 1),
        (10, 0.2, 2),
        // 0.29 * 100 is 28.999999999999996.
        (100, 0.29, 28),
        (100, 0.999, 99),
        (100, 1.0, 100),
        (100, 0.0, 0),
        (1000, 0.001, 1),
    ] {
        let base = random.gaussian(n);
        let input: Vec<f64> = base.iter().map(|b| b + 0.5 + random.uniform()).collect();
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
            let choice = Choice::of("ties", &dense(density, 1));
            let trial = Trial::new(vectors(dtype, &[&base, &input]), choice);
            assert_eq!(
                count(&changed(&trial)),
                wanted,
                "{density} of {n}, {dtype:?}"
            );
        }
    }
}

#[test]
fn a_band_may_be_empty_and_reaches_down_to_the_smallest() {
    let n = 100;
    let base = vec![0.0; n];
    let input: Vec<f64> = (0..n).map(|at| choose::number(1 + at * 37 % n)).collect();
    for (density, gamma, from, to) in [
        (0.5, 0.1, 41, 90),
        (0.5, 0.0, 51, 100),
        (0.3, 0.9, 1, 30),
        (0.004, 0.1, 90, 89),
        (0.9, 0.2, 1, 90),
        (0.01, 1.0, 1, 1),
    ] {
        for name in ["breadcrumbs", "breadcrumbs_ties"] {
            let part = Part {
                density,
                gamma,
                ..Part::weighing(1.0)
            };
            let choice = Choice::of(name, &[part]);
            let kept = changed(&Trial::new(vectors(Dtype::BF16, &[&base, &input]), choice));
            let within = |x: &f64| *x >= f64::from(from) && *x <= f64::from(to);
            let wanted: Vec<bool> = input.iter().map(within).collect();
            assert_eq!(kept, wanted, "{name}, {density}, {gamma}");
        }
    }
}

#[test]
fn equal_models_leave_the_base_as_it_is() {
    let mut random = Random::new(713);
    let values = random.gaussian(600);
    for name in FAMILY.into_iter().chain(OTHERS) {
        for dtype in [Dtype::BF16, Dtype::F32] {
            let models = shaped(dtype, &[20, 30], &[&values, &values, &values]);
            let trial = Trial::new(models, Choice::of(name, &dense(0.5, 2)));
            assert_eq!(count(&changed(&trial)), 0, "{name}");
        }
    }
    for name in ["nearswap", "arcee_fusion"] {
        let choice = Choice::of(name, &dense(1.0, 1));
        let choice = if name == "nearswap" {
            choice.with("t", 0.1)
        } else {
            choice
        };
        let trial = Trial::new(vectors(Dtype::BF16, &[&values, &values]), choice);
        assert_eq!(count(&changed(&trial)), 0, "{name}");
    }
}

#[test]
fn tensors_without_elements_and_other_types_go_through() {
    for name in FAMILY.into_iter().chain(OTHERS) {
        for granularity in [Granularity::Tensor, Granularity::Row, Granularity::Model] {
            let model = |x: f64| {
                Model::from([
                    (
                        "empty".to_owned(),
                        Tensor::rounded(Dtype::F32, &[0, 3], &[]),
                    ),
                    ("wide".to_owned(), Tensor::rounded(Dtype::F32, &[3, 0], &[])),
                    (
                        "ids".to_owned(),
                        Tensor::from_bytes(Dtype::I64, &[2], vec![3; 16]),
                    ),
                    ("scalar".to_owned(), Tensor::rounded(Dtype::F32, &[], &[x])),
                    (
                        "w".to_owned(),
                        Tensor::rounded(Dtype::F32, &[3], &[x, 2.0, -x]),
                    ),
                ])
            };
            let keys = Keys {
                granularity,
                ..Keys::USUAL
            };
            let trial = Trial::new(
                vec![model(1.0), model(1.5), model(2.0)],
                Choice::of(name, &dense(0.5, 2)),
            );
            let trial = trial.by(keys);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place));
            trial.compare(&got);
            assert_eq!(got["ids"], trial.models[0]["ids"], "{name}");
            assert_eq!(
                (got["empty"].values.len(), got["wide"].values.len()),
                (0, 0),
                "{name}"
            );
        }
    }
}

#[test]
fn single_elements_and_narrow_tensors_are_ordinary_groups() {
    let mut random = Random::new(714);
    for name in FAMILY.into_iter().chain(OTHERS) {
        for shape in [
            &[][..],
            &[1],
            &[1, 1],
            &[200, 1],
            &[1, 200],
            &[2, 1, 3],
            &[5, 4, 1],
        ] {
            let n = shape.iter().product();
            let base = random.gaussian(n);
            let mut near =
                || -> Vec<f64> { base.iter().map(|b| b + 0.25 * random.uniform()).collect() };
            let models = shaped(Dtype::BF16, shape, &[&base, &near(), &near()]);
            for granularity in [Granularity::Tensor, Granularity::Row] {
                let keys = Keys {
                    granularity,
                    ..Keys::USUAL
                };
                Trial::new(models.clone(), Choice::of(name, &dense(0.5, 2)))
                    .by(keys)
                    .check();
            }
        }
    }
}

#[test]
fn weights_that_cancel_and_norms_near_zero_have_their_defined_results() {
    let mut random = Random::new(715);
    let base = random.gaussian(200);
    let one: Vec<f64> = base.iter().map(|b| b + 0.25).collect();
    let two: Vec<f64> = base.iter().map(|b| b - 0.125).collect();
    let weighed = |weights: [f64; 2]| {
        weights.map(|weight| Part {
            weight,
            ..dense(0.5, 1)[0]
        })
    };
    for name in FAMILY {
        for weights in [
            [1.0, -1.0],
            [0.0, 0.0],
            [0.0, 1.0],
            [1.0, -1.0 + 1e-9],
            [-1.0, -0.5],
        ] {
            for normalize in [true, false] {
                let choice = Choice::of(name, &weighed(weights)).normalized(normalize);
                Trial::new(vectors(Dtype::F32, &[&base, &one, &two]), choice).check();
            }
        }
        // A norm below the floor is not matched, but for a floor of zero.
        let zeros = vec![0.0; 40];
        let tiny: Vec<f64> = (1..=40).map(|at| f64::from(at) * 1e-11).collect();
        for floor in [1e-7, 0.0] {
            let choice = Choice::of(name, &dense(0.5, 1))
                .rescaled(true)
                .with("rescale_floor", floor);
            Trial::new(vectors(Dtype::F32, &[&zeros, &tiny]), choice).check();
        }
    }
}

#[test]
fn signs_that_cancel_but_for_rounding_elect_nobody_when_told_so() {
    let base = vec![0.0; 4];
    let one = [1.0, 1.0, 1.0, 0.0];
    let two = [-1.5, -1.0, -1.5, 0.0];
    let parts = [0.3, 0.2].map(Part::weighing);
    for name in ["ties", "dare_ties", "breadcrumbs_ties", "della"] {
        for sign_tie in [SignTie::Zero, SignTie::Plus] {
            let keys = Keys {
                sign_tie,
                ..Keys::USUAL
            };
            let choice = Choice::of(name, &parts).rescaled(false).normalized(false);
            let trial = Trial::new(vectors(Dtype::F32, &[&base, &one, &two]), choice).by(keys);
            let kept = changed(&trial);
            if sign_tie == SignTie::Zero {
                // 0.3 - 0.2 * 1.5 is not 0 in f64.
                assert_eq!(kept, [false, true, false, false], "{name}");
            }
        }
    }
}

#[test]
fn borders_belong_to_the_side_that_the_definition_names() {
    let zeros = vec![0.0; 11];
    let of = |choice: Choice, models: &[&[f64]]| {
        let trial = Trial::new(vectors(Dtype::F32, models), choice);
        let place = Place::in_memory();
        let got = place.merged(&trial.run(&place));
        trial.compare(&got);
        got["w"].values.clone()
    };
    // A difference as large as epsilon is none.
    let own = [0.25, -0.25, 0.5, -0.125];
    for name in ["ram", "ramplus_tl"] {
        let choice = Choice::of(name, &dense(1.0, 1)).with("epsilon", 0.25);
        let got = of(choice, &[&zeros[..4], &own]);
        assert_eq!(got[..2], [0.0, 0.0], "{name}");
        assert!(got[2] >= 0.5 && got[3] == 0.0, "{name}: {got:?}");
    }
    // A model of next to no energy that is alone has next to no weight, and no less than a millionth
    // divides it.
    let mut large = vec![1.0; 11];
    large[10] = 0.0;
    let mut small = zeros.clone();
    small[10] = 1.0 / 8192.0;
    let got = of(Choice::of("sce", &dense(1.0, 2)), &[&zeros, &large, &small]);
    assert!(got[10] > 0.0 && got[10] < 1e-6, "{}", got[10]);
    // Nearer than a millionth is as near as a millionth.
    let choice = Choice::of("nearswap", &dense(1.0, 1)).with("t", 5e-7);
    let got = of(choice, &[&zeros[..2], &[1e-7, 1e-3]]);
    assert!((got[0] - 5e-8).abs() < 1e-14 && got[1] < 1e-6, "{got:?}");
    // All are equally important, as rows of one element are always.
    let (base, other) = ([1.0, 2.0, 3.0], [1.5, 2.0, -3.0]);
    let models = shaped(Dtype::F32, &[3, 1], &[&base, &other]);
    let trial = Trial::new(models, Choice::of("arcee_fusion", &dense(1.0, 1)));
    assert_eq!(changed(&trial), [true, false, true]);
}
