//! Whole merges on a device that is played by the host: the processor's bytes, whatever the
//! device's memory, the threads and the blocks; and failures at every call, after which the
//! processor goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use safetensors::Dtype;
use thalweg::device::{Driver, Kernel};
use thalweg::engine::{self, Merge, Options, Stop};
use thalweg::error::{Kind, Result};
use thalweg::kernel::CHUNK;
use thalweg::monitor::Monitor;
use thalweg::output::{DiskStorage, Target};
use thalweg::plan::Plan;
use thalweg::plan::memory::{DeviceWish, Staging, Wish};
use thalweg::report::Report;

use super::fake::{Call, Fake};
use crate::merge::{Kinship, Place, Run, files_of, random_models, recipe};
use crate::support::reference::{Random, Tensor};

const PLENTY: u64 = 1 << 30;

fn plan(run: &Run, memory: u64) -> Result<Plan> {
    let wish = Wish {
        memory: run.memory,
        threads: run.threads,
        block_bytes: run.block_bytes,
    };
    Plan::with_device(&run.job()?, &wish, Some(&DeviceWish { memory, host: 0 }))
}

/// Merges on `fake`, using at most `memory` of it.
fn merge_on(run: &Run, fake: &Arc<Fake>, memory: u64, out: &Path) -> Result<Report> {
    engine::merge(Merge {
        plan: Arc::new(plan(run, memory)?),
        storage: Arc::new(DiskStorage),
        target: Target {
            dir: out.to_owned(),
            overwrite: false,
            restart: false,
        },
        options: Options {
            kernels: run.kernels,
            device: Some(Arc::clone(fake) as Arc<dyn Driver>),
            io: run.io,
            commit_bytes: run.commit_bytes,
            ..Options::default()
        },
        verify: true,
    })
}

/// The least device memory that a run can be planned with.
fn least(run: &Run) -> u64 {
    let (mut too_small, mut enough) = (0, PLENTY);
    while enough - too_small > 1 {
        let middle = enough.midpoint(too_small);
        if plan(run, middle).is_ok() {
            enough = middle
        } else {
            too_small = middle
        }
    }
    enough
}

/// Models with tensors of every kind: short and long rows, one chunk, several, none, and integers.
fn models(place: &Place) -> Vec<PathBuf> {
    let shapes: [&[usize]; 8] = [
        &[],
        &[0],
        &[17],
        &[40, 100],
        &[CHUNK],
        &[3, 2 * CHUNK + 1],
        &[29, 1500],
        &[5 * CHUNK + 7],
    ];
    let dtypes = [Dtype::F32, Dtype::BF16, Dtype::F16];
    let mut models = random_models(
        &mut Random::new(700),
        &dtypes,
        &shapes,
        Kinship::Cosine(0.7),
    );
    let ids = Tensor::from_bytes(
        Dtype::I64,
        &[130],
        (0..1040u32).map(|i| i.to_le_bytes()[0]).collect(),
    );
    models
        .iter_mut()
        .for_each(|model| assert!(model.insert("ids".into(), ids.clone()).is_none()));
    place.models(&models)
}

/// What the processor makes of it.
fn on_the_processor(place: &Place, run: &Run) -> BTreeMap<String, Vec<u8>> {
    let out = tempfile::tempdir_in(place.path("")).expect("a folder");
    run.merge_to(&out.path().join("out"))
        .expect("a merge that succeeds");
    files_of(&out.path().join("out"))
}

/// Merges on the device in many ways, and compares all files with the processor's.
fn same_bytes(place: &Place, run: &Run, about: &str) -> Vec<Call> {
    let wanted = on_the_processor(place, run);
    let mut calls = Vec::new();
    for (threads, block_bytes) in [(1, Some(1)), (3, Some(256 << 10)), (3, None)] {
        let run = Run {
            threads,
            block_bytes,
            ..run.clone()
        };
        for memory in [least(&run), PLENTY] {
            let out = tempfile::tempdir_in(place.path("")).expect("a folder");
            let fake = Fake::new();
            let report = merge_on(&run, &fake, memory, &out.path().join("out"))
                .expect("a merge that succeeds");
            assert_eq!(report.device.as_deref(), Some("fake:0 (the host)"));
            assert!(
                report
                    .to_string()
                    .contains("computed on: fake:0 (the host)"),
                "{report}"
            );
            assert!(fake.is_let_go(), "something was not given back");
            let same = files_of(&out.path().join("out")) == wanted;
            assert!(
                same,
                "{about}: {threads} threads, blocks of {block_bytes:?}, {memory} bytes: other bytes"
            );
            calls.extend(fake.calls());
        }
    }
    calls
}

fn launches(calls: &[Call], wanted: Kernel) -> usize {
    calls
        .iter()
        .filter(|call| matches!(call, Call::Launch(_, kernel) if *kernel == wanted))
        .count()
}

#[test]
fn shapes_that_are_brought_together_give_the_processors_bytes() {
    let place = Place::new();
    let of = |(seed, dtype, shape): (u64, Dtype, &[usize])| {
        random_models(
            &mut Random::new(seed),
            &[dtype],
            &[shape],
            Kinship::Cosine(0.7),
        )
        .remove(0)
        .into_values()
        .next()
    };
    let tensors = [
        (1, Dtype::F16, &[300, 9, 40][..]),
        (2, Dtype::BF16, &[280, 11, 40]),
        (3, Dtype::F32, &[300, 4, 37]),
    ];
    let models =
        tensors.map(|tensor| BTreeMap::from([("w".to_owned(), of(tensor).expect("one tensor"))]));
    let paths = place.models(&models);
    for (method, policy) in [
        ("karcher", "pad"),
        ("karcher", "crop"),
        ("task_arithmetic", "pad"),
    ] {
        let run = Run::new(recipe(method, &paths, Some(&[0.5, 0.2, 0.3]))).with("mismatch", policy);
        let run = run.with("base_model", paths[0].to_str().expect("text"));
        same_bytes(&place, &run, &format!("{method} {policy}"));
    }
}

#[test]
fn every_granularity_gives_the_processors_bytes() {
    let place = Place::new();
    let run = Run::weighted(&models(&place), &[0.5, 0.2, 0.3]);
    for granularity in ["tensor", "row", "model"] {
        let calls = same_bytes(
            &place,
            &run.clone().with("granularity", granularity),
            granularity,
        );
        assert!(
            launches(&calls, Kernel::GramSums) > 0 && launches(&calls, Kernel::Combine) > 0,
            "{granularity}"
        );
        assert_eq!(
            launches(&calls, Kernel::Scan),
            0,
            "{granularity}: sums tell whether all is finite"
        );
    }
}

#[test]
fn methods_that_centre_or_measure_nothing_give_the_processors_bytes() {
    let place = Place::new();
    let paths = models(&place);
    let base = paths[1].to_str().expect("text");
    for (method, weights) in [
        ("linear", true),
        ("model_stock", false),
        ("multislerp", true),
        ("task_arithmetic", true),
    ] {
        let recipe = recipe(method, &paths, weights.then_some(&[0.5, 0.2, 0.3]));
        let calls = same_bytes(&place, &Run::new(recipe).with("base_model", base), method);
        assert_eq!(
            launches(&calls, Kernel::Scan) > 0,
            launches(&calls, Kernel::GramSums) == 0,
            "{method}"
        );
        assert!(launches(&calls, Kernel::Combine) > 0, "{method}");
    }
}

#[test]
fn equal_inputs_and_other_types_give_the_processors_bytes() {
    let place = Place::new();
    let shapes: [&[usize]; 2] = [&[3, CHUNK + 9], &[2000]];
    let one = random_models(
        &mut Random::new(701),
        &[Dtype::F64],
        &shapes,
        Kinship::Independent,
    )
    .remove(0);
    let paths = place.models(&[one.clone(), one.clone(), one]);
    for dtype in ["float64", "float32", "float8_e4m3fn", "float8_e5m2"] {
        same_bytes(&place, &Run::karcher(&paths).with("dtype", dtype), dtype);
    }
}

/// Two models, one of which has NaN and infinity in one of its tensors.
fn odd_models(place: &Place) -> Vec<PathBuf> {
    let shapes: [&[usize]; 2] = [&[4, CHUNK + 9], &[5000]];
    let mut models = random_models(
        &mut Random::new(702),
        &[Dtype::F32; 2],
        &shapes,
        Kinship::Cosine(0.5),
    );
    let name = format!("t{:?}", shapes[0]);
    let mut values = models[1][&name].values.clone();
    (values[CHUNK + 3], values[2 * CHUNK], values[4 * CHUNK + 8]) =
        (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
    models[1].insert(name, Tensor::rounded(Dtype::F32, shapes[0], &values));
    place.models(&models)
}

#[test]
fn what_is_not_finite_is_treated_as_on_the_processor() {
    let place = Place::new();
    let paths = odd_models(&place);
    let base = paths[0].to_str().expect("text").to_owned();
    for method in ["karcher", "linear"] {
        let run =
            Run::new(recipe(method, &paths, Some(&[0.4, 0.6]))).with("base_model", base.as_str());
        for granularity in ["tensor", "row"]
            .into_iter()
            .filter(|name| method == "karcher" || *name == "tensor")
        {
            let run = run.clone().with("granularity", granularity);
            for policy in ["propagate", "base"] {
                same_bytes(&place, &run.clone().with("nan", policy), policy);
            }
            let wanted = place.refused(&run);
            let out = place.path("refused");
            let got =
                merge_on(&run, &Fake::new(), PLENTY, &out).expect_err("an input is not finite");
            assert_eq!(
                (got.to_string(), got.kind()),
                (wanted.to_string(), Kind::NonFinite)
            );
            std::fs::remove_dir_all(&out).expect("what was begun");
        }
    }
}

/// Merges by `method` on devices of which each fails at another call, and goes on on the processor.
fn fails_at_every_call(method: &str) {
    let place = Place::new();
    let shapes: [&[usize]; 2] = [&[CHUNK + 1], &[7]];
    let models = random_models(
        &mut Random::new(703),
        &[Dtype::BF16; 2],
        &shapes,
        Kinship::Cosine(0.5),
    );
    let paths = place.models(&models);
    let run = Run {
        commit_bytes: 1,
        ..Run::new(recipe(method, &paths, Some(&[0.5, 0.5]))).small_blocks()
    };
    let wanted = on_the_processor(&place, &run);
    let undisturbed = Fake::new();
    merge_on(&run, &undisturbed, PLENTY, &place.path("undisturbed"))
        .expect("a merge that succeeds");
    let calls = undisturbed.calls();
    let mut gone_on = 0;
    for at in 0..calls.len() {
        let out = place.path(&format!("failing-{at}"));
        let fake = Fake::failing_at(at);
        // Where threads take turns otherwise there may be a call less.
        let Err(error) = merge_on(&run, &fake, PLENTY, &out) else {
            continue;
        };
        assert_eq!(
            (error.kind(), error.exit_code()),
            (Kind::Device, 3),
            "call {at}: {error}"
        );
        assert!(fake.is_let_go(), "call {at}: something was not given back");
        let report = run.merge_to(&out).expect("the processor goes on");
        gone_on += usize::from(report.status == "resumed");
        assert!(files_of(&out) == wanted, "call {at}: other bytes");
        std::fs::remove_dir_all(&out).expect("an output");
    }
    assert!(
        gone_on > calls.len() / 2,
        "{gone_on} of {} runs were gone on with",
        calls.len()
    );
}

#[test]
fn a_failure_at_any_call_stops_resumably_and_the_processor_goes_on() {
    fails_at_every_call("karcher");
}

#[test]
fn so_does_one_of_a_merge_that_measures_nothing() {
    fails_at_every_call("linear");
}

/// Asks to stop once so many bytes were moved.
struct AsksAfter {
    bytes: u64,
    seen: AtomicU64,
    stop: Stop,
}

impl Monitor for AsksAfter {
    fn advance(&self, bytes: u64) {
        if self.seen.fetch_add(bytes, Ordering::SeqCst) + bytes >= self.bytes {
            self.stop.ask();
        }
    }
}

#[test]
fn a_run_begun_on_the_processor_is_finished_on_the_device() {
    let place = Place::new();
    let models = random_models(
        &mut Random::new(704),
        &[Dtype::F32; 2],
        &[&[9 * CHUNK]],
        Kinship::Cosine(0.5),
    );
    let run = Run {
        commit_bytes: 1,
        ..Run::karcher(&place.models(&models)).small_blocks()
    };
    let wanted = on_the_processor(&place, &run);
    // Begun on the processor, gone on with on a device that fails, ended on one that does not.
    let out = place.path("by-turns");
    let stop = Stop::default();
    let begun = engine::merge(Merge {
        plan: Arc::new(run.plan().expect("memory")),
        storage: Arc::new(DiskStorage),
        target: Target {
            dir: out.clone(),
            overwrite: false,
            restart: false,
        },
        options: Options {
            monitor: Arc::new(AsksAfter {
                bytes: (4 * CHUNK) as u64,
                seen: AtomicU64::new(0),
                stop: stop.clone(),
            }),
            stop,
            commit_bytes: 1,
            ..Options::default()
        },
        verify: false,
    });
    assert_eq!(
        begun.expect_err("somebody asked to stop").kind(),
        Kind::Interrupted
    );
    let failed = merge_on(&run, &Fake::failing_at(30), PLENTY, &out).expect_err("the device fails");
    assert_eq!(
        (failed.kind(), failed.exit_code()),
        (Kind::Device, 3),
        "{failed}"
    );
    let report = merge_on(&run, &Fake::new(), PLENTY, &out).expect("a device that works");
    assert_eq!(report.status, "resumed");
    assert!(files_of(&out) == wanted, "other bytes");
    let again = merge_on(&run, &Fake::new(), PLENTY, &out).expect("nothing to do");
    assert_eq!((again.status, again.device), ("complete already", None));
}

#[test]
fn copies_in_kernels_and_copies_out_follow_each_other_on_each_stream_and_streams_overlap() {
    let place = Place::new();
    let shapes: [&[usize]; 2] = [&[40 * CHUNK], &[30, CHUNK]];
    let models = random_models(
        &mut Random::new(705),
        &[Dtype::BF16; 2],
        &shapes,
        Kinship::Cosine(0.5),
    );
    let run = Run {
        threads: 4,
        ..Run::karcher(&place.models(&models)).small_blocks()
    };
    let fake = Fake::new();
    merge_on(&run, &fake, PLENTY, &place.path("out")).expect("a merge that succeeds");
    let calls = fake.calls();
    let streams = calls.iter().filter(|call| **call == Call::Stream).count();
    assert_eq!(
        Some(streams),
        plan(&run, PLENTY)
            .expect("memory")
            .memory
            .staging
            .map(|staging| staging.lanes)
    );
    assert!(
        fake.most_busy() >= 2,
        "no two streams had something to do at once"
    );
    for number in 1..=streams {
        let mut copied = false;
        let mut fetched = false;
        for call in &calls {
            match call {
                Call::CopyIn(stream) if stream.0 == number => copied = true,
                Call::Launch(stream, _) if stream.0 == number => {
                    assert!(
                        copied && !fetched,
                        "a kernel without its input, or before the last result was taken"
                    );
                }
                Call::CopyOut(stream) if stream.0 == number => fetched = true,
                Call::Wait(stream) if stream.0 == number => fetched = false,
                _ => {}
            }
        }
    }
}

#[test]
fn a_byte_less_of_device_memory_than_needed_is_refused_with_what_would_do() {
    let place = Place::new();
    let run = Run::karcher(&models(&place));
    let least = least(&run);
    let error = plan(&run, least - 1).err().expect("too little");
    assert_eq!(
        (error.kind(), error.exit_code()),
        (Kind::Device, 2),
        "{error}"
    );
    let hint = error.hint().expect("what to do");
    assert!(
        hint.contains(&format!("--device-memory {}MiB", least.div_ceil(1 << 20))),
        "{hint}"
    );
}

#[test]
fn pinned_memory_and_the_drivers_own_are_part_of_the_budget() {
    let place = Place::new();
    let run = Run::karcher(&models(&place));
    let without = run.plan().expect("memory").memory;
    let with = plan(&run, PLENTY).expect("memory").memory;
    let Staging { lanes, lane_bytes } = with.staging.expect("lanes");
    assert!(lanes >= 2 && lane_bytes > 0);
    assert!(
        (lanes * lane_bytes) as u64 <= run.memory / 4,
        "more than a share of the memory"
    );
    assert_eq!(with.fixed, without.fixed + (lanes * lane_bytes) as u64);
    assert_eq!(with.fixed + with.input + with.output, with.limit);
    let wish = Wish {
        memory: run.memory,
        threads: run.threads,
        block_bytes: run.block_bytes,
    };
    let device = DeviceWish {
        memory: PLENTY,
        host: 100 << 20,
    };
    let beside = Plan::with_device(&run.job().expect("a job"), &wish, Some(&device))
        .expect("memory")
        .memory;
    assert_eq!(beside.fixed, with.fixed + (100 << 20));
    // A budget that the driver alone exceeds is refused before anything begins.
    let device = DeviceWish {
        memory: PLENTY,
        host: run.memory,
    };
    let error = Plan::with_device(&run.job().expect("a job"), &wish, Some(&device))
        .err()
        .expect("no memory is left");
    assert_eq!(error.kind(), Kind::Budget);
}
