//! Decides what to do with an output folder, and starts a fresh output.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

use super::checksum::block_count;
use super::commit::Ledger;
use super::ending::check_ending;
use super::folder::{Kept, Places, Standing, empty_work, remove_work, survey, sweep};
use super::identity::{in_words, normalised, sealed, timed};
use super::lock::Lock;
use super::manifest::{Manifest, hash_of};
use super::own::{check_finished, check_manifest, check_work};
use super::place::check_writable;
use super::repair::repair;
use super::storage::{FREE_SOME_SPACE, RAISE_THE_LIMIT, Storage};
use super::write::Output;
use super::{Progress, exchange, resume};
use crate::budget::format_bytes;
use crate::error::{Error, Kind, Result};
use crate::journal::{State, head_with_identity};
use crate::plan::layout::Layout;

/// The folder to write to, and the permissions on its present contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The output folder, made if needed; or a single file, by a name that ends in `.safetensors`.
    pub dir: PathBuf,
    /// True if another checkpoint there may be removed. With [`restart`](Self::restart), a finished
    /// output of the same run may be removed too.
    pub overwrite: bool,
    /// True if an unfinished run there is discarded, not resumed.
    pub restart: bool,
}

impl Target {
    /// Creates a target that is empty or holds an earlier run of the same merge, which is then
    /// resumed.
    ///
    /// # Examples
    ///
    /// ```
    /// use thalweg::Target;
    ///
    /// let folder = Target { overwrite: true, ..Target::new("merged") };
    /// assert!(!folder.is_file() && Target::new("merged.safetensors").is_file());
    /// ```
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            overwrite: false,
            restart: false,
        }
    }

    /// Tells if the output is a single file of weights: its name has such an ending, and no folder
    /// has that name.
    pub fn is_file(&self) -> bool {
        Places::new(&self.dir).is_file()
    }

    /// Refuses a target that cannot be a folder because a file is there or on the way, or that is
    /// named like another kind of file.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] with the file in question.
    pub fn check_place(&self) -> Result<()> {
        check_ending(&self.dir)?;
        let places = Places::new(&self.dir);
        let folder = places.folder();
        let there = folder
            .ancestors()
            .find_map(|at| Some((at, fs::metadata(at).ok()?)));
        let Some((at, _)) = there.filter(|(_, found)| !found.is_dir()) else {
            return Ok(());
        };
        let cause = if at == self.dir {
            "it is a file".to_owned()
        } else {
            format!("{} is a file", at.display())
        };
        Err(Error::new(
            Kind::Usage,
            "cannot write to folder",
            self.dir.display(),
            cause,
        )
        .with_hint("name a folder as --out, or a single file that ends in .safetensors"))
    }
}

/// The state of a run after a look at the output folder.
pub enum Begun {
    /// A new run: nothing was written yet.
    Fresh(Output),
    /// A resumed run: the claims of the earlier process were checked, and their bytes need no
    /// writing.
    Resumed(Output),
    /// The same run was finished there before; nothing is left to do.
    Complete(Manifest),
}

/// A run before it holds the lock.
pub(super) struct Run {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) places: Places,
    pub(super) layout: Arc<Layout>,
    pub(super) identity: Value,
}

/// The prospect of a run at its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outlook {
    /// The run would begin: the target is free or may be replaced.
    Begin,
    /// The run would resume an earlier one.
    GoOn,
    /// The run has nothing to do: it was finished there before.
    Complete,
    /// The run was finished there before, and would write again the files that are missing since.
    Repair(Vec<String>),
}

impl std::fmt::Display for Outlook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begin => f.write_str("a new run begins"),
            Self::GoOn => f.write_str("goes on with what an earlier run has left there"),
            Self::Complete => f.write_str("complete already: nothing is to be done"),
            Self::Repair(faults) => write!(f, "finished before; made again: {}", faults.join(", ")),
        }
    }
}

/// Predicts what [`Output::begin`] would do. Changes nothing and does not check the bytes of an
/// earlier run.
///
/// # Errors
///
/// As [`Output::begin`]; also when nothing can be written at the target.
pub fn outlook(
    storage: Arc<dyn Storage>,
    target: &Target,
    layout: &Layout,
    identity: &Value,
) -> Result<Outlook> {
    target.check_place()?;
    let (places, layout) = (Places::new(&target.dir), Arc::new(layout.clone()));
    let run = Run {
        storage,
        places,
        layout,
        identity: normalised(identity)?,
    };
    let (finished, standing) = run.look(target)?;
    if finished.is_some() {
        return Ok(Outlook::Complete);
    }
    check_writable(&run.places)?;
    Lock::look(&run.places)?;
    match standing {
        Standing::Begun | Standing::Replacing { .. } if !target.restart => {
            resume::can_resume(&run).map(|()| Outlook::GoOn)
        }
        Standing::Broken(manifest, faults) if run.is_repaired(target, &manifest)? => {
            Ok(Outlook::Repair(faults))
        }
        Standing::Free | Standing::Begun => run.check_space().map(|()| Outlook::Begin),
        _ => run.staged().check_space().map(|()| Outlook::Begin),
    }
}

/// Checks that a run of this identity can begin or resume at the target; changes nothing.
///
/// # Errors
///
/// As [`Output::begin`], but locks are not looked at.
pub fn check_target(
    storage: Arc<dyn Storage>,
    target: &Target,
    layout: &Layout,
    identity: &Value,
) -> Result<()> {
    target.check_place()?;
    let (places, layout) = (Places::new(&target.dir), Arc::new(layout.clone()));
    let run = Run {
        storage,
        places,
        layout,
        identity: normalised(identity)?,
    };
    match run.look(target)? {
        (None, Standing::Begun | Standing::Replacing { .. }) if !target.restart => {
            resume::can_resume(&run)
        }
        _ => Ok(()),
    }
}

pub(super) fn begin(
    storage: Arc<dyn Storage>,
    target: &Target,
    layout: Arc<Layout>,
    identity: &Value,
    progress: &mut Progress<'_>,
) -> Result<Begun> {
    let places = Places::new(&target.dir);
    let run = Run {
        storage,
        places,
        layout,
        identity: normalised(identity)?,
    };
    let storage = run.storage.as_ref();
    check_work(&run.places)?;
    // Without a work folder, nothing is touched until a look shows that the run may write to the
    // folder.
    if storage.list(&run.places.work())?.is_none()
        && let (Some(manifest), _) = run.look(target)?
    {
        return Ok(Begun::Complete(manifest));
    }
    let lock = Lock::acquire(storage, &run.places)?;
    let (complete, standing) = run.look(target)?;
    if let Some(manifest) = complete {
        remove_work(storage, &run.places)?;
        return Ok(Begun::Complete(manifest));
    }
    match standing {
        Standing::Begun if !target.restart => {
            return resume::resume(run, lock, progress).map(Begun::Resumed);
        }
        Standing::Begun => {
            sweep(storage, &run.places)?;
            return run.start(lock).map(Begun::Fresh);
        }
        Standing::Replacing { is_exchanging, .. } if !target.restart => {
            resume::can_resume(&run)?;
            if is_exchanging {
                return exchange::go_on(storage, &run.places).map(Begun::Complete);
            }
            return resume::resume(run.staged(), lock, progress).map(Begun::Resumed);
        }
        Standing::Broken(manifest, _) if run.is_repaired(target, &manifest)? => {
            return repair(run, lock, &manifest, progress).map(Begun::Resumed);
        }
        // IMPORTANT: the leftover journal of a finished run is removed while its manifest still
        // proves that it finished.
        _ => empty_work(storage, &run.places, Kept::Transforms)?,
    }
    let has_transforms = storage.list(&run.places.staged().alignment())?.is_some();
    if matches!(standing, Standing::Free) && !has_transforms {
        return run.start(lock).map(Begun::Fresh);
    }
    run.staged().start(lock).map(Begun::Fresh)
}

impl Run {
    /// Surveys the target; returns also the manifest if the same run is finished there.
    fn look(&self, target: &Target) -> Result<(Option<Manifest>, Standing)> {
        check_work(&self.places)?;
        check_manifest(&self.places)?;
        let standing = survey(self.storage.as_ref(), &self.places)?;
        let judged = self.judge(target, &standing);
        // A finished output is only read, so links in it, such as those of a hub's cache, do no
        // harm.
        if !matches!(judged, Ok(Some(_))) {
            check_finished(&self.places, &self.layout)?;
        }
        Ok((judged?, standing))
    }

    /// Returns the manifest if the same run is finished here; `None` if the run may begin or go on.
    fn judge(&self, target: &Target, standing: &Standing) -> Result<Option<Manifest>> {
        match standing {
            Standing::Finished(manifest) => {
                let differs = self.differs_from(manifest)?;
                match differs {
                    None if !(target.restart && target.overwrite) => {
                        Ok(Some(manifest.as_ref().clone()))
                    }
                    Some(cause) if !target.overwrite => {
                        Err(self
                            .occupied(format!("another merge is finished there: {cause}"), target))
                    }
                    _ => Ok(None),
                }
            }
            Standing::Broken(manifest, faults) => match self.differs_from(manifest)? {
                Some(cause) if !target.overwrite => {
                    let faults = faults.join(", ");
                    let cause =
                        format!("another merge was finished there, of which {faults}: {cause}");
                    Err(self.occupied(cause, target))
                }
                _ => Ok(None),
            },
            Standing::Occupied(name) if !target.overwrite => Err(self.occupied(
                format!("it holds {name}, which this run did not write"),
                target,
            )),
            Standing::Replacing {
                is_exchanging,
                under,
            } => self.judge_replacing(target, *is_exchanging, under),
            _ => Ok(None),
        }
    }

    /// As `judge`, where an unfinished run is to replace the present output.
    fn judge_replacing(
        &self,
        target: &Target,
        is_exchanging: bool,
        under: &Standing,
    ) -> Result<Option<Manifest>> {
        let is_own = resume::can_resume(self).is_ok();
        if target.restart || (is_own && !is_exchanging && matches!(under, Standing::Finished(_))) {
            let judged = self.judge(target, under);
            if target.restart || matches!(judged, Ok(Some(_))) {
                return judged;
            }
        }
        if is_own && !is_exchanging && !target.overwrite {
            let cause = "a run was begun that replaces what is there, and this one may not";
            return Err(self.occupied(cause.into(), target).with_hint(
                "let --overwrite go on with it; what is there is whole until then, and --restart discards what was begun",
            ));
        }
        Ok(None)
    }

    /// Tells if only the missing parts of a finished output are written again, not all of it.
    fn is_repaired(&self, target: &Target, manifest: &Manifest) -> Result<bool> {
        Ok(!(target.restart && target.overwrite) && self.differs_from(manifest)?.is_none())
    }

    /// Returns the same run with its finished files put aside.
    fn staged(self) -> Self {
        Self {
            places: self.places.staged(),
            ..self
        }
    }

    /// Describes how a finished output differs from this run's; `None` if it does not.
    fn differs_from(&self, manifest: &Manifest) -> Result<Option<String>> {
        let is_same = |identity: &Value| manifest.identity == *identity;
        if !is_same(&sealed(&self.identity)) && !is_same(&timed(&self.identity)) {
            let words = in_words(&manifest.identity, &sealed(&self.identity));
            return Ok(Some(words.unwrap_or_else(|| "it is of another run".into())));
        }
        if !manifest.matches(&self.layout) {
            return Ok(Some(
                "same request, but its shards are laid out in another way".into(),
            ));
        }
        for (part, name) in (0..self.layout.parts().len())
            .filter_map(|part| Some((part, self.layout.index_name(part)?)))
        {
            let path = self.places.finished(&name);
            let mut wanted = blake3::Hasher::new();
            self.layout
                .write_index(part, &mut wanted)
                .map_err(|error| Error::io("cannot make", &path, error))?;
            let is_same = match self.storage.len(&path)? {
                // A missing one is written again.
                None => true,
                len => {
                    len == Some(wanted.count())
                        && hash_of(self.storage.as_ref(), &path)? == wanted.finalize()
                }
            };
            if !is_same {
                return Ok(Some("same request, but its index was changed".into()));
            }
        }
        Ok(None)
    }

    fn occupied(&self, cause: String, target: &Target) -> Error {
        let subject = self.places.out().display();
        Error::new(Kind::Occupied, "cannot write to folder", subject, cause).with_hint(match target.restart {
            true => "--restart discards unfinished work only: choose another folder, or let --overwrite replace it",
            false => "choose another folder, or let --overwrite replace it",
        })
    }

    /// Returns the contents of the journal's first record.
    pub(super) fn journal_identity(&self) -> Value {
        json!({ "layout": self.layout.fingerprint().to_hex().as_str(), "identity": self.identity })
    }

    /// Counts the check blocks of each tensor.
    pub(super) fn block_counts(&self) -> Vec<u64> {
        self.layout
            .tensors()
            .iter()
            .map(|slot| block_count(slot.len))
            .collect()
    }

    /// Starts a new run: an empty journal, and every shard reserved at its full size.
    fn start(self, lock: Lock) -> Result<Output> {
        let storage = self.storage.as_ref();
        empty_work(storage, &self.places, Kept::Journal)?;
        if let Err(error) = self.check_space() {
            _ = remove_work(storage, &self.places);
            return Err(error);
        }
        if self.places.is_staged() {
            storage.create_dir_all(&self.places.aside_dir())?;
        }
        let head = head_with_identity(&self.journal_identity().to_string())?;
        // Renamed when whole, over the journal of a discarded run if there is one. So a journal
        // always has its identity, and a folder with any file of a run always has a journal.
        let aside = storage.create(&self.places.aside())?;
        aside.write_at(&head, 0)?;
        aside.sync_data()?;
        storage.rename(&self.places.aside(), &self.places.journal())?;
        if let Err(error) = self.reserve() {
            // A disk that is too small must not stay full of empty files. If even this fails, the
            // first failure is what the user needs to hear.
            _ = remove_work(storage, &self.places);
            return Err(error);
        }
        let ledger = Ledger::new(
            aside,
            u64::try_from(head.len()).expect("a length fits 64 bits"),
        );
        let state = State::empty(self.layout.tensors().len(), self.layout.shards().len());
        Output::assemble(self, lock, ledger, state)
    }

    /// Refuses to begin or go on when the disk has no room for all shards, less the bytes that
    /// unfinished shards already occupy.
    pub(super) fn check_space(&self) -> Result<()> {
        self.check_file_limit()?;
        let storage = self.storage.as_ref();
        let Some(free) = storage.free_bytes(&self.places.work())? else {
            return Ok(());
        };
        let mut wanted = 0;
        for shard in self.layout.shards() {
            if storage.len(&self.places.finished(&shard.name))?.is_none() {
                let there = storage
                    .allocated(&self.places.part(&shard.name))?
                    .unwrap_or(0);
                wanted += shard.len.saturating_sub(there);
            }
        }
        if wanted <= free {
            return Ok(());
        }
        let cause = format!(
            "no space left: {} are still to be written and {} are free, so {} bytes are missing{}",
            format_bytes(wanted),
            format_bytes(free),
            wanted - free,
            if self.places.is_staged() {
                "; what is there now stays until the new output is whole"
            } else {
                ""
            }
        );
        let subject = self.places.out().display();
        Err(
            Error::new(Kind::Io, "cannot reserve disk space for", subject, cause)
                .with_hint(FREE_SOME_SPACE),
        )
    }

    /// Refuses to begin or go on when a shard exceeds this process's limit on file sizes.
    fn check_file_limit(&self) -> Result<()> {
        let most = getrlimit(Resource::Fsize).current.unwrap_or(u64::MAX);
        let Some(shard) = self.layout.shards().iter().find(|shard| shard.len > most) else {
            return Ok(());
        };
        let cause = format!(
            "{} takes {}, and files may have at most {}",
            shard.name,
            format_bytes(shard.len),
            format_bytes(most)
        );
        let subject = self.places.out().display();
        Err(
            Error::new(Kind::Io, "cannot reserve disk space for", subject, cause)
                .with_hint(RAISE_THE_LIMIT),
        )
    }

    /// Creates every shard's file at its full size; the names of shards and journal are durable
    /// afterwards.
    fn reserve(&self) -> Result<()> {
        for shard in self.layout.shards() {
            self.storage
                .create(&self.places.part(&shard.name))?
                .preallocate(shard.len)?;
        }
        self.storage.sync_dir(&self.places.work())
    }
}
