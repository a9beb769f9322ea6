//! `thalweg symmetries`.

use std::path::PathBuf;

use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, shown_name};
use crate::recipe::expand_home;
use crate::symmetry::spec::builtin;
use crate::symmetry::{Allowed, Group, Pairs, Spec, Symmetries, TensorSymmetry};

use super::quantised::QuantisedArgs;
use super::{args, job, print};

/// `thalweg symmetries`.
#[derive(Debug, Args)]
pub struct SymmetriesArgs {
    /// The checkpoint: a folder or a file
    #[arg(value_parser = args::path())]
    pub model: PathBuf,

    /// Symmetry spec (YAML or JSON file), or the name of a built-in one [default: chosen by
    /// config.json and tensor names]
    #[arg(long, value_name = "SPEC")]
    pub spec: Option<String>,

    /// Policy for quantised weights.
    #[command(flatten)]
    pub quantised: QuantisedArgs,

    /// Print everything in machine-readable form
    #[arg(long)]
    pub json: bool,
}

/// Prints the groups of a model, their actions on its tensors, and the changes that are allowed.
///
/// # Errors
///
/// Fails if the model cannot be read or no spec fits it.
pub fn run(args: &SymmetriesArgs) -> Result<()> {
    let symmetries = found(args).map_err(Error::refused)?;
    if args.json {
        return print(&format!("{:#}", as_json(&symmetries)));
    }
    let kinds = kinds(&symmetries);
    print(&format!(
        "spec {}: {} groups of {} kinds act on {} tensors",
        symmetries.spec,
        symmetries.groups.len(),
        kinds.len(),
        symmetries.tensors.len()
    ))?;
    print(&groups(&symmetries, &kinds))?;
    print("")?;
    print(&tensors(&symmetries))?;
    print(&format!("\n{LEGEND}"))
}

/// The legend for the column of axes.
const LEGEND: &str = "axes: a group moves the units of that axis, with their signs and rotations; order(GROUP) only reorders them; \
                      fixed stays; A * B: A's units each hold B's; A + B: A's units, then B's; nothing: an empty part; \
                      name by GROUP: the number in the tensor's name is the unit's";

/// The tensors in the order of their layers: numbers in names count as numbers.
fn in_order(symmetries: &Symmetries) -> Vec<(&String, &TensorSymmetry)> {
    let mut tensors: Vec<_> = symmetries.tensors.iter().collect();
    tensors.sort_by_cached_key(|(name, _)| natural(name));
    tensors
}

/// A key by which `layers.2` comes before `layers.10`.
fn natural(name: &str) -> Vec<(u64, String)> {
    let parts = name.split('.').map(|part| match part.parse() {
        Ok(number) => (number, String::new()),
        Err(_) => (u64::MAX, part.to_owned()),
    });
    parts.collect()
}

fn found(args: &SymmetriesArgs) -> Result<Symmetries> {
    let model = Checkpoint::open_with(&job::located(&args.model)?, &args.quantised.options())?;
    let spec = args.spec.as_deref().map(spec).transpose()?;
    Symmetries::of(&model, spec.as_ref())
}

/// Reads the spec that `--spec` names: a built-in one, else a file.
///
/// # Errors
///
/// Fails if there is no such spec or it cannot be used.
pub fn spec(name: &str) -> Result<Spec> {
    if builtin::text_of(name).is_some() {
        builtin::named(name)
    } else {
        Spec::read(&expand_home(name))
    }
}

/// The groups of each key, in the order in which they are met.
fn kinds(symmetries: &Symmetries) -> Vec<Vec<&Group>> {
    let mut kinds: Vec<Vec<&Group>> = Vec::new();
    for group in &symmetries.groups {
        let same = kinds.iter_mut().find(|kind| {
            kind.iter().all(|other| {
                (&other.key, other.units, other.copies) == (&group.key, group.units, group.copies)
            })
        });
        match same {
            Some(kind) => kind.push(group),
            None => kinds.push(vec![group]),
        }
    }
    kinds
}

fn groups(symmetries: &Symmetries, kinds: &[Vec<&Group>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "kind", "groups", "units", "within", "allowed", "first", "last",
    ]);
    for kind in kinds {
        let (Some(first), Some(last)) = (kind.first(), kind.last()) else {
            continue;
        };
        let within = first.within.map_or(String::new(), |outer| {
            format!(
                "{} (each of {})",
                symmetries.groups[outer].key, symmetries.groups[outer].units
            )
        });
        table.add_row([
            first.key.clone(),
            kind.len().to_string(),
            first.units.to_string(),
            within,
            allowed(first),
            shown_name(&first.name),
            if kind.len() > 1 {
                shown_name(&last.name)
            } else {
                String::new()
            },
        ]);
    }
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn allowed(group: &Group) -> String {
    let allows = group.allows.iter();
    let words: Vec<&str> = allows
        .map(|allowed| match (allowed, group.pairs.is_some()) {
            (Allowed::Permutation, _) => "permutation",
            (Allowed::Sign, false) => "sign",
            (Allowed::Sign, true) => "sign of pairs",
            (Allowed::Rotation, _) => "rotation of pairs",
            (Allowed::Orthogonal, _) => "any orthogonal map",
        })
        .collect();
    let pairs = match group.pairs {
        Some(Pairs::Half) => " (i, i + n/2)",
        Some(Pairs::Adjacent) => " (2i, 2i + 1)",
        None => "",
    };
    if words.is_empty() {
        "nothing".into()
    } else {
        words.join(", ") + pairs
    }
}

fn tensors(symmetries: &Symmetries) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["tensor", "shape", "axes"]);
    for (name, tensor) in in_order(symmetries) {
        let mut axes: Vec<String> = tensor
            .axes
            .iter()
            .map(|axis| symmetries.shown(axis))
            .collect();
        if let Some(index) = &tensor.index {
            axes.insert(
                0,
                format!("name by {}", symmetries.groups[index.group].name),
            );
        }
        table.add_row([
            shown_name(name),
            format!("{:?}", tensor.shape),
            axes.join(", "),
        ]);
    }
    table.to_string()
}

fn as_json(symmetries: &Symmetries) -> Value {
    let groups = symmetries.groups.iter().map(|group| {
        json!({
            "name": group.name,
            "key": group.key,
            "units": group.units,
            "copies": group.copies,
            "within": group.within.map(|outer| &symmetries.groups[outer].name),
            "allows": group.allows,
            "pairs": group.pairs,
            "residual": group.residual,
        })
    });
    let tensors = in_order(symmetries).into_iter().map(|(name, tensor)| {
        json!({
            "name": name,
            "shape": tensor.shape,
            "axes": tensor.axes.iter().map(|axis| symmetries.shown(axis)).collect::<Vec<_>>(),
            "name_axis": tensor.index.as_ref().map(|index| &symmetries.groups[index.group].name),
        })
    });
    json!({
        "spec": symmetries.spec,
        "groups": groups.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_sorted_by_number() {
        let mut names = [
            "layers.10.up",
            "layers.2.up",
            "norm",
            "layers.2.down",
            "embed",
        ];
        names.sort_by_key(|name| natural(name));
        assert_eq!(
            names,
            [
                "embed",
                "layers.2.down",
                "layers.2.up",
                "layers.10.up",
                "norm"
            ]
        );
    }
}
