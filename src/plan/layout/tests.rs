use serde_json::Value;

use super::*;

fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.into(),
    }
}

/// Reads the shard's file, with zeros for data, by the safetensors crate: (name, offset, length) in
/// file order.
fn read_back(shard: &Shard) -> Vec<(String, u64, u64)> {
    let mut file = shard.header.clone();
    file.resize(usize::try_from(shard.len).expect("small"), 0);
    let (n, metadata) = safetensors::SafeTensors::read_metadata(&file).expect("valid file");
    let start = to_u64(n) + 8;
    assert_eq!(start % 8, 0);
    assert_eq!(
        metadata.metadata().as_ref().expect("metadata")["format"],
        "pt"
    );
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
            let slot = layout
                .tensors()
                .iter()
                .find(|slot| slot.name == name)
                .expect("known");
            assert_eq!((slot.shard, slot.offset, slot.len), (number, offset, len));
            assert_eq!(
                offset % to_u64(slot.dtype.bytes()),
                0,
                "{name} is misaligned"
            );
        }
    }
}

fn index_text(layout: &Layout, part: usize) -> Vec<u8> {
    let mut text = vec![];
    layout.write_index(part, &mut text).expect("memory");
    text
}

#[test]
fn one_shard_has_the_plain_name_and_no_index() {
    let specs = [spec("b", Dtype::F32, &[2, 3]), spec("a", Dtype::BF16, &[4])];
    let layout = Layout::new(&specs, 32, "model").expect("valid");
    check(&layout, &specs);
    assert_eq!(layout.shards()[0].name, "model.safetensors");
    assert_eq!(layout.shards()[0].tensors, [0, 1]);
    assert_eq!(layout.index_names(), [""; 0]);
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
    let groups: Vec<_> = layout
        .shards()
        .iter()
        .map(|shard| shard.tensors.clone())
        .collect();
    assert_eq!(groups, [vec![0, 1], vec![2], vec![3], vec![4]]);
    assert_eq!(layout.shards()[3].name, "model-00004-of-00004.safetensors");
    let index: Value = serde_json::from_slice(&index_text(&layout, 0)).expect("valid");
    assert_eq!(index["metadata"]["total_size"], 50);
    assert_eq!(
        index["weight_map"]["big"],
        "model-00002-of-00004.safetensors"
    );
    let keys: Vec<_> = index["weight_map"]
        .as_object()
        .expect("object")
        .keys()
        .cloned()
        .collect();
    assert_eq!(keys, ["a", "b", "big", "c", "d"]);
    assert_eq!(
        Layout::new(&specs, 15, "model").expect("valid").shards()[0].tensors,
        [0]
    );
}

#[test]
fn wide_elements_come_first_only_where_alignment_needs_it() {
    let odd = [
        spec("byte", Dtype::U8, &[3]),
        spec("half", Dtype::F16, &[1]),
        spec("long", Dtype::I64, &[1]),
    ];
    let layout = Layout::new(&odd, 1 << 20, "model").expect("valid");
    check(&layout, &odd);
    assert_eq!(layout.shards()[0].tensors, [2, 1, 0]);
    let even = [
        spec("byte", Dtype::U8, &[8]),
        spec("half", Dtype::F16, &[4]),
        spec("long", Dtype::I64, &[1]),
    ];
    assert_eq!(
        Layout::new(&even, 1 << 20, "model")
            .expect("valid")
            .shards()[0]
            .tensors,
        [0, 1, 2]
    );
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
        assert_eq!(
            layout
                .tensors()
                .iter()
                .map(|slot| slot.len)
                .collect::<Vec<_>>(),
            [4, 0, 0, 1]
        );
    }
}

#[test]
fn every_dtype_is_known_to_the_safetensors_crate() {
    let specs: Vec<_> = Dtype::ALL
        .iter()
        .map(|dtype| spec(dtype.name(), *dtype, &[8]))
        .collect();
    check(
        &Layout::new(&specs, 1 << 20, "model").expect("valid"),
        &specs,
    );
}

#[test]
fn impossible_names_and_shapes_are_refused() {
    let kind = |specs: &[TensorSpec]| Layout::new(specs, 10, "model").expect_err("refused").kind();
    let twice = [spec("a", Dtype::U8, &[1]), spec("a", Dtype::U8, &[2])];
    assert_eq!(kind(&twice), Kind::Mismatch);
    for name in ["", "__metadata__", "a\nb", "a\0"] {
        assert_eq!(kind(&[spec(name, Dtype::U8, &[1])]), Kind::Input);
    }
    assert_eq!(
        kind(&[spec("a", Dtype::U8, &[1 << 40, 1 << 40])]),
        Kind::Input
    );
    assert_eq!(kind(&[spec("a", Dtype::F64, &[1 << 61])]), Kind::Input);
    assert_eq!(kind(&[spec("a", Dtype::F4, &[3])]), Kind::Input);
    assert_eq!(
        Layout::new(&[], 0, "model").expect_err("refused").kind(),
        Kind::Usage
    );
    for base in ["", "../model", "a/b", ".hidden"] {
        assert_eq!(
            Layout::new(&[], 1, base).expect_err("refused").kind(),
            Kind::Usage
        );
    }
}

#[test]
fn many_tiny_tensors_are_spread_so_that_headers_stay_readable() {
    let specs: Vec<_> = (0..90_000)
        .map(|i| spec(&format!("experts.{i}.scale"), Dtype::F32, &[1]))
        .collect();
    let layout = Layout::new(&specs, u64::MAX, "model").expect("valid");
    assert!(layout.shards().len() > 1);
    assert!(
        layout
            .shards()
            .iter()
            .all(|shard| to_u64(shard.header.len()) <= HEADER_BYTES)
    );
}

#[test]
fn every_part_has_its_own_shards_and_index_and_names_its_tensors_without_its_folder() {
    let specs = [
        spec("unet/b", Dtype::U8, &[8]),
        spec("unet/a", Dtype::U8, &[8]),
        spec("vae/a", Dtype::U8, &[4]),
        spec("a", Dtype::U8, &[4]),
    ];
    let part = |folder: &str, stem: &str| Part {
        folder: folder.into(),
        ..Part::main(stem)
    };
    let parts = vec![
        part("unet", "diffusion_pytorch_model"),
        part("vae", "model"),
        part("", "model"),
    ];
    let layout = Layout::of_parts(&specs, 8, parts).expect("valid");
    let names: Vec<_> = layout
        .shards()
        .iter()
        .map(|shard| shard.name.as_str())
        .collect();
    let unet =
        |number: usize| format!("unet/diffusion_pytorch_model-0000{number}-of-00002.safetensors");
    assert_eq!(
        names,
        [
            &unet(1),
            &unet(2),
            "vae/model.safetensors",
            "model.safetensors"
        ]
    );
    let only: Vec<_> = layout.shards().iter().map(|shard| shard.is_only).collect();
    assert_eq!(only, [false, false, true, true]);
    assert_eq!(read_back(&layout.shards()[0])[0].0, "b");
    assert_eq!(
        layout.index_names(),
        ["unet/diffusion_pytorch_model.safetensors.index.json"]
    );
    let index: Value = serde_json::from_slice(&index_text(&layout, 0)).expect("valid");
    assert_eq!(index["metadata"]["total_size"], 16);
    assert_eq!(
        index["weight_map"]["a"],
        "diffusion_pytorch_model-00002-of-00002.safetensors"
    );
    // Without tensors of its own the output itself has no file.
    let pipeline = Layout::of_parts(
        &specs[2..3],
        8,
        vec![part("vae", "model"), part("", "model")],
    )
    .expect("valid");
    assert_eq!(pipeline.shards().len(), 1);
}

#[test]
fn the_fingerprint_follows_names_shapes_and_cuts() {
    let print = |name, shape: &[u64], shard_bytes| {
        let specs = [spec(name, Dtype::U8, shape), spec("z", Dtype::U8, &[4])];
        Layout::new(&specs, shard_bytes, "model")
            .expect("valid")
            .fingerprint()
    };
    let first = print("a", &[4], 100);
    assert_eq!(first, print("a", &[4], 100));
    for other in [
        print("b", &[4], 100),
        print("a", &[2, 2], 100),
        print("a", &[4], 4),
    ] {
        assert_ne!(first, other);
    }
}
