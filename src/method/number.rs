//! Numbers in JSON, which cannot hold NaN and infinity: they are written as text and read back from
//! it. Null, which an earlier version wrote, is read as NaN.
//!
//! Use with `#[serde(with = "number")]`, and [`list`] for several.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

/// A number that is written in this form.
struct Number(f64);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() {
            serializer.serialize_f64(self.0)
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl Visitor<'_> for Reading {
            type Value = f64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number")
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<f64, E> {
                Ok(number)
            }

            #[expect(
                clippy::cast_precision_loss,
                reason = "whole numbers were written from f64"
            )]
            fn visit_u64<E: Error>(self, number: u64) -> Result<f64, E> {
                Ok(number as f64)
            }

            #[expect(
                clippy::cast_precision_loss,
                reason = "whole numbers were written from f64"
            )]
            fn visit_i64<E: Error>(self, number: i64) -> Result<f64, E> {
                Ok(number as f64)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<f64, E> {
                text.parse()
                    .map_err(|_| E::custom(format!("`{}` is not a number", text.escape_debug())))
            }

            fn visit_unit<E: Error>(self) -> Result<f64, E> {
                Ok(f64::NAN)
            }
        }
        deserializer.deserialize_any(Reading).map(Self)
    }
}

/// Writes a number.
///
/// # Errors
///
/// Those of the serializer.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
pub fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    Number(*number).serialize(serializer)
}

/// Reads a number.
///
/// # Errors
///
/// When the value is not in this form.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Number::deserialize(deserializer).map(|number| number.0)
}

/// The same for a list of numbers.
pub mod list {
    use serde::de::{Deserialize, Deserializer};
    use serde::ser::Serializer;

    use super::Number;

    /// Writes numbers.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(numbers: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|number| Number(*number)))
    }

    /// Reads numbers.
    ///
    /// # Errors
    ///
    /// When the value is not in this form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        Ok(Vec::<Number>::deserialize(deserializer)?
            .into_iter()
            .map(|number| number.0)
            .collect())
    }
}

/// The same for a list of pairs of numbers, which are written one after the other.
pub mod pairs {
    use serde::de::{Deserializer, Error};
    use serde::ser::Serializer;

    use super::list;

    /// Writes pairs.
    ///
    /// # Errors
    ///
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(pairs: &[[f64; 2]], serializer: S) -> Result<S::Ok, S::Error> {
        list::serialize(pairs.as_flattened(), serializer)
    }

    /// Reads pairs.
    ///
    /// # Errors
    ///
    /// When the value is not in this form, or has an odd number of numbers.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<[f64; 2]>, D::Error> {
        let numbers = list::deserialize(deserializer)?;
        match numbers.as_chunks() {
            (pairs, []) => Ok(pairs.to_vec()),
            _ => Err(D::Error::custom(format!(
                "wanted pairs, got {} numbers",
                numbers.len()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Held {
        #[serde(with = "super")]
        one: f64,
        #[serde(with = "super::list")]
        some: Vec<f64>,
    }

    #[test]
    fn every_number_goes_through_json_and_back_and_a_null_is_read() {
        let some = vec![
            0.1,
            -0.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            4.9e-324,
            f64::NAN,
            3.0,
        ];
        let text = serde_json::to_string(&Held {
            one: f64::NAN,
            some: some.clone(),
        })
        .expect("serialises");
        assert!(!text.contains("null"), "{text}");
        let value = serde_json::to_value(Held {
            one: f64::INFINITY,
            some: vec![],
        })
        .expect("serialises");
        assert_eq!(value["one"], "inf");
        let read: Held = serde_json::from_str(&text).expect("parses");
        assert!(read.one.is_nan());
        assert_eq!(
            read.some.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            some.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
        );
        let old: Held = serde_json::from_str(r#"{"one":null,"some":[null,1,-2]}"#).expect("parses");
        assert!(old.one.is_nan() && old.some[0].is_nan() && old.some[1..] == [1.0, -2.0]);
        assert!(serde_json::from_str::<Held>(r#"{"one":"two","some":[]}"#).is_err());
    }
}
