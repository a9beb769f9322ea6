//! What the report and the manifest say about norms, angles and iterations, against the reference.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype;
use serde_json::Value;
use thalweg::kernel::CHUNK;
use thalweg::method::{Facts, Stop};
use thalweg::monitor::{Monitor, Phase};
use thalweg::report::{Found, Report};

use super::same_bytes::least_memory;
use super::{Kinship, Place, Run, random_models};
use crate::support::reference::{Granularity, Model, Random, Rule, dot, merge, norm};

const SHAPES: [&[usize]; 4] = [&[400], &[8, 50], &[3, 4, 20], &[CHUNK + 100]];

/// Three models, their merge and its manifest.
struct Merged {
    models: Vec<Model>,
    report: Report,
    manifest: Value,
}

impl Merged {
    fn by(granularity: &str) -> Self {
        let place = Place::new();
        let models = random_models(
            &mut Random::new(900),
            &[Dtype::F32; 3],
            &SHAPES,
            Kinship::Cosine(0.6),
        );
        let run = Run::weighted(&place.models(&models), &[0.5, 0.3, 0.2]).small_blocks();
        let out = place.path("out");
        let report = run
            .with("granularity", granularity)
            .merge_to(&out)
            .expect("a merge that succeeds");
        let manifest = fs::read(out.join("thalweg.json")).expect("a manifest");
        Self {
            models,
            report,
            manifest: serde_json::from_slice(&manifest).expect("JSON"),
        }
    }

    fn rule() -> Rule {
        Rule::Karcher {
            weights: vec![0.5, 0.3, 0.2],
            max_iter: 60,
        }
    }

    fn notes(&self) -> Vec<(String, Found)> {
        let tensors = self.manifest["tensors"].as_array().expect("tensors");
        let note = |tensor: &Value| {
            let found = serde_json::from_value(tensor["note"].clone()).expect("what was found");
            (tensor["name"].as_str().expect("a name").to_owned(), found)
        };
        tensors.iter().map(note).collect()
    }
}

fn angle(a: &[f64], b: &[f64]) -> f64 {
    (dot(a, b) / norm(a) / norm(b)).acos()
}

/// Norms and angles of inputs and mean. They are of half a radian, where the arc cosine keeps its
/// digits.
fn assert_facts(facts: &Facts, inputs: &[Vec<f64>], mean: &[f64], about: &str) {
    assert_eq!(facts.norms.len(), inputs.len(), "{about}");
    for (i, input) in inputs.iter().enumerate() {
        assert!(
            (facts.norms[i] / norm(input) - 1.0).abs() < 1e-12,
            "{about}: norm of {i}"
        );
        let got = facts.angles[i].expect("no input is zero");
        assert!(
            (got - angle(input, mean)).abs() < 1e-11,
            "{about}: angle of {i}"
        );
    }
    assert!(
        (facts.merged_norm.expect("measured") / norm(mean) - 1.0).abs() < 1e-12,
        "{about}: merged norm"
    );
    assert_eq!(facts.stop, Stop::Converged, "{about}");
    assert!(
        facts.residual <= 1e-12 && facts.iterations > 2,
        "{about}: {facts:?}"
    );
    assert!(facts.flags.is_empty(), "{about}");
}

#[test]
fn every_tensor_is_noted_with_its_norms_and_angles() {
    let merged = Merged::by("tensor");
    let means = merge(&merged.models, &Merged::rule(), Granularity::Tensor);
    let mut angles = Vec::new();
    let notes = merged.notes();
    assert_eq!(notes.len(), SHAPES.len());
    for (name, found) in &notes {
        let inputs: Vec<Vec<f64>> = merged
            .models
            .iter()
            .map(|model| model[name].values.clone())
            .collect();
        let facts = found.facts.as_ref().expect("one segment");
        assert_facts(facts, &inputs, &means[name], name);
        assert_eq!(
            (
                found.segments,
                found.converged,
                found.exact,
                found.exhausted
            ),
            (1, 1, 0, 0)
        );
        assert_eq!((found.iterations, found.angle_count), (facts.iterations, 3));
        angles.extend(inputs.iter().map(|input| angle(input, &means[name])));
    }
    let (count, sum) = angles
        .iter()
        .fold((0.0, 0.0), |(count, sum), angle| (count + 1.0, sum + angle));
    let report = &merged.report;
    assert!((report.mean_angle.expect("angles") - sum / count).abs() < 1e-9);
    let largest = angles.iter().copied().fold(0.0, f64::max);
    assert!((report.largest_angle.expect("angles") - largest).abs() < 1e-11);
    assert_eq!(
        (
            report.solved.converged,
            report.solved.exact,
            report.solved.exhausted
        ),
        (4, 0, 0)
    );
    let most = notes.iter().map(|(_, found)| found.iterations).max();
    assert_eq!(Some(report.solved.most_iterations), most);
    let bytes: u64 = merged.models[0]
        .values()
        .map(|tensor| tensor.bytes.len() as u64)
        .sum();
    assert_eq!(
        (report.output_bytes, report.written_bytes, report.read_bytes),
        (bytes, bytes, 3 * bytes)
    );
    assert_eq!((report.tensors, report.merged, report.shards), (4, 4, 1));
}

#[test]
fn rows_are_noted_together() {
    let merged = Merged::by("row");
    let means = merge(&merged.models, &Merged::rule(), Granularity::Row);
    for (name, found) in merged.notes() {
        let rows = merged.models[0][&name].rows();
        let length = means[&name].len() / rows;
        let mut angles = Vec::new();
        for row in 0..rows {
            let cut = |values: &[f64]| values[row * length..(row + 1) * length].to_vec();
            let mean = cut(&means[&name]);
            angles.extend(
                merged
                    .models
                    .iter()
                    .map(|model| angle(&cut(&model[&name].values), &mean)),
            );
        }
        let rows = u64::try_from(rows).expect("small");
        assert_eq!(
            (found.segments, found.converged, found.angle_count),
            (rows, rows, 3 * rows),
            "{name}"
        );
        assert_eq!(found.facts.is_some(), rows == 1, "{name}");
        let (count, sum) = angles
            .iter()
            .fold((0.0, 0.0), |(count, sum), angle| (count + 1.0, sum + angle));
        assert!(
            (found.mean_angle().expect("angles") - sum / count).abs() < 1e-8,
            "{name}"
        );
        let largest = angles.iter().copied().fold(0.0, f64::max);
        assert!((found.largest_angle - largest).abs() < 1e-10, "{name}");
    }
}

#[test]
fn a_mean_over_the_model_is_noted_once() {
    let merged = Merged::by("model");
    let means = merge(&merged.models, &Merged::rule(), Granularity::Model);
    let whole = |model: &Model| -> Vec<f64> {
        model
            .values()
            .flat_map(|tensor| tensor.values.clone())
            .collect()
    };
    let inputs: Vec<Vec<f64>> = merged.models.iter().map(whole).collect();
    let mean: Vec<f64> = means.values().flatten().copied().collect();
    let solution = &merged.manifest["run"]["solution"];
    let facts: Facts = serde_json::from_value(solution["facts"].clone()).expect("facts");
    assert_facts(&facts, &inputs, &mean, "the whole model");
    let coefficients: Vec<f64> =
        serde_json::from_value(solution["coefficients"].clone()).expect("coefficients");
    let views: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
    let combined = crate::support::reference::combine(&coefficients, &views);
    assert!(crate::support::reference::distance(&combined, &mean) < 1e-12 * norm(&mean));
    assert_eq!(
        (
            merged.report.solved.converged,
            merged.report.solved.most_iterations
        ),
        (1, facts.iterations)
    );
    assert!(
        (merged.report.largest_angle.expect("angles") - angle(&inputs[2], &mean)).abs() < 1e-11
    );
    let bytes: u64 = merged.models[0]
        .values()
        .map(|tensor| tensor.bytes.len() as u64)
        .sum();
    // Once to be measured, once more to be combined.
    assert_eq!(merged.report.read_bytes, 6 * bytes);
}

#[test]
fn fine_tunes_have_their_small_angles() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(901),
        &[Dtype::F64; 2],
        &[&[5000]],
        Kinship::Cosine(0.999_999_99),
    );
    let out = place.path("out");
    let report = Run::karcher(&place.models(&models))
        .merge_to(&out)
        .expect("a merge that succeeds");
    let (a, b) = (&models[0]["t[5000]"].values, &models[1]["t[5000]"].values);
    let unit = |x: &[f64]| -> Vec<f64> { x.iter().map(|value| value / norm(x)).collect() };
    let half = (crate::support::reference::distance(&unit(a), &unit(b)) / 2.0).asin();
    let got = report.largest_angle.expect("angles");
    // The cosine of 7e-5 is rounded at 1e-16, which is 2e-8 of the angle.
    assert!(
        (got / half - 1.0).abs() < 1e-7,
        "wanted {half:e}, got {got:e}"
    );
}

/// Counts what a run says that it moves and holds.
#[derive(Default)]
struct Counts {
    merging: AtomicU64,
    wanted: AtomicU64,
    moved: AtomicU64,
    held: AtomicU64,
}

impl Monitor for Counts {
    fn phase(&self, phase: Phase, bytes: u64) {
        self.merging
            .store(u64::from(phase == Phase::Merging), Ordering::SeqCst);
        if phase == Phase::Merging {
            self.wanted.store(bytes, Ordering::SeqCst);
        }
    }

    fn advance(&self, bytes: u64) {
        self.moved.fetch_add(
            bytes * self.merging.load(Ordering::SeqCst),
            Ordering::SeqCst,
        );
    }

    fn memory(&self, used: u64) {
        self.held.fetch_max(used, Ordering::SeqCst);
    }
}

#[test]
fn a_run_moves_and_holds_what_was_planned() {
    let place = Place::new();
    let shapes: [&[usize]; 3] = [&[5], &[4, 2 * CHUNK], &[20 * CHUNK + 1]];
    let models = random_models(
        &mut Random::new(902),
        &[Dtype::BF16; 3],
        &shapes,
        Kinship::Cosine(0.9),
    );
    let paths = place.models(&models);
    let bytes: u64 = models[0]
        .values()
        .map(|tensor| tensor.bytes.len() as u64)
        .sum();
    for threads in [1, 4] {
        for (granularity, often) in [("tensor", 1), ("row", 1), ("model", 2)] {
            let run = Run {
                threads,
                ..Run::karcher(&paths).with("granularity", granularity)
            };
            let least = Run {
                memory: least_memory(&run),
                ..run.clone()
            };
            for run in [run, least] {
                let counts = Arc::new(Counts::default());
                let out = place.path(&format!("{threads}-{granularity}-{}", run.memory));
                let report = run
                    .merge_watched(&out, counts.clone())
                    .expect("a merge that succeeds");
                let memory = run.plan().expect("a plan").memory;
                let held = counts.held.load(Ordering::SeqCst);
                assert!(
                    held > 0 && held <= memory.input,
                    "{held} of {memory:?} are held"
                );
                let moved = counts.moved.load(Ordering::SeqCst);
                assert_eq!(
                    moved,
                    report.read_bytes + report.written_bytes,
                    "{granularity}"
                );
                assert_eq!(moved, counts.wanted.load(Ordering::SeqCst), "{granularity}");
                assert_eq!(report.written_bytes, bytes);
                assert!(report.read_bytes <= 6 * bytes, "{granularity}");
                assert!(
                    run.memory < 1 << 30 || report.read_bytes == often * 3 * bytes,
                    "{granularity}"
                );
            }
        }
    }
}
