//! Slices: which tensors the stacked model has, and from where.

use thalweg::recipe::{Recipe, StackedTensor, stacked_tensors};

/// The tensors of a small decoder with `count` layers.
fn names(count: u32) -> Vec<String> {
    let mut names: Vec<String> = [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
    ]
    .map(str::to_owned)
    .to_vec();
    for layer in 0..count {
        for rest in [
            "mlp.experts.0.w1",
            "mlp.experts.1.w1",
            "self_attn.q_proj.weight",
        ] {
            names.push(format!("model.layers.{layer}.{rest}"));
        }
    }
    names
}

fn stack(text: &str, models: &[Vec<String>]) -> thalweg::Result<Vec<StackedTensor>> {
    let recipe = Recipe::parse(text, "r").expect("well formed");
    let names: Vec<Vec<&str>> = models
        .iter()
        .map(|names| names.iter().map(String::as_str).collect())
        .collect();
    stacked_tensors(&recipe.documents[0], &names)
}

fn refusal(text: &str, models: &[Vec<String>]) -> String {
    stack(text, models)
        .expect_err("cannot be stacked")
        .to_string()
}

const TWO: &str = "
merge_method: passthrough
slices:
  - sources: [{model: org/a, layer_range: [0, 3]}]
  - sources: [{model: org/b, layer_range: [1, 2]}]
";

#[test]
fn layers_are_renumbered_and_everything_else_comes_once() {
    let tensors = stack(TWO, &[names(4), names(2)]).expect("both have their layers");
    let find = |name: &str| {
        tensors
            .iter()
            .find(|tensor| tensor.name == name)
            .expect("is there")
    };
    let source = |name: &str| {
        let tensor = find(name);
        (
            tensor.sources.len(),
            tensor.sources[0].model,
            tensor.sources[0].name.as_str(),
            tensor.slice,
            tensor.t,
        )
    };
    assert_eq!(tensors.len(), 3 + 4 * 3);
    let q = "self_attn.q_proj.weight";
    assert_eq!(
        source(&format!("model.layers.0.{q}")),
        (1, 0, &*format!("model.layers.0.{q}"), 0, 0.0)
    );
    assert_eq!(
        source(&format!("model.layers.1.{q}")),
        (1, 0, &*format!("model.layers.1.{q}"), 0, 0.5)
    );
    assert_eq!(
        source(&format!("model.layers.2.{q}")),
        (1, 0, &*format!("model.layers.2.{q}"), 0, 1.0)
    );
    assert_eq!(
        source(&format!("model.layers.3.{q}")),
        (1, 1, &*format!("model.layers.1.{q}"), 1, 1.0)
    );
    let expert = "mlp.experts.1.w1";
    assert_eq!(
        source(&format!("model.layers.3.{expert}")),
        (1, 1, &*format!("model.layers.1.{expert}"), 1, 1.0)
    );
    assert_eq!(
        source("model.embed_tokens.weight"),
        (1, 0, "model.embed_tokens.weight", 0, 0.0)
    );
    assert_eq!(
        source("model.norm.weight"),
        (1, 1, "model.norm.weight", 1, 0.0)
    );
    assert_eq!(source("lm_head.weight"), (1, 1, "lm_head.weight", 1, 0.0));
    let mut unique: Vec<_> = tensors.iter().map(|tensor| &tensor.name).collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), tensors.len());
}

#[test]
fn a_slice_without_ranges_takes_all_layers_of_all_its_sources() {
    let text = "{merge_method: linear, parameters: {weight: 1}, slices: [{sources: [{model: a}, {model: b}]}]}";
    let mut odd = names(2);
    odd.push("model.layers.1.self_attn.q_norm.weight".into());
    let tensors = stack(text, &[names(2), odd]).expect("as many layers");
    assert_eq!(tensors.len(), 3 + 2 * 3 + 1);
    let extra = tensors
        .iter()
        .find(|tensor| tensor.name.contains("q_norm"))
        .expect("what one source has is kept");
    assert_eq!(
        extra
            .sources
            .iter()
            .map(|source| source.model)
            .collect::<Vec<_>>(),
        [0, 1]
    );
    let message = refusal(text, &[names(2), names(3)]);
    assert!(
        message.contains("b: slice 0 takes 3 layers of it, but 2 of a"),
        "{message}"
    );
}

#[test]
fn layers_that_are_not_there_are_named() {
    let message = refusal(TWO, &[names(2), names(2)]);
    assert!(
        message.contains("org/a: slice 0 asks for layers [0, 3], the model has 2"),
        "{message}"
    );
    let mut gap = names(4);
    gap.retain(|name| !name.contains("layers.1."));
    let message = refusal(TWO, &[gap, names(2)]);
    assert!(
        message.contains("org/a: slice 0 asks for layer 1, which has no tensors"),
        "{message}"
    );
}

#[test]
fn models_without_one_stack_of_the_same_name_cannot_be_sliced() {
    let flat = vec!["embed.weight".to_owned(), "head.weight".to_owned()];
    assert!(refusal(TWO, &[flat, names(2)]).contains("org/a: has no layers to slice"));
    let mut two: Vec<String> = names(3);
    two.extend((0..2).map(|layer| format!("vision.blocks.{layer}.w")));
    let message = refusal(TWO, &[two, names(2)]);
    assert!(
        message.contains("several stacks of layers (model.layers., vision.blocks.)"),
        "{message}"
    );
    let other = (0..2)
        .map(|layer| format!("transformer.h.{layer}.w"))
        .collect();
    let message = refusal(TWO, &[names(3), other]);
    assert!(
        message.contains("org/b: calls its layers transformer.h., org/a calls them model.layers."),
        "{message}"
    );
}

#[test]
fn a_lying_layer_number_costs_nothing() {
    let mut names = names(2);
    names.push("model.layers.4294967295.w".into());
    let text = "{merge_method: passthrough, slices: [{sources: [{model: a}]}]}";
    let message = refusal(text, &[names]);
    assert!(
        message.contains("asks for layer 2, which has no tensors"),
        "{message}"
    );
}

#[test]
fn names_of_too_few_models_are_refused() {
    let message = refusal(TWO, &[names(3)]);
    assert!(
        message.contains("names of 1 models, the recipe has 2"),
        "{message}"
    );
}

#[test]
fn whole_models_are_not_stacked() {
    let tensors =
        stack("{merge_method: karcher, models: [a]}", &[names(2)]).expect("nothing to do");
    assert_eq!(tensors, []);
}
