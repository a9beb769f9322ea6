//! Gram matrix in, coefficients out; or differences in, a rule for each element out.
//!
//! A method of the first kind ends in a linear combination `out = Σ c_i x_i` of the inputs, and its
//! coefficients depend on the inputs only through their inner products. So a method states the
//! inner products that it needs ([`Statistics`]), the engine sums them over a tensor, a row or the
//! whole model ([`Gram`]), and [`Method::solve`] turns N × N numbers into N. A method of the second
//! kind selects elements of differences from a base and mixes them ([`elementwise`]). Nothing here
//! reads a tensor, and a thousand iterations cost a few thousand multiplications.
//!
//! All arithmetic is plain IEEE f64 (`+ - * / sqrt`), trigonometry included, so the coefficients
//! have the same bits on every machine.

mod angle;
mod cancelling;
mod centered;
mod dependence;
mod directions;
pub mod elementwise;
mod facts;
mod flags;
mod geometric_median;
mod gram;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
pub(crate) mod number;
mod nuslerp;
mod passthrough;
mod slerp;
mod task_arithmetic;
mod weights;

use std::fmt::Debug;

use crate::error::Result;
use crate::kernel::pair_count;

pub use elementwise::Elementwise;
pub use facts::{Facts, Solution, Stop};
pub use flags::Flags;
pub use geometric_median::GeometricMedian;
pub use gram::Gram;
pub use karcher::Karcher;
pub use linear::Linear;
pub use model_stock::ModelStock;
pub use multislerp::Multislerp;
pub use nuslerp::Nuslerp;
pub use passthrough::Passthrough;
pub use slerp::Slerp;
pub use task_arithmetic::TaskArithmetic;

/// The inner products that a method needs before it can be solved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// No inner products: the coefficients do not depend on the data, so one pass over the inputs
    /// is enough.
    None,
    /// The Gram matrix of the inputs.
    Gram {
        /// `Some(b)`: of `x_i - x_b` for every `i` other than `b`, and of `x_b` itself at `b`.
        /// Subtracting before multiplying keeps the digits of small differences, which subtracting
        /// the products afterwards would lose.
        center: Option<usize>,
    },
    /// The Gram matrix of the inputs to twice the digits of f64: the sums, then what each has lost.
    /// Differences of its entries are as exact as if the inputs' differences had been measured from
    /// any point.
    Wide,
    /// No inner products, but what [`Method::elementwise`] says.
    Elements,
}

impl Statistics {
    /// Counts the sums that a chunk of `n` inputs has.
    pub fn sums(self, n: usize) -> usize {
        match self {
            Self::None | Self::Elements => 0,
            Self::Gram { .. } => pair_count(n),
            Self::Wide => 2 * pair_count(n),
        }
    }
}

/// A merge of N tensors that is a linear combination of them.
pub trait Method: Send + Sync + Debug {
    /// Returns the name in a recipe, such as `karcher`.
    fn name(&self) -> &'static str;

    /// Returns the statistics that [`Method::solve`] needs.
    fn statistics(&self) -> Statistics;

    /// Returns the description of a method that works element by element; `None` for one that gives
    /// coefficients.
    fn elementwise(&self) -> Option<&Elementwise> {
        None
    }

    /// Tells if the output depends on more than the parameters and each element by itself.
    fn is_measured(&self) -> bool {
        match self.elementwise() {
            Some(method) => !method.sweeps().is_empty(),
            None => self.statistics() != Statistics::None,
        }
    }

    /// Returns the input from which the others are measured, if there is one. Another input has no
    /// effect where it equals that one.
    fn measured_from(&self) -> Option<usize> {
        None
    }

    /// Returns the share that the recipe gives each input, before measurement; `None` for an input
    /// that takes no part.
    ///
    /// The share replaces a coefficient that is solved as zero, so that NaN and infinity reach the
    /// output where they are allowed: an input with no finite element left has no direction.
    /// `Some(0.0)` marks a base, which has no share.
    fn shares(&self) -> Vec<Option<f64>>;

    /// Solves for the coefficients, in the inputs' order, and the facts about the merge.
    ///
    /// With [`Statistics::None`] the matrix may be `Gram::new(0)`; the facts then hold no norms and
    /// no angles.
    ///
    /// # Errors
    ///
    /// When the matrix does not have the method's number of inputs, holds a number that is not
    /// finite, or a coefficient overflows.
    fn solve(&self, gram: &Gram) -> Result<Solution>;
}

#[cfg(test)]
mod testing;
