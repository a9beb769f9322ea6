//! Writing tensors into shards the way the Hugging Face libraries split and name them.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use rayon::prelude::*;
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Map, Value, json};

use crate::Outcome;
use crate::noise::{Content, TILE};
use crate::shape::Tensor;

/// Tiles made in one go and handed to the writing thread together.
const TILES_AT_ONCE: usize = 32;
/// Buffers in flight: one being filled, one being written, one waiting.
const BUFFERS: usize = 3;

/// Writes the tensors and, if there are several shards, their index. Everything is on the disk
/// afterwards. Returns the bytes of all tensors.
pub fn write(
    folder: &Path,
    tensors: &[Tensor],
    shard_bytes: u64,
    content: &Content,
) -> Outcome<u64> {
    let shards = split(tensors, shard_bytes);
    let total_size: u64 = tensors.iter().map(Tensor::bytes).sum();
    let mut weight_map = Map::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        write_shard(&path, shard, content)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        weight_map.extend(
            shard
                .iter()
                .map(|tensor| (tensor.name.clone(), Value::from(name.clone()))),
        );
    }
    if shards.len() > 1 {
        weight_map.sort_keys();
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        let path = folder.join("model.safetensors.index.json");
        fs::write(&path, format!("{index:#}\n"))
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(total_size)
}

/// Fills shards in state dict order; a tensor above the limit gets a shard of its own. Inside a
/// shard the order is by name, as the safetensors library lays out tensors of one dtype.
fn split(tensors: &[Tensor], shard_bytes: u64) -> Vec<Vec<&Tensor>> {
    let mut shards: Vec<Vec<&Tensor>> = Vec::new();
    let mut filled = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        match shards.last_mut() {
            Some(shard) if filled + bytes <= shard_bytes => shard.push(tensor),
            _ => {
                shards.push(vec![tensor]);
                filled = 0;
            }
        }
        filled += bytes;
    }
    for shard in &mut shards {
        shard.sort_by(|a, b| a.name.cmp(&b.name));
    }
    shards
}

/// The eight bytes of length and the JSON, padded with spaces so that the data begins at a multiple
/// of eight.
fn header(tensors: &[&Tensor]) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.bytes();
        let entry = json!({
            "dtype": tensor.dtype.header_name(), "shape": tensor.shape, "data_offsets": [begin, end]
        });
        entries.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut json = Value::from(entries).to_string();
    json.extend(std::iter::repeat_n(
        ' ',
        json.len().next_multiple_of(8) - json.len(),
    ));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes
}

fn write_shard(path: &Path, tensors: &[&Tensor], content: &Content) -> io::Result<()> {
    let header = header(tensors);
    let file = File::create_new(path)?;
    let length = header.len() as u64 + tensors.iter().map(|tensor| tensor.bytes()).sum::<u64>();
    // Only for speed and an early word on a full disk; some file systems cannot do it.
    match fallocate(&file, FallocateFlags::empty(), 0, length) {
        Err(error) if io::Error::from(error).kind() != io::ErrorKind::Unsupported => {
            return Err(error.into());
        }
        _ => {}
    }
    let (full, filled) = bounded::<Vec<u8>>(BUFFERS);
    let (empty, emptied) = bounded::<Vec<u8>>(BUFFERS);
    for _ in 0..BUFFERS {
        empty
            .send(Vec::new())
            .expect("the channel holds all buffers");
    }
    thread::scope(|scope| {
        let writer = scope.spawn(move || drain(file, &header, &filled, &empty));
        // When the writer has failed, its channels are closed and its error is the one to return.
        let _ = produce(tensors, content, &full, &emptied);
        drop(full);
        writer.join().expect("the writing thread does not panic")
    })
}

fn produce(
    tensors: &[&Tensor],
    content: &Content,
    full: &Sender<Vec<u8>>,
    emptied: &Receiver<Vec<u8>>,
) -> Option<()> {
    for tensor in tensors {
        let tile_bytes = TILE * tensor.dtype.bytes();
        let at_once = (TILES_AT_ONCE * tile_bytes) as u64;
        let mut begin = 0;
        while begin < tensor.bytes() {
            let bytes = at_once.min(tensor.bytes() - begin);
            let mut buffer = emptied.recv().ok()?;
            buffer.resize(usize::try_from(bytes).expect("at most one buffer"), 0);
            let first = begin / tile_bytes as u64;
            buffer
                .par_chunks_mut(tile_bytes)
                .enumerate()
                .for_each(|(tile, out)| content.fill(tensor, first + tile as u64, out));
            full.send(buffer).ok()?;
            begin += bytes;
        }
    }
    Some(())
}

fn drain(
    file: File,
    header: &[u8],
    filled: &Receiver<Vec<u8>>,
    empty: &Sender<Vec<u8>>,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(header)?;
    for buffer in filled {
        out.write_all(&buffer)?;
        // The producer may have finished: then nobody wants the buffer back.
        let _ = empty.send(buffer);
    }
    out.into_inner()?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Precision;
    use crate::shape::PRESETS;
    use safetensors::{Dtype, SafeTensors};

    fn read_all(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        let name = |path: &Path| {
            path.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        };
        files
            .iter()
            .map(|path| (name(path), fs::read(path).expect("readable")))
            .collect()
    }

    #[test]
    fn shards_read_back_with_every_tensor_where_the_index_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let tensors = PRESETS[0].1.tensors(Precision::Bf16);
        let total =
            write(folder.path(), &tensors, 60_000, &Content::new(1, None)).expect("written");
        let files = read_all(folder.path());
        let (_, index) = files.last().expect("an index");
        let index: Value = serde_json::from_slice(index).expect("JSON");
        assert_eq!(index["metadata"]["total_size"], total);
        assert_eq!(
            index["weight_map"].as_object().expect("a map").len(),
            tensors.len()
        );
        assert!(files.len() > 3, "several shards");
        for tensor in &tensors {
            let shard = index["weight_map"][&tensor.name].as_str().expect("a shard");
            let (_, bytes) = files
                .iter()
                .find(|(name, _)| name == shard)
                .expect("the shard is there");
            let read = SafeTensors::deserialize(bytes).expect("a valid file");
            let view = read.tensor(&tensor.name).expect("the tensor is there");
            assert_eq!(view.dtype(), Dtype::BF16);
            assert_eq!(
                view.shape()
                    .iter()
                    .map(|&size| size as u64)
                    .collect::<Vec<_>>(),
                tensor.shape
            );
            assert!(view.data().iter().any(|&byte| byte != 0));
        }
    }

    #[test]
    fn values_do_not_depend_on_how_tensors_are_sharded() {
        let tensors = PRESETS[0].1.tensors(Precision::F32);
        let content = Content::new(9, Some((4, 0.01)));
        let [one, many] = [u64::MAX, 60_000].map(|shard_bytes| {
            let folder = tempfile::tempdir().expect("a folder");
            write(folder.path(), &tensors, shard_bytes, &content).expect("written");
            let mut values = Vec::new();
            for (_, bytes) in read_all(folder.path())
                .iter()
                .filter(|(name, _)| name.ends_with(".safetensors"))
            {
                let read = SafeTensors::deserialize(bytes).expect("a valid file");
                values.extend(
                    read.tensors()
                        .into_iter()
                        .map(|(name, view)| (name, view.data().to_vec())),
                );
            }
            values.sort();
            values
        });
        assert_eq!(one.len(), tensors.len());
        assert!(one == many);
    }

    #[test]
    fn a_tensor_above_the_limit_stands_alone() {
        let tensors = PRESETS[0].1.tensors(Precision::Bf16);
        let shards = split(&tensors, 1);
        assert_eq!(shards.len(), tensors.len());
        let shards = split(&tensors, 60_000);
        assert_eq!(shards.iter().map(Vec::len).sum::<usize>(), tensors.len());
        for shard in shards {
            assert!(
                shard.iter().map(|tensor| tensor.bytes()).sum::<u64>() <= 60_000
                    || shard.len() == 1
            );
        }
    }
}
