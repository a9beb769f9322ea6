//! Parameters: their names checked against the method, their values against their domain.

use super::super::keys::{Place, nearest};
use super::super::methods::{Domain, METHODS, MethodInfo, ParameterInfo, Scope};
use super::super::node::{Key, Node, Value};
use super::super::origin::{At, Origin};
use super::super::setting::{Condition, Parameters, Setting};
use super::fields::{Field, Fields};
use crate::error::{Error, Result};

/// Whether parameters belong to one model or to more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Model,
    Merge,
}

/// The parameters of `fields`, all of them known to `method` at this level.
pub(super) fn read(fields: &Fields<'_>, method: &MethodInfo, level: Level) -> Result<Parameters> {
    let Some(field) = fields.get("parameters") else {
        return Ok(Parameters::new());
    };
    let Value::Map(entries) = &field.node.value else {
        return Err(field.error(format!("must be a mapping, found {}", field.node.kind())));
    };
    let mut parameters = Parameters::new();
    for (key, node) in entries {
        let info = method.parameter(&key.text).ok_or_else(|| unknown(field.origin, key, method))?;
        if level == Level::Model && info.scope == Scope::Whole {
            let cause = format!("`{}` is one value for all models of {}", info.name, method.name);
            let help = "put it under the `parameters` of the slice or of the whole recipe";
            return Err(field.origin.error_with(key.at, cause, help));
        }
        if matches!(node.value, Value::Null) {
            continue;
        }
        parameters.insert(info.name.to_owned(), Reader { origin: field.origin, info }.setting(node)?);
    }
    Ok(parameters)
}

fn unknown(origin: Origin<'_>, key: &Key, method: &MethodInfo) -> Error {
    let word = &key.text;
    let names = || method.parameters.iter().map(|info| info.name);
    if let Some(near) = nearest(word, names()) {
        let cause = format!("{} has no parameter `{word}`, did you mean `{near}`?", method.name);
        return origin.error(key.at, cause);
    }
    let owners: Vec<_> =
        METHODS.iter().filter(|other| other.parameter(word).is_some()).map(|other| other.name).collect();
    let mut help = format!("its parameters are {}", names().collect::<Vec<_>>().join(", "));
    if !owners.is_empty() {
        help = format!("{help}; `{word}` belongs to {}", owners.join(", "));
    }
    origin.error_with(key.at, format!("{} has no parameter `{word}`", method.name), &help)
}

/// The list `weights`, short for the parameter `weight` of each model.
pub(super) fn read_weights(field: Field<'_>, method: &MethodInfo, models: usize) -> Result<Vec<Setting>> {
    let Some(info) = method.parameter("weight") else {
        return Err(field.error(format!("is short for the parameter weight, which {} does not have", method.name)));
    };
    let items = field.list()?;
    if items.len() != models {
        let cause = format!("must have one number per model: has {} for {models} models", items.len());
        return Err(field.error(cause));
    }
    let reader = Reader { origin: field.origin, info };
    items.iter().map(|node| reader.number(node).map(Setting::Number)).collect()
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
                items.iter().map(|item| self.condition(item)).collect::<Result<_>>().map(Setting::Filtered)
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
        items.iter().map(|item| self.number(item)).collect::<Result<_>>().map(Setting::Gradient)
    }

    fn condition(&self, node: &Node) -> Result<Condition> {
        let fields = Fields::of(self.origin, node, Place::Condition)?;
        let filter = fields.get("filter").map(|field| field.text()).transpose()?;
        let value = self.setting(fields.need("value")?.node)?;
        Ok(Condition { filter: filter.filter(|&text| text != "*").map(str::to_owned), value })
    }

    fn number(&self, node: &Node) -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "parameters are small or not meant to be exact")]
        let number = match &node.value {
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            Value::Text(text) => match text.trim().parse() {
                Ok(number) => number,
                Err(_) => return Err(self.error(node.at, format!("must be a number, found `{text}`"))),
            },
            _ => return Err(self.error(node.at, format!("must be a number, found {}", node.kind()))),
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
            _ => Err(self.error(node.at, format!("must be true or false, found {}", node.kind()))),
        }
    }

    fn error(&self, at: At, cause: impl std::fmt::Display) -> Error {
        self.origin.error(at, format!("`{}` {cause}", self.info.name))
    }
}
