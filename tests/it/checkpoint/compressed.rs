//! Compressed shards: both kinds, their damage, and bombs.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::Dtype;
use thalweg::checkpoint::{
    Checkpoint, Container, Io, SeekableWriter, Source, SourceOptions, compress_frame,
    compress_seekable,
};

use super::{SPECS, Spec, assert_holds, assert_refused, file_of, raw_file, write};

/// `data` in frames of `frame_bytes`, with a seek table.
pub fn seekable(data: &[u8], frame_bytes: usize) -> Vec<u8> {
    let mut writer = SeekableWriter::new(Vec::new());
    for chunk in data.chunks(frame_bytes) {
        writer
            .push(&compress_frame(chunk, 1).expect("compress"), chunk.len())
            .expect("push");
    }
    writer.finish().expect("finish")
}

/// A seek table over frames of these compressed and plain sizes.
fn table(frames: &[(u32, u32)]) -> Vec<u8> {
    let mut table = zeekstd::SeekTable::new();
    for (compressed, plain) in frames {
        table.log_frame(*compressed, *plain).expect("few frames");
    }
    let mut serializer = table.into_serializer();
    let mut bytes = vec![0; serializer.encoded_len()];
    serializer.write_into(&mut bytes);
    bytes
}

fn open(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), "x.safetensors.zst", content);
    let path = folder.path().join("x.safetensors.zst");
    (folder, path)
}

fn with_scratch(folder: &Path, io: Io) -> SourceOptions {
    let scratch = folder.join("scratch");
    fs::create_dir_all(&scratch).expect("create");
    SourceOptions {
        io,
        scratch: Some(scratch),
    }
}

#[test]
fn frames_of_any_length_read_back_in_windows_of_any_length() {
    let plain = file_of(&SPECS, 5);
    for frame_bytes in [1, 7, 100, 1000, plain.len() - 1, plain.len(), 1 << 20] {
        let (_folder, path) = open(&seekable(&plain, frame_bytes));
        let checkpoint = Checkpoint::open(&path).expect("open");
        assert_eq!(checkpoint.files()[0].container, Container::ZstdSeekable);
        assert_eq!(checkpoint.files()[0].data_len, plain.len() as u64);
        assert_holds(&checkpoint, &SPECS, 5, &SourceOptions::default());
        let source = checkpoint
            .open_file(0, &SourceOptions::default())
            .expect("open file");
        for window in [1, 99, 100, 101, plain.len()] {
            for start in (0..plain.len()).step_by(window.max(13)) {
                let end = plain.len().min(start + window);
                source.prefetch(start as u64..end as u64);
                assert_eq!(
                    *source.load(start as u64..end as u64).expect("load"),
                    plain[start..end]
                );
            }
        }
        assert!(source.load(0..plain.len() as u64 + 1).is_err());
    }
}

#[test]
fn a_file_is_compressed_the_same_way_every_time_and_any_decoder_reads_it() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let specs: [Spec<'_>; 1] = [("big", Dtype::BF16, &[1300, 1024])];
    write(folder.path(), "model.safetensors", file_of(&specs, 0));
    let (src, a, b) = (
        folder.path().join("model.safetensors"),
        folder.path().join("a.safetensors.zst"),
        folder.path().join("b.zst"),
    );
    let len = compress_seekable(&src, &a, 3).expect("compress");
    compress_seekable(&src, &b, 3).expect("compress");
    let compressed = fs::read(&a).expect("read");
    assert_eq!(compressed.len() as u64, len);
    assert!(compressed == fs::read(b).expect("read"));
    assert!(zstd::decode_all(&*compressed).expect("decode") == fs::read(&src).expect("read"));
    let mut decoder =
        zeekstd::Decoder::new(zeekstd::BytesWrapper::new(&compressed)).expect("seek table");
    let mut plain = Vec::new();
    std::io::copy(&mut decoder, &mut plain).expect("decode");
    assert!(plain == fs::read(&src).expect("read"));
    assert_holds(
        &Checkpoint::open(&a).expect("open"),
        &specs,
        0,
        &SourceOptions::default(),
    );
    assert!(
        compress_seekable(&src, &a, 3).is_err(),
        "an existing file is not overwritten"
    );
}

#[test]
fn files_of_other_encoders_with_checksums_in_the_table_read_too() {
    let plain = file_of(&SPECS, 2);
    let mut content = Vec::new();
    let mut encoder = zeekstd::Encoder::new(&mut content).expect("encoder");
    encoder.write_all(&plain).expect("compress");
    encoder.finish().expect("finish");
    assert_holds(
        &Checkpoint::open(&open(&content).1).expect("open"),
        &SPECS,
        2,
        &SourceOptions::default(),
    );

    let mut content = Vec::new();
    let (start, rest) = plain.split_at(100);
    let sizes: Vec<_> = [start, rest]
        .iter()
        .map(|part| {
            let frame = compress_frame(part, 1).expect("compress");
            content.extend(&frame);
            (frame.len(), part.len())
        })
        .collect();
    content.extend(0x184D_2A5Eu32.to_le_bytes());
    content.extend(33u32.to_le_bytes());
    for (compressed, plain) in sizes {
        for word in [compressed, plain, 0xABCD] {
            content.extend(u32::try_from(word).expect("small").to_le_bytes());
        }
    }
    content.extend(2u32.to_le_bytes());
    content.push(0x80);
    content.extend(zeekstd::SEEKABLE_MAGIC_NUMBER.to_le_bytes());
    let (_folder, path) = open(&content);
    assert_holds(
        &Checkpoint::open(&path).expect("open"),
        &SPECS,
        2,
        &SourceOptions::default(),
    );
}

#[test]
fn a_seek_table_that_lies_is_refused() {
    let plain = file_of(&SPECS, 0);
    let frame = compress_frame(&plain, 1).expect("compress");
    let size = |len: usize| u32::try_from(len).expect("small");
    let (c, d) = (size(frame.len()), size(plain.len()));
    let zero = zstd::bulk::compress(&[], 1).expect("compress");
    let cases: [(Vec<u8>, &str); 8] = [
        ([&frame[..], &table(&[])].concat(), "0 frames"),
        ([&frame[..], &table(&[(c, d + 1)])].concat(), "file has"),
        ([&frame[..], &table(&[(c, d - 1)])].concat(), "file has"),
        ([&frame[..], &table(&[(c - 1, d)])].concat(), "accounts for"),
        ([&frame[..], &table(&[(c + 1, d)])].concat(), "accounts for"),
        (
            [&frame[..], b"garbage", &table(&[(c, d)])].concat(),
            "accounts for",
        ),
        (
            [&frame[..], &table(&[(c, (64 << 20) + 1)])].concat(),
            "at most 67108864",
        ),
        (
            [&frame[..], &zero, &table(&[(c, d)])].concat(),
            "accounts for",
        ),
    ];
    for (content, part) in cases {
        let (_folder, path) = open(&content);
        assert_refused(&path, &["x.safetensors.zst", part]);
    }
    let mut many = [&frame[..], &table(&[(c, d)])].concat();
    let at = many.len() - 9;
    many[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_refused(&open(&many).1, &["4294967295 frames"]);
}

#[test]
fn a_frame_that_is_not_what_the_table_says_fails_when_it_is_read() {
    let plain = file_of(&SPECS, 0);
    let (a, b) = plain.split_at(plain.len() - 100);
    let frames = [a, b].map(|part| compress_frame(part, 1).expect("compress"));
    let size = |len: usize| u32::try_from(len).expect("small");
    let len = plain.len() as u64;
    // The sum is right, the border is not.
    let sizes = [
        (size(frames[0].len()), size(a.len() + 1)),
        (size(frames[1].len()), size(b.len() - 1)),
    ];
    let (_folder, path) = open(&[&frames[0][..], &frames[1], &table(&sizes)].concat());
    let source = Checkpoint::open(&path)
        .expect("header is whole")
        .open_file(0, &SourceOptions::default())
        .expect("open");
    for range in [0..len, len - 5..len, 0..10] {
        let error = source.load(range).expect_err("frame lies").to_string();
        assert!(
            error.contains("cannot decompress") && error.contains("frame"),
            "{error}"
        );
    }
    let sizes = [
        (size(frames[0].len()), size(a.len())),
        (size(frames[1].len()), size(b.len())),
    ];
    let mut content = [&frames[0][..], &frames[1], &table(&sizes)].concat();
    let at = frames[0].len() + frames[1].len() - 6;
    content[at] ^= 1;
    let (_folder, path) = open(&content);
    let source = Checkpoint::open(&path)
        .expect("header is whole")
        .open_file(0, &SourceOptions::default())
        .expect("open");
    assert!(
        *source
            .load(0..a.len() as u64)
            .expect("first frame is whole")
            == *a
    );
    assert!(source.load(len - 1..len).is_err(), "the checksum tells");
}

#[test]
fn a_plain_stream_is_expanded_once_into_the_scratch_folder() {
    let plain = file_of(&SPECS, 4);
    for io in [Io::Map, Io::Positioned] {
        let (folder, path) = open(&zstd::encode_all(&*plain, 3).expect("compress"));
        let checkpoint = Checkpoint::open(&path).expect("open");
        assert_eq!(checkpoint.files()[0].container, Container::ZstdStream);
        let refused = checkpoint
            .open_file(0, &SourceOptions::default())
            .expect("open")
            .load(0..1)
            .expect_err("no scratch");
        assert!(refused.to_string().contains("scratch"), "{refused}");
        let options = with_scratch(folder.path(), io);
        assert_holds(&checkpoint, &SPECS, 4, &options);
        let copies: Vec<_> = fs::read_dir(folder.path().join("scratch"))
            .expect("list")
            .flatten()
            .map(|e| e.path())
            .collect();
        assert_eq!(copies.len(), 1, "{copies:?}");
        assert!(fs::read(&copies[0]).expect("read") == plain);
        let first = fs::metadata(&copies[0])
            .expect("stat")
            .modified()
            .expect("mtime");
        assert_holds(&checkpoint, &SPECS, 4, &options);
        assert_eq!(
            fs::metadata(&copies[0])
                .expect("stat")
                .modified()
                .expect("mtime"),
            first,
            "expanded again"
        );
        fs::write(&copies[0], &plain[..99]).expect("cut the copy");
        assert_holds(&checkpoint, &SPECS, 4, &options);
    }
}

#[test]
fn sources_of_one_stream_on_many_threads_share_one_copy() {
    let plain = file_of(&SPECS, 4);
    let (folder, path) = open(&zstd::encode_all(&*plain, 3).expect("compress"));
    let checkpoint = Checkpoint::open(&path).expect("open");
    let options = with_scratch(folder.path(), Io::Map);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let source: Arc<dyn Source> = checkpoint.open_file(0, &options).expect("open");
            let plain = &plain;
            scope.spawn(move || {
                assert!(*source.load(0..plain.len() as u64).expect("load") == **plain)
            });
        }
    });
    assert_eq!(
        fs::read_dir(folder.path().join("scratch"))
            .expect("list")
            .count(),
        1
    );
}

#[test]
fn a_stream_of_several_frames_and_skippable_ones_reads_whole() {
    let plain = file_of(&SPECS, 4);
    let (a, b) = plain.split_at(50);
    let skippable = [
        &0x184D_2A50u32.to_le_bytes()[..],
        &4u32.to_le_bytes(),
        b"skip",
    ]
    .concat();
    let frame = |part: &[u8]| zstd::encode_all(part, 3).expect("compress");
    let (folder, path) = open(&[skippable.clone(), frame(a), skippable, frame(b)].concat());
    assert_holds(
        &Checkpoint::open(&path).expect("open"),
        &SPECS,
        4,
        &with_scratch(folder.path(), Io::Map),
    );
}

#[test]
fn streams_that_hold_more_or_less_than_their_header_says_leave_no_copy() {
    let plain = file_of(&SPECS, 0);
    let frame_of = |part: &[u8]| zstd::encode_all(part, 3).expect("compress");
    let (frame, (a, b)) = (frame_of(&plain), plain.split_at(plain.len() - 50));
    let zeros =
        zstd::encode_all(std::io::Read::take(std::io::repeat(0), 64 << 20), 3).expect("compress");
    let cases = [
        ([&frame[..], &zeros].concat(), "holds more than"),
        (frame_of(&plain[..plain.len() - 1]), "its header describes"),
        (
            [&frame_of(a)[..], &frame_of(b)[..frame_of(b).len() - 3]].concat(),
            "cannot decompress",
        ),
        ([&frame[..], b"garbage"].concat(), "cannot decompress"),
    ];
    for (content, part) in cases {
        let (folder, path) = open(&content);
        let options = with_scratch(folder.path(), Io::Map);
        let source = Checkpoint::open(&path)
            .expect("header is whole")
            .open_file(0, &options)
            .expect("open");
        for _ in 0..2 {
            let error = source.load(0..1).expect_err("lies").to_string();
            assert!(
                error.contains("x.safetensors.zst") && error.contains(part),
                "{error}"
            );
        }
        for entry in fs::read_dir(folder.path().join("scratch"))
            .expect("list")
            .flatten()
        {
            assert_eq!(
                entry.path().extension().and_then(|e| e.to_str()),
                Some("part")
            );
            assert_eq!(entry.metadata().expect("stat").len(), 0);
        }
    }
}

#[test]
fn windows_beyond_what_zstd_grants_by_itself_are_refused() {
    let encode = |log: u32| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("encoder");
        encoder.window_log(log).expect("window");
        encoder.write_all(&file_of(&SPECS, 0)).expect("compress");
        encoder.finish().expect("finish")
    };
    let (_folder, path) = open(&encode(28));
    assert_refused(&path, &["window of 268435456 bytes"]);
    let (folder, path) = open(&encode(24));
    assert_holds(
        &Checkpoint::open(&path).expect("open"),
        &SPECS,
        0,
        &with_scratch(folder.path(), Io::Map),
    );
}

#[test]
fn a_compressed_header_bomb_is_refused() {
    let header = [&(32u64 << 20).to_le_bytes()[..], &vec![b' '; 32 << 20]].concat();
    assert_refused(
        &open(&zstd::encode_all(&*header, 1).expect("compress")).1,
        &["does not begin with {"],
    );
    let longer = raw_file("{}", 0)
        .iter()
        .copied()
        .chain(vec![0; 100])
        .collect::<Vec<_>>();
    let mut longer = longer;
    longer[4] = 1;
    assert_refused(
        &open(&zstd::encode_all(&*longer, 1).expect("compress")).1,
        &["at most 100000000"],
    );
    assert_refused(&open(b"\x28\xB5\x2F\xFD").1, &["x.safetensors.zst"]);
    assert_refused(
        &open(b"not compressed").1,
        &["does not begin with a zstd frame"],
    );
}
