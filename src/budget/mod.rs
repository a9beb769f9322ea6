//! The byte budget: the limit on resident memory, its reservations, and the default limit.
//!
//! A [`Budget`] hands out [`Reservation`]s that are released when dropped. A stage that asks for
//! more than is left waits, so the budget is the back-pressure of the pipeline too. Waiting is only
//! safe when reservations are taken in the order in which the work ends; `engine` explains why that
//! holds there.

mod buffers;
mod cgroup;
mod machine;
mod size;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

pub use buffers::{Buffer, Buffers, PAGE};
pub use machine::{
    check_limits, check_machine, default_bytes, give_back, keep_little, most_open_files,
    peak_resident_bytes, raise_open_files, resident_bytes,
};
pub use size::{format_bytes, parse_bytes};

/// A number of bytes that may be held at once.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    peak: u64,
    closed: bool,
}

impl Budget {
    /// Creates a budget of `limit` bytes, none of them held.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
            freed: Condvar::new(),
        })
    }

    /// Returns the bytes that may be held at once.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the bytes that are held now.
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Returns the most bytes that were ever held at once.
    pub fn peak(&self) -> u64 {
        self.lock().peak
    }

    /// Holds `bytes`, waiting until they are free; `None` after [`Budget::close`].
    ///
    /// A request beyond the whole limit is granted once nothing else is held, so that a caller
    /// whose arithmetic was slightly off is slow rather than stuck.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let mut state = self.lock();
        while !state.closed && state.used > 0 && state.used.saturating_add(bytes) > self.limit {
            state = self
                .freed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return None;
        }
        state.used += bytes;
        state.peak = state.peak.max(state.used);
        Some(Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Ends all waiting, now and later: existing reservations stay until they are dropped, and no
    /// more are granted.
    pub fn close(&self) {
        self.lock().closed = true;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few counters that are changed whole, so a panic elsewhere cannot leave it
        // half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a [`Budget`] that are held until this is dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Reservation {
    /// Returns the number of bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.lock().used -= self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_reservation_is_free_again_and_the_peak_is_kept() {
        let budget = Budget::new(100);
        let first = budget.reserve(60).expect("the budget is open");
        let second = budget.reserve(40).expect("the budget is open");
        assert_eq!(budget.used(), 100);
        drop(first);
        assert_eq!(budget.used(), 40);
        drop(second);
        assert_eq!((budget.used(), budget.peak()), (0, 100));
    }

    #[test]
    fn a_reservation_waits_until_enough_is_free() {
        let budget = Budget::new(10);
        let held = budget.reserve(8).expect("the budget is open");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.reserve(5).map(|r| r.bytes()));
            drop(held);
            assert_eq!(waiting.join().expect("the waiter does not panic"), Some(5));
        });
        assert!(budget.peak() <= 10);
    }

    #[test]
    fn closing_wakes_those_who_wait() {
        let budget = Budget::new(10);
        let _held = budget.reserve(10).expect("the budget is open");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| budget.reserve(1).is_none());
            budget.close();
            assert!(waiting.join().expect("the waiter does not panic"));
        });
    }

    #[test]
    fn a_request_beyond_the_limit_is_granted_alone() {
        let budget = Budget::new(10);
        assert_eq!(budget.reserve(25).map(|r| r.bytes()), Some(25));
        assert_eq!(budget.used(), 0);
    }
}
