//! Output buffers: paid for in the budget, recycled so that no block allocates.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Budget, Reservation};
use crate::error::{Error, Kind, Result};

/// Hands out buffers under a budget and takes them back.
#[derive(Debug)]
pub struct Buffers {
    budget: Arc<Budget>,
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A home for buffers that `budget` pays for.
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self { budget, idle: Mutex::default() })
    }

    /// A buffer of `len` bytes of any content, waiting until the budget allows; `None` once the budget is closed.
    ///
    /// # Errors
    ///
    /// [`Kind::Budget`] when the system has less memory for this process than the budget says.
    pub fn take(self: &Arc<Self>, len: usize) -> Result<Option<Buffer>> {
        let Some(reservation) = self.budget.reserve(len as u64) else { return Ok(None) };
        let mut bytes = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        bytes.try_reserve_exact(len.saturating_sub(bytes.len())).map_err(|error| {
            Error::new(Kind::Budget, "no memory", format!("a buffer of {len} bytes"), error)
                .with_hint("the system gives this process less than the budget says; lower --memory or raise the limit")
        })?;
        bytes.resize(len, 0);
        Ok(Some(Buffer { bytes, home: Arc::clone(self), _reservation: reservation }))
    }

    /// The budget that pays.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

/// A buffer that goes home when dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
    _reservation: Reservation,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.home.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_the_system_has_no_memory_for_is_an_error() {
        let buffers = Buffers::new(Budget::new(u64::MAX));
        let error = buffers.take(usize::MAX / 4).expect_err("more than any machine has");
        assert_eq!((error.kind(), buffers.budget().used()), (Kind::Budget, 0));
    }

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let buffers = Buffers::new(Budget::new(1 << 20));
        let first = buffers.take(4096).expect("there is memory").expect("the budget is open");
        let address = first.as_ptr();
        drop(first);
        assert_eq!(buffers.budget().used(), 0);
        let second = buffers.take(1000).expect("there is memory").expect("the budget is open");
        assert_eq!((second.as_ptr(), second.len()), (address, 1000));
    }
}
