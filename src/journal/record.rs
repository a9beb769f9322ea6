//! Encoding: the file's head, records and the claims in them.

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Kind, Result};

pub(super) const MAGIC: [u8; 8] = *b"thalwegJ";
pub(super) const VERSION: u32 = 1;
pub(super) const HEAD_BYTES: usize = 12;

pub(super) const IDENTITY: u8 = 1;
pub(super) const CLAIMS: u8 = 2;

pub(super) const BLOCKS: u8 = 1;
pub(super) const NOTE: u8 = 2;
pub(super) const SHARD: u8 = 3;
pub(super) const RUN_NOTE: u8 = 4;
pub(super) const STEP: u8 = 5;

/// Bytes of length and kind before a payload.
pub(super) const PREFIX_BYTES: usize = 5;

/// Bytes of the checksum behind a payload.
pub(super) const CHECKSUM_BYTES: usize = 8;

/// The checksum value of one check block.
pub type Value = [u8; 32];

/// One claim of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// Check blocks of a tensor are durable.
    Blocks {
        /// The tensor's index in the layout.
        tensor: u32,
        /// The first block; all before it were claimed earlier.
        first: u32,
        /// The values of the blocks, from `first` on.
        values: Vec<Value>,
    },
    /// A finding about a tensor that a later run needs.
    Note {
        /// The tensor's index in the layout.
        tensor: u32,
        /// JSON text.
        note: String,
    },
    /// A finding about the whole run that a later run needs.
    RunNote {
        /// JSON text.
        note: String,
    },
    /// A shard is durable under its final name.
    Shard {
        /// The shard's index in the layout.
        shard: u32,
    },
    /// A step is done, in a run that has no other output until its end.
    Step {
        /// JSON text.
        step: String,
    },
}

/// Encodes the start of a journal: head and identity record.
///
/// # Errors
///
/// [`Kind::Resume`] when the identity takes more than 4 GiB.
pub fn head_with_identity(identity: &str) -> Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&record(IDENTITY, identity.as_bytes())?);
    Ok(bytes)
}

/// Encodes the record of one commit.
///
/// # Errors
///
/// [`Kind::Resume`] when the claims take more than 4 GiB.
pub fn claims_record(claims: &[Claim]) -> Result<Vec<u8>> {
    noting_record(claims).map(|(record, _)| record)
}

/// As [`claims_record`]; also returns the places of the tensors' notes in the record, with the
/// index of each tensor.
///
/// # Errors
///
/// As [`claims_record`].
pub fn noting_record(claims: &[Claim]) -> Result<(Vec<u8>, NotePlaces)> {
    let (mut payload, mut places) = (vec![], vec![]);
    for claim in claims {
        encode(claim, &mut payload)?;
        if let Claim::Note { tensor, note } = claim {
            let at = (PREFIX_BYTES + payload.len() - note.len()) as u64;
            places.push((
                *tensor,
                NotePlace {
                    at,
                    len: length(note.len())?,
                },
            ));
        }
    }
    Ok((record(CLAIMS, &payload)?, places))
}

/// Tensor indexes, each with the place of its note.
pub type NotePlaces = Vec<(u32, NotePlace)>;

/// The place of a note's text in the journal, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotePlace {
    /// The offset of the first byte.
    pub at: u64,
    /// The number of bytes.
    pub len: u32,
}

fn encode(claim: &Claim, into: &mut Vec<u8>) -> Result<()> {
    match claim {
        Claim::Blocks {
            tensor,
            first,
            values,
        } => {
            into.push(BLOCKS);
            for field in [*tensor, *first, length(values.len())?] {
                into.extend_from_slice(&field.to_le_bytes());
            }
            into.extend_from_slice(values.as_flattened());
        }
        Claim::Note { tensor, note } => {
            into.push(NOTE);
            for field in [*tensor, length(note.len())?] {
                into.extend_from_slice(&field.to_le_bytes());
            }
            into.extend_from_slice(note.as_bytes());
        }
        Claim::RunNote { note } => {
            into.push(RUN_NOTE);
            into.extend_from_slice(&length(note.len())?.to_le_bytes());
            into.extend_from_slice(note.as_bytes());
        }
        Claim::Shard { shard } => {
            into.push(SHARD);
            into.extend_from_slice(&shard.to_le_bytes());
        }
        Claim::Step { step } => {
            into.push(STEP);
            into.extend_from_slice(&length(step.len())?.to_le_bytes());
            into.extend_from_slice(step.as_bytes());
        }
    }
    Ok(())
}

fn record(kind: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + payload.len() + CHECKSUM_BYTES);
    bytes.extend_from_slice(&length(payload.len())?.to_le_bytes());
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    let checksum = xxh3_64(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    Ok(bytes)
}

fn length(len: usize) -> Result<u32> {
    let cause = || {
        Error::new(
            Kind::Resume,
            "cannot journal",
            "record",
            format!("{len} bytes, at most {}", u32::MAX),
        )
    };
    u32::try_from(len).map_err(|_| cause())
}
