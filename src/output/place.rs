//! Checks that files can be created in the output's place, without creating one.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statfs};
use rustix::io::Errno;

use super::folder::Places;
use crate::error::{Error, Kind, Result};

/// The file systems that show the kernel's own state: root may "write" there, but nobody can create
/// files.
const KERNEL_FILE_SYSTEMS: [(u64, &str); 5] = [
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x1cd1, "devpts"),
];

/// Checks that the output's folder, or the nearest one that exists above it, takes new files.
///
/// # Errors
///
/// [`Kind::Io`] naming the output and why nothing can be written there.
pub(super) fn check_writable(places: &Places) -> Result<()> {
    let place = places.folder();
    let folder = nearest(&place)?;
    if let Ok(found) = statfs(&folder)
        && let Some(kind) = kernel_file_system(found.f_type)
    {
        return Err(unwritable(
            places,
            format!("nobody can make files there: it is the kernel's {kind}"),
        ));
    }
    match access(&folder, Access::WRITE_OK | Access::EXEC_OK) {
        // Without this system call nothing is known, and the first write will tell.
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(error) => Err(unwritable(places, std::io::Error::from(error).to_string())),
    }
}

fn unwritable(places: &Places, cause: String) -> Error {
    Error::new(Kind::Io, "cannot write to", places.out().display(), cause)
        .with_hint("choose an output in a folder that you may write to")
}

fn kernel_file_system(magic: impl TryInto<u64>) -> Option<&'static str> {
    let magic = magic.try_into().ok()?;
    KERNEL_FILE_SYSTEMS
        .iter()
        .find(|(known, _)| *known == magic)
        .map(|(_, name)| *name)
}

/// Returns the nearest existing folder on the way up from `path`, `path` itself included.
pub(super) fn nearest(path: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    })
    .map_err(|error| Error::io("cannot examine", path, error))?;
    Ok(absolute
        .ancestors()
        .find(|folder| folder.exists())
        .unwrap_or(Path::new("/"))
        .to_owned())
}
