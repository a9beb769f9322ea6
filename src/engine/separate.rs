//! Keeps the output out of the inputs: a merge into a folder that it reads from would destroy its
//! inputs.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};

/// Refuses an output folder that is an input's folder, lies in one, or holds a weight file of one.
///
/// Symbolic links are followed, in the folder's path as in the files'.
///
/// # Errors
///
/// [`Kind::Usage`] with the input in question.
pub fn refuse_inputs_folder<'a>(
    inputs: impl IntoIterator<Item = &'a Checkpoint>,
    out: &Path,
) -> Result<()> {
    let examined =
        |path: &Path| real(path).map_err(|error| Error::io("cannot examine", path, error));
    let out_real = examined(out)?;
    for input in inputs {
        let refuse = |cause: String| {
            Err(
                Error::new(Kind::Usage, "cannot write to folder", out.display(), cause)
                    .with_hint("inputs are never written to; choose a folder outside of them"),
            )
        };
        if let Some(folder) = input.folder() {
            let folder_real = examined(folder)?;
            if out_real == folder_real {
                return refuse(format!("it is the input {}", input.root().display()));
            }
            if out_real.starts_with(&folder_real) {
                return refuse(format!("it lies in the input {}", input.root().display()));
            }
        }
        for file in input.files() {
            // The folder of the name, and the folder of the bytes.
            let named = examined(file.path.parent().unwrap_or(Path::new("")))?;
            let stored = examined(&file.path)?;
            if stored == out_real {
                return refuse(format!("it is the input file {}", file.path.display()));
            }
            if named == out_real || stored.parent() == Some(&out_real) {
                return refuse(format!("the input file {} lies in it", file.path.display()));
            }
        }
    }
    Ok(())
}

/// Resolves the links of a path, even if its last parts do not exist yet.
fn real(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    })?;
    let mut missing = Vec::new();
    for ancestor in absolute.ancestors() {
        match ancestor.canonicalize() {
            Ok(found) => {
                return Ok(missing
                    .into_iter()
                    .rev()
                    .fold(found, |path, name| path.join(name)));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // A `..` after a missing folder cannot be followed, and nothing can be created there
            // either.
            Err(error) => missing.push(ancestor.file_name().ok_or(error)?),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_path_is_followed_as_far_as_it_is_there() {
        let root = tempfile::tempdir().expect("temporary folder");
        let root = root.path().canonicalize().expect("there");
        fs::create_dir(root.join("a")).expect("made");
        symlink("a", root.join("link")).expect("linked");
        assert_eq!(
            real(&root.join("link/b/c")).expect("no failure"),
            root.join("a/b/c")
        );
        assert_eq!(
            real(&root.join("a/../link")).expect("no failure"),
            root.join("a")
        );
        assert!(real(&root.join("b/../a")).is_err());
        symlink("loop", root.join("loop")).expect("linked");
        assert!(real(&root.join("loop")).is_err());
    }
}
