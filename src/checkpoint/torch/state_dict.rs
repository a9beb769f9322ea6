//! Finds the state dict in a saved object, and lists its entries.
//!
//! A state dict is a dict with a tensor among its values, or a whole pickled `nn.Module`.
//! Checkpoints keep it at the top or under a key (`state_dict`, `model_state_dict`, `model`, …),
//! beside the state of optimizers and schedulers. A single state dict is taken; with several the
//! user must choose one.

use std::borrow::Cow;
use std::collections::HashSet;

use indexmap::IndexMap;

use super::fault::{Fault, Parsed};
use super::pickle::{Graph, Id, Node};
use super::rebuild::is_tensor;

/// The deepest place of a state dict: the top, a key, or a key of that.
const MAX_DEPTH: usize = 2;
/// Parts of the keys that hold the state of a training run.
const TRAINING: [&str; 4] = ["optim", "sched", "scaler", "rng"];
/// The end of the names of random generators' states, tensors that are beside state dicts.
const RANDOM: &str = "rng_state";
/// The deepest nesting of modules.
const MAX_MODULES: usize = 64;
/// The most attributes of a module; no real module has more, and objects may share them.
const MAX_ATTRIBUTES: usize = 4096;
/// The most names that a message lists.
const MAX_LISTED: usize = 8;
/// The key that means the object itself.
const TOP: &str = ".";

/// The entries of a state dict, by name, in their order.
pub(super) type Entries = IndexMap<String, Id>;

/// Finds the state dict in `root`, under `key` when one is given, and lists its entries.
///
/// # Errors
///
/// Fails when there is no state dict, several without a `key`, or none under the key.
pub(super) fn entries(graph: &Graph, root: Id, key: Option<&str>) -> Parsed<Entries> {
    let chosen = match key {
        Some(key) => resolve(graph, root, key)?,
        None => only_candidate(graph, root)?,
    };
    flatten(graph, chosen)
}

fn only_candidate(graph: &Graph, root: Id) -> Parsed<Id> {
    let mut search = Search {
        graph,
        path: Vec::new(),
        seen: HashSet::new(),
        found: Vec::new(),
        budget: graph.pickle_bytes,
    };
    search.visit(root)?;
    match search.found.as_slice() {
        [(_, id)] => Ok(*id),
        [] => Err(Fault::new(format!(
            "holds no state dict: it is {}{}",
            graph.describe(root),
            keys_of(graph, root)
        ))
        .with_hint("save model.state_dict() with torch.save")),
        several => {
            let paths: Vec<_> = several.iter().map(|(path, _)| path.as_str()).collect();
            Err(Fault::new(format!(
                "holds {} state dicts: {}",
                paths.len(),
                listed(&paths)
            ))
            .with_hint("choose one by `state_dict_key: KEY`; \".\" is the top level"))
        }
    }
}

/// A walk through the containers of a saved object that collects the state dicts in order.
struct Search<'g> {
    graph: &'g Graph,
    path: Vec<&'g str>,
    /// The visited containers: each is searched once, however often it is referred to.
    seen: HashSet<Id>,
    found: Vec<(String, Id)>,
    /// The number of entries that may still be visited; each takes a byte of the pickle or more,
    /// unless containers share them.
    budget: u64,
}

impl Search<'_> {
    fn visit(&mut self, id: Id) -> Parsed<()> {
        if !self.seen.insert(id) {
            return Ok(());
        }
        let named = if self.path.is_empty() {
            TOP.to_owned()
        } else {
            self.path.join(".")
        };
        if module_parts(self.graph, id).is_some() {
            self.found.push((named, id));
            return Ok(());
        }
        let Some(items) = self.graph.mapping(id) else {
            return Ok(());
        };
        pay(&mut self.budget, items.len())?;
        let items: Vec<_> = items
            .iter()
            .filter_map(|(key, value)| Some((self.graph.text(*key)?, *value)))
            .collect();
        if items
            .iter()
            .any(|(key, value)| is_tensor(self.graph, *value) && !key.ends_with(RANDOM))
        {
            self.found.push((named, id));
        }
        if self.path.len() == MAX_DEPTH {
            return Ok(());
        }
        for (key, value) in items {
            let lower = key.to_ascii_lowercase();
            if !TRAINING.iter().any(|part| lower.contains(part)) {
                self.path.push(key);
                self.visit(value)?;
                self.path.pop();
            }
        }
        Ok(())
    }
}

/// Follows a dotted key; prefers a key of the file that has dots itself to a path.
fn resolve(graph: &Graph, root: Id, key: &str) -> Parsed<Id> {
    let (mut at, mut rest) = (root, key);
    while !matches!(rest, "" | TOP) {
        let children = children(graph, at);
        let step = children.iter().rev().filter_map(|(name, id)| {
            let name = graph.text(*name)?;
            let after = rest.strip_prefix(name)?;
            let after = if after.is_empty() {
                after
            } else {
                after.strip_prefix('.')?
            };
            Some((name.len(), after, *id))
        });
        let Some((_, after, id)) = step.max_by_key(|(length, ..)| *length) else {
            return Err(Fault::new(format!(
                "has no key {rest:?} on the way to {key:?}{}",
                keys_of(graph, at)
            ))
            .with_hint("give the key of the state dict by `state_dict_key: KEY`"));
        };
        (at, rest) = (id, after);
    }
    Ok(at)
}

fn children(graph: &Graph, id: Id) -> Cow<'_, [(Id, Id)]> {
    graph
        .mapping(id)
        .or_else(|| graph.attributes(id))
        .unwrap_or_default()
}

fn keys_of(graph: &Graph, id: Id) -> String {
    let children = children(graph, id);
    let keys: Vec<_> = children
        .iter()
        .filter_map(|(key, _)| graph.text(*key))
        .collect();
    if keys.is_empty() {
        String::new()
    } else {
        format!(" with the keys {}", listed(&keys))
    }
}

fn listed(names: &[&str]) -> String {
    let shown: Vec<_> = names
        .iter()
        .take(MAX_LISTED)
        .map(|name| format!("{name:?}"))
        .collect();
    let more = names.len() - shown.len();
    if more == 0 {
        shown.join(", ")
    } else {
        format!("{} and {more} more", shown.join(", "))
    }
}

fn flatten(graph: &Graph, id: Id) -> Parsed<Entries> {
    let mut entries = Entries::new();
    if module_parts(graph, id).is_some() {
        let mut budget = graph.pickle_bytes.saturating_mul(16);
        flatten_module(graph, id, "", MAX_MODULES, &mut budget, &mut entries)?;
        return Ok(entries);
    }
    let items = graph
        .mapping(id)
        .ok_or_else(|| Fault::new(format!("wanted a state dict, got {}", graph.describe(id))))?;
    for (key, value) in items.iter() {
        if let Some(name) = graph.text(*key) {
            entries.insert(name.to_owned(), *value);
        } else if is_tensor(graph, *value) {
            return Err(Fault::new(format!(
                "a tensor's name in the state dict is {}",
                graph.describe(*key)
            )));
        }
    }
    Ok(entries)
}

/// The parameters, buffers and submodules of a pickled `nn.Module`.
struct Parts<'g> {
    parameters: Cow<'g, [(Id, Id)]>,
    buffers: Cow<'g, [(Id, Id)]>,
    modules: Cow<'g, [(Id, Id)]>,
}

fn module_parts(graph: &Graph, id: Id) -> Option<Parts<'_>> {
    let attributes = graph
        .attributes(id)
        .filter(|attributes| attributes.len() <= MAX_ATTRIBUTES)?;
    let get = |wanted: &str| {
        let attribute = attributes
            .iter()
            .rev()
            .find(|(key, _)| graph.text(*key) == Some(wanted));
        attribute.and_then(|(_, value)| graph.mapping(*value))
    };
    Some(Parts {
        parameters: get("_parameters")?,
        buffers: get("_buffers").unwrap_or_default(),
        modules: get("_modules")?,
    })
}

/// Lists a module as its `state_dict()` would: parameters, buffers, then the submodules.
fn flatten_module(
    graph: &Graph,
    id: Id,
    prefix: &str,
    depth: usize,
    budget: &mut u64,
    entries: &mut Entries,
) -> Parsed<()> {
    let parts = module_parts(graph, id)
        .ok_or_else(|| Fault::new(format!("module {prefix:?} is {}", graph.describe(id))))?;
    let depth = depth
        .checked_sub(1)
        .ok_or_else(|| Fault::new(format!("modules nest deeper than {MAX_MODULES}")))?;
    let count = parts.parameters.len() + parts.buffers.len() + parts.modules.len();
    pay(budget, count)?;
    for (key, value) in parts.parameters.iter().chain(parts.buffers.iter()) {
        if !matches!(graph.node(*value), Node::None) {
            entries.insert(joined(graph, prefix, *key, budget)?, *value);
        }
    }
    for (key, value) in parts.modules.iter() {
        if !matches!(graph.node(*value), Node::None) {
            let inner = joined(graph, prefix, *key, budget)? + ".";
            flatten_module(graph, *value, &inner, depth, budget, entries)?;
        }
    }
    Ok(())
}

fn joined(graph: &Graph, prefix: &str, key: Id, budget: &mut u64) -> Parsed<String> {
    let key = graph
        .text(key)
        .ok_or_else(|| Fault::new(format!("a name in module {prefix:?} is not text")))?;
    pay(budget, prefix.len() + key.len() + 1)?;
    Ok(format!("{prefix}{key}"))
}

/// Counts names and entries against a budget: otherwise shared modules could produce more of them
/// than memory holds.
fn pay(budget: &mut u64, amount: usize) -> Parsed<()> {
    *budget = budget
        .checked_sub(amount as u64)
        .ok_or_else(|| Fault::new("the names in it are out of all proportion to the file"))?;
    Ok(())
}
