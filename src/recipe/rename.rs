//! The key `rename`: gives tensors of an input the names that they have in the output.

use regex::Regex;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::model_ref::ModelRef;
use super::write::entry;

/// A rule by which the tensors of an input get other names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rename {
    /// The model whose tensors are renamed; those of all models when `None`.
    pub model: Option<ModelRef>,
    /// The pattern of the text that is replaced in a name.
    pub from: Pattern,
    /// The replacement; `$1` or `${name}` stands for a group of the pattern.
    pub to: String,
}

/// A regular expression, equal to another one of the same text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Rename {
    /// Makes the rule that replaces matches of the expression `from` by `to`, in `model` or in all
    /// models.
    ///
    /// # Errors
    ///
    /// A sentence, for an expression that is invalid or empty, and for groups in `to` that it does
    /// not have.
    pub fn new(model: Option<ModelRef>, from: &str, to: &str) -> Result<Self, String> {
        if from.is_empty() {
            return Err(
                "the regular expression is empty, so it would match between all letters".into(),
            );
        }
        let regex = Regex::new(from).map_err(|error| {
            let text = error.to_string();
            let cause = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ")
                .to_owned();
            format!("`{from}` is not a regular expression: {cause}")
        })?;
        check_template(&regex, from, to)?;
        Ok(Self {
            model,
            from: Pattern(regex),
            to: to.to_owned(),
        })
    }

    /// Parses a rule in `REGEX=TEMPLATE`.
    ///
    /// # Errors
    ///
    /// A sentence, when there is no `=` and as [`new`](Self::new).
    pub fn parse(model: Option<ModelRef>, text: &str) -> Result<Self, String> {
        let (from, to) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` has no `=`: write REGEX=TEMPLATE"))?;
        Self::new(model, from, to)
    }

    /// Returns the new name of the tensor `name`; `None` when the rule does not match it.
    pub fn apply(&self, name: &str) -> Option<String> {
        let Pattern(regex) = &self.from;
        regex
            .is_match(name)
            .then(|| regex.replace_all(name, self.to.as_str()).into_owned())
    }
}

impl Pattern {
    /// Returns the text of the expression.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

/// Checks that every group in `to` exists: a missing one would be replaced by nothing.
fn check_template(regex: &Regex, from: &str, to: &str) -> Result<(), String> {
    let mut rest = to;
    while let Some(at) = rest.find('$') {
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            rest = after;
            continue;
        }
        let braced = rest
            .strip_prefix('{')
            .and_then(|inner| inner.split_once('}'));
        let plain_end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let group = braced.map_or(&rest[..plain_end], |(group, _)| group);
        let known = match group.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => regex.capture_names().flatten().any(|name| name == group),
        };
        if !known {
            let help = match group.find(|c: char| !c.is_ascii_digit()) {
                Some(digits) if digits > 0 && braced.is_none() => {
                    format!("; write `${{{}}}{}`", &group[..digits], &group[digits..])
                }
                _ => "; `$$` stands for a dollar".to_owned(),
            };
            return Err(format!(
                "`{to}` names the group `${group}`, which `{from}` does not have{help}"
            ));
        }
    }
    Ok(())
}

impl Serialize for Rename {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        entry(&mut map, "model", self.model.as_ref())?;
        map.serialize_entry("from", self.from.as_str())?;
        map.serialize_entry("to", &self.to)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renamed(rule: &str, name: &str) -> Option<String> {
        Rename::parse(None, rule).expect("a rule").apply(name)
    }

    #[test]
    fn a_rule_replaces_all_that_it_finds_and_leaves_other_names_alone() {
        for (rule, name, wanted) in [
            (
                r"^model\.(.*)$=model.language_model.$1",
                "model.norm.weight",
                Some("model.language_model.norm.weight"),
            ),
            (
                r"^model\.(.*)$=model.language_model.$1",
                "lm_head.weight",
                None,
            ),
            (r"_orig_mod\.=", "a._orig_mod.b._orig_mod.c", Some("a.b.c")),
            (r"^(?<layer>h\.\d+)=x.${layer}y", "h.3.w", Some("x.h.3y.w")),
            (
                r"^=transformer.",
                "wte.weight",
                Some("transformer.wte.weight"),
            ),
            (r"w=a=b", "w", Some("a=b")),
            (r"w=$$1", "w", Some("$1")),
        ] {
            assert_eq!(renamed(rule, name).as_deref(), wanted, "{rule} {name}");
        }
    }

    #[test]
    fn rules_that_would_lose_something_are_refused_with_what_to_write() {
        for (rule, words) in [
            ("(a=b", "not a regular expression"),
            ("=b", "is empty"),
            ("ab", "write REGEX=TEMPLATE"),
            ("(a)=$1_x", "write `${1}_x`"),
            ("(a)=$2", "`$2`, which `(a)` does not have"),
            ("(a)=${name}", "`$name`"),
            ("(a)=5$", "`$$` stands for a dollar"),
        ] {
            let sentence = Rename::parse(None, rule).expect_err(rule);
            assert!(sentence.contains(words), "{rule}: {sentence}");
        }
    }
}
