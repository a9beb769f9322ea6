//! What a method asks of the recipe as a whole: how many models, which base, which parameters.

use super::super::document::{Document, Input, Sources};
use super::super::methods::{BaseRule, MethodInfo, MethodName, Scope};
use super::super::own::{Granularity, Mismatch, Missing, NanPolicy};
use super::fields::Fields;
use crate::error::Result;

/// Checks every slice of `document`, and that policies which take from the base have one.
pub(super) fn check(fields: &Fields<'_>, document: &Document) -> Result<()> {
    let info = document.method.info();
    for slice in 0..document.slice_count() {
        let inputs = document.inputs(slice);
        let place = match document.sources {
            Sources::Models(_) => String::new(),
            Sources::Slices(_) => format!(" in slice {slice}"),
        };
        let fail = |cause: String| fields.need("merge_method").map(|field| field.origin.error(field.node.at, cause));
        let complaint = base_complaint(document, info, slice)
            .or_else(|| count_complaint(document, info, slice, &inputs))
            .or_else(|| parameter_complaint(document, info, slice, &inputs));
        if let Some(complaint) = complaint {
            return Err(fail(format!("{}{place} {complaint}", info.name))?);
        }
    }
    check_policies(fields, document)
}

fn base_complaint(document: &Document, info: &MethodInfo, slice: usize) -> Option<String> {
    let base = document.base_model_of(slice);
    let found = document.base_index(slice).is_some();
    match (info.base, base) {
        (BaseRule::Required | BaseRule::RequiredCounted, None) => Some("needs a `base_model`".into()),
        (BaseRule::Counted, _) | (BaseRule::Optional, None) => None,
        (_, Some(base)) => {
            (!found).then(|| format!("measures from the base model {base}, which is not among the slice's sources"))
        }
    }
}

fn count_complaint(document: &Document, info: &MethodInfo, slice: usize, inputs: &[Input<'_>]) -> Option<String> {
    let base = document.base_index(slice);
    let apart = base.is_some() && info.base != BaseRule::RequiredCounted;
    let count = inputs.len() - usize::from(apart);
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
    Some(format!("takes {wanted} model{}{beside}, found {count} ({})", plural(info.fewest), shortened(&listed)))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// A list that stays readable when it is long.
fn shortened(names: &[String]) -> String {
    match names {
        [first, second, third, _, rest @ ..] => {
            format!("{first}, {second}, {third} and {} more", rest.len() + 1)
        }
        _ => names.join(", "),
    }
}

/// A required parameter that some model lacks at every level.
fn parameter_complaint(document: &Document, info: &MethodInfo, slice: usize, inputs: &[Input<'_>]) -> Option<String> {
    let base = document.base_index(slice);
    for parameter in info.parameters.iter().filter(|parameter| parameter.default.is_none()) {
        let name = parameter.name;
        if document.shared_settings(name, slice).next().is_some() {
            continue;
        }
        if parameter.scope == Scope::Whole {
            return Some(format!("needs the parameter `{name}`"));
        }
        let lacking = inputs.iter().enumerate().find(|(index, input)| {
            Some(*index) != base && input.parameters.is_none_or(|parameters| !parameters.contains_key(name))
        });
        if let Some((_, input)) = lacking {
            return Some(format!("needs the parameter `{name}` for the model {}", input.model));
        }
    }
    None
}

fn check_policies(fields: &Fields<'_>, document: &Document) -> Result<()> {
    let own = &document.own;
    let granularity = fields.get("granularity");
    if let Some(field) = granularity
        && document.method == MethodName::Frechet
        && own.granularity != Some(Granularity::Model)
    {
        return Err(field.error("is always model with frechet; use karcher for another one"));
    }
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
            return Err(field.error("takes tensors from the base, but there is no `base_model`"));
        }
    }
    Ok(())
}
