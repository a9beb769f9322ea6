//! Records of durable writes, and their replay. This module only encodes and decodes bytes:
//! `output/` owns the files and syncs them.
//!
//! A journal is one file, only ever appended to. All integers are little endian.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `thalwegJ` |
//! | 8 | 4 | format version, 1 |
//! | 12 | … | records |
//!
//! | record | bytes | what |
//! |---|---|---|
//! | length | 4 | of the payload |
//! | kind | 1 | 1 identity, 2 claims |
//! | payload | length | see below |
//! | checksum | 8 | XXH3-64 of the three fields above |
//!
//! The first record is the *identity*, the JSON description of the requested run, written together
//! with the file's head and renamed into place. Every other record holds the *claims* of one
//! commit, one after the other:
//!
//! | claim | layout | says |
//! |---|---|---|
//! | blocks | `1u8`, tensor u32, first u32, count u32, count × 32 bytes | these check blocks are durable, with these values |
//! | note | `2u8`, tensor u32, length u32, JSON text | a finding about the tensor |
//! | run note | `4u8`, length u32, JSON text | a finding about all tensors together |
//! | shard | `3u8`, shard u32 | the shard is durable under its final name |
//! | step | `5u8`, length u32, JSON text | a step is done, in a run that writes nothing else until its end |
//!
//! # Why a commit is one record
//!
//! A record is appended only after the one before it was synced, so a crash can tear only the last
//! record, even if the disk wrote the pages of the last append in another order. An unreadable
//! record at the end is therefore dropped, and an unreadable record with a valid one behind it is
//! refused as damage.

mod record;
mod replay;

pub use record::{Claim, NotePlace, Value, claims_record, head_with_identity, noting_record};
pub use replay::{Journal, State};
