//! Compressed shards: compresses a whole shard into a seekable zstd file, frame by frame, and reads
//! it back.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::storage::{Storage, StorageFile};
use super::verify::ShardBytes;
use crate::checkpoint::{
    Checkpoint, FRAME_BYTES, Io, OpenOptions, SeekableWriter, Source, SourceOptions, compress_frame,
};
use crate::error::{Error, Kind, Result};

/// Runs `work` for each number below a count, on any threads, and returns when all are done.
pub type RunAll = dyn Fn(usize, &(dyn Fn(usize) + Sync)) + Send + Sync;

/// A callback that receives the number of bytes newly compressed, and returns false to stop.
pub type GoOn = dyn Fn(u64) -> bool + Send + Sync;

/// The workers that compress frames, with their number and a callback that can stop them.
#[derive(Clone)]
pub struct Packers {
    width: usize,
    run: Arc<RunAll>,
    go_on: Arc<GoOn>,
}

impl Packers {
    /// Creates packers that compress `width` frames at a time with `run`, while `go_on` returns
    /// true.
    pub fn new(width: usize, run: Arc<RunAll>, go_on: Arc<GoOn>) -> Self {
        Self {
            width: width.max(1),
            run,
            go_on,
        }
    }

    /// Creates packers that compress one frame at a time on the calling thread.
    pub(super) fn serial() -> Self {
        Self::new(
            1,
            Arc::new(|count, work| (0..count).for_each(work)),
            Arc::new(|_| true),
        )
    }

    /// Compresses each of `frames`; the bytes do not depend on width or threads.
    fn compress(&self, frames: &[Vec<u8>], level: i32) -> io::Result<Vec<Vec<u8>>> {
        let made: Vec<Mutex<Option<io::Result<Vec<u8>>>>> =
            frames.iter().map(|_| Mutex::default()).collect();
        (self.run)(frames.len(), &|number| {
            let packed = compress_frame(&frames[number], level);
            *made[number].lock().unwrap_or_else(PoisonError::into_inner) = Some(packed);
        });
        let lost = || {
            Err(io::Error::other(
                "a compressing thread ended without an answer; this is a bug",
            ))
        };
        made.into_iter()
            .map(|slot| {
                slot.into_inner()
                    .unwrap_or_else(PoisonError::into_inner)
                    .unwrap_or_else(lost)
            })
            .collect()
    }
}

/// Compresses the first `len` bytes of `shard` into the new file `to`, replacing an old one, and
/// syncs it. Returns its size in bytes.
///
/// # Errors
///
/// Fails when reading or writing fails, or when the packers are told to stop.
pub(super) fn pack(
    storage: &dyn Storage,
    shard: &dyn StorageFile,
    len: u64,
    to: &Path,
    level: i32,
    packers: &Packers,
) -> Result<u64> {
    if storage.len(to)?.is_some() {
        storage.remove(to)?;
    }
    let file = storage.create(to)?;
    let failed = |error: io::Error| Error::io("cannot compress into", to, error);
    let mut writer = SeekableWriter::new(Appender {
        file: file.as_ref(),
        at: 0,
    });
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let (mut at, mut done) = (0, 0);
    while at < len {
        if !(packers.go_on)(at - done) {
            return Err(Error::new(
                Kind::Interrupted,
                "stopped on request",
                to.file_stem().unwrap_or_default().to_string_lossy(),
                "it was being compressed; what was finished before stays",
            )
            .with_hint("run the same command again to go on from here")
            .resumable());
        }
        done = at;
        at = fill(shard, at, len, packers.width, &mut frames)?;
        for (packed, plain) in packers
            .compress(&frames, level)
            .map_err(failed)?
            .iter()
            .zip(&frames)
        {
            writer.push(packed, plain.len()).map_err(failed)?;
        }
    }
    (packers.go_on)(at - done);
    let size = writer.finish().map_err(failed)?.at;
    file.sync_data()?;
    Ok(size)
}

/// Reads the next frames, at most `width`; returns them with the offset of their end.
fn fill(
    shard: &dyn StorageFile,
    mut at: u64,
    len: u64,
    width: usize,
    frames: &mut Vec<Vec<u8>>,
) -> Result<u64> {
    let mut filled = 0;
    while filled < width && at < len {
        if frames.len() == filled {
            frames.push(Vec::new());
        }
        let bytes = usize::try_from(len - at)
            .unwrap_or(FRAME_BYTES)
            .min(FRAME_BYTES);
        frames[filled].resize(bytes, 0);
        shard.read_at(&mut frames[filled], at)?;
        at += bytes as u64;
        filled += 1;
    }
    frames.truncate(filled);
    Ok(at)
}

/// A writer at a file's end. The error type of [`io::Write`] cannot carry a path, so failures keep
/// only their text.
struct Appender<'a> {
    file: &'a dyn StorageFile,
    at: u64,
}

impl io::Write for Appender<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file
            .write_at(bytes, self.at)
            .map_err(|error| io::Error::other(error.to_string()))?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A finished compressed shard, read as if it were uncompressed.
pub(super) struct PackedShard {
    source: Arc<dyn Source>,
}

impl PackedShard {
    /// Opens the compressed shard at `path`.
    ///
    /// # Errors
    ///
    /// Fails when it is missing, or not a compressed safetensors file with a seek table.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let options = SourceOptions {
            io: Io::Positioned,
            scratch: None,
        };
        // The inputs were already checked for quantised codes, and a single shard is wanted here.
        let as_it_is = OpenOptions {
            raw_codes: true,
            shard_alone: true,
            ..OpenOptions::default()
        };
        let source = Checkpoint::open_with(path, &as_it_is)?.open_file(0, &options)?;
        Ok(Self { source })
    }
}

impl ShardBytes for PackedShard {
    fn working_bytes(&self) -> u64 {
        self.source.overhead_bytes()
    }

    fn size(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let len = u64::try_from(buffer.len()).expect("a length fits 64 bits");
        buffer.copy_from_slice(&self.source.load(offset..offset.saturating_add(len))?);
        Ok(())
    }
}
