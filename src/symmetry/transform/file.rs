//! A transform as a safetensors file.
//!
//! | tensor | dtype | shape | |
//! |---|---|---|---|
//! | `<group>.permutation` | I32 | `[units]` or `[copies, units]` | `new[i] = old[p[i]]` |
//! | `<group>.sign` | I8 | `[units]`, for pairs `[pairs]`, or with copies before it | 1 or -1 |
//! | `<group>.rotation` | F64 | `[pairs]` or `[copies, pairs]` | radians |
//! | `<group>.map` | F64 | `[units, units]` | orthogonal; `new = map · old`, of a folded residual stream only |
//!
//! A missing tensor does nothing. `__metadata__` holds `format` (`thalweg-transform`), `version`
//! (`1`), `spec`, `model`, the fingerprint of the model to transform, and `folded` (`true`) when
//! its norm weights are to be folded first; other keys are notes of the program that made the file.
//! The integers are I32 because that is what torch and numpy index with; no group has 2^31 units.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use indexmap::IndexMap;
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorInfo;
use serde_json::Value;

use super::{Element, OrthogonalMap, Transform};
use crate::checkpoint::{
    Checkpoint, MAX_HEADER_BYTES, SourceOptions, TensorEntry, Window, create_anew,
};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::symmetry::{Group, Symmetries};

/// `format` in the metadata.
const FORMAT: &str = "thalweg-transform";
/// `version` in the metadata.
const VERSION: &str = "1";
/// The reserved keys.
const KEYS: [&str; 4] = ["format", "version", "spec", "model"];
/// `true` when norms are folded; absent otherwise.
const FOLDED: &str = "folded";

/// A transform with the model that it was made for.
#[derive(Debug, Clone, PartialEq)]
pub struct TransformFile {
    /// The transform.
    pub transform: Transform,
    /// The fingerprint of the model to transform.
    pub model: String,
    /// Notes of the program that made the file, such as gains and certificates.
    pub notes: IndexMap<String, String>,
}

impl TransformFile {
    /// Tells if the transform in the file `path` is for a model whose norms are folded; `None` when
    /// the file is not a transform.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn is_folded(path: &Path) -> Result<Option<bool>> {
        let stored = Checkpoint::open(path)?;
        let said = |key: &str| Some(stored.files().first()?.metadata.get(key)?.as_str());
        Ok((said("format") == Some(FORMAT)).then(|| said(FOLDED) == Some("true")))
    }

    /// Reads the file `path`, whose groups must be those of `symmetries`.
    ///
    /// # Errors
    ///
    /// Fails when the file is not a transform, has another version or spec, names groups that the
    /// model lacks, or has elements that do not fit their groups.
    pub fn read(path: &Path, symmetries: &Symmetries) -> Result<Self> {
        let stored = Checkpoint::open(path)?;
        let refused = |cause: String| {
            Err(Error::new(
                Kind::Input,
                "cannot use transform",
                path.display(),
                cause,
            ))
        };
        let mut notes = stored
            .files()
            .first()
            .map(|file| file.metadata.clone())
            .unwrap_or_default();
        let mut said = |key: &str| notes.shift_remove(key);
        if stored.files().len() != 1 || said("format").as_deref() != Some(FORMAT) {
            return refused(format!(
                "not one file whose metadata say `format`: `{FORMAT}`"
            ));
        }
        let version = said("version").unwrap_or_default();
        if version != VERSION {
            return refused(format!(
                "wanted version {VERSION}, got `{}`",
                version.escape_debug()
            ));
        }
        let spec = said("spec").unwrap_or_default();
        if spec != symmetries.spec {
            return refused(format!(
                "made by the spec `{}`, not by `{}`",
                spec.escape_debug(),
                symmetries.spec
            ));
        }
        if (said(FOLDED).as_deref() == Some("true")) != symmetries.fold.is_some() {
            return refused(
                "one of it and the model has its norms folded, the other has not".into(),
            );
        }
        let Some(model) = said("model") else {
            return refused("its metadata lack `model`, the fingerprint of what it is for".into());
        };
        let mut elements = vec![Element::default(); symmetries.groups.len()];
        let source = stored.open_file(0, &SourceOptions::default())?;
        let places: HashMap<&str, usize> = symmetries
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| (group.name.as_str(), at))
            .collect();
        for (name, entry) in stored.tensors() {
            let known = name
                .rsplit_once('.')
                .and_then(|(group, part)| Some((*places.get(group)?, part)));
            let Some((index, part)) = known else {
                return refused(format!(
                    "`{}` belongs to no group of the model",
                    name.escape_debug()
                ));
            };
            if let Err(cause) = expected(&symmetries.groups[index], part, entry) {
                return refused(format!("`{}`: {cause}", name.escape_debug()));
            }
            let bytes = source.load(entry.bytes.clone())?;
            if let Err(cause) = take(
                &mut elements[index],
                &symmetries.groups[index],
                part,
                &bytes,
            ) {
                return refused(format!("`{}`: {cause}", name.escape_debug()));
            }
        }
        Ok(Self {
            transform: Transform::new(symmetries, elements)?,
            model,
            notes,
        })
    }

    /// Encodes the file; equal transforms and notes give equal bytes.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] when the notes do not fit in a header.
    pub fn to_bytes(&self, symmetries: &Symmetries) -> Result<Vec<u8>> {
        let mut parts = Vec::new();
        for (group, element) in symmetries.groups.iter().zip(self.transform.elements()) {
            parts.extend(stored(group, element));
        }
        // Wide elements first: safetensors allows neither gaps nor misaligned tensors.
        parts.sort_by_key(|(_, part)| std::cmp::Reverse(part.dtype.bitsize()));
        let own = [FORMAT, VERSION, &symmetries.spec, &self.model];
        let own = KEYS
            .into_iter()
            .zip(own)
            .map(|(key, value)| (key.to_owned(), value.into()));
        let own = own.chain(
            symmetries
                .fold
                .is_some()
                .then(|| (FOLDED.to_owned(), "true".into())),
        );
        let notes = self
            .notes
            .iter()
            .filter(|(key, _)| !KEYS.contains(&key.as_str()) && *key != FOLDED);
        let notes = notes.map(|(key, value)| (key.clone(), value.as_str().into()));
        let failed = |cause: &dyn std::fmt::Display| {
            Error::new(Kind::Io, "cannot write transform", "its notes", cause)
        };
        let header = header(own.chain(notes).collect(), &parts).map_err(|error| failed(&error))?;
        let len = header.len() as u64;
        if len > MAX_HEADER_BYTES {
            return Err(failed(&format!(
                "a header of {len} bytes, at most {MAX_HEADER_BYTES} can be read back"
            )));
        }
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend(header);
        parts
            .iter()
            .for_each(|(_, part)| bytes.extend_from_slice(&part.bytes));
        Ok(bytes)
    }

    /// Writes the file `path` under another name and renames it once it is complete and durable.
    ///
    /// # Errors
    ///
    /// When writing fails.
    pub fn write(&self, path: &Path, symmetries: &Symmetries) -> Result<()> {
        let bytes = self.to_bytes(symmetries)?;
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = Path::new(&name);
        let failed = |error| Error::io("cannot write transform", path, error);
        create_anew(part)
            .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
            .map_err(failed)?;
        fs::rename(part, path).map_err(failed)?;
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

/// Encodes the header of a safetensors file with these tensors, notes in order.
fn header(
    metadata: serde_json::Map<String, Value>,
    parts: &[(String, Part)],
) -> Result<Vec<u8>, serde_json::Error> {
    // NOTE: the safetensors crate keeps metadata in a hash map, which would write them in random
    // order.
    let mut entries =
        serde_json::Map::from_iter([("__metadata__".to_owned(), Value::from(metadata))]);
    let mut at = 0;
    for (name, part) in parts {
        let data_offsets = (at, at + part.bytes.len());
        let info = TensorInfo {
            dtype: part.dtype,
            shape: part.shape.clone(),
            data_offsets,
        };
        entries.insert(name.clone(), serde_json::to_value(info)?);
        at = data_offsets.1;
    }
    let mut json = serde_json::to_vec(&entries)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok(json)
}

/// Checks type and shape before elements are read.
fn expected(group: &Group, part: &str, entry: &TensorEntry) -> Result<(), String> {
    let (dtype, shape) = match part {
        "permutation" => (Dtype::I32, shape(group, group.units)),
        "sign" => (Dtype::I8, shape(group, group.sign_count())),
        "rotation" => (Dtype::F64, shape(group, group.pair_count())),
        "map" => (Dtype::F64, vec![group.units; 2]),
        other => {
            return Err(format!(
                "`{}` is neither permutation, sign nor rotation, nor a map",
                other.escape_debug()
            ));
        }
    };
    if entry.dtype != dtype
        || !entry
            .shape
            .iter()
            .copied()
            .eq(shape.iter().map(|size| *size as u64))
    {
        return Err(format!(
            "wanted {dtype} {shape:?}, got {} {:?}",
            entry.dtype, entry.shape
        ));
    }
    Ok(())
}

fn shape(group: &Group, count: usize) -> Vec<usize> {
    if group.within.is_some() {
        vec![group.copies, count]
    } else {
        vec![count]
    }
}

fn take(element: &mut Element, group: &Group, part: &str, bytes: &Window) -> Result<(), String> {
    let floats = || {
        bytes
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f64::from_le_bytes(*bytes))
            .collect()
    };
    match part {
        "permutation" => {
            let unit = |bytes: &[u8; 4]| {
                let number = i32::from_le_bytes(*bytes);
                u32::try_from(number).map_err(|_| format!("unit {number} is negative"))
            };
            element.permutation = bytes
                .as_chunks()
                .0
                .iter()
                .map(unit)
                .collect::<Result<_, _>>()?;
        }
        "sign" => {
            let sign = |byte: &u8| match byte.cast_signed() {
                1 => Ok(false),
                -1 => Ok(true),
                other => Err(format!("wanted signs 1 and -1, got {other}")),
            };
            element.negative = bytes.iter().map(sign).collect::<Result<_, _>>()?;
        }
        "map" => element.map = Some(OrthogonalMap::new(group.units, floats())?),
        _ => element.angle = floats(),
    }
    Ok(())
}

/// A tensor of the file.
struct Part {
    dtype: StoredDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn stored(group: &Group, element: &Element) -> Vec<(String, Part)> {
    let mut parts = Vec::new();
    let mut add = |name: &str, dtype, shape, bytes: Vec<u8>| {
        if !bytes.is_empty() {
            parts.push((
                format!("{}.{name}", group.name),
                Part {
                    dtype,
                    shape,
                    bytes,
                },
            ));
        }
    };
    let permutation = element
        .permutation
        .iter()
        .flat_map(|unit| unit.to_le_bytes())
        .collect();
    add(
        "permutation",
        StoredDtype::I32,
        shape(group, group.units),
        permutation,
    );
    let signs = element
        .negative
        .iter()
        .map(|negative| if *negative { -1_i8 } else { 1 }.cast_unsigned())
        .collect();
    add(
        "sign",
        StoredDtype::I8,
        shape(group, group.sign_count()),
        signs,
    );
    let angles = element
        .angle
        .iter()
        .flat_map(|angle| angle.to_le_bytes())
        .collect();
    add(
        "rotation",
        StoredDtype::F64,
        shape(group, group.pair_count()),
        angles,
    );
    let map = element
        .map
        .iter()
        .flat_map(|map| map.elements())
        .flat_map(|number| number.to_le_bytes())
        .collect();
    add("map", StoredDtype::F64, vec![group.units; 2], map);
    parts
}
