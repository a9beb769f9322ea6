//! Numbers that are huge beside each other, tiny, or of types that do not meet.

use safetensors::Dtype;

use super::{Choice, FAMILY, OTHERS, Trial, dense, vectors};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, RescaleBy};
use crate::support::reference::{Model, Random, Tensor};

#[test]
fn differences_of_any_size_are_selected_and_added_alike() {
    let mut random = Random::new(740);
    for (dtype, exponents) in [
        (Dtype::F32, [-120, 100]),
        (Dtype::BF16, [-120, 100]),
        (Dtype::F16, [-14, 10]),
        (Dtype::F8_E5M2, [-14, 10]),
        (Dtype::F64, [-140, 120]),
    ] {
        let mut wild = |n: usize| -> Vec<f64> {
            let width = f64::from(exponents[1] - exponents[0]);
            let mut size = || (f64::from(exponents[0]) + width * random.uniform()).exp2();
            (0..n)
                .map(|at| if at % 3 == 0 { -size() } else { size() })
                .collect()
        };
        let (base, one, two) = (wild(300), wild(300), wild(300));
        for name in FAMILY {
            let choice = Choice::of(name, &dense(0.4, 2)).with("lambda", 0.125);
            // Norms of such numbers have no more than a few of them.
            let keys = Keys {
                rescale_by: RescaleBy::Density,
                ..Keys::USUAL
            };
            Trial::new(vectors(dtype, &[&base, &one, &two]), choice)
                .by(keys)
                .check();
        }
        Trial::new(
            vectors(dtype, &[&base, &one, &two]),
            Choice::of("ram", &dense(1.0, 2)),
        )
        .check();
    }
}

#[test]
fn zeros_of_either_sign_do_not_differ_and_the_bases_stays() {
    let base = [0.0, -0.0, 0.0, -0.0, 1.0];
    let other = [-0.0, 0.0, 0.0, -0.0, 2.0];
    for name in FAMILY.into_iter().chain(OTHERS) {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F64] {
            let choice = Choice::of(name, &dense(1.0, 2));
            let trial = Trial::new(vectors(dtype, &[&base, &other, &other]), choice);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place));
            trial.compare(&got);
            let signs = |of: &Tensor| -> Vec<bool> {
                of.values[..4]
                    .iter()
                    .map(|x| x.is_sign_negative())
                    .collect()
            };
            assert_eq!(
                signs(&got["w"]),
                signs(&trial.models[0]["w"]),
                "{name}, {dtype:?}"
            );
        }
    }
}

#[test]
fn eight_bit_models_are_merged_as_their_values_say() {
    let mut random = Random::new(741);
    let base = random.gaussian(500);
    let mut near = || -> Vec<f64> {
        let noise = random.gaussian(500);
        base.iter().zip(noise).map(|(b, z)| b + 0.3 * z).collect()
    };
    let values = [near(), near()];
    for dtypes in [
        [Dtype::F8_E4M3; 3],
        [Dtype::F8_E5M2; 3],
        [Dtype::BF16, Dtype::F8_E4M3, Dtype::F8_E5M2],
        [Dtype::F8_E4M3, Dtype::F32, Dtype::F64],
    ] {
        let model = |dtype: Dtype, values: &[f64]| {
            Model::from([("w".to_owned(), Tensor::rounded(dtype, &[500], values))])
        };
        let models = vec![
            model(dtypes[0], &base),
            model(dtypes[1], &values[0]),
            model(dtypes[2], &values[1]),
        ];
        for name in FAMILY.into_iter().chain(OTHERS) {
            Trial::new(models.clone(), Choice::of(name, &dense(0.3, 2))).check();
        }
    }
}
