//! Less memory than the budget: limits that a shell sets, and control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use thalweg::dtype::Dtype;

use crate::support::program::{Ended, run};
use crate::support::small::{ended, inputs, skipped, small};
use crate::support::striped::{spec, write};

/// The program under a limit in KiB that the shell sets.
fn limited(root: &Path, limit: &str, args: &[&str]) -> Ended {
    let mut command = Command::new("sh");
    let script = format!("ulimit {limit}; exec \"$0\" \"$@\"");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_thalweg")])
        .args(args)
        .current_dir(root);
    ended(command)
}

#[test]
fn a_limit_below_the_budget_is_refused_and_no_limit_ends_in_an_abort() {
    let root = small();
    let merge = [
        "merge",
        "one",
        "two",
        "--out",
        "out",
        "--memory",
        "256MiB",
        "--threads",
        "2",
        "--quiet",
    ];
    limited(root.path(), "-v 300000", &merge).fails(2, &["cannot have the memory", "ulimit -v"]);
    limited(root.path(), "-d 200000", &merge).fails(2, &["cannot have the memory", "ulimit -d"]);
    assert!(!root.path().join("out").exists());
    for kibibytes in (30_000..=400_000).step_by(37_000) {
        let ended = limited(root.path(), &format!("-v {kibibytes}"), &merge);
        assert!(
            matches!(ended.code, Some(0..=3)),
            "{kibibytes} KiB: {ended:?}"
        );
        assert!(
            !ended.stderr.contains("panicked") && !ended.stderr.contains("allocation"),
            "{kibibytes}: {ended:?}"
        );
    }
}

#[test]
fn the_soft_limit_on_open_files_is_raised() {
    let root = small();
    let shards: Vec<_> = (0..30)
        .map(|at| vec![spec(format!("t{at:02}"), Dtype::F32, &[16])])
        .collect();
    for (name, seed) in [("many", 1), ("more", 2)] {
        write(&root.path().join(name), &shards, seed);
    }
    let merge = ["merge", "many", "more", "--out", "out", "--quiet"];
    limited(root.path(), "-S -n 40", &merge).ok();
    // Where the hard limit is as low, the file that is one too many is named.
    let refused = limited(
        root.path(),
        "-n 40",
        &["merge", "many", "more", "--out", "other", "--quiet"],
    );
    assert!(
        matches!(refused.code, Some(0..=3)) && !refused.stderr.contains("panicked"),
        "{refused:?}"
    );
    assert!(
        refused.code == Some(0) || refused.stderr.contains("model-000"),
        "{refused:?}"
    );
}

/// A control group with a limit on its memory, gone when dropped.
struct Group(PathBuf);

impl Group {
    /// None, with the reason said, where such a group cannot be made.
    fn new(bytes: u64) -> Option<Self> {
        let older = Path::new("/sys/fs/cgroup/memory");
        let (top, limit) = if older.join("memory.limit_in_bytes").exists() {
            (older, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let group = Self(top.join(format!("thalweg-test-{}", std::process::id())));
        let made = fs::create_dir(&group.0)
            .and_then(|()| fs::write(group.0.join(limit), bytes.to_string()));
        match made {
            Ok(()) => Some(group),
            Err(error) => {
                skipped(&format!(
                    "a control group of its own: {}: {error}",
                    group.0.join(limit).display()
                ));
                None
            }
        }
    }

    /// The program inside.
    fn run(&self, root: &Path, args: &[&str]) -> Ended {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ >\"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&self.0);
        command
            .arg(env!("CARGO_BIN_EXE_thalweg"))
            .args(args)
            .current_dir(root);
        ended(command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_control_group_smaller_than_the_budget_is_refused_and_a_budget_that_fits_it_works() {
    let Some(group) = Group::new(200 << 20) else {
        return;
    };
    let root = tempfile::tempdir().expect("temporary folder");
    inputs(root.path(), 16 << 10);
    let merge = [
        "merge",
        "one",
        "two",
        "--out",
        "out",
        "--threads",
        "2",
        "--json",
        "--quiet",
    ];
    group.run(root.path(), &[&merge[..], &["--memory", "256MiB"]].concat()).fails(
        2,
        &["cannot have the memory: 256 MiB: wanted 256 MiB of its control group's memory, got 200 MiB", "--memory"],
    );
    assert!(!root.path().join("out").exists());
    let report = group
        .run(root.path(), &[&merge[..], &["--memory", "128MiB"]].concat())
        .ok()
        .json();
    assert_eq!(report["memory_limit_bytes"], 128 << 20);
    // Without a word about memory it takes what the group can give.
    let report = group
        .run(
            root.path(),
            &[&merge[..], &["--overwrite", "--restart"]].concat(),
        )
        .ok()
        .json();
    assert!(
        report["memory_limit_bytes"]
            .as_u64()
            .is_some_and(|limit| limit <= 150 << 20),
        "{report}"
    );
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_by_name_and_the_merge_goes_on_without_it() {
    let root = small();
    let merge = ["merge", "one", "two", "--out", "out", "--quiet"];
    limited(root.path(), "-f 100", &merge).fails(
        2,
        &[
            "cannot reserve disk space for: out: model.safetensors takes 25",
            "ulimit -f",
        ],
    );
    assert!(!root.path().join("out/.thalweg").exists());
    // The weights fit, a file beside them does not.
    fs::write(root.path().join("one/tokenizer.json"), vec![b' '; 2 << 20]).expect("written");
    limited(root.path(), "-f 2048", &merge).fails(
        3,
        &["out/.thalweg/aside.tmp", "File too large", "ulimit -f"],
    );
    run(root.path(), merge).ok();
    run(root.path(), ["verify", "out", "--quiet"]).ok();
}
