//! The `fold` rule of a spec on one model: assigns norms to the tensors that read them, and checks
//! that every tensor on the residual stream is covered.

use indexmap::IndexMap;
use serde_json::Value;

use super::pattern::Pattern;
use super::{FoldRule, Spec};
use crate::error::Result;
use crate::symmetry::fold::{FoldPlan, Folding};
use crate::symmetry::{Node, Symmetries};

/// The norms of a rule as patterns: each weight, and the tensors that take it in.
struct Norms(Vec<(Pattern, Vec<Pattern>)>);

impl FoldRule {
    /// Merges this rule over the rule `below`.
    pub(super) fn standing_on(mut self, below: Self) -> Self {
        self.norms.extend(below.norms);
        self.embeddings.extend(below.embeddings);
        Self {
            never: self.never.or(below.never),
            offset: self.offset.or(below.offset),
            head: self.head.or(below.head),
            ..self
        }
    }
}

impl Spec {
    /// Plans how norms are folded in the model of these symmetries.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`](crate::error::Kind::Recipe) when a name in the rule is not a valid pattern.
    pub(super) fn folding(
        &self,
        prefix: &str,
        symmetries: &Symmetries,
        config: Option<&Value>,
    ) -> Result<Folding> {
        let never = |cause: &str| Ok(Folding::Never(cause.to_owned()));
        let Some(rule) = &self.fold else {
            return never("the spec does not say which norms go into what reads them (`fold`)");
        };
        if let Some(cause) = &rule.never {
            return never(cause);
        }
        // Only the config tells norms that multiply by their weight from norms that multiply by 1 +
        // weight: their tensors have the same names.
        let Some(config) = config else {
            return never("no config.json says which norms it has");
        };
        let model_type = config
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let known = &self.matching.model_types;
        if !known.is_empty() && !known.iter().any(|known| known == model_type) {
            return never(&format!(
                "config.json says `{}`, for which the spec is not",
                model_type.escape_debug()
            ));
        }
        let mut residual = symmetries
            .groups
            .iter()
            .enumerate()
            .filter(|(_, group)| group.residual);
        let (Some((residual, _)), None) = (residual.next(), residual.next()) else {
            return never("it does not have one residual stream");
        };
        let pattern =
            |text: &String| Pattern::parse(text, prefix).map_err(|cause| self.error(cause));
        let norms = Norms(
            rule.norms
                .iter()
                .map(|norm| {
                    Ok((
                        pattern(&norm.norm)?,
                        norm.into.iter().map(pattern).collect::<Result<_>>()?,
                    ))
                })
                .collect::<Result<_>>()?,
        );
        let embeddings = rule
            .embeddings
            .iter()
            .map(pattern)
            .collect::<Result<Vec<_>>>()?;
        let name = |text: &String| Ok(pattern(text)?.fill(&Default::default()).unwrap_or_default());
        let head = rule
            .head
            .as_ref()
            .map(|head| Ok((name(&head.name)?, name(&head.embeddings)?)))
            .transpose()?;
        let bare = prefix.is_empty() && !self.prefixes.is_empty();
        let plan = tied(head, symmetries, config, bare).and_then(|head| {
            let plan = FoldPlan {
                residual,
                offset: rule.offset.unwrap_or(0),
                readers: IndexMap::new(),
                norms: Vec::new(),
                head,
            };
            filled(plan, &norms, &embeddings, symmetries)
        });
        Ok(plan.map_or_else(Folding::Never, Folding::Possible))
    }
}

impl Norms {
    /// Returns the norm whose weight a tensor takes in.
    fn into(&self, tensor: &str) -> Option<String> {
        self.0.iter().find_map(|(norm, readers)| {
            let bindings = readers.iter().find_map(|reader| reader.bind(tensor))?;
            norm.fill(&bindings)
        })
    }

    fn has(&self, tensor: &str) -> bool {
        self.0.iter().any(|(norm, _)| norm.bind(tensor).is_some())
    }
}

/// Returns the head and the embeddings from which it is made, if the two are tied. A `bare` model,
/// whose tensors lack their prefix, has no head even if its config ties one.
fn tied(
    head: Option<(String, String)>,
    symmetries: &Symmetries,
    config: &Value,
    bare: bool,
) -> Result<Option<(String, String)>, String> {
    let Some((name, embeddings)) = head else {
        return Ok(None);
    };
    let said = config.get("tie_word_embeddings").and_then(Value::as_bool);
    let has = |name: &String| symmetries.tensors.contains_key(name);
    match (has(&name), said) {
        (true, Some(true)) | (false, Some(true) | None) if has(&embeddings) && !bare => {
            Ok(Some((name, embeddings)))
        }
        (true, _) => Ok(None),
        (false, _) => Err(format!(
            "it has no `{name}`, so that what it gives is the residual stream itself"
        )),
    }
}

fn filled(
    mut plan: FoldPlan,
    norms: &Norms,
    embeddings: &[Pattern],
    symmetries: &Symmetries,
) -> Result<FoldPlan, String> {
    for (name, tensor) in &symmetries.tensors {
        let mut places =
            (0..tensor.axes.len()).filter(|axis| tensor.axes[*axis].names(plan.residual));
        let Some(axis) = places.next() else { continue };
        let plain = matches!(tensor.axes[axis], Node::Group { .. })
            && (axis == 0 || axis + 1 == tensor.axes.len());
        if places.next().is_some() || !plain {
            return Err(format!(
                "`{name}` carries the residual stream neither on its first axis nor on its last"
            ));
        }
        if norms.has(name) {
            plan.norms.push(name.clone());
        } else if let Some(norm) = norms.into(name) {
            plan.readers.insert(name.clone(), norm);
        } else if axis > 0
            && !embeddings
                .iter()
                .any(|embeddings| embeddings.bind(name).is_some())
        {
            return Err(format!(
                "the spec does not say which norm goes into `{name}`"
            ));
        } else if matches!(tensor.axes[axis], Node::Group { signed: false, .. }) {
            return Err(format!("the spec does not say into what `{name}` goes"));
        }
    }
    if let Some((head, _)) = &plan.head {
        let norm = norms
            .into(head)
            .ok_or_else(|| format!("the spec does not say which norm goes into `{head}`"))?;
        plan.readers.insert(head.clone(), norm);
    }
    if let Some((reader, norm)) = plan
        .readers
        .iter()
        .find(|(_, norm)| !plan.norms.contains(norm))
    {
        return Err(format!(
            "`{norm}`, which goes into `{reader}`, is not there"
        ));
    }
    match plan
        .norms
        .iter()
        .find(|norm| !plan.readers.values().any(|read| read == *norm))
    {
        Some(norm) => Err(format!("nothing reads what `{norm}` normalises")),
        None => Ok(plan),
    }
}
