//! Two small models, a command that was run, and a test that says that it is skipped.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use thalweg::dtype::Dtype;

use super::program::Ended;
use super::striped::{spec, write};

/// Two small models.
pub fn inputs(root: &Path, rows: u64) {
    let shards = [vec![
        spec("a", Dtype::BF16, &[rows, 1024]),
        spec("b", Dtype::BF16, &[rows, 1024]),
    ]];
    for (name, seed) in [("one", 1), ("two", 2)] {
        write(&root.join(name), &shards, seed);
    }
}

pub fn small() -> TempDir {
    let root = tempfile::tempdir().expect("temporary folder");
    inputs(root.path(), 64);
    root
}

pub fn ended(mut command: Command) -> Ended {
    let output = command.output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
        peak: 0,
    }
}

#[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
pub fn skipped(what: &str) -> bool {
    eprintln!("SKIPPED, it needs root: {what}");
    false
}
