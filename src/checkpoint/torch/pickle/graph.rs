//! The graph of a pickle's values: values by number, so that shared and cyclic ones need no special
//! case.

use std::borrow::Cow;

use super::MAX_NODES;
use crate::checkpoint::torch::fault::{Fault, Parsed};

/// The number of a node in its [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::checkpoint::torch) struct Id(u32);

/// One value of a pickle.
#[derive(Debug)]
pub(in crate::checkpoint::torch) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits: its bytes, two's complement, little-endian.
    Long(Box<[u8]>),
    Float,
    Bytes,
    Text(Box<str>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Set,
    Dict(Vec<(Id, Id)>),
    /// A class or function: module and name.
    Global(Box<(Box<str>, Box<str>)>),
    /// The result of a class or function for some arguments; it was not called.
    Call(Box<Call>),
    /// A value that lies outside the pickle, by its persistent id.
    Persistent(Id),
}

/// A recorded call, never made, with the operations on its result.
#[derive(Debug)]
pub(in crate::checkpoint::torch) struct Call {
    pub(in crate::checkpoint::torch) callable: Id,
    pub(in crate::checkpoint::torch) args: Id,
    /// The state to build the result with.
    pub(in crate::checkpoint::torch) state: Option<Id>,
    /// The items set on the result as on a dict.
    pub(in crate::checkpoint::torch) items: Vec<(Id, Id)>,
}

/// All values of one pickle.
#[derive(Debug)]
pub(in crate::checkpoint::torch) struct Graph {
    nodes: Vec<Node>,
    /// The pickle's length in bytes, to which the memory of its readers is related.
    pub(in crate::checkpoint::torch) pickle_bytes: u64,
    /// The memory left for its readers, in bytes.
    pub(in crate::checkpoint::torch) left: u64,
}

impl Node {
    /// Returns the memory of the node in a graph, in bytes; a graph may have capacity for twice as
    /// many.
    pub(super) fn cost(&self) -> u64 {
        let beside = match self {
            Self::Long(bytes) => block(bytes.len()),
            Self::Text(text) => block(text.len()),
            Self::Tuple(items) => block(size_of_val::<[Id]>(items)),
            Self::List(items) => block(items.capacity() * size_of::<Id>()),
            Self::Dict(items) => block(items.capacity() * size_of::<(Id, Id)>()),
            Self::Global(names) => {
                block(size_of_val::<(Box<str>, Box<str>)>(names))
                    + block(names.0.len())
                    + block(names.1.len())
            }
            Self::Call(_) => block(size_of::<Call>()),
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float
            | Self::Bytes
            | Self::Set
            | Self::Persistent(_) => 0,
        };
        2 * size_of::<Self>() as u64 + beside
    }
}

/// Returns the memory that an allocator takes for a block of `bytes` bytes.
fn block(bytes: usize) -> u64 {
    if bytes == 0 {
        0
    } else {
        (bytes as u64 + 8).next_multiple_of(16).max(32)
    }
}

impl Graph {
    pub(super) fn new() -> Self {
        Self {
            nodes: Vec::new(),
            pickle_bytes: 0,
            left: 0,
        }
    }

    pub(super) fn add(&mut self, node: Node) -> Parsed<Id> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Fault::new(format!(
                "pickle holds more than {MAX_NODES} values, the most that are read"
            )));
        }
        let id = u32::try_from(self.nodes.len()).expect("MAX_NODES fits in 32 bits");
        self.nodes.push(node);
        Ok(Id(id))
    }

    pub(super) fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    pub(in crate::checkpoint::torch) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(in crate::checkpoint::torch) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(in crate::checkpoint::torch) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(in crate::checkpoint::torch) fn int(&self, id: Id) -> Option<i64> {
        match self.node(id) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Returns module and name of a class or function.
    pub(in crate::checkpoint::torch) fn global(&self, id: Id) -> Option<(&str, &str)> {
        match self.node(id) {
            Node::Global(names) => Some((&names.0, &names.1)),
            _ => None,
        }
    }

    pub(in crate::checkpoint::torch) fn call(&self, id: Id) -> Option<&Call> {
        match self.node(id) {
            Node::Call(call) => Some(call),
            _ => None,
        }
    }

    pub(in crate::checkpoint::torch) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Returns the class of an object or the function that makes it; looks through calls that only
    /// stand for a class.
    pub(in crate::checkpoint::torch) fn class(&self, call: &Call) -> Option<(&str, &str)> {
        let class = self.global(call.callable)?;
        match class {
            ("copy_reg" | "copyreg", "_reconstructor" | "__newobj__") => self
                .tuple(call.args)?
                .first()
                .and_then(|first| self.global(*first)),
            _ => Some(class),
        }
    }

    /// Returns the items of a tuple, a list or a `torch.Size`.
    pub(in crate::checkpoint::torch) fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            Node::List(items) => Some(items),
            Node::Call(call) if self.class(call) == Some(("torch", "Size")) => self
                .tuple(call.args)?
                .first()
                .and_then(|first| self.tuple(*first)),
            _ => None,
        }
    }

    /// Returns the entries of a dict, an `OrderedDict` or a `defaultdict`, in the order they were
    /// set: a key may occur twice.
    pub(in crate::checkpoint::torch) fn mapping(&self, id: Id) -> Option<Cow<'_, [(Id, Id)]>> {
        match self.node(id) {
            Node::Dict(items) => Some(Cow::Borrowed(items)),
            Node::Call(call) => match self.class(call)? {
                ("collections", "OrderedDict") => Some(self.ordered(call)),
                ("collections", "defaultdict") => Some(Cow::Borrowed(&call.items)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Returns the entries of an `OrderedDict`: Python 2 passes the pairs to the class and does not
    /// set them.
    fn ordered<'g>(&'g self, call: &'g Call) -> Cow<'g, [(Id, Id)]> {
        let pairs = self
            .tuple(call.args)
            .and_then(|args| self.sequence(*args.first()?));
        let Some(pairs) = pairs else {
            return Cow::Borrowed(&call.items);
        };
        let pairs = pairs.iter().filter_map(|pair| match self.sequence(*pair)? {
            [key, value] => Some((*key, *value)),
            _ => None,
        });
        pairs.chain(call.items.iter().copied()).collect()
    }

    /// Returns the attributes of an object: the dict in its state.
    pub(in crate::checkpoint::torch) fn attributes(&self, id: Id) -> Option<Cow<'_, [(Id, Id)]>> {
        let state = self.call(id)?.state?;
        match self.node(state) {
            // Classes with slots have two dicts.
            Node::Tuple(parts) => parts.first().and_then(|first| self.mapping(*first)),
            _ => self.mapping(state),
        }
    }

    /// Describes a value for a message.
    pub(in crate::checkpoint::torch) fn describe(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".into(),
            Node::Bool(value) => format!("the bool {value}"),
            Node::Int(value) => format!("the int {value}"),
            Node::Long(_) => "an int beyond 64 bits".into(),
            Node::Float => "a float".into(),
            Node::Bytes => "bytes".into(),
            Node::Text(_) => "text".into(),
            Node::Tuple(_) => "a tuple".into(),
            Node::List(_) => "a list".into(),
            Node::Set => "a set".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Global(names) => format!("the class {}.{}", names.0, names.1),
            Node::Call(call) => match self.class(call) {
                Some((module, name)) => format!("an object of class {module}.{name}"),
                None => "an object of no named class".into(),
            },
            Node::Persistent(_) => "a storage".into(),
        }
    }
}
