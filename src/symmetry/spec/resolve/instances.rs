//! The instances of each group, and the choice of the one that an axis names.

use std::collections::HashSet;

use super::{Matched, Numbers, ResolvedRule};
use crate::error::Result;
use crate::symmetry::spec::Spec;
use crate::symmetry::spec::expression::{GroupReference, Which};
use crate::symmetry::spec::pattern::{Bindings, Pattern};

/// The instances that tensors name as their own, and the chain instances that other tensors read.
pub(super) struct Instances {
    numbers: Numbers,
    read: HashSet<String>,
}

impl Instances {
    /// Collects the instances from all axes of all tensors.
    ///
    /// # Errors
    ///
    /// A group's name has a placeholder that a tensor's name lacks.
    pub fn find(spec: &Spec, rules: &[ResolvedRule<'_>], matched: &[Matched<'_>]) -> Result<Self> {
        let mut instances = Self {
            numbers: Numbers::new(),
            read: HashSet::new(),
        };
        let mut references = Vec::new();
        for tensor in matched {
            let axes = rules[tensor.rule]
                .axes
                .iter()
                .flatten()
                .flat_map(|axis| axis.references());
            references.extend(axes.map(|reference| (reference, &tensor.bindings)));
        }
        for (reference, bindings) in references.iter().copied() {
            if !matches!(reference.which, Which::Bound | Which::At(_)) {
                continue;
            }
            let (rest, own) = split(spec, &reference.group, bindings)?;
            let number = if let Which::At(number) = reference.which {
                Some(number)
            } else {
                own
            };
            if let Some(number) = number {
                instances
                    .numbers
                    .entry((reference.group.clone(), rest))
                    .or_default()
                    .insert(number);
            }
        }
        for (reference, bindings) in references {
            if matches!(reference.which, Which::Previous | Which::Last)
                && let Some(bindings) = instances.meant(spec, reference, bindings)?
            {
                instances
                    .read
                    .insert(name_of(spec, &reference.group, &bindings)?);
            }
        }
        Ok(instances)
    }

    /// Returns the numbers of the instance that an axis names; `None` when nothing acts there.
    ///
    /// # Errors
    ///
    /// A group's name has a placeholder that the tensor's name lacks.
    pub fn bindings(
        &self,
        spec: &Spec,
        reference: &GroupReference,
        own: &Bindings,
    ) -> Result<Option<Bindings>> {
        let chain = spec.groups[&reference.group].chain;
        let Some(bindings) = self.meant(spec, reference, own)? else {
            // The input comes before the first link of a chain. In any other group a missing
            // instance is an error.
            if chain {
                return Ok(None);
            }
            return Err(spec.error(format!(
                "`{}` has no instance before or at {own:?}",
                reference.group
            )));
        };
        let dangling = chain
            && !self
                .read
                .contains(&name_of(spec, &reference.group, &bindings)?);
        Ok((!dangling).then_some(bindings))
    }

    fn meant(
        &self,
        spec: &Spec,
        reference: &GroupReference,
        bindings: &Bindings,
    ) -> Result<Option<Bindings>> {
        let Some(key) = last_placeholder(spec, &reference.group)? else {
            return Ok(Some(bindings.clone()));
        };
        if reference.which == Which::Bound {
            return Ok(Some(bindings.clone()));
        }
        let (rest, own) = split(spec, &reference.group, bindings)?;
        let numbers = self.numbers.get(&(reference.group.clone(), rest));
        // The instance that is wanted is the last one before `end`.
        let end = match reference.which {
            Which::Previous => own,
            Which::Latest => own.and_then(|own| own.checked_add(1)),
            _ => None,
        };
        let number = match reference.which {
            Which::At(number) => Some(number),
            Which::Previous | Which::Latest => numbers
                .zip(end)
                .and_then(|(numbers, end)| numbers.range(..end).next_back())
                .copied(),
            _ => numbers.and_then(|numbers| numbers.last()).copied(),
        };
        Ok(number.map(|number| {
            let mut bindings = bindings.clone();
            bindings.insert(key, number);
            bindings
        }))
    }
}

/// Builds the name of the instance with these numbers.
pub(super) fn name_of(spec: &Spec, key: &str, bindings: &Bindings) -> Result<String> {
    template(spec, key)?.fill(bindings).ok_or_else(|| {
        spec.error(format!(
            "the name of group `{key}` has a placeholder that a tensor on which it acts lacks"
        ))
    })
}

fn template(spec: &Spec, key: &str) -> Result<Pattern> {
    let text = spec.groups[key].name.as_deref().unwrap_or(key);
    Pattern::parse(text, "").map_err(|cause| spec.error(cause))
}

fn last_placeholder(spec: &Spec, key: &str) -> Result<Option<String>> {
    Ok(template(spec, key)?
        .placeholders()
        .next_back()
        .map(str::to_owned))
}

/// Splits the numbers in a group's name into those before the last placeholder and the last one.
fn split(spec: &Spec, key: &str, bindings: &Bindings) -> Result<(Bindings, Option<u64>)> {
    let template = template(spec, key)?;
    let Some(last) = template.placeholders().next_back() else {
        return Ok((Bindings::new(), None));
    };
    let used: Vec<&str> = template
        .placeholders()
        .filter(|name| *name != last)
        .collect();
    let rest = bindings
        .iter()
        .filter(|(name, _)| used.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), *value))
        .collect();
    Ok((rest, bindings.get(last).copied()))
}
