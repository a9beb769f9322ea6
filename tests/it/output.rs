//! Outputs on the real disk: what they hold, who may write where, what a resume accepts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use thalweg::dtype::Dtype;
use thalweg::output::checksum::CHECK_BLOCK;
use thalweg::output::storage::DiskStorage;
use thalweg::output::{Begun, Contents, Manifest, Output, SideFile, Target};
use thalweg::plan::layout::{Layout, TensorSpec};
use thalweg::{Error, Kind, Result};

use crate::support::crash::CrashStorage;
use crate::support::files::{files_below, flip, scratch};

/// A folder to write to, with what to write there.
pub struct Fixture {
    root: TempDir,
    pub specs: Vec<TensorSpec>,
    pub shard_bytes: u64,
    pub identity: Value,
    overwrite: bool,
    restart: bool,
}

pub fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.into(),
    }
}

impl Fixture {
    pub fn new(specs: Vec<TensorSpec>, shard_bytes: u64) -> Self {
        let identity = json!({ "weights": [0.5, 0.5], "inputs": [{ "files": [{ "name": "a", "modified": 17 }] }] });
        let root = tempdir().expect("temporary folder");
        Self {
            root,
            specs,
            shard_bytes,
            identity,
            overwrite: false,
            restart: false,
        }
    }

    /// Three shards of small tensors.
    pub fn small() -> Self {
        let specs = vec![
            spec("embed", Dtype::F32, &[10, 10]),
            spec("norm", Dtype::BF16, &[8]),
            spec("up", Dtype::F32, &[100]),
            spec("none", Dtype::F32, &[0, 3]),
            spec("head", Dtype::F32, &[77]),
        ];
        Self::new(specs, 420)
    }

    /// Two shards, the first with a tensor of two check blocks and a bit, the second small.
    pub fn large() -> Self {
        Self::new(
            vec![
                spec("big", Dtype::U8, &[2 * CHECK_BLOCK + 100]),
                spec("tail", Dtype::U8, &[50]),
            ],
            2 * CHECK_BLOCK + 100,
        )
    }

    pub fn dir(&self) -> PathBuf {
        self.root.path().join("out")
    }

    pub fn layout(&self) -> Layout {
        Layout::new(&self.specs, self.shard_bytes, "model").expect("valid")
    }

    pub fn begin(&self) -> Result<Begun> {
        let target = Target {
            dir: self.dir(),
            overwrite: self.overwrite,
            restart: self.restart,
        };
        Output::begin(
            Arc::new(DiskStorage),
            &target,
            self.layout(),
            &self.identity,
            &mut |_, _| Ok(()),
        )
    }

    fn output(&self) -> Output {
        match self.begin().expect("may begin") {
            Begun::Fresh(output) | Begun::Resumed(output) => output,
            Begun::Complete(_) => panic!("it was complete"),
        }
    }

    fn refusal(&self) -> Error {
        self.begin().err().expect("refused")
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, tensor: usize) -> Vec<u8> {
        let len = self.layout().tensors()[tensor].len;
        (0..len)
            .map(|at| {
                u8::try_from((at * 7 + 13 * u64::try_from(tensor).expect("small")) % 251)
                    .expect("small")
            })
            .collect()
    }

    /// Writes the rest of a tensor in odd pieces up to `end`, with a commit after each.
    fn write(&self, output: &mut Output, tensor: usize, end: usize) {
        let bytes = self.bytes(tensor);
        let mut at = usize::try_from(output.durable_bytes(tensor)).expect("small");
        while at < end.min(bytes.len()) {
            let to = end.min(bytes.len()).min(at + 5_000_011);
            output
                .write(tensor, u64::try_from(at).expect("small"), &bytes[at..to])
                .expect("written");
            output.commit().expect("committed");
            at = to;
        }
    }

    pub fn finish(&self) -> Manifest {
        let mut output = self.output();
        for tensor in 0..self.specs.len() {
            output.set_note(tensor, &json!({ "cosine": 0.1, "tensor": tensor }));
            self.write(&mut output, tensor, usize::MAX);
        }
        let config =
            SideFile::new("config.json", Contents::Bytes(b"{}\n".to_vec())).expect("plain name");
        output
            .finish(&[config], &json!({ "warnings": [] }))
            .expect("finished")
    }

    /// Begins, writes the first tensors whole and half of the next, and is gone without a word.
    fn abandon_after(&self, tensors: usize, of_next: usize) {
        let mut output = self.output();
        for tensor in 0..tensors {
            self.write(&mut output, tensor, usize::MAX);
        }
        self.write(&mut output, tensors, of_next);
    }

    fn part(&self, shard: usize) -> PathBuf {
        self.dir()
            .join(".thalweg")
            .join(format!("{}.part", self.layout().shards()[shard].name))
    }

    pub fn shard(&self, shard: usize) -> PathBuf {
        self.dir().join(&self.layout().shards()[shard].name)
    }
}

#[test]
fn what_is_written_is_read_back_by_the_safetensors_crate() {
    let fixture = Fixture::small();
    let manifest = fixture.finish();
    let layout = fixture.layout();
    assert_eq!(layout.shards().len(), 3);
    let index: Value = serde_json::from_slice(
        &fs::read(fixture.dir().join("model.safetensors.index.json")).expect("index"),
    )
    .expect("JSON");
    let text = fs::read(fixture.dir().join("thalweg.json")).expect("there");
    let text: Value = serde_json::from_slice(&text).expect("JSON");
    for (tensor, spec) in fixture.specs.iter().enumerate() {
        let shard = fixture.shard(layout.tensors()[tensor].shard);
        assert_eq!(
            index["weight_map"][spec.name.as_str()],
            shard.file_name().expect("named").to_str().expect("plain")
        );
        let file = fs::read(&shard).expect("shard");
        let read = SafeTensors::deserialize(&file).expect("valid");
        let view = read
            .tensor(&spec.name)
            .expect("in the shard the index says");
        assert_eq!(view.data(), fixture.bytes(tensor));
        let shape: Vec<_> = view
            .shape()
            .iter()
            .map(|dim| u64::try_from(*dim).expect("fits"))
            .collect();
        assert_eq!(
            (format!("{:?}", view.dtype()), shape),
            (spec.dtype.name().replace('_', ""), spec.shape.clone())
        );
        assert_eq!(
            manifest.tensors[tensor].blake3,
            Some(*blake3::hash(&fixture.bytes(tensor)).as_bytes())
        );
        assert_eq!(
            text["tensors"][tensor]["blake3"],
            blake3::hash(&fixture.bytes(tensor)).to_hex().as_str()
        );
        assert_eq!(text["tensors"][tensor]["note"]["tensor"], tensor);
    }
    let stored: Manifest =
        serde_json::from_slice(&fs::read(fixture.dir().join("thalweg.json")).expect("there"))
            .expect("JSON");
    assert_eq!(stored, manifest);
    assert!(!fixture.dir().join(".thalweg").exists());
}

#[test]
fn files_get_the_mode_that_the_umask_gives() {
    let fixture = Fixture::small();
    fixture.finish();
    let plain = fixture.dir().join("plain");
    fs::write(&plain, b"").expect("written");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
    for name in files_below(&fixture.dir()).keys() {
        assert_eq!(
            mode(&fixture.dir().join(name)),
            mode(&plain),
            "{}",
            name.display()
        );
    }
}

#[test]
fn an_output_without_tensors_is_a_valid_file() {
    let fixture = Fixture::new(vec![], 100);
    assert!(fixture.finish().tensors.is_empty());
    assert!(
        SafeTensors::deserialize(&fs::read(fixture.shard(0)).expect("there"))
            .expect("valid")
            .is_empty()
    );
    let empty = Fixture::new(
        vec![
            spec("a", Dtype::F32, &[0]),
            spec("b", Dtype::F32, &[3]),
            spec("c", Dtype::F32, &[0]),
        ],
        4,
    );
    empty.finish();
    assert_eq!(
        files_below(&empty.dir()).len(),
        empty.layout().shards().len() + 3
    );
}

#[test]
fn a_long_tensor_is_durable_by_whole_blocks_and_goes_on_there() {
    let fixture = Fixture::large();
    let block = usize::try_from(CHECK_BLOCK).expect("small");
    fixture.abandon_after(0, 2 * block - 1);
    let mut checked = vec![];
    let target = Target {
        dir: fixture.dir(),
        overwrite: false,
        restart: false,
    };
    let begun = Output::begin(
        Arc::new(DiskStorage),
        &target,
        fixture.layout(),
        &fixture.identity,
        &mut |done, of| {
            checked.push((done, of));
            Ok(())
        },
    );
    let Begun::Resumed(output) = begun.expect("may go on") else {
        panic!("not resumed")
    };
    assert_eq!(checked, [(CHECK_BLOCK, CHECK_BLOCK)]);
    assert_eq!(
        (output.durable_bytes(0), output.durable_bytes(1)),
        (CHECK_BLOCK, 0)
    );
    drop(output);
    let manifest = fixture.finish();
    assert_eq!(
        manifest.tensors[0].blake3,
        Some(*blake3::hash(&fixture.bytes(0)).as_bytes())
    );
    let blocks = |tensor: usize| {
        manifest.tensors[tensor]
            .blocks
            .as_ref()
            .map(|blocks| blocks.len())
    };
    assert_eq!((blocks(0), blocks(1)), (Some(3), Some(0)));
    let uninterrupted = Fixture::large();
    uninterrupted.finish();
    assert!(files_below(&fixture.dir()) == files_below(&uninterrupted.dir()));
}

#[test]
fn a_check_that_is_told_to_stop_stops() {
    let fixture = Fixture::small();
    fixture.abandon_after(2, 0);
    let target = Target {
        dir: fixture.dir(),
        overwrite: false,
        restart: false,
    };
    let stop = &mut |_, _| {
        Err(Error::new(
            Kind::Interrupted,
            "cannot go on",
            "run",
            "stopped",
        ))
    };
    let error = Output::begin(
        Arc::new(DiskStorage),
        &target,
        fixture.layout(),
        &fixture.identity,
        stop,
    )
    .err();
    assert_eq!(error.expect("stopped").kind(), Kind::Interrupted);
    fixture.finish();
}

#[test]
fn tensors_may_come_in_any_order_but_bytes_of_one_in_theirs() {
    let fixture = Fixture::small();
    let mut output = fixture.output();
    for tensor in [4, 2, 0] {
        fixture.write(&mut output, tensor, usize::MAX);
    }
    let bytes = fixture.bytes(1);
    for (offset, piece) in [(1, &bytes[1..]), (0, &[0; 17])] {
        let error = output.write(1, offset, piece).expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("wanted at 0 and at most up to 16"),
            "{error}"
        );
    }
    output.write(1, 0, &bytes[..3]).expect("first");
    assert!(output.write(1, 0, &bytes[..3]).is_err());
    output.write(1, 3, &bytes[3..]).expect("the rest");
    output.finish(&[], &Value::Null).expect("whole");
}

#[test]
fn an_output_with_missing_bytes_is_not_finished() {
    let fixture = Fixture::small();
    let mut output = fixture.output();
    fixture.write(&mut output, 0, 399);
    let error = output.finish(&[], &Value::Null).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("embed: 399 bytes of it were written, wanted 400"),
        "{error}"
    );
    assert!(!fixture.dir().join("thalweg.json").exists());
    fixture.finish();
}

#[test]
fn commits_run_beside_writing_but_only_in_their_order() {
    let fixture = Fixture::small();
    let mut output = fixture.output();
    output.write(0, 0, &fixture.bytes(0)).expect("written");
    let first = output.prepare_commit().expect("prepared");
    output.write(1, 0, &fixture.bytes(1)).expect("written");
    assert_eq!(output.durable_bytes(0), 0);
    let first = std::thread::spawn(move || first.run());
    output.write(2, 0, &fixture.bytes(2)).expect("written");
    first.join().expect("no panic").expect("committed");
    assert_eq!((output.durable_bytes(0), output.durable_bytes(1)), (400, 0));
    let second = output.prepare_commit().expect("prepared");
    let third = output.prepare_commit().expect("prepared");
    let error = third.run().expect_err("out of turn");
    assert!(
        error
            .to_string()
            .contains("commit 2 was prepared, but commit 1 has to run first"),
        "{error}"
    );
    second.run().expect("its turn");
    assert!(output.commit().is_err(), "the third was not run");
    drop(output);
    let output = fixture.output();
    assert_eq!(
        (output.durable_bytes(1), output.durable_bytes(2)),
        (16, 400)
    );
}

#[test]
fn nothing_is_claimed_any_more_once_a_sync_failed() {
    let fixture = Fixture::small();
    for failing in 1..=3 {
        let root = scratch();
        let storage = Arc::new(CrashStorage::reliable(root.path()));
        let target = Target {
            dir: root.path().join("out"),
            overwrite: false,
            restart: false,
        };
        let begin = |storage| {
            Output::begin(
                storage,
                &target,
                fixture.layout(),
                &fixture.identity,
                &mut |_, _| Ok(()),
            )
        };
        let Begun::Fresh(mut output) = begin(Arc::clone(&storage) as _).expect("begun") else {
            panic!("not fresh")
        };
        output.write(0, 0, &fixture.bytes(0)).expect("written");
        let pending = output.prepare_commit().expect("prepared");
        // Data sync, journal write, journal sync.
        storage.fail_once(storage.operations() + failing);
        assert_eq!(pending.run().expect_err("the disk failed").exit_code(), 3);
        assert_eq!(output.durable_bytes(0), 0);
        output
            .write(1, 0, &fixture.bytes(1))
            .expect("the disk works again");
        let error = output.commit().expect_err("refused");
        assert!(
            error.to_string().contains("an earlier commit failed"),
            "{error}"
        );
        drop(output);
        let Begun::Resumed(output) = begin(storage).expect("may go on") else {
            panic!("not resumed")
        };
        assert_eq!(output.durable_bytes(1), 0);
    }
}

#[test]
fn a_second_process_is_refused_while_the_first_lives() {
    let fixture = Fixture::small();
    let first = fixture.output();
    let error = fixture.refusal();
    assert_eq!(error.kind(), Kind::Locked);
    assert!(error.to_string().contains(&std::process::id().to_string()));
    drop(first);
    fixture.finish();
}

#[test]
fn another_request_does_not_go_on_with_this_one() {
    let mut fixture = Fixture::small();
    fixture.abandon_after(1, 0);
    fixture.identity["weights"] = json!([0.3, 0.7]);
    fixture.identity["inputs"][0]["files"][0]["modified"] = json!(18);
    let error = fixture.refusal();
    assert_eq!(error.kind(), Kind::Resume);
    assert!(error.hint().expect("a hint").contains("--restart"));
    let text = error.to_string();
    assert!(
        text.contains("weights: journal has [0.5,0.5], this run [0.3,0.7]"),
        "{text}"
    );
    assert!(
        text.contains("inputs[0].files[0].modified: journal has 17, this run 18"),
        "{text}"
    );
    fixture.restart = true;
    let fresh = fixture.begin().expect("may begin anew");
    assert!(matches!(fresh, Begun::Fresh(_)));
    drop(fresh);
    fixture.restart = false;
    fixture.finish();
    let direct = Fixture {
        identity: fixture.identity.clone(),
        ..Fixture::small()
    };
    direct.finish();
    assert!(files_below(&fixture.dir()) == files_below(&direct.dir()));
}

#[test]
fn the_same_request_in_other_shards_does_not_go_on() {
    let mut fixture = Fixture::small();
    fixture.abandon_after(1, 0);
    fixture.shard_bytes = 1 << 20;
    assert!(
        fixture
            .refusal()
            .to_string()
            .contains("laid its shards out in another way")
    );
}

/// Damages an abandoned run, which must then be refused in these words, and only `--restart` helps.
fn refuses_damage(words: &str, damage: impl Fn(&Fixture)) {
    let mut fixture = Fixture::small();
    fixture.abandon_after(4, 0);
    assert!(
        fixture.shard(0).exists() && fixture.part(2).exists(),
        "one shard is finished, one is in the making"
    );
    let mut output = fixture.output();
    fixture.write(&mut output, 4, 0);
    drop(output);
    damage(&fixture);
    let error = fixture.refusal();
    assert_eq!(error.kind(), Kind::Resume);
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.hint().expect("a hint").contains("--restart"));
    fixture.restart = true;
    fixture.finish();
    let direct = Fixture::small();
    direct.finish();
    assert!(files_below(&fixture.dir()) == files_below(&direct.dir()));
}

#[test]
fn a_finished_shard_that_was_changed_is_refused() {
    refuses_damage(
        "00001-of-00003.safetensors: block 0 of tensor embed was changed",
        |fixture| {
            flip(
                &fixture.shard(0),
                fixture.layout().tensors()[0].offset + 399,
            );
        },
    );
    refuses_damage(
        "00001-of-00003.safetensors: its header was changed",
        |fixture| flip(&fixture.shard(0), 20),
    );
    refuses_damage("bytes, wanted", |fixture| {
        let len = fixture.layout().shards()[0].len;
        fs::File::options()
            .write(true)
            .open(fixture.shard(0))
            .expect("there")
            .set_len(len - 1)
            .expect("cut");
    });
    refuses_damage("it was finished, but is not there any more", |fixture| {
        fs::remove_file(fixture.shard(0)).expect("there");
    });
}

#[test]
fn a_shard_in_the_making_that_was_changed_is_refused() {
    let damage = |words: &str, damage: &dyn Fn(&Fixture)| {
        let fixture = Fixture {
            shard_bytes: 1 << 20,
            ..Fixture::small()
        };
        fixture.abandon_after(3, 100);
        damage(&fixture);
        let error = fixture.refusal();
        assert_eq!(error.kind(), Kind::Resume);
        assert!(error.to_string().contains(words), "{error}");
    };
    damage(
        "model.safetensors: block 0 of tensor up was changed",
        &|fixture| {
            flip(&fixture.part(0), fixture.layout().tensors()[2].offset);
        },
    );
    damage("bytes, wanted", &|fixture| {
        fs::File::options()
            .write(true)
            .open(fixture.part(0))
            .expect("there")
            .set_len(100)
            .expect("cut");
    });
    damage("not there any more", &|fixture| {
        fs::remove_file(fixture.part(0)).expect("there")
    });
}

#[test]
fn what_nothing_was_claimed_of_may_be_gone_or_damaged() {
    let fixture = Fixture::small();
    fixture.abandon_after(1, 0);
    fs::remove_file(fixture.part(1)).expect("there");
    flip(&fixture.part(2), 3);
    flip(&fixture.part(2), fixture.layout().tensors()[4].offset);
    fixture.finish();
    let direct = Fixture::small();
    direct.finish();
    assert!(files_below(&fixture.dir()) == files_below(&direct.dir()));
}

#[test]
fn a_journal_that_was_changed_in_its_middle_is_refused() {
    refuses_damage("more follows at byte", |fixture| {
        let journal = fixture.dir().join(".thalweg/journal");
        let text = fs::read(&journal).expect("there");
        let end = text
            .windows(8)
            .position(|window| window == b"\"modifie")
            .expect("the identity is in it");
        flip(&journal, u64::try_from(end).expect("small") + 100);
    });
    refuses_damage("its first record is damaged", |fixture| {
        flip(&fixture.dir().join(".thalweg/journal"), 30)
    });
    refuses_damage("it does not begin as a journal does", |fixture| {
        fs::write(fixture.dir().join(".thalweg/journal"), b"").expect("written");
    });
}

#[test]
fn a_torn_journal_costs_only_what_it_claimed() {
    let wanted = Fixture::small();
    wanted.finish();
    for cut in [1, 7, 30] {
        // No shard is whole yet, so what the last record claimed can be written again.
        let fixture = Fixture::small();
        fixture.abandon_after(0, 0);
        let mut output = fixture.output();
        output.set_note(0, &json!({ "cosine": 0.1, "tensor": 0 }));
        output.commit().expect("noted");
        output
            .write(2, 0, &fixture.bytes(2)[..100])
            .expect("written");
        output.set_note(2, &json!({ "cosine": 0.1, "tensor": 2 }));
        output.commit().expect("noted");
        drop(output);
        let path = fixture.dir().join(".thalweg/journal");
        let journal = fs::File::options().write(true).open(&path).expect("there");
        let len = journal.metadata().expect("open").len();
        if cut == 7 {
            flip(&path, len - 7)
        } else {
            journal.set_len(len - cut).expect("cut")
        }
        let output = fixture.output();
        assert_eq!(
            (
                output.note(0).expect("read").is_some(),
                output.note(2).expect("read").is_some()
            ),
            (true, false)
        );
        assert!(
            journal.metadata().expect("open").len() < len - 7,
            "the torn record is gone for good"
        );
        drop(output);
        fixture.finish();
        assert!(files_below(&fixture.dir()) == files_below(&wanted.dir()));
    }
}

#[test]
fn a_finished_output_is_known_and_left_alone() {
    let mut fixture = Fixture::small();
    let manifest = fixture.finish();
    let before = files_below(&fixture.dir());
    for (overwrite, restart) in [(false, false), (true, false), (false, true)] {
        (fixture.overwrite, fixture.restart) = (overwrite, restart);
        let Begun::Complete(found) = fixture.begin().expect("known") else {
            panic!("not known as complete")
        };
        assert_eq!(found, manifest);
    }
    assert!(files_below(&fixture.dir()) == before);
    (fixture.overwrite, fixture.restart) = (true, true);
    assert!(matches!(
        fixture.begin().expect("may begin anew"),
        Begun::Fresh(_)
    ));
}

#[test]
fn another_finished_output_is_not_overwritten_unless_asked() {
    let mut fixture = Fixture::small();
    fixture.finish();
    let before = files_below(&fixture.dir());
    fixture.identity["weights"] = json!([1.0, 0.0]);
    for restart in [false, true] {
        fixture.restart = restart;
        let error = fixture.refusal();
        assert_eq!(error.kind(), Kind::Occupied);
        assert!(
            error
                .to_string()
                .contains("weights: manifest has [0.5,0.5], this run [1.0,0.0]"),
            "{error}"
        );
        assert!(error.hint().expect("a hint").contains("--overwrite"));
        assert!(files_below(&fixture.dir()) == before);
    }
    (fixture.restart, fixture.overwrite) = (false, true);
    fixture.finish();
    let direct = Fixture {
        identity: fixture.identity.clone(),
        ..Fixture::small()
    };
    direct.finish();
    assert!(files_below(&fixture.dir()) == files_below(&direct.dir()));
}

#[test]
fn shards_that_are_missing_cut_or_damaged_since_are_made_again_and_no_others() {
    let whole = Fixture::small();
    whole.finish();
    let wanted = files_below(&whole.dir());
    type Damage<'a> = (&'a str, &'a dyn Fn(&Fixture));
    let damages: [Damage<'_>; 4] = [
        ("is missing", &|fixture| {
            fs::remove_file(fixture.shard(1)).expect("there")
        }),
        ("has 9 bytes of", &|fixture| {
            fs::File::options()
                .write(true)
                .open(fixture.shard(1))
                .expect("there")
                .set_len(9)
                .expect("cut");
        }),
        ("is missing", &|fixture| {
            fs::remove_file(fixture.shard(1)).expect("there");
            flip(&fixture.shard(2), fixture.layout().shards()[2].len - 1);
        }),
        ("is missing", &|fixture| {
            for shard in 0..3 {
                fs::remove_file(fixture.shard(shard)).expect("there");
            }
        }),
    ];
    for (words, damage) in damages {
        let mut fixture = Fixture::small();
        fixture.finish();
        let kept = fs::metadata(fixture.shard(0))
            .and_then(|shard| shard.modified())
            .expect("there");
        damage(&fixture);
        let is_kept = fixture.shard(0).exists();
        let output = fixture.output();
        let said = output.repairs().join("\n");
        assert!(
            said.contains("model-00002-of-00003.safetensors") && said.contains(words),
            "{said}"
        );
        assert_eq!(output.durable_bytes(0) == 400, is_kept);
        drop(output);
        fixture.finish();
        assert!(files_below(&fixture.dir()) == wanted, "{words}");
        let now = fs::metadata(fixture.shard(0))
            .and_then(|shard| shard.modified())
            .expect("there");
        assert_eq!(now == kept, is_kept, "{words}");
        // Another run may not repair it, and says what it is.
        damage(&fixture);
        fixture.identity["weights"] = json!([1.0, 0.0]);
        let error = fixture.refusal();
        assert!(
            error.kind() == Kind::Occupied
                && error.to_string().contains("is missing") == (words == "is missing")
        );
    }
    let fixture = Fixture::small();
    fixture.finish();
    fs::remove_file(fixture.dir().join("model.safetensors.index.json")).expect("there");
    fixture.finish();
    assert!(files_below(&fixture.dir()) == wanted);
    flip(&fixture.dir().join("model.safetensors.index.json"), 5);
    assert!(
        fixture
            .refusal()
            .to_string()
            .contains("its index was changed")
    );
}

#[test]
fn somebody_elses_checkpoint_is_not_touched_unless_asked() {
    for name in [
        "model.safetensors",
        "pytorch_model.bin",
        "config.json",
        "x.safetensors.index.json",
        "m.gguf",
        "README.md",
    ] {
        let mut fixture = Fixture::small();
        fs::create_dir(fixture.dir()).expect("created");
        fs::write(fixture.dir().join(name), "theirs").expect("written");
        let error = fixture.refusal();
        assert_eq!(error.kind(), Kind::Occupied);
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(
            files_below(&fixture.dir()).len(),
            1,
            "nothing was made there"
        );
        fixture.overwrite = true;
        fixture.finish();
        let weights_are_gone = fs::read(fixture.dir().join(name)).ok() != Some(b"theirs".to_vec());
        assert_eq!(
            weights_are_gone,
            !matches!(name, "m.gguf" | "README.md"),
            "{name}"
        );
    }
}

#[test]
fn files_that_are_no_checkpoint_do_not_stand_in_the_way() {
    let fixture = Fixture::small();
    fs::create_dir(fixture.dir()).expect("created");
    fs::write(fixture.dir().join("notes.txt"), "mine").expect("written");
    fixture.finish();
    assert_eq!(
        fs::read(fixture.dir().join("notes.txt")).expect("still there"),
        b"mine"
    );
}

#[test]
fn an_output_that_no_disk_can_hold_fails_at_once_and_leaves_nothing() {
    let fixture = Fixture::new(
        vec![
            spec("a", Dtype::U8, &[100]),
            spec("huge", Dtype::U8, &[1 << 55]),
        ],
        1 << 30,
    );
    let error = fixture.refusal();
    assert_eq!(error.kind(), Kind::Io);
    assert!(
        error.subject().ends_with("out") && error.to_string().contains("bytes are missing"),
        "{error}"
    );
    assert_eq!(files_below(&fixture.dir()).len(), 0);
}

#[test]
fn side_files_are_copied_and_cannot_lead_out_of_the_folder() {
    let bytes = || Contents::Bytes(vec![]);
    for name in [
        "",
        "..",
        "../x",
        "/etc/x",
        ".hidden",
        "a/.b",
        "thalweg.json",
        "model.safetensors",
        "sub/x.safetensors",
    ] {
        assert!(SideFile::new(name, bytes()).is_err(), "{name}");
    }
    let fixture = Fixture::new(vec![], 1);
    let source = tempdir().expect("temporary folder");
    let big: Vec<u8> = (0..3_000_000u32)
        .map(|at| u8::try_from(at % 253).expect("small"))
        .collect();
    fs::write(source.path().join("tokenizer.model"), &big).expect("written");
    let copy = Contents::CopyOf(source.path().join("tokenizer.model"));
    let gone = Contents::CopyOf(source.path().join("gone"));
    let output = fixture.output();
    let error = output
        .finish(
            &[SideFile::new("a/gone", gone).expect("plain name")],
            &Value::Null,
        )
        .expect_err("gone");
    assert_eq!((error.kind(), error.exit_code()), (Kind::Io, 3));
    let output = fixture.output();
    output
        .finish(
            &[SideFile::new("sub/tokenizer.model", copy).expect("plain name")],
            &Value::Null,
        )
        .expect("finished");
    assert_eq!(
        fs::read(fixture.dir().join("sub/tokenizer.model")).expect("copied"),
        big
    );
}
