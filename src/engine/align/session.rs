//! One run of a matcher: its steps are journalled, its progress is told, its end can be asked for.

use std::sync::{Mutex, PoisonError};

use crate::align::Symmetries;
use crate::align::matching::{Step, Watch};
use crate::engine::Options;
use crate::error::{Error, Kind, Result};
use crate::monitor::Phase;
use crate::output::Steps;

/// Watches a run, and keeps its steps.
pub struct Session<'a> {
    symmetries: &'a Symmetries,
    options: &'a Options,
    kept: Mutex<Kept>,
}

struct Kept {
    journal: Option<Steps>,
    steps: Vec<Step>,
}

impl<'a> Session<'a> {
    /// A run whose earlier steps are these; without a journal an interrupted run is lost.
    pub fn new(symmetries: &'a Symmetries, options: &'a Options, journal: Option<Steps>, earlier: Vec<Step>) -> Self {
        Self { symmetries, options, kept: Mutex::new(Kept { journal, steps: earlier }) }
    }

    /// All steps, those of earlier runs first, and the journal.
    pub fn end(self) -> (Vec<Step>, Option<Steps>) {
        let Kept { journal, steps } = self.kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        (steps, journal)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        // The steps are changed whole, and a journal that failed refuses what comes after.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self) -> Error {
        let kept = self.kept();
        let cause = format!("the alignment is not finished, {} steps are", kept.steps.len());
        let stopped = |subject: String| Error::new(Kind::Interrupted, "stopped on request", subject, cause);
        match &kept.journal {
            Some(journal) => stopped(journal.out().display().to_string())
                .with_hint("run the same command again to go on from here")
                .resumable(),
            None => stopped(self.symmetries.spec.clone()).with_hint("with --out what was found is kept"),
        }
    }
}

impl Watch for Session<'_> {
    fn planned(&self, operations: u64) {
        self.options.monitor.phase(Phase::Aligning, operations);
    }

    fn advanced(&self, operations: u64) {
        self.options.monitor.advance(operations);
    }

    fn taken(&self, step: &Step) -> Result<()> {
        let mut kept = self.kept();
        if let Some(journal) = &mut kept.journal {
            let text = serde_json::to_string(step)
                .map_err(|error| Error::new(Kind::Io, "cannot journal", journal.out().display(), error))?;
            journal.append(text)?;
        }
        kept.steps.push(step.clone());
        if let Some(root) = self.symmetries.groups.get(step.root) {
            self.options.monitor.tensor(&root.name);
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if self.options.stop.asked() { Err(self.interrupted()) } else { Ok(()) }
    }
}
