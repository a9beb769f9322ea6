//! Gradients compared with differences of losses.

use indexmap::IndexMap;

use super::{Network, Parameters, SplitMix, cross_entropy};
use crate::data::Batch;

fn shapes(tensors: &[(&str, &[u64])]) -> IndexMap<String, Vec<u64>> {
    tensors
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), shape.to_vec()))
        .collect()
}

fn norm(name: &str, channels: u64, running: bool) -> Vec<(String, Vec<u64>)> {
    let mut parts = vec!["weight", "bias"];
    if running {
        parts.extend(["running_mean", "running_var"]);
    }
    parts
        .into_iter()
        .map(|part| (format!("{name}.{part}"), vec![channels]))
        .collect()
}

fn random(network: &Network, seed: u64) -> Parameters {
    let mut stream = 0;
    Parameters::read(network, |name, tensor| {
        stream += 1;
        let mut random = SplitMix::new(seed, stream);
        let middle = if name.contains("var") || name.contains("norm") {
            1.0
        } else {
            0.0
        };
        tensor
            .iter_mut()
            .for_each(|number| *number = middle + 0.4 * random.signed());
        Ok::<(), ()>(())
    })
    .expect("nothing fails")
}

fn batch(network: &Network, sample: &[usize], samples: usize) -> Batch {
    let mut random = SplitMix::new(5, 0);
    let count = samples * sample.iter().product::<usize>();
    let inputs = (0..count).map(|_| random.signed()).collect();
    Batch {
        inputs,
        labels: (0..samples)
            .map(|sample| sample % network.classes())
            .collect(),
    }
}

/// Checks that the gradient along random directions equals the difference of losses along them.
fn check(spec: &str, tensors: &IndexMap<String, Vec<u64>>, sample: &[usize]) {
    let network = Network::new(spec, tensors, None, sample).expect("a network");
    assert_eq!(
        network.parameters().len(),
        tensors.len(),
        "every tensor is computed with"
    );
    let samples = 6;
    let loss = |parameters: &Parameters| {
        let Batch { inputs, labels } = batch(&network, sample, samples);
        let values = network.forward(parameters, inputs, samples, &|_| false);
        cross_entropy(values.logits(), &labels, network.classes()).sum / samples as f64
    };
    let parameters = random(&network, 3);
    let (value, gradients) = network.gradients(&parameters, batch(&network, sample, samples));
    assert!(
        (value - loss(&parameters)).abs() < 1e-12,
        "the loss does not depend on what is kept"
    );
    for (at, (name, _, gradient)) in gradients.iter().enumerate() {
        if name.contains("running") {
            assert!(
                gradient.iter().all(|slope| *slope == 0.0),
                "{name}: statistics are fixed"
            );
            continue;
        }
        let size: f64 = gradient
            .iter()
            .map(|slope| f64::from(*slope).powi(2))
            .sum::<f64>()
            .sqrt();
        let mut moved = Parameters::zeros(&network);
        moved.add(at, gradient);
        // The direction is the gradient, where the difference is largest relative to the rounding
        // of f32. Steps of several sizes are tried, since a kink of a ReLU or another window's
        // maximum may lie within one of them.
        let off = |length: f64| {
            let step = length / size.max(1e-3);
            let at = |step: f64| loss(&parameters.combine(1.0, &moved, crate::data::narrow(step)));
            ((at(step) - at(-step)) / (2.0 * length) - size).abs() / size.max(1e-3)
        };
        let least = [4e-3, 1e-3, 2.5e-4]
            .map(off)
            .into_iter()
            .fold(f64::INFINITY, f64::min);
        assert!(least < 1e-2, "{spec}: {name}: off by {least} of {size}");
    }
}

#[test]
fn gradients_of_mlps_are_differences_of_losses() {
    let plain = shapes(&[
        ("fc1.weight", &[9, 6]),
        ("fc1.bias", &[9]),
        ("fc2.weight", &[4, 9]),
        ("fc2.bias", &[4]),
    ]);
    check("mlp", &plain, &[2, 3]);
    let flax = shapes(&[
        ("Dense_0.kernel", &[6, 9]),
        ("Dense_0.bias", &[9]),
        ("Dense_1.kernel", &[9, 4]),
        ("Dense_1.bias", &[4]),
    ]);
    check("mlp-flax", &flax, &[6]);
    for running in [false, true] {
        let mut normed = shapes(&[("layers.0.weight", &[9, 6]), ("layers.0.bias", &[9])]);
        normed.extend(norm("layers.1", 9, running));
        normed.extend(shapes(&[("layers.3.weight", &[4, 9])]));
        check("mlp", &normed, &[6]);
    }
}

#[test]
fn gradients_of_vgg_are_differences_of_losses() {
    let mut tensors = shapes(&[
        ("features.0.weight", &[4, 2, 3, 3]),
        ("features.0.bias", &[4]),
    ]);
    tensors.extend(norm("features.1", 4, true));
    tensors.extend(shapes(&[("features.4.weight", &[5, 4, 3, 3])]));
    tensors.extend(
        [
            ("features.5.weight", [5, 4, 4]),
            ("features.5.bias", [5, 4, 4]),
        ]
        .map(|(n, s)| (n.into(), s.to_vec())),
    );
    tensors.extend(shapes(&[
        ("classifier.0.weight", &[6, 20]),
        ("classifier.0.bias", &[6]),
        ("classifier.3.weight", &[3, 6]),
    ]));
    check("vgg16", &tensors, &[2, 8, 8]);
}

#[test]
fn gradients_of_residual_networks_are_differences_of_losses() {
    for running in [true, false] {
        let mut tensors = shapes(&[("conv1.weight", &[4, 3, 3, 3])]);
        tensors.extend(norm("norm1", 4, running));
        for (stage, from, to) in [(1, 4, 4), (2, 4, 6)] {
            let name = |part: &str| format!("layer{stage}.0.{part}");
            tensors.insert(name("conv1.weight"), vec![5, from, 3, 3]);
            tensors.extend(norm(&name("norm1"), 5, running));
            tensors.insert(name("conv2.weight"), vec![to, 5, 3, 3]);
            tensors.extend(norm(&name("norm2"), to, running));
            if stage == 2 {
                tensors.insert(name("shortcut.0.weight"), vec![to, from, 1, 1]);
                tensors.extend(norm(&name("shortcut.1"), to, running));
            }
        }
        tensors.extend(shapes(&[("linear.weight", &[3, 6]), ("linear.bias", &[3])]));
        check("resnet20", &tensors, &[3, 6, 6]);
    }
}
