//! Files beside a model that do not belong to a merge of it: leftovers of training, quantising and
//! other programs, and checksums of the old weights.
//!
//! [`weight_format`](super::side::weight_format) recognises weights in any format. The files named
//! here hold none, but would be wrong beside new weights, or break their loading (an adapter's
//! config without the adapter).

/// Files by their whole name, in lower case.
const FILES: [&str; 29] = [
    // PEFT: transformers loads an adapter if this file is there.
    "adapter_config.json",
    // transformers' Trainer.
    "trainer_state.json",
    "trainer_log.jsonl",
    "training_args.json",
    "training_loss.png",
    "training_eval_loss.png",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
    "test_results.json",
    "predict_results.json",
    "generated_predictions.txt",
    "generated_predictions.jsonl",
    // DeepSpeed and Megatron.
    "latest",
    "latest_checkpointed_iteration.txt",
    "latest_universal",
    "zero_to_fp32.py",
    // Quantisation configs; the merged weights are plain.
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
    "hf_quant_config.json",
    "quanto_qmap.json",
    "quantization_map.json",
    "ort_config.json",
    // Recipes of an earlier merge.
    "mergekit_config.yaml",
    "mergekit_moe_config.yml",
    "mergekit_moe_config.yaml",
    // Checksums of files that no longer exist.
    "sha256sums",
    "md5sums",
];
/// Files by the beginning of their name.
const BEGINNINGS: [&str; 6] = [
    "events.out.tfevents",
    "adapter_model",
    "openvino_",
    "pytorch_model_fsdp",
    "checksums",
    "imatrix",
];
/// Files by the end of their name: unfinished files, PyTorch's distributed checkpoints, files for
/// other programs, checksums and signatures.
const ENDINGS: [&str; 19] = [
    ".part",
    ".tmp",
    ".incomplete",
    ".lock",
    ".pyc",
    ".distcp",
    ".imatrix",
    ".pte",
    ".pt2",
    ".ptl",
    ".trt",
    ".litertlm",
    ".sha1",
    ".sha256",
    ".sha512",
    ".md5",
    ".b3",
    ".sig",
    ".asc",
];
/// Folders by their whole name, in lower case: logs, evaluations, the same model for other
/// programs.
const FOLDERS: [&str; 15] = [
    "runs",
    "wandb",
    "logs",
    "tensorboard",
    "tb_logs",
    "lightning_logs",
    "mlruns",
    "eval",
    "__pycache__",
    "onnx",
    "openvino",
    "coreml",
    "gguf",
    "original",
    "dist_optimizer",
];
/// Folders by the beginning of their name: snapshots of a training run, sharded state.
const FOLDER_BEGINNINGS: [&str; 5] = [
    "checkpoint-",
    "global_step",
    "pytorch_model_fsdp",
    "optimizer_",
    "iter_0",
];
/// Folders by the end of their name.
const FOLDER_ENDINGS: [&str; 2] = [".mlpackage", ".mlmodelc"];

/// Tells if a file of this name stays behind.
pub(super) fn is_leftover(name: &str) -> bool {
    fits(name, &FILES, &BEGINNINGS, &ENDINGS)
}

/// Tells if a folder of this name stays behind, whatever it holds.
pub(super) fn is_leftover_folder(name: &str) -> bool {
    fits(name, &FOLDERS, &FOLDER_BEGINNINGS, &FOLDER_ENDINGS)
}

fn fits(name: &str, whole: &[&str], beginnings: &[&str], endings: &[&str]) -> bool {
    let name = name.to_ascii_lowercase();
    whole.contains(&name.as_str())
        || beginnings
            .iter()
            .any(|beginning| name.starts_with(beginning))
        || endings.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_training_run_leaves_is_told_from_what_a_model_needs() {
        for name in [
            "trainer_state.json",
            "latest",
            "events.out.tfevents.1700.host",
            "zero_to_fp32.py",
            "x.lock",
        ] {
            assert!(is_leftover(name), "{name}");
        }
        for name in [
            "scheduler_config.json",
            "preprocessor_config.json",
            "LICENSE",
            "merges.txt",
            "config.json",
        ] {
            assert!(!is_leftover(name), "{name}");
        }
        for name in [
            "runs",
            "global_step500",
            "checkpoint-1000",
            "pytorch_model_fsdp_0",
            "onnx",
            "m.mlpackage",
        ] {
            assert!(is_leftover_folder(name), "{name}");
        }
        for name in [
            "scheduler",
            "feature_extractor",
            "1_Pooling",
            "2_Dense",
            "tokenizer",
            "unet",
            "optimizer",
        ] {
            assert!(!is_leftover_folder(name), "{name}");
        }
    }
}
