//! Ends the stages of a run early: on a request to stop, or on the first error, which is kept while
//! the other stages wind down.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Error;

/// A request to stop that a signal handler, a user interface or a failing stage can make. Clones
/// are one request.
///
/// # Examples
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/support/mod.rs"));
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = models()?;
/// # let text = recipe(folder.path());
/// use thalweg::{Kind, Options, Plan, Recipe, Stop, Target, merge};
///
/// let plan = Plan::of(&Recipe::parse(&text, "recipe.yml")?)?;
/// let stop = Stop::default();
/// stop.ask(); // such as from a signal handler, on another thread
/// let options = Options { stop, ..Options::default() };
/// let ended = merge(plan, Target::new(folder.path().join("merged")), options).expect_err("it was asked to stop");
/// assert_eq!(ended.kind(), Kind::Interrupted); // the same merge goes on where this one has ended
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    first: Arc<Mutex<Option<Error>>>,
}

impl Stop {
    /// The flag itself, for a signal handler.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }

    /// Asks the run to finish what is in flight and end.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// Tells if a stop was asked for.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }

    /// Keeps `error` as the run's outcome unless an earlier one is kept, and asks to stop.
    pub fn fail(&self, error: Error) {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
        self.ask();
    }

    /// The first error, if a stage failed.
    pub fn take_error(&self) -> Option<Error> {
        self.first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
