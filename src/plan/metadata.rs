//! The `__metadata__` of the output's headers: our entries, and those of the base that also hold
//! for the output.
//!
//! Two vocabularies are known, Stability AI's ModelSpec (`modelspec.`) and that of kohya's trainers
//! (`ss_`, `sshs_`). Of both, entries that say how to read the weights stay; entries about one
//! training, file or author go. All other entries of the base are carried unchanged.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::{Checkpoint, InputFile};
use crate::recipe::Snapshot;

use super::job::Job;

/// Entries of a header, by key.
pub type Entries = BTreeMap<String, String>;

/// The library that reads the tensors; loaders ask for it.
const FORMAT: &str = "format";
/// The method that made the weights.
const METHOD: &str = "thalweg.method";
/// Prefix of ModelSpec's entries.
const SPEC: &str = "modelspec.";
/// Entries of a training's record that describe the network rather than the training.
const OF_NETWORK: [&str; 6] = [
    "ss_v2",
    "ss_base_model_version",
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_network_args",
];

/// The treatment of an entry of the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It holds for the output: it stays.
    Stays,
    /// It stays if all models say the same.
    StaysIfShared,
    /// It is left out.
    Goes,
}

/// Returns the header entries for the donor's files in `folder`, and warnings about them; `members`
/// are the inputs that are merged.
pub fn of(
    job: &Job,
    inputs: &[Checkpoint],
    members: &[usize],
    folder: &str,
) -> (Entries, Vec<String>) {
    let donor = &inputs[job.donor];
    let (known, differing) = of_shards(donor, folder);
    let warnings = differing.iter().map(|key| left_out(donor, key)).collect();
    let others: Vec<Entries> = members
        .iter()
        .map(|member| of_shards(&inputs[*member], folder).0)
        .collect();
    let mut entries = Entries::new();
    for (key, value) in known {
        let stays = match fate(&key) {
            _ if job.rewritten => !is_sum(&key),
            Fate::Stays => true,
            Fate::StaysIfShared => others.iter().all(|other| other.get(&key) == Some(&value)),
            Fate::Goes => false,
        };
        if stays {
            entries.insert(key, value);
        }
    }
    entries
        .entry(FORMAT.to_owned())
        .or_insert_with(|| "pt".to_owned());
    if !job.rewritten {
        let method = job.document.method.info().name;
        entries.insert(METHOD.to_owned(), method.to_owned());
        // Only a donor that follows the specification of such titles gets them.
        if entries.keys().any(|key| key.starts_with(SPEC)) {
            let members = members.iter();
            let names: Vec<String> = members
                .map(|member| title(&inputs[*member], folder))
                .collect();
            let names = names.join(", ");
            entries.insert(format!("{SPEC}title"), format!("Merge of {names}"));
            entries.insert(format!("{SPEC}merged_from"), names);
        }
    }
    (entries, warnings)
}

/// Warns of a key that is left out because the shards differ in it.
fn left_out(donor: &Checkpoint, key: &str) -> String {
    let (root, key) = (donor.root().display(), key.escape_debug());
    format!("{root}: its shards differ in the metadata `{key}`, left out")
}

/// Returns all entries on which `donor`'s files in `folder` agree, for tensors that are carried
/// unchanged; there are no warnings.
pub fn of_carried(donor: &Checkpoint, folder: &str) -> (Entries, Vec<String>) {
    let (mut entries, _) = of_shards(donor, folder);
    entries
        .entry(FORMAT.to_owned())
        .or_insert_with(|| "pt".to_owned());
    (entries, Vec::new())
}

/// Returns the entries that every header has.
pub fn least() -> Entries {
    Entries::from([(FORMAT.to_owned(), "pt".to_owned())])
}

/// Gathers the entries of a checkpoint's files in `folder`, and the keys in which the files differ.
fn of_shards(checkpoint: &Checkpoint, folder: &str) -> (Entries, Vec<String>) {
    let (mut entries, mut differing) = (Entries::new(), Vec::new());
    for file in checkpoint
        .files()
        .iter()
        .filter(|file| folder_of(file) == folder)
    {
        for (key, value) in &file.metadata {
            match entries.get(key) {
                None if !differing.contains(key) => {
                    drop(entries.insert(key.clone(), value.clone()))
                }
                Some(known) if known != value => {
                    entries.remove(key);
                    differing.push(key.clone());
                }
                _ => {}
            }
        }
    }
    (entries, differing)
}

/// Returns the folder of a file within the checkpoint; empty at its root.
fn folder_of(file: &InputFile) -> &str {
    file.name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Returns a model's name for a list: its own title, its hub id or its file name.
fn title(input: &Checkpoint, folder: &str) -> String {
    let own = of_shards(input, folder)
        .0
        .remove(&format!("{SPEC}title"))
        .filter(|title| !title.trim().is_empty());
    let hub = || Snapshot::of(input.root()).map(|snapshot| snapshot.id);
    let name = || file_name_of(input.root());
    // Commas separate the models of the list.
    own.or_else(hub).unwrap_or_else(name).replace(',', " ")
}

/// Returns the last name of a path without the endings of weights; that of the folder to which it
/// leads when it has none, as `..`.
fn file_name_of(root: &Path) -> String {
    let resolved = || root.canonicalize().ok();
    let name = match root.file_name() {
        Some(name) => Some(name.to_owned()),
        None => resolved().and_then(|root| Some(root.file_name()?.to_owned())),
    };
    let name = name.unwrap_or_default().to_string_lossy().into_owned();
    let plain = name.strip_suffix(".zst").unwrap_or(&name);
    let plain = plain.strip_suffix(".safetensors").unwrap_or(plain);
    plain.to_owned()
}

fn fate(key: &str) -> Fate {
    if let Some(key) = key.strip_prefix(SPEC) {
        return match key {
            "title" | "description" | "date" | "thumbnail" | "merged_from" => Fate::Goes,
            "license" | "author" | "usage_hint" | "trigger_phrase" | "category" | "tags"
            | "language" | "data_format" => Fate::StaysIfShared,
            _ if is_sum(key) => Fate::Goes,
            _ => Fate::Stays,
        };
    }
    let of_a_training = key.starts_with("ss_") && !OF_NETWORK.contains(&key);
    let of_an_earlier_merge = key.starts_with("sd_merge_") || key.starts_with("thalweg.");
    if of_a_training || of_an_earlier_merge || is_sum(key) {
        Fate::Goes
    } else {
        Fate::Stays
    }
}

/// Tells if an entry is a checksum of the weights or the file.
fn is_sum(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["hash", "sha256", "md5", "checksum"]
        .iter()
        .any(|word| key.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_describes_the_network_stays_and_what_describes_one_file_goes() {
        for stays in [
            "format",
            "modelspec.architecture",
            "modelspec.prediction_type",
            "ss_network_dim",
            "config",
            "total_parameters",
        ] {
            assert_eq!(fate(stays), Fate::Stays, "{stays}");
        }
        for goes in [
            "modelspec.hash_sha256",
            "modelspec.date",
            "sshs_model_hash",
            "ss_learning_rate",
            "sd_merge_recipe",
            "thalweg.method",
            "file_sha256",
        ] {
            assert_eq!(fate(goes), Fate::Goes, "{goes}");
        }
        assert_eq!(fate("modelspec.license"), Fate::StaysIfShared);
    }
}
