//! Groups without groups within: MLPs, ResNets, gated MLPs, the residual stream.

use super::*;

fn gated(units: u64) -> Case {
    let config = json!({ "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 24, "head_dim": 2 });
    Case::new(
        "llama",
        config,
        &[
            ("model.embed_tokens.weight", &[60, 24]),
            ("model.layers.0.input_layernorm.weight", &[24]),
            ("model.layers.0.self_attn.q_proj.weight", &[2, 24]),
            ("model.layers.0.self_attn.k_proj.weight", &[2, 24]),
            ("model.layers.0.self_attn.v_proj.weight", &[2, 24]),
            ("model.layers.0.self_attn.o_proj.weight", &[24, 2]),
            ("model.layers.0.post_attention_layernorm.weight", &[24]),
            ("model.layers.0.mlp.gate_proj.weight", &[units, 24]),
            ("model.layers.0.mlp.up_proj.weight", &[units, 24]),
            ("model.layers.0.mlp.down_proj.weight", &[24, units]),
            ("model.norm.weight", &[24]),
            ("lm_head.weight", &[60, 24]),
        ],
    )
}

fn resnet() -> Case {
    let mut shapes: Vec<(String, Vec<u64>)> = vec![("conv1.weight".into(), vec![12, 3, 3, 3])];
    let norm = |name: &str, units: u64| {
        ["weight", "bias"]
            .map(|part| (format!("{name}.{part}"), vec![units]))
            .to_vec()
    };
    shapes.extend(norm("bn1", 12));
    let mut before = 12;
    for (stage, width) in [(1, 12), (2, 20)] {
        for block in 0..2 {
            let name = format!("layer{stage}.{block}");
            shapes.push((format!("{name}.conv1.weight"), vec![width, before, 3, 3]));
            shapes.extend(norm(&format!("{name}.bn1"), width));
            shapes.push((format!("{name}.conv2.weight"), vec![width, width, 3, 3]));
            shapes.extend(norm(&format!("{name}.bn2"), width));
            if before != width {
                shapes.push((
                    format!("{name}.shortcut.0.weight"),
                    vec![width, before, 1, 1],
                ));
                shapes.extend(norm(&format!("{name}.shortcut.1"), width));
            }
            before = width;
        }
    }
    shapes.extend([
        ("linear.weight".into(), vec![10, 20]),
        ("linear.bias".into(), vec![10]),
    ]);
    Case {
        spec: "resnet20",
        config: json!({}),
        shapes,
    }
}

#[test]
fn an_mlp_that_was_shuffled_comes_back() {
    // Normalised, a bias counts as much as a matrix, but a noisy bias tells units apart poorly.
    for (factor, cost) in [
        (0.0, Cost::Normalised),
        (0.2, Cost::Normalised),
        (0.0, Cost::Raw),
        (0.4, Cost::Raw),
    ] {
        let options = MatchOptions {
            cost,
            ..MatchOptions::default()
        };
        let found = recover(
            &Case::mlp(&[120, 90, 130, 70, 10]),
            factor,
            |s| Transform::random(s, 3),
            &options,
        );
        assert_eq!(found.lost(), 0, "noise {factor}, {cost:?}");
        assert!(found.matched.sweeps > 1, "layers depend on each other");
        assert!(
            found
                .matched
                .steps
                .iter()
                .all(|step| step.moved > 0 && step.after >= step.before)
        );
    }
}

#[test]
fn a_resnet_that_was_shuffled_comes_back() {
    let options = MatchOptions {
        residual: Residual::Permute,
        ..MatchOptions::default()
    };
    for factor in [0.0, 1.0] {
        let found = recover(&resnet(), factor, |s| Transform::random(s, 4), &options);
        assert_eq!(found.lost(), 0, "noise {factor}");
    }
}

#[test]
fn the_residual_stream_comes_back_with_its_signs() {
    let options = MatchOptions {
        residual: Residual::Permute,
        ..MatchOptions::default()
    };
    let found = recover(&gated(40), 1.0, |s| planted(s, 9, true, false), &options);
    let residual = found.symmetries.group("residual").expect("there");
    let both = found
        .planted
        .compose(&found.symmetries, &found.matched.transform);
    assert!(both.elements()[residual].is_identity(24));
    let mlp = found.symmetries.group("layers.0.mlp").expect("there");
    assert!(both.elements()[mlp].is_identity(40));
}

#[test]
fn many_units_with_signs_come_back() {
    let found = recover(
        &gated(1500),
        0.5,
        |s| planted(s, 2, false, false),
        &MatchOptions::default(),
    );
    let mlp = found.symmetries.group("layers.0.mlp").expect("there");
    let both = found
        .planted
        .compose(&found.symmetries, &found.matched.transform);
    assert!(both.elements()[mlp].is_identity(1500));
    assert_eq!(found.matched.sweeps, 1, "nothing depends on anything");
    let step = found
        .matched
        .steps
        .iter()
        .find(|step| step.root == mlp)
        .expect("solved");
    assert!(
        matches!(step.proof, Proof::Optimal(_)) && step.moved > 1400 && step.after > step.before
    );
}

#[test]
fn signs_that_must_not_move_are_not_undone() {
    let options = MatchOptions {
        signs: false,
        ..MatchOptions::default()
    };
    let found = recover(&gated(300), 0.0, |s| planted(s, 2, false, false), &options);
    let mlp = found.symmetries.group("layers.0.mlp").expect("there");
    assert!(found.matched.transform.elements()[mlp].negative.is_empty());
    assert!(found.lost() > 100);
}

#[test]
fn equal_and_nearly_equal_models_stay_as_they_are() {
    for (case, options) in [
        (
            gated(1200),
            MatchOptions {
                residual: Residual::Permute,
                ..MatchOptions::default()
            },
        ),
        (gated(50), MatchOptions::default()),
        (
            resnet(),
            MatchOptions {
                residual: Residual::Permute,
                ..MatchOptions::default()
            },
        ),
        (
            Case::mlp(&[20, 30, 40, 5]),
            MatchOptions {
                cost: Cost::Raw,
                ..MatchOptions::default()
            },
        ),
    ] {
        for factor in [0.0, 0.05] {
            let found = recover(&case, factor, Transform::identity, &options);
            assert!(found.matched.transform.is_identity(&found.symmetries));
            for step in &found.matched.steps {
                let name = &found.symmetries.groups[step.root].name;
                assert_eq!((step.proof, step.moved), (Proof::Identity, 0), "{name}");
                assert!(step.elements.is_empty() && step.before == step.after);
            }
        }
    }
}
