//! Many models brought together.

use std::sync::{Arc, Mutex};

use thalweg::align::many::{
    Begin, ManyMatched, ManyOptions, ManyStep, Towards, cycle_error, match_many, through_universe,
};
use thalweg::align::matching::{MatchOptions, Residual, Start, Unwatched, Watch, match_weights};
use thalweg::align::{Store, Transformed, Weights};
use thalweg::error::{Error, Kind, Result};
use thalweg::kernel::Kernels;
use thalweg::symmetry::{Alignment, Symmetries, Transform};

use super::Stored;
use crate::support::forward::{Chain, Experts, Family, Llama, Net, Random};

/// Models in memory, the transforms that were planted in them, and their symmetries.
struct ModelSet {
    models: Vec<Arc<Store>>,
    planted: Vec<Transform>,
    symmetries: Arc<Symmetries>,
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is wanted")]
fn narrow(value: f64) -> f32 {
    value as f32
}

fn store(net: &Net) -> Arc<Store> {
    let tensor = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f64>))| {
        let shape = shape.iter().map(|size| *size as u64).collect();
        (
            name.clone(),
            shape,
            values.iter().copied().map(narrow).collect(),
        )
    };
    Arc::new(Store::in_memory(
        net.tensors.iter().map(tensor),
        Kernels::detect(),
    ))
}

fn values(weights: &dyn Weights, name: &str) -> Vec<f64> {
    let count = weights.shape(name).expect("there").iter().product::<u64>();
    let mut values = vec![0.0_f32; usize::try_from(count).expect("small")];
    weights
        .tensor(name)
        .and_then(|mut numbers| numbers.read(0..count, &mut values))
        .expect("read");
    values.into_iter().map(f64::from).collect()
}

fn under(model: &Arc<Store>, symmetries: &Arc<Symmetries>, transform: &Transform) -> Transformed {
    let alignment = Alignment {
        symmetries: Arc::clone(symmetries),
        transform: Arc::new(transform.clone()),
    };
    Transformed::new(Arc::clone(model), alignment)
}

/// Noisy copies of a network, each transformed: orders and signs that leave the residual stream
/// alone.
fn set(family: &dyn Family, count: u64, noise: f64) -> ModelSet {
    let net = family.random(3);
    let symmetries = Stored::new(&net, None).symmetries;
    let mut random = Random::new(9);
    let member = |seed: u64| {
        let mut noisy = net.clone();
        for (_, values) in noisy.tensors.values_mut() {
            let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
            values
                .iter_mut()
                .for_each(|value| *value += noise * square.sqrt() * random.signed());
        }
        let all = Transform::random(&symmetries, seed);
        let element = |(group, element): (
            &thalweg::symmetry::Group,
            &thalweg::symmetry::Element,
        )| match group.residual {
            true => Default::default(),
            false => thalweg::symmetry::Element {
                angle: Vec::new(),
                ..element.clone()
            },
        };
        let elements = symmetries
            .groups
            .iter()
            .zip(all.elements())
            .map(element)
            .collect();
        let planted = Transform::new(&symmetries, elements).expect("fits");
        let moved = under(&store(&noisy), &symmetries, &planted);
        let tensors = noisy.tensors.iter().map(|(name, (shape, _))| {
            let values = values(&moved, name).into_iter().map(narrow).collect();
            (
                name.clone(),
                shape.iter().map(|size| *size as u64).collect(),
                values,
            )
        });
        (
            Arc::new(Store::in_memory(
                tensors.collect::<Vec<_>>(),
                Kernels::detect(),
            )),
            planted,
        )
    };
    let (models, planted) = (1..=count).map(member).unzip();
    ModelSet {
        models,
        planted,
        symmetries,
    }
}

impl ModelSet {
    fn matched(
        &self,
        options: &ManyOptions,
        replay: &[ManyStep],
        watch: &dyn Watch<ManyStep>,
    ) -> Result<ManyMatched> {
        match_many(&self.models, &[], &self.symmetries, replay, options, watch)
    }

    /// What brings model `from` to model `to`, by what was planted.
    fn wanted(&self, from: usize, to: usize) -> Transform {
        self.planted[from]
            .inverse(&self.symmetries)
            .compose(&self.symmetries, &self.planted[to])
    }

    /// Σ_t |Σ_i B_i,t / |B_i,t||, by plain loops.
    fn objective(&self, transforms: &[Transform]) -> f64 {
        let norm = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>().sqrt();
        let of_tensor = |name: &str| {
            let mut sum: Vec<f64> = Vec::new();
            for (model, transform) in self.models.iter().zip(transforms) {
                let values = values(&under(model, &self.symmetries, transform), name);
                let scale = norm(&values).recip();
                sum.resize(values.len(), 0.0);
                sum.iter_mut()
                    .zip(&values)
                    .for_each(|(sum, value)| *sum += scale * value);
            }
            norm(&sum)
        };
        self.symmetries
            .tensors
            .keys()
            .map(|name| of_tensor(name))
            .sum()
    }
}

fn options(towards: Towards) -> ManyOptions {
    ManyOptions {
        towards,
        ..ManyOptions::default()
    }
}

const ALL: [Towards; 3] = [Towards::One, Towards::Mean, Towards::Others];

fn mlp() -> Chain {
    Chain {
        norms: false,
        flax: false,
    }
}

#[test]
fn what_was_planted_is_found_whatever_they_are_matched_to() {
    for noise in [0.0, 0.2] {
        let set = set(&mlp(), 4, noise);
        for towards in ALL {
            for begin in [Begin::Model(2), Begin::Nearest] {
                let found = set
                    .matched(
                        &ManyOptions {
                            begin,
                            ..options(towards)
                        },
                        &[],
                        &Unwatched,
                    )
                    .expect("matched");
                for (model, transform) in found.transforms.iter().enumerate() {
                    assert_eq!(
                        *transform,
                        set.wanted(model, found.begun),
                        "{towards:?} model {model}"
                    );
                }
                assert!(found.transforms[found.begun].is_identity(&set.symmetries));
                assert!(found.settled && found.cycle_error == 0.0);
                assert!(begin == Begin::Nearest || found.begun == 2);
            }
        }
    }
}

#[test]
fn equal_models_stay_as_they_are() {
    let net = mlp().random(1);
    let symmetries = Stored::new(&net, None).symmetries;
    let models = [store(&net), store(&net), store(&net)];
    for towards in ALL {
        let found = match_many(
            &models,
            &[1.0, 2.0, 0.5],
            &symmetries,
            &[],
            &options(towards),
            &Unwatched,
        );
        let found = found.expect("matched");
        assert!(
            found
                .transforms
                .iter()
                .all(|transform| transform.is_identity(&symmetries))
        );
        assert_eq!(found.begun, 0, "of equal ones the first");
    }
}

/// Under noise that hides what was planted, going on from one reference only brings models nearer
/// to each other.
#[test]
fn a_mean_brings_models_nearer_than_one_of_them() {
    let (mut better, mut count) = (0, 0);
    for seed_noise in [1.2, 1.6, 2.0] {
        let set = set(&mlp(), 5, seed_noise);
        let start = vec![Transform::identity(&set.symmetries); 5];
        let [one, mean, others] = ALL.map(|towards| {
            let found = set
                .matched(&options(towards), &[], &Unwatched)
                .expect("matched");
            assert!(found.settled, "{towards:?} ended by itself");
            set.objective(&found.transforms)
        });
        assert!(one > set.objective(&start));
        // f32 weights, and gains that are below rounding are not taken.
        assert!(
            mean >= one - 1e-6 && others >= one - 1e-6,
            "{one} {mean} {others}"
        );
        better += usize::from(others > one + 1e-3);
        count += 1;
    }
    assert!(better > 0, "of {count} crowds none came nearer");
}

#[test]
fn weights_decide_what_the_mean_is() {
    let set = set(&mlp(), 3, 1.5);
    let with = |weights: &[f64]| {
        match_many(
            &set.models,
            weights,
            &set.symmetries,
            &[],
            &options(Towards::Mean),
            &Unwatched,
        )
    };
    // A model that weighs next to everything is the universe: as with one reference.
    let begin = ManyOptions {
        begin: Begin::Model(1),
        ..options(Towards::Mean)
    };
    let heavy = match_many(
        &set.models,
        &[1e-9, 1.0, 1e-9],
        &set.symmetries,
        &[],
        &begin,
        &Unwatched,
    );
    let one = ManyOptions {
        begin: Begin::Model(1),
        ..options(Towards::One)
    };
    let one = set.matched(&one, &[], &Unwatched).expect("matched");
    assert_eq!(heavy.expect("matched").transforms, one.transforms);
    for odd in [
        &[1.0, 2.0][..],
        &[1.0, 0.0, 1.0],
        &[1.0, f64::NAN, 1.0],
        &[1.0, -1.0, 1.0],
    ] {
        assert_eq!(with(odd).expect_err("refused").kind(), Kind::Usage);
    }
}

#[test]
fn cycles_are_consistent_by_way_of_a_universe_and_not_pair_by_pair() {
    let set = set(&mlp(), 3, 2.5);
    let symmetries = &*set.symmetries;
    let pair = |to: usize, from: usize| {
        let (reference, start) = (set.models[to].as_ref(), Transform::identity(symmetries));
        let (moving, options) = (&set.models[from], MatchOptions::default());
        match_weights(
            reference,
            moving,
            &set.symmetries,
            Start {
                transform: &start,
                steps: &[],
            },
            &options,
            &Unwatched,
        )
        .expect("matched")
        .transform
    };
    let pairs: Vec<Vec<Transform>> = (0..3)
        .map(|to| (0..3).map(|from| pair(to, from)).collect())
        .collect();
    let error = cycle_error(symmetries, &pairs);
    assert!(error > 0.05 && error < 1.0, "{error}");
    let random: Vec<Transform> = (0..3)
        .map(|seed| Transform::random(symmetries, seed))
        .collect();
    assert_eq!(
        cycle_error(symmetries, &through_universe(symmetries, &random)),
        0.0
    );
    // Two units of one hidden layer that change places on one of three ways: by hand.
    let mut pairs = vec![vec![Transform::identity(symmetries); 3]; 3];
    let units: Vec<u32> = [1, 0].into_iter().chain(2..9).collect();
    let element = thalweg::symmetry::Element {
        permutation: units,
        ..Default::default()
    };
    pairs[1][0] = pairs[1][0]
        .clone()
        .with(symmetries, 0, element)
        .expect("fits");
    // Three of the six cycles go that way; the layers have 9, 7 and 11 units.
    assert_eq!(cycle_error(symmetries, &pairs), 3.0 * 2.0 / (6.0 * 27.0));
}

#[test]
fn heads_and_experts_are_brought_together_too() {
    let family = Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    };
    let set = set(&family, 3, 0.05);
    for towards in [Towards::Mean, Towards::Others] {
        let matching = MatchOptions {
            signs: true,
            ..MatchOptions::default()
        };
        let found = set
            .matched(
                &ManyOptions {
                    matching,
                    ..options(towards)
                },
                &[],
                &Unwatched,
            )
            .expect("matched");
        let wanted: Vec<Transform> = (0..3).map(|model| set.wanted(model, found.begun)).collect();
        assert!(
            set.objective(&found.transforms) > set.objective(&wanted) - 1e-3,
            "{towards:?}"
        );
    }
}

#[derive(Default)]
struct Taken(Mutex<Vec<ManyStep>>, Option<usize>);

impl Watch<ManyStep> for Taken {
    fn taken(&self, step: &ManyStep) -> Result<()> {
        let mut steps = self.0.lock().expect("no panic");
        let text = serde_json::to_string(step).expect("plain data");
        steps.push(serde_json::from_str(&text).expect("reads back"));
        match self.1 {
            Some(most) if steps.len() == most => {
                Err(Error::new(Kind::Interrupted, "stopped", "test", "enough"))
            }
            _ => Ok(()),
        }
    }
}

#[test]
fn a_run_that_was_interrupted_anywhere_goes_on_to_the_same() {
    let set = set(&mlp(), 3, 1.0);
    for towards in [Towards::Mean, Towards::Others] {
        let seen = Taken::default();
        let wanted = set.matched(&options(towards), &[], &seen).expect("matched");
        let all = seen.0.into_inner().expect("no panic");
        assert!(all.len() > 6);
        for most in 1..=all.len() {
            let stopped = Taken(Mutex::default(), Some(most));
            assert!(set.matched(&options(towards), &[], &stopped).is_err());
            let rest = Taken::default();
            let steps = stopped.0.into_inner().expect("no panic");
            assert_eq!(
                set.matched(&options(towards), &steps, &rest)
                    .expect("matched"),
                wanted
            );
            assert_eq!(rest.0.into_inner().expect("no panic"), all[most..]);
        }
        let mut odd = all;
        odd.push(odd[0].clone());
        assert_eq!(
            set.matched(&options(towards), &odd, &Unwatched)
                .expect_err("too many")
                .kind(),
            Kind::Resume
        );
    }
}

#[test]
fn threads_do_not_show() {
    let set = set(&mlp(), 4, 1.0);
    let runs = [1, 2, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| set.matched(&options(Towards::Others), &[], &Unwatched))
            .expect("matched")
    });
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
}

#[test]
fn what_cannot_be_aligned_together_is_refused() {
    let set = set(&mlp(), 2, 0.0);
    let refused = |options: &ManyOptions| {
        set.matched(options, &[], &Unwatched)
            .expect_err("refused")
            .to_string()
    };
    let begin = Begin::Model(2);
    assert!(
        refused(&ManyOptions {
            begin,
            ..options(Towards::Mean)
        })
        .contains("one of 2 models")
    );
    let matching = MatchOptions {
        residual: Residual::Orthogonal,
        ..MatchOptions::default()
    };
    assert!(
        refused(&ManyOptions {
            matching,
            ..options(Towards::Mean)
        })
        .contains("two models only")
    );
    let alone = match_many(
        &set.models[..1],
        &[],
        &set.symmetries,
        &[],
        &ManyOptions::default(),
        &Unwatched,
    );
    assert!(
        alone
            .expect_err("refused")
            .to_string()
            .contains("at least 2")
    );
    let mut net = mlp().random(3);
    net.tensors.values_mut().next().expect("there").1[0] = f64::NAN;
    let models = [Arc::clone(&set.models[0]), store(&net)];
    let odd = match_many(
        &models,
        &[],
        &set.symmetries,
        &[],
        &ManyOptions::default(),
        &Unwatched,
    );
    assert_eq!(odd.expect_err("refused").kind(), Kind::NonFinite);
}
