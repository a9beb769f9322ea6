//! A folder for the files of one fuzzing process.

use std::path::Path;

/// Calls `entry` with a folder of this process, in memory where the system has such.
pub fn with_folder(entry: impl FnOnce(&Path)) {
    let in_memory = Path::new("/dev/shm");
    let root = if in_memory.is_dir() { in_memory.to_owned() } else { std::env::temp_dir() };
    let folder = root.join(format!("thalweg-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a writable folder");
    entry(&folder);
}
