//! Recognises adapters: files of factors that are useful only as products and together with a
//! model.

use std::path::Path;

use super::header::shown;
use crate::error::{Error, Kind};

/// Parts of tensor names, between dots, that only adapters have.
const PARTS: [&str; 42] = [
    "lora_A",
    "lora_B",
    "lora_a",
    "lora_b",
    "lora_E",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
    "lora_down",
    "lora_up",
    "lora_mid",
    "lora_linear_layer",
    "lora_kqv_adapter",
    "lora_qkv_adapter",
    "lora_dense_attention_adapter",
    "lora_hto4h_adapter",
    "lora_4htoh_adapter",
    "dora_scale",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "vera_lambda_b",
    "vera_lambda_d",
    "vblora_logits_A",
    "vblora_logits_B",
    "vblora_vector_bank",
    "fourierft_spectrum",
    "randlora_lambda",
    "ia3_l",
    "oft_blocks",
    "oft_r",
    "oft_R",
];
/// More such parts, and those of kohya's and LyCORIS's files, whose names have no dots.
const MORE_PARTS: [&str; 5] = [
    "boft_R",
    "boft_s",
    "hra_u",
    "trainable_tokens_delta",
    "prompt_embeddings",
];
/// The first two letters of all these parts.
const BEGINNINGS: [&str; 13] = [
    "lo", "do", "ha", "ve", "vb", "fo", "ra", "ia", "of", "bo", "hr", "tr", "pr",
];
/// The beginnings of tensor names in kohya's and LyCORIS's files.
const STARTS: [&str; 6] = [
    "lora_unet_",
    "lora_te_",
    "lora_te1_",
    "lora_te2_",
    "lora_transformer_",
    "lycoris_",
];
/// The name parts behind one with `lora` in it, if the factors are modules of their own.
const FACTORS: [&str; 4] = ["down", "up", "A", "B"];
/// The beginnings of adapters' file names.
const FILES: [&str; 5] = [
    "adapter_",
    "adapters.safetensors",
    "pytorch_adapter.bin",
    "pytorch_lora_weights.",
    "learned_embeds.",
];

/// The advice for an adapter.
const CURE: &str = "merge the adapter into its model first and give the result: with PEFT, \
                    `PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)`; for a LoRA of \
                    an image model, the merge script of sd-scripts, or `fuse_lora` of diffusers";

/// Tells if files of this name are adapters.
pub(super) fn is_adapter_file(name: &str) -> bool {
    FILES.iter().any(|start| name.starts_with(start)) && !name.ends_with(".json")
}

/// Tells if a tensor of this name is part of an adapter.
fn is_factor(name: &str) -> bool {
    // A model may have a hundred thousand names of ten parts, and nearly no part begins like these.
    let likely = |part: &str| {
        part.get(..2)
            .is_some_and(|start| BEGINNINGS.contains(&start))
    };
    let known = |part: &str| likely(part) && (PARTS.contains(&part) || MORE_PARTS.contains(&part));
    let mut before = "";
    let found = name.split('.').any(|part| {
        let factor = FACTORS.contains(&part) && before.contains("lora");
        before = part;
        factor || known(part)
    });
    found || STARTS.iter().any(|start| name.starts_with(start))
}

/// Returns the error for the checkpoint at `root` if some of its tensors belong to an adapter.
pub(super) fn refusal<'a>(root: &Path, names: impl Iterator<Item = &'a str>) -> Option<Error> {
    let (mut first, mut others) = (None, false);
    for name in names {
        match is_factor(name) {
            true if first.is_none() => first = Some(name),
            true => {}
            false => others = others || is_weight(name),
        }
    }
    let first = shown(first?);
    let what = match others {
        true => format!("holds an adapter beside its weights ({first})"),
        false => format!("is an adapter, not a model ({first})"),
    };
    Some(named(root, &what))
}

/// Returns the error for the file or folder at `root`, which is or holds an adapter.
pub(super) fn named(root: &Path, what: &str) -> Error {
    let cause = format!("{what}; a mean of factors is not the mean of their products");
    Error::new(Kind::Input, "cannot open checkpoint", root.display(), cause).with_hint(CURE)
}

/// Tells if a tensor beside the factors shows that the rest is a model; scaling factors do not.
fn is_weight(name: &str) -> bool {
    name.ends_with("weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_begins_as_it_is_looked_for() {
        assert!(
            PARTS
                .iter()
                .chain(&MORE_PARTS)
                .all(|part| BEGINNINGS.contains(&&part[..2]))
        );
    }

    #[test]
    fn factors_are_told_from_ordinary_weights_that_are_called_alike() {
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.q_proj.lora_B.default.weight",
            "lora_unet_down_blocks_0_attentions_0_proj_in.alpha",
            "unet.up_blocks.1.processor.to_q_lora.down.weight",
            "double_blocks.0.processor.qkv_lora1.up.weight",
            "layers.0.wq.lora_a",
            "x.hada_w1_a",
            "model.layers.0.mlp.ia3_l",
        ] {
            assert!(is_factor(name), "{name}");
        }
        for name in [
            "model.layers.0.self_attn.q_a_proj.weight",
            "model.layers.0.attn.w_lora.lora.0.weight",
            "model.down.weight",
            "explorer.A",
            "flora_A.weight",
        ] {
            assert!(!is_factor(name), "{name}");
        }
    }
}
