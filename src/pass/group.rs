//! A group: the elements over which one statistic is taken, a segment of a tensor or the whole
//! model.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::budget::{Budget, Reservation};
use crate::error::Result;
use crate::plan::tensor::TensorPlan;

use super::bench::Bench;
use super::elements::{self, Tied};
use super::rule::Rule;
use super::statistic::{Measured, Statistic};
use super::stretch::{Stretch, method_of};
use super::turn::Turn;

/// A group that is being measured.
pub struct Group {
    statistic: Statistic,
    /// True if an input is not finite and the base is to be taken instead.
    replaced: bool,
    /// The tied elements that went by in the current sweep.
    tied: Tied,
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
            tied: Tied::default(),
            memory: None,
        }
    }

    /// An unmeasured group that reserves the memory for statistic and rule from `budget`: waits
    /// until there is enough, and returns `None` once the budget is closed.
    pub fn within(budget: &Arc<Budget>, tensor: &TensorPlan) -> Option<Self> {
        let memory = budget.reserve(tensor.group_bytes())?;
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

    /// The work on each stretch in the current sweep.
    pub fn turn(&self, tensor: &TensorPlan) -> Turn {
        match (&self.statistic, method_of(tensor).elementwise()) {
            (Statistic::Elements(progress), Some(method)) => Turn {
                sweep: Some(progress.sweep().clone()),
                is_first: progress.is_first(method),
            },
            _ => Turn {
                sweep: None,
                is_first: true,
            },
        }
    }

    /// Ends a sweep over all stretches, the last of which is of `tensor`. Returns the number of
    /// sweeps by which the next one comes later, or `None` if the group can be solved.
    pub fn advance(&mut self, tensor: &TensorPlan) -> Option<usize> {
        self.tied = Tied::default();
        match (&mut self.statistic, method_of(tensor).elementwise()) {
            (Statistic::Elements(progress), Some(method)) if !self.replaced => {
                progress.advance(method)
            }
            _ => None,
        }
    }

    /// Counts the tied elements of the next stretch, of which `block` begins; returns those before
    /// it.
    pub fn pass_tied(&mut self, tensor: &TensorPlan, start: u64, next: &Tied) -> Tied {
        if start.is_multiple_of(tensor.segment.max(1)) {
            self.tied = Tied::default();
        }
        let before = self.tied.clone();
        self.tied.add(next);
        before
    }

    /// Measures a stretch that follows the one before, and folds it in.
    pub(super) fn add(&mut self, bench: &dyn Bench, stretch: &Stretch<'_>) -> Result<()> {
        let tensor = stretch.tensor();
        let turn = self.turn(tensor);
        let measured = match &turn.sweep {
            None => self.statistic.add(bench, stretch)?,
            Some(_) => {
                let tied = match turn.rule().filter(|rule| rule.needs_order()) {
                    Some(rule) => {
                        let next = elements::count_stretch(bench, stretch, rule)?;
                        self.pass_tied(tensor, stretch.policy.start, &next)
                    }
                    None => Tied::default(),
                };
                elements::measure_stretch(bench, stretch, &turn, &tied)?
            }
        };
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
            tied,
            memory,
        } = self;
        let rule = Self {
            statistic,
            replaced,
            tied,
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
