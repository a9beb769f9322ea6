//! Networks trained from different seeds on real data: what alignment takes off the barrier between
//! them.

use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize};
use serde_json::Value;
use thalweg::data::DataSet;
use thalweg::kernel::Kernels;
use thalweg::net::{AdamOptions, Parameters, Training, mlp, train};

use crate::support::program::run;
use crate::support::reference::files::read_model;

/// A file of scikit-learn's digits.
pub fn digits(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/digits-{part}.safetensors"))
}

/// Trains an MLP 64-width-width-10 and writes it to a folder.
pub fn trained(folder: &Path, width: usize, seed: u64, threads: usize) {
    let data = DataSet::open(&digits("train"), Kernels::detect()).expect("a data set");
    let (network, mut parameters) = mlp(&[64, width, width, 10], seed);
    let adam = AdamOptions {
        rate: 3e-3,
        ..AdamOptions::default()
    };
    let training = Training {
        epochs: 25,
        batch: 32,
        seed,
        adam,
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool");
    pool.install(|| train(&network, &mut parameters, &data, &training, &|| Ok(())))
        .expect("trained");
    write(folder, &parameters);
}

fn write(folder: &Path, parameters: &Parameters) {
    std::fs::create_dir_all(folder).expect("a folder");
    let bytes: Vec<Vec<u8>> = parameters
        .iter()
        .map(|(_, _, tensor)| tensor.iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views = parameters
        .iter()
        .zip(&bytes)
        .map(|((name, shape, _), bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("bytes that fit"),
            )
        });
    std::fs::write(
        folder.join("model.safetensors"),
        serialize(views, None).expect("tensors"),
    )
    .expect("written");
    std::fs::write(folder.join("config.json"), r#"{"model_type": "mlp"}"#).expect("written");
}

/// Loss and accuracy on the test digits of a stored MLP, computed in f64 without the library.
fn scored(model: &Path) -> (f64, f64) {
    let model = read_model(model);
    let bytes = std::fs::read(digits("test")).expect("there");
    let data = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let (inputs, labels) = (
        data.tensor("inputs").expect("inputs"),
        data.tensor("labels").expect("labels"),
    );
    let (mut loss, mut right) = (0.0, 0.0);
    for (sample, label) in inputs.data().chunks(64).zip(labels.data()) {
        let mut x: Vec<f64> = sample.iter().map(|grey| f64::from(*grey) / 16.0).collect();
        for layer in 0..3 {
            let weight = &model[&format!("layers.{layer}.weight")].values;
            let bias = &model[&format!("layers.{layer}.bias")].values;
            let row = |(row, bias): (&[f64], &f64)| {
                row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>() + bias
            };
            let y: Vec<f64> = weight.chunks(x.len()).zip(bias).map(row).collect();
            x = if layer < 2 {
                y.into_iter().map(|y| y.max(0.0)).collect()
            } else {
                y
            };
        }
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = x.iter().map(|x| (x - most).exp()).sum();
        loss += sum.ln() - (x[usize::from(*label)] - most);
        right += f64::from(u8::from(
            x.iter().position(|x| *x == most) == Some(usize::from(*label)),
        ));
    }
    let count = labels.data().len() as f64;
    (loss / count, right / count)
}

fn curve<'a>(found: &'a Value, name: &str) -> &'a Vec<Value> {
    let curves = found["curves"].as_array().expect("curves");
    let curve = curves
        .iter()
        .find(|curve| curve["name"] == name)
        .unwrap_or_else(|| panic!("no curve {name}"));
    curve["points"].as_array().expect("points")
}

fn middle(found: &Value, name: &str) -> (f64, f64) {
    let points = curve(found, name);
    let point = &points[points.len() / 2];
    (
        point["loss"].as_f64().expect("a number"),
        point["accuracy"].as_f64().expect("a number"),
    )
}

fn interpolate(dir: &Path, align: &str, out: &str, more: &[&str]) -> Value {
    let data = digits("test").display().to_string();
    let args = [
        "interpolate",
        "a",
        "b",
        "--align",
        align,
        "--data",
        &data,
        "--points",
        "9",
        "--out",
        out,
        "--json",
    ];
    run(dir, args.iter().chain(more)).ok().json()
}

#[test]
fn alignment_takes_most_of_the_barrier_between_two_trainings_off() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, train) = (dir.path(), digits("train").display().to_string());
    trained(&dir.join("a"), 64, 1, 2);
    trained(&dir.join("b"), 64, 2, 1);
    run(
        dir,
        ["align", "a", "b", "--out", "weights.safetensors", "--quiet"],
    )
    .ok();
    for model in ["a", "b"] {
        let out = format!("acts-{model}");
        run(
            dir,
            [
                "activations",
                model,
                "--data",
                &train,
                "--out",
                &out,
                "--quiet",
            ],
        )
        .ok();
    }
    let activations = ["--activations", "acts-a", "acts-b", "--quiet"];
    run(
        dir,
        ["align", "a", "b", "--out", "acts.safetensors"]
            .iter()
            .chain(&activations),
    )
    .ok();
    let descent = [
        "--straight-through",
        "--data",
        &train,
        "--epochs",
        "12",
        "--json",
    ];
    let learned = run(
        dir,
        ["align", "a", "b", "--out", "learned.safetensors"]
            .iter()
            .chain(&descent),
    )
    .ok()
    .json();

    let weights = interpolate(dir, "weights.safetensors", "curve-weights", &[]);
    let barrier = |found: &Value, name: &str| found["barriers"][name].as_f64().expect("a number");
    let (naive, aligned) = (barrier(&weights, "naive"), barrier(&weights, "aligned"));
    assert!(naive > 0.3, "two trainings lie apart: {naive}");
    assert!(
        naive > 5.0 * aligned,
        "weight matching: from {naive} to {aligned}"
    );
    let acts = interpolate(dir, "acts.safetensors", "curve-acts", &[]);
    assert!(
        naive > 5.0 * barrier(&acts, "aligned"),
        "activation matching: {}",
        barrier(&acts, "aligned")
    );
    assert!(middle(&acts, "aligned").1 > middle(&weights, "naive").1 + 0.1);
    let straight = interpolate(dir, "learned.safetensors", "curve-learned", &[]);
    let (by_weights, by_loss) = (
        middle(&weights, "aligned").0,
        middle(&straight, "aligned").0,
    );
    assert!(
        by_loss < 0.9 * by_weights,
        "straight-through: {by_loss} in the middle, weight matching {by_weights}"
    );
    let losses = &learned["findings"]["losses"];
    let loss = |name: &str| losses[name].as_f64().expect("a number");
    assert!(
        loss("found") < loss("weights") && loss("weights") < loss("naive"),
        "{losses}"
    );

    // The ends are the models, the middle is what `merge` writes.
    let (first, last) = (scored(&dir.join("a")), scored(&dir.join("b")));
    let merges: [(&str, &[&str]); 3] = [
        ("naive", &["--method", "linear"]),
        (
            "aligned",
            &["--method", "linear", "--align", "weights.safetensors"],
        ),
        ("aligned, Karcher", &["--align", "weights.safetensors"]),
    ];
    for (name, flags) in merges {
        let out = format!("merged-{}", name.len());
        run(
            dir,
            [
                "merge",
                "a",
                "b",
                "--weights",
                "0.75,0.25",
                "--out",
                &out,
                "--quiet",
            ]
            .iter()
            .chain(flags),
        )
        .ok();
        let points = curve(&weights, name);
        for (point, (loss, accuracy)) in [(0, first), (8, last), (2, scored(&dir.join(&out)))] {
            let got = points[point]["loss"].as_f64().expect("a number");
            assert!(
                (got - loss).abs() < 1e-5 * (1.0 + loss),
                "{name}, point {point}: wanted {loss}, got {got}"
            );
            let got = points[point]["accuracy"].as_f64().expect("a number");
            assert!(
                (got - accuracy).abs() < 1e-12,
                "{name}, point {point}: wanted {accuracy}, got {got}"
            );
        }
    }
    // Table and plot say the same.
    let table = std::fs::read_to_string(dir.join("curve-weights/curve.csv")).expect("a table");
    assert_eq!(table.lines().count(), 1 + 3 * 9);
    let (loss, accuracy) = middle(&weights, "aligned, Karcher");
    assert!(
        table.contains(&format!("\"aligned, Karcher\",0.5,{loss},{accuracy}\n")),
        "{table}"
    );
    let plot = std::fs::read_to_string(dir.join("curve-weights/curve.svg")).expect("a plot");
    assert!(plot.contains(&format!("naive: barrier {naive:.3}")) && plot.ends_with("</svg>\n"));
    assert_eq!(plot.matches("<path class=\"curve").count(), 3 * 3);
}

#[test]
fn trainings_alignments_and_curves_have_the_same_bits_for_all_threads_and_budgets() {
    let dir = tempfile::tempdir().expect("a folder");
    let (dir, train) = (dir.path(), digits("train").display().to_string());
    for (model, seed) in [("a", 3), ("b", 4)] {
        trained(&dir.join(model), 16, seed, 1);
        trained(&dir.join(format!("{model}-again")), 16, seed, 3);
        let read =
            |name: &str| std::fs::read(dir.join(name).join("model.safetensors")).expect("there");
        assert_eq!(read(model), read(&format!("{model}-again")));
    }
    let mut found: Vec<[Vec<u8>; 4]> = Vec::new();
    for (threads, memory) in [("1", "1GiB"), ("3", "96MiB")] {
        let machine = [
            "--threads",
            threads,
            "--memory",
            memory,
            "--overwrite",
            "--quiet",
        ];
        let with = |args: &[&str]| {
            run(dir, args.iter().chain(&machine)).ok();
        };
        for model in ["a", "b"] {
            with(&[
                "activations",
                model,
                "--data",
                &train,
                "--out",
                &format!("acts-{model}.safetensors"),
            ]);
        }
        let files = ["acts-a.safetensors", "acts-b.safetensors"];
        let _ = std::fs::remove_file(dir.join("acts.safetensors"));
        let _ = std::fs::remove_file(dir.join("learned.safetensors"));
        with(&[
            "align",
            "a",
            "b",
            "--out",
            "acts.safetensors",
            "--activations",
            files[0],
            files[1],
        ]);
        let descent = ["--straight-through", "--data", &train, "--epochs", "2"];
        with(
            &[
                ["align", "a", "b", "--out", "learned.safetensors"].as_slice(),
                &descent,
            ]
            .concat(),
        );
        let align = ["--align", "learned.safetensors", "--data", &train];
        with(
            &[
                ["interpolate", "a", "b", "--points", "3", "--out", "curve"].as_slice(),
                &align,
            ]
            .concat(),
        );
        let names = [
            "acts-a.safetensors",
            "acts.safetensors",
            "learned.safetensors",
            "curve/curve.csv",
        ];
        found.push(names.map(|name| std::fs::read(dir.join(name)).expect("written")));
    }
    assert!(
        found[0] == found[1],
        "another number of threads or another budget shows"
    );
}
