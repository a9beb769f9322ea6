//! Opens the models of commands that take no recipe.

use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, OpenOptions};
use crate::error::Result;
use crate::plan::memory::Wish;
use crate::plan::rename::{RuleOfInput, rename_tensors};

use super::args::{RenameArg, RenameArgs};
use super::job::{located, usage};
use super::quantised::QuantisedArgs;

/// Opens the model named on the command line and reads its headers, within the memory that the
/// models in `opened` leave.
///
/// # Errors
///
/// Fails if it cannot be found or opened.
pub fn open(
    model: &Path,
    quantised: &QuantisedArgs,
    wish: &Wish,
    opened: &[&Checkpoint],
) -> Result<Checkpoint> {
    let memory = Some(wish.left_for_headers(opened));
    Checkpoint::open_with(
        &located(model)?,
        &OpenOptions {
            memory,
            ..quantised.options()
        },
    )
}

/// Returns the input of a rule, counted from 0; `None` for all of `count`.
pub fn renamed_input(given: &RenameArg, count: usize) -> Result<Option<usize>> {
    let Some(number) = given.model else {
        return Ok(None);
    };
    let input = number.checked_sub(1).filter(|input| *input < count);
    let cause = || format!("wanted a model from 1 to {count} before the colon, got {number}");
    input
        .map(Some)
        .ok_or_else(|| usage("--rename".into(), &cause()))
}

/// Returns the rules of `--rename` for `count` models with the number of the input of each, those of
/// one input first.
///
/// # Errors
///
/// [`Kind::Usage`] for a model that there is not.
pub fn rename_rules(args: &RenameArgs, count: usize) -> Result<Vec<RuleOfInput>> {
    let rules = args.rules.iter();
    let rules = rules.map(|given| Ok((given.rule.clone(), renamed_input(given, count)?)));
    let mut rules = rules.collect::<Result<Vec<_>>>()?;
    rules.sort_by_key(|(_, input)| input.is_none());
    Ok(rules)
}

/// Opens models one after the other, and renames their tensors.
///
/// # Errors
///
/// As [`open`]; [`Kind::Mismatch`] for a rule that cannot be used.
pub fn open_all(
    paths: &[&PathBuf],
    quantised: &QuantisedArgs,
    rename: &RenameArgs,
    wish: &Wish,
) -> Result<Vec<Checkpoint>> {
    let rules = rename_rules(rename, paths.len())?;
    let mut models: Vec<Checkpoint> = Vec::with_capacity(paths.len());
    for path in paths {
        let opened: Vec<_> = models.iter().collect();
        models.push(open(path, quantised, wish, &opened)?);
    }
    rename_tensors(&rules, &mut models)?;
    Ok(models)
}

/// Opens two models, as [`open_all`] does.
///
/// # Errors
///
/// As there.
pub fn open_two(
    paths: [&PathBuf; 2],
    quantised: &QuantisedArgs,
    rename: &RenameArgs,
    wish: &Wish,
) -> Result<[Checkpoint; 2]> {
    let models = open_all(&paths, quantised, rename, wish)?;
    Ok(models.try_into().expect("as many models as paths"))
}
