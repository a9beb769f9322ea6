//! What the machine has, and what this process has taken of it.

use sysinfo::{MemoryRefreshKind, System};

/// The least that is taken by default on a machine that is nearly full.
const LEAST_DEFAULT: u64 = 256 << 20;

/// The budget when the user names none: half of what the machine, or the control group this process runs in, has
/// available now, at least 256 MiB.
///
/// Half, since the page cache does the second reading of large tensors and other programs want to live too.
pub fn default_bytes() -> u64 {
    let Ok(mut system) = System::new() else {
        return LEAST_DEFAULT;
    };
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = system.available_memory();
    let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
    (machine.min(group) / 2).max(LEAST_DEFAULT)
}

/// The largest resident size that this process has had, in bytes, as the kernel accounts it; `None` where it does not.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
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
    fn the_peak_grows_with_what_is_touched() {
        let before = peak_resident_bytes().expect("the kernel accounts for processes");
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(peak_resident_bytes().expect("as before") > before.max(block.len() as u64 / 2));
    }
}
