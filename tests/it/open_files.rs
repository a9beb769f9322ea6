//! Few files may be open at once: those that were used last stay open, the others are opened again.

use std::fs;
use std::path::Path;
use std::process::Command;

use thalweg::checkpoint::compress_seekable;
use thalweg::dtype::Dtype;

use crate::support::files::{files_below, scratch};
use crate::support::program::Ended;
use crate::support::small::ended;
use crate::support::striped::{Spec, spec, write};

const MODELS: u64 = 15;
const SHARDS: usize = 11;

/// Models of eleven shards each, many more than the files that may be open.
fn models(root: &Path) {
    let shard = |number: usize| -> Vec<Spec> {
        ["a", "b"]
            .iter()
            .map(|part| spec(format!("layers.{number}.{part}"), Dtype::BF16, &[40, 100]))
            .collect()
    };
    let shards: Vec<_> = (0..SHARDS).map(shard).collect();
    (0..MODELS).for_each(|model| write(&root.join(model.to_string()), &shards, model));
}

/// The program, of which at most `files` may be open; by the system, not by itself.
fn limited(root: &Path, files: u32, args: &[&str]) -> Ended {
    let mut command = Command::new("sh");
    let script = format!("ulimit -Hn {files}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_thalweg")])
        .args(args)
        .current_dir(root);
    ended(command)
}

fn merge(root: &Path, files: u32, out: &str, more: &[&str]) -> Ended {
    let names: Vec<String> = (0..MODELS).map(|model| model.to_string()).collect();
    let mut args = vec![
        "merge",
        "--method",
        "linear",
        "--out",
        out,
        "--quiet",
        "--threads",
        "2",
    ];
    args.extend(names.iter().map(String::as_str));
    args.extend(more);
    limited(root, files, &args)
}

#[test]
fn models_of_more_files_than_may_be_open_are_merged_to_the_same_bytes() {
    let root = scratch();
    models(root.path());
    merge(root.path(), 4000, "plenty", &[]).ok();
    let wanted = files_below(&root.path().join("plenty"));
    for (out, more) in [
        ("maps", &["--io", "map"][..]),
        ("reads", &["--io", "pread"]),
    ] {
        merge(root.path(), 64, out, more).ok();
        assert!(files_below(&root.path().join(out)) == wanted, "{out}");
    }
}

#[test]
fn compressed_models_of_more_files_than_may_be_open_are_merged_to_the_same_bytes() {
    let root = scratch();
    models(root.path());
    merge(root.path(), 4000, "plenty", &[]).ok();
    for model in 0..MODELS {
        let folder = root.path().join(model.to_string());
        for shard in 1..=SHARDS {
            let plain = folder.join(format!("model-{shard:05}-of-{SHARDS:05}.safetensors"));
            compress_seekable(&plain, &plain.with_extension("safetensors.zst"), 1)
                .expect("compressed");
            fs::remove_file(plain).expect("removed");
        }
    }
    merge(root.path(), 64, "packed", &[]).ok();
    let weights = |out: &str| {
        let mut files = files_below(&root.path().join(out));
        files.retain(|name, _| name.extension().is_some_and(|end| end == "safetensors"));
        files
    };
    assert!(!weights("packed").is_empty() && weights("packed") == weights("plenty"));
}

#[test]
fn an_output_of_more_shards_than_may_be_open_is_written_verified_and_gone_on_with() {
    let root = scratch();
    models(root.path());
    merge(
        root.path(),
        64,
        "out",
        &["--shard-size", "8KB", "--zstd", "1"],
    )
    .ok();
    assert_eq!(
        files_below(&root.path().join("out"))
            .keys()
            .filter(|name| name.to_string_lossy().ends_with(".zst"))
            .count(),
        22
    );
    limited(root.path(), 64, &["verify", "out", "--quiet"]).ok();
}

#[test]
fn a_file_that_was_replaced_while_it_was_closed_is_noticed() {
    // What it is read for lies behind many others; the model is replaced as soon as the merge has
    // begun.
    let root = scratch();
    models(root.path());
    let shard = format!("model-{SHARDS:05}-of-{SHARDS:05}.safetensors");
    let old = root.path().join("0").join(&shard);
    let copy = root.path().join("copy");
    fs::copy(&old, &copy).expect("copied");
    let time = fs::metadata(&old)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    let open = thalweg::checkpoint::Checkpoint::open(&root.path().join("0")).expect("opens");
    let source = open
        .open_file(SHARDS - 1, &Default::default())
        .expect("opens");
    source.load(0..8).expect("it is the same");
    fs::rename(&copy, &old).expect("replaced");
    fs::File::options()
        .write(true)
        .open(&old)
        .and_then(|file| file.set_modified(time))
        .expect("dated back");
    source
        .load(0..8)
        .expect("the open file is still the old one");
    // Nothing else in this process opens so many files.
    let limit = usize::try_from(thalweg::budget::most_open_files()).expect("small");
    let others: Vec<_> = (0..limit)
        .map(|at| {
            open.open_file(at % (SHARDS - 1), &Default::default())
                .expect("opens")
        })
        .collect();
    others
        .iter()
        .for_each(|other| drop(other.load(0..8).expect("reads")));
    let error = source.load(0..8).expect_err("another file has its name");
    assert!(
        error.to_string().contains("its name is another file's now"),
        "{error}"
    );
}
