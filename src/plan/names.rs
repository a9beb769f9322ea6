//! Finds the part, such as a prefix, by which all names of one input differ from those of another.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// The most names from which edits are derived; each edit is then tried on all names.
const PROBES: usize = 32;

/// The most counterparts of one name that are tried.
const COUNTERPARTS: usize = 8;

/// Prefixes in which training programs wrap modules; a model is better off without them.
const WRAPPERS: [&str; 8] = [
    "module.",
    "_orig_mod.",
    "base_model.model.",
    "_forward_module.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "student.",
    "ema_model.",
];

/// A change of names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Edit {
    /// Replaces the beginning.
    Prefix {
        /// The old beginning, final dot included; may be empty.
        from: String,
        /// The new beginning.
        to: String,
    },
    /// Leaves out words, wherever they stand.
    Without(String),
}

impl Edit {
    /// Finds the edit that turns most names of `own` into names of `wanted`, and how many it turns.
    /// No name may be in both.
    ///
    /// `None` unless it explains more than half of the shorter list.
    pub fn between(own: &[&str], wanted: &[&str]) -> Option<(Self, usize)> {
        let known: HashSet<&str> = wanted.iter().copied().collect();
        let mut by_tail: HashMap<&str, Vec<&str>> = HashMap::new();
        for name in wanted {
            by_tail.entry(tail(name)).or_default().push(name);
        }
        let mut edits: HashSet<Self> = HashSet::new();
        for probe in own.iter().step_by(own.len().div_ceil(PROBES).max(1)) {
            for other in nearest(
                probe,
                by_tail.get(tail(probe)).map_or(&[][..], Vec::as_slice),
            ) {
                edits.extend(Self::of_pair(probe, other));
            }
        }
        let counted = edits.into_iter().map(|edit| {
            let made = own
                .iter()
                .filter(|name| edit.apply(name).is_some_and(|new| known.contains(&*new)))
                .count();
            (edit, made)
        });
        // Ties go to a prefix, then to the shortest, then to the first in the alphabet: the answer
        // is the same each time.
        let best = counted.max_by_key(|(edit, made)| {
            let rule = edit.rule();
            (
                *made,
                matches!(edit, Self::Prefix { .. }),
                Reverse((rule.0.len() + rule.1.len(), rule)),
            )
        })?;
        (best.1 * 2 > own.len().min(wanted.len())).then_some(best)
    }

    /// Returns the edits that turn `from` into `to`.
    fn of_pair(from: &str, to: &str) -> Vec<Self> {
        let (a, b): (Vec<&str>, Vec<&str>) = (from.split('.').collect(), to.split('.').collect());
        let same_end = a
            .iter()
            .rev()
            .zip(b.iter().rev())
            .take_while(|(one, two)| one == two)
            .count();
        let (a, b) = (&a[..a.len() - same_end], &b[..b.len() - same_end]);

        let mut edits = Vec::new();
        // No edit may turn one layer into another, however alike they are.
        let has_number = |words: &[&str]| words.iter().any(|word| word.parse::<u32>().is_ok());
        if same_end > 0 && a.len() + b.len() > 0 && !has_number(a) && !has_number(b) {
            edits.push(Self::Prefix {
                from: dotted(a),
                to: dotted(b),
            });
        }
        let same_begin = a.iter().zip(b).take_while(|(one, two)| one == two).count();
        let extra = &a[same_begin..];
        if b.len() == same_begin && !extra.is_empty() && !has_number(extra) {
            edits.push(Self::Without(dotted(extra)));
        }
        edits
    }

    /// Returns the new name; `None` when the edit does not apply.
    pub fn apply(&self, name: &str) -> Option<String> {
        match self {
            Self::Prefix { from, to } => name
                .strip_prefix(from.as_str())
                .map(|rest| format!("{to}{rest}")),
            Self::Without(words) => {
                let spaced = format!(".{name}");
                let without = spaced.replace(&format!(".{words}"), ".");
                (without != spaced).then(|| without[1..].to_owned())
            }
        }
    }

    /// Returns the edit as a rule of `rename`: regular expression and template.
    pub fn rule(&self) -> (String, String) {
        match self {
            Self::Prefix { from, to } => {
                (format!("^{}", regex::escape(from)), to.replace('$', "$$"))
            }
            Self::Without(words) => (format!(r"(^|\.){}", regex::escape(words)), "$1".to_owned()),
        }
    }

    /// Tells if it only adds prefixes in which training programs wrap modules.
    pub fn wraps(&self) -> bool {
        match self {
            Self::Prefix { from, to } => to.strip_suffix(from.as_str()).is_some_and(is_wrapper),
            Self::Without(_) => false,
        }
    }

    /// Describes the difference in words.
    pub fn words(&self) -> String {
        match self {
            Self::Prefix { from, to } if from.is_empty() => format!("a prefix: they lack `{to}`"),
            Self::Prefix { from, to } if to.is_empty() => {
                format!("a prefix: they begin with `{from}`")
            }
            Self::Prefix { from, to } => {
                format!("a prefix: they begin with `{from}` instead of `{to}`")
            }
            Self::Without(words) => format!("`{words}`, which stands in them"),
        }
    }
}

fn is_wrapper(words: &str) -> bool {
    let mut rest = words;
    while let Some(wrapper) = WRAPPERS.iter().find(|wrapper| rest.starts_with(**wrapper)) {
        rest = &rest[wrapper.len()..];
    }
    !words.is_empty() && rest.is_empty()
}

/// Returns the last two words of a name.
fn tail(name: &str) -> &str {
    let mut dots = name.rmatch_indices('.').map(|(at, _)| at + 1);
    dots.next();
    dots.next().map_or(name, |at| &name[at..])
}

/// Returns those of `others` that share the longest ending with `name`.
fn nearest<'a>(name: &str, others: &[&'a str]) -> Vec<&'a str> {
    let same = |other: &str| count_same_end(name, other);
    let longest = others.iter().map(|other| same(other)).max().unwrap_or(0);
    others
        .iter()
        .filter(|other| same(other) == longest)
        .take(COUNTERPARTS)
        .copied()
        .collect()
}

/// Counts the words at their ends that two names share.
fn count_same_end(name: &str, other: &str) -> usize {
    let words = name.split('.').rev().zip(other.split('.').rev());
    words.take_while(|(a, b)| a == b).count()
}

/// Joins words with a dot behind each.
fn dotted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word}.")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [&str; 5] = [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ];

    fn found(own: &[&str], wanted: &[&str]) -> Option<(String, String)> {
        Edit::between(own, wanted).map(|(edit, _)| edit.rule())
    }

    #[test]
    fn prefixes_and_words_between_are_found_from_the_names_alone() {
        for (make, from, to) in [
            (
                (|name| format!("module.{name}")) as fn(&str) -> String,
                r"^module\.",
                "",
            ),
            (|name| name.replacen("model.", "", 1), "^", "model."),
            (
                |name| name.replacen("model.", "model.language_model.", 1),
                r"^model\.language_model\.",
                "model.",
            ),
            (
                |name| name.replacen("model.", "transformer.", 1),
                r"^transformer\.",
                "model.",
            ),
            (
                |name| {
                    name.replace("0.", "0._orig_mod.")
                        .replace("1.", "1._orig_mod.")
                },
                r"(^|\.)_orig_mod\.",
                "$1",
            ),
        ] {
            let own: Vec<String> = MODEL
                .iter()
                .map(|name| make(name))
                .filter(|name| !MODEL.contains(&&**name))
                .collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            let wanted: Vec<&str> = MODEL
                .iter()
                .filter(|name| !own.contains(*name))
                .copied()
                .collect();
            let edit = Edit::between(&own, &wanted)
                .expect("they differ by one thing")
                .0;
            assert_eq!(edit.rule(), (from.to_owned(), to.to_owned()));
            for name in own {
                let renamed = crate::recipe::Rename::new(None, &edit.rule().0, &edit.rule().1)
                    .expect("a rule")
                    .apply(name);
                assert_eq!(renamed, edit.apply(name), "{name}");
            }
        }
    }

    #[test]
    fn other_layers_and_other_architectures_are_no_difference_in_a_prefix() {
        assert_eq!(
            found(
                &["h.4.attn.weight", "h.4.mlp.weight"],
                &["h.5.attn.weight", "h.5.mlp.weight"]
            ),
            None
        );
        assert_eq!(
            found(&["conv1.weight", "layer1.0.conv1.weight"], &MODEL),
            None
        );
        assert_eq!(found(&[], &MODEL), None);
        assert_eq!(found(&MODEL, &[]), None);
    }

    #[test]
    fn what_wraps_a_model_is_told_from_what_belongs_to_it() {
        let prefix = |from: &str, to: &str| Edit::Prefix {
            from: from.to_owned(),
            to: to.to_owned(),
        };
        assert!(prefix("", "module.").wraps());
        assert!(prefix("model.", "base_model.model._orig_mod.model.").wraps());
        assert!(!prefix("", "model.").wraps());
        assert!(!prefix("module.", "").wraps());
    }
}
