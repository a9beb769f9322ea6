//! The differences between runs of two models and of many.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::align::Store;
use crate::checkpoint::Checkpoint;
use crate::engine::Options;
use crate::error::Result;
use crate::linalg::Backend;
use crate::output::Target;
use crate::symmetry::{Symmetries, TransformFile};

use super::session::{Session, TaskStep};

/// The models that one run aligns, and the way in which it does so.
pub trait Task: Sync {
    /// The type of a journalled step.
    type Step: TaskStep;
    /// The result of the run.
    type Found;

    /// Returns the models, at least two.
    fn models(&self) -> Vec<&Checkpoint>;

    /// Returns the symmetries of the models.
    fn symmetries(&self) -> &Arc<Symmetries>;

    /// Describes the models in words, for a refusal.
    fn words(&self) -> String;

    /// Returns the bytes that the run holds besides those of the matcher: transforms, steps,
    /// buffers of `threads` threads.
    fn held_bytes(&self, threads: usize) -> u64;

    /// Returns the least memory, in bytes, with which the matcher finds transforms of the first two
    /// models.
    fn least_bytes(&self, first: &Store, second: &Arc<Store>) -> u64;

    /// Sets the bytes that the matcher may take.
    fn set_memory(&mut self, bytes: u64);

    /// Returns the identity of the run: everything that determines its result.
    ///
    /// # Errors
    ///
    /// Fails if a part of the identity cannot be read.
    fn identity(&self) -> Result<Value>;

    /// Returns the transform files of the output `out`. The last is written last: it finishes the
    /// run.
    fn paths(&self, out: &Path) -> Vec<PathBuf>;

    /// Refuses an output that cannot be written.
    ///
    /// # Errors
    ///
    /// Fails if its name is unfit or an existing file is in the way.
    fn check_target(&self, target: &Target, identity: &Value) -> Result<()>;

    /// Finds one transform for each of [`Task::paths`], from the end of the earlier steps on, on
    /// the threads of the current pool. Products are summed by `backend`.
    ///
    /// # Errors
    ///
    /// Passes on the errors of the matchers, and fails if a model cannot be read.
    fn solve(
        &self,
        solving: &Solving<'_, Self::Step>,
        backend: Backend,
    ) -> Result<Vec<TransformFile>>;

    /// Builds the result from the transforms as they were written.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`](crate::error::Kind::Damaged) when their notes cannot be read.
    fn found(&self, files: Vec<TransformFile>, ran: &Ran) -> Result<Self::Found>;
}

/// The state of a task while it is solved.
pub struct Solving<'a, S> {
    /// The weights of the models.
    pub stores: &'a [Arc<Store>],
    /// The steps of an earlier run.
    pub earlier: &'a [S],
    /// The session that keeps steps and reports progress.
    pub session: &'a Session<'a, S>,
    /// The options of the run.
    pub options: &'a Options,
    /// The identity of the run.
    pub identity: &'a Value,
}

/// The course of a run.
pub struct Ran {
    /// `aligned`, `resumed` or `complete already`.
    pub status: &'static str,
    /// The output, if there is one.
    pub out: Option<PathBuf>,
    /// The run time in seconds.
    pub seconds: f64,
    /// The memory limit, in bytes.
    pub memory: u64,
    /// The place where products were summed; `None` if there was nothing to do.
    pub device: Option<String>,
}
