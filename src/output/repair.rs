//! A finished output of which shards are missing or damaged: those alone are made again.
//!
//! Every shard that is there is read and compared with the manifest. What is sound is journalled as if this run had
//! just written it, the rest is removed, and the run is taken up from there.

use super::Progress;
use super::begin::Run;
use super::checksum::{block_range, hash_block};
use super::folder::{Kept, empty_work};
use super::lock::Lock;
use super::manifest::{Manifest, ManifestTensor};
use super::resume::{Claims, go_on};
use super::verify::open_stored;
use super::write::Output;
use crate::error::{Error, Kind, Result};
use crate::journal::{Claim, claims_record, head_with_identity};

/// Goes on with what is sound of a finished output of this very run.
///
/// # Errors
///
/// When what is there cannot be read or removed, or there is no room for what is missing.
pub(super) fn repair(run: Run, lock: Lock, manifest: &Manifest, progress: &mut Progress<'_>) -> Result<Output> {
    let storage = run.storage.as_ref();
    empty_work(storage, &run.places, Kept::Nothing)?;
    let mut claims = vec![];
    let mut again = vec![];
    let total = run.layout.shards().iter().map(|shard| shard.len).sum();
    let mut checked = 0;
    for shard in 0..run.layout.shards().len() {
        let path = run.places.finished(&run.layout.shards()[shard].name);
        let words = run.fault_of(shard, manifest)?;
        checked += run.layout.shards()[shard].len;
        progress(checked, total)?;
        let Some(words) = words else {
            run.claim_shard(shard, manifest, &mut claims)?;
            continue;
        };
        again.push(format!("{} {words}: made again", run.layout.shards()[shard].name));
        if storage.len(&path)?.is_some() {
            storage.remove(&path)?;
        }
    }
    storage.sync_dir(&run.places.folder())?;
    run.check_space()?;
    let mut journal = head_with_identity(&run.journal_identity().to_string())?;
    if !claims.is_empty() {
        journal.extend(claims_record(&claims)?);
    }
    let aside = storage.create(&run.places.aside())?;
    aside.write_at(&journal, 0)?;
    aside.sync_data()?;
    storage.rename(&run.places.aside(), &run.places.journal())?;
    storage.sync_dir(&run.places.work())?;
    let output = go_on(run, lock, Claims::Checked, progress)?;
    Ok(output.with_repairs(again))
}

impl Run {
    /// What is wrong with a shard that the manifest describes; none when every byte is right.
    fn fault_of(&self, shard: usize, manifest: &Manifest) -> Result<Option<String>> {
        let planned = &self.layout.shards()[shard];
        let path = self.places.finished(&planned.name);
        let bytes = match open_stored(&path) {
            Err(error) if error.kind() == Kind::Damaged => return Ok(Some("is damaged".into())),
            opened => opened?,
        };
        let Some(bytes) = bytes else { return Ok(Some("is missing".into())) };
        if bytes.size() != planned.len {
            return Ok(Some(format!("has {} bytes of {}", bytes.size(), planned.len)));
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
            let Some(values) = manifest.tensors.get(tensor).and_then(ManifestTensor::values) else {
                return Ok(Some("has no checksums".into()));
            };
            for (block, wanted) in (0..).zip(values) {
                let mut read = |buffer: &mut [u8], at| bytes.read_at(buffer, slot.offset + at);
                match hash_block(slot.len, block, &mut read) {
                    Err(error) => return unreadable(error),
                    Ok(value) if value == wanted => {}
                    Ok(_) => {
                        let range = block_range(slot.len, block);
                        let words =
                            format!("is damaged in tensor {} (bytes {} to {})", slot.name, range.start, range.end);
                        return Ok(Some(words));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Claims all of a shard, as the run that finished it did.
    fn claim_shard(&self, shard: usize, manifest: &Manifest, claims: &mut Vec<Claim>) -> Result<()> {
        let number = |at: usize| u32::try_from(at).map_err(|error| Error::new(Kind::Io, "cannot journal", at, error));
        for &tensor in &self.layout.shards()[shard].tensors {
            let stored = manifest.tensors.get(tensor);
            if let Some(note) = stored.and_then(|stored| stored.note.as_ref()) {
                claims.push(Claim::Note { tensor: number(tensor)?, note: note.to_string() });
            }
            let values = stored.and_then(ManifestTensor::values).unwrap_or_default();
            if !values.is_empty() {
                claims.push(Claim::Blocks { tensor: number(tensor)?, first: 0, values });
            }
        }
        claims.push(Claim::Shard { shard: number(shard)? });
        Ok(())
    }
}
