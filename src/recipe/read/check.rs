//! Checks a method's requirements on the recipe as a whole: number of models, base, parameters.

use super::super::align::AlignFrom;
use super::super::choices::TieRule;
use super::super::document::{Document, Input};
use super::super::methods::{BaseRule, CHOICES, MethodInfo, MethodName, Scope};
use super::super::node::{Node, Value};
use super::super::origin::At;
use super::super::own::{Granularity, Mismatch, Missing, NanPolicy};
use super::fields::Fields;
use crate::error::Result;

/// The reason that a slice does not suit its method, and the input that it is about, if it is about
/// one.
struct Complaint {
    cause: String,
    help: String,
    input: Option<usize>,
}

fn complaint(cause: impl Into<String>) -> Complaint {
    Complaint {
        cause: cause.into(),
        help: String::new(),
        input: None,
    }
}

/// Checks every slice of `document`, and that policies which take from the base have one; faults
/// are kept.
pub(super) fn check(fields: &Fields<'_>, document: &Document) {
    let info = document.method.info();
    let origin = fields.origin;
    for slice in 0..document.slice_count() {
        let inputs = document.inputs(slice);
        let found = base_complaint(document, info, slice)
            .or_else(|| count_complaint(document, info, slice, &inputs))
            .or_else(|| parameter_complaint(document, info, slice, &inputs));
        if let Some(complaint) = found {
            let method = fields
                .get("merge_method")
                .map(|field| field.node.at)
                .unwrap_or_default();
            let at = place_of(fields, slice, complaint.input).unwrap_or(method);
            let cause = format!("{} {}", info.name, complaint.cause);
            let fault: Result<()> = Err(origin.error_with(at, cause, &complaint.help));
            origin.keep(fault);
        }
    }
    origin.keep(check_align(fields, document));
    check_policies(fields, document);
}

/// Checks that there is another model to align to, and that files are for models of the document.
fn check_align(fields: &Fields<'_>, document: &Document) -> Result<()> {
    let (Some(field), Some(align)) = (fields.get("align"), &document.own.align) else {
        return Ok(());
    };
    let models = document.models();
    if models.len() < 2 {
        return Err(field.error("needs two models at least, one of which stays as it is"));
    }
    let AlignFrom::FilesOf(files) = &align.from else {
        return Ok(());
    };
    let names: Vec<String> = models.iter().map(ToString::to_string).collect();
    match files.iter().find(|(model, _)| !names.contains(model)) {
        Some((model, _)) => Err(field.error(format!(
            "has a file for `{}`, which is not among the models",
            model.escape_debug()
        ))),
        None => Ok(()),
    }
}

/// Returns the place of an input, or of its slice; `None` for a base that is appended, and for
/// whole models taken together.
fn place_of(fields: &Fields<'_>, slice: usize, input: Option<usize>) -> Option<At> {
    if let Some(models) = source_list(fields, "models") {
        return child_at(models, input?).map(|node| node.at);
    }
    let slice = child_at(source_list(fields, "slices")?, slice)?;
    let source = input.and_then(|input| child_at(child(slice, "sources")?, input));
    Some(source.unwrap_or(slice).at)
}

/// Returns the value of `models` or `slices`, which may stand in a module.
fn source_list<'a>(fields: &Fields<'a>, key: &str) -> Option<&'a Node> {
    match fields.get("modules") {
        Some(modules) => child(child_at(modules.node, 0)?, key),
        None => fields.get(key).map(|field| field.node),
    }
}

fn child<'a>(node: &'a Node, key: &str) -> Option<&'a Node> {
    match &node.value {
        Value::Map(entries) => entries
            .iter()
            .find(|(known, _)| known.text == key)
            .map(|(_, node)| node),
        _ => None,
    }
}

fn child_at(node: &Node, index: usize) -> Option<&Node> {
    match &node.value {
        Value::List(items) => items.get(index),
        Value::Map(entries) => entries.get(index).map(|(_, node)| node),
        _ => None,
    }
}

fn base_complaint(document: &Document, info: &MethodInfo, slice: usize) -> Option<Complaint> {
    let base = document.base_model_of(slice);
    let found = document.base_index(slice).is_some();
    match (info.base, base) {
        (BaseRule::Required | BaseRule::RequiredCounted, None) => Some(Complaint {
            cause: "needs a `base_model:`".to_owned(),
            help: "say which model is the base, such as `base_model: ORG/NAME`".to_owned(),
            input: None,
        }),
        (BaseRule::Counted, _) | (BaseRule::Optional, None) => None,
        (_, Some(base)) => {
            let cause = format!(
                "measures from the base model {base}, which is not among the slice's sources"
            );
            (!found).then(|| complaint(cause))
        }
    }
}

fn count_complaint(
    document: &Document,
    info: &MethodInfo,
    slice: usize,
    inputs: &[Input<'_>],
) -> Option<Complaint> {
    let base = document.base_index(slice);
    let apart = base.is_some() && info.base != BaseRule::RequiredCounted;
    let count = inputs.len() - usize::from(apart);
    // A base alone does not differ from itself: it stays as it is, as in mergekit.
    if base.is_some() && inputs.len() == 1 {
        return None;
    }
    if (info.fewest..=info.most).contains(&count) {
        return None;
    }
    let wanted = match (info.fewest, info.most) {
        (fewest, most) if fewest == most => format!("exactly {fewest}"),
        (fewest, _) => format!("at least {fewest}"),
    };
    let beside = match (apart, info.base) {
        (true, _) => " beside the base model",
        (false, BaseRule::RequiredCounted) => ", the base model counted",
        _ => "",
    };
    let listed: Vec<_> = inputs.iter().map(|input| input.model.to_string()).collect();
    let cause = format!(
        "takes {wanted} model{}{beside}, found {count} ({})",
        plural(info.fewest),
        shortened(&listed)
    );
    Some(complaint(cause))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Lists names, shortened when there are many.
fn shortened(names: &[String]) -> String {
    match names {
        [first, second, third, _, rest @ ..] => {
            format!("{first}, {second}, {third} and {} more", rest.len() + 1)
        }
        _ => names.join(", "),
    }
}

/// Complains of a required parameter that some model lacks at every level.
fn parameter_complaint(
    document: &Document,
    info: &MethodInfo,
    slice: usize,
    inputs: &[Input<'_>],
) -> Option<Complaint> {
    let base = document.base_index(slice);
    for parameter in info
        .parameters
        .iter()
        .filter(|parameter| parameter.default.is_none())
    {
        let name = parameter.name;
        if document.shared_settings(name, slice).next().is_some() {
            continue;
        }
        if parameter.scope == Scope::Whole {
            let cause = format!("needs the parameter `{name}`");
            return Some(Complaint {
                cause,
                help: one_value(name),
                input: None,
            });
        }
        let lacking = inputs.iter().enumerate().find(|(index, input)| {
            Some(*index) != base
                && input
                    .parameters
                    .is_none_or(|parameters| !parameters.contains_key(name))
        });
        if let Some((index, input)) = lacking {
            let cause = format!("needs the parameter `{name}` for the model {}", input.model);
            let help = one_value(name);
            return Some(Complaint {
                cause,
                help,
                input: Some(index),
            });
        }
    }
    None
}

/// Returns the hint that shows how to give a parameter.
fn one_value(name: &str) -> String {
    format!("give it, such as `parameters: {{{name}: 0.5}}`")
}

/// Refuses choices that have no meaning for the method.
fn check_choices(fields: &Fields<'_>, document: &Document) {
    let info = document.method.info();
    for key in CHOICES {
        if let Some(field) = fields.get(key)
            && !info.choices.contains(&key)
        {
            let fault: Result<()> =
                Err(field.error(format!("has no meaning for {}", document.method)));
            fields.origin.keep(fault);
        }
    }
    let counts_through = document.granularity() == Granularity::Model
        && info.choices.contains(&"ties")
        && document.own.ties == Some(TieRule::First);
    if let Some(field) = fields.get("ties").filter(|_| counts_through) {
        let fault: Result<()> = Err(field.error(
            "cannot be first with `granularity: model`, where tied elements are chosen tensor by tensor; say spread",
        ));
        fields.origin.keep(fault);
    }
}

fn check_policies(fields: &Fields<'_>, document: &Document) {
    let own = &document.own;
    let granularity = fields.get("granularity");
    if let Some(field) = granularity
        && document.method == MethodName::Frechet
        && own.granularity != Some(Granularity::Model)
    {
        let fault: Result<()> =
            Err(field.error("is always model with frechet; use karcher for another one"));
        fields.origin.keep(fault);
    }
    check_choices(fields, document);
    let based = [
        ("mismatch", own.mismatch == Some(Mismatch::Skip)),
        ("missing", own.missing == Some(Missing::Base)),
        ("nan", own.nan == Some(NanPolicy::Base)),
    ];
    for (key, takes_from_base) in based {
        if let Some(field) = fields.get(key)
            && takes_from_base
            && (0..document.slice_count()).any(|slice| document.base_model_of(slice).is_none())
        {
            let fault: Result<()> =
                Err(field.error("takes tensors from the base, but there is no `base_model:`"));
            fields.origin.keep(fault);
        }
    }
}
