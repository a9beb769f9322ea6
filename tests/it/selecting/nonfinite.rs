//! NaN and infinity in inputs, and numbers that overflow their type.

use safetensors::Dtype;

use super::{Choice, FAMILY, Trial, dense, shaped, vectors};
use crate::merge::{Place, assert_names};
use crate::support::reference::selecting::Keys;
use crate::support::reference::{Granularity, Random};

const EVERY: [&str; 10] = [
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "ram",
    "ramplus_tl",
];

/// A base and two others of a few hundred elements.
fn values() -> [Vec<f64>; 3] {
    let mut random = Random::new(730);
    let base = random.gaussian(600);
    let mut other = || -> Vec<f64> {
        let noise = random.gaussian(600);
        base.iter().zip(noise).map(|(b, z)| b + 0.1 * z).collect()
    };
    let others = [other(), other()];
    let [one, two] = others;
    [base, one, two]
}

fn choice(name: &'static str) -> Choice {
    let choice = Choice::of(name, &dense(0.5, 2));
    match name {
        "sce" => choice.with("select_topk", 0.5),
        "ram" | "ramplus_tl" => choice,
        _ => choice.rescaled(false),
    }
}

#[test]
fn the_error_names_file_tensor_and_index() {
    let views = values();
    for name in EVERY {
        for (model, odd) in [(0, f64::NAN), (1, f64::INFINITY), (2, f64::NAN)] {
            let mut values = views.clone();
            values[model][417] = odd;
            let models = shaped(
                Dtype::BF16,
                &[20, 30],
                &values.each_ref().map(Vec::as_slice),
            );
            let place = Place::in_memory();
            let error = place.refused(&Trial::new(models, choice(name)).run(&place));
            assert_names(&error, &format!("m{model}"), "w", 417, name);
        }
    }
    for name in ["nearswap", "arcee_fusion"] {
        let mut values = views.clone();
        values[1][9] = f64::NAN;
        let choice = Choice::of(name, &dense(1.0, 1));
        let choice = if name == "nearswap" {
            choice.with("t", 0.1)
        } else {
            choice
        };
        let place = Place::in_memory();
        let trial = Trial::new(vectors(Dtype::F32, &[&values[0], &values[1]]), choice);
        assert_names(&place.refused(&trial.run(&place)), "m1", "w", 9, name);
    }
}

#[test]
fn a_tensor_or_a_row_with_nan_is_the_bases_when_told_so() {
    let mut values = values();
    values[2][417] = f64::NAN;
    let models = shaped(Dtype::F32, &[20, 30], &values.each_ref().map(Vec::as_slice));
    for name in EVERY {
        for granularity in [Granularity::Tensor, Granularity::Row] {
            let keys = Keys {
                granularity,
                ..Keys::USUAL
            };
            let trial = Trial::new(models.clone(), choice(name)).by(keys);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place).with("nan", "base"))["w"].clone();
            let (base, row) = (&models[0]["w"].values, 13 * 30..14 * 30);
            assert_eq!(got.values[row.clone()], base[row], "{name}");
            let others = got.values != *base;
            assert_eq!(
                others,
                granularity == Granularity::Row,
                "{name} by {granularity:?}"
            );
            if granularity == Granularity::Row {
                // The other rows are merged as if this one held the base's elements.
                let mut whole = trial.clone();
                let mut clean = values.clone();
                clean[2][390..420].copy_from_slice(&values[0][390..420]);
                clean[1][390..420].copy_from_slice(&values[0][390..420]);
                let views = clean.each_ref().map(Vec::as_slice);
                whole.models = shaped(Dtype::F32, &[20, 30], &views);
                whole.compare(&[("w".to_owned(), got)].into());
            }
        }
    }
}

#[test]
fn what_is_let_through_is_kept_and_stays() {
    let mut values = values();
    values[1][17] = f64::NAN;
    values[2][18] = f64::NAN;
    values[0][19] = f64::NAN;
    for dtype in [Dtype::BF16, Dtype::F32, Dtype::F16] {
        let models = shaped(dtype, &[20, 30], &values.each_ref().map(Vec::as_slice));
        for name in [
            "ties",
            "breadcrumbs",
            "breadcrumbs_ties",
            "ram",
            "ramplus_tl",
        ] {
            let mut choice = choice(name);
            choice.parts.iter_mut().for_each(|part| part.gamma = 0.0);
            let trial = Trial::new(models.clone(), choice);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place).with("nan", "propagate"));
            let odd: Vec<usize> = (0..600)
                .filter(|at| got["w"].values[*at].is_nan())
                .collect();
            assert_eq!(odd, [17, 18, 19], "{name}, {dtype:?}");
            trial.compare(&got);
        }
        for name in ["dare_linear", "dare_ties", "della"] {
            let all = Choice::of(name, &dense(1.0, 2)).rescaled(false);
            let trial = Trial::new(models.clone(), all);
            let place = Place::in_memory();
            let got = place.merged(&trial.run(&place).with("nan", "propagate"));
            trial.compare(&got);
            assert!(
                got["w"].values[17].is_nan() && got["w"].values[19].is_nan(),
                "{name}"
            );
        }
    }
}

#[test]
fn infinity_that_is_let_through_is_the_largest_and_keeps_its_sign() {
    let mut values = values();
    values[1][17] = f64::INFINITY;
    values[2][18] = f64::NEG_INFINITY;
    let models = shaped(Dtype::F32, &[20, 30], &values.each_ref().map(Vec::as_slice));
    for name in ["ties", "breadcrumbs", "breadcrumbs_ties", "ram"] {
        let mut choice = choice(name);
        choice.parts.iter_mut().for_each(|part| part.gamma = 0.0);
        let trial = Trial::new(models.clone(), choice);
        let place = Place::in_memory();
        let got = place.merged(&trial.run(&place).with("nan", "propagate"));
        let odd = &got["w"].values[17..19];
        assert_eq!(odd, [f64::INFINITY, f64::NEG_INFINITY], "{name}");
        trial.compare(&got);
    }
}

#[test]
fn what_is_too_large_for_the_type_becomes_infinity_and_is_reported() {
    let base = [1.0, -2.0, 3.0, 0.5, -4.0];
    let other = [1.5, -4.0, 3.0, 0.25, -1.0];
    for name in FAMILY {
        for (dtype, lambda) in [("float16", 1e6), ("bfloat16", 1e40), ("float8_e5m2", 1e6)] {
            let choice = Choice::of(name, &dense(1.0, 1)).with("lambda", lambda);
            let trial = Trial::new(vectors(Dtype::F32, &[&base, &other]), choice);
            let place = Place::in_memory();
            let out = place.path("out");
            trial
                .run(&place)
                .with("dtype", dtype)
                .merge_to(&out)
                .expect("a merge that succeeds");
            let got = crate::support::reference::files::read_model(&out);
            trial.compare(&got);
            let manifest = std::fs::read_to_string(out.join("thalweg.json")).expect("a manifest");
            let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
            assert_eq!(
                manifest["tensors"][0]["note"]["overflowed"], 4,
                "{name}, {dtype}: {manifest}"
            );
        }
    }
}
