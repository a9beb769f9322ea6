//! A safetensors header, read from untrusted bytes.
//!
//! The layout is eight bytes of little-endian length, that many bytes of JSON, then the data. The
//! `safetensors` crate checks the geometry, but accepts duplicate names, unknown fields, leading
//! blanks, absurd dimensions and control characters in names. This module refuses those first, and
//! names the tensor.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use indexmap::IndexMap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::strings::{OrNull, UniqueStrings};
use super::{Name, TensorEntry};
use crate::budget::format_bytes;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

#[cfg(test)]
mod tests;

/// The longest header that is read, in bytes, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The longest tensor name, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// The most dimensions of a tensor; torch stops at the same number.
const MAX_RANK: usize = 64;
/// The biggest dimension, so that products of a few of them stay far from overflow.
const MAX_DIM: u64 = 1 << 48;
/// The size of the length in front of the JSON, in bytes.
const PREFIX_BYTES: u64 = 8;
/// The most memory of a tensor while its header is read, in bytes, beside its name and its
/// dimensions: an entry in each stage's list, one in the lookup table, and the lists' room to grow.
const TENSOR_BYTES: usize = 400;
/// The number of tensors that the reference implementation checks at once; it copies them.
const CHECKED_AT_ONCE: usize = 4096;

/// The contents of one header.
#[derive(Debug)]
pub(super) struct Header {
    /// Tensors by offset, their ranges counted from the start of the file.
    pub tensors: Vec<(Name, TensorEntry)>,
    /// The `__metadata__` map, in the order of the file.
    pub metadata: IndexMap<String, String>,
    /// blake3 over the length prefix and the JSON.
    pub hash: [u8; 32],
    /// The length of the whole file by the header, in bytes.
    pub data_len: u64,
}

impl Header {
    /// Reads and checks the header at the front of `reader`; `len` is the file's length if known,
    /// `memory` the limit while it is read, both in bytes.
    ///
    /// # Errors
    ///
    /// Anything but a safetensors file of exactly `len` bytes, with `path` and the tensor; a header
    /// that exceeds the memory.
    pub fn read(
        mut reader: impl Read,
        len: Option<u64>,
        path: &Path,
        file: usize,
        memory: u64,
    ) -> Result<Self> {
        let bad =
            |cause: String| Error::new(Kind::Input, "cannot read header", path.display(), cause);
        let mut prefix = [0; 8];
        reader
            .read_exact(&mut prefix)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    bad("file ends inside the 8 bytes of the header's length".into())
                }
                _ => bad(error.to_string()),
            })?;
        let json_len = u64::from_le_bytes(prefix);
        if json_len > MAX_HEADER_BYTES {
            let error = bad(format!(
                "header of {json_len} bytes, at most {MAX_HEADER_BYTES} are read"
            ));
            return Err(match foreign_format(&prefix) {
                Some(hint) => error.with_hint(hint),
                None => error,
            });
        }
        if let Some(len) = len.filter(|len| len - PREFIX_BYTES.min(*len) < json_len) {
            return Err(bad(format!(
                "header of {json_len} bytes in a file of {len} bytes"
            )));
        }
        // The text, and its longest string once more.
        let room = memory
            .checked_sub(2 * json_len)
            .ok_or_else(|| too_long(path, json_len, memory))?;
        let json = text_of(reader, json_len, len.is_some()).map_err(bad)?;
        let mut hash = blake3::Hasher::new();
        hash.update(&prefix).update(&json);
        let room = Cell::new(room);
        let parsed = Self::parse(&json, file, &room);
        if room.get() == 0 {
            return Err(too_long(path, json_len, memory));
        }
        let mut header = parsed.map_err(bad)?;
        header.hash = hash.finalize().into();
        match len {
            Some(len) if len != header.data_len => Err(bad(format!(
                "header describes a file of {} bytes, file has {len}",
                header.data_len
            ))),
            _ => Ok(header),
        }
    }

    fn parse(json: &[u8], file: usize, room: &Cell<u64>) -> Result<Self, String> {
        let text =
            std::str::from_utf8(json).map_err(|error| format!("header is not UTF-8: {error}"))?;
        let mut reader = serde_json::Deserializer::from_str(text);
        let raw = HeaderSeed(room)
            .deserialize(&mut reader)
            .map_err(|error| error.to_string())?;
        reader.end().map_err(|error| error.to_string())?;
        let mut raw_tensors: Vec<_> = raw.tensors.into_iter().collect();
        raw_tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
        let start = PREFIX_BYTES + json.len() as u64;
        let mut end = 0;
        for (name, tensor) in &raw_tensors {
            tensor.check(name, end, start)?;
            end = tensor.data_offsets.1;
        }
        let data_len = start.checked_add(end).ok_or("data ends beyond 2^64")?;
        for some in raw_tensors.chunks(CHECKED_AT_ONCE) {
            agree_with_reference(some)?;
        }
        let entry =
            |(name, tensor): (String, RawTensor)| (Name::from(name), tensor.entry(start, file));
        Ok(Self {
            tensors: raw_tensors.into_iter().map(entry).collect(),
            metadata: raw.metadata,
            hash: [0; 32],
            data_len,
        })
    }
}

/// Reads the JSON of a header of `len` bytes; `is_there` if the file is known to have that many.
fn text_of(mut reader: impl Read, len: u64, is_there: bool) -> Result<Vec<u8>, String> {
    let failed = |error: io::Error| error.to_string();
    let mut json = Vec::new();
    reader
        .by_ref()
        .take(len.min(1))
        .read_to_end(&mut json)
        .map_err(failed)?;
    // Anything but a header is not read whole.
    if json.first().is_some_and(|first| *first != b'{') {
        return Err("header does not begin with {".into());
    }
    if is_there {
        json.reserve_exact(usize::try_from(len).unwrap_or(0));
    }
    reader
        .take(len - json.len() as u64)
        .read_to_end(&mut json)
        .map_err(failed)?;
    if json.len() as u64 != len {
        return Err(format!(
            "header of {len} bytes, file ends after {} of them",
            json.len()
        ));
    }
    if json.is_empty() {
        return Err("header does not begin with {".into());
    }
    Ok(json)
}

fn too_long(path: &Path, json_len: u64, memory: u64) -> Error {
    let (wanted, got) = (format_bytes(json_len), format_bytes(memory));
    let cause = format!(
        "a header of {wanted} and what it names do not fit into {got}, which is what headers may take"
    );
    Error::new(Kind::Budget, "cannot read header", path.display(), cause)
        .with_hint("allow more with --memory")
}

/// Lets the reference implementation check the accepted tensors, so that this program reads nothing
/// that it would refuse: consecutive tensors, at any start.
fn agree_with_reference(tensors: &[(String, RawTensor)]) -> Result<(), String> {
    let start = tensors
        .first()
        .map_or(0, |(_, tensor)| tensor.data_offsets.0);
    let infos = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = StrDeserializer::<de::value::Error>::new(tensor.dtype.name());
            let size = |value: u64| usize::try_from(value).map_err(|error| error.to_string());
            let info = TensorInfo {
                dtype: Deserialize::deserialize(dtype).map_err(|error| error.to_string())?,
                shape: tensor
                    .shape
                    .iter()
                    .copied()
                    .map(size)
                    .collect::<Result<_, _>>()?,
                data_offsets: (
                    size(tensor.data_offsets.0 - start)?,
                    size(tensor.data_offsets.1 - start)?,
                ),
            };
            Ok((name.clone(), info))
        })
        .collect::<Result<Vec<_>, String>>()?;
    Metadata::new(None, infos)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Describes a file with these first bytes, if it is of a kind that is often mistaken for a
/// checkpoint.
fn foreign_format(prefix: &[u8; 8]) -> Option<&'static str> {
    match prefix {
        b"version " => {
            Some("this looks like a Git LFS pointer, not the file itself: run `git lfs pull`")
        }
        [b'P', b'K', 3, 4, ..] => {
            Some("this is a zip archive, as PyTorch writes it, under another name")
        }
        [b'G', b'G', b'U', b'F', ..] => Some("this is a GGUF file; safetensors are needed"),
        [b'<', ..] => Some("this looks like a web page that was saved instead of the file"),
        _ => None,
    }
}

/// Escapes and shortens a name from a file for a message.
pub(super) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        text.push('…');
    }
    format!("`{text}`")
}

#[derive(Default)]
struct RawHeader {
    tensors: IndexMap<String, RawTensor>,
    metadata: IndexMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    /// Checks that this tensor's bytes begin at `expected` and have the length that dtype and shape
    /// need.
    fn check(&self, name: &str, expected: u64, start: u64) -> Result<(), String> {
        let (from, to) = self.data_offsets;
        let bad = |cause: String| format!("tensor {}: {cause}", shown(name));
        let dtype = self.dtype;
        if from > to {
            return Err(bad(format!(
                "data begins at {from} and ends before it, at {to}"
            )));
        }
        if from != expected {
            let what = if from < expected {
                "overlaps the tensor before it"
            } else {
                "leaves a hole before it"
            };
            return Err(bad(format!(
                "data {what}: begins at {from}, expected {expected}"
            )));
        }
        let bits = self
            .shape
            .iter()
            .try_fold(dtype.bits(), |bits, dim| {
                if *dim > MAX_DIM {
                    None
                } else {
                    bits.checked_mul(*dim)
                }
            })
            .ok_or_else(|| bad(format!("shape {:?} is too big", self.shape)))?;
        if !bits.is_multiple_of(8) {
            return Err(bad(format!("{bits} bits of {dtype} are not whole bytes")));
        }
        if to - from != bits / 8 {
            let shape = &self.shape;
            return Err(bad(format!(
                "{} bytes of data, {dtype} {shape:?} needs {}",
                to - from,
                bits / 8
            )));
        }
        start
            .checked_add(to)
            .map(drop)
            .ok_or_else(|| bad("data ends beyond 2^64".into()))
    }

    /// Returns the entry of this checked tensor, in a file whose data begins at `start`.
    fn entry(self, start: u64, file: usize) -> TensorEntry {
        let (from, to) = self.data_offsets;
        TensorEntry {
            dtype: self.dtype,
            shape: self.shape,
            file,
            bytes: start + from..start + to,
        }
    }
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
    let name = Cow::<str>::deserialize(deserializer)?;
    Dtype::from_name(&name)
        .ok_or_else(|| D::Error::custom(format!("unknown dtype {}", shown(&name))))
}

/// Reads a shape without letting it grow past [`MAX_RANK`].
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Shape;
    impl<'de> Visitor<'de> for Shape {
        type Value = Vec<u64>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX_RANK} dimensions")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut dims = Vec::new();
            while let Some(dim) = seq.next_element()? {
                if dims.len() == MAX_RANK {
                    return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                }
                dims.push(dim);
            }
            Ok(dims)
        }
    }
    deserializer.deserialize_seq(Shape)
}

/// Reads a header while there is room for its contents; the room is 0 if it did not suffice.
struct HeaderSeed<'a>(&'a Cell<u64>);

impl HeaderSeed<'_> {
    fn pay<E: de::Error>(&self, bytes: usize) -> Result<(), E> {
        self.0.set(self.0.get().saturating_sub(bytes as u64));
        if self.0.get() == 0 {
            Err(E::custom("too long"))
        } else {
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawHeader, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut seen_metadata = false;
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                if std::mem::replace(&mut seen_metadata, true) {
                    return Err(A::Error::custom("__metadata__ is there twice"));
                }
                // Some writers put `null` here.
                header.metadata = map.next_value_seed(OrNull(UniqueStrings("__metadata__")))?;
                for (key, value) in &header.metadata {
                    self.pay(key.len() + value.len() + TENSOR_BYTES)?;
                }
                continue;
            }
            check_name(&name).map_err(A::Error::custom)?;
            let tensor: RawTensor = map.next_value().map_err(|error: A::Error| {
                A::Error::custom(format!("tensor {}: {error}", shown(&name)))
            })?;
            self.pay(TENSOR_BYTES + name.len() + tensor.shape.len() * size_of::<u64>())?;
            if header.tensors.contains_key(&name) {
                return Err(A::Error::custom(format!(
                    "tensor {} is there twice",
                    shown(&name)
                )));
            }
            header.tensors.insert(name, tensor);
        }
        Ok(header)
    }
}

/// Refuses names that no honest checkpoint has and that would corrupt messages and output headers.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a tensor has an empty name".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!(
            "tensor name of {} bytes, at most {MAX_NAME_BYTES}: {}",
            name.len(),
            shown(name)
        ));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("control character in tensor name {}", shown(name)));
    }
    Ok(())
}
