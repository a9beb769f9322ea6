//! The one error type of the library: the action that failed, its subject, the cause, and a hint.

mod context;
mod shown;

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use crate::door::Door;

pub use context::Context;
pub use shown::{json as shown_json, name as shown_name, shown};

/// The result of every fallible function of this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The sort of failure of an [`Error`]; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The command line asks for something that does not exist or does not fit together.
    Usage,
    /// A recipe does not parse or asks for something impossible.
    Recipe,
    /// The memory budget is too small for the job.
    Budget,
    /// An input file is damaged, hostile, of an unknown format, or not there.
    Input,
    /// Inputs do not fit each other: names, shapes, integer contents.
    Mismatch,
    /// An input holds NaN or infinity although that was not allowed.
    NonFinite,
    /// The output folder holds something that must not be overwritten.
    Occupied,
    /// Another process works on the same output.
    Locked,
    /// A run cannot be resumed: other recipe, changed inputs, tampered output.
    Resume,
    /// Reading, writing or syncing failed.
    Io,
    /// A device that was asked for is missing, cannot do the work, or has failed.
    Device,
    /// A stored checksum or structure does not match what was read back.
    Damaged,
    /// The user asked the run to stop.
    Interrupted,
}

/// A failure: `what: subject: cause`, and a hint about the next step.
///
/// `Display` gives one line without the hint; [`Error::hint`] gives the hint. Names in the line
/// come from inputs, so `Display` escapes and cuts it, as `shown` does.
///
/// # Examples
///
/// ```
/// use thalweg::{Error, Kind, Plan, Recipe};
///
/// let text = "merge_method: karcher\nmodels: [{model: ./nowhere}, {model: ./b}]";
/// let error: Error = Recipe::parse(text, "recipe.yml").and_then(|recipe| Plan::of(&recipe)).map(drop).unwrap_err();
/// assert!(error.to_string().contains("nowhere"));
/// assert_ne!(error.kind(), Kind::Interrupted);
/// ```
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    what: Cow<'static, str>,
    // Boxed, so that a result with an error stays small.
    subject: Box<str>,
    cause: Box<str>,
    hint: Option<Box<str>>,
    resumable: bool,
    others: Box<[Error]>,
    refused: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `what` on `subject` (a file, tensor or key) because of `cause`.
    pub fn new(
        kind: Kind,
        what: impl Into<Cow<'static, str>>,
        subject: impl fmt::Display,
        cause: impl fmt::Display,
    ) -> Self {
        Self {
            kind,
            what: what.into(),
            subject: subject.to_string().into(),
            cause: cause.to_string().into(),
            hint: None,
            resumable: false,
            others: Box::default(),
            refused: false,
            source: None,
        }
    }

    /// An operating system error on `path`.
    pub fn io(what: impl Into<Cow<'static, str>>, path: &Path, source: std::io::Error) -> Self {
        let mut error = Self::new(Kind::Io, what, path.display(), &source);
        error.source = Some(Box::new(source));
        error
    }

    /// Adds a sentence about the next step.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into().into());
        self
    }

    /// Returns one failure for all of `failures`: the first, with the [others](Self::others) in it;
    /// `None` when `failures` is empty.
    pub fn all(failures: Vec<Self>) -> Option<Self> {
        let mut failures = failures.into_iter();
        let mut first = failures.next()?;
        first.others = failures.collect();
        Some(first)
    }

    /// Puts `cause` before the failure's own cause.
    #[must_use]
    pub fn because(mut self, cause: &str) -> Self {
        self.cause = format!("{cause}; {}", self.cause).into();
        self
    }

    /// Names the settings in the failure in the words of `door`.
    #[must_use]
    pub fn through(mut self, door: Door) -> Self {
        self.what = Cow::Owned(door.words(&self.what).into_owned());
        self.cause = door.words(&self.cause).into();
        self.hint = self.hint.map(|hint| door.words(&hint).into());
        self.others = self
            .others
            .into_iter()
            .map(|other| other.through(door))
            .collect();
        self
    }

    /// Replaces the kind of the failure.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Further failures that were found at the same time, such as all faults of one recipe.
    pub fn others(&self) -> &[Self] {
        &self.others
    }

    /// Marks that the journal is valid: the same command goes on where this run stopped.
    #[must_use]
    pub fn resumable(mut self) -> Self {
        self.resumable = true;
        self
    }

    /// Marks that nothing was started: no file was written and the same command may be corrected
    /// and run again.
    #[must_use]
    pub fn refused(mut self) -> Self {
        self.refused = true;
        self
    }

    /// The sort of failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The file, tensor or key that the failure is about.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The cause of the failure.
    pub fn cause(&self) -> &str {
        &self.cause
    }

    /// The advice about the next step, if there is any.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Returns the exit code of a process that ends with this error: 1 failed, 2 refused before
    /// anything was started, 3 stopped but resumable.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            _ if self.resumable => 3,
            _ if self.refused => 2,
            Kind::Usage | Kind::Recipe | Kind::Budget | Kind::Device => 2,
            // The output's place is checked before anything is written there.
            Kind::Occupied | Kind::Locked | Kind::Resume => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}: {}",
            self.what,
            shown(&self.subject),
            shown(&self.cause)
        )
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_on_what_and_why() {
        let error = Error::new(
            Kind::Input,
            "cannot read header",
            "a.safetensors",
            "file is empty",
        );
        assert_eq!(
            error.to_string(),
            "cannot read header: a.safetensors: file is empty"
        );
        assert_eq!(error.exit_code(), 1);
    }

    #[test]
    fn one_failure_stands_for_several_and_speaks_in_the_words_of_the_door() {
        let one = |cause: &str| {
            Error::new(Kind::Recipe, "cannot merge", "x", cause).with_hint("say `nan: base`")
        };
        let error =
            Error::all(vec![one("`missing: error`"), one("second")]).expect("there are some");
        assert!(Error::all(Vec::new()).is_none());
        let error = error.through(Door::Flags);
        assert_eq!(
            (&*error.cause, error.hint()),
            ("`--missing error`", Some("say `--nan base`"))
        );
        assert_eq!(error.others()[0].hint(), Some("say `--nan base`"));
    }

    #[test]
    fn exit_codes_follow_the_kind_and_resumability() {
        let code = |kind| Error::new(kind, "w", "s", "c").exit_code();
        assert_eq!(code(Kind::Usage), 2);
        assert_eq!(code(Kind::Recipe), 2);
        assert_eq!(code(Kind::Occupied), 2);
        assert_eq!(code(Kind::Io), 1);
        assert_eq!(Error::new(Kind::Io, "w", "s", "c").refused().exit_code(), 2);
        assert_eq!(
            Error::new(Kind::Io, "w", "s", "c")
                .refused()
                .resumable()
                .exit_code(),
            3
        );
        assert_eq!(
            Error::new(Kind::Io, "w", "s", "c").resumable().exit_code(),
            3
        );
    }
}
