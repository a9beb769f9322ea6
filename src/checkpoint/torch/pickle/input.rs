//! The bytes of a pickle, counted and capped.

use std::io::{BufRead, Read};

use super::MAX_BYTES;
use crate::checkpoint::torch::fault::{Fault, Parsed};

/// The longest line, in bytes: a line in a pickle holds a module or class name, and longer ones are
/// not names.
const MAX_LINE: u64 = 4096;

/// Makes the fault of a pickle for which there is no memory.
pub(in crate::checkpoint::torch) fn too_much() -> Fault {
    Fault::new("what its pickle describes takes more memory than there is for it").with_hint(
        "give more --memory, if the file is worth it; that of a usual model takes little",
    )
}

/// A reader of opcodes and their arguments that counts its position.
pub(in crate::checkpoint::torch) struct Input<R> {
    reader: R,
    position: u64,
    /// The memory left for the pickle's contents, in bytes.
    left: u64,
}

impl<R: BufRead> Input<R> {
    /// Creates a reader that takes at most `memory` bytes of memory for the pickle.
    pub(in crate::checkpoint::torch) fn new(reader: R, memory: u64) -> Self {
        Self {
            reader,
            position: 0,
            left: memory,
        }
    }

    /// Reserves memory before it is taken.
    pub(super) fn pay(&mut self, bytes: u64) -> Parsed<()> {
        self.left = self.left.checked_sub(bytes).ok_or_else(too_much)?;
        Ok(())
    }

    /// Returns the memory left, in bytes.
    pub(in crate::checkpoint::torch) fn left(&self) -> u64 {
        self.left
    }

    /// Returns the number of bytes consumed so far.
    pub(in crate::checkpoint::torch) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut bytes = [0; N];
        self.reserve(N as u64)?;
        self.reader
            .read_exact(&mut bytes)
            .map_err(|error| self.ended(&error))?;
        self.position += N as u64;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self) -> Parsed<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Reads the next `length` bytes; memory grows only with the bytes really there.
    pub(super) fn bytes(&mut self, length: u64) -> Parsed<Vec<u8>> {
        self.reserve(length)?;
        // The buffer may get twice that capacity.
        if length.saturating_mul(2) > self.left {
            return Err(too_much());
        }
        let mut bytes = Vec::new();
        self.reader.by_ref().take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(Fault::new(format!(
                "pickle ends early: {length} bytes wanted at byte {}, {} there",
                self.position,
                bytes.len()
            )));
        }
        self.position += length;
        Ok(bytes)
    }

    /// Skips `length` bytes.
    pub(super) fn skip(&mut self, length: u64) -> Parsed<()> {
        self.reserve(length)?;
        let passed = std::io::copy(&mut self.reader.by_ref().take(length), &mut std::io::sink())?;
        if passed != length {
            return Err(Fault::new(format!(
                "pickle ends early: {length} bytes wanted at byte {}, {passed} there",
                self.position
            )));
        }
        self.position += length;
        Ok(())
    }

    pub(super) fn text(&mut self, length: u64) -> Parsed<Box<str>> {
        let at = self.position;
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes)
            .map(String::into_boxed_str)
            .map_err(|_| Fault::new(format!("text at byte {at} of the pickle is not UTF-8")))
    }

    /// Reads the text up to the next line feed, without it.
    pub(super) fn line(&mut self) -> Parsed<Box<str>> {
        let at = self.position;
        let mut bytes = Vec::new();
        self.reader
            .by_ref()
            .take(MAX_LINE)
            .read_until(b'\n', &mut bytes)?;
        self.reserve(bytes.len() as u64)?;
        self.position += bytes.len() as u64;
        if bytes.pop() != Some(b'\n') {
            return Err(Fault::new(format!(
                "name at byte {at} of the pickle has no end within {MAX_LINE} bytes"
            )));
        }
        String::from_utf8(bytes)
            .map(String::into_boxed_str)
            .map_err(|_| Fault::new(format!("name at byte {at} of the pickle is not UTF-8")))
    }

    fn reserve(&self, length: u64) -> Parsed<()> {
        match self.position.checked_add(length) {
            Some(end) if end <= MAX_BYTES => Ok(()),
            _ => Err(Fault::new(format!(
                "pickle is longer than {MAX_BYTES} bytes, the most that is read"
            ))),
        }
    }

    fn ended(&self, error: &std::io::Error) -> Fault {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Fault::new(format!(
                "pickle ends early, at byte {}, without its stop mark",
                self.position
            )),
            _ => Fault::new(error.to_string()),
        }
    }
}
