//! Repairs a finished output: writes only its missing or damaged shards again.
//!
//! Every existing shard is read and compared with the manifest. Sound shards are journalled as if
//! this run had just written them, the others are removed, and the run is resumed from there.

use super::Progress;
use super::begin::Run;
use super::checksum::{block_range, hash_block};
use super::folder::{Kept, empty_work};
use super::listed::ManifestTensor;
use super::lock::Lock;
use super::manifest::Manifest;
use super::notes::each_note;
use super::resume::{Claims, go_on};
use super::storage::StorageFile;
use super::verify::open_stored;
use super::write::Output;
use crate::error::{Error, Kind, Result};
use crate::journal::{Claim, claims_record, head_with_identity};

/// The approximate size of a record's claims, in bytes.
const RECORD_BYTES: usize = 1 << 20;

/// Resumes from the sound shards of a finished output of this run.
///
/// # Errors
///
/// Fails when a shard cannot be read or removed, or there is no room for the missing ones.
pub(super) fn repair(
    run: Run,
    lock: Lock,
    manifest: &Manifest,
    progress: &mut Progress<'_>,
) -> Result<Output> {
    let storage = run.storage.as_ref();
    empty_work(storage, &run.places, Kept::Nothing)?;
    let mut is_sound = vec![];
    let mut again = vec![];
    let total = run.layout.shards().iter().map(|shard| shard.len).sum();
    let mut checked = 0;
    for shard in 0..run.layout.shards().len() {
        let path = run.places.finished(&run.layout.shards()[shard].name);
        let words = run.fault_of(shard, manifest)?;
        checked += run.layout.shards()[shard].len;
        progress(checked, total)?;
        is_sound.push(words.is_none());
        let Some(words) = words else { continue };
        again.push(format!(
            "{} {words}: made again",
            run.layout.shards()[shard].name
        ));
        if storage.len(&path)?.is_some() {
            storage.remove(&path)?;
        }
    }
    storage.sync_dir(&run.places.folder())?;
    run.check_space()?;
    run.journal_sound(&is_sound, manifest)?;
    let output = go_on(run, lock, Claims::Checked, progress)?;
    Ok(output.with_repairs(again))
}

/// A journal that is completed before it gets its name.
struct Aside<'a> {
    file: &'a dyn StorageFile,
    at: u64,
    claims: Vec<Claim>,
    /// The approximate size of the claims, in bytes.
    bytes: usize,
}

impl Aside<'_> {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Adds a claim of about `bytes` bytes; writes a record when the claims are large enough.
    fn claim(&mut self, claim: Claim, bytes: usize) -> Result<()> {
        self.claims.push(claim);
        self.bytes += bytes;
        if self.bytes >= RECORD_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> Result<()> {
        if self.claims.is_empty() {
            return Ok(());
        }
        let record = claims_record(&self.claims)?;
        (self.claims, self.bytes) = (vec![], 0);
        self.append(&record)
    }
}

impl Run {
    /// Describes the fault of a shard in the manifest; `None` when every byte is right.
    fn fault_of(&self, shard: usize, manifest: &Manifest) -> Result<Option<String>> {
        let planned = &self.layout.shards()[shard];
        let path = self.places.finished(&planned.name);
        let bytes = match open_stored(&path) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(Some("is damaged".into())),
            opened => opened?,
        };
        let Some(bytes) = bytes else {
            return Ok(Some("is missing".into()));
        };
        if bytes.size() != planned.len {
            return Ok(Some(format!(
                "has {} bytes of {}",
                bytes.size(),
                planned.len
            )));
        }
        let mut header = vec![0; planned.header.len()];
        let unreadable = |error: Error| match error.kind() {
            Kind::Input | Kind::Damaged => Ok(Some("is damaged".to_owned())),
            _ => Err(error),
        };
        if let Err(error) = bytes.read_at(&mut header, 0) {
            return unreadable(error);
        }
        if header != planned.header {
            return Ok(Some("has another header".into()));
        }
        for &tensor in &planned.tensors {
            let slot = &self.layout.tensors()[tensor];
            let Some(values) = manifest
                .tensors
                .get(tensor)
                .and_then(ManifestTensor::values)
            else {
                return Ok(Some("has no checksums".into()));
            };
            for (block, wanted) in (0..).zip(values) {
                let mut read = |buffer: &mut [u8], at| bytes.read_at(buffer, slot.offset + at);
                match hash_block(slot.len, block, &mut read) {
                    Err(error) => return unreadable(error),
                    Ok(value) if value == wanted => {}
                    Ok(_) => {
                        let range = block_range(slot.len, block);
                        let words = format!(
                            "is damaged in tensor {} (bytes {} to {})",
                            slot.name, range.start, range.end
                        );
                        return Ok(Some(words));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Writes the journal of a run that has finished exactly the sound shards.
    fn journal_sound(&self, is_sound: &[bool], manifest: &Manifest) -> Result<()> {
        let storage = self.storage.as_ref();
        let file = storage.create(&self.places.aside())?;
        let mut journal = Aside {
            file: file.as_ref(),
            at: 0,
            claims: vec![],
            bytes: 0,
        };
        journal.append(&head_with_identity(&self.journal_identity().to_string())?)?;
        each_note(storage, &self.places, &mut |tensor, note| {
            let slot = self.layout.tensors().get(tensor);
            if slot.is_none_or(|slot| !is_sound[slot.shard]) {
                return Ok(());
            }
            let note = note.to_string();
            let bytes = note.len() + size_of::<Claim>();
            journal.claim(
                Claim::Note {
                    tensor: number(tensor)?,
                    note,
                },
                bytes,
            )
        })?;
        for shard in (0..is_sound.len()).filter(|shard| is_sound[*shard]) {
            self.claim_shard(shard, manifest, &mut journal)?;
        }
        journal.flush()?;
        file.sync_data()?;
        storage.rename(&self.places.aside(), &self.places.journal())?;
        storage.sync_dir(&self.places.work())
    }

    /// Claims a whole shard, as the run that finished it did.
    fn claim_shard(
        &self,
        shard: usize,
        manifest: &Manifest,
        journal: &mut Aside<'_>,
    ) -> Result<()> {
        for &tensor in &self.layout.shards()[shard].tensors {
            let values = manifest
                .tensors
                .get(tensor)
                .and_then(ManifestTensor::values)
                .unwrap_or_default();
            if !values.is_empty() {
                let bytes = values.as_flattened().len() + size_of::<Claim>();
                journal.claim(
                    Claim::Blocks {
                        tensor: number(tensor)?,
                        first: 0,
                        values,
                    },
                    bytes,
                )?;
            }
        }
        journal.claim(
            Claim::Shard {
                shard: number(shard)?,
            },
            size_of::<Claim>(),
        )
    }
}

fn number(at: usize) -> Result<u32> {
    u32::try_from(at).map_err(|error| Error::new(Kind::Io, "cannot journal", at, error))
}
