//! The comparison of two models, as an error or as notes for the user.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Kind, Result};

use super::config::{Difference, differences};
use super::table::Effect;
use super::tokens::{Compared, compare};

/// The differences that are allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waived {
    /// True to allow tokenizers with different token numbers.
    pub vocabulary: bool,
    /// True to allow configs that give equal shapes different meanings.
    pub config: bool,
}

/// Compares the tokens of the rows of embeddings and heads; returns a note for the user. Models are
/// not compared if `allowed` permits them to differ.
///
/// # Errors
///
/// [`Kind::Mismatch`] with the first token whose number differs; `what` is the action that failed.
/// [`Kind::Input`] when a tokenizer file cannot be read.
pub fn vocabularies(
    what: &'static str,
    reference: &Checkpoint,
    model: &Checkpoint,
    allowed: Waived,
) -> Result<Option<String>> {
    if allowed.vocabulary {
        return Ok(None);
    }
    match compare(reference, model)? {
        Compared::Alike => Ok(None),
        Compared::Unknown(why) => Ok(Some(why)),
        Compared::Different(cause) => Err(Error::new(Kind::Mismatch, what, model.root().display(), cause).with_hint(
            "rows of embeddings and heads belong to tokens, which are never reordered: give models of one tokenizer, or say \
             `any_vocabulary: true` if the rows agree all the same",
        )),
    }
}

/// Compares the configs of two models; returns notes for the user: keys that change the function
/// and, if `allowed`, keys that change the meaning of tensors. The result has the config of
/// `reference`.
///
/// # Errors
///
/// [`Kind::Mismatch`] with the keys that give equal shapes another meaning; `what` is the action
/// that failed. [`Kind::Input`] when a config cannot be read.
pub fn meanings(
    what: &'static str,
    reference: &Checkpoint,
    model: &Checkpoint,
    allowed: Waived,
) -> Result<Vec<String>> {
    let (Some(ours), Some(theirs)) = (reference.config()?, model.config()?) else {
        return Ok(vec![]);
    };
    let (one, other) = (reference.root(), model.root());
    let said = |difference: &Difference| difference.between(one, other);
    let (meaning, function): (Vec<_>, Vec<_>) = differences(&ours, &theirs)
        .into_iter()
        .partition(|difference| difference.effect == Effect::Meaning);
    if !meaning.is_empty() && !allowed.config {
        let cause = meaning.iter().map(said).collect::<Vec<_>>().join("; ");
        return Err(Error::new(Kind::Mismatch, what, model.root().join("config.json").display(), cause).with_hint(
            "equal shapes mean different things there: give models of one architecture, or say `any_config: true` if \
             these are the same all the same",
        ));
    }
    let one = one.display();
    let all = meaning.iter().chain(&function).map(said);
    Ok(all
        .map(|said| format!("{said}; the result has the config of {one}"))
        .collect())
}
