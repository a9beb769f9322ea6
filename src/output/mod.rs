//! Shards, index, side files, manifest, and the file operations under them.
//!
//! [`Output::begin`] looks at the folder and decides whether to start, to go on or that all is
//! done. Then come [`Output::write`], [`Output::commit`] every so often, and [`Output::finish`].
//! [`verify()`] reads a finished folder back. `engine/` decides about the computation and its
//! threads.
//!
//! ```text
//!  out/.thalweg/lock          held while a process works here
//!  out/.thalweg/journal       what is durable; see `journal/`
//!  out/.thalweg/X.part        a shard in the making, at its full size
//!  out/.thalweg/new/…         finished files of an output that is to replace what is there
//!  out/X                      a shard whose every byte is durable
//!  out/config.json …          side files
//!  out/thalweg.json           the manifest: identity, checksums, notes
//!  out/….index.json           comes last: with it the folder is a checkpoint
//! ```
//!
//! An output named `X.safetensors` is that one file. Its manifest is `X.safetensors.thalweg.json`
//! beside it, its work folder `.X.safetensors.thalweg/`; in the manifest and the journal the shard
//! is called `model.safetensors` all the same, so that file and manifest can be renamed together.
//!
//! [`Steps`] does the same for one small file that is computed step by step, such as a transform.
//!
//! With a compression level, a whole and journalled shard is compressed into `X.zst.part` in the
//! work folder, synced and renamed to `X.zst`; both folders are synced, and the uncompressed part
//! is removed. Then the shard is journalled as finished. All checksums are of the uncompressed
//! bytes.
//!
//! # The order that survives a crash
//!
//! 1. A commit syncs data, then appends one record, then syncs the journal. So a journalled block
//!    is on the disk.
//! 2. A shard whose every tensor is journalled is renamed, both folders are synced, and that is
//!    journalled.
//! 3. At the end come side files and manifest (each written aside, synced, renamed), a sync of the
//!    folder, then the index, or the only shard where there is no index, and another sync. Last,
//!    the work folder is removed.
//!
//! If an output replaces another, its files go to `.thalweg/new` instead, and the old one stays
//! unchanged until all of the new one is there; `exchange.rs` then exchanges the two.
//!
//! A folder therefore is finished exactly when its manifest and every file that the manifest names
//! are there. Until then it has the journal, and the run can be resumed.

mod begin;
mod beside;
pub mod checksum;
mod commit;
mod direct;
mod ending;
mod exchange;
mod finish;
mod folder;
mod identity;
mod listed;
mod lock;
mod manifest;
mod notes;
mod own;
mod own_checksum;
mod packed;
mod place;
mod repair;
mod resume;
mod shard_header;
mod sides;
mod steps;
pub mod storage;
mod verify;
mod write;

pub use begin::{Begun, Outlook, Target, check_target, outlook};
pub use commit::Pending;
pub use ending::{check_ending, check_folder_ending};
pub use finish::{Contents, SideFile};
pub use folder::names_one_file;
pub use listed::{ManifestTensor, Tensors};
pub use manifest::{Manifest, ManifestShard, read_manifest};
pub use own::{check_folder, check_sides};
pub use packed::{GoOn, Packers, RunAll};
pub use sides::{ManifestSide, Restored, restore};
pub use steps::{BegunSteps, Steps, is_replacing, tidy_transforms, transform_folders};
pub use storage::{DiskStorage, Storage, StorageFile};
pub use verify::{OpenShard, ShardBytes, Verified, verify, verify_with, verify_within};
pub use write::{Output, Place};

/// A callback that receives the bytes checked and their total; its failure stops the check.
pub type Progress<'a> = dyn FnMut(u64, u64) -> crate::error::Result<()> + 'a;
