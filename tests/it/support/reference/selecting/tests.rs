//! The definitions on numbers that can be worked out by hand.

use safetensors::Dtype;

use super::super::{Granularity, Model, Tensor};
use super::*;

fn models(values: &[&[f64]]) -> Vec<Model> {
    let model = |values: &&[f64]| {
        let tensor = Tensor::rounded(Dtype::F64, &[values.len()], values);
        Model::from([("w".to_owned(), tensor)])
    };
    values.iter().map(model).collect()
}

fn merged(values: &[&[f64]], keys: Keys, method: &Method) -> Vec<f64> {
    merge_elements(&models(values), 0, keys, &|_| method.clone())
        .remove("w")
        .expect("merged")
}

fn ties(parts: &[Part]) -> Family {
    Family {
        sparsifier: Sparsifier::Largest,
        elects: true,
        normalize: true,
        rescale: false,
        rescale_floor: 1e-7,
        lambda: 1.0,
        parts: parts.to_vec(),
    }
}

const BASE: [f64; 4] = [10.0, 20.0, 30.0, 40.0];
const ONE: [f64; 4] = [14.0, 19.0, 32.0, 40.5];
const TWO: [f64; 4] = [9.0, 23.0, 34.0, 38.0];

#[test]
fn ties_trims_elects_and_takes_the_mean_of_those_who_agree() {
    let half = Part {
        density: 0.5,
        ..Part::weighing(1.0)
    };
    let family = ties(&[half, half]);
    // The differences kept are 4, 0, 2, 0 and 0, 3, 4, 0.
    let got = merged(
        &[&BASE, &ONE, &TWO],
        Keys::USUAL,
        &Method::Family(family.clone()),
    );
    assert_eq!(got, [14.0, 23.0, 33.0, 40.0]);
    // Kept are 4 of 7.5 and 3 of 10.
    let least = Part {
        density: 0.1,
        ..half
    };
    let rescaled = Family {
        rescale: true,
        normalize: false,
        parts: vec![least, least],
        ..family
    };
    let got = merged(&[&BASE, &ONE, &TWO], Keys::USUAL, &Method::Family(rescaled));
    assert_eq!(got, [17.5, 20.0, 40.0, 40.0]);
}

#[test]
fn where_differences_cancel_plus_is_elected_or_nobody() {
    let family = ties(&[Part::weighing(1.0), Part::weighing(1.0)]);
    let inputs: [&[f64]; 3] = [&[0.0, 0.0], &[2.0, -1.0], &[-2.0, -3.0]];
    let got = |sign_tie| {
        let keys = Keys {
            sign_tie,
            ..Keys::USUAL
        };
        merged(&inputs, keys, &Method::Family(family.clone()))
    };
    assert_eq!(got(SignTie::Plus), [2.0, -2.0]);
    assert_eq!(got(SignTie::Zero), [0.0, -2.0]);
}

#[test]
fn breadcrumbs_drops_the_largest_and_the_smallest() {
    let part = Part {
        density: 0.5,
        gamma: 0.25,
        ..Part::weighing(1.0)
    };
    let family = Family {
        sparsifier: Sparsifier::Band,
        elects: false,
        normalize: false,
        ..ties(&[part])
    };
    let got = merged(&[&BASE, &ONE], Keys::USUAL, &Method::Family(family));
    assert_eq!(got, [10.0, 19.0, 32.0, 40.0]);
}

#[test]
fn the_other_methods_do_as_their_formulas_say() {
    let of = |method: &Method| merged(&[&BASE, &ONE, &TWO], Keys::USUAL, method);
    let near = merged(&[&BASE, &ONE], Keys::USUAL, &Method::Nearswap { t: 1.0 });
    assert_eq!(near, [11.0, 19.0, 31.0, 40.5]);
    assert_eq!(of(&Method::Ram { epsilon: 0.5 }), [11.5, 21.0, 33.0, 38.0]);
    // The second model shares three of its four changes, the first all.
    let plus = Method::RamPlus {
        r: 0.1,
        alpha: 5.0,
        epsilon: 0.5,
    };
    assert_eq!(
        of(&plus),
        [11.5, 21.0, 33.0, 40.0 - 2.0 * (1.0 + 0.1 * 3.0)]
    );
    // Variances by differences of 5, 4, 2 and 2.5: the first two are selected. Energies are 17 and 10.
    let sce = Method::Sce {
        select_topk: 0.5,
        weight_floor: 1e-6,
    };
    assert_eq!(of(&sce), [14.0, 23.0, 30.0, 40.0]);
    let all = Method::Sce {
        select_topk: 1.0,
        weight_floor: 1e-6,
    };
    let (first, second) = (21.25, 30.0);
    let third = 30.0 + (first * 2.0 + second * 4.0) / (first + second);
    let got = of(&all);
    assert!((got[2] - third).abs() < 1e-14, "{got:?}");
    let sum = Family {
        sparsifier: Sparsifier::All,
        elects: false,
        normalize: false,
        ..ties(&[Part::weighing(1.0), Part::weighing(1.0)])
    };
    let consensus = Method::Consensus {
        merged: sum,
        tall_lambda: vec![0.4, 0.4],
        agree: 2,
    };
    // Merged differences are 3, 2, 6, -1.5; the second model is not behind the first element
    // (1 against 0.4 * 4), nor the first behind the last (0.5 against 0.4 * 2).
    assert_eq!(of(&consensus), [10.0, 20.0, 36.0, 40.0]);
}

#[test]
fn fusion_takes_what_stands_out() {
    let base: Vec<f64> = (0..20).map(f64::from).map(|x| x / 20.0).collect();
    let mut other = base.clone();
    for (at, x) in other.iter_mut().enumerate() {
        *x += if at == 7 {
            1.0
        } else {
            0.01 + 0.0001 * f64::from(u8::try_from(at).expect("few"))
        };
    }
    let got = merged(&[&base, &other], Keys::USUAL, &Method::Fusion);
    for at in 0..20 {
        assert_eq!(got[at], if at == 7 { other[at] } else { base[at] }, "{at}");
    }
}

#[test]
fn random_methods_keep_about_their_share_and_more_of_the_large() {
    let n = 40_000;
    let base = vec![0.0; n];
    let input: Vec<f64> = (0..n).map(|at| choose::number(at) + 1.0).collect();
    let part = Part {
        density: 0.5,
        epsilon: 0.4,
        ..Part::weighing(1.0)
    };
    let of = |sparsifier| {
        let family = Family {
            sparsifier,
            elects: false,
            normalize: false,
            ..ties(&[part])
        };
        let got = merged(&[&base, &input], Keys::USUAL, &Method::Family(family));
        let kept = |range: std::ops::Range<usize>| range.filter(|at| got[*at] != 0.0).count();
        (kept(0..n / 10), kept(9 * n / 10..n))
    };
    // Of 4,000: four standard deviations are 126, or 80 at the ends.
    let (low, high) = of(Sparsifier::Random);
    assert!(
        low.abs_diff(2000) < 126 && high.abs_diff(2000) < 126,
        "{low} {high}"
    );
    let (low, high) = of(Sparsifier::RandomByRank);
    assert!(
        low.abs_diff(560) < 90 && high.abs_diff(3440) < 90,
        "{low} {high}"
    );
}

#[test]
fn rows_have_thresholds_of_their_own_and_the_model_has_one() {
    let tensor = |values: &[f64]| Tensor::rounded(Dtype::F64, &[2, 2], values);
    let model = |a: &[f64], b: &[f64]| {
        Model::from([("a".to_owned(), tensor(a)), ("b".to_owned(), tensor(b))])
    };
    let models = [
        model(&[0.0; 4], &[0.0; 4]),
        model(&[4.0, 3.0, 2.0, 1.0], &[8.0, 7.0, 6.0, 5.0]),
    ];
    let part = Part {
        density: 0.5,
        ..Part::weighing(1.0)
    };
    let of = |granularity| {
        let keys = Keys {
            granularity,
            ..Keys::USUAL
        };
        merge_elements(&models, 0, keys, &|_| Method::Family(ties(&[part])))
    };
    assert_eq!(of(Granularity::Tensor)["a"], [4.0, 3.0, 0.0, 0.0]);
    assert_eq!(of(Granularity::Row)["a"], [4.0, 0.0, 2.0, 0.0]);
    assert_eq!(of(Granularity::Model)["a"], [0.0; 4]);
    assert_eq!(of(Granularity::Model)["b"], [8.0, 7.0, 6.0, 5.0]);
}
