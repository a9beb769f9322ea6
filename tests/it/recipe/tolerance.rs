//! What recipes for mergekit hold beside what they need: read past as mergekit does, with a
//! warning, or refused by name.

use std::fmt::Write as _;

use thalweg::recipe::{LayerRange, Reading, Recipe, Sources};

use super::{corpus, good, model, stem, text_of};

#[test]
fn keys_that_mergekit_reads_past_are_warnings_with_their_place() {
    let mut all = String::new();
    for path in corpus("tolerated") {
        let name = format!("{}.yml", stem(&path));
        let recipe =
            Recipe::parse(&text_of(&path), &name).unwrap_or_else(|error| panic!("{error}"));
        let warnings = recipe.warnings_of(&recipe.documents[0]);
        assert!(!warnings.is_empty(), "{name}");
        assert!(
            warnings
                .iter()
                .all(|warning| warning.starts_with(&format!("{name}:"))),
            "{warnings:?}"
        );
        writeln!(all, "{}\n", warnings.join("\n")).expect("strings take everything");
    }
    insta::assert_snapshot!("tolerated_recipes", all);
}

#[test]
fn a_recipe_without_such_keys_has_no_warnings() {
    for path in corpus("good") {
        let recipe = Recipe::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let warnings: Vec<&String> = recipe
            .warnings
            .iter()
            .flatten()
            .filter(|text| !text.contains("residual_weight"))
            .collect();
        assert!(warnings.is_empty(), "{}: {warnings:?}", path.display());
    }
}

#[test]
fn a_key_that_nobody_knows_is_an_error_and_a_warning_when_leniency_is_asked_for() {
    let text = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1, wieght: 2}\ntemprature: 1\n";
    let error = Recipe::parse(text, "r").expect_err("a misspelt weight must not pass");
    // In the order of the text, not of the reading.
    assert!(
        error.to_string().contains("did you mean `weight`?"),
        "{error}"
    );
    assert!(
        error.others()[0]
            .to_string()
            .contains("unknown key `temprature`"),
        "{error:?}"
    );
    let recipe = Recipe::parse_as(text, "r", Reading::Lenient).expect("lenient");
    assert_eq!(recipe.warnings[0].len(), 2, "{:?}", recipe.warnings);
    assert!(
        recipe.warnings[0]
            .iter()
            .all(|warning| warning.contains("is not known and has no effect"))
    );
    // What would mean something else stays refused.
    for text in [
        "merge_method: linear\nmodels: [a]\ntokenizer_source: union\n",
        "merge_method: ties\nmodels: [a]\n",
    ] {
        assert!(
            Recipe::parse_as(text, "r", Reading::Lenient).is_err(),
            "{text}"
        );
    }
}

#[test]
fn the_last_of_equal_keys_counts() {
    let text = "merge_method: karcher\nmodels: [a, b]\ndtype: float32\nnan: base\ndtype: bfloat16\nnan: propagate\n";
    let recipe = Recipe::parse(text, "r").expect("as PyYAML reads it");
    assert_eq!(recipe.documents[0].dtype, Some(thalweg::dtype::Dtype::BF16));
    let warnings = [
        "r:3:1: `dtype` is given again in line 5; the last one counts",
        "r:4:1: `nan` is given again in line 6; the last one counts",
    ];
    assert_eq!(recipe.warnings, [warnings]);
    // Merge keys override nothing twice.
    let text = "merge_method: karcher\nmodels: [&a {model: x, parameters: {weight: 1}}, {<<: *a, model: z}]\n";
    assert_eq!(
        Recipe::parse(text, "r").expect("merged").warnings,
        [[""; 0]]
    );
}

#[test]
fn every_fault_is_told_in_one_run() {
    let fault = |name: &str| {
        let path = corpus("bad")
            .into_iter()
            .find(|path| stem(path) == name)
            .expect("named in the corpus");
        Recipe::read(&path).expect_err("bad")
    };
    let error = fault("every-fault-at-once");
    let all: Vec<String> = [&error]
        .into_iter()
        .chain(error.others())
        .map(ToString::to_string)
        .collect();
    let all = all.join("\n");
    for words in [
        "unknown key `temperature`",
        "`karchr`, did you mean `karcher`",
        "must be named by text",
        "LoRA adapter `org/adapter`",
        "needs the key `model`",
        "`granularity` must be one of",
        "`threads` must be",
        "`dtype` must be",
        "`union` needs",
        "a model must be named by text, found a list",
    ] {
        assert!(all.contains(words), "wanted {words:?} in {all}");
    }
    assert_eq!(fault("every-fault-of-parameters").others().len(), 4);
    // One fault of a stage does not hide those of another.
    let text =
        "name: x\nmerge_method: linea\nmodels: [a]\n---\nmerge_method: karche\nmodels: [x]\n";
    assert_eq!(Recipe::parse(text, "r").expect_err("two").others().len(), 1);
}

#[test]
fn whole_floats_are_layer_numbers_and_broken_ones_are_not() {
    let text = |range: &str| {
        format!(
            "merge_method: passthrough\nslices:\n  - sources: [{{model: a, layer_range: {range}}}]\n"
        )
    };
    let recipe = Recipe::parse(&text("[0.0, 3.0]"), "r").expect("as mergekit reads them");
    let Sources::Slices(slices) = &recipe.documents[0].sources else {
        panic!("slices were given")
    };
    assert_eq!(
        slices[0].sources[0].layer_range,
        Some(LayerRange { start: 0, end: 3 })
    );
    for range in [
        "[0.5, 3]",
        "[0, .inf]",
        "[0, .nan]",
        "[-1.0, 3]",
        "[0, 1e300]",
    ] {
        assert!(Recipe::parse(&text(range), "r").is_err(), "{range}");
    }
}

#[test]
fn the_last_merge_may_have_any_name_and_stages_may_be_called_as_on_the_hub() {
    let recipe = Recipe::parse(
        "name: org/x\nmerge_method: karcher\nmodels: [org/x, b]\n",
        "r",
    )
    .expect("as in mergekit");
    assert_eq!(recipe.stage(&model("org/x", None)), None);
    let text = "name: org/x\nmerge_method: karcher\nmodels: [a, b]\n---\nname: \"my merge!\"\nmerge_method: karcher\nmodels: [org/x]\n";
    let recipe = Recipe::parse(text, "r").expect("a stage");
    assert_eq!(recipe.stage(&model("org/x", None)), Some(0));
    for name in ["../x", "a/../b", "/a", "a/b/c", "a/"] {
        assert!(
            Recipe::parse(
                &text.replacen("name: org/x", &format!("name: {name}"), 1),
                "r"
            )
            .is_err(),
            "{name}"
        );
    }
}

#[test]
fn models_may_be_written_as_mergekit_writes_them_out() {
    let document = good("references-in-full").documents.remove(0);
    let expected = [
        model("org/a", None),
        model("org/b", Some("main")),
        model("org/c", Some("v1")),
        model("org/d", Some("v2")),
    ];
    assert_eq!(document.models(), expected.iter().collect::<Vec<_>>());
}
