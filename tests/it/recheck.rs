//! `verify --against`: a sample of the output is computed once more from the inputs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use tempfile::TempDir;
use thalweg::dtype::Dtype;

use crate::support::files::scratch;
use crate::support::program::run;
use crate::support::striped::{spec, write};

fn inputs() -> TempDir {
    let root = scratch();
    let shards = [
        vec![
            spec("big", Dtype::BF16, &[300, 700]),
            spec("scalar", Dtype::BF16, &[]),
            spec("none", Dtype::F32, &[0, 3]),
        ],
        vec![
            spec("ids", Dtype::I64, &[100]),
            spec("rows", Dtype::F32, &[70, 1000]),
            spec("odd", Dtype::BF16, &[33, 5]),
        ],
    ];
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        write(&root.path().join(name), &shards, seed);
    }
    root
}

/// What verify says after recomputing everything.
#[track_caller]
fn all_right(root: &Path, job: &[&str]) {
    run(root, [&["merge", "--out", "out", "--quiet"], job].concat()).ok();
    let found = run(
        root,
        [
            &[
                "verify",
                "out",
                "--json",
                "--sample",
                "1000000",
                "--against",
            ],
            job,
        ]
        .concat(),
    )
    .ok()
    .json();
    let rechecked = &found["rechecked"];
    assert_eq!(rechecked["blocks"], rechecked["all_blocks"], "{found}");
    assert_eq!(rechecked["bytes"], found["data_bytes"], "{found}");
    fs::remove_dir_all(root.join("out")).expect("removed");
}

#[test]
fn every_block_of_every_kind_of_merge_is_what_the_inputs_give() {
    let root = inputs();
    for granularity in ["tensor", "row", "model"] {
        all_right(
            root.path(),
            &[
                "a",
                "b",
                "c",
                "--granularity",
                granularity,
                "--dtype",
                "float32",
            ],
        );
    }
    all_right(
        root.path(),
        &[
            "a",
            "b",
            "--weights",
            "0.7,0.3",
            "--block-size",
            "64KiB",
            "--threads",
            "2",
        ],
    );
    all_right(
        root.path(),
        &["a", "b", "c", "--method", "linear", "--shard-size", "100KB"],
    );
    all_right(
        root.path(),
        &["a", "b", "c", "--method", "task_arithmetic", "--base", "1"],
    );
    all_right(
        root.path(),
        &[
            "a",
            "b",
            "--method",
            "nuslerp",
            "-p",
            "nuslerp_flatten=false",
        ],
    );
    all_right(
        root.path(),
        &[
            "a",
            "b",
            "--method",
            "nuslerp",
            "-p",
            "nuslerp_flatten=false",
            "-p",
            "nuslerp_row_wise=true",
        ],
    );
    all_right(root.path(), &["a", "--method", "passthrough"]);
}

#[test]
fn shapes_that_were_brought_together_are_what_the_inputs_give() {
    let root = scratch();
    let types = [Dtype::F16, Dtype::BF16, Dtype::F32];
    for ((name, dtype), [rows, channels]) in
        ["a", "b", "c"]
            .into_iter()
            .zip(types)
            .zip([[70, 9], [64, 4], [70, 7]])
    {
        write(
            &root.path().join(name),
            &[vec![spec("conv", dtype, &[rows, channels, 40, 3])]],
            3,
        );
    }
    for policy in ["pad", "crop"] {
        all_right(
            root.path(),
            &["a", "b", "c", "--mismatch", policy, "--block-size", "64KiB"],
        );
        let differences = [
            "--method",
            "task_arithmetic",
            "--base",
            "1",
            "--dtype",
            "float32",
        ];
        all_right(
            root.path(),
            &[&["a", "b", "c", "--mismatch", policy], &differences[..]].concat(),
        );
    }
}

#[test]
fn a_changed_bit_is_found_even_when_every_checksum_was_made_to_fit() {
    let root = inputs();
    run(root.path(), ["merge", "a", "b", "--out", "out", "--quiet"]).ok();
    // Without the manifest there is nothing to compare with but the inputs.
    fs::remove_file(root.path().join("out/thalweg.json")).expect("removed");
    let shard = root.path().join("out/model.safetensors");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&shard)
        .expect("open");
    let last = file.metadata().expect("there").len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).expect("read");
    file.write_all_at(&[byte[0] ^ 1], last).expect("written");
    run(root.path(), ["verify", "out"]).ok();
    let against = ["verify", "out", "--sample", "1000", "--against", "a", "b"];
    run(root.path(), against).fails(
        1,
        &[
            "does not match its inputs",
            "out/model.safetensors",
            "of tensor `odd`",
            "bytes 0 to 330",
            "byte 329",
        ],
    );
}

#[test]
fn other_inputs_and_other_options_are_told_apart() {
    let root = inputs();
    run(root.path(), ["merge", "a", "b", "--out", "out", "--quiet"]).ok();
    let against = |job: &[&str]| {
        run(
            root.path(),
            [
                &["verify", "out", "--quiet", "--sample", "8", "--against"],
                job,
            ]
            .concat(),
        )
    };
    against(&["a", "b"]).ok();
    against(&["a", "c"]).fails(1, &["does not match its inputs"]);
    against(&["a", "b", "--weights", "0.6,0.4"]).fails(1, &["does not match its inputs"]);
    against(&["a", "b", "--dtype", "float64"]).fails(
        1,
        &["cannot compare with a merge", "wanted F64", "got BF16"],
    );
    against(&["a", "b", "--wieghts", "1,2"]).fails(2, &["--wieghts"]);
    against(&["a", "nowhere"]).fails(2, &["nowhere"]);
    run(root.path(), ["verify", "out", "--sample", "8"]).fails(2, &["--against"]);
}

#[test]
fn the_same_seed_takes_the_same_sample_and_a_small_one_is_small() {
    let root = inputs();
    run(root.path(), ["merge", "a", "b", "--out", "out", "--quiet"]).ok();
    let of = |seed: &str| {
        let args = [
            "verify",
            "out",
            "--json",
            "--sample",
            "3",
            "--seed",
            seed,
            // The default limit follows the free memory of the machine.
            "--memory",
            "256MiB",
            "--against",
            "a",
            "b",
        ];
        let mut said = run(root.path(), args).ok().json();
        // No two processes take exactly the same memory.
        assert!(
            said.as_object_mut()
                .expect("an object")
                .remove("peak_resident_bytes")
                .is_some()
        );
        said
    };
    assert_eq!(of("5"), of("5"));
    assert_eq!(of("5")["rechecked"]["blocks"], 3);
    assert!(
        (6..12).any(|seed| of(&seed.to_string()) != of("5")),
        "the seed changes nothing"
    );
}
