//! The parameters of one tensor's method, as the method's row of the registry asks for them.

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

    /// Returns a shared parameter as true or false.
    fn switch(&self, name: &str) -> Result<bool> {
        Ok(self.shared(name)? != 0.0)
    }
}
