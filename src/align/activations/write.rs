//! A safetensors file of f32 matrices that are written a few rows at a time.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::checkpoint::create_anew;
use crate::error::{Error, Result};

const WHAT: &str = "cannot write activations";

/// A file that is still being written; dropping this before the end removes it.
pub struct Writer {
    path: PathBuf,
    part: PathBuf,
    file: File,
    /// The first byte of each matrix, and the bytes of one of its rows.
    tensors: Vec<(u64, u64)>,
    is_finished: bool,
}

impl Writer {
    /// Writes the header of a file of these matrices, [rows, columns].
    ///
    /// # Errors
    ///
    /// Fails if writing fails.
    pub fn create(
        path: &Path,
        matrices: impl Iterator<Item = (String, [u64; 2])>,
        notes: &IndexMap<String, String>,
    ) -> Result<Self> {
        let (text, mut tensors, end) = header(matrices, notes);
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let part = PathBuf::from(name);
        let failed = |error| Error::io(WHAT, path, error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let len = text.len() as u64;
        let data = 8 + len;
        tensors.iter_mut().for_each(|(start, _)| *start += data);
        let file = create_anew(&part).map_err(failed)?;
        let writer = Self {
            path: path.to_owned(),
            part,
            file,
            tensors,
            is_finished: false,
        };
        writer.file.set_len(data + end).map_err(failed)?;
        let written = writer.file.write_all_at(&len.to_le_bytes(), 0);
        written
            .and_then(|()| writer.file.write_all_at(&text, 8))
            .map_err(failed)?;
        Ok(writer)
    }

    /// Writes rows of matrix `tensor` from row `first` on.
    ///
    /// # Errors
    ///
    /// Fails if writing fails.
    pub fn write(&mut self, tensor: usize, first: u64, rows: &[f32]) -> Result<()> {
        let (start, row) = self.tensors[tensor];
        // The file is little-endian on every machine.
        let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.file
            .write_all_at(&bytes, start + first * row)
            .map_err(|error| Error::io(WHAT, &self.path, error))
    }

    /// Makes the file durable and gives it its name.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be synced or renamed.
    pub fn finish(mut self) -> Result<()> {
        let failed = |error| Error::io(WHAT, &self.path, error);
        self.file.sync_all().map_err(failed)?;
        fs::rename(&self.part, &self.path).map_err(failed)?;
        self.is_finished = true;
        let folder = self
            .path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            // If removing the file fails too, nothing is left to try.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Returns the text of a header, for each matrix its start in the data and the bytes of a row, and
/// the end of the data.
fn header(
    matrices: impl Iterator<Item = (String, [u64; 2])>,
    notes: &IndexMap<String, String>,
) -> (Vec<u8>, Vec<(u64, u64)>, u64) {
    let mut header = Map::new();
    let mut metadata = json!({ "format": "thalweg-activations" });
    notes
        .iter()
        .for_each(|(key, value)| metadata[key] = value.as_str().into());
    header.insert("__metadata__".into(), metadata);
    let (mut tensors, mut end) = (Vec::new(), 0);
    for (name, [rows, columns]) in matrices {
        let start = end;
        let row = columns * size_of::<f32>() as u64;
        end += rows * row;
        header.insert(
            name,
            json!({ "dtype": "F32", "shape": [rows, columns], "data_offsets": [start, end] }),
        );
        tensors.push((start, row));
    }
    let mut text = Value::from(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    (text, tensors, end)
}
