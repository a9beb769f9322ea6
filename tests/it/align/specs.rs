//! Specs that do not fit their models, and what is said about them.

use serde_json::json;
use thalweg::symmetry::{Spec, Symmetries};

use super::{Stored, symmetries};
use crate::support::forward::{Chain, Experts, Family, Llama, Net, Random, ResNet};

fn refused(net: &Net, spec: Option<&str>) -> String {
    let dir = tempfile::TempDir::new().expect("a folder");
    net.write(dir.path());
    let spec = spec.map(|text| Spec::parse(text, "own.yml").expect("a spec"));
    let error = symmetries(dir.path(), spec.as_ref()).expect_err("refused");
    format!("{error} {}", error.hint().unwrap_or_default())
}

fn llama() -> Llama {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
}

fn units(symmetries: &Symmetries, name: &str) -> (usize, usize) {
    let group = &symmetries.groups[symmetries
        .group(name)
        .unwrap_or_else(|| panic!("no group {name}"))];
    (group.copies, group.units)
}

#[test]
fn a_llama_has_the_groups_that_its_config_says() {
    let stored = Stored::new(&llama().random(1), None);
    let symmetries = &*stored.symmetries;
    assert_eq!(units(symmetries, "residual"), (1, 12));
    assert_eq!(units(symmetries, "layers.1.kv"), (1, 3));
    assert_eq!(units(symmetries, "layers.1.queries"), (3, 2));
    assert_eq!(units(symmetries, "layers.1.rope"), (3, 8));
    assert_eq!(units(symmetries, "layers.1.value"), (3, 8));
    assert_eq!(units(symmetries, "layers.1.mlp"), (1, 10));
    assert_eq!(
        symmetries.group("layers.1.key"),
        None,
        "nothing is left over by the rotary embeddings"
    );
    let mlp = symmetries.group("layers.0.mlp").expect("there");
    let acting: Vec<(&str, usize)> = symmetries.acting(mlp).collect();
    let at = |name: &'static str, axis| (name, axis);
    assert_eq!(acting.len(), 3);
    for place in [
        at("model.layers.0.mlp.gate_proj.weight", 0),
        at("model.layers.0.mlp.up_proj.weight", 0),
        at("model.layers.0.mlp.down_proj.weight", 1),
    ] {
        assert!(acting.contains(&place), "{place:?}");
    }
}

#[test]
fn experts_have_neurons_of_their_own() {
    let family = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..llama()
    };
    let stored = Stored::new(&family.random(1), None);
    assert_eq!(units(&stored.symmetries, "layers.0.experts"), (1, 4));
    assert_eq!(units(&stored.symmetries, "layers.0.expert"), (4, 10));
}

#[test]
fn the_output_of_a_chain_stays_as_it_is() {
    let stored = Stored::new(
        &Chain {
            norms: true,
            flax: false,
        }
        .random(1),
        None,
    );
    let names: Vec<&str> = stored
        .symmetries
        .groups
        .iter()
        .map(|group| group.name.as_str())
        .collect();
    assert_eq!(names, ["hidden.0", "hidden.3", "hidden.6"]);
    assert!(stored.symmetries.tensors["layers.9.bias"].axes[0].is_fixed());
}

#[test]
fn unmapped_tensors_are_listed_and_counted() {
    let mut net = llama().random(1);
    let mut random = Random::new(1);
    for extra in 0..7 {
        net.add(&mut random, &format!("model.extra.{extra}.weight"), &[2, 2]);
    }
    let said = refused(&net, None);
    assert!(said.contains("7 tensors are not mapped"), "{said}");
    assert!(
        said.contains("`model.extra.4.weight` [2, 2] and 2 more"),
        "{said}"
    );
    let own =
        "name: own\nextends: llama\ntensors: [{ name: \"model.extra.{n}.weight\", axes: fixed }]";
    Stored::new(&net, Some(&Spec::parse(own, "own.yml").expect("a spec")));
}

#[test]
fn sizes_that_do_not_fit_the_config_are_told_with_tensor_and_axis() {
    let mut net = llama().random(1);
    net.config["num_key_value_heads"] = json!(2);
    let said = refused(&net, None);
    assert!(
        said.contains("axis 0 of `model.layers.0.self_attn.k_proj.weight` wants 16, got 24"),
        "{said}"
    );
    net.config = json!({ "model_type": "llama", "hidden_size": 12 });
    let said = refused(&net, None);
    assert!(said.contains("num_attention_heads"), "{said}");
}

#[test]
fn unknown_architectures_are_refused_by_name() {
    let mut net = llama().random(1);
    net.config["model_type"] = json!("cohere");
    let said = refused(&net, None);
    assert!(
        said.contains("no built-in symmetry spec is for `cohere`") && said.contains("`spec: FILE`"),
        "{said}"
    );
}

#[test]
fn missing_experts_are_refused() {
    let family = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..llama()
    };
    let mut net = family.random(1);
    net.tensors
        .remove("model.layers.1.block_sparse_moe.experts.2.w3.weight")
        .expect("there");
    let said = refused(&net, None);
    assert!(
        said.contains("wanted 4 tensors of this kind, got 3"),
        "{said}"
    );
}

#[test]
fn a_group_that_nothing_undoes_is_refused() {
    let mut net = llama().random(1);
    net.tensors
        .remove("model.layers.1.mlp.down_proj.weight")
        .expect("there");
    net.tensors
        .remove("model.layers.1.mlp.up_proj.weight")
        .expect("there");
    let said = refused(&net, None);
    assert!(
        said.contains("layers.1.mlp") && said.contains("nothing undoes it"),
        "{said}"
    );
    let unread = "name: own\nextends: llama\ntensors: [{ name: \"{prefix}layers.{l}.self_attn.o_proj.weight\", \
                  axes: [residual, kv * queries * fixed] }]";
    let said = refused(&llama().random(1), Some(unread));
    assert!(
        said.contains("layers.0.value") && said.contains("nothing undoes it"),
        "{said}"
    );
}

#[test]
fn a_first_stage_with_a_shortcut_is_no_basic_network() {
    let basic = ResNet {
        bottleneck: false,
        layer_norms: false,
        transformers: false,
    };
    let mut net = basic.random(1);
    let mut random = Random::new(1);
    net.add(&mut random, "layer1.0.downsample.0.weight", &[4, 4, 1, 1]);
    let said = refused(&net, None);
    assert!(said.contains("has no instance before"), "{said}");
}

#[test]
fn specs_that_contradict_themselves_are_refused() {
    let net = Chain {
        norms: false,
        flax: false,
    }
    .random(1);
    for (more, words) in [
        ("groups: { a: { allows: [rotation] } }", "has no `pairs`"),
        (
            "groups: { a: { allows: [permutation], pairs: half } }",
            "has pairs",
        ),
        ("groups: { a: { allows: [], within: b } }", "does not exist"),
        (
            "groups: {}\ntensors: [{ name: x, axes: [nobody] }]",
            "no group `nobody`",
        ),
        (
            "groups: { a: { allows: [] } }\ntensors: [{ name: x, axes: [a *] }]",
            "wanted the name of a group",
        ),
        (
            "groups: {}\ntensors: [{ name: \"x{\", axes: fixed }]",
            "lacks a closing brace",
        ),
    ] {
        let said = refused(&net, Some(&format!("name: own\n{more}")));
        assert!(said.contains(words), "{more}: {said}");
    }
    for (text, words) in [
        ("name: own\nextends: nothing", "which is none of"),
        ("name: own\nextends: llama\nmore: 1", "more"),
        ("groups: {}", "name"),
        ("name: own\ngroups: { a: { allows: [scaling] } }", "scaling"),
    ] {
        let error = Spec::parse(text, "own.yml").expect_err(text).to_string();
        assert!(
            error.contains(words) && error.contains("own.yml"),
            "{text}: {error}"
        );
    }
}
