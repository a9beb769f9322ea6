//! The selection of a rule on its way through the elements of a run.

use std::ops::Range;

use crate::error::Result;
use crate::kernel::CHUNK;
use crate::kernel::select::{self, Band, Chooser, Draws, Edge, Pick, Picks, Ties, Words};
use crate::method::elementwise::{ElementRule, Keep};

use super::super::stretch::cut;
use super::Tied;
use super::held::Held;

/// The position that positions kept in all models draw by.
const TOGETHER: u32 = u32::MAX;

/// The selection of a rule on its way through a stretch.
pub(super) struct Selector<'r> {
    rule: &'r ElementRule,
    together: Option<Band>,
    picks: Vec<Pick<'static>>,
}

impl<'r> Selector<'r> {
    pub(super) fn new(rule: &'r ElementRule, held: &Held<'_, '_>, tied: &Tied) -> Self {
        let together = rule.together.map(|keep| {
            let words = held.words(rule, TOGETHER);
            band_of(keep, rule.ties, words, tied.at(0))
        });
        let picks = rule.models.iter().enumerate();
        let picks = picks.map(|(at, model)| {
            let words = held.words(rule, model.position);
            match model.keep {
                Keep::All | Keep::DrawByRank(_) | Keep::Above { .. } => Pick::All,
                Keep::Nothing => Pick::Nothing,
                Keep::Band { .. } => Pick::Band(band_of(model.keep, rule.ties, words, tied.at(at))),
                Keep::Draw { below } => Pick::Draw {
                    draws: Draws { key: words.key },
                    start: held.policy.start,
                    below,
                },
            }
        });
        Self {
            rule,
            together,
            picks: picks.collect(),
        }
    }

    /// Does `work` with each piece, in order, and what is kept of it.
    pub(super) fn each(
        &mut self,
        held: &mut Held<'_, '_>,
        mut work: impl FnMut(&mut Held<'_, '_>, Range<usize>, Picks<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        if self.rule.is_by_row() {
            return self.each_row(held, work);
        }
        let start = held.policy.start;
        for piece in held.pieces(false) {
            let picks = match &mut self.together {
                Some(band) => Picks::Together(band),
                None => {
                    for pick in &mut self.picks {
                        if let Pick::Draw { start: first, .. } = pick {
                            *first = start + piece.start as u64;
                        }
                    }
                    Picks::Each(&mut self.picks)
                }
            };
            work(held, piece, picks)?;
        }
        Ok(())
    }

    /// The same for rules that look at rows as a whole.
    fn each_row(
        &mut self,
        held: &mut Held<'_, '_>,
        mut work: impl FnMut(&mut Held<'_, '_>, Range<usize>, Picks<'_, '_>) -> Result<()>,
    ) -> Result<()> {
        let mut limits = std::mem::take(&mut held.host.scratch.select.limits);
        limits.resize(self.rule.models.len().max(limits.len()), Vec::new());
        for row in cut(&(0..held.len()), held.row_len()) {
            let factors = self.look(held, &row, &mut limits);
            for piece in cut(&row, CHUNK) {
                let in_row = piece.start - row.start..piece.end - row.start;
                let start = held.policy.start + piece.start as u64;
                let mut picks: Vec<Pick<'_>> = Vec::with_capacity(self.picks.len());
                for (at, model) in self.rule.models.iter().enumerate() {
                    let draws =
                        Draws::new(self.rule.seed, model.position, &held.policy.tensor.name);
                    picks.push(match model.keep {
                        Keep::DrawByRank(_) => Pick::DrawBelow {
                            draws,
                            start,
                            below: &limits[at][in_row.clone()],
                        },
                        Keep::Above { least } => Pick::Above {
                            factor: factors[at],
                            least,
                        },
                        _ => self.picks[at].clone(),
                    });
                }
                work(held, piece, Picks::Each(&mut picks))?;
            }
        }
        held.host.scratch.select.limits = limits;
        Ok(())
    }

    /// Ranks a row of each model that draws by rank, and returns the divergence of each that is
    /// kept by importance.
    fn look(
        &self,
        held: &mut Held<'_, '_>,
        row: &Range<usize>,
        limits: &mut [Vec<u32>],
    ) -> Vec<f64> {
        let mid = self.rule.ties == Ties::Spread;
        let models = self.rule.models.iter().zip(limits).enumerate();
        models
            .map(|(at, (model, limits))| match model.keep {
                Keep::DrawByRank(draw) => {
                    held.rank(at, row, &mut |keys, order| {
                        limits.resize(keys.len(), 0);
                        select::limits(keys, draw, mid, order, limits);
                    });
                    1.0
                }
                Keep::Above { .. } => held.divergence(at, row),
                _ => 1.0,
            })
            .collect()
    }
}

/// The band of what is kept, after `tied` elements went by at its edges.
fn band_of(keep: Keep, ties: Ties, words: Words, tied: [u64; 2]) -> Band {
    match keep {
        Keep::Band { low, high } => Band {
            low: low.map(|edge| Chooser::new(edge, ties, words, tied[0])),
            high: high.map(|edge| Chooser::new(edge, ties, words, tied[1])),
        },
        Keep::Nothing => Band {
            low: Some(Chooser::new(NOTHING, ties, words, 0)),
            high: None,
        },
        _ => Band {
            low: None,
            high: None,
        },
    }
}

/// An edge above every key.
const NOTHING: Edge = Edge {
    key: u32::MAX,
    of: 1,
    kept: 0,
};
