//! Tensors whose shapes differ between the inputs.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use tempfile::TempDir;
use thalweg::Kind;
use thalweg::plan::memory::Wish;
use thalweg::plan::schedule::Role;

use crate::support::reference::{
    self, Granularity, Model, Random, Rule, Tensor, distance, files, norm,
};
use crate::support::whole::{PLENTY, carry_out, least_memory, plan, recipe, run};

/// The iteration ends below a step of 1e-12 radians, and what is then left of it is of that size.
const TOLERANCE: f64 = 3e-12;

fn tensor(random: &mut Random, shape: &[usize]) -> Tensor {
    Tensor::rounded(Dtype::F64, shape, &random.gaussian(shape.iter().product()))
}

fn model(seed: u64, tensors: &[(&str, &[usize])]) -> Model {
    let mut random = Random::new(seed);
    tensors
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), tensor(&mut random, shape)))
        .collect()
}

/// Writes `models` as folders `0`, `1` … and returns their paths.
fn write(folder: &TempDir, models: &[Model]) -> Vec<std::path::PathBuf> {
    let path = |index: usize| folder.path().join(index.to_string());
    models
        .iter()
        .enumerate()
        .for_each(|(index, model)| files::write_model(&path(index), model, 1));
    (0..models.len()).map(path).collect()
}

fn merged(paths: &[std::path::PathBuf], method: &str, more: &str, out: &Path) -> Model {
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    run(&recipe(method, &paths, more), out, &PLENTY).expect("they can be merged");
    files::read_model(&out.join("model.safetensors"))
}

/// `tensor` element by element in a bigger or smaller shape of the same rank, zeros where it has
/// nothing.
fn reshaped(tensor: &Tensor, shape: &[usize]) -> Tensor {
    let mut values = Vec::new();
    'elements: for mut index in 0..shape.iter().product::<usize>() {
        let (mut at, mut stride) = (0, 1);
        for (own, wide) in tensor.shape.iter().zip(shape).rev() {
            if index % wide >= *own {
                values.push(0.0);
                continue 'elements;
            }
            at += index % wide * stride;
            stride *= own;
            index /= wide;
        }
        values.push(tensor.values[at]);
    }
    Tensor::rounded(tensor.dtype, shape, &values)
}

fn assert_merged(
    out: &Model,
    models: &[Model],
    shapes: &[(&str, &[usize])],
    granularity: Granularity,
) {
    let alike = |model: &Model| -> Model {
        shapes
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), reshaped(&model[*name], shape)))
            .collect()
    };
    let alike: Vec<Model> = models.iter().map(alike).collect();
    let rule = Rule::Karcher {
        weights: vec![1.0; models.len()],
        max_iter: 1000,
    };
    let wanted = reference::merge(&alike, &rule, granularity);
    for (name, shape) in shapes {
        assert_eq!(out[*name].shape, *shape, "{name}");
        let (got, wanted) = (&out[*name].values, &wanted[*name]);
        let error = distance(got, wanted);
        assert!(error <= TOLERANCE * norm(wanted), "{name}: off by {error}");
    }
}

#[test]
fn padding_merges_as_if_the_smaller_tensors_had_been_filled_up_with_zeros() {
    let models = [
        model(
            1,
            &[
                ("a", &[7, 5]),
                ("b", &[4]),
                ("c", &[2, 3, 4]),
                ("d", &[6, 2]),
                ("s", &[]),
            ],
        ),
        model(
            2,
            &[
                ("a", &[5, 9]),
                ("b", &[6]),
                ("c", &[2, 5, 4]),
                ("d", &[6, 2]),
                ("s", &[]),
            ],
        ),
        model(
            3,
            &[
                ("a", &[7, 5]),
                ("b", &[6]),
                ("c", &[2, 3, 2]),
                ("d", &[6, 2]),
                ("s", &[]),
            ],
        ),
    ];
    let shapes: [(&str, &[usize]); 5] = [
        ("a", &[7, 9]),
        ("b", &[6]),
        ("c", &[2, 5, 4]),
        ("d", &[6, 2]),
        ("s", &[]),
    ];
    for (name, granularity) in [
        ("tensor", Granularity::Tensor),
        ("row", Granularity::Row),
        ("model", Granularity::Model),
    ] {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &models);
        let out = folder.path().join("out");
        let out = merged(
            &paths,
            "karcher",
            &format!("mismatch: pad\ngranularity: {name}"),
            &out,
        );
        assert_merged(&out, &models, &shapes, granularity);
    }
}

#[test]
fn any_axis_of_a_tensor_of_any_rank_is_filled_up_or_cut() {
    let models = [
        model(
            1,
            &[
                ("conv", &[6, 9, 3, 3]),
                ("a", &[7, 5]),
                ("cube", &[3, 4, 5]),
                ("b", &[4]),
            ],
        ),
        model(
            2,
            &[
                ("conv", &[6, 4, 3, 3]),
                ("a", &[9, 3]),
                ("cube", &[5, 4, 2]),
                ("b", &[9]),
            ],
        ),
        model(
            3,
            &[
                ("conv", &[5, 4, 1, 3]),
                ("a", &[7, 5]),
                ("cube", &[4, 3, 3]),
                ("b", &[5]),
            ],
        ),
    ];
    let padded: [(&str, &[usize]); 4] = [
        ("conv", &[6, 9, 3, 3]),
        ("a", &[9, 5]),
        ("cube", &[5, 4, 5]),
        ("b", &[9]),
    ];
    let cropped: [(&str, &[usize]); 4] = [
        ("conv", &[5, 4, 1, 3]),
        ("a", &[7, 3]),
        ("cube", &[3, 3, 2]),
        ("b", &[4]),
    ];
    for (policy, shapes, said) in [
        ("pad", padded, "filled up with zeros"),
        ("crop", cropped, "cut to what all have"),
    ] {
        for (name, granularity) in [("tensor", Granularity::Tensor), ("row", Granularity::Row)] {
            let folder = TempDir::new().expect("a temporary folder");
            let paths = write(&folder, &models);
            let out = folder.path().join("out");
            let out = merged(
                &paths,
                "karcher",
                &format!("mismatch: {policy}\ngranularity: {name}"),
                &out,
            );
            assert_merged(&out, &models, &shapes, granularity);
            let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
            let plan = plan(
                &recipe("karcher", &paths, &format!("mismatch: {policy}")),
                &PLENTY,
            )
            .expect("a plan");
            let warned = plan
                .warnings
                .iter()
                .any(|line| line.contains(said) && line.ends_with("and 1 more tensors"));
            assert!(warned, "{:?}", plan.warnings);
        }
    }
}

/// Every element of `tensor` where it has one, those of `under` elsewhere.
fn over(tensor: &Tensor, under: &Tensor) -> Tensor {
    let ones = Tensor::rounded(Dtype::F64, &tensor.shape, &vec![1.0; tensor.values.len()]);
    let (mine, own) = (
        reshaped(&ones, &under.shape),
        reshaped(tensor, &under.shape),
    );
    let choose = |at: usize| {
        if mine.values[at] == 1.0 {
            own.values[at]
        } else {
            under.values[at]
        }
    };
    let values: Vec<f64> = (0..under.values.len()).map(choose).collect();
    Tensor::rounded(Dtype::F64, &under.shape, &values)
}

#[test]
fn methods_that_measure_from_a_base_fill_smaller_models_up_with_it() {
    let rules: [(&str, Rule); 4] = [
        (
            "task_arithmetic",
            Rule::TaskArithmetic {
                base: 0,
                weights: vec![1.0; 3],
                normalize: false,
                lambda: 1.0,
            },
        ),
        (
            "nuslerp",
            Rule::Nuslerp {
                weights: vec![1.0; 3],
                base: Some(0),
            },
        ),
        (
            "multislerp",
            Rule::Multislerp {
                weights: vec![1.0; 3],
                normalize: true,
                eps: 1e-8,
                base: Some(0),
            },
        ),
        ("model_stock", Rule::ModelStock { base: 0 }),
    ];
    // The base has all that there is, or less than the models.
    let shapes: [[&[usize]; 3]; 2] = [
        [&[6, 5, 2], &[6, 3, 2], &[4, 5, 2]],
        [&[4, 3, 2], &[6, 3, 2], &[4, 5, 2]],
    ];
    for (method, rule) in &rules {
        for shapes in shapes {
            // Types of which none holds the others' elements, but for the widest.
            let mut random = Random::new(5);
            let mut of = |dtype, shape: &[usize]| {
                let tensor =
                    Tensor::rounded(dtype, shape, &random.gaussian(shape.iter().product()));
                Model::from([("a".to_owned(), tensor)])
            };
            let models = [
                of(Dtype::F16, shapes[0]),
                of(Dtype::BF16, shapes[1]),
                of(Dtype::F32, shapes[2]),
            ];
            let folder = TempDir::new().expect("a temporary folder");
            let paths = write(&folder, &models);
            let granularity = if *method == "nuslerp" {
                "parameters: {nuslerp_flatten: true}\n"
            } else {
                ""
            };
            let more = format!(
                "base_model: {}\nmismatch: pad\ndtype: float64\n{granularity}",
                paths[0].display()
            );
            let text = recipe(
                method,
                &paths.iter().map(|path| &**path).collect::<Vec<&Path>>(),
                &more,
            );
            // Model stock has no weights.
            let text = if *method == "model_stock" {
                text.replace("    parameters: {weight: 1}\n", "")
            } else {
                text
            };
            run(&text, &folder.path().join("out"), &PLENTY).expect("they can be merged");
            let out = files::read_model(&folder.path().join("out/model.safetensors"));
            let base = reshaped(&models[0]["a"], &[6, 5, 2]);
            let alike: Vec<Model> = models
                .iter()
                .map(|model| Model::from([("a".to_owned(), over(&model["a"], &base))]))
                .collect();
            let wanted = reference::merge(&alike, rule, Granularity::Tensor)
                .remove("a")
                .expect("merged");
            assert_eq!(out["a"].shape, [6, 5, 2]);
            let error = distance(&out["a"].values, &wanted);
            assert!(
                error <= 1e-11 * norm(&wanted),
                "{method} {shapes:?}: off by {error}"
            );
        }
    }
}

#[test]
fn a_base_that_is_filled_up_or_fills_others_up_is_said_to_be() {
    let shapes: [[&[usize]; 2]; 2] = [[&[6, 5], &[4, 5]], [&[4, 5], &[6, 5]]];
    for (shapes, said) in shapes
        .into_iter()
        .zip(["with the base's elements", "the base is smaller"])
    {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &shapes.map(|shape| model(1, &[("a", shape)])));
        let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
        let more = format!("base_model: {}\nmismatch: pad", paths[0].display());
        let warnings = plan(&recipe("task_arithmetic", &paths, &more), &PLENTY)
            .expect("a plan")
            .warnings;
        assert!(
            warnings.len() == 1 && warnings[0].contains(said) && warnings[0].ends_with(": a"),
            "{warnings:?}"
        );
    }
}

#[test]
fn cropping_takes_the_rows_that_all_have() {
    let models = [
        model(1, &[("a", &[7, 5]), ("b", &[4])]),
        model(2, &[("a", &[6, 5]), ("b", &[9])]),
    ];
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models);
    let out = merged(
        &paths,
        "karcher",
        "mismatch: crop",
        &folder.path().join("out"),
    );
    assert_merged(
        &out,
        &models,
        &[("a", &[6, 5]), ("b", &[4])],
        Granularity::Tensor,
    );
}

#[test]
fn skipping_copies_the_base_and_says_what_was_dropped() {
    let mut models = [
        model(1, &[("a", &[7, 5]), ("b", &[4])]),
        model(2, &[("a", &[6, 5]), ("b", &[4])]),
    ];
    let ids = |count: u8| {
        Tensor::from_bytes(
            Dtype::I64,
            &[usize::from(count)],
            vec![count; usize::from(count) * 8],
        )
    };
    models[0].insert("ids".into(), ids(2));
    models[1].insert("ids".into(), ids(3));
    for policy in ["skip", "pad", "crop"] {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &models);
        let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
        let more = format!("base_model: {}\nmismatch: {policy}", paths[1].display());
        let text = recipe("karcher", &paths, &more);
        let dropped = plan(&text, &PLENTY).expect("a plan").dropped;
        let mut names: Vec<_> = dropped
            .iter()
            .map(|dropped| (dropped.input, dropped.name.as_str()))
            .collect();
        names.sort_unstable();
        let out = folder.path().join("out");
        let report = run(&text, &out, &PLENTY).expect("they can be merged");
        let out = files::read_model(&out.join("model.safetensors"));
        assert_eq!(
            out["ids"], models[1]["ids"],
            "{policy}: what is not averaged is the base's"
        );
        if policy == "skip" {
            assert_eq!(names, [(0, "a"), (0, "ids")]);
            assert_eq!(out["a"], models[1]["a"]);
        } else {
            assert_eq!(names, [(0, "ids")]);
        }
        let said = |warning: &String| warning.contains("shape differs") && warning.contains("ids");
        assert!(report.warnings.iter().any(said), "{:?}", report.warnings);
        assert_merged(&out, &models, &[("b", &[4])], Granularity::Tensor);
    }
}

#[test]
fn mismatches_are_listed_with_both_shapes_and_counted() {
    let names: Vec<String> = (0..8).map(|index| format!("t{index}")).collect();
    let all = |rows: usize| -> Model {
        let mut random = Random::new(1);
        names
            .iter()
            .map(|name| (name.clone(), tensor(&mut random, &[rows, 3])))
            .collect()
    };
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &[all(4), all(5)]);
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let error = plan(&recipe("karcher", &paths, ""), &PLENTY)
        .err()
        .expect("shapes differ");
    assert_eq!(error.kind(), Kind::Mismatch);
    let text = error.to_string();
    for name in &names[..5] {
        assert!(text.contains(&format!("`{name}` is [4, 3] in ")), "{text}");
    }
    assert!(
        text.contains("[5, 3]") && text.contains("and 3 more tensors") && !text.contains("`t5`"),
        "{text}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("mismatch: pad"))
    );
}

#[test]
fn shapes_that_a_policy_cannot_bring_together_are_refused_and_not_sent_there() {
    type Shape<'a> = &'a [usize];
    let cases: [(&str, Shape<'_>, Shape<'_>); 4] = [
        ("pad", &[4], &[4, 1]),
        ("crop", &[4, 3], &[4]),
        ("crop", &[12], &[3, 4]),
        ("error", &[4], &[4, 1]),
    ];
    for (policy, one, two) in cases {
        let folder = TempDir::new().expect("a temporary folder");
        let paths = write(&folder, &[model(1, &[("a", one)]), model(2, &[("a", two)])]);
        let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
        let more = |policy: &str| format!("base_model: {}\nmismatch: {policy}", paths[0].display());
        let text = |policy: &str| recipe("karcher", &paths, &more(policy));
        let error = plan(&text(policy), &PLENTY).err().expect("refused");
        assert_eq!(error.kind(), Kind::Mismatch, "{policy} {one:?} {two:?}");
        let hint = error.hint().expect("says what to do");
        assert!(
            hint.contains("mismatch: skip") && !hint.contains("pad") && !hint.contains("crop"),
            "{hint}"
        );
        plan(&text("skip"), &PLENTY).expect("what it recommends");
    }
}

#[test]
fn output_of_cut_and_filled_up_axes_does_not_depend_on_blocks_and_memory() {
    let shapes: [&[usize]; 3] = [&[700, 31, 9], &[650, 33, 4], &[700, 20, 9]];
    let models: Vec<Model> = (1..)
        .zip(shapes)
        .map(|(seed, shape)| model(seed, &[("a", shape)]))
        .collect();
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models);
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    for (index, (method, policy)) in [
        ("karcher", "pad"),
        ("karcher", "crop"),
        ("task_arithmetic", "pad"),
    ]
    .into_iter()
    .enumerate()
    {
        let text = recipe(
            method,
            &paths,
            &format!("base_model: {}\nmismatch: {policy}", paths[0].display()),
        );
        let small = Wish {
            block_bytes: Some(1),
            threads: 1,
            ..PLENTY
        };
        let least = Wish {
            memory: least_memory(&text, &small),
            ..small
        };
        let bytes = [
            PLENTY,
            Wish {
                threads: 3,
                block_bytes: Some(1),
                ..PLENTY
            },
            least,
        ]
        .map(|wish| {
            let out = folder
                .path()
                .join(format!("out{index}-{}-{}", wish.memory, wish.threads));
            carry_out(plan(&text, &wish).expect("a plan"), &out).expect("they can be merged");
            fs::read(out.join("model.safetensors")).expect("the output")
        });
        assert!(
            bytes.iter().all(|other| *other == bytes[0]),
            "{method} {policy}"
        );
    }
}

#[test]
fn padded_output_does_not_depend_on_blocks_and_memory() {
    let models = [
        model(1, &[("a", &[700, 301])]),
        model(2, &[("a", &[650, 333])]),
    ];
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models);
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let text = recipe("karcher", &paths, "mismatch: pad");
    let small = Wish {
        block_bytes: Some(1),
        threads: 1,
        ..PLENTY
    };
    let least = Wish {
        memory: least_memory(&text, &small),
        ..small
    };
    let mut bytes = Vec::new();
    let mut roles = Vec::new();
    for (index, wish) in [
        PLENTY,
        Wish {
            threads: 3,
            block_bytes: Some(1),
            ..PLENTY
        },
        least,
    ]
    .iter()
    .enumerate()
    {
        let out = folder.path().join(format!("out{index}"));
        let plan = plan(&text, wish).expect("a plan");
        roles.extend(plan.schedule(&[0], false).map(|block| block.role));
        carry_out(plan, &out).expect("they can be merged");
        bytes.push(fs::read(out.join("model.safetensors")).expect("the output"));
    }
    assert!(bytes.iter().all(|other| *other == bytes[0]));
    assert!(roles.contains(&Role::Whole) && roles.contains(&Role::Apply));
    let is_kept = |role: &Role| {
        matches!(
            role,
            Role::Measure {
                keep: true,
                last: true,
                ..
            }
        )
    };
    assert!(roles.iter().any(is_kept));
    let out = files::read_model(&folder.path().join("out0/model.safetensors"));
    assert_merged(&out, &models, &[("a", &[700, 333])], Granularity::Tensor);
}

#[test]
fn embeddings_are_filled_up_and_the_config_learns_of_it() {
    let names: [(&str, &[usize]); 4] = [
        ("model.embed_tokens.weight", &[10, 4]),
        ("model.layers.0.mlp.weight", &[10, 4]),
        ("lm_head.weight", &[10, 4]),
        ("lm_head.bias", &[10]),
    ];
    let models = [model(1, &names), model(2, &names)];
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models);
    for path in &paths {
        fs::write(path.join("config.json"), "{\"vocab_size\": 10}").expect("a config");
    }
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let text = recipe("karcher", &paths, "pad_to_multiple_of: 8");
    let planned = plan(&text, &PLENTY).expect("a plan");
    assert_eq!(planned.vocab_rows(), Some(16));
    let out = folder.path().join("out");
    carry_out(planned, &out).expect("they can be merged");
    let shapes: [(&str, &[usize]); 4] = [
        ("model.embed_tokens.weight", &[16, 4]),
        ("model.layers.0.mlp.weight", &[10, 4]),
        ("lm_head.weight", &[16, 4]),
        ("lm_head.bias", &[16]),
    ];
    assert_merged(
        &files::read_model(&out.join("model.safetensors")),
        &models,
        &shapes,
        Granularity::Tensor,
    );
    assert_eq!(
        plan(&recipe("karcher", &paths, "pad_to_multiple_of: 5"), &PLENTY)
            .expect("a plan")
            .vocab_rows(),
        None
    );
}

#[test]
fn cropped_embeddings_do_not_bring_back_rows_when_they_are_filled_up() {
    let models = [
        model(1, &[("wte.weight", &[10, 3])]),
        model(2, &[("wte.weight", &[13, 3])]),
    ];
    let folder = TempDir::new().expect("a temporary folder");
    let paths = write(&folder, &models);
    let out = merged(
        &paths,
        "karcher",
        "mismatch: crop\npad_to_multiple_of: 4",
        &folder.path().join("out"),
    );
    let cropped: Vec<Model> = models
        .iter()
        .map(|model| {
            Model::from([(
                "wte.weight".to_owned(),
                reshaped(&model["wte.weight"], &[10, 3]),
            )])
        })
        .collect();
    assert_merged(
        &out,
        &cropped,
        &[("wte.weight", &[12, 3])],
        Granularity::Tensor,
    );
}
