//! Small merges of anything by anything, against their definitions.

use proptest::prelude::*;
use safetensors::Dtype;

use super::{Choice, DTYPES, FAMILY, OTHERS, Trial};
use crate::merge::Place;
use crate::support::reference::selecting::{Keys, Part, RescaleBy, SignTie, Ties};
use crate::support::reference::{Granularity, Model, Random, Tensor};

/// How the elements of a model are made.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// Normal numbers.
    Smooth,
    /// A few steps from the base, of either sign.
    Steps,
    /// One step or none.
    Constant,
}

/// Models of two tensors, the base first.
fn models(seed: u64, dtypes: &[Dtype], shape: &[usize], values: Values) -> Vec<Model> {
    let mut random = Random::new(seed);
    let n = shape.iter().product();
    let base: Vec<f64> = (0..n)
        .map(|_| (8.0 * random.uniform()).floor() / 4.0)
        .collect();
    let mut step = move |at: usize| match values {
        Values::Smooth => random.gaussian(1)[0] / 8.0,
        Values::Steps => ((9.0 * random.uniform()).floor() - 4.0) / 8.0,
        Values::Constant => [0.25, -0.25, 0.0][(at + usize::from(random.uniform() < 0.5)) % 3],
    };
    let mut model = |(number, dtype): (usize, &Dtype)| {
        let mut tensor = || {
            let moved = |(at, b): (usize, &f64)| if number == 0 { *b } else { b + step(at) };
            let values: Vec<f64> = base.iter().enumerate().map(moved).collect();
            Tensor::rounded(*dtype, shape, &values)
        };
        Model::from([("a".to_owned(), tensor()), ("b".to_owned(), tensor())])
    };
    dtypes.iter().enumerate().map(&mut model).collect()
}

fn shapes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        1 => Just(vec![]),
        4 => (1..300usize).prop_map(|n| vec![n]),
        6 => (1..20usize, 1..80usize).prop_map(|(rows, columns)| vec![rows, columns]),
        2 => (1..5usize, 1..5usize, 1..40usize).prop_map(|(a, b, c)| vec![a, b, c]),
    ]
}

fn part() -> impl Strategy<Value = Part> {
    let weight = prop_oneof![
        4 => prop::sample::select(vec![1.0, 0.5, 0.3, 0.2, 0.1, -0.5, -1.0, 0.0]),
        1 => -2.0..2.0f64,
    ];
    let density = prop_oneof![
        1 => prop::sample::select(vec![0.0, 1.0, 0.5, 0.25, 0.1]),
        3 => 0.001..0.999f64,
    ];
    let gamma = prop_oneof![Just(0.0), Just(0.01), 0.0..1.0f64];
    (weight, density, 0.01..0.99f64, gamma).prop_map(|(weight, density, share, gamma)| Part {
        weight,
        density,
        epsilon: share * f64::min(density, 1.0 - density),
        gamma,
    })
}

fn keys() -> impl Strategy<Value = Keys> {
    let granularity = prop::sample::select(vec![
        Granularity::Tensor,
        Granularity::Row,
        Granularity::Model,
    ]);
    let rescale_by = prop::sample::select(vec![
        RescaleBy::Norm,
        RescaleBy::Density,
        RescaleBy::Probability,
    ]);
    let ties = prop::sample::select(vec![Ties::Spread, Ties::First]);
    let sign_tie = prop::sample::select(vec![SignTie::Plus, SignTie::Zero]);
    let seed = prop_oneof![Just(0), 0..1u64 << 53];
    (granularity, rescale_by, ties, sign_tie, seed).prop_map(
        |(granularity, rescale_by, ties, sign_tie, seed)| Keys {
            seed,
            // Over the model nobody knows which is the first.
            ties: if granularity == Granularity::Model {
                Ties::Spread
            } else {
                ties
            },
            sign_tie,
            rescale_by,
            granularity,
        },
    )
}

fn choices() -> impl Strategy<Value = Choice> {
    let names: Vec<&'static str> = FAMILY.into_iter().chain(OTHERS).collect();
    let switch = || prop::option::of(any::<bool>());
    let parts = prop::collection::vec(part(), 1..=5);
    let numbers = (0.0..=1.0f64, 0.0..0.5f64, -2.0..2.0f64);
    (
        prop::sample::select(names),
        parts,
        switch(),
        switch(),
        numbers,
    )
        .prop_map(
            |(name, parts, normalize, rescale, (share, epsilon, lambda))| {
                let choice = Choice::of(name, &parts);
                match name {
                    "sce" => choice
                        .with("select_topk", share)
                        .with("weight_floor", epsilon),
                    "ram" => choice.with("epsilon", epsilon),
                    "ramplus_tl" => choice
                        .with("epsilon", epsilon)
                        .with("r", share)
                        .with("alpha", lambda.abs()),
                    "consensus_ta" | "consensus_ties" => choice
                        .with("lambda", lambda)
                        .with("tall_lambda", share)
                        .with("agree", (3.0 * share).floor()),
                    _ => Choice {
                        normalize,
                        rescale,
                        ..choice.with("lambda", lambda)
                    },
                }
            },
        )
}

fn trials() -> impl Strategy<Value = Trial> {
    let values = prop::sample::select(vec![Values::Smooth, Values::Steps, Values::Constant]);
    let dtypes = prop::sample::select(DTYPES.to_vec());
    let base = prop::option::of(0..6usize);
    (
        choices(),
        keys(),
        shapes(),
        dtypes,
        values,
        any::<u64>(),
        base,
    )
        .prop_map(|(choice, keys, shape, dtypes, values, seed, base)| {
            let count = choice.parts.len();
            let models = models(seed, &dtypes[..=count], &shape, values);
            Trial {
                base: base.map(|at| at.min(count)),
                ..Trial::new(models, choice).by(keys)
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_is_merged_as_defined(trial in trials(), level in 0..8usize) {
        let place = Place::in_memory();
        let got = place.merged(&trial.run(&place).at_level(level));
        trial.compare(&got);
    }
}
