//! NaN and infinity that are let through reach the output, whatever coefficients their inputs have.

use safetensors::Dtype;
use serde_json::json;
use thalweg::engine::{Sample, recheck};
use thalweg::kernel::Kernels;

use super::{Place, Run, only, recipe, vector};
use crate::support::reference::{Model, Tensor};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// Merges vectors with NaN and infinity let through, whole and by rows, over the model and in
/// blocks, and compares elements: NaN is NaN, infinity has its sign, numbers are left alone.
fn assert_odd(run: &Run, place: &Place, wanted: &[f64], about: &str) {
    for granularity in ["tensor", "row", "model"] {
        for kernels in Kernels::available() {
            let run = Run {
                kernels,
                ..run.clone()
            }
            .with("granularity", granularity)
            .with("nan", "propagate");
            for run in [run.clone(), run.small_blocks()] {
                let out = tempfile::tempdir_in(place.path("")).expect("a folder");
                let out = out.path().join("out");
                run.merge_to(&out).expect("a merge that succeeds");
                let got = crate::support::reference::files::read_model(&out)["w"]
                    .values
                    .clone();
                for (k, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                    let same = (got.is_nan() && wanted.is_nan())
                        || (got == wanted)
                        || (wanted.is_finite() && got.is_finite());
                    assert!(
                        same,
                        "{about} by {granularity}, element {k}: wanted {wanted}, got {got}"
                    );
                }
                let sample = Sample {
                    blocks: 10,
                    seed: 0,
                };
                recheck(
                    &run.plan().expect("a plan"),
                    &out,
                    sample,
                    None,
                    &mut |_, _| Ok(()),
                )
                .expect("the same once more");
            }
        }
    }
}

fn models(place: &Place, dtype: Dtype, values: &[&[f64]]) -> Vec<std::path::PathBuf> {
    let models: Vec<Model> = values
        .iter()
        .map(|values| only(vector(dtype, values)))
        .collect();
    place.models(&models)
}

#[test]
fn a_tensor_of_nothing_but_nan_and_infinity_reaches_the_output() {
    for dtype in [Dtype::F32, Dtype::F64, Dtype::BF16, Dtype::F8_E5M2] {
        for method in ["karcher", "multislerp", "geometric_median", "linear"] {
            let place = Place::new();
            let weights = Some([1.0, 1.0].as_slice());
            let run = |values: &[&[f64]]| {
                Run::new(recipe(method, &models(&place, dtype, values), weights))
            };
            let about = format!("{method} of {dtype:?}");
            assert_odd(&run(&[&[NAN; 3], &[NAN; 3]]), &place, &[NAN; 3], &about);
            let place = Place::new();
            let run = |values: &[&[f64]]| {
                Run::new(recipe(method, &models(&place, dtype, values), weights))
            };
            let odd = run(&[&[NAN, INF, -INF, 0.0], &[0.0, 0.0, 0.0, 0.0]]);
            assert_odd(&odd, &place, &[NAN, INF, -INF, 0.0], &about);
            let place = Place::new();
            let run = |values: &[&[f64]]| {
                Run::new(recipe(method, &models(&place, dtype, values), weights))
            };
            let beside = run(&[&[INF, INF, NAN, 0.0], &[1.0, -INF, 2.0, 3.0]]);
            assert_odd(&beside, &place, &[INF, NAN, NAN, 0.0], &about);
        }
    }
}

#[test]
fn an_input_whose_coefficient_is_zero_lets_them_through_and_one_without_weight_does_not() {
    let place = Place::new();
    // The second input is the median, the first one odd where it is not.
    let paths = models(
        &place,
        Dtype::F32,
        &[&[NAN, 0.0, INF], &[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]],
    );
    assert_odd(
        &Run::new(recipe("geometric_median", &paths, None)),
        &place,
        &[NAN, 2.0, INF],
        "the median",
    );
    let without = Run::new(recipe("geometric_median", &paths, Some(&[0.0, 1.0, 1.0])));
    assert_odd(&without, &place, &[1.0, 2.0, 3.0], "no weight");
    // Opposite differences keep the base, whose own NaN and infinity have no difference left to
    // others.
    let place = Place::new();
    let values: [&[f64]; 3] = [
        &[1.0, 1.0, 1.0, INF],
        &[2.0, NAN, 1.0, 1.0],
        &[0.0, 1.0, -INF, 1.0],
    ];
    let paths = models(&place, Dtype::F32, &values);
    let run = Run::new(recipe("model_stock", &paths, None))
        .with("base_model", paths[0].to_str().expect("text"));
    assert_odd(&run, &place, &[1.0, NAN, -INF, INF], "the base kept");
    // A base that counts for nothing is subtracted all the same.
    let place = Place::new();
    let paths = models(&place, Dtype::F32, &[&[NAN, INF, 1.0], &[1.0, 1.0, 1.0]]);
    let base = paths[0].to_str().expect("text");
    let run =
        Run::new(recipe("task_arithmetic", &paths, Some(&[1.0, 1.0]))).with("base_model", base);
    assert_odd(&run, &place, &[NAN, NAN, 1.0], "a base of coefficient zero");
}

#[test]
fn sums_of_differences_let_them_through() {
    let place = Place::new();
    let values: [&[f64]; 3] = [
        &[1.0, NAN, INF, 1.0],
        &[2.0, 1.0, 1.0, 3.0],
        &[1.0, 1.0, 1.0, -INF],
    ];
    let paths = models(&place, Dtype::F32, &values);
    let base = paths[0].to_str().expect("text");
    let run = Run::new(recipe("task_arithmetic", &paths, Some(&[0.0, 50.0, 50.0])))
        .with("base_model", base);
    assert_odd(&run, &place, &[51.0, NAN, -INF, -INF], "big factors");
}

#[test]
fn columns_let_them_through() {
    let place = Place::new();
    let matrix = |values: [f64; 6]| only(Tensor::rounded(Dtype::F32, &[3, 2], &values));
    let paths = place.models(&[
        matrix([NAN, 1.0, INF, 2.0, NAN, 3.0]),
        matrix([0.0, 4.0, 0.0, 5.0, 0.0, INF]),
    ]);
    let run = Run::new(recipe("nuslerp", &paths, Some(&[1.0, 3.0])))
        .with(
            "parameters",
            json!({ "nuslerp_flatten": false, "nuslerp_row_wise": true }),
        )
        .with("nan", "propagate");
    let got = place.merged(&run)["w"].values.clone();
    assert!(
        got[0].is_nan() && got[2] == INF && got[4].is_nan() && got[5] == INF,
        "{got:?}"
    );
    assert!(got[1].is_finite() && got[3].is_finite(), "{got:?}");
}
