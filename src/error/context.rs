//! The part that all failures of one action on one subject share.

use std::fmt::Display;

use super::{Error, Kind, Result};

/// The kind of a failure, the action that failed, its subject and a hint: all but the cause.
///
/// A function that can fail in several ways makes one at its start, so that its failures read
/// alike and each line names its cause only.
///
/// # Examples
///
/// ```
/// use thalweg::error::{Context, Kind, Result};
///
/// fn first(bytes: &[u8]) -> Result<u8> {
///     let context = Context::new(Kind::Input, "cannot read header", "a.safetensors");
///     let first = bytes.first().ok_or_else(|| context.error("file is empty"))?;
///     if *first == 0 {
///         return context.fail(format!("wanted a number above 0, got {first}"));
///     }
///     Ok(*first)
/// }
///
/// let error = first(&[]).unwrap_err();
/// assert_eq!(error.to_string(), "cannot read header: a.safetensors: file is empty");
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Context<S> {
    kind: Kind,
    what: &'static str,
    subject: S,
    hint: Option<&'static str>,
}

impl<S: Display> Context<S> {
    /// Failures of `what` on `subject` (a file, tensor or key).
    pub fn new(kind: Kind, what: &'static str, subject: S) -> Self {
        Self {
            kind,
            what,
            subject,
            hint: None,
        }
    }

    /// Adds a sentence about the next step to every failure.
    #[must_use]
    pub fn with_hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint);
        self
    }

    /// Returns the failure because of `cause`.
    pub fn error(&self, cause: impl Display) -> Error {
        let error = Error::new(self.kind, self.what, &self.subject, cause);
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }

    /// Fails because of `cause`.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn fail<T>(&self, cause: impl Display) -> Result<T> {
        Err(self.error(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_one_context_differ_in_their_cause_only() {
        let context = Context::new(Kind::Resume, "cannot resume", 7).with_hint("begin anew");
        let error = context.error("no journal");
        assert_eq!(error.to_string(), "cannot resume: 7: no journal");
        assert_eq!(
            (error.kind(), error.hint()),
            (Kind::Resume, Some("begin anew"))
        );
        let failed = context.fail::<()>("another cause");
        assert_eq!(failed.expect_err("it fails").cause(), "another cause");
    }
}
