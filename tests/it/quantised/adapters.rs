//! Adapters: a mean of factors is not the mean of their products.

use serde_json::Value;
use tempfile::tempdir;
use thalweg::checkpoint::Checkpoint;

use super::{Tensor, file, model};
use crate::support::program::run;

const PEFT: &[Tensor<'static>] = &[
    ("base_model.model.l.lora_A.weight", "F32", &[4, 16]),
    ("base_model.model.l.lora_B.weight", "F32", &[16, 4]),
];

#[test]
fn adapters_are_refused_at_every_door_with_what_to_do() {
    let root = tempdir().expect("temporary folder");
    for name in ["a", "b"] {
        file(
            &root.path().join(name).join("adapter_model.safetensors"),
            PEFT,
            &Value::Null,
        );
        file(
            &root.path().join(format!("{name}.safetensors")),
            PEFT,
            &Value::Null,
        );
    }
    let doors: [&[&str]; 6] = [
        &["merge", "a", "b", "--out", "out"],
        &[
            "merge",
            "a.safetensors",
            "b.safetensors",
            "--out",
            "out",
            "--quantised",
            "raw",
        ],
        &[
            "plan",
            "a/adapter_model.safetensors",
            "b.safetensors",
            "--out",
            "out",
        ],
        &["apply", "a", "--fold", "--out", "out"],
        &["align", "a", "b", "--out", "perms.safetensors"],
        &["interpolate", "a", "b", "--out", "curve"],
    ];
    for door in doors {
        let words = [
            "an adapter, not a model",
            "mean of factors",
            "merge the adapter into its model first",
        ];
        run(root.path(), door).fails(2, &words);
    }
}

#[test]
fn factors_are_known_in_every_dialect_and_beside_whole_weights() {
    let dialects: &[&[Tensor<'_>]] = &[
        &[
            ("lora_unet_x.lora_down.weight", "F16", &[4, 16]),
            ("lora_unet_x.lora_up.weight", "F16", &[16, 4]),
            ("lora_unet_x.alpha", "F16", &[]),
        ],
        &[
            ("lora_te_x.hada_w1_a", "F16", &[16, 4]),
            ("lora_te_x.hada_w1_b", "F16", &[4, 16]),
        ],
        &[
            ("lycoris_x.lokr_w1", "F16", &[4, 4]),
            ("lycoris_x.lokr_w2", "F16", &[4, 4]),
        ],
        &[
            ("unet.x.to_q.lora.down.weight", "F16", &[4, 16]),
            ("unet.x.to_q.lora.up.weight", "F16", &[16, 4]),
        ],
        &[
            ("layers.0.wq.lora_a", "F16", &[16, 4]),
            ("layers.0.wq.lora_b", "F16", &[4, 16]),
        ],
        &[
            ("l.lora_magnitude_vector.weight", "F16", &[16]),
            ("l.lora_A.default.weight", "F16", &[4, 16]),
        ],
    ];
    for tensors in dialects {
        let folder = tempdir().expect("temporary folder");
        model(folder.path(), tensors, &Value::Null);
        let error = Checkpoint::open(folder.path())
            .expect_err("an adapter")
            .to_string();
        assert!(
            error.contains("is an adapter, not a model") && error.contains(tensors[0].0),
            "{error}"
        );
        let all = [&[("embed.weight", "F16", &[16, 16][..])], *tensors].concat();
        model(folder.path(), &all, &Value::Null);
        let error = Checkpoint::open(folder.path())
            .expect_err("holds one")
            .to_string();
        assert!(
            error.contains("holds an adapter beside its weights"),
            "{error}"
        );
    }
}
