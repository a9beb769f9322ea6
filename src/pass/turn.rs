//! The work that a group asks for in each sweep over its elements.

use crate::method::elementwise::{ElementRule, Sweep};

/// The work that a group asks for in its current sweep.
#[derive(Clone)]
pub struct Turn {
    pub(super) sweep: Option<Sweep>,
    /// True in the first sweep, which looks for elements that are not finite.
    pub(super) is_first: bool,
}

impl Turn {
    /// Tells if the work on a stretch needs the number of tied elements before it, which are
    /// counted by [`Work::count_tied`](super::Work::count_tied).
    pub fn needs_order(&self) -> bool {
        self.rule().is_some_and(ElementRule::needs_order)
    }

    /// The rule so far, in a sweep that goes by one.
    pub(super) fn rule(&self) -> Option<&ElementRule> {
        match &self.sweep {
            Some(Sweep::Sums { rule, .. }) => Some(rule),
            _ => None,
        }
    }
}
