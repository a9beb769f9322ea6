//! Reads a spec from text and merges it over the spec that it extends.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use super::{Spec, builtin};
use crate::error::{Error, Kind, Result};

/// The largest spec that is read.
pub const MAX_SPEC_BYTES: usize = 4 << 20;

/// The most YAML nodes in a spec, replayed aliases included.
const MAX_NODES: usize = 100_000;

/// The most levels of `extends`.
const MAX_LEVELS: usize = 8;

impl Spec {
    /// Parses `text`, YAML or JSON, and resolves `extends`. Messages call the spec `name`.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when the text is not a spec or extends an unknown one.
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        let spec = read(text, name)?;
        spec.standing_on(name, MAX_LEVELS)
    }

    /// Reads the spec in the file `path`.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when the file cannot be read, and the errors of [`Spec::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| file.take(MAX_SPEC_BYTES as u64 + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::io("cannot read spec", path, error).with_kind(Kind::Recipe))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            Error::new(Kind::Recipe, "cannot use spec", &name, error.utf8_error())
        })?;
        Self::parse(&text, &name)
    }

    fn standing_on(mut self, name: &str, levels: usize) -> Result<Self> {
        let Some(below) = self.extends.take() else {
            return Ok(self);
        };
        let refused = |cause: String| Error::new(Kind::Recipe, "cannot use spec", name, cause);
        let text = builtin::text_of(&below).ok_or_else(|| {
            let known: Vec<&str> = builtin::names().collect();
            refused(format!(
                "extends `{}`, which is none of {}",
                below.escape_debug(),
                known.join(", ")
            ))
        })?;
        if levels == 0 {
            return Err(refused("extends itself".into()));
        }
        let mut base = read(text, &below)?.standing_on(&below, levels - 1)?;
        base.name = self.name;
        base.matching = self.matching;
        if !self.prefixes.is_empty() {
            base.prefixes = self.prefixes;
        }
        base.sizes.extend(self.sizes);
        base.groups.extend(self.groups);
        self.tensors.append(&mut base.tensors);
        base.tensors = self.tensors;
        base.tied.extend(self.tied);
        base.fold = match (self.fold, base.fold) {
            (Some(own), Some(below)) => Some(own.standing_on(below)),
            (own, below) => own.or(below),
        };
        Ok(base)
    }
}

fn read(text: &str, name: &str) -> Result<Spec> {
    let refused = |cause: String| Error::new(Kind::Recipe, "cannot use spec", name, cause);
    if text.len() > MAX_SPEC_BYTES {
        return Err(refused(format!(
            "at most {MAX_SPEC_BYTES} bytes are read, got {}",
            text.len()
        )));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_NODES },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.render_with_formatter(&serde_saphyr::UserMessageFormatter);
        refused(message.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    })
}
