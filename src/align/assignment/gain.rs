//! A test that one permutation is really better than another.

/// The rise of a sum, and a bound on its rounding error.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gain {
    /// The sum after minus the sum before.
    pub value: f64,
    /// A bound on the rounding error of [`Gain::value`].
    pub rounding: f64,
}

impl Gain {
    /// True if the sum rose beyond doubt. A search that takes only such steps cannot return to an
    /// earlier state, so it ends.
    pub fn is_real(&self) -> bool {
        self.value > self.rounding
    }
}

/// Subtracts the sum of `before` from that of `after`, in compensated f64.
///
/// The terms are the entries that each permutation picks, computed anew and not taken from a
/// solver. If entries are costs, exchange the two.
pub fn gain(before: impl IntoIterator<Item = f64>, after: impl IntoIterator<Item = f64>) -> Gain {
    let mut sum = Sum::default();
    after.into_iter().for_each(|term| sum.add(term));
    before.into_iter().for_each(|term| sum.add(-term));
    sum.finish()
}

/// A sum with the second-order compensation of Kahan and Babuška; error bound as in Ogita, Rump and
/// Oishi, "Accurate sum and dot product", 2005, Proposition 4.5.
#[derive(Debug, Default)]
struct Sum {
    sum: f64,
    carry: f64,
    absolute: f64,
    terms: f64,
}

impl Sum {
    fn add(&mut self, term: f64) {
        let sum = self.sum + term;
        let (large, small) = if self.sum.abs() >= term.abs() {
            (self.sum, term)
        } else {
            (term, self.sum)
        };
        self.carry += (large - sum) + small;
        self.sum = sum;
        self.absolute += term.abs();
        self.terms += 1.0;
    }

    fn finish(self) -> Gain {
        let value = self.sum + self.carry;
        let unit = f64::EPSILON / 2.0;
        let spread = self.terms * unit / (1.0 - self.terms * unit);
        // Twice the bound, because the bound itself is computed with rounding.
        Gain {
            value,
            rounding: 2.0 * (unit * value.abs() + spread * spread * self.absolute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sums_are_no_gain_whatever_their_order() {
        let terms: Vec<f64> = (1..1000).map(|k| 1.0 / f64::from(k)).collect();
        let gained = gain(terms.iter().copied(), terms.iter().rev().copied());
        assert!(!gained.is_real(), "{gained:?}");
    }

    #[test]
    fn a_gain_far_below_the_sums_is_seen_both_ways() {
        let before = [1e6, 1.0, -1e6, 1e-3];
        let after = [1e6, 1.0 + f64::EPSILON, -1e6, 1e-3];
        assert!(gain(before, after).is_real());
        assert!(gain(before, after).value > 0.0);
        assert!(!gain(after, before).is_real());
        assert!(gain(after, before).value < 0.0);
    }

    #[test]
    fn nothing_gains_nothing() {
        assert_eq!(
            gain([], []),
            Gain {
                value: 0.0,
                rounding: 0.0
            }
        );
        assert!(!gain([], []).is_real());
        assert!(!gain([f64::NAN], [1.0]).is_real());
    }
}
