//! Small nets on which every element of every group is tried, by plain loops.

use super::*;

/// Returns all orders of `0..n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let longer = |order: Vec<usize>| {
        (0..n).map(move |at| {
            let mut order = order.clone();
            order.insert(at, n - 1);
            order
        })
    };
    orders(n - 1).into_iter().flat_map(longer).collect()
}

/// Returns all choices of signs.
fn signs(n: usize) -> Vec<Vec<f64>> {
    (0..1_usize << n)
        .map(|bits| {
            (0..n)
                .map(|at| if bits >> at & 1 == 1 { -1.0 } else { 1.0 })
                .collect()
        })
        .collect()
}

/// One matrix of a small net, and the cosine of two of them.
struct Matrices {
    reference: Tensors,
    moving: Tensors,
}

impl Matrices {
    /// Computes Σ a[i, j] b[rows(i), columns(j)], divided by both norms.
    fn cosine(
        &self,
        name: &str,
        row: &dyn Fn(usize) -> (usize, f64),
        column: &dyn Fn(usize) -> (usize, f64),
    ) -> f64 {
        let ((shape, a), b) = (&self.reference[name], &self.moving[name].1);
        let columns = usize::try_from(shape.get(1).copied().unwrap_or(1)).expect("small");
        let norm = |values: &[f32]| {
            values
                .iter()
                .map(|value| f64::from(*value).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let mut sum = 0.0;
        for (at, value) in a.iter().enumerate() {
            let ((i, s), (j, t)) = (row(at / columns), column(at % columns));
            sum += f64::from(*value) * s * t * f64::from(b[i * columns + j]);
        }
        sum / (norm(a) * norm(b))
    }
}

fn still(at: usize) -> (usize, f64) {
    (at, 1.0)
}

fn two(case: &Case, seed: u64) -> Matrices {
    Matrices {
        reference: random(&case.shapes, seed),
        moving: random(&case.shapes, seed + 100),
    }
}

fn matched(case: &Case, pair: &Matrices, options: &MatchOptions) -> (Matched, Arc<Symmetries>) {
    let symmetries = symmetries(case.spec, &pair.reference, &case.config);
    let start = Transform::identity(&symmetries);
    let (reference, moving) = (store(&pair.reference), store(&pair.moving));
    let found = match_weights(
        reference.as_ref(),
        &moving,
        &symmetries,
        Start {
            transform: &start,
            steps: &[],
        },
        options,
        &Unwatched,
    );
    (found.expect("matched"), symmetries)
}

#[test]
fn one_hidden_layer_is_matched_best() {
    let case = Case::mlp(&[3, 6, 2]);
    for seed in 0..20 {
        let pair = two(&case, seed);
        let value = |order: &[usize]| {
            let moved = |at: usize| (order[at], 1.0);
            pair.cosine("fc0.weight", &moved, &still)
                + pair.cosine("fc0.bias", &moved, &still)
                + pair.cosine("fc1.weight", &still, &moved)
        };
        let best = orders(6)
            .iter()
            .map(|order| value(order))
            .fold(f64::MIN, f64::max);
        let (found, _) = matched(&case, &pair, &MatchOptions::default());
        assert!(
            (found.steps[0].after - best).abs() < 1e-6,
            "{} {best}",
            found.steps[0].after
        );
        let order: Vec<usize> = found.transform.elements()[0]
            .permutation
            .iter()
            .map(|unit| *unit as usize)
            .collect();
        assert!((value(&order) - best).abs() < 1e-6);
    }
}

#[test]
fn two_hidden_layers_end_where_neither_gains_alone() {
    let case = Case::mlp(&[3, 4, 4, 2]);
    let mut global = 0;
    for seed in 0..20 {
        let pair = two(&case, seed);
        let value = |first: &[usize], second: &[usize]| {
            let (one, other) = (|at: usize| (first[at], 1.0), |at: usize| (second[at], 1.0));
            pair.cosine("fc0.weight", &one, &still)
                + pair.cosine("fc0.bias", &one, &still)
                + pair.cosine("fc1.weight", &other, &one)
                + pair.cosine("fc1.bias", &other, &still)
                + pair.cosine("fc2.weight", &still, &other)
        };
        let (found, _) = matched(
            &case,
            &pair,
            &MatchOptions {
                seed,
                ..MatchOptions::default()
            },
        );
        let order = |group: usize| -> Vec<usize> {
            let permutation = &found.transform.elements()[group].permutation;
            (0..4)
                .map(|at| permutation.get(at).map_or(at, |unit| *unit as usize))
                .collect()
        };
        let (first, second) = (order(0), order(1));
        let here = value(&first, &second);
        for other in orders(4) {
            assert!(
                value(&other, &second) <= here + 1e-6 && value(&first, &other) <= here + 1e-6,
                "seed {seed}"
            );
        }
        let all = orders(4);
        let best = all
            .iter()
            .flat_map(|one| all.iter().map(|two| value(one, two)))
            .fold(f64::MIN, f64::max);
        assert!(here <= best + 1e-9);
        global += usize::from(here > best - 1e-6);
    }
    assert!(global >= 5, "{global} of 20 are the best of all");
}

/// Makes one layer of a Llama with queries and keys normalised: 2 key heads of 2, 2 queries each, 4
/// units.
fn tiny() -> Case {
    let config = json!({ "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 2, "hidden_size": 6 });
    Case::new(
        "qwen3",
        config,
        &[
            ("model.embed_tokens.weight", &[7, 6]),
            ("model.layers.0.input_layernorm.weight", &[6]),
            ("model.layers.0.self_attn.q_proj.weight", &[8, 6]),
            ("model.layers.0.self_attn.k_proj.weight", &[4, 6]),
            ("model.layers.0.self_attn.v_proj.weight", &[4, 6]),
            ("model.layers.0.self_attn.o_proj.weight", &[6, 8]),
            ("model.layers.0.self_attn.q_norm.weight", &[2]),
            ("model.layers.0.self_attn.k_norm.weight", &[2]),
            ("model.layers.0.post_attention_layernorm.weight", &[6]),
            ("model.layers.0.mlp.gate_proj.weight", &[4, 6]),
            ("model.layers.0.mlp.up_proj.weight", &[4, 6]),
            ("model.layers.0.mlp.down_proj.weight", &[6, 4]),
            ("model.norm.weight", &[6]),
            ("lm_head.weight", &[7, 6]),
        ],
    )
}

#[test]
fn signed_units_are_matched_best() {
    for seed in 0..6 {
        let pair = two(&tiny(), seed);
        let part = |name: &str| format!("model.layers.0.mlp.{name}.weight");
        let mut best = f64::MIN;
        for (order, signs) in orders(4)
            .iter()
            .flat_map(|order| signs(4).into_iter().map(move |signs| (order, signs)))
        {
            let (plain, signed) = (
                |at: usize| (order[at], 1.0),
                |at: usize| (order[at], signs[at]),
            );
            let value = pair.cosine(&part("gate_proj"), &plain, &still)
                + pair.cosine(&part("up_proj"), &signed, &still)
                + pair.cosine(&part("down_proj"), &still, &signed);
            best = best.max(value);
        }
        let (found, symmetries) = matched(&tiny(), &pair, &MatchOptions::default());
        let mlp = symmetries.group("layers.0.mlp").expect("there");
        let step = found
            .steps
            .iter()
            .find(|step| step.root == mlp)
            .expect("solved");
        assert!((step.after - best).abs() < 1e-6, "{} {best}", step.after);
    }
}

/// Returns the largest score of one pair of key heads.
fn best_pair(pair: &Matrices, (one, other): (usize, usize)) -> f64 {
    let part = |name: &str| format!("model.layers.0.self_attn.{name}_proj.weight");
    let only =
        |head: usize, of: usize, mapped: (usize, f64)| if head == of { mapped } else { (0, 0.0) };
    let mut best = f64::MIN;
    for queries in orders(2) {
        for flip in [1.0, -1.0] {
            for (order, signs) in orders(2)
                .iter()
                .flat_map(|order| signs(2).into_iter().map(move |s| (order, s)))
            {
                let value =
                    |at: usize| only(at / 2, one, (other * 2 + order[at % 2], signs[at % 2]));
                let key = |at: usize| only(at / 2, one, (other * 2 + at % 2, flip));
                let query = |at: usize| {
                    only(
                        at / 4,
                        one,
                        (other * 4 + queries[at / 2 % 2] * 2 + at % 2, flip),
                    )
                };
                let out = |at: usize| {
                    let to = other * 4 + queries[at / 2 % 2] * 2 + order[at % 2];
                    only(at / 4, one, (to, signs[at % 2]))
                };
                let sum = pair.cosine(&part("q"), &query, &still)
                    + pair.cosine(&part("k"), &key, &still)
                    + pair.cosine(&part("v"), &value, &still)
                    + pair.cosine(&part("o"), &still, &out);
                best = best.max(sum);
            }
        }
    }
    best
}

#[test]
fn heads_are_matched_best_where_they_have_something_in_common() {
    for seed in 0..6 {
        let mut pair = two(&tiny(), seed);
        let symmetries = symmetries("qwen3", &pair.reference, &tiny().config);
        pair.moving = noised(&pair.reference, 0.5, seed + 7);
        pair.moving = applied(
            &pair.moving,
            &symmetries,
            &planted(&symmetries, seed, false, false),
        );
        let [same, crossed] = [[(0, 0), (1, 1)], [(0, 1), (1, 0)]].map(|pairs| {
            pairs
                .iter()
                .map(|heads| best_pair(&pair, *heads))
                .sum::<f64>()
        });
        let (found, symmetries) = matched(&tiny(), &pair, &MatchOptions::default());
        let kv = symmetries.group("layers.0.kv").expect("there");
        let step = found
            .steps
            .iter()
            .find(|step| step.root == kv)
            .expect("solved");
        assert!(
            (step.after - same.max(crossed)).abs() < 1e-6,
            "{} {same} {crossed}",
            step.after
        );
    }
}

#[test]
fn unrelated_heads_are_matched_best() {
    for seed in 0..10 {
        let pair = two(&tiny(), seed);
        let [same, crossed] = [[(0, 0), (1, 1)], [(0, 1), (1, 0)]].map(|pairs| {
            pairs
                .iter()
                .map(|heads| best_pair(&pair, *heads))
                .sum::<f64>()
        });
        let (found, symmetries) = matched(&tiny(), &pair, &MatchOptions::default());
        let kv = symmetries.group("layers.0.kv").expect("there");
        let step = found
            .steps
            .iter()
            .find(|step| step.root == kv)
            .expect("solved");
        assert!(
            (step.after - same.max(crossed)).abs() < 1e-6,
            "{} {same} {crossed}",
            step.after
        );
    }
}
