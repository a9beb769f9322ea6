//! The memory limits of this process's control group and of the groups above it, in both versions
//! of the interface.
//!
//! See `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/memory.rst` of the Linux kernel.

use std::fs;
use std::path::{Path, PathBuf};

/// Limits of at least this mean "no limit": the older interface reports the largest number of whole
/// pages then.
const NO_LIMIT: u64 = 1 << 60;

/// The tightest limits of a group and those above it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupMemory {
    /// The memory that may be in use.
    pub(super) limit: u64,
    /// The part of the limit that is free; pages that the system can drop at once count as free.
    pub(super) available: u64,
}

/// Reads the limits on this process; `None` without limits or without control groups.
pub(super) fn own() -> Option<GroupMemory> {
    of_process(Path::new("/proc/self"))
}

/// Reads the limits on the process that `proc` describes.
fn of_process(proc: &Path) -> Option<GroupMemory> {
    let text = |name: &str| fs::read_to_string(proc.join(name)).ok();
    let (groups, mounts) = (text("cgroup")?, text("mountinfo")?);
    // A machine can have both versions mounted, but only one of them has the files on memory.
    let found = [&V1, &V2]
        .into_iter()
        .flat_map(|version| version.limits(&groups, &mounts));
    found.reduce(|a, b| GroupMemory {
        limit: a.limit.min(b.limit),
        available: a.available.min(b.available),
    })
}

/// A version of the interface.
struct Version {
    limit: &'static str,
    usage: &'static str,
    /// The key in the statistics for file pages that nobody needs now.
    droppable: &'static str,
    /// Tells if a line of `/proc/self/cgroup` with this number and these controllers is about
    /// memory.
    is_group: fn(&str, &str) -> bool,
    /// Tells if a file system of this type with these options is about memory.
    is_mount: fn(&str, &str) -> bool,
}

const V1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    droppable: "total_inactive_file",
    is_group: |_, controllers| controllers.split(',').any(|name| name == "memory"),
    is_mount: |kind, options| kind == "cgroup" && options.split(',').any(|name| name == "memory"),
};

const V2: Version = Version {
    limit: "memory.max",
    usage: "memory.current",
    droppable: "inactive_file",
    is_group: |number, controllers| number == "0" && controllers.is_empty(),
    is_mount: |kind, _| kind == "cgroup2",
};

impl Version {
    fn limits(&self, groups: &str, mounts: &str) -> Vec<GroupMemory> {
        let Some(group) = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            (self.is_group)(number, controllers).then_some(Path::new(path))
        }) else {
            return vec![];
        };
        let mounts: Vec<_> = mounts.lines().filter_map(|line| self.mount(line)).collect();
        // In a container the group's path can be the host's; then this process sees only the mount.
        let seen = mounts
            .iter()
            .find_map(|mount| Some((mount, group.strip_prefix(&mount.root).ok()?)));
        let Some((mount, below)) = seen.or(mounts.first().map(|mount| (mount, Path::new(""))))
        else {
            return vec![];
        };
        let folders = below.ancestors().map(|below| mount.point.join(below));
        folders.filter_map(|folder| self.read(&folder)).collect()
    }

    /// Parses a line of `/proc/self/mountinfo`, if it is about this version's groups.
    fn mount(&self, line: &str) -> Option<Mount> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut what = what.split(' ');
        let (kind, options) = (what.next()?, what.nth(1)?);
        (self.is_mount)(kind, options).then(|| Mount {
            root: unescaped(root),
            point: unescaped(point),
        })
    }

    /// Reads the folder of one group; `None` when it states no limit.
    fn read(&self, folder: &Path) -> Option<GroupMemory> {
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let limit = number(self.limit).filter(|limit| *limit < NO_LIMIT)?;
        let statistics = text("memory.stat").unwrap_or_default();
        let droppable = statistics
            .lines()
            .find_map(|line| line.strip_prefix(self.droppable)?.trim().parse().ok());
        let used = number(self.usage)
            .unwrap_or(0)
            .saturating_sub(droppable.unwrap_or(0));
        Some(GroupMemory {
            limit,
            available: limit.saturating_sub(used),
        })
    }
}

/// A mounted hierarchy of groups: the group at its top and its mount point.
struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// Decodes a path from the kernel's tables, where blanks are octal numbers.
fn unescaped(text: &str) -> PathBuf {
    let blanks = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    blanks
        .into_iter()
        .fold(text.to_owned(), |text, (octal, plain)| {
            text.replace(octal, plain)
        })
        .into()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine's `/proc/self` and `/sys/fs/cgroup`, with these files in them.
    fn machine(group: &str, mount: &str, files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().expect("temporary folder");
        let sys = root.path().join("sys fs");
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        let shown = sys.display().to_string().replace(' ', "\\040");
        write(root.path().join("cgroup"), group);
        write(root.path().join("mountinfo"), &mount.replace("SYS", &shown));
        files
            .iter()
            .for_each(|(name, text)| write(sys.join(name), text));
        root
    }

    #[track_caller]
    fn says(machine: &TempDir, wanted: Option<(u64, u64)>) {
        let found =
            of_process(machine.path()).map(|found| (found.limit / MIB, found.available / MIB));
        assert_eq!(found, wanted);
    }

    const UNIFIED: &str = "24 22 0:20 / /proc rw - proc proc rw\n\
        30 23 0:26 / SYS rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_second_versions_tightest_group_counts_without_what_can_be_dropped() {
        let files = [
            ("cgroup.controllers", "memory"),
            ("user.slice/memory.max", "1073741824\n"),
            ("user.slice/memory.current", "943718400\n"),
            (
                "user.slice/memory.stat",
                "anon 5\nfile 9\ninactive_file 104857600\nactive_file 7\n",
            ),
            ("user.slice/job.scope/memory.max", "536870912\n"),
            ("user.slice/job.scope/memory.current", "104857600\n"),
        ];
        // The group has 412 MiB left, the one above it 224.
        says(
            &machine("0::/user.slice/job.scope\n", UNIFIED, &files),
            Some((512, 224)),
        );
        says(
            &machine("0::/user.slice\n", UNIFIED, &files),
            Some((1024, 224)),
        );
        says(&machine("0::/\n", UNIFIED, &files), None);
        says(
            &machine("0::/user.slice/gone\n", UNIFIED, &files),
            Some((1024, 224)),
        );
    }

    #[test]
    fn no_limit_is_none() {
        let files = [("a/memory.max", "max\n"), ("a/memory.current", "1\n")];
        says(&machine("0::/a\n", UNIFIED, &files), None);
        let files = [("memory/a/memory.limit_in_bytes", "9223372036854771712\n")];
        says(&machine("4:memory:/a\n", OLDER, &files), None);
        says(&machine("", "", &[]), None);
        says(&tempfile::tempdir().expect("temporary folder"), None);
        for odd in ["", "-5", "99999999999999999999999", "12 MiB", "max max"] {
            says(&machine("0::/a\n", UNIFIED, &[("a/memory.max", odd)]), None);
        }
    }

    const OLDER: &str = "31 23 0:27 / SYS/cpu rw - cgroup cgroup rw,cpu\n\
        32 23 0:28 / SYS/memory rw - cgroup cgroup rw,memory\n\
        33 23 0:29 / SYS/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_first_version_is_read_where_memory_is_its_beside_the_second() {
        let files = [
            ("memory/jobs/7/memory.limit_in_bytes", "268435456\n"),
            ("memory/jobs/7/memory.usage_in_bytes", "268435456\n"),
            (
                "memory/jobs/7/memory.stat",
                "inactive_file 1\ntotal_inactive_file 134217728\n",
            ),
            ("memory/jobs/memory.limit_in_bytes", "9223372036854771712\n"),
            ("unified/other/cgroup.procs", ""),
        ];
        let groups = "5:cpu,cpuacct:/else\n4:memory:/jobs/7\n0::/other\n";
        says(&machine(groups, OLDER, &files), Some((256, 128)));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_top() {
        let files = [("memory.max", "134217728\n"), ("memory.current", "0\n")];
        let bound = "30 23 0:26 /docker/abc SYS ro - cgroup2 cgroup2 rw\n";
        // The host's path, as without a cgroup namespace; and a path that leads out of the mount.
        says(
            &machine("0::/docker/abc\n", bound, &files),
            Some((128, 128)),
        );
        says(
            &machine("0::/../elsewhere\n", bound, &files),
            Some((128, 128)),
        );
        says(&machine("0::/\n", UNIFIED, &files), Some((128, 128)));
    }
}
