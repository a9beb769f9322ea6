//! Renames the tensors of inputs as they are opened, so that all later steps see only the new
//! names.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::recipe::{Document, Rename};

/// The most names that an error shows.
const SHOWN: usize = 2;

/// Renames the tensors of `inputs`, one for each of the document's models. The first rule that
/// matches a name decides.
///
/// # Errors
///
/// [`Kind::Mismatch`] for a rule that renames nothing, a tensor left without a name, and two
/// tensors with the same new name.
pub fn rename(document: &Document, inputs: &mut [Checkpoint]) -> Result<()> {
    let rules = &document.own.rename;
    if rules.is_empty() {
        return Ok(());
    }
    let models = document.models();
    let mut used = vec![false; rules.len()];
    for (input, model) in inputs.iter_mut().zip(&models) {
        let of_model = |rule: &Rename| rule.model.as_ref().is_none_or(|of| of == *model);
        let own: Vec<usize> = (0..rules.len())
            .filter(|index| of_model(&rules[*index]))
            .collect();
        let root = input.root().display().to_string();
        input.rename(|name| {
            let Some((index, to)) = own
                .iter()
                .find_map(|index| Some((*index, rules[*index].apply(name)?)))
            else {
                return Ok(None);
            };
            used[index] = true;
            match to.is_empty() {
                true => Err(refusal(
                    &root,
                    &rules[index],
                    format!("leaves nothing of `{}`", name.escape_debug()),
                )),
                false => Ok(Some(to)),
            }
        })?;
    }
    match used.iter().position(|used| !used) {
        Some(index) => Err(does_nothing(&rules[index], document, inputs)),
        None => Ok(()),
    }
}

fn refusal(root: &str, rule: &Rename, cause: String) -> Error {
    let cause = format!(
        "the rule `{}` -> `{}` {cause}",
        rule.from.as_str().escape_debug(),
        rule.to.escape_debug()
    );
    Error::new(Kind::Mismatch, "cannot rename tensors", root, cause)
}

fn does_nothing(rule: &Rename, document: &Document, inputs: &[Checkpoint]) -> Error {
    let models = document.models();
    let of = rule
        .model
        .as_ref()
        .and_then(|model| models.iter().position(|known| *known == model));
    let root = of.map_or("all models".to_owned(), |of| {
        inputs[of].root().display().to_string()
    });
    let names = of
        .and_then(|of| inputs.get(of))
        .or(inputs.first())
        .into_iter()
        .flat_map(|input| input.tensors().keys());
    let names: Vec<String> = names
        .take(SHOWN)
        .map(|name| format!("`{}`", name.escape_debug()))
        .collect();
    refusal(
        &root,
        rule,
        "matches no tensor that an earlier rule has not renamed".to_owned(),
    )
    .with_hint(format!(
        "tensors are called {} there; correct the rule or leave it out",
        names.join(", ")
    ))
}
