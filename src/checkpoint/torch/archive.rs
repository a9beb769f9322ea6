//! The zip archive that `torch.save` writes since version 1.6: `<root>/data.pkl` and
//! `<root>/data/<key>`.
//!
//! Members of real checkpoints are stored as they are, so a storage is a byte range of the file.
//! Sizes and offsets are used only after a check against each other and the file's length. A file
//! with two members that share a byte or a name is refused, because readers would disagree on its
//! contents.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use zip::CompressionMethod;
use zip::read::{ArchiveOffset, Config, ZipArchive, ZipReadOptions};

use super::fault::{Fault, Parsed};
use super::file::At;
use super::pickle::MAX_BYTES;

/// The best ratio that deflate can reach; a member that claims more is lying.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// The memory of a member, in bytes: its entry, its name twice, fields beside it.
const MEMBER_BYTES: u64 = 768;
/// The length of the end record of a zip directory without its comment, in bytes; below, the
/// longest comment.
const END_BYTES: u64 = 22;
const MOST_COMMENT_BYTES: u64 = u16::MAX as u64;
/// The smallest entry of a directory, in bytes.
const LEAST_ENTRY_BYTES: u64 = 46;

/// Returns the most members that the directory of `file` can have: as many as fit behind its stated
/// start.
fn members(file: &File, file_bytes: u64) -> Parsed<u64> {
    let len = file_bytes.min(END_BYTES + MOST_COMMENT_BYTES);
    let mut tail = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut tail, file_bytes - len)?;
    // The last possible end record; the reader of the directory uses the same one.
    let Some(at) = tail.windows(4).rposition(|window| window == b"PK\x05\x06") else {
        return Ok(0);
    };
    let word = |from: usize| {
        tail.get(at + from..at + from + 4).map_or(0, |word| {
            u32::from_le_bytes([word[0], word[1], word[2], word[3]])
        })
    };
    let (count, size) = (word(10) & 0xffff, word(12));
    if count < 0xffff && size < u32::MAX {
        return Ok(u64::from(count));
    }
    // Larger numbers are in another record; the directory must fit before it.
    let start = u64::from(word(16));
    let start = if start == u64::from(u32::MAX) {
        large_start(file, file_bytes - len + at as u64)?
    } else {
        start
    };
    Ok(file_bytes.saturating_sub(start) / LEAST_ENTRY_BYTES)
}

/// Returns the directory's start by the larger record; the locator of that record is just before
/// the end record at `end`.
fn large_start(file: &File, end: u64) -> Parsed<u64> {
    let (mut locator, mut record) = ([0; 20], [0; 56]);
    let Some(at) = end.checked_sub(locator.len() as u64) else {
        return Ok(0);
    };
    file.read_exact_at(&mut locator, at)?;
    let place = u64::from_le_bytes(*locator[8..].first_chunk().expect("eight of twelve bytes"));
    if file.read_exact_at(&mut record, place).is_err() {
        return Ok(0);
    }
    Ok(u64::from_le_bytes(
        *record[48..].first_chunk().expect("the last eight bytes"),
    ))
}

/// An open archive whose directory was checked.
pub(super) struct Archive<'a> {
    zip: ZipArchive<At<'a>>,
    root: String,
    file_bytes: u64,
    /// The memory left for its contents, in bytes.
    left: u64,
}

/// The place of a storage's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Member {
    /// The bytes are this range of the file.
    Stored(Range<u64>),
    /// The bytes come from inflating the member of this number.
    Deflated { index: usize, bytes: u64 },
}

impl Member {
    /// Returns the size of the content in bytes.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Stored(range) => range.end - range.start,
            Self::Deflated { bytes, .. } => *bytes,
        }
    }
}

impl<'a> Archive<'a> {
    /// Reads the central directory of `file` and finds the one `data.pkl`, in at most `memory`
    /// bytes.
    pub(super) fn open(file: &'a File, memory: u64) -> Parsed<Self> {
        let file_bytes = file.metadata()?.len();
        let members = members(file, file_bytes)?;
        let left = memory
            .checked_sub(members.saturating_mul(MEMBER_BYTES))
            .ok_or_else(|| {
                Fault::new(format!(
                    "its zip directory of {members} members takes more memory than there is for it"
                ))
                .with_hint("give more --memory")
            })?;
        let config = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let mut zip = ZipArchive::with_config(config, At::new(file, 0)?).map_err(damaged)?;
        if zip.has_duplicate_names() {
            return Err(Fault::new("zip archive holds two members of one name"));
        }
        if zip.has_overlapping_entries().map_err(damaged)? {
            return Err(Fault::new("zip archive holds members that overlap"));
        }
        let root = root_of(&zip)?;
        let mut archive = Self {
            zip,
            root,
            file_bytes,
            left,
        };
        archive.refuse_other_kinds()?;
        Ok(archive)
    }

    /// Returns the memory left for its contents, in bytes.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Reads the bytes of `data.pkl`.
    pub(super) fn pickle(&mut self) -> Parsed<Vec<u8>> {
        let name = format!("{}data.pkl", self.root);
        self.read_small(&name, MAX_BYTES.min(self.left))?
            .ok_or_else(|| Fault::new(format!("zip archive has no member {name:?}")))
    }

    /// Finds the member that holds the storage `key`.
    pub(super) fn storage(&mut self, key: &str) -> Parsed<Member> {
        let name = format!("{}data/{key}", self.root);
        let index = self.zip.index_for_name(&name).ok_or_else(|| {
            Fault::new(format!(
                "zip archive has no member {name:?}, a storage of the pickle"
            ))
        })?;
        self.member(index).map_err(|fault| fault.of(&name))
    }

    /// Inflates the member of number `index` to `sink` and verifies its checksum.
    pub(super) fn inflate(&mut self, index: usize, sink: &mut impl Write) -> Parsed<u64> {
        let mut reader = self.reader(index)?;
        std::io::copy(&mut reader, sink).map_err(Fault::from)
    }

    fn member(&mut self, index: usize) -> Parsed<Member> {
        let member = self.zip.by_index_raw(index).map_err(damaged)?;
        if member.encrypted() {
            return Err(
                Fault::new("zip member is encrypted").with_hint("decrypt the archive first")
            );
        }
        let (packed, bytes) = (member.compressed_size(), member.size());
        let start = member
            .data_start()
            .ok_or_else(|| Fault::new("zip member has no data"))?;
        let end = start
            .checked_add(packed)
            .filter(|end| *end <= self.file_bytes)
            .ok_or_else(|| {
                Fault::new(format!(
                    "zip member of {packed} bytes at byte {start} ends beyond the file of {} bytes",
                    self.file_bytes
                ))
            })?;
        match member.compression() {
            CompressionMethod::Stored if packed == bytes => Ok(Member::Stored(start..end)),
            CompressionMethod::Stored => Err(Fault::new(format!(
                "zip member claims {bytes} bytes and stores {packed} without compression"
            ))),
            CompressionMethod::Deflated if bytes / MAX_DEFLATE_RATIO <= packed => {
                Ok(Member::Deflated { index, bytes })
            }
            CompressionMethod::Deflated => Err(Fault::new(format!(
                "zip member claims {bytes} bytes, more than its {packed} can inflate to"
            ))),
            other => Err(Fault::new(format!(
                "zip member is compressed by {other}; stored and deflate are read"
            ))),
        }
    }

    fn reader(&mut self, index: usize) -> Parsed<impl Read> {
        // torch writes 0 when checksums are turned off, and never checks them itself.
        let unchecked = self.zip.by_index_raw(index).map_err(damaged)?.crc32() == 0;
        self.zip
            .by_index_with_options(index, ZipReadOptions::new().ignore_crc32(unchecked))
            .map_err(damaged)
    }

    /// Reads a whole member of at most `limit` bytes; `None` when there is none of that name.
    fn read_small(&mut self, name: &str, limit: u64) -> Parsed<Option<Vec<u8>>> {
        let Some(index) = self.zip.index_for_name(name) else {
            return Ok(None);
        };
        let bytes = self.member(index).map_err(|fault| fault.of(name))?.bytes();
        if bytes > limit {
            return Err(Fault::new(format!(
                "{name:?} has {bytes} bytes; at most {limit} are read"
            )));
        }
        let mut content = Vec::new();
        self.reader(index)?
            .take(limit)
            .read_to_end(&mut content)
            .map_err(|error| Fault::from(error).of(name))?;
        Ok(Some(content))
    }

    fn refuse_other_kinds(&mut self) -> Parsed<()> {
        let root = self.root.clone();
        let has = |name: &str| self.zip.index_for_name(&format!("{root}{name}")).is_some();
        if has("constants.pkl") {
            return Err(
                Fault::new("is a TorchScript program, not a state dict").with_hint(
                    "load it with torch.jit.load and save its state_dict() with torch.save",
                ),
            );
        }
        match self.read_small(&format!("{root}byteorder"), 16)? {
            Some(order) if order != b"little" => Err(Fault::new(format!(
                "has byte order {:?}; only \"little\" is read",
                String::from_utf8_lossy(&order)
            ))),
            _ => Ok(()),
        }
    }
}

/// Finds the folder that holds `data.pkl`; returns it with its slash.
fn root_of(zip: &ZipArchive<At<'_>>) -> Parsed<String> {
    let mut roots = zip.file_names().filter_map(|name| {
        let name = name.ok()?;
        let root = name.strip_suffix("data.pkl")?;
        let folder = root.strip_suffix('/')?;
        (!folder.contains('/')).then(|| root.to_owned())
    });
    match (roots.next(), roots.next()) {
        (Some(root), None) => Ok(root),
        (None, _) => Err(Fault::new(
            "zip archive has no member \"…/data.pkl\": torch.save did not write it",
        )),
        (Some(one), Some(two)) => Err(Fault::new(format!(
            "zip archive has two pickles, in {one:?} and {two:?}"
        ))),
    }
}

fn damaged(error: zip::result::ZipError) -> Fault {
    Fault::new(format!("zip archive is damaged: {error}"))
}
