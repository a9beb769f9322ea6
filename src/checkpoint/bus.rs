//! Windows whose file was cut under them: the bus error becomes a flag instead of the process's
//! end.
//!
//! Touching a page of a map behind the end of its file, or one that the disk cannot read, raises
//! SIGBUS. The handler that [`guard_maps`] installs looks the address up among the windows that are
//! in use. When it lies in one, that window's pages are replaced by zeros and the window is marked;
//! the interrupted loop goes on, on zeros, and whoever asks [`Watch::is_lost`] before using the
//! result learns that it is worth nothing. Any other bus error is passed on to whoever handled them
//! before.
//!
//! A signal handler can only reach a static, so this is the one there is: a fixed table of atomics,
//! which the handler reads without a lock. Without the handler nothing is watched and the table
//! stays empty. A window that finds no place in the table is read, not mapped.

use std::ffi::c_int;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};

use memmap2::Mmap;
use rustix::param::page_size;

use crate::error::{Error, Kind, Result};

/// How many windows can be watched at once.
const SLOTS: usize = 4096;
/// A place that holds no window.
const FREE: u64 = 0;
/// A place that is being filled: no pages at all, so no address lies in it.
const TAKEN: u64 = 1 << COUNT_BITS;
/// Bits for the number of pages; the number of the first page has the others.
const COUNT_BITS: u32 = 28;

/// The pages of one window, in one word: a handler that came between two words could take the one
/// of an old window with the other of a new one, and overwrite what lies between.
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
/// Where the search for a free place begins.
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Who handled bus errors before; null until the handler is installed. Never freed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());

/// Makes an input that is cut while it is mapped an error of the run instead of the end of the
/// process.
///
/// Takes over SIGBUS, for the rest of the process's life; bus errors outside of mapped inputs go to
/// the handler that was there before. Meant to be called once by a program; a library that does not
/// want to touch signals reads through [`Io::Positioned`](super::Io::Positioned) instead. Calling
/// it again changes nothing.
///
/// # Errors
///
/// When the system refuses the handler.
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
    // On the alternate stack, which Rust gives its threads: the stack at hand may be what raised
    // the signal.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the first asks only; both pointers are to live values of the right type.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut *before) } == 0 {
        // Known before the handler can run, so that it always finds somebody to pass a bus error on
        // to.
        BEFORE.store(Box::into_raw(before), Ordering::Release);
        // SAFETY: the handler does nothing but what signal handlers may do; see there.
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

/// Whether bus errors in mapped inputs are caught.
pub(super) fn is_guarded() -> bool {
    !BEFORE.load(Ordering::Acquire).is_null()
}

/// A window's place in the table, its own until dropped, which must be before the map is.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    /// Watches `map`; none when the table is full.
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

    /// Whether some of the window's pages could not be had and are zeros since.
    pub fn is_lost(&self) -> bool {
        WINDOWS[self.slot].is_lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WINDOWS[self.slot].pages.store(FREE, Ordering::Release);
    }
}

/// What pages are counted in here, whatever the system's are: theirs are multiples of it, and the
/// handler need not ask.
const UNIT: usize = 4096;

/// Whole pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    first: usize,
    count: usize,
}

impl Pages {
    /// Those that hold `len` bytes from `address` on.
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
    // SAFETY: the place of this thread's errno, always valid.
    let errno = unsafe { *libc::__errno_location() };
    // SAFETY: the kernel passes a valid siginfo to a handler that was installed with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // BUS_ADRERR: no such page in the file, or it cannot be read. Broken memory is somebody else's
    // matter.
    let handled = code == libc::BUS_ADRERR && {
        // SAFETY: as above; for this code the address is set.
        let address = unsafe { (*info).si_addr() }.addr();
        replace(address)
    };
    if code <= 0 {
        // Somebody sent it, so nothing would raise it again: the process ends as it would have
        // without any handler. SAFETY: both are system calls on this signal alone.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    } else if !handled {
        // SAFETY: the pointer was leaked before the handler was installed; putting the action back
        // that it holds makes the faulting instruction, which runs again, fault to it.
        unsafe { libc::sigaction(signal, BEFORE.load(Ordering::Acquire), null_mut()) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Puts zeros in the place of the window that holds `address`; false when there is none.
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
