//! The program stays within --memory, whatever it merges; what it says of itself agrees with what
//! is seen from outside.

use std::path::Path;

use tempfile::TempDir;
use thalweg::checkpoint::compress_seekable;
use thalweg::dtype::Dtype;

use crate::support::files::scratch;
use crate::support::program::start;
use crate::support::striped::{Spec, spec, write};

/// So many models `0`, `1`, … of these tensors.
pub fn models(count: u64, specs: &[Spec]) -> TempDir {
    let root = scratch();
    for number in 0..count {
        write(
            &root.path().join(number.to_string()),
            &[specs.to_vec()],
            number,
        );
    }
    root
}

/// Merges all models of `root`, watched, within `mebibytes`.
#[track_caller]
pub fn fits(root: &Path, count: u64, mebibytes: u64, more: &[&str]) {
    let memory = format!("{mebibytes}MiB");
    let names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let mut args = vec![
        "merge",
        "--out",
        "out",
        "--memory",
        &memory,
        "--threads",
        "2",
        "--quiet",
        "--json",
        "--overwrite",
    ];
    args.extend(names.iter().map(String::as_str));
    args.extend(more);
    let ended = start(root, args).end_watched().ok();
    let report = ended.json();
    let own = report["peak_resident_bytes"]
        .as_u64()
        .expect("the kernel accounts for processes");
    let limit = mebibytes << 20;
    assert!(
        own <= limit && ended.peak <= limit,
        "{mebibytes} MiB: {own} by itself, {} from outside",
        ended.peak
    );
    // The program looks a moment before its end, the one outside up to a millisecond before it.
    assert!(
        own.abs_diff(ended.peak) < 16 << 20,
        "{own} by itself, {} from outside",
        ended.peak
    );
    assert_eq!(report["memory_limit_bytes"], limit);
}

/// Merges all models of `root` and compares all of the result with them, watched, within
/// `mebibytes`.
#[track_caller]
fn recheck_fits(root: &Path, count: u64, mebibytes: u64, more: &[&str]) {
    let memory = format!("{mebibytes}MiB");
    let names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
    let mut job: Vec<&str> = names.iter().map(String::as_str).collect();
    job.extend(["--memory", &memory]);
    job.extend(more);
    start(
        root,
        [
            &["merge", "--out", "out", "--quiet", "--overwrite"],
            &job[..],
        ]
        .concat(),
    )
    .end()
    .ok();
    let sample = ["verify", "out", "--json", "--sample", "40", "--against"];
    let ended = start(root, [&sample[..], &job].concat()).end_watched().ok();
    assert_eq!(ended.json()["rechecked"]["blocks"], 40);
    assert!(
        ended.peak <= mebibytes << 20,
        "{} bytes of {mebibytes} MiB",
        ended.peak
    );
    // Without inputs it has nothing to do with a budget, and needs little.
    let ended = start(root, ["verify", "out", "--quiet"]).end_watched().ok();
    assert!(ended.peak <= 64 << 20, "{} bytes", ended.peak);
}

#[test]
fn comparing_with_the_inputs_stays_within_the_budget_too() {
    let root = models(2, &[embedding(300), spec("up", Dtype::F32, &[2000, 700])]);
    for more in [
        &[][..],
        &["--granularity", "row"],
        &["--granularity", "model"],
    ] {
        recheck_fits(root.path(), 2, 128, more);
    }
    let root = models(12, &[embedding(20)]);
    recheck_fits(root.path(), 12, 128, &["--method", "linear"]);
}

/// A tensor of so many million bytes.
pub fn embedding(megabytes: u64) -> Spec {
    spec("embed", Dtype::BF16, &[megabytes, 500_000])
}

#[test]
fn a_tensor_larger_than_the_budget_fits_in_every_granularity() {
    let root = models(2, &[embedding(600)]);
    for more in [
        &[][..],
        &["--granularity", "row"],
        &["--granularity", "model"],
        &["--io", "pread"],
    ] {
        fits(root.path(), 2, 256, more);
    }
}

#[test]
fn a_larger_budget_is_kept_too() {
    let root = models(2, &[embedding(600)]);
    fits(root.path(), 2, 1024, &[]);
    fits(
        root.path(),
        2,
        1024,
        &["--io", "pread", "--block-size", "32MiB"],
    );
}

#[test]
fn twenty_models_fit() {
    let root = models(
        20,
        &[
            embedding(30),
            spec("up", Dtype::F32, &[2000, 700]),
            spec("norm", Dtype::F32, &[700]),
        ],
    );
    for more in [&[][..], &["--granularity", "row"], &["--io", "pread"]] {
        fits(root.path(), 20, 256, more);
    }
}

#[test]
fn thousands_of_tiny_tensors_fit() {
    let specs: Vec<Spec> = (0..3000)
        .map(|i| spec(format!("layers.{i}.norm.weight"), Dtype::BF16, &[64]))
        .collect();
    let root = models(5, &specs);
    fits(root.path(), 5, 128, &[]);
}

/// So many models of so many tensors of a few elements, as mixtures of many experts have them.
fn of_many_tensors(models_: u64, tensors: u64) -> TempDir {
    let name = |i: u64| {
        format!(
            "model.layers.{}.mlp.experts.{}.down_proj.weight",
            i / 512,
            i % 512
        )
    };
    let specs: Vec<Spec> = (0..tensors)
        .map(|i| spec(name(i), Dtype::BF16, &[4, 4]))
        .collect();
    models(models_, &specs)
}

#[test]
fn tens_of_thousands_of_tensors_fit_and_are_verified_in_less() {
    let root = of_many_tensors(3, 30_000);
    fits(root.path(), 3, 128, &[]);
    for more in [
        &["--granularity", "model"][..],
        &["--verify", "--shard-size", "300KB"],
    ] {
        fits(root.path(), 3, 160, more);
    }
    let ended = start(
        root.path(),
        ["verify", "out", "--quiet", "--memory", "96MiB"],
    )
    .end_watched()
    .ok();
    assert!(ended.peak <= 96 << 20, "{} bytes", ended.peak);
    let planned = start(
        root.path(),
        ["plan", "0", "1", "2", "--out", "new", "--memory", "128MiB"],
    )
    .end_watched()
    .ok();
    assert!(planned.peak <= 128 << 20, "{} bytes", planned.peak);
}

#[test]
fn a_budget_too_small_for_so_many_tensors_is_refused_with_one_that_does() {
    let root = of_many_tensors(2, 20_000);
    let args = |memory: &'static str| {
        [
            "merge",
            "0",
            "1",
            "--out",
            "out",
            "--quiet",
            "--threads",
            "1",
            "--memory",
            memory,
        ]
    };
    let ended = start(root.path(), args("40MiB"))
        .end_watched()
        .fails(2, &["memory is too small", "give --memory"]);
    let hint = ended.stderr.split("give --memory ").nth(1).expect("a hint");
    let enough: u64 = hint
        .split("MiB")
        .next()
        .expect("a number")
        .parse()
        .expect("a number");
    let enough: &'static str = format!("{enough}MiB").leak();
    let ended = start(root.path(), args(enough)).end_watched().ok();
    assert!(
        ended.peak
            <= enough
                .trim_end_matches("MiB")
                .parse::<u64>()
                .expect("a number")
                << 20,
        "{}",
        ended.peak
    );
    let ended = start(
        root.path(),
        ["verify", "out", "--quiet", "--memory", "17MiB"],
    )
    .end();
    ended.fails(
        2,
        &[
            "memory is too small",
            "thalweg.json needs at least",
            "give --memory",
        ],
    );
}

#[test]
fn many_compressed_shards_are_verified_one_at_a_time() {
    let specs: Vec<Spec> = (0..150)
        .map(|i| spec(format!("layers.{i}.weight"), Dtype::BF16, &[1000, 1000]))
        .collect();
    let root = models(1, &specs);
    let args = [
        "merge",
        "0",
        "--method",
        "linear",
        "--out",
        "out",
        "--quiet",
        "--zstd",
        "1",
        "--shard-size",
        "2MB",
    ];
    start(root.path(), args).end().ok();
    let ended = start(
        root.path(),
        ["verify", "out", "--quiet", "--memory", "48MiB"],
    )
    .end_watched()
    .ok();
    assert!(ended.peak <= 48 << 20, "{} bytes", ended.peak);
}

#[test]
fn many_small_shards_fit() {
    let specs: Vec<Spec> = (0..150)
        .map(|i| spec(format!("layers.{i}.weight"), Dtype::BF16, &[1000, 1000]))
        .collect();
    let root = models(2, &specs);
    fits(root.path(), 2, 128, &["--shard-size", "2500KB"]);
}

#[test]
fn compressed_models_fit() {
    let root = models(2, &[embedding(200)]);
    for number in ["0", "1"] {
        let plain = root.path().join(number).join("model.safetensors");
        compress_seekable(&plain, &plain.with_extension("safetensors.zst"), 1).expect("compressed");
        std::fs::remove_file(plain).expect("removed");
    }
    fits(root.path(), 2, 256, &[]);
    fits(root.path(), 2, 256, &["--granularity", "model"]);
}

/// Aligns the models `0` and `1` of `root`, watched, within `mebibytes`.
#[track_caller]
fn aligns_within(root: &Path, mebibytes: u64, more: &[&str]) {
    let memory = format!("{mebibytes}MiB");
    let args = [
        "align",
        "0",
        "1",
        "--out",
        "perms.safetensors",
        "--memory",
        &memory,
        "-j",
        "2",
        "--quiet",
        "--json",
    ];
    let ended = start(
        root,
        args.iter()
            .chain(&["--spec", "mlp", "--overwrite", "--restart"])
            .chain(more),
    )
    .end_watched()
    .ok();
    let report = ended.json();
    let own = report["peak_resident_bytes"]
        .as_u64()
        .expect("the kernel accounts for processes");
    let limit = mebibytes << 20;
    assert!(
        own <= limit && ended.peak <= limit,
        "{mebibytes} MiB: {own} by itself, {} from outside",
        ended.peak
    );
    assert!(report["moved"].as_u64() > Some(0), "they are strangers");
}

#[test]
fn models_larger_than_the_budget_are_aligned_in_it() {
    // 100 MB each, of few units with many numbers.
    let wide = [
        spec("layers.0.weight", Dtype::BF16, &[128, 400_000]),
        spec("layers.1.weight", Dtype::BF16, &[10, 128]),
    ];
    let root = models(2, &wide);
    for more in [&[][..], &["--io", "pread"]] {
        aligns_within(root.path(), 64, more);
    }
    // A cost matrix of 64 MiB, for which there is no room.
    let many = [
        spec("layers.0.weight", Dtype::F32, &[4096, 48]),
        spec("layers.1.weight", Dtype::F32, &[10, 4096]),
    ];
    aligns_within(models(2, &many).path(), 80, &[]);
}
