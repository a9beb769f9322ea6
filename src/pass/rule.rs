//! The rule that computes the output from the elements of a group: plain data, applied by chunk,
//! saved.

use std::ops::Range;

use serde_json::{Value, json};

use crate::error::{Error, Kind, Result};
use crate::method::Solution;
use crate::method::elementwise::ElementRule;
use crate::plan::tensor::TensorPlan;

use super::bench::{Bench, Piece, Run, sliced};
use super::by_column::ByColumn;
use super::found::Found;
use super::let_through::let_through;
use super::policy::Policy;
use super::stretch::method_of;

/// The key of a saved rule by columns.
const BY_COLUMN: &str = "by_column";
/// The key of a saved rule by elements.
const BY_ELEMENT: &str = "by_element";

/// The rule that computes the elements of a group.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// A weighted sum of the inputs.
    Combine(Solution),
    /// A weighted sum for each vector along the first axis.
    ByColumn(ByColumn),
    /// A selection and a mix of differences, element by element.
    ByElement(Box<ElementRule>),
}

impl Rule {
    /// The rule that takes a group from the base of `tensor`, because another input is not finite.
    ///
    /// # Errors
    ///
    /// [`Kind::NonFinite`] when the base does not have the tensor.
    pub(super) fn base_instead(tensor: &TensorPlan) -> Result<Self> {
        base_instead(tensor).map(Self::Combine)
    }

    /// The findings of the solver.
    pub fn found(&self) -> Found {
        match self {
            Self::Combine(solution) => Found::of(&solution.facts),
            Self::ByColumn(columns) => columns.found.clone(),
            Self::ByElement(rule) => Found::of_elements(rule),
        }
    }

    /// Returns the rule as JSON in which every number keeps its bits: a weighted sum as the object
    /// of its fields, any other as an object with one key, the kind.
    pub fn save(&self) -> Value {
        match self {
            Self::Combine(solution) => json!(solution),
            Self::ByColumn(columns) => json!({ BY_COLUMN: columns }),
            Self::ByElement(rule) => json!({ BY_ELEMENT: rule }),
        }
    }

    /// Reads the rule that was saved as `value`.
    ///
    /// # Errors
    ///
    /// Fails if `value` is not a saved rule.
    pub fn restore(value: &Value) -> serde_json::Result<Self> {
        match (value.get(BY_COLUMN), value.get(BY_ELEMENT)) {
            (Some(columns), _) => serde_json::from_value(columns.clone()).map(Self::ByColumn),
            (_, Some(rule)) => serde_json::from_value(rule.clone()).map(Self::ByElement),
            (None, None) => serde_json::from_value(value.clone()).map(Self::Combine),
        }
    }

    /// Tells if an element depends on the number of tied elements before it in its tensor, which
    /// are counted by [`Work::count_tied`](super::Work::count_tied).
    pub fn needs_order(&self) -> bool {
        matches!(self, Self::ByElement(rule) if rule.needs_order())
    }

    /// Returns the bench for applying the rule: devices have no kernel that combines by columns or
    /// by elements.
    pub(super) fn bench<'b>(&self, bench: &'b dyn Bench) -> &'b dyn Bench {
        match self {
            Self::Combine(_) => bench,
            Self::ByColumn(_) | Self::ByElement(_) => bench.for_groups(1),
        }
    }
}

/// The solution that takes a segment from the base.
///
/// # Errors
///
/// [`Kind::NonFinite`] when the base does not have the tensor.
pub(super) fn base_instead(tensor: &TensorPlan) -> Result<Solution> {
    let base = tensor.base.ok_or_else(|| {
        let cause =
            "an input is not finite, and the base, which is to replace it, lacks the tensor";
        Error::new(
            Kind::NonFinite,
            "cannot merge tensor",
            tensor.name.escape_debug(),
            cause,
        )
    })?;
    Ok(Solution::base_instead(tensor.sources.len(), base))
}

/// Applies rules to chunks of a run, which are contiguous from its first element on; returns the
/// number of finite values that overflowed.
///
/// If the chunks were not `measured`, elements that are not finite are refused here or let through.
///
/// # Errors
///
/// [`Kind::NonFinite`] for such an element, or for an overflow that would be NaN; [`Kind::Device`]
/// when the device fails.
pub(super) fn apply<'r>(
    run: &mut dyn Run,
    policy: Policy<'_>,
    chunks: impl Iterator<Item = (Range<usize>, &'r Rule)>,
    measured: bool,
    output: &mut [u8],
) -> Result<u64> {
    let mut pieces = Vec::with_capacity(chunks.size_hint().0);
    let mut overflows = 0;
    for (chunk, rule) in chunks {
        match rule {
            Rule::Combine(solution) => pieces.push(Piece { chunk, solution }),
            Rule::ByColumn(columns) => {
                let bytes = bytes_of(policy, &chunk, output);
                overflows += columns.combine(&run.host(), policy, &chunk, bytes)?;
            }
            Rule::ByElement(_) => unreachable!("rules by element are applied by stretch"),
        }
    }
    if !pieces.is_empty() {
        overflows += combine(run, policy, &pieces, measured, output)?;
    }
    Ok(overflows)
}

fn combine(
    run: &mut dyn Run,
    policy: Policy<'_>,
    pieces: &[Piece<'_>],
    measured: bool,
    output: &mut [u8],
) -> Result<u64> {
    let look = !measured && !policy.lets_through();
    let combined = run.combine(pieces, look, output)?;
    if !look && !policy.lets_through() && combined.overflows == 0 {
        return Ok(0);
    }
    let host = run.host();
    for Piece { chunk, solution } in pieces {
        if combined.suspects.contains(chunk) {
            policy.judge_chunk(host.kernels, host.inputs, chunk)?;
        }
        let bytes = bytes_of(policy, chunk, output);
        if policy.lets_through() {
            let (inputs, method) = (sliced(host.inputs, chunk), method_of(policy.tensor));
            let_through(host.kernels, &inputs, method, solution, host.out, bytes);
        }
        if combined.overflows > 0 {
            policy.refuse_overflow(host.kernels, chunk, bytes)?;
        }
    }
    Ok(combined.overflows)
}

/// Returns the part of `output`, the bytes of the whole run, that belongs to a chunk.
fn bytes_of<'o>(policy: Policy<'_>, chunk: &Range<usize>, output: &'o mut [u8]) -> &'o mut [u8] {
    let unit = policy.tensor.dtype.bytes();
    &mut output[chunk.start * unit..chunk.end * unit]
}

#[cfg(test)]
mod tests {
    use rayon::iter::ParallelIterator as _;

    use super::*;

    fn restored(saved: &Value) -> Rule {
        Rule::restore(&serde_json::from_str(&saved.to_string()).expect("JSON")).expect("a rule")
    }

    #[test]
    fn a_weighted_sum_is_saved_as_its_solution_and_keeps_every_bit() {
        let mut solution = Solution::base_instead(3, 1);
        solution.coefficients = vec![1.0 / 3.0, -0.0, 4.9e-324];
        solution.center = Some(2);
        let rule = Rule::Combine(solution.clone());
        assert_eq!(rule.save(), json!(solution));
        assert_eq!(restored(&rule.save()), rule);
        assert_eq!(rule.found(), Found::of(&solution.facts));
    }

    #[test]
    fn coefficients_by_column_are_saved_under_their_kind_and_keep_every_bit() {
        let mut columns = ByColumn::new(2, 3);
        columns.stripes().for_each(|mut stripe| {
            stripe.set(
                1,
                &Solution {
                    coefficients: vec![0.1, f64::MAX],
                    ..Solution::base_instead(2, 0)
                },
            );
        });
        let rule = Rule::ByColumn(columns);
        assert_eq!(restored(&rule.save()), rule);
        assert_eq!(rule.save().as_object().map(|object| object.len()), Some(1));
    }

    #[test]
    fn what_is_no_rule_is_an_error() {
        for odd in [
            json!(null),
            json!({}),
            json!({ "by_column": [] }),
            json!({ "select": {} }),
        ] {
            assert!(Rule::restore(&odd).is_err(), "{odd}");
        }
    }
}
