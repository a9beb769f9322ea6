//! The manifest's checksum of itself: its last key holds the BLAKE3 hash of all text above that
//! line.
//!
//! So `head -n -2 thalweg.json | b3sum --no-names` prints the hash in that line, without knowledge
//! of the format. The text is read and written piece by piece, since it may exceed the memory.

use std::io::{self, Read, Write};

use super::storage::StorageFile;
use crate::error::{Error, Result};

/// The last key of the file.
const KEY: &str = "blake3_of_all_above";
/// The bytes that are written or read at a time.
const PIECE_BYTES: usize = 64 << 10;
/// The end of a pretty-printed JSON object with at least one key.
const END: &[u8] = b"\n}";

/// Returns the lines that follow a text with this hash. Their length is always the same.
fn last_lines(hash: &blake3::Hash) -> String {
    format!("  \"{KEY}\": \"{}\"\n}}\n", hash.to_hex())
}

/// A writer of text to a file, from its start on.
pub(super) struct Text<'a> {
    file: &'a dyn StorageFile,
    at: u64,
    piece: Vec<u8>,
    /// The failure of the file.
    failed: Option<Error>,
}

impl<'a> Text<'a> {
    pub(super) fn new(file: &'a dyn StorageFile) -> Self {
        Self {
            file,
            at: 0,
            piece: Vec::with_capacity(PIECE_BYTES),
            failed: None,
        }
    }

    /// Returns the result of writing; prefers the file's own failure to the writers' version of it.
    pub(super) fn ended(self, written: io::Result<()>) -> io::Result<Result<()>> {
        match (self.failed, written) {
            (Some(error), _) => Ok(Err(error)),
            (None, written) => written.map(Ok),
        }
    }
}

impl Write for Text<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() + bytes.len() > PIECE_BYTES {
            self.flush()?;
        }
        self.piece.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Err(error) = self.file.write_at(&self.piece, self.at) {
            let words = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(words));
        }
        self.at += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}

/// Takes a pretty-printed JSON object that has at least one key, and adds the checksum at its end.
pub(super) struct Sealing<W> {
    into: W,
    hasher: blake3::Hasher,
    /// The last bytes, held back since they may be the object's end.
    held: Vec<u8>,
}

impl<W: Write> Sealing<W> {
    pub(super) fn new(into: W) -> Self {
        Self {
            into,
            hasher: blake3::Hasher::new(),
            held: Vec::new(),
        }
    }

    /// Ends the object with its checksum.
    pub(super) fn finish(mut self) -> io::Result<()> {
        debug_assert_eq!(self.held, END, "a pretty-printed object");
        self.pass(b",\n")?;
        let last = last_lines(&self.hasher.finalize());
        self.into.write_all(last.as_bytes())?;
        self.into.flush()
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.into.write_all(bytes)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        let passed = self.held.len().saturating_sub(END.len());
        let held = self.held.split_off(passed);
        let passed = std::mem::replace(&mut self.held, held);
        self.pass(&passed)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader of a file's text from its start on, which checks the checksum in it.
pub(super) struct Sealed<'a> {
    file: &'a dyn StorageFile,
    len: u64,
    at: u64,
    hasher: blake3::Hasher,
    last: Vec<u8>,
}

impl<'a> Sealed<'a> {
    pub(super) fn new(file: &'a dyn StorageFile) -> Result<Self> {
        Ok(Self {
            len: file.len()?,
            file,
            at: 0,
            hasher: blake3::Hasher::new(),
            last: Vec::new(),
        })
    }

    /// Describes the fault in the checksum, once the text was read to its end; `None` when it is
    /// present and right.
    pub(super) fn wrong(&self) -> Option<String> {
        let hash = self.hasher.finalize();
        if self.last == last_lines(&hash).as_bytes() {
            return None;
        }
        Some(
            if self.last.starts_with(format!("  \"{KEY}\": \"").as_bytes()) {
                format!(
                    "its text hashes to {}, which its last line does not say",
                    hash.to_hex()
                )
            } else {
                format!("it does not end with {KEY}")
            },
        )
    }
}

impl Read for Sealed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len - self.at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let bytes = &mut buffer[..left];
        self.file
            .read_at(bytes, self.at)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let body = self
            .len
            .saturating_sub(last_lines(&blake3::hash(&[])).len() as u64);
        let above = usize::try_from(body.saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .min(left);
        self.hasher.update(&bytes[..above]);
        self.last.extend_from_slice(&bytes[above..]);
        self.at += left as u64;
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::super::storage::{DiskStorage, Storage};
    use super::*;

    fn with_own_checksum(json: &str) -> Vec<u8> {
        let mut text = Vec::new();
        let mut sealing = Sealing::new(&mut text);
        json.as_bytes()
            .chunks(3)
            .for_each(|piece| sealing.write_all(piece).expect("memory"));
        sealing.finish().expect("memory");
        text
    }

    fn wrong_own_checksum(text: &[u8]) -> Option<String> {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), text).expect("written");
        let file = DiskStorage.open_read(file.path()).expect("opened");
        let mut sealed = Sealed::new(file.as_ref()).expect("opened");
        io::copy(&mut sealed, &mut io::sink()).expect("read");
        sealed.wrong()
    }

    #[test]
    fn what_was_added_is_right_and_the_json_still_json() {
        for json in [
            "{\n  \"a\": 1\n}",
            "{\n  \"a\": {}\n}",
            "{\n  \"a\": {\n    \"b\": []\n  }\n}",
        ] {
            let text = with_own_checksum(json);
            assert_eq!(wrong_own_checksum(&text), None);
            let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            let hash = value
                .as_object_mut()
                .expect("an object")
                .remove(KEY)
                .expect("it is there");
            assert_eq!(
                value,
                serde_json::from_str::<serde_json::Value>(json).expect("JSON")
            );
            // As in the module's documentation: all but the last two lines.
            let plain = String::from_utf8(text).expect("UTF-8");
            let above: String = plain
                .split_inclusive('\n')
                .rev()
                .skip(2)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            assert_eq!(hash, blake3::hash(above.as_bytes()).to_hex().as_str());
        }
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_byte_more_is_wrong() {
        let text = with_own_checksum("{\n  \"note\": \"abc\"\n}");
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[at] ^= 1 << bit;
                assert!(
                    wrong_own_checksum(&changed).is_some(),
                    "bit {bit} of byte {at}"
                );
            }
            assert!(wrong_own_checksum(&text[..at]).is_some(), "cut at {at}");
        }
        assert!(wrong_own_checksum(&[&text[..], b"\n"].concat()).is_some());
        assert!(wrong_own_checksum(b"").is_some());
    }
}
