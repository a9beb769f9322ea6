//! Alignments that are killed, cut off or asked to stop go on and end with the same bytes.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::process::Signal;
use tempfile::TempDir;
use thalweg::Result;
use thalweg::align::matching::MatchOptions as Matching;
use thalweg::align::run::{Align, AlignmentReport, Matcher, Pair, PairTask, align};
use thalweg::checkpoint::Checkpoint;
use thalweg::engine::Options;
use thalweg::likeness::Waived;
use thalweg::output::{Storage, Target};

use super::Stored;
use super::planted::planted;
use crate::support::crash::{CrashStorage, Image};
use crate::support::files::scratch;
use crate::support::forward::{Chain, Family, Net, Random};
use crate::support::program::{run, start};

/// Where an alignment of the crash tests lies.
const OUT: &str = "perms.safetensors";

fn small() -> Stored {
    planted(
        &Chain {
            norms: false,
            flax: false,
        }
        .random(4),
        false,
    )
}

/// Aligns the models of `inputs` into the folder `root` through `storage`.
fn aligned(
    inputs: &Path,
    storage: CrashStorage,
    root: &Path,
) -> (CrashStorage, Result<AlignmentReport>) {
    let storage = Arc::new(storage);
    let open = |name: &str| Checkpoint::open(&inputs.join(name)).expect("opens");
    let outcome = align(Align {
        task: PairTask {
            pair: Pair::new(open("model"), open("planted"), None, Waived::default())
                .expect("a pair"),
            by: Matcher::Weights,
            matching: Matching::default(),
        },
        memory: 256 << 20,
        held: 0,
        threads: 1,
        device: None,
        storage: Arc::clone(&storage) as Arc<dyn Storage>,
        target: Some(Target {
            dir: root.join(OUT),
            overwrite: false,
            restart: false,
        }),
        options: Options::default(),
    });
    (
        Arc::into_inner(storage).expect("all of the run is dropped"),
        outcome.map(|aligned| aligned.report),
    )
}

#[test]
fn power_may_go_at_every_operation() {
    let stored = small();
    let inputs = stored.dir.path();
    let undisturbed = scratch();
    let (storage, outcome) = aligned(
        inputs,
        CrashStorage::reliable(undisturbed.path()),
        undisturbed.path(),
    );
    assert_eq!(outcome.expect("nothing fails").status, "aligned");
    let wanted = fs::read(undisturbed.path().join(OUT)).expect("written");
    let mut resumed = 0;
    for at in 1..=storage.operations() {
        for image in Image::ALL {
            let root = scratch();
            let (storage, outcome) =
                aligned(inputs, CrashStorage::new(root.path(), at), root.path());
            assert!(outcome.is_err(), "the power went at operation {at}");
            let after: TempDir = scratch();
            storage.image(image, after.path());
            if let Ok(bytes) = fs::read(after.path().join(OUT)) {
                assert_eq!(bytes, wanted, "half a file after operation {at}, {image:?}");
            }
            let (_, outcome) = aligned(inputs, CrashStorage::reliable(after.path()), after.path());
            let report =
                outcome.unwrap_or_else(|error| panic!("operation {at}, {image:?}: {error}"));
            resumed += usize::from(report.status == "resumed");
            assert_eq!(
                fs::read(after.path().join(OUT)).expect("written"),
                wanted,
                "operation {at}, {image:?}"
            );
            let names = fs::read_dir(after.path()).expect("a folder").count();
            assert_eq!(
                names, 1,
                "something is left after operation {at}, {image:?}"
            );
        }
    }
    assert!(resumed > 8, "{resumed}");
}

/// The journal that a run leaves when its last operation but a few fails.
fn with_journal(stored: &Stored) -> (Vec<u8>, std::path::PathBuf) {
    let root = scratch();
    let (storage, _) = aligned(
        stored.dir.path(),
        CrashStorage::reliable(root.path()),
        root.path(),
    );
    let operations = storage.operations();
    let journal = Path::new(".perms.safetensors.thalweg/journal");
    for before in 1..operations {
        let root = scratch();
        let (storage, _) = aligned(
            stored.dir.path(),
            CrashStorage::new(root.path(), operations - before),
            root.path(),
        );
        let after = scratch();
        storage.image(Image::Kept, after.path());
        let there = after.path().join(journal);
        if there.is_file() && !after.path().join(OUT).exists() {
            return (fs::read(there).expect("readable"), journal.to_owned());
        }
    }
    panic!("no operation leaves a journal");
}

#[test]
fn a_torn_tail_is_cut_off_and_other_damage_refused() {
    let stored = small();
    let dir = stored.dir.path();
    run(dir, ["align", "model", "planted", "--out", OUT, "--quiet"]).ok();
    let wanted = fs::read(dir.join(OUT)).expect("written");
    let (bytes, journal) = with_journal(&stored);
    fs::create_dir_all(dir.join(&journal).parent().expect("a folder")).expect("made");
    let last = bytes.len() - 1;
    let again = ["align", "model", "planted", "--out", OUT, "--json"];
    for torn in [
        bytes[..last].to_vec(),
        [&bytes[..], &[0; 100]].concat(),
        bytes.clone(),
    ] {
        fs::remove_file(dir.join(OUT)).expect("there");
        fs::create_dir_all(dir.join(&journal).parent().expect("a folder")).expect("made");
        fs::write(dir.join(&journal), torn).expect("written");
        assert_eq!(run(dir, again).ok().json()["status"], "resumed");
        assert_eq!(fs::read(dir.join(OUT)).expect("written"), wanted);
    }
    fs::remove_file(dir.join(OUT)).expect("there");
    fs::create_dir_all(dir.join(&journal).parent().expect("a folder")).expect("made");
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 3] ^= 1;
    for (damaged, words) in [
        (flipped, "damaged"),
        (b"{}".to_vec(), "does not begin as a journal does"),
    ] {
        fs::write(dir.join(&journal), damaged).expect("written");
        run(dir, again).fails(2, &[words, "--restart"]);
    }
    // Another command's journal: other options, then another model.
    fs::write(dir.join(&journal), &bytes).expect("written");
    run(dir, ["align", "model", "planted", "--out", OUT, "--seed", "9"]).fails(
        2,
        &["cannot resume: .perms.safetensors.thalweg/journal: options.seed: journal has 0, this run 9", "--restart"],
    );
    run(dir, ["align", "planted", "model", "--out", OUT])
        .fails(2, &["reference: journal has", "--restart"]);
    run(
        dir,
        [
            "align",
            "planted",
            "model",
            "--out",
            OUT,
            "--restart",
            "--quiet",
        ],
    )
    .ok();
    assert!(!dir.join(&journal).exists());
}

#[test]
fn a_finished_file_is_not_made_again_and_others_are_not_replaced() {
    let stored = small();
    let dir = stored.dir.path();
    let command = ["align", "model", "planted", "--out", OUT];
    let first = run(dir, command).ok().stdout;
    let again = run(dir, command).ok().stdout;
    assert!(again.starts_with("complete already: "), "{again}");
    let table = |text: &str| {
        text.lines()
            .skip(1)
            .take_while(|line| !line.starts_with("sweeps"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        table(&first),
        table(&again),
        "the report is that of the file"
    );
    let words = [
        "cannot write to file: perms.safetensors: a file is there",
        "--overwrite",
    ];
    run(dir, command.iter().chain(&["--cost", "raw"])).fails(2, &words);
    assert_eq!(
        run(
            dir,
            command
                .iter()
                .chain(&["--restart", "--overwrite", "--json"])
        )
        .ok()
        .json()["status"],
        "aligned"
    );
    run(
        dir,
        command
            .iter()
            .chain(&["--cost", "raw", "--overwrite", "--quiet"]),
    )
    .ok();
    run(dir, command).fails(2, &words);
}

/// An MLP of layers wide enough that aligning two of them takes a while.
fn slow() -> TempDir {
    let mut net = Net::new(serde_json::json!({}));
    let mut random = Random::new(1);
    let width = 512;
    for layer in 0..5 {
        let (from, to) = (
            if layer == 0 { 64 } else { width },
            if layer == 4 { 10 } else { width },
        );
        net.add(&mut random, &format!("layers.{layer}.weight"), &[to, from]);
        net.add(&mut random, &format!("layers.{layer}.bias"), &[to]);
    }
    let other = {
        let mut other = net.clone();
        let mut random = Random::new(2);
        other.tensors.values_mut().for_each(|(_, values)| {
            values
                .iter_mut()
                .for_each(|value| *value += 0.1 * random.signed())
        });
        other
    };
    let root = scratch();
    net.write(&root.path().join("model"));
    let stored = Stored::new(&other, None);
    let transform = thalweg::symmetry::Transform::random(&stored.symmetries, 5);
    stored.apply(
        "model",
        transform,
        "planted",
        &crate::support::whole::PLENTY,
    );
    let to = root.path().join("planted");
    fs::create_dir(&to).expect("made");
    for entry in fs::read_dir(stored.dir.path().join("planted")).expect("a folder") {
        let entry = entry.expect("an entry");
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
    root
}

const SLOW: [&str; 8] = [
    "align",
    "model",
    "planted",
    "--out",
    OUT,
    "-j",
    "1",
    "--memory=64MiB",
];
const JOURNAL: &str = ".perms.safetensors.thalweg/journal";

#[test]
fn killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run() {
    let root = slow();
    let dir = root.path();
    let begun = Instant::now();
    run(dir, SLOW.iter().chain(&["--quiet"])).ok();
    let span = begun.elapsed();
    let wanted = fs::read(dir.join(OUT)).expect("written");
    fs::remove_file(dir.join(OUT)).expect("there");
    let mut random = Random::new(9);
    let (mut kills, mut resumed) = (0, 0);
    while kills < 10 {
        let running = start(dir, SLOW.iter().chain(&["--quiet"]));
        std::thread::sleep(span.mul_f64(0.3 + 0.3 * random.signed()));
        let had_journal = dir.join(JOURNAL).exists();
        running.signal(Signal::KILL);
        if running.end().code.is_none() {
            kills += 1;
            resumed += usize::from(had_journal);
        } else {
            assert_eq!(fs::read(dir.join(OUT)).expect("written"), wanted);
            fs::remove_file(dir.join(OUT)).expect("there");
        }
    }
    run(dir, SLOW).ok();
    assert_eq!(fs::read(dir.join(OUT)).expect("written"), wanted);
    assert!(resumed > 0 && !dir.join(".perms.safetensors.thalweg").exists());
}

#[test]
fn asked_to_stop_it_says_how_to_go_on_and_goes_on() {
    let root = slow();
    let dir = root.path();
    for signal in [Signal::TERM, Signal::INT] {
        let mut running = start(dir, SLOW);
        assert!(running.until(|| fs::metadata(dir.join(JOURNAL)).is_ok_and(|journal| journal.len() > 1000)));
        running.signal(signal);
        let ended = running.end().fails(
            3,
            &[
                "stopped on request: perms.safetensors: ",
                "run the same command again",
            ],
        );
        assert_eq!(ended.stdout, "");
        let resumed = run(dir, SLOW.iter().chain(&["--json"])).ok().json();
        assert_eq!(resumed["status"], "resumed");
        fs::remove_file(dir.join(OUT)).expect("there");
    }
    // Without a file there is nothing to go on from.
    let running = start(dir, ["align", "model", "planted", "-j", "1"]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    running.signal(Signal::TERM);
    let ended = running.end();
    assert!(
        ended.code == Some(0) || ended.stderr.contains("with --out what was found is kept"),
        "{ended:?}"
    );
    assert!(ended.code == Some(0) || ended.code == Some(1), "{ended:?}");
}

#[test]
fn a_second_signal_ends_it_at_once_and_a_second_process_is_refused() {
    let root = slow();
    let dir = root.path();
    let mut running = start(dir, SLOW);
    assert!(running.until(|| dir.join(JOURNAL).exists()));
    running.signal(Signal::STOP);
    let holder = format!("process {} works on this output", running.pid());
    run(dir, SLOW).fails(
        2,
        &["cannot lock: .perms.safetensors.thalweg/lock", &holder],
    );
    // Held still, so that both signals are there before it can end in good order.
    running.signal(Signal::TERM);
    running.signal(Signal::INT);
    running.signal(Signal::CONT);
    let ended = running.end();
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(3), ""));
    assert_eq!(
        run(dir, SLOW.iter().chain(&["--json"])).ok().json()["status"],
        "resumed"
    );
}

#[test]
fn a_merge_that_is_killed_while_it_aligns_or_later_aligns_nothing_twice() {
    let root = slow();
    let dir = root.path();
    let merge = |out: &'static str| {
        [
            "merge", "model", "planted", "--align", "weights", "--out", out, "-j", "1", "--json",
        ]
    };
    run(dir, merge("undisturbed")).ok();
    let mut running = start(dir, merge("out"));
    let journal = dir.join("out/alignment/.2.safetensors.thalweg/journal");
    assert!(running.until(|| fs::metadata(&journal).is_ok_and(|journal| journal.len() > 1000)));
    running.signal(Signal::KILL);
    running.end();
    let mut running = start(dir, merge("out"));
    // The transform is whole before the merge begins.
    let aligned = dir.join("out/alignment/2.safetensors");
    assert!(running.until(|| aligned.exists()));
    let made = fs::metadata(&aligned)
        .and_then(|made| made.modified())
        .expect("there");
    running.signal(Signal::KILL);
    running.end();
    run(dir, merge("out")).ok();
    assert_eq!(
        fs::metadata(&aligned)
            .and_then(|made| made.modified())
            .expect("there"),
        made,
        "it was aligned again"
    );
    for name in [
        "model.safetensors",
        "alignment/2.safetensors",
        "thalweg.json",
    ] {
        let [one, other] =
            ["undisturbed", "out"].map(|out| fs::read(dir.join(out).join(name)).expect("written"));
        assert!(one == other, "{name} differs");
    }
}

#[test]
fn transforms_of_a_replaced_merge_go_with_it_and_nothing_is_left_of_runs_towards_them() {
    let stored = small();
    let dir = stored.dir.path();
    let merge = ["merge", "model", "planted", "--out", "out", "--quiet"];
    let aligned = [&merge[..], &["--align", "weights"]].concat();
    run(dir, &aligned).ok();
    let transform = dir.join("out/alignment/2.safetensors");
    let old = fs::read(&transform).expect("written");
    // Killed between the transform's last name and the end of its work folder.
    let work = dir.join("out/alignment/.2.safetensors.thalweg");
    let leave = || {
        fs::create_dir(&work).expect("made");
        fs::write(work.join("lock"), "1\n").expect("written");
        fs::write(work.join("journal"), "").expect("written");
    };
    leave();
    run(dir, &aligned).ok();
    assert!(!work.exists(), "it was left for good");
    // Another alignment in its place: until it is whole, the old one is.
    let permuted = [
        &aligned[..],
        &["--align-residual", "permute", "--overwrite"],
    ]
    .concat();
    run(dir, [&permuted[..], &["--verify"]].concat()).ok();
    assert!(fs::read(&transform).expect("written") != old);
    run(dir, ["verify", "out", "--quiet"]).ok();
    run(
        dir,
        [&permuted[..], &["--align-reference", "mean"]].concat(),
    )
    .ok();
    assert!(dir.join("out/alignment/1.safetensors").exists());
    leave();
    run(dir, [&merge[..], &["--overwrite"]].concat()).ok();
    assert!(!dir.join("out/alignment").exists() && !dir.join("out/.thalweg").exists());
    run(dir, ["verify", "out", "--quiet"]).ok();
}
