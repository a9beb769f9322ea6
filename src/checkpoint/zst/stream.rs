//! Compressed files without a seek table: expanded once, at the first read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::{damaged, decoder, decoder_bytes};
use crate::checkpoint::source::{Identity, Input, Io, Source, SourceOptions, Window, within};
use crate::checkpoint::{InputFile, Recycler, open_plain};
use crate::error::{Error, Kind, Result};

/// The bytes that are decoded before they are written.
const COPY_BYTES: usize = 256 << 10;

/// A compressed input file that is read through an expanded copy in the scratch folder.
pub(in crate::checkpoint) struct StreamSource {
    input: Input,
    data_len: u64,
    /// The path of the expanded copy, which may not exist yet.
    copy: Option<PathBuf>,
    io: Io,
    recycler: Arc<Recycler>,
    expanded: Mutex<Option<Arc<dyn Source>>>,
    decoder_bytes: u64,
}

impl StreamSource {
    /// Creates a source that expands `file` into the scratch folder of `options` on the first load.
    pub fn new(input: Input, file: &InputFile, options: &SourceOptions) -> Self {
        let copy = options
            .scratch
            .as_ref()
            .map(|scratch| scratch.join(copy_name(&input, file)));
        let decoder_bytes = decoder_bytes(&input) + COPY_BYTES as u64;
        Self {
            input,
            data_len: file.data_len,
            copy,
            io: options.io,
            recycler: Arc::default(),
            expanded: Mutex::default(),
            decoder_bytes,
        }
    }

    /// The same source with windows in buffers of `recycler`.
    #[must_use]
    pub fn with_recycler(mut self, recycler: &Arc<Recycler>) -> Self {
        self.recycler = Arc::clone(recycler);
        self
    }

    fn expanded(&self) -> Result<Arc<dyn Source>> {
        let mut expanded = self.expanded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = &*expanded {
            return Ok(Arc::clone(source));
        }
        let Some(copy) = &self.copy else {
            let cause = "compressed in one piece, without a seek table, and there is no scratch folder to expand it in";
            return Err(
                Error::new(Kind::Input, "cannot read", self.input.path.display(), cause).with_hint(
                    "name a scratch folder, expand the file, or compress it in seekable frames",
                ),
            );
        };
        let source = open_plain(self.expand(copy)?, self.io, &self.recycler);
        *expanded = Some(Arc::clone(&source));
        Ok(source)
    }

    /// Creates the copy unless an earlier run has left it whole. The copy gets its final name only
    /// when it is durable.
    fn expand(&self, copy: &Path) -> Result<Input> {
        let part = copy.with_extension("part");
        let broken = |error| Error::io("cannot expand into", &part, error);
        // The scratch folder is created at its first use: most merges never need it.
        part.parent()
            .map_or(Ok(()), std::fs::create_dir_all)
            .map_err(broken)?;
        // NOTE: not truncated before it is locked, since another source may be writing to it.
        let mut output = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(broken)?;
        output.lock().map_err(broken)?;
        if let Ok(whole) = Input::open(copy)
            && whole.identity.len == self.data_len
        {
            let _ = std::fs::remove_file(&part);
            return Ok(whole);
        }
        output.set_len(0).map_err(broken)?;
        if let Err(error) = self.write_plain(&mut output, &part) {
            // The bytes written so far may fill the disk, and are useless.
            let _ = output.set_len(0);
            return Err(error);
        }
        output.sync_all().map_err(broken)?;
        std::fs::rename(&part, copy).map_err(broken)?;
        Input::open(copy)
    }

    /// Decodes everything, and fails as soon as there is more data than the header stated.
    fn write_plain(&self, output: &mut File, part: &Path) -> Result<()> {
        let path = &self.input.path;
        self.input.unchanged()?;
        let mut decoder = decoder(&self.input).map_err(|error| damaged(path, error))?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut written = 0;
        loop {
            let read = decoder
                .read(&mut buffer)
                .map_err(|error| damaged(path, error))?;
            if read == 0 {
                break;
            }
            written += read as u64;
            if written > self.data_len {
                return Err(damaged(
                    path,
                    format!("holds more than the {} bytes of its header", self.data_len),
                ));
            }
            output
                .write_all(&buffer[..read])
                .map_err(|error| Error::io("cannot expand into", part, error))?;
        }
        self.input.unchanged()?;
        if written == self.data_len {
            return Ok(());
        }
        Err(damaged(
            path,
            format!(
                "holds {written} bytes, its header describes {}",
                self.data_len
            ),
        ))
    }
}

/// Returns a name for the copy that differs for equally named shards of different folders, and for
/// versions of one shard.
pub(in crate::checkpoint) fn copy_name(input: &Input, file: &InputFile) -> String {
    let Identity { len, modified_ns } = input.identity;
    let path = std::fs::canonicalize(&input.path).unwrap_or_else(|_| input.path.clone());
    let mut hash = blake3::Hasher::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(&len.to_le_bytes())
        .update(&modified_ns.to_le_bytes())
        .update(&file.header_hash);
    format!("{}.safetensors", &hash.finalize().to_hex()[..32])
}

impl Source for StreamSource {
    fn path(&self) -> &Path {
        &self.input.path
    }

    fn len(&self) -> u64 {
        self.data_len
    }

    fn prefetch(&self, range: Range<u64>) {
        // Expanding takes long, so prefetch neither starts it nor waits for it.
        if let Ok(expanded) = self.expanded.try_lock()
            && let Some(source) = &*expanded
        {
            source.prefetch(range);
        }
    }

    fn load(&self, range: Range<u64>) -> Result<Window> {
        within(&range, self.data_len, &self.input.path)?;
        self.input.unchanged()?;
        self.expanded()?.load(range)
    }

    fn overhead_bytes(&self) -> u64 {
        self.decoder_bytes
    }
}
