//! One folder of the output.

use std::collections::BTreeMap;

use super::to_u64;
use crate::error::{Error, Kind, Result};
use crate::plan::metadata::least;

/// The most bytes of metadata in all headers of a part together, which stay in memory for the whole
/// run.
pub const METADATA_BYTES: u64 = 4 << 20;

/// A folder of the output with shards and an index of its own: the output itself, or a component of
/// a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its path below the output; empty for the output itself. The names of its tensors begin with
    /// the path and a slash, which its files leave out.
    pub folder: String,
    /// The stem of its file names, such as `model`.
    pub stem: String,
    /// The `__metadata__` of its headers, by key.
    pub metadata: BTreeMap<String, String>,
}

impl Part {
    /// Returns the output itself as a part, its shards named after `stem`, with the least metadata.
    pub fn main(stem: &str) -> Self {
        Self {
            folder: String::new(),
            stem: stem.to_owned(),
            metadata: least(),
        }
    }

    /// Tells if `name` is one of its tensors, unless a part with a longer folder holds it.
    pub fn holds(&self, name: &str) -> bool {
        self.folder.is_empty()
            || name
                .strip_prefix(&self.folder)
                .is_some_and(|rest| rest.starts_with('/'))
    }

    /// Returns the path of its index, below the output.
    pub(super) fn index_name(&self) -> String {
        self.path(&format!("{}.safetensors.index.json", self.stem))
    }

    pub(super) fn path(&self, name: &str) -> String {
        if self.folder.is_empty() {
            name.to_owned()
        } else {
            format!("{}/{name}", self.folder)
        }
    }

    /// Counts the bytes of the metadata in one header.
    pub fn metadata_bytes(&self) -> u64 {
        serde_json::to_string(&self.metadata).map_or(u64::MAX, |json| to_u64(json.len()))
    }

    /// Cuts the metadata to the least if it does not fit the headers of `shards` shards; returns
    /// true if it was cut.
    pub(super) fn trim(&mut self, shards: usize) -> bool {
        let fits = self.metadata_bytes().saturating_mul(to_u64(shards)) <= METADATA_BYTES
            || self.metadata == least();
        if !fits {
            self.metadata = least();
        }
        !fits
    }
}

/// Checks that folder and stem of a part give plain file names.
pub(super) fn check(part: &Part) -> Result<()> {
    let folder = part.folder.is_empty() || part.folder.split('/').all(is_plain);
    match [(&part.folder, folder), (&part.stem, is_plain(&part.stem))]
        .into_iter()
        .find(|(_, is_plain)| !is_plain)
    {
        Some((name, _)) => Err(Error::new(
            Kind::Usage,
            "cannot name shards",
            format!("{name:?}"),
            "not a plain file name",
        )),
        None => Ok(()),
    }
}

/// True if `name` is a file name of letters, digits, dots and dashes.
fn is_plain(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_many_headers_would_repeat_for_megabytes_is_left_out() {
        let entry = ("notes".to_owned(), "x".repeat(1 << 20));
        let mut part = Part {
            metadata: BTreeMap::from([entry]),
            ..Part::main("model")
        };
        assert!(!part.trim(3) && part.metadata.contains_key("notes"));
        assert!(part.trim(4));
        assert_eq!(part.metadata, least());
        assert!(!part.trim(1 << 30));
    }

    #[test]
    fn a_part_holds_what_is_named_after_its_folder() {
        let part = Part {
            folder: "unet".into(),
            ..Part::main("model")
        };
        assert!(part.holds("unet/a") && !part.holds("unet2/a") && !part.holds("unet"));
        assert_eq!(part.path("model.safetensors"), "unet/model.safetensors");
    }
}
