//! Norms folded into what reads them, and the residual stream under any orthogonal map.

use std::fs;

use safetensors::Dtype;
use serde_json::json;
use thalweg::error::Kind;
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::symmetry::{Element, OrthogonalMap, Spec, Transform, TransformFile};

use super::Stored;
use super::function::distance;
use crate::support::forward::{Bert, Experts, Family, Gpt2, Llama, Neox, Net, Random, Vit};
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Tensor};
use crate::support::whole::PLENTY;

/// Outputs may differ by so much of the largest: sums of a few dozen products in another order, a
/// few layers deep.
const SAME: f64 = 1e-10;
/// What is no symmetry changes outputs by at least so much of the largest.
const OTHER: f64 = 1e-3;

fn llama() -> Llama {
    Llama {
        model_type: "llama",
        ..Llama::default()
    }
}

/// A transform that only maps the residual stream.
fn only_map(stored: &Stored, seed: u64) -> Transform {
    let keep = |(element, group): (&Element, &thalweg::symmetry::Group)| Element {
        map: element.map.clone().filter(|_| group.residual),
        ..Element::default()
    };
    let random = Transform::random(&stored.symmetries, seed);
    let elements = random
        .elements()
        .iter()
        .zip(&stored.symmetries.groups)
        .map(keep)
        .collect();
    Transform::new(&stored.symmetries, elements).expect("fits")
}

/// Folding alone, an orthogonal map alone, and both with elements of all other groups leave the
/// outputs alone.
fn keeps(family: &dyn Family, norm: f64) {
    let net = family.random(11);
    let tied = !net.has("lm_head.weight");
    let stored = Stored::new(&net, None)
        .folded()
        .expect("norms that may be folded");
    let transforms = [
        Transform::identity(&stored.symmetries),
        only_map(&stored, 4),
        Transform::random(&stored.symmetries, 1),
        Transform::random(&stored.symmetries, 2),
    ];
    for (at, transform) in transforms.into_iter().enumerate() {
        let mapped = at > 0;
        stored.apply("model", transform, &format!("out-{at}"), &PLENTY);
        let folder = stored.dir.path().join(format!("out-{at}"));
        let made = net.read(&folder);
        for (name, (_, values)) in &made.tensors {
            if name.ends_with("layernorm.weight") || name == "model.norm.weight" {
                assert!(
                    values.iter().all(|value| *value == norm),
                    "{name}: {values:?}"
                );
            } else if name.contains("embed") || name.contains("down") || name.contains("o_proj") {
                assert_eq!(mapped, *values != net.tensors[name].1, "{name}");
            }
        }
        assert_eq!(made.tensors.len(), net.tensors.len() + usize::from(tied));
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).expect("written"))
                .expect("JSON");
        assert_eq!(config["tie_word_embeddings"], json!(false));
        let distance = distance(family, &net, &made);
        assert!(distance < SAME, "{at}: {distance:e}");
    }
}

#[test]
fn llama_and_its_kin_keep_their_function() {
    for tied in [false, true] {
        keeps(&Llama { tied, ..llama() }, 1.0);
    }
    keeps(
        &Llama {
            model_type: "qwen2",
            biases: true,
            tied: true,
            ..llama()
        },
        1.0,
    );
    keeps(
        &Llama {
            model_type: "qwen3",
            normed_keys: true,
            ..llama()
        },
        1.0,
    );
    keeps(
        &Llama {
            model_type: "phi3",
            fused: true,
            rotary: 6,
            ..llama()
        },
        1.0,
    );
}

#[test]
fn norms_that_multiply_by_one_more_become_zero() {
    keeps(
        &Llama {
            model_type: "gemma",
            tied: true,
            ..llama()
        },
        0.0,
    );
}

#[test]
fn experts_keep_their_function() {
    keeps(
        &Llama {
            model_type: "mixtral",
            experts: Experts::Mixtral,
            ..llama()
        },
        1.0,
    );
    let qwen = Llama {
        experts: Experts::Qwen { shared: true },
        biases: true,
        ..llama()
    };
    keeps(
        &Llama {
            model_type: "qwen2_moe",
            ..qwen
        },
        1.0,
    );
    let qwen = Llama {
        experts: Experts::Qwen { shared: false },
        normed_keys: true,
        tied: true,
        ..llama()
    };
    keeps(
        &Llama {
            model_type: "qwen3_moe",
            ..qwen
        },
        1.0,
    );
}

/// What is added to the residual stream as a vector is mapped too.
#[test]
fn biases_of_what_writes_are_mapped() {
    let mut net = llama().random(3);
    net.add(
        &mut Random::new(5),
        "model.layers.1.self_attn.o_proj.bias",
        &[12],
    );
    net.add(
        &mut Random::new(6),
        "model.layers.0.mlp.down_proj.bias",
        &[12],
    );
    let stored = Stored::new(&net, None)
        .folded()
        .expect("norms that may be folded");
    stored.apply("model", only_map(&stored, 8), "out", &PLENTY);
    let made = net.read(&stored.dir.path().join("out"));
    assert_ne!(
        made.get("model.layers.0.mlp.down_proj.bias"),
        net.get("model.layers.0.mlp.down_proj.bias")
    );
    assert!(distance(&llama(), &net, &made) < SAME);
}

/// The same map where norms are not folded, by the definition: reads and writes turned, norms left
/// as they are.
#[test]
fn without_folding_the_function_would_change() {
    let net = llama().random(11);
    let mut plain = net.clone();
    for (name, (_, values)) in &mut plain.tensors {
        if name.contains("norm") {
            values.fill(1.0);
        }
    }
    let stored = Stored::new(&plain, None)
        .folded()
        .expect("norms that may be folded");
    stored.apply("model", only_map(&stored, 4), "out", &PLENTY);
    let mut mapped = net.read(&stored.dir.path().join("out"));
    assert!(distance(&llama(), &plain, &mapped) < SAME);
    for (name, (_, values)) in &mut mapped.tensors {
        if name.contains("norm") {
            values.clone_from(&net.tensors[name].1);
        }
    }
    let changed = distance(&llama(), &net, &mapped);
    assert!(changed > OTHER, "{changed:e}");
}

fn refused(net: &Net, spec: Option<&Spec>) -> String {
    let error = Stored::new(net, spec)
        .folded()
        .map(drop)
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::Mismatch);
    error.to_string()
}

#[test]
fn models_whose_norms_cannot_be_folded_are_refused_with_the_reason() {
    let families: [&dyn Family; 4] = [&Gpt2, &Neox, &Bert, &Vit];
    for family in families {
        let said = refused(&family.random(1), None);
        assert!(said.contains("LayerNorm takes the mean away"), "{said}");
    }
    let gemma = Llama {
        model_type: "gemma2",
        tied: true,
        post_norms: true,
        ..llama()
    };
    assert!(refused(&gemma.random(1), None).contains("norms behind attention and MLP"));
    let gemma = Llama {
        model_type: "gemma3_text",
        normed_keys: true,
        ..gemma
    };
    assert!(refused(&gemma.random(1), None).contains("norms behind attention and MLP"));
    let mut net = llama().random(1);
    net.config = json!({ "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8 });
    let spec = thalweg::symmetry::spec::builtin::named("llama").expect("built in");
    assert!(refused(&net, Some(&spec)).contains("config.json says ``"));
    let mut net = llama().random(1);
    net.tensors.remove("lm_head.weight");
    net.config["tie_word_embeddings"] = false.into();
    assert!(refused(&net, None).contains("it has no `lm_head.weight`"));
    let own = |more: &str| {
        Spec::parse(&format!("name: own\nextends: llama\n{more}"), "own").expect("a spec")
    };
    let net = llama().random(1);
    let fixed =
        own("tensors: [{ name: \"model.layers.{l}.mlp.up_proj.weight\", axes: [mlp, fixed] }]");
    assert!(
        Stored::new(&net, Some(&fixed)).folded().is_ok(),
        "what does not carry the stream is of no concern"
    );
    let mut net = llama().random(1);
    net.add(&mut Random::new(1), "model.layers.0.extra.weight", &[5, 12]);
    let extra =
        own("tensors: [{ name: \"model.layers.{l}.extra.weight\", axes: [fixed, residual] }]");
    assert!(
        refused(&net, Some(&extra)).contains("which norm goes into `model.layers.0.extra.weight`")
    );
    let mut net = llama().random(1);
    net.add(
        &mut Random::new(1),
        "model.layers.0.extra_norm.weight",
        &[12],
    );
    let extra =
        own("tensors: [{ name: \"model.layers.{l}.extra_norm.weight\", axes: [order(residual)] }]");
    assert!(
        refused(&net, Some(&extra)).contains("into what `model.layers.0.extra_norm.weight` goes")
    );
}

#[test]
fn a_norm_that_is_not_finite_is_refused() {
    let mut net = llama().random(1);
    net.tensors
        .get_mut("model.layers.1.input_layernorm.weight")
        .expect("there")
        .1[3] = f64::NAN;
    let error = Stored::new(&net, None)
        .folded()
        .map(drop)
        .expect_err("refused");
    assert_eq!(error.kind(), Kind::NonFinite);
    assert!(error.to_string().contains("element 3 is NaN"), "{error}");
}

/// Vast enough for several batches of rows and several passes over what writes to the stream.
fn wide_model(seed: u64) -> (Spec, Net) {
    let spec = "name: wide
groups:
  residual: { residual: true, allows: [permutation, sign] }
  mlp: { allows: [permutation, sign] }
tensors:
  - { name: embed, axes: [fixed, residual] }
  - { name: norm, axes: [order(residual)] }
  - { name: up, axes: [mlp, residual] }
  - { name: down, axes: [residual, mlp] }
fold:
  embeddings: [embed]
  norms: [{ norm: norm, into: [up] }]
";
    let mut net = Net::new(json!({}));
    let random = &mut Random::new(seed);
    let (width, hidden) = (700, 9000);
    for (name, shape) in [
        ("embed", vec![50, width]),
        ("norm", vec![width]),
        ("up", vec![hidden, width]),
        ("down", vec![width, hidden]),
    ] {
        net.add(random, name, &shape);
    }
    (Spec::parse(spec, "wide").expect("a spec"), net)
}

#[test]
fn blocks_memory_and_threads_do_not_show_and_plain_loops_agree() {
    let (spec, net) = wide_model(2);
    let stored = Stored::new(&net, Some(&spec));
    let rounded = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f64>))| {
        (name.clone(), Tensor::rounded(Dtype::BF16, shape, values))
    };
    let model: Model = net.tensors.iter().map(rounded).collect();
    write_model(&stored.dir.path().join("model"), &model, 1);
    let stored = stored.folded().expect("norms that may be folded");
    let transform = Transform::random(&stored.symmetries, 6);
    let wishes = [
        PLENTY,
        Wish {
            memory: 128 << 20,
            threads: 1,
            block_bytes: Some(1),
        },
        Wish {
            memory: 160 << 20,
            threads: 3,
            block_bytes: Some(1 << 20),
        },
    ];
    for (at, wish) in wishes.iter().enumerate() {
        stored.apply("model", transform.clone(), &format!("out-{at}"), wish);
    }
    let outs = [0, 1, 2].map(|at| read_model(&stored.dir.path().join(format!("out-{at}"))));
    assert_eq!(outs[0], outs[1]);
    assert_eq!(outs[0], outs[2]);
    let map = transform.elements()[0]
        .map
        .as_ref()
        .expect("a map")
        .elements();
    let (group, element) = (&stored.symmetries.groups[1], &transform.elements()[1]);
    let (width, hidden) = (700, 9000);
    let (norm, up, down) = (
        &model["norm"].values,
        &model["up"].values,
        &model["down"].values,
    );
    for (i, unit) in [(0, 0), (1, 8999), (350, 4242), (699, 17)] {
        let (old, sign) = (
            element.unit(group, 0, unit),
            if element.is_negative(group, 0, unit) {
                -1.0
            } else {
                1.0
            },
        );
        let row = &map[i * width..][..width];
        let read: f64 = (0..width)
            .map(|r| row[r] * norm[r] * up[old * width + r])
            .sum::<f64>()
            * sign;
        let written: f64 = (0..width)
            .map(|r| row[r] * down[r * hidden + old])
            .sum::<f64>()
            * sign;
        let close = |got: f64, wanted: f64| (got - wanted).abs() <= wanted.abs() / 256.0 + 1e-12;
        assert!(close(outs[0]["up"].values[unit * width + i], read));
        assert!(close(outs[0]["down"].values[i * hidden + unit], written));
    }
}

#[test]
fn a_map_and_its_inverse_are_composed_to_nothing() {
    let net = llama().random(2);
    let stored = Stored::new(&net, None)
        .folded()
        .expect("norms that may be folded");
    let symmetries = &*stored.symmetries;
    let one = Transform::random(symmetries, 1);
    let far = |transform: &Transform| {
        let map = transform.elements()[symmetries.group("residual").expect("there")]
            .map
            .clone()
            .expect("a map");
        let off = |(at, x): (usize, &f64)| (x - if at / 12 == at % 12 { 1.0 } else { 0.0 }).abs();
        map.elements()
            .iter()
            .enumerate()
            .map(off)
            .fold(0.0, f64::max)
    };
    assert!(far(&one.compose(symmetries, &one.inverse(symmetries))) < 1e-14);
    assert!(far(&one) > 0.1);
    // One behind the other is the composition.
    let two = Transform::random(symmetries, 2);
    stored.apply("model", one.clone(), "one", &PLENTY);
    stored.apply("model", one.compose(symmetries, &two), "both", &PLENTY);
    let other = Stored::new(&net.read(&stored.dir.path().join("one")), None)
        .folded()
        .expect("norms of ones");
    other.apply("model", two, "both", &PLENTY);
    let [wanted, got] = [&stored, &other].map(|stored| net.read(&stored.dir.path().join("both")));
    for (name, (_, values)) in &wanted.tensors {
        let far = values
            .iter()
            .zip(got.get(name))
            .map(|(x, y)| (x - y).abs())
            .fold(0.0, f64::max);
        assert!(far < 1e-13, "{name}: {far:e}");
    }
}

#[test]
fn a_transform_file_holds_the_map_and_knows_that_norms_are_folded() {
    let net = llama().random(2);
    let stored = Stored::new(&net, None);
    let plain = std::sync::Arc::clone(&stored.symmetries);
    let stored = stored.folded().expect("norms that may be folded");
    let path = stored.dir.path().join("map.safetensors");
    let transform = Transform::random(&stored.symmetries, 3);
    let file = TransformFile {
        transform,
        model: "a model".into(),
        notes: Default::default(),
    };
    file.write(&path, &stored.symmetries).expect("written");
    assert_eq!(
        TransformFile::read(&path, &stored.symmetries).expect("read"),
        file
    );
    assert_eq!(TransformFile::is_folded(&path).expect("opens"), Some(true));
    let error = TransformFile::read(&path, &plain).expect_err("not folded");
    assert!(error.to_string().contains("norms folded"), "{error}");
    let model = read_model(&path);
    let keep = |name: &str, change: &dyn Fn(&mut [f64])| {
        let mut model = model.clone();
        let tensor = model.get_mut(name).expect("there");
        let mut values = tensor.values.clone();
        change(&mut values);
        *tensor = Tensor::rounded(Dtype::F64, &tensor.shape.clone(), &values);
        let folder = stored.dir.path().join("raw");
        write_model(
            &folder,
            &[("anything".to_owned(), model[name].clone())]
                .into_iter()
                .collect(),
            1,
        );
        OrthogonalMap::read(&folder.join("model.safetensors"), 12)
    };
    assert!(keep("residual.map", &|_| ()).is_ok());
    let error = keep("residual.map", &|values| values[5] += 1e-3).expect_err("not orthogonal");
    assert!(
        error.to_string().contains("not orthogonal: rows") && error.to_string().contains("off by"),
        "{error}"
    );
    let error = keep("residual.map", &|values| values[5] = f64::INFINITY).expect_err("not finite");
    assert!(
        error.to_string().contains("row 0, column 5 is inf"),
        "{error}"
    );
    let error = OrthogonalMap::read(&stored.dir.path().join("raw/model.safetensors"), 13)
        .expect_err("another size");
    assert!(
        error
            .to_string()
            .contains("wanted floats of shape [13, 13], got F64 [12, 12]"),
        "{error}"
    );
    let error = OrthogonalMap::read(&stored.dir.path().join("model"), 12).expect_err("which?");
    assert!(
        error.to_string().contains("one called `residual.map`"),
        "{error}"
    );
}

#[test]
fn maps_are_refused_where_norms_are_not_folded() {
    let stored = Stored::new(&llama().random(2), None);
    let folded = stored.symmetries.folded(
        &thalweg::checkpoint::Checkpoint::open(&stored.dir.path().join("model")).expect("opens"),
    );
    let random = Transform::random(&folded.expect("folds"), 1);
    let error =
        Transform::new(&stored.symmetries, random.elements().to_vec()).expect_err("refused");
    assert!(
        error
            .to_string()
            .contains("only when the weights of the norms are folded"),
        "{error}"
    );
}

#[test]
fn folded_models_are_merged_with_folded_models_only() {
    let one = Stored::new(&llama().random(1), None);
    let path = one.dir.path().join("model");
    llama().random(2).write(&one.dir.path().join("other"));
    let other = one.dir.path().join("other");
    let one = one.folded().expect("norms that may be folded");
    let text = crate::support::whole::recipe("linear", &[&path, &other], "");
    let document = thalweg::recipe::Recipe::parse(&text, "test")
        .expect("a recipe")
        .documents
        .swap_remove(0);
    let mut job = Job::new(document, vec![path, other]).expect("a job");
    job.alignments = vec![
        Some(one.alignment(Transform::identity(&one.symmetries))),
        None,
    ];
    let error = Plan::new(&job, &PLENTY).map(drop).expect_err("refused");
    assert!(
        error.to_string().contains("its norms are not folded"),
        "{error}"
    );
}

/// A tied model and its own mapped, untied copy: mapped back on the way, the merge is the folded
/// model.
#[test]
fn a_merge_with_a_mapped_copy_of_itself_gives_the_folded_model() {
    let family = Llama {
        tied: true,
        ..llama()
    };
    let net = family.random(8);
    let stored = Stored::new(&net, None)
        .folded()
        .expect("norms that may be folded");
    let planted = only_map(&stored, 3);
    let back = planted.inverse(&stored.symmetries);
    stored.apply("model", planted, "planted", &PLENTY);
    let other = Stored::new(&net.read(&stored.dir.path().join("planted")), None)
        .folded()
        .expect("norms of ones");
    let [model, planted] = [
        stored.dir.path().join("model"),
        stored.dir.path().join("planted"),
    ];
    let text = crate::support::whole::recipe("linear", &[&model, &planted], "");
    let document = thalweg::recipe::Recipe::parse(&text, "test")
        .expect("a recipe")
        .documents
        .swap_remove(0);
    let mut job = Job::new(document, vec![model, planted]).expect("a job");
    let identity = Transform::identity(&stored.symmetries);
    job.alignments = vec![
        Some(stored.alignment(identity)),
        Some(other.alignment(back)),
    ];
    let out = stored.dir.path().join("merged");
    crate::support::whole::carry_out(Plan::new(&job, &PLENTY).expect("a plan"), &out)
        .expect("merged");
    let distance = distance(&family, &net, &net.read(&out));
    assert!(distance < SAME, "{distance:e}");
}
