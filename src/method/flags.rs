//! The odd cases that a merge met.

use std::ops::BitOrAssign;

use serde::{Deserialize, Serialize};

/// The odd cases that a merge met; all are false in an ordinary merge.
///
/// Flags of rows or tensors are gathered with `|=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Flags {
    /// Some inputs are zero.
    #[serde(skip_serializing_if = "unset")]
    pub zero_inputs: bool,
    /// All inputs that take part are zero.
    #[serde(skip_serializing_if = "unset")]
    pub all_zero: bool,
    /// All inputs have the same inner products.
    #[serde(skip_serializing_if = "unset")]
    pub equal_inputs: bool,
    /// An input lies opposite to the mean, or two inputs that span an arc are opposite.
    #[serde(skip_serializing_if = "unset")]
    pub opposite: bool,
    /// The mean of the directions vanishes.
    #[serde(skip_serializing_if = "unset")]
    pub mean_vanishes: bool,
    /// An input is more than a right angle from the mean.
    #[serde(skip_serializing_if = "unset")]
    pub beyond_right_angle: bool,
    /// A formula had no value, so the linear combination was used.
    #[serde(skip_serializing_if = "unset")]
    pub linear_instead: bool,
    /// A formula had no value, so the base was kept.
    #[serde(skip_serializing_if = "unset")]
    pub base_kept: bool,
    /// An input was not finite, so the base was used instead.
    #[serde(skip_serializing_if = "unset")]
    pub nonfinite_base: bool,
    /// The iteration ended at its limit.
    #[serde(skip_serializing_if = "unset")]
    pub not_converged: bool,
}

/// True if a flag is left out of the output; serde requires this signature.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn unset(flag: &bool) -> bool {
    !flag
}

impl Flags {
    /// True if no odd case was met.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Lists a sentence for each flag that is set, for a report.
    pub fn sentences(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            (
                self.zero_inputs,
                "an input is zero: it has no direction and counts for the norm only",
            ),
            (
                self.all_zero,
                "all inputs with a weight are zero, and so is the result",
            ),
            (self.equal_inputs, "all inputs are equal"),
            (
                self.opposite,
                "an input is opposite to the mean: no shortest arc leads to it, so it gave no direction",
            ),
            (
                self.mean_vanishes,
                "the inputs' directions cancel: the direction of the largest weight was taken instead",
            ),
            (
                self.beyond_right_angle,
                "an input is more than a right angle from the mean: the mean may not be unique",
            ),
            (
                self.linear_instead,
                "the arc between the inputs is not defined: a linear combination was taken",
            ),
            (
                self.base_kept,
                "the inputs leave no defined distance from the base: the base was kept",
            ),
            (
                self.nonfinite_base,
                "an input holds NaN or infinity: the base was taken instead",
            ),
            (
                self.not_converged,
                "the iteration ended at its limit before it had converged",
            ),
        ];
        all.into_iter()
            .filter_map(|(set, sentence)| set.then_some(sentence))
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Self) {
        self.zero_inputs |= other.zero_inputs;
        self.all_zero |= other.all_zero;
        self.equal_inputs |= other.equal_inputs;
        self.opposite |= other.opposite;
        self.mean_vanishes |= other.mean_vanishes;
        self.beyond_right_angle |= other.beyond_right_angle;
        self.linear_instead |= other.linear_instead;
        self.base_kept |= other.base_kept;
        self.nonfinite_base |= other.nonfinite_base;
        self.not_converged |= other.not_converged;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes each flag alone from its serialised name, so that a new field cannot be forgotten
    /// here.
    fn each_alone() -> Vec<Flags> {
        let debug = format!("{:?}", Flags::default());
        let names: Vec<&str> = debug
            .split(['{', ',', '}'])
            .filter_map(|part| part.split_once(':'))
            .map(|p| p.0)
            .collect();
        names
            .iter()
            .map(|name| {
                serde_json::from_str(&format!("{{\"{}\":true}}", name.trim())).expect("a flag")
            })
            .collect()
    }

    #[test]
    fn every_flag_has_a_sentence_and_survives_gathering_and_storing() {
        let mut gathered = Flags::default();
        assert!(gathered.is_empty());
        for (k, flags) in each_alone().into_iter().enumerate() {
            assert_eq!(flags.sentences().count(), 1, "{flags:?}");
            gathered |= flags;
            assert_eq!(gathered.sentences().count(), k + 1, "{flags:?}");
            let text = serde_json::to_string(&gathered).expect("serialises");
            assert_eq!(
                serde_json::from_str::<Flags>(&text).expect("parses"),
                gathered
            );
        }
        assert_eq!(
            serde_json::to_string(&Flags::default()).expect("serialises"),
            "{}"
        );
    }
}
