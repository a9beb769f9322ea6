//! Compressed shards, `.safetensors.zst`.
//!
//! There are two kinds: files with a seek table in the [zstd seekable format], whose frames are
//! decoded as needed, and plain streams, which are expanded once into a scratch file.
//! [`SeekableWriter`] writes the first kind; any zstd decoder reads it.
//!
//! [zstd seekable format]: https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

mod seekable;
mod stream;
mod write;

use std::io::{self, BufReader, Read};
use std::path::Path;

pub(super) use seekable::SeekableSource;
pub(super) use stream::{StreamSource, copy_name};
pub use write::{FRAME_BYTES, SeekableWriter, compress_frame, compress_seekable};

use super::Container;
use super::source::Input;
use crate::error::{Error, Kind, Result};

/// The first bytes of a zstd frame (RFC 8878, section 3.1.1).
const FRAME_MAGIC: u32 = 0xFD2F_B528;
/// The first bytes of a skippable frame, without the last four bits (RFC 8878, section 3.1.2).
const SKIPPABLE_MAGIC: u32 = 0x184D_2A50;
/// The largest window that is accepted without a look at the frame, as a power of two: all levels
/// but the very highest stay below.
const USUAL_WINDOW_LOG: u32 = 23;
/// The largest window that is accepted, as a power of two: 128 MiB, the default limit of `zstd -d`.
const MAX_WINDOW_LOG: u32 = 27;
/// The memory of a streaming decoder beside its window, in bytes: block buffers, tables, the input
/// buffer.
const DECODER_BYTES: u64 = 1 << 20;
/// The most skippable frames in front of the first real one.
const MAX_LEADING_SKIPPABLE: usize = 16;

/// Determines the container of a file by its first and last bytes.
///
/// A safetensors file cannot begin like a zstd frame: its header would exceed the limit.
pub(super) fn detect(input: &Input) -> Result<Container> {
    let mut magic = [0; 4];
    let len = input.identity.len;
    let read = |bytes: &mut [u8; 4], at: u64| {
        input
            .read_exact_at(bytes, at)
            .map_err(|error| Error::io("cannot read", &input.path, error))
    };
    if len >= 4 {
        read(&mut magic, 0)?;
    }
    let first = u32::from_le_bytes(magic);
    if first != FRAME_MAGIC && first & !0xF != SKIPPABLE_MAGIC {
        if input
            .path
            .extension()
            .is_some_and(|extension| extension == "zst")
        {
            let cause = "named .zst, but does not begin with a zstd frame";
            return Err(Error::new(
                Kind::Input,
                "cannot read header",
                input.path.display(),
                cause,
            ));
        }
        return Ok(Container::Plain);
    }
    read(&mut magic, len - 4)?;
    let seekable = u32::from_le_bytes(magic) == zeekstd::SEEKABLE_MAGIC_NUMBER;
    Ok(if seekable {
        Container::ZstdSeekable
    } else {
        Container::ZstdStream
    })
}

/// Decodes the file's bytes from the start, in bounded memory.
pub(super) fn decoder(input: &Input) -> io::Result<impl Read> {
    let reader = FromStart { input, at: 0 };
    let mut decoder =
        zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(128 << 10, reader))?;
    decoder.window_log_max(window_log(input)?)?;
    Ok(decoder)
}

/// Returns the most memory that [`decoder`] can take for `input`, in bytes.
fn decoder_bytes(input: &Input) -> u64 {
    (1 << window_log(input).unwrap_or(MAX_WINDOW_LOG)) + DECODER_BYTES
}

/// Returns the window that the decoder must allow, as a power of two: that of the first frame, or
/// the usual one if that is larger.
fn window_log(input: &Input) -> io::Result<u32> {
    let mut at = 0;
    for _ in 0..MAX_LEADING_SKIPPABLE {
        let mut head = [0; 14];
        let read = input.read_at(&mut head, at)?;
        let word = |from: usize| {
            u32::from_le_bytes([head[from], head[from + 1], head[from + 2], head[from + 3]])
        };
        if read < 8 || word(0) & !0xF != SKIPPABLE_MAGIC {
            let window = window_bytes(&head[4..read.max(4)]).unwrap_or(0);
            let log = window
                .checked_next_power_of_two()
                .map_or(u32::MAX, u64::ilog2);
            if log > MAX_WINDOW_LOG {
                let cause = format!(
                    "decoding needs a window of {window} bytes, at most {} are granted",
                    1u64 << 27
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
            }
            return Ok(log.max(USUAL_WINDOW_LOG));
        }
        at += 8 + u64::from(word(4));
    }
    Ok(USUAL_WINDOW_LOG)
}

/// Reads the window size, in bytes, from a frame header, the bytes after the magic number (RFC
/// 8878, section 3.1.1.1).
fn window_bytes(header: &[u8]) -> Option<u64> {
    let (descriptor, rest) = header.split_first()?;
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let window = rest.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let field = rest.get(dictionary_bytes..)?;
    match descriptor >> 6 {
        0 => field.first().map(|size| u64::from(*size)),
        1 => field
            .first_chunk()
            .map(|size| u64::from(u16::from_le_bytes(*size)) + 256),
        2 => field
            .first_chunk()
            .map(|size| u64::from(u32::from_le_bytes(*size))),
        _ => field.first_chunk().map(|size| u64::from_le_bytes(*size)),
    }
}

/// Reads a file from its start without moving the file's own cursor, which other readers may use.
struct FromStart<'a> {
    input: &'a Input,
    at: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Makes the error for damaged compressed data.
fn damaged(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Input, "cannot decompress", path.display(), cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_as_the_standard_says() {
        assert_eq!(window_bytes(&[0, 0]), Some(1024));
        assert_eq!(window_bytes(&[0, 13 << 3]), Some(8 << 20));
        assert_eq!(window_bytes(&[0, (13 << 3) | 4]), Some(12 << 20));
        assert_eq!(window_bytes(&[0x20, 7]), Some(7));
        assert_eq!(window_bytes(&[0x61, 9, 1, 0]), Some(257));
        assert_eq!(window_bytes(&[0xA0, 0, 0, 1, 0]), Some(65536));
        assert_eq!(window_bytes(&[0xE0, 0, 0, 0, 0, 1, 0, 0, 0]), Some(1 << 32));
        for cut in [&[][..], &[0], &[0x20], &[0xE0, 0, 0]] {
            assert_eq!(window_bytes(cut), None);
        }
    }
}
