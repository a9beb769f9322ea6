//! Checkpoints written by hand: files that no honest writer makes, or that only old ones made.

use std::io::Cursor;
use std::io::Write;

use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

/// Opcodes of a pickle, written one by one.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).expect("short").to_le_bytes();
        self.raw(b"X").raw(&length).raw(text.as_bytes())
    }

    fn int(self, value: i64) -> Self {
        self.raw(b"\x8a\x08").raw(&value.to_le_bytes())
    }

    fn ints(self, values: &[i64]) -> Self {
        values
            .iter()
            .fold(self.raw(b"("), |writer, value| writer.int(*value))
            .raw(b"t")
    }

    /// A persistent id; `view` comes behind the number of elements.
    fn storage(self, class: &str, key: &str, elements: i64, view: &[u8]) -> Self {
        let writer = self
            .raw(b"(")
            .text("storage")
            .raw(b"ctorch\n")
            .raw(class.as_bytes())
            .raw(b"\n");
        writer
            .text(key)
            .text("cpu")
            .int(elements)
            .raw(view)
            .raw(b"tQ")
    }

    /// A tensor on the storage that `storage` writes, with `last` after its six arguments.
    fn tensor(
        self,
        storage: impl Fn(Self) -> Self,
        offset: i64,
        shape: &[i64],
        strides: &[i64],
        last: &[u8],
    ) -> Self {
        let writer = storage(self.raw(b"ctorch._utils\n_rebuild_tensor_v2\n(")).int(offset);
        writer
            .ints(shape)
            .ints(strides)
            .raw(b"\x89ccollections\nOrderedDict\n)R")
            .raw(last)
            .raw(b"tR")
    }

    fn floats(self, elements: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Self {
        self.tensor(
            |writer| writer.storage("FloatStorage", "0", elements, b""),
            offset,
            shape,
            strides,
            b"",
        )
    }
}

/// A dict with one entry, `w`.
fn one(value: impl Fn(Writer) -> Writer) -> Vec<u8> {
    value(Writer::default().raw(b"\x80\x02}").text("w"))
        .raw(b"s.")
        .0
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, content) in members {
        zip.start_file(*name, options).expect("names differ");
        zip.write_all(content).expect("memory takes all");
    }
    zip.finish().expect("memory takes all").into_inner()
}

fn checkpoint(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    archive(&[("x/data.pkl", pickle), ("x/data/0", storage)])
}

fn open(content: &[u8], key: Option<&str>) -> Result<TorchFile> {
    let folder = TempDir::new().expect("a temporary folder can be made");
    let path = folder.path().join("x.pt");
    std::fs::write(&path, content).expect("the file can be written");
    TorchFile::open(&path, key)
}

fn refusal(content: &[u8]) -> String {
    let error = open(content, None).expect_err("the file is refused");
    assert_eq!(error.kind(), crate::Kind::Input);
    error.to_string()
}

/// Replaces the last occurrence: the one in the central directory.
fn replace_last(content: &mut [u8], old: &[u8], new: &[u8]) {
    let at = content
        .windows(old.len())
        .rposition(|window| window == old)
        .expect("it is there");
    content[at..at + new.len()].copy_from_slice(new);
}

#[test]
fn a_tensor_by_hand_is_read_where_it_lies() {
    let content = checkpoint(&one(|w| w.floats(4, 1, &[3], &[1])), &[7; 16]);
    let file = open(&content, None).expect("the file is whole");
    let tensor = &file.tensors()[0];
    assert_eq!(
        (tensor.name.as_str(), tensor.dtype, tensor.bytes()),
        ("w", Dtype::F32, 12)
    );
    let range = tensor.range.clone().expect("it is contiguous");
    assert_eq!(range.end - range.start, 12);
    assert_eq!(file.contiguous().count(), 1);
    assert!(!file.needs_conversion());
}

#[test]
fn views_outside_their_storage_are_refused_with_both_numbers() {
    for (offset, shape, strides, words) in [
        (
            2,
            &[3][..],
            &[1][..],
            "reaches element 5; its storage \"0\" ends at 4",
        ),
        (0, &[2, 2], &[3, 1], "reaches element 5"),
        (0, &[1 << 40, 1 << 40], &[1 << 40, 1], "beyond any storage"),
        (i64::MAX, &[i64::MAX], &[i64::MAX], "beyond any storage"),
        (0, &[2], &[-1], "got the int -1"),
        (0, &[2, 2], &[1], "2 dimensions and 1 strides"),
    ] {
        let cause = refusal(&checkpoint(
            &one(|w| w.floats(4, offset, shape, strides)),
            &[7; 16],
        ));
        assert!(cause.contains(words) && cause.contains("\"w\""), "{cause}");
    }
}

#[test]
fn storages_shorter_than_the_pickle_says_are_refused() {
    let cause = refusal(&checkpoint(&one(|w| w.floats(5, 0, &[1], &[1])), &[7; 16]));
    assert!(
        cause.contains("5 elements of 4 bytes; the file holds 16 bytes"),
        "{cause}"
    );
    let cause = refusal(&checkpoint(
        &one(|w| w.floats(i64::MAX, 0, &[1], &[1])),
        &[7; 16],
    ));
    assert!(cause.contains("elements of 4 bytes"), "{cause}");
    let pickle = one(|w| {
        w.tensor(
            |w| w.storage("FloatStorage", "9", 1, b""),
            0,
            &[1],
            &[1],
            b"",
        )
    });
    assert!(refusal(&checkpoint(&pickle, &[7; 16])).contains("no member \"x/data/9\""));
}

#[test]
fn lazy_conjugates_and_unknown_storages_are_refused_by_name() {
    let conj = |w: Writer| w.floats(4, 0, &[4], &[1]);
    let flagged = one(|w| {
        let storage = |w: Writer| w.storage("ComplexFloatStorage", "0", 2, b"");
        w.tensor(storage, 0, &[2], &[1], b"}X\x04\0\0\0conj\x88s")
    });
    assert!(refusal(&checkpoint(&flagged, &[7; 16])).contains("with the conj bit set"));
    assert!(open(&checkpoint(&one(conj), &[7; 16]), None).is_ok());
    let unknown = one(|w| {
        w.tensor(
            |w| w.storage("HyperStorage", "0", 2, b""),
            0,
            &[2],
            &[1],
            b"",
        )
    });
    assert!(refusal(&checkpoint(&unknown, &[7; 16])).contains("torch.HyperStorage"));
}

#[test]
fn archives_that_readers_could_disagree_on_are_refused() {
    let pickle = one(|w| w.floats(4, 0, &[4], &[1]));
    let good = archive(&[
        ("x/data.pkl", &pickle),
        ("x/data/0", &[7; 16]),
        ("x/data/1", &[8; 16]),
    ]);
    assert!(open(&good, None).is_ok());
    let mut twice = good.clone();
    replace_last(&mut twice, b"x/data/1", b"x/data/0");
    assert!(refusal(&twice).contains("two members of one name"));
    let two = archive(&[
        ("x/data.pkl", &pickle),
        ("y/data.pkl", &pickle),
        ("x/data/0", &[7; 16]),
    ]);
    assert!(refusal(&two).contains("two pickles"));
    let none = archive(&[("data.pkl", &pickle), ("a/b/data.pkl", &pickle)]);
    assert!(refusal(&none).contains("no member"));
    let big = archive(&[
        ("x/data.pkl", &pickle),
        ("x/byteorder", b"big"),
        ("x/data/0", &[7; 16]),
    ]);
    assert!(refusal(&big).contains("byte order \"big\""));
}

/// The place in `content` of the central header of the member `name`.
fn central(content: &[u8], name: &str) -> usize {
    let at = content
        .windows(name.len())
        .rposition(|window| window == name.as_bytes())
        .expect("it is there");
    at - 46
}

#[test]
fn members_that_overlap_are_encrypted_or_lie_about_their_size_are_refused() {
    let good = checkpoint(&one(|w| w.floats(4, 0, &[4], &[1])), &[7; 16]);
    let header = central(&good, "x/data/0");
    let mut overlapping = good.clone();
    overlapping[header + 42..header + 46].fill(0);
    assert!(refusal(&overlapping).contains("overlap"));
    let mut encrypted = good.clone();
    encrypted[header + 8] |= 1;
    assert!(refusal(&encrypted).contains("encrypted"));
    let mut lying = good.clone();
    lying[header + 24..header + 28].copy_from_slice(&1_000_u32.to_le_bytes());
    assert!(refusal(&lying).contains("claims 1000 bytes and stores 16"));
    let mut long = good;
    long[header + 20..header + 28].copy_from_slice(&[0, 0, 0, 0x70, 0, 0, 0, 0x70]);
    assert!(open(&long, None).is_err());
}

#[test]
fn a_damaged_pickle_is_found_by_its_checksum_unless_none_was_computed() {
    let mut content = checkpoint(&one(|w| w.floats(4, 0, &[4], &[1])), &[7; 16]);
    let place = |content: &[u8]| {
        content
            .windows(3)
            .position(|window| window == b"cpu")
            .expect("the location is there")
    };
    let at = place(&content);
    content[at] = b'k';
    assert!(refusal(&content).contains("hecksum"));
    let header = central(&content, "x/data.pkl");
    content[header + 16..header + 20].fill(0);
    assert!(open(&content, None).is_ok());
}

#[test]
fn views_that_repeat_a_storage_beyond_reason_are_not_converted() {
    let content = checkpoint(
        &one(|w| w.floats(4, 0, &[1 << 40, 1 << 8], &[0, 0])),
        &[7; 16],
    );
    let file = open(&content, None).expect("the view lies in its storage");
    let folder = TempDir::new().expect("a temporary folder can be made");
    let error = file
        .convert(&folder.path().join("out"))
        .expect_err("it would fill the disk");
    assert!(error.to_string().contains("expand 16 bytes"), "{error}");
}

#[test]
fn an_empty_tensor_may_lie_anywhere() {
    let content = checkpoint(
        &one(|w| w.floats(4, i64::MAX, &[0, 1 << 40], &[i64::MAX, 1])),
        &[7; 16],
    );
    let file = open(&content, None).expect("nothing is read");
    assert_eq!(file.tensors()[0].range, Some(0..0));
    let folder = TempDir::new().expect("a temporary folder can be made");
    file.convert(&folder.path().join("out"))
        .expect("nothing is copied");
}

#[test]
fn shapes_and_modules_out_of_proportion_are_refused() {
    // One shape of 60 dimensions, referred to by many small tensors.
    let mut writer = Writer::default()
        .raw(b"\x80\x02")
        .ints(&[1; 60])
        .raw(b"q\x000");
    writer = writer
        .raw(b"(")
        .storage("FloatStorage", "0", 4, b"")
        .int(0)
        .raw(b"h\0h\0tq\x010");
    writer = writer.raw(b"ctorch._utils\n_rebuild_tensor\nq\x020}");
    for name in 0..400 {
        writer = writer.text(&format!("{name}")).raw(b"h\x02h\x01Rs");
    }
    assert!(refusal(&checkpoint(&writer.raw(b".").0, &[7; 16])).contains("out of all proportion"));

    // A thousand dicts that are all made from one list of a thousand pairs.
    let mut writer = Writer::default().raw(b"\x80\x02]q\x00");
    for _ in 0..1000 {
        writer = writer.raw(b"K\x01K\x02\x86a");
    }
    writer = writer.raw(b"0h\x00\x85q\x010ccollections\nOrderedDict\nq\x020}");
    for name in 0..1000 {
        writer = writer.text(&format!("{name}")).raw(b"h\x02h\x01Rs");
    }
    assert!(refusal(&checkpoint(&writer.raw(b".").0, &[7; 16])).contains("out of all proportion"));

    // Sixty modules, each holding the next one twice: 2^60 names.
    let mut writer = Writer::default().raw(b"\x80\x02N");
    for _ in 0..60 {
        writer = writer
            .raw(b"q\x000cnet\nModule\n)\x81}(")
            .text("_parameters")
            .raw(b"}")
            .text("_modules");
        writer = writer
            .raw(b"}")
            .text("a")
            .raw(b"h\x00s")
            .text("b")
            .raw(b"h\x00sub");
    }
    assert!(refusal(&checkpoint(&writer.raw(b".").0, &[7; 16])).contains("out of all proportion"));
}

#[test]
fn dotted_keys_lead_through_dicts_and_through_keys_with_dots() {
    let tensor = |w: Writer| w.floats(4, 0, &[4], &[1]);
    let inner = |w: Writer| tensor(w.raw(b"}").text("t")).raw(b"s");
    let pickle = inner(Writer::default().raw(b"\x80\x02}").text("model.state_dict"))
        .raw(b"s")
        .text("model")
        .raw(b"}");
    let pickle = inner(pickle.text("ema")).raw(b"ss.").0;
    let content = checkpoint(&pickle, &[7; 16]);
    for key in ["model.state_dict", "model.ema"] {
        assert_eq!(
            open(&content, Some(key))
                .expect("the key is there")
                .tensors()
                .len(),
            1,
            "{key}"
        );
    }
    assert!(refusal(&content).contains("2 state dicts: \"model.state_dict\", \"model.ema\""));
    let error = open(&content, Some("model.nothing")).expect_err("there is no such key");
    assert!(error.to_string().contains("no key \"nothing\""), "{error}");
    let error = open(&content, Some(".")).expect_err("there is no tensor at the top");
    assert!(error.to_string().contains("no tensor"), "{error}");
}

/// A legacy stream around the pickle of the object.
fn legacy(pickle: &[u8], storages: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut content = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    content.extend(
        Writer::default()
            .raw(b"\x80\x02}")
            .text("little_endian")
            .raw(b"\x88s.")
            .0,
    );
    content.extend_from_slice(pickle);
    let keys = storages
        .iter()
        .fold(Writer::default().raw(b"\x80\x02]"), |w, (key, ..)| {
            w.text(key).raw(b"a")
        });
    content.extend(keys.raw(b".").0);
    for (_, elements, bytes) in storages {
        content.extend(elements.to_le_bytes());
        content.extend_from_slice(bytes);
    }
    content
}

#[test]
fn legacy_storages_may_be_parts_of_others() {
    let view = Writer::default()
        .raw(b"(")
        .text("part")
        .int(2)
        .int(3)
        .raw(b"t")
        .0;
    let part = |offset, size| {
        let storage = |w: Writer| w.storage("ShortStorage", "root", 6, &view);
        one(|w| w.tensor(storage, offset, &[size], &[1], b""))
    };
    let bytes: Vec<u8> = (0..12).collect();
    let content = legacy(&part(1, 2), &[("root", 6, &bytes)]);
    let file = open(&content, None).expect("the file is whole");
    let range = file.tensors()[0].range.clone().expect("it is contiguous");
    let range =
        usize::try_from(range.start).expect("small")..usize::try_from(range.end).expect("small");
    assert_eq!(content[range], [6, 7, 8, 9]);
    let cause = refusal(&legacy(&part(1, 3), &[("root", 6, &bytes)]));
    assert!(
        cause.contains("reaches element 6; its storage \"root\" ends at 5"),
        "{cause}"
    );
}

#[test]
fn legacy_streams_that_lie_about_their_storages_are_refused() {
    let pickle = one(|w| w.floats(4, 0, &[4], &[1]));
    assert!(open(&legacy(&pickle, &[("0", 4, &[7; 16])]), None).is_ok());
    for (storages, words) in [
        (&[("0", 4, &[7; 15][..])][..], "ends beyond the file"),
        (&[("0", u64::MAX, &[7; 16])], "ends beyond the file"),
        (
            &[("0", 4, &[7; 16]), ("1", 4, &[7; 16])],
            "not named by any tensor",
        ),
        (&[("0", 4, &[7; 16]), ("0", 4, &[7; 16])], "comes twice"),
        (
            &[("0", 3, &[7; 12])],
            "4 elements of 4 bytes; the file holds 12",
        ),
        (&[], "not in the file"),
    ] {
        let cause = refusal(&legacy(&pickle, storages));
        assert!(cause.contains(words), "{cause}");
    }
}
