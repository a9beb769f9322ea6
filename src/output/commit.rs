//! Makes writes durable, in the one order that survives a crash.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::folder::Places;
use super::packed::{Packers, pack};
use super::storage::{Storage, StorageFile, parent_of};
use crate::error::{Error, Kind, Result};
use crate::journal::{Claim, NotePlace, noting_record};
use crate::plan::layout::Layout;

/// The journal's file, the offset of the next record and the number of the commit that may write
/// it.
pub(super) struct Ledger {
    file: Arc<dyn StorageFile>,
    end: u64,
    next: u64,
    /// The place of the note about each tensor; of length 0 without a note.
    notes: Vec<NotePlace>,
    /// Once a sync failed, the system may have dropped the data, so nothing further may be claimed.
    is_broken: bool,
}

impl Ledger {
    /// Creates a ledger that appends to `file` from `end` on, the end of its last whole record.
    pub(super) fn new(file: Arc<dyn StorageFile>, end: u64) -> Self {
        Self {
            file,
            end,
            next: 0,
            notes: vec![],
            is_broken: false,
        }
    }

    /// Sets the place of the note about `tensor`.
    pub(super) fn set_note(&mut self, tensor: usize, place: NotePlace) {
        if self.notes.len() <= tensor {
            self.notes.resize(tensor + 1, NotePlace { at: 0, len: 0 });
        }
        self.notes[tensor] = place;
    }

    /// Reads the note about `tensor` back from the journal, JSON text; `None` without a note.
    pub(super) fn note(&self, tensor: usize) -> Result<Option<Vec<u8>>> {
        let Some(NotePlace { at, len }) = self.notes.get(tensor).filter(|place| place.len > 0)
        else {
            return Ok(None);
        };
        let mut text = vec![0; usize::try_from(*len).expect("32 bits fit a usize")];
        self.file.read_at(&mut text, *at)?;
        Ok(Some(text))
    }

    /// Appends one record and waits until it is on the disk. Call it only after the record before
    /// was synced.
    pub(super) fn append(&mut self, claims: &[Claim]) -> Result<()> {
        if claims.is_empty() {
            return Ok(());
        }
        let (record, places) = noting_record(claims)?;
        self.file.write_at(&record, self.end)?;
        self.file.sync_data()?;
        for (tensor, NotePlace { at, len }) in places {
            self.set_note(
                usize::try_from(tensor).expect("32 bits fit a usize"),
                NotePlace {
                    at: self.end + at,
                    len,
                },
            );
        }
        self.end += u64::try_from(record.len()).expect("a length fits 64 bits");
        Ok(())
    }
}

/// A shard that is ready for its final name.
pub(super) struct Seal {
    pub(super) shard: usize,
    pub(super) id: u32,
}

/// A prepared commit: earlier writes, ready to be synced and journalled on any thread.
#[must_use = "what is not run is not durable, and later commits refuse to run"]
pub struct Pending {
    pub(super) number: u64,
    pub(super) storage: Arc<dyn Storage>,
    pub(super) places: Places,
    pub(super) layout: Arc<Layout>,
    pub(super) ledger: Arc<Mutex<Ledger>>,
    pub(super) durable: Arc<[AtomicU64]>,
    pub(super) files: Vec<Arc<dyn StorageFile>>,
    pub(super) claims: Vec<Claim>,
    /// The bytes of each tensor that are durable afterwards.
    pub(super) reached: Vec<(usize, u64)>,
    pub(super) seals: Vec<Seal>,
    pub(super) packers: Packers,
}

impl Pending {
    /// Syncs the data, journals the claims, then renames and journals the shards that became whole.
    ///
    /// # Errors
    ///
    /// Fails when a commit prepared before this one was not run or failed, or when this one fails.
    /// After a failure no further commit runs; the next process resumes from the last good one.
    pub fn run(self) -> Result<()> {
        let ledger = Arc::clone(&self.ledger);
        let mut ledger = self.take_turn(&ledger)?;
        // A panic on the way must also count as a failure, so the flag is cleared only at the end.
        ledger.is_broken = true;
        self.run_in_turn(&mut ledger).map_err(Error::resumable)?;
        ledger.is_broken = false;
        Ok(())
    }

    fn take_turn<'a>(&self, ledger: &'a Mutex<Ledger>) -> Result<MutexGuard<'a, Ledger>> {
        let refuse = |cause: String| {
            Error::new(
                Kind::Io,
                "cannot commit",
                self.places.out().display(),
                cause,
            )
        };
        let mut ledger = ledger
            .lock()
            .map_err(|_| refuse("an earlier commit panicked".into()).resumable())?;
        if ledger.is_broken {
            return Err(refuse("an earlier commit failed".into()).resumable());
        }
        if ledger.next != self.number {
            let cause = format!(
                "commit {} was prepared, but commit {} has to run first",
                self.number, ledger.next
            );
            return Err(refuse(cause).resumable());
        }
        ledger.next += 1;
        Ok(ledger)
    }

    /// Gives a shard its final name; compresses it first if the layout says so.
    fn seal(&self, shard: usize) -> Result<()> {
        let (storage, places) = (self.storage.as_ref(), &self.places);
        let name = &self.layout.shards()[shard].name;
        let to = places.finished(name);
        storage.create_dir_all(parent_of(&to))?;
        let Some(level) = self.layout.zstd() else {
            return storage.rename(&places.part(name), &to);
        };
        pack_shard(storage, places, &self.layout, shard, level, &self.packers)?;
        storage.rename(&places.packed(name), &to)?;
        // IMPORTANT: until the new name is durable, the part is the only whole copy.
        sync_both(storage, parent_of(&to), &places.work())?;
        storage.remove(&places.part(name))
    }

    fn run_in_turn(&self, ledger: &mut Ledger) -> Result<()> {
        // IMPORTANT: data before record, or a crash leaves claims about bytes that were never
        // written.
        for file in &self.files {
            file.sync_data()?;
        }
        ledger.append(&self.claims)?;
        for (tensor, bytes) in &self.reached {
            self.durable[*tensor].store(*bytes, Ordering::Release);
        }
        if self.seals.is_empty() {
            return Ok(());
        }
        for seal in &self.seals {
            self.seal(seal.shard)?;
        }
        let folders = self
            .seals
            .iter()
            .map(|seal| self.places.finished(&self.layout.shards()[seal.shard].name));
        let folders: BTreeSet<_> = folders.map(|path| parent_of(&path).to_owned()).collect();
        folders
            .iter()
            .try_for_each(|folder| self.storage.sync_dir(folder))?;
        self.storage.sync_dir(&self.places.work())?;
        let sealed: Vec<_> = self
            .seals
            .iter()
            .map(|seal| Claim::Shard { shard: seal.id })
            .collect();
        ledger.append(&sealed)
    }
}

/// Compresses a shard into a file beside its part and syncs it; returns its size. The caller
/// renames it and removes the part.
pub(super) fn pack_shard(
    storage: &dyn Storage,
    places: &Places,
    layout: &Layout,
    shard: usize,
    level: i32,
    packers: &Packers,
) -> Result<u64> {
    let shard = &layout.shards()[shard];
    let part = storage.open_read(&places.part(&shard.name))?;
    pack(
        storage,
        part.as_ref(),
        shard.len,
        &places.packed(&shard.name),
        level,
        packers,
    )
}

/// Makes renames between two folders durable: the new names first, so that every file always has a
/// name.
pub(super) fn sync_both(storage: &dyn Storage, to: &Path, from: &Path) -> Result<()> {
    storage.sync_dir(to)?;
    storage.sync_dir(from)
}
