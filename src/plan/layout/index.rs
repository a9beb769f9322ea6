//! The index of a part: which of its shards holds each tensor.

use std::io;

use serde::{Serialize, Serializer};

use super::{Layout, Slot, header};

/// The index's text, as it is written.
#[derive(Serialize)]
struct Index<'a> {
    metadata: Sizes,
    weight_map: WeightMap<'a>,
}

#[derive(Serialize)]
struct Sizes {
    total_size: u64,
}

/// The tensors of a part, by name, each with the name of its shard.
struct WeightMap<'a> {
    layout: &'a Layout,
    folder: &'a str,
    slots: Vec<&'a Slot>,
}

impl Serialize for WeightMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.slots.iter().map(|slot| {
            let shard = &self.layout.shards[slot.shard].name;
            (
                header::name_in(self.folder, &slot.name),
                header::name_in(self.folder, shard),
            )
        }))
    }
}

/// Writes the index of `part` of `layout`.
pub(super) fn write(layout: &Layout, part: usize, mut into: impl io::Write) -> io::Result<()> {
    let mut slots: Vec<&Slot> = layout
        .tensors
        .iter()
        .filter(|slot| layout.shards[slot.shard].part == part)
        .collect();
    slots.sort_by(|a, b| a.name.cmp(&b.name));
    let total_size = slots.iter().map(|slot| slot.len).sum();
    let weight_map = WeightMap {
        layout,
        folder: &layout.parts[part].folder,
        slots,
    };
    serde_json::to_writer_pretty(
        &mut into,
        &Index {
            metadata: Sizes { total_size },
            weight_map,
        },
    )?;
    into.write_all(b"\n")
}
