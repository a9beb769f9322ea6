//! Counts that a merge leaves in its manifest.

use std::fs;

use safetensors::Dtype;
use serde_json::Value;

use super::{Choice, FAMILY, Trial, dense, fine_tunes, shaped};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, Part, SignTie, choose};
use crate::support::reference::{Granularity, Random};

/// The manifest's entry of the only tensor.
fn selection(trial: &Trial, small: bool) -> Value {
    let place = Place::in_memory();
    let (out, run) = (place.path("out"), trial.run(&place));
    let run = if small { run.small_blocks() } else { run };
    run.merge_to(&out).expect("a merge that succeeds");
    let text = fs::read_to_string(out.join("thalweg.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let note = &manifest["tensors"][0]["note"];
    let selection = &note["selection"];
    assert!(selection.is_object(), "{note}");
    selection.clone()
}

#[test]
fn kept_elements_elections_and_cancelled_ones_are_counted_exactly() {
    let mut random = Random::new(790);
    for name in FAMILY {
        for (number, granularity) in [Granularity::Tensor, Granularity::Row]
            .into_iter()
            .enumerate()
        {
            let dtype = [Dtype::BF16, Dtype::F32][number];
            let models = fine_tunes(&mut random, &[dtype; 4], &[&[23, 1500]]);
            let parts = [1.0, -0.5, 1.0].map(|weight| Part {
                weight,
                gamma: 0.1,
                ..dense(0.3 + 0.2 * weight, 1)[0]
            });
            let keys = Keys {
                granularity,
                sign_tie: SignTie::Zero,
                ..Keys::USUAL
            };
            let choice = Choice::of(name, &parts).rescaled(false);
            let trial = Trial::new(models, choice).by(keys);
            let wanted = trial.counts("t[23, 1500]");
            let found = [false, true].map(|small| selection(&trial, small));
            assert_eq!(found[0], found[1], "{name}: blocks of any size");
            let found = &found[0];
            let kept: Vec<Option<u64>> = found["models"]
                .as_array()
                .expect("models")
                .iter()
                .map(|model| model["kept"].as_u64())
                .collect();
            let told = |count: &usize| u64::try_from(*count).ok();
            let about = trial.about();
            assert_eq!(
                kept,
                wanted.kept.iter().map(told).collect::<Vec<_>>(),
                "{about}"
            );
            assert_eq!(found["elements"], 34_500, "{about}");
            assert_eq!(
                found["elections"].as_u64(),
                told(&wanted.elections),
                "{about}"
            );
            assert_eq!(
                found["undecided"].as_u64(),
                told(&wanted.undecided),
                "{about}"
            );
        }
    }
}

#[test]
fn exactly_the_share_is_kept_however_many_are_tied() {
    let n = 100_000;
    let base = vec![1.0; n];
    let input: Vec<f64> = (0..n).map(|at| [1.5, 0.5, 1.25][at % 3]).collect();
    for (density, tied) in [(0.5, 66_667), (0.123, 66_667), (0.8, 33_333)] {
        let models = shaped(Dtype::BF16, &[100, 1000], &[&base, &input]);
        let trial = Trial::new(models, Choice::of("ties", &dense(density, 1)));
        let found = selection(&trial, true);
        let own = &found["models"][0];
        let k = choose::floor(density * choose::number(n));
        assert_eq!(own["kept"], k, "{found}");
        assert_eq!(own["tied"], tied, "{found}");
        let kept = if tied == 33_333 { k - 66_667 } else { k };
        assert_eq!(own["tied_kept"], kept, "{found}");
        let threshold = if tied == 33_333 { 0.25 } else { 0.5 };
        assert_eq!(own["threshold"], threshold, "{found}");
    }
}
