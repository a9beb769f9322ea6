//! A run's output while it is written: its written bytes, their hashes and the open files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::begin::{Begun, Run, Target};
use super::checksum::{TensorHasher, block_range};
use super::commit::{Ledger, Pending, Seal};
use super::folder::Places;
use super::lock::Lock;
use super::packed::Packers;
use super::storage::{Storage, StorageFile};
use super::{Progress, begin};
use crate::error::{Error, Kind, Result};
use crate::journal::{Claim, State};
use crate::plan::layout::Layout;

/// The memory of a tensor in a commit beside the text of its note, in bytes.
const CLAIM_BYTES: usize = 192;

/// An unfinished output, locked against other processes.
///
/// Dropping it changes nothing on the disk: the next run goes on behind the last commit.
pub struct Output {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) places: Places,
    pub(super) layout: Arc<Layout>,
    pub(super) identity: Value,
    pub(super) tensors: Vec<TensorState>,
    shards: Vec<ShardState>,
    run_note: Option<Value>,
    run_note_is_claimed: bool,
    /// Tensors with unclaimed blocks or notes, and shards with unsynced bytes.
    unclaimed: BTreeSet<usize>,
    unsynced: BTreeSet<usize>,
    /// The approximate memory held for the next commit, in bytes.
    unclaimed_bytes: usize,
    durable: Arc<[AtomicU64]>,
    ledger: Arc<Mutex<Ledger>>,
    prepared: u64,
    pub(super) packers: Packers,
    /// The faults of a finished output's shards that are written again.
    repairs: Vec<String>,
    /// The last field, so that the lock is dropped last.
    pub(super) _lock: Lock,
}

/// The place of some bytes of the output.
pub struct Place {
    file: Arc<dyn StorageFile>,
    at: u64,
    /// True if the shard ends with these bytes.
    ends_shard: bool,
}

impl Place {
    /// Writes `bytes`, for which this place was made, to the system.
    ///
    /// # Errors
    ///
    /// Fails when the system does not take them.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.file
            .write_at(bytes, self.at)
            .map_err(Error::resumable)?;
        // Many small shards may wait for one commit, but memory is budgeted for one stage only.
        if self.ends_shard {
            self.file.settle().map_err(Error::resumable)
        } else {
            Ok(())
        }
    }
}

/// The progress of a tensor.
pub(super) struct TensorState {
    pub(super) hasher: TensorHasher,
    /// The number of blocks handed to a commit.
    claimed: usize,
    /// The note about it, JSON text, until a commit takes it to the journal.
    note: Option<Box<str>>,
}

/// The progress of a shard.
struct ShardState {
    file: Option<Arc<dyn StorageFile>>,
    is_sealed: bool,
    /// The number of tensors with blocks not yet handed to a commit.
    open_tensors: usize,
}

impl Output {
    /// Looks at the target folder, and begins or resumes the output of `layout` there or finds it
    /// finished.
    ///
    /// An earlier run was the same if its `identity` is equal: recipe, inputs, format. Files are
    /// reserved on the disk at their full size, so that a too small disk fails here. Before a run
    /// is resumed, every block that its journal claims is read and checked, with reports to
    /// `progress`.
    ///
    /// With [`Target::overwrite`] another checkpoint stays unchanged until this one is whole, and
    /// is then replaced.
    ///
    /// # Errors
    ///
    /// [`Kind::Occupied`] when another checkpoint is there, [`Kind::Locked`] when another process
    /// works there, [`Kind::Resume`] when another run was begun there or its files were changed
    /// since.
    pub fn begin(
        storage: Arc<dyn Storage>,
        target: &Target,
        layout: impl Into<Arc<Layout>>,
        identity: &Value,
        progress: &mut Progress<'_>,
    ) -> Result<Begun> {
        begin::begin(storage, target, layout.into(), identity, progress)
    }

    pub(super) fn assemble(run: Run, lock: Lock, ledger: Ledger, state: State) -> Result<Self> {
        let Run {
            storage,
            places,
            layout,
            identity,
        } = run;
        let mut shards: Vec<_> = layout
            .shards()
            .iter()
            .zip(state.shards)
            .map(|(shard, is_sealed)| ShardState {
                file: None,
                is_sealed,
                open_tensors: shard.tensors.len(),
            })
            .collect();
        let mut tensors = Vec::with_capacity(layout.tensors().len());
        let mut durable = Vec::with_capacity(tensors.capacity());
        for (slot, values) in layout.tensors().iter().zip(state.values) {
            let claimed = values.len();
            let hasher = TensorHasher::resume(slot.len, values);
            shards[slot.shard].open_tensors -= usize::from(hasher.is_whole());
            durable.push(AtomicU64::new(hasher.hashed()));
            tensors.push(TensorState {
                hasher,
                claimed,
                note: None,
            });
        }
        let mut ledger = ledger;
        let notes = state
            .notes
            .into_iter()
            .enumerate()
            .filter_map(|(tensor, place)| Some((tensor, place?)));
        notes.for_each(|(tensor, place)| ledger.set_note(tensor, place));
        let run_note = state
            .run_note
            .map(|text| read_note(&places, "the run", text.as_bytes()))
            .transpose()?;
        let ledger = Arc::new(Mutex::new(ledger));
        let (unclaimed, unsynced) = (BTreeSet::new(), BTreeSet::new());
        let durable = durable.into();
        let (prepared, _lock) = (0, lock);
        Ok(Self {
            storage,
            places,
            layout,
            identity,
            tensors,
            shards,
            run_note_is_claimed: run_note.is_some(),
            run_note,
            unclaimed,
            unsynced,
            unclaimed_bytes: 0,
            durable,
            ledger,
            prepared,
            packers: Packers::serial(),
            repairs: vec![],
            _lock,
        })
    }

    /// Stores the faults that were found in the output finished here before.
    pub(super) fn with_repairs(mut self, repairs: Vec<String>) -> Self {
        self.repairs = repairs;
        self
    }

    /// Returns the faults of finished shards that this run writes again, a sentence each.
    pub fn repairs(&self) -> &[String] {
        &self.repairs
    }

    /// Sets the packers that compress shards from now on; by default the thread that commits does
    /// it.
    pub fn pack_with(&mut self, packers: Packers) {
        self.packers = packers;
    }

    /// Returns the uncompressed bytes of the shards that are still to be compressed.
    pub fn bytes_to_pack(&self) -> u64 {
        let open = self
            .layout
            .shards()
            .iter()
            .zip(&self.shards)
            .filter(|(_, state)| !state.is_sealed);
        self.layout
            .zstd()
            .map_or(0, |_| open.map(|(shard, _)| shard.len).sum())
    }

    /// Returns the layout that is written.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the number of durable bytes from a tensor's start: the whole tensor, or a multiple
    /// of [`CHECK_BLOCK`](super::checksum::CHECK_BLOCK). Writing begins there.
    pub fn durable_bytes(&self, tensor: usize) -> u64 {
        self.durable[tensor].load(Ordering::Acquire)
    }

    /// Returns the note about a tensor, from this run or an earlier one; reads it back from the
    /// journal after a commit.
    ///
    /// # Errors
    ///
    /// Fails when the journal cannot be read, or the note is not JSON.
    pub fn note(&self, tensor: usize) -> Result<Option<Value>> {
        let name = &self.layout.tensors()[tensor].name;
        if let Some(text) = &self.tensors[tensor].note {
            return read_note(&self.places, name, text.as_bytes()).map(Some);
        }
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger
            .note(tensor)?
            .map(|text| read_note(&self.places, name, &text))
            .transpose()
    }

    /// Estimates the memory of the next commit's claims, in bytes.
    pub fn unclaimed_bytes(&self) -> usize {
        self.unclaimed_bytes
    }

    /// Counts the unfinished shards that are open.
    pub fn open_shards(&self) -> usize {
        self.unsynced.len()
    }

    /// Sets the note about a tensor; the next commit journals it, the manifest keeps it.
    pub fn set_note(&mut self, tensor: usize, note: &Value) {
        let text = note.to_string().into_boxed_str();
        self.unclaimed_bytes += text.len() + CLAIM_BYTES;
        self.tensors[tensor].note = Some(text);
        self.unclaimed.insert(tensor);
    }

    /// Returns the note about the whole run, from this process or an earlier one.
    pub fn run_note(&self) -> Option<&Value> {
        self.run_note.as_ref()
    }

    /// Sets the note about the whole run; the next commit journals it. The manifest keeps only what
    /// [`Output::finish`] is given.
    pub fn set_run_note(&mut self, note: Value) {
        self.run_note = Some(note);
        self.run_note_is_claimed = false;
    }

    /// Returns the output folder, or the single file that is written.
    pub fn dir(&self) -> &Path {
        self.places.out()
    }

    /// Returns a folder for files that only this run needs; it is removed with the work folder.
    pub fn scratch_dir(&self) -> PathBuf {
        self.places.scratch()
    }

    /// Hashes the next bytes of a tensor and writes them to the system; only a commit makes them
    /// durable.
    ///
    /// # Errors
    ///
    /// As [`Output::place`], and when the system does not take the bytes.
    pub fn write(&mut self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.place(tensor, offset, bytes)? {
            Some(place) => place.write(bytes),
            None => Ok(()),
        }
    }

    /// Hashes the next bytes of a tensor and returns their place; `None` when there are no bytes.
    ///
    /// The bytes of one tensor must come in order. The next commit claims the bytes even if
    /// [`Place::write`] was not called, so a writer on another thread must keep places and commits
    /// in order.
    ///
    /// # Errors
    ///
    /// Fails when the bytes are not the next ones of the tensor or go beyond its end, or the shard
    /// cannot be opened.
    pub fn place(&mut self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<Option<Place>> {
        let layout = Arc::clone(&self.layout);
        let slot = &layout.tensors()[tensor];
        let next = self.tensors[tensor].hasher.hashed();
        let end = u64::try_from(bytes.len())
            .ok()
            .and_then(|len| offset.checked_add(len));
        if offset != next || end.is_none_or(|end| end > slot.len) {
            let cause = format!(
                "{} bytes at {offset}, wanted at {next} and at most up to {}",
                bytes.len(),
                slot.len
            );
            return Err(Error::new(
                Kind::Io,
                "cannot write tensor",
                &slot.name,
                cause,
            ));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        let file = self.part(slot.shard)?;
        self.tensors[tensor].hasher.update(bytes);
        self.unsynced.insert(slot.shard);
        self.unclaimed.insert(tensor);
        let ends_shard = end.and_then(|end| end.checked_add(slot.offset))
            == Some(layout.shards()[slot.shard].len);
        Ok(Some(Place {
            file,
            at: slot.offset + offset,
            ends_shard,
        }))
    }

    /// Returns the open file of an unfinished shard, with its header written.
    fn part(&mut self, shard: usize) -> Result<Arc<dyn StorageFile>> {
        let state = &mut self.shards[shard];
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let planned = &self.layout.shards()[shard];
        let file = self
            .storage
            .open_stream(&self.places.part(&planned.name))
            .map_err(Error::resumable)?;
        file.write_at(&planned.header, 0)
            .map_err(Error::resumable)?;
        self.unsynced.insert(shard);
        state.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Makes all written bytes durable, journals their whole check blocks, and renames whole
    /// shards.
    ///
    /// # Errors
    ///
    /// Fails when syncing, journalling or renaming fails; this output is then unusable, but the run
    /// can be resumed.
    pub fn commit(&mut self) -> Result<()> {
        self.prepare_commit()?.run()
    }

    /// Prepares a commit, for another thread to [`Pending::run`] while writing goes on here.
    ///
    /// Every prepared commit must be run, in the order of preparation.
    ///
    /// # Errors
    ///
    /// Fails when a file cannot be opened or a number is too large for the journal.
    pub fn prepare_commit(&mut self) -> Result<Pending> {
        let (mut claims, mut reached) = (vec![], vec![]);
        self.unclaimed_bytes = 0;
        if let Some(note) = self.run_note.as_ref().filter(|_| !self.run_note_is_claimed) {
            claims.push(Claim::RunNote {
                note: note.to_string(),
            });
            self.run_note_is_claimed = true;
        }
        for tensor in std::mem::take(&mut self.unclaimed) {
            self.claim(tensor, &mut claims, &mut reached)?;
        }
        let seals = self.seal_whole_shards()?;
        let mut files = vec![];
        for shard in std::mem::take(&mut self.unsynced) {
            files.extend(self.shards[shard].file.clone());
        }
        for seal in &seals {
            self.shards[seal.shard].file = None;
        }
        let number = self.prepared;
        self.prepared += 1;
        Ok(Pending {
            number,
            storage: Arc::clone(&self.storage),
            places: self.places.clone(),
            layout: Arc::clone(&self.layout),
            ledger: Arc::clone(&self.ledger),
            durable: Arc::clone(&self.durable),
            files,
            claims,
            reached,
            seals,
            packers: self.packers.clone(),
        })
    }

    fn claim(
        &mut self,
        tensor: usize,
        claims: &mut Vec<Claim>,
        reached: &mut Vec<(usize, u64)>,
    ) -> Result<()> {
        let slot = &self.layout.tensors()[tensor];
        let state = &mut self.tensors[tensor];
        let id = number(tensor)?;
        let values = &state.hasher.values()[state.claimed..];
        if let Some(note) = state.note.take() {
            claims.push(Claim::Note {
                tensor: id,
                note: note.into_string(),
            });
        }
        if !values.is_empty() {
            claims.push(Claim::Blocks {
                tensor: id,
                first: number(state.claimed)?,
                values: values.to_vec(),
            });
            state.claimed += values.len();
            let blocks = u64::try_from(state.claimed).expect("a count fits 64 bits");
            reached.push((tensor, block_range(slot.len, blocks).start));
            self.shards[slot.shard].open_tensors -= usize::from(state.hasher.is_whole());
        }
        Ok(())
    }

    fn seal_whole_shards(&mut self) -> Result<Vec<Seal>> {
        let mut seals = vec![];
        for shard in 0..self.shards.len() {
            // The only shard of a part has no index: its rename finishes the part.
            if self.layout.shards()[shard].is_only {
                continue;
            }
            if !self.shards[shard].is_sealed && self.shards[shard].open_tensors == 0 {
                // Opens the shard if needed, so that a shard of empty tensors gets its header and
                // its sync.
                self.part(shard)?;
                self.shards[shard].is_sealed = true;
                seals.push(Seal {
                    shard,
                    id: number(shard)?,
                });
            }
        }
        Ok(seals)
    }

    /// Writes the headers of parts' only shards even if they hold nothing else.
    pub(super) fn open_only_shards(&mut self) -> Result<()> {
        for shard in 0..self.shards.len() {
            if self.layout.shards()[shard].is_only && !self.shards[shard].is_sealed {
                self.part(shard)?;
            }
        }
        Ok(())
    }

    /// Tells if a shard has its final name, or will have it once all prepared commits are run.
    pub(super) fn is_sealed(&self, shard: usize) -> bool {
        self.shards[shard].is_sealed
    }
}

fn read_note(places: &Places, about: &str, text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text).map_err(|error| {
        let cause = format!("the note about {about} is no JSON: {error}");
        Error::new(
            Kind::Resume,
            "cannot replay journal",
            places.journal().display(),
            cause,
        )
    })
}

fn number(value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|error| Error::new(Kind::Io, "cannot journal", value, error))
}
