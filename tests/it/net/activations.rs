//! Activations that are recorded, and groups that are matched by them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use thalweg::align::Store;
use thalweg::align::activations::{ActivationOptions, Similarity, match_activations};
use thalweg::align::matching::{Proof, Unwatched};
use thalweg::kernel::Kernels;
use thalweg::symmetry::spec::builtin;
use thalweg::symmetry::{Symmetries, Transform, TransformFile};

use super::write_data;
use crate::align::Stored;
use crate::support::forward::{Chain, Family, Net, Random, ResNet, Vgg};
use crate::support::program::{run, start};
use crate::support::reference::Tensor;
use crate::support::reference::files::read_model;
use crate::support::whole::PLENTY;

/// A data set of random samples of this shape.
fn random_data(path: &Path, samples: usize, shape: &[usize]) -> Vec<f64> {
    let inputs = Random::new(17).vector(samples * shape.iter().product::<usize>());
    let bytes = inputs.iter().flat_map(|x| x.to_le_bytes()).collect();
    let shape = [[samples].as_slice(), shape].concat();
    let labels = ("labels", Dtype::U8, vec![samples], vec![0; samples]);
    write_data(path, &[("inputs", Dtype::F64, shape, bytes), labels], &[]);
    inputs
}

/// Activations of both the network and a copy with its units moved match every unit with itself.
fn recovers(family: &dyn Family, sample: &[usize], samples: usize) {
    let data = |dir: &Path| random_data(&dir.join("data.safetensors"), samples, sample);
    let record = |dir: &Path, model: &str| {
        let out = format!("acts-{model}.safetensors");
        run(
            dir,
            [
                "activations",
                model,
                "--data",
                "data.safetensors",
                "--out",
                &out,
                "--quiet",
            ],
        )
        .ok();
        read_model(&dir.join(out))
    };
    // Units that are never active cannot be told from each other: the first network that has none,
    // looked for among those with positive weights and large biases.
    let alive = |seed: u64| {
        let mut net = family.random(seed);
        for (name, (_, values)) in &mut net.tensors {
            let bias = if name.ends_with("bias") { 3.0 } else { 0.0 };
            values
                .iter_mut()
                .for_each(|value| *value = value.abs() + bias);
        }
        let stored = Stored::new(&net, None);
        data(stored.dir.path());
        let acts = record(stored.dir.path(), "model");
        let dead = |tensor: &Tensor| {
            let units = tensor.shape[1];
            (0..units).any(|unit| {
                tensor
                    .values
                    .iter()
                    .skip(unit)
                    .step_by(units)
                    .all(|value| *value == 0.0)
            })
        };
        (!acts.values().any(dead)).then_some(stored)
    };
    let stored = (3..40)
        .find_map(alive)
        .expect("a network all of whose units are active");
    let dir = stored.dir.path();
    let planted = Transform::random(&stored.symmetries, 5);
    stored.apply("model", planted.clone(), "moved", &PLENTY);
    record(dir, "moved");
    let acts = [
        "acts-model.safetensors",
        "acts-moved.safetensors",
        "--similarity",
        "correlation",
        "--json",
    ];
    let args = [
        "align",
        "model",
        "moved",
        "--out",
        "found.safetensors",
        "--activations",
    ];
    let json = run(dir, args.iter().chain(&acts)).ok().json();
    for root in json["findings"]["roots"].as_array().expect("roots") {
        let cosine = root["activations"][1].as_f64().expect("a cosine");
        assert!((cosine - 1.0).abs() < 1e-4, "{root}");
    }
    let found = TransformFile::read(&dir.join("found.safetensors"), &stored.symmetries)
        .expect("a transform");
    assert_eq!(found.transform, planted.inverse(&stored.symmetries));
    run(
        dir,
        [
            "apply",
            "moved",
            "found.safetensors",
            "--out",
            "back",
            "--quiet",
        ],
    )
    .ok();
    assert_eq!(
        read_model(&dir.join("back")),
        read_model(&dir.join("model"))
    );
}

#[test]
fn planted_orders_are_found_in_every_family() {
    recovers(
        &Chain {
            norms: false,
            flax: false,
        },
        &[6],
        400,
    );
    recovers(
        &Chain {
            norms: true,
            flax: false,
        },
        &[6],
        400,
    );
    recovers(
        &Chain {
            norms: false,
            flax: true,
        },
        &[6],
        400,
    );
    recovers(&Vgg { norms: true }, &[3, 8, 8], 40);
    recovers(
        &ResNet {
            bottleneck: false,
            layer_norms: true,
            transformers: false,
        },
        &[3, 8, 8],
        40,
    );
    recovers(
        &ResNet {
            bottleneck: true,
            layer_norms: false,
            transformers: false,
        },
        &[3, 8, 8],
        40,
    );
    recovers(
        &ResNet {
            bottleneck: true,
            layer_norms: false,
            transformers: true,
        },
        &[3, 8, 8],
        40,
    );
}

/// What the hidden layers of a chain give, in f64.
fn hidden(net: &Net, input: &[f64]) -> Vec<Vec<f64>> {
    let mut x = input.to_vec();
    (0..3)
        .map(|layer| {
            x = net
                .linear(&format!("layers.{}", 3 * layer), &x)
                .into_iter()
                .map(|x| x.max(0.0))
                .collect();
            x.clone()
        })
        .collect()
}

#[test]
fn what_is_recorded_is_what_the_units_do() {
    let net = Chain {
        norms: false,
        flax: false,
    }
    .random(3);
    let stored = Stored::new(&net, None);
    let dir = stored.dir.path();
    // More than one batch, and not a whole number of them.
    let inputs = random_data(&dir.join("data.safetensors"), 300, &[6]);
    let args = [
        "activations",
        "model",
        "--data",
        "data.safetensors",
        "--out",
        "acts",
        "--json",
    ];
    let json = run(dir, args).ok().json();
    assert_eq!(
        json["groups"][2],
        serde_json::json!({ "group": "hidden.6", "samples": 300, "units": 11 })
    );
    let acts = read_model(&dir.join("acts/activations.safetensors"));
    assert_eq!(
        acts.keys().collect::<Vec<_>>(),
        ["hidden.0", "hidden.3", "hidden.6"]
    );
    for (sample, input) in inputs.chunks(6).enumerate() {
        for (layer, wanted) in hidden(&net, input).into_iter().enumerate() {
            let acts = &acts[&format!("hidden.{}", 3 * layer)];
            let got = &acts.values[sample * wanted.len()..][..wanted.len()];
            assert!(
                wanted.iter().zip(got).all(|(x, y)| (x - y).abs() < 1e-5),
                "sample {sample}, layer {layer}"
            );
        }
    }
    run(dir, args).fails(
        2,
        &[
            "acts/activations.safetensors: the file is there already",
            "--overwrite",
        ],
    );
    run(dir, args.iter().chain(&["--overwrite", "--memory", "1MiB"]))
        .fails(2, &["a batch of samples needs"]);
}

#[test]
fn recording_and_matching_stay_within_their_memory() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let units = 512;
    let net = &mut Net::new(serde_json::json!({ "model_type": "mlp" }));
    let random = &mut Random::new(6);
    for (layer, to, from) in [(0, units, 6), (1, units, units), (2, 4, units)] {
        net.add(random, &format!("layers.{layer}.weight"), &[to, from]);
        net.add(random, &format!("layers.{layer}.bias"), &[to]);
    }
    net.write(&dir.join("model"));
    let stored = Stored::new(net, None);
    stored.apply(
        "model",
        Transform::random(&stored.symmetries, 5),
        "moved",
        &PLENTY,
    );
    std::fs::rename(stored.dir.path().join("moved"), dir.join("moved")).expect("moved");
    random_data(&dir.join("data.safetensors"), 20_000, &[6]);
    let watched = |args: &[&str], mib: u64| {
        let memory = format!("{mib}MiB");
        let machine = ["--threads", "2", "--memory", &memory, "--quiet"];
        let ended = start(dir, args.iter().chain(&machine)).end_watched().ok();
        assert!(
            ended.peak > 1 << 20 && ended.peak <= mib << 20,
            "{args:?}: {} of {}",
            ended.peak,
            mib << 20
        );
    };
    for model in ["model", "moved"] {
        watched(
            &[
                "activations",
                model,
                "--data",
                "data.safetensors",
                "--out",
                &format!("acts-{model}"),
            ],
            48,
        );
    }
    // Each of the two files is larger than all of the memory.
    let acts = [
        "acts-model/activations.safetensors",
        "acts-moved/activations.safetensors",
    ];
    assert!(
        acts.iter()
            .all(|file| dir.join(file).metadata().expect("there").len() > 80_000_000)
    );
    let align = [
        "align",
        "model",
        "moved",
        "--out",
        "found.safetensors",
        "--activations",
        acts[0],
        acts[1],
    ];
    watched(&align, 72);
}

#[test]
fn networks_and_data_that_do_not_go_together_are_refused() {
    let stored = Stored::new(
        &Chain {
            norms: false,
            flax: false,
        }
        .random(3),
        None,
    );
    let dir = stored.dir.path();
    let refused = |code: i32, words: &[&str]| {
        run(
            dir,
            [
                "activations",
                "model",
                "--data",
                "data.safetensors",
                "--out",
                "acts",
            ],
        )
        .fails(code, words);
        assert!(
            !dir.join("acts").exists()
                || std::fs::read_dir(dir.join("acts"))
                    .expect("a folder")
                    .count()
                    < 2
        );
    };
    random_data(&dir.join("data.safetensors"), 4, &[5]);
    refused(2, &["layers.0.weight: takes 6 numbers, a sample has 5"]);
    let labels = ("labels", Dtype::U8, vec![2], vec![1, 4]);
    write_data(
        &dir.join("data.safetensors"),
        &[("inputs", Dtype::U8, vec![2, 6], vec![1; 12]), labels],
        &[],
    );
    refused(
        1,
        &["`labels`: sample 1 has label 4, the network has 4 classes"],
    );
    let llama = Stored::new(
        &crate::support::forward::Llama {
            model_type: "llama",
            ..Default::default()
        }
        .random(1),
        None,
    );
    std::fs::copy(
        dir.join("data.safetensors"),
        llama.dir.path().join("data.safetensors"),
    )
    .expect("copied");
    run(
        llama.dir.path(),
        [
            "activations",
            "model",
            "--data",
            "data.safetensors",
            "--out",
            "acts",
        ],
    )
    .fails(2, &["spec `llama`: there are forward passes for mlp"]);
}

fn symmetries(units: u64) -> Symmetries {
    let shapes = [
        ("layers.0.weight", vec![units, 3]),
        ("layers.0.bias", vec![units]),
        ("layers.1.weight", vec![2, units]),
        ("layers.1.bias", vec![2]),
    ];
    let shapes = shapes
        .into_iter()
        .map(|(name, shape)| (name.to_owned(), shape))
        .collect();
    builtin::named("mlp")
        .and_then(|spec| spec.resolve(&shapes, None))
        .expect("an MLP")
}

fn store(name: &str, samples: usize, units: usize, values: &[f64]) -> Store {
    let values = values.iter().map(|value| super::narrow(*value)).collect();
    Store::in_memory(
        [(name.to_owned(), vec![samples as u64, units as u64], values)],
        Kernels::detect(),
    )
}

/// Activations of two networks that share half of what they do, so that the assignment is not
/// obvious.
fn related(samples: usize, units: usize) -> [Vec<f64>; 2] {
    let random = &mut Random::new(8);
    let shared = random.vector(samples * units);
    let mut side = |turn: usize| {
        let own = random.vector(samples * units);
        let value = |at: usize| {
            let unit = (at % units + turn) % units;
            (shared[at / units * units + unit] + own[at] + 0.2).max(0.0)
        };
        (0..samples * units).map(value).collect()
    };
    [side(0), side(7)]
}

/// The best sum over all permutations, by dynamic programming over sets of columns.
fn best(costs: &[Vec<f64>]) -> f64 {
    let mut sums: BTreeMap<usize, f64> = BTreeMap::from([(0, 0.0)]);
    for row in costs {
        let mut next = BTreeMap::new();
        for (set, sum) in sums {
            for (column, cost) in row
                .iter()
                .enumerate()
                .filter(|(column, _)| set & (1 << column) == 0)
            {
                let entry = next.entry(set | (1 << column)).or_insert(f64::NEG_INFINITY);
                *entry = f64::max(*entry, sum + cost);
            }
        }
        sums = next;
    }
    sums.into_values().fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn the_best_of_all_orders_is_found_for_every_similarity() {
    let (samples, units) = (1500, 9);
    let symmetries = symmetries(units as u64);
    let [a, b] = related(samples, units);
    let column = |values: &[f64], unit: usize| -> Vec<f64> {
        values.iter().skip(unit).step_by(units).copied().collect()
    };
    for similarity in [
        Similarity::Uncentred,
        Similarity::Centred,
        Similarity::Correlation,
    ] {
        let scaled = |values: &[f64], unit: usize| {
            let column = column(values, unit);
            let mean = column.iter().sum::<f64>() / samples as f64;
            let shift = if similarity == Similarity::Uncentred {
                0.0
            } else {
                mean
            };
            let column: Vec<f64> = column.into_iter().map(|x| x - shift).collect();
            let norm = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            let scale = if similarity == Similarity::Correlation {
                norm
            } else {
                1.0
            };
            column.into_iter().map(|x| x / scale).collect::<Vec<f64>>()
        };
        let all = |values: &[f64]| -> Vec<Vec<f64>> {
            (0..units).map(|unit| scaled(values, unit)).collect()
        };
        let (a_units, b_units) = (all(&a), all(&b));
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let costs: Vec<Vec<f64>> = a_units
            .iter()
            .map(|a| b_units.iter().map(|b| dot(a, b)).collect())
            .collect();
        let norms = [&a_units, &b_units].map(|units| units.iter().map(|x| dot(x, x)).sum::<f64>());
        let wanted = best(&costs) / (norms[0] * norms[1]).sqrt();
        let options = ActivationOptions {
            similarity,
            ..ActivationOptions::default()
        };
        let sides = [&a, &b].map(|values| store("hidden.0", samples, units, values));
        let found = match_activations(&sides[0], &sides[1], &symmetries, &[], &options, &Unwatched)
            .expect("matched");
        let step = &found.steps[0];
        assert!(
            (step.after - wanted).abs() < 1e-6,
            "{similarity:?}: wanted {wanted}, got {}",
            step.after
        );
        let identity =
            (0..units).map(|unit| costs[unit][unit]).sum::<f64>() / (norms[0] * norms[1]).sqrt();
        assert!((step.before - identity).abs() < 1e-6);
        let again = match_activations(
            &sides[0],
            &sides[1],
            &symmetries,
            &found.steps,
            &options,
            &Unwatched,
        );
        assert_eq!(again.expect("replayed"), found);
    }
}

#[test]
fn tiles_and_threads_do_not_show_and_too_little_memory_is_refused() {
    let (samples, units) = (1100, 300);
    let symmetries = symmetries(units as u64);
    let sides = related(samples, units).map(|values| store("hidden.0", samples, units, &values));
    let found = |memory: u64, threads: usize| {
        let options = ActivationOptions {
            memory,
            ..ActivationOptions::default()
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            match_activations(&sides[0], &sides[1], &symmetries, &[], &options, &Unwatched)
        })
    };
    let whole = found(1 << 30, 2).expect("matched");
    assert!(whole.steps[0].moved > 250, "{:?}", whole.steps[0].moved);
    // Less than the whole matrix and its blocks take, and as much as a run of 256 rows does.
    let tiled = found(5 << 20, 3).expect("matched");
    assert_eq!(tiled.transform, whole.transform);
    assert!((tiled.steps[0].after - whole.steps[0].after).abs() < 1e-12);
    assert!(matches!(tiled.steps[0].proof, Proof::Optimal(_)));
    let error = found(3 << 20, 1).expect_err("refused");
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[test]
fn dead_units_and_equal_models_stay_and_what_does_not_fit_is_refused_by_name() {
    let (samples, units) = (20, 4);
    let symmetries = Arc::new(symmetries(4));
    let [mut a, b] = related(samples, units);
    a.iter_mut()
        .skip(2)
        .step_by(units)
        .for_each(|value| *value = 0.5);
    let correlation = ActivationOptions {
        similarity: Similarity::Correlation,
        ..ActivationOptions::default()
    };
    let matched = |a: &Store, b: &Store, options: &ActivationOptions| {
        match_activations(a, b, &symmetries, &[], options, &Unwatched)
    };
    let own = store("hidden.0", samples, units, &a);
    let found = matched(&own, &own, &correlation).expect("a unit that never changes is no fault");
    assert!(found.transform.is_identity(&symmetries));
    assert_eq!(
        (found.steps[0].proof, found.steps[0].moved),
        (Proof::Identity, 0)
    );
    assert!(
        (found.steps[0].after - 1.0).abs() < 1e-6,
        "{}",
        found.steps[0].after
    );
    let refused = |other: &Store, words: &str| {
        let error = matched(&own, other, &ActivationOptions::default())
            .expect_err(words)
            .to_string();
        assert!(error.contains(words), "wanted {words:?} in {error}");
    };
    refused(
        &store("other", samples, units, &b),
        "hidden.0: there are no activations of the model that is aligned",
    );
    refused(
        &store("hidden.0", 40, 2, &b),
        "hidden.0: wanted shape [samples, 4], got [40, 2]",
    );
    refused(
        &store("hidden.0", 10, 4, &b[..40]),
        "hidden.0: the reference has 20 samples",
    );
    let mut odd = b.clone();
    odd[4 * 3 + 1] = f64::NAN;
    refused(
        &store("hidden.0", samples, units, &odd),
        "hidden.0: sample 3, unit 1: the activation is NaN",
    );
    let nothing = store("other", 1, 1, &[1.0]);
    let error = matched(&nothing, &nothing, &correlation)
        .expect_err("nothing to match")
        .to_string();
    assert!(
        error.contains("hidden.0: there are no activations of the reference"),
        "{error}"
    );
}
