//! The places where a recipe gives its parameters, so that errors about one for some tensor name
//! file and line.

use super::document::Document;
use super::node::{Node, Value};
use super::origin::{At, Origin};
use super::resolve::TensorPlace;
use crate::door::Door;
use crate::error::{Error, Kind};

/// The places of one document's parameters. They are not part of its contents: all places are
/// equal.
#[derive(Debug, Clone, Default)]
pub struct Places {
    found: Vec<GivenPlace>,
    /// The place of the method.
    method: Option<Shown>,
}

impl PartialEq for Places {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// A parameter, and its owner: a slice, one of its inputs, or without both the document.
#[derive(Debug, Clone)]
struct GivenPlace {
    slice: Option<usize>,
    input: Option<usize>,
    name: String,
    shown: Shown,
}

/// A place as an error shows it.
#[derive(Debug, Clone)]
struct Shown {
    subject: String,
    line: Option<String>,
    /// True if it is a flag.
    is_typed: bool,
}

impl Shown {
    fn new(origin: Origin<'_>, at: At) -> Self {
        let error = origin.error(at, "");
        let line = error
            .hint()
            .map(str::to_owned)
            .filter(|_| !origin.is_typed());
        Self {
            subject: error.subject().to_owned(),
            line,
            is_typed: origin.is_typed(),
        }
    }
}

impl Places {
    /// Finds the places in the tree of a document.
    pub(super) fn of(origin: Origin<'_>, document: &Node) -> Self {
        let method = child(document, "merge_method").map(|node| Shown::new(origin, node.at));
        let mut places = Self {
            found: Vec::new(),
            method,
        };
        places.add(origin, document, None, None);
        let module = child(document, "modules").and_then(|modules| children(modules).next());
        if let Some(module) = module {
            places.add(origin, module, None, None);
        }
        let inside = module.unwrap_or(document);
        for (input, model) in child(inside, "models")
            .into_iter()
            .flat_map(children)
            .enumerate()
        {
            places.add(origin, model, Some(0), Some(input));
        }
        for (input, weight) in child(document, "weights")
            .into_iter()
            .flat_map(children)
            .enumerate()
        {
            let shown = Shown::new(origin, weight.at);
            places.found.push(GivenPlace {
                slice: Some(0),
                input: Some(input),
                name: "weight".to_owned(),
                shown,
            });
        }
        for (at, slice) in child(inside, "slices")
            .into_iter()
            .flat_map(children)
            .enumerate()
        {
            places.add(origin, slice, Some(at), None);
            for (input, source) in child(slice, "sources")
                .into_iter()
                .flat_map(children)
                .enumerate()
            {
                places.add(origin, source, Some(at), Some(input));
            }
        }
        places
    }

    /// Adds the parameters of `node`.
    fn add(&mut self, origin: Origin<'_>, node: &Node, slice: Option<usize>, input: Option<usize>) {
        let Some(Value::Map(entries)) =
            child(node, "parameters").map(|parameters| &parameters.value)
        else {
            return;
        };
        for (key, _) in entries {
            let (name, shown) = (key.text.clone(), Shown::new(origin, key.at));
            self.found.push(GivenPlace {
                slice,
                input,
                name,
                shown,
            });
        }
    }

    /// Finds the place of `name` for an input of a slice, or for all of them; the method's where it
    /// is not given.
    fn find(&self, name: &str, slice: usize, input: Option<usize>) -> Option<&Shown> {
        let given = |slice, input| self.given(name, slice, input);
        let own = input.and_then(|_| given(Some(slice), input));
        let found = own
            .or_else(|| given(Some(slice), None))
            .or_else(|| given(None, None));
        // For all inputs together, that of any input stands for all.
        let mut all = self.found.iter();
        let any = || all.find(|found| found.name == name && found.slice == Some(slice));
        let found = if input.is_none() {
            found.or_else(any)
        } else {
            found
        };
        found.map(|found| &found.shown).or(self.method.as_ref())
    }

    /// Returns the last place where `name` is given for just this slice and input.
    fn given(&self, name: &str, slice: Option<usize>, input: Option<usize>) -> Option<&GivenPlace> {
        let mut found = self.found.iter().rev();
        found.find(|found| found.name == name && found.slice == slice && found.input == input)
    }
}

impl Document {
    /// Makes the error about the parameter `name` for the tensor at `place`, of one of
    /// [`inputs`](Self::inputs) or of all: with file and line where it is given, tensor and layer,
    /// and `help`, if any, above the line.
    pub fn parameter_error(
        &self,
        name: &str,
        input: Option<usize>,
        place: &TensorPlace<'_>,
        cause: impl std::fmt::Display,
        help: &str,
    ) -> Error {
        let layer = super::layer_of(place.name)
            .map(|part| format!(" (layer {})", part.index))
            .unwrap_or_default();
        let tensor = place.name.escape_debug();
        let shown = self.places.find(name, place.slice, input);
        let subject = shown.map_or(name, |shown| shown.subject.as_str());
        let cause = format!("`{name}` for the tensor `{tensor}`{layer}: {cause}");
        if shown.is_some_and(|shown| shown.is_typed) {
            let error = Error::new(Kind::Usage, "cannot use the command line", subject, cause);
            let error = if help.is_empty() {
                error
            } else {
                error.with_hint(help)
            };
            return error.through(Door::Flags);
        }
        let error = Error::new(Kind::Recipe, "cannot use recipe", subject, cause);
        let line = shown
            .and_then(|shown| shown.line.as_deref())
            .unwrap_or_default();
        match (help.is_empty(), line.is_empty()) {
            (true, true) => error,
            (false, true) => error.with_hint(help),
            (true, false) => error.with_hint(line),
            (false, false) => error.with_hint(format!("{help}\n{line}")),
        }
    }
}

fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .rev()
            .find(|(known, _)| known.text == key)
            .map(|(_, node)| node),
        _ => None,
    }
}

/// Returns the items of a list, or the values of a mapping.
fn children(node: &Node) -> Box<dyn Iterator<Item = &Node> + '_> {
    match &node.value {
        Value::List(items) => Box::new(items.iter()),
        Value::Map(entries) => Box::new(entries.iter().map(|(_, node)| node)),
        _ => Box::new(std::iter::empty()),
    }
}
