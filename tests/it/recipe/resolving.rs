//! Values of parameters against values worked out by hand.

use thalweg::recipe::{Document, Layers, MethodName, Recipe, TensorPlace};

fn first(name: &str) -> Document {
    super::good(name).documents.remove(0)
}

/// The value of a parameter for an input and a tensor of whole models with `layers` layers.
fn value(
    document: &Document,
    parameter: &str,
    input: Option<usize>,
    tensor: &str,
    layers: u32,
) -> f64 {
    let last = format!("model.layers.{}.x", layers - 1);
    let t = Layers::find([tensor, &last]).t(tensor);
    let place = TensorPlace {
        name: tensor,
        slice: 0,
        t,
    };
    document
        .parameter(parameter, input, &place)
        .expect("the recipe says what it is")
}

fn close(found: f64, wanted: f64) -> bool {
    // A few roundings of numbers of the size of one.
    (found - wanted).abs() <= 4e-16 * wanted.abs().max(1.0)
}

#[test]
fn gradients_follow_layers_and_conditions_follow_names() {
    let document = first("slerp-gradients");
    // Forty layers: t = layer / 39; five values: a piece is 39/4 layers long.
    for (tensor, wanted) in [
        ("model.layers.0.self_attn.q_proj.weight", 0.0),
        ("model.layers.39.self_attn.q_proj.weight", 1.0),
        // 4 * 13/39 = 1 + 1/3: a third of the way from 0.5 to 0.3.
        ("model.layers.13.self_attn.k_proj.weight", 0.5 - 0.2 / 3.0),
        // 4 * 26/39 = 2 + 2/3: two thirds of the way from 0.7 to 0.3.
        ("model.layers.26.mlp.up_proj.weight", 0.7 - 0.4 * 2.0 / 3.0),
        ("model.layers.0.mlp.up_proj.weight", 1.0),
        ("model.layers.7.input_layernorm.weight", 0.5),
        ("model.embed_tokens.weight", 0.5),
        ("lm_head.weight", 0.5),
    ] {
        let found = value(&document, "t", None, tensor, 40);
        assert!(
            close(found, wanted),
            "{tensor}: {found} instead of {wanted}"
        );
    }
}

#[test]
fn tensors_before_and_after_the_layers_take_the_first_value_of_a_gradient() {
    let document = first("slerp-base-not-listed");
    for (tensor, wanted) in [
        ("model.embed_tokens.weight", 0.1),
        ("model.norm.weight", 0.1),
        ("lm_head.weight", 0.1),
        ("model.layers.0.mlp.weight", 0.1),
        ("model.layers.1.mlp.weight", 0.5),
        ("model.layers.2.mlp.weight", 0.9),
    ] {
        let found = value(&document, "t", None, tensor, 3);
        assert!(
            close(found, wanted),
            "{tensor}: {found} instead of {wanted}"
        );
    }
    let found = value(&document, "t", None, "model.layers.0.mlp.weight", 1);
    assert!(close(found, 0.9), "a single layer is the last one: {found}");
}

#[test]
fn nested_conditions_are_asked_in_turn() {
    let document = first("nested-conditions");
    assert!(close(
        value(&document, "t", None, "model.layers.1.mlp.up_proj.w", 2),
        0.2
    ));
    assert!(close(
        value(&document, "t", None, "model.layers.1.mlp.down_proj.w", 2),
        0.3
    ));
    assert!(close(
        value(&document, "t", None, "model.layers.1.attn.w", 2),
        0.5
    ));
}

#[test]
fn inner_levels_win_and_what_they_leave_open_falls_through() {
    let document = first("slices-every-level");
    let get = |parameter, slice, input| {
        let place = TensorPlace {
            name: "model.layers.0.w",
            slice,
            t: 0.0,
        };
        document
            .parameter(parameter, input, &place)
            .expect("given or default")
    };
    assert_eq!(get("weight", 0, Some(0)), 0.1, "the source");
    assert_eq!(get("weight", 0, Some(1)), 0.2, "its slice");
    assert_eq!(get("weight", 1, Some(0)), 0.3, "the document");
    assert_eq!(get("weight", 0, None), 0.2, "no source asked");
    assert_eq!(
        (get("normalize", 0, None), get("normalize", 1, None)),
        (0.0, 1.0)
    );

    let document = first("modules-trivial");
    assert_eq!(value(&document, "tol", None, "w", 1), 1e-7, "the module");
    assert_eq!(
        value(&document, "max_iter", None, "w", 1),
        10.0,
        "the document"
    );
    assert_eq!(value(&document, "weight", Some(1), "w", 1), 2.0);

    // A condition of the model that does not fit leaves the word to the document.
    let document = first("task-arithmetic-conditions");
    assert!(close(
        value(&document, "weight", Some(0), "model.layers.2.mlp.w", 3),
        0.9
    ));
    assert!(close(
        value(&document, "weight", Some(0), "model.layers.2.attn.w", 3),
        0.5
    ));
    assert!(close(
        value(&document, "weight", Some(1), "model.layers.2.mlp.w", 3),
        0.5
    ));
    assert_eq!(value(&document, "lambda", None, "w", 1), 1.0, "the default");
}

#[test]
fn numbers_are_read_however_they_are_written() {
    let document = first("numbers-every-way");
    for (input, wanted) in [1.0, 1e-5, 25.0, 0.5, -1000.0].into_iter().enumerate() {
        assert_eq!(value(&document, "weight", Some(input), "w", 1), wanted);
    }
    assert_eq!(value(&document, "normalize", None, "w", 1), 0.0);
}

#[test]
fn the_base_is_an_input_and_methods_that_measure_from_it_know_which() {
    let paths = |document: &Document| -> Vec<String> {
        document
            .inputs(0)
            .iter()
            .map(|input| input.model.path.clone())
            .collect()
    };
    let listed = first("task-arithmetic");
    assert_eq!((paths(&listed).len(), listed.base_index(0)), (3, Some(0)));
    let appended = first("slerp-base-not-listed");
    assert_eq!(
        (paths(&appended), appended.base_index(0)),
        (vec!["org/b".into(), "org/a".into()], Some(1))
    );
    let counted = first("karcher-with-base-as-a-point");
    assert_eq!((paths(&counted).len(), counted.base_index(0)), (3, None));
    let without = first("nuslerp-without-base");
    assert_eq!((paths(&without).len(), without.base_index(0)), (2, None));
    let per_slice = first("slices-own-base");
    assert_eq!(
        (per_slice.base_index(0), per_slice.base_index(1)),
        (Some(0), Some(1))
    );
    let donor = first("passthrough-base-donates-tokenizer");
    assert_eq!((donor.inputs(0).len(), donor.models().len()), (1, 3));
}

#[test]
fn a_tensor_that_no_condition_fits_is_an_error_that_names_it() {
    let text =
        "merge_method: linear\nmodels: [org/a]\nparameters: {weight: {filter: mlp, value: 1}}";
    let document = Recipe::parse(text, "r")
        .expect("well formed")
        .documents
        .remove(0);
    let place = TensorPlace {
        name: "model.norm.weight",
        slice: 0,
        t: 0.0,
    };
    let error = document
        .parameter("weight", Some(0), &place)
        .expect_err("no value");
    let words = error.to_string();
    assert!(
        words.contains("r:3:")
            && words.contains("`model.norm.weight`: no condition fits it (model org/a)"),
        "{words}"
    );
    let error = document
        .parameter("colour", None, &place)
        .expect_err("no such parameter");
    assert!(
        error.to_string().contains("linear has no such parameter"),
        "{error}"
    );
    assert_eq!(document.method, MethodName::Linear);
}
