//! A safetensors header, read from untrusted bytes.
//!
//! The layout is eight bytes of little-endian length, that many bytes of JSON, then the data. The `safetensors` crate
//! checks the geometry; it lets duplicate names, unknown fields, leading blanks, absurd dimensions and control
//! characters in names through, so those are refused here first, with the tensor named.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use indexmap::IndexMap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::TensorEntry;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

/// The longest header that is read: far above any real model, and small enough to parse in tens of megabytes.
pub const MAX_HEADER_BYTES: u64 = 32 << 20;
/// The longest tensor name.
const MAX_NAME_BYTES: usize = 1024;
/// The most dimensions of a tensor; torch stops at the same number.
const MAX_RANK: usize = 64;
/// The biggest dimension, so that products of a few of them stay far from overflow.
const MAX_DIM: u64 = 1 << 48;
/// Bytes of the length in front of the JSON.
const PREFIX_BYTES: u64 = 8;

/// What one header says.
#[derive(Debug)]
pub(super) struct Header {
    /// Tensors by offset, their ranges counted from the start of the file.
    pub tensors: Vec<(String, TensorEntry)>,
    /// The `__metadata__` map, in the order of the file.
    pub metadata: IndexMap<String, String>,
    /// blake3 over the length prefix and the JSON.
    pub hash: [u8; 32],
    /// Length of the whole file according to the header.
    pub data_len: u64,
}

impl Header {
    /// Reads and checks the header at the front of `reader`; `len` is the file's length where it is known.
    ///
    /// # Errors
    ///
    /// Anything that is not exactly a safetensors file of length `len`, naming `path` and the tensor.
    pub fn read(mut reader: impl Read, len: Option<u64>, path: &Path, file: usize) -> Result<Self> {
        let bad = |cause: String| Error::new(Kind::Input, "cannot read header", path.display(), cause);
        let mut prefix = [0; 8];
        reader.read_exact(&mut prefix).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("file ends inside the 8 bytes of the header's length".into()),
            _ => bad(error.to_string()),
        })?;
        let json_len = u64::from_le_bytes(prefix);
        if json_len > MAX_HEADER_BYTES {
            let error = bad(format!("header of {json_len} bytes, at most {MAX_HEADER_BYTES} are read"));
            return Err(match foreign_format(&prefix) {
                Some(hint) => error.with_hint(hint),
                None => error,
            });
        }
        if let Some(len) = len.filter(|len| len - PREFIX_BYTES.min(*len) < json_len) {
            return Err(bad(format!("header of {json_len} bytes in a file of {len} bytes")));
        }
        let mut json = Vec::new();
        reader.take(json_len).read_to_end(&mut json).map_err(|error| bad(error.to_string()))?;
        if json.len() as u64 != json_len {
            return Err(bad(format!("header of {json_len} bytes, file ends after {} of them", json.len())));
        }
        let mut hash = blake3::Hasher::new();
        hash.update(&prefix).update(&json);
        let mut header = Self::parse(&json, file).map_err(bad)?;
        header.hash = hash.finalize().into();
        match len {
            Some(len) if len != header.data_len => {
                Err(bad(format!("header describes a file of {} bytes, file has {len}", header.data_len)))
            }
            _ => Ok(header),
        }
    }

    fn parse(json: &[u8], file: usize) -> Result<Self, String> {
        let text = std::str::from_utf8(json).map_err(|error| format!("header is not UTF-8: {error}"))?;
        if !text.starts_with('{') {
            return Err("header does not begin with {".into());
        }
        let raw: RawHeader = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut raw_tensors: Vec<_> = raw.tensors.into_iter().collect();
        raw_tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
        let start = PREFIX_BYTES + json.len() as u64;
        let mut tensors = Vec::with_capacity(raw_tensors.len());
        let mut end = 0;
        for (name, tensor) in &raw_tensors {
            let entry = tensor.check(name, end, start, file)?;
            end = tensor.data_offsets.1;
            tensors.push((name.clone(), entry));
        }
        let data_len = start.checked_add(end).ok_or("data ends beyond 2^64")?;
        agree_with_reference(raw_tensors)?;
        Ok(Self { tensors, metadata: raw.metadata, hash: [0; 32], data_len })
    }
}

/// Lets the reference implementation check what was accepted, so that nothing is read here that it would refuse.
fn agree_with_reference(tensors: Vec<(String, RawTensor)>) -> Result<(), String> {
    let infos = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let dtype = StrDeserializer::<de::value::Error>::new(&tensor.dtype);
            let size = |value: u64| usize::try_from(value).map_err(|error| error.to_string());
            let info = TensorInfo {
                dtype: Deserialize::deserialize(dtype).map_err(|error| error.to_string())?,
                shape: tensor.shape.into_iter().map(size).collect::<Result<_, _>>()?,
                data_offsets: (size(tensor.data_offsets.0)?, size(tensor.data_offsets.1)?),
            };
            Ok((name, info))
        })
        .collect::<Result<Vec<_>, String>>()?;
    Metadata::new(None, infos).map(drop).map_err(|error| error.to_string())
}

/// What a file with these first bytes is, when it is something that is often mistaken for a checkpoint.
fn foreign_format(prefix: &[u8; 8]) -> Option<&'static str> {
    match prefix {
        b"version " => Some("this looks like a Git LFS pointer, not the file itself: run `git lfs pull`"),
        [b'P', b'K', 3, 4, ..] => Some("this is a zip archive, as PyTorch writes it, under another name"),
        [b'G', b'G', b'U', b'F', ..] => Some("this is a GGUF file; safetensors are needed"),
        [b'<', ..] => Some("this looks like a web page that was saved instead of the file"),
        _ => None,
    }
}

/// A name from a file, fit for a message: escaped and cut.
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
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    /// This tensor's entry, if its bytes begin at `expected` and are as many as dtype and shape need.
    fn check(&self, name: &str, expected: u64, start: u64, file: usize) -> Result<TensorEntry, String> {
        let (from, to) = self.data_offsets;
        let bad = |cause: String| format!("tensor {}: {cause}", shown(name));
        let dtype =
            Dtype::from_name(&self.dtype).ok_or_else(|| bad(format!("unknown dtype {}", shown(&self.dtype))))?;
        if from > to {
            return Err(bad(format!("data begins at {from} and ends before it, at {to}")));
        }
        if from != expected {
            let what = if from < expected { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(bad(format!("data {what}: begins at {from}, expected {expected}")));
        }
        let bits = self
            .shape
            .iter()
            .try_fold(dtype.bits(), |bits, dim| if *dim > MAX_DIM { None } else { bits.checked_mul(*dim) })
            .ok_or_else(|| bad(format!("shape {:?} is too big", self.shape)))?;
        if !bits.is_multiple_of(8) {
            return Err(bad(format!("{bits} bits of {dtype} are not whole bytes")));
        }
        if to - from != bits / 8 {
            let shape = &self.shape;
            return Err(bad(format!("{} bytes of data, {dtype} {shape:?} needs {}", to - from, bits / 8)));
        }
        let absolute = |offset: u64| start.checked_add(offset).ok_or_else(|| bad("data ends beyond 2^64".into()));
        Ok(TensorEntry { dtype, shape: self.shape.clone(), file, bytes: absolute(from)?..absolute(to)? })
    }
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

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
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
                header.metadata = map.next_value_seed(UniqueStrings("__metadata__"))?;
                continue;
            }
            check_name(&name).map_err(A::Error::custom)?;
            let tensor = map
                .next_value()
                .map_err(|error: A::Error| A::Error::custom(format!("tensor {}: {error}", shown(&name))))?;
            if header.tensors.contains_key(&name) {
                return Err(A::Error::custom(format!("tensor {} is there twice", shown(&name))));
            }
            header.tensors.insert(name, tensor);
        }
        Ok(header)
    }
}

/// Refuses names that no honest checkpoint has and that would spoil messages and output headers.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a tensor has an empty name".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("tensor name of {} bytes, at most {MAX_NAME_BYTES}: {}", name.len(), shown(name)));
    }
    if name.chars().any(char::is_control) {
        return Err(format!("control character in tensor name {}", shown(name)));
    }
    Ok(())
}

/// A JSON object of strings in which no key may be there twice; holds the object's name for messages.
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
                return Err(A::Error::custom(format!("{} is there twice in {}", shown(&key), self.0)));
            }
            strings.insert(key, value);
        }
        Ok(strings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str, data_bytes: u64) -> Result<Header> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        let len = bytes.len() as u64 + data_bytes;
        Header::read(&*bytes, Some(len), Path::new("x.safetensors"), 7)
    }

    #[test]
    fn tensors_come_in_the_order_of_their_data_with_ranges_of_the_file() {
        let json = r#"{"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[3,15]},"__metadata__":{"z":"1","a":"2"},
            "a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"c":{"dtype":"F4","shape":[0],"data_offsets":[15,15]}}"#;
        let header = read(json, 15).expect("valid header");
        let start = 8 + json.len() as u64;
        let names: Vec<_> = header.tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        let entry = TensorEntry { dtype: Dtype::BF16, shape: vec![2, 3], file: 7, bytes: start + 3..start + 15 };
        assert_eq!(header.tensors[1].1, entry);
        assert_eq!(header.metadata.keys().collect::<Vec<_>>(), ["z", "a"]);
        assert_eq!(header.data_len, start + 15);
    }

    #[test]
    fn every_dtype_of_the_reference_is_known_and_of_the_same_size() {
        for dtype in Dtype::ALL {
            let reader = StrDeserializer::<de::value::Error>::new(dtype.name());
            let reference = safetensors::Dtype::deserialize(reader).expect("the reference knows the name");
            assert_eq!(reference.bitsize() as u64, dtype.bits(), "{dtype}");
        }
    }

    #[test]
    fn names_are_escaped_and_cut_for_messages() {
        assert_eq!(shown("a\u{1b}[2Jb"), "`a\\u{1b}[2Jb`");
        assert_eq!(shown(&"x".repeat(81)).chars().count(), 83);
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(json in r#"\{("[a-c]":\{"dtype":"(F32|F4|U8|X)","shape":\[[0-9,]{0,30}\],"data_offsets":\[[0-9]{1,20},[0-9]{1,20}\]\},?){0,3}\}"#, len: u64) {
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend(json.as_bytes());
            let _ = Header::read(&*bytes, Some(len), Path::new("x"), 0);
            let _ = Header::read(&*bytes, None, Path::new("x"), 0);
        }

        #[test]
        fn accepted_headers_are_accepted_by_the_reference(
            shapes in prop::collection::vec(prop::collection::vec(0u64..5, 0..4), 0..5),
            picks in prop::collection::vec(0usize..22, 5), shift in 0u64..2,
        ) {
            let mut end = 0;
            let entries: Vec<_> = shapes.iter().zip(picks).enumerate().map(|(i, (shape, pick))| {
                let dtype = Dtype::ALL[pick];
                let start = end + if i == 1 { shift } else { 0 };
                end = start + shape.iter().product::<u64>() * dtype.bits() / 8;
                format!(r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#)
            }).collect();
            let json = format!("{{{}}}", entries.join(","));
            let mut file = (json.len() as u64).to_le_bytes().to_vec();
            file.extend(json.as_bytes());
            file.resize(file.len() + usize::try_from(end).expect("small"), 0);
            let reference = safetensors::SafeTensors::read_metadata(&file);
            let ours = Header::read(&*file, Some(file.len() as u64), Path::new("x"), 0);
            prop_assert_eq!(ours.is_ok(), reference.is_ok(), "{}", json);
        }
    }
}
