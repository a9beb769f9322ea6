//! Models whose tensors have other names, or are one under several names, or are not in all of
//! them.

mod layers;
mod renaming;
mod ties;

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;

use crate::support::program::{Ended, run};
use crate::support::reference::files::{read_model, write_model};
use crate::support::reference::{Model, Random, Tensor};

/// Writes the model folder `name`: a tensor of random numbers for each name and shape, and this
/// config.
fn model(root: &Path, name: &str, tensors: &[(&str, &[usize])], config: &Value) -> Model {
    let mut random = Random::new(name.bytes().map(u64::from).sum());
    let random = |shape: &[usize]| random.gaussian(shape.iter().product());
    let mut random = random;
    let made = tensors.iter().map(|(tensor, shape)| {
        (
            (*tensor).to_owned(),
            Tensor::rounded(Dtype::F32, shape, &random(shape)),
        )
    });
    let model: Model = made.collect();
    write_model(&root.join(name), &model, 1);
    if !config.is_null() {
        fs::write(root.join(name).join("config.json"), config.to_string()).expect("written");
    }
    model
}

fn merge(root: &Path, args: &str) -> Ended {
    run(
        root,
        ["merge", "--method", "linear", "--out", "out"]
            .into_iter()
            .chain(args.split_whitespace()),
    )
}

fn written(root: &Path) -> Model {
    read_model(&root.join("out"))
}

fn config(root: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(root.join("out/config.json")).expect("a config"))
        .expect("JSON")
}

/// Checks that `tensor` is the mean of `parts`, to a rounding.
#[track_caller]
fn assert_mean(tensor: &Tensor, parts: &[&Tensor]) {
    for (index, got) in tensor.values.iter().enumerate() {
        let mean = parts.iter().map(|part| part.values[index]).sum::<f64>() / parts.len() as f64;
        assert!(
            (got - mean).abs() <= 1e-6,
            "{index}: {got} instead of {mean}"
        );
    }
}
