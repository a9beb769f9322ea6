//! Reads the notes about tensors in a manifest one by one: all of them together may exceed the
//! memory.

use std::fmt;
use std::io::BufReader;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::Value;

use super::folder::Places;
use super::own_checksum::Sealed;
use super::storage::Storage;
use crate::error::{Error, Kind, Result};

/// The bytes that are read at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A callback that takes the number of a tensor and its note.
type Take<'a> = dyn FnMut(usize, &Value) -> Result<()> + 'a;

/// Passes each note in the manifest of a folder to `take`. The caller has checked the manifest
/// before.
///
/// # Errors
///
/// The failure of `take`; [`Kind::Damaged`] when the manifest was changed meanwhile.
pub(super) fn each_note(storage: &dyn Storage, places: &Places, take: &mut Take<'_>) -> Result<()> {
    let path = places.manifest();
    let file = storage.open_read(&path)?;
    let text = BufReader::with_capacity(PIECE_BYTES, Sealed::new(file.as_ref())?);
    let mut failed = None;
    let seed = Notes {
        take,
        failed: &mut failed,
    };
    let read = seed.deserialize(&mut serde_json::Deserializer::from_reader(text));
    match (failed, read) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) => Err(Error::new(
            Kind::Damaged,
            "cannot read manifest",
            path.display(),
            error,
        )),
    }
}

/// A manifest, read only for the notes about its tensors.
struct Notes<'a, 'b> {
    take: &'a mut Take<'b>,
    /// The failure of `take`, which a reader of JSON cannot carry.
    failed: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Notes<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Notes<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { take, failed } = self;
        while let Some(key) = map.next_key::<String>()? {
            if key == "tensors" {
                map.next_value_seed(Tensors {
                    take: &mut *take,
                    failed: &mut *failed,
                })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The list of tensors.
struct Tensors<'a, 'b> {
    take: &'a mut Take<'b>,
    failed: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Tensors<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    note: Option<Value>,
}

impl<'de> Visitor<'de> for Tensors<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(entry) = list.next_element::<Entry>()? {
            if let Some(note) = &entry.note
                && let Err(error) = (self.take)(number, note)
            {
                *self.failed = Some(error);
                return Err(A::Error::custom("stopped"));
            }
            number += 1;
        }
        Ok(())
    }
}
