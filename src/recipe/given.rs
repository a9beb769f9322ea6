//! The parameters of one tensor's method, as the method's row of the registry asks for them.

use super::choices::{RescaleBy, SignRule, TieRule};
use crate::error::Result;

/// The values that a recipe gives to the parameters of one tensor's method.
///
/// All of them fail with [`Kind::Recipe`](crate::error::Kind::Recipe) when a parameter has no value
/// for the tensor.
pub trait Given {
    /// Counts the inputs that have the tensor.
    fn inputs(&self) -> usize;

    /// Returns the place of the base among them.
    fn base(&self) -> Option<usize>;

    /// Returns the place of the base for a method that cannot do without one.
    fn needed_base(&self) -> Result<usize>;

    /// Returns one weight for each input; zero for a base from which the others are measured.
    fn weights(&self) -> Result<Vec<f64>>;

    /// Returns parameter `name` of input `input` of the document.
    fn of_input(&self, name: &str, input: usize) -> Result<f64>;

    /// Returns parameter `name`, which all inputs share.
    fn shared(&self, name: &str) -> Result<f64>;

    /// Returns a shared parameter as a whole number; another number is an error.
    fn count(&self, name: &str) -> Result<u32>;

    /// Returns the position of input `at` in the recipe, a base that is not listed last.
    fn position(&self, at: usize) -> u32;

    /// Returns parameter `name` of the input at place `at` among those that have the tensor.
    fn of_member(&self, name: &str, at: usize) -> Result<f64> {
        self.of_input(name, self.position(at) as usize)
    }

    /// Returns the recipe's choices for methods that select elements.
    fn choices(&self) -> ElementChoices;

    /// Returns a shared parameter as true or false.
    fn switch(&self, name: &str) -> Result<bool> {
        Ok(self.shared(name)? != 0.0)
    }
}

/// The choices at the top of a recipe for methods that select elements.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ElementChoices {
    /// The seed of random numbers.
    pub seed: u64,
    /// The choice among tied elements.
    pub ties: TieRule,
    /// The sign where weighted differences cancel.
    pub sign_tie: SignRule,
    /// The divisor that makes up for what is dropped.
    pub rescale_by: RescaleBy,
}
