//! Which files a checkpoint consists of.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::index::Index;
use super::side::weight_format;
use crate::error::{Error, Kind, Result};

/// The files of a checkpoint, before any of them is opened.
#[derive(Debug)]
pub(super) struct Layout {
    /// The folder, unless a single weight file was named.
    pub folder: Option<PathBuf>,
    /// Path and name, sorted by name.
    pub files: Vec<(PathBuf, String)>,
    /// What the shards must hold.
    pub index: Option<Index>,
}

const PLAIN: &str = ".safetensors";
const COMPRESSED: &str = ".safetensors.zst";
/// How many missing shards a message names.
const NAMED_IN_MESSAGES: usize = 8;

/// Finds the weight files behind `path`.
pub(super) fn locate(path: &Path) -> Result<Layout> {
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => bad(path, "no such file or folder"),
        _ => Error::io("cannot open checkpoint", path, error),
    })?;
    if metadata.is_dir() {
        return in_folder(path);
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if is_index(&name) {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        return indexed(folder.unwrap_or(Path::new(".")), path);
    }
    match weight_format(&name) {
        Some("safetensors") | None => {}
        Some(format) => return Err(wrong_format(path, format)),
    }
    Ok(Layout { folder: None, files: vec![(path.to_owned(), name)], index: None })
}

fn in_folder(folder: &Path) -> Result<Layout> {
    let names = file_names(folder)?;
    if let Some(index) = choose_index(folder, &names)? {
        return indexed(folder, &folder.join(index));
    }
    let single =
        [PLAIN, COMPRESSED].map(|suffix| format!("model{suffix}")).into_iter().find(|name| names.contains(name));
    let chosen = match single {
        Some(single) => vec![single],
        None => loose(folder, &names)?,
    };
    let files = chosen.into_iter().map(|name| (folder.join(&name), name)).collect();
    Ok(Layout { folder: Some(folder.to_owned()), files, index: None })
}

fn file_names(folder: &Path) -> Result<BTreeSet<String>> {
    let failed = |error| Error::io("cannot list", folder, error);
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        // A name that is not UTF-8 is not a shard's.
        if let Ok(name) = entry.map_err(failed)?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.insert(name);
        }
    }
    Ok(names)
}

fn is_index(name: &str) -> bool {
    name.contains(".safetensors.index.") && name.ends_with(".json") && !name.starts_with("adapter_")
}

fn choose_index<'a>(folder: &Path, names: &'a BTreeSet<String>) -> Result<Option<&'a str>> {
    const USUAL: &str = "model.safetensors.index.json";
    let indexes: Vec<_> = names.iter().map(String::as_str).filter(|name| is_index(name)).collect();
    match indexes[..] {
        _ if indexes.contains(&USUAL) => Ok(Some(USUAL)),
        [] => Ok(None),
        [only] => Ok(Some(only)),
        _ => {
            Err(bad(folder, format!("several indexes: {}", indexes.join(", ")))
                .with_hint("name one of them as the model"))
        }
    }
}

fn indexed(folder: &Path, path: &Path) -> Result<Layout> {
    let index = Index::read(path)?;
    let names = file_names(folder)?;
    let shards = index.shards();
    let mut files = BTreeMap::new();
    let mut missing = Vec::new();
    for shard in &shards {
        let compressed = format!("{shard}.zst");
        if let Some(name) = [*shard, &compressed].into_iter().find(|name| names.contains(*name)) {
            files.insert(name.to_owned(), folder.join(name));
        } else {
            missing.push(*shard);
        }
    }
    if !missing.is_empty() {
        let there = shards.len() - missing.len();
        let cause = format!("{there} of {} shards are there, missing: {}", shards.len(), listed(&missing));
        return Err(Error::new(Kind::Input, "index does not fit", path.display(), cause)
            .with_hint("finish the download, or remove the index if it belongs to other files"));
    }
    let files = files.into_iter().map(|(name, path)| (path, name)).collect();
    Ok(Layout { folder: Some(folder.to_owned()), files, index: Some(index) })
}

/// All shards of a folder that has neither an index nor `model.safetensors`.
fn loose(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<String>> {
    let is_shard = |name: &&String| {
        let plain = name.strip_suffix(".zst").unwrap_or(name);
        // A compressed shard beside its expanded self is the same shard.
        plain.ends_with(PLAIN) && !name.starts_with("adapter_") && (plain == *name || !names.contains(plain))
    };
    let mut shards: Vec<_> = names.iter().filter(is_shard).cloned().collect();
    // Mistral's folders hold the whole model a second time under this name.
    if !shards.iter().all(|name| name.starts_with("consolidated")) {
        shards.retain(|name| !name.starts_with("consolidated"));
    }
    if shards.is_empty() {
        return Err(nothing_in(folder, names));
    }
    check_complete(folder, &shards)?;
    Ok(shards)
}

/// Splits `model-00002-of-00005.safetensors` into `model`, 2 and 5.
fn numbered(name: &str) -> Option<(&str, u32, u32)> {
    let stem = name.strip_suffix(".zst").unwrap_or(name).strip_suffix(PLAIN)?;
    let (rest, total) = stem.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let parse = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    Some((prefix, parse(number)?, parse(total)?))
}

/// Numbered shards must all be there, and be of one set.
fn check_complete(folder: &Path, shards: &[String]) -> Result<()> {
    let mut sets: BTreeMap<&str, (u32, BTreeSet<u32>)> = BTreeMap::new();
    for (prefix, number, total) in shards.iter().filter_map(|name| numbered(name)) {
        let (expected, there) = sets.entry(prefix).or_insert_with(|| (total, BTreeSet::new()));
        if *expected != total {
            let cause = format!("shards of two sets: {prefix}-…-of-{expected:05} and {prefix}-…-of-{total:05}");
            return Err(bad(folder, cause).with_hint("remove the files that an earlier save left behind"));
        }
        there.insert(number);
    }
    for (prefix, (total, there)) in sets {
        // Some savers count from zero.
        let first = u32::from(!there.contains(&0));
        let missing: Vec<_> = (first..total.saturating_add(first))
            .filter(|number| !there.contains(number))
            .take(NAMED_IN_MESSAGES + 1)
            .map(|number| format!("{prefix}-{number:05}-of-{total:05}{PLAIN}"))
            .collect();
        if !missing.is_empty() {
            let missing: Vec<_> = missing.iter().map(String::as_str).collect();
            let cause = format!("{} of {total} shards are there, missing: {}", there.len(), listed(&missing));
            return Err(bad(folder, cause).with_hint("finish the download"));
        }
    }
    Ok(())
}

fn listed(names: &[&str]) -> String {
    let more = if names.len() > NAMED_IN_MESSAGES { ", …" } else { "" };
    format!("{}{more}", names[..names.len().min(NAMED_IN_MESSAGES)].join(", "))
}

/// Why a folder without a single safetensors file cannot be read.
fn nothing_in(folder: &Path, names: &BTreeSet<String>) -> Error {
    if names.iter().any(|name| name.starts_with("adapter_") && name.contains(PLAIN)) {
        return bad(folder, "holds an adapter, not a model").with_hint("fold the adapter into its base model first");
    }
    match names.iter().find_map(|name| weight_format(name)) {
        Some(format) => wrong_format(folder, format),
        None if names.is_empty() => bad(folder, "the folder is empty"),
        None => bad(folder, "no safetensors file in the folder"),
    }
}

fn wrong_format(path: &Path, format: &str) -> Error {
    bad(path, format!("weights in {format} format, safetensors are needed"))
        .with_hint("convert the model to safetensors first")
}

fn bad(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Input, "cannot open checkpoint", path.display(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbered_names_are_taken_apart() {
        assert_eq!(numbered("model-00002-of-00005.safetensors"), Some(("model", 2, 5)));
        assert_eq!(numbered("a-b-2-of-3.safetensors.zst"), Some(("a-b", 2, 3)));
        for other in
            ["model.safetensors", "model-x-of-00005.safetensors", "model-00001-of-+5.safetensors", "1-of-2.bin"]
        {
            assert_eq!(numbered(other), None, "{other}");
        }
    }
}
