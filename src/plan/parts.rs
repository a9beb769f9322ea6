//! Folders of the output with shards of their own: the names of their files, the metadata of their
//! headers.

use std::collections::BTreeSet;

use crate::checkpoint::Checkpoint;

use super::components::Component;
use super::job::Job;
use super::layout::{Layout, METADATA_BYTES, Part};
use super::metadata;
use super::tensor::TensorPlan;

/// Stem of shard names, unless a library looks for another.
const STEM: &str = "model";
/// Stem of the weight files of diffusers' own networks.
const DIFFUSERS_STEM: &str = "diffusion_pytorch_model";

/// Returns the parts of the output, components first, and warnings about their metadata.
pub fn of(
    job: &Job,
    inputs: &[Checkpoint],
    tensors: &[TensorPlan],
    components: &[Component],
) -> (Vec<Part>, Vec<String>) {
    let members: BTreeSet<usize> = tensors
        .iter()
        .flat_map(|tensor| &tensor.sources)
        .map(|source| source.input)
        .collect();
    let members: Vec<usize> = members.into_iter().collect();
    let mut warnings = Vec::new();
    let folders = components
        .iter()
        .map(|component| component.folder.as_str())
        .chain([""]);
    let parts = folders.map(|folder| {
        let carried = components
            .iter()
            .any(|component| component.folder == folder && component.carried);
        let (metadata, notes) = if carried {
            metadata::of_carried(&inputs[job.donor], folder)
        } else {
            metadata::of(job, inputs, &members, folder)
        };
        warnings.extend(notes);
        Part {
            folder: folder.to_owned(),
            stem: stem_of(&inputs[job.donor], folder),
            metadata,
        }
    });
    (parts.collect(), warnings)
}

/// Returns a warning for each part whose headers had no room for its metadata.
pub fn lost<'a>(wanted: &'a [Part], layout: &'a Layout) -> impl Iterator<Item = String> + 'a {
    let parts = wanted.iter().zip(layout.parts());
    parts.filter_map(|(wanted, kept)| {
        let folder = if wanted.folder.is_empty() {
            "the output"
        } else {
            &wanted.folder
        };
        let bytes = wanted.metadata_bytes();
        (wanted.metadata != kept.metadata).then(|| {
            format!(
                "{folder}: {bytes} bytes of metadata are left out of its headers, which may take {METADATA_BYTES} \
                 together"
            )
        })
        })
}

/// Returns the stem of the shards in `folder`: components and diffusers' own networks keep the
/// donor's, everything else gets `model`.
fn stem_of(donor: &Checkpoint, folder: &str) -> String {
    let mut names = donor.files().iter().filter_map(|file| {
        let (own, name) = file.name.rsplit_once('/').unwrap_or(("", &file.name));
        (own == folder).then_some(name)
    });
    let Some(name) = names.next() else {
        return STEM.to_owned();
    };
    if name.starts_with(DIFFUSERS_STEM) {
        return DIFFUSERS_STEM.to_owned();
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match name.split_once('.') {
        Some((stem, rest)) if rest.starts_with("safetensors") && !folder.is_empty() => {
            let stem = if stem.contains("-of-") {
                stem.rsplitn(4, '-').last().unwrap_or(stem)
            } else {
                stem
            };
            if !stem.is_empty() && stem.chars().all(plain) {
                stem.to_owned()
            } else {
                STEM.to_owned()
            }
        }
        _ => STEM.to_owned(),
    }
}
