//! Warns of weights in a folder beside those that are read, so that nobody takes them for the
//! merged ones.

use std::collections::BTreeSet;

use super::adapter::is_adapter_file;
use super::folder::{FORMATS, is_training_state};
use super::side::{index_format, weight_format};

/// The most files that a warning names.
const NAMED: usize = 4;
/// Precisions and other forms of the same weights, between the name of a file and its ending.
const VARIANTS: [&str; 8] = [
    "fp16", "fp32", "bf16", "fp8", "int8", "ema", "non_ema", "non-ema",
];

/// Returns the warning about weights in `names` that are not among the `taken` files; `index` is
/// the index of these.
pub(super) fn warning(
    names: &BTreeSet<String>,
    taken: &[String],
    index: Option<&str>,
) -> Option<String> {
    let is_read = |name: &str| {
        FORMATS
            .iter()
            .any(|format| [weight_format(name), index_format(name)].contains(&Some(*format)))
    };
    let others: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| is_read(name) && !is_training_state(name))
        .filter(|name| !taken.iter().any(|taken| taken == name) && Some(*name) != index)
        .collect();
    let what = match (index, taken) {
        (Some(index), _) => format!("the shards of {index} are"),
        (None, [only]) => format!("{only} is"),
        (None, _) => format!("its {} safetensors files are", taken.len()),
    };
    let adapters = others.iter().any(|name| is_adapter_file(name));
    let as_usual = if adapters {
        ""
    } else {
        ", as transformers would"
    };
    let more = match others.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let listed: Vec<&str> = others.iter().take(NAMED).copied().collect();
    (!others.is_empty()).then(|| {
        format!(
            "{what} read{as_usual}; {}{more} beside are not",
            listed.join(", ")
        )
    })
}

/// Returns the name of the file that this one is a variant of, as `model.fp16.safetensors` of
/// `model.safetensors`.
pub(super) fn variant_of(name: &str) -> Option<String> {
    VARIANTS.iter().find_map(|variant| {
        let inner = format!(".{variant}");
        let at = name.find(&format!("{inner}.")).or_else(|| {
            name.find(&format!("{inner}-0"))
                .filter(|at| name[at + inner.len()..].contains("-of-"))
        })?;
        Some(format!("{}{}", &name[..at], &name[at + inner.len()..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_lead_to_the_file_that_they_stand_for() {
        let of = |name| variant_of(name);
        assert_eq!(
            of("model.fp16.safetensors").as_deref(),
            Some("model.safetensors")
        );
        assert_eq!(
            of("model.fp16-00001-of-00002.safetensors").as_deref(),
            Some("model-00001-of-00002.safetensors")
        );
        assert_eq!(of("v1.5.safetensors"), None);
        assert_eq!(of("model.safetensors"), None);
    }
}
