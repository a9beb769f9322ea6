//! Checks that the files in this program's places are its own: plain files in real folders. Through
//! a link a run would write, cut or remove files elsewhere; on a pipe it would wait for ever.
//!
//! The output folder itself may be a link to a folder: the user wants the output there. Below it no
//! writer follows links.

use std::fs::{self, FileType};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path};

use super::finish::SideFile;
use super::folder::Places;
use crate::error::{Error, Kind, Result};
use crate::plan::layout::Layout;

/// The action that fails when something else is in the place.
const WHAT: &str = "cannot write to";

/// Refuses a work folder that is not a folder, or that holds something no run of this program puts
/// there.
///
/// # Errors
///
/// [`Kind::Occupied`] with the first such thing.
pub(super) fn check_work(places: &Places) -> Result<()> {
    check_root(places.out())?;
    if !check_folder(&places.work())? {
        return Ok(());
    }
    for entry in entries(&places.work())? {
        let path = places.work().join(&entry);
        if places.is_work_folder(&path) {
            check_below(&path)?;
        } else if !places.is_work_file(&path) {
            return Err(not_ours(&path, "no run of this program has put it there"));
        } else {
            check_file(&path)?;
        }
    }
    Ok(())
}

/// Refuses a link, a folder or a device under the name of a shard, the index or the manifest.
///
/// # Errors
///
/// [`Kind::Occupied`] with the first such thing.
pub(super) fn check_finished(places: &Places, layout: &Layout) -> Result<()> {
    let indexes = layout.index_names();
    for name in layout
        .shards()
        .iter()
        .map(|shard| &shard.name)
        .chain(&indexes)
    {
        if name.contains('/') {
            check_side(places, Path::new(name))?;
        } else {
            check_file(&places.finished(name))?;
        }
    }
    check_file(&places.manifest()).map(drop)
}

/// Refuses a manifest that is not a file, before anything reads it.
///
/// # Errors
///
/// [`Kind::Occupied`] when it is not a file.
pub(super) fn check_manifest(places: &Places) -> Result<()> {
    let is_file = |path: &Path| fs::metadata(path).is_ok_and(|there| there.is_file());
    if is_file(&places.manifest()) {
        Ok(())
    } else {
        check_file(&places.manifest()).map(drop)
    }
}

/// Refuses anything but a plain file at `name` in a folder of ours, and anything but folders on the
/// way to it.
///
/// # Errors
///
/// [`Kind::Occupied`] with the first such thing.
pub(super) fn check_side(places: &Places, name: &Path) -> Result<()> {
    let mut at = places.folder().to_owned();
    let parents = name.parent().into_iter().flat_map(Path::components);
    for part in parents.filter(|part| matches!(part, Component::Normal(_))) {
        at.push(part);
        if !check_folder(&at)? {
            return Ok(());
        }
    }
    check_file(&places.side(name)).map(drop)
}

/// Refuses a link or a device in the place of an output's side files, before hours are spent on its
/// weights.
///
/// # Errors
///
/// [`Kind::Occupied`] with the first such thing.
pub fn check_sides(out: &Path, sides: &[SideFile]) -> Result<()> {
    let places = Places::new(out);
    sides
        .iter()
        .try_for_each(|side| check_side(&places, side.name()))
}

/// Tells if a real folder is there; refuses anything else of that name.
///
/// # Errors
///
/// [`Kind::Occupied`] when it is a link or not a folder.
pub fn check_folder(path: &Path) -> Result<bool> {
    match kind_of(path)? {
        None => Ok(false),
        Some(kind) if kind.is_dir() => Ok(true),
        Some(kind) => Err(not_ours(
            path,
            &format!("it is {}, wanted a folder", called(kind)),
        )),
    }
}

/// Tells if a plain file is there; refuses anything else of that name.
pub(super) fn check_file(path: &Path) -> Result<bool> {
    match kind_of(path)? {
        None => Ok(false),
        Some(kind) if kind.is_file() => Ok(true),
        Some(kind) => Err(not_ours(
            path,
            &format!("it is {}, wanted a file", called(kind)),
        )),
    }
}

/// Refuses an output that is a dangling link: nothing is created at its target.
fn check_root(out: &Path) -> Result<()> {
    match kind_of(out)? {
        Some(kind) if kind.is_symlink() && !out.exists() => {
            Err(not_ours(out, "it is a link that leads nowhere"))
        }
        _ => Ok(()),
    }
}

/// Refuses anything in a folder of ours, at any depth, but folders and plain files.
fn check_below(folder: &Path) -> Result<()> {
    check_folder(folder)?;
    for name in entries(folder)? {
        let path = folder.join(name);
        match kind_of(&path)? {
            Some(kind) if kind.is_dir() => check_below(&path)?,
            _ => _ = check_file(&path)?,
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<std::ffi::OsString>> {
    let failed = |error| Error::io("cannot list folder", folder, error);
    let names = fs::read_dir(folder)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.file_name()));
    let mut names = names.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    names.sort();
    Ok(names)
}

/// Returns the file type at `path`, without following a link; `None` when nothing is there.
fn kind_of(path: &Path) -> Result<Option<FileType>> {
    match fs::symlink_metadata(path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(Error::io("cannot examine", path, error)),
        Ok(metadata) => Ok(Some(metadata.file_type())),
    }
}

fn called(kind: FileType) -> &'static str {
    match kind {
        _ if kind.is_symlink() => "a link, which is not followed",
        _ if kind.is_dir() => "a folder",
        _ if kind.is_file() => "a file",
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    }
}

fn not_ours(path: &Path, cause: &str) -> Error {
    Error::new(Kind::Occupied, WHAT, path.display(), cause)
        .with_hint("nothing was touched; move it away, or choose another output")
}
