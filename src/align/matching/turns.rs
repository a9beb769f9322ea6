//! Signs and angles of pairs, with all orders known.
//!
//! The angles from f32 products are only a start: once the order is known, D and X of each pair are
//! summed again in f64, and the angle is atan2(X, D). It is taken only if it gains more than it
//! costs:
//!
//! - Turned weights are rounded to the type that they are stored in, which moves them by up to u |B| (u the unit
//!   roundoff), while untouched ones stay exact. So the squared distance must fall by more than (u |B|)².
//! - Even if a pair is not turned at all, noise will say it is. By the Bayesian information
//!   criterion with twice its penalty, the squared distance must fall by more than 2 ln(n) times
//!   its mean per number, over the n numbers of a pair.
//!
//! So equal heads have the angle 0.0, and fine-tunes of one model are not turned by mere noise.

use super::Cost;
use super::inner::best_turn;
use super::moves::{Inner, Leaf};
use super::problem::Problem;
use super::terms::{Term, TermPlace, Tree, WeightedTerm};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::symmetry::{Element, Transform};

/// A weighted term, and the factors of its rows.
pub(super) struct Headed {
    pub weighted: WeightedTerm,
    pub leaves: Vec<Leaf>,
}

/// Sums over all numbers of a pair of units.
#[derive(Debug, Clone, Copy, Default)]
struct PairSums {
    along: f64,
    across: f64,
    reference: f64,
    moving: f64,
    numbers: f64,
}

/// Finds the signs and angles of pairs, with all orders as in `ordered`; adds the gain of rejected
/// angles to `dropped`.
pub(super) fn turns(
    problem: &Problem<'_>,
    tree: &Tree,
    inners: &[Inner<'_>],
    terms: &[Headed],
    ordered: &Transform,
    dropped: &mut f64,
) -> Result<Vec<(usize, Element)>> {
    let units = problem.symmetries.groups[tree.root].units;
    let mut elements = Vec::new();
    for (at, inner) in inners.iter().enumerate() {
        if inner.group.pairs.is_none() || !(inner.sign || inner.turn) {
            continue;
        }
        let mut sums = vec![PairSums::default(); units * inner.group.pair_count()];
        let mut roundoff = 0.0_f64;
        for headed in terms {
            let Some(leaf) = headed
                .leaves
                .iter()
                .find(|leaf| leaf.inner == at && leaf.signed)
            else {
                continue;
            };
            let term = PairedTerm {
                weighted: &headed.weighted,
                inner,
                leaf,
            };
            term.add_sums(problem, ordered, &mut sums)?;
            let stored = &headed.weighted.term.moving;
            roundoff = roundoff.max(unit_roundoff(problem, stored));
        }
        let element = best_element(inner, &sums, roundoff, dropped);
        elements.push((tree.inner[at], element));
    }
    Ok(elements)
}

/// Returns the signs and the angles of pairs with these sums; adds the gain of rejected angles to
/// `dropped`.
fn best_element(inner: &Inner<'_>, sums: &[PairSums], roundoff: f64, dropped: &mut f64) -> Element {
    let mut element = Element::default();
    for sums in sums {
        let (negative, angle) = best_turn(inner, sums.along, sums.across);
        // The gain over no turn at all; a flip alone is exact and costs nothing.
        let without = if negative { -sums.along } else { sums.along };
        let gain = sums.along.hypot(sums.across) - without;
        let taken = angle != 0.0 && is_worth_it(sums, gain, roundoff);
        if inner.turn && !taken {
            *dropped += gain.max(0.0);
        }
        element.negative.push(negative);
        element.angle.push(if taken { angle } else { 0.0 });
    }
    element
}

/// True if turning a pair brings it nearer by more than rounding and noise do.
fn is_worth_it(sums: &PairSums, gain: f64, roundoff: f64) -> bool {
    let apart = (sums.reference + sums.moving - 2.0 * sums.along.hypot(sums.across)).max(0.0);
    let noise = 2.0 * sums.numbers.max(2.0).ln() * apart / sums.numbers.max(1.0);
    2.0 * gain > noise.max(roundoff * roundoff * sums.moving)
}

/// Returns half the distance from 1.0 to the next number of the type in which the other model's
/// tensor is stored.
fn unit_roundoff(problem: &Problem<'_>, place: &TermPlace) -> f64 {
    let digits = match problem.moving.dtype(&place.tensor) {
        Some(Dtype::BF16) => 8,
        Some(Dtype::F16) => 11,
        Some(Dtype::F8E4M3) => 4,
        Some(Dtype::F8E5M2) => 3,
        // Wider types are read as f32.
        _ => 24,
    };
    0.5_f64.powi(digits)
}

/// A term with a leaf of pairs.
struct PairedTerm<'a> {
    weighted: &'a WeightedTerm,
    inner: &'a Inner<'a>,
    leaf: &'a Leaf,
}

impl PairedTerm<'_> {
    /// Returns the unit to which a cell belongs.
    fn unit_of(&self, cell: usize) -> usize {
        cell / self.leaf.stride % self.leaf.size
    }

    /// Returns the cell of the other unit of the pair.
    fn partner(&self, cell: usize) -> usize {
        let unit = self.unit_of(cell);
        let partner = self.inner.group.partner(unit).unwrap_or(unit);
        cell - unit * self.leaf.stride + partner * self.leaf.stride
    }

    /// Adds the term's share of each pair's sums; `sums` holds all pairs of the first unit of the
    /// root, then those of the second.
    fn add_sums(
        &self,
        problem: &Problem<'_>,
        ordered: &Transform,
        sums: &mut [PairSums],
    ) -> Result<()> {
        let WeightedTerm { term, weight } = self.weighted;
        let moved = problem.moved(ordered);
        let a = (problem.reference, &term.reference);
        let b = (moved.as_ref(), &term.moving);
        // Each unit with its own counterpart, with its partner's, and with itself in either model.
        let own = problem.own_products(term, a, b, None)?;
        let crossed = problem.own_products(term, a, b, Some(&|cell| self.partner(cell)))?;
        let reference = problem.own_products(term, a, a, None)?;
        let moving = problem.own_products(term, b, b, None)?;
        let scale = scales(problem, term, ordered)?;
        let (cells, pairs) = (term.cells(), self.inner.group.pair_count());
        debug_assert_eq!(own.len() / cells.max(1) * pairs, sums.len());
        for (at, own) in own.iter().enumerate() {
            let unit = self.unit_of(at % cells);
            let Some((pair, first)) = self.inner.group.place_in_pairs(unit) else {
                continue;
            };
            let sums = &mut sums[at / cells * pairs + pair];
            sums.along += weight * own;
            // X = ⟨second, first'⟩ - ⟨first, second'⟩
            sums.across += weight * if first { -crossed[at] } else { crossed[at] };
            sums.reference += scale[0] * reference[at];
            sums.moving += scale[1] * moving[at];
            sums.numbers += term.feature_count() as f64;
        }
        Ok(())
    }
}

/// Returns the factors that make the squares of both models' numbers comparable with the objective.
fn scales(problem: &Problem<'_>, term: &Term, ordered: &Transform) -> Result<[f64; 2]> {
    Ok(match problem.options.cost {
        Cost::Raw => [1.0; 2],
        Cost::Normalised => problem.term_norms(term, ordered)?.map(|norm| norm.powi(-2)),
    })
}
