//! The local cache of the Hugging Face hub; nothing is ever downloaded.
//!
//! ```text
//! <cache>/models--org--name/refs/main            text: a commit
//! <cache>/models--org--name/snapshots/<commit>/  the files, as links
//! ```

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Kind, Result};

/// The folder into which `hf download` and transformers put models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubCache {
    root: PathBuf,
}

impl HubCache {
    /// Returns the cache in `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the cache that the Hugging Face libraries use: `HF_HUB_CACHE`,
    /// `HUGGINGFACE_HUB_CACHE`, `HF_HOME/hub`, `XDG_CACHE_HOME/huggingface/hub` or
    /// `~/.cache/huggingface/hub`, the first that is set.
    ///
    /// `variable` looks up an environment variable, as [`std::env::var_os`] does.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name: &str| variable(name).and_then(path_of);
        let root = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
            .unwrap_or_else(|| super::model_ref::expand_home("~/.cache/huggingface/hub"));
        Self { root }
    }

    /// Finds the snapshot of `id` at `revision` (`main` when none is given).
    ///
    /// # Errors
    ///
    /// [`Kind::Input`] with the command that downloads it, when it is not in the cache.
    pub fn find(&self, id: &str, revision: Option<&str>) -> Result<PathBuf> {
        let name = revision.unwrap_or("main");
        let shown = revision.map_or_else(|| id.to_owned(), |revision| format!("{id}@{revision}"));
        let context = Context::new(Kind::Input, "cannot find model", &shown);
        if !Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            return context.fail(format!("`{name}` is not a branch, tag or commit"));
        }
        let folder = self.root.join(format!("models--{}", id.replace('/', "--")));
        let command = match revision {
            Some(revision) => format!("hf download {id} --revision {revision}"),
            None => format!("hf download {id}"),
        };
        let hint = format!("get it with `{command}`, or name its folder");
        let absent = |cause: String| context.error(cause).with_hint(&hint);
        if !folder.is_dir() {
            let root = self.root.display();
            return Err(absent(format!(
                "is neither a local path nor in the hub's cache {root}"
            )));
        }
        let snapshots = folder.join("snapshots");
        let commit = read_ref(&folder.join("refs").join(name));
        [commit.as_deref(), Some(name)]
            .into_iter()
            .flatten()
            .map(|commit| snapshots.join(commit))
            .find(|snapshot| snapshot.is_dir())
            .ok_or_else(|| {
                absent(format!(
                    "the hub's cache has no snapshot of `{name}` in {}",
                    folder.display()
                ))
            })
    }
}

/// A model of the hub as it was at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The repository, such as `org/name`.
    pub id: String,
    /// The commit, in hexadecimal.
    pub commit: String,
}

impl Snapshot {
    /// Finds the snapshot that `path` is, or is in, by the names of its folders in a hub cache;
    /// `None` elsewhere.
    pub fn of(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path
            .components()
            .filter_map(|part| part.as_os_str().to_str())
            .collect();
        parts.windows(3).rev().find_map(|parts| {
            let [repository, "snapshots", commit] = parts else {
                return None;
            };
            let id = repository.strip_prefix("models--")?.replace("--", "/");
            let model = super::ModelRef {
                path: id,
                revision: None,
            };
            let is_commit =
                commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
            (is_commit && model.is_hub_id()).then(|| Self {
                id: model.path,
                commit: (*commit).to_owned(),
            })
        })
    }
}

/// Reads the commit in a ref file; `None` when the file is missing or holds anything but a name.
fn read_ref(path: &Path) -> Option<String> {
    let mut text = String::new();
    crate::checkpoint::open_regular(path)
        .ok()?
        .take(256)
        .read_to_string(&mut text)
        .ok()?;
    let commit = text.trim();
    let plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    plain.then(|| commit.to_owned())
}

/// Returns the path in a variable's value; `None` when it is empty.
fn path_of(value: OsString) -> Option<PathBuf> {
    if value.is_empty() {
        return None;
    }
    Some(match value.to_str() {
        Some(text) => super::model_ref::expand_home(text),
        None => PathBuf::from(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache_with_a_model() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        let model = dir.path().join("models--org--name");
        fs::create_dir_all(model.join("refs/refs/pr")).expect("refs");
        fs::create_dir_all(model.join("snapshots").join(COMMIT)).expect("snapshots");
        for name in ["main", "v1", "refs/pr/2"] {
            fs::write(model.join("refs").join(name), format!("{COMMIT}\n")).expect("a ref");
        }
        fs::write(model.join("refs/gone"), "ffff").expect("a ref");
        fs::write(model.join("refs/evil"), "../../..").expect("a ref");
        dir
    }

    #[test]
    fn branches_tags_pull_requests_and_commits_lead_to_the_snapshot() {
        let dir = cache_with_a_model();
        let cache = HubCache::at(dir.path());
        let snapshot = dir.path().join("models--org--name/snapshots").join(COMMIT);
        for revision in [
            None,
            Some("main"),
            Some("v1"),
            Some("refs/pr/2"),
            Some(COMMIT),
        ] {
            assert_eq!(
                cache.find("org/name", revision).expect("cached"),
                snapshot,
                "{revision:?}"
            );
        }
    }

    #[test]
    fn what_is_not_cached_is_refused_with_the_command_that_gets_it() {
        let dir = cache_with_a_model();
        let cache = HubCache::at(dir.path());
        let error = cache.find("org/other", None).expect_err("not cached");
        assert_eq!(error.kind(), Kind::Input);
        assert!(
            error
                .hint()
                .expect("a hint")
                .contains("`hf download org/other`")
        );
        for revision in ["v2", "gone", "evil"] {
            let error = cache
                .find("org/name", Some(revision))
                .expect_err("not cached");
            assert!(
                error
                    .hint()
                    .expect("a hint")
                    .contains(&format!("--revision {revision}`")),
                "{error}"
            );
        }
        for revision in ["../../x", "/etc", ".."] {
            let error = cache
                .find("org/name", Some(revision))
                .expect_err("not a revision");
            assert!(error.to_string().contains("not a branch"), "{error}");
        }
    }

    #[test]
    fn a_snapshot_is_known_by_the_folders_it_lies_in() {
        let of = |path: &str| Snapshot::of(Path::new(path)).map(|found| (found.id, found.commit));
        let root = format!("/x/hub/models--org--name/snapshots/{COMMIT}");
        for inside in ["", "/", "/unet", "/model.safetensors"] {
            assert_eq!(
                of(&format!("{root}{inside}")),
                Some(("org/name".into(), COMMIT.into())),
                "{inside}"
            );
        }
        assert_eq!(
            of(&format!("models--gpt2/snapshots/{COMMIT}")),
            Some(("gpt2".into(), COMMIT.into()))
        );
        for other in [
            "models--org--name/snapshots/main",
            "models--a--b--c/snapshots",
            "org/name",
            "/",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(of(&format!("models--a--b--c/snapshots/{COMMIT}")), None);
        assert_eq!(of(&format!("datasets--a--b/snapshots/{COMMIT}")), None);
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let find = |set: &[(&str, &str)]| {
            HubCache::from_variables(|name| {
                set.iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| OsString::from(value))
            })
        };
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HF_HOME", "/b"),
            ("XDG_CACHE_HOME", "/c"),
        ];
        assert_eq!(find(&all), HubCache::at("/a"));
        assert_eq!(find(&all[1..]), HubCache::at("/b/hub"));
        assert_eq!(find(&all[2..]), HubCache::at("/c/huggingface/hub"));
        assert_eq!(
            find(&[("HF_HOME", "")]),
            HubCache::at(super::super::expand_home("~/.cache/huggingface/hub"))
        );
    }
}
