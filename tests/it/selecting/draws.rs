//! Shares of draws, and signs that cancel.

use safetensors::Dtype;

use super::{Choice, Trial, dense, shaped};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, Part, SignTie, choose};
use crate::support::reference::{Model, Random, norm};

const ROWS: usize = 1024;
const N: usize = ROWS * 1024;

fn merged(trial: &Trial) -> Vec<f64> {
    let place = Place::in_memory();
    let got = place.merged(&trial.run(&place));
    got["w"].values.clone()
}

/// Asserts that so many of so many kept are within four standard deviations of the share.
fn assert_share(kept: usize, of: usize, share: f64, about: &str) {
    let of = choose::number(of);
    let off = choose::number(kept) - share * of;
    let sigma = (of * share * (1.0 - share)).sqrt();
    assert!(
        off.abs() <= 4.0 * sigma,
        "{about}: {kept} of {of}, wanted {share}"
    );
}

#[test]
fn draws_keep_their_share_of_everything_of_rows_and_of_columns() {
    let (zeros, ones) = (vec![0.0; N], vec![1.0; N]);
    let models = shaped(Dtype::BF16, &[ROWS, N / ROWS], &[&zeros, &ones]);
    for (name, density) in [
        ("dare_linear", 0.1),
        ("dare_linear", 0.53),
        ("della_linear", 0.9),
    ] {
        let part = Part {
            density,
            epsilon: 0.05,
            ..Part::weighing(1.0)
        };
        let trial = Trial::new(models.clone(), Choice::of(name, &[part]).rescaled(false));
        let kept = merged(&trial);
        let is_kept = |at: &usize| kept[*at] == 1.0;
        let about = format!("{name} at {density}");
        // Equal magnitudes have equal chances, wherever they stand.
        assert_share((0..N).filter(is_kept).count(), N, density, &about);
        let columns = N / ROWS;
        for eighth in 0..8 {
            let of_columns = |at: &usize| at % columns * 8 / columns == eighth;
            let of_rows = |at: &usize| at / columns * 8 / ROWS == eighth;
            let by_columns = (0..N).filter(of_columns).filter(is_kept).count();
            let by_rows = (0..N).filter(of_rows).filter(is_kept).count();
            assert_share(
                by_columns,
                N / 8,
                density,
                &format!("{about}, columns {eighth}"),
            );
            assert_share(by_rows, N / 8, density, &format!("{about}, rows {eighth}"));
        }
        let both = (0..N - 1)
            .filter(is_kept)
            .filter(|at| is_kept(&(at + 1)))
            .count();
        // Neighbours are independent; so are nearly the pairs.
        assert_share(
            both,
            N - 1,
            density * density,
            &format!("{about}, neighbours"),
        );
    }
}

#[test]
fn models_tensors_and_seeds_draw_independently() {
    let (zeros, ones) = (vec![0.0; 1 << 16], vec![1.0; 1 << 16]);
    let named = |values: &[f64]| -> Model {
        let tensor = &shaped(Dtype::BF16, &[values.len()], &[values])[0]["w"];
        [
            ("w".to_owned(), tensor.clone()),
            ("v".to_owned(), tensor.clone()),
        ]
        .into()
    };
    // Of the second model twice as much is added, so that the sum tells who was kept.
    let weights = [1.0, 2.0].map(|weight| Part {
        weight,
        ..dense(0.5, 1)[0]
    });
    let models = vec![named(&zeros), named(&ones), named(&ones)];
    let choice = Choice::of("dare_linear", &weights).rescaled(false);
    let drawn = |seed| {
        let keys = Keys {
            seed,
            ..Keys::USUAL
        };
        let trial = Trial::new(models.clone(), choice.clone()).by(keys);
        let place = Place::in_memory();
        let got = place.merged(&trial.run(&place));
        [got["v"].values.clone(), got["w"].values.clone()]
    };
    let ([v, w], [other, _]) = (drawn(1), drawn(2));
    let both = |a: &dyn Fn(usize) -> bool, b: &dyn Fn(usize) -> bool| {
        (0..1 << 16).filter(|at| a(*at) && b(*at)).count()
    };
    let first = |of: &[f64], at: usize| of[at] == 1.0 || of[at] == 3.0;
    let second = |of: &[f64], at: usize| of[at] >= 2.0;
    let quarter = |kept, about| assert_share(kept, 1 << 16, 0.25, about);
    quarter(both(&|at| first(&v, at), &|at| second(&v, at)), "models");
    quarter(both(&|at| first(&v, at), &|at| first(&w, at)), "tensors");
    quarter(both(&|at| first(&v, at), &|at| first(&other, at)), "seeds");
    assert_eq!(drawn(1), [v, w], "a seed draws the same again");
}

/// Fine-tunes in bf16 of a base in bf16: a master copy in f32 has moved a little.
fn bf16_fine_tunes(count: usize) -> Vec<Model> {
    let mut random = Random::new(720);
    let base: Vec<f64> = random.gaussian(N).iter().map(|x| 0.02 * x).collect();
    let mut values = vec![base.clone()];
    for _ in 0..count {
        let noise = random.gaussian(N);
        values.push(base.iter().zip(noise).map(|(b, z)| b + 2e-4 * z).collect());
    }
    let views: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
    let mut models = shaped(Dtype::BF16, &[ROWS, N / ROWS], &views);
    // The base as it is stored is what the others differ from.
    models.truncate(count + 1);
    models
}

#[test]
fn differences_that_cancel_push_nothing_upwards_when_nobody_is_elected() {
    let models = bf16_fine_tunes(4);
    let base = models[0]["w"].values.clone();
    for name in ["ties", "sce"] {
        let choice = Choice::of(name, &dense(1.0, 4));
        let drift = |sign_tie| {
            let keys = Keys {
                sign_tie,
                ..Keys::USUAL
            };
            let place = Place::in_memory();
            let run = Trial::new(models.clone(), choice.clone())
                .by(keys)
                .run(&place);
            let got = place.merged(&run.with("dtype", "float32"));
            let moved: Vec<f64> = got["w"]
                .values
                .iter()
                .zip(&base)
                .map(|(x, b)| x - b)
                .collect();
            let n = choose::number(N);
            let rms = norm(&moved) / n.sqrt();
            assert!(rms > 1e-5, "{name} has moved something");
            moved.iter().sum::<f64>() / n / rms
        };
        let (zero, plus) = (drift(SignTie::Zero), drift(SignTie::Plus));
        assert!(
            zero.abs() < 0.002 && plus > 0.02,
            "{name}: {zero} and {plus}"
        );
    }
}
