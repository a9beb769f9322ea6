//! One run of a matcher: it journals steps, reports progress and can be asked to end.

use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::align::many::ManyStep;
use crate::align::matching::{Step, Watch};
use crate::engine::Options;
use crate::error::{Error, Kind, Result};
use crate::monitor::Phase;
use crate::output::Steps;
use crate::symmetry::Symmetries;

/// A step that can be journalled.
pub trait TaskStep: Serialize + DeserializeOwned + Clone + Send + Sync {
    /// Returns the root that was solved, as its index in
    /// [`Symmetries::groups`](crate::symmetry::Symmetries::groups).
    fn root(&self) -> usize;
}

impl TaskStep for Step {
    fn root(&self) -> usize {
        self.root
    }
}

impl TaskStep for ManyStep {
    fn root(&self) -> usize {
        self.step.root
    }
}

/// An observer of a run that keeps its steps.
pub struct Session<'a, S> {
    symmetries: &'a Symmetries,
    options: &'a Options,
    kept: Mutex<Kept<S>>,
}

struct Kept<S> {
    journal: Option<Steps>,
    steps: Vec<S>,
}

impl<'a, S: TaskStep> Session<'a, S> {
    /// Starts a run from these earlier steps; without a journal an interrupted run is lost.
    pub fn new(
        symmetries: &'a Symmetries,
        options: &'a Options,
        journal: Option<Steps>,
        earlier: Vec<S>,
    ) -> Self {
        Self {
            symmetries,
            options,
            kept: Mutex::new(Kept {
                journal,
                steps: earlier,
            }),
        }
    }

    /// Calls `act` with all steps, those of earlier runs first.
    pub fn with_steps<T>(&self, act: impl FnOnce(&[S]) -> T) -> T {
        act(&self.kept().steps)
    }

    /// Ends the session and returns the journal.
    pub fn end(self) -> Option<Steps> {
        self.kept
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .journal
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept<S>> {
        // A panic leaves no step half changed, and a journal that failed refuses further steps.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> Error {
        let kept = self.kept();
        let cause = format!(
            "the alignment is not finished, {} steps are",
            kept.steps.len()
        );
        let subject = match &kept.journal {
            Some(journal) => journal.out().display().to_string(),
            None => self.symmetries.spec.clone(),
        };
        let error = Error::new(Kind::Interrupted, "stopped on request", subject, cause);
        match &kept.journal {
            Some(_) => error
                .with_hint("run the same command again to go on from here")
                .resumable(),
            None => error.with_hint("with --out what was found is kept"),
        }
    }
}

impl<S: TaskStep> Watch<S> for Session<'_, S> {
    fn begun(&self, round: usize, model: usize) {
        self.options
            .monitor
            .part(&format!("round {}, model {}", round + 1, model + 1));
    }

    fn planned(&self, operations: u64) {
        self.options.monitor.phase(Phase::Aligning, operations);
    }

    fn advanced(&self, operations: u64) {
        self.options.monitor.advance(operations);
    }

    fn taken(&self, step: &S) -> Result<()> {
        let mut kept = self.kept();
        if let Some(journal) = &mut kept.journal {
            let text = serde_json::to_string(step).map_err(|error| {
                Error::new(Kind::Io, "cannot journal", journal.out().display(), error)
            })?;
            journal.append(text)?;
        }
        kept.steps.push(step.clone());
        if let Some(root) = self.symmetries.groups.get(step.root()) {
            self.options.monitor.tensor(&root.name);
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if self.options.stop.asked() {
            Err(self.interrupted())
        } else {
            Ok(())
        }
    }
}
