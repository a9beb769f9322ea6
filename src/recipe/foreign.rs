//! Keys that mergekit knows but that have no effect where they stand: it skips them, and recipes
//! are full of them.
//!
//! Such a key is a warning. Keys that have an effect in mergekit are never here: they are carried
//! out, or refused by name.

use super::keys::KEYS;
use super::methods::METHODS;

/// Keys, parameters and options of mergekit 0.1.5 and its programs that neither [`KEYS`] nor
/// [`METHODS`] has.
const FOREIGN: &[&str] = &[
    // Parameters that older versions had, and that recipes still carry.
    "embed_slerp",
    "naive_count",
    // Options of a run, which stand on the command line there.
    "allow_crimes",
    "async_write",
    "clone_tensors",
    "copy_tokenizer",
    "cuda",
    "gpu_rich",
    "lazy_unpickle",
    "lora_merge_cache",
    "lora_merge_dtype",
    "low_cpu_memory",
    "multi_gpu",
    "num_threads",
    "out_path",
    "quiet",
    "random_seed",
    "read_to_gpu",
    "safe_serialization",
    "transformers_cache",
    "trust_remote_code",
    "unsafe_truncate_embeddings",
    "verbose",
    "verbosity",
    "write_model_card",
    "write_threads",
    // mergekit-moe.
    "architecture",
    "experts",
    "experts_per_token",
    "gate_mode",
    "negative_prompts",
    "noise_scale",
    "positive_prompts",
    "residual_scale",
    "shared_experts",
    "source_model",
    // mergekit-evolve.
    "allow_negative_weights",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "filters",
    "genome",
    "layer_granularity",
    "limit",
    "metric",
    "num_fewshot",
    "random_init",
    "shuffle",
    "smooth",
    "tasks",
    // Tokens of a tokenizer.
    "force",
    "kind",
    "token",
    "token_id",
    // bakllama.
    "embedding_source",
    "end",
    "layer_slices",
    "lm_head_source",
    "start",
];

/// Tells if mergekit reads `key` anywhere.
pub(super) fn is_mergekit_key(key: &str) -> bool {
    KEYS.iter().any(|info| info.mergekit && info.key == key)
        || METHODS.iter().any(|method| method.parameter(key).is_some())
        || FOREIGN.contains(&key)
}

/// A recipe for another program of mergekit's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program {
    /// The key by which it is known.
    pub(super) key: &'static str,
    /// Its description.
    pub(super) is: &'static str,
    /// The alternative here.
    pub(super) instead: &'static str,
}

/// The programs whose recipes ask for other things than a merge of tensors.
pub(super) const PROGRAMS: [Program; 4] = [
    Program {
        key: "experts",
        is: "is a recipe of mergekit-moe, which builds a mixture of experts from dense models; thalweg does not",
        instead: "thalweg can merge the experts into one dense model (list each `source_model` under `models` and name a \
                  `merge_method`), and finished mixtures of one shape with each other",
    },
    Program {
        key: "gate_mode",
        is: "is a recipe of mergekit-moe, which builds a mixture of experts from dense models; thalweg does not",
        instead: "thalweg can merge dense models into one (`merge_method`, `models`), and finished mixtures of one shape \
                  with each other",
    },
    Program {
        key: "genome",
        is: "is a recipe of mergekit-evolve, which searches for parameters by benchmarks; thalweg does not",
        instead: "merge with the recipe that mergekit-evolve writes as its best one, or give the genome's \
                  `merge_method` and `models` at the top with weights of your own",
    },
    Program {
        key: "layer_slices",
        is: "is a recipe of bakllama",
        instead: "write it as `merge_method: passthrough` with `slices: [{sources: [{model: …, layer_range: [start, \
                  end]}]}, …]`",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_of_mergekit_write_is_known_and_a_slip_of_the_finger_is_not() {
        for key in [
            "normalize",
            "int8_mask",
            "density",
            "weight",
            "random_seed",
            "architecture",
            "out_path",
            "smooth",
        ] {
            assert!(is_mergekit_key(key), "{key}");
        }
        for key in ["wieght", "granularity", "missing", "temperature", ""] {
            assert!(!is_mergekit_key(key), "{key}");
        }
    }

    #[test]
    fn nothing_is_listed_that_the_other_tables_have() {
        for key in FOREIGN {
            let known = KEYS.iter().any(|info| info.mergekit && info.key == *key)
                || METHODS.iter().any(|method| method.parameter(key).is_some());
            assert!(!known, "{key}");
        }
    }
}
