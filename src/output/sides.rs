//! The files beside the weights: recorded in the manifest, checked, and restored when missing.
//!
//! Some of them are for people, who may edit them: a model card, a licence. An edited one is
//! mentioned but is not damage. A changed config or tokenizer is, since it makes another model of
//! the weights.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::finish::{Contents, SideFile, put, put_made};
use super::folder::Places;
use super::lock::Lock;
use super::manifest::Manifest;
use super::notes::each_note;
use super::storage::Storage;
use super::{folder, own};
use crate::checkpoint::open_regular;
use crate::error::{Error, Kind, Result};
use crate::plan::layout::Layout;

/// The bytes that are hashed at a time.
const READ_BYTES: usize = 1 << 20;

/// The record of a file beside the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestSide {
    /// Its name, relative to the output folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// The BLAKE3 hash of its bytes, in hexadecimal.
    pub blake3: String,
}

/// The state of a recorded file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Unchanged.
    Same,
    /// Changed: its bytes differ.
    Changed,
    /// Missing.
    Missing,
}

impl ManifestSide {
    /// Describes the file at `path`, called `name` in the output.
    pub(super) fn of(name: &Path, path: &Path) -> Result<Self> {
        let (size, hash) = hashed(path)?;
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            size,
            blake3: hash,
        })
    }

    /// Tells if its name stays within the output folder.
    pub(super) fn is_plain(&self) -> bool {
        let mut parts = Path::new(&self.name).components();
        !self.name.is_empty()
            && !self.name.contains('\0')
            && parts.all(|part| matches!(part, Component::Normal(_)))
    }

    /// Compares the file at `path` with this record.
    pub(super) fn state(&self, path: &Path) -> Result<State> {
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(State::Missing);
            }
            Err(error) => return Err(Error::io("cannot examine", path, error)),
            Ok(found) if found.len() != self.size => return Ok(State::Changed),
            Ok(_) => {}
        }
        let (size, hash) = hashed(path)?;
        Ok(if (size, &hash) == (self.size, &self.blake3) {
            State::Same
        } else {
            State::Changed
        })
    }
}

/// Tells if people may edit a file of this name, so that a change is not damage: cards, licences,
/// pictures, and generation defaults, which do not change the model.
pub(super) fn may_be_edited(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let file = lower.rsplit('/').next().unwrap_or_default();
    let is_text = [
        ".md", ".rst", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf",
    ]
    .iter()
    .any(|end| file.ends_with(end));
    is_text
        || file == "generation_config.json"
        || [
            "readme",
            "license",
            "licence",
            "notice",
            "copying",
            "use_policy",
            "citation",
        ]
        .iter()
        .any(|begin| file.starts_with(begin))
}

fn hashed(path: &Path) -> Result<(u64, String)> {
    let failed = |error| Error::io("cannot read", path, error);
    let mut file = open_regular(path).map_err(failed)?;
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok((size, hasher.finalize().to_hex().to_string())),
            count => {
                hasher.update(&buffer[..count]);
                size += u64::try_from(count).expect("a length fits 64 bits");
            }
        }
    }
}

impl SideFile {
    /// Computes the size and hash of its contents.
    fn described(&self) -> Result<ManifestSide> {
        match self.contents() {
            Contents::CopyOf(path) => ManifestSide::of(self.name(), path),
            Contents::Bytes(bytes) => Ok(ManifestSide {
                name: self.name().to_string_lossy().into_owned(),
                size: u64::try_from(bytes.len()).expect("a length fits 64 bits"),
                blake3: blake3::hash(bytes).to_hex().to_string(),
            }),
        }
    }

    /// Tells if the file at `path` has the same contents.
    ///
    /// # Errors
    ///
    /// Fails when either file cannot be read.
    pub fn is_at(&self, path: &Path) -> Result<bool> {
        Ok(self.described()?.state(path)? == State::Same)
    }
}

/// The result of restoring the files beside finished weights.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restored {
    /// The number of files that were checked.
    pub looked_at: usize,
    /// The files that were written again, since they were missing or a changed one was to be
    /// replaced.
    pub written: Vec<String>,
    /// The changed files that were left alone.
    pub changed: Vec<String>,
    /// The missing files that this run cannot write.
    pub missing: Vec<String>,
}

/// Restores the files beside the weights of a finished output: writes missing files of `sides` and
/// a missing index again, and changed files only with `overwrite`.
///
/// # Errors
///
/// Fails when a file cannot be read or written, or another process works in the folder.
pub fn restore(
    storage: &dyn Storage,
    out: &Path,
    layout: &Layout,
    manifest: &Manifest,
    sides: &[SideFile],
    overwrite: bool,
) -> Result<Restored> {
    let places = Places::new(out);
    let mut restored = Restored::default();
    let mut recorded = manifest.side_files.clone();
    let mut to_write = vec![];
    for side in sides {
        let name = side.name().to_string_lossy().into_owned();
        let wanted = side.described()?;
        let known = recorded.iter().position(|known| known.name == name);
        let path = places.side(side.name());
        restored.looked_at += 1;
        let state = wanted.state(&path)?;
        // The inputs' files may have changed since; the file as recorded then is still right.
        let is_as_recorded = || known.map(|known| recorded[known].state(&path)).transpose();
        if state == State::Same
            || (state == State::Changed && is_as_recorded()? == Some(State::Same))
        {
            continue;
        }
        if state == State::Changed && !overwrite {
            restored.changed.push(name);
            continue;
        }
        match known {
            Some(known) => recorded[known] = wanted,
            None if recorded.is_empty() => {}
            None => recorded.push(wanted),
        }
        restored.written.push(name);
        to_write.push(side);
    }
    let others = manifest.side_files.iter().filter(|known| {
        sides
            .iter()
            .all(|side| side.name() != Path::new(&known.name))
    });
    for known in others {
        restored.looked_at += 1;
        match known.state(&places.side(Path::new(&known.name)))? {
            State::Same => {}
            State::Changed => restored.changed.push(known.name.clone()),
            State::Missing => restored.missing.push(known.name.clone()),
        }
    }
    if to_write.is_empty() {
        return Ok(restored);
    }
    own::check_work(&places)?;
    own::check_finished(&places, layout)?;
    let _lock = Lock::acquire(storage, &places)?;
    for side in to_write {
        put(storage, &places, &places.side(side.name()), side.contents())?;
    }
    if recorded != manifest.side_files {
        let manifest = Manifest {
            side_files: recorded,
            ..manifest.clone()
        };
        rewrite(storage, &places, &manifest)?;
    }
    folder::remove_work(storage, &places)?;
    Ok(restored)
}

/// Writes the manifest of a finished output again, and keeps its notes about tensors.
fn rewrite(storage: &dyn Storage, places: &Places, manifest: &Manifest) -> Result<()> {
    let mut notes = HashMap::new();
    each_note(storage, places, &mut |tensor, note| {
        notes.insert(tensor, note.to_string().into_boxed_str());
        Ok(())
    })?;
    let note = |tensor: usize| {
        let read = |text: &str| serde_json::from_str(text);
        notes
            .get(&tensor)
            .map(|text| read(text))
            .transpose()
            .map_err(|error| {
                Error::new(
                    Kind::Damaged,
                    "cannot read manifest",
                    places.manifest().display(),
                    error,
                )
            })
    };
    put_made(storage, places, &places.manifest(), &mut |file| {
        manifest.write(&note, file)
    })
}

/// Returns remarks on recorded files that people edited; any other change is damage.
///
/// # Errors
///
/// [`Kind::Damaged`] with the first missing or changed file.
pub(super) fn check(manifest: &Manifest, places: &Places) -> Result<Vec<String>> {
    let mut notes = vec![];
    for side in &manifest.side_files {
        let path = places.side(Path::new(&side.name));
        let words = match side.state(&path)? {
            State::Same => continue,
            State::Changed => "was changed since it was written",
            State::Missing => "is missing",
        };
        if may_be_edited(&side.name) {
            notes.push(format!("{} {words}", side.name));
            continue;
        }
        return Err(Error::new(Kind::Damaged, "cannot verify", path.display(), format!("it {words}"))
            .with_hint("the same merge writes it again when it is missing, and with --overwrite when it was changed"));
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_on_in_is_told_from_what_makes_the_model() {
        for name in [
            "README.md",
            "docs/notes.md",
            "LICENSE",
            "LICENSE.txt",
            "USE_POLICY.md",
            "generation_config.json",
        ] {
            assert!(may_be_edited(name), "{name}");
        }
        for name in [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
            "model.py",
            "mergekit_config.yml",
        ] {
            assert!(!may_be_edited(name), "{name}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_not_plain() {
        let side = |name: &str| ManifestSide {
            name: name.into(),
            size: 0,
            blake3: String::new(),
        };
        assert!(side("a/b.json").is_plain());
        for name in ["", "../x", "/etc/passwd", "a/../../x", "./x\0"] {
            assert!(!side(name).is_plain(), "{name:?}");
        }
    }
}
