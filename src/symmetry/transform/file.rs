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
use std::fmt::Display;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use indexmap::IndexMap;
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::{Element, OrthogonalMap, Transform};
use crate::checkpoint::{
    Checkpoint, MAX_HEADER_BYTES, SourceOptions, TensorEntry, Window, create_anew,
};
use crate::dtype::Dtype;
use crate::error::{Context, Error, Kind, Result};
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
        let context = Context::new(Kind::Input, "cannot use transform", path.display());
        let [file] = stored.files() else {
            return context.fail(not_a_transform());
        };
        let mut notes = file.metadata.clone();
        let model = take_model(&mut notes, symmetries).map_err(|cause| context.error(cause))?;
        let elements = read_elements(&stored, symmetries, &context)?;
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
        let context = Context::new(Kind::Io, "cannot write transform", "its notes");
        let metadata = self.metadata(symmetries);
        let header = header(metadata, &parts).map_err(|cause| context.error(cause))?;
        let len = header.len() as u64;
        if len > MAX_HEADER_BYTES {
            return context.fail(format!(
                "a header of {len} bytes, at most {MAX_HEADER_BYTES} can be read back"
            ));
        }
        let mut bytes = len.to_le_bytes().to_vec();
        bytes.extend(header);
        parts
            .iter()
            .for_each(|(_, part)| bytes.extend_from_slice(&part.bytes));
        Ok(bytes)
    }

    /// Returns the metadata: the reserved keys, then the notes.
    fn metadata(&self, symmetries: &Symmetries) -> Map<String, Value> {
        let own = [FORMAT, VERSION, &symmetries.spec, &self.model];
        let own = KEYS.into_iter().zip(own);
        let folded = symmetries.fold.is_some().then_some((FOLDED, "true"));
        let notes = self.notes.iter();
        let notes = notes
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .filter(|(key, _)| !KEYS.contains(key) && *key != FOLDED);
        own.chain(folded)
            .chain(notes)
            .map(|(key, value)| (key.to_owned(), value.into()))
            .collect()
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
    metadata: Map<String, Value>,
    parts: &[(String, StoredPart)],
) -> Result<Vec<u8>, serde_json::Error> {
    // NOTE: the safetensors crate keeps metadata in a hash map, which would write them in random
    // order.
    let mut entries = Map::from_iter([("__metadata__".to_owned(), Value::from(metadata))]);
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

/// Reads the elements of all groups from the tensors.
fn read_elements(
    stored: &Checkpoint,
    symmetries: &Symmetries,
    context: &Context<impl Display>,
) -> Result<Vec<Element>> {
    let mut elements = vec![Element::default(); symmetries.groups.len()];
    let source = stored.open_file(0, &SourceOptions::default())?;

    let groups = symmetries.groups.iter().enumerate();
    let places: HashMap<&str, usize> = groups
        .map(|(at, group)| (group.name.as_str(), at))
        .collect();
    for (name, entry) in stored.tensors() {
        let known = name
            .rsplit_once('.')
            .and_then(|(group, part)| Some((*places.get(group)?, part)));
        let Some((index, part)) = known else {
            return context.fail(format!(
                "`{}` belongs to no group of the model",
                name.escape_debug()
            ));
        };
        let group = &symmetries.groups[index];
        let shown = name.escape_debug();
        let unfit = |cause: String| context.error(format!("`{shown}`: {cause}"));
        expected(group, part, entry).map_err(unfit)?;
        let bytes = source.load(entry.bytes.clone())?;
        take(&mut elements[index], group, part, &bytes).map_err(unfit)?;
    }
    Ok(elements)
}

/// The reason why a file that is none is refused.
fn not_a_transform() -> String {
    format!("not one file whose metadata say `format`: `{FORMAT}`")
}

/// Checks the reserved keys and takes them out of the metadata, so that only notes remain; returns
/// the fingerprint of the model.
fn take_model(
    metadata: &mut IndexMap<String, String>,
    symmetries: &Symmetries,
) -> Result<String, String> {
    let mut said = |key: &str| metadata.shift_remove(key);
    if said("format").as_deref() != Some(FORMAT) {
        return Err(not_a_transform());
    }
    let version = said("version").unwrap_or_default();
    if version != VERSION {
        return Err(format!(
            "wanted version {VERSION}, got `{}`",
            version.escape_debug()
        ));
    }
    let spec = said("spec").unwrap_or_default();
    if spec != symmetries.spec {
        return Err(format!(
            "made by the spec `{}`, not by `{}`",
            spec.escape_debug(),
            symmetries.spec
        ));
    }
    if (said(FOLDED).as_deref() == Some("true")) != symmetries.fold.is_some() {
        let cause = "one of it and the model has its norms folded, the other has not";
        return Err(cause.to_owned());
    }
    let missing = "its metadata lack `model`, the fingerprint of what it is for";
    said("model").ok_or_else(|| missing.to_owned())
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
    match part {
        "permutation" => {
            let units = bytes.as_chunks().0.iter();
            element.permutation = units
                .map(|unit| {
                    let unit = i32::from_le_bytes(*unit);
                    u32::try_from(unit).map_err(|_| format!("unit {unit} is negative"))
                })
                .collect::<Result<_, _>>()?;
        }
        "sign" => {
            let signs = bytes.iter().map(|byte| match byte.cast_signed() {
                1 => Ok(false),
                -1 => Ok(true),
                other => Err(format!("wanted signs 1 and -1, got {other}")),
            });
            element.negative = signs.collect::<Result<_, _>>()?;
        }
        "map" => element.map = Some(OrthogonalMap::new(group.units, floats(bytes))?),
        _ => element.angle = floats(bytes),
    }
    Ok(())
}

fn floats(bytes: &Window) -> Vec<f64> {
    let floats = bytes.as_chunks().0.iter();
    floats.map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

/// A tensor of the file.
struct StoredPart {
    dtype: StoredDtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn stored(group: &Group, element: &Element) -> Vec<(String, StoredPart)> {
    let units = element.permutation.iter();
    let signs = element.negative.iter();
    let signs = signs.map(|negative| if *negative { -1_i8 } else { 1 }.cast_unsigned());
    let angles = element.angle.iter();
    let map = element.map.iter().flat_map(|map| map.elements());
    let parts = [
        (
            "permutation",
            StoredPart {
                dtype: StoredDtype::I32,
                shape: shape(group, group.units),
                bytes: units.flat_map(|unit| unit.to_le_bytes()).collect(),
            },
        ),
        (
            "sign",
            StoredPart {
                dtype: StoredDtype::I8,
                shape: shape(group, group.sign_count()),
                bytes: signs.collect(),
            },
        ),
        (
            "rotation",
            StoredPart {
                dtype: StoredDtype::F64,
                shape: shape(group, group.pair_count()),
                bytes: angles.flat_map(|angle| angle.to_le_bytes()).collect(),
            },
        ),
        (
            "map",
            StoredPart {
                dtype: StoredDtype::F64,
                shape: vec![group.units; 2],
                bytes: map.flat_map(|number| number.to_le_bytes()).collect(),
            },
        ),
    ];
    let parts = parts.into_iter().filter(|(_, part)| !part.bytes.is_empty());
    parts
        .map(|(name, part)| (format!("{}.{name}", group.name), part))
        .collect()
}
