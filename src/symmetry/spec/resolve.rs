//! Resolves a spec on one model: matches rules to tensors, makes groups, computes and checks sizes.

mod instances;
mod sizes;

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::Value;

use self::instances::Instances;
use super::expression::{AxisExpression, GroupReference};
use super::pattern::{Bindings, Pattern};
use super::{Allowed, Axes, GroupRule, Spec, TensorRule};
use crate::error::{Error, Kind, Result};
use crate::symmetry::fold::Folding;
use crate::symmetry::{Group, NameAxis, Node, Symmetries, TensorSymmetry};

/// The most tensors that an error lists by name; the rest are counted.
const LISTED: usize = 5;

/// The most units of a group: more than any layer has, and within 32 bits.
const MOST_UNITS: u64 = 1 << 26;

/// A parsed rule.
struct ResolvedRule<'a> {
    patterns: Vec<Pattern>,
    /// One expression per axis; `None` when nothing acts, whatever the rank.
    axes: Option<Vec<AxisExpression>>,
    source: &'a TensorRule,
    when: Option<Pattern>,
}

/// A tensor and the rule that applies to it.
struct Matched<'a> {
    name: &'a str,
    shape: &'a [u64],
    rule: usize,
    pattern: usize,
    bindings: Bindings,
}

/// The state while a spec is resolved.
struct Resolver<'a> {
    spec: &'a Spec,
    rules: Vec<ResolvedRule<'a>>,
    instances: Instances,
    sizes: IndexMap<String, f64>,
    config: Option<&'a Value>,
    /// The size of each group, once known.
    units: Vec<Option<u64>>,
    groups: IndexMap<String, Group>,
}

impl Spec {
    /// Resolves this spec on a model with these tensors.
    ///
    /// # Errors
    ///
    /// [`Kind::Recipe`] when the spec contradicts itself; [`Kind::Mismatch`] when no rule matches a
    /// tensor, when sizes do not fit the shapes, or when a group acts in one place only.
    pub fn resolve(
        &self,
        shapes: &IndexMap<String, Vec<u64>>,
        config: Option<&Value>,
    ) -> Result<Symmetries> {
        self.check()?;
        let prefix = self.prefix(shapes)?;
        let rules = self.rules_under(prefix)?;
        let matched = self.matched(&rules, shapes)?;
        let instances = Instances::find(self, &rules, &matched)?;
        let mut resolver = Resolver {
            spec: self,
            rules,
            instances,
            sizes: IndexMap::new(),
            config,
            units: Vec::new(),
            groups: IndexMap::new(),
        };
        let mut tensors = IndexMap::with_capacity(matched.len());
        for tensor in &matched {
            tensors.insert(tensor.name.to_owned(), resolver.tensor(tensor)?);
        }
        resolver.work_out_sizes(&mut tensors)?;
        let groups = resolver.finished()?;
        let mut symmetries = Symmetries {
            spec: self.name.clone(),
            groups,
            tensors,
            folding: Folding::default(),
            fold: None,
        };
        symmetries.check()?;
        symmetries.folding = self.folding(prefix, &symmetries, config)?;
        self.check_tied(&symmetries)?;
        Ok(symmetries)
    }

    pub(super) fn error(&self, cause: impl Into<String>) -> Error {
        Error::new(Kind::Recipe, "cannot use spec", &self.name, cause.into())
    }

    /// Checks the spec as far as possible without a model.
    fn check(&self) -> Result<()> {
        for key in self.groups.keys() {
            self.check_group(key)
                .map_err(|cause| self.error(format!("group `{}` {cause}", key.escape_debug())))?;
        }
        for rule in &self.tensors {
            let mut keys = rule.index.values();
            if let Some(key) = keys.find(|key| !self.groups.contains_key(*key)) {
                let name = rule.name.as_slice().first().map_or("", String::as_str);
                return Err(self.error(format!(
                    "`{}` names the group `{}`, which does not exist",
                    name.escape_debug(),
                    key.escape_debug()
                )));
            }
            if rule.index.len() > 1 {
                return Err(self.error("a tensor's name may have one index only"));
            }
        }
        Ok(())
    }

    fn check_group(&self, key: &str) -> Result<(), &'static str> {
        let group = &self.groups[key];
        let rotates = group.allows.contains(&Allowed::Rotation);
        if group.allows.contains(&Allowed::Orthogonal) {
            return Err("allows orthogonal maps, which only follow from `fold`");
        }
        if rotates && group.pairs.is_none() {
            return Err("allows rotation, but has no `pairs`");
        }
        if group.pairs.is_some() && group.allows.contains(&Allowed::Permutation) {
            return Err("has pairs, which no permutation may part");
        }
        let Some(outer) = &group.within else {
            return Ok(());
        };
        let outer = self.groups.get(outer);
        if outer.is_none_or(|outer| outer.within.as_deref() == Some(key) || outer.chain) {
            return Err("lies within a group that does not exist, is a chain, or lies within it");
        }
        Ok(())
    }

    /// Finds the prefix under which rules match most tensors.
    fn prefix(&self, shapes: &IndexMap<String, Vec<u64>>) -> Result<&str> {
        let mut best = (0, "");
        for (at, prefix) in self.prefixes.iter().enumerate() {
            let rules = self.rules_under(prefix)?;
            let count = shapes
                .iter()
                .filter(|(name, shape)| fitting(&rules, name, shape, shapes).is_some())
                .count();
            if count > best.0 || at == 0 {
                best = (count, prefix);
            }
        }
        Ok(best.1)
    }

    fn rules_under<'a>(&'a self, prefix: &str) -> Result<Vec<ResolvedRule<'a>>> {
        self.tensors
            .iter()
            .map(|source| self.rule_under(prefix, source))
            .collect()
    }

    fn rule_under<'a>(&self, prefix: &str, source: &'a TensorRule) -> Result<ResolvedRule<'a>> {
        let wrong = |cause: String| self.error(cause);
        let pattern = |text: &String| Pattern::parse(text, prefix).map_err(wrong);
        let TensorRule {
            name, axes, when, ..
        } = source;
        let patterns = name.as_slice().iter().map(pattern);
        Ok(ResolvedRule {
            patterns: patterns.collect::<Result<_>>()?,
            axes: match axes {
                Axes::All(_) => None,
                Axes::Each(axes) => {
                    let axes = axes.iter().map(|text| self.axis(text));
                    Some(axes.collect::<Result<_>>()?)
                }
            },
            source,
            when: when.as_ref().map(pattern).transpose()?,
        })
    }

    /// Reads the expression of an axis, all of whose groups must exist.
    fn axis(&self, text: &str) -> Result<AxisExpression> {
        let parsed = AxisExpression::parse(text)
            .map_err(|cause| self.error(format!("axis `{}`: {cause}", text.escape_debug())))?;
        let references = parsed.references();
        let mut references = references.iter();
        if let Some(unknown) = references.find(|known| !self.groups.contains_key(&known.group)) {
            return Err(self.error(format!(
                "axis `{text}`: there is no group `{}`",
                unknown.group
            )));
        }
        Ok(parsed)
    }

    fn matched<'a>(
        &self,
        rules: &[ResolvedRule<'_>],
        shapes: &'a IndexMap<String, Vec<u64>>,
    ) -> Result<Vec<Matched<'a>>> {
        let mut matched = Vec::with_capacity(shapes.len());
        let mut unmapped = Vec::new();
        for (name, shape) in shapes {
            match fitting(rules, name, shape, shapes) {
                Some((rule, pattern, bindings)) => matched.push(Matched {
                    name,
                    shape,
                    rule,
                    pattern,
                    bindings,
                }),
                None => unmapped.push(format!("`{}` {shape:?}", name.escape_debug())),
            }
        }
        if unmapped.is_empty() {
            return Ok(matched);
        }
        let count = unmapped.len();
        let cause = format!("{count} tensors are not mapped: {}", listed(unmapped));
        Err(Error::new(Kind::Mismatch, "spec does not fit the model", &self.name, cause).with_hint(
            "write a spec that `extends` this one and add rules for them (`axes: fixed` where nothing acts)",
        ))
    }

    fn check_tied(&self, symmetries: &Symmetries) -> Result<()> {
        for [one, other] in &self.tied {
            if let (Some(left), Some(right)) =
                (symmetries.tensors.get(one), symmetries.tensors.get(other))
                && left.axes != right.axes
            {
                return Err(self.error(format!(
                    "`{one}` and `{other}` are tied, but something else acts on them"
                )));
            }
        }
        Ok(())
    }
}

/// Finds the first rule for a tensor of this name and rank.
fn fitting(
    rules: &[ResolvedRule<'_>],
    name: &str,
    shape: &[u64],
    shapes: &IndexMap<String, Vec<u64>>,
) -> Option<(usize, usize, Bindings)> {
    rules.iter().enumerate().find_map(|(index, rule)| {
        let axes = rule.axes.as_ref();
        if axes.is_some_and(|axes| axes.len() != shape.len()) {
            return None;
        }
        let mut patterns = rule.patterns.iter().enumerate();
        let bound = patterns.find_map(|(at, pattern)| Some((at, pattern.bind(name)?)));
        let (pattern, bindings) = bound?;
        // A condition names a tensor that the model must have too.
        let wanted = rule.when.as_ref().map(|when| when.fill(&bindings));
        let holds = wanted.is_none_or(|name| name.is_some_and(|name| shapes.contains_key(&name)));
        holds.then_some((index, pattern, bindings))
    })
}

fn listed(mut names: Vec<String>) -> String {
    let more = names.len().saturating_sub(LISTED);
    names.truncate(LISTED);
    let tail = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    names.join(", ") + &tail
}

impl Resolver<'_> {
    fn tensor(&mut self, tensor: &Matched<'_>) -> Result<TensorSymmetry> {
        let axes = match self.rules[tensor.rule].axes.clone() {
            None => tensor.shape.iter().map(|_| Node::Fixed(0)).collect(),
            Some(axes) => axes
                .iter()
                .map(|axis| self.node(axis, tensor))
                .collect::<Result<Vec<_>>>()?,
        };
        Ok(TensorSymmetry {
            shape: tensor.shape.to_vec(),
            index: self.name_axis(tensor)?,
            axes,
        })
    }

    fn name_axis(&mut self, tensor: &Matched<'_>) -> Result<Option<NameAxis>> {
        let rule = &self.rules[tensor.rule];
        let Some((key, group)) = rule.source.index.first() else {
            return Ok(None);
        };
        let around = rule.patterns[tensor.pattern].around(key, &tensor.bindings);
        let (Some((before, after)), Some(&position)) = (around, tensor.bindings.get(key)) else {
            return Err(self
                .spec
                .error(format!("`{}` has no placeholder `{{{key}}}`", tensor.name)));
        };
        let group = self.group(&group.clone(), &tensor.bindings)?;
        Ok(group.map(|group| NameAxis {
            group,
            position,
            before,
            after,
        }))
    }

    fn node(&mut self, axis: &AxisExpression, tensor: &Matched<'_>) -> Result<Node> {
        Ok(match axis {
            AxisExpression::Fixed => Node::Fixed(0),
            AxisExpression::Group(reference) => self.leaf(reference, tensor)?,
            AxisExpression::Product(parts) => Node::Product(
                parts
                    .iter()
                    .map(|part| self.node(part, tensor))
                    .collect::<Result<_>>()?,
            ),
            AxisExpression::Sum(parts) => Node::Sum(
                parts
                    .iter()
                    .map(|part| self.node(part, tensor))
                    .collect::<Result<_>>()?,
            ),
        })
    }

    fn leaf(&mut self, reference: &GroupReference, tensor: &Matched<'_>) -> Result<Node> {
        let Some(bindings) = self
            .instances
            .bindings(self.spec, reference, &tensor.bindings)?
        else {
            return Ok(Node::Fixed(0));
        };
        Ok(match self.group(&reference.group, &bindings)? {
            Some(group) => Node::Group {
                group,
                signed: reference.signed,
            },
            None => Node::Sum(Vec::new()),
        })
    }

    /// Returns the group of this key and these numbers, and makes it on first use. `None` when it
    /// has no units, such as the unrotated rest of a head when rotary embeddings rotate whole
    /// heads.
    fn group(&mut self, key: &str, bindings: &Bindings) -> Result<Option<usize>> {
        let rule = &self.spec.groups[key];
        let name = instances::name_of(self.spec, key, bindings)?;
        if let Some(index) = self.groups.get_index_of(&name) {
            return Ok(Some(index));
        }
        let units = rule
            .units
            .as_ref()
            .map(|size| self.size(size, &name))
            .transpose()?;
        if units == Some(0) {
            return Ok(None);
        }
        let within = match &rule.within {
            None => None,
            Some(outer) => match self.group(outer, bindings)? {
                None => return Ok(None),
                within => within,
            },
        };
        self.units.push(units);
        let group = group_of(key, &name, rule, within);
        Ok(Some(self.groups.insert_full(name, group).0))
    }

    fn finished(mut self) -> Result<Vec<Group>> {
        let lacking: Vec<&str> = self
            .groups
            .keys()
            .zip(&self.units)
            .filter(|(_, units)| units.is_none())
            .map(|(name, _)| &**name)
            .collect();
        if let Some(first) = lacking.first() {
            let cause =
                format!("the size of group `{first}` follows from no tensor; give its `units`");
            return Err(Error::new(
                Kind::Mismatch,
                "spec does not fit the model",
                &self.spec.name,
                cause,
            ));
        }
        let mut groups: Vec<Group> = Vec::with_capacity(self.groups.len());
        for (index, (_, mut group)) in self.groups.drain(..).enumerate() {
            group.units =
                usize::try_from(self.units[index].unwrap_or(0)).expect("bounded by the most units");
            // NOTE: the enclosing group was made first, so its copies are known.
            group.copies = group
                .within
                .map_or(1, |outer| groups[outer].copies * groups[outer].units);
            groups.push(group);
        }
        Ok(groups)
    }
}

fn group_of(key: &str, name: &str, rule: &GroupRule, within: Option<usize>) -> Group {
    Group {
        name: name.to_owned(),
        key: key.to_owned(),
        within,
        copies: 0,
        units: 0,
        allows: rule.allows.clone(),
        pairs: rule.pairs,
        residual: rule.residual,
    }
}

/// The numbers of a group's instances, by group key and the values of its other placeholders.
type Numbers = HashMap<(String, Bindings), std::collections::BTreeSet<u64>>;
