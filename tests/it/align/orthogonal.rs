//! Dense maps of the residual stream that are found from weights.

use std::path::Path;
use std::sync::{Arc, Mutex};

use thalweg::align::matching::{
    MatchOptions, Matched, Proof, Residual, Start, Step, Unwatched, Watch, match_weights,
};
use thalweg::align::{Store, Transformed, Weights};
use thalweg::checkpoint::{Checkpoint, SourceOptions};
use thalweg::error::{Error, Kind, Result};
use thalweg::kernel::Kernels;
use thalweg::symmetry::{Alignment, Element, Symmetries, Transform};

use super::Stored;
use super::function::distance;
use crate::support::forward::{Family, Gpt2, Llama, Net, Random};
use crate::support::whole::PLENTY;

fn llama() -> Llama {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
}

/// Two models on disk whose norms are folded while they are read.
struct Pair {
    net: Net,
    other: Net,
    stored: Stored,
    reference: Transformed,
    moving: Arc<Store>,
    symmetries: Arc<Symmetries>,
}

fn store(folder: &Path) -> Arc<Store> {
    let model = Checkpoint::open(folder).expect("opens");
    Arc::new(Store::open(&model, &SourceOptions::default(), Kernels::detect()).expect("opens"))
}

fn folded(folder: &Path) -> Arc<Symmetries> {
    let model = Checkpoint::open(folder).expect("opens");
    let symmetries = Symmetries::of(&model, None).expect("a spec that fits");
    Arc::new(symmetries.folded(&model).expect("norms that may be folded"))
}

impl Pair {
    /// `net`, and what `transform` makes of it, plus `noise` times the deviation of each tensor.
    fn planted(net: Net, transform: impl FnOnce(&Symmetries) -> Transform, noise: f64) -> Self {
        let stored = Stored::new(&net, None)
            .folded()
            .expect("norms that may be folded");
        stored.apply("model", transform(&stored.symmetries), "planted", &PLENTY);
        let mut other = net.read(&stored.dir.path().join("planted"));
        other.config["tie_word_embeddings"] = false.into();
        let mut random = Random::new(77);
        for (name, (_, values)) in &mut other.tensors {
            let square = values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64;
            let factor = if name.contains("norm") {
                0.0
            } else {
                noise * square.sqrt()
            };
            values
                .iter_mut()
                .for_each(|value| *value += factor * random.signed());
        }
        other.write(&stored.dir.path().join("other"));
        let path = stored.dir.path().to_owned();
        let ours = folded(&path.join("model"));
        let identity = Arc::new(Transform::identity(&ours));
        let reference = Transformed::new(
            store(&path.join("model")),
            Alignment {
                symmetries: ours,
                transform: identity,
            },
        );
        let symmetries = folded(&path.join("other"));
        Self {
            net,
            other,
            reference,
            moving: store(&path.join("other")),
            symmetries,
            stored,
        }
    }

    fn matched(
        &self,
        options: &MatchOptions,
        replay: &[Step],
        watch: &dyn Watch,
    ) -> Result<Matched> {
        let start = Transform::identity(&self.symmetries);
        match_weights(
            &self.reference,
            &self.moving,
            &self.symmetries,
            Start {
                transform: &start,
                steps: replay,
            },
            options,
            watch,
        )
    }

    /// Σ cos over all tensors on which something acts, by plain loops over what the views give.
    fn objective(&self, transform: &Transform) -> f64 {
        let alignment = Alignment {
            symmetries: Arc::clone(&self.symmetries),
            transform: Arc::new(transform.clone()),
        };
        let moved = Transformed::new(Arc::clone(&self.moving), alignment);
        let read = |weights: &dyn Weights, name: &str| {
            let count = weights.shape(name).expect("there").iter().product::<u64>();
            let mut values = vec![0.0_f32; usize::try_from(count).expect("small")];
            weights
                .tensor(name)
                .and_then(|mut numbers| numbers.read(0..count, &mut values))
                .expect("read");
            values
        };
        let acted = self
            .symmetries
            .tensors
            .iter()
            .filter(|(_, tensor)| tensor.axes.iter().any(|axis| !axis.is_fixed()));
        let cosine = |name: &str| {
            let (a, b) = (read(&self.reference, name), read(&moved, name));
            let dot = |x: &[f32], y: &[f32]| {
                x.iter()
                    .zip(y)
                    .map(|(x, y)| f64::from(*x) * f64::from(*y))
                    .sum::<f64>()
            };
            dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
        };
        acted.map(|(name, _)| cosine(name)).sum()
    }
}

fn options() -> MatchOptions {
    MatchOptions {
        residual: Residual::Orthogonal,
        sweeps: 60,
        ..MatchOptions::default()
    }
}

/// Random elements of these kinds of groups, nothing of the others.
fn only(symmetries: &Symmetries, seed: u64, keys: &[&str]) -> Transform {
    let random = Transform::random(symmetries, seed);
    let element = |(group, element): (&thalweg::symmetry::Group, &Element)| {
        if keys.contains(&group.key.as_str()) {
            element.clone()
        } else {
            Element::default()
        }
    };
    let elements = symmetries
        .groups
        .iter()
        .zip(random.elements())
        .map(element)
        .collect();
    Transform::new(symmetries, elements).expect("fits")
}

#[test]
fn a_planted_map_and_orders_are_found_and_give_the_model_back() {
    for tied in [false, true] {
        let family = Llama { tied, ..llama() };
        let pair = Pair::planted(
            family.random(5),
            |symmetries| only(symmetries, 3, &["residual", "mlp"]),
            0.0,
        );
        let found = pair.matched(&options(), &[], &Unwatched).expect("matched");
        // Sums in f32 over a few hundred products.
        let whole = pair
            .symmetries
            .tensors
            .values()
            .filter(|tensor| tensor.axes.iter().any(|axis| !axis.is_fixed()));
        let objective = pair.objective(&found.transform);
        assert!(
            (objective - whole.count() as f64).abs() < 1e-5,
            "{objective}"
        );
        assert!(
            found
                .steps
                .iter()
                .any(|step| step.moved == 12 && matches!(step.proof, Proof::Optimal(_)))
        );
        let other = Stored::new(&pair.other, None)
            .folded()
            .expect("norms of ones");
        other.apply("model", found.transform, "back", &PLENTY);
        let back = pair.net.read(&other.dir.path().join("back"));
        assert!(
            distance(&family, &pair.net, &back) < 1e-10,
            "the function is kept whatever was found"
        );
        pair.stored.apply(
            "model",
            Transform::identity(&pair.stored.symmetries),
            "folded",
            &PLENTY,
        );
        let wanted = pair.net.read(&pair.stored.dir.path().join("folded"));
        for (name, (_, values)) in &wanted.tensors {
            let far = values
                .iter()
                .zip(back.get(name))
                .map(|(x, y)| (x - y).abs())
                .fold(0.0, f64::max);
            assert!(far < 1e-4, "{name}: {far:e}");
        }
    }
}

#[test]
fn under_noise_the_objective_rises_with_every_step_and_beats_every_other_map() {
    let plant = |symmetries: &Symmetries| only(symmetries, 3, &["residual", "mlp"]);
    let pair = Pair::planted(llama().random(5), plant, 0.7);
    let seen = Taken::default();
    let found = pair.matched(&options(), &[], &seen).expect("matched");
    let objective = pair.objective(&found.transform);
    let planted = plant(&pair.symmetries).inverse(&pair.symmetries);
    assert!(
        objective > pair.objective(&planted) - 1e-6,
        "{objective} {}",
        pair.objective(&planted)
    );
    for seed in 0..8 {
        assert!(objective > pair.objective(&only(&pair.symmetries, seed, &["residual"])));
        // From here a random turn of the stream can only lose.
        let element = found.transform.clone().compose(
            &pair.symmetries,
            &only(&pair.symmetries, seed, &["residual"]),
        );
        assert!(objective > pair.objective(&element));
    }
    let steps = seen.0.lock().expect("no panic").clone();
    assert!(
        steps.iter().all(|step| step.after >= step.before),
        "{steps:?}"
    );
    assert!(
        steps.iter().filter(|step| step.units == 12).count() > 2,
        "the map was solved again"
    );
}

#[test]
fn equal_models_stay_as_they_are() {
    let pair = Pair::planted(llama().random(5), Transform::identity, 0.0);
    let found = pair.matched(&options(), &[], &Unwatched).expect("matched");
    assert!(found.transform.is_identity(&pair.symmetries));
    assert!(found.steps.iter().all(|step| step.elements.is_empty()));
    let stream = found
        .steps
        .iter()
        .find(|step| pair.symmetries.groups[step.root].residual)
        .expect("solved");
    assert_eq!(stream.proof, Proof::Identity);
}

#[test]
fn a_map_that_is_given_is_held() {
    let plant = |symmetries: &Symmetries| only(symmetries, 3, &["residual", "mlp"]);
    let pair = Pair::planted(llama().random(5), plant, 0.0);
    let inverse = plant(&pair.symmetries).inverse(&pair.symmetries);
    let at = pair.symmetries.group("residual").expect("there");
    let start = Transform::identity(&pair.symmetries)
        .with(&pair.symmetries, at, inverse.elements()[at].clone())
        .expect("fits");
    let options = MatchOptions {
        residual: Residual::Map,
        ..MatchOptions::default()
    };
    let found = match_weights(
        &pair.reference,
        &pair.moving,
        &pair.symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        &options,
        &Unwatched,
    );
    let found = found.expect("matched").transform;
    for (group, (element, wanted)) in pair
        .symmetries
        .groups
        .iter()
        .zip(found.elements().iter().zip(inverse.elements()))
    {
        assert_eq!(element, wanted, "{}", group.name);
    }
}

/// Keeps the steps, ends after so many.
#[derive(Default)]
struct Taken(Mutex<Vec<Step>>, Option<usize>);

impl Watch for Taken {
    fn taken(&self, step: &Step) -> Result<()> {
        let mut steps = self.0.lock().expect("no panic");
        // As a journal has it.
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
fn a_run_that_was_interrupted_anywhere_goes_on_to_the_same_bits() {
    let plant = |symmetries: &Symmetries| only(symmetries, 3, &["residual", "mlp"]);
    let pair = Pair::planted(llama().random(5), plant, 0.5);
    let seen = Taken::default();
    let wanted = pair.matched(&options(), &[], &seen).expect("matched");
    let all = seen.0.into_inner().expect("no panic");
    for most in 1..=all.len() {
        let stopped = Taken(Mutex::default(), Some(most));
        assert_eq!(
            pair.matched(&options(), &[], &stopped)
                .expect_err("stopped")
                .kind(),
            Kind::Interrupted
        );
        let steps = stopped.0.into_inner().expect("no panic");
        assert_eq!(steps, all[..most]);
        let rest = Taken::default();
        let again = pair.matched(&options(), &steps, &rest).expect("matched");
        assert_eq!(again, wanted, "after {most} steps");
        assert_eq!(rest.0.into_inner().expect("no panic"), all[most..]);
    }
    let mut odd = all.clone();
    odd.iter_mut()
        .filter(|step| step.units == 12)
        .for_each(|step| step.after += 0.5);
    assert_eq!(
        pair.matched(&options(), &odd, &Unwatched)
            .expect_err("of another run")
            .kind(),
        Kind::Resume
    );
    odd.clone_from(&all);
    odd.swap(0, 1);
    assert_eq!(
        pair.matched(&options(), &odd, &Unwatched)
            .expect_err("of another run")
            .kind(),
        Kind::Resume
    );
}

#[test]
fn threads_and_memory_do_not_show() {
    let plant = |symmetries: &Symmetries| only(symmetries, 3, &["residual", "mlp"]);
    let pair = Pair::planted(llama().random(5), plant, 0.5);
    let runs = [(1, 1 << 30), (2, 64 << 20), (3, 48 << 20)].map(|(threads, memory)| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            pair.matched(
                &MatchOptions {
                    memory,
                    ..options()
                },
                &[],
                &Unwatched,
            )
        })
        .expect("matched")
    });
    assert_eq!(runs[0], runs[1]);
    assert_eq!(runs[0], runs[2]);
    let error = pair
        .matched(
            &MatchOptions {
                memory: 1 << 10,
                ..options()
            },
            &[],
            &Unwatched,
        )
        .expect_err("too small");
    assert_eq!(error.kind(), Kind::Budget);
}

#[test]
fn models_whose_norms_are_not_folded_have_no_map() {
    let stored = Stored::new(&Gpt2.random(1), None);
    let store = store(&stored.dir.path().join("model"));
    let start = Transform::identity(&stored.symmetries);
    for residual in [Residual::Orthogonal, Residual::Map] {
        let options = MatchOptions {
            residual,
            ..MatchOptions::default()
        };
        let found = match_weights(
            store.as_ref(),
            &store,
            &stored.symmetries,
            Start {
                transform: &start,
                steps: &[],
            },
            &options,
            &Unwatched,
        );
        let error = found.expect_err("refused");
        assert!(
            error.to_string().contains("norms are not folded"),
            "{error}"
        );
    }
}
