//! Whole merges lose power at every operation, go on, and end with the bytes of an uninterrupted
//! run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;
use thalweg::Result;
use thalweg::checkpoint::{Io, guard_maps};
use thalweg::dtype::Dtype;
use thalweg::engine::{Merge, Options, Stop, merge};
use thalweg::kernel::Kernels;
use thalweg::monitor::Silent;
use thalweg::output::{Storage, Target};
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::recipe::Recipe;
use thalweg::report::Report;

use crate::support::crash::{CrashStorage, Image};
use crate::support::files::{files_below, scratch};
use crate::support::striped::{Spec, spec, write};

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// A merge that can be begun again and again.
pub struct Case {
    inputs: TempDir,
    recipe: String,
    /// Bytes of input windows at once, when less than the plan would take: then tensors are read
    /// twice.
    pub window_bytes: Option<u64>,
    pub commit_bytes: u64,
    pub block_bytes: u64,
    pub io: Io,
}

impl Case {
    /// A Karcher mean of two models of these shards; `keys` are further lines of the recipe.
    pub fn new(shards: &[Vec<Spec>], keys: &str) -> Self {
        let recipe = |folder: &Path| {
            let model = |name| {
                format!(
                    "  - {{ model: {}, parameters: {{ weight: 1 }} }}\n",
                    folder.join(name).display()
                )
            };
            format!(
                "merge_method: karcher\nmodels:\n{}{}{keys}",
                model("a"),
                model("b")
            )
        };
        Self::by_recipe(shards, recipe)
    }

    /// A merge of two models of these shards by the recipe for the folder in which they are.
    pub fn by_recipe(shards: &[Vec<Spec>], recipe: impl FnOnce(&Path) -> String) -> Self {
        let inputs = scratch();
        for (name, seed) in [("a", 1), ("b", 2)] {
            write(&inputs.path().join(name), shards, seed);
        }
        Self {
            recipe: recipe(inputs.path()),
            inputs,
            window_bytes: None,
            commit_bytes: 1,
            block_bytes: 64 << 10,
            io: Io::Map,
        }
    }

    /// The folder in which the models are `a` and `b`.
    pub fn inputs(&self) -> &Path {
        self.inputs.path()
    }

    /// The recipe's text.
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    fn plan(&self) -> Plan {
        let recipe = Recipe::parse(&self.recipe, "case.yml").expect("a valid recipe");
        let document = recipe.documents[0].clone();
        let folders = document
            .models()
            .into_iter()
            .map(|model| PathBuf::from(&*model.path))
            .collect();
        let mut job = Job::new(document, folders).expect("two models");
        job.recipe_text = Some(recipe.text);
        let wish = Wish {
            memory: 256 << 20,
            threads: 2,
            block_bytes: Some(self.block_bytes),
        };
        let mut plan = Plan::new(&job, &wish).expect("inputs that fit");
        plan.memory.input = self.window_bytes.unwrap_or(plan.memory.input);
        plan
    }

    /// Merges into the folder `out` below `root` to the end, or until the storage fails.
    pub fn run(&self, storage: CrashStorage, root: &Path) -> (CrashStorage, Result<Report>) {
        self.run_planned(self.plan(), storage, root)
    }

    fn run_planned(
        &self,
        plan: Plan,
        storage: CrashStorage,
        root: &Path,
    ) -> (CrashStorage, Result<Report>) {
        let storage = Arc::new(storage);
        let outcome = merge(Merge {
            plan: Arc::new(plan),
            storage: Arc::clone(&storage) as Arc<dyn Storage>,
            target: Target {
                dir: root.join("out"),
                overwrite: false,
                restart: false,
            },
            options: Options {
                kernels: Kernels::detect(),
                io: self.io,
                stop: Stop::default(),
                monitor: Arc::new(Silent),
                commit_bytes: self.commit_bytes,
                ..Options::default()
            },
            verify: false,
        });
        (
            Arc::into_inner(storage).expect("all of the run is dropped"),
            outcome,
        )
    }

    /// What a run that nothing disturbs makes, and in how many operations.
    pub fn undisturbed(&self) -> (Files, usize) {
        let root = scratch();
        let (storage, outcome) = self.run(CrashStorage::reliable(root.path()), root.path());
        outcome.expect("nothing fails");
        (files_below(&root.path().join("out")), storage.operations())
    }

    /// The folder that the next boot finds when the power goes at operation `at`.
    pub fn crashed(&self, at: usize, image: Image) -> TempDir {
        let root = scratch();
        let (storage, outcome) = self.run(CrashStorage::new(root.path(), at), root.path());
        outcome.expect_err("the power is gone");
        let after = scratch();
        storage.image(image, after.path());
        after
    }

    /// Runs again where the power was lost, and compares.
    fn recovers(&self, after: &Path, wanted: &Files, case: &str) -> Report {
        let (_, outcome) = self.run(CrashStorage::reliable(after), after);
        let report = outcome.unwrap_or_else(|error| panic!("{case}: {error}"));
        let found = files_below(&after.join("out"));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            wanted.keys().collect::<Vec<_>>(),
            "{case}"
        );
        let differing: Vec<_> = wanted
            .iter()
            .filter(|(name, bytes)| found[*name] != **bytes)
            .collect();
        assert!(
            differing.is_empty(),
            "{case}: {:?}",
            differing.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
        report
    }
}

/// Three shards: tensors of several blocks, of one chunk and an odd rest, a scalar, an empty one,
/// integers.
pub fn small_shards() -> Vec<Vec<Spec>> {
    vec![
        vec![
            spec("a.embed", Dtype::BF16, &[700, 100]),
            spec("a.ids", Dtype::I64, &[50]),
            spec("a.scale", Dtype::F32, &[]),
        ],
        vec![
            spec("b.up", Dtype::F16, &[32, 1024]),
            spec("b.none", Dtype::F32, &[0, 4]),
            spec("b.norm", Dtype::F32, &[33]),
        ],
        vec![
            spec("c.head", Dtype::F32, &[40, 1000]),
            spec("c.flag", Dtype::Bool, &[3]),
        ],
    ]
}

/// The keys that make three shards of [`small_shards`].
pub const SMALL_KEYS: &str = "out_shard_size: 170000\n";

/// Loses power at every operation; with every image, or else with each in turn.
fn loses_power_everywhere(case: &Case, with_every_image: bool) {
    loses_power(case, 1, with_every_image);
}

/// Loses power at every operation, or at one of so many; with every image, or else with each in
/// turn.
pub fn loses_power(case: &Case, stride: usize, with_every_image: bool) {
    let (wanted, operations) = case.undisturbed();
    assert!(operations > 40, "{operations} operations");
    assert_eq!(
        wanted
            .keys()
            .filter(|name| name.extension().is_some_and(|end| end == "safetensors"))
            .count(),
        3
    );
    for at in (1..=operations).step_by(stride) {
        let images = if with_every_image {
            &Image::ALL[..]
        } else {
            &Image::ALL[at % 4..=at % 4]
        };
        for &image in images {
            let after = case.crashed(at, image);
            case.recovers(
                after.path(),
                &wanted,
                &format!("operation {at} of {operations}, {image:?}"),
            );
        }
    }
}

#[test]
fn a_merge_by_tensor_survives_power_loss_at_every_operation() {
    let mut case = Case::new(&small_shards(), SMALL_KEYS);
    case.window_bytes = Some(400_000);
    loses_power_everywhere(&case, true);
}

#[test]
fn a_merge_by_row_survives_power_loss_at_every_operation() {
    loses_power_everywhere(
        &Case::new(&small_shards(), &format!("{SMALL_KEYS}granularity: row\n")),
        false,
    );
}

#[test]
fn a_merge_over_the_whole_model_survives_power_loss_at_every_operation() {
    loses_power_everywhere(
        &Case::new(
            &small_shards(),
            &format!("{SMALL_KEYS}granularity: model\n"),
        ),
        true,
    );
}

#[test]
fn a_merge_of_components_survives_power_loss_at_every_operation() {
    let case = Case::new(&small_shards(), SMALL_KEYS);
    let sharded = [
        vec![spec("a", Dtype::BF16, &[300, 100])],
        vec![spec("b", Dtype::BF16, &[700, 130])],
    ];
    for (name, seed) in [("a", 5), ("b", 6)] {
        write(&case.inputs().join(name).join("1_Large"), &sharded, seed);
        write(
            &case.inputs().join(name).join("2_Dense"),
            &[vec![spec("weight", Dtype::F32, &[30, 30])]],
            seed,
        );
    }
    let (wanted, operations) = case.undisturbed();
    for name in [
        "1_Large/model.safetensors.index.json",
        "2_Dense/model.safetensors",
        "model.safetensors.index.json",
    ] {
        assert!(
            wanted.contains_key(Path::new(name)),
            "{name}: {:?}",
            wanted.keys()
        );
    }
    for at in 1..=operations {
        let image = Image::ALL[at % 4];
        let after = case.crashed(at, image);
        case.recovers(
            after.path(),
            &wanted,
            &format!("operation {at} of {operations}, {image:?}"),
        );
    }
}

#[test]
fn a_solved_model_is_not_measured_again() {
    let mut case = Case::new(
        &small_shards(),
        &format!("{SMALL_KEYS}granularity: model\n"),
    );
    // So large that nothing but the solution is committed on the way.
    case.commit_bytes = 1 << 30;
    let (wanted, operations) = case.undisturbed();
    let whole = case.plan();
    let all: u64 = whole.source_bytes();
    let resumed_reading: Vec<u64> = (1..operations)
        .map(|at| {
            case.recovers(
                case.crashed(at, Image::Kept).path(),
                &wanted,
                &format!("operation {at}"),
            )
            .read_bytes
        })
        .collect();
    let once = resumed_reading.iter().filter(|read| **read == all).count();
    assert!(
        once > 0,
        "of {all} bytes were read again: {resumed_reading:?}"
    );
}

/// One tensor of three check blocks that is read twice, of values that overflow when they are
/// narrowed.
fn large_case(granularity: &str) -> Case {
    let large = Spec {
        upper: 0x47,
        ..spec("large", Dtype::BF16, &[20, 1 << 20])
    };
    let shard = vec![large, spec("small", Dtype::BF16, &[1000])];
    let keys = format!("granularity: {granularity}\ndtype: float16\nout_shard_size: 42000000\n");
    let mut case = Case::new(&[shard], &keys);
    case.window_bytes = Some(8 << 20);
    case.commit_bytes = 8 << 20;
    case.block_bytes = 1 << 20;
    case
}

#[test]
fn a_tensor_of_several_check_blocks_goes_on_in_its_middle() {
    for granularity in ["tensor", "row", "model"] {
        let case = large_case(granularity);
        let (wanted, operations) = case.undisturbed();
        let manifest: Value =
            serde_json::from_slice(&wanted[Path::new("thalweg.json")]).expect("JSON");
        assert!(
            manifest["tensors"][0]["note"]["overflowed"].as_u64() > Some(0),
            "{}",
            manifest["tensors"][0]
        );
        let mut spared = 0;
        for at in (4..=operations).step_by(9) {
            let image = Image::ALL[at % 4];
            let after = case.crashed(at, image);
            let report = case.recovers(
                after.path(),
                &wanted,
                &format!("{granularity}, operation {at} of {operations}, {image:?}"),
            );
            spared += usize::from(
                report.status == "resumed" && (1..40 << 20).contains(&report.written_bytes),
            );
        }
        assert!(spared > 0, "no run went on in the middle");
    }
}

/// Cuts an input at a byte once the merge is planned, so that whatever read gets there first fails.
fn fails_to_read_everywhere(case: &Case) {
    let (wanted, _) = case.undisturbed();
    for shard in 1..=3 {
        let path = case
            .inputs()
            .join(format!("b/model-0000{shard}-of-00003.safetensors"));
        let bytes = fs::read(&path).expect("an input");
        let modified = fs::metadata(&path)
            .and_then(|found| found.modified())
            .expect("it has a time");
        for at in (0..bytes.len()).step_by(16 << 10) {
            let about = format!("{:?}, {} cut at {at}", case.io, path.display());
            let (root, plan) = (scratch(), case.plan());
            let file = File::options().write(true).open(&path).expect("writable");
            file.set_len(at as u64).expect("cut");
            let (storage, outcome) =
                case.run_planned(plan, CrashStorage::reliable(root.path()), root.path());
            let error = outcome.expect_err(&about);
            assert!(
                error.subject().contains(&format!("b/model-0000{shard}")),
                "{about}: {error}"
            );
            drop(storage);
            assert!(
                !root
                    .path()
                    .join("out/model.safetensors.index.json")
                    .exists(),
                "{about}"
            );
            // The disk is whole again, and nothing that the failed run has left may be wrong.
            file.write_all_at(&bytes, 0)
                .and_then(|()| file.set_modified(modified))
                .expect("put right");
            case.recovers(root.path(), &wanted, &about);
        }
    }
}

#[test]
fn a_merge_survives_a_failure_of_every_read() {
    guard_maps().expect("a handler");
    for io in [Io::Map, Io::Positioned] {
        for granularity in ["tensor", "row", "model"] {
            let keys = format!("{SMALL_KEYS}granularity: {granularity}\n");
            fails_to_read_everywhere(&Case {
                io,
                ..Case::new(&small_shards(), &keys)
            });
        }
    }
}
