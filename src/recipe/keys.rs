//! Every key that a recipe may have, in one table, so that every accepted key is documented.

/// The place of a key in a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At the top of a document.
    Document,
    /// In an entry of `models`.
    Model,
    /// In an entry of `slices`.
    Slice,
    /// In an entry of `sources` in a slice.
    Source,
    /// In a module of `modules`.
    Module,
    /// In a model's name written as a mapping.
    Reference,
    /// In `model` of a name written as a mapping.
    ReferencePath,
    /// In `tokenizer`.
    Tokenizer,
    /// In a condition of a parameter.
    Condition,
    /// In `align` written as a mapping.
    Align,
    /// In a rule of `rename`.
    Rename,
}

/// A key and its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its place.
    pub place: Place,
    /// Its name.
    pub key: &'static str,
    /// The values that it takes, in words.
    pub value: &'static str,
    /// Its default; empty when it must be given, `-` when it has none.
    pub default: &'static str,
    /// Its effect, in words.
    pub meaning: &'static str,
    /// True if mergekit has it too.
    pub mergekit: bool,
}

const fn shared(
    place: Place,
    key: &'static str,
    value: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> KeyInfo {
    KeyInfo {
        place,
        key,
        value,
        default,
        meaning,
        mergekit: true,
    }
}

const fn own(
    key: &'static str,
    value: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> KeyInfo {
    KeyInfo {
        place: Place::Document,
        key,
        value,
        default,
        meaning,
        mergekit: false,
    }
}

const fn align(
    key: &'static str,
    value: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> KeyInfo {
    KeyInfo {
        place: Place::Align,
        key,
        value,
        default,
        meaning,
        mergekit: false,
    }
}

const fn rename(
    place: Place,
    key: &'static str,
    value: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> KeyInfo {
    KeyInfo {
        place,
        key,
        value,
        default,
        meaning,
        mergekit: false,
    }
}

const PARAMETER: &str = "number, switch, gradient [a, b, …], or conditions [{filter, value}, …]";
const GRADIENT: &str = "parameters by name. A gradient runs over the layers: t = layer/(n-1) within its slice, 1 for a \
single layer; tensors before and after the layers (the final norm and lm_head too) take the first value, as in mergekit";

/// Every key, in the order in which help lists them.
pub const KEYS: &[KeyInfo] = &[
    shared(
        Place::Document,
        "merge_method",
        "name of a method",
        "",
        "how to merge",
    ),
    shared(
        Place::Document,
        "models",
        "list of models",
        "-",
        "what to merge; one of models, slices, modules",
    ),
    shared(
        Place::Document,
        "slices",
        "list of slices",
        "-",
        "what to stack, each a range of layers of merged sources",
    ),
    shared(
        Place::Document,
        "modules",
        "mapping with one module",
        "-",
        "models or slices of the only module",
    ),
    shared(
        Place::Document,
        "base_model",
        "model",
        "-",
        "the model that others are measured from, or one more model",
    ),
    shared(
        Place::Document,
        "parameters",
        "mapping of parameters",
        "-",
        GRADIENT,
    ),
    shared(
        Place::Document,
        "dtype",
        "float32, bfloat16, …",
        "as stored",
        "dtype of the output unless out_dtype is given",
    ),
    shared(
        Place::Document,
        "out_dtype",
        "float32, bfloat16, …",
        "dtype",
        "dtype of the output",
    ),
    shared(
        Place::Document,
        "tokenizer_source",
        "base or a model",
        "base",
        "whose tokenizer files to copy",
    ),
    shared(
        Place::Document,
        "tokenizer",
        "mapping",
        "-",
        "the same, in full",
    ),
    shared(
        Place::Document,
        "chat_template",
        "auto, a preset or Jinja",
        "as copied",
        "the chat template to write",
    ),
    shared(
        Place::Document,
        "pad_to_multiple_of",
        "whole number",
        "-",
        "rows of embeddings and heads are filled up to this, with zeros (mergekit: the mean row)",
    ),
    shared(
        Place::Document,
        "name",
        "folder name",
        "-",
        "name of a stage, by which later documents take its result",
    ),
    own(
        "granularity",
        "tensor, row, model",
        "tensor",
        "unit over which one mean is taken: each tensor, each row, or the whole model",
    ),
    own(
        "seed",
        "whole number",
        "0",
        "seed of random draws, and of the choice among tied elements",
    ),
    own(
        "ties",
        "spread, first",
        "spread",
        "which of the elements tied at a threshold are kept: evenly over the tensor, or the first ones; for della, equal \
         elements share the mean of their ranks, or have ranks in their order",
    ),
    own(
        "sign_tie",
        "plus, zero",
        "plus",
        "sign that is elected where the weighted differences cancel; zero adds nothing there",
    ),
    own(
        "rescale_by",
        "norm, density, probability",
        "norm",
        "what makes up for dropped elements with `rescale`: the ratio of L1 norms, the density, or each element's own \
         probability",
    ),
    own(
        "weights",
        "list of numbers",
        "-",
        "short for the parameter weight of each model, in order",
    ),
    own(
        "mismatch",
        "error, pad, crop, skip",
        "error",
        "what to do when shapes differ: stop, fill up (with zeros, or with the elements of the base that a method measures \
         from), cut every axis to what all have, take the base's",
    ),
    own(
        "missing",
        "error, common, base",
        "error",
        "what to do when a tensor is not in every model",
    ),
    own(
        "quantised",
        "error, raw",
        "error",
        "what to do with quantised weights: stop, take codes and scales as the numbers that they are stored as",
    ),
    own(
        "nan",
        "error, propagate, base",
        "error",
        "what to do with NaN and infinity in an input",
    ),
    own(
        "out_shard_size",
        "5GB, 2GiB, 5B, bytes",
        "5GB",
        "largest shard that is written; 5B is 5e9 bytes as in mergekit",
    ),
    own(
        "memory",
        "8GiB, 500MB, bytes",
        "by the machine",
        "maximum resident memory of the process",
    ),
    own(
        "threads",
        "1 to 1024",
        "by the machine",
        "number of computing threads",
    ),
    own("zstd", "level 1 to 19", "-", "compress the shards"),
    own(
        "align",
        "weights, a file, files, or a mapping",
        "-",
        "align the models first: match the others to the base (else the first) by their weights, or use transform files, \
         each for its model",
    ),
    own(
        "rename",
        "list of {from, to, model}",
        "-",
        "other names for tensors as they are read: what the regular expression `from` finds becomes `to`, where $1 stands \
         for a group; the first rule that matches a name decides; in a model's entry for that model alone",
    ),
    own(
        "state_dict_key",
        "text",
        "-",
        "key of the state dict in PyTorch files that hold several",
    ),
    own(
        "device",
        "cpu, cuda, cuda:N, auto",
        "cpu",
        "device that computes",
    ),
    own(
        "any_vocabulary",
        "true, false",
        "false",
        "merge models whose tokenizers number their tokens in other ways",
    ),
    own(
        "any_config",
        "true, false",
        "false",
        "merge models by whose configs equal shapes mean different things",
    ),
    shared(
        Place::Model,
        "model",
        "model",
        "",
        "folder, file, or hub id org/name[@revision] in the local cache",
    ),
    shared(
        Place::Model,
        "parameters",
        "mapping of parameters",
        "-",
        "parameters of this model",
    ),
    rename(
        Place::Model,
        "rename",
        "list of {from, to}",
        "-",
        "as at the top, for this model alone, asked before that",
    ),
    shared(
        Place::Slice,
        "sources",
        "list of sources",
        "",
        "the models of this slice",
    ),
    shared(
        Place::Slice,
        "base_model",
        "model",
        "that of the document",
        "the base of this slice",
    ),
    shared(
        Place::Slice,
        "parameters",
        "mapping of parameters",
        "-",
        "parameters of this slice",
    ),
    shared(
        Place::Slice,
        "residual_weight",
        "number",
        "-",
        "accepted for mergekit's sake, without effect there too",
    ),
    shared(Place::Source, "model", "model", "", "as in models"),
    shared(
        Place::Source,
        "layer_range",
        "[first, end]",
        "all layers",
        "layers to take; the end is not taken",
    ),
    shared(
        Place::Source,
        "parameters",
        "mapping of parameters",
        "-",
        "parameters of this source",
    ),
    rename(
        Place::Source,
        "rename",
        "list of {from, to}",
        "-",
        "as in models, for all slices that take from the model",
    ),
    shared(
        Place::Module,
        "models",
        "list of models",
        "-",
        "as at the top",
    ),
    shared(
        Place::Module,
        "slices",
        "list of slices",
        "-",
        "as at the top",
    ),
    shared(
        Place::Module,
        "parameters",
        "mapping of parameters",
        "-",
        "asked before those of the document",
    ),
    shared(
        Place::Reference,
        "model",
        "path or {path, revision}",
        "",
        "the model; a path is never taken apart here",
    ),
    shared(Place::Reference, "lora", "-", "-", "not supported yet"),
    shared(
        Place::Reference,
        "override_architecture",
        "-",
        "-",
        "not supported: names are taken from the files",
    ),
    shared(
        Place::ReferencePath,
        "path",
        "path or hub id",
        "",
        "the model",
    ),
    shared(
        Place::ReferencePath,
        "revision",
        "text",
        "main",
        "branch, tag or commit of the hub",
    ),
    shared(
        Place::Tokenizer,
        "source",
        "base or a model",
        "",
        "whose tokenizer files to copy",
    ),
    shared(Place::Tokenizer, "tokens", "-", "-", "not supported yet"),
    shared(
        Place::Tokenizer,
        "pad_to_multiple_of",
        "whole number",
        "-",
        "as at the top",
    ),
    shared(
        Place::Condition,
        "filter",
        "text",
        "*",
        "fits tensors whose name contains it",
    ),
    shared(
        Place::Condition,
        "value",
        PARAMETER,
        "",
        "the value for these tensors",
    ),
    align(
        "method",
        "weights",
        "-",
        "match weights anew; one of method, files",
    ),
    align(
        "files",
        "a file, a list, or {model: file}",
        "-",
        "transform files, as align writes them",
    ),
    align(
        "cost",
        "normalised, raw",
        "normalised",
        "weight of each tensor: the same for all, or its norm",
    ),
    align(
        "residual",
        "fixed, permute, orthogonal",
        "fixed",
        "leave the units of the residual stream in place, reorder them, or map them by a matrix",
    ),
    align(
        "signs",
        "true, false",
        "true",
        "also find signs and rotations where they are allowed",
    ),
    align(
        "seed",
        "whole number",
        "0",
        "seed for the order in which groups are solved",
    ),
    align(
        "max_sweeps",
        "1 to 1000000",
        "100",
        "maximum number of sweeps over all groups",
    ),
    align(
        "reference",
        "base, mean",
        "base",
        "match to the base, else the first model, or to the mean of all as aligned so far",
    ),
    align("spec", "name or file", "by the model", "the symmetry spec"),
    align(
        "any_vocabulary",
        "true, false",
        "false",
        "align and merge models even if their tokenizers number tokens differently",
    ),
    rename(
        Place::Rename,
        "from",
        "regular expression",
        "",
        "finds what is replaced in a tensor's name, all of it",
    ),
    rename(
        Place::Rename,
        "to",
        "text with $1, ${name}",
        "",
        "what is put there",
    ),
    rename(
        Place::Rename,
        "model",
        "model",
        "all models",
        "whose tensors are renamed",
    ),
];

/// Returns the keys that may stand in `place`.
pub fn keys_of(place: Place) -> impl Iterator<Item = &'static KeyInfo> {
    KEYS.iter().filter(move |info| info.place == place)
}

/// Finds the known name that `word` is most likely meant to be; `None` when all are too far off.
///
/// Distance counts inserted, dropped and changed letters and swapped neighbours (optimal string
/// alignment).
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words than any known one are not worth a quadratic comparison.
    let limit = (word.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .filter(|name| name.len().abs_diff(word.len()) <= 2 * limit)
        .map(|name| (distance(word, name), name))
        .filter(|&(distance, _)| distance <= limit)
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}

pub(super) fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.to_lowercase().chars().collect();
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_leads_to_the_key_that_was_meant() {
        let keys = || keys_of(Place::Document).map(|info| info.key);
        for (typed, meant) in [
            ("merge_metod", "merge_method"),
            ("mergemethod", "merge_method"),
            ("modles", "models"),
            ("Base_Model", "base_model"),
            ("out_dytpe", "out_dtype"),
            ("tokeniser_source", "tokenizer_source"),
        ] {
            assert_eq!(nearest(typed, keys()), Some(meant), "{typed}");
        }
        for typed in ["", "xyzzy", "temperature"] {
            assert_eq!(nearest(typed, keys()), None, "{typed}");
        }
    }

    #[test]
    fn distances_are_those_worked_out_by_hand() {
        for (a, b, steps) in [
            ("", "", 0),
            ("abc", "", 3),
            ("ca", "abc", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 1),
        ] {
            assert_eq!(distance(a, b), steps, "{a} {b}");
        }
    }

    #[test]
    fn no_key_is_listed_twice_in_one_place() {
        for (index, info) in KEYS.iter().enumerate() {
            let same = |other: &KeyInfo| other.place == info.place && other.key == info.key;
            assert!(!KEYS[index + 1..].iter().any(same), "{}", info.key);
        }
    }
}
