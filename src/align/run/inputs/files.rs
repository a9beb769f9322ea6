//! The transforms in files that are given, each for some of the inputs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::{Context, Error, Kind, Result};
use crate::plan::{AlignmentFile, Job};
use crate::symmetry::{Alignment, Symmetries, TransformFile};

use super::super::note;
use super::{AlignInputs, TransformSearch, WHAT};

impl AlignInputs<'_> {
    /// Takes the transforms in `chosen` files, each for the given inputs.
    pub(super) fn use_files(
        &self,
        job: &mut Job,
        models: &[Checkpoint],
        prints: &[String],
        chosen: &[(PathBuf, Vec<usize>)],
    ) -> Result<TransformSearch> {
        let mut references = Vec::new();
        for (at, (path, inputs)) in chosen.iter().enumerate() {
            let context = Context::new(Kind::Mismatch, WHAT, path.display());
            for &input in inputs {
                let model = models[input].root().display();
                let mut earlier = chosen[..at].iter();
                if let Some((earlier, _)) = earlier.find(|(_, taken)| taken.contains(&input)) {
                    return context.fail(format!("is for {model}, as is {}", earlier.display()));
                }
                let symmetries = self.symmetries_for(path, &models[input])?;
                let file = TransformFile::read(path, &symmetries)?;
                if file.model != prints[input] {
                    return context.fail(format!("was made for another model than {model}"));
                }
                references.push((path.as_path(), file.notes.get(note::REFERENCE).cloned()));
                take(job, input, path, file_name_of(path), file, symmetries)?;
            }
        }
        let is_moved = |input: usize| chosen.iter().any(|(_, inputs)| inputs.contains(&input));
        let staying = (0..models.len()).filter(|input| !is_moved(*input));
        let staying: Vec<&String> = staying.map(|input| &prints[input]).collect();
        Ok(TransformSearch {
            warnings: found_elsewhere(&references, &staying),
            ..TransformSearch::default()
        })
    }

    /// Returns the symmetries of a model, with its norms folded if the transform in `path` is for
    /// that.
    fn symmetries_for(&self, path: &Path, model: &Checkpoint) -> Result<Arc<Symmetries>> {
        let symmetries = Symmetries::of(model, self.spec)?;
        let is_folded = TransformFile::is_folded(path)? == Some(true);
        Ok(Arc::new(match is_folded {
            true => symmetries.folded(model)?,
            false => symmetries,
        }))
    }
}

/// Returns the inputs for which a file was made.
pub(super) fn input_of(
    path: &Path,
    prints: &[String],
    models: &[Checkpoint],
) -> Result<Vec<usize>> {
    let stored = Checkpoint::open(path)?;
    let wanted = stored
        .files()
        .first()
        .and_then(|file| file.metadata.get("model").cloned());
    let inputs: Vec<usize> = (0..prints.len())
        .filter(|input| Some(&prints[*input]) == wanted.as_ref())
        .collect();
    if inputs.is_empty() {
        let names: Vec<String> = models
            .iter()
            .map(|model| model.root().display().to_string())
            .collect();
        let cause = format!("was made for none of {}", names.join(", "));
        return Err(Error::new(Kind::Mismatch, WHAT, path.display(), cause)
            .with_hint("give the model that was aligned among the inputs"));
    }
    Ok(inputs)
}

/// Applies `file` to an input, unless it does nothing.
pub(super) fn take(
    job: &mut Job,
    input: usize,
    path: &Path,
    name: String,
    file: TransformFile,
    symmetries: Arc<Symmetries>,
) -> Result<()> {
    let bytes =
        std::fs::read(path).map_err(|error| Error::io("cannot read transform", path, error))?;
    let moves = !file.transform.is_identity(&symmetries);
    let blake3 = blake3::hash(&bytes).to_hex().to_string();
    job.alignment_files.push(AlignmentFile {
        input,
        file: name,
        blake3,
        moves,
    });
    // Folded norms change a model even if no unit moves.
    if moves || symmetries.fold.is_some() {
        job.alignments[input] = Some(Alignment {
            symmetries,
            transform: Arc::new(file.transform),
        });
    }
    Ok(())
}

/// Warns of transforms whose reference is not one of the models that stay; `references` has the
/// fingerprint of each transform's reference, `staying` those of the models.
fn found_elsewhere(references: &[(&Path, Option<String>)], staying: &[&String]) -> Vec<String> {
    let elsewhere = references.iter().filter(|(_, reference)| {
        let reference = reference.as_ref();
        reference.is_some_and(|reference| !staying.contains(&reference))
    });
    let warnings = elsewhere.map(|(path, _)| {
        format!(
            "{} was found against a model that is none of the inputs which stay as they are",
            path.display()
        )
    });
    warnings.collect()
}

fn file_name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}
