//! The `fold` rule of a spec on one model: assigns norms to the tensors that read them, and checks
//! that every tensor on the residual stream is covered.

use indexmap::IndexMap;
use serde_json::Value;

use super::pattern::Pattern;
use super::{FoldRule, Spec};
use crate::error::Result;
use crate::symmetry::fold::{FoldPlan, Folding};
use crate::symmetry::symmetries::TensorSymmetry;
use crate::symmetry::{Node, Symmetries};

/// The norms of a rule as patterns: each weight, and the tensors that take it in.
struct Norms(Vec<(Pattern, Vec<Pattern>)>);

/// Reads the names in a rule for the model under a prefix.
struct Patterns<'a> {
    spec: &'a Spec,
    prefix: &'a str,
}

impl Patterns<'_> {
    fn one(&self, text: &str) -> Result<Pattern> {
        Pattern::parse(text, self.prefix).map_err(|cause| self.spec.error(cause))
    }

    fn all(&self, texts: &[String]) -> Result<Vec<Pattern>> {
        texts.iter().map(|text| self.one(text)).collect()
    }

    /// Reads a name without placeholders.
    fn name(&self, text: &str) -> Result<String> {
        let pattern = self.one(text)?;
        Ok(pattern.fill(&Default::default()).unwrap_or_default())
    }

    fn norms(&self, rule: &FoldRule) -> Result<Norms> {
        let norms = rule.norms.iter();
        let norms = norms.map(|norm| Ok((self.one(&norm.norm)?, self.all(&norm.into)?)));
        Ok(Norms(norms.collect::<Result<_>>()?))
    }
}

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
        let (rule, config) = match self.possible_rule(config) {
            Ok(found) => found,
            Err(cause) => return Ok(Folding::Never(cause)),
        };
        let groups = symmetries.groups.iter().enumerate();
        let mut residual = groups.filter(|(_, group)| group.residual);
        let (Some((residual, _)), None) = (residual.next(), residual.next()) else {
            let cause = "it does not have one residual stream";
            return Ok(Folding::Never(cause.to_owned()));
        };
        let patterns = Patterns { spec: self, prefix };
        let norms = patterns.norms(rule)?;
        let embeddings = patterns.all(&rule.embeddings)?;
        let head = match &rule.head {
            Some(head) => Some((patterns.name(&head.name)?, patterns.name(&head.embeddings)?)),
            None => None,
        };
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

    /// Returns the rule by which norms fold and the config that allows it, or the reason why no rule
    /// applies.
    fn possible_rule<'a>(
        &'a self,
        config: Option<&'a Value>,
    ) -> Result<(&'a FoldRule, &'a Value), String> {
        let Some(rule) = &self.fold else {
            return Err(
                "the spec does not say which norms go into what reads them (`fold`)".to_owned(),
            );
        };
        if let Some(cause) = &rule.never {
            return Err(cause.clone());
        }
        // Only the config tells norms that multiply by their weight from norms that multiply by 1 +
        // weight: their tensors have the same names.
        let config = config.ok_or("no config.json says which norms it has")?;
        let model_type = config
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let known = &self.matching.model_types;
        if !known.is_empty() && !known.iter().any(|known| known == model_type) {
            return Err(format!(
                "config.json says `{}`, for which the spec is not",
                model_type.escape_debug()
            ));
        }
        Ok((rule, config))
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
        let Some(axis) = residual_axis(name, tensor, plan.residual)? else {
            continue;
        };
        let is_embedding = || embeddings.iter().any(|known| known.bind(name).is_some());
        if norms.has(name) {
            plan.norms.push(name.clone());
        } else if let Some(norm) = norms.into(name) {
            plan.readers.insert(name.clone(), norm);
        } else if axis > 0 && !is_embedding() {
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
    check_readers(&plan)?;
    Ok(plan)
}

/// Returns the axis on which a tensor carries the residual stream; it can be folded only where that
/// is the first or the last one.
fn residual_axis(
    name: &str,
    tensor: &TensorSymmetry,
    residual: usize,
) -> Result<Option<usize>, String> {
    let mut places = (0..tensor.axes.len()).filter(|axis| tensor.axes[*axis].names(residual));
    let Some(axis) = places.next() else {
        return Ok(None);
    };
    let is_at_an_end = axis == 0 || axis + 1 == tensor.axes.len();
    let is_plain = matches!(tensor.axes[axis], Node::Group { .. }) && is_at_an_end;
    if places.next().is_some() || !is_plain {
        return Err(format!(
            "`{name}` carries the residual stream neither on its first axis nor on its last"
        ));
    }
    Ok(Some(axis))
}

/// Checks that every norm goes into a tensor and that every reader's norm is there.
fn check_readers(plan: &FoldPlan) -> Result<(), String> {
    let mut readers = plan.readers.iter();
    if let Some((reader, norm)) = readers.find(|(_, norm)| !plan.norms.contains(norm)) {
        return Err(format!(
            "`{norm}`, which goes into `{reader}`, is not there"
        ));
    }
    let is_read = |norm: &String| plan.readers.values().any(|read| read == norm);
    match plan.norms.iter().find(|norm| !is_read(norm)) {
        Some(norm) => Err(format!("nothing reads what `{norm}` normalises")),
        None => Ok(()),
    }
}
