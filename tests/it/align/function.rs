//! Every built-in spec keeps the function of the networks that it is for, and what it leaves out
//! would not.

use thalweg::symmetry::{Spec, Transform};

use super::Stored;
use crate::support::forward::{
    Bert, Chain, Experts, Family, Gpt2, Llama, Neox, Net, ResNet, Vgg, Vit,
};
use crate::support::whole::PLENTY;

/// Outputs may differ by so much of the largest: sums of a few dozen terms in another order, a few
/// layers deep, and for turned pairs sines and cosines of f64.
const SAME: f64 = 1e-11;
/// What is no symmetry changes outputs by at least so much of the largest.
const OTHER: f64 = 1e-4;

/// How far the outputs of `moved` are from those of `net`, over the largest of them.
pub fn distance(family: &dyn Family, net: &Net, moved: &Net) -> f64 {
    let (before, after) = (family.outputs(net), family.outputs(moved));
    assert_eq!(before.len(), after.len());
    let largest = before.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    assert!(
        largest > 1e-3 && largest.is_finite(),
        "outputs that can be compared, got {largest}"
    );
    before
        .iter()
        .zip(after)
        .fold(0.0_f64, |most, (x, y)| most.max((x - y).abs()))
        / largest
}

fn transformed(net: &Net, stored: &Stored, seed: u64) -> Net {
    let out = format!("moved-{seed}");
    stored.apply(
        "model",
        Transform::random(&stored.symmetries, seed),
        &out,
        &PLENTY,
    );
    net.read(&stored.dir.path().join(out))
}

/// Random elements of all groups leave the outputs alone, and do move the weights.
fn keeps(family: &dyn Family, spec: &str) {
    let net = family.random(11);
    let stored = Stored::new(&net, None);
    assert_eq!(stored.symmetries.spec, spec);
    for seed in [1, 2] {
        let moved = transformed(&net, &stored, seed);
        for (name, tensor) in &stored.symmetries.tensors {
            let acted = tensor.index.is_some() || tensor.axes.iter().any(|axis| !axis.is_fixed());
            let vast = tensor.shape.iter().product::<u64>() > 20;
            assert!(
                !(acted && vast && net.tensors[name] == moved.tensors[name]),
                "{name} was not moved"
            );
        }
        let distance = distance(family, &net, &moved);
        assert!(distance < SAME, "{spec}: {distance:e}");
    }
}

/// The spec that says `more`, on top of the built-in one, changes the outputs.
fn changes(family: &dyn Family, more: &str) {
    let net = family.random(11);
    let spec = Spec::parse(&format!("name: wrong\n{more}"), "wrong").expect("a spec");
    let stored = Stored::new(&net, Some(&spec));
    let moved = transformed(&net, &stored, 1);
    let distance = distance(family, &net, &moved);
    assert!(distance > OTHER, "{more}: {distance:e}");
}

fn llama() -> Llama {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
}

#[test]
fn mlps_keep_their_function() {
    keeps(
        &Chain {
            norms: false,
            flax: false,
        },
        "mlp",
    );
    keeps(
        &Chain {
            norms: true,
            flax: false,
        },
        "mlp",
    );
    keeps(
        &Chain {
            norms: false,
            flax: true,
        },
        "mlp-flax",
    );
}

#[test]
fn vgg_keeps_its_function() {
    keeps(&Vgg { norms: false }, "vgg16");
    keeps(&Vgg { norms: true }, "vgg16");
}

#[test]
fn residual_networks_keep_their_function() {
    for layer_norms in [false, true] {
        keeps(
            &ResNet {
                bottleneck: false,
                layer_norms,
                transformers: false,
            },
            "resnet20",
        );
        keeps(
            &ResNet {
                bottleneck: true,
                layer_norms,
                transformers: false,
            },
            "resnet50",
        );
    }
    keeps(
        &ResNet {
            bottleneck: true,
            layer_norms: false,
            transformers: true,
        },
        "resnet50-hf",
    );
}

#[test]
fn llama_mistral_and_qwen2_keep_their_function() {
    keeps(&llama(), "llama");
    keeps(
        &Llama {
            tied: true,
            ..llama()
        },
        "llama",
    );
    keeps(
        &Llama {
            model_type: "mistral",
            ..llama()
        },
        "llama",
    );
    keeps(
        &Llama {
            model_type: "qwen2",
            biases: true,
            ..llama()
        },
        "llama",
    );
}

#[test]
fn gemma_keeps_its_function() {
    let gemma = Llama {
        model_type: "gemma",
        tied: true,
        ..llama()
    };
    keeps(&gemma, "gemma");
    keeps(
        &Llama {
            model_type: "gemma2",
            post_norms: true,
            ..gemma
        },
        "gemma2",
    );
    keeps(
        &Llama {
            model_type: "gemma3_text",
            post_norms: true,
            normed_keys: true,
            ..gemma
        },
        "gemma3",
    );
}

#[test]
fn normalised_keys_keep_their_function() {
    keeps(
        &Llama {
            model_type: "qwen3",
            normed_keys: true,
            ..llama()
        },
        "qwen3",
    );
}

#[test]
fn fused_projections_keep_their_function() {
    keeps(
        &Llama {
            model_type: "phi3",
            fused: true,
            ..llama()
        },
        "phi3",
    );
    keeps(
        &Llama {
            model_type: "phi3",
            fused: true,
            rotary: 6,
            ..llama()
        },
        "phi3",
    );
}

#[test]
fn experts_keep_their_function() {
    keeps(
        &Llama {
            model_type: "mixtral",
            experts: Experts::Mixtral,
            ..llama()
        },
        "mixtral",
    );
    let qwen = Llama {
        experts: Experts::Qwen { shared: true },
        biases: true,
        ..llama()
    };
    keeps(
        &Llama {
            model_type: "qwen2_moe",
            ..qwen
        },
        "qwen2-moe",
    );
    let qwen = Llama {
        experts: Experts::Qwen { shared: false },
        normed_keys: true,
        ..llama()
    };
    keeps(
        &Llama {
            model_type: "qwen3_moe",
            ..qwen
        },
        "qwen3-moe",
    );
}

#[test]
fn gpt2_neox_bert_and_vit_keep_their_function() {
    keeps(&Gpt2, "gpt2");
    keeps(&Neox, "neox");
    keeps(&Bert, "bert");
    keeps(&Vit, "vit");
}

#[test]
fn signs_of_gates_change_the_function() {
    changes(
        &llama(),
        "extends: llama\ntensors: [{ name: \"{prefix}layers.{l}.mlp.gate_proj.weight\", axes: [mlp, residual] }]",
    );
}

#[test]
fn query_heads_may_not_leave_their_keys() {
    changes(
        &llama(),
        "extends: llama
groups:
  all: { name: \"layers.{l}.all\", units: num_attention_heads, allows: [permutation] }
  inner: { name: \"layers.{l}.inner\", units: head_dim, allows: [] }
tensors:
  - { name: \"{prefix}layers.{l}.self_attn.q_proj.weight\", axes: [all * inner, residual] }
  - { name: \"{prefix}layers.{l}.self_attn.k_proj.weight\", axes: [fixed, residual] }
  - { name: \"{prefix}layers.{l}.self_attn.v_proj.weight\", axes: [fixed, residual] }
  - { name: \"{prefix}layers.{l}.self_attn.o_proj.weight\", axes: [residual, all * inner] }",
    );
}

#[test]
fn rotary_pairs_may_not_be_moved() {
    changes(
        &llama(),
        "extends: llama\ngroups: { rope: { name: \"layers.{l}.rope\", within: kv, units: rotary, allows: [permutation] } }",
    );
}

#[test]
fn units_of_a_rotary_pair_may_not_be_flipped_alone() {
    changes(
        &llama(),
        "extends: llama\ngroups: { rope: { name: \"layers.{l}.rope\", within: kv, units: rotary, allows: [sign] } }",
    );
}

#[test]
fn normalised_keys_may_not_be_turned() {
    changes(
        &Llama { model_type: "qwen3", normed_keys: true, ..llama() },
        "extends: qwen3
groups: { rope: { name: \"layers.{l}.rope\", within: kv, units: rotary, pairs: half, allows: [rotation] } }",
    );
}

#[test]
fn a_residual_stream_under_layer_norm_has_no_signs() {
    let residual = "groups: { residual: { residual: true, allows: [permutation, sign] } }";
    changes(&Gpt2, &format!("extends: gpt2\n{residual}"));
    changes(&Bert, &format!("extends: bert\n{residual}"));
    changes(&Vit, &format!("extends: vit\n{residual}"));
}

#[test]
fn units_behind_gelu_have_no_signs() {
    changes(
        &Gpt2,
        "extends: gpt2\ngroups: { mlp: { name: \"h.{l}.mlp\", allows: [permutation, sign] } }",
    );
    changes(
        &Neox,
        "extends: neox\ngroups: { mlp: { name: \"layers.{l}.mlp\", allows: [permutation, sign] } }",
    );
}

#[test]
fn units_behind_relu_have_no_signs_and_stages_are_tied_by_their_shortcuts() {
    let chain = Chain {
        norms: false,
        flax: false,
    };
    changes(
        &chain,
        "extends: mlp\ngroups: { hidden: { name: \"hidden.{l}\", chain: true, allows: [permutation, sign] } }",
    );
    let basic = ResNet {
        bottleneck: false,
        layer_norms: false,
        transformers: false,
    };
    changes(
        &basic,
        "extends: resnet20\ngroups: { inner: { name: \"layer{s}.{b}.inner\", allows: [permutation, sign] } }",
    );
    changes(
        &basic,
        "extends: resnet20\ntensors: [{ name: \"{prefix}layer{s}.{b}.downsample.0.weight\", axes: [stage, fixed, fixed, fixed] }]",
    );
}

#[test]
fn the_router_must_know_the_order_of_experts() {
    changes(
        &Llama {
            model_type: "mixtral",
            experts: Experts::Mixtral,
            ..llama()
        },
        "extends: mixtral\ntensors: [{ name: \"{prefix}layers.{l}.block_sparse_moe.gate.weight\", axes: [order(experts), fixed] }]",
    );
}
