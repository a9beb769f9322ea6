//! Guards windows whose file was cut under them: the bus error sets a flag and does not end the
//! process.
//!
//! Touching a page of a map behind the end of its file, or one that the disk cannot read, raises
//! SIGBUS. The handler that [`guard_maps`] installs looks the address up among the windows that are
//! in use. If a window holds it, the window's pages are replaced by zeros and the window is marked.
//! The interrupted loop goes on with zeros, and its caller must ask [`Watch::is_lost`] before it
//! uses the result. Any other bus error is passed on to the previous handler.
//!
//! A signal handler can only reach a static, so the table is the program's only one: a fixed array
//! of atomics, which the handler reads without a lock. Without the handler nothing is watched and
//! the table stays empty. A window without a place in the table is read, not mapped.

use std::ffi::c_int;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memmap2::Mmap;
use rustix::param::page_size;

use crate::error::{Error, Kind, Result};

/// The most windows that can be watched at once.
const SLOTS: usize = 4096;
/// The value of a slot without a window.
const FREE: u64 = 0;
/// The value of a slot that is being filled: it has no pages, so it contains no address.
const TAKEN: u64 = 1 << COUNT_BITS;
/// The bits for the number of pages; the other bits hold the number of the first page.
const COUNT_BITS: u32 = 28;

/// The pages of one window, in one word: between two words a handler could combine the start of an
/// old window with the length of a new one, and overwrite other memory.
struct Slot {
    pages: AtomicU64,
    is_lost: AtomicBool,
}

static WINDOWS: [Slot; SLOTS] = [const {
    Slot {
        pages: AtomicU64::new(FREE),
        is_lost: AtomicBool::new(false),
    }
}; SLOTS];
/// The slot at which the search for a free one begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// The previous handler of bus errors; null until ours is installed. Never freed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

/// Turns the cutting of a mapped input into an error of the run; otherwise it ends the process.
///
/// Takes over SIGBUS, for the rest of the process's life; bus errors outside of mapped inputs go to
/// the previous handler. A program calls it once; a library that must not touch signals reads
/// through [`Io::Positioned`](super::Io::Positioned) instead. Further calls change nothing.
///
/// # Errors
///
/// Fails when the system refuses the handler.
pub fn guard_maps() -> Result<()> {
    static INSTALLED: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = INSTALLED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if is_guarded() {
        return Ok(());
    }
    // SAFETY: all zeros is a valid `sigaction`: the default action, no flags, and an empty mask.
    let mut before: Box<libc::sigaction> = Box::new(unsafe { std::mem::zeroed() });
    // SAFETY: as above.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    ours.sa_sigaction = handler as libc::sighandler_t;
    // Uses the alternate stack, which Rust gives its threads: the current stack may have raised the
    // signal.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the call only queries; the pointer is to a live value of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut *before) } == 0 {
        // Set before our handler can run, so that it always finds the previous one.
        BEFORE.store(Box::into_raw(before), Ordering::Release);
        // SAFETY: the handler does only what signal handlers may do; see there.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) } == 0 {
            return Ok(());
        }
        BEFORE.store(null_mut(), Ordering::Release);
    }
    Err(Error::new(
        Kind::Io,
        "cannot watch for bus errors",
        "SIGBUS",
        io::Error::last_os_error(),
    ))
}

/// Tells if bus errors in mapped inputs are caught.
pub(super) fn is_guarded() -> bool {
    !BEFORE.load(Ordering::Acquire).is_null()
}

/// A window's place in the table, held until dropped; drop it before the map.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `map`; `None` when the table is full.
    pub fn over(map: &Mmap) -> Option<Self> {
        let pages = Pages::of(map.as_ptr().addr(), map.len())?.packed()?;
        let from = NEXT.fetch_add(1, Ordering::Relaxed);
        let slot = (0..SLOTS)
            .map(|at| from.wrapping_add(at) % SLOTS)
            .find(|slot| {
                let taken = WINDOWS[*slot].pages.compare_exchange(
                    FREE,
                    TAKEN,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                taken.is_ok()
            })?;
        WINDOWS[slot].is_lost.store(false, Ordering::Relaxed);
        WINDOWS[slot].pages.store(pages, Ordering::Release);
        Some(Self { slot })
    }

    /// Tells if some of the window's pages could not be read, so that the window is zeros now.
    pub fn is_lost(&self) -> bool {
        WINDOWS[self.slot].is_lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WINDOWS[self.slot].pages.store(FREE, Ordering::Release);
    }
}

/// The unit of pages in the table, in bytes. The system's page size is a multiple of it, so the
/// handler need not ask for it.
const UNIT: usize = 4096;

/// Whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    first: usize,
    count: usize,
}

impl Pages {
    /// Returns the pages that hold `len` bytes from `address` on.
    fn of(address: usize, len: usize) -> Option<Self> {
        let page = page_size();
        let first = address / page * page;
        let end = address.checked_add(len)?.checked_next_multiple_of(page)?;
        Some(Self {
            first: first / UNIT,
            count: (end - first) / UNIT,
        })
    }

    fn packed(self) -> Option<u64> {
        let (first, count) = (
            u64::try_from(self.first).ok()?,
            u64::try_from(self.count).ok()?,
        );
        let fits = first >> (u64::BITS - COUNT_BITS) == 0 && count >> COUNT_BITS == 0;
        (fits && count > 0).then_some(first << COUNT_BITS | count)
    }

    fn unpacked(word: u64) -> Option<Self> {
        let count = word & ((1 << COUNT_BITS) - 1);
        Some(Self {
            first: usize::try_from(word >> COUNT_BITS).ok()?,
            count: usize::try_from(count).ok()?,
        })
    }

    fn contains(self, page: usize) -> bool {
        page.checked_sub(self.first)
            .is_some_and(|at| at < self.count)
    }
}

/// Does only what a signal handler may: atomics, `mmap`, `sigaction`, `signal` and `raise`, which
/// are plain system calls on Linux; takes no lock, allocates nothing, and leaves `errno` as it was.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the address of this thread's errno is always valid.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo to a handler that was installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // BUS_ADRERR: the file has no such page, or it cannot be read. Broken memory is left to the
    // previous handler.
    let handled = code == libc::BUS_ADRERR && {
        // SAFETY: as above; for this code the address is set.
        let address = unsafe { (*info).si_addr() }.addr();
        replace(address)
    };
    if code <= 0 {
        // Another process sent the signal, so nothing would raise it again: this process ends as it
        // would without a handler. SAFETY: both are system calls on this signal alone.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    } else if !handled {
        // SAFETY: the pointer was leaked before the handler was installed. The faulting instruction
        // runs again and then faults to the restored action.
        unsafe { libc::sigaction(signal, BEFORE.load(Ordering::Acquire), null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Replaces the window that holds `address` by zeros; returns false when there is none.
fn replace(address: usize) -> bool {
    for slot in &WINDOWS {
        let Some(pages) = Pages::unpacked(slot.pages.load(Ordering::Acquire)) else {
            continue;
        };
        if !pages.contains(address / UNIT) {
            continue;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let place = std::ptr::without_provenance_mut(pages.first * UNIT);
        // SAFETY: the pages are exactly those of a window's own map, which cannot be unmapped now:
        // the interrupted thread is borrowing the window. They stay readable and mapped, so every
        // reference into them stays valid, and unmapping the window later unmaps these pages.
        let new = unsafe { libc::mmap(place, pages.count * UNIT, libc::PROT_READ, flags, -1, 0) };
        if new == libc::MAP_FAILED {
            return false;
        }
        slot.is_lost.store(true, Ordering::Release);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "run by the test below in its own process, which it ends"]
    fn touch_a_page_that_nobody_watches() {
        guard_maps().expect("a handler");
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(1 << 20).expect("resized");
        // SAFETY: the map is read-only, and cut on purpose.
        let map = unsafe { Mmap::map(&file) }.expect("mapped");
        file.set_len(0).expect("cut");
        std::hint::black_box(map[5000]);
    }

    #[test]
    fn a_bus_error_outside_of_all_windows_still_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;
        let name = "checkpoint::bus::tests::touch_a_page_that_nobody_watches";
        let this = std::env::current_exe().expect("test binary");
        let ended = std::process::Command::new(this)
            .args([name, "--exact", "--ignored"])
            .output()
            .expect("run");
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{ended:?}");
    }

    #[test]
    fn pages_survive_packing_and_absurd_ones_are_refused() {
        let page = page_size();
        for (address, len) in [
            (page, 1),
            (page + 1, page),
            (7 * page - 1, 2),
            (0x7fff_fff0_0000, 1 << 20),
        ] {
            let pages = Pages::of(address, len).expect("no overflow");
            assert_eq!(pages.first * UNIT, address / page * page);
            assert_eq!(
                (pages.first + pages.count) * UNIT,
                (address + len).next_multiple_of(page)
            );
            assert_eq!(Pages::unpacked(pages.packed().expect("fits")), Some(pages));
            assert!(pages.contains(address / UNIT) && pages.contains((address + len - 1) / UNIT));
            assert!(!pages.contains(pages.first - 1) && !pages.contains(pages.first + pages.count));
        }
        assert_eq!(Pages::of(usize::MAX, 2), None);
        assert_eq!(
            Pages {
                first: 1 << 40,
                count: 1
            }
            .packed(),
            None
        );
        assert_eq!(
            Pages {
                first: 1,
                count: 1 << 28
            }
            .packed(),
            None
        );
        assert!(
            [FREE, TAKEN]
                .into_iter()
                .filter_map(Pages::unpacked)
                .all(|none| !none.contains(none.first))
        );
    }
}
