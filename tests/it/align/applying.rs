//! What `apply` writes, bit by bit.

use proptest::prelude::*;
use safetensors::Dtype;
use thalweg::plan::memory::Wish;
use thalweg::plan::{Job, Plan};
use thalweg::symmetry::{Allowed, Element, Spec, Symmetries, Transform};

use super::Stored;
use crate::support::forward::{Experts, Family, Gpt2, Llama, Net, ResNet};
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Tensor};
use crate::support::whole::{PLENTY, carry_out};

/// The same transform without rotations, which round.
pub fn exact(symmetries: &Symmetries, transform: Transform) -> Transform {
    let without = |element: &Element| Element {
        angle: Vec::new(),
        ..element.clone()
    };
    Transform::new(
        symmetries,
        transform.elements().iter().map(without).collect(),
    )
    .expect("still fits")
}

fn mixtral() -> Llama {
    Llama {
        model_type: "mixtral",
        experts: Experts::Mixtral,
        ..Llama::default()
    }
}

/// A network on disk in another type, NaN, infinities and zeros of both signs among its numbers.
fn odd(family: &dyn Family, dtype: Dtype) -> Stored {
    let mut net = family.random(3);
    let stored = Stored::new(&net, None);
    for (_, values) in net.tensors.values_mut() {
        for (value, odd) in values.iter_mut().zip([f64::NAN, -0.0, 0.0, f64::INFINITY]) {
            *value = odd;
        }
    }
    let tensor = |(shape, values): &(Vec<usize>, Vec<f64>)| Tensor::rounded(dtype, shape, values);
    let model: Model = net
        .tensors
        .iter()
        .map(|(name, parts)| (name.clone(), tensor(parts)))
        .collect();
    write_model(&stored.dir.path().join("model"), &model, 1);
    stored
}

pub fn same_bytes(stored: &Stored, one: &str, other: &str) {
    let [one, other] = [one, other].map(|name| read_model(&stored.dir.path().join(name)));
    assert_eq!(
        one.keys().collect::<Vec<_>>(),
        other.keys().collect::<Vec<_>>()
    );
    for (name, tensor) in &one {
        assert_eq!(tensor.bytes, other[name].bytes, "{name}");
        assert_eq!(tensor.shape, other[name].shape, "{name}");
    }
}

#[test]
fn doing_nothing_gives_every_bit_back() {
    for dtype in [
        Dtype::F64,
        Dtype::F32,
        Dtype::BF16,
        Dtype::F16,
        Dtype::F8_E4M3,
    ] {
        let stored = odd(&mixtral(), dtype);
        stored.apply(
            "model",
            Transform::identity(&stored.symmetries),
            "out",
            &PLENTY,
        );
        same_bytes(&stored, "model", "out");
    }
}

#[test]
fn a_folder_of_other_weights_goes_along_bit_for_bit() {
    let stored = odd(&mixtral(), Dtype::BF16);
    let dense = Tensor::rounded(
        Dtype::F32,
        &[2, 3],
        &[1.0, f64::NAN, 3.0, 4.0, f64::INFINITY, -0.0],
    );
    let dense = Model::from([("linear.weight".to_owned(), dense)]);
    write_model(&stored.dir.path().join("model/2_Dense"), &dense, 1);
    stored.apply(
        "model",
        exact(&stored.symmetries, Transform::random(&stored.symmetries, 9)),
        "out",
        &PLENTY,
    );
    same_bytes(&stored, "model/2_Dense", "out/2_Dense");
}

#[test]
fn a_transform_and_its_inverse_give_every_bit_back() {
    let families: [&dyn Family; 4] = [
        &mixtral(),
        &Gpt2,
        &Llama {
            model_type: "phi3",
            fused: true,
            ..Llama::default()
        },
        &ResNet {
            bottleneck: true,
            layer_norms: false,
            transformers: false,
        },
    ];
    for (family, dtype) in
        families
            .into_iter()
            .zip([Dtype::BF16, Dtype::F32, Dtype::F8_E4M3, Dtype::F64])
    {
        let stored = odd(family, dtype);
        let there = exact(&stored.symmetries, Transform::random(&stored.symmetries, 9));
        let back = there.inverse(&stored.symmetries);
        stored.apply("model", there, "there", &PLENTY);
        stored.apply("there", back, "back", &PLENTY);
        same_bytes(&stored, "model", "back");
    }
}

#[test]
fn two_transforms_one_behind_the_other_are_their_composition() {
    let stored = odd(&mixtral(), Dtype::BF16);
    let [first, second] = [4, 5].map(|seed| {
        exact(
            &stored.symmetries,
            Transform::random(&stored.symmetries, seed),
        )
    });
    let both = first.compose(&stored.symmetries, &second);
    stored.apply("model", first, "first", &PLENTY);
    stored.apply("first", second, "second", &PLENTY);
    stored.apply("model", both, "both", &PLENTY);
    same_bytes(&stored, "second", "both");
}

#[test]
fn turned_pairs_are_rounded_once() {
    let family = Llama {
        model_type: "llama",
        ..Llama::default()
    };
    let net = family.random(3);
    let stored = Stored::new(&net, None);
    let model = |dtype| {
        let rounded =
            |(shape, values): &(Vec<usize>, Vec<f64>)| Tensor::rounded(dtype, shape, values);
        net.tensors
            .iter()
            .map(|(name, parts)| (name.clone(), rounded(parts)))
            .collect::<Model>()
    };
    write_model(&stored.dir.path().join("model"), &model(Dtype::BF16), 1);
    let transform = Transform::random(&stored.symmetries, 2);
    stored.apply("model", transform.clone(), "out", &PLENTY);
    // The same numbers as f64, so that nothing is rounded on the way; rounded here.
    let wide = |(name, tensor): (&String, &Tensor)| {
        (
            name.clone(),
            Tensor::rounded(Dtype::F64, &tensor.shape, &tensor.values),
        )
    };
    let wide_model: Model = model(Dtype::BF16).iter().map(wide).collect();
    write_model(&stored.dir.path().join("wide"), &wide_model, 1);
    stored.apply("wide", transform, "wide-out", &PLENTY);
    let (narrow, wide) = (
        read_model(&stored.dir.path().join("out")),
        read_model(&stored.dir.path().join("wide-out")),
    );
    let mut turned = 0;
    for (name, tensor) in &narrow {
        let once = Tensor::rounded(Dtype::BF16, &tensor.shape, &wide[name].values);
        assert_eq!(tensor.bytes, once.bytes, "{name}");
        turned += usize::from(wide[name].values != tensor.values);
    }
    assert_eq!(turned, 4, "queries and keys of two layers");
}

#[test]
fn a_merge_with_an_aligned_copy_of_itself_gives_the_model_back() {
    let stored = Stored::new(&mixtral().random(8), None);
    let planted = exact(&stored.symmetries, Transform::random(&stored.symmetries, 3));
    let back = planted.inverse(&stored.symmetries);
    stored.apply("model", planted, "planted", &PLENTY);
    let [model, other] = ["model", "planted"].map(|name| stored.dir.path().join(name));
    let text = crate::support::whole::recipe("karcher", &[&model, &other], "");
    let document = thalweg::recipe::Recipe::parse(&text, "test")
        .expect("a recipe")
        .documents
        .swap_remove(0);
    let mut job = Job::new(document, vec![model, other]).expect("a job");
    job.alignments = vec![None, Some(stored.alignment(back))];
    let plan = Plan::new(&job, &PLENTY).expect("a plan");
    carry_out(plan, &stored.dir.path().join("merged")).expect("merged");
    same_bytes(&stored, "model", "merged");
}

#[test]
fn blocks_memory_and_threads_do_not_show() {
    let net = mixtral().random(8);
    let stored = Stored::new(&net, None);
    let transform = Transform::random(&stored.symmetries, 1);
    let wishes = [
        PLENTY,
        Wish {
            memory: 64 << 20,
            threads: 1,
            block_bytes: Some(1),
        },
        Wish {
            memory: 96 << 20,
            threads: 3,
            block_bytes: Some(64 << 10),
        },
    ];
    for (at, wish) in wishes.iter().enumerate() {
        stored.apply("model", transform.clone(), &format!("out-{at}"), wish);
        same_bytes(&stored, "out-0", &format!("out-{at}"));
    }
}

/// A matrix of several blocks, whose rows and columns move, against plain loops.
#[test]
fn blocks_that_end_inside_rows_are_gathered_right() {
    let spec = "name: two
groups:
  rows: { allows: [permutation, sign] }
  columns: { allows: [permutation, sign] }
tensors:
  - { name: a, axes: [rows, columns] }
  - { name: b, axes: [columns, fixed, rows] }
  - { name: c, axes: [rows, fixed] }
";
    let spec = Spec::parse(spec, "two").expect("a spec");
    let (rows, columns) = (310, 257);
    let mut random = crate::support::forward::Random::new(4);
    let mut net = Net::new(serde_json::json!({}));
    for (name, shape) in [
        ("a", vec![rows, columns]),
        ("b", vec![columns, 3, rows]),
        ("c", vec![rows, 1000]),
    ] {
        net.add(&mut random, name, &shape);
    }
    let stored = Stored::new(&net, Some(&spec));
    let transform = Transform::random(&stored.symmetries, 6);
    let place = |name: &str, at: usize| {
        let group = stored.symmetries.group(name).expect("there");
        let (own, element) = (
            &stored.symmetries.groups[group],
            &transform.elements()[group],
        );
        (
            element.unit(own, 0, at),
            if element.is_negative(own, 0, at) {
                -1.0
            } else {
                1.0
            },
        )
    };
    stored.apply(
        "model",
        transform.clone(),
        "out",
        &Wish {
            memory: 64 << 20,
            threads: 2,
            block_bytes: Some(1),
        },
    );
    let out = net.read(&stored.dir.path().join("out"));
    let (a, b, c) = (net.get("a"), net.get("b"), net.get("c"));
    let (new_a, new_b, new_c) = (out.get("a"), out.get("b"), out.get("c"));
    for i in 0..rows {
        let (row, sign) = place("rows", i);
        for j in 0..columns {
            let (column, other) = place("columns", j);
            assert_eq!(
                new_a[i * columns + j],
                sign * other * a[row * columns + column]
            );
            for k in 0..3 {
                assert_eq!(
                    new_b[(j * 3 + k) * rows + i],
                    sign * other * b[(column * 3 + k) * rows + row]
                );
            }
        }
        for j in 0..1000 {
            assert_eq!(new_c[i * 1000 + j], sign * c[row * 1000 + j]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Groups inside groups behind slices: whatever is composed is what one does after the other.
    #[test]
    fn composition_and_inverse_agree_with_each_other(one in any::<u64>(), two in any::<u64>()) {
        let net = mixtral().random(1);
        let dir = tempfile::TempDir::new().expect("a folder");
        net.write(dir.path());
        let symmetries = super::symmetries(dir.path(), None).expect("a spec that fits");
        let [one, two] = [one, two].map(|seed| Transform::random(&symmetries, seed));
        prop_assert!(one.compose(&symmetries, &one.inverse(&symmetries)).is_identity(&symmetries));
        prop_assert!(one.inverse(&symmetries).compose(&symmetries, &one).is_identity(&symmetries));
        let undone = two.inverse(&symmetries).compose(&symmetries, &one.inverse(&symmetries));
        let all = one.compose(&symmetries, &two).compose(&symmetries, &undone);
        for (group, element) in symmetries.groups.iter().zip(all.elements()) {
            prop_assert!(element.permutation.is_empty() || !group.may(Allowed::Permutation));
            prop_assert!(!element.negative.contains(&true));
            prop_assert!(element.angle.iter().all(|angle| angle.abs() < 1e-14));
        }
    }
}
