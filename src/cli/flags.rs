//! Checks the flags before anything else: finds the output, tells recipes from models, refuses
//! arguments that are neither.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::device::Choice;
use crate::error::{Error, Kind, Result};
use crate::recipe::{KEYS, MAX_RECIPE_BYTES, Place};

use super::args::JobArgs;
use super::job::inputs;

/// Checks the flags of `merge` and `plan` and fills in the output.
///
/// # Errors
///
/// [`Kind::Usage`] when there is no output, or an argument given as a model cannot be one.
pub fn complete_flags(args: &mut JobArgs) -> Result<()> {
    args.mergekit.refuse()?;
    if args.mergekit.asks_for_a_device() {
        args.device = args.device.or(Some(Choice::Cuda(0)));
    }
    args.memory.threads = args.memory.threads.or(args.mergekit.threads()?);
    args.shard_size = args.shard_size.or(args.mergekit.shard_size()?);
    refuse_stray_weights(args)?;
    // mergekit takes the output as the argument after the recipe.
    if args.out_given.is_none()
        && let [recipe, _] = args.inputs.as_slice()
        && is_recipe(recipe)
    {
        args.out_given = args.inputs.pop();
    }
    let Some(out) = &args.out_given else {
        return Err(usage("--out", "is needed and was not given")
            .with_hint("name the folder to write, --out DIR, or one file, --out X.safetensors"));
    };
    args.out = out.clone();
    inputs(args).iter().try_for_each(|path| refuse_text(path))
}

/// Refuses numbers after `--weights` that were taken for models: weights are separated by commas.
fn refuse_stray_weights(args: &JobArgs) -> Result<()> {
    let Some(weights) = &args.weights else {
        return Ok(());
    };
    let found: Vec<&str> = args
        .inputs
        .iter()
        .filter(|path| is_stray_number(path))
        .filter_map(|path| path.to_str())
        .collect();
    let Some(first) = found.first() else {
        return Ok(());
    };
    let all: Vec<String> = weights
        .iter()
        .map(f64::to_string)
        .chain(found.iter().map(|text| (*text).to_owned()))
        .collect();
    let cause =
        format!("`{first}` stands where a model is expected, and no file or folder is called so");
    let all: Vec<&str> = all.iter().map(|text| text.trim_matches(',')).collect();
    Err(usage("--weights", &cause).with_hint(format!(
        "separate weights by commas: --weights {}",
        all.join(",")
    )))
}

fn is_stray_number(path: &std::path::Path) -> bool {
    let text = path.to_str().map(|text| text.trim_matches(','));
    text.is_some_and(|text| text.parse::<f64>().is_ok()) && !path.exists()
}

/// Refuses a text file that is not a recipe, with a message for the kind of text.
fn refuse_text(path: &Path) -> Result<()> {
    if is_recipe(path) {
        return Ok(());
    }
    let Some(text) = text_of(path) else {
        return Ok(());
    };
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_json = text.trim_start().starts_with('{')
        && serde_json::from_str::<serde_json::Value>(&text).is_ok();
    let (cause, hint) = if is_json && text.contains("\"weight_map\"") {
        (
            "is the index of a checkpoint, not the checkpoint",
            "name the folder that it lies in",
        )
    } else if is_json && (name == "config.json" || text.contains("\"architectures\"")) {
        (
            "is the configuration of a model, not its weights",
            "name the folder that it lies in",
        )
    } else {
        (
            "is text, neither a checkpoint nor a recipe",
            "a recipe has `merge_method` and `models` or `slices`",
        )
    };
    Err(Error::new(Kind::Usage, "cannot merge", path.display(), cause).with_hint(hint))
}

/// Tells if a file is a recipe: by its name, else by its content.
pub fn is_recipe(path: &Path) -> bool {
    let named = path
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("yml") || end.eq_ignore_ascii_case("yaml"));
    named || text_of(path).is_some_and(|text| reads_like_a_recipe(&text))
}

/// Keys that mark a recipe, including those of mergekit's other programs, which are refused by
/// name.
const TELLING: [&str; 7] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "experts",
    "genome",
    "layer_slices",
];

/// Tells if a line begins with a key that only recipes have. A damaged recipe counts as one too.
fn reads_like_a_recipe(text: &str) -> bool {
    debug_assert!(
        KEYS.iter()
            .any(|info| info.place == Place::Document && info.key == TELLING[0])
    );
    // JSON may be on a single line.
    text.lines().any(|line| {
        begins_with_key(line) || line.starts_with('{') && line.split(',').any(begins_with_key)
    })
}

/// True if a line, or a part of JSON on one line, begins with a key that only recipes have.
fn begins_with_key(line: &str) -> bool {
    let line = line.trim_start_matches(['{', ' ', '\t', '"', '-']);
    TELLING.iter().any(|key| {
        let rest = line.strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start_matches(['"', ' ']).starts_with(':'))
    })
}

/// Returns the text of a small regular file; `None` for anything else, such as weights.
fn text_of(path: &Path) -> Option<String> {
    // Opening a pipe would wait for a writer.
    if !path.is_file() {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    let (head, most) = (4096, MAX_RECIPE_BYTES as u64);
    file.by_ref().take(head).read_to_end(&mut bytes).ok()?;
    let odd = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    if bytes.is_empty() || bytes.iter().any(odd) {
        return None;
    }
    file.take(most).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() as u64 <= most)
}

fn usage(subject: &str, cause: &str) -> Error {
    Error::new(Kind::Usage, "cannot use the command line", subject, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_known_by_what_they_say() {
        for text in [
            "merge_method: karcher\nmodels: [a, b]\n",
            "# a comment\nslices:\n  - sources: []\n",
            "{\"models\": [\"a\"], \"merge_method\": \"linear\"}",
            "{\"dtype\": \"bfloat16\", \"merge_method\": \"linear\"}",
            "merge_method:karcher\nmodels: [a]\n",
            "---\nexperts:\n  - source_model: a\n",
        ] {
            assert!(reads_like_a_recipe(text), "{text}");
        }
        for text in [
            "",
            "models of the year\n",
            "{\"architectures\": [\"LlamaForCausalLM\"]}",
            "modelsx: 1",
        ] {
            assert!(!reads_like_a_recipe(text), "{text}");
        }
    }

    #[test]
    fn only_small_text_files_are_looked_into() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("r"), "models: []\n").expect("written");
        std::fs::write(at("b"), [8, 0, 0, 0, 0, 0, 0, 0, b'{']).expect("written");
        std::fs::write(at("empty"), []).expect("written");
        assert!(is_recipe(&at("r")) && text_of(dir.path()).is_none());
        assert!(
            text_of(&at("b")).is_none()
                && text_of(&at("empty")).is_none()
                && text_of(&at("absent")).is_none()
        );
    }
}
