//! Names of models: folders, files, and repositories of the hub.

use std::env::home_dir;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::hub::HubCache;
use crate::error::{Error, Kind, Result};

/// A model as a recipe names it: a local path or a hub id, perhaps with a revision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelRef {
    /// The path or hub id as written, `~` included.
    pub path: String,
    /// A branch, tag or commit of the hub.
    pub revision: Option<String>,
}

impl ModelRef {
    /// Parses the model that `text` names: `path`, `org/name` or `org/name@revision`.
    ///
    /// `exists` tells whether a path is there: the name of an existing file or folder is never
    /// taken apart, whatever `@` or `+` it contains.
    ///
    /// # Errors
    ///
    /// A sentence, for an empty name and for `base+lora`, which cannot be merged yet.
    ///
    /// # Examples
    ///
    /// ```
    /// let model = thalweg::ModelRef::parse("org/name@main", |_| false).expect("an id of the hub");
    /// assert_eq!((model.path.as_str(), model.revision.as_deref()), ("org/name", Some("main")));
    /// ```
    pub fn parse(text: &str, exists: impl Fn(&Path) -> bool) -> Result<Self, String> {
        check_name(text)?;
        if !text.contains(['@', '+']) || exists(&expand_home(text)) {
            return Ok(Self {
                path: text.into(),
                revision: None,
            });
        }
        if let Some((base, lora)) = text.split_once('+') {
            return Err(format!(
                "`{text}` asks for the LoRA adapter `{lora}` on `{base}`, which thalweg cannot fold in yet; \
                 there is no file or folder of that name either"
            ));
        }
        match text.split_once('@') {
            Some((path, revision)) if !path.is_empty() && !revision.is_empty() => Ok(Self {
                path: path.into(),
                revision: Some(revision.into()),
            }),
            _ => Err(format!(
                "`{text}` is neither `name@revision` nor a file or folder that is there"
            )),
        }
    }

    /// Finds the folder or file on this machine that holds the model.
    ///
    /// An existing path is taken as it is; anything that can be a hub id is looked up in `hub`,
    /// which reads the local cache only.
    ///
    /// # Errors
    ///
    /// [`Kind::Input`] when there is no such path and the hub's cache has no such model.
    pub fn locate(&self, hub: &HubCache) -> Result<PathBuf> {
        let path = expand_home(&self.path);
        if self.revision.is_none() && path.exists() {
            return Ok(path);
        }
        if !self.is_hub_id() {
            let cause = match &self.revision {
                Some(revision) if path.exists() => {
                    format!("is a local path, which has no revision `{revision}`")
                }
                _ => "no such file or folder".to_owned(),
            };
            return Err(Error::new(Kind::Input, "cannot find model", self, cause));
        }
        hub.find(&self.path, self.revision.as_deref())
    }

    /// Tells if the path can be the id of a repository: one or two plain parts, as in `org/name`.
    pub fn is_hub_id(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        parts.len() <= 2 && parts.iter().all(|part| is_hub_name(part))
    }

    /// Tells if the short form would be read back as this very model.
    fn is_plain(&self) -> bool {
        // `base` and `union` mean something else where a tokenizer is named.
        self.revision.is_none()
            && !self.path.contains(['@', '+'])
            && !["base", "union"].contains(&&*self.path)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

/// Checks that a name can be that of a model, and can be shown.
///
/// # Errors
///
/// A sentence that says why not.
pub(super) fn check_name(text: &str) -> Result<(), String> {
    match text.chars().find(|c| c.is_control()) {
        _ if text.trim().is_empty() => Err("the name of a model is empty".into()),
        _ if text.len() > 4096 => Err(format!(
            "the name of a model is {} bytes long, a path has 4096",
            text.len()
        )),
        Some(control) => Err(format!("the name of a model contains {control:?}")),
        None => Ok(()),
    }
}

/// Writes `path`, or `{model: {path, revision}}` when the short form could be read in two ways.
impl Serialize for ModelRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Long<'a> {
            path: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            revision: Option<&'a str>,
        }
        if self.is_plain() {
            return serializer.serialize_str(&self.path);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(
            "model",
            &Long {
                path: &self.path,
                revision: self.revision.as_deref(),
            },
        )?;
        map.end()
    }
}

/// Replaces a leading `~/` of `path` by the home folder.
pub fn expand_home(path: &str) -> PathBuf {
    let rest = if path == "~" {
        Some("")
    } else {
        path.strip_prefix("~/")
    };
    match (rest, home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

/// True if `part` can be the name of an organisation or of a repository.
fn is_hub_name(part: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    part.starts_with(|c: char| c.is_ascii_alphanumeric())
        && part.len() <= 96
        && part.chars().all(is_allowed)
        && !part.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ModelRef, String> {
        ModelRef::parse(text, |path| path == Path::new("odd@dir+name"))
    }

    fn model(path: &str, revision: Option<&str>) -> ModelRef {
        ModelRef {
            path: path.into(),
            revision: revision.map(str::to_owned),
        }
    }

    #[test]
    fn a_name_is_taken_apart_only_when_no_such_path_exists() {
        assert_eq!(parse("org/name"), Ok(model("org/name", None)));
        assert_eq!(parse("org/name@v1.0"), Ok(model("org/name", Some("v1.0"))));
        assert_eq!(parse("odd@dir+name"), Ok(model("odd@dir+name", None)));
        assert!(
            parse("org/base+org/lora")
                .expect_err("LoRA")
                .contains("LoRA adapter `org/lora`")
        );
        for wrong in [
            "",
            "  ",
            "@main",
            "org/name@",
            "a\tb",
            "a\0",
            "\u{1b}[2J",
            &"a".repeat(4097),
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn only_one_or_two_plain_parts_can_be_a_hub_id() {
        for id in ["gpt2", "org/name", "Org-1/na.me_2"] {
            assert!(model(id, None).is_hub_id(), "{id}");
        }
        for path in [
            "./a", "/a/b", "a/b/c", "~/a", "../a", "a/..", "a b", ".", "a//b", "org/",
        ] {
            assert!(!model(path, None).is_hub_id(), "{path}");
        }
    }

    #[test]
    fn the_home_folder_is_filled_in_for_a_leading_tilde_only() {
        let home = home_dir().expect("tests run with a home folder");
        assert_eq!(expand_home("~/m"), home.join("m"));
        assert_eq!(expand_home("~"), home.join(""));
        assert_eq!(expand_home("a/~/m"), PathBuf::from("a/~/m"));
        assert_eq!(expand_home("~other/m"), PathBuf::from("~other/m"));
    }

    #[test]
    fn a_local_model_is_found_and_a_missing_one_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let hub = HubCache::at(dir.path().join("hub"));
        let here = dir.path().to_str().expect("temporary paths are UTF-8");
        assert_eq!(
            model(here, None).locate(&hub).expect("is there"),
            dir.path()
        );
        let error = model(&format!("{here}/absent"), None)
            .locate(&hub)
            .expect_err("not there");
        assert!(
            error
                .to_string()
                .ends_with("absent: no such file or folder"),
            "{error}"
        );
        let error = model(here, Some("main"))
            .locate(&hub)
            .expect_err("no revisions there");
        assert!(error.to_string().contains("no revision `main`"), "{error}");
    }
}
