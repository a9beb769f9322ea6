//! Every layout by its name; nothing else by any.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;
use thalweg::Kind;
use thalweg::checkpoint::quantised::Stored;
use thalweg::checkpoint::{Checkpoint, OpenOptions};

use super::{Tensor, file, model};

fn raw() -> OpenOptions {
    OpenOptions {
        raw_codes: true,
        ..OpenOptions::default()
    }
}

/// The refusal of `path`, with its hint.
#[track_caller]
fn refused(path: &Path) -> String {
    let error = match Checkpoint::open(path) {
        Ok(opened) => panic!("opened: {:?}", opened.tensors()),
        Err(error) => error,
    };
    assert_eq!(error.kind(), Kind::Input);
    let text = format!("{error} [{}]", error.hint().unwrap_or_default());
    assert!(
        text.contains("quantised")
            && text.contains("quantised: raw")
            && text.contains("dequantise"),
        "{text}"
    );
    let opened = Checkpoint::open_with(path, &raw()).expect("raw is what was asked for");
    assert!(
        matches!(opened.stored(), Stored::Codes(_)) && opened.warnings().len() == 1,
        "{:?}",
        opened.warnings()
    );
    text
}

const WEIGHT: &[u64] = &[16, 16];
const SCALE: &[u64] = &[16, 1];

/// What the layout is called, and the tensors of one layer; the first shows it.
const LAYOUTS: &[(&str, &[Tensor<'static>])] = &[
    (
        "FP8 with a scale for each block",
        &[
            ("l.weight", "F8_E4M3", WEIGHT),
            ("l.weight_scale_inv", "F32", &[1, 1]),
        ],
    ),
    (
        "FP8 with a scale for each block",
        &[
            ("e.up_proj", "F8_E4M3", &[2, 16, 16]),
            ("e.up_proj_scale_inv", "F32", &[2, 1]),
        ],
    ),
    (
        "FP8 with scales",
        &[
            ("l.weight", "F8_E4M3", WEIGHT),
            ("l.weight_scale", "BF16", SCALE),
        ],
    ),
    (
        "FP8 with scales",
        &[
            ("l.weight", "F8_E4M3", WEIGHT),
            ("l.weight_scale", "F32", &[]),
        ],
    ),
    (
        "FP8 with scales",
        &[
            ("l.weight", "F8_E5M2", WEIGHT),
            ("l.input_scale", "F32", &[]),
        ],
    ),
    (
        "FP8 with scales",
        &[("l.weight", "F8_E4M3", WEIGHT), ("l.scale", "F32", &[1, 1])],
    ),
    (
        "ComfyUI",
        &[
            ("l.weight", "F8_E4M3", WEIGHT),
            ("l.scale_weight", "F32", &[]),
            ("scaled_fp8", "F8_E4M3", &[2]),
        ],
    ),
    (
        "ComfyUI",
        &[
            ("l.comfy_quant", "U8", &[30]),
            ("l.weight", "I8", WEIGHT),
            ("l.weight_scale", "F32", SCALE),
        ],
    ),
    (
        "microscaling",
        &[
            ("l.scale", "F8_E8M0", &[16, 1]),
            ("l.weight", "F8_E4M3", WEIGHT),
        ],
    ),
    (
        "GPTQ",
        &[
            ("l.qweight", "I32", &[2, 16]),
            ("l.qzeros", "I32", &[1, 2]),
            ("l.scales", "F16", &[1, 16]),
            ("l.g_idx", "I32", &[16]),
        ],
    ),
    (
        "AWQ or GPTQ",
        &[
            ("l.qweight", "I32", &[16, 2]),
            ("l.qzeros", "I32", &[1, 2]),
            ("l.scales", "F16", &[1, 16]),
        ],
    ),
    (
        "Marlin",
        &[("l.B", "I32", &[2, 16]), ("l.s", "F16", &[1, 16])],
    ),
    (
        "bitsandbytes, 4 bits",
        &[
            ("l.weight.quant_state.bitsandbytes__nf4", "U8", &[90]),
            ("l.weight", "U8", &[128, 1]),
            ("l.weight.absmax", "F32", &[4]),
        ],
    ),
    (
        "bitsandbytes, 4 bits",
        &[
            ("l.weight.quant_state.bitsandbytes__fp4", "U8", &[90]),
            ("l.weight", "BF16", &[64, 1]),
            ("l.weight.absmax", "U8", &[4]),
        ],
    ),
    (
        "bitsandbytes, 4 bits",
        &[
            ("l.weight.quant_map", "F32", &[16]),
            ("l.weight.absmax", "F32", &[4]),
            ("l.weight", "U8", &[128, 1]),
        ],
    ),
    (
        "bitsandbytes, 8 bits",
        &[
            ("l.weight", "I8", WEIGHT),
            ("l.SCB", "F32", &[16]),
            ("l.weight_format", "U8", &[]),
        ],
    ),
    (
        "MXFP4",
        &[
            ("e.up_proj_blocks", "U8", &[2, 4, 1, 16]),
            ("e.up_proj_scales", "U8", &[2, 4, 1]),
        ],
    ),
    (
        "NVFP4",
        &[
            ("l.weight", "U8", &[16, 8]),
            ("l.weight_scale", "F8_E4M3", SCALE),
            ("l.weight_scale_2", "F32", &[]),
        ],
    ),
    (
        "NVFP4",
        &[
            ("l.weight_packed", "U8", &[16, 8]),
            ("l.weight_scale", "F8_E4M3", SCALE),
            ("l.weight_global_scale", "F32", &[1]),
        ],
    ),
    (
        "compressed-tensors",
        &[
            ("l.weight_packed", "I32", &[16, 2]),
            ("l.weight_scale", "BF16", SCALE),
            ("l.weight_shape", "I64", &[2]),
        ],
    ),
    (
        "codes with scales",
        &[
            ("l.weight", "I8", WEIGHT),
            ("l.weight_scale", "BF16", SCALE),
        ],
    ),
    (
        "torchao",
        &[
            ("l._weight_qdata", "I8", WEIGHT),
            ("l._weight_scale", "F32", SCALE),
        ],
    ),
    (
        "torchao",
        &[
            ("l.weight:_data", "I8", WEIGHT),
            ("l.weight:_scale", "F32", SCALE),
        ],
    ),
    (
        "quanto",
        &[
            ("l.weight._data", "I8", WEIGHT),
            ("l.weight._scale", "F32", SCALE),
        ],
    ),
    (
        "HQQ",
        &[
            ("l.W_q", "U8", &[8, 16]),
            ("l.scale", "F16", SCALE),
            ("l.zero", "F16", SCALE),
        ],
    ),
    (
        "AQLM",
        &[
            ("l.codes", "I16", &[16, 2, 1]),
            ("l.codebooks", "F16", &[1, 4, 1, 8]),
            ("l.scales", "F16", &[16, 1, 1, 1]),
        ],
    ),
    (
        "VPTQ",
        &[
            ("l.indices", "I16", &[1, 4, 4]),
            ("l.centroids.weight", "F16", &[1, 32]),
        ],
    ),
    (
        "SpQR",
        &[
            ("l.dense_weights", "I32", &[16]),
            ("l.row_offsets", "I32", &[17]),
        ],
    ),
    (
        "EXL2",
        &[
            ("l.q_weight", "I32", &[4, 16]),
            ("l.q_scale", "I32", &[1, 2]),
        ],
    ),
    (
        "EXL3",
        &[("l.trellis", "I16", &[1, 1, 16]), ("l.suh", "F16", &[16])],
    ),
    (
        "EETQ",
        &[
            ("l.weight", "I8", WEIGHT),
            ("l.weight_scales", "F16", &[16]),
        ],
    ),
    (
        "MLX",
        &[
            ("l.weight", "U32", &[16, 2]),
            ("l.scales", "F16", &[16, 1]),
            ("l.biases", "F16", &[16, 1]),
        ],
    ),
    (
        "SVDQuant",
        &[
            ("b.qweight", "I8", &[16, 8]),
            ("b.wscales", "BF16", &[1, 16]),
            ("b.smooth", "BF16", &[16]),
        ],
    ),
];

#[test]
fn every_layout_is_refused_by_its_name_and_its_first_tensor_without_a_config() {
    for (name, tensors) in LAYOUTS {
        let folder = tempdir().expect("temporary folder");
        let mut all = vec![("embed.weight", "BF16", WEIGHT)];
        all.extend(*tensors);
        let path = folder.path().join("single.safetensors");
        file(&path, &all, &Value::Null);
        let text = refused(&path);
        assert!(
            text.contains(name) && text.contains(&format!("`{}`", tensors[0].0)),
            "{name}: {text}"
        );
    }
}

#[test]
fn a_config_names_what_codes_are_wherever_it_says_so_and_whether_it_is_known_or_not() {
    let codes: &[Tensor<'_>] = &[("l.weight", "I8", WEIGHT), ("l.norm.weight", "BF16", &[16])];
    for (config, words) in [
        (
            json!({ "quantization_config": { "quant_method": "bitsandbytes", "load_in_8bit": true } }),
            "bitsandbytes",
        ),
        (
            json!({ "quantization_config": { "quant_method": "tomorrows-method" } }),
            "`tomorrows-method`",
        ),
        (
            json!({ "text_config": { "quantization_config": { "quant_method": "quark" } } }),
            "Quark",
        ),
        (
            json!({ "compression_config": { "quant_method": "compressed-tensors" } }),
            "compressed-tensors",
        ),
        (json!({ "quantization": { "quant_algo": "FP8" } }), "FP8"),
        (
            json!({ "quantization_config": { "_load_in_4bit": true } }),
            "bitsandbytes",
        ),
    ] {
        let folder = tempdir().expect("temporary folder");
        model(folder.path(), codes, &config);
        let text = refused(folder.path());
        assert!(
            text.contains(words) && text.contains("config.json"),
            "{text}"
        );
    }
    for (name, content, words) in [
        (
            "hf_quant_config.json",
            json!({ "producer": {}, "quantization": { "quant_algo": "NVFP4" } }),
            "NVFP4",
        ),
        (
            "quantize_config.json",
            json!({ "bits": 4, "group_size": 128 }),
            "GPTQ",
        ),
        (
            "quant_config.json",
            json!({ "w_bit": 4, "q_group_size": 128 }),
            "AWQ",
        ),
    ] {
        let folder = tempdir().expect("temporary folder");
        model(folder.path(), codes, &json!({}));
        fs::write(folder.path().join(name), content.to_string()).expect("written");
        let text = refused(folder.path());
        assert!(text.contains(words) && text.contains(name), "{text}");
    }
}

#[test]
fn floats_that_were_quantised_in_place_are_refused_where_the_config_says_so() {
    let folder = tempdir().expect("temporary folder");
    let tensors: &[Tensor<'_>] = &[
        ("l.weight", "BF16", WEIGHT),
        ("l.weight_scale", "BF16", &[1]),
    ];
    model(
        folder.path(),
        tensors,
        &json!({ "quantization_config": { "quant_method": "bitnet" } }),
    );
    assert!(refused(folder.path()).contains("BitNet"));
}

#[test]
fn a_header_that_speaks_of_quantisation_names_it() {
    let folder = tempdir().expect("temporary folder");
    let path = folder.path().join("x.safetensors");
    file(
        &path,
        &[("l.weight", "I8", WEIGHT)],
        &json!({ "_quantization_metadata": "{}" }),
    );
    assert!(refused(&path).contains("ComfyUI"));
}

#[test]
fn ordinary_models_are_not_taken_for_quantised_ones() {
    let ordinary: &[&[Tensor<'_>]] = &[
        &[
            ("l.weight", "BF16", WEIGHT),
            ("l.scales", "F32", &[16]),
            ("l.scale", "F32", &[1]),
            ("scales", "F32", &[4]),
        ],
        &[
            ("attn.W_q", "F32", WEIGHT),
            ("attn.scale", "F32", &[1]),
            ("l.qweight", "F32", WEIGHT),
            ("l.scales", "F32", &[16]),
        ],
        // All of a model cast to eight bits, and some of it.
        &[
            ("l.weight", "F8_E4M3", WEIGHT),
            ("l.bias", "F8_E4M3", &[16]),
            ("l.scale", "F8_E4M3", &[16]),
        ],
        &[
            ("l.weight", "F8_E5M2", WEIGHT),
            ("norm.weight", "BF16", &[16]),
            ("norm.scale", "F32", &[16]),
        ],
        // Buffers.
        &[
            ("a.relative_position_index", "I64", WEIGHT),
            ("a.logit_scale", "F32", &[1]),
            ("attn.bias", "U8", &[1, 1, 4, 4]),
        ],
        &[
            ("bn.weight", "F32", &[16]),
            ("bn.num_batches_tracked", "I64", &[]),
            ("position_ids", "I32", &[1, 4]),
        ],
        &[
            ("vq.codes", "F32", WEIGHT),
            ("vq.codebooks", "F32", WEIGHT),
            ("mlp.B", "F32", WEIGHT),
            ("mlp.s", "F32", &[1]),
        ],
    ];
    for tensors in ordinary {
        let folder = tempdir().expect("temporary folder");
        model(
            folder.path(),
            tensors,
            &json!({ "model_type": "llama", "quantization_config": null }),
        );
        let opened = Checkpoint::open(folder.path()).expect("an ordinary model");
        assert!(
            *opened.stored() == Stored::Plain && opened.warnings().is_empty(),
            "{tensors:?}: {:?}",
            opened.stored()
        );
    }
}

#[test]
fn a_config_that_calls_plain_numbers_quantised_is_out_of_date_and_said_to_be() {
    let folder = tempdir().expect("temporary folder");
    let tensors: &[Tensor<'_>] = &[
        ("l.weight", "BF16", WEIGHT),
        ("position_ids", "I32", &[1, 4]),
    ];
    model(
        folder.path(),
        tensors,
        &json!({ "quantization_config": { "quant_method": "mxfp4" } }),
    );
    let opened = Checkpoint::open(folder.path()).expect("plain numbers");
    assert!(
        matches!(opened.stored(), Stored::Stale(_)),
        "{:?}",
        opened.stored()
    );
    assert!(opened.warnings()[0].contains("mxfp4") && opened.warnings()[0].contains("out of date"));
    // These are plain numbers that the model rounds whenever it uses them, and its config has to
    // say so.
    let config = json!({ "quantization_config": { "quant_method": "bitnet", "quantization_mode": "online" } });
    model(folder.path(), tensors, &config);
    let opened = Checkpoint::open(folder.path()).expect("plain numbers");
    assert!(*opened.stored() == Stored::RoundedInUse && opened.warnings().is_empty());
}
