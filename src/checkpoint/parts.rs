//! Recognises files that are only a part of a model, or the state of a training run, and tells how
//! to make a model of them.

use std::collections::BTreeSet;
use std::path::Path;

use super::folder::numbered;
use super::header::shown;
use super::side::weight_format;
use crate::error::{Error, Kind};

/// The description of some files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts {
    what: String,
    cure: &'static str,
}

const DISTRIBUTED: &str = "put them together first: `accelerate merge-weights FOLDER OUT`, or `python -m \
                           torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt`";
const ZERO: &str = "put them together first: `python zero_to_fp32.py . OUT` in the folder in which that script lies";
const META: &str = "give the model in the Hugging Face format, or convert it first with transformers' \
                    `convert_llama_weights_to_hf.py`";
const TORCHTUNE: &str = "name the parts of one epoch pytorch_model-00001-of-0000N.bin and so on, in a folder of their own";
const VERL: &str = "put them together first: `python -m verl.model_merger merge --backend fsdp --local_dir FOLDER \
                    --target_dir OUT`";
const MEGATRON: &str =
    "convert it to the Hugging Face format first, with the export of Megatron-Bridge or NeMo";
const TENSORFLOW: &str = "convert it first: in transformers 4, `from_pretrained(FOLDER, from_tf=True)` and `save_pretrained`";
const JAX: &str = "convert it to safetensors first, with the tools of the model";
const SHARD: &str =
    "name the folder to read the whole model; to read this file alone, give it another name";

impl Parts {
    /// Describes a folder with these file names, unless it holds a whole model.
    pub fn of_folder(names: &BTreeSet<String>) -> Option<Self> {
        let any = |is: &dyn Fn(&str) -> bool| names.iter().any(|name| is(name));
        let count = |is: &dyn Fn(&str) -> bool| names.iter().filter(|name| is(name)).count();
        let parts = |what: &str, cure| {
            Some(Self {
                what: what.to_owned(),
                cure,
            })
        };
        let meta = count(&|name| meta_number(name).is_some());
        if any(&is_distributed) {
            return parts(
                "holds a distributed checkpoint of PyTorch (FSDP, DCP), each rank's part in a file",
                DISTRIBUTED,
            );
        }
        if any(&is_zero) {
            return parts(
                "holds what DeepSpeed's ZeRO saves, each rank's part of the weights in a file",
                ZERO,
            );
        }
        if meta > 1 {
            let what = format!(
                "holds a model in Meta's own format, split into {meta} parts that are computed in parallel"
            );
            return parts(&what, META);
        }
        if count(&is_torchtune) > 1 {
            return parts(
                "holds parts of a model as torchtune writes them, with the epoch behind the number",
                TORCHTUNE,
            );
        }
        if any(&is_verl) {
            return parts(
                "holds a model split by FSDP, as verl saves it, each rank's part in a file",
                VERL,
            );
        }
        if any(&|name| name == "latest_checkpointed_iteration.txt" || is_megatron(name)) {
            return parts(
                "holds a checkpoint of Megatron, split for training in parallel",
                MEGATRON,
            );
        }
        if any(&|name| {
            name == "saved_model.pb" || name.ends_with(".index") || name.contains(".data-00000-of-")
        }) {
            return parts("holds a TensorFlow checkpoint", TENSORFLOW);
        }
        if any(&|name| {
            matches!(
                name,
                "_CHECKPOINT_METADATA" | "manifest.ocdbt" | "_METADATA"
            )
        }) {
            return parts("holds a JAX checkpoint (Orbax)", JAX);
        }
        None
    }

    /// Describes a file of this name in a folder with these names, unless it is a whole model.
    pub fn of_file(name: &str, names: &BTreeSet<String>) -> Option<Self> {
        if let Some((_, number, total, _)) = numbered(name).filter(|(_, _, total, _)| *total > 1) {
            return Some(Self {
                what: format!("is shard {number} of {total} of a model"),
                cure: SHARD,
            });
        }
        let parts = |what: &str, cure| {
            Some(Self {
                what: what.to_owned(),
                cure,
            })
        };
        let siblings = |is: fn(&str) -> bool| names.iter().filter(|name| is(name)).count() > 1;
        if is_distributed(name) {
            return parts(
                "is one rank's part of a distributed checkpoint of PyTorch (FSDP, DCP)",
                DISTRIBUTED,
            );
        }
        if is_zero(name) {
            return parts("is one rank's part of what DeepSpeed's ZeRO saves", ZERO);
        }
        if meta_number(name)
            .is_some_and(|number| number > 0 || siblings(|name| meta_number(name).is_some()))
        {
            return parts(
                "is one of several parts of a model in Meta's own format, which are computed in parallel",
                META,
            );
        }
        if is_torchtune(name) && siblings(is_torchtune) {
            return parts(
                "is one of several parts of a model as torchtune writes them",
                TORCHTUNE,
            );
        }
        if is_verl(name) {
            return parts(
                "is one rank's part of a model that was split by FSDP, as verl saves it",
                VERL,
            );
        }
        None
    }

    /// Returns the error that refuses `path`.
    pub fn on(self, path: &Path) -> Error {
        Error::new(
            Kind::Input,
            "cannot open checkpoint",
            path.display(),
            self.what,
        )
        .with_hint(self.cure)
    }
}

/// Returns the error for the checkpoint at `root` if its tensors, given by name and shape, are
/// mostly empty: ZeRO-3 keeps them elsewhere, and a save without gathering writes empty ones.
pub(super) fn refuse_stubs<'a>(
    root: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [u64])>,
) -> Option<Error> {
    let (mut all, mut empty, mut first) = (0_usize, 0_usize, None);
    for (name, shape) in tensors.filter(|(name, _)| name.ends_with("weight")) {
        all += 1;
        if shape == [0] {
            empty += 1;
            first.get_or_insert(name);
        }
    }
    let first = first.filter(|_| 2 * empty > all)?;
    let cause = format!(
        "{empty} of its {all} weights are empty, {} for one: DeepSpeed's ZeRO-3 leaves such a file when a model is saved \
         without being gathered",
        shown(first)
    );
    let hint = "put the ranks' parts together with `python zero_to_fp32.py . OUT` in the folder of the training's \
                checkpoint, or save with `stage3_gather_16bit_weights_on_model_save`";
    Some(Error::new(Kind::Input, "cannot open checkpoint", root.display(), cause).with_hint(hint))
}

fn is_distributed(name: &str) -> bool {
    name.ends_with(".distcp")
        || name.starts_with("pytorch_model_fsdp")
        || name.starts_with("distributed_checkpoint")
}

fn is_zero(name: &str) -> bool {
    let numbered = |start: &str| name.strip_prefix(start).is_some_and(is_number);
    name.contains("zero_pp_rank_") || name == "zero_to_fp32.py" || numbered("global_step")
}

/// Returns the number of `consolidated.NN.pth`.
fn meta_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("consolidated.")?.strip_suffix(".pth")?;
    digits.parse().ok().filter(|_| is_number(digits))
}

/// Recognises `hf_model_0001_0.pt`, `meta_model_0.pt`, `torchtune_model_0.pt`.
fn is_torchtune(name: &str) -> bool {
    let starts = ["hf_model_", "meta_model_", "torchtune_model_"];
    let rest = starts
        .iter()
        .find_map(|start| name.strip_prefix(start))
        .and_then(|rest| rest.rsplit_once('.'));
    rest.is_some_and(|(numbers, _)| numbers.split('_').all(is_number))
        && weight_format(name).is_some()
}

/// Recognises `model_world_size_8_rank_0.pt`.
fn is_verl(name: &str) -> bool {
    name.starts_with("model_world_size_") && name.contains("_rank_")
}

/// Recognises `mp_rank_00`, `iter_0000100`.
fn is_megatron(name: &str) -> bool {
    ["mp_rank_", "iter_"].iter().any(|start| {
        name.strip_prefix(start)
            .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    })
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
