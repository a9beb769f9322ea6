//! Pickles that describe much more than they hold are refused within the memory that was given.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::support::files::scratch;
use crate::support::program::start;

const LIMIT: u64 = 64 << 20;

/// An archive as torch writes them, of one compressed pickle: `op` so many times, between a start
/// and a stop mark.
fn archive(start: &[u8], op: &[u8], times: usize) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    zip.start_file("archive/data.pkl", options)
        .expect("a new member");
    zip.write_all(&[b"\x80\x02", start].concat())
        .expect("memory is enough");
    zip.write_all(&op.repeat(times)).expect("memory is enough");
    zip.write_all(b"}.").expect("memory is enough");
    zip.finish().expect("a whole archive").into_inner()
}

/// Plans a merge of the file twice, watched, and wants a refusal by name within the memory.
#[track_caller]
fn refused(name: &str, bytes: &[u8], words: &str) {
    let root = scratch();
    let path = root.path().join("hostile.pt");
    fs::write(&path, bytes).expect("written");
    refused_in(root.path(), name, words);
}

fn refused_in(root: &Path, name: &str, words: &str) {
    let args = [
        "merge",
        "hostile.pt",
        "hostile.pt",
        "--out",
        "out",
        "--memory",
        "64MiB",
        "--threads",
        "1",
        "--quiet",
    ];
    let ended = start(root, args)
        .end_watched()
        .fails(2, &["hostile.pt", words]);
    assert!(ended.peak <= LIMIT, "{name}: {} bytes", ended.peak);
}

#[test]
fn a_pickle_that_describes_more_than_the_memory_holds_is_refused_within_it() {
    let ordered = b"ccollections\nOrderedDict\nq\x00";
    let cases: [(&str, &[u8], &[u8], usize); 8] = [
        ("classes", b"", b"cm\nn\n0", 1_500_000),
        ("texts", b"", b"\x8c\x01a0", 3_000_000),
        ("ordered dicts", ordered, b"h\x00)R0", 1_600_000),
        ("lists", b"(", b"](NN", 2_000_000),
        ("filled lists", b"](", b"N", 8_000_000),
        ("dicts", b"", b"}NNs0", 1_800_000),
        ("memo", b"N", b"\x94", 8_000_000),
        ("bytes", b"", b"C\x010", 5_000_000),
    ];
    for (name, start, op, times) in cases {
        let bytes = archive(start, op, times);
        assert!(bytes.len() < 200_000, "{name}: {} bytes", bytes.len());
        refused(name, &bytes, "");
    }
}

#[test]
fn a_pickle_longer_than_the_memory_is_refused_within_it() {
    refused(
        "long",
        &archive(b"", &[b'N', b'0'].repeat(1000), 100_000),
        "at most",
    );
}

#[test]
fn a_zip_directory_that_takes_more_than_the_memory_is_refused_within_it() {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for number in 0..60_000 {
        zip.start_file(format!("a/{number}"), options)
            .expect("a new member");
    }
    let bytes = zip.finish().expect("a whole archive").into_inner();
    refused("directory", &bytes, "zip directory of 60000 members");
}
