//! The doors to a merge, a recipe or flags: messages name settings in the words of the door that
//! the user came in by.
//!
//! Texts of the library name a setting as a recipe does, between backticks: `` `missing: common` ``
//! with a value, `` `base_model:` `` without one. [`Door::words`] turns these into the flags of a
//! command line where the user typed flags. Settings that have one name at both doors (`--memory`,
//! `--restart`) are named by their flags, as they may stand beside a recipe too.

use std::borrow::Cow;

/// The form in which a user gives settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Door {
    /// In a recipe, or through the library.
    #[default]
    Recipe,
    /// By flags of `merge`, `plan` or `verify --against`.
    Flags,
    /// By flags of a command that has no recipe, such as `align`.
    Command,
}

/// Settings of a recipe, each with the flag of `merge` for the same setting.
const FLAGS: &[(&str, &str)] = &[
    ("merge_method", "--method"),
    ("models", "--models"),
    ("weights", "--weights"),
    ("base_model", "--base"),
    ("granularity", "--granularity"),
    ("seed", "--seed"),
    ("ties", "--ties"),
    ("sign_tie", "--sign-tie"),
    ("rescale_by", "--rescale-by"),
    ("max_iter", "--max-iter"),
    ("tol", "--tol"),
    ("parameters", "--parameter"),
    ("dtype", "--dtype"),
    ("out_dtype", "--dtype"),
    ("out_shard_size", "--shard-size"),
    ("missing", "--missing"),
    ("mismatch", "--mismatch"),
    ("nan", "--nan"),
    ("rename", "--rename"),
    ("quantised", "--quantised"),
    ("state_dict_key", "--state-dict-key"),
    ("memory", "--memory"),
    ("threads", "--threads"),
    ("zstd", "--zstd"),
    ("device", "--device"),
    ("align", "--align"),
    ("reference", "--align-reference"),
    ("residual", "--align-residual"),
    ("spec", "--spec"),
    ("any_vocabulary", "--any-vocabulary"),
    ("any_config", "--any-config"),
];

/// The settings that `align`, `apply` and similar commands have too, with their flags there.
const OF_COMMANDS: &[(&str, &str)] = &[
    ("residual", "--residual"),
    ("reference", "--reference"),
    ("spec", "--spec"),
    ("quantised", "--quantised"),
    ("any_vocabulary", "--any-vocabulary"),
    ("any_config", "--any-config"),
    ("memory", "--memory"),
    ("threads", "--threads"),
    ("device", "--device"),
];

/// Returns the flag of `merge` for the recipe's key `key`.
pub fn flag_of(key: &str) -> Option<&'static str> {
    FLAGS
        .iter()
        .find(|(known, _)| *known == key)
        .map(|(_, flag)| *flag)
}

impl Door {
    /// Returns `text` with its settings in the words of this door.
    pub fn words(self, text: &str) -> Cow<'_, str> {
        if self == Self::Recipe || !text.contains('`') {
            return Cow::Borrowed(text);
        }
        let mut out = String::with_capacity(text.len());
        // Parts at odd places stand between backticks; an unpaired backtick at the end opens none.
        let parts: Vec<&str> = text.split('`').collect();
        for (index, part) in parts.iter().enumerate() {
            let quoted = index % 2 == 1 && index + 1 < parts.len();
            match self.setting(part).filter(|_| quoted) {
                Some(flag) => out.push_str(&format!("`{flag}`")),
                None if quoted => out.push_str(&format!("`{part}`")),
                None if index % 2 == 1 => out.push_str(&format!("`{part}")),
                None => out.push_str(part),
            }
        }
        Cow::Owned(out)
    }

    /// Returns a setting in this door's words; `None` if `text` is not a setting.
    fn setting(self, text: &str) -> Option<String> {
        let (key, value) = text.split_once(':')?;
        let value = value.strip_prefix(' ').unwrap_or(value);
        let flag = match self {
            Self::Recipe => return None,
            Self::Flags => flag_of(key)?.to_owned(),
            Self::Command => match OF_COMMANDS.iter().find(|(known, _)| *known == key) {
                Some((_, flag)) => (*flag).to_owned(),
                None => format!("merge {}", flag_of(key)?),
            },
        };
        Some(match value {
            // A switch without a value is on.
            "" | "true" => flag,
            // A recipe names the base as a model, the flag gives its position.
            _ if key == "base_model" => format!("{flag} 1"),
            // Parameters are a mapping in a recipe, NAME=VALUE in flags.
            _ if key == "parameters" => {
                format!(
                    "{flag} {}",
                    value.trim_matches(['{', '}']).trim().replacen(": ", "=", 1)
                )
            }
            _ => format!("{flag} {value}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_as_the_door_has_them() {
        let text = "the tensor `nan` lacks `base_model:`; say `missing: common`, `skip` or `parameters: {t: 0.5}`";
        assert_eq!(Door::Recipe.words(text), text);
        let flags = "the tensor `nan` lacks `--base`; say `--missing common`, `skip` or `--parameter t=0.5`";
        assert_eq!(Door::Flags.words(text), flags);
        assert_eq!(
            Door::Command.words("say `state_dict_key: a.b`"),
            "say `merge --state-dict-key a.b`"
        );
        assert_eq!(
            Door::Command.words("`residual: fixed`"),
            "`--residual fixed`"
        );
        assert_eq!(
            Door::Command.words("`any_vocabulary: true`"),
            "`--any-vocabulary`"
        );
        assert_eq!(Door::Flags.words("`base_model: org/a`"), "`--base 1`");
    }

    #[test]
    fn whatever_else_stands_between_backticks_is_left_alone() {
        for text in [
            "",
            "`",
            "a ` b",
            "`a` `",
            "`org: x` and `a::b`",
            "no `tensor.weight` at `0`",
            "``",
        ] {
            assert_eq!(Door::Flags.words(text), text);
        }
    }
}
