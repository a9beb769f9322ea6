//! Every kind of damage to a single file.

use std::fs;

use proptest::prelude::*;
use thalweg::Kind;
use thalweg::checkpoint::{Checkpoint, OpenOptions, SourceOptions};

use super::{SPECS, assert_holds, assert_refused, file_of, raw_file, refusal, write};

/// A file of one entry `t`, whose JSON is given, over `data_bytes` bytes of data.
fn one(entry: &str, data_bytes: usize) -> Vec<u8> {
    raw_file(&format!("{{\"t\":{entry}}}"), data_bytes)
}

fn assert_file_refused(content: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), "x.safetensors", content);
    assert_refused(
        &folder.path().join("x.safetensors"),
        &[&["x.safetensors"], parts].concat(),
    );
}

#[test]
fn a_whole_file_reads_back_and_every_truncation_of_it_is_refused() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.safetensors");
    let whole = file_of(&SPECS, 3);
    fs::write(&path, &whole).expect("write");
    assert_holds(
        &Checkpoint::open(&path).expect("open"),
        &SPECS,
        3,
        &SourceOptions::default(),
    );
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).expect("write");
        assert!(refusal(&path).contains("cannot read header"), "{len} bytes");
    }
    fs::write(&path, [&whole[..], &[0]].concat()).expect("write");
    assert_refused(&path, &["file has"]);
}

#[test]
fn header_lengths_that_lie_are_refused_before_anything_is_reserved_for_them() {
    assert_file_refused(&u64::MAX.to_le_bytes(), &["at most 100000000"]);
    assert_file_refused(
        &100_000_000u64.to_le_bytes(),
        &["header of 100000000 bytes in a file of 8 bytes"],
    );
    let mut longer = file_of(&SPECS, 0);
    longer[0] += 8;
    assert_file_refused(&longer, &[]);
    longer[0] -= 16;
    assert_file_refused(&longer, &[]);
    assert_file_refused(&0u64.to_le_bytes(), &["does not begin with {"]);
}

#[test]
fn files_that_are_something_else_are_named() {
    assert_file_refused(
        b"version https://git-lfs.github.com/spec/v1\n",
        &["git lfs pull"],
    );
    assert_file_refused(b"PK\x03\x04\x14\0\x08\0....", &["zip"]);
    assert_file_refused(b"GGUF\x03\0\0\0\x10\0", &["GGUF"]);
    assert_file_refused(b"<!doctype html>", &["web page"]);
}

#[test]
fn json_that_is_not_a_header_is_refused() {
    let deep = format!("{{\"t\":{}", "[".repeat(200_000));
    for (json, part) in [
        (" {}", "does not begin with {"),
        ("[]", "does not begin with {"),
        ("{", "EOF"),
        ("{}x", "trailing"),
        ("{\"t\":1}", "tensor `t`"),
        ("{\"t\":{\"dtype\":\"F32\"}}", "shape"),
        ("{\"__metadata__\":{\"a\":1}}", "string"),
        ("{\"__metadata__\":{},\"__metadata__\":{}}", "twice"),
        (
            "{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}",
            "`a` is there twice",
        ),
        (&deep, "tensor `t`"),
    ] {
        assert_file_refused(&raw_file(json, 0), &[part]);
    }
    assert_file_refused(
        &[&4u64.to_le_bytes()[..], b"{\"\xFF\""].concat(),
        &["UTF-8"],
    );
    let padded = raw_file("{}\0\0\0\0\0\0", 0);
    assert_file_refused(&padded, &["trailing"]);
}

#[test]
fn metadata_that_is_null_is_none() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.safetensors");
    let json =
        "{\"__metadata__\":null,\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}";
    fs::write(&path, raw_file(json, 1)).expect("write");
    let checkpoint = Checkpoint::open(&path).expect("open");
    assert!(checkpoint.tensors().contains_key("t") && checkpoint.files()[0].metadata.is_empty());
    assert_file_refused(
        &raw_file("{\"__metadata__\":null,\"__metadata__\":null}", 0),
        &["twice"],
    );
}

#[test]
fn headers_up_to_the_length_of_the_reference_are_read() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.safetensors");
    for (len, fits) in [
        (40_000_000, true),
        (100_000_000, true),
        (100_000_001, false),
    ] {
        let mut json = "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}".to_owned();
        json.push_str(&" ".repeat(len - json.len()));
        let file = raw_file(&json, 1);
        fs::write(&path, &file).expect("write");
        assert_eq!(
            safetensors::SafeTensors::read_metadata(&file).is_ok(),
            fits,
            "{len}"
        );
        assert_eq!(Checkpoint::open(&path).is_ok(), fits, "{len}");
    }
}

#[test]
fn a_header_is_read_in_the_memory_that_is_given_or_refused_for_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("x.safetensors");
    let entry = |at| {
        format!(
            "\"{at:x}\":{{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[{at},{}]}}",
            at + 1
        )
    };
    let header = format!(
        "{{{}}}",
        (0..10_000).map(entry).collect::<Vec<_>>().join(",")
    );
    fs::write(&path, raw_file(&header, 10_000)).expect("write");
    let open = |memory| {
        Checkpoint::open_with(
            &path,
            &OpenOptions {
                memory: Some(memory),
                ..OpenOptions::default()
            },
        )
    };
    assert_eq!(open(8 << 20).expect("it fits").tensors().len(), 10_000);
    for memory in [0, 1 << 20, 3 << 20] {
        let error = open(memory).expect_err("it does not fit");
        assert_eq!(error.kind(), Kind::Budget, "{error}");
        assert!(
            error.hint().is_some_and(|hint| hint.contains("--memory"))
                && error.to_string().contains("x.safetensors")
        );
    }
}

#[test]
fn entries_that_do_not_fit_themselves_are_refused() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}")
    };
    for (dtype, shape, offsets, bytes, part) in [
        ("F33", "[1]", "[0,4]", 4, "unknown dtype `F33`"),
        ("F8_E4M3FN", "[1]", "[0,1]", 1, "unknown dtype"),
        ("F32", "[2]", "[0,4]", 4, "4 bytes of data, F32 [2] needs 8"),
        ("F32", "[1]", "[4,0]", 4, "ends before it"),
        ("F32", "[1]", "[4,8]", 8, "leaves a hole"),
        ("F32", "[1]", "[-4,0]", 4, "invalid value"),
        ("F32", "[1.0]", "[0,4]", 4, "invalid type"),
        ("F32", "[1]", "[0,4,8]", 4, "tensor `t`"),
        ("F32", "[1]", "[0,4]", 5, "describes a file of"),
        ("F32", "[1]", "[0,4]", 3, "describes a file of"),
        ("F32", "[4294967296,4294967296]", "[0,4]", 4, "too big"),
        ("F32", "[0,9223372036854775808,4]", "[0,0]", 0, "too big"),
        ("F32", "[281474976710657]", "[0,4]", 4, "too big"),
        ("F32", "[18446744073709551616]", "[0,4]", 4, "invalid type"),
        (
            "U8",
            "[0]",
            "[18446744073709551615,18446744073709551615]",
            0,
            "hole",
        ),
        ("F4", "[3]", "[0,1]", 1, "not whole bytes"),
        ("F4", "[3]", "[0,2]", 2, "not whole bytes"),
    ] {
        assert_file_refused(
            &one(&entry(dtype, shape, offsets), bytes),
            &["`t`", part].map(|p| if part.starts_with("desc") { part } else { p }),
        );
    }
    let dims = format!("[{}]", vec!["1"; 65].join(","));
    assert_file_refused(
        &one(&entry("U8", &dims, "[0,1]"), 1),
        &["more than 64 dimensions"],
    );
    let unknown = "{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"strides\":[1]}";
    assert_file_refused(&one(unknown, 1), &["strides"]);
    let doubled = "{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}";
    assert_file_refused(&one(doubled, 1), &["duplicate"]);
}

#[test]
fn entries_that_do_not_fit_each_other_are_refused() {
    let two = |a: &str, from_a: u32, b: &str, from_b: u32| {
        let entry = |name: &str, from: u32| {
            format!(
                "\"{name}\":{{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[{from},{}]}}",
                from + 4
            )
        };
        raw_file(&format!("{{{},{}}}", entry(a, from_a), entry(b, from_b)), 8)
    };
    assert_file_refused(&two("a", 0, "a", 4), &["`a` is there twice"]);
    assert_file_refused(&two("a", 0, "b", 3), &["`b`", "overlaps"]);
    assert_file_refused(&two("a", 0, "b", 5), &["`b`", "hole"]);
    assert_file_refused(&two("a", 4, "b", 4), &["hole"]);
    assert_file_refused(&two("", 0, "b", 4), &["empty name"]);
    assert_file_refused(&two("a\\n", 0, "b", 4), &["control character", "`a\\n`"]);
    assert_file_refused(&two("a\\u0000", 0, "b", 4), &["control character"]);
    assert_file_refused(
        &two(&"n".repeat(1025), 0, "b", 4),
        &["1025 bytes, at most 1024"],
    );
}

#[test]
fn a_misaligned_tensor_and_a_header_of_odd_length_are_fine() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let json = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\
                \"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[1,9]}} ";
    write(folder.path(), "x.safetensors", raw_file(json, 9));
    let checkpoint = Checkpoint::open(&folder.path().join("x.safetensors")).expect("open");
    let bytes = checkpoint.tensors()["b"].bytes.clone();
    let source = checkpoint
        .open_file(0, &SourceOptions::default())
        .expect("open file");
    assert_eq!(*source.load(bytes).expect("load"), [0x5A; 8]);
}

#[test]
fn a_file_without_tensors_is_a_checkpoint_without_tensors() {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(
        folder.path(),
        "x.safetensors",
        raw_file("{\"__metadata__\":{\"format\":\"pt\"}}", 0),
    );
    let checkpoint = Checkpoint::open(&folder.path().join("x.safetensors")).expect("open");
    assert!(checkpoint.tensors().is_empty());
    assert_eq!(checkpoint.files()[0].metadata["format"], "pt");
}

/// Opens `content` under each name a format is told by, and reads whatever is accepted.
fn open_and_read_all(content: &[u8]) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let options = SourceOptions {
        scratch: Some(folder.path().to_owned()),
        ..SourceOptions::default()
    };
    for name in [
        "x.safetensors",
        "y.safetensors.zst",
        "model.safetensors.index.json",
        "config.json",
    ] {
        write(folder.path(), name, content);
        let Ok(checkpoint) = Checkpoint::open(&folder.path().join(name)) else {
            continue;
        };
        let _ = checkpoint.config();
        for entry in checkpoint.tensors().values() {
            if let Ok(source) = checkpoint.open_file(entry.file, &options) {
                let _ = source.load(entry.bytes.clone());
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(content in prop::collection::vec(any::<u8>(), 0..200)) {
        open_and_read_all(&content);
    }

    #[test]
    fn no_flipped_bytes_make_the_reader_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 1u8..), 1..4), cut in any::<prop::sample::Index>(),
        container in 0..3,
    ) {
        let mut content = file_of(&SPECS, 1);
        if container == 1 {
            content = super::compressed::seekable(&content, 200);
        } else if container == 2 {
            content = zstd::encode_all(&*content, 1).expect("compress");
        }
        for (at, flip) in flips {
            let at = at.index(content.len());
            content[at] ^= flip;
        }
        open_and_read_all(&content);
        open_and_read_all(&content[..cut.index(content.len())]);
    }
}
