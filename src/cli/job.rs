//! Turns the command line into a recipe and jobs.
//!
//! Flags are rewritten as the recipe that they stand for, so that merges are read and checked in
//! one way. A recipe on the command line is taken as it is; only flags that keep its meaning
//! (output, dtype, shards, memory) may stand beside it.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::budget;
use crate::door::Door;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result};
use crate::output::names_one_file;
use crate::plan::Job;
use crate::plan::memory::Wish;
use crate::recipe::{
    Document, HubCache, METHODS, ModelRef, Reading, Recipe, Scope, THREADS, expand_home,
};
use crate::sidecar::yaml;

use super::args::{BlockArgs, JobArgs, MemoryArgs, RenameArg};
use super::flags::is_recipe;
use super::models::renamed_input;
use super::typed;

/// The default merge method.
pub const DEFAULT_METHOD: &str = "karcher";

/// Reads or builds the recipe that `args` describe.
///
/// # Errors
///
/// [`Kind::Usage`] when flags do not fit together, [`Kind::Recipe`] when the recipe is wrong.
pub fn recipe(args: &JobArgs) -> Result<Recipe> {
    let read = match inputs(args).iter().find(|path| is_recipe(path)) {
        Some(path) if inputs(args).len() > 1 => {
            let cause = "a recipe names its models itself; give nothing beside it";
            return Err(
                usage(path.display().to_string(), cause).with_hint("the output goes behind --out")
            );
        }
        Some(path) => {
            refuse_flags(args)?;
            Recipe::read_as(path, reading(args))
        }
        None => from_flags(args),
    };
    let mut recipe = read?;
    // Warnings about mergekit's flags hold for the whole run, and are given once.
    if let Some(first) = recipe.warnings.first_mut() {
        first.extend(args.mergekit.warnings());
    }
    Ok(recipe)
}

/// Returns the door: a recipe, or flags.
pub fn door(args: &JobArgs) -> Door {
    if inputs(args).iter().any(|path| is_recipe(path)) {
        Door::Recipe
    } else {
        Door::Flags
    }
}

fn reading(args: &JobArgs) -> Reading {
    if args.lenient {
        Reading::Lenient
    } else {
        Reading::Strict
    }
}

/// The models or the recipe, positional or from the script's flag.
pub fn inputs(args: &JobArgs) -> &[PathBuf] {
    if args.script.models.is_empty() {
        &args.inputs
    } else {
        &args.script.models
    }
}

fn given_weights(args: &JobArgs) -> Option<&Vec<f64>> {
    args.weights.as_ref().or(args.script.alphas.as_ref())
}

/// Returns the job of one stage, with its models located in local folders, files or the hub's
/// cache.
///
/// # Errors
///
/// Fails if a model cannot be found.
pub fn job(
    recipe: &Recipe,
    document: &Document,
    args: &JobArgs,
    stage_folder: &dyn Fn(&str) -> Option<PathBuf>,
) -> Result<Job> {
    let hub = HubCache::from_variables(|name| std::env::var_os(name));
    let mut job = Job::found(recipe, document, |model| match stage_folder(&model.path) {
        Some(folder) => Ok(folder),
        None => model.locate(&hub),
    })?;
    let models = document.models().into_iter().enumerate();
    job.made = models
        .filter(|(_, model)| stage_folder(&model.path).is_some())
        .map(|(index, _)| index)
        .collect();
    // Flags that allow more do not change the meaning of a recipe.
    let own = &mut job.document.own;
    own.any_vocabulary = own.any_vocabulary.or(args.any_vocabulary.then_some(true));
    own.any_config = own.any_config.or(args.any_config.then_some(true));
    job.dtype = args.dtype.or(job.dtype);
    job.shard_bytes = args.shard_size.unwrap_or(job.shard_bytes);
    job.zstd = args.zstd.or(job.zstd);
    // Stages before the last are written to folders.
    if names_one_file(&args.out) && !args.out.is_dir() && recipe.documents.last() == Some(document)
    {
        for_one_file(&mut job, args)?;
    }
    Ok(job)
}

/// Finds a model named on the command line: a local path, or one in the hub's cache.
///
/// # Errors
///
/// Fails if it cannot be found.
pub fn located(model: &Path) -> Result<PathBuf> {
    let hub = HubCache::from_variables(|name| std::env::var_os(name));
    let parsed = ModelRef::parse(text_of(model)?, Path::exists);
    parsed
        .map_err(|cause| usage(model.display().to_string(), &cause))?
        .locate(&hub)
}

/// Sets `job` up for a single output file: one shard, whose name must say if it is compressed.
fn for_one_file(job: &mut Job, args: &JobArgs) -> Result<()> {
    let is_compressed = args.out.extension().is_some_and(|end| end == "zst");
    if is_compressed != job.zstd.is_some() {
        let cause = "a compressed file is called X.safetensors.zst, one that is not X.safetensors";
        return Err(
            usage(args.out.display().to_string(), cause).with_hint("--zstd LEVEL compresses")
        );
    }
    if args.shard_size.is_some() {
        return Err(usage("--shard-size".into(), "a single file has no shards")
            .with_hint("name a folder as --out"));
    }
    job.shard_bytes = u64::MAX;
    job.weights_alone = true;
    job.beside_a_file = args.script.copy_extra_files;
    Ok(())
}

/// Returns the settings of a run: those of the flags, else those of the recipe.
///
/// # Errors
///
/// [`Kind::Usage`] for an impossible number of threads.
pub fn wish(document: Option<&Document>, memory: &MemoryArgs, block: &BlockArgs) -> Result<Wish> {
    let own = document.map_or_else(Wish::default, |document| Wish::of(&document.own));
    let most = usize::try_from(*THREADS.end()).unwrap_or(usize::MAX);
    let bytes = memory.memory.unwrap_or(own.memory);
    budget::check_machine(bytes)?;
    Ok(Wish {
        memory: bytes,
        threads: memory.threads.unwrap_or(own.threads).min(most),
        block_bytes: block.block_size,
    })
}

/// Refuses flags whose settings belong in the recipe.
fn refuse_flags(args: &JobArgs) -> Result<()> {
    let given = [
        ("--method", args.method.is_some()),
        ("--weights", args.weights.is_some()),
        ("--alphas", args.script.alphas.is_some()),
        ("--granularity", args.granularity.is_some()),
        ("--seed", args.seed.is_some()),
        ("--ties", args.ties.is_some()),
        ("--sign-tie", args.sign_tie.is_some()),
        ("--rescale-by", args.rescale_by.is_some()),
        ("--max-iter", args.max_iter.is_some()),
        ("--tol", args.tol.is_some()),
        ("--parameter", !args.parameters.is_empty()),
        ("--base", args.base.is_some()),
        ("--nan", args.nan.is_some()),
        ("--quantised", args.quantised.is_some()),
        ("--missing", args.missing.is_some()),
        ("--mismatch", args.mismatch.is_some()),
        ("--rename", !args.rename.rules.is_empty()),
        ("--state-dict-key", args.state_dict_key.is_some()),
        ("--align", args.align.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(usage(flag.into(), "the recipe says this; change it there")),
        None => Ok(()),
    }
}

/// The recipe that the flags stand for.
fn from_flags(args: &JobArgs) -> Result<Recipe> {
    refuse_nonfinite(args)?;
    let method = args.method.as_deref().unwrap_or(DEFAULT_METHOD);
    let paths = inputs(args).iter().map(|path| text_of(path));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    let weights = weights(args, method, paths.len())?;
    let models = paths.iter().zip(weights);
    let models = models.map(|(path, weight)| model(path, weight));
    let mut recipe = Map::new();
    recipe.insert("merge_method".into(), method.into());
    recipe.insert("models".into(), models.collect());
    if let Some(base) = args.base.as_deref() {
        recipe.insert("base_model".into(), base_among(base, &paths)?.into());
    }
    insert_policies(args, &mut recipe);
    if !args.rename.rules.is_empty() {
        recipe.insert("rename".into(), renames(args, &paths)?);
    }
    insert_allowances(args, &mut recipe);
    if let Some(align) = align(args)? {
        recipe.insert("align".into(), align);
    }
    insert_numbers(args, &mut recipe);
    let read = typed::lines(&recipe, args).recipe(reading(args))?;
    Ok(Recipe {
        text: yaml::document(&Value::from(recipe)),
        ..read
    })
}

/// Inserts the parameters of the method, and the dtype of the output.
fn insert_numbers(args: &JobArgs, recipe: &mut Map<String, Value>) {
    let parameters = parameters(args);
    if !parameters.is_empty() {
        recipe.insert("parameters".into(), parameters.into());
    }
    if let Some(name) = args.dtype.and_then(Dtype::torch_name) {
        recipe.insert("dtype".into(), name.into());
    }
}

/// An entry of the recipe's models.
fn model(path: &str, weight: Option<f64>) -> Value {
    match weight {
        Some(weight) => json!({ "model": path, "parameters": { "weight": weight } }),
        None => json!({ "model": path }),
    }
}

/// Inserts the keys whose values are words: the treatment of odd inputs.
fn insert_policies(args: &JobArgs, recipe: &mut Map<String, Value>) {
    let policies = [
        ("granularity", &args.granularity),
        ("ties", &args.ties),
        ("sign_tie", &args.sign_tie),
        ("rescale_by", &args.rescale_by),
        ("nan", &args.nan),
        ("quantised", &args.quantised),
        ("missing", &args.missing),
        ("mismatch", &args.mismatch),
        ("state_dict_key", &args.state_dict_key),
    ];
    for (key, value) in policies {
        if let Some(value) = value {
            recipe.insert(key.to_owned(), value.as_str().into());
        }
    }
    if let Some(seed) = args.seed {
        recipe.insert("seed".into(), seed.into());
    }
    // The script always pads smaller tensors with zeros.
    if !args.script.models.is_empty() && args.mismatch.is_none() {
        recipe.insert("mismatch".into(), "pad".into());
    }
}

/// Inserts the keys that allow models which are unlike.
fn insert_allowances(args: &JobArgs, recipe: &mut Map<String, Value>) {
    let allowed = [
        ("any_vocabulary", args.any_vocabulary),
        ("any_config", args.any_config),
    ];
    for (key, _) in allowed.into_iter().filter(|(_, any)| *any) {
        recipe.insert(key.to_owned(), true.into());
    }
}

/// Finds the model that `--base` names by its position or as it was given.
fn base_among<'a>(base: &str, paths: &[&'a str]) -> Result<&'a str> {
    let at = base
        .parse::<usize>()
        .ok()
        .and_then(|number| number.checked_sub(1));
    let by_position = at.and_then(|at| paths.get(at));
    let same = |path: &&&str| expand_home(base) == Path::new(**path);
    by_position
        .or_else(|| paths.iter().find(same))
        .copied()
        .ok_or_else(|| {
            let cause = format!(
                "wanted a position from 1 to {}, or one of the models as it was given",
                paths.len()
            );
            usage(format!("--base {base}"), &cause)
        })
}

/// Refuses NaN and infinity: the recipe built of the flags is JSON, which cannot hold them.
fn refuse_nonfinite(args: &JobArgs) -> Result<()> {
    let weights = given_weights(args)
        .into_iter()
        .flatten()
        .map(|weight| (format!("a weight of {weight}"), *weight));
    let parameters = args
        .parameters
        .iter()
        .map(|(name, value)| (format!("--parameter {name}={value}"), *value));
    let tol = args.tol.map(|tol| (format!("--tol {tol}"), tol));
    match weights
        .chain(parameters)
        .chain(tol)
        .find(|(_, value)| !value.is_finite())
    {
        Some((typed, _)) => Err(usage(typed, "wanted a finite number")),
        None => Ok(()),
    }
}

fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .ok_or_else(|| usage(path.display().to_string(), "the path is not UTF-8 text"))
}

/// Returns a weight for each model: the given ones, else equal ones if the method needs weights.
fn weights(args: &JobArgs, method: &str, count: usize) -> Result<Vec<Option<f64>>> {
    if let Some(weights) = given_weights(args) {
        if weights.len() != count {
            let cause = format!(
                "wanted {count} numbers, one for each model, got {}",
                weights.len()
            );
            let typed = match &args.weights {
                Some(weights) => format!("--weights {}", typed::joined(weights, ",")),
                None => format!("--alphas {}", typed::joined(weights, " ")),
            };
            return Err(usage(typed, &cause));
        }
        return Ok(weights.iter().copied().map(Some).collect());
    }
    let info = METHODS.iter().find(|info| info.name == method);
    let weight = info.and_then(|info| info.parameter("weight"));
    let must =
        weight.is_some_and(|weight| weight.scope == Scope::PerModel && weight.default.is_none());
    Ok(vec![must.then_some(1.0); count])
}

fn parameters(args: &JobArgs) -> Map<String, Value> {
    let mut parameters = Map::new();
    parameters.extend(
        args.max_iter
            .map(|most| ("max_iter".to_owned(), most.into())),
    );
    parameters.extend(args.tol.map(|tol| ("tol".to_owned(), tol.into())));
    parameters.extend(
        args.parameters
            .iter()
            .map(|(name, value)| (name.clone(), (*value).into())),
    );
    parameters
}

/// `--rename` as the recipe's key.
fn renames(args: &JobArgs, paths: &[&str]) -> Result<Value> {
    let rules = args.rename.rules.iter().map(|rule| rename(rule, paths));
    rules.collect()
}

fn rename(given: &RenameArg, paths: &[&str]) -> Result<Value> {
    let RenameArg { rule, .. } = given;
    let mut value = json!({ "from": rule.from.as_str(), "to": rule.to });
    if let Some(input) = renamed_input(given, paths.len())? {
        value["model"] = paths[input].into();
    }
    Ok(value)
}

/// `--align` and `--spec` as the recipe's key.
fn align(args: &JobArgs) -> Result<Option<Value>> {
    let Some(given) = &args.align else {
        return Ok(None);
    };
    let mut align = Map::new();
    match given.as_slice() {
        [way] if way == "weights" => align.insert("method".into(), "weights".into()),
        files if files.iter().any(|file| file == "weights") => {
            let cause = "wanted weights alone, or files; a file of that name is ./weights";
            return Err(usage("--align".into(), cause));
        }
        files => align.insert(
            "files".into(),
            files.iter().map(|file| expanded(file)).collect(),
        ),
    };
    align.extend(
        args.align_reference
            .as_ref()
            .map(|to| ("reference".to_owned(), to.as_str().into())),
    );
    align.extend(
        args.align_residual
            .as_ref()
            .map(|way| ("residual".to_owned(), way.as_str().into())),
    );
    align.extend(
        args.spec
            .as_ref()
            .map(|spec| ("spec".to_owned(), spec.as_str().into())),
    );
    Ok(Some(align.into()))
}

/// Returns the path of a file with the user's home for `~`.
fn expanded(file: &str) -> String {
    let path = expand_home(file);
    path.to_str().unwrap_or(file).to_owned()
}

pub fn usage(subject: String, cause: &str) -> Error {
    Error::new(Kind::Usage, "cannot use the command line", subject, cause)
}
