//! Reads maps of strings to strings, as in headers and indexes, from untrusted JSON.

use std::fmt;

use indexmap::IndexMap;
use serde::de::{self, DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::header::shown;

/// Reads [`UniqueStrings`], or `null` as an empty object.
pub(super) struct OrNull(pub UniqueStrings);

impl<'de> DeserializeSeed<'de> for OrNull {
    type Value = IndexMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for OrNull {
    type Value = IndexMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to be a map of strings", self.0.0)
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(IndexMap::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        self.0.deserialize(deserializer)
    }
}

/// Reads a JSON object of strings and refuses duplicate keys; holds the object's name for messages.
pub(super) struct UniqueStrings(pub &'static str);

impl<'de> DeserializeSeed<'de> for UniqueStrings {
    type Value = IndexMap<String, String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for UniqueStrings {
    type Value = IndexMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to be a map of strings", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut strings = IndexMap::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if strings.contains_key(&key) {
                return Err(A::Error::custom(format!(
                    "{} is there twice in {}",
                    shown(&key),
                    self.0
                )));
            }
            strings.insert(key, value);
        }
        Ok(strings)
    }
}
