//! Groups with groups within: heads of every kind, experts.

use super::*;

const WIDTH: u64 = 64;

fn layer(parts: &[(&str, &[u64])]) -> Vec<(String, Vec<u64>)> {
    parts
        .iter()
        .map(|(name, shape)| (format!("model.layers.0.{name}"), shape.to_vec()))
        .collect()
}

/// Makes a Llama of one layer: 3 groups of 2 queries, heads of 8.
fn llama(spec: &'static str, more: Value, parts: &[(&str, &[u64])]) -> Case {
    let mut config = json!({ "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8, "hidden_size": WIDTH });
    if let (Value::Object(config), Value::Object(more)) = (&mut config, more) {
        config.extend(more);
    }
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![90, WIDTH])];
    let attention: &[(&str, &[u64])] = if spec == "phi3" {
        &[("self_attn.qkv_proj.weight", &[96, WIDTH])]
    } else {
        &[
            ("self_attn.q_proj.weight", &[48, WIDTH]),
            ("self_attn.k_proj.weight", &[24, WIDTH]),
            ("self_attn.v_proj.weight", &[24, WIDTH]),
        ]
    };
    shapes.extend(layer(&[
        ("input_layernorm.weight", &[WIDTH]),
        ("post_attention_layernorm.weight", &[WIDTH]),
    ]));
    shapes.extend(layer(attention));
    shapes.extend(layer(&[("self_attn.o_proj.weight", &[WIDTH, 48])]));
    shapes.extend(layer(parts));
    shapes.push(("model.norm.weight".to_owned(), vec![WIDTH]));
    Case {
        spec,
        config,
        shapes,
    }
}

const GATED: [(&str, &[u64]); 3] = [
    ("mlp.gate_proj.weight", &[70, WIDTH]),
    ("mlp.up_proj.weight", &[70, WIDTH]),
    ("mlp.down_proj.weight", &[WIDTH, 70]),
];

fn plain_llama() -> Case {
    llama("llama", json!({}), &GATED)
}

fn mixtral(units: u64) -> Case {
    let mut parts: Vec<(String, Vec<u64>)> =
        vec![("block_sparse_moe.gate.weight".to_owned(), vec![5, WIDTH])];
    for expert in 0..5 {
        for (name, shape) in [
            ("w1", [units, WIDTH]),
            ("w3", [units, WIDTH]),
            ("w2", [WIDTH, units]),
        ] {
            parts.push((
                format!("block_sparse_moe.experts.{expert}.{name}.weight"),
                shape.to_vec(),
            ));
        }
    }
    let parts: Vec<(&str, &[u64])> = parts
        .iter()
        .map(|(name, shape)| (name.as_str(), shape.as_slice()))
        .collect();
    llama("mixtral", json!({}), &parts)
}

fn qwen3() -> Case {
    let norms: [(&str, &[u64]); 2] = [
        ("self_attn.q_norm.weight", &[8]),
        ("self_attn.k_norm.weight", &[8]),
    ];
    llama("qwen3", json!({}), &[&GATED[..], &norms].concat())
}

fn phi3() -> Case {
    llama(
        "phi3",
        json!({ "partial_rotary_factor": 0.5 }),
        &[
            ("mlp.gate_up_proj.weight", &[140, WIDTH]),
            ("mlp.down_proj.weight", &[WIDTH, 70]),
        ],
    )
}

fn gpt2() -> Case {
    Case::new(
        "gpt2",
        json!({ "n_head": 4, "n_embd": WIDTH }),
        &[
            ("wte.weight", &[90, WIDTH]),
            ("wpe.weight", &[20, WIDTH]),
            ("h.0.ln_1.weight", &[WIDTH]),
            ("h.0.attn.c_attn.weight", &[WIDTH, 3 * WIDTH]),
            ("h.0.attn.c_attn.bias", &[3 * WIDTH]),
            ("h.0.attn.c_proj.weight", &[WIDTH, WIDTH]),
            ("h.0.mlp.c_fc.weight", &[WIDTH, 70]),
            ("h.0.mlp.c_proj.weight", &[70, WIDTH]),
            ("ln_f.weight", &[WIDTH]),
        ],
    )
}

fn bert() -> Case {
    Case::new(
        "bert",
        json!({ "num_attention_heads": 4, "hidden_size": WIDTH }),
        &[
            ("bert.embeddings.word_embeddings.weight", &[90, WIDTH]),
            ("bert.embeddings.position_embeddings.weight", &[20, WIDTH]),
            ("bert.embeddings.LayerNorm.weight", &[WIDTH]),
            (
                "bert.encoder.layer.0.attention.self.query.weight",
                &[WIDTH, WIDTH],
            ),
            (
                "bert.encoder.layer.0.attention.self.key.weight",
                &[WIDTH, WIDTH],
            ),
            (
                "bert.encoder.layer.0.attention.self.value.weight",
                &[WIDTH, WIDTH],
            ),
            (
                "bert.encoder.layer.0.attention.output.dense.weight",
                &[WIDTH, WIDTH],
            ),
            (
                "bert.encoder.layer.0.intermediate.dense.weight",
                &[70, WIDTH],
            ),
            ("bert.encoder.layer.0.output.dense.weight", &[WIDTH, 70]),
            ("cls.predictions.transform.dense.weight", &[WIDTH, WIDTH]),
        ],
    )
}

fn neox() -> Case {
    Case::new(
        "neox",
        json!({ "num_attention_heads": 4, "hidden_size": WIDTH }),
        &[
            ("gpt_neox.embed_in.weight", &[90, WIDTH]),
            ("gpt_neox.layers.0.input_layernorm.weight", &[WIDTH]),
            (
                "gpt_neox.layers.0.attention.query_key_value.weight",
                &[3 * WIDTH, WIDTH],
            ),
            ("gpt_neox.layers.0.attention.dense.weight", &[WIDTH, WIDTH]),
            ("gpt_neox.layers.0.mlp.dense_h_to_4h.weight", &[70, WIDTH]),
            ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", &[WIDTH, 70]),
            ("embed_out.weight", &[90, WIDTH]),
        ],
    )
}

fn all() -> Vec<Case> {
    vec![
        plain_llama(),
        qwen3(),
        phi3(),
        mixtral(40),
        gpt2(),
        bert(),
        neox(),
    ]
}

#[test]
fn planted_orders_and_signs_come_back_in_every_family() {
    for case in all() {
        // Normalised, a bias counts as much as a matrix, but a noisy bias tells units apart poorly.
        for factor in [0.0, if case.spec == "gpt2" { 0.3 } else { 1.0 }] {
            let found = recover(
                &case,
                factor,
                |s| planted(s, 3, false, false),
                &MatchOptions::default(),
            );
            assert_eq!(found.lost(), 0, "{} with noise {factor}", case.spec);
            assert_eq!(found.matched.sweeps, 1, "{}", case.spec);
            for step in &found.matched.steps {
                let name = &found.symmetries.groups[step.root].name;
                assert!(
                    step.moved > 0 && step.after > step.before,
                    "{name} of {}",
                    case.spec
                );
            }
        }
    }
}

#[test]
fn the_residual_stream_comes_back_with_all_else() {
    let options = MatchOptions {
        residual: Residual::Permute,
        ..MatchOptions::default()
    };
    for case in all() {
        let found = recover(&case, 0.5, |s| planted(s, 7, true, false), &options);
        assert_eq!(found.lost(), 0, "{}", case.spec);
    }
}

/// Returns the largest difference between the moved model and the reference, as a share of the
/// reference's largest number.
fn distance(case: &Case, found: &Recovered, factor: f32) -> f32 {
    let original = random(&case.shapes, 5);
    let moving = applied(
        &noised(&original, factor, 8),
        &found.symmetries,
        &found.planted,
    );
    let back = applied(&moving, &found.symmetries, &found.matched.transform);
    let mut most = 0.0_f32;
    for (name, (_, values)) in &original {
        let scale = values
            .iter()
            .fold(0.0_f32, |most, value| most.max(value.abs()));
        let apart = values.iter().zip(&back[name].1).map(|(a, b)| (a - b).abs());
        most = most.max(apart.fold(0.0, f32::max) / scale);
    }
    most
}

#[test]
fn without_noise_the_reference_comes_back() {
    for case in all() {
        let exact = recover(
            &case,
            0.0,
            |s| planted(s, 11, false, false),
            &MatchOptions::default(),
        );
        assert_eq!(distance(&case, &exact, 0.0), 0.0, "{}", case.spec);
        let turned = recover(
            &case,
            0.0,
            |s| planted(s, 12, false, true),
            &MatchOptions::default(),
        );
        let apart = distance(&case, &turned, 0.0);
        assert!(apart < 1e-6, "{}: {apart}", case.spec);
        for step in turned
            .matched
            .steps
            .iter()
            .filter(|step| matches!(step.proof, Proof::Optimal(_)))
        {
            let tensors = Tree::of(&turned.symmetries, step.root)
                .tensors(&turned.symmetries)
                .count() as f64;
            assert!(
                (step.after - tensors).abs() < 1e-6,
                "each tensor counts for one: {} {tensors}",
                step.after
            );
        }
    }
}

#[test]
fn turned_pairs_come_back_through_noise() {
    for case in [plain_llama(), phi3(), neox()] {
        let found = recover(
            &case,
            0.5,
            |s| planted(s, 13, false, true),
            &MatchOptions::default(),
        );
        let both = found
            .planted
            .compose(&found.symmetries, &found.matched.transform);
        let rope = found
            .symmetries
            .groups
            .iter()
            .position(|group| group.key == "rope")
            .expect("there");
        let (group, element) = (&found.symmetries.groups[rope], &both.elements()[rope]);
        for copy in 0..group.copies {
            for pair in 0..group.pair_count() {
                let sign = if element.is_negative(group, copy, pair) {
                    -1.0
                } else {
                    1.0
                };
                let along = sign * element.angle_of(group, copy, pair).cos();
                assert!(
                    along > 0.97,
                    "{}: pair {pair} of head {copy} is off by {along}",
                    case.spec
                );
            }
        }
        for (at, group) in found
            .symmetries
            .groups
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != rope)
        {
            assert!(
                both.elements()[at].is_identity(group.units),
                "{} of {}",
                group.name,
                case.spec
            );
        }
    }
}

#[test]
fn equal_models_stay_as_they_are_in_every_family() {
    for case in all() {
        for factor in [0.0, 0.02] {
            let found = recover(&case, factor, Transform::identity, &MatchOptions::default());
            assert!(
                found.matched.transform.is_identity(&found.symmetries),
                "{} with noise {factor}",
                case.spec
            );
            for step in &found.matched.steps {
                let name = &found.symmetries.groups[step.root].name;
                assert_eq!(
                    (step.proof, step.moved),
                    (Proof::Identity, 0),
                    "{name} of {}, noise {factor}",
                    case.spec
                );
                assert!(step.elements.is_empty() && step.before == step.after);
            }
        }
    }
}

#[test]
fn flips_stay_where_signs_are_off() {
    for case in [qwen3(), gpt2()] {
        let options = MatchOptions {
            signs: false,
            ..MatchOptions::default()
        };
        let found = recover(&case, 0.0, |s| planted(s, 3, false, false), &options);
        let signs = found
            .matched
            .transform
            .elements()
            .iter()
            .all(|element| element.negative.is_empty());
        assert!(signs && found.lost() > 0, "{}", case.spec);
    }
}

/// Solves the experts of one layer with this many operations at hand.
fn experts(
    case: &Case,
    factor: f32,
    afforded: u64,
) -> (Vec<Transform>, f64, Transform, Arc<Symmetries>) {
    let original = random(&case.shapes, 5);
    let symmetries = symmetries(case.spec, &original, &case.config);
    let planted = planted(&symmetries, 3, false, false);
    let (reference, moving) = (
        store(&original),
        store(&applied(
            &noised(&original, factor, 8),
            &symmetries,
            &planted,
        )),
    );
    let options = MatchOptions::default();
    let problem = Problem::new(
        reference.as_ref(),
        &moving,
        &symmetries,
        &options,
        &Unwatched,
    );
    let tree = Tree::of(
        &symmetries,
        symmetries.group("layers.0.experts").expect("there"),
    );
    let tensors: Vec<&str> = tree.tensors(&symmetries).collect();
    let start = Transform::identity(&symmetries);
    let found = super::super::experts::candidates(&problem, &tree, &tensors, &start, afforded)
        .expect("solved");
    (
        found.transforms,
        found.optimal_within,
        planted,
        Arc::clone(&symmetries),
    )
}

#[test]
fn experts_are_told_apart_by_samples_of_their_units() {
    let (all, within, planted, symmetries) = experts(&mixtral(100), 1.0, u64::MAX);
    let (some, unknown, _, _) = experts(&mixtral(100), 1.0, 0);
    assert!(
        within.is_finite() && unknown.is_infinite(),
        "only what was solved is proved"
    );
    assert_eq!(all[0], some[0]);
    let both = planted.compose(&symmetries, &all[0]);
    for name in ["layers.0.experts", "layers.0.expert"] {
        let group = symmetries.group(name).expect("there");
        assert!(
            both.elements()[group].is_identity(symmetries.groups[group].units),
            "{name}"
        );
    }
}
