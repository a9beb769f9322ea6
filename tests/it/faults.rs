//! Faults of the machine: inputs that change or vanish under a merge, disks that are full or
//! broken, missing rights, too little memory; and the user's own slip of writing into an input.
//!
//! Some need root, for mounts and other users. Elsewhere they say that they are skipped, which the
//! variable `THALWEG_REQUIRE_ROOT` turns into a failure.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;
use thalweg::checkpoint::{Checkpoint, Io, SourceOptions, guard_maps};

use crate::support::program::{Ended, program, run, start};
use crate::support::slow::{hashes, relative_hashes, slow_inputs, slow_merge};
use crate::support::small::{ended, inputs, skipped, small};

/// Whether what needs root can be tested; `what` is said when not.
fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let required = std::env::var_os("THALWEG_REQUIRE_ROOT").is_some();
    assert!(
        root || !required,
        "{what} needs root, and THALWEG_REQUIRE_ROOT is set"
    );
    root || skipped(what)
}

/// A file system that is mounted until dropped.
struct Mount(PathBuf);

impl Mount {
    /// None, loudly, where mounting is not allowed even to root.
    fn new(what: &str, args: &[&str], at: &Path) -> Option<Self> {
        fs::create_dir_all(at).expect("made");
        let output = Command::new("mount")
            .args(args)
            .arg(at)
            .output()
            .expect("mount is there");
        let required = std::env::var_os("THALWEG_REQUIRE_ROOT").is_some();
        assert!(output.status.success() || !required, "{what}: {output:?}");
        (output.status.success() || skipped(what)).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_window_whose_file_is_cut_shows_zeros_and_says_so() {
    guard_maps().expect("a handler");
    guard_maps().expect("twice is once");
    let root = small();
    let file = root.path().join("one/model.safetensors");
    let checkpoint = Checkpoint::open(&file).expect("opened");
    let range = checkpoint.tensors()["b"].bytes.clone();
    let source = checkpoint
        .open_file(
            0,
            &SourceOptions {
                io: Io::Map,
                scratch: None,
            },
        )
        .expect("opened");
    let (first, second) = (
        source.load(range.clone()).expect("loaded"),
        source.load(0..100).expect("loaded"),
    );
    assert!(
        first.iter().any(|byte| *byte != 0) && first.intact().is_ok() && second.intact().is_ok()
    );
    File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_len(5000))
        .expect("cut");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(first[10_000..].iter().all(|byte| *byte == 0)));
        }
    });
    assert_eq!(first.len() as u64, range.end - range.start);
    let error = first.intact().expect_err("it is worth nothing");
    assert!(
        error
            .to_string()
            .contains("model.safetensors: changed while it was read"),
        "{error}"
    );
    assert!(second.intact().is_err(), "the same file");
    drop(first);
    // The place is free again, and others are not affected.
    let other = Checkpoint::open(&root.path().join("two")).expect("opened");
    let source = other
        .open_file(
            0,
            &SourceOptions {
                io: Io::Map,
                scratch: None,
            },
        )
        .expect("opened");
    source
        .load(range)
        .expect("loaded")
        .intact()
        .expect("untouched");
}

/// Stops a merge between two shards, does something to its inputs, lets it go on.
fn disturbed(out: &str, io: &str, disturb: impl FnOnce(&Path)) -> (TempDir, Ended) {
    let root = slow_inputs();
    let mut running = start(root.path(), slow_merge(out, &["--quiet", "--io", io]));
    let first = root
        .path()
        .join(out)
        .join("model-00001-of-00005.safetensors");
    assert!(
        running.until(|| first.exists()),
        "it was finished before its first shard was"
    );
    running.signal(Signal::STOP);
    disturb(root.path());
    running.signal(Signal::CONT);
    let ended = running.end();
    (root, ended)
}

#[test]
fn an_input_that_is_cut_during_a_merge_is_one_clear_error_with_maps_and_with_reads() {
    for io in ["map", "pread"] {
        let cut = |root: &Path| {
            for shard in 1..=5 {
                let path = root.join(format!("b/model-0000{shard}-of-00005.safetensors"));
                File::options()
                    .write(true)
                    .open(path)
                    .and_then(|file| file.set_len(1000))
                    .expect("cut");
            }
        };
        let (root, ended) = disturbed("out", io, cut);
        ended.fails(
            1,
            &[
                "thalweg: cannot read: b/model-0000",
                "changed while it was read: had 600",
                "has 1000",
            ],
        );
        assert!(
            !root
                .path()
                .join("out/model.safetensors.index.json")
                .exists()
        );
        run(root.path(), slow_merge("out", &["--quiet"])).fails(2, &["b/model-0000"]);
    }
}

#[test]
fn an_input_that_is_written_to_during_a_merge_is_noticed_with_maps_and_with_reads() {
    for io in ["map", "pread"] {
        let change = |root: &Path| {
            for shard in 1..=5 {
                let path = root.join(format!("a/model-0000{shard}-of-00005.safetensors"));
                File::options()
                    .write(true)
                    .open(path)
                    .and_then(|file| file.write_all_at(&[0x3e; 64], 40_000))
                    .expect("written");
            }
        };
        let (root, ended) = disturbed("out", io, change);
        ended.fails(
            1,
            &["cannot read: a/model-0000", "its modification time moved"],
        );
        run(root.path(), slow_merge("out", &["--quiet"])).fails(2, &["--restart"]);
    }
}

#[test]
fn a_bus_error_from_elsewhere_still_ends_the_process() {
    let root = slow_inputs();
    let mut running = start(root.path(), slow_merge("out", &["--quiet"]));
    let journal = root.path().join("out/.thalweg/journal");
    assert!(
        running.until(|| journal.exists()),
        "it was finished too early"
    );
    running.signal(Signal::BUS);
    assert_eq!(
        running.end().code,
        None,
        "a signal that nobody caused by reading was swallowed"
    );
}

#[test]
fn a_disk_that_breaks_under_the_inputs_is_one_clear_error() {
    if !is_root("a broken disk") {
        return;
    }
    for io in ["map", "pread"] {
        let root = tempfile::tempdir().expect("temporary folder");
        let image = root.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(64 << 20))
            .expect("made");
        let made = Command::new("mkfs.ext2")
            .args(["-q", "-F"])
            .arg(&image)
            .status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "mkfs.ext2 is missing"
        );
        let image_text = image.to_str().expect("UTF-8");
        let at = root.path().join("disk");
        {
            let Some(_mount) = Mount::new("a broken disk", &["-o", "loop", image_text], &at) else {
                return;
            };
            inputs(&at, 4096);
        }
        let Some(_mount) = Mount::new("a broken disk", &["-o", "loop,ro", image_text], &at) else {
            return;
        };
        // Headers are read while the disk still works; of the data most is cut off.
        for model in ["one", "two"] {
            Checkpoint::open(&at.join(model)).expect("the header is there");
        }
        File::options()
            .write(true)
            .open(&image)
            .and_then(|file| file.set_len(6 << 20))
            .expect("cut");
        let merge = [
            "merge", "disk/one", "disk/two", "--out", "out", "--quiet", "--io", io,
        ];
        let ended = run(root.path(), merge);
        assert!(matches!(ended.code, Some(2 | 3)), "{ended:?}");
        assert!(
            ended.stderr.contains("cannot") && ended.stderr.contains("disk/"),
            "{ended:?}"
        );
        assert!(!root.path().join("out/model.safetensors").exists());
    }
}

#[test]
fn a_disk_that_is_too_small_is_refused_at_once_and_left_empty() {
    if !is_root("a small disk") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    inputs(root.path(), 4096);
    let at = root.path().join("disk");
    let Some(_mount) = Mount::new(
        "a small disk",
        &["-t", "tmpfs", "-o", "size=8m", "tmpfs"],
        &at,
    ) else {
        return;
    };
    let merge = ["merge", "one", "two", "--out", "disk/out", "--quiet"];
    let ended = run(root.path(), merge);
    assert!(matches!(ended.code, Some(2 | 3)), "{ended:?}");
    assert!(
        ended.stderr.contains("cannot reserve disk space for")
            && ended.stderr.contains("free some space"),
        "{ended:?}"
    );
    let left: u64 = hashes(&at)
        .keys()
        .map(|path| fs::metadata(path).expect("there").len())
        .sum();
    assert_eq!(left, 0, "the small disk was filled");
}

#[test]
fn a_disk_that_fills_up_stops_the_merge_which_goes_on_when_there_is_room() {
    if !is_root("a disk that fills up") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    inputs(root.path(), 2048);
    fs::write(root.path().join("one/tokenizer.json"), vec![b' '; 4 << 20]).expect("written");
    run(
        root.path(),
        ["merge", "one", "two", "--out", "undisturbed", "--quiet"],
    )
    .ok();
    let at = root.path().join("disk");
    // Room for the 8 MiB of weights, but not for the tokenizer.
    let Some(_mount) = Mount::new(
        "a disk that fills up",
        &["-t", "tmpfs", "-o", "size=10m", "tmpfs"],
        &at,
    ) else {
        return;
    };
    let merge = ["merge", "one", "two", "--out", "disk/out", "--quiet"];
    run(root.path(), merge).fails(
        3,
        &[
            "disk/out",
            "No space left",
            "free some space, then run the same command again",
        ],
    );
    run(root.path(), merge).fails(3, &["No space left"]);
    let grown = Command::new("mount")
        .args(["-o", "remount,size=32m"])
        .arg(&at)
        .status();
    assert!(
        grown.is_ok_and(|status| status.success()),
        "cannot make room"
    );
    run(root.path(), merge).ok();
    assert_eq!(
        relative_hashes(&at.join("out")),
        relative_hashes(&root.path().join("undisturbed"))
    );
}

#[test]
fn a_file_system_without_reservations_that_fills_up_stops_the_merge_which_goes_on() {
    if !is_root("a file system without reservations") {
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    inputs(root.path(), 4096);
    run(
        root.path(),
        [
            "merge",
            "one",
            "two",
            "--out",
            "undisturbed",
            "--shard-size",
            "9MB",
            "--quiet",
        ],
    )
    .ok();
    let image = root.path().join("image");
    File::create(&image)
        .and_then(|file| file.set_len(24 << 20))
        .expect("made");
    let made = Command::new("mkfs.ext2")
        .args(["-q", "-F", "-m", "0"])
        .arg(&image)
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "mkfs.ext2 is missing"
    );
    let at = root.path().join("disk");
    let image = image.to_str().expect("UTF-8");
    let Some(_mount) = Mount::new(
        "a file system without reservations",
        &["-o", "loop", image],
        &at,
    ) else {
        return;
    };
    // Each shard would fit, both do not.
    let ballast = at.join("ballast");
    fs::write(&ballast, vec![1; 10 << 20]).expect("written");
    let merge = [
        "merge",
        "one",
        "two",
        "--out",
        "disk/out",
        "--shard-size",
        "9MB",
        "--quiet",
    ];
    run(root.path(), merge).fails(
        2,
        &[
            "cannot reserve disk space for: disk/out: no space left: 16.00 MiB are still to be written",
            "bytes are missing",
            "free some space",
        ],
    );
    assert!(!at.join("out/.thalweg").exists(), "something was written");
    // The space goes while the merge stands still behind its first shard.
    fs::remove_file(&ballast).expect("removed");
    let mut running = start(root.path(), [&merge[..], &["--threads", "1"]].concat());
    let first = at.join("out/model-00001-of-00002.safetensors");
    assert!(
        running.until(|| first.exists() || at.join("out/.thalweg/journal").exists()),
        "it was too fast"
    );
    running.signal(Signal::STOP);
    fill(&ballast);
    running.signal(Signal::CONT);
    running.end().fails(
        3,
        &[
            "No space left",
            "free some space, then run the same command again",
        ],
    );
    // What is still to be written is now less than all.
    run(root.path(), merge).fails(3, &["no space left", "bytes are missing"]);
    fs::remove_file(&ballast).expect("removed");
    assert_eq!(
        run(root.path(), [&merge[..], &["--json"]].concat())
            .ok()
            .json()["status"],
        "resumed"
    );
    assert_eq!(
        relative_hashes(&at.join("out")),
        relative_hashes(&root.path().join("undisturbed"))
    );
}

/// Writes until the disk is full.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("made");
    while file.write_all(&[1; 4096]).is_ok() {}
    file.sync_all().expect("synced");
}

/// The program as a user who owns nothing here.
fn as_nobody(root: &Path, args: &[&str]) -> Ended {
    let plain = program(root, args);
    if !rustix::process::geteuid().is_root() {
        return ended(plain);
    }
    // The program may lie where others cannot go.
    let copy = root.join("thalweg-copy");
    if !copy.exists() {
        fs::copy(env!("CARGO_BIN_EXE_thalweg"), &copy).expect("copied");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("allowed");
    }
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy)
        .args(args)
        .current_dir(root);
    ended(command)
}

#[test]
fn missing_rights_are_named_and_leave_nothing_behind() {
    let root = small();
    let mode = |path: &str, mode| {
        fs::set_permissions(root.path().join(path), fs::Permissions::from_mode(mode))
            .expect("changed");
    };
    mode("", 0o755);
    fs::create_dir(root.path().join("open")).expect("made");
    mode("open", 0o777);
    as_nobody(
        root.path(),
        &["merge", "one", "two", "--out", "open/out", "--quiet"],
    )
    .ok();
    fs::create_dir(root.path().join("closed")).expect("made");
    mode("closed", 0o555);
    let denied = |args: &[&str], words: &str| {
        as_nobody(root.path(), args).fails(2, &[words, "Permission denied"]);
    };
    denied(
        &["merge", "one", "two", "--out", "closed/out", "--quiet"],
        "closed/out",
    );
    assert!(!root.path().join("closed/out").exists());
    mode("two/model.safetensors", 0);
    denied(
        &["merge", "one", "two", "--out", "open/other", "--quiet"],
        "two/model.safetensors",
    );
    mode("two/model.safetensors", 0o644);
    mode("two", 0);
    denied(
        &["merge", "one", "two", "--out", "open/other", "--quiet"],
        "two",
    );
    mode("two", 0o755);
    assert!(!root.path().join("open/other").exists());
}

#[test]
fn an_output_in_an_input_is_refused_before_anything_is_touched() {
    let root = small();
    let there = |path: &str| root.path().join(path);
    symlink("one", there("link")).expect("linked");
    fs::create_dir(there("files")).expect("made");
    fs::copy(there("two/model.safetensors"), there("files/x.safetensors")).expect("copied");
    fs::create_dir(there("cache")).expect("made");
    symlink("../files/x.safetensors", there("cache/model.safetensors")).expect("linked");
    let before = hashes(root.path());
    for (inputs, out) in [
        (["one", "two"], "one"),
        (["one", "two"], "two"),
        (["one", "two"], "./two/../one/"),
        (["one", "two"], "link"),
        (["link", "two"], "one"),
        (["one", "two"], "one/merged"),
        (["one", "two"], "link/not/yet/there"),
        (["one", "files/x.safetensors"], "files"),
        (["one/model.safetensors", "two"], "one"),
        (["one", "cache"], "files"),
    ] {
        for more in [&[][..], &["--overwrite"], &["--overwrite", "--restart"]] {
            let args = [
                &["merge", inputs[0], inputs[1], "--out", out, "--quiet"],
                more,
            ]
            .concat();
            run(root.path(), args).fails(
                2,
                &[
                    "cannot write to folder",
                    "input",
                    "inputs are never written to",
                ],
            );
            assert_eq!(hashes(root.path()), before, "{inputs:?} into {out}");
            assert!(!there(out).join(".thalweg").exists());
        }
    }
    run(
        root.path(),
        ["merge", "one", "two", "--out", "one-merged", "--quiet"],
    )
    .ok();
    run(
        root.path(),
        [
            "merge",
            "one/model.safetensors",
            "two",
            "--out",
            "fine",
            "--quiet",
        ],
    )
    .ok();
}

#[test]
fn times_of_the_output_do_not_matter() {
    let root = small();
    let merge = ["merge", "one", "two", "--out", "out", "--quiet"];
    run(root.path(), merge).ok();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    for path in hashes(&root.path().join("out")).keys() {
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(long_ago))
            .expect("set back");
    }
    run(root.path(), merge).ok();
    run(root.path(), ["verify", "out", "--quiet"]).ok();
}
