//! Compressed files with a seek table: only the frames that cover a range are decoded.
//!
//! The table is read by `zeekstd`; this module decodes frames, one at a time into a buffer of the
//! length in the table. (The streaming decoder of `zeekstd` never stops on a file that ends too
//! early.)

use std::io::BufReader;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use zeekstd::{SEEK_TABLE_INTEGRITY_SIZE, SEEKABLE_MAGIC_NUMBER, SeekTable};
use zstd::bulk::Decompressor;

use super::damaged;
use crate::checkpoint::source::{Buffer, Input, Source, Window, within};
use crate::error::{Error, Result};

/// The largest frame that is decoded, in bytes, compressed or not.
const MAX_FRAME_BYTES: u64 = 64 << 20;
/// The most frames: 8 TiB of data in the usual frames, 64 MiB of table in memory.
const MAX_FRAMES: u64 = 4 << 20;
/// The memory of the table for each frame, in bytes.
const TABLE_ENTRY_BYTES: u64 = 16;
/// The memory of a decoding context (`ZSTD_DCtx`), in bytes.
const CONTEXT_BYTES: u64 = 192 << 10;

/// A compressed input file with random access.
pub(in crate::checkpoint) struct SeekableSource {
    input: Input,
    table: SeekTable,
    /// `None` until the first frame is decoded, and while the source rests.
    decoder: Mutex<Option<Decoder>>,
}

/// The state of a decoding thread; one decodes at a time.
struct Decoder {
    context: Decompressor<'static>,
    compressed: Vec<u8>,
    /// The frame that was last used in part, with its bytes below: windows end inside frames.
    kept: Option<u32>,
    plain: Vec<u8>,
}

impl SeekableSource {
    /// Opens the file and checks its seek table against the file's length.
    pub fn new(input: Input) -> Result<Self> {
        let table = read_table(&input)?;
        Ok(Self {
            input,
            table,
            decoder: Mutex::default(),
        })
    }

    /// Returns the range of frame `index` in the compressed file and in the data.
    fn frame(&self, index: u32) -> Result<(Range<u64>, Range<u64>)> {
        let place = || {
            let compressed =
                self.table.frame_start_comp(index)?..self.table.frame_end_comp(index)?;
            Ok((
                compressed,
                self.table.frame_start_decomp(index)?..self.table.frame_end_decomp(index)?,
            ))
        };
        place().map_err(|error: zeekstd::Error| {
            damaged(&self.input.path, format!("frame {index}: {error}"))
        })
    }

    /// Copies the part of frame `index` in `range` to its place in `output`.
    fn copy_frame(
        &self,
        decoder: &mut Decoder,
        index: u32,
        range: &Range<u64>,
        output: &mut [u8],
    ) -> Result<u64> {
        let (compressed, data) = self.frame(index)?;
        let part = data.start.max(range.start)..data.end.min(range.end);
        let offset = |at: u64, from: u64| {
            usize::try_from(at - from).map_err(|error| damaged(&self.input.path, error))
        };
        let target = &mut output[offset(part.start, range.start)?..offset(part.end, range.start)?];
        if part == data {
            decoder.decode(&self.input, index, &compressed, target)?;
        } else {
            if decoder.kept != Some(index) {
                let mut plain = std::mem::take(&mut decoder.plain);
                decoder.kept = None;
                plain.resize(offset(data.end, data.start)?, 0);
                let decoded = decoder.decode(&self.input, index, &compressed, &mut plain);
                decoder.plain = plain;
                decoded?;
                decoder.kept = Some(index);
            }
            target.copy_from_slice(
                &decoder.plain[offset(part.start, data.start)?..offset(part.end, data.start)?],
            );
        }
        Ok(part.end)
    }
}

impl Decoder {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            context: Decompressor::new()?,
            compressed: Vec::new(),
            kept: None,
            plain: Vec::new(),
        })
    }

    /// Decodes one frame; its data must be exactly as long as `output`.
    fn decode(
        &mut self,
        input: &Input,
        index: u32,
        place: &Range<u64>,
        output: &mut [u8],
    ) -> Result<()> {
        let bad = |cause: String| {
            damaged(
                &input.path,
                format!("frame {index} at byte {}: {cause}", place.start),
            )
        };
        let len =
            usize::try_from(place.end - place.start).map_err(|error| bad(error.to_string()))?;
        self.compressed.resize(len, 0);
        input
            .read_exact_at(&mut self.compressed, place.start)
            .map_err(|error| Error::io("cannot read", &input.path, error))?;
        let wanted = output.len();
        let decoded = self
            .context
            .decompress_to_buffer(&self.compressed, output)
            .map_err(|error| bad(error.to_string()))?;
        if decoded == wanted {
            return Ok(());
        }
        Err(bad(format!(
            "holds {decoded} bytes, the seek table says {wanted}"
        )))
    }
}

impl Source for SeekableSource {
    fn path(&self) -> &Path {
        &self.input.path
    }

    fn len(&self) -> u64 {
        self.table.size_decomp()
    }

    fn prefetch(&self, range: Range<u64>) {
        let first = self.frame(self.table.frame_index_decomp(range.start));
        let last = self.frame(self.table.frame_index_decomp(range.end.saturating_sub(1)));
        if let (Ok((first, _)), Ok((last, _))) = (first, last) {
            self.input.prefetch(&(first.start..last.end));
        }
    }

    fn load(&self, range: Range<u64>) -> Result<Window> {
        within(&range, self.len(), &self.input.path)?;
        self.input.unchanged()?;
        let mut output = Buffer::zeroed(&range, &self.input.path)?;
        let mut held = self.decoder.lock().unwrap_or_else(PoisonError::into_inner);
        let decoder = match &mut *held {
            Some(decoder) => decoder,
            none => none.insert(
                Decoder::new()
                    .map_err(|error| Error::io("cannot decompress", &self.input.path, error))?,
            ),
        };
        let mut index = self.table.frame_index_decomp(range.start);
        let mut at = range.start;
        while at < range.end {
            at = self
                .copy_frame(decoder, index, &range, &mut output)?
                .max(at);
            index += 1;
        }
        self.input.unchanged()?;
        Ok(output.into())
    }

    fn overhead_bytes(&self) -> u64 {
        let frames = self.table.max_frame_size_comp() + self.table.max_frame_size_decomp();
        frames + u64::from(self.table.num_frames()) * TABLE_ENTRY_BYTES + CONTEXT_BYTES
    }

    fn rest(&self) {
        *self.decoder.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Reads the seek table and refuses one that does not account for every byte of the file.
fn read_table(input: &Input) -> Result<SeekTable> {
    let bad = |cause: String| {
        damaged(&input.path, cause).with_hint("compress the file again, or expand it")
    };
    let len = input.identity.len;
    let mut footer = [0; SEEK_TABLE_INTEGRITY_SIZE];
    let footer_at = len
        .checked_sub(footer.len() as u64)
        .ok_or_else(|| bad(format!("no seek table in {len} bytes")))?;
    input
        .read_exact_at(&mut footer, footer_at)
        .map_err(|error| Error::io("cannot read", &input.path, error))?;
    let [a, b, c, d, descriptor, m0, m1, m2, m3] = footer;
    if u32::from_le_bytes([m0, m1, m2, m3]) != SEEKABLE_MAGIC_NUMBER {
        return Err(bad("no seek table at the end".into()));
    }
    // NOTE: checked before the table is parsed, because the parser reserves memory for the claimed
    // number of frames.
    let frames = u64::from(u32::from_le_bytes([a, b, c, d]));
    let entry_bytes = if descriptor & 0x80 == 0 { 8 } else { 12 };
    let table_bytes = frames * entry_bytes + 8 + footer.len() as u64;
    if frames == 0 || frames > MAX_FRAMES || table_bytes > len {
        return Err(bad(format!(
            "seek table of {frames} frames in a file of {len} bytes"
        )));
    }
    let file = input
        .file()
        .map_err(|error| Error::io("cannot read", &input.path, error))?;
    let table = SeekTable::from_seekable(&mut BufReader::new(&*file))
        .map_err(|error| bad(format!("seek table: {error}")))?;
    if table.size_comp() + table_bytes != len {
        let cause = format!(
            "seek table accounts for {} bytes, file has {len}",
            table.size_comp() + table_bytes
        );
        return Err(bad(cause));
    }
    let biggest = table
        .max_frame_size_comp()
        .max(table.max_frame_size_decomp());
    if biggest > MAX_FRAME_BYTES {
        return Err(bad(format!(
            "frame of {biggest} bytes, at most {MAX_FRAME_BYTES} are decoded"
        )));
    }
    Ok(table)
}
