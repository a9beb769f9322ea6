//! Opens only plain files: a named pipe would block, a device would be read without end, and a link
//! would lead writes elsewhere.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file to read, also through links; refuses anything else without waiting for it.
///
/// # Errors
///
/// The operating system's errors, and [`io::ErrorKind::InvalidInput`] for anything but a regular
/// file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(not_regular())
    }
}

/// Creates a new file, in place of one that an unfinished run may have left; refuses a link or a
/// device there.
///
/// # Errors
///
/// The operating system's errors, and [`io::ErrorKind::InvalidInput`] for anything but a regular
/// file.
pub fn create_anew(path: &Path) -> io::Result<File> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => return Err(not_regular()),
        Ok(_) => fs::remove_file(path)?,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
}

fn not_regular() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
}
