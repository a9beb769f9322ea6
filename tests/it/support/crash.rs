//! A disk that loses power: real files, and beside them a model of what of them was made durable.
//!
//! Operations that change something are counted. From the n-th on all fail, that one, if it writes,
//! half done. Then [`CrashStorage::image`] makes the folder that the next boot could find.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use thalweg::Result;
use thalweg::error::Error;
use thalweg::output::storage::{DiskStorage, Entry, Storage, StorageFile};

/// What of the unsynced changes survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// All of them, as after a kill.
    Kept,
    /// None of them.
    Dropped,
    /// Creations, renames and removals, but no file contents.
    NamesKept,
    /// File contents, but no creations, renames and removals.
    ContentsKept,
}

impl Image {
    /// Every kind of image.
    pub const ALL: [Self; 4] = [
        Self::Kept,
        Self::Dropped,
        Self::NamesKept,
        Self::ContentsKept,
    ];
}

/// A [`Storage`] that fails from some operation on.
pub struct CrashStorage {
    root: PathBuf,
    model: Arc<Mutex<Model>>,
}

type Names = BTreeMap<PathBuf, BTreeMap<OsString, usize>>;

struct Model {
    operations: usize,
    failing: Range<usize>,
    /// By number, a handle on each file ever seen and its contents when last synced.
    files: Vec<(File, Vec<u8>)>,
    /// The files in each folder, now and when last synced.
    live: Names,
    durable: Names,
}

impl CrashStorage {
    /// Everything that is below `root` now is durable. Operation number `fail_from`, counted from
    /// 1, fails and all after it.
    pub fn new(root: &Path, fail_from: usize) -> Self {
        let mut model = Model {
            operations: 0,
            failing: fail_from..usize::MAX,
            files: vec![],
            live: Names::new(),
            durable: Names::new(),
        };
        model.adopt(root);
        model.durable = model.live.clone();
        Self {
            root: root.to_owned(),
            model: Arc::new(Mutex::new(model)),
        }
    }

    /// One that never fails.
    pub fn reliable(root: &Path) -> Self {
        Self::new(root, usize::MAX)
    }

    /// From now on only that operation fails.
    pub fn fail_once(&self, operation: usize) {
        lock(&self.model).failing = operation..operation + 1;
    }

    /// How many operations were asked for.
    pub fn operations(&self) -> usize {
        lock(&self.model).operations
    }

    /// Makes in `into` what a boot after the crash could find below the root.
    pub fn image(&self, image: Image, into: &Path) {
        let model = lock(&self.model);
        let keeps_names = matches!(image, Image::Kept | Image::NamesKept);
        let keeps_contents = matches!(image, Image::Kept | Image::ContentsKept);
        for (dir, names) in if keeps_names {
            &model.live
        } else {
            &model.durable
        } {
            let dir = into.join(dir.strip_prefix(&self.root).expect("all is below the root"));
            fs::create_dir_all(&dir).expect("image folder");
            for (name, number) in names {
                let (file, synced) = &model.files[*number];
                let contents = if keeps_contents {
                    contents(file)
                } else {
                    synced.clone()
                };
                fs::write(dir.join(name), contents).expect("image file");
            }
        }
    }

    fn step(&self) -> Result<()> {
        lock(&self.model).step(&self.root)
    }
}

fn lock(model: &Mutex<Model>) -> MutexGuard<'_, Model> {
    model
        .lock()
        .expect("no test panics while it holds the model")
}

fn contents(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("open file").len();
    let mut bytes = vec![0; usize::try_from(len).expect("small")];
    file.read_exact_at(&mut bytes, 0).expect("readable");
    bytes
}

fn split(path: &Path) -> (PathBuf, OsString) {
    let dir = path.parent().expect("a file lies in a folder");
    (
        dir.to_owned(),
        path.file_name().expect("a file has a name").to_owned(),
    )
}

fn no_power(path: &Path) -> Error {
    Error::io("cannot go on", path, io::Error::other("no power"))
}

impl Model {
    fn adopt(&mut self, dir: &Path) {
        self.live.entry(dir.to_owned()).or_default();
        for entry in fs::read_dir(dir).expect("readable folder") {
            let path = entry.expect("readable folder").path();
            if path.is_dir() {
                self.adopt(&path);
            } else {
                self.add(&path);
                let (file, synced) = self.files.last_mut().expect("just added");
                *synced = contents(file);
            }
        }
    }

    fn add(&mut self, path: &Path) -> usize {
        let file = File::open(path).expect("just made");
        self.files.push((file, vec![]));
        let (dir, name) = split(path);
        self.live
            .entry(dir)
            .or_default()
            .insert(name, self.files.len() - 1);
        self.files.len() - 1
    }

    fn number(&self, path: &Path) -> usize {
        let (dir, name) = split(path);
        self.live[&dir][&name]
    }

    /// Counts an operation; fails if the power is gone.
    fn step(&mut self, path: &Path) -> Result<()> {
        self.operations += 1;
        self.powered(path)
    }

    fn powered(&self, path: &Path) -> Result<()> {
        if self.failing.contains(&self.operations) {
            Err(no_power(path))
        } else {
            Ok(())
        }
    }
}

impl Storage for CrashStorage {
    fn create_dir_all(&self, dir: &Path) -> Result<()> {
        if dir.is_dir() {
            return lock(&self.model).powered(dir);
        }
        self.step()?;
        fs::create_dir_all(dir).map_err(|error| Error::io("cannot create folder", dir, error))?;
        let mut model = lock(&self.model);
        for dir in dir
            .ancestors()
            .take_while(|dir| dir.starts_with(&self.root))
        {
            model.live.entry(dir.to_owned()).or_default();
            model.durable.entry(dir.to_owned()).or_default();
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        self.step()?;
        let inner = DiskStorage.create(path)?;
        let number = lock(&self.model).add(path);
        Ok(Arc::new(CrashFile {
            path: path.to_owned(),
            inner,
            number,
            model: Arc::clone(&self.model),
        }))
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        self.step()?;
        let inner = DiskStorage.open(path)?;
        let number = lock(&self.model).number(path);
        Ok(Arc::new(CrashFile {
            path: path.to_owned(),
            inner,
            number,
            model: Arc::clone(&self.model),
        }))
    }

    fn open_read(&self, path: &Path) -> Result<Arc<dyn StorageFile>> {
        lock(&self.model).powered(path)?;
        DiskStorage.open_read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.step()?;
        DiskStorage.rename(from, to)?;
        let mut model = lock(&self.model);
        let number = model.number(from);
        let ((from_dir, from_name), (to_dir, to_name)) = (split(from), split(to));
        model.live.entry(from_dir).or_default().remove(&from_name);
        model
            .live
            .entry(to_dir)
            .or_default()
            .insert(to_name, number);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.step()?;
        let mut model = lock(&self.model);
        let gone: BTreeSet<_> = model
            .durable
            .keys()
            .filter(|key| key.parent() == Some(dir) && !model.live.contains_key(*key))
            .cloned()
            .collect();
        model.durable.retain(|key, _| !gone.contains(key));
        let names = model.live.get(dir).cloned().unwrap_or_default();
        model.durable.insert(dir.to_owned(), names);
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.step()?;
        DiskStorage.remove(path)?;
        let (dir, name) = split(path);
        // The lock is made outside of the storage, so the model may not know it.
        lock(&self.model).live.entry(dir).or_default().remove(&name);
        Ok(())
    }

    fn remove_dir_if_empty(&self, dir: &Path) -> Result<()> {
        self.step()?;
        DiskStorage.remove_dir_if_empty(dir)?;
        if !dir.exists() {
            lock(&self.model).live.remove(dir);
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Option<Vec<Entry>>> {
        lock(&self.model).powered(dir)?;
        DiskStorage.list(dir)
    }

    fn len(&self, path: &Path) -> Result<Option<u64>> {
        lock(&self.model).powered(path)?;
        DiskStorage.len(path)
    }
}

struct CrashFile {
    path: PathBuf,
    inner: Arc<dyn StorageFile>,
    number: usize,
    model: Arc<Mutex<Model>>,
}

impl CrashFile {
    fn step(&self) -> Result<()> {
        lock(&self.model).step(&self.path)
    }
}

impl StorageFile for CrashFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        lock(&self.model).powered(&self.path)?;
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let had_power = lock(&self.model).powered(&self.path).is_ok();
        if let Err(error) = self.step() {
            if had_power {
                self.inner.write_at(&bytes[..bytes.len() / 2], offset)?;
            }
            return Err(error);
        }
        self.inner.write_at(bytes, offset)
    }

    fn len(&self) -> Result<u64> {
        lock(&self.model).powered(&self.path)?;
        self.inner.len()
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.step()?;
        self.inner.set_len(len)
    }

    fn preallocate(&self, len: u64) -> Result<()> {
        self.step()?;
        self.inner.preallocate(len)
    }

    fn sync_data(&self) -> Result<()> {
        self.step()?;
        let mut model = lock(&self.model);
        let (file, synced) = &mut model.files[self.number];
        *synced = contents(file);
        Ok(())
    }
}
