//! What differs between runs of two models and of many.

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

/// Models that one run brings together, and the way in which it does.
pub trait Task: Sync {
    /// A step, as it is journalled.
    type Step: TaskStep;
    /// The result of the run.
    type Found;

    /// The models, two at least.
    fn models(&self) -> Vec<&Checkpoint>;

    /// The symmetries of the models.
    fn symmetries(&self) -> &Arc<Symmetries>;

    /// The models in words, for a refusal.
    fn words(&self) -> String;

    /// Bytes that the run holds besides those of the matcher: transforms, steps, buffers of
    /// `threads` threads.
    fn held_bytes(&self, threads: usize) -> u64;

    /// The least memory with which the matcher finds transforms of the first two models, in bytes.
    fn least_bytes(&self, first: &Store, second: &Arc<Store>) -> u64;

    /// Sets the bytes that the matcher may take.
    fn set_memory(&mut self, bytes: u64);

    /// What decides whether two runs look for the same.
    ///
    /// # Errors
    ///
    /// When something that decides it cannot be read.
    fn identity(&self) -> Result<Value>;

    /// The transform files of the output `out`. The last is written last: with it the run is
    /// finished.
    fn paths(&self, out: &Path) -> Vec<PathBuf>;

    /// Refuses an output that cannot be written to.
    ///
    /// # Errors
    ///
    /// When its name or something that is there is in the way.
    fn check_target(&self, target: &Target, identity: &Value) -> Result<()>;

    /// Finds the transforms from behind the earlier steps on, one for each of [`Task::paths`], on
    /// the threads of the current pool. Products are summed by `backend`.
    ///
    /// # Errors
    ///
    /// Those of the matchers, and when a model cannot be read.
    fn solve(
        &self,
        solving: &Solving<'_, Self::Step>,
        backend: Backend,
    ) -> Result<Vec<TransformFile>>;

    /// The result, from the transforms as they were written.
    ///
    /// # Errors
    ///
    /// [`Kind::Damaged`](crate::error::Kind::Damaged) when their notes cannot be read.
    fn found(&self, files: Vec<TransformFile>, ran: &Ran) -> Result<Self::Found>;
}

/// A task that is being solved.
pub struct Solving<'a, S> {
    /// The weights of the models.
    pub stores: &'a [Arc<Store>],
    /// The steps of an earlier run.
    pub earlier: &'a [S],
    /// Keeps steps and tells progress.
    pub session: &'a Session<'a, S>,
    /// How the run is carried out.
    pub options: &'a Options,
    /// What decides whether two runs look for the same.
    pub identity: &'a Value,
}

/// How a run went.
pub struct Ran {
    /// `aligned`, `resumed` or `complete already`.
    pub status: &'static str,
    /// The output, if there is one.
    pub out: Option<PathBuf>,
    /// Seconds that it took.
    pub seconds: f64,
    /// The memory that it was allowed, in bytes.
    pub memory: u64,
    /// Where products were summed; `None` when there was nothing to do.
    pub device: Option<String>,
}
