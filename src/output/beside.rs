//! Compares the transform files that a run left beside its weights with their checksums in the
//! manifest.

use std::path::{Component, Path};

use serde_json::Value;

use super::folder::Places;
use super::manifest::Manifest;
use crate::checkpoint::open_regular;
use crate::error::{Error, Kind, Result};

/// Checks the transform files that the manifest of a finished output names as its own.
///
/// # Errors
///
/// [`Kind::Damaged`] when a file is missing or changed, or its name leads out of the folder.
pub(super) fn check(manifest: &Manifest, places: &Places) -> Result<()> {
    let listed = manifest.run.get("alignment").and_then(Value::as_array);
    for entry in listed.into_iter().flatten() {
        let damaged = |subject: &str, cause: &str| {
            Err(Error::new(Kind::Damaged, "cannot verify", subject, cause))
        };
        let (Some(name), Some(wanted)) = (entry["file"].as_str(), entry["blake3"].as_str()) else {
            return damaged("thalweg.json", "what it says about alignments is odd");
        };
        // A file named without a folder belongs to the user, wherever it is.
        if !name.contains('/') {
            continue;
        }
        if !Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return damaged(
                &name.escape_debug().to_string(),
                "its name leads out of the folder",
            );
        }
        let path = places.side(Path::new(name));
        let mut hasher = blake3::Hasher::new();
        match open_regular(&path).and_then(|mut file| std::io::copy(&mut file, &mut hasher)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return damaged(&path.display().to_string(), "the transform is missing");
            }
            Err(error) => return Err(Error::io("cannot verify", &path, error)),
            Ok(_) if hasher.finalize().to_hex().as_str() != wanted => {
                return damaged(&path.display().to_string(), "the transform was changed");
            }
            Ok(_) => {}
        }
    }
    Ok(())
}
