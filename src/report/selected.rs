//! The elements that a method kept which selects them, and where another choice would have
//! mattered.

use std::fmt;

use serde::Serialize;

use super::words::counted;
use crate::pass::Selection;
use crate::plan::Plan;
use crate::recipe::{SignRule, TieRule};

/// The kept elements of a merge.
#[derive(Debug, Clone, Serialize)]
pub struct Selected {
    /// Everything that was counted, over all tensors.
    #[serde(flatten)]
    pub all: Selection,
    /// The recipe's sign where differences cancel.
    pub sign_tie: &'static str,
    /// The recipe's choice among tied elements.
    pub ties: &'static str,
}

impl Selected {
    /// The elements kept by the merge of `plan`.
    pub fn of(plan: &Plan, all: &Selection) -> Self {
        let own = &plan.job.document.own;
        Self {
            all: all.clone(),
            sign_tie: own.sign_tie.unwrap_or_default().name(),
            ties: own.ties.unwrap_or_default().name(),
        }
    }

    /// Returns the share of the elements of all models that were kept.
    fn kept(&self) -> Option<f64> {
        let kept: u64 = self.all.models.iter().map(|model| model.kept).sum();
        share(kept, self.all.elements * self.all.models.len() as u64)
    }
}

/// Returns a share in percent; `None` of nothing.
fn share(part: u64, whole: u64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "shown with a few digits")]
    (whole > 0).then(|| part as f64 / whole as f64 * 100.0)
}

impl fmt::Display for Selected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(kept) = self.kept() {
            writeln!(f, "kept: {kept:.2} % of the differences from the base")?;
        }
        let tied: u64 = self.all.models.iter().map(|model| model.tied).sum();
        let models = self.all.models.len() as u64;
        if let Some(share) = share(tied, self.all.elements * models).filter(|_| tied > 0) {
            let chosen = match self.ties == TieRule::Spread.name() {
                true => "kept evenly over each tensor",
                false => "the first ones were kept",
            };
            writeln!(
                f,
                "ties: {share:.2} % of the differences were tied at a threshold, {chosen}; mergekit keeps an arbitrary part"
            )?;
        }
        let undecided = self.all.undecided;
        if let Some(share) = share(undecided, self.all.elements).filter(|_| undecided > 0) {
            let counted = match self.sign_tie == SignRule::Plus.name() {
                true => {
                    "they count as positive as in mergekit; `sign_tie: zero` adds nothing there"
                }
                false => "nothing was added there; mergekit counts them as positive",
            };
            writeln!(
                f,
                "elections: {share:.2} % of the elements had no majority; {counted}"
            )?;
        }
        if self.all.below_floor > 0 {
            writeln!(
                f,
                "weights: all models weigh the same in {} as in mergekit, whose floor their differences do not reach; \
                 `weight_floor: 0` weighs them by energy",
                counted(self.all.below_floor, "group")
            )?;
        }
        Ok(())
    }
}
