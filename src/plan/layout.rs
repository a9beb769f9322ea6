//! Where every output byte goes: which shard a tensor lies in, at which offset, and each shard's exact header.
//!
//! All of it is known before the first byte is read, so shards can be preallocated, written in any order and taken up
//! again at any block. Nothing here touches a disk.

use std::collections::{HashMap, HashSet};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value, json};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};

/// Where a shard is cut because of its header: readers cap header sizes, so many tiny tensors need several shards.
const HEADER_BYTES: u64 = 8 << 20;

/// What a header spends on a tensor beside its name and dimensions, rounded up.
const ENTRY_BYTES: u64 = 96;

/// The most digits and separators that one dimension takes in a header.
const DIMENSION_BYTES: u64 = 21;

/// More output than any file system holds; sums of sizes below it cannot overflow.
const TOTAL_BYTES: u64 = 1 << 60;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name, unique in the output.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
}

/// Where a tensor lies in the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// The tensor's name.
    pub name: String,
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
    /// The file's first bytes: eight of length, then the padded JSON. Data starts right behind, at a multiple of 8.
    pub header: Vec<u8>,
    /// The tensors in it, in file order, as indexes into [`Layout::tensors`].
    pub tensors: Vec<usize>,
    /// The file's size in bytes.
    pub len: u64,
}

/// The whole output: every shard, and every tensor's place in one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    base_name: String,
    zstd: Option<i32>,
    shards: Vec<Shard>,
    tensors: Vec<Slot>,
}

impl Layout {
    /// Lays `tensors` out in shards of at most `shard_bytes` of data each, named after `base_name` (such as `model`).
    ///
    /// The given order is kept; inside a shard it gives way (stably, wide elements first) only where a tensor would
    /// not lie at a multiple of its element size. A tensor bigger than `shard_bytes` gets a shard of its own.
    ///
    /// # Errors
    ///
    /// [`Kind::Usage`] for a shard size of zero or a base name that is no plain file name, [`Kind::Mismatch`] for two
    /// tensors of one name, [`Kind::Input`] for a name or a shape that a header cannot hold.
    pub fn new(tensors: &[TensorSpec], shard_bytes: u64, base_name: &str) -> Result<Self> {
        check_names(tensors, shard_bytes, base_name)?;
        let lens = tensors.iter().map(byte_len).collect::<Result<Vec<_>>>()?;
        if lens.iter().try_fold(0u64, |sum, len| sum.checked_add(*len)).is_none_or(|total| total > TOTAL_BYTES) {
            let cause = format!("its tensors take more than {TOTAL_BYTES} bytes");
            return Err(Error::new(Kind::Input, "cannot lay out shards", base_name, cause));
        }
        let mut groups = cut(tensors, &lens, shard_bytes);
        let count = groups.len();
        let mut slots = vec![None; tensors.len()];
        let mut shards = Vec::with_capacity(count);
        for (number, group) in groups.iter_mut().enumerate() {
            align(group, tensors, &lens);
            let header = header_bytes(group, tensors, &lens)?;
            let mut offset = to_u64(header.len());
            for &tensor in group.iter() {
                let TensorSpec { name, dtype, .. } = &tensors[tensor];
                let len = lens[tensor];
                slots[tensor] = Some(Slot { name: name.clone(), dtype: *dtype, shard: number, offset, len });
                offset += len;
            }
            let name = shard_name(base_name, number, count);
            shards.push(Shard { name, header, tensors: std::mem::take(group), len: offset });
        }
        Ok(Self { base_name: base_name.to_owned(), zstd: None, shards, tensors: slots.into_iter().flatten().collect() })
    }

    /// The same layout with shards that are compressed at `level` once they are whole; their names end in `.zst`.
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

    /// The level at which shards are compressed, if they are.
    pub fn zstd(&self) -> Option<i32> {
        self.zstd
    }

    /// The files of the output, in order.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The tensors of the output, in the order they were given.
    pub fn tensors(&self) -> &[Slot] {
        &self.tensors
    }

    /// Bytes of tensor data, headers not counted.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(|slot| slot.len).sum()
    }

    /// Bytes of all files.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// The index's file name, such as `model.safetensors.index.json`.
    pub fn index_name(&self) -> String {
        format!("{}.safetensors.index.json", self.base_name)
    }

    /// The index: total size and which shard holds each tensor, by name. None when there is one shard, which needs
    /// no index.
    pub fn index_json(&self) -> Option<String> {
        if self.shards.len() < 2 {
            return None;
        }
        let mut slots: Vec<&Slot> = self.tensors.iter().collect();
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        let shard_of = |slot: &Slot| Value::String(self.shards[slot.shard].name.clone());
        let weight_map: Map<_, _> = slots.into_iter().map(|slot| (slot.name.clone(), shard_of(slot))).collect();
        let index = json!({ "metadata": { "total_size": self.data_bytes() }, "weight_map": weight_map });
        Some(format!("{index:#}\n"))
    }

    /// A hash over all names and headers: equal exactly when every byte outside the tensors' data is.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for shard in &self.shards {
            for part in [shard.name.as_bytes(), &shard.header] {
                hasher.update(&to_u64(part.len()).to_le_bytes()).update(part);
            }
        }
        for slot in &self.tensors {
            hasher.update(&to_u64(slot.shard).to_le_bytes()).update(&slot.offset.to_le_bytes());
        }
        hasher.finalize()
    }
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

fn check_names(tensors: &[TensorSpec], shard_bytes: u64, base_name: &str) -> Result<()> {
    if shard_bytes == 0 {
        return Err(Error::new(Kind::Usage, "cannot lay out shards", "shard size", "0 bytes, wanted at least 1"));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if base_name.is_empty() || base_name.starts_with('.') || !base_name.chars().all(plain) {
        return Err(Error::new(Kind::Usage, "cannot name shards", format!("{base_name:?}"), "not a plain file name"));
    }
    if u32::try_from(tensors.len()).is_err() {
        return Err(Error::new(Kind::Input, "cannot lay out shards", base_name, "more than 2^32 tensors"));
    }
    let mut seen = HashSet::with_capacity(tensors.len());
    for TensorSpec { name, .. } in tensors {
        if name.is_empty() || name == "__metadata__" || name.chars().any(char::is_control) {
            return Err(Error::new(Kind::Input, "cannot name tensor", format!("{name:?}"), "a header cannot hold it"));
        }
        if !seen.insert(name) {
            return Err(Error::new(Kind::Mismatch, "cannot lay out tensor", name, "two tensors have this name"));
        }
    }
    Ok(())
}

fn byte_len(spec: &TensorSpec) -> Result<u64> {
    let refuse = |cause: String| Error::new(Kind::Input, "cannot lay out tensor", &spec.name, cause);
    let elements = spec.shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim));
    let bits = elements
        .and_then(|elements| elements.checked_mul(spec.dtype.bits()))
        .ok_or_else(|| refuse(format!("shape {:?} overflows", spec.shape)))?;
    if bits % 8 != 0 {
        return Err(refuse(format!("shape {:?} of {} is {bits} bits, no whole bytes", spec.shape, spec.dtype)));
    }
    Ok(bits / 8)
}

/// Cuts the tensors into shards, in order; always at least one shard.
fn cut(tensors: &[TensorSpec], lens: &[u64], shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut groups = vec![];
    let mut group = vec![];
    let (mut data, mut header) = (0, 0);
    for (tensor, (spec, len)) in tensors.iter().zip(lens).enumerate() {
        let entry = ENTRY_BYTES + 2 * to_u64(spec.name.len()) + DIMENSION_BYTES * to_u64(spec.shape.len());
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

/// Puts wide elements first where the given order would leave a tensor misaligned; safetensors allows no holes.
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

fn header_bytes(group: &[usize], tensors: &[TensorSpec], lens: &[u64]) -> Result<Vec<u8>> {
    let mut offset = 0usize;
    let mut infos = Vec::with_capacity(group.len());
    for &tensor in group {
        let spec = &tensors[tensor];
        let refuse =
            |cause: &dyn std::fmt::Display| Error::new(Kind::Input, "cannot describe tensor", &spec.name, cause);
        let dtype = serde_json::from_value(Value::from(spec.dtype.name())).map_err(|error| refuse(&error))?;
        let shape: Result<_, _> = spec.shape.iter().map(|dim| usize::try_from(*dim)).collect();
        let len = usize::try_from(lens[tensor]).map_err(|error| refuse(&error))?;
        let info =
            TensorInfo { dtype, shape: shape.map_err(|error| refuse(&error))?, data_offsets: (offset, offset + len) };
        offset += len;
        infos.push((spec.name.clone(), info));
    }
    let refuse = |cause: &dyn std::fmt::Display| Error::new(Kind::Input, "cannot build header", "shard", cause);
    // One key only: the crate keeps them in a hash map, so two would come out in a random order.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos).map_err(|error| refuse(&error))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|error| refuse(&error))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = to_u64(json.len()).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.into() }
    }

    /// The shard's file with zeros for data, read by the safetensors crate: (name, offset, length) in file order.
    fn read_back(shard: &Shard) -> Vec<(String, u64, u64)> {
        let mut file = shard.header.clone();
        file.resize(usize::try_from(shard.len).expect("small"), 0);
        let (n, metadata) = safetensors::SafeTensors::read_metadata(&file).expect("valid file");
        let start = to_u64(n) + 8;
        assert_eq!(start % 8, 0);
        assert_eq!(metadata.metadata().as_ref().expect("metadata")["format"], "pt");
        let place = |name: String| {
            let (from, to) = metadata.info(&name).expect("listed").data_offsets;
            (name, start + to_u64(from), to_u64(to - from))
        };
        metadata.offset_keys().into_iter().map(place).collect()
    }

    fn check(layout: &Layout, specs: &[TensorSpec]) {
        assert_eq!(layout.tensors().len(), specs.len());
        for (number, shard) in layout.shards().iter().enumerate() {
            let read = read_back(shard);
            assert_eq!(read.len(), shard.tensors.len());
            for (name, offset, len) in read {
                let slot = layout.tensors().iter().find(|slot| slot.name == name).expect("known");
                assert_eq!((slot.shard, slot.offset, slot.len), (number, offset, len));
                assert_eq!(offset % to_u64(slot.dtype.bytes()), 0, "{name} is misaligned");
            }
        }
    }

    #[test]
    fn one_shard_has_the_plain_name_and_no_index() {
        let specs = [spec("b", Dtype::F32, &[2, 3]), spec("a", Dtype::BF16, &[4])];
        let layout = Layout::new(&specs, 32, "model").expect("valid");
        check(&layout, &specs);
        assert_eq!(layout.shards()[0].name, "model.safetensors");
        assert_eq!(layout.shards()[0].tensors, [0, 1]);
        assert_eq!(layout.index_json(), None);
        assert_eq!(layout.data_bytes(), 32);
    }

    #[test]
    fn shards_are_cut_at_the_byte_and_a_bigger_tensor_stands_alone() {
        let specs = [
            spec("a", Dtype::U8, &[8]),
            spec("b", Dtype::U8, &[8]),
            spec("big", Dtype::U8, &[17]),
            spec("c", Dtype::U8, &[16]),
            spec("d", Dtype::U8, &[1]),
        ];
        let layout = Layout::new(&specs, 16, "model").expect("valid");
        check(&layout, &specs);
        let groups: Vec<_> = layout.shards().iter().map(|shard| shard.tensors.clone()).collect();
        assert_eq!(groups, [vec![0, 1], vec![2], vec![3], vec![4]]);
        assert_eq!(layout.shards()[3].name, "model-00004-of-00004.safetensors");
        let index: Value = serde_json::from_str(&layout.index_json().expect("several shards")).expect("valid");
        assert_eq!(index["metadata"]["total_size"], 50);
        assert_eq!(index["weight_map"]["big"], "model-00002-of-00004.safetensors");
        let keys: Vec<_> = index["weight_map"].as_object().expect("object").keys().cloned().collect();
        assert_eq!(keys, ["a", "b", "big", "c", "d"]);
        assert_eq!(Layout::new(&specs, 15, "model").expect("valid").shards()[0].tensors, [0]);
    }

    #[test]
    fn wide_elements_come_first_only_where_alignment_needs_it() {
        let odd = [spec("byte", Dtype::U8, &[3]), spec("half", Dtype::F16, &[1]), spec("long", Dtype::I64, &[1])];
        let layout = Layout::new(&odd, 1 << 20, "model").expect("valid");
        check(&layout, &odd);
        assert_eq!(layout.shards()[0].tensors, [2, 1, 0]);
        let even = [spec("byte", Dtype::U8, &[8]), spec("half", Dtype::F16, &[4]), spec("long", Dtype::I64, &[1])];
        assert_eq!(Layout::new(&even, 1 << 20, "model").expect("valid").shards()[0].tensors, [0, 1, 2]);
    }

    #[test]
    fn no_tensors_scalars_and_empty_tensors_are_laid_out() {
        check(&Layout::new(&[], 10, "model").expect("valid"), &[]);
        let specs = [
            spec("scalar", Dtype::F32, &[]),
            spec("none", Dtype::F32, &[0, 7]),
            spec("none too", Dtype::BF16, &[3, 0]),
            spec("four", Dtype::F4, &[2]),
        ];
        for shard_bytes in [1, 4, 100] {
            let layout = Layout::new(&specs, shard_bytes, "model").expect("valid");
            check(&layout, &specs);
            assert_eq!(layout.tensors().iter().map(|slot| slot.len).collect::<Vec<_>>(), [4, 0, 0, 1]);
        }
    }

    #[test]
    fn every_dtype_is_known_to_the_safetensors_crate() {
        let specs: Vec<_> = Dtype::ALL.iter().map(|dtype| spec(dtype.name(), *dtype, &[8])).collect();
        check(&Layout::new(&specs, 1 << 20, "model").expect("valid"), &specs);
    }

    #[test]
    fn impossible_names_and_shapes_are_refused() {
        let kind = |specs: &[TensorSpec]| Layout::new(specs, 10, "model").expect_err("refused").kind();
        let twice = [spec("a", Dtype::U8, &[1]), spec("a", Dtype::U8, &[2])];
        assert_eq!(kind(&twice), Kind::Mismatch);
        for name in ["", "__metadata__", "a\nb", "a\0"] {
            assert_eq!(kind(&[spec(name, Dtype::U8, &[1])]), Kind::Input);
        }
        assert_eq!(kind(&[spec("a", Dtype::U8, &[1 << 40, 1 << 40])]), Kind::Input);
        assert_eq!(kind(&[spec("a", Dtype::F64, &[1 << 61])]), Kind::Input);
        assert_eq!(kind(&[spec("a", Dtype::F4, &[3])]), Kind::Input);
        assert_eq!(Layout::new(&[], 0, "model").expect_err("refused").kind(), Kind::Usage);
        for base in ["", "../model", "a/b", ".hidden"] {
            assert_eq!(Layout::new(&[], 1, base).expect_err("refused").kind(), Kind::Usage);
        }
    }

    #[test]
    fn many_tiny_tensors_are_spread_so_that_headers_stay_readable() {
        let specs: Vec<_> = (0..90_000).map(|i| spec(&format!("experts.{i}.scale"), Dtype::F32, &[1])).collect();
        let layout = Layout::new(&specs, u64::MAX, "model").expect("valid");
        assert!(layout.shards().len() > 1);
        assert!(layout.shards().iter().all(|shard| to_u64(shard.header.len()) <= HEADER_BYTES));
    }

    #[test]
    fn the_fingerprint_follows_names_shapes_and_cuts() {
        let print = |name, shape: &[u64], shard_bytes| {
            let specs = [spec(name, Dtype::U8, shape), spec("z", Dtype::U8, &[4])];
            Layout::new(&specs, shard_bytes, "model").expect("valid").fingerprint()
        };
        let first = print("a", &[4], 100);
        assert_eq!(first, print("a", &[4], 100));
        for other in [print("b", &[4], 100), print("a", &[2, 2], 100), print("a", &[4], 4)] {
            assert_ne!(first, other);
        }
    }
}
