//! Resumes a run: compares the journal's claims with the files that are really there.

use serde_json::Value;

use super::Progress;
use super::begin::Run;
use super::checksum::{block_range, hash_block};
use super::commit::Ledger;
use super::folder::Places;
use super::identity::{difference, sealed};
use super::lock::Lock;
use super::manifest::read_capped;
use super::packed::PackedShard;
use super::storage::{Storage, parent_of};
use super::verify::{PlainShard, ShardBytes};
use super::write::Output;
use crate::error::{Error, Kind, Result};
use crate::journal::{Journal, State};

/// The largest journal that is read, in bytes; blocks take 40 bytes per 16 MiB of output, which
/// leaves much room for notes.
pub(super) const JOURNAL_BYTES: u64 = 1 << 30;

/// Resumes the run where the journal in the folder ends.
pub(super) fn resume(run: Run, lock: Lock, progress: &mut Progress<'_>) -> Result<Output> {
    go_on(run, lock, Claims::Unchecked, progress)
}

/// The state of the journal's claims: compared with the files or not.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claims {
    /// Just now.
    Checked,
    /// Not yet.
    Unchecked,
}

/// As `resume`, with claims that may have been checked already.
pub(super) fn go_on(
    run: Run,
    lock: Lock,
    claims: Claims,
    progress: &mut Progress<'_>,
) -> Result<Output> {
    let path = run.places.journal();
    let bytes = journal_bytes(&run)?;
    let (state, len) = replayed(&run, &bytes).map_err(|error| error.with_hint(HINT))?;
    drop(bytes);
    run.check_space().map_err(Error::resumable)?;
    let state = run.match_shards(state)?;
    if claims == Claims::Unchecked {
        run.check_claims(&state, progress)?;
    }
    let journal = run.storage.open(&path)?;
    if journal.len()? != len {
        // A torn record must be durably gone before another is appended in its place.
        journal.set_len(len)?;
        journal.sync_data()?;
    }
    Output::assemble(run, lock, Ledger::new(journal, len), state)
}

/// Returns the identity in the folder's journal; `None` when the journal cannot be parsed.
///
/// # Errors
///
/// Fails when reading fails.
pub(super) fn begun_identity(storage: &dyn Storage, places: &Places) -> Result<Option<Value>> {
    let bytes = read_capped(storage, &places.journal(), JOURNAL_BYTES)?;
    let Ok(journal) = Journal::parse(&bytes, &places.journal()) else {
        return Ok(None);
    };
    let stored: Option<Value> = serde_json::from_str(journal.identity()).ok();
    Ok(stored
        .and_then(|mut stored| stored.get_mut("identity").map(Value::take))
        .map(|identity| sealed(&identity)))
}

/// Checks that the journal in the folder is that of this run.
pub(super) fn can_resume(run: &Run) -> Result<()> {
    let replayed = journal_bytes(run).and_then(|bytes| replayed(run, &bytes));
    replayed.map(drop).map_err(|error| {
        if error.kind() == Kind::Resume {
            error.with_hint(HINT)
        } else {
            error
        }
    })
}

fn journal_bytes(run: &Run) -> Result<Vec<u8>> {
    read_capped(run.storage.as_ref(), &run.places.journal(), JOURNAL_BYTES).map_err(|error| {
        if error.kind() == Kind::Damaged {
            error.with_kind(Kind::Resume)
        } else {
            error
        }
    })
}

const HINT: &str = "run with --restart to discard what was written and begin anew";

fn replayed(run: &Run, bytes: &[u8]) -> Result<(State, u64)> {
    let path = run.places.journal();
    let refuse = |cause: String| Error::new(Kind::Resume, "cannot resume", path.display(), cause);
    let journal = Journal::parse(bytes, &path)?;
    let stored: Value = serde_json::from_str(journal.identity())
        .map_err(|error| refuse(format!("its identity is no JSON: {error}")))?;
    let identity = stored.get("identity").unwrap_or(&Value::Null);
    if let Some(words) = difference("journal", identity, &run.identity) {
        return Err(refuse(words));
    }
    if stored != run.journal_identity() {
        return Err(refuse(
            "same request, but another version laid its shards out in another way".into(),
        ));
    }
    let state = journal.replay(&run.block_counts(), run.layout.shards().len())?;
    Ok((
        state,
        u64::try_from(journal.valid_len()).expect("a length fits 64 bits"),
    ))
}

impl Run {
    /// Finds each shard's file, finished or unfinished, and creates missing ones without claims. On
    /// return the state tells for each shard if it has its final name.
    fn match_shards(&self, mut state: State) -> Result<State> {
        for shard in 0..self.layout.shards().len() {
            let planned = &self.layout.shards()[shard];
            let is_finished = self
                .storage
                .len(&self.places.finished(&planned.name))?
                .is_some();
            if state.shards[shard] && !is_finished {
                return Err(self.mismatch(shard, "it was finished, but is not there any more"));
            }
            let claimed = planned
                .tensors
                .iter()
                .map(|tensor| state.values[*tensor].len())
                .sum();
            // Each file is closed again: there may be more shards than files may be open.
            if is_finished {
                self.finished(shard, &state)?;
            } else {
                self.part(shard, claimed)?;
            }
            state.shards[shard] = is_finished;
        }
        self.storage.sync_dir(&self.places.work())?;
        Ok(state)
    }

    /// Checks a shard with its final name: it must be whole by the journal, with the right size and
    /// header. A crash between the syncs of the two folders can leave its other name too, which is
    /// removed with the work folder.
    fn finished(&self, shard: usize, state: &State) -> Result<()> {
        let planned = &self.layout.shards()[shard];
        let counts = self.block_counts();
        let is_whole =
            |tensor: &usize| u64::try_from(state.values[*tensor].len()) == Ok(counts[*tensor]);
        if !planned.tensors.iter().all(is_whole) {
            return Err(self.mismatch(
                shard,
                "it has its final name, but the journal does not say that it is whole",
            ));
        }
        let file = self.opened(shard, true)?;
        self.check_len(shard, file.size())?;
        let mut header = vec![0; planned.header.len()];
        file.read_at(&mut header, 0)
            .map_err(|error| self.unreadable(shard, error))?;
        if header != planned.header {
            return Err(self.mismatch(shard, "its header was changed"));
        }
        self.remove_part(shard)
    }

    /// Opens a shard, finished or unfinished.
    fn opened(&self, shard: usize, is_finished: bool) -> Result<Box<dyn ShardBytes>> {
        let name = &self.layout.shards()[shard].name;
        let path = self.places.finished(name);
        Ok(match self.layout.zstd().filter(|_| is_finished) {
            Some(_) => {
                Box::new(PackedShard::open(&path).map_err(|error| self.unreadable(shard, error))?)
            }
            None if is_finished => Box::new(PlainShard::new(self.storage.open_read(&path)?)?),
            None => Box::new(PlainShard::new(
                self.storage.open_read(&self.places.part(name))?,
            )?),
        })
    }

    /// Removes the part of a compressed shard, which only takes room on the disk.
    fn remove_part(&self, shard: usize) -> Result<()> {
        let part = self.places.part(&self.layout.shards()[shard].name);
        if self.layout.zstd().is_some() && self.storage.len(&part)?.is_some() {
            // IMPORTANT: the final name may not be durable yet.
            self.storage.sync_dir(parent_of(
                &self.places.finished(&self.layout.shards()[shard].name),
            ))?;
            self.storage.remove(&part)?;
        }
        Ok(())
    }

    /// Checks an unfinished shard, creates it if it is missing, and gives it its full size.
    fn part(&self, shard: usize, claimed_blocks: usize) -> Result<()> {
        let planned = &self.layout.shards()[shard];
        let path = self.places.part(&planned.name);
        let file = match self.storage.len(&path)? {
            Some(_) => self.storage.open(&path)?,
            None if claimed_blocks == 0 => self.storage.create(&path)?,
            None => {
                return Err(self.mismatch(
                    shard,
                    "blocks of it were written, but it is not there any more",
                ));
            }
        };
        if claimed_blocks > 0 {
            self.check_len(shard, file.len()?)?;
        }
        file.preallocate(planned.len)
    }

    fn check_len(&self, shard: usize, found: u64) -> Result<()> {
        let wanted = self.layout.shards()[shard].len;
        if found == wanted {
            return Ok(());
        }
        Err(self.mismatch(shard, &format!("{found} bytes, wanted {wanted}")))
    }

    /// Reads every claimed block and compares its value with the journal's.
    fn check_claims(&self, state: &State, progress: &mut Progress<'_>) -> Result<()> {
        let durable = |tensor: usize| {
            let blocks = u64::try_from(state.values[tensor].len()).expect("a count fits 64 bits");
            block_range(self.layout.tensors()[tensor].len, blocks).start
        };
        let total = (0..state.values.len()).map(durable).sum();
        let mut checked = 0;
        for (shard, planned) in self.layout.shards().iter().enumerate() {
            if planned
                .tensors
                .iter()
                .all(|tensor| state.values[*tensor].is_empty())
            {
                continue;
            }
            let file = self.opened(shard, state.shards[shard])?;
            for &tensor in &planned.tensors {
                let slot = &self.layout.tensors()[tensor];
                for (block, wanted) in (0..).zip(&state.values[tensor]) {
                    let mut read = |buffer: &mut [u8], at| file.read_at(buffer, slot.offset + at);
                    let value = hash_block(slot.len, block, &mut read)
                        .map_err(|error| self.unreadable(shard, error))?;
                    if value != *wanted {
                        let cause = format!(
                            "block {block} of tensor {} was changed after it was written",
                            slot.name
                        );
                        return Err(self.mismatch(shard, &cause));
                    }
                    let range = block_range(slot.len, block);
                    checked += range.end - range.start;
                    progress(checked, total)?;
                }
            }
        }
        Ok(())
    }

    /// Reports a finished shard that cannot be decompressed as changed; other failures stay
    /// unchanged.
    fn unreadable(&self, shard: usize, error: Error) -> Error {
        if error.kind() == Kind::Input {
            self.mismatch(shard, &error.to_string())
        } else {
            error
        }
    }

    fn mismatch(&self, shard: usize, cause: &str) -> Error {
        let path = self.places.finished(&self.layout.shards()[shard].name);
        Error::new(Kind::Resume, "cannot resume shard", path.display(), cause).with_hint(HINT)
    }
}
