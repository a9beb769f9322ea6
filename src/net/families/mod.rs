//! Builders that turn tensor names into operations, one file per family.

mod mlp;
mod resnet;
mod vgg;

use serde_json::Value;

use super::graph::unfit;
use crate::error::Result;

pub use mlp::mlp;
pub use resnet::resnet;
pub use vgg::vgg;

/// Keys under which configs name the activation between layers.
const ACTIVATIONS: [&str; 4] = [
    "hidden_act",
    "activation",
    "activation_function",
    "hidden_activation",
];

/// Refuses configs that name an activation other than ReLU.
pub fn check_activation(config: Option<&Value>) -> Result<()> {
    for key in ACTIVATIONS {
        if let Some(name) = config
            .and_then(|config| config.get(key))
            .filter(|name| *name != "relu")
        {
            return Err(unfit(
                &format!("config.json: {key}"),
                format!("wanted relu, got {name}"),
            ));
        }
    }
    Ok(())
}

/// Splits a layer's name into the part before its last number and that number.
fn numbered(layer: &str) -> Option<(&str, u64)> {
    let before = layer.trim_end_matches(|end: char| end.is_ascii_digit());
    Some((before, layer[before.len()..].parse().ok()?))
}
