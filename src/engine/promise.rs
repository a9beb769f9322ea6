//! Answers of tasks in the pool, each given once.

use crossbeam::channel::Receiver;

use crate::error::{Error, Kind, Result};

/// The answer of a task.
pub type Promise<T> = Receiver<Result<T>>;

/// Waits for the answer of a task.
///
/// # Errors
///
/// The task's own error, or a failure that says that the task died without an answer.
pub fn answer_of<T>(promise: &Promise<T>) -> Result<T> {
    promise.recv().unwrap_or_else(|_| {
        Err(Error::new(
            Kind::Io,
            "a worker thread ended without an answer",
            "pool",
            "it panicked; this is a bug",
        ))
    })
}
