//! Reads the pieces of a SentencePiece model, in the order of their numbers.
//!
//! The file is a protocol buffer: each field 1 is a piece, whose own field 1 is the text. All other
//! fields are skipped.

// The files are those of others.
#![deny(clippy::indexing_slicing, clippy::string_slice)]

use std::io::{self, BufRead, Read};

/// The longest piece with its score and kind, in bytes.
const MOST_BYTES: u64 = 1 << 20;

/// Calls `put` with the number and the text of every piece in `from`.
///
/// # Errors
///
/// A message: the file is not such a model, cannot be read, or `put` refuses a piece.
pub(super) fn read(
    from: &mut impl BufRead,
    put: &mut dyn FnMut(usize, &str) -> Result<(), String>,
) -> Result<(), String> {
    let mut number = 0;
    while let Some((field, wire)) = key(from)? {
        if (field, wire) == (1, 2) {
            let len = length(from)?;
            let mut piece = Vec::new();
            from.take(len.min(MOST_BYTES))
                .read_to_end(&mut piece)
                .map_err(wrong)?;
            if piece.len() as u64 != len {
                return Err("a piece is too long".to_owned());
            }
            put(number, &text(&piece)?)?;
            number += 1;
        } else {
            pass(from, wire)?;
        }
    }
    Ok(())
}

/// Reads the text of a piece.
fn text(mut piece: &[u8]) -> Result<String, String> {
    let mut text = None;
    while let Some((field, wire)) = key(&mut piece)? {
        if (field, wire) != (1, 2) {
            pass(&mut piece, wire)?;
            continue;
        }
        let len = usize::try_from(length(&mut piece)?).map_err(|error| error.to_string())?;
        let (bytes, rest) = piece.split_at_checked(len).ok_or("a piece ends early")?;
        text = Some(
            std::str::from_utf8(bytes)
                .map_err(|error| error.to_string())?
                .to_owned(),
        );
        piece = rest;
    }
    text.ok_or_else(|| "a piece has no text".to_owned())
}

/// Reads the number and the wire type of the next field; `None` at the end.
fn key(from: &mut impl BufRead) -> Result<Option<(u64, u64)>, String> {
    if from.fill_buf().map_err(wrong)?.is_empty() {
        return Ok(None);
    }
    length(from).map(|key| Some((key >> 3, key & 7)))
}

/// Reads a number of up to 64 bits, seven in each byte.
fn length(from: &mut impl BufRead) -> Result<u64, String> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let mut read = [0];
        from.read_exact(&mut read).map_err(wrong)?;
        let [byte] = read;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number does not end".to_owned())
}

/// Skips a field.
fn pass(from: &mut impl BufRead, wire: u64) -> Result<(), String> {
    let len = match wire {
        0 => return length(from).map(drop),
        1 => 8,
        2 => length(from)?,
        5 => 4,
        _ => return Err("a field is stored in an unknown way".to_owned()),
    };
    let passed = io::copy(&mut from.take(len), &mut io::sink()).map_err(wrong)?;
    if passed == len {
        Ok(())
    } else {
        Err("a field ends early".to_owned())
    }
}

fn wrong(error: io::Error) -> String {
    error.to_string()
}
