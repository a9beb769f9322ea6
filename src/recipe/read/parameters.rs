//! Reads parameters: names are checked against the method, values against their domain.

use super::super::foreign::is_mergekit_key;
use super::super::keys::{Place, nearest};
use super::super::methods::{Domain, MethodInfo, ParameterInfo, Scope};
use super::super::node::{Key, Node, Value};
use super::super::origin::{At, Origin};
use super::super::setting::{Condition, Parameters, Setting};
use super::fields::{Field, Fields};
use crate::door::flag_of;
use crate::error::{Error, Result};

/// The level that parameters belong to: one model, or more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Model,
    Merge,
}

/// Reads the parameters of `fields` that `method` takes at this level; none when the method is not
/// known.
pub(super) fn read(
    fields: &Fields<'_>,
    method: Option<&MethodInfo>,
    level: Level,
) -> Result<Parameters> {
    let Some(field) = fields.get("parameters") else {
        return Ok(Parameters::new());
    };
    let Value::Map(entries) = &field.node.value else {
        return Err(field.error(format!("must be a mapping, found {}", field.node.kind())));
    };
    let mut parameters = Parameters::new();
    for (key, node) in entries {
        let Some(method) = method else { continue };
        let origin = field.origin;
        let Some(info) = origin.keep(known(origin, key, method, level)).flatten() else {
            continue;
        };
        if matches!(node.value, Value::Null) {
            continue;
        }
        if let Some(setting) = origin.keep(Reader { origin, info }.setting(node)) {
            parameters.insert(info.name.to_owned(), setting);
        }
    }
    Ok(parameters)
}

/// Finds the parameter that `key` names; `None`, with a warning, when it has no effect here.
fn known(
    origin: Origin<'_>,
    key: &Key,
    method: &MethodInfo,
    level: Level,
) -> Result<Option<&'static ParameterInfo>> {
    let word = &key.text;
    match method.parameter(word) {
        Some(info) if level == Level::Model && info.scope == Scope::Whole => {
            let sentence = format!(
                "`{word}` of a single model has no effect here, as in mergekit: it is one value for all models of {}; put \
                 it under the `parameters` of the slice or of the whole recipe",
                method.name
            );
            origin.warn(key.at, sentence);
            Ok(None)
        }
        Some(info) => Ok(Some(info)),
        None if is_mergekit_key(word) => {
            let sentence = format!(
                "`{word}` has no effect here, as in mergekit: {} does not take it",
                method.name
            );
            origin.warn(key.at, sentence);
            Ok(None)
        }
        None if origin.notes.lenient => {
            origin.warn(
                key.at,
                format!(
                    "`{word}` is not known and has no effect: {} has no such parameter",
                    method.name
                ),
            );
            Ok(None)
        }
        None => Err(unknown(origin, key, method)),
    }
}

fn unknown(origin: Origin<'_>, key: &Key, method: &MethodInfo) -> Error {
    let word = &key.text;
    let names = || method.parameters.iter().map(|info| info.name);
    let cause = format!("{} has no parameter `{word}`", method.name);
    match nearest(word, names()) {
        Some(near) => origin.error(key.at, format!("{cause}, did you mean `{near}`?")),
        None => {
            let help = format!(
                "its parameters are {}",
                names().collect::<Vec<_>>().join(", ")
            );
            origin.error_with(key.at, cause, &help)
        }
    }
}

/// Reads the list `weights`, short for the parameter `weight` of each model.
pub(super) fn read_weights(
    field: Field<'_>,
    method: &MethodInfo,
    models: usize,
) -> Result<Vec<Setting>> {
    let Some(info) = method.parameter("weight") else {
        return Err(field.error(format!(
            "is short for the parameter weight, which {} does not have",
            method.name
        )));
    };
    let items = field.list()?;
    if items.len() != models {
        let cause = format!(
            "must have one number per model: has {} for {models} models",
            items.len()
        );
        return Err(field.error(cause));
    }
    let reader = Reader {
        origin: field.origin,
        info,
    };
    // Every wrong number is named.
    let read = items
        .iter()
        .filter_map(|node| field.origin.keep(reader.number(node)))
        .map(Setting::Number);
    Ok(read.collect())
}

/// Reads values of one parameter.
struct Reader<'a> {
    origin: Origin<'a>,
    info: &'static ParameterInfo,
}

impl Reader<'_> {
    fn setting(&self, node: &Node) -> Result<Setting> {
        match &node.value {
            Value::List(items) if items.is_empty() => Err(self.error(node.at, "is an empty list")),
            Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
                items
                    .iter()
                    .map(|item| self.condition(item))
                    .collect::<Result<_>>()
                    .map(Setting::Filtered)
            }
            Value::List(items) => self.gradient(node, items),
            Value::Map(_) => Ok(Setting::Filtered(vec![self.condition(node)?])),
            _ if self.info.domain == Domain::Switch => self.switch(node).map(Setting::Switch),
            _ => self.number(node).map(Setting::Number),
        }
    }

    fn gradient(&self, node: &Node, items: &[Node]) -> Result<Setting> {
        if self.info.domain == Domain::Switch {
            return Err(self.error(node.at, "is true or false and cannot be a gradient"));
        }
        items
            .iter()
            .map(|item| self.number(item))
            .collect::<Result<_>>()
            .map(Setting::Gradient)
    }

    fn condition(&self, node: &Node) -> Result<Condition> {
        let fields = Fields::of(self.origin, node, Place::Condition)?;
        let filter = fields.get("filter").map(|field| field.text()).transpose()?;
        let value = self.setting(fields.need("value")?.node)?;
        Ok(Condition {
            filter: filter.filter(|&text| text != "*").map(str::to_owned),
            value,
        })
    }

    fn number(&self, node: &Node) -> Result<f64> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "parameters are small or not meant to be exact"
        )]
        let number = match &node.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            Value::Text(text) => match text.trim().parse() {
                Ok(number) => number,
                Err(_) => {
                    return Err(self.error(node.at, format!("must be a number, found `{text}`")));
                }
            },
            _ => {
                return Err(self.error(node.at, format!("must be a number, found {}", node.kind())));
            }
        };
        match self.info.domain.refusal(number) {
            None => Ok(number),
            Some(must) => Err(self.error(node.at, format!("{must}, found {number}"))),
        }
    }

    fn switch(&self, node: &Node) -> Result<bool> {
        match &node.value {
            Value::Bool(on) => Ok(*on),
            Value::Text(text) if text.eq_ignore_ascii_case("true") => Ok(true),
            Value::Text(text) if text.eq_ignore_ascii_case("false") => Ok(false),
            Value::Integer(_) | Value::Float(_) => Ok(self.number(node)? == 1.0),
            _ => Err(self.error(
                node.at,
                format!("must be true or false, found {}", node.kind()),
            )),
        }
    }

    fn error(&self, at: At, cause: impl std::fmt::Display) -> Error {
        let name = match flag_of(self.info.name) {
            Some(flag) if self.origin.is_typed() => flag,
            _ => self.info.name,
        };
        self.origin.error(at, format!("`{name}` {cause}"))
    }
}
