//! Tensors that some models lack, and shapes that differ.

use safetensors::Dtype;

use super::{Choice, FAMILY, OTHERS, Trial, dense, fine_tunes};
use crate::merge::{Place, assert_same};
use crate::support::reference::selecting::{Keys, Part};
use crate::support::reference::{Granularity, Model, Random, Tensor};

/// Four models; the third lacks a tensor.
fn lacking(random: &mut Random) -> (Vec<Model>, String) {
    let shapes: [&[usize]; 2] = [&[30, 20], &[70]];
    let mut models = fine_tunes(random, &[Dtype::BF16; 4], &shapes);
    let name = "t[30, 20]".to_owned();
    models[2].remove(&name).expect("there");
    (models, name)
}

#[test]
fn a_tensor_that_a_model_lacks_is_merged_over_the_others_or_the_bases() {
    let mut random = Random::new(760);
    for name in FAMILY.into_iter().chain(OTHERS) {
        for granularity in [Granularity::Tensor, Granularity::Row] {
            let (models, lacked) = lacking(&mut random);
            let parts = [1.0, 0.5, 0.75].map(|weight| Part {
                weight,
                ..dense(0.4, 1)[0]
            });
            let keys = Keys {
                granularity,
                ..Keys::USUAL
            };
            let trial = Trial::new(models.clone(), Choice::of(name, &parts)).by(keys);
            let place = Place::in_memory();
            let run = trial.run(&place);
            let base = place.merged(&run.clone().with("missing", "base"));
            assert_eq!(base[&lacked], models[0][&lacked], "{name}");
            let common = place.merged(&run.with("missing", "common"));
            assert_ne!(common[&lacked], models[0][&lacked], "{name}");
            let method = |tensor: &str| {
                let of = |parts: &[Part]| Choice::of(name, parts).method();
                if tensor == lacked {
                    of(&[parts[0], parts[2]])
                } else {
                    of(&parts)
                }
            };
            let wanted = trial.wanted_by(&method);
            trial.compare_with(&common, &wanted);
            assert_eq!(base["t[70]"], common["t[70]"], "{name}");
        }
    }
}

/// The elements of `tensor` in a larger shape, those of `under` where it has none.
fn filled(tensor: &Tensor, under: &Tensor) -> Tensor {
    let [rows, columns] = under.shape[..] else {
        panic!("a matrix")
    };
    let value = |at: usize| {
        let (row, column) = (at / columns, at % columns);
        if row < tensor.shape[0] && column < tensor.shape[1] {
            tensor.values[row * tensor.shape[1] + column]
        } else {
            under.values[at]
        }
    };
    let values: Vec<f64> = (0..rows * columns).map(value).collect();
    Tensor::rounded(Dtype::F64, &under.shape, &values)
}

#[test]
fn what_a_smaller_model_lacks_does_not_differ_from_the_base() {
    let mut random = Random::new(761);
    let zeros = Tensor::rounded(Dtype::F64, &[12, 10], &[0.0; 120]);
    for name in FAMILY.into_iter().chain(OTHERS) {
        // The base has all that there is, or lacks rows, where it is zero.
        for base in [[12, 10], [9, 10]] {
            let mut of = |dtype, shape: [usize; 2]| {
                let values = random.gaussian(shape[0] * shape[1]);
                Model::from([("w".to_owned(), Tensor::rounded(dtype, &shape, &values))])
            };
            let models = vec![
                of(Dtype::F32, base),
                of(Dtype::BF16, [12, 6]),
                of(Dtype::F32, [7, 10]),
            ];
            let trial = Trial::new(models.clone(), Choice::of(name, &dense(0.5, 2)));
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place).with("mismatch", "pad"));
            assert_eq!(got["w"].shape, [12, 10], "{name}");
            let under = filled(&models[0]["w"], &zeros);
            let alike =
                |model: &Model| Model::from([("w".to_owned(), filled(&model["w"], &under))]);
            let mut alike: Vec<Model> = models.iter().map(alike).collect();
            alike[0].insert("w".to_owned(), under.clone());
            let whole = Trial {
                models: alike,
                ..trial
            };
            whole.compare(&got);
        }
    }
}

#[test]
fn cut_shapes_are_merged_as_if_they_had_been_cut_before_and_skipped_ones_are_the_bases() {
    let mut random = Random::new(762);
    for name in FAMILY {
        let mut of = |shape: [usize; 2]| {
            let values = random.gaussian(shape[0] * shape[1]);
            Model::from([(
                "w".to_owned(),
                Tensor::rounded(Dtype::BF16, &shape, &values),
            )])
        };
        let models = vec![of([12, 10]), of([12, 6]), of([7, 10])];
        let trial = Trial::new(models.clone(), Choice::of(name, &dense(0.5, 2)));
        let place = Place::in_memory();
        let run = trial.run(&place);
        let skipped = place.merged(&run.clone().with("mismatch", "skip"));
        assert_same(&skipped, &models[0], name);
        let cut = |model: &Model| {
            let (tensor, mut values) = (&model["w"], Vec::new());
            for row in tensor.values.chunks(tensor.shape[1]).take(7) {
                values.extend(&row[..6]);
            }
            Model::from([(
                "w".to_owned(),
                Tensor::rounded(Dtype::BF16, &[7, 6], &values),
            )])
        };
        let whole = Trial {
            models: models.iter().map(cut).collect(),
            ..trial
        };
        whole.compare(&place.merged(&run.with("mismatch", "crop")));
    }
}
