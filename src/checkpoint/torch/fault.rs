//! Faults inside a file, before the file's name is known.

use std::borrow::Cow;
use std::path::Path;

use crate::error::{Error, Kind};

/// The cause of a refusal; [`Fault::on`] makes the error that names the file.
#[derive(Debug)]
pub(super) struct Fault {
    cause: String,
    hint: Option<Cow<'static, str>>,
}

/// The result of parsing untrusted bytes.
pub(super) type Parsed<T> = Result<T, Fault>;

impl Fault {
    pub(super) fn new(cause: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            hint: None,
        }
    }

    pub(super) fn with_hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the tensor or entry `name` to the fault.
    pub(super) fn of(mut self, name: &str) -> Self {
        self.cause = format!("{name:?}: {}", self.cause);
        self
    }

    /// Makes the error for the file at `path`.
    pub(super) fn on(self, path: &Path) -> Error {
        let error = Error::new(
            Kind::Input,
            "cannot read torch checkpoint",
            path.display(),
            self.cause,
        );
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    #[cfg(test)]
    pub(super) fn cause(&self) -> &str {
        &self.cause
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
