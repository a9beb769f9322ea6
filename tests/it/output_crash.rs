//! An output loses power at every single operation, and ends with the bytes of an uninterrupted
//! run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;
use thalweg::Result;
use thalweg::dtype::Dtype;
use thalweg::output::storage::Storage;
use thalweg::output::{Begun, Contents, Manifest, Output, SideFile, Target};
use thalweg::plan::layout::{Layout, TensorSpec};

use crate::support::crash::{CrashStorage, Image};
use crate::support::files::{files_below, scratch};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A small output, asked for in the same way every time.
#[derive(Clone, Copy)]
struct Job {
    shard_bytes: u64,
    overwrite: bool,
    restart: bool,
    weight: f64,
    zstd: Option<i32>,
    is_file: bool,
}

const THREE_SHARDS: Job = Job {
    shard_bytes: 700,
    overwrite: false,
    restart: false,
    weight: 0.5,
    zstd: None,
    is_file: false,
};
const ONE_SHARD: Job = Job {
    shard_bytes: 1 << 20,
    ..THREE_SHARDS
};
const ONE_FILE: Job = Job {
    is_file: true,
    ..ONE_SHARD
};
const THREE_PACKED: Job = Job {
    zstd: Some(3),
    ..THREE_SHARDS
};
const ONE_PACKED: Job = Job {
    zstd: Some(3),
    ..ONE_SHARD
};

impl Job {
    fn layout(self) -> Layout {
        let sizes: [&[u64]; 6] = [&[10, 16], &[100], &[33, 2], &[0, 4], &[], &[150]];
        let tensors: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, shape)| TensorSpec {
                name: format!("layers.{number}.weight").into(),
                dtype: if number == 2 { Dtype::BF16 } else { Dtype::F32 },
                shape: shape.to_vec(),
            })
            .collect();
        let layout = Layout::new(&tensors, self.shard_bytes, "model").expect("valid");
        match self.zstd {
            Some(level) => layout.compressed(level),
            None => layout,
        }
    }

    /// The bytes of a tensor; they depend on the job, so that two runs cannot be mixed up.
    fn bytes(self, tensor: usize, len: u64) -> Vec<u8> {
        let seed = tensor + if self.weight > 0.5 { 100 } else { 0 };
        (0..usize::try_from(len).expect("small"))
            .map(|at| u8::try_from((at + 7 * seed) % 251).expect("small"))
            .collect()
    }

    /// Runs to the end, or until the storage fails.
    fn run(self, storage: CrashStorage, dir: &Path) -> (CrashStorage, Result<Manifest>) {
        let storage = Arc::new(storage);
        let outcome = self.run_on(Arc::clone(&storage) as Arc<dyn Storage>, dir);
        (
            Arc::into_inner(storage).expect("all of the run is dropped"),
            outcome,
        )
    }

    fn run_on(self, storage: Arc<dyn Storage>, dir: &Path) -> Result<Manifest> {
        let Self {
            overwrite, restart, ..
        } = self;
        let dir = if self.is_file {
            dir.join("x.safetensors")
        } else {
            dir.to_owned()
        };
        let target = Target {
            dir,
            overwrite,
            restart,
        };
        let identity = json!({ "weights": [self.weight] });
        let mut output =
            match Output::begin(storage, &target, self.layout(), &identity, &mut |_, _| {
                Ok(())
            })? {
                Begun::Complete(manifest) => return Ok(manifest),
                Begun::Fresh(output) | Begun::Resumed(output) => output,
            };
        for tensor in 0..output.layout().tensors().len() {
            let len = output.layout().tensors()[tensor].len;
            let bytes = self.bytes(tensor, len);
            let note = json!({ "angle": 0.1 * self.weight, "tensor": tensor });
            match output.note(tensor)? {
                Some(earlier) => assert_eq!(earlier, note, "notes come back as they were made"),
                None => output.set_note(tensor, &note),
            }
            let mut at = usize::try_from(output.durable_bytes(tensor)).expect("small");
            while at < bytes.len() {
                let end = bytes.len().min(at + 240);
                output.write(tensor, u64::try_from(at).expect("small"), &bytes[at..end])?;
                at = end;
            }
            if tensor % 2 == 0 {
                output.commit()?;
            }
        }
        let config = Contents::Bytes(format!("{{\"weight\": {}}}\n", self.weight).into_bytes());
        let code = Contents::Bytes(b"print('hello')\n".to_vec());
        let mut side = vec![
            SideFile::new("config.json", config)?,
            SideFile::new("code/model.py", code)?,
        ];
        if self.weight > 0.92 {
            // Another run has a file that this one has not.
            side.push(SideFile::new(
                "theirs/old.txt",
                Contents::Bytes(b"old".to_vec()),
            )?);
        }
        output.finish(&side, &json!({ "flags": [] }))
    }

    fn uninterrupted(self) -> (Files, usize) {
        self.uninterrupted_over(&Files::new())
    }

    fn uninterrupted_over(self, before: &Files) -> (Files, usize) {
        let root = folder_with(before);
        let dir = root.path().join("out");
        let (storage, outcome) = self.run(CrashStorage::reliable(root.path()), &dir);
        outcome.expect("nothing fails");
        (files_below(&dir), storage.operations())
    }
}

/// A root whose folder `out` holds these files; without any, there is no such folder.
fn folder_with(files: &Files) -> TempDir {
    let root = scratch();
    for (name, bytes) in files {
        let path = root.path().join("out").join(name);
        fs::create_dir_all(path.parent().expect("below")).expect("folder");
        fs::write(path, bytes).expect("file");
    }
    root
}

/// Loses power at operation `at`; the folder after the next boot.
fn crashed(job: Job, root: &Path, at: usize, image: Image) -> TempDir {
    let (storage, outcome) = job.run(CrashStorage::new(root, at), &root.join("out"));
    assert!(outcome.is_err(), "operation {at} fails");
    let after = scratch();
    storage.image(image, after.path());
    after
}

/// Runs the job again where the power was lost, and compares.
fn assert_recovers(job: Job, after: &Path, wanted: &Files, case: &str) {
    let dir = after.join("out");
    let (_, outcome) = job.run(CrashStorage::reliable(after), &dir);
    outcome.unwrap_or_else(|error| panic!("{case}: {error}"));
    let found = files_below(&dir);
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        wanted.keys().collect::<Vec<_>>(),
        "{case}"
    );
    assert!(found == *wanted, "{case}: bytes differ");
}

/// No file has its final name unless every byte of it is final, and what makes a checkpoint comes
/// last.
fn assert_nothing_half_done(after: &Path, wanted: &Files, before: &Files, case: &str) {
    let dir = after.join("out");
    if !dir.exists() {
        return;
    }
    let found = files_below(&dir);
    for (name, bytes) in &found {
        let is_final = wanted.get(name) == Some(bytes) || before.get(name) == Some(bytes);
        let is_work = [".thalweg", ".x.safetensors.thalweg"]
            .iter()
            .any(|work| name.starts_with(work));
        assert!(
            is_work || is_final,
            "{case}: {} is half done",
            name.display()
        );
    }
    let is_checkpoint = [
        "model.safetensors.index.json",
        "model.safetensors",
        "model.safetensors.zst",
        "x.safetensors",
    ]
    .iter()
    .any(|name| found.contains_key(Path::new(name)));
    let holds_all = |files: &Files| {
        files
            .iter()
            .all(|(name, bytes)| found.get(name) == Some(bytes))
    };
    assert!(
        !is_checkpoint || holds_all(wanted) || holds_all(before),
        "{case}: a reader would see a mixture"
    );
}

fn loses_power_everywhere(job: Job, before: &Files) {
    let (wanted, operations) = job.uninterrupted_over(before);
    assert!(operations > 30);
    for at in 1..=operations {
        for image in Image::ALL {
            let case = format!("operation {at} of {operations}, {image:?}");
            let root = folder_with(before);
            let after = crashed(job, root.path(), at, image);
            assert_nothing_half_done(after.path(), &wanted, before, &case);
            assert_recovers(job, after.path(), &wanted, &case);
        }
    }
}

#[test]
fn three_shards_survive_power_loss_at_every_operation() {
    assert_eq!(THREE_SHARDS.layout().shards().len(), 3);
    loses_power_everywhere(THREE_SHARDS, &Files::new());
}

#[test]
fn the_only_shard_survives_power_loss_at_every_operation() {
    assert_eq!(ONE_SHARD.layout().shards().len(), 1);
    loses_power_everywhere(ONE_SHARD, &Files::new());
}

#[test]
fn three_compressed_shards_survive_power_loss_at_every_operation() {
    assert_eq!(THREE_PACKED.layout().shards().len(), 3);
    loses_power_everywhere(THREE_PACKED, &Files::new());
}

#[test]
fn the_only_compressed_shard_survives_power_loss_at_every_operation() {
    loses_power_everywhere(ONE_PACKED, &Files::new());
}

#[test]
fn replacing_plain_shards_by_compressed_ones_survives_power_loss_at_every_operation() {
    let (old, _) = Job {
        weight: 0.95,
        ..THREE_SHARDS
    }
    .uninterrupted();
    loses_power_everywhere(
        Job {
            overwrite: true,
            ..THREE_PACKED
        },
        &old,
    );
}

#[test]
fn replacing_another_checkpoint_survives_power_loss_at_every_operation() {
    let (old, _) = Job {
        weight: 0.95,
        ..THREE_SHARDS
    }
    .uninterrupted();
    loses_power_everywhere(
        Job {
            overwrite: true,
            ..THREE_SHARDS
        },
        &old,
    );
    loses_power_everywhere(
        Job {
            overwrite: true,
            ..ONE_SHARD
        },
        &old,
    );
}

#[test]
fn replacing_a_single_file_survives_power_loss_at_every_operation() {
    loses_power_everywhere(ONE_FILE, &Files::new());
    let (old, _) = Job {
        weight: 0.95,
        ..ONE_FILE
    }
    .uninterrupted();
    assert!(old.contains_key(Path::new("theirs/old.txt")));
    loses_power_everywhere(
        Job {
            overwrite: true,
            ..ONE_FILE
        },
        &old,
    );
}

#[test]
fn what_is_replaced_is_whole_until_the_new_output_is() {
    let (mut old, _) = Job {
        weight: 0.95,
        ..THREE_SHARDS
    }
    .uninterrupted();
    old.insert("notes.txt".into(), b"never ours".to_vec());
    let job = Job {
        overwrite: true,
        ..ONE_SHARD
    };
    let (wanted, operations) = job.uninterrupted_over(&old);
    assert_eq!(
        wanted.get(Path::new("notes.txt")),
        old.get(Path::new("notes.txt"))
    );
    assert!(
        !wanted.contains_key(Path::new("theirs/old.txt"))
            && wanted.contains_key(Path::new("config.json"))
    );
    let index = Path::new("model.safetensors.index.json");
    let mut was_exchanging = false;
    for at in 1..=operations {
        let root = folder_with(&old);
        let after = crashed(job, root.path(), at, Image::Kept);
        let found = files_below(&after.path().join("out"));
        was_exchanging |= found.contains_key(Path::new(".thalweg/exchange"));
        if !was_exchanging {
            assert!(
                old.iter()
                    .all(|(name, bytes)| found.get(name) == Some(bytes)),
                "operation {at} of {operations}"
            );
        }
        // The index names shards that are all there, or there is none.
        assert!(
            !found.contains_key(index)
                || found.contains_key(Path::new("model-00003-of-00003.safetensors"))
        );
    }
    assert!(was_exchanging);
}

#[test]
fn a_run_that_was_to_replace_another_is_gone_on_with_discarded_or_left() {
    let (old, _) = Job {
        weight: 0.95,
        ..THREE_SHARDS
    }
    .uninterrupted();
    let job = Job {
        overwrite: true,
        ..THREE_SHARDS
    };
    let (wanted, operations) = job.uninterrupted_over(&old);
    let begun = || crashed(job, folder_with(&old).path(), operations / 3, Image::Kept);
    let run = |job: Job, after: &TempDir| {
        job.run(
            CrashStorage::reliable(after.path()),
            &after.path().join("out"),
        )
        .1
    };
    let after = begun();
    let error = run(THREE_SHARDS, &after).expect_err("it may not replace");
    assert!(
        error.hint().expect("a hint").contains("--overwrite"),
        "{error}"
    );
    // The old command alone: what it made is still whole, and the other run's work is not thrown
    // away unasked.
    let other = Job {
        weight: 0.95,
        ..THREE_SHARDS
    };
    assert!(
        run(other, &after)
            .expect_err("another was begun")
            .hint()
            .expect("a hint")
            .contains("--restart")
    );
    run(
        Job {
            restart: true,
            ..other
        },
        &after,
    )
    .expect("it is complete");
    assert!(files_below(&after.path().join("out")) == old);
    assert_recovers(job, begun().path(), &wanted, "gone on with");
    assert_recovers(
        Job {
            restart: true,
            ..job
        },
        begun().path(),
        &wanted,
        "begun anew",
    );
}

#[test]
fn replacing_what_another_program_wrote_survives_power_loss_at_every_operation() {
    let (mut old, _) = Job {
        weight: 0.9,
        ..THREE_SHARDS
    }
    .uninterrupted();
    old.remove(Path::new("thalweg.json"));
    loses_power_everywhere(
        Job {
            overwrite: true,
            ..THREE_SHARDS
        },
        &old,
    );
}

#[test]
fn replacing_a_checkpoint_whose_work_folder_is_still_there_survives_power_loss_at_every_operation()
{
    let other = Job {
        weight: 0.9,
        ..THREE_SHARDS
    };
    let (finished, operations) = other.uninterrupted();
    let root = folder_with(&Files::new());
    let old = crashed(other, root.path(), operations - 4, Image::Kept);
    let mut old = files_below(&old.path().join("out"));
    assert!(
        old.contains_key(Path::new(".thalweg/journal"))
            && finished.keys().all(|name| old.contains_key(name))
    );
    let job = Job {
        overwrite: true,
        ..THREE_SHARDS
    };
    let (wanted, operations) = job.uninterrupted_over(&old);
    for at in 1..=operations {
        for image in Image::ALL {
            let root = folder_with(&old);
            let after = crashed(job, root.path(), at, image);
            assert_recovers(
                job,
                after.path(),
                &wanted,
                &format!("operation {at} of {operations}, {image:?}"),
            );
        }
    }
    old.retain(|name, _| !name.starts_with(".thalweg"));
    assert!(old == finished, "what was replaced was whole");
}

#[test]
fn power_lost_while_files_are_reserved_and_once_more_later_changes_nothing() {
    let (wanted, operations) = THREE_SHARDS.uninterrupted();
    for first in 1..=16 {
        let root = folder_with(&Files::new());
        let begun = crashed(THREE_SHARDS, root.path(), first, Image::Kept);
        let begun = files_below(begun.path());
        for second in 1..operations - 16 {
            let root = scratch();
            for (name, bytes) in &begun {
                fs::create_dir_all(root.path().join(name).parent().expect("below"))
                    .expect("folder");
                fs::write(root.path().join(name), bytes).expect("file");
            }
            let after = crashed(THREE_SHARDS, root.path(), second, Image::Dropped);
            assert_recovers(
                THREE_SHARDS,
                after.path(),
                &wanted,
                &format!("operations {first} and {second}"),
            );
        }
    }
}

#[test]
fn discarding_a_begun_run_survives_power_loss_at_every_operation() {
    let other = Job {
        weight: 0.9,
        ..THREE_SHARDS
    };
    let (_, operations) = other.uninterrupted();
    // Half way there are parts; shortly before the end all shards are finished, side files and
    // manifest too.
    for at in [operations / 2, operations - 12] {
        let root = folder_with(&Files::new());
        let begun = crashed(other, root.path(), at, Image::Kept);
        let begun = files_below(&begun.path().join("out"));
        assert!(
            begun.contains_key(Path::new(".thalweg/journal")),
            "the other run is not finished"
        );
        let job = Job {
            restart: true,
            ..THREE_SHARDS
        };
        let (_, steps) = job.uninterrupted_over(&begun);
        let wanted = THREE_SHARDS.uninterrupted().0;
        for step in 1..=steps {
            for image in Image::ALL {
                let case = format!("begun {at}, operation {step} of {steps}, {image:?}");
                let root = folder_with(&begun);
                let after = crashed(job, root.path(), step, image);
                assert_recovers(job, after.path(), &wanted, &case);
            }
        }
    }
}

#[test]
fn power_lost_again_and_again_changes_nothing() {
    let (wanted, operations) = THREE_SHARDS.uninterrupted();
    let mut random = 1u64;
    for round in 0..60 {
        let mut root = folder_with(&Files::new());
        for loss in 0.. {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = 1 + usize::try_from(random >> 33).expect("64 bits") % operations;
            let image = Image::ALL[usize::try_from(random >> 20 & 3).expect("two bits")];
            let (storage, outcome) =
                THREE_SHARDS.run(CrashStorage::new(root.path(), at), &root.path().join("out"));
            if outcome.is_ok() {
                break;
            }
            let after = scratch();
            storage.image(image, after.path());
            root = after;
            assert!(loss < 1000, "it never ends");
        }
        assert_recovers(
            THREE_SHARDS,
            root.path(),
            &wanted,
            &format!("round {round}"),
        );
    }
}

#[test]
fn a_run_that_fails_half_way_says_that_it_can_be_resumed() {
    let root = folder_with(&Files::new());
    let (_, operations) = THREE_SHARDS.uninterrupted();
    let (_, outcome) = THREE_SHARDS.run(
        CrashStorage::new(root.path(), operations / 2),
        &root.path().join("out"),
    );
    assert_eq!(outcome.expect_err("power lost").exit_code(), 3);
}
