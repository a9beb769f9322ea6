//! Alignments whose products are summed on a device that is played by the host: the map that the
//! processor finds, whatever the device's memory and the threads; and failures at every call, after
//! which the processor goes on.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use thalweg::align::Store;
use thalweg::align::activations::{self, match_activations};
use thalweg::align::matching::{MatchOptions, Proof, Residual, Unwatched};
use thalweg::align::run::{Align, Aligned, Matcher, ModelSet, ModelSetTask, Pair, PairTask, align};
use thalweg::checkpoint::Checkpoint;
use thalweg::device::{Driver, Kernel, Products};
use thalweg::engine::Options;
use thalweg::error::{Kind, Result};
use thalweg::kernel::Kernels;
use thalweg::likeness::Waived;
use thalweg::linalg::Backend;
use thalweg::output::{DiskStorage, Target};
use thalweg::plan::memory::DeviceWish;
use thalweg::symmetry::Allowed;

use super::fake::{Call, Fake};
use crate::align::Stored;
use crate::align::applying::same_bytes;
use crate::align::planted::{llama, noised, planted};
use crate::support::files::scratch;
use crate::support::forward::{Chain, Experts, Family, Llama, Random};
use crate::support::whole;

const PLENTY: u64 = 1 << 30;
/// Enough for products and not for the sums of wide groups.
const LITTLE: u64 = 1 << 20;

/// How an alignment is computed.
struct Run<'a> {
    fake: Option<&'a Arc<Fake>>,
    device_memory: u64,
    threads: usize,
    residual: Residual,
}

impl<'a> Run<'a> {
    fn on(fake: &'a Arc<Fake>) -> Self {
        Self {
            fake: Some(fake),
            ..Self::processor()
        }
    }

    fn processor() -> Self {
        Self {
            fake: None,
            device_memory: PLENTY,
            threads: 1,
            residual: Residual::Fixed,
        }
    }

    fn options(&self) -> Options {
        let device = self.fake.map(|fake| Arc::clone(fake) as Arc<dyn Driver>);
        Options {
            device,
            ..Options::default()
        }
    }

    fn wish(&self) -> Option<DeviceWish> {
        self.fake.map(|_| DeviceWish {
            memory: self.device_memory,
            host: 0,
        })
    }

    /// Aligns `model` of these models with `other`, to the file `out`.
    fn carry_out(&self, stored: &Stored, other: &str, out: &Path) -> Result<Aligned> {
        let open = |name: &str| Checkpoint::open(&stored.dir.path().join(name)).expect("opens");
        align(Align {
            task: PairTask {
                pair: Pair::new(open("model"), open(other), None, Waived::default())?
                    .ready_for(self.residual)?,
                by: Matcher::Weights,
                matching: MatchOptions {
                    residual: self.residual,
                    sweeps: 6,
                    ..MatchOptions::default()
                },
            },
            memory: 256 << 20,
            held: 0,
            threads: self.threads,
            device: self.wish(),
            storage: Arc::new(DiskStorage),
            target: Some(Target {
                dir: out.to_owned(),
                overwrite: false,
                restart: false,
            }),
            options: self.options(),
        })
    }
}

fn products(calls: &[Call]) -> usize {
    calls
        .iter()
        .filter(|call| matches!(call, Call::Launch(_, Kernel::Product)))
        .count()
}

/// What is known of each root; how near an optimum is, depends on how sums are rounded.
fn proofs(found: &Aligned) -> Vec<(String, usize, &'static str)> {
    let proof = |proof: &Proof| match proof {
        Proof::Identity => "identity",
        Proof::Optimal(within) if *within < 1e-2 => "optimal",
        Proof::Optimal(_) => "far from optimal",
        Proof::Parts => "parts",
    };
    let roots = found.report.findings.roots.iter();
    roots
        .map(|root| (root.name.clone(), root.moved, proof(&root.proof)))
        .collect()
}

/// An MLP with a group of more units than are solved for at once.
fn wide() -> Stored {
    let mut net = crate::support::forward::Net::new(serde_json::json!({}));
    let mut random = Random::new(1);
    let sizes = [9, 1100, 40, 3];
    for (layer, pair) in sizes.windows(2).enumerate() {
        net.add(
            &mut random,
            &format!("layers.{layer}.weight"),
            &[pair[1], pair[0]],
        );
        net.add(&mut random, &format!("layers.{layer}.bias"), &[pair[1]]);
    }
    planted(&net, false)
}

#[test]
fn what_was_planted_is_found_as_on_the_processor_with_its_certificates() {
    let mixtral = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    };
    let chain = Chain {
        norms: true,
        flax: false,
    };
    let cases = [
        ("llama", planted(&llama(), false), Residual::Fixed),
        ("residual", planted(&llama(), true), Residual::Permute),
        (
            "mixtral",
            planted(&mixtral.random(8), false),
            Residual::Fixed,
        ),
        ("chain", planted(&chain.random(4), false), Residual::Fixed),
        ("wide", wide(), Residual::Fixed),
    ];
    for (about, stored, residual) in cases {
        let dir = stored.dir.path();
        let wanted = Run {
            residual,
            ..Run::processor()
        }
        .carry_out(&stored, "planted", &dir.join("cpu.safetensors"));
        let wanted = wanted.expect("aligned");
        assert_eq!(wanted.report.device.as_deref(), Some("cpu"));
        let mut files = vec![];
        for (threads, device_memory) in [(1, PLENTY), (3, LITTLE)] {
            let fake = Fake::new();
            let out = dir.join(format!("{threads}.safetensors"));
            let run = Run {
                threads,
                device_memory,
                residual,
                ..Run::on(&fake)
            };
            let found = run.carry_out(&stored, "planted", &out).expect("aligned");
            assert!(fake.is_let_go() && products(&fake.calls()) > 0, "{about}");
            let device = "fake:0 (the host), products by its own kernel";
            assert_eq!(found.report.device.as_deref(), Some(device));
            assert!(
                found
                    .report
                    .to_string()
                    .ends_with(&format!("\ncomputed on: {device}\n")),
                "{}",
                found.report
            );
            assert!(
                found.file.transform == wanted.file.transform,
                "{about}: another map"
            );
            assert_eq!(proofs(&found), proofs(&wanted), "{about}");
            assert_eq!(
                found.report.findings.tensors, wanted.report.findings.tensors,
                "{about}"
            );
            files.push(fs::read(&out).expect("written"));
            let again = run
                .carry_out(&stored, "planted", &out)
                .expect("nothing to do");
            assert_eq!(
                (again.report.status, again.report.device),
                ("complete already", None)
            );
        }
        assert!(
            files[0] == files[1],
            "{about}: memory or threads change what is written"
        );
        stored.apply("planted", wanted.file.transform, "back", &whole::PLENTY);
        same_bytes(&stored, "model", "back");
    }
}

#[test]
fn models_of_one_ancestor_are_certified_to_stay_on_the_device_too() {
    let stored = Stored::new(&llama(), None);
    noised(&stored, "tuned", 1e-3);
    let dir = stored.dir.path();
    let wanted = Run::processor()
        .carry_out(&stored, "tuned", &dir.join("cpu.safetensors"))
        .expect("aligned");
    let found = Run::on(&Fake::new())
        .carry_out(&stored, "tuned", &dir.join("gpu.safetensors"))
        .expect("aligned");
    assert_eq!(found.report.moved, 0);
    assert_eq!(proofs(&found), proofs(&wanted));
}

#[test]
fn an_alignment_that_fails_at_any_call_is_gone_on_with_by_the_processor() {
    let stored = planted(
        &Chain {
            norms: false,
            flax: false,
        }
        .random(4),
        false,
    );
    let wanted = Run::processor().carry_out(
        &stored,
        "planted",
        &stored.dir.path().join("cpu.safetensors"),
    );
    let wanted = wanted.expect("aligned").file.transform;
    let undisturbed = Fake::new();
    let out = stored.dir.path().join("undisturbed.safetensors");
    Run::on(&undisturbed)
        .carry_out(&stored, "planted", &out)
        .expect("aligned");
    // The last two wait for nothing, while all is given back.
    let calls = undisturbed.calls().len() - 2;
    let mut resumed = 0;
    for at in 0..calls {
        let root = scratch();
        let out = root.path().join("perms.safetensors");
        let fake = Fake::failing_at(at);
        let error = Run::on(&fake).carry_out(&stored, "planted", &out).err();
        let error = error.unwrap_or_else(|| panic!("call {at} of {calls} failed"));
        assert_eq!(
            (error.kind(), error.exit_code()),
            (Kind::Device, 3),
            "call {at}: {error}"
        );
        assert!(fake.is_let_go(), "call {at}: something was not given back");
        let found = Run::processor()
            .carry_out(&stored, "planted", &out)
            .expect("the processor goes on");
        resumed += usize::from(found.report.status == "resumed");
        assert!(found.file.transform == wanted, "call {at}: another map");
    }
    assert!(
        resumed > calls / 2,
        "{resumed} of {calls} runs were gone on with"
    );
}

#[test]
fn a_map_of_the_residual_stream_that_was_begun_on_one_backend_is_ended_on_the_other() {
    let stored = planted(&llama(), false);
    let residual = Residual::Orthogonal;
    let run = |fake: Option<&Arc<Fake>>, out: &Path| {
        Run {
            fake,
            residual,
            ..Run::processor()
        }
        .carry_out(&stored, "planted", out)
    };
    let undisturbed = Fake::new();
    let whole = run(
        Some(&undisturbed),
        &stored.dir.path().join("whole.safetensors"),
    )
    .expect("aligned");
    let on_cpu = run(None, &stored.dir.path().join("cpu.safetensors")).expect("aligned");
    let [wanted, other] = [&whole, &on_cpu].map(|found| found.report.objective[1]);
    // Two maps that are rounded in other ways.
    assert!((wanted - other).abs() < 1e-5, "{wanted} {other}");
    let calls = undisturbed.calls().len();
    for part in 1..5 {
        let root = scratch();
        let out = root.path().join("map.safetensors");
        let error = run(Some(&Fake::failing_at(part * calls / 5)), &out)
            .err()
            .expect("the device failed");
        assert_eq!(
            (error.kind(), error.exit_code()),
            (Kind::Device, 3),
            "{error}"
        );
        let found = run(None, &out).expect("the processor goes on");
        assert!(
            (found.report.objective[1] - wanted).abs() < 1e-5,
            "{} {wanted}",
            found.report.objective[1]
        );
    }
}

#[test]
fn many_models_are_brought_together_on_a_device_and_gone_on_with() {
    let stored = planted(
        &Chain {
            norms: false,
            flax: false,
        }
        .random(4),
        false,
    );
    noised(&stored, "noised", 1e-4);
    let many = |run: &Run<'_>, out: &Path| {
        let open = |name| Checkpoint::open(&stored.dir.path().join(name));
        let models = ["model", "planted", "noised"]
            .into_iter()
            .map(open)
            .collect::<Result<_>>()
            .expect("open");
        align(Align {
            task: ModelSetTask {
                set: ModelSet::new(
                    models,
                    None,
                    Waived {
                        vocabulary: true,
                        config: true,
                    },
                )
                .expect("a set"),
                many: Default::default(),
            },
            memory: 256 << 20,
            held: 0,
            threads: 2,
            device: run.wish(),
            storage: Arc::new(DiskStorage),
            target: Some(Target {
                dir: out.to_owned(),
                overwrite: false,
                restart: false,
            }),
            options: run.options(),
        })
    };
    let dir = stored.dir.path();
    let wanted = many(&Run::processor(), &dir.join("cpu")).expect("aligned");
    let fake = Fake::new();
    let found = many(&Run::on(&fake), &dir.join("gpu")).expect("aligned");
    assert!(products(&fake.calls()) > 0 && fake.is_let_go());
    // From the second round on units that were moved are read where they are stored.
    assert!(
        fake.calls()
            .iter()
            .any(|call| matches!(call, Call::Launch(_, Kernel::Gather)))
    );
    assert!(
        found
            .to_string()
            .contains("computed on: fake:0 (the host), products by its own kernel"),
        "{found}"
    );
    let moved = |report: &thalweg::align::run::ManyReport| {
        report
            .models
            .iter()
            .map(|model| (model.moved, model.objective))
            .collect::<Vec<_>>()
    };
    assert_eq!(moved(&found), moved(&wanted));
    let error = many(
        &Run::on(&Fake::failing_at(fake.calls().len() / 2)),
        &dir.join("out"),
    )
    .expect_err("it failed");
    assert_eq!(
        (error.kind(), error.exit_code()),
        (Kind::Device, 3),
        "{error}"
    );
    let resumed = many(&Run::processor(), &dir.join("out")).expect("the processor goes on");
    assert_eq!(resumed.models[0].status, "resumed");
    assert_eq!(moved(&resumed), moved(&wanted));
}

#[test]
fn activations_are_multiplied_on_a_device() {
    let stored = Stored::new(
        &Chain {
            norms: false,
            flax: false,
        }
        .random(4),
        None,
    );
    let symmetries = &stored.symmetries;
    let mut random = Random::new(5);
    // More samples than are multiplied at once.
    let samples = 1500_usize;
    let (mut ours, mut theirs) = (vec![], vec![]);
    for group in &symmetries.groups {
        let units = group.units;
        #[expect(clippy::cast_possible_truncation, reason = "activations are f32")]
        let values: Vec<f32> = (0..samples * units)
            .map(|_| random.signed() as f32)
            .collect();
        let moved = values
            .chunks(units)
            .flat_map(|row| row.iter().rev().copied())
            .collect();
        let shape = vec![samples as u64, units as u64];
        ours.push((group.name.clone(), shape.clone(), values));
        theirs.push((group.name.clone(), shape, moved));
        assert!(group.may(Allowed::Permutation));
    }
    let [ours, theirs] = [ours, theirs].map(|side| Store::in_memory(side, Kernels::detect()));
    let found = |backend: Backend| {
        let options = activations::ActivationOptions {
            backend,
            ..Default::default()
        };
        match_activations(&ours, &theirs, symmetries, &[], &options, &Unwatched).expect("matched")
    };
    let fake = Fake::new();
    let on_device = Backend::on(Arc::new(
        Products::new(Arc::clone(&fake) as Arc<dyn Driver>, 0, LITTLE).expect("room"),
    ));
    assert_eq!(
        found(on_device).transform,
        found(Backend::default()).transform
    );
    assert_eq!(products(&fake.calls()), 2 * symmetries.groups.len());
    assert!(fake.is_let_go());
}
