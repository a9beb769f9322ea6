//! The tensors of a manifest: read and written one by one, and held without the notes, which only a
//! report needs.

use std::fmt;
use std::ops::Deref;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::checksum;
use super::manifest::hex;
use crate::checkpoint::Name;
use crate::error::Result;
use crate::journal::Value as BlockValue;
use crate::plan::layout::Layout;

/// The tensors of a manifest, in the order they were planned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tensors(Vec<ManifestTensor>);

/// One tensor of a manifest. The run's note about it stays in the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ManifestTensor {
    /// Its name.
    pub name: Name,
    /// The file name of the shard that holds it.
    pub shard: Name,
    /// Absolute byte offset in that file.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// The BLAKE3 hash of its bytes; `None` when the text gives none.
    #[serde(deserialize_with = "hash")]
    pub blake3: Option<BlockValue>,
    /// The values of its check blocks, if it has more than one; `None` when the text does not give
    /// them.
    #[serde(default = "no_blocks", deserialize_with = "hashes")]
    pub blocks: Option<Box<[BlockValue]>>,
}

/// Fetches the note about a tensor by its number.
pub(super) type Note<'a> = dyn Fn(usize) -> Result<Option<Value>> + 'a;

/// The tensors of an output, with the checksums computed so far.
pub(super) struct Found<'a> {
    pub(super) layout: &'a Layout,
    /// Returns the values of a tensor's check blocks.
    pub(super) values: &'a dyn Fn(usize) -> &'a [BlockValue],
}

impl Found<'_> {
    /// Lists the tensors without their notes.
    pub(super) fn tensors(&self) -> Tensors {
        let shards: Vec<Name> = self
            .layout
            .shards()
            .iter()
            .map(|shard| Name::from(shard.name.as_str()))
            .collect();
        let slots = self
            .layout
            .tensors()
            .iter()
            .enumerate()
            .map(|(tensor, slot)| {
                let values = (self.values)(tensor);
                ManifestTensor {
                    name: slot.name.clone(),
                    shard: shards[slot.shard].clone(),
                    offset: slot.offset,
                    length: slot.len,
                    blake3: Some(checksum::root(slot.len, values)),
                    blocks: Some(if values.len() > 1 {
                        values.into()
                    } else {
                        Box::default()
                    }),
                }
            });
        Tensors(slots.collect())
    }
}

/// The tensors in their written form: each with its note, fetched when its turn comes.
pub(super) struct Listed<'a> {
    pub(super) note: &'a Note<'a>,
    pub(super) tensors: &'a Tensors,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    shard: &'a str,
    offset: u64,
    length: u64,
    blake3: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Value>,
}

impl Serialize for Listed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut list = serializer.serialize_seq(Some(self.tensors.len()))?;
        for (number, tensor) in self.tensors.iter().enumerate() {
            list.serialize_element(&Entry {
                name: &tensor.name,
                shard: &tensor.shard,
                offset: tensor.offset,
                length: tensor.length,
                blake3: tensor.blake3.as_ref().map(hex).unwrap_or_default(),
                blocks: tensor.blocks.iter().flatten().map(hex).collect(),
                note: (self.note)(number).map_err(S::Error::custom)?,
            })?;
        }
        list.end()
    }
}

impl ManifestTensor {
    /// Returns the values of the tensor's check blocks, one each; `None` when the text does not
    /// give them.
    pub(super) fn values(&self) -> Option<Vec<BlockValue>> {
        let count = checksum::block_count(self.length);
        let blocks = self.blocks.as_deref()?;
        let values: Vec<BlockValue> = match count {
            0 => vec![],
            1 => vec![self.blake3?],
            _ => blocks.to_vec(),
        };
        let fits = u64::try_from(values.len()) == Ok(count) && (count > 1 || blocks.is_empty());
        (fits && self.blake3? == checksum::root(self.length, &values)).then_some(values)
    }
}

impl Tensors {
    /// Keeps the tensors of one shard.
    pub(super) fn of_shard(self, shard: &str) -> Self {
        Self(
            self.0
                .into_iter()
                .filter(|tensor| tensor.shard == shard)
                .collect(),
        )
    }
}

impl Deref for Tensors {
    type Target = [ManifestTensor];

    fn deref(&self) -> &[ManifestTensor] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Each)
    }
}

struct Each;

impl<'de> Visitor<'de> for Each {
    type Value = Tensors;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of tensors")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tensors, A::Error> {
        let mut tensors: Vec<ManifestTensor> = Vec::new();
        while let Some(mut tensor) = list.next_element::<ManifestTensor>()? {
            // Most tensors follow one of the same shard, and then share its name.
            if let Some(before) = tensors.last().filter(|before| before.shard == tensor.shard) {
                tensor.shard = before.shard.clone();
            }
            tensors.push(tensor);
        }
        tensors.shrink_to_fit();
        Ok(Tensors(tensors))
    }
}

#[expect(clippy::unnecessary_wraps, reason = "serde asks for the field's type")]
fn no_blocks() -> Option<Box<[BlockValue]>> {
    Some(Box::default())
}

fn hash<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BlockValue>, D::Error> {
    Ok(unhex(&String::deserialize(deserializer)?))
}

fn hashes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<[BlockValue]>>, D::Error> {
    Ok(deserializer
        .deserialize_seq(Hashes)?
        .map(Vec::into_boxed_slice))
}

struct Hashes;

impl<'de> Visitor<'de> for Hashes {
    type Value = Option<Vec<BlockValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of hashes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut values = Some(Vec::new());
        while let Some(text) = list.next_element::<String>()? {
            values = values.zip(unhex(&text)).map(|(mut values, value)| {
                values.push(value);
                values
            });
        }
        Ok(values)
    }
}

fn unhex(text: &str) -> Option<BlockValue> {
    blake3::Hash::from_hex(text)
        .ok()
        .map(|hash| *hash.as_bytes())
}
