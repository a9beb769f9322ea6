//! The stack machine of a pickle, which only records: opcodes in, [`Graph`] out.

use std::collections::HashMap;
use std::io::BufRead;

use super::graph::{Call, Graph, Id, Node};
use super::hostile::is_hostile;
use super::input::Input;
use super::{MAX_NODES, MAX_STACK};
use crate::checkpoint::torch::fault::{Fault, Parsed};

/// The memory of a memo entry while the table grows, in bytes.
const MEMO_BYTES: u64 = 32;
/// The most memory of a value in a list or a dict while that grows, in bytes.
const FILLED_BYTES: usize = 8;

/// Reads one pickle up to and including its stop mark.
///
/// # Errors
///
/// Fails when the bytes are not a pickle, are cut, exceed a limit, need something outside the file,
/// or name code to run.
pub(in crate::checkpoint::torch) fn read(input: &mut Input<impl BufRead>) -> Parsed<(Graph, Id)> {
    let start = input.position();
    let mut machine = Machine {
        input,
        graph: Graph::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        let op = machine.input.byte()?;
        if op == b'.' {
            break;
        }
        machine.step(op)?;
    }
    let root = machine.pop()?;
    let mut graph = machine.graph;
    graph.pickle_bytes = input.position() - start;
    graph.left = input.left();
    Ok((graph, root))
}

struct Machine<'a, R> {
    input: &'a mut Input<R>,
    graph: Graph,
    stack: Vec<Id>,
    /// Stack heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<R: BufRead> Machine<'_, R> {
    fn step(&mut self, op: u8) -> Parsed<()> {
        match op {
            b'N' | 0x88 | 0x89 | b'K' | b'M' | b'J' | 0x8a | 0x8b | b'G' => self.number(op),
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'C' | b'B' | 0x8e | 0x96 => self.string(op),
            b'(' | b'0' | b'1' | b'2' | 0x80 | 0x95 => self.frame(op),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.remember(op),
            b')' | b't' | 0x85 | 0x86 | 0x87 | b']' | b'l' | b'}' | b'd' | 0x8f | 0x91 => {
                self.container(op)
            }
            b'a' | b'e' | b's' | b'u' | 0x90 | b'b' => self.fill(op),
            b'c' | 0x93 | b'R' | 0x81 | 0x92 | b'o' | b'i' | b'Q' => self.object(op),
            b'I' | b'L' | b'F' | b'S' | b'V' | b'g' | b'p' | b'P' => Err(Fault::new(
                "is pickled with protocol 0, which torch never writes by itself",
            )
            .with_hint("load it in torch and save it again with the default pickle protocol")),
            0x82..=0x84 => Err(Fault::new(
                "its pickle needs Python's extension registry, which is not part of the file",
            )),
            0x97 | 0x98 => Err(Fault::new(
                "its pickle needs buffers that are not part of the file",
            )),
            _ => Err(Fault::new(format!(
                "byte {} of the pickle, {op:#04x}, is no opcode",
                self.input.position().saturating_sub(1)
            ))),
        }
    }

    fn number(&mut self, op: u8) -> Parsed<()> {
        let node = match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.input.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.input.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.input.array()?))),
            b'G' => {
                self.input.array::<8>()?;
                Node::Float
            }
            _ => {
                let length = if op == 0x8a {
                    u64::from(self.input.byte()?)
                } else {
                    self.length4()?
                };
                long(&self.input.bytes(length)?)
            }
        };
        self.push_node(node)
    }

    fn string(&mut self, op: u8) -> Parsed<()> {
        let length = match op {
            0x8c | b'U' | b'C' => u64::from(self.input.byte()?),
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.input.array()?),
            _ => self.length4()?,
        };
        let node = match op {
            b'X' | 0x8c | 0x8d => Node::Text(self.input.text(length)?),
            // Python 2 text; anything but UTF-8 was bytes.
            b'U' | b'T' => match String::from_utf8(self.input.bytes(length)?) {
                Ok(text) => Node::Text(text.into_boxed_str()),
                Err(_) => Node::Bytes,
            },
            _ => {
                self.input.skip(length)?;
                Node::Bytes
            }
        };
        self.push_node(node)
    }

    fn frame(&mut self, op: u8) -> Parsed<()> {
        match op {
            b'(' => {
                if self.marks.len() >= MAX_STACK {
                    return Err(Fault::new(format!(
                        "pickle nests deeper than {MAX_STACK} levels"
                    )));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => match self.marks.last() {
                // As in Python, a pop takes the mark when no value is above it.
                Some(&height) if height == self.stack.len() => {
                    self.marks.pop();
                    Ok(())
                }
                _ => self.pop().map(drop),
            },
            b'1' => self.pop_marked().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            0x80 => match self.input.byte()? {
                0..=5 => Ok(()),
                version => Err(Fault::new(format!(
                    "pickle has protocol {version}; 1 to 5 are read"
                ))),
            },
            // A frame's length only helps buffering.
            _ => self.input.array::<8>().map(drop),
        }
    }

    fn remember(&mut self, op: u8) -> Parsed<()> {
        let key = match op {
            b'q' | b'h' => u32::from(self.input.byte()?),
            b'r' | b'j' => u32::from_le_bytes(self.input.array()?),
            _ => u32::try_from(self.memo.len()).expect("the memo is capped"),
        };
        if matches!(op, b'h' | b'j') {
            let id = self.memo.get(&key).copied();
            return self.push(id.ok_or_else(|| {
                Fault::new(format!("pickle refers to memo entry {key}, never made"))
            })?);
        }
        if self.memo.len() >= MAX_NODES {
            return Err(Fault::new(format!(
                "pickle makes more than {MAX_NODES} memo entries"
            )));
        }
        let top = self.top()?;
        self.input.pay(MEMO_BYTES)?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn container(&mut self, op: u8) -> Parsed<()> {
        let node = match op {
            b')' => Node::Tuple(Box::default()),
            b't' => Node::Tuple(self.pop_marked()?.into_boxed_slice()),
            0x85..=0x87 => Node::Tuple(self.pop_many(usize::from(op - 0x84))?.into_boxed_slice()),
            b']' => Node::List(Vec::new()),
            b'l' => Node::List(self.pop_marked()?),
            b'}' => Node::Dict(Vec::new()),
            b'd' => Node::Dict(pairs(&self.pop_marked()?)?),
            0x8f => Node::Set,
            _ => {
                self.pop_marked()?;
                Node::Set
            }
        };
        self.push_node(node)
    }

    fn fill(&mut self, op: u8) -> Parsed<()> {
        let values = match op {
            b'a' | b'b' => vec![self.pop()?],
            b's' => self.pop_many(2)?,
            _ => self.pop_marked()?,
        };
        let target = self.top()?;
        self.input.pay((values.len() * FILLED_BYTES) as u64)?;
        match (op, self.graph.node_mut(target)) {
            (b'a' | b'e', Node::List(items)) => items.extend(values),
            (b's' | b'u', Node::Dict(items)) => items.extend(pairs(&values)?),
            (b's' | b'u', Node::Call(call)) => call.items.extend(pairs(&values)?),
            (b'b', Node::Call(call)) => call.state = values.first().copied(),
            // Members of sets and of list-like objects never lead to a tensor by name.
            (0x90, Node::Set | Node::Call(_)) | (b'a' | b'e', Node::Call(_)) => {}
            _ => {
                return Err(Fault::new(format!(
                    "pickle fills {} as what it is not",
                    self.graph.describe(target)
                )));
            }
        }
        Ok(())
    }

    fn object(&mut self, op: u8) -> Parsed<()> {
        match op {
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push_global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.graph.text(module), self.graph.text(name)) {
                    (Some(module), Some(name)) => self.push_global(module.into(), name.into()),
                    _ => Err(Fault::new(
                        "pickle names a class by something that is not text",
                    )),
                }
            }
            b'i' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                let args = self.pop_marked()?;
                self.push_global(module, name)?;
                let callable = self.pop()?;
                self.push_call(callable, args)
            }
            b'o' => {
                let mut args = self.pop_marked()?;
                if args.is_empty() {
                    return Err(Fault::new("pickle makes an object of no class"));
                }
                let callable = args.remove(0);
                self.push_call(callable, args)
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_node(Node::Persistent(id))
            }
            _ => {
                if op == 0x92 {
                    // Keyword arguments: no call that creates a tensor has any.
                    self.pop()?;
                }
                let (args, callable) = (self.pop()?, self.pop()?);
                self.push_node(Node::Call(Box::new(Call {
                    callable,
                    args,
                    state: None,
                    items: Vec::new(),
                })))
            }
        }
    }

    fn push_global(&mut self, module: Box<str>, name: Box<str>) -> Parsed<()> {
        if is_hostile(&module, &name) {
            return Err(Fault::new(format!("its pickle names {module}.{name}, which runs code when torch loads it"))
                .with_hint("nothing was run; do not load this file in Python, and get the weights as safetensors"));
        }
        self.push_node(Node::Global(Box::new((module, name))))
    }

    fn push_call(&mut self, callable: Id, args: Vec<Id>) -> Parsed<()> {
        let args = Node::Tuple(args.into_boxed_slice());
        self.input.pay(args.cost())?;
        let args = self.graph.add(args)?;
        self.push_node(Node::Call(Box::new(Call {
            callable,
            args,
            state: None,
            items: Vec::new(),
        })))
    }

    fn push_node(&mut self, node: Node) -> Parsed<()> {
        self.input.pay(node.cost())?;
        let id = self.graph.add(node)?;
        self.push(id)
    }

    fn push(&mut self, id: Id) -> Parsed<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(Fault::new(format!(
                "pickle has more than {MAX_STACK} values on its stack"
            )));
        }
        self.stack.push(id);
        Ok(())
    }

    /// Returns the lowest stack height for a pop: values below a mark belong to the enclosing
    /// object.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Parsed<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(empty_stack()),
        }
    }

    fn pop(&mut self) -> Parsed<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, count: usize) -> Parsed<Vec<Id>> {
        match self.stack.len().checked_sub(count) {
            Some(height) if height >= self.floor() => Ok(self.stack.split_off(height)),
            _ => Err(empty_stack()),
        }
    }

    fn pop_marked(&mut self) -> Parsed<Vec<Id>> {
        let height = self
            .marks
            .pop()
            .ok_or_else(|| Fault::new("pickle closes what it never opened"))?;
        Ok(self.stack.split_off(height))
    }

    fn length4(&mut self) -> Parsed<u64> {
        Ok(u64::from(u32::from_le_bytes(self.input.array()?)))
    }
}

fn empty_stack() -> Fault {
    Fault::new("pickle takes more values than it made")
}

fn pairs(values: &[Id]) -> Parsed<Vec<(Id, Id)>> {
    let (pairs, rest) = values.as_chunks::<2>();
    match rest {
        [] => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err(Fault::new("pickle sets a key without a value")),
    }
}

/// Decodes an integer from its two's complement, little-endian bytes.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Long(bytes.into());
    }
    let negative = bytes.last().is_some_and(|top| top & 0x80 != 0);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Node::Int(i64::from_le_bytes(wide))
}
