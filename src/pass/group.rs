//! A group: the elements over which one statistic is taken, a segment of a tensor or the whole
//! model.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::budget::{Budget, Reservation};
use crate::error::Result;
use crate::plan::tensor::TensorPlan;

use super::bench::Bench;
use super::rule::Rule;
use super::statistic::{Measured, Statistic};
use super::stretch::Stretch;

/// A group that is being measured.
pub struct Group {
    statistic: Statistic,
    /// True if an input is not finite and the base is to be taken instead.
    replaced: bool,
    memory: Option<Reservation>,
}

/// The rule of a group, and the memory that it reserves from a budget until it is dropped.
pub struct Solved {
    rule: Rule,
    _memory: Option<Reservation>,
}

impl Group {
    /// An unmeasured group that begins with elements of `tensor`.
    pub fn new(tensor: &TensorPlan) -> Self {
        Self {
            statistic: Statistic::new(tensor),
            replaced: false,
            memory: None,
        }
    }

    /// An unmeasured group that reserves the memory for statistic and rule from `budget`: waits
    /// until there is enough, and returns `None` once the budget is closed.
    pub fn within(budget: &Arc<Budget>, tensor: &TensorPlan) -> Option<Self> {
        let memory = budget.reserve(tensor.column_bytes())?;
        Some(Self {
            memory: Some(memory),
            ..Self::new(tensor)
        })
    }

    /// Tells if stretches must be added one after the other, by
    /// [`Work::add_to`](super::Work::add_to), and none measured by itself.
    pub fn is_sequential(&self) -> bool {
        self.statistic.is_sequential()
    }

    /// Measures a stretch that follows the one before, and folds it in.
    pub(super) fn add(&mut self, bench: &dyn Bench, stretch: &Stretch<'_>) -> Result<()> {
        let measured = self.statistic.add(bench, stretch)?;
        self.fold(&measured);
        Ok(())
    }

    /// Folds in a stretch that was measured by itself; earlier stretches first.
    pub fn fold(&mut self, measured: &Measured) {
        self.fold_chunks(measured, &(0..measured.chunks()));
    }

    pub(super) fn fold_chunks(&mut self, measured: &Measured, chunks: &Range<usize>) {
        self.replaced |= measured.is_replaced(chunks);
        self.statistic.fold(measured, chunks);
    }

    /// Solves the group, the last elements of which are of `tensor`, on the threads of `bench`.
    ///
    /// # Errors
    ///
    /// A refusal by the method, or a base that is needed and lacks the tensor.
    pub fn solve(self, bench: &dyn Bench, tensor: &TensorPlan) -> Result<Solved> {
        let Self {
            statistic,
            replaced,
            memory,
        } = self;
        let rule = Self {
            statistic,
            replaced,
            memory: None,
        }
        .rule(bench, tensor)?;
        Ok(Solved {
            rule,
            _memory: memory,
        })
    }

    /// The rule of the group, as [`Group::solve`] finds it.
    pub(super) fn rule(self, bench: &dyn Bench, tensor: &TensorPlan) -> Result<Rule> {
        match self.replaced {
            true => Rule::base_instead(tensor),
            false => self.statistic.solve(bench, tensor),
        }
    }
}

impl From<Rule> for Solved {
    /// A rule that an earlier run has found.
    fn from(rule: Rule) -> Self {
        Self {
            rule,
            _memory: None,
        }
    }
}

impl Deref for Solved {
    type Target = Rule;

    fn deref(&self) -> &Rule {
        &self.rule
    }
}
