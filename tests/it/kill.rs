//! The program is killed at random moments, asked to stop, and stopped twice; the same command goes
//! on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::program::{run, start};
use crate::support::reference::Random;
use crate::support::slow::{hashes, relative_hashes, slow_inputs, slow_merge};

#[test]
fn killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run() {
    let root = slow_inputs();
    let inputs = hashes(root.path());
    let begun = Instant::now();
    run(root.path(), slow_merge("undisturbed", &["--quiet"])).ok();
    let span = begun.elapsed();
    let wanted = relative_hashes(&root.path().join("undisturbed"));
    let out = root.path().join("out");
    let mut random = Random::new(2024);
    let (mut kills, mut resumed) = (0, 0);
    while kills < 20 {
        let begun_before = out.join(".thalweg/journal").exists();
        let running = start(root.path(), slow_merge("out", &["--quiet"]));
        std::thread::sleep(span.mul_f64(0.7 * random.uniform()));
        running.signal(Signal::KILL);
        let ended = running.end();
        if ended.code.is_none() {
            kills += 1;
            whole_under_final_names(&out, &wanted);
        } else {
            resumed += usize::from(begun_before);
            ended.ok();
            assert_eq!(relative_hashes(&out), wanted);
            assert!(!out.join(".thalweg").exists());
            fs::remove_dir_all(&out).expect("removed");
        }
    }
    run(root.path(), slow_merge("out", &["--quiet"])).ok();
    assert_eq!(relative_hashes(&out), wanted);
    assert!(resumed > 0, "no run went on after a kill");
    let after = hashes(root.path());
    assert!(
        inputs.iter().all(|(path, hash)| after[path] == *hash),
        "an input was changed"
    );
}

/// Whatever the moment, a file that has its final name has its final bytes.
fn whole_under_final_names(out: &Path, wanted: &BTreeMap<PathBuf, blake3::Hash>) {
    if !out.exists() {
        return;
    }
    for (name, hash) in relative_hashes(out) {
        assert_eq!(
            wanted.get(&name),
            Some(&hash),
            "{} is half done",
            name.display()
        );
    }
}

#[test]
fn asked_to_stop_it_says_how_to_go_on_and_goes_on() {
    let root = slow_inputs();
    run(root.path(), slow_merge("undisturbed", &["--quiet"])).ok();
    let wanted = relative_hashes(&root.path().join("undisturbed"));
    for (signal, out) in [(Signal::TERM, "terminated"), (Signal::INT, "interrupted")] {
        let mut running = start(root.path(), slow_merge(out, &[]));
        let first = root
            .path()
            .join(out)
            .join("model-00001-of-00005.safetensors");
        assert!(
            running.until(|| first.exists()),
            "it was finished before its first shard was"
        );
        running.signal(signal);
        let ended = running
            .end()
            .fails(3, &["stopped on request", "run the same command again"]);
        assert_eq!(ended.stdout, "");
        let resumed = run(root.path(), slow_merge(out, &["--json"])).ok().json();
        assert_eq!(resumed["status"], "resumed");
        assert!(
            resumed["written_bytes"].as_u64() < resumed["output_bytes"].as_u64(),
            "{resumed}"
        );
        assert_eq!(relative_hashes(&root.path().join(out)), wanted);
    }
}

#[test]
fn a_second_signal_ends_it_at_once_and_it_can_be_resumed_all_the_same() {
    let root = slow_inputs();
    let mut running = start(root.path(), slow_merge("out", &[]));
    assert!(running.until(|| root.path().join("out/.thalweg/journal").exists()));
    // Held still, so that both signals are there before the program can end in good order.
    running.signal(Signal::STOP);
    running.signal(Signal::TERM);
    running.signal(Signal::INT);
    let begun = Instant::now();
    running.signal(Signal::CONT);
    let ended = running.end();
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    // It did not get to say anything.
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(3), ""));
    assert_eq!(
        run(root.path(), slow_merge("out", &["--json"])).ok().json()["status"],
        "resumed"
    );
    run(root.path(), ["verify", "out"]).ok();
}

#[test]
fn a_second_process_on_the_same_output_is_refused_and_the_first_goes_on() {
    let root = slow_inputs();
    let mut first = start(root.path(), slow_merge("out", &["--quiet"]));
    assert!(first.until(|| root.path().join("out/.thalweg/journal").exists()));
    first.signal(Signal::STOP);
    let holder = format!("process {} works on this output", first.pid());
    for more in [&[][..], &["--restart"], &["--overwrite"]] {
        run(root.path(), slow_merge("out", more))
            .fails(2, &["cannot lock: out/.thalweg/lock", &holder]);
    }
    first.signal(Signal::CONT);
    first.end().ok();
    run(root.path(), ["verify", "out"]).ok();
}
