//! Resident memory follows the windows in flight, not the file.

use std::collections::VecDeque;
use std::fs;
use std::process::Command;

use thalweg::checkpoint::{Checkpoint, SourceOptions};

const FILE_BYTES: u64 = 256 << 20;
const WINDOW_BYTES: u64 = 1 << 20;
const LIVE_WINDOWS: usize = 4;
const ALLOWED_BYTES: u64 = 16 << 20;
/// The test binary is a mapped file as well, and more of its code is resident after the sweep than
/// before.
const OWN_CODE_BYTES: u64 = 2 << 20;

/// Resident bytes of mapped files in this process.
fn resident_file_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status
        .lines()
        .find(|line| line.starts_with("RssFile:"))
        .expect("kernel 4.5 or newer");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .expect("a number");
    kib << 10
}

/// Runs alone in a process of its own: other tests of this binary map files too.
#[test]
#[ignore = "run by the test below in its own process"]
fn sweep_of_a_big_file_in_this_process() {
    // NOTE: not in /tmp, which may be in memory and would not count as file pages.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary folder");
    let path = folder.path().join("big.safetensors");
    let header = format!(
        "{{\"t\":{{\"dtype\":\"U8\",\"shape\":[{FILE_BYTES}],\"data_offsets\":[0,{FILE_BYTES}]}}}}"
    );
    fs::write(
        &path,
        super::raw_file(&header, usize::try_from(FILE_BYTES).expect("fits")),
    )
    .expect("write");
    let checkpoint = Checkpoint::open(&path).expect("open");
    let range = checkpoint.tensors()["t"].bytes.clone();
    let source = checkpoint
        .open_file(0, &SourceOptions::default())
        .expect("open file");

    let before = resident_file_bytes();
    let mut peak = 0;
    let mut live = VecDeque::new();
    for pass in 0..2 {
        let mut at = range.start;
        while at < range.end {
            if live.len() == LIVE_WINDOWS {
                live.pop_front();
            }
            let end = range.end.min(at + WINDOW_BYTES);
            source.prefetch(end..range.end.min(end + WINDOW_BYTES));
            let window = source.load(at..end).expect("load");
            assert!(
                window.iter().all(|byte| *byte == 0x5A),
                "pass {pass} at {at}"
            );
            live.push_back(window);
            at = end;
            peak = peak.max(resident_file_bytes());
        }
    }
    assert!(
        peak >= before + (LIVE_WINDOWS as u64 - 1) * WINDOW_BYTES,
        "windows are mapped when they are handed out"
    );
    assert!(
        peak < before + ALLOWED_BYTES,
        "before {before}, peak {peak}"
    );
    live.clear();
    let after = resident_file_bytes();
    assert!(
        after < before + OWN_CODE_BYTES,
        "before {before}, after all windows went {after}"
    );
}

#[test]
fn resident_memory_stays_small_in_a_sweep_of_a_big_file() {
    let this = std::env::current_exe().expect("test binary");
    let name = "checkpoint::memory::sweep_of_a_big_file_in_this_process";
    let output = Command::new(this)
        .args([name, "--exact", "--ignored", "--test-threads=1"])
        .output()
        .expect("run");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
