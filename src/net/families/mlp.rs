//! Networks that are a chain of layers.

use super::super::graph::{Builder, Network, unfit};
use super::numbered;
use crate::error::Result;

/// A matrix or a norm of a chain.
enum Link {
    Matrix(String),
    Norm(String),
}

/// Builds the chain of all matrices in the order of their numbers, with the norms between them.
pub fn mlp(mut build: Builder<'_>, flax: bool) -> Result<Network> {
    let links = chain(&build, "", if flax { ".kernel" } else { ".weight" });
    let last = dense(&mut build, links, 0, flax)?;
    if last == 0 {
        return Err(unfit("tensors", "none of them is a layer"));
    }
    build.finish()
}

/// Collects the layers whose names are something that ends in `before` and then a number, sorted by
/// that number.
fn chain(build: &Builder<'_>, before: &str, end: &str) -> Vec<Link> {
    let mut links: Vec<(u64, Link)> = Vec::new();
    for (name, shape) in build.tensors {
        let Some(layer) = name.strip_suffix(end) else {
            continue;
        };
        let Some((_, number)) = numbered(layer).filter(|(prefix, _)| prefix.ends_with(before))
        else {
            continue;
        };
        let link = if shape.len() == 2 {
            Link::Matrix(layer.to_owned())
        } else {
            Link::Norm(layer.to_owned())
        };
        links.push((number, link));
    }
    links.sort_by_key(|(number, _)| *number);
    links.into_iter().map(|(_, link)| link).collect()
}

/// Adds the matrices of a classifier called `classifier.{number}`, or the only one called
/// `classifier`.
pub fn classifier(build: &mut Builder<'_>, prefix: &str, input: usize) -> Result<usize> {
    let only = format!("{prefix}classifier");
    if build.tensors.contains_key(&format!("{only}.weight")) {
        return build.linear(
            &format!("{only}.weight"),
            &format!("{only}.bias"),
            input,
            false,
        );
    }
    let links = chain(build, &format!("{only}."), ".weight");
    dense(build, links, input, false)
}

/// Returns the number of input features of the first matrix of [`classifier`].
pub fn classifier_inputs(build: &Builder<'_>, prefix: &str) -> Result<usize> {
    let only = format!("{prefix}classifier");
    let name = match chain(build, &format!("{only}."), ".weight")
        .into_iter()
        .next()
    {
        Some(Link::Matrix(layer)) => format!("{layer}.weight"),
        _ => format!("{only}.weight"),
    };
    match *build.sizes(&name)?.as_slice() {
        [_, inputs] => Ok(inputs),
        ref sizes => Err(unfit(
            &name,
            format!("wanted a matrix, got shape {sizes:?}"),
        )),
    }
}

/// Adds matrix, norms, ReLU, and so on; nothing follows the last matrix.
fn dense(build: &mut Builder<'_>, links: Vec<Link>, input: usize, flax: bool) -> Result<usize> {
    let mut value = input;
    let mut open: Option<String> = None;
    let (end, axis) = if flax { ("kernel", 1) } else { ("weight", 0) };
    for link in links {
        match link {
            Link::Matrix(layer) => {
                if let Some(before) = open.take() {
                    value = build.relu(value);
                    build.units(&before, axis, value);
                }
                let weight = format!("{layer}.{end}");
                value = build.linear(&weight, &format!("{layer}.bias"), value, flax)?;
                open = Some(weight);
            }
            Link::Norm(layer) if open.is_some() => value = build.norm(&layer, value)?,
            Link::Norm(layer) => return Err(unfit(&layer, "a norm stands before the first layer")),
        }
    }
    Ok(value)
}
