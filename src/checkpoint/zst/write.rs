//! Writes seekable compressed files: independent frames, then a table of their places.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use zeekstd::SeekTable;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

use crate::error::{Error, Result};

/// The bytes of data in one frame, the least that a reader decodes.
pub const FRAME_BYTES: usize = 2 << 20;

/// Compresses `data` into one frame that carries its length and a checksum.
///
/// The bytes depend only on data, level and the bundled zstd; frames may be compressed in any order
/// on any thread.
///
/// # Errors
///
/// An unsupported level, or no memory.
pub fn compress_frame(data: &[u8], level: i32) -> io::Result<Vec<u8>> {
    if !zstd::compression_level_range().contains(&level) {
        let range = zstd::compression_level_range();
        let cause = format!(
            "compression level {level}, there are {} to {}",
            range.start(),
            range.end()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    }
    let mut compressor = Compressor::new(level)?;
    compressor.set_parameter(CParameter::ChecksumFlag(true))?;
    compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
    compressor.compress(data)
}

/// Writes frames one after another and, at the end, the seek table in its skippable frame.
///
/// The result is read by every zstd decoder. A file without its table, because
/// [`SeekableWriter::finish`] was not called, is a plain stream.
pub struct SeekableWriter<W> {
    writer: W,
    table: SeekTable,
}

impl<W: Write> SeekableWriter<W> {
    /// Creates a writer at the start of a file.
    pub fn new(writer: W) -> Self {
        Self {
            writer,
            table: SeekTable::new(),
        }
    }

    /// Appends a frame from [`compress_frame`] that holds `data_len` bytes of data.
    ///
    /// # Errors
    ///
    /// A failed write, a frame of 4 GiB or more, or more frames than the format allows.
    pub fn push(&mut self, frame: &[u8], data_len: usize) -> io::Result<()> {
        let size = |len: usize| u32::try_from(len).map_err(io::Error::other);
        self.table
            .log_frame(size(frame.len())?, size(data_len)?)
            .map_err(io::Error::other)?;
        self.writer.write_all(frame)
    }

    /// Returns the compressed bytes so far, without the table.
    pub fn compressed_bytes(&self) -> u64 {
        self.table.size_comp()
    }

    /// Writes the table and returns the writer; the caller flushes and syncs it.
    ///
    /// # Errors
    ///
    /// A failed write.
    pub fn finish(mut self) -> io::Result<W> {
        let mut serializer = self.table.into_serializer();
        let mut table = vec![0; serializer.encoded_len()];
        let written = serializer.write_into(&mut table);
        debug_assert_eq!(
            written,
            table.len(),
            "the table has the length it announces"
        );
        self.writer.write_all(&table)?;
        Ok(self.writer)
    }
}

/// Compresses `src` into the new file `dst` and syncs it; returns its length in bytes.
///
/// # Errors
///
/// Fails when `dst` exists, when reading or writing fails, or when the level is unsupported.
pub fn compress_seekable(src: &Path, dst: &Path, level: i32) -> Result<u64> {
    let input = File::open(src).map_err(|error| Error::io("cannot open", src, error))?;
    let output = OpenOptions::new().write(true).create_new(true).open(dst);
    let output = output.map_err(|error| Error::io("cannot create", dst, error))?;
    let broken = |error| Error::io("cannot write", dst, error);
    let mut writer = SeekableWriter::new(BufWriter::new(output));
    let mut data = Vec::with_capacity(FRAME_BYTES);
    loop {
        data.clear();
        let frame = (&input).take(FRAME_BYTES as u64).read_to_end(&mut data);
        frame.map_err(|error| Error::io("cannot read", src, error))?;
        if data.is_empty() {
            break;
        }
        writer
            .push(&compress_frame(&data, level).map_err(broken)?, data.len())
            .map_err(broken)?;
    }
    let output = writer.finish().map_err(broken)?;
    let output = output
        .into_inner()
        .map_err(|error| broken(error.into_error()))?;
    output.sync_all().map_err(broken)?;
    Ok(output.metadata().map_err(broken)?.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_into_a_stream_that_plain_zstd_decodes() {
        let data: Vec<u8> = (0u32..10_000)
            .flat_map(|i| (i % 509).to_le_bytes())
            .collect();
        let mut writer = SeekableWriter::new(Vec::new());
        for chunk in data.chunks(7_000) {
            writer
                .push(&compress_frame(chunk, 3).expect("compress"), chunk.len())
                .expect("push");
        }
        let compressed = writer.compressed_bytes();
        let file = writer.finish().expect("finish");
        assert_eq!(zstd::decode_all(&*file).expect("decode"), data);
        assert_eq!(file.len() as u64, compressed + 8 * 6 + 17);
        let mut plain = Vec::new();
        let mut decoder =
            zeekstd::Decoder::new(zeekstd::BytesWrapper::new(&file)).expect("seek table");
        io::Read::read_to_end(&mut decoder, &mut plain).expect("decode");
        assert_eq!(plain, data);
    }

    #[test]
    fn a_level_that_does_not_exist_is_refused() {
        assert!(compress_frame(b"x", 23).is_err());
        assert!(compress_frame(b"x", 19).is_ok());
    }
}
