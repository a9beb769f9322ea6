//! An output of one small file that is computed step by step: steps are journalled, the file is
//! written at the end.
//!
//! Names and order are those of a single file of weights: until the end, journal and lock lie in
//! the work folder `.X.safetensors.thalweg` beside it; the file appears under its name when it is
//! whole and durable, then the work folder is removed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::begin::Target;
use super::commit::Ledger;
use super::finish::{Contents, put};
use super::folder::{Kept, Places, Standing, WORK, empty_work, remove_work, survey};
use super::identity::{difference, normalised};
use super::lock::Lock;
use super::manifest::read_capped;
use super::own::{check_file, check_folder, check_work};
use super::resume::JOURNAL_BYTES;
use super::storage::Storage;
use crate::error::{Error, Kind, Result};
use crate::journal::{Claim, Journal, head_with_identity};

/// A run of steps towards one file, locked against other processes.
///
/// Dropping it changes nothing on the disk: the next run goes on behind the last step.
pub struct Steps {
    storage: Arc<dyn Storage>,
    places: Places,
    ledger: Ledger,
    /// The last field, so that the lock is dropped last.
    _lock: Lock,
}

/// The state of a run after a look for an earlier one.
pub enum BegunSteps {
    /// A new run: no step is done yet.
    Fresh(Steps),
    /// An earlier run, resumed behind these steps, each as JSON text.
    Resumed(Steps, Vec<String>),
    /// The same run was finished before; nothing is left to do.
    Complete,
}

impl Steps {
    /// Begins or resumes the run of `identity` at a target that is a single file, or finds it
    /// finished.
    ///
    /// `is_same` tells if the file that is there was made by the same run.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] when the target does not name a file, [`Kind::Occupied`] when another file
    /// is there, [`Kind::Locked`] when another process works there, [`Kind::Resume`] when another
    /// run was begun there or its journal is damaged.
    pub fn begin(
        storage: Arc<dyn Storage>,
        target: &Target,
        identity: &Value,
        is_same: &dyn Fn(&Path) -> bool,
    ) -> Result<BegunSteps> {
        let places = Places::new(&target.dir);
        if !places.is_file() {
            let cause = "wanted the name of one file, X.safetensors";
            return Err(Error::new(
                Kind::Usage,
                "cannot write to file",
                target.dir.display(),
                cause,
            ));
        }
        check_work(&places)?;
        check_file(places.out())?;
        let identity = normalised(identity)?;
        let is_there = || Ok::<_, Error>(storage.len(places.out())?.is_some());
        // Without a work folder, nothing is touched until a look shows that the run may write the
        // file.
        if storage.list(&places.work())?.is_none()
            && is_there()?
            && judge(target, &places, is_same)?
        {
            return Ok(BegunSteps::Complete);
        }
        let lock = Lock::acquire(storage.as_ref(), &places)?;
        let is_begun = storage.len(&places.journal())?.is_some();
        if is_there()?
            && (!is_begun || target.restart || is_same(places.out()))
            && judge(target, &places, is_same)?
        {
            remove_work(storage.as_ref(), &places)?;
            return Ok(BegunSteps::Complete);
        }
        if is_begun && !target.restart {
            let (ledger, steps) = resume(storage.as_ref(), &places, &identity)?;
            return Ok(BegunSteps::Resumed(
                Self {
                    storage,
                    places,
                    ledger,
                    _lock: lock,
                },
                steps,
            ));
        }
        let ledger = start(storage.as_ref(), &places, &identity)?;
        Ok(BegunSteps::Fresh(Self {
            storage,
            places,
            ledger,
            _lock: lock,
        }))
    }

    /// Journals a step; it is durable afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the step cannot be written; the steps before it stay.
    pub fn append(&mut self, step: String) -> Result<()> {
        self.ledger
            .append(&[Claim::Step { step }])
            .map_err(Error::resumable)
    }

    /// Returns the file that the run writes.
    pub fn out(&self) -> &Path {
        self.places.out()
    }

    /// Returns a folder for files that only this run needs; it is removed with the work folder.
    pub fn scratch_dir(&self) -> PathBuf {
        self.places.scratch()
    }

    /// Writes another file beside the output, whole and durable or not at all.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written; the run can then be resumed.
    pub fn write_beside(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let path = self.places.out().with_file_name(name);
        put(
            self.storage.as_ref(),
            &self.places,
            &path,
            &Contents::Bytes(bytes),
        )
        .map_err(Error::resumable)
    }

    /// Writes the file, whole and durable or not at all, and removes the work folder.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be written; the run can then be resumed.
    pub fn finish(self, bytes: Vec<u8>) -> Result<()> {
        let Self {
            storage, places, ..
        } = &self;
        put(
            storage.as_ref(),
            places,
            places.out(),
            &Contents::Bytes(bytes),
        )
        .and_then(|()| remove_work(storage.as_ref(), places))
        .map_err(Error::resumable)
    }
}

/// Removes the leftovers of transform runs for the output `out` whose transforms are finished or no
/// longer requested. Also removes the folder if it becomes empty.
///
/// # Errors
///
/// Fails when a leftover cannot be removed, or another process works on it.
pub fn tidy_transforms(storage: &dyn Storage, out: &Path) -> Result<()> {
    let folder = Places::new(out).alignment();
    let Some(entries) = storage.list(&folder)? else {
        return Ok(());
    };
    if !check_folder(&folder)? {
        return Ok(());
    }
    let transform = |name: &str| Some(name.strip_prefix('.')?.strip_suffix(WORK)?.to_owned());
    let names = entries.iter().filter(|entry| entry.is_dir);
    for name in names.filter_map(|entry| transform(&entry.name.to_string_lossy())) {
        let places = Places::new(&folder.join(name));
        check_work(&places)?;
        let _lock = Lock::acquire(storage, &places)?;
        remove_work(storage, &places)?;
    }
    storage.remove_dir_if_empty(&folder)
}

/// Returns the folders of an output's transforms: their last place, and the one in the work folder
/// for an output that replaces another.
pub fn transform_folders(out: &Path) -> [PathBuf; 2] {
    let places = Places::new(out);
    [places.alignment(), places.staged().alignment()]
}

/// Tells if a run at this target puts its files aside until they replace the present ones.
///
/// # Errors
///
/// Fails when the target cannot be read.
pub fn is_replacing(storage: &dyn Storage, target: &Target) -> Result<bool> {
    let places = Places::new(&target.dir);
    check_work(&places)?;
    let standing = survey(storage, &places)?;
    Ok(match standing {
        Standing::Replacing { .. } => true,
        Standing::Free | Standing::Begun => false,
        _ => target.overwrite,
    })
}

/// Tells if the present file is the result of this run and stays; false when it may be replaced.
fn judge(target: &Target, places: &Places, is_same: &dyn Fn(&Path) -> bool) -> Result<bool> {
    let is_same = is_same(places.out());
    if is_same && !(target.restart && target.overwrite) {
        return Ok(true);
    }
    if is_same || target.overwrite {
        return Ok(false);
    }
    let cause = "a file is there that this run did not write";
    Err(Error::new(
        Kind::Occupied,
        "cannot write to file",
        places.out().display(),
        cause,
    )
    .with_hint("choose another name, or let --overwrite replace it"))
}

fn start(storage: &dyn Storage, places: &Places, identity: &Value) -> Result<Ledger> {
    empty_work(storage, places, Kept::Journal)?;
    let head = head_with_identity(&identity.to_string())?;
    // Renamed when whole, over the journal of a discarded run if there is one, so that a journal
    // always has its identity.
    let file = storage.create(&places.aside())?;
    file.write_at(&head, 0)?;
    file.sync_data()?;
    storage.rename(&places.aside(), &places.journal())?;
    storage.sync_dir(&places.work())?;
    Ok(Ledger::new(
        file,
        u64::try_from(head.len()).expect("a length fits 64 bits"),
    ))
}

fn resume(
    storage: &dyn Storage,
    places: &Places,
    identity: &Value,
) -> Result<(Ledger, Vec<String>)> {
    const HINT: &str = "run with --restart to discard what was found and begin anew";
    let path = places.journal();
    let refuse = |cause: String| {
        Error::new(Kind::Resume, "cannot resume", path.display(), cause).with_hint(HINT)
    };
    let bytes = read_capped(storage, &path, JOURNAL_BYTES)?;
    let journal = Journal::parse(&bytes, &path).map_err(|error| error.with_hint(HINT))?;
    let stored: Value = serde_json::from_str(journal.identity())
        .map_err(|error| refuse(format!("its identity is no JSON: {error}")))?;
    if let Some(words) = difference("journal", &stored, identity) {
        return Err(refuse(words));
    }
    let steps = journal
        .replay(&[], 0)
        .map_err(|error| error.with_hint(HINT))?
        .steps;
    let file = storage.open(&path)?;
    let len = u64::try_from(journal.valid_len()).expect("a length fits 64 bits");
    if file.len()? != len {
        // A torn record must be durably gone before another is appended in its place.
        file.set_len(len)?;
        file.sync_data()?;
    }
    Ok((Ledger::new(file, len), steps))
}
