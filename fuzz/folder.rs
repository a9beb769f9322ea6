//! A folder for the files of one fuzzing process.

use std::path::Path;

/// Calls `entry` with a folder of this process, below the one that `scripts/check/fuzz.sh` makes
/// and removes.
pub fn with_folder(entry: impl FnOnce(&Path)) {
    let root = std::env::var_os("THALWEG_FUZZ_FOLDER").map_or_else(std::env::temp_dir, Into::into);
    let folder = root.join(format!("thalweg-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a writable folder");
    entry(&folder);
}
