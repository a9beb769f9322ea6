//! The machine's memory and limits, and this process's use of them.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sysinfo::{MemoryRefreshKind, System};

use super::{cgroup, format_bytes};
use crate::error::{Error, Kind, Result};

/// The smallest default budget, in bytes, on a machine that is nearly full.
const LEAST_DEFAULT: u64 = 256 << 20;

/// Returns the default budget in bytes: half of the memory that is available now to the machine or
/// to this process's control group, at least 256 MiB unless the control group has less.
///
/// Half, since the second reading of large tensors comes from the page cache, and other programs
/// need memory too.
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
    // In a small group even the smallest default would be too much, and most merges need less.
    group.map_or(share, |group| share.min(group.limit / 4 * 3))
}

/// Address space of the program beside its budget, in bytes: code, libraries, the main stack.
const ADDRESSES_BESIDE: u64 = 64 << 20;
/// Address space of a thread, in bytes: its stack, most of which is never touched.
const ADDRESSES_OF_THREAD: u64 = 4 << 20;
/// The threads of a run beside those that compute.
const STAGES: u64 = 8;

/// Refuses a budget that exceeds the limits on this process, so that a run fails now and not
/// halfway.
///
/// Looks at the address space and data limits (`ulimit -v`, `ulimit -d`), which must also hold the
/// stacks of `threads` threads, and at the memory limit of the control group.
///
/// # Errors
///
/// [`Kind::Budget`] with the limit and the bytes that the budget would need.
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

/// Refuses a budget that exceeds the machine's memory.
///
/// # Errors
///
/// [`Kind::Budget`] with the machine's memory.
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

/// Returns the machine's total memory in bytes, used or not; `None` when it is unknown.
fn total_bytes() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    Some(system.total_memory()).filter(|bytes| *bytes > 0)
}

/// Lists the `ulimit` limits on this process's memory, in bytes, with their names.
fn resource_limits() -> impl Iterator<Item = (&'static str, u64)> {
    let limits = [
        ("address space (ulimit -v)", Resource::As),
        ("data (ulimit -d)", Resource::Data),
    ];
    limits
        .into_iter()
        .filter_map(|(name, resource)| Some((name, getrlimit(resource).current?)))
}

/// Tells the allocator to keep little freed memory, in few arenas: kept memory is resident but in
/// no budget.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (what, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_MMAP_THRESHOLD, 1 << 20),
        (libc::M_TRIM_THRESHOLD, 1 << 20),
    ] {
        // SAFETY: the function takes plain numbers and refuses unknown or invalid ones.
        let _ = unsafe { libc::mallopt(what, value) };
    }
}

/// Returns freed memory to the system.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the function may be called at any time, from any thread.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Returns this process's peak resident size in bytes, as the kernel counts it; `None` where it
/// does not.
pub fn peak_resident_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

/// Returns this process's resident size now, in bytes; `None` where the kernel does not count it.
pub fn resident_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// The most open files that are used; more would gain nothing.
const MOST_FILES: u64 = 4096;
/// The fewest open files that a merge can work with.
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

/// Returns the number of files that the inputs may have open, and that the unfinished shards may
/// have open too: each half of the process's limit.
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
