//! What cannot be averaged, and inputs that do not fit each other.

use safetensors::Dtype;
use thalweg::error::Kind;
use thalweg::kernel::CHUNK;

use super::{
    Kinship, Place, Run, assert_rounded, assert_same, only, random_models, recipe, vector,
};
use crate::support::reference::files::read_model;
use crate::support::reference::{Granularity, Model, Random, Rule, Tensor, merge};

/// A tensor of bytes that count up from `first`.
fn counting(dtype: Dtype, shape: &[usize], bytes: usize, first: u8) -> Tensor {
    Tensor::from_bytes(
        dtype,
        shape,
        (0..bytes)
            .map(|i| first.wrapping_add(i.to_le_bytes()[0]))
            .collect(),
    )
}

/// One tensor of every type that is carried, packed ones included.
fn carried(first: u8) -> Model {
    let flags = |n: usize| {
        Tensor::from_bytes(
            Dtype::BOOL,
            &[n],
            (0..n).map(|i| (i.to_le_bytes()[0] + first) & 1).collect(),
        )
    };
    let types = [
        (Dtype::I64, 8),
        (Dtype::I32, 4),
        (Dtype::I16, 2),
        (Dtype::I8, 1),
        (Dtype::U64, 8),
        (Dtype::U32, 4),
        (Dtype::U16, 2),
        (Dtype::U8, 1),
        (Dtype::F8_E8M0, 1),
        (Dtype::C64, 8),
    ];
    let mut model: Model = types
        .into_iter()
        .map(|(dtype, bytes)| {
            (
                format!("{dtype:?}"),
                counting(dtype, &[3, 7], 21 * bytes, first),
            )
        })
        .collect();
    model.insert("BOOL".into(), flags(9));
    model.insert("F4".into(), counting(Dtype::F4, &[6, 3], 9, first));
    model.insert("F6".into(), counting(Dtype::F6_E2M3, &[8], 6, first));
    model.insert("step".into(), counting(Dtype::I64, &[], 8, first));
    model.insert("none".into(), counting(Dtype::I64, &[0, 3], 0, first));
    model.insert(
        "long".into(),
        counting(Dtype::U8, &[CHUNK + 5], CHUNK + 5, first),
    );
    model
}

/// Whether a warning only says that codes are taken as they are, which the recipe asks for.
fn is_of_codes(line: &str) -> bool {
    line.contains("are taken as the numbers that they are stored as")
}

#[test]
fn what_cannot_be_averaged_is_carried_where_all_agree() {
    let place = Place::new();
    let mut models = random_models(
        &mut Random::new(600),
        &[Dtype::F32; 3],
        &[&[30]],
        Kinship::Cosine(0.5),
    );
    models.iter_mut().for_each(|model| model.extend(carried(3)));
    // Codes by their names and dtypes, which only somebody who knows better merges.
    let run = Run::karcher(&place.models(&models))
        .small_blocks()
        .with("quantised", "raw");
    for granularity in ["tensor", "row", "model"] {
        let out = place.path(granularity);
        let report = run
            .clone()
            .with("granularity", granularity)
            .merge_to(&out)
            .expect("a merge that succeeds");
        assert!(
            report.warnings.iter().all(|line| is_of_codes(line)),
            "{:?}",
            report.warnings
        );
        assert_eq!((report.tensors, report.merged), (carried(3).len() + 1, 1));
        let mut got = read_model(&out);
        got.remove("t[30]").expect("the merged tensor");
        assert_same(&got, &carried(3), granularity);
    }
    // A dtype that is asked for is that of the merged tensors only.
    let mut got = place.merged(&run.with("dtype", "float16"));
    assert_eq!(
        got.remove("t[30]").expect("the merged tensor").dtype,
        Dtype::F16
    );
    assert_same(&got, &carried(3), "another dtype");
}

#[test]
fn a_buffer_of_integers_is_carried_where_others_hold_floats_or_wider_integers() {
    let place = Place::new();
    let mut models = random_models(
        &mut Random::new(603),
        &[Dtype::F32; 3],
        &[&[30]],
        Kinship::Cosine(0.5),
    );
    let types = [(Dtype::F32, 4), (Dtype::I64, 8), (Dtype::I32, 4)];
    for (model, (dtype, bytes)) in models.iter_mut().zip(types) {
        model.insert(
            "position_ids".into(),
            counting(dtype, &[1, 6], 6 * bytes, 3),
        );
    }
    let paths = place.models(&models);
    // Base, whose the buffer is, whose are left out: the base's if it holds integers, else the
    // first integers.
    for (base, taken, left_out) in [(0, 1, [0, 2]), (1, 1, [0, 2]), (2, 2, [0, 1])] {
        for granularity in ["tensor", "model"] {
            let run = Run::karcher(&paths).with("base_model", paths[base].to_str().expect("text"));
            let run = run
                .with("granularity", granularity)
                .with("dtype", "bfloat16");
            let out = place.path(&format!("{base}{granularity}"));
            let report = run.merge_to(&out).expect("a merge that succeeds");
            assert_eq!(
                read_model(&out)["position_ids"],
                models[taken]["position_ids"],
                "base {base}"
            );
            for model in left_out {
                let said = |line: &String| {
                    line.contains(&format!("/m{model}:")) && line.contains("position_ids")
                };
                assert!(
                    report.warnings.iter().any(said),
                    "{model} is not in {:?}",
                    report.warnings
                );
            }
        }
    }
}

#[test]
fn what_differs_and_cannot_be_averaged_is_the_bases_and_said_so() {
    let place = Place::new();
    let mut models = random_models(
        &mut Random::new(601),
        &[Dtype::F32; 3],
        &[&[30]],
        Kinship::Cosine(0.5),
    );
    for (model, first) in models.iter_mut().zip([3, 4, 3]) {
        model.extend(carried(first));
    }
    let paths = place.models(&models);
    for (base, differing) in [(None, vec!["m1"]), (Some(1), vec!["m0", "m2"])] {
        let mut run = Run::karcher(&paths).with("quantised", "raw");
        if let Some(base) = base {
            run = run.with("base_model", paths[base].to_str().expect("text"));
        }
        let out = place.path(&format!("{base:?}"));
        let report = run.merge_to(&out).expect("a merge that succeeds");
        let mut got = read_model(&out);
        got.remove("t[30]").expect("the merged tensor");
        assert_same(
            &got,
            &carried(if base.is_some() { 4 } else { 3 }),
            "the base's",
        );
        let others = report
            .warnings
            .iter()
            .filter(|line| !is_of_codes(line))
            .count();
        assert_eq!(others, differing.len(), "{:?}", report.warnings);
        for model in differing {
            let warned = report
                .warnings
                .iter()
                .find(|line| line.contains(&format!("/{model} ")));
            let line = warned.unwrap_or_else(|| panic!("{model} is not in {:?}", report.warnings));
            // All but the empty tensor differ; three are named.
            assert!(line.contains("carried unchanged from the base"), "{line}");
            assert!(
                line.ends_with(&format!("and {} more tensors", carried(3).len() - 1 - 3)),
                "{line}"
            );
        }
    }
}

/// The error of merging two models, which must come before anything is written.
fn refused(first: &Model, second: &Model, policy: Option<&str>) -> thalweg::Error {
    let place = Place::new();
    let mut run =
        Run::karcher(&place.models(&[first.clone(), second.clone()])).with("quantised", "raw");
    if let Some(policy) = policy {
        run = run.with("missing", policy);
    }
    assert!(run.plan().is_err(), "refused late");
    place.refused(&run)
}

#[test]
fn neither_floats_nor_integers_meet_what_is_neither() {
    let float = only(vector(Dtype::F32, &[1.0, 2.0]));
    let integer = only(counting(Dtype::I64, &[2], 16, 0));
    let complex = only(counting(Dtype::C64, &[2], 16, 0));
    let packed = only(counting(Dtype::F8_E8M0, &[2], 2, 0));
    for (first, second) in [
        (&float, &packed),
        (&integer, &packed),
        (&complex, &integer),
        (&complex, &float),
    ] {
        let error = refused(first, second, None);
        assert_eq!(
            (error.kind(), error.exit_code()),
            (Kind::Mismatch, 1),
            "{error}"
        );
        assert!(error.to_string().contains("`w`"), "{error}");
        assert!(error.to_string().contains("dtype"), "{error}");
    }
}

#[test]
fn shapes_must_agree_and_not_only_sizes() {
    let shaped = |shape: &[usize]| {
        only(Tensor::rounded(
            Dtype::F32,
            shape,
            &vec![1.0; shape.iter().product()],
        ))
    };
    for (first, second) in [
        (&[2, 3][..], &[3, 2][..]),
        (&[6], &[2, 3]),
        (&[], &[1]),
        (&[4], &[5]),
    ] {
        let error = refused(&shaped(first), &shaped(second), None);
        let text = error.to_string();
        assert_eq!(error.kind(), Kind::Mismatch, "{text}");
        let named = text.contains("`w`")
            && text.contains(&format!("{first:?}"))
            && text.contains(&format!("{second:?}"));
        assert!(named, "{text}");
    }
}

/// Models whose tensor `extra` is in some of them only.
fn with_extra(which: &[bool]) -> Vec<Model> {
    let dtypes = vec![Dtype::F32; which.len()];
    let mut random = Random::new(602);
    let mut models = random_models(&mut random, &dtypes, &[&[30]], Kinship::Cosine(0.5));
    let extra = random_models(&mut random, &dtypes, &[&[40]], Kinship::Cosine(0.5));
    for ((model, extra), there) in models.iter_mut().zip(extra).zip(which) {
        model.extend(
            extra
                .into_values()
                .filter(|_| *there)
                .map(|tensor| ("extra".to_owned(), tensor)),
        );
    }
    models
}

#[test]
fn a_tensor_that_some_models_lack_is_an_error_that_names_it() {
    for which in [[true, false], [false, true]] {
        let models = with_extra(&which);
        let error = refused(&models[0], &models[1], None);
        assert_eq!(error.kind(), Kind::Mismatch, "{error}");
        let lacking = if which[0] { "m1" } else { "m0" };
        assert!(
            error.subject().ends_with(lacking) && error.to_string().contains("`extra`"),
            "{error}"
        );
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("missing: common")),
            "{error}"
        );
    }
}

#[test]
fn a_tensor_that_some_models_lack_can_be_merged_over_the_others() {
    let models = with_extra(&[false, true, true]);
    let place = Place::new();
    let run = Run::weighted(&place.models(&models), &[0.2, 0.5, 0.3]).with("missing", "common");
    let got = place.merged(&run);
    let rule = |weights: &[f64]| Rule::Karcher {
        weights: weights.to_vec(),
        max_iter: 60,
    };
    let having: Vec<Model> = models[1..]
        .iter()
        .map(|model| only(model["extra"].clone()))
        .collect();
    let mut wanted = merge(&models, &rule(&[0.2, 0.5, 0.3]), Granularity::Tensor);
    let extra = merge(&having, &rule(&[0.5, 0.3]), Granularity::Tensor)
        .remove("w")
        .expect("merged");
    wanted.insert("extra".into(), extra);
    assert_rounded(&got, &wanted, "common");
}

#[test]
fn a_tensor_that_one_model_alone_has_is_copied_where_that_is_allowed() {
    let models = with_extra(&[true, false, false]);
    let place = Place::new();
    let paths = place.models(&models);
    let run = Run::karcher(&paths).with("missing", "common");
    assert_eq!(place.merged(&run)["extra"], models[0]["extra"]);
    // A linear merge of one input is that input too, so far as the weights are divided by their
    // sum.
    let linear =
        Run::new(recipe("linear", &paths, Some(&[0.25, 0.5, 0.25]))).with("missing", "common");
    assert_eq!(place.merged(&linear)["extra"], models[0]["extra"]);
}

#[test]
fn a_tensor_that_some_models_lack_can_be_taken_from_the_base() {
    for (which, there) in [([true, false, true], true), ([false, true, true], false)] {
        let models = with_extra(&which);
        let place = Place::new();
        let paths = place.models(&models);
        let base = paths[0].to_str().expect("text");
        let got = place.merged(
            &Run::karcher(&paths)
                .with("base_model", base)
                .with("missing", "base"),
        );
        assert_eq!(got.get("extra"), there.then(|| &models[0]["extra"]));
        assert_eq!(got.len(), 1 + usize::from(there));
    }
}

#[test]
fn models_without_a_tensor_in_common_are_refused() {
    let first = only(vector(Dtype::F32, &[1.0]));
    let second = Model::from([("v".to_owned(), vector(Dtype::F32, &[1.0]))]);
    assert_eq!(refused(&first, &second, None).kind(), Kind::Mismatch);
}
