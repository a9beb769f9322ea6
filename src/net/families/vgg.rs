//! Networks that are a chain of convolutions, then a classifier.

use super::super::graph::{Builder, Network, unfit};
use super::mlp::{classifier, classifier_inputs};
use super::numbered;
use crate::error::Result;

/// A convolution with the norm behind it; its image is halved if pooling follows.
struct Layer {
    name: String,
    norm: Option<String>,
    pooled: bool,
}

/// Builds a VGG from torchvision's numbers: convolution, norm, ReLU and pooling each take a number,
/// so the gaps tell where pooling stands. Behind the last convolution the size of the classifier
/// tells.
pub fn vgg(mut build: Builder<'_>) -> Result<Network> {
    let (prefix, layers) = layers(&build)?;
    let mut value = 0;
    for layer in layers {
        value = build.convolution(&layer.name, value, 1)?;
        if let Some(norm) = &layer.norm {
            value = build.norm(norm, value)?;
        }
        value = build.relu(value);
        build.units(&format!("{}.weight", layer.name), 0, value);
        if layer.pooled {
            value = build.max_pool(value, 2, 2, 0)?;
        }
    }
    value = fit(&mut build, &prefix, value)?;
    classifier(&mut build, &prefix, value)?;
    build.finish()
}

fn layers(build: &Builder<'_>) -> Result<(String, Vec<Layer>)> {
    let (mut prefix, mut convolutions, mut norms) = (String::new(), Vec::new(), Vec::new());
    for (name, shape) in build.tensors {
        let Some((before, number)) = name.strip_suffix(".weight").and_then(numbered) else {
            continue;
        };
        let Some(before) = before.strip_suffix("features.") else {
            continue;
        };
        prefix = before.to_owned();
        if shape.len() == 4 {
            convolutions.push(number)
        } else {
            norms.push(number)
        }
    }
    convolutions.sort_unstable();
    let named = |number: u64| format!("{prefix}features.{number}");
    let mut layers = Vec::new();
    for (at, &number) in convolutions.iter().enumerate() {
        let normed = norms.contains(&(number + 1));
        let pooled = match convolutions
            .get(at + 1)
            .map(|next| next - number - u64::from(normed))
        {
            None | Some(2) => false,
            Some(3) => true,
            Some(_) => {
                let cause = format!(
                    "cannot tell what stands between it and convolution {}",
                    convolutions[at + 1]
                );
                return Err(unfit(&named(number), cause));
            }
        };
        layers.push(Layer {
            name: named(number),
            norm: normed.then(|| named(number + 1)),
            pooled,
        });
    }
    if layers.is_empty() {
        return Err(unfit(
            "tensors",
            "none of them is a convolution `features.{number}.weight`",
        ));
    }
    Ok((prefix, layers))
}

/// Pools the output of the last convolution to the size that the classifier takes: not at all, by
/// two, or as torchvision does, by two and then by means to a fixed size.
fn fit(build: &mut Builder<'_>, prefix: &str, value: usize) -> Result<usize> {
    let shape = build.shape(value);
    let inputs = classifier_inputs(build, prefix)?;
    let places = inputs / shape.channels.max(1);
    let side = places.isqrt();
    if side * side * shape.channels != inputs || side == 0 {
        let cause = format!(
            "takes {inputs} numbers, the convolutions give {} channels",
            shape.channels
        );
        return Err(unfit(&format!("{prefix}classifier"), cause));
    }
    if (shape.height, shape.width) == (side, side) {
        return Ok(value);
    }
    let value = build.max_pool(value, 2, 2, 0)?;
    let shape = build.shape(value);
    Ok(if (shape.height, shape.width) == (side, side) {
        value
    } else {
        build.average_pool(value, side)
    })
}
