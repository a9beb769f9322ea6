//! The events that a run reports to an observer. The library prints nothing itself; the command
//! line draws bars from these events, tests count with them.

use std::fmt;

/// The phase of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Blocks that an earlier run wrote are read back and checked.
    Checking,
    /// Units of two models are matched. This phase is measured in floating-point operations, not in
    /// bytes.
    Aligning,
    /// Angles between the tensors of two models are taken.
    Measuring,
    /// A network is computed on a data set; the bytes are those of samples.
    Evaluating,
    /// Tensors are read, merged and written.
    Merging,
    /// A single shard is compressed if asked for; side files, index and manifest are written.
    Sealing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checking => "checking",
            Self::Aligning => "aligning",
            Self::Measuring => "measuring",
            Self::Evaluating => "evaluating",
            Self::Merging => "merging",
            Self::Sealing => "sealing",
        })
    }
}

/// Receives the events of a run. All methods may be called from any thread and must return quickly.
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let text = recipe(folder.path());
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use thalweg::{Monitor, Options, Plan, Recipe, Target, merge};
///
/// #[derive(Default)]
/// struct Bytes(AtomicU64);
///
/// impl Monitor for Bytes {
///     fn advance(&self, bytes: u64) {
///         self.0.fetch_add(bytes, Ordering::Relaxed);
///     }
/// }
///
/// let plan = Plan::of(&Recipe::parse(&text, "recipe.yml")?)?;
/// let counted = Arc::new(Bytes::default());
/// let options = Options { monitor: Arc::clone(&counted) as Arc<dyn Monitor>, ..Options::default() };
/// let report = merge(plan, Target::new(folder.path().join("merged")), options)?;
/// assert_eq!(counted.0.load(Ordering::Relaxed), report.read_bytes + report.written_bytes);
/// # Ok(())
/// # }
/// ```
pub trait Monitor: Send + Sync {
    /// A phase begins that will move `bytes` in all; for [`Phase::Aligning`] these are
    /// floating-point operations.
    fn phase(&self, phase: Phase, bytes: u64) {
        let _ = (phase, bytes);
    }

    /// `bytes` more of the phase are done; in [`Phase::Merging`] these are input bytes read, output
    /// bytes written, and bytes compressed.
    fn advance(&self, bytes: u64) {
        let _ = bytes;
    }

    /// The part of the run that the next phase is for, such as a round and a model.
    fn part(&self, name: &str) {
        let _ = name;
    }

    /// The tensor that is now being read.
    fn tensor(&self, name: &str) {
        let _ = name;
    }

    /// Bytes of the budget that are held now.
    fn memory(&self, used: u64) {
        let _ = used;
    }

    /// Something that the user should know and that does not stop the run.
    fn warn(&self, warning: &str) {
        let _ = warning;
    }
}

/// Ignores all events.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Monitor for Silent {}
