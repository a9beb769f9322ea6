//! Architectures that differ: why tensors do not fit, said before which tensors do not.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind};

/// The failure with the architectures named first, when inputs do not fit each other and their
/// configs say why.
pub fn told_first(error: Error, inputs: &[Checkpoint]) -> Error {
    let named: Vec<(&Checkpoint, String)> = inputs
        .iter()
        .filter_map(|input| Some((input, architecture(input)?)))
        .collect();
    let Some((first, known)) = named.first() else {
        return error;
    };
    let Some((other, differs)) = named.iter().find(|(_, name)| name != known) else {
        return error;
    };
    if error.kind() != Kind::Mismatch {
        return error;
    }
    let cause = format!(
        "{} is a {known}, {} a {differs}",
        first.root().display(),
        other.root().display()
    );
    error.because(&cause)
}

/// What the config calls the model: its class, or its type.
fn architecture(input: &Checkpoint) -> Option<String> {
    let config = input.config().ok().flatten()?;
    let class = config
        .get("architectures")
        .and_then(|names| names.get(0))
        .and_then(|name| name.as_str());
    let name = class.or_else(|| config.get("model_type")?.as_str())?;
    Some(name.escape_debug().to_string())
}
