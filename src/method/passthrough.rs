//! One input, scaled.

use super::{Flags, Gram, Method, Solution, Statistics, weights};
use crate::error::Result;

/// `scale · x` of a single input.
#[derive(Debug, Clone, PartialEq)]
pub struct Passthrough {
    scale: f64,
}

impl Passthrough {
    /// Makes the input times `scale`; the default of a recipe is 1.
    ///
    /// # Errors
    ///
    /// When `scale` is not finite.
    pub fn new(scale: f64) -> Result<Self> {
        weights::finite_parameter("scale", scale)?;
        Ok(Self { scale })
    }
}

impl Method for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn statistics(&self) -> Statistics {
        Statistics::None
    }

    fn shares(&self) -> Vec<Option<f64>> {
        weights::shares(&[self.scale], None)
    }

    fn solve(&self, gram: &Gram) -> Result<Solution> {
        if gram.n() > 0 {
            gram.check(self.name(), 1)?;
        }
        Solution::exact(self.name(), gram, None, vec![self.scale], Flags::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_the_only_coefficient() {
        let solve = |scale| {
            Passthrough::new(scale)
                .expect("finite")
                .solve(&Gram::new(0))
                .expect("no statistics")
        };
        assert_eq!(solve(1.0).coefficients, [1.0]);
        assert_eq!(solve(-0.5).coefficients, [-0.5]);
        assert!(Passthrough::new(f64::INFINITY).is_err());
        assert!(
            Passthrough::new(1.0)
                .expect("finite")
                .solve(&Gram::new(2))
                .is_err()
        );
    }
}
