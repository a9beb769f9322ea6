//! Names architectures that differ, before the tensors that do not fit because of it.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind};

/// Puts the architectures in front of `error` when the inputs do not fit each other and their
/// configs name different ones.
pub fn name_architectures_first(error: Error, inputs: &[Checkpoint]) -> Error {
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

/// Returns the model's architecture by its config: its class, or its type.
fn architecture(input: &Checkpoint) -> Option<String> {
    let config = input.config().ok().flatten()?;
    let class = config
        .get("architectures")
        .and_then(|names| names.get(0))
        .and_then(|name| name.as_str());
    let name = class.or_else(|| config.get("model_type")?.as_str())?;
    Some(name.escape_debug().to_string())
}
