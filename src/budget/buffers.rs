//! Output buffers: paid for in the budget, recycled so that no block allocates.
//!
//! A buffer has the same page alignment in memory as its bytes will have in their file, so that
//! they can be written to the disk directly from it. Large buffers ask for huge pages: a disk
//! request covers only a limited number of memory runs, and with small pages scattered over the
//! machine's memory one request of 4 MiB becomes four or five.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{Advice, MmapMut};

use super::{Budget, Reservation};
use crate::error::{Error, Kind, Result};

/// The alignment of direct writes, in bytes: file offset and memory address agree modulo this.
pub const PAGE: usize = 4096;

/// The size of a huge page and its alignment, in bytes, on today's machines.
const HUGE_PAGE: usize = 2 << 20;

/// Hands out buffers under a budget and takes them back.
#[derive(Debug)]
pub struct Buffers {
    budget: Arc<Budget>,
    idle: Mutex<Vec<Memory>>,
}

impl Buffers {
    /// Creates an empty pool whose buffers are reserved from `budget`.
    pub fn new(budget: Arc<Budget>) -> Arc<Self> {
        Arc::new(Self {
            budget,
            idle: Mutex::default(),
        })
    }

    /// Takes a buffer of `len` bytes with arbitrary contents, for `offset` in a file. Waits until
    /// the budget allows it; `None` once the budget is closed. The buffer's address and `offset`
    /// are equal modulo [`PAGE`].
    ///
    /// # Errors
    ///
    /// [`Kind::Budget`] when the system has less memory for this process than the budget says.
    pub fn take(self: &Arc<Self>, len: usize, offset: u64) -> Result<Option<Buffer>> {
        let Some(reservation) = self.budget.reserve(len as u64) else {
            return Ok(None);
        };
        let start = usize::try_from(offset % PAGE as u64).expect("a remainder is small");
        let end = start.saturating_add(len);
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let memory = match idle.filter(|memory| memory.bytes.len() >= end) {
            Some(memory) => memory,
            None => Memory::new(end).map_err(|error| {
                Error::new(Kind::Budget, "no memory", format!("a buffer of {len} bytes"), error).with_hint(
                    "the system gives this process less than the budget says; lower --memory or raise the limit",
                )
            })?,
        };
        let start = memory.bytes.start + start;
        let bytes = start..start + len;
        Ok(Some(Buffer {
            memory: Some(memory),
            bytes,
            home: Arc::clone(self),
            _reservation: reservation,
        }))
    }

    /// Returns the budget that the buffers are reserved from.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }
}

/// A memory map. The used part begins at a page, at a huge one if it is large.
#[derive(Debug)]
struct Memory {
    map: MmapMut,
    bytes: Range<usize>,
}

impl Memory {
    fn new(len: usize) -> io::Result<Self> {
        if len < HUGE_PAGE {
            let len = len.max(1).next_multiple_of(PAGE);
            return Ok(Self {
                map: MmapMut::map_anon(len)?,
                bytes: 0..len,
            });
        }
        // Pages that are never touched take no memory.
        let map = MmapMut::map_anon(len.saturating_add(HUGE_PAGE))?;
        let start = map.as_ptr().addr().wrapping_neg() % HUGE_PAGE;
        // Without huge pages the small ones serve.
        #[cfg(target_os = "linux")]
        let _ = map.advise_range(Advice::HugePage, start, len / HUGE_PAGE * HUGE_PAGE);
        Ok(Self {
            map,
            bytes: start..start + len,
        })
    }
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
pub struct Buffer {
    memory: Option<Memory>,
    bytes: Range<usize>,
    home: Arc<Buffers>,
    _reservation: Reservation,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory.as_ref().expect("there until it is dropped").map[self.bytes.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut().expect("there until it is dropped").map[self.bytes.clone()]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = self.memory.take();
        self.home
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_the_system_has_no_memory_for_is_an_error() {
        let buffers = Buffers::new(Budget::new(u64::MAX));
        let error = buffers
            .take(usize::MAX / 4, 0)
            .expect_err("more than any machine has");
        assert_eq!((error.kind(), buffers.budget().used()), (Kind::Budget, 0));
    }

    #[test]
    fn a_buffer_comes_back_and_is_used_again() {
        let buffers = Buffers::new(Budget::new(1 << 20));
        let take = |len, offset| {
            buffers
                .take(len, offset)
                .expect("there is memory")
                .expect("the budget is open")
        };
        let first = take(4096, 0);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(buffers.budget().used(), 0);
        let second = take(1000, 0);
        assert_eq!((second.as_ptr(), second.len()), (address, 1000));
    }

    #[test]
    fn a_buffer_lies_in_memory_as_in_its_file() {
        let buffers = Buffers::new(Budget::new(1 << 23));
        for (len, offset) in [
            (0, 1),
            (1, 4095),
            (5000, 4095),
            (4096, 1 << 40),
            (12_288, 17),
            (3, 8191),
            (5 << 20, 99),
        ] {
            let mut buffer = buffers
                .take(len, offset)
                .expect("there is memory")
                .expect("the budget is open");
            buffer.fill(7);
            let place = usize::try_from(offset).expect("64 bits");
            assert_eq!(
                (buffer.len(), buffer.as_ptr().addr() % PAGE),
                (len, place % PAGE)
            );
        }
    }
}
