//! Values of parameters: one number, a gradient over the layers, or a choice by tensor name.

use indexmap::IndexMap;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// The parameters of a merge, slice or model, in the order written.
pub type Parameters = IndexMap<String, Setting>;

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// True or false.
    Switch(bool),
    /// One number for every tensor.
    Number(f64),
    /// Numbers spread evenly over the layers, linear in between.
    Gradient(Vec<f64>),
    /// The first condition that fits the tensor's name decides; if none does, the next level is
    /// asked.
    Filtered(Vec<Condition>),
}

/// A value for the tensors whose name contains a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The text to look for; `None` fits every tensor.
    pub filter: Option<String>,
    /// The value for these tensors.
    pub value: Setting,
}

impl Setting {
    /// Returns the value for the tensor `name` at position `t` of its layers, from 0 to 1; a switch
    /// is 0 or 1.
    ///
    /// None when no condition fits the name.
    pub fn at(&self, name: &str, t: f64) -> Option<f64> {
        match self {
            Self::Switch(on) => Some(f64::from(u8::from(*on))),
            Self::Number(number) => Some(*number),
            Self::Gradient(values) => interpolate(values, t),
            // The first that fits decides, even when its own conditions then fit nothing.
            Self::Filtered(conditions) => conditions
                .iter()
                .find(|condition| condition.fits(name))
                .and_then(|found| found.value.at(name, t)),
        }
    }

    /// Tells if there is a value for every tensor, whatever its name.
    pub fn is_total(&self) -> bool {
        match self {
            Self::Filtered(conditions) => {
                conditions
                    .iter()
                    .any(|condition| condition.filter.is_none())
                    && conditions
                        .iter()
                        .all(|condition| condition.value.is_total())
            }
            _ => true,
        }
    }
}

impl Condition {
    fn fits(&self, name: &str) -> bool {
        self.filter
            .as_deref()
            .is_none_or(|filter| name.contains(filter))
    }
}

/// Spreads `values` evenly over [0, 1] and interpolates them at `t`.
fn interpolate(values: &[f64], t: f64) -> Option<f64> {
    let last = values.len().checked_sub(1)?;
    #[expect(clippy::cast_precision_loss, reason = "gradients are short")]
    let scaled = t.clamp(0.0, 1.0) * last as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "lies within 0..=last"
    )]
    let left = scaled as usize;
    let share = scaled.fract();
    let right = (left + 1).min(last);
    Some((1.0 - share) * values.get(left)? + share * values.get(right)?)
}

impl Serialize for Setting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Switch(on) => serializer.serialize_bool(*on),
            Self::Number(number) => serializer.serialize_f64(*number),
            Self::Gradient(values) => values.serialize(serializer),
            Self::Filtered(conditions) => conditions.serialize(serializer),
        }
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(filter) = &self.filter {
            map.serialize_entry("filter", filter)?;
        }
        map.serialize_entry("value", &self.value)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_is_linear_between_its_values() {
        let gradient = Setting::Gradient(vec![0.0, 0.5, 0.3, 0.7, 1.0]);
        for (t, value) in [
            (0.0, 0.0),
            (0.125, 0.25),
            (0.25, 0.5),
            (0.5, 0.3),
            (0.75, 0.7),
            (0.875, 0.85),
            (1.0, 1.0),
        ] {
            let found = gradient
                .at("any", t)
                .expect("a gradient has a value everywhere");
            // A handful of roundings of numbers near one.
            assert!(
                (found - value).abs() < 1e-15,
                "{t}: {found} instead of {value}"
            );
        }
        assert_eq!(Setting::Gradient(vec![0.25]).at("any", 0.7), Some(0.25));
        assert_eq!(Setting::Gradient(vec![]).at("any", 0.7), None);
    }

    #[test]
    fn the_first_condition_that_fits_decides() {
        let on = |filter: Option<&str>, value| Condition {
            filter: filter.map(str::to_owned),
            value,
        };
        let nested = Setting::Filtered(vec![on(Some("up"), Setting::Number(9.0))]);
        let setting = Setting::Filtered(vec![
            on(Some("self_attn"), Setting::Gradient(vec![0.0, 1.0])),
            on(Some("mlp"), nested),
            on(Some("norm"), Setting::Switch(true)),
        ]);
        assert_eq!(setting.at("l.self_attn.mlp", 0.5), Some(0.5));
        assert_eq!(setting.at("l.mlp.up", 0.5), Some(9.0));
        assert_eq!(
            setting.at("l.mlp.norm", 0.5),
            None,
            "its condition fits, the one inside does not"
        );
        assert_eq!(setting.at("norm", 0.5), Some(1.0));
        assert_eq!(setting.at("lm_head", 0.5), None);
        assert!(!setting.is_total());
        assert!(
            Setting::Filtered(vec![
                on(Some("x"), Setting::Number(1.0)),
                on(None, Setting::Number(1.0))
            ])
            .is_total()
        );
    }
}
