//! Renames the tensors of inputs as they are opened, so that all later steps see only the new
//! names.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};
use crate::recipe::{Document, Rename};

/// The most names that an error shows.
const SHOWN: usize = 2;

/// A rule, and the number of the input whose tensors it renames; those of all inputs when `None`.
pub type RuleOfInput = (Rename, Option<usize>);

/// Renames the tensors of `inputs`, one for each of the document's models. The first rule that
/// matches a name decides.
///
/// # Errors
///
/// As [`rename_tensors`].
pub fn rename(document: &Document, inputs: &mut [Checkpoint]) -> Result<()> {
    let models = document.models();
    let rules = document.own.rename.iter().map(|rule| {
        let of = rule.model.as_ref();
        (
            rule.clone(),
            of.and_then(|of| models.iter().position(|model| *model == of)),
        )
    });
    rename_tensors(&rules.collect::<Vec<_>>(), inputs)
}

/// Renames the tensors of `inputs`. The first rule that matches a name decides.
///
/// # Errors
///
/// [`Kind::Mismatch`] for a rule that renames nothing, a tensor left without a name, and two
/// tensors with the same new name.
pub fn rename_tensors(rules: &[RuleOfInput], inputs: &mut [Checkpoint]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    let mut used = vec![false; rules.len()];
    for (at, input) in inputs.iter_mut().enumerate() {
        let root = input.root().display().to_string();
        input.rename(|name| {
            let mut own = rules.iter().zip(&mut used);
            let found = own.find_map(|((rule, of), used)| {
                let to = of.is_none_or(|of| of == at).then(|| rule.apply(name))?;
                Some((rule, to?, used))
            });
            let Some((rule, to, used)) = found else {
                return Ok(None);
            };
            *used = true;
            if to.is_empty() {
                let cause = format!("leaves nothing of `{}`", name.escape_debug());
                return Err(refusal(&root, rule, cause));
            }
            Ok(Some(to))
        })?;
    }
    match rules.iter().zip(used).find(|(_, used)| !used) {
        Some(((rule, of), _)) => Err(does_nothing(rule, *of, inputs)),
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

fn does_nothing(rule: &Rename, of: Option<usize>, inputs: &[Checkpoint]) -> Error {
    let input = of.and_then(|of| inputs.get(of));
    let root = input.map_or("all models".to_owned(), |input| {
        input.root().display().to_string()
    });
    let names = input
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
