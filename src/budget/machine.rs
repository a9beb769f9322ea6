//! What the machine has, and what this process has taken of it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sysinfo::{MemoryRefreshKind, System};

use super::{cgroup, format_bytes};
use crate::error::{Error, Kind, Result};

/// The least that is taken by default on a machine that is nearly full.
const LEAST_DEFAULT: u64 = 256 << 20;

/// The budget when the user names none: half of what the machine, or the control group this process
/// runs in, has available now, at least 256 MiB unless the control group has less.
///
/// Half, since the page cache does the second reading of large tensors and other programs want to
/// live too.
pub fn default_bytes() -> u64 {
    let Ok(mut system) = System::new() else {
        return LEAST_DEFAULT;
    };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = system.available_memory();
    let group = cgroup::own();
    let in_group = group.map_or(u64::MAX, |group| group.available);
    let limited = resource_limits()
        .map(|(_, bytes)| bytes.saturating_sub(ADDRESSES_BESIDE))
        .min()
        .unwrap_or(u64::MAX);
    let share = (machine.min(in_group).min(limited) / 2).max(LEAST_DEFAULT);
    // In a small group even the least would be too much, where most merges would do with less.
    group.map_or(share, |group| share.min(group.limit / 4 * 3))
}

/// Addresses that the program itself takes beside its budget: code, libraries, the main stack.
const ADDRESSES_BESIDE: u64 = 64 << 20;
/// Addresses that a thread takes: its stack, most of which is never touched.
const ADDRESSES_OF_THREAD: u64 = 4 << 20;
/// Threads that a run has beside those that compute.
const STAGES: u64 = 8;

/// Refuses a budget that the limits on this process do not allow, so that it fails now and not in
/// the middle.
///
/// Looks at the address space and data limits (`ulimit -v`, `ulimit -d`), which have to hold the
/// stacks of `threads` threads too, and at the memory limit of the control group.
///
/// # Errors
///
/// [`Kind::Budget`] with the limit and what the budget would need.
pub fn check_limits(budget: u64, threads: usize) -> Result<()> {
    let refuse = |limit: &str, bytes: u64, needed: u64| {
        let cause = format!(
            "wanted {} of {limit}, got {}",
            format_bytes(needed),
            format_bytes(bytes)
        );
        Err(Error::new(
            Kind::Budget,
            "cannot have the memory",
            format_bytes(budget),
            cause,
        )
        .with_hint("give a smaller --memory or fewer --threads, or raise the limit"))
    };
    let stacks = (threads as u64)
        .saturating_add(STAGES)
        .saturating_mul(ADDRESSES_OF_THREAD);
    let addresses = budget
        .saturating_add(ADDRESSES_BESIDE)
        .saturating_add(stacks);
    if let Some((name, bytes)) = resource_limits().find(|(_, bytes)| *bytes < addresses) {
        return refuse(name, bytes, addresses);
    }
    match cgroup::own().map(|group| group.limit) {
        Some(bytes) if bytes < budget => refuse("its control group's memory", bytes, budget),
        _ => Ok(()),
    }
}

/// Refuses a budget that is more than the machine has.
///
/// # Errors
///
/// [`Kind::Budget`] with what there is.
pub fn check_machine(budget: u64) -> Result<()> {
    match total_bytes() {
        Some(bytes) if bytes < budget => {
            let cause = format!("the machine has {}", format_bytes(bytes));
            Err(Error::new(
                Kind::Budget,
                "cannot have the memory",
                format_bytes(budget),
                cause,
            )
            .with_hint("give a smaller --memory, or none: then it is half of what is available"))
        }
        _ => Ok(()),
    }
}

/// What the machine has, whoever uses it now; `None` where that cannot be found out.
fn total_bytes() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Some(system.total_memory()).filter(|bytes| *bytes > 0)
}

/// What `ulimit` has limited of this process's memory.
fn resource_limits() -> impl Iterator<Item = (&'static str, u64)> {
    let limits = [
        ("address space (ulimit -v)", Resource::As),
        ("data (ulimit -d)", Resource::Data),
    ];
    limits
        .into_iter()
        .filter_map(|(name, resource)| Some((name, getrlimit(resource).current?)))
}

/// Asks the allocator to keep little of what is freed, in few places: what it keeps is resident,
/// and no budget sees it.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 1 << 20),
        (libc::M_TRIM_THRESHOLD, 1 << 20),
    ] {
        // SAFETY: the function takes plain numbers; what it does not know or like it refuses.
        let _ = unsafe { libc::mallopt(what, value) };
    }
}

/// Gives memory that was freed back to the system.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function may be called at any time, from any thread.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// The largest resident size that this process has had, in bytes, as the kernel accounts it; `None`
/// where it does not.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// The resident size of this process now, in bytes; `None` where the kernel does not account for
/// it.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// With more open files there is nothing left to gain.
const MOST_FILES: u64 = 4096;
/// With fewer nothing can be merged.
const FEWEST_FILES: u64 = 4;

/// Raises the limit on open files as far as this process may. A refusal leaves it as it is.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                ..limit
            },
        );
    }
}

/// How many files the inputs may have open, and as many the shards in the making: each half of what
/// the process may.
pub fn most_open_files() -> u64 {
    getrlimit(Resource::Nofile)
        .current
        .map_or(MOST_FILES, |limit| {
            (limit / 2).clamp(FEWEST_FILES, MOST_FILES)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_share_of_a_real_machine() {
        assert!(default_bytes() >= LEAST_DEFAULT);
        assert!(default_bytes() < 1 << 50);
    }

    #[test]
    fn a_budget_beyond_what_there_is_is_refused() {
        assert!(check_limits(1 << 20, 2).is_ok());
        let refused = check_limits(u64::MAX, 2).is_err();
        assert_eq!(
            refused,
            resource_limits().next().is_some() || cgroup::own().is_some()
        );
        assert!(check_machine(1 << 20).is_ok());
        assert_eq!(check_machine(9999 << 40).is_err(), total_bytes().is_some());
    }

    #[test]
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_resident_bytes().expect("the kernel accounts for processes");
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(peak_resident_bytes().expect("as before") > before.max(block.len() as u64 / 2));
    }
}
