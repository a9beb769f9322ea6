//! Windows over plain files, and files that change under the reader.

use std::fs::{self, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use thalweg::checkpoint::{Checkpoint, Io, SourceOptions};

use super::{SPECS, file_of, write};

const BOTH: [Io; 2] = [Io::Map, Io::Positioned];

fn model() -> (tempfile::TempDir, PathBuf, Checkpoint) {
    let folder = tempfile::tempdir().expect("temporary folder");
    write(folder.path(), "x.safetensors", file_of(&SPECS, 0));
    let path = folder.path().join("x.safetensors");
    let checkpoint = Checkpoint::open(&path).expect("open");
    (folder, path, checkpoint)
}

fn options(io: Io) -> SourceOptions {
    SourceOptions { io, scratch: None }
}

#[test]
fn any_range_of_a_file_is_what_the_file_holds() {
    let (_folder, path, checkpoint) = model();
    let whole = fs::read(path).expect("read");
    for io in BOTH {
        let source = checkpoint.open_file(0, &options(io)).expect("open");
        assert_eq!(source.len(), whole.len() as u64);
        assert!(!source.is_empty());
        for start in (0..=whole.len()).step_by(97) {
            for end in [start, (start + 1).min(whole.len()), whole.len()] {
                let range = start as u64..end as u64;
                source.prefetch(range.clone());
                assert_eq!(*source.load(range).expect("load"), whole[start..end]);
            }
        }
    }
}

#[test]
fn windows_outlive_their_source_and_may_overlap() {
    let (_folder, path, checkpoint) = model();
    let whole = fs::read(path).expect("read");
    for io in BOTH {
        let source = checkpoint.open_file(0, &options(io)).expect("open");
        let windows: Vec<_> = (0..10)
            .map(|i| source.load(i * 10..1000).expect("load"))
            .collect();
        drop(source);
        std::thread::scope(|scope| {
            for (i, window) in windows.into_iter().enumerate() {
                let whole = &whole;
                scope.spawn(move || assert_eq!(*window, whole[i * 10..1000]));
            }
        });
    }
}

#[test]
#[expect(
    clippy::reversed_empty_ranges,
    reason = "a reversed range is one of the cases"
)]
fn ranges_outside_the_file_are_refused() {
    let (_folder, _path, checkpoint) = model();
    let len = checkpoint.files()[0].len;
    for io in BOTH {
        let source = checkpoint.open_file(0, &options(io)).expect("open");
        for range in [0..len + 1, len + 1..len + 1, 9..8, u64::MAX - 1..u64::MAX] {
            source.prefetch(range.clone());
            let error = source.load(range).expect_err("outside").to_string();
            assert!(
                error.contains("x.safetensors") && error.contains(&format!("file has {len}")),
                "{error}"
            );
        }
    }
}

#[test]
fn a_file_that_is_cut_or_written_to_is_noticed_at_the_next_window() {
    for io in BOTH {
        let (_folder, path, checkpoint) = model();
        let len = checkpoint.files()[0].len;
        let source = checkpoint.open_file(0, &options(io)).expect("open");
        let window = source.load(0..8).expect("load");
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.set_len(len - 1).expect("cut");
        for error in [
            source.load(0..8).map(drop),
            checkpoint.open_file(0, &options(io)).map(drop),
        ] {
            let error = error.expect_err("cut");
            assert!(
                error.to_string().contains("changed while it was read"),
                "{error}"
            );
            assert!(
                error
                    .to_string()
                    .contains(&format!("had {len} bytes, has {}", len - 1)),
                "{error}"
            );
        }
        drop(window);
        file.set_len(len).expect("grow");
        file.set_modified(SystemTime::now() + Duration::from_secs(5))
            .expect("touch");
        let error = source.load(0..8).expect_err("touched").to_string();
        assert!(
            error.contains("x.safetensors") && error.contains("modification time"),
            "{error}"
        );
    }
}

#[test]
fn reading_leaves_input_files_as_they_were() {
    let (_folder, path, checkpoint) = model();
    let before = (
        fs::read(&path).expect("read"),
        fs::metadata(&path)
            .expect("stat")
            .modified()
            .expect("mtime"),
    );
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400))
        .expect("make read-only");
    for io in BOTH {
        checkpoint
            .open_file(0, &options(io))
            .expect("open")
            .load(0..100)
            .expect("load");
    }
    let after = (
        fs::read(&path).expect("read"),
        fs::metadata(&path)
            .expect("stat")
            .modified()
            .expect("mtime"),
    );
    assert!(before == after);
}

#[test]
fn the_header_hash_tells_headers_apart_and_ignores_the_data() {
    let (folder, path, checkpoint) = model();
    write(folder.path(), "same.safetensors", file_of(&SPECS, 1));
    write(folder.path(), "other.safetensors", file_of(&SPECS[1..], 0));
    let hash = |name: &str| {
        Checkpoint::open(&path.with_file_name(name))
            .expect("open")
            .files()[0]
            .header_hash
    };
    assert_eq!(checkpoint.files()[0].header_hash, hash("same.safetensors"));
    assert_ne!(checkpoint.files()[0].header_hash, hash("other.safetensors"));
}
