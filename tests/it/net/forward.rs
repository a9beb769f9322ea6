//! What the library computes is what the naive passes compute.

use indexmap::IndexMap;
use thalweg::error::Kind;
use thalweg::net::{Network, Parameters};

use super::narrow;
use crate::support::forward::{Chain, Family, Net, Random, ResNet, Vgg};

fn shapes(net: &Net) -> IndexMap<String, Vec<u64>> {
    net.tensors
        .iter()
        .map(|(name, (shape, _))| {
            (
                name.clone(),
                shape.iter().map(|size| *size as u64).collect(),
            )
        })
        .collect()
}

/// The logits of `inputs`, in a batch with other samples before and behind, for a number of
/// threads.
fn logits(net: &Net, spec: &str, sample: &[usize], inputs: &[f64], threads: usize) -> Vec<f32> {
    let network = Network::new(spec, &shapes(net), Some(&net.config), sample).expect("a network");
    let parameters = Parameters::read(&network, |name, tensor| {
        tensor
            .iter_mut()
            .zip(net.get(name))
            .for_each(|(to, from)| *to = narrow(*from));
        Ok::<(), ()>(())
    });
    let parameters = parameters.expect("nothing fails");
    let others = Random::new(99).vector(inputs.len());
    let batch: Vec<f32> = others
        .iter()
        .chain(inputs)
        .chain(&others)
        .map(|x| narrow(*x))
        .collect();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("a pool");
    let values = pool.install(|| network.forward(&parameters, batch, 3, &|_| false));
    let classes = network.classes();
    assert_eq!(values.logits().len(), 3 * classes);
    assert_eq!(
        values.logits()[..classes],
        values.logits()[2 * classes..],
        "equal samples have equal logits"
    );
    values.logits()[classes..2 * classes].to_vec()
}

fn same(family: &dyn Family, spec: &str, sample: &[usize], seed: u64) {
    let net = family.random(11);
    let inputs = Random::new(seed).vector(sample.iter().product());
    let wanted = family.outputs(&net);
    let got = logits(&net, spec, sample, &inputs, 1);
    assert_eq!(got.len(), wanted.len());
    let largest = wanted.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    for (wanted, got) in wanted.iter().zip(&got) {
        // Sums of f32 over a dozen layers.
        assert!(
            (wanted - f64::from(*got)).abs() < 1e-5 * largest,
            "{spec}: wanted {wanted}, got {got}"
        );
    }
    for threads in [2, 3] {
        assert_eq!(
            got,
            logits(&net, spec, sample, &inputs, threads),
            "{spec}: {threads} threads"
        );
    }
}

#[test]
fn mlps_are_computed_as_in_f64() {
    same(
        &Chain {
            norms: false,
            flax: false,
        },
        "mlp",
        &[6],
        5,
    );
    same(
        &Chain {
            norms: true,
            flax: false,
        },
        "mlp",
        &[1, 2, 3],
        5,
    );
    same(
        &Chain {
            norms: false,
            flax: true,
        },
        "mlp-flax",
        &[6],
        5,
    );
}

#[test]
fn vgg_is_computed_as_in_f64() {
    for norms in [false, true] {
        same(&Vgg { norms }, "vgg16", &[3, 8, 8], 6);
    }
}

#[test]
fn residual_networks_are_computed_as_in_f64() {
    for layer_norms in [false, true] {
        same(
            &ResNet {
                bottleneck: false,
                layer_norms,
                transformers: false,
            },
            "resnet20",
            &[3, 8, 8],
            7,
        );
        same(
            &ResNet {
                bottleneck: true,
                layer_norms,
                transformers: false,
            },
            "resnet50",
            &[3, 8, 8],
            7,
        );
    }
    same(
        &ResNet {
            bottleneck: true,
            layer_norms: false,
            transformers: true,
        },
        "resnet50-hf",
        &[3, 8, 8],
        7,
    );
}

#[test]
fn what_is_no_network_of_a_known_kind_is_refused_by_name() {
    let refused = |spec: &str, net: &Net, sample: &[usize]| {
        Network::new(spec, &shapes(net), Some(&net.config), sample).expect_err("refused")
    };
    let net = Chain {
        norms: false,
        flax: false,
    }
    .random(1);
    assert_eq!(refused("llama", &net, &[6]).kind(), Kind::Usage);
    assert!(
        refused("mlp", &net, &[7])
            .to_string()
            .contains("layers.0.weight: takes 6 numbers, a sample has 7")
    );
    let mut other = net.clone();
    other.config = serde_json::json!({ "hidden_act": "gelu" });
    assert!(
        refused("mlp", &other, &[6])
            .to_string()
            .contains("hidden_act: wanted relu, got \"gelu\"")
    );
    let residual = ResNet {
        bottleneck: false,
        layer_norms: false,
        transformers: false,
    };
    let mut net = residual.random(1);
    assert!(
        refused("resnet20", &net, &[1, 8, 8])
            .to_string()
            .contains("takes 3 channels, a sample has 1")
    );
    net.tensors.remove("layer2.0.downsample.0.weight");
    assert!(
        refused("resnet20", &net, &[3, 8, 8])
            .to_string()
            .contains("layer2.0: gives")
    );
    net.tensors.remove("layer1.0.bn1.bias");
    assert!(
        refused("resnet20", &net, &[3, 8, 8])
            .to_string()
            .contains("layer1.0.bn1.bias: the model does not have it")
    );
}
