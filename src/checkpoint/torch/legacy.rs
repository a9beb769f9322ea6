//! The stream that `torch.save` wrote before version 1.6.
//!
//! | part | content |
//! |---|---|
//! | pickle | the magic number `0x1950a86a20f9469cfc6c` |
//! | pickle | the protocol version, 1001 |
//! | pickle | a dict: `little_endian`, sizes of C types |
//! | pickle | the saved object, storages as persistent ids |
//! | pickle | a list: the storages' keys, in file order |
//! | per storage | its number of elements, 8 bytes little-endian; its elements |

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::fault::{Fault, Parsed};
use super::file::At;
use super::pickle::{self, Graph, Id, Input, Node};
use super::storage::Reference;

/// Little-endian bytes of the magic number.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const PROTOCOL: i64 = 1001;
/// The memory of a storage beside its key, in bytes.
const STORAGE_BYTES: u64 = 128;

/// The contents of a legacy file.
pub(super) struct Stream {
    pub(super) graph: Graph,
    pub(super) root: Id,
    /// The byte range of each storage's elements in the file.
    pub(super) storages: HashMap<String, Range<u64>>,
}

/// Reads the pickles of a legacy `file` and finds its storages, in at most `memory` bytes.
pub(super) fn read(file: &File, memory: u64) -> Parsed<Stream> {
    let mut input = Input::new(BufReader::new(At::new(file, 0)?), memory);
    let (graph, root) = pickle::read(&mut input)?;
    if !matches!(graph.node(root), Node::Long(bytes) if **bytes == MAGIC) {
        return Err(Fault::new("is a plain pickle: torch.save did not write it")
            .with_hint("load it in Python and save the tensors as safetensors"));
    }
    let (graph, root) = pickle::read(&mut input)?;
    if graph.int(root) != Some(PROTOCOL) {
        return Err(Fault::new(format!(
            "has protocol {}; wanted {PROTOCOL}",
            graph.describe(root)
        )));
    }
    let (graph, root) = pickle::read(&mut input)?;
    if !is_little_endian(&graph, root) {
        return Err(Fault::new("was not written on a little-endian machine"));
    }
    let (graph, root) = pickle::read(&mut input)?;
    let (key_graph, key_root) = pickle::read(&mut input)?;
    let keys = key_graph
        .sequence(key_root)
        .ok_or_else(|| Fault::new("list of storage keys is no list"))?;
    let keys = keys.iter().map(|key| {
        key_graph
            .text(*key)
            .ok_or_else(|| Fault::new("a storage key is not text"))
    });
    let storages = locate(file, input.position(), &graph, keys)?;
    Ok(Stream {
        graph,
        root,
        storages,
    })
}

fn is_little_endian(graph: &Graph, root: Id) -> bool {
    graph.mapping(root).is_some_and(|entries| {
        entries.iter().any(|(key, value)| {
            graph.text(*key) == Some("little_endian")
                && matches!(graph.node(*value), Node::Bool(true))
        })
    })
}

/// Finds the storages that follow the pickles: each states its number of elements, the pickle their
/// size.
fn locate<'k>(
    file: &File,
    mut position: u64,
    graph: &Graph,
    keys: impl Iterator<Item = Parsed<&'k str>>,
) -> Parsed<HashMap<String, Range<u64>>> {
    let file_bytes = file.metadata()?.len();
    let element_bytes = element_bytes(graph);
    let mut storages = HashMap::new();
    let mut left = graph.left;
    for key in keys {
        let key = key?;
        let element = element_bytes.get(key);
        let element = element
            .ok_or_else(|| Fault::new(format!("storage {key:?} is not named by any tensor")))?;
        let mut count = [0; 8];
        file.read_exact_at(&mut count, position).map_err(|error| {
            Fault::new(format!("cannot read the size of storage {key:?}: {error}"))
        })?;
        let start = position + 8;
        let count = u64::from_le_bytes(count);
        let end = count
            .checked_mul(*element)
            .and_then(|bytes| start.checked_add(bytes));
        let end = end.filter(|end| *end <= file_bytes).ok_or_else(|| {
            Fault::new(format!(
                "storage {key:?} of {count} elements of {element} bytes at byte {start} ends beyond the file of \
                 {file_bytes} bytes"
            ))
        })?;
        left = left
            .checked_sub(STORAGE_BYTES + key.len() as u64)
            .ok_or_else(pickle::too_much)?;
        if storages.insert(key.to_owned(), start..end).is_some() {
            return Err(Fault::new(format!("storage {key:?} comes twice")));
        }
        position = end;
    }
    Ok(storages)
}

fn element_bytes(graph: &Graph) -> HashMap<&str, u64> {
    let references = graph.nodes().filter_map(|node| match node {
        Node::Persistent(id) => Reference::parse(graph, *id).ok(),
        _ => None,
    });
    references
        .map(|reference| (reference.key, reference.element_bytes))
        .collect()
}
