//! The place of every output byte: the shard and offset of each tensor, and each shard's exact
//! header.
//!
//! All of it is known before the first byte is read, so shards can be preallocated, written in any
//! order and resumed at any block. Nothing here touches a disk.

mod header;
mod index;
mod part;

use std::collections::HashSet;
use std::io;

use crate::checkpoint::Name;
use crate::dtype::Dtype;
use crate::error::{Context, Error, Kind, Result};

pub use part::{METADATA_BYTES, Part};

/// Bytes of header at which a shard is cut: readers cap header sizes, so many tiny tensors need
/// several shards.
const HEADER_BYTES: u64 = 8 << 20;

/// Bytes that a header spends on a tensor besides its name and dimensions, rounded up.
const ENTRY_BYTES: u64 = 96;

/// The most digits and separators that one dimension takes in a header.
const DIMENSION_BYTES: u64 = 21;

/// More output than any file system holds; sums of sizes below it cannot overflow.
const TOTAL_BYTES: u64 = 1 << 60;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the output.
    pub name: Name,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
}

/// The place of a tensor in the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The tensor's name.
    pub name: Name,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Index of the shard that holds it.
    pub shard: usize,
    /// Absolute byte offset in the shard's file.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One file of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// The final file name.
    pub name: String,
    /// The file's first bytes: eight of length, then the padded JSON. Data starts right behind, at
    /// a multiple of 8.
    pub header: Vec<u8>,
    /// The tensors in it, in file order, as indexes into [`Layout::tensors`].
    pub tensors: Vec<usize>,
    /// The part that it belongs to, as an index of [`Layout::parts`].
    pub part: usize,
    /// True if it is the only shard of its part, which then has no index.
    pub is_only: bool,
    /// The file's size in bytes.
    pub len: u64,
}

/// The whole output: every shard, and every tensor's place in one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    parts: Vec<Part>,
    zstd: Option<i32>,
    shards: Vec<Shard>,
    tensors: Vec<Slot>,
}

impl Layout {
    /// Lays `tensors` out in shards of at most `shard_bytes` of data each, named after `base_name`
    /// (such as `model`).
    ///
    /// # Errors
    ///
    /// As [`of_parts`](Self::of_parts).
    pub fn new(tensors: &[TensorSpec], shard_bytes: u64, base_name: &str) -> Result<Self> {
        Self::of_parts(tensors, shard_bytes, vec![Part::main(base_name)])
    }

    /// Lays `tensors` out in shards of at most `shard_bytes` of data each. A tensor goes to the
    /// first of `parts` that holds its name; the last one holds all others.
    ///
    /// A part keeps the given order; inside a shard, wide elements move to the front (stably) only
    /// where a tensor would not lie at a multiple of its element size. A tensor bigger than
    /// `shard_bytes` gets a shard of its own. A part without a tensor has no shard, unless it is
    /// the only part. Metadata that its shards together cannot hold is left out.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] for a shard size of zero or a part that does not give plain file names,
    /// [`Kind::Mismatch`] for two tensors of one name, [`Kind::Input`] for a name or a shape that a
    /// header cannot hold.
    pub fn of_parts(
        tensors: &[TensorSpec],
        shard_bytes: u64,
        mut parts: Vec<Part>,
    ) -> Result<Self> {
        parts.iter().try_for_each(part::check)?;
        let lens = check_names(tensors, shard_bytes)
            .and_then(|()| tensors.iter().map(byte_len).collect::<Result<Vec<_>>>())?;
        check_total(&lens)?;
        let of_part = by_part(tensors, &parts)?;
        let mut layout = Self {
            parts: Vec::new(),
            zstd: None,
            shards: Vec::new(),
            tensors: Vec::new(),
        };
        let mut slots = vec![None; tensors.len()];
        let alone = parts.len() == 1;
        for (number, (part, members)) in parts.iter_mut().zip(of_part).enumerate() {
            // An output without any tensor still is a file.
            if members.is_empty() && !alone {
                continue;
            }
            let groups = cut(tensors, &lens, &members, shard_bytes);
            part.trim(groups.len());
            layout.place(
                number,
                part,
                groups,
                &Placing {
                    tensors,
                    lens: &lens,
                },
                &mut slots,
            )?;
        }
        layout.parts = parts;
        layout.tensors = slots.into_iter().flatten().collect();
        Ok(layout)
    }

    /// Adds the shards of a part, one for each of `groups`.
    fn place(
        &mut self,
        number: usize,
        part: &Part,
        mut groups: Vec<Vec<usize>>,
        placing: &Placing<'_>,
        slots: &mut [Option<Slot>],
    ) -> Result<()> {
        let Placing { tensors, lens } = placing;
        let count = groups.len();
        for (at, group) in groups.iter_mut().enumerate() {
            align(group, tensors, lens);
            let header = header::bytes(group, tensors, lens, part)?;
            let mut offset = to_u64(header.len());
            for &tensor in group.iter() {
                let TensorSpec { name, dtype, .. } = &tensors[tensor];
                let (len, shard) = (lens[tensor], self.shards.len());
                slots[tensor] = Some(Slot {
                    name: name.clone(),
                    dtype: *dtype,
                    shard,
                    offset,
                    len,
                });
                offset += len;
            }
            let name = part.path(&shard_name(&part.stem, at, count));
            self.shards.push(Shard {
                name,
                header,
                tensors: std::mem::take(group),
                part: number,
                is_only: count == 1,
                len: offset,
            });
        }
        Ok(())
    }

    /// Returns the layout with shards that are compressed at `level` once they are complete; their
    /// names end in `.zst`.
    ///
    /// Offsets, lengths and headers stay those of the uncompressed files.
    #[must_use]
    pub fn compressed(mut self, level: i32) -> Self {
        self.zstd = Some(level);
        for shard in &mut self.shards {
            shard.name.push_str(".zst");
        }
        self
    }

    /// Returns the level at which shards are compressed, if they are.
    pub fn zstd(&self) -> Option<i32> {
        self.zstd
    }

    /// Returns the files of the output, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Returns the tensors of the output, in the order they were given.
    pub fn tensors(&self) -> &[Slot] {
        &self.tensors
    }

    /// Counts the bytes of tensor data, without headers.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|slot| slot.len).sum()
    }

    /// Counts the bytes of all files before compression.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// Returns the folders of the output that have shards of their own; the output itself comes
    /// last.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Returns the names of the indexes in the order of the parts; only parts with several shards
    /// have one.
    pub fn index_names(&self) -> Vec<String> {
        (0..self.parts.len())
            .filter_map(|part| self.index_name(part))
            .collect()
    }

    /// Returns the name of a part's index, if it needs one.
    pub fn index_name(&self, part: usize) -> Option<String> {
        let shards = self
            .shards
            .iter()
            .filter(|shard| shard.part == part)
            .take(2)
            .count();
        (shards > 1).then(|| self.parts[part].index_name())
    }

    /// Writes the index of a part: its total size, and the shard of each tensor, by name.
    ///
    /// # Errors
    ///
    /// Those of `into`.
    pub fn write_index(&self, part: usize, into: impl io::Write) -> io::Result<()> {
        index::write(self, part, into)
    }

    /// Counts the bytes of metadata in all headers.
    pub fn metadata_bytes(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| self.parts[shard.part].metadata_bytes())
            .sum()
    }

    /// Returns the name of a tensor in its file.
    pub fn name_in_file(&self, tensor: usize) -> &str {
        let slot = &self.tensors[tensor];
        header::name_in(&self.parts[self.shards[slot.shard].part].folder, &slot.name)
    }

    /// Hashes all names and headers: equal exactly when every byte outside the tensors' data is.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            for part in [shard.name.as_bytes(), &shard.header] {
                hasher
                    .update(&to_u64(part.len()).to_le_bytes())
                    .update(part);
            }
        }
        for slot in &self.tensors {
            hasher
                .update(&to_u64(slot.shard).to_le_bytes())
                .update(&slot.offset.to_le_bytes());
        }
        hasher.finalize()
    }
}

/// Tensors and their lengths in bytes.
struct Placing<'a> {
    tensors: &'a [TensorSpec],
    lens: &'a [u64],
}

fn to_u64(len: usize) -> u64 {
    u64::try_from(len).expect("a usize fits 64 bits")
}

fn shard_name(base: &str, number: usize, count: usize) -> String {
    if count == 1 {
        return format!("{base}.safetensors");
    }
    format!("{base}-{:05}-of-{count:05}.safetensors", number + 1)
}

fn check_names(tensors: &[TensorSpec], shard_bytes: u64) -> Result<()> {
    if shard_bytes == 0 {
        return Err(Error::new(
            Kind::Usage,
            "cannot lay out shards",
            "shard size",
            "0 bytes, wanted at least 1",
        ));
    }
    if u32::try_from(tensors.len()).is_err() {
        return Err(Error::new(
            Kind::Input,
            "cannot lay out shards",
            "output",
            "more than 2^32 tensors",
        ));
    }
    let mut seen = HashSet::with_capacity(tensors.len());
    for TensorSpec { name, .. } in tensors {
        if name.is_empty() || name == "__metadata__" || name.chars().any(char::is_control) {
            return Err(Error::new(
                Kind::Input,
                "cannot name tensor",
                format!("{name:?}"),
                "a header cannot hold it",
            ));
        }
        if !seen.insert(name) {
            return Err(Error::new(
                Kind::Mismatch,
                "cannot lay out tensor",
                name,
                "two tensors have this name",
            ));
        }
    }
    Ok(())
}

/// Checks that sums of lengths cannot overflow.
fn check_total(lens: &[u64]) -> Result<()> {
    let total = lens.iter().try_fold(0u64, |sum, len| sum.checked_add(*len));
    if total.is_none_or(|total| total > TOTAL_BYTES) {
        let cause = format!("its tensors take more than {TOTAL_BYTES} bytes");
        return Err(Error::new(
            Kind::Input,
            "cannot lay out shards",
            "output",
            cause,
        ));
    }
    Ok(())
}

/// Returns the tensors of each part, in the given order.
fn by_part(tensors: &[TensorSpec], parts: &[Part]) -> Result<Vec<Vec<usize>>> {
    let mut of_part = vec![Vec::new(); parts.len()];
    for (tensor, spec) in tensors.iter().enumerate() {
        let held = parts.iter().position(|part| part.holds(&spec.name));
        let held = held.ok_or_else(|| unplaced(spec).error("no part of the output holds it"))?;
        of_part[held].push(tensor);
    }
    Ok(of_part)
}

/// The failures of laying out a tensor.
fn unplaced(spec: &TensorSpec) -> Context<&Name> {
    Context::new(Kind::Input, "cannot lay out tensor", &spec.name)
}

fn byte_len(spec: &TensorSpec) -> Result<u64> {
    let context = unplaced(spec);
    let elements = spec
        .shape
        .iter()
        .try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bits = elements
        .and_then(|elements| elements.checked_mul(spec.dtype.bits()))
        .ok_or_else(|| context.error(format!("shape {:?} overflows", spec.shape)))?;
    if bits % 8 != 0 {
        return context.fail(format!(
            "shape {:?} of {} is {bits} bits, no whole bytes",
            spec.shape, spec.dtype
        ));
    }
    Ok(bits / 8)
}

/// Cuts `members` into shards, in order; always at least one shard.
fn cut(
    tensors: &[TensorSpec],
    lens: &[u64],
    members: &[usize],
    shard_bytes: u64,
) -> Vec<Vec<usize>> {
    let mut groups = vec![];
    let mut group = vec![];
    let (mut data, mut header) = (0, 0);
    for &tensor in members {
        let (spec, len) = (&tensors[tensor], lens[tensor]);
        let entry =
            ENTRY_BYTES + 2 * to_u64(spec.name.len()) + DIMENSION_BYTES * to_u64(spec.shape.len());
        if !group.is_empty() && (data + len > shard_bytes || header + entry > HEADER_BYTES) {
            groups.push(std::mem::take(&mut group));
            (data, header) = (0, 0);
        }
        group.push(tensor);
        data += len;
        header += entry;
    }
    groups.push(group);
    groups
}

/// Puts wide elements first where the given order would leave a tensor misaligned; safetensors
/// allows no holes.
fn align(group: &mut [usize], tensors: &[TensorSpec], lens: &[u64]) {
    let width = |tensor: usize| to_u64(tensors[tensor].dtype.bytes());
    let mut offset = 0;
    let aligned = group.iter().all(|&tensor| {
        let fits = offset % width(tensor) == 0;
        offset += lens[tensor];
        fits
    });
    if !aligned {
        group.sort_by_key(|&tensor| std::cmp::Reverse(width(tensor)));
    }
}

#[cfg(test)]
mod tests;
