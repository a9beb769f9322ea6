//! Writes shards to the disk directly, past the page cache.
//!
//! A shard written through the page cache costs a copy, evicts inputs that are about to be read
//! again, and is flushed in bursts. A direct write costs only the disk's time. But its offset,
//! length and memory address must be multiples of a block, and those of tensors are not; so
//! consecutive bytes are gathered in an aligned stage, and whole blocks of it are written directly.
//! Large pieces with the same alignment in memory as in the file (`budget::Buffers` provides it)
//! are written without the stage, which then holds only the blocks that they share with their
//! neighbours. At a sync the last partial block goes through the page cache; when it is full, it is
//! written again, directly.

use std::fs::{self, File};
use std::io::IoSlice;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;
use rustix::fs::OFlags;
use rustix::io::{Errno, pwritev};

use super::storage::{DiskFile, StorageFile};
use crate::budget::PAGE;
use crate::error::Result;

/// The unit of a direct write's offset, length and address, in bytes; enough for every disk in use.
const BLOCK: usize = PAGE;

/// The size of the stage, in bytes.
const STAGE_BYTES: usize = 4 << 20;

/// Aligned pieces below this size, in bytes, are gathered too: a request to the disk costs more
/// than a copy.
const LEAST_UNSTAGED_BYTES: usize = 256 << 10;

/// A file that is mostly written front to back.
pub(super) struct DirectFile {
    plain: DiskFile,
    state: Mutex<State>,
}

struct State {
    /// `None` where the file system does not take direct writes.
    direct: Option<File>,
    /// `None` while nothing is gathered.
    stage: Option<MmapMut>,
    /// The stage's offset in the file: a multiple of [`BLOCK`].
    start: u64,
    /// The bytes of the stage that are filled.
    len: usize,
    /// The filled bytes that are already written.
    written: usize,
}

impl DirectFile {
    /// Opens the file behind `plain` once more for direct writes; returns `plain` where that is
    /// impossible.
    pub(super) fn new(plain: DiskFile, path: &Path) -> Result<Self, DiskFile> {
        let flags = i32::try_from((OFlags::DIRECT | OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let opened = fs::OpenOptions::new()
            .write(true)
            .custom_flags(flags)
            .open(path);
        let Ok(direct) = opened else {
            return Err(plain);
        };
        let state = State {
            direct: Some(direct),
            stage: None,
            start: 0,
            len: 0,
            written: 0,
        };
        Ok(Self {
            plain,
            state: Mutex::new(state),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the stage is locked leaves bytes unwritten, but then no commit claims them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flushed(&self) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.flush(&self.plain)?;
        Ok(state)
    }
}

impl State {
    fn stage(&mut self, plain: &DiskFile) -> Result<&mut MmapMut> {
        if self.stage.is_none() {
            let stage = MmapMut::map_anon(STAGE_BYTES)
                .map_err(|error| plain.failed("cannot gather", error))?;
            self.stage = Some(stage);
        }
        Ok(self.stage.as_mut().expect("just made"))
    }

    /// Returns the first `len` bytes of the stage.
    fn gathered(&self, len: usize) -> &[u8] {
        self.stage.as_ref().map_or(&[], |stage| &stage[..len])
    }

    /// Moves the stage to `offset`, and fills it with the file's bytes from the block's start up to
    /// there.
    fn begin_at(&mut self, offset: u64, plain: &DiskFile) -> Result<()> {
        self.flush(plain)?;
        let lead = usize::try_from(offset % BLOCK as u64).expect("a remainder is small");
        let start = offset - lead as u64;
        plain.read_at(&mut self.stage(plain)?[..lead], start)?;
        (self.start, self.len, self.written) = (start, lead, lead);
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8], plain: &DiskFile) -> Result<()> {
        while !bytes.is_empty() {
            let len = self.len;
            let taken = bytes.len().min(STAGE_BYTES - len);
            self.stage(plain)?[len..len + taken].copy_from_slice(&bytes[..taken]);
            self.len += taken;
            bytes = &bytes[taken..];
            if self.len == STAGE_BYTES {
                self.write_blocks(plain)?;
            }
        }
        Ok(())
    }

    /// Writes all whole blocks and moves the rest, which may be written already, to the stage's
    /// front.
    fn write_blocks(&mut self, plain: &DiskFile) -> Result<()> {
        let whole = self.len / BLOCK * BLOCK;
        if whole == 0 || self.written >= self.len {
            return Ok(());
        }
        self.write_directly(whole, &[], plain)?;
        let len = self.len;
        self.stage(plain)?.copy_within(whole..len, 0);
        self.start += whole as u64;
        self.len -= whole;
        self.written = self.written.saturating_sub(whole);
        Ok(())
    }

    /// Writes the first `whole` bytes of the stage and, behind them, `blocks`.
    fn write_directly(&mut self, whole: usize, blocks: &[u8], plain: &DiskFile) -> Result<()> {
        if let Some(direct) = &self.direct {
            match write_both(direct, [self.gathered(whole), blocks], self.start) {
                Ok(()) => return Ok(()),
                // Some file systems accept the open and refuse the first direct write.
                Err(Errno::INVAL) => self.direct = None,
                Err(error) => return Err(plain.failed("cannot write", error)),
            }
        }
        plain.write_at(self.gathered(whole), self.start)?;
        plain.write_at(blocks, self.start + whole as u64)
    }

    /// Writes the gathered bytes, then `blocks`, which follow them in the file and are aligned like
    /// the stage.
    fn write_unstaged(&mut self, blocks: &[u8], plain: &DiskFile) -> Result<()> {
        debug_assert!(
            self.len.is_multiple_of(BLOCK) && blocks.len().is_multiple_of(BLOCK),
            "whole blocks alone"
        );
        self.write_directly(self.len, blocks, plain)?;
        self.start += (self.len + blocks.len()) as u64;
        (self.len, self.written) = (0, 0);
        Ok(())
    }

    /// Writes all gathered bytes.
    fn flush(&mut self, plain: &DiskFile) -> Result<()> {
        self.write_blocks(plain)?;
        if self.written < self.len {
            plain.write_at(
                &self.gathered(self.len)[self.written..],
                self.start + self.written as u64,
            )?;
            self.written = self.len;
        }
        Ok(())
    }
}

/// Returns the range of whole blocks in `bytes` for `offset`; empty unless memory address and
/// `offset` are equal modulo a block.
fn blocks_in_place(bytes: &[u8], offset: u64) -> Range<usize> {
    let within = usize::try_from(offset % BLOCK as u64).expect("a remainder is small");
    let start = (BLOCK - within) % BLOCK;
    if bytes.as_ptr().addr() % BLOCK != within || bytes.len() < start {
        return 0..0;
    }
    start..start + (bytes.len() - start) / BLOCK * BLOCK
}

/// Writes both parts whole, the second behind the first, in as few requests as the system allows.
fn write_both(file: &File, parts: [&[u8]; 2], offset: u64) -> Result<(), Errno> {
    let all = parts[0].len() + parts[1].len();
    let mut done = 0;
    while done < all {
        let first = done.min(parts[0].len());
        let left = [&parts[0][first..], &parts[1][done - first..]].map(IoSlice::new);
        let left = if left[0].is_empty() {
            &left[1..]
        } else {
            &left[..]
        };
        match pwritev(file, left, offset + done as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl StorageFile for DirectFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let _state = self.flushed()?;
        self.plain.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut state = self.state();
        if state.start + state.len as u64 != offset {
            state.begin_at(offset, &self.plain)?;
        }
        let blocks = blocks_in_place(bytes, offset);
        if blocks.len() < LEAST_UNSTAGED_BYTES {
            return state.append(bytes, &self.plain);
        }
        state.append(&bytes[..blocks.start], &self.plain)?;
        state.write_unstaged(&bytes[blocks.clone()], &self.plain)?;
        state.append(&bytes[blocks.end..], &self.plain)
    }

    fn len(&self) -> Result<u64> {
        let _state = self.flushed()?;
        self.plain.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        let mut state = self.flushed()?;
        (state.start, state.len, state.written) = (0, 0, 0);
        self.plain.set_len(len)
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        let mut state = self.flushed()?;
        (state.start, state.len, state.written) = (0, 0, 0);
        self.plain.preallocate(len)
    }

    fn settle(&self) -> Result<()> {
        let mut state = self.flushed()?;
        // An empty stage begins anew at the next bytes' offset.
        *state = State {
            direct: state.direct.take(),
            stage: None,
            start: 0,
            len: 0,
            written: 0,
        };
        Ok(())
    }

    fn sync_data(&self) -> Result<()> {
        // The lock is released before the sync, so that writing goes on meanwhile.
        drop(self.flushed()?);
        self.plain.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::storage::{DiskStorage, Storage};
    use super::*;
    use crate::budget::{Budget, Buffers};

    #[derive(Debug, Clone)]
    enum Step {
        Append(usize),
        /// As above, from memory aligned like the file.
        InPlace(usize),
        Jump(u64, usize),
        Sync,
        Settle,
        ReadBack,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let len = prop_oneof![
            0usize..9000,
            Just(BLOCK),
            Just(STAGE_BYTES),
            STAGE_BYTES - 5000..STAGE_BYTES + 5000
        ];
        let step = prop_oneof![
            4 => len.clone().prop_map(Step::Append),
            4 => len.clone().prop_map(Step::InPlace),
            1 => (0u64..6 << 20, len).prop_map(|(at, len)| Step::Jump(at, len)),
            1 => Just(Step::Sync),
            1 => Just(Step::Settle),
            1 => Just(Step::ReadBack),
        ];
        prop::collection::vec(step, 1..12)
    }

    fn painted(from: usize, len: usize) -> Vec<u8> {
        (from..from + len)
            .map(|i| u8::try_from(i % 251).expect("below 251"))
            .collect()
    }

    #[test]
    fn blocks_in_place_are_whole_and_aligned_on_both_sides() {
        let memory = MmapMut::map_anon(8 * BLOCK).expect("memory");
        assert_eq!(blocks_in_place(&memory[..], 0), 0..8 * BLOCK);
        assert_eq!(blocks_in_place(&memory[..], 17), 0..0);
        assert_eq!(
            blocks_in_place(&memory[17..], 5 * BLOCK as u64 + 17),
            BLOCK - 17..8 * BLOCK - 17
        );
        assert_eq!(
            blocks_in_place(&memory[17..3 * BLOCK - 1], 17),
            BLOCK - 17..2 * BLOCK - 17
        );
        assert_eq!(blocks_in_place(&memory[17..20], 17).len(), 0);
        assert_eq!(blocks_in_place(&memory[..0], 0).len(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_was_written_in_any_order_is_what_is_read(steps in steps()) {
            let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary folder");
            let path = dir.path().join("shard.part");
            let buffers = Buffers::new(Budget::new(1 << 30));
            let size = 64 << 20;
            DiskStorage.create(&path).expect("create").preallocate(size).expect("reserve");
            let file = DiskStorage.open_stream(&path).expect("open");
            let mut model = vec![0u8; usize::try_from(size).expect("fits")];
            let mut at = 0;
            for (number, step) in steps.into_iter().enumerate() {
                let in_place = matches!(step, Step::InPlace(_));
                let (from, len) = match step {
                    Step::Append(len) | Step::InPlace(len) => (at, len),
                    Step::Jump(to, len) => (usize::try_from(to).expect("fits"), len),
                    Step::Sync => { file.sync_data().expect("sync"); continue; }
                    Step::Settle => { file.settle().expect("settle"); continue; }
                    Step::ReadBack => {
                        let mut found = vec![0; at];
                        file.read_at(&mut found, 0).expect("read");
                        prop_assert!(found == model[..at]);
                        continue;
                    }
                };
                let bytes = painted(number * 17, len);
                let place = from as u64 + u64::from(!in_place);
                let mut buffer = buffers.take(len, place).expect("memory").expect("within the budget");
                buffer.copy_from_slice(&bytes);
                file.write_at(&buffer, from as u64).expect("write");
                model[from..from + len].copy_from_slice(&bytes);
                at = from + len;
            }
            file.sync_data().expect("sync");
            drop(file);
            prop_assert!(fs::read(&path).expect("read") == model);
        }
    }
}
