//! Weight matching of models on disk.

use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use thalweg::align::Store;
use thalweg::align::matching::{
    MatchOptions, Matched, Proof, Residual, Start, Unwatched, match_weights,
};
use thalweg::checkpoint::{Checkpoint, SourceOptions};
use thalweg::kernel::Kernels;
use thalweg::plan::memory::Wish;
use thalweg::symmetry::{Element, Spec, Transform};

use super::Stored;
use crate::support::forward::{Experts, Family, Gpt2, Llama, Net};
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Tensor};
use crate::support::whole::PLENTY;

fn mixtral() -> Llama {
    Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    }
}

fn llama() -> Llama {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
}

/// A network on disk in this type.
fn stored(net: &Net, dtype: Dtype, spec: Option<&Spec>) -> Stored {
    let stored = Stored::new(net, spec);
    let tensor = |(shape, values): &(Vec<usize>, Vec<f64>)| Tensor::rounded(dtype, shape, values);
    let model: Model = net
        .tensors
        .iter()
        .map(|(name, parts)| (name.clone(), tensor(parts)))
        .collect();
    let folder = stored.dir.path().join("model");
    std::fs::remove_file(folder.join("model.safetensors")).expect("the network in f64");
    write_model(&folder, &model, 2);
    stored
}

/// A random transform without rotations, which round, and without the residual stream unless it is
/// wanted.
fn exact(stored: &Stored, seed: u64, residual: bool) -> Transform {
    let random = Transform::random(&stored.symmetries, seed);
    let groups = stored.symmetries.groups.iter().zip(random.elements());
    let element = |(group, element): (&thalweg::symmetry::Group, &Element)| match group.residual
        && !residual
    {
        true => Element::default(),
        false => Element {
            angle: Vec::new(),
            ..element.clone()
        },
    };
    Transform::new(&stored.symmetries, groups.map(element).collect()).expect("still fits")
}

fn open(folder: &Path) -> Arc<Store> {
    let model = Checkpoint::open(folder).expect("a checkpoint");
    Arc::new(
        Store::open(&model, &SourceOptions::default(), Kernels::detect()).expect("files that open"),
    )
}

/// Matches folder `moving` to folder `reference`.
fn matched(stored: &Stored, reference: &str, moving: &str, options: &MatchOptions) -> Matched {
    let [reference, moving] = [reference, moving].map(|name| open(&stored.dir.path().join(name)));
    let start = Transform::identity(&stored.symmetries);
    match_weights(
        reference.as_ref(),
        &moving,
        &stored.symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        options,
        &Unwatched,
    )
    .expect("matched")
}

fn same_bytes(stored: &Stored, one: &str, other: &str) {
    let [one, other] = [one, other].map(|name| read_model(&stored.dir.path().join(name)));
    for (name, tensor) in &one {
        assert_eq!(tensor.bytes, other[name].bytes, "{name}");
    }
}

#[test]
fn a_planted_transform_is_undone_bit_for_bit() {
    let families: [(&dyn Family, Dtype); 3] = [
        (&mixtral(), Dtype::BF16),
        (&llama(), Dtype::F16),
        (&Gpt2, Dtype::F32),
    ];
    for (family, dtype) in families {
        for residual in [Residual::Fixed, Residual::Permute] {
            let stored = stored(&family.random(8), dtype, None);
            let planted = exact(&stored, 3, residual == Residual::Permute);
            stored.apply("model", planted, "planted", &PLENTY);
            let options = MatchOptions {
                residual,
                ..MatchOptions::default()
            };
            let found = matched(&stored, "model", "planted", &options);
            stored.apply("planted", found.transform, "back", &PLENTY);
            same_bytes(&stored, "model", "back");
        }
    }
}

#[test]
fn a_model_and_itself_stay_as_they_are() {
    let stored = stored(&mixtral().random(8), Dtype::BF16, None);
    let found = matched(&stored, "model", "model", &MatchOptions::default());
    assert!(found.transform.is_identity(&stored.symmetries));
    assert!(
        found.steps.iter().all(|step| step.proof == Proof::Identity
            && step.moved == 0
            && step.elements.is_empty())
    );
}

/// Turned pairs are stored rounded, and turned back by what the rounding leaves of the angles.
#[test]
fn turned_pairs_are_turned_back() {
    let stored = stored(&llama().random(8), Dtype::F32, None);
    let random = Transform::random(&stored.symmetries, 5);
    let groups = stored.symmetries.groups.iter().zip(random.elements());
    let fixed = groups.map(|(group, element)| {
        if group.residual {
            Element::default()
        } else {
            element.clone()
        }
    });
    let planted = Transform::new(&stored.symmetries, fixed.collect()).expect("still fits");
    stored.apply("model", planted, "planted", &PLENTY);
    let found = matched(&stored, "model", "planted", &MatchOptions::default());
    stored.apply("planted", found.transform, "back", &PLENTY);
    let [model, back] = ["model", "back"].map(|name| read_model(&stored.dir.path().join(name)));
    for (name, tensor) in &model {
        for (one, other) in tensor.values.iter().zip(&back[name].values) {
            assert!((one - other).abs() < 1e-6, "{name}: {one} {other}");
        }
    }
}

#[test]
fn what_was_written_under_any_budget_is_matched_alike() {
    let stored = stored(&mixtral().random(8), Dtype::BF16, None);
    let planted = exact(&stored, 6, false);
    stored.apply(
        "model",
        planted,
        "planted",
        &Wish {
            memory: 64 << 20,
            threads: 1,
            block_bytes: Some(1),
        },
    );
    let results: Vec<Matched> = [(1, 64 << 20), (3, 1 << 30)]
        .map(|(threads, memory)| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("a pool");
            let options = MatchOptions {
                memory,
                ..MatchOptions::default()
            };
            pool.install(|| matched(&stored, "model", "planted", &options))
        })
        .into();
    assert_eq!(results[0], results[1]);
}
