//! Interprets the calls in a checkpoint's pickle: the few that create tensors, and harmless others.
//!
//! The argument lists are those of `torch/_utils.py` (`_rebuild_tensor_v2` and its kin).

use super::fault::{Fault, Parsed};
use super::pickle::{Graph, Id, Node};
use super::storage::{Reference, count, dtype_of};
use crate::dtype::Dtype;

/// The most dimensions of a tensor, as in torch itself.
const MAX_RANK: usize = 64;
/// The deepest nesting of wrappers: parameters wrap tensors, and wrappers wrap parameters; honest
/// files go three deep.
const MAX_WRAPS: usize = 8;

/// A tensor as described by the pickle, checked for consistency but not against the file.
#[derive(Debug)]
pub(super) struct View<'g> {
    pub(super) storage: Reference<'g>,
    pub(super) dtype: Dtype,
    /// The first element's place in the storage, in elements.
    pub(super) offset: u64,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<u64>,
}

/// A value in a state dict.
#[derive(Debug)]
pub(super) enum Value<'g> {
    Tensor(Box<View<'g>>),
    /// A number, a text, a container, a known class: skipping it loses no tensor.
    Plain,
    /// An object that may stand for a tensor, with its description.
    Opaque(String),
}

/// Interprets the value `id`.
///
/// # Errors
///
/// Fails when it is a tensor of an unsupported kind, or one with a wrong description.
pub(super) fn value(graph: &Graph, id: Id) -> Parsed<Value<'_>> {
    if let Some((name, args)) = tensor_call(graph, id) {
        return view(graph, name, args).map(|view| Value::Tensor(Box::new(view)));
    }
    Ok(match graph.node(id) {
        Node::Call(call) if !graph.class(call).is_some_and(is_harmless) => {
            Value::Opaque(graph.describe(id))
        }
        Node::Persistent(_) => Value::Opaque(graph.describe(id)),
        _ => Value::Plain,
    })
}

/// Tells if `id` is a tensor, of any kind.
pub(super) fn is_tensor(graph: &Graph, id: Id) -> bool {
    tensor_call(graph, id).is_some()
}

/// Returns the `torch._utils` function and arguments that create the tensor `id`, inside all its
/// wrappers.
fn tensor_call(graph: &Graph, id: Id) -> Option<(&str, &[Id])> {
    let call = graph.call(id)?;
    let (mut callable, mut args) = (graph.class(call)?, graph.tuple(call.args)?);
    for _ in 0..MAX_WRAPS {
        match callable {
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            | ("torch.nn.parameter", "Parameter" | "Buffer") => {
                let inner = graph.call(*args.first()?)?;
                (callable, args) = (graph.class(inner)?, graph.tuple(inner.args)?);
            }
            // (function, class, arguments, state): a tensor with attributes, or of a subclass.
            ("torch._tensor" | "torch.tensor", "_rebuild_from_type" | "_rebuild_from_type_v2") => {
                (callable, args) = (graph.global(*args.first()?)?, graph.tuple(*args.get(2)?)?);
            }
            ("torch._utils", name) if name.starts_with("_rebuild_") => return Some((name, args)),
            _ => return None,
        }
    }
    None
}

fn view<'g>(graph: &'g Graph, name: &str, args: &[Id]) -> Parsed<View<'g>> {
    let (least, metadata) = match name {
        "_rebuild_tensor" => (4, None),
        "_rebuild_tensor_v2" => (4, args.get(6)),
        "_rebuild_tensor_v3" => (7, args.get(7)),
        _ => return Err(refused_kind(name)),
    };
    if args.len() < least {
        return Err(Fault::new(format!(
            "torch._utils.{name} has {} arguments; wanted {least}",
            args.len()
        )));
    }
    if let Some(flag) = metadata.and_then(|metadata| set_flag(graph, *metadata)) {
        return Err(
            Fault::new(format!("is a lazy view with the {flag} bit set")).with_hint(
                "resolve it in torch with resolve_conj() and resolve_neg(), and save again",
            ),
        );
    }
    let Node::Persistent(storage) = graph.node(args[0]) else {
        return Err(Fault::new(format!(
            "its storage is {}",
            graph.describe(args[0])
        )));
    };
    let storage = Reference::parse(graph, *storage)?;
    let dtype = if name == "_rebuild_tensor_v3" {
        typed(graph, args[6])?
    } else {
        let refused = || {
            Fault::new(format!(
                "has elements of torch.{}, which are not read",
                storage.class
            ))
        };
        storage.dtype.ok_or_else(refused)?
    };
    let (shape, strides) = (counts(graph, args[2])?, counts(graph, args[3])?);
    if shape.len() != strides.len() {
        return Err(Fault::new(format!(
            "has {} dimensions and {} strides",
            shape.len(),
            strides.len()
        )));
    }
    Ok(View {
        storage,
        dtype,
        offset: count(graph, args[1])?,
        shape,
        strides,
    })
}

fn refused_kind(name: &str) -> Fault {
    let kind = match name {
        "_rebuild_qtensor" => "a quantized tensor",
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => "a sparse tensor",
        "_rebuild_nested_tensor" => "a nested tensor",
        "_rebuild_meta_tensor_no_storage" => "a meta tensor, which has no data",
        _ => "a tensor of a kind that is not read",
    };
    Fault::new(format!("is {kind} (torch._utils.{name})"))
        .with_hint("save it as a plain dense tensor")
}

/// Returns the name of a set conjugate or negative bit: the bytes are then not the values.
fn set_flag(graph: &Graph, metadata: Id) -> Option<&str> {
    let entries = graph.mapping(metadata)?;
    let flag = entries
        .iter()
        .find(|(_, value)| matches!(graph.node(*value), Node::Bool(true)));
    flag.and_then(|(key, _)| graph.text(*key))
}

fn typed(graph: &Graph, id: Id) -> Parsed<Dtype> {
    match graph.global(id) {
        Some(("torch", name)) => dtype_of(name)
            .ok_or_else(|| Fault::new(format!("has elements of torch.{name}, which are not read"))),
        _ => Err(Fault::new(format!("its dtype is {}", graph.describe(id)))),
    }
}

fn counts(graph: &Graph, id: Id) -> Parsed<Vec<u64>> {
    let items = graph
        .sequence(id)
        .ok_or_else(|| Fault::new(format!("its shape is {}", graph.describe(id))))?;
    if items.len() > MAX_RANK {
        return Err(Fault::new(format!(
            "has {} dimensions; at most {MAX_RANK} are read",
            items.len()
        )));
    }
    items.iter().map(|item| count(graph, *item)).collect()
}

/// Tells if a class holds settings, numbers or containers, never a weight.
fn is_harmless((module, name): (&str, &str)) -> bool {
    match module {
        "argparse" => name == "Namespace",
        "types" => name == "SimpleNamespace",
        "collections" | "datetime" | "pathlib" | "_codecs" | "_io" | "io" | "uuid" | "decimal" => {
            true
        }
        "torch" => matches!(name, "Size" | "device"),
        "numpy" => name == "dtype",
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "scalar",
        "builtins" | "__builtin__" => {
            matches!(
                name,
                "set"
                    | "frozenset"
                    | "complex"
                    | "slice"
                    | "range"
                    | "bytearray"
                    | "list"
                    | "dict"
                    | "tuple"
            )
        }
        _ => false,
    }
}
