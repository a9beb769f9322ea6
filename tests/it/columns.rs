//! Merging along the first axis, and the base in place of NaN.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use tempfile::TempDir;
use thalweg::Kind;
use thalweg::plan::memory::Wish;
use thalweg::plan::schedule::Role;

use crate::support::reference::{Model, Random, Rule, Tensor, distance, files, norm};
use crate::support::whole::{PLENTY, carry_out, least_memory, plan, recipe, run};

const BY_COLUMNS: &str = "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}";

fn models(shape: &[usize], dtype: Dtype, count: u64) -> Vec<Model> {
    let values = |seed| Random::new(seed).gaussian(shape.iter().product());
    (1..=count)
        .map(|seed| Model::from([("w".to_owned(), Tensor::rounded(dtype, shape, &values(seed)))]))
        .collect()
}

fn write(folder: &TempDir, models: &[Model]) -> Vec<PathBuf> {
    let path = |index: usize| folder.path().join(format!("model{index}"));
    models
        .iter()
        .enumerate()
        .for_each(|(index, model)| files::write_model(&path(index), model, 1));
    (0..models.len()).map(path).collect()
}

fn text(method: &str, paths: &[PathBuf], more: &str) -> String {
    let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
    recipe(method, &paths, more)
}

fn read(out: &Path) -> Tensor {
    files::read_model(&out.join("model.safetensors"))
        .remove("w")
        .expect("the tensor")
}

/// Each vector along the first axis on its own.
fn by_columns(inputs: &[&Tensor], rule: &Rule) -> Vec<f64> {
    let rows = inputs[0].shape.first().copied().unwrap_or(1);
    let columns = inputs[0].values.len() / rows;
    let mut merged = vec![0.0; rows * columns];
    for column in 0..columns {
        let vector = |tensor: &&Tensor| -> Vec<f64> {
            (0..rows)
                .map(|row| tensor.values[row * columns + column])
                .collect()
        };
        let vectors: Vec<Vec<f64>> = inputs.iter().map(vector).collect();
        let one = rule.apply(&vectors.iter().map(Vec::as_slice).collect::<Vec<_>>());
        one.into_iter()
            .enumerate()
            .for_each(|(row, value)| merged[row * columns + column] = value);
    }
    merged
}

#[test]
fn every_column_is_interpolated_on_its_own() {
    let shapes: [&[usize]; 5] = [&[5, 7], &[3, 1], &[40, 1100], &[4, 3, 5], &[9]];
    for shape in shapes {
        for based in [false, true] {
            let models = models(shape, Dtype::F64, if based { 3 } else { 2 });
            let folder = TempDir::new().expect("a temporary folder");
            let paths = write(&folder, &models);
            let base = if based {
                format!("\nbase_model: {}", paths[2].display())
            } else {
                String::new()
            };
            let text = text("nuslerp", &paths[..2], &format!("{BY_COLUMNS}{base}"));
            let report =
                run(&text, &folder.path().join("out"), &PLENTY).expect("they can be merged");
            let tensors: Vec<&Tensor> = models.iter().map(|model| &model["w"]).collect();
            let rule = Rule::Nuslerp {
                weights: vec![1.0; models.len()],
                base: based.then_some(2),
            };
            let (got, wanted) = (
                read(&folder.path().join("out")).values,
                by_columns(&tensors, &rule),
            );
            let error = distance(&got, &wanted);
            // Of columns with few elements some are nearly parallel, and their angles lose digits.
            let tolerance = if shape[0] > 3 { 1e-12 } else { 1e-7 };
            assert!(
                error <= tolerance * norm(&wanted),
                "{shape:?} {based}: off by {error}"
            );
            let columns = if shape.len() < 2 {
                1
            } else {
                shape[1..].iter().product::<usize>()
            };
            assert_eq!(report.solved.exact, columns as u64, "{shape:?}");
        }
    }
}

#[test]
fn columns_of_one_element_meet_in_the_middle() {
    let models = models(&[1, 40], Dtype::F64, 2);
    let folder = TempDir::new().expect("a temporary folder");
    let out = folder.path().join("out");
    run(
        &text("nuslerp", &write(&folder, &models), BY_COLUMNS),
        &out,
        &PLENTY,
    )
    .expect("they can be merged");
    let (one, two) = (&models[0]["w"].values, &models[1]["w"].values);
    for (at, got) in read(&out).values.iter().enumerate() {
        // Numbers are parallel or opposite; either way there is no arc to follow.
        let wanted = (one[at] + two[at]) / 2.0;
        assert!(
            (got - wanted).abs() <= 1e-15 * one[at].abs().max(two[at].abs()),
            "wanted {wanted}, got {got}"
        );
    }
}

#[test]
fn columns_come_out_the_same_whatever_the_memory_and_the_threads() {
    let models = models(&[700, 401], Dtype::BF16, 2);
    let folder = TempDir::new().expect("a temporary folder");
    let text = text("nuslerp", &write(&folder, &models), BY_COLUMNS);
    let small = Wish {
        block_bytes: Some(1),
        threads: 1,
        ..PLENTY
    };
    let least = Wish {
        memory: least_memory(&text, &small),
        ..small
    };
    let several = Wish {
        threads: 3,
        block_bytes: Some(1),
        ..PLENTY
    };
    let (mut bytes, mut roles) = (Vec::new(), Vec::new());
    for (index, wish) in [PLENTY, several, least].iter().enumerate() {
        let out = folder.path().join(format!("out{index}"));
        let plan = plan(&text, wish).expect("a plan");
        roles.extend(plan.schedule(&[0], false).map(|block| block.role));
        carry_out(plan, &out).expect("they can be merged");
        bytes.push(fs::read(out.join("model.safetensors")).expect("the output"));
    }
    assert!(bytes.iter().all(|other| *other == bytes[0]));
    assert!(
        roles.contains(&Role::Apply)
            && roles.iter().any(|role| {
                matches!(
                    role,
                    Role::Measure {
                        keep: true,
                        last: false,
                        ..
                    }
                )
            })
    );
    let tensors: Vec<&Tensor> = models.iter().map(|model| &model["w"]).collect();
    let wanted = by_columns(
        &tensors,
        &Rule::Nuslerp {
            weights: vec![1.0; 2],
            base: None,
        },
    );
    let got = read(&folder.path().join("out0"));
    let wanted = Tensor::rounded(Dtype::BF16, &[700, 401], &wanted);
    let differing = got
        .bits()
        .iter()
        .zip(wanted.bits())
        .filter(|(got, wanted)| *got != wanted)
        .count();
    // Only values at the middle between two others can be rounded the other way.
    assert!(
        differing * 10_000 < got.values.len(),
        "{differing} of {} differ",
        got.values.len()
    );
}

#[test]
fn the_memory_of_the_columns_is_asked_for_up_front() {
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models(&[1, 300_000], Dtype::BF16, 2));
    let wish = Wish {
        block_bytes: Some(1),
        threads: 1,
        ..PLENTY
    };
    let whole = least_memory(&text("nuslerp", &paths, ""), &wish);
    let by_columns = least_memory(&text("nuslerp", &paths, BY_COLUMNS), &wish);
    // Three sums with their losses and two coefficients a column.
    assert!(
        by_columns - whole >= 300_000 * (3 * 16 + 2 * 8) - (1 << 20),
        "{whole} {by_columns}"
    );
    let wish = Wish {
        memory: whole,
        ..wish
    };
    let error = plan(&text("nuslerp", &paths, BY_COLUMNS), &wish)
        .err()
        .expect("too little memory");
    assert_eq!(error.kind(), Kind::Budget);
}

/// `model` with one element of `w` replaced.
fn with(model: &Model, at: usize, value: f64) -> Model {
    let mut values = model["w"].values.clone();
    values[at] = value;
    Model::from([(
        "w".to_owned(),
        Tensor::rounded(model["w"].dtype, &model["w"].shape, &values),
    )])
}

/// How many of the models a recipe takes: nuslerp measures two from the base.
fn inputs_of(method: &str) -> usize {
    if method == "nuslerp" { 3 } else { 2 }
}

/// The recipe in which model 0 is the base.
fn based_on_first(method: &str, paths: &[PathBuf], more: &str) -> String {
    text(
        method,
        paths,
        &format!("base_model: {}\nnan: base\n{more}", paths[0].display()),
    )
}

#[test]
fn what_is_not_finite_is_the_bases_and_the_rest_is_merged_as_ever() {
    let shape = [300, 200];
    let clean = models(&shape, Dtype::F32, 3);
    let bad = 257 * 200 + 31;
    let models = [
        clean[0].clone(),
        with(&clean[1], bad, f64::NAN),
        clean[2].clone(),
    ];
    /// Which elements are the base's.
    type Replaced = fn(usize) -> bool;
    let cases: [(&str, &str, Replaced); 5] = [
        ("karcher", "", |_| true),
        ("linear", "", |_| true),
        ("karcher", "granularity: row", |at| at / 200 == 257),
        ("linear", "granularity: row", |at| at / 200 == 257),
        ("nuslerp", BY_COLUMNS, |at| at % 200 == 31),
    ];
    for (method, more, replaced) in cases {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &models);
        let wholes = TempDir::new().expect("a temporary folder");
        let whole_paths = write(&wholes, &clean);
        let make = |paths: &[PathBuf]| based_on_first(method, &paths[..inputs_of(method)], more);
        run(&make(&whole_paths), &wholes.path().join("out"), &PLENTY).expect("finite models merge");
        let merged = read(&wholes.path().join("out"));
        let small = Wish {
            block_bytes: Some(1),
            threads: 1,
            ..PLENTY
        };
        let least = Wish {
            memory: least_memory(&make(&paths), &small),
            ..small
        };
        for (index, wish) in [PLENTY, least].iter().enumerate() {
            let out = folder.path().join(format!("out{index}"));
            let report = run(&make(&paths), &out, wish).expect("the base is finite");
            let got = read(&out);
            for at in 0..got.values.len() {
                let wanted = if replaced(at) {
                    clean[0]["w"].values[at]
                } else {
                    merged.values[at]
                };
                assert_eq!(
                    got.values[at].to_bits(),
                    wanted.to_bits(),
                    "{method} {more}: element {at}"
                );
            }
            let flagged = |warning: &String| warning.contains("NaN or infinity");
            assert!(
                report.warnings.iter().any(flagged),
                "{method} {more}: {:?}",
                report.warnings
            );
        }
    }
}

#[test]
fn a_base_that_is_not_finite_cannot_replace_others() {
    let shape = [300, 200];
    let clean = models(&shape, Dtype::F32, 3);
    let models = [
        with(&clean[0], 50_001, f64::INFINITY),
        with(&clean[1], 3, f64::NAN),
        clean[2].clone(),
    ];
    for (method, more) in [
        ("karcher", ""),
        ("linear", ""),
        ("karcher", "granularity: row"),
        ("nuslerp", BY_COLUMNS),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &models);
        let text = based_on_first(method, &paths[..inputs_of(method)], more);
        let error =
            run(&text, &folder.path().join("out"), &PLENTY).expect_err("the base is not finite");
        assert_eq!(error.kind(), Kind::NonFinite);
        assert!(
            error.to_string().contains("model0") && error.to_string().contains("50001"),
            "{method}: {error}"
        );
    }
}

#[test]
fn columns_refuse_or_pass_on_what_is_not_finite_as_asked() {
    let clean = models(&[60, 700], Dtype::F32, 2);
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(
        &folder,
        &[clean[0].clone(), with(&clean[1], 40_000, f64::NAN)],
    );
    let error = run(
        &text("nuslerp", &paths, BY_COLUMNS),
        &folder.path().join("out"),
        &PLENTY,
    )
    .expect_err("NaN");
    assert!(
        error.to_string().contains("model1") && error.to_string().contains("index 40000"),
        "{error}"
    );
    let out = folder.path().join("passed");
    run(
        &text("nuslerp", &paths, &format!("nan: propagate\n{BY_COLUMNS}")),
        &out,
        &PLENTY,
    )
    .expect("NaN is allowed");
    let got = read(&out);
    let odd: Vec<usize> = (0..got.values.len())
        .filter(|at| !got.values[*at].is_finite())
        .collect();
    assert_eq!(odd, [40_000]);
}
