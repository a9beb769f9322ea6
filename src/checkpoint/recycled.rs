//! Buffers of windows that are used again: a fresh one costs a fault and a page of zeros for every
//! four kilobytes, which takes longer than the copy into it.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use crate::error::{Error, Kind, Result};

/// The bytes by which a buffer may be larger than what is asked for: the edges of a window, which
/// its reader pays for and a buffer does not need.
const SLACK_BYTES: usize = 64 << 10;

/// Hands out buffers and takes them back.
///
/// Buffers in use and idle ones never take more together than those in use took at their peak, so
/// whoever pays for windows pays for idle buffers too.
#[derive(Debug, Default)]
pub struct Recycler(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    /// From the one that was given back first on.
    idle: Vec<MmapMut>,
    idle_bytes: usize,
    used_bytes: usize,
    /// The peak of `used_bytes`.
    most_bytes: usize,
}

/// A buffer that goes back to its recycler.
pub(super) struct Recycled {
    /// Taken only when it is dropped.
    memory: Option<MmapMut>,
    len: usize,
    home: Arc<Recycler>,
}

impl Recycler {
    /// A buffer of `len` bytes of any content, at least one.
    ///
    /// # Errors
    ///
    /// [`Kind::Io`] when the system has no memory for it.
    pub(super) fn take(self: &Arc<Self>, len: usize, path: &Path) -> Result<Recycled> {
        let recycled = |memory| Recycled {
            memory: Some(memory),
            len,
            home: Arc::clone(self),
        };
        let surplus = match self.pool().take(len) {
            Ok(memory) => return Ok(recycled(memory)),
            Err(surplus) => surplus,
        };
        drop(surplus);
        match MmapMut::map_anon(len) {
            Ok(memory) => Ok(recycled(memory)),
            Err(error) => {
                self.pool().used_bytes -= len;
                let cause = format!("no memory for {len} bytes: {error}");
                Err(Error::new(Kind::Io, "cannot read", path.display(), cause))
            }
        }
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Numbers and list are changed together, between two points that can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// An idle buffer that fits `len`, or those that must go before a new one of `len` is made.
    /// Either way its bytes count as used from now on.
    fn take(&mut self, len: usize) -> std::result::Result<MmapMut, Vec<MmapMut>> {
        let fits =
            |memory: &MmapMut| (len..=len.saturating_add(SLACK_BYTES)).contains(&memory.len());
        // The one that was used last is likeliest to be in a cache.
        let found = self
            .idle
            .iter()
            .rposition(fits)
            .map(|at| self.idle.remove(at));
        let taken = found.as_ref().map_or(0, |memory| memory.len());
        self.idle_bytes -= taken;
        self.used_bytes += taken.max(len);
        self.most_bytes = self.most_bytes.max(self.used_bytes);
        let mut surplus = 0;
        while self.idle_bytes + self.used_bytes > self.most_bytes {
            self.idle_bytes -= self.idle[surplus].len();
            surplus += 1;
        }
        let surplus = self.idle.drain(..surplus).collect();
        found.ok_or(surplus)
    }
}

impl Deref for Recycled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory
            .as_ref()
            .map_or(&[], |memory| &memory[..self.len])
    }
}

impl DerefMut for Recycled {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        self.memory
            .as_mut()
            .map_or(&mut [], |memory| &mut memory[..len])
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let mut pool = self.home.pool();
            pool.used_bytes -= memory.len();
            pool.idle_bytes += memory.len();
            pool.idle.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(recycler: &Arc<Recycler>, len: usize) -> Recycled {
        recycler.take(len, Path::new("file")).expect("memory")
    }

    fn bytes(recycler: &Recycler) -> (usize, usize) {
        let pool = recycler.pool();
        let idle: usize = pool.idle.iter().map(|memory| memory.len()).sum();
        assert_eq!(idle, pool.idle_bytes);
        (pool.used_bytes, pool.idle_bytes)
    }

    #[test]
    fn a_buffer_that_fits_is_used_again() {
        let recycler = Arc::new(Recycler::default());
        let mut first = take(&recycler, 1 << 20);
        first[7] = 42;
        let at = first.as_ptr();
        drop(first);
        assert_eq!(bytes(&recycler), (0, 1 << 20));
        let again = take(&recycler, (1 << 20) - 5);
        assert_eq!(
            (again.as_ptr(), again.len(), again[7]),
            (at, (1 << 20) - 5, 42)
        );
        assert_eq!(bytes(&recycler), (1 << 20, 0));
    }

    #[test]
    fn idle_buffers_never_add_to_the_peak_of_those_in_use() {
        let recycler = Arc::new(Recycler::default());
        let peak: Vec<_> = (0..4).map(|_| take(&recycler, 1 << 20)).collect();
        drop(peak);
        assert_eq!(bytes(&recycler), (0, 4 << 20));
        // None of them fits, so that one goes for each half that comes.
        let others: Vec<_> = (0..3).map(|_| take(&recycler, 1 << 19)).collect();
        assert_eq!(bytes(&recycler), (3 << 19, 2 << 20));
        drop(others);
        let large = take(&recycler, 8 << 20);
        assert_eq!(bytes(&recycler), (8 << 20, 0));
        drop(large);
        assert_eq!(bytes(&recycler), (0, 8 << 20));
    }
}
