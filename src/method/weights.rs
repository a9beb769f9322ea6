//! Validated weights of the inputs.

use crate::error::{Error, Kind, Result};

/// Checks that every weight is a finite number.
pub(super) fn finite(weights: &[f64]) -> Result<()> {
    match weights.iter().position(|weight| !weight.is_finite()) {
        Some(i) => Err(refuse(
            format!("weight of input {i}"),
            format!("is {}, not a finite number", weights[i]),
        )),
        None => Ok(()),
    }
}

/// Divides the weights by their sum. They must be finite, and their sum not zero.
pub(super) fn sum_to_one(weights: &[f64]) -> Result<Vec<f64>> {
    finite(weights)?;
    let largest = weights
        .iter()
        .fold(0.0, |largest: f64, weight| largest.max(weight.abs()));
    if largest == 0.0 {
        return Err(refuse(
            "weights".into(),
            format!("all {} of them are zero", weights.len()),
        ));
    }
    // Dividing by the sum of plain numbers such as 1, 1, 1 is exact to one rounding; only weights
    // that would overflow are scaled.
    let scale = if largest > f64::MAX / 1e6 {
        largest
    } else {
        1.0
    };
    let sum: f64 = weights.iter().map(|weight| weight / scale).sum();
    if sum.abs() <= largest / scale * 1e-12 {
        let cause = format!("they sum to {}, so they cannot be normalised", sum * scale);
        return Err(refuse("weights".into(), cause));
    }
    Ok(weights.iter().map(|weight| weight / scale / sum).collect())
}

/// Divides the weights by their sum. None may be negative, and not all zero.
pub(super) fn convex(weights: &[f64]) -> Result<Vec<f64>> {
    finite(weights)?;
    match weights.iter().position(|weight| *weight < 0.0) {
        Some(i) => Err(refuse(
            format!("weight of input {i}"),
            format!("is negative: {}", weights[i]),
        )),
        None => sum_to_one(weights),
    }
}

/// Returns the share of each input that has a weight, and 0 for a base.
pub(super) fn shares(weights: &[f64], base: Option<usize>) -> Vec<Option<f64>> {
    let share = |(input, weight): (usize, &f64)| match base {
        Some(base) if base == input => Some(0.0),
        _ => (*weight != 0.0).then_some(*weight),
    };
    weights.iter().enumerate().map(share).collect()
}

/// Checks that `value` of the parameter `key` is a finite number.
pub(super) fn finite_parameter(key: &'static str, value: f64) -> Result<()> {
    if value.is_finite() {
        Ok(())
    } else {
        Err(refuse(
            key.into(),
            format!("is {value}, not a finite number"),
        ))
    }
}

/// Checks that `value` of the parameter `key` is a finite number and not negative.
pub(super) fn non_negative_parameter(key: &'static str, value: f64) -> Result<()> {
    finite_parameter(key, value)?;
    if value >= 0.0 {
        Ok(())
    } else {
        Err(refuse(key.into(), format!("is negative: {value}")))
    }
}

/// Checks that the base is one of the inputs.
pub(super) fn base_within(base: usize, inputs: usize) -> Result<()> {
    let refused = || {
        refuse(
            "base".into(),
            format!("is input {base} of {inputs} (counted from 0)"),
        )
    };
    if base < inputs {
        Ok(())
    } else {
        Err(refused())
    }
}

/// Makes the error for a parameter that cannot be used because of `cause`.
pub(super) fn refuse(subject: String, cause: String) -> Error {
    Error::new(Kind::Recipe, "cannot set up the merge", subject, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_divided_by_their_sum() {
        assert_eq!(convex(&[1.0, 1.0, 2.0]).expect("valid"), [0.25, 0.25, 0.5]);
        assert_eq!(convex(&[0.0, 3.0]).expect("valid"), [0.0, 1.0]);
        assert_eq!(convex(&[f64::MAX, f64::MAX]).expect("valid"), [0.5, 0.5]);
        assert_eq!(convex(&[5e-324, 5e-324]).expect("valid"), [0.5, 0.5]);
        assert_eq!(sum_to_one(&[-1.0, 3.0]).expect("valid"), [-0.5, 1.5]);
    }

    #[test]
    fn a_bad_weight_is_named_by_its_index_and_value() {
        let message = |weights: &[f64]| convex(weights).expect_err("bad weights").to_string();
        assert!(message(&[1.0, -0.5]).ends_with("weight of input 1: is negative: -0.5"));
        assert!(
            message(&[f64::NAN, 1.0]).ends_with("weight of input 0: is NaN, not a finite number")
        );
        assert!(message(&[1.0, 1.0, f64::INFINITY]).contains("input 2"));
        assert!(message(&[0.0, 0.0]).contains("all 2 of them are zero"));
        assert!(message(&[]).contains("all 0 of them are zero"));
        assert!(
            sum_to_one(&[0.1, 0.2, -0.3])
                .expect_err("sums to zero")
                .to_string()
                .contains("sum to")
        );
    }

    #[test]
    fn a_base_that_is_no_input_is_refused_with_both_numbers() {
        assert!(base_within(1, 2).is_ok());
        assert!(
            base_within(2, 2)
                .expect_err("no such input")
                .to_string()
                .contains("input 2 of 2")
        );
    }
}
