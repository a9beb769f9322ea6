//! Converts a torch checkpoint to one safetensors file, tensor by tensor, in bounded memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::archive::{Archive, Member};
use super::gather::Strided;
use super::{TorchFile, TorchTensor};
use crate::error::{Error, Kind, Result};

const READING: &str = "cannot read torch checkpoint";
const WRITING: &str = "cannot convert torch checkpoint";
/// The longest header that safetensors readers accept, in bytes.
const MAX_HEADER: usize = 100_000_000;
/// The most that views may repeat the elements of storages; larger files only fill the disk.
const MAX_EXPANSION: u64 = 64;
/// Expansion up to this many bytes is always allowed.
const FREE_EXPANSION: u64 = 1 << 30;

impl TorchFile {
    /// Writes all tensors to a new safetensors file at `dst`, in the state dict's order, and
    /// returns its length in bytes. Tied tensors are written once each, as the format has no
    /// sharing.
    ///
    /// The file is written as `dst` with `.part` added, synced and renamed, so that `dst` is always
    /// whole. Memory stays within 20 MiB whatever the tensors' sizes. Compressed storages are
    /// inflated one at a time into an unnamed file beside `dst`.
    ///
    /// # Errors
    ///
    /// Fails when `dst` exists, when reading or writing fails, or when a compressed storage does
    /// not match its size or checksum.
    pub fn convert(&self, dst: &Path) -> Result<u64> {
        if dst.exists() {
            return Err(Error::new(
                Kind::Occupied,
                WRITING,
                dst.display(),
                "there is a file of that name already",
            ));
        }
        let header = self.header()?;
        let part = beside(dst, ".part");
        let written = self.write(&header, &part, dst);
        if written.is_err() {
            // The first error is returned; a part that cannot be removed is overwritten next time.
            let _ = fs::remove_file(&part);
        }
        written
    }

    fn write(&self, header: &[u8], part: &Path, dst: &Path) -> Result<u64> {
        let failed = |error| Error::io(WRITING, part, error);
        let mut out = File::create(part).map_err(failed)?;
        out.write_all(header).map_err(failed)?;
        let mut inflated = None;
        for tensor in &self.tensors {
            self.copy(tensor, &mut inflated, &mut out, part)?;
        }
        out.sync_all().map_err(failed)?;
        let bytes = out.metadata().map_err(failed)?.len();
        fs::rename(part, dst).map_err(|error| Error::io(WRITING, dst, error))?;
        Ok(bytes)
    }

    /// Returns the header of a conversion: its length in front, padded with spaces to a multiple of
    /// eight bytes.
    pub(in crate::checkpoint) fn header(&self) -> Result<Vec<u8>> {
        let refused = |cause: String| Error::new(Kind::Input, WRITING, self.path.display(), cause);
        let held: u64 = self.storages.iter().map(Member::bytes).sum();
        let most = held.saturating_mul(MAX_EXPANSION).max(FREE_EXPANSION);
        let mut entries = Map::new();
        entries.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut end = 0_u64;
        for tensor in &self.tensors {
            let start = end;
            end = end.saturating_add(tensor.bytes());
            if end > most {
                return Err(refused(format!(
                    "its tensors expand {held} bytes of storage to more than {most}"
                )));
            }
            let entry = json!({ "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end] });
            if entries.insert(tensor.name.clone(), entry).is_some() {
                return Err(refused(format!(
                    "a tensor has the reserved name {:?}",
                    tensor.name
                )));
            }
        }
        let mut text = Value::Object(entries).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        if text.len() > MAX_HEADER {
            return Err(refused(format!(
                "its header has {} bytes; at most {MAX_HEADER} are read",
                text.len()
            )));
        }
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.append(&mut text);
        Ok(header)
    }

    /// Appends the elements of `tensor` to `out`; `inflated` keeps the last used compressed
    /// storage.
    fn copy(
        &self,
        tensor: &TorchTensor,
        inflated: &mut Option<(usize, File)>,
        out: &mut File,
        part: &Path,
    ) -> Result<()> {
        let (file, start) = match &self.storages[tensor.storage] {
            Member::Stored(range) => (&self.file, range.start),
            Member::Deflated { index, bytes } => {
                if inflated
                    .as_ref()
                    .is_none_or(|(storage, _)| *storage != tensor.storage)
                {
                    *inflated = None;
                    *inflated = Some((tensor.storage, self.inflate(*index, *bytes, part)?));
                }
                let (_, file) = inflated.as_ref().expect("inflated just now");
                (file, 0)
            }
        };
        let width = tensor.dtype.bits() / 8;
        let view = Strided {
            file,
            start: start + tensor.offset * width,
            width,
            shape: &tensor.shape,
            strides: &tensor.strides,
        };
        view.gather(&mut |block| out.write_all(block).map_err(Failed::Writing))
            .map_err(|failed| match failed {
                Failed::Reading(error) => Error::io(READING, &self.path, error),
                Failed::Writing(error) => Error::io(WRITING, part, error),
            })
    }

    /// Returns an unnamed file with the content of the compressed member of number `index`.
    fn inflate(&self, index: usize, bytes: u64, part: &Path) -> Result<File> {
        let path = beside(part, ".inflated");
        let failed = |error| Error::io(WRITING, &path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(failed)?;
        // Without a name the file vanishes with its last handle, even if this process is killed.
        fs::remove_file(&path).map_err(failed)?;
        let mut archive =
            Archive::open(&self.file, u64::MAX).map_err(|fault| fault.on(&self.path))?;
        let written = archive
            .inflate(index, &mut file)
            .map_err(|fault| fault.on(&self.path))?;
        if written != bytes {
            let cause =
                format!("a compressed storage claims {bytes} bytes and inflates to {written}");
            return Err(Error::new(Kind::Input, READING, self.path.display(), cause));
        }
        Ok(file)
    }
}

/// Returns `path` with `suffix` added to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The side of a copy that failed.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Reading(error)
    }
}
