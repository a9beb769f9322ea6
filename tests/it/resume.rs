//! What a run may go on with: the same request on the same inputs over undamaged work; all else is
//! refused or redone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::crash_merge::{Case, SMALL_KEYS, small_shards};
use crate::support::crash::Image;
use crate::support::files::flip;
use crate::support::files::{files_below, scratch};
use crate::support::program::{Ended, run};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A merge that lost power half way, and what an undisturbed run would have made.
struct Stopped {
    case: Case,
    root: TempDir,
    wanted: Files,
}

/// With the first of three shards under its final name.
fn stopped() -> Stopped {
    let case = Case::new(&small_shards(), SMALL_KEYS);
    let (wanted, operations) = case.undisturbed();
    let root = (operations / 3..operations)
        .map(|at| case.crashed(at, Image::Kept))
        .find(|root| {
            root.path().join("out").join(FIRST).exists() && journal_len(root.path()) > 2000
        })
        .expect("the first shard is finished before the last");
    assert!(!root.path().join("out").join(THIRD).exists());
    fs::write(root.path().join("case.yml"), case.recipe()).expect("written");
    Stopped { case, root, wanted }
}

const FIRST: &str = "model-00001-of-00003.safetensors";
const SECOND: &str = "model-00002-of-00003.safetensors";
const THIRD: &str = "model-00003-of-00003.safetensors";

fn journal_len(root: &Path) -> u64 {
    fs::metadata(root.join("out/.thalweg/journal"))
        .expect("a journal")
        .len()
}

impl Stopped {
    fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    fn run(&self, more: &[&str]) -> Ended {
        let args = [
            "merge", "case.yml", "--out", "out", "--memory", "256MiB", "--quiet",
        ];
        run(self.root.path(), args.iter().chain(more))
    }

    /// Rewrites the recipe.
    fn change(&self, from: &str, to: &str) {
        let changed = self.case.recipe().replacen(from, to, 1);
        assert_ne!(changed, self.case.recipe());
        fs::write(self.root.path().join("case.yml"), changed).expect("written");
    }

    #[track_caller]
    fn is_as_wanted(&self) {
        assert!(files_below(&self.out()) == self.wanted, "bytes differ");
    }

    /// The run is refused in these words, changes nothing, and a new beginning helps.
    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let before = files_below(&self.out());
        self.run(&[]).fails(2, words).fails(2, &["--restart"]);
        let lock = Path::new(".thalweg/lock");
        let same = |files: Files| {
            files
                .into_iter()
                .filter(|(name, _)| name != lock)
                .collect::<Files>()
        };
        assert!(
            same(before) == same(files_below(&self.out())),
            "a refused run changed something"
        );
        self.run(&["--restart"]).ok();
    }
}

#[test]
fn the_program_goes_on_where_the_library_stopped() {
    let stopped = stopped();
    let report = stopped.run(&["--json"]).ok().json();
    assert_eq!(report["status"], "resumed");
    assert!(report["written_bytes"].as_u64() < report["output_bytes"].as_u64());
    stopped.is_as_wanted();
}

#[test]
fn another_request_is_refused_and_named() {
    for (from, to, words) in [
        ("weight: 1", "weight: 2", "weight"),
        ("karcher", "linear", "merge_method"),
        (
            "out_shard_size: 170000",
            "out_shard_size: 180000",
            "shard_bytes",
        ),
        ("out_shard_size", "dtype: float16\nout_shard_size", "dtype"),
        (
            "out_shard_size",
            "granularity: row\nout_shard_size",
            "granularity",
        ),
        ("/b,", "/a,", "inputs[1]"),
    ] {
        let stopped = stopped();
        stopped.change(from, to);
        stopped.refused(&[
            "cannot resume: out/.thalweg/journal",
            words,
            "journal has",
            "this run",
        ]);
    }
}

#[test]
fn what_does_not_change_the_output_may_change() {
    let mut stopped = stopped();
    stopped.change(
        "out_shard_size",
        "memory: 300MiB\nthreads: 1\nout_shard_size",
    );
    // The recipe goes along word for word, whatever of it matters.
    let text = fs::read(stopped.root.path().join("case.yml")).expect("there");
    stopped.wanted.insert("mergekit_config.yml".into(), text);
    stopped
        .run(&[
            "--threads",
            "2",
            "--block-size",
            "300KB",
            "--io",
            "pread",
            "--simd",
            "portable",
        ])
        .ok();
    // The card quotes it. So the hashes of both in the manifest are others too, and nothing else
    // there.
    let found = |name: &str| fs::read(stopped.out().join(name)).expect("there");
    let (card, manifest) = (found("README.md"), found("thalweg.json"));
    let without_recipe = |manifest: &[u8]| {
        let mut manifest: serde_json::Value = serde_json::from_slice(manifest).expect("JSON");
        manifest
            .as_object_mut()
            .expect("an object")
            .remove("blake3_of_all_above")
            .expect("it is there");
        let sides = manifest["side_files"].as_array_mut().expect("a list");
        sides.retain(|side| side["name"] != "mergekit_config.yml" && side["name"] != "README.md");
        manifest
    };
    assert!(
        without_recipe(&manifest) == without_recipe(&stopped.wanted[Path::new("thalweg.json")])
    );
    stopped.wanted.insert("README.md".into(), card);
    stopped.wanted.insert("thalweg.json".into(), manifest);
    stopped.is_as_wanted();
}

#[test]
fn changed_inputs_are_refused_and_named() {
    let file = "b/model-00002-of-00003.safetensors";
    let touch = |path: &Path| {
        let later = SystemTime::now() + Duration::from_secs(5);
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(later))
            .expect("touched");
    };
    let rename = |path: &Path| {
        let bytes = fs::read(path).expect("there");
        // Another tensor's name, at the same length.
        let at = bytes
            .windows(6)
            .position(|window| window == b"b.none")
            .expect("in the header");
        let modified = fs::metadata(path)
            .and_then(|it| it.modified())
            .expect("there");
        flip(path, at as u64 + 5);
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_modified(modified))
            .expect("as it was");
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(Change<'_>, &str); 3] = [
        (&touch, "modified_ns"),
        (
            &|path| flip(path, fs::metadata(path).expect("there").len() - 1),
            "modified_ns",
        ),
        (&rename, ""),
    ];
    for (change, words) in cases {
        let stopped = stopped();
        change(&stopped.case.inputs().join(file));
        if words.is_empty() {
            // A renamed tensor is no resumable change at all: the models no longer fit each other.
            stopped.run(&[]).fails(2, &["b.none"]);
        } else {
            stopped.refused(&["inputs[1].files[1]", words, "journal has"]);
        }
    }
}

#[test]
fn damaged_work_is_refused_or_redone_and_never_trusted() {
    let part = format!(".thalweg/{THIRD}.part");
    for name in [FIRST, SECOND, THIRD, &part, ".thalweg/journal"] {
        let mut tried = 0;
        for damage in [
            flip_at(0.1),
            flip_at(0.5),
            flip_at(0.9),
            flip_at(1.0),
            Damage::Cut,
            Damage::Empty,
            Damage::Delete,
        ] {
            let stopped = stopped();
            let path = stopped.out().join(name);
            if !path.exists() {
                continue;
            }
            tried += 1;
            damage.inflict(&path);
            let ended = stopped.run(&[]);
            match ended.code {
                Some(0) => stopped.is_as_wanted(),
                Some(1 | 2) => {
                    assert!(
                        ended.stderr.starts_with("thalweg: cannot "),
                        "{name}, {damage:?}: {ended:?}"
                    );
                    // Without its journal the work is nobody's: only leave to overwrite helps.
                    let gone = name.ends_with("journal") && matches!(damage, Damage::Delete);
                    stopped
                        .run(&[if gone { "--overwrite" } else { "--restart" }])
                        .ok();
                    stopped.is_as_wanted();
                }
                _ => panic!("{name}, {damage:?}: {ended:?}"),
            }
        }
        assert!(
            tried > 0 || [SECOND, THIRD].contains(&name),
            "there is no {name}"
        );
    }
}

#[derive(Debug)]
enum Damage {
    /// One byte, at this share of the file.
    Flip(f64),
    Cut,
    Empty,
    Delete,
}

fn flip_at(share: f64) -> Damage {
    Damage::Flip(share)
}

impl Damage {
    fn inflict(&self, path: &Path) {
        let len = fs::metadata(path).expect("there").len();
        let resize = |len| {
            File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(len))
                .expect("resized")
        };
        match self {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a place in a small file"
            )]
            #[expect(clippy::cast_precision_loss, reason = "a place in a small file")]
            Self::Flip(share) => flip(path, ((len - 1) as f64 * share) as u64),
            Self::Cut => resize(len - 1),
            Self::Empty => resize(0),
            Self::Delete => fs::remove_file(path).expect("removed"),
        }
    }
}

/// A finished merge, by the program.
fn finished() -> Stopped {
    let case = Case::new(&small_shards(), SMALL_KEYS);
    let root = scratch();
    fs::write(root.path().join("case.yml"), case.recipe()).expect("written");
    let (wanted, _) = case.undisturbed();
    let finished = Stopped { case, root, wanted };
    finished.run(&[]).ok();
    finished.is_as_wanted();
    finished
}

fn times(dir: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let names = files_below(dir).into_keys();
    names
        .map(|name| {
            (
                name.clone(),
                fs::metadata(dir.join(name))
                    .and_then(|it| it.modified())
                    .expect("there"),
            )
        })
        .collect()
}

#[test]
fn a_finished_merge_is_complete_already_and_nothing_is_rewritten() {
    let finished = finished();
    let before = times(&finished.out());
    for more in [
        &["--json"][..],
        &["--json", "--overwrite"],
        &["--json", "--restart"],
    ] {
        let report = finished.run(more).ok().json();
        assert_eq!(
            (&report["status"], &report["written_bytes"]),
            (&"complete already".into(), &0.into()),
            "{more:?}"
        );
        assert_eq!(times(&finished.out()), before, "{more:?}");
    }
    finished.run(&["--restart", "--overwrite"]).ok();
    assert_ne!(times(&finished.out()), before);
    finished.is_as_wanted();
}

#[test]
fn another_merge_over_a_finished_one_is_refused_unless_it_may_overwrite() {
    let finished = finished();
    finished.change(
        "out_shard_size: 170000",
        "dtype: float16\nout_shard_size: 10GB",
    );
    for more in [&[][..], &["--restart"]] {
        finished.run(more).fails(
            2,
            &[
                "cannot write to folder: out",
                "another merge is finished there",
                "--overwrite",
            ],
        );
        finished.is_as_wanted();
    }
    finished.run(&["--overwrite"]).ok();
    let left: Vec<_> = files_below(&finished.out()).into_keys().collect();
    assert_eq!(
        left,
        [
            "README.md",
            "config.json",
            "mergekit_config.yml",
            "model.safetensors",
            "thalweg.json"
        ]
        .map(PathBuf::from),
        "stale shards are gone"
    );
    run(finished.root.path(), ["verify", "out"]).ok();
}

#[test]
fn somebody_elses_checkpoint_is_not_touched() {
    for name in [
        "model.safetensors",
        "pytorch_model.bin",
        "config.json",
        "model.safetensors.index.json",
    ] {
        let finished = finished();
        fs::create_dir(finished.root.path().join("theirs")).expect("made");
        let file = finished.root.path().join("theirs").join(name);
        fs::write(&file, b"theirs").expect("written");
        let merge = ["merge", "case.yml", "--out", "theirs", "--quiet"];
        for more in [&[][..], &["--restart"]] {
            let ended = run(finished.root.path(), merge.iter().chain(more));
            ended.fails(2, &["cannot write to folder: theirs", name, "--overwrite"]);
            assert_eq!(
                fs::read_dir(finished.root.path().join("theirs"))
                    .expect("there")
                    .count(),
                1
            );
            assert_eq!(fs::read(&file).expect("there"), b"theirs");
        }
        run(finished.root.path(), merge.iter().chain(&["--overwrite"])).ok();
        assert!(
            files_below(&finished.root.path().join("theirs"))
                .iter()
                .all(|(name, bytes)| finished.wanted[name] == *bytes)
        );
    }
}
